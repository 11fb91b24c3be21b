/**
 * Topics in random order of things: a server with the true history, whose connections are lost at any moment, whose
 * answers and events are late, which begins anew, forgets, fails over and loses events. What a client's listeners are
 * told is compared with that history. A failure names its seed: `ZCOMM_SEED=17 node --test test/topics-random.test.js`.
 */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, it, mock } from 'node:test';
import { settle, watch } from './fakes.js';
import { TopicServer, withTopics } from './topicserver.js';

const { ZCOMM_SEED: only, ZCOMM_SEEDS: seeds = 200 } = process.env;
const STEPS = 120;
const NAME = 'room:1';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

/** What the listeners heard, checked as it comes: runs of messages without a gap, and who is there. */
class Reference {
  runs = [];
  present = null; // who is there, by what was told of those who came and went

  constructor(room) {
    this.room = room;
    this.begin('start');
    room.on('message', (message) => this.runs.at(-1).messages.push(message));
    room.on('continuity', ({ recovered, reason }) => recovered || this.begin(reason));
    room.on('unsubscribed', () => {
      this.begin('unsubscribed');
      this.present = null;
    });
    room.on('presence', (change) => this.#follow(change));
  }

  /** A hole may be here: listeners were told. */
  begin(reason) {
    this.runs.push({ reason, position: this.room.position, messages: [] });
  }

  #follow({ members, arrived, gone }) {
    const users = Object.keys(members).sort();
    if (this.present === null) this.present = new Set(users);
    for (const user of gone) assert.ok(this.present.delete(user), `${user} has gone twice`);
    for (const user of arrived) assert.ok(!this.present.has(user) && this.present.add(user), `${user} came twice`);
    assert.deepEqual([...this.present].sort(), users);
  }
}

/** Read `room` in one loop after the other, until the client is done; returns the offsets that each of them saw. */
function readLoops(room, isDone) {
  const loops = [];
  (async () => {
    while (!isDone()) {
      const offsets = [];
      loops.push(offsets);
      try {
        for await (const { offset } of room) {
          offsets.push(offset);
          if (offset % 7 === 0) await settle();
          if (offset % 11 === 0) break;
        }
      } catch {
        await settle();
      }
    }
  })();
  return loops;
}

/** Whether the data of `messages` are in `line`, in this order. */
function isPart(messages, line) {
  let from = 0;
  for (const message of messages) {
    const at = line.indexOf(message.data, from);
    if (at < 0) return false;
    from = at + 1;
  }
  return true;
}

/** One run of `STEPS` random steps, and then what must be true when all has come to rest. */
async function run(seed) {
  const random = TopicServer.random(seed);
  const below = (limit) => Math.floor(random() * limit);
  const oneOf = (list) => list[below(list.length)];
  const kept = oneOf([0, 3, 100, 100]);
  const last = oneOf([undefined, undefined, 2, 1000]);
  const echo = oneOf([true, false]);
  const { net, client, server } = await withTopics({ kept }, { timeout: Infinity });
  const faults = [];
  client.on('error', (error) => error.code === 'listener_failed' && faults.push(error.cause));
  const room = client.topic(NAME, { presence: true, last, echo });
  const reference = new Reference(room);
  const lines = []; // each history there was
  const outcomes = [];
  let count = 0;
  const data = () => (count += 1);
  const remember = () => lines.push(server.topic(NAME).all.map((message) => message.data));
  room.subscribe().catch(() => {});
  let isDone = false;
  const loops = below(2) ? readLoops(room, () => isDone) : [];
  Object.assign(server, { isLazy: true, isDeaf: true });

  const enter = (n) => server.enter(NAME, null, { connection: `x${n}`, user: `u${n % 3}`, state: { n: below(9) } });
  const steps = {
    deliver: [30, () => below(2) && server.deliver(net.last)],
    hear: [30, () => below(2) && server.hear(net.last)],
    publish: [12, () => server.publish(NAME, data())],
    own: [8, () => outcomes.push(watch(room.publish(data())))],
    drop: [4, () => net.last.readyState === 1 && net.last.drop(oneOf([1006, 1001, 1013]))],
    attempt: [12, () => (net.last.readyState === 0 ? net.last.accept() : mock.timers.tick(oneOf([10, 600])))],
    fail: [1, () => net.last.readyState === 0 && net.last.drop()],
    trim: [2, () => server.trim(NAME, below(5))],
    lose: [2, () => ((server.loses = () => true), server.publish(NAME, data()), (server.loses = () => false))],
    loseTelling: [1, () => ((server.loses = () => true), server.tell(NAME), (server.loses = () => false))],
    refuse: [
      1,
      () =>
        (server.refuse = ({ zKey }) => zKey === 'zSubscribe' && below(2) && { code: 'unavailable', retryable: true }),
    ],
    accept: [2, () => (server.refuse = () => undefined)],
    takeOver: [1, () => kept > 0 && (remember(), server.takeOver(NAME, below(3), below(2)))],
    restart() {
      remember();
      if (net.last.readyState === 1) net.last.drop();
      server.restart();
    },
    enter: [6, () => enter(below(4))],
    leave: [6, () => server.leave(NAME, null, `x${below(4)}`)],
    tell: [6, () => server.tell(NAME)],
    state: [3, () => void room.presence.setState({ n: data() }).catch(() => {})],
    unsubscribe: [1, () => void room.unsubscribe().catch(() => {})],
    subscribe: [3, () => void room.subscribe().catch(() => {})],
    ended: [
      0.3,
      () =>
        server.topic(NAME).inside.has(net.last) &&
        (server.leave(NAME, net.last), server.say(net.last, { event: 'unsubscribed', topic: NAME, reason: 'ended' })),
    ],
    given: [
      0.5,
      () =>
        server.topic(NAME).inside.has(net.last) &&
        server.say(net.last, { event: 'subscribed', topic: NAME, ...server.position(server.topic(NAME)) }),
    ],
    again: [0.5, () => (client.disconnect(), client.connect().catch(() => {}))],
  };
  const chances = Object.entries(steps).map(([name, step]) =>
    Array.isArray(step) ? [name, ...step] : [name, 1, step],
  );
  const all = chances.reduce((sum, [, weight]) => sum + weight, 0);
  const taken = [];
  for (let step = 0; step < STEPS; step += 1) {
    let left = random() * all;
    const [name, , act] = chances.find(([, weight]) => (left -= weight) < 0);
    taken.push(name);
    act();
    if (below(2)) await settle();
  }

  // Let all come to rest.
  server.refuse = () => undefined;
  for (let still = 0; still < 5; still += 1) {
    room.subscribe().catch(() => {});
    if (client.state === 'disconnected') client.connect().catch(() => {});
    mock.timers.tick(30_000);
    if (net.last.readyState === 0) net.last.accept();
    do await settle();
    while ([server.hear(net.last), server.deliver(net.last)].some(Boolean));
  }
  // The first of them may show that one before it was lost.
  for (const connection of ['x8', 'x9']) {
    server.publish(NAME, data());
    server.enter(NAME, null, { connection, user: connection, state: {} });
    server.tell(NAME);
    do await settle();
    while ([server.hear(net.last), server.deliver(net.last)].some(Boolean));
  }
  remember();

  const about = `seed ${seed}: ${taken.join(' ')}`;
  assert.deepEqual(faults, [], about);
  assert.equal(room.state, 'subscribed', about);
  for (const { messages, position, reason } of reference.runs) {
    const heard = messages.map((message) => message.data);
    const whole = messages.filter(({ own }) => !own);
    if (kept === 0) {
      // Some of a history, in its order.
      assert.ok(
        lines.some((line) => isPart(whole, line)),
        `${about}: no history has ${heard} in this order`,
      );
      continue;
    }
    messages.forEach(({ offset }, at) => assert.equal(offset, messages[0].offset + at, `${about}: offsets`));
    if (whole.length > 0) {
      const fits = (line) => messages.every(({ own, offset, data: n }) => own || line[offset - 1] === n);
      assert.ok(lines.some(fits), `${about}: no history has ${heard}`);
    }
    if (position && last === undefined && messages.length > 0) {
      assert.equal(messages[0].offset, position.offset + 1, `${about}: begins late after ${reason}`);
    }
  }
  if (kept > 0) {
    const { top } = server.topic(NAME);
    assert.equal(room.position.offset, top, about);
    assert.equal(reference.runs.at(-1).messages.at(-1).offset, top, about);
  } else {
    assert.equal(reference.runs.at(-1).messages.at(-1).data, count, about);
  }
  assert.deepEqual(
    { ...room.presence.members },
    { ...JSON.parse(JSON.stringify(server.presence(NAME).members)) },
    about,
  );
  assert.ok(
    outcomes.every(({ state }) => state !== 'pending'),
    `${about}: publishes that never end`,
  );
  assert.equal(client.pending, 0, about);
  if (kept > 0) {
    for (const offsets of loops) {
      offsets.forEach((offset, at) => assert.equal(offset, offsets[0] + at, `${about}: a loop saw ${offsets}`));
    }
    if (loops.length > 0) assert.ok(loops.flat().length > 0, `${about}: no loop saw anything`);
  }
  isDone = true;
  client.disconnect();
}

it('a client hears every message once and in order, or of the hole before', async () => {
  const chosen = only ? [Number(only)] : Array.from({ length: Number(seeds) }, (_, n) => n + 1);
  for (const seed of chosen) await run(seed);
});
