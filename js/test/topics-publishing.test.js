/** What is published to topics, and what they have kept. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { ConnectionLost, NotConnected, RequestAborted, RequestTimeout } from '../zBifrost.js';
import { settle, watch } from './fakes.js';
import { of, reconnect, sent, tellings, withTopics } from './topicserver.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('publishing', () => {
  it('carries a key of its own, and resolves with it and the position', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1');
    const [one, two] = [await room.publish({ text: 'hi' }), await room.publish(null)];
    assert.deepEqual([one.epoch, one.offset, two.offset], ['e1.s1', 1, 2]);
    const [first, second] = sent(net, 'zPublish');
    assert.deepEqual(first, { topic: 'room:1', data: { text: 'hi' }, _idempotencyKey: one.key });
    assert.equal(second._idempotencyKey, two.key);
    assert.ok(one.key.length >= 16 && one.key !== two.key);
    const mine = await room.publish(1, { idempotencyKey: 'mine-0000-0000-0000' });
    assert.equal(mine.key, 'mine-0000-0000-0000');
  });

  it('comes back as a message, before or after the answer, and without data where there is no echo', async () => {
    const { client } = await withTopics();
    for (const echo of [true, false]) {
      const room = client.topic(`room:${echo}`, { echo });
      await room.subscribe();
      const told = tellings(room, ['message']);
      const { key, offset } = await room.publish('mine');
      await settle();
      const [[, message]] = told;
      const whole = { data: 'mine', from: 'me', own: false };
      const own = { data: undefined, from: undefined, own: true };
      assert.deepEqual(message, { ...(echo ? whole : own), offset, key, replayed: false });
    }
  });

  it('is sent again by the next connection, in its order and once', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    server.isLazy = true; // no answer arrives
    const outcomes = [1, 2, 3].map((n) => watch(room.publish(n)));
    net.last.drop();
    server.isLazy = false;
    outcomes.push(watch(room.publish(4)));
    await settle();
    assert.deepEqual(
      outcomes.map(({ state }) => state),
      Array(4).fill('pending'),
    );
    await reconnect(net);
    assert.deepEqual(
      outcomes.map(({ value }) => value?.offset),
      [1, 2, 3, 4],
    );
    assert.deepEqual(
      net.last.sent.map(({ zHorizontal: { data } }) => data),
      [undefined, 1, 2, 3, 4],
    );
    assert.deepEqual(
      server.topic('room:1').all.map(({ data }) => data),
      [1, 2, 3, 4],
    );
    assert.equal(client.pending, 0);
  });

  it('waits on a socket that is closing', async () => {
    const { net, client } = await withTopics();
    net.last.readyState = 2;
    const outcome = watch(client.topic('room:1').publish(1));
    await settle();
    assert.equal(outcome.state, 'pending');
    await reconnect(net);
    assert.equal(outcome.value.offset, 1);
  });

  it('ends with its time, its signal, or the last attempt to connect', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1');
    net.last.drop();
    const late = watch(room.publish(1, { timeout: 5 }));
    const abort = new AbortController();
    const aborted = watch(room.publish(2, { signal: abort.signal }));
    const refused = watch(room.publish(3));
    abort.abort();
    mock.timers.tick(5);
    mock.timers.tick(5);
    await settle();
    assert.ok(late.error instanceof RequestTimeout && late.error.retryable);
    assert.ok(aborted.error instanceof RequestAborted);
    net.last.refuse(1008, 'Invalid token');
    await settle();
    assert.ok(refused.error instanceof ConnectionLost);
    await assert.rejects(room.publish(4), NotConnected);
  });

  it('that was sent before the connection ended for good is not said to be unsent', async () => {
    const { net, client } = await withTopics();
    net.WebSocket.topics = null;
    const sentOnce = watch(client.topic('a').publish(1));
    net.last.drop();
    const never = watch(client.topic('a').publish(2));
    mock.timers.tick(10);
    net.last.refuse(1008, 'no');
    await settle();
    assert.ok(!(sentOnce.error instanceof NotConnected) && sentOnce.error instanceof ConnectionLost);
    assert.ok(never.error instanceof NotConnected);
  });

  it("with a key of the client's own may not be made again by the program, which would give it another", async () => {
    const { net, client } = await withTopics();
    net.WebSocket.topics = null;
    const room = client.topic('room:1');
    const keyed = { idempotencyKey: 'mine-0000-0000-0000' };
    const outcomes = [room.publish(1), room.publish(2, keyed)].map(watch);
    const late = [room.publish(3, { timeout: 100 }), room.publish(4, { timeout: 100, ...keyed })].map(watch);
    for (let passed = 0; passed < 30; passed += 1) {
      mock.timers.tick(100);
      await settle();
    }
    net.last.drop();
    const never = watch(room.publish(5));
    client.disconnect();
    await settle();
    const retryable = [...outcomes, ...late, never].map(({ error }) => error.retryable);
    assert.deepEqual(retryable, [false, false, false, true, true]);
  });

  it("without an echo is known as one's own also where it comes from what was kept", async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1', { echo: false });
    await room.subscribe();
    const told = tellings(room, ['message']);
    server.loses = () => true;
    await room.publish('mine');
    server.publish('room:1', 'theirs', { key: 'theirs' });
    await reconnect(net);
    assert.deepEqual(
      of(told, 'message').map(({ data, own, replayed }) => [data, own, replayed]),
      [
        ['mine', true, true],
        ['theirs', false, true],
      ],
    );
    assert.deepEqual(
      (await room.history()).messages.map(({ own }) => own),
      [true, false],
    );
  });

  it('refuses what JSON has no form for, and misspelt options', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1');
    for (const bad of [undefined, NaN, () => {}, { a: Infinity }, new Map(), '\ud800']) {
      await assert.rejects(room.publish(bad), TypeError);
    }
    await assert.rejects(room.publish(1, { timeoutt: 5 }), /did you mean timeout/);
    await assert.rejects(room.publish(1, { idempotencyKey: 5 }), TypeError);
    await assert.rejects(room.publish('x'.repeat(2 ** 21)), { code: 'invalid' });
    assert.deepEqual(net.last.sent, []);
  });
});

describe('history', () => {
  it('is read in pages, without a subscription', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    for (const n of [1, 2, 3]) server.publish('room:1', n);
    const { messages, more, epoch, offset } = await room.history({ limit: 2, reverse: true, before: 9 });
    assert.deepEqual(
      messages.map(({ data, replayed }) => [data, replayed]),
      [
        [3, true],
        [2, true],
      ],
    );
    assert.deepEqual([more, epoch, offset], [true, 'e1.s1', 3]);
    assert.deepEqual(sent(net, 'zHistory'), [{ topic: 'room:1', limit: 2, reverse: true, before: 9 }]);
    const other = await room.history({ since: { epoch: 'e0', offset: 1 } });
    assert.deepEqual(other, { epoch: 'e1.s1', offset: 3, recovered: false, reason: 'epoch' });
    assert.equal((await room.history()).messages.length, 3);
    await assert.rejects(room.history({ limits: 2 }), /did you mean limit/);
  });
});
