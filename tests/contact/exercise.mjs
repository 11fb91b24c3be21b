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

  const refused = await failure(new zBifrost(url, 'wrong').connect());
  equal([refused instanceof ConnectionRefused, refused.closeCode], [true, 1008], 'a wrong token');
  const since = Date.now();
  const away = await failure(new zBifrost(nobody, token).connect());
  equal([away instanceof ConnectionLost, away.code], [true, 'connection_lost'], `a server that is away (${away})`);
  if (Date.now() - since > 5000) throw new Error(`a server that is away was noticed after ${Date.now() - since} ms`);
}
