/** The functions and loops of a program that hear what a topic tells. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { settle, watch } from './fakes.js';
import { reconnect, tellings, withTopics } from './topicserver.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('for await', () => {
  /** The messages that a loop over `room` sees, and how it ended. */
  async function loop(room, act = () => {}) {
    const seen = [];
    try {
      for await (const message of room) {
        seen.push(message.data);
        await act(message);
      }
      return { seen, end: 'done' };
    } catch (error) {
      return { seen, end: error.reason ?? error.code, error };
    }
  }

  it('subscribes, has the newest and all that follow, and ends with the subscription', async () => {
    const { client, server } = await withTopics();
    server.publish('room:1', 1);
    const room = client.topic('room:1', { last: 5 });
    const outcome = watch(loop(room, ({ data }) => data === 3 && room.unsubscribe()));
    await settle();
    server.publish('room:1', 2);
    server.publish('room:1', 3);
    server.publish('room:1', 4);
    await settle();
    assert.equal(outcome.value?.end, 'done');
    assert.deepEqual(outcome.value.seen.slice(0, 3), [1, 2, 3]);
  });

  it('goes on over a reconnect, and throws on a hole behind what came before it', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const outcome = watch(loop(room));
    server.publish('room:1', 1);
    await settle();
    await reconnect(net, () => server.publish('room:1', 2));
    server.publish('room:1', 3);
    await settle();
    await reconnect(net, () => server.restart());
    assert.deepEqual(outcome.value.seen, [1, 2, 3]);
    assert.equal(outcome.value.end, 'epoch');
    assert.equal(outcome.value.error.code, 'messages_lost');
  });

  it('keeps a thousand that were not read, and throws behind them where there are more', async () => {
    const { client, server } = await withTopics({ kept: 2000 });
    const room = client.topic('room:1');
    await room.subscribe();
    const reader = room[Symbol.asyncIterator]();
    const other = tellings(room, ['message']);
    for (let n = 0; n < 1002; n += 1) server.publish('room:1', n);
    await settle();
    assert.equal(other.length, 1002);
    for (let n = 0; n < 1000; n += 1) assert.equal((await reader.next()).value.data, n);
    await assert.rejects(reader.next(), { code: 'messages_lost', reason: 'too_slow' });
    assert.deepEqual(await reader.next(), { value: undefined, done: true });
  });

  it('throws why it cannot subscribe, and ends with the connection', async () => {
    const { net, client, server } = await withTopics();
    server.refuse = () => ({ code: 'permission_denied' });
    assert.equal((await loop(client.topic('no'))).end, 'permission_denied');
    server.refuse = () => undefined;
    const outcomes = ['a', 'b'].map((name) => watch(loop(client.topic(name))));
    await settle();
    net.last.say({ event: 'unsubscribed', topic: 'a', reason: 'ended' });
    await settle();
    assert.equal(outcomes[0].value.end, 'done');
    client.disconnect();
    await settle();
    assert.equal(outcomes[1].value.end, 'done');
    const other = await withTopics();
    const refused = watch(loop(other.client.topic('c')));
    await settle();
    other.net.last.drop(1008, 'Session expired');
    await settle();
    assert.equal(refused.value.end, 'Session expired');
  });

  it('begins with what came while nobody listened, and goes on where another was left', async () => {
    const { net, client, server } = await withTopics();
    server.publish('room:1', 1);
    const room = client.topic('room:1', { last: 5 });
    await room.subscribe();
    server.publish('room:1', 2);
    await settle();
    const take = async (count) => {
      const seen = [];
      for await (const { data } of room) {
        seen.push(data);
        if (seen.length === count) return seen;
      }
      return seen;
    };
    for (const n of [3, 4]) server.publish('room:1', n);
    await settle();
    assert.deepEqual(await take(3), [1, 2, 3]);
    server.publish('room:1', 5);
    await settle();
    assert.deepEqual(await take(2), [4, 5]);
    // The next loop is told of a hole once, in the place of what waited before it; a listener has what it hears.
    server.publish('room:1', 6);
    await settle();
    await reconnect(net, () => server.restart());
    server.publish('room:1', 7);
    await settle();
    await assert.rejects(take(1), { code: 'messages_lost', reason: 'epoch' });
    assert.deepEqual(await take(1), [7]);
    const stop = room.on('message', () => {});
    server.publish('room:1', 8);
    await settle();
    stop();
    for (let n = 9; n < 1019; n += 1) server.publish('room:1', n);
    await settle();
    await assert.rejects(take(1), { code: 'messages_lost', reason: 'too_slow' });
    assert.deepEqual(await take(1), [19]);
    await room.unsubscribe();
    server.publish('room:1', 'unheard');
    client.topic('room:1').subscribe();
    await settle();
    assert.deepEqual(await take(1), [1015]); // of the newest that are kept
  });

  it('begins with the newest that wait, and is told nothing of what was before the first of all', async () => {
    const { net, client, server } = await withTopics({ kept: 2000 });
    const room = client.topic('room:1');
    await room.subscribe();
    for (let n = 0; n < 1002; n += 1) server.publish('room:1', n);
    await settle();
    const reader = room[Symbol.asyncIterator]();
    assert.equal((await reader.next()).value.data, 2);
    await room.unsubscribe();
    await room.subscribe();
    await reconnect(net, () => server.restart());
    server.publish('room:1', 'new');
    await settle();
    assert.equal((await room[Symbol.asyncIterator]().next()).value.data, 'new');
  });

  it('that was left takes nothing from the next one', async () => {
    const { client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const [left, end] = [room[Symbol.asyncIterator](), { value: undefined, done: true }];
    const waiting = left.next();
    assert.deepEqual(await left.return(), end);
    assert.deepEqual(await waiting, end);
    const next = room[Symbol.asyncIterator]();
    assert.deepEqual([await left.next(), await left.return()], [end, end]);
    server.publish('room:1', 1);
    await settle();
    assert.equal(watch(next.next()).state, 'pending');
    await settle();
    server.publish('room:1', 2);
    await settle();
    assert.equal((await next.next()).value.data, 2);
    // One that was too slow has ended, and what follows is for the next.
    for (let n = 0; n < 1002; n += 1) server.publish('room:1', n);
    await settle();
    const after = watch(room[Symbol.asyncIterator]().next());
    await settle();
    assert.equal(after.value.value.data, 1001);
  });

  it('may be left, by one of several', async () => {
    const { client, server } = await withTopics();
    const room = client.topic('room:1');
    const left = watch(loop(room, () => assert.fail('enough')));
    const other = watch(loop(room));
    await settle();
    server.publish('room:1', 1);
    await settle();
    server.publish('room:1', 2);
    await settle();
    assert.deepEqual(left.value.seen, [1]);
    await room.unsubscribe();
    await settle();
    assert.deepEqual(other.value, { seen: [1, 2], end: 'done' });
  });
});

describe('listeners of a topic', () => {
  it('that throw harm nobody, and are told of', async () => {
    const { client, server } = await withTopics();
    const room = client.topic('room:1', { presence: true });
    const errors = [];
    client.on('error', (error) => errors.push(error.message));
    const fail = () => assert.fail('mine');
    for (const event of ['message', 'presence', 'subscribed', 'continuity']) room.on(event, fail);
    room.presence.subscribe(fail);
    const told = tellings(room);
    await room.subscribe();
    server.publish('room:1', 1);
    await settle();
    assert.deepEqual(
      told.map(([event]) => event),
      ['presence', 'subscribed', 'message'],
    );
    assert.equal(errors.length, 5);
    assert.ok(errors.includes("A listener of 'message of room:1' failed"));
  });

  it('may do anything: what that leads to is told afterwards, in its order', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    const told = [];
    room.on('message', ({ data }) => {
      told.push(`first ${data}`);
      if (data === 2) room.unsubscribe();
      if (data === 3) client.disconnect();
    });
    room.on('unsubscribed', () => told.push('unsubscribed'));
    room.on('message', ({ data }) => told.push(`second ${data}`));
    client.on('state', ({ state }) => told.push(state));
    await room.subscribe();
    server.publish('room:1', 1);
    server.publish('room:1', 2);
    await settle();
    await room.subscribe();
    server.publish('room:1', 3);
    await settle();
    assert.deepEqual(told, [
      'first 1',
      'second 1',
      'first 2',
      'second 2',
      'unsubscribed',
      'first 3',
      'second 3',
      'disconnected',
    ]);
    assert.equal(net.sockets.length, 1);
  });

  it('hear nothing more of a subscription that they end, of what came with a message neither', async () => {
    const { client, server } = await withTopics();
    for (const n of [1, 2, 3]) server.publish('room:1', n);
    const room = client.topic('room:1', { last: 3, presence: true });
    const told = [];
    room.on('message', ({ data }) => {
      told.push(data);
      if (data === 2) room.unsubscribe();
    });
    for (const event of ['presence', 'subscribed', 'unsubscribed']) room.on(event, () => told.push(event));
    await room.subscribe();
    await settle();
    assert.deepEqual(told, [1, 2, 'unsubscribed']);
  });

  it('are ended by what on() returned', async () => {
    const { client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const heard = [];
    const stop = room.on('message', ({ data }) => heard.push(data));
    server.publish('room:1', 1);
    await settle();
    stop();
    stop();
    server.publish('room:1', 2);
    await settle();
    assert.deepEqual(heard, [1]);
  });
});

it('what is no event of a topic though it looks like one harms nobody', async () => {
  const { net, client, server } = await withTopics();
  const errors = [];
  client.on('error', (error) => errors.push(error.code));
  const room = client.topic('room:1', { presence: true });
  await room.subscribe();
  const told = tellings(room, ['message', 'presence']);
  const event = { event: 'presence', topic: 'room:1' };
  for (const wrong of [
    { ...event, after: 0, version: 9, left: { me: 5 }, users: 1, connections: 1 },
    { ...event, after: 0, version: 9, members: [], joined: 'all' },
    { ...event, after: {}, version: 'x', left: null },
    { ...event, event: 'topic', epoch: {}, recovered: 0 },
    { ...event, event: 'message', offset: null },
    { ...event, event: 'message', offset: 'x' },
  ]) {
    net.last.say(wrong);
  }
  assert.ok(errors.every((code) => code === 'listener_failed'));
  told.length = 0;
  await client.topic('room:2').subscribe();
  const other = tellings(client.topic('room:2'), ['message']);
  server.publish('room:2', 'goes on');
  await settle();
  assert.equal(other.length, 1);
});
