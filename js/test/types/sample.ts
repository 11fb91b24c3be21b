/* Checked by `tsc`, never run: what a user of the types may write, and what they must not. */
import {
  BifrostError,
  CommandFailed,
  ConnectionLost,
  ConnectionRefused,
  NotConnected,
  RequestAborted,
  RequestTimeout,
  createClient,
  signIn,
  fullJitter,
  zBifrost,
} from 'zbifrost';
import type {
  Events,
  Live,
  LiveChange,
  LiveStatus,
  Members,
  Options,
  Position,
  Prompt,
  State,
  Topic,
  TopicMessage,
} from 'zbifrost';

interface User {
  id: number;
  name: string;
}

const options: Options = {
  debug: (line) => line.length,
  autoReconnect: true,
  timeout: 1000,
  retryDelay: fullJitter({ cap: 1000 }),
  WebSocket,
  bigints: 'string',
};

class Shop extends zBifrost {
  total(cart: number): Promise<number> {
    return this.send<number>({ zKey: 'total', zHorizontal: { cart } }, 10000);
  }
}

export async function sample(): Promise<void> {
  const client = new Shop('ws://127.0.0.1:56891', 'token', options);
  const same: Shop = await client.connect();
  const state: State = same.state;

  const user = await client.create<User>('Users', { name: 'Alice' }, { idempotencyKey: 'k' });
  const users: User[] = await client.read<User>(
    'Users',
    { age__gte: 18 },
    { fields: ['id'], order_by: 'name', limit: 1 },
  );
  const { updated }: { updated: number } = await client.update('Users', user.id, { verified: true });
  const { deleted } = await client.delete('Users', ['a', 'b']);
  await client.delete('Users', null, { all: true });
  await client.upsert('Users', users[0]!, ['email']);
  await client.zFunc('zFunc(total, {a: 1})', { onProgress: ({ done, total }) => done + (total ?? 0) });
  await client.zFunc('total', { a: 1 }, 2);
  await client.call('total', [1], { kwargs: { cart_id: 2n } });
  await client.update('Users', 9007199254740993n, { verified: true });
  await client.delete('Users', ['9007199254740993', 5n]);
  await client.call('greet', [], { signal: new AbortController().signal, timeout: Infinity });
  await client.zLink('/admin');
  await client.zOpen('config.yaml');
  const sum: number = updated + deleted + (await client.total(1));

  interface Line {
    text: string;
  }
  const room: Topic<Line> = client.topic<Line>('room:1', { presence: true, last: 50, state: { device: 'phone' } });
  const unheard = room.on('message', ({ data, from, offset, key, own, replayed }) => {
    if (!own && !replayed) `${from ?? 'the program'} ${offset?.toFixed()} ${key} ${data.text.trim()}`.trim();
  });
  room.on('continuity', ({ recovered, reason }) => {
    if (!recovered) reason.trim();
  });
  room.on('presence', ({ members, users, arrived }) => Object.keys(members ?? {}).length + users + arrived.length);
  room.on('subscribed', ({ epoch, connection }) => `${epoch}${connection}`);
  room.on('unsubscribed', ({ reason }) => reason.trim());
  room.on('error', (error) => error.code);
  const subscribed: Topic<Line> = await room.subscribe();
  const { key, offset } = await room.publish({ text: 'hi' }, { timeout: 1000, idempotencyKey: 'of-its-own-0000' });
  const { messages = [], more } = await room.history({ limit: 50, reverse: true, before: offset ?? 1 });
  const where: Position | undefined = room.position;
  const last: TopicMessage<Line> | undefined = messages[0];
  for await (const message of room) if (message.key === key && more) break;
  await room.presence.setState({ typing: true });
  const unwatch = room.presence.subscribe(({ users }) => users.toFixed());
  const present: Members | undefined = room.presence.getSnapshot().members ?? room.presence.members;
  await subscribed.unsubscribe();
  [unheard, unwatch].forEach((end) => end());
  `${where?.epoch}${last?.data.text}${present}`.trim();

  const orders: Live<User> = client.live<User>(
    'Users',
    { age__gte: 18 },
    { fields: ['id', 'name'], order_by: ['name'], limit: 50 },
  );
  const { subscribe, getSnapshot } = orders;
  const ends = [
    subscribe((rows: readonly User[], { kind, added, removed, changed }: LiveChange<User>) => {
      if (kind !== 'same') `${rows.length}${added.length}${removed[0]?.name}`.trim();
      for (const { row, before } of changed) if (row.name !== before.name) row.name.trim();
    }),
    orders.on('status', ({ status, previous }) => status !== previous),
    orders.on('error', (error) => error.code),
  ];
  for await (const rows of orders) if (rows === getSnapshot() && rows === orders.rows) break;
  const shown: LiveStatus = orders.status;
  `${shown}${orders.error?.code}${orders.sees}${orders.digest}`.trim();
  ends.forEach((end) => end());
  orders.stop();

  const stop = client.on('state', (change) => change.previous === state);
  const listener: Events['broadcast'] = (message) => message.zKey;
  client.onBroadcast(listener);
  client.removeBroadcastListener(listener);
  client.on('close', ({ code, final }) => final && code === 1008);
  client.onDisplay((data) => data);
  client.on('engine', ({ state: engine, recovered }) => engine === 'degraded' || recovered === false);
  client.onAsk((prompt: Prompt, { signal, error }) => (signal.aborted ? null : (prompt.label ?? error?.message)));
  stop();
  client.disconnect();

  try {
    await createClient();
    new zBifrost(undefined, await signIn());
    await signIn('token');
  } catch (error) {
    if (error instanceof CommandFailed) error.fields['email']?.trim();
    if (error instanceof ConnectionRefused || error instanceof NotConnected) error.closeCode.toFixed(sum);
    if (error instanceof RequestTimeout || error instanceof RequestAborted) error.retryable === true;
    if (error instanceof ConnectionLost && error instanceof BifrostError) error.code.trim();
  }

  // @ts-expect-error a model is a name
  await client.read(5);
  // @ts-expect-error no such event
  client.on('nonsense', () => {});
  // @ts-expect-error the state is read only
  client.state = 'connected';
  // @ts-expect-error no such option
  new zBifrost('ws://h', null, { reconnect: true });
  // @ts-expect-error no such form of an integer
  new zBifrost('ws://h', null, { bigints: 'BigInt' });
  // @ts-expect-error a misspelt limit would bring the whole table
  await client.read('Users', null, { limt: 1 });
  // @ts-expect-error no such option of a topic
  client.topic('room:1', { presense: true });
  // @ts-expect-error no such event of a topic
  room.on('mesage', () => {});
  // @ts-expect-error another form than its messages have
  await room.publish({ txt: 'hi' });
  // @ts-expect-error who is here is read only
  room.presence.members = {};
  // @ts-expect-error nobody keeps a page of them live
  client.live('Users', null, { offset: 10 });
  // @ts-expect-error rows are not put there
  orders.rows.push({ id: 1, name: 'Alice' });
  // @ts-expect-error values are an object
  await client.create('Users', 'Alice');
}
