/** Who is in a topic. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { settle, watch } from './fakes.js';
import { of, reconnect, sent, tellings, withTopics } from './topicserver.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('presence', () => {
  /** A topic with `me` on two connections more, `bob` and `eve`. */
  async function crowd() {
    const all = await withTopics();
    for (const [connection, user] of Object.entries({ x1: 'me', x2: 'bob', x3: 'eve', x4: 'eve' })) {
      all.server.enter('room:1', null, { connection, user, state: {} });
    }
    const room = all.client.topic('room:1', { presence: true });
    const told = tellings(room, ['presence', 'error']);
    await room.subscribe();
    all.server.tell('room:1');
    await settle();
    return { ...all, room, told };
  }

  it('is known with the subscription, and follows who comes, changes and goes', async () => {
    const { server, room, told } = await crowd();
    assert.deepEqual(Object.keys(room.presence.members), ['me', 'bob', 'eve']);
    assert.deepEqual([room.presence.users, room.presence.connections, room.presence.connection], [3, 5, 'c1']);
    assert.deepEqual(
      of(told, 'presence').map(({ arrived, gone }) => [arrived, gone]),
      [[[], []]],
    );
    server.leave('room:1', null, 'x3');
    server.leave('room:1', null, 'x2');
    server.enter('room:1', null, { connection: 'x5', user: '__proto__', state: { device: 'phone' } });
    server.tell('room:1');
    await settle();
    const { members, arrived, gone, users, connections } = told.at(-1)[1];
    assert.deepEqual([arrived, gone, users, connections], [['__proto__'], ['bob'], 3, 4]);
    assert.deepEqual(Object.entries(members), [
      ['me', { c1: {}, x1: {} }],
      ['eve', { x4: {} }],
      ['__proto__', { x5: { device: 'phone' } }],
    ]);
    assert.equal(Object.getPrototypeOf(members), Object.prototype);
    assert.equal(room.presence.members, members);
  });

  it('ignores what it knows, and asks once for what does not fit', async () => {
    const { net, server, room, told } = await crowd();
    const before = told.length;
    server.enter('room:1', null, { connection: 'x6', user: 'ann', state: {} });
    server.loses = () => true;
    server.tell('room:1');
    server.loses = () => false;
    server.isLazy = true;
    for (const connection of ['x7', 'x8', 'x9']) {
      server.enter('room:1', null, { connection, user: connection, state: {} });
      server.tell('room:1');
    }
    while (server.deliver(net.last)) await settle();
    assert.equal(sent(net, 'zPresence').length, 1);
    assert.deepEqual(Object.keys(room.presence.members), ['me', 'bob', 'eve', 'ann', 'x7', 'x8', 'x9']);
    assert.deepEqual(
      told.slice(before).map(([, { arrived }]) => arrived),
      [['ann', 'x7', 'x8', 'x9']],
    );
    net.last.say({
      event: 'presence',
      topic: 'room:1',
      after: 0,
      version: 2,
      joined: { old: { o: {} } },
      users: 9,
      connections: 9,
    });
    assert.equal(room.presence.users, 7);
  });

  it('takes what begins before and ends after what it knows, without a question', async () => {
    const { net, room } = await crowd();
    const event = { event: 'presence', topic: 'room:1', after: 2, version: 7, users: 4, connections: 6 };
    net.last.say({ ...event, joined: { ann: { x6: {} } }, left: { nobody: ['x0'] } });
    assert.deepEqual(Object.keys(room.presence.members), ['me', 'bob', 'eve', 'ann']);
    assert.equal(room.presence.users, 4);
    assert.deepEqual(sent(net, 'zPresence'), []);
  });

  it('takes no answer that is older than what it knows, or comes while it is asked for anew', async () => {
    const { net, client, server, room } = await crowd();
    server.isLazy = true;
    room.presence.setState({ a: 1 });
    const event = { event: 'presence', topic: 'room:1', after: 5, version: 9, users: 7, connections: 7 };
    net.last.say({ ...event, joined: {} });
    server.deliver(net.last);
    assert.equal(room.presence.users, 7);
    room.presence.setState({ a: 2 });
    server.topic('room:1').version = 20;
    client.topic('room:1', { echo: false });
    room.subscribe();
    server.deliver(net.last);
    assert.equal(room.presence.users, 7);
    server.deliver(net.last);
    assert.equal(room.presence.users, 3);
  });

  it('asks anew where the answer is older than what it has heard of', async () => {
    const { net, server, room } = await crowd();
    server.isLazy = true;
    const event = { event: 'presence', topic: 'room:1', users: 1, connections: 1 };
    const { version } = server.presence('room:1');
    net.last.say({ ...event, after: version + 1, version: version + 2, joined: {} });
    net.last.say({ ...event, after: version + 2, version: version + 3, joined: {} });
    for (const connection of ['y1', 'y2']) server.enter('room:1', null, { connection, user: connection, state: {} });
    const [first] = net.last.sent.slice(-1);
    net.last.say({ result: { topic: 'room:1', ...server.presence('room:1') }, _requestId: first._requestId });
    assert.equal(sent(net, 'zPresence').length, 2);
    server.enter('room:1', null, { connection: 'y3', user: 'y3', state: {} });
    const second = net.last.sent.at(-1);
    net.last.say({ result: { topic: 'room:1', ...server.presence('room:1') }, _requestId: second._requestId });
    assert.deepEqual(Object.keys(room.presence.members).slice(-3), ['y1', 'y2', 'y3']);
    assert.equal(sent(net, 'zPresence').length, 2);
  });

  it('of too many is counts, until they are few again', async () => {
    const { net, server, room, told } = await crowd();
    const { version } = server.presence('room:1');
    const event = { event: 'presence', topic: 'room:1' };
    net.last.say({ ...event, after: version, version: version + 300, users: 200, connections: 201 });
    assert.deepEqual([room.presence.members, room.presence.users, room.presence.connections], [undefined, 200, 201]);
    net.last.say({
      ...event,
      after: version + 300,
      version: version + 301,
      joined: { zoe: { z: {} } },
      arrived: ['zoe'],
      gone: [],
      users: 201,
      connections: 202,
    });
    assert.equal(room.presence.members, undefined);
    assert.deepEqual(told.at(-1)[1].arrived, ['zoe']);
    server.topic('room:1').version += 302;
    server.tell('room:1', { after: version + 301, isWhole: true });
    await settle();
    assert.deepEqual(Object.keys(room.presence.members), ['me', 'bob', 'eve']);
  });

  it('tells after a reconnect who came and went meanwhile, and nobody twice', async () => {
    const { net, server, room, told } = await crowd();
    const before = told.length;
    await reconnect(net, () => {
      server.leave('room:1', null, 'x2');
      server.enter('room:1', null, { connection: 'x6', user: 'ann', state: {} });
    });
    server.tell('room:1');
    await settle();
    assert.deepEqual(
      told.slice(before).map(([, { arrived, gone }]) => [arrived, gone]),
      [[['ann'], ['bob']]],
    );
    assert.deepEqual(Object.keys(room.presence.members), ['me', 'eve', 'ann']);
  });

  it("keeps one's own state, and sends it with each subscription", async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1', { presence: true, state: { device: 'phone' } });
    await room.subscribe();
    const state = { typing: true };
    const isSet = room.presence.setState(state);
    state.typing = 'changed since';
    await isSet;
    assert.deepEqual(sent(net, 'zPresence'), [{ topic: 'room:1', state: { typing: true } }]);
    assert.deepEqual(room.presence.members.me[room.presence.connection], { typing: true });
    client.topic('room:1', { presence: true, state: { device: 'phone' } }); // as a component does that is drawn again
    await reconnect(net);
    assert.deepEqual(sent(net, 'zSubscribe').at(-1).state, { typing: true });
    net.last.drop();
    await room.presence.setState({ away: true });
    mock.timers.tick(10);
    net.last.accept();
    await settle();
    assert.deepEqual(
      net.last.sent.map(({ zHorizontal }) => zHorizontal.state),
      [{ away: true }],
    );
    server.refuse = ({ zKey }) => (zKey === 'zPresence' ? null : undefined);
    const unheard = watch(room.presence.setState({ last: 1 }));
    await settle();
    await reconnect(net);
    assert.equal(unheard.state, 'resolved');
    assert.deepEqual(net.last.sent[0].zHorizontal.state, { last: 1 });
  });

  it('does not send a state again that the server did not take', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1', { presence: true, state: { a: 1 } });
    await room.subscribe();
    const told = tellings(room, ['error']);
    server.refuse = ({ zKey }) => zKey === 'zPresence' && { code: 'invalid' };
    await assert.rejects(room.presence.setState({ large: true }), { code: 'invalid' });
    room.presence.setState({ larger: true }); // nobody looks at it
    await settle();
    assert.equal(told.length, 2);
    await reconnect(net);
    assert.deepEqual(net.last.sent[0].zHorizontal.state, { a: 1 });
    server.refuse = () => undefined;
    await room.presence.setState({ a: 2 });
    server.refuse = ({ zKey }) => zKey === 'zPresence' && { code: 'invalid' };
    room.presence.setState({ large: true });
    await settle();
    await reconnect(net);
    assert.deepEqual(net.last.sent[0].zHorizontal.state, { a: 2 });
    await assert.rejects(room.presence.setState([]), TypeError);
    await assert.rejects(room.presence.setState({ a: NaN }), TypeError);
    await assert.rejects(room.presence.setState(), TypeError);
  });

  it('is a store: told at once and at each change, with the same object between them', async () => {
    const { server, room } = await crowd();
    const { subscribe, getSnapshot, setState } = room.presence; // React takes them off
    const seen = [];
    const stop = subscribe((snapshot) => seen.push(snapshot));
    assert.equal(getSnapshot(), getSnapshot());
    assert.equal(seen[0], getSnapshot());
    await setState({ a: 1 });
    assert.equal(seen.length, 2);
    assert.equal(seen[1], getSnapshot());
    assert.notEqual(seen[0], seen[1]);
    assert.ok(Object.isFrozen(seen[1]));
    server.tell('room:1'); // known already
    await settle();
    assert.equal(seen.length, 2);
    stop();
    stop();
    await room.unsubscribe();
    assert.equal(seen.length, 2);
    assert.deepEqual(getSnapshot(), { members: undefined, users: 0, connections: 0 });
  });
});
