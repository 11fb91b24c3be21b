/** What every runtime of JavaScript has to do with the client: called with its exports, with Node's words or a page's. */

const equal = (seen, right, what) => {
  if (JSON.stringify(seen) !== JSON.stringify(right)) {
    throw new Error(`${what}: ${JSON.stringify(seen)}, not ${JSON.stringify(right)}`);
  }
};

const failure = (promise) =>
  promise.then(
    () => null,
    (error) => error,
  );

/** Resolves when all is as it should be. `nobody` is an address where nothing listens. */
export async function exercise({ zBifrost, ConnectionLost, ConnectionRefused }, { url, token, nobody }) {
  const [one, two] = [new zBifrost(url, token), new zBifrost(url, token)];
  await Promise.all([one.connect(), two.connect()]);
  const waiting = [];
  two.onBroadcast((message) => waiting.shift()?.(message));
  const next = () => new Promise((resolve) => waiting.push(resolve));
  const [made, changed] = [next(), next()];
  const name = `Zoë 😀 ${Math.random()}`;
  const user = await one.create('Users', { name, email: `${Math.random()}@example.com`, age: 30 });
  equal((await made).result, user, 'a broadcast');
  equal(await two.read('Users', { name }, { fields: ['id', 'age'] }), [{ id: user.id, age: 30 }], 'a read');
  equal(await one.update('Users', user.id, { age: 31 }), { updated: 1 }, 'an update');
  equal((await changed).changes, [{ id: user.id, values: { age: 31 } }], 'a broadcast of an update');
  equal((await failure(one.create('Users', { name: '' }))).code, 'invalid', 'a refused value');
  equal((await one.zFunc('zFunc(calculateTotal, {cart_id: 123})')).cart_id, 123, 'a function');
  equal(await one.send({ zKey: 'ping', zHorizontal: '\u2028 "\\' }), '\u2028 "\\', 'a text');
  equal(await two.delete('Users', user.id), { deleted: 1 }, 'a delete');
  one.disconnect();
  two.disconnect();
  await topics(zBifrost, url, token);

  const refused = await failure(new zBifrost(url, 'wrong').connect());
  equal([refused instanceof ConnectionRefused, refused.closeCode], [true, 1008], 'a wrong token');
  const since = Date.now();
  const away = await failure(new zBifrost(nobody, token).connect());
  equal([away instanceof ConnectionLost, away.code], [true, 'connection_lost'], `a server that is away (${away})`);
  if (Date.now() - since > 5000) throw new Error(`a server that is away was noticed after ${Date.now() - since} ms`);
}

/** A room for two, of whom one loses the connection and has afterwards what was said meanwhile, once and in order. */
async function topics(zBifrost, url, token) {
  let socket;
  class Remembered extends WebSocket {
    constructor(...given) {
      super(...given);
      socket = this;
    }
  }
  const one = new zBifrost(url, token, { WebSocket: Remembered, retryDelay: () => 1000 });
  const two = new zBifrost(url, token);
  await Promise.all([one.connect(), two.connect()]);
  const name = `room:${Math.random()}`;
  const [room, other] = [one.topic(name, { presence: true, last: 10 }), two.topic(name)];
  const [heard, goneOn] = [[], []];
  let hears = () => {};
  const until = (isSo) => new Promise((resolve) => (hears = () => isSo() && resolve())).finally(() => (hears = () => {}));
  room.on('message', ({ data, replayed }) => hears(heard.push([data, replayed])));
  room.on('continuity', ({ recovered }) => goneOn.push(recovered));
  room.on('presence', () => hears());
  await other.publish('before');
  await Promise.all([room.subscribe(), other.subscribe()]);
  const isTyping = until(() =>
    Object.values(room.presence.members ?? {}).some((states) => Object.values(states).some((state) => state?.typing)),
  );
  await other.presence.setState({ typing: true });
  await isTyping;
  const both = until(() => heard.length === 2);
  await Promise.all([room.publish('here'), both]);

  const lost = new Promise((resolve) => one.on('reconnecting', resolve));
  socket.send('x'.repeat(2 ** 21)); // more than the server takes
  await lost;
  const all = until(() => heard.length === 4);
  await other.publish('missed');
  await Promise.all([room.publish('written while away'), all]);
  equal(goneOn, [true], 'continuity');
  equal(heard, [['before', true], ['here', false], ['missed', true], ['written while away', false]], 'messages');
  const { messages } = await room.history({ limit: 10 });
  equal(messages.map(({ data }) => data), heard.map(([data]) => data), 'history');
  await room.unsubscribe();
  one.disconnect();
  two.disconnect();
}
