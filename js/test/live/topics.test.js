/**
 * Topics against real servers. ZCOMM_URL and ZCOMM_TOKEN say which one; in it `user:{name}` is everybody's own, `room:{id}`
 * and `typing:{id}` are for all, the one kept and with presence, the other not. ZCOMM_OTHER_URL and ZCOMM_OTHER_TOKEN are of
 * another one, which stands for the same one after a restart.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, beforeEach, describe, it } from 'node:test';
import { WebSocket } from 'ws';
import { createClient } from '../../zBifrost.js';

const { ZCOMM_URL: url, ZCOMM_TOKEN: token, ZCOMM_OTHER_URL: otherUrl, ZCOMM_OTHER_TOKEN: otherToken } = process.env;
assert.ok(url && token && otherUrl && otherToken, 'set the four variables');

/** Resolves with the next value of `event` that fits. */
const next = (topic, event, fits = () => true) =>
  new Promise((resolve) => {
    const stop = topic.on(event, (value) => {
      if (!fits(value)) return;
      stop();
      resolve(value);
    });
  });

/** A client whose connections can be cut off, and led elsewhere. */
async function make(options) {
  const sockets = [];
  const target = { url, token };
  class Cut extends WebSocket {
    constructor() {
      super(target.url, ['zbifrost.v1', `bearer.${target.token}`]);
      sockets.push(this);
    }
  }
  const client = await createClient(url, token, { retryDelay: () => 1, WebSocket: Cut, ...options });
  return { client, target, cut: () => sockets.at(-1).terminate() };
}

let alice;
let bob;
let name;
before(async () => {
  [alice, bob] = await Promise.all([make(), make()]);
});
beforeEach(() => {
  name = `room:${randomUUID()}`;
});
after(() => {
  alice.client.disconnect();
  bob.client.disconnect();
});

describe('a room', () => {
  it('has what was published, who is there, and what was before', async () => {
    const [mine, others] = [alice.client.topic(name, { presence: true }), bob.client.topic(name, { last: 10 })];
    const heard = [];
    mine.on('message', (message) => heard.push(message));
    await mine.subscribe();
    const first = await mine.publish({ text: 'first' });
    assert.equal(first.offset, 1);
    const replayed = next(others, 'message');
    const came = next(mine, 'presence', ({ connections }) => connections === 2);
    await others.subscribe();
    assert.deepEqual((await replayed).data, { text: 'first' });
    const { members, arrived } = await came;
    assert.deepEqual([Object.values(members).map((states) => Object.keys(states).length), arrived], [[2], []]);
    const answer = next(mine, 'message', ({ data }) => data.text === 'second');
    await others.publish({ text: 'second' });
    const second = await answer;
    assert.deepEqual([second.offset, second.replayed, typeof second.from], [2, false, 'string']);
    assert.equal(heard[0].key, first.key);
    const { messages, more } = await mine.history({ limit: 1, reverse: true, before: mine.position });
    assert.deepEqual([messages.map(({ data }) => data.text), more], [['first'], false]);
    const left = next(mine, 'presence', ({ connections }) => connections === 1);
    await others.unsubscribe();
    await left;
    await mine.unsubscribe();
    assert.equal(mine.state, 'unsubscribed');
  });

  it('tells the state of each to the others, with each subscription', async () => {
    const mine = alice.client.topic(name, { presence: true, state: { device: 'phone' } });
    const others = bob.client.topic(name, { presence: true });
    await Promise.all([mine.subscribe(), others.subscribe()]);
    const has =
      (state) =>
      ({ members }) =>
        Object.values(members).some(
          (states) => JSON.stringify(states[mine.presence.connection]) === JSON.stringify(state),
        );
    if (!has({ device: 'phone' })(others.presence)) await next(others, 'presence', has({ device: 'phone' }));
    const seen = next(others, 'presence', has({ typing: true }));
    await mine.presence.setState({ typing: true });
    await seen;
    const again = next(mine, 'subscribed');
    alice.cut();
    await again;
    if (!has({ typing: true })(others.presence)) await next(others, 'presence', has({ typing: true }));
    await assert.rejects(mine.presence.setState({ large: 'x'.repeat(2000) }), { code: 'invalid' });
    await Promise.all([mine.unsubscribe(), others.unsubscribe()]);
  });

  it("without an echo tells of one's own messages in short", async () => {
    const mine = alice.client.topic(name, { echo: false });
    await mine.subscribe();
    const own = next(mine, 'message');
    const { key } = await mine.publish('mine');
    const message = await own;
    assert.deepEqual([message.own, message.data, message.key, message.offset], [true, undefined, key, 1]);
    await mine.unsubscribe();
  });

  it('says what is wrong with what is asked of it', async () => {
    const room = alice.client.topic(name);
    await assert.rejects(room.publish('x'.repeat(70_000)), { code: 'invalid' });
    await assert.rejects(room.history({ limit: 5000 }), { code: 'invalid' });
    await assert.rejects(alice.client.topic('nothing:1').subscribe(), { code: 'not_found' });
    await assert.rejects(alice.client.topic('typing:2', { presence: true }).subscribe(), { code: 'invalid' });
    await room.publish(1, { idempotencyKey: `key of ${name}` });
    await assert.rejects(room.publish(2, { idempotencyKey: `key of ${name}` }), { code: 'conflict' });
  });
});

describe('a lost connection', () => {
  it('loses and doubles nothing, of what is heard and of what is published', async () => {
    const [mine, others] = [alice.client.topic(name, { presence: true }), bob.client.topic(name)];
    const heard = [];
    const continuity = [];
    mine.on('message', ({ data }) => heard.push(data));
    mine.on('continuity', ({ recovered }) => continuity.push(recovered));
    await Promise.all([mine.subscribe(), others.subscribe()]);
    const published = [];
    for (let n = 0; n < 60; n += 1) {
      published.push(others.publish(n), mine.publish(1000 + n));
      if (n % 10 === 3) alice.cut();
      if (n % 15 === 7) bob.cut();
      await new Promise((resolve) => setTimeout(resolve, 2));
    }
    await Promise.all(published);
    const last = (await others.publish('last')).offset;
    if (mine.position.offset < last) await next(mine, 'message', ({ data }) => data === 'last');
    assert.deepEqual(
      heard.filter((data) => data < 1000),
      Array.from({ length: 60 }, (_, n) => n),
    );
    assert.deepEqual(
      heard.filter((data) => data >= 1000),
      Array.from({ length: 60 }, (_, n) => 1000 + n),
    );
    assert.equal(last, 121);
    assert.ok(continuity.length >= 1 && continuity.every(Boolean), String(continuity));
    await Promise.all([mine.unsubscribe(), others.unsubscribe()]);
  });

  it('to a topic that keeps nothing is a hole, which is told', async () => {
    const room = alice.client.topic('typing:1');
    await room.subscribe();
    assert.equal(room.position, undefined);
    const told = next(room, 'continuity');
    alice.cut();
    assert.deepEqual(await told, { recovered: false, reason: 'not_kept' });
    await room.unsubscribe();
  });

  it('to a server that begins anew is a hole, which is told before its newest messages', async () => {
    const wanderer = await make();
    const elsewhere = await createClient(otherUrl, otherToken, { WebSocket });
    const room = wanderer.client.topic(name, { last: 2 });
    await room.subscribe();
    await room.publish('old');
    for (const n of [1, 2, 3]) await elsewhere.topic(name).publish(n);
    const told = [];
    room.on('continuity', ({ reason }) => told.push(reason));
    room.on('message', ({ data }) => told.push(data));
    const again = next(room, 'subscribed');
    Object.assign(wanderer.target, { url: otherUrl, token: otherToken });
    wanderer.cut();
    await again;
    assert.deepEqual(
      told.filter((data) => data !== 'old'),
      ['epoch', 2, 3],
    );
    wanderer.client.disconnect();
    elsewhere.disconnect();
  });
});

describe("one's own topic", () => {
  it('is heard without asking, over lost connections, and cannot be left', async () => {
    const reader = await make();
    const user = (await reader.client.send({ zKey: 'zDescribe', zHorizontal: ['identity'] })).identity.name;
    const own = reader.client.topic(`user:${encodeURIComponent(user)}`);
    const heard = [];
    own.on('message', ({ data }) => heard.push(data));
    if (own.state !== 'subscribed') await next(own, 'subscribed');
    const writer = alice.client.topic(own.name);
    const first = next(own, 'message');
    await writer.publish('first');
    await first;
    const again = next(own, 'continuity');
    reader.cut();
    await writer.publish('second');
    assert.deepEqual(await again, { recovered: true });
    await assert.rejects(own.unsubscribe(), { code: 'invalid' });
    if (own.state !== 'subscribed') await next(own, 'subscribed');
    const third = next(own, 'message', ({ data }) => data === 'third');
    await writer.publish('third');
    await third;
    assert.deepEqual(heard, ['first', 'second', 'third']);
    reader.client.disconnect();
  });
});

it('for await has the newest, what follows over a lost connection, and an end', async () => {
  const reader = await make();
  const writer = bob.client.topic(name);
  for (const n of [1, 2, 3]) await writer.publish(n);
  const room = reader.client.topic(name, { last: 2 });
  const seen = [];
  for await (const { data } of room) {
    seen.push(data);
    if (data === 3) {
      reader.cut();
      await writer.publish(4);
    }
    if (data === 4) await room.unsubscribe();
  }
  assert.deepEqual(seen, [2, 3, 4]);
  reader.client.disconnect();
});
