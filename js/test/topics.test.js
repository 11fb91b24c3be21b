/** Topics against a server that is the test itself; what random order of things may do is in topics-random.test.js. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { CommandFailed, NotConnected, RequestAborted, RequestTimeout } from '../zBifrost.js';
import { connected, make, settle, watch } from './fakes.js';
import { TopicServer, of, reconnect, sent, tellings, texts, withTopics } from './topicserver.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('a topic', () => {
  it('is the same object for the same name, and sends nothing by itself', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1', { presence: true, last: 5 });
    assert.equal(client.topic('room:1'), room);
    assert.notEqual(client.topic('room:2'), room);
    assert.deepEqual([room.name, room.state, room.position], ['room:1', 'unsubscribed', undefined]);
    room.on('message', () => {});
    await room.presence.setState({ a: 1 });
    await room.unsubscribe();
    assert.deepEqual(net.last.sent, []);
  });

  it('refuses bad names, options, events and listeners at once', async () => {
    const { client } = await withTopics();
    for (const name of ['', 'a b', 'ä', 'x'.repeat(256), 'a\n', 'room#1', undefined, null, 5, {}]) {
      assert.throws(() => client.topic(name), TypeError, String(name));
    }
    assert.throws(() => client.topic('a', { presense: true }), /there is no option presense; did you mean presence/);
    for (const options of [
      { last: 0 },
      { last: 1001 },
      { last: 1.5 },
      { last: '5' },
      { presence: 1 },
      { echo: 'no' },
      { state: [] },
      { state: 'busy' },
      { state: { a: NaN } },
      [],
      'last',
    ]) {
      assert.throws(() => client.topic('a', options), TypeError, JSON.stringify(options));
    }
    const room = client.topic('a', null);
    assert.equal(client.topic('x'.repeat(255)).name.length, 255);
    assert.throws(() => room.on('mesage', () => {}), /a topic has no event mesage, but message, continuity/);
    assert.throws(() => room.on('message', 5), TypeError);
    assert.throws(() => room.presence.subscribe(), TypeError);
  });

  it('is kept while somebody listens or wants it, and forgotten where nobody has it', async () => {
    setFlagsFromString('--expose-gc');
    const collect = runInNewContext('gc');
    const { net, client, server } = await withTopics();
    const told = [];
    client.topic('heard').on('message', ({ data }) => told.push(data));
    const ends = [client.topic('unheard').on('message', () => {}), client.topic('store').presence.subscribe(() => {})];
    await client.topic('wanted').subscribe();
    net.last.say({ event: 'subscribed', topic: 'given', epoch: 'e1.s1', offset: 0 });
    const names = ['unheard', 'left', 'heard', 'store', 'wanted', 'given'];
    const kept = () => names.filter((name) => topics.get(name).deref() !== undefined);
    const topics = new Map(names.map((name) => [name, new WeakRef(client.topic(name))]));
    await settle();
    collect();
    await settle();
    assert.deepEqual(kept(), ['unheard', 'heard', 'store', 'wanted', 'given']);
    ends.splice(0).forEach((end) => end());
    await client.topic('wanted').unsubscribe();
    await settle();
    collect();
    await settle();
    assert.deepEqual(kept(), ['heard', 'given']);
    await client.topic('heard').subscribe();
    server.publish('heard', 1);
    await settle();
    assert.deepEqual(told, [1]);
  });
});

describe('subscribing', () => {
  it('asks as the options say, and hears every message in order', async () => {
    const { net, client, server } = await withTopics();
    server.publish('room:1', 'early');
    const room = client.topic('room:1', { last: 5, echo: false, state: { device: 'phone' } });
    const told = tellings(room);
    assert.equal(await room.subscribe(), room);
    assert.deepEqual(sent(net, 'zSubscribe'), [{ topic: 'room:1', last: 5, state: { device: 'phone' }, echo: false }]);
    server.publish('room:1', 'hi', { from: 'bob', key: 'k-1' });
    await settle();
    assert.deepEqual(told, [
      ['message', { data: 'early', from: 'bob', offset: 1, key: undefined, own: false, replayed: true }],
      ['subscribed', { epoch: 'e1.s1', offset: 1, connection: undefined }],
      ['message', { data: 'hi', from: 'bob', offset: 2, key: 'k-1', own: false, replayed: false }],
    ]);
    assert.deepEqual([room.state, room.position], ['subscribed', { epoch: 'e1.s1', offset: 2 }]);
  });

  it('again is one question, and none where it stands with the same options', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1');
    const both = [room.subscribe(), room.subscribe()];
    assert.equal(room.state, 'subscribing');
    await Promise.all(both);
    await room.subscribe();
    client.topic('room:1', { presence: false });
    client.topic('room:1', {});
    assert.equal(sent(net, 'zSubscribe').length, 1);
  });

  it('with other options starts it again from the last message', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity']);
    server.publish('room:1', 1);
    await settle();
    client.topic('room:1', { presence: true });
    const again = room.subscribe();
    server.publish('room:1', 2); // before the server hears of it
    await again;
    assert.deepEqual(sent(net, 'zSubscribe')[1], {
      topic: 'room:1',
      since: { epoch: 'e1.s1', offset: 1 },
      presence: true,
    });
    await settle();
    assert.deepEqual(texts(told), [1, 2]);
    assert.deepEqual(Object.keys(room.presence.members), ['me']);
  });

  it('with other options while one is under way has those', async () => {
    const { net, client, server } = await withTopics();
    server.isLazy = true;
    const room = client.topic('room:1');
    const first = watch(room.subscribe());
    client.topic('room:1', { presence: true });
    const second = watch(room.subscribe());
    server.deliver(net.last); // the answer to what is no longer asked
    await settle();
    assert.deepEqual([first.state, room.state], ['pending', 'subscribing']);
    while (server.deliver(net.last)) await settle();
    assert.deepEqual([first.value, second.value, room.presence.users], [room, room, 1]);
    client.topic('room:1', { presence: false });
    room.subscribe();
    while (server.deliver(net.last)) await settle();
    net.last.say({ event: 'presence', topic: 'room:1', after: 0, version: 99, joined: {}, users: 9, connections: 9 });
    assert.deepEqual(room.presence.getSnapshot(), { members: undefined, users: 0, connections: 0 });
  });

  it('waits for a connection, and comes before what was published meanwhile', async () => {
    const { net, client } = make({ retryDelay: () => 10 });
    new TopicServer(net);
    const room = client.topic('room:1');
    const subscribed = watch(room.subscribe());
    await assert.rejects(room.publish('too early'), NotConnected);
    const ready = client.connect();
    const published = watch(room.publish('hi'));
    await settle();
    assert.deepEqual([subscribed.state, published.state], ['pending', 'pending']);
    net.last.accept();
    await ready;
    await settle();
    assert.deepEqual([subscribed.state, published.state], ['resolved', 'resolved']);
    assert.deepEqual(
      net.last.sent.map(({ zKey }) => zKey),
      ['zSubscribe', 'zPublish'],
    );
  });

  it('that the server refuses rejects, and is not asked for again', async () => {
    const { net, client, server } = await withTopics();
    server.refuse = ({ zKey }) => zKey === 'zSubscribe' && { code: 'permission_denied' };
    const room = client.topic('room:1');
    const told = tellings(room);
    await assert.rejects(
      room.subscribe(),
      (error) => error instanceof CommandFailed && error.code === 'permission_denied',
    );
    assert.equal(room.state, 'unsubscribed');
    await reconnect(net);
    assert.equal(sent(net, 'zSubscribe').length, 1);
    assert.deepEqual(told, []);
    server.refuse = () => undefined;
    await room.subscribe();
    assert.equal(room.state, 'subscribed');
  });

  it('that gets no answer is given up, at the server as well', async () => {
    const { net, client, server } = await withTopics({}, { timeout: 1000 });
    server.refuse = ({ zKey }) => (zKey === 'zSubscribe' ? null : undefined);
    const room = client.topic('room:1');
    const outcome = watch(room.subscribe());
    for (let passed = 0; passed < 30; passed += 1) {
      mock.timers.tick(100);
      await settle();
    }
    assert.ok(outcome.error instanceof RequestTimeout);
    assert.deepEqual(
      net.last.sent.map(({ zKey }) => zKey),
      ['zSubscribe', 'zUnsubscribe'],
    );
  });

  it('with options that the server does not take leaves the one that stands', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room, ['message', 'unsubscribed', 'error']);
    server.refuse = ({ zHorizontal: { presence } }) => presence && { code: 'invalid' };
    client.topic('room:1', { presence: true });
    const again = room.subscribe();
    server.publish('room:1', 'meanwhile');
    await assert.rejects(again, { code: 'invalid' });
    await settle();
    assert.equal(room.state, 'subscribed');
    assert.deepEqual(sent(net, 'zSubscribe')[2], { topic: 'room:1', since: { epoch: 'e1.s1', offset: 0 } });
    assert.deepEqual(texts(told), ['meanwhile']);
    assert.equal(told.length, 1);
  });

  it('is rejected by unsubscribe() and by disconnect(), which nobody needs to look at', async () => {
    const { net, client, server } = await withTopics();
    server.isLazy = true;
    const room = client.topic('room:1');
    const first = room.subscribe();
    const left = watch(room.unsubscribe());
    assert.equal(room.state, 'unsubscribed');
    const second = room.subscribe();
    while (server.deliver(net.last)) await settle();
    await assert.rejects(first, RequestAborted);
    assert.equal(left.state, 'resolved');
    await second;
    assert.equal(room.state, 'subscribed');
    client.topic('other').subscribe();
    client.topic('third').subscribe();
    client.topic('third').unsubscribe();
    client.topic('other').publish(1);
    client.disconnect();
    await settle(); // an unhandled rejection would end this process
  });

  it('outlives disconnect(): connect() goes on from the last message', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room);
    server.publish('room:1', 1);
    await settle();
    client.disconnect();
    net.last.drop(1000);
    server.publish('room:1', 2);
    assert.equal(room.state, 'subscribing');
    client.connect();
    net.last.accept();
    await settle();
    assert.deepEqual(texts(told), [1, 2]);
    assert.deepEqual(of(told, 'continuity'), [{ recovered: true }]);
  });
});

describe('after a reconnect a topic', () => {
  it('goes on from the last message, before anything else is sent or told', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room);
    client.on('open', () => client.send({ zKey: 'x' }).catch(() => {}));
    server.publish('room:1', 1);
    await settle();
    await reconnect(net, () => {
      server.publish('room:1', 2);
      server.publish('room:1', 3);
    });
    assert.deepEqual(
      net.last.sent.map(({ zKey }) => zKey),
      ['zSubscribe', 'x'],
    );
    assert.deepEqual(net.last.sent[0].zHorizontal, { topic: 'room:1', since: { epoch: 'e1.s1', offset: 1 } });
    server.publish('room:1', 4);
    await settle();
    assert.deepEqual(
      told.map(([event, { data, replayed, recovered }]) => [event, data ?? recovered, replayed]),
      [
        ['message', 1, false],
        ['continuity', true, undefined],
        ['message', 2, true],
        ['message', 3, true],
        ['subscribed', undefined, undefined],
        ['message', 4, false],
      ],
    );
  });

  it('that could not go on says so, and takes the new position over', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity']);
    server.publish('room:1', 'old');
    await settle();
    await reconnect(net, () => {
      server.restart();
      server.publish('room:1', 'unheard');
    });
    server.publish('room:1', 'new');
    await settle();
    await reconnect(net, () => server.publish('room:1', 'newer'));
    assert.deepEqual(texts(told), ['old', 'new', 'newer']);
    assert.deepEqual(of(told, 'continuity'), [{ recovered: false, reason: 'epoch' }, { recovered: true }]);
    assert.deepEqual(room.position, { epoch: 'e2.s1', offset: 3 });
  });

  it('that could not go on begins with the newest where the options have `last`', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1', { last: 2 });
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity', 'subscribed']);
    await reconnect(net, () => {
      for (const n of [1, 2, 3, 4]) server.publish('room:1', n);
      server.trim('room:1', 3);
    });
    assert.deepEqual(
      net.last.sent.map(({ zHorizontal }) => zHorizontal),
      [
        { topic: 'room:1', since: { epoch: 'e1.s1', offset: 0 } },
        { topic: 'room:1', last: 2 },
      ],
    );
    assert.deepEqual(
      told.map(([event, { data, reason }]) => [event, data ?? reason]),
      [
        ['continuity', 'too_old'],
        ['message', 3],
        ['message', 4],
        ['subscribed', undefined],
      ],
    );
    server.publish('room:1', 5);
    await settle();
    assert.deepEqual(texts(told), [3, 4, 5]);
  });

  it('tells of that once when the connection is lost before the newest have come', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1', { last: 2 });
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity']);
    server.refuse = ({ zHorizontal: { last } }) => (last ? null : undefined);
    await reconnect(net, () => server.restart());
    server.refuse = () => undefined;
    server.publish('room:1', 'a');
    await reconnect(net, () => server.publish('room:1', 'b'));
    assert.deepEqual(
      told.map(([, { data, reason }]) => data ?? reason),
      ['epoch', 'a', 'b'],
    );
  });

  it('without history says that it could not go on', async () => {
    const { net, client, server } = await withTopics({ kept: 0 });
    const room = client.topic('typing');
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity']);
    assert.equal(room.position, undefined);
    server.publish('typing', 1);
    await settle();
    await reconnect(net, () => server.publish('typing', 2));
    server.publish('typing', 3);
    await settle();
    assert.deepEqual(texts(told), [1, 3]);
    assert.deepEqual(of(told, 'continuity'), [{ recovered: false, reason: 'not_kept' }]);
  });

  it('asks again in a while where the server cannot now, and stops where it will not', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room);
    server.refuse = () => ({ code: 'unavailable', retryable: true });
    await reconnect(net, () => server.publish('room:1', 1));
    assert.equal(room.state, 'subscribing');
    mock.timers.tick(500);
    await settle();
    assert.ok(sent(net, 'zSubscribe').length >= 3);
    server.refuse = () => undefined;
    mock.timers.tick(4000);
    await settle();
    assert.deepEqual(texts(told), [1]);
    assert.ok(of(told, 'error').every(({ code }) => code === 'unavailable'));
    server.refuse = () => ({ code: 'permission_denied' });
    await reconnect(net);
    assert.equal(room.state, 'unsubscribed');
    assert.equal(of(told, 'error').at(-1).code, 'permission_denied');
    assert.deepEqual(
      told.filter(([event]) => event === 'unsubscribed'),
      [['unsubscribed', { reason: 'permission_denied' }]],
    );
    const before = sent(net, 'zSubscribe').length;
    await reconnect(net);
    assert.equal(sent(net, 'zSubscribe').length, before);
  });

  it('asks again after longer and longer, and at once where the program does or another connection stands', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    room.on('error', () => {});
    await room.subscribe();
    mock.method(Math, 'random', () => 1);
    server.refuse = () => ({ code: 'unavailable', retryable: true });
    await reconnect(net);
    const asked = () => net.last.sent.length;
    for (const [wait, after] of [
      [499, 1],
      [1, 2],
      [999, 2],
      [1, 3],
      [2000, 4],
    ]) {
      mock.timers.tick(wait);
      await settle();
      assert.equal(asked(), after, wait);
    }
    server.refuse = () => undefined;
    await room.subscribe();
    mock.timers.tick(20_000);
    await settle();
    assert.equal(asked(), 5);
    server.refuse = () => ({ code: 'unavailable', retryable: true });
    await reconnect(net);
    server.refuse = () => undefined;
    await reconnect(net);
    mock.timers.tick(20_000);
    await settle();
    assert.equal(asked(), 1);
  });

  it('tells the errors of the client where nobody listens for its own', async () => {
    const { net, client, server } = await withTopics();
    const errors = [];
    client.on('error', (error) => errors.push(error.code));
    await client.topic('room:1').subscribe();
    server.refuse = () => ({ code: 'not_found' });
    await reconnect(net);
    assert.deepEqual(errors, ['not_found']);
  });

  it('may be one of two hundred', async () => {
    const { net, client, server } = await withTopics();
    const rooms = Array.from({ length: 200 }, (_, n) => client.topic(`room:${n}`));
    await Promise.all(rooms.map((room) => room.subscribe()));
    const told = rooms.map((room) => tellings(room, ['message']));
    server.isLazy = true;
    net.last.drop();
    const published = rooms.map((room) => watch(room.publish(room.name)));
    mock.timers.tick(10);
    net.last.accept();
    do await settle();
    while (server.deliver(net.last));
    const order = net.last.sent.map(({ zKey }) => zKey);
    assert.equal(order.lastIndexOf('zSubscribe') + 1, order.indexOf('zPublish'));
    assert.ok(published.every(({ state }) => state === 'resolved'));
    assert.deepEqual(
      told.map(texts),
      rooms.map(({ name }) => [name]),
    );
  });
});

describe('on a standing connection', () => {
  it('what was told before is dropped, and what comes between question and answer', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room, ['message']);
    const say = (offset, data, more) => net.last.say({ event: 'message', topic: 'room:1', offset, data, ...more });
    server.publish('room:1', 1);
    await settle();
    say(1, 'again');
    say(0, 'older');
    assert.deepEqual(texts(told), [1]);
    server.isLazy = true;
    client.topic('room:1', { presence: true });
    room.subscribe();
    say(2, 'ignored');
    server.publish('room:1', 2);
    net.last.say({ event: 'topic', topic: 'room:1', epoch: 'no', offset: 99, recovered: false, reason: 'x' });
    while (server.deliver(net.last)) await settle();
    assert.deepEqual(texts(told), [1, 2]);
  });

  it('a message with a new suffix of the epoch is gone on from with that', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    net.last.say({ event: 'message', topic: 'room:1', offset: 1, epoch: 'e1.s2', data: 1 });
    net.last.say({ event: 'message', topic: 'room:1', offset: 2, data: 2 });
    assert.deepEqual(room.position, { epoch: 'e1.s2', offset: 2 });
    net.last.say({ event: 'topic', topic: 'room:1', epoch: 'e1.s3', offset: 2 });
    assert.deepEqual(room.position, { epoch: 'e1.s3', offset: 2 });
  });

  it('a discontinuity is told, and gone on from', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room);
    net.last.say({
      event: 'topic',
      topic: 'room:1',
      epoch: 'e9.s1',
      offset: 45,
      recovered: false,
      reason: 'history_lost',
    });
    net.last.say({ event: 'message', topic: 'room:1', offset: 46, data: 'next' });
    assert.deepEqual(
      told.map(([event, { data, reason }]) => [event, data ?? reason]),
      [
        ['continuity', 'history_lost'],
        ['message', 'next'],
      ],
    );
  });

  it('a discontinuity is followed by the newest where the options have `last`', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1', { last: 3 });
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity']);
    server.publish('room:1', 1);
    await settle();
    net.last.say({
      event: 'topic',
      topic: 'room:1',
      epoch: 'e1.s1',
      offset: 1,
      recovered: false,
      reason: 'history_lost',
    });
    await settle();
    assert.deepEqual(
      told.map(([, { data, reason }]) => data ?? reason),
      [1, 'history_lost', 1],
    );
  });

  it('another epoch for more than was heard is a gap as well, and a gap is told with the newest', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room, ['message', 'continuity']);
    server.loses = () => true;
    server.publish('room:1', 1);
    net.last.say({ event: 'topic', topic: 'room:1', epoch: 'e1.s1', offset: 1 });
    await settle();
    assert.deepEqual(
      told.map(([, { data, recovered }]) => data ?? recovered),
      [true, 1],
    );
    client.topic('room:1', { last: 1 });
    await room.subscribe();
    server.publish('room:1', 2);
    server.publish('room:1', 3);
    server.trim('room:1', 1);
    server.loses = () => false;
    server.publish('room:1', 4);
    await settle();
    assert.deepEqual(
      told.slice(3).map(([, { data, reason }]) => data ?? reason),
      ['gap', 4],
    );
  });

  it('a gap is closed from what is kept, or told', async () => {
    for (const [left, expected] of [
      [100, [true, 1, 2, 3, 4]],
      [1, ['gap', 4]],
    ]) {
      const { client, server } = await withTopics();
      const room = client.topic('room:1');
      await room.subscribe();
      const told = tellings(room, ['message', 'continuity']);
      server.loses = ({ data }) => data < 3;
      for (const n of [1, 2, 3]) server.publish('room:1', n);
      server.trim('room:1', left);
      await settle();
      server.publish('room:1', 4);
      await settle();
      assert.deepEqual(
        told.map(([, { data, recovered, reason }]) => data ?? reason ?? recovered),
        expected,
      );
    }
  });

  it('the end that the server makes is final, and tells why', async () => {
    const { net, client } = await withTopics();
    const room = client.topic('room:1', { presence: true });
    await room.subscribe();
    const told = tellings(room);
    net.last.say({ event: 'unsubscribed', topic: 'room:1', reason: 'ended' });
    net.last.say({ event: 'message', topic: 'room:1', offset: 1, data: 'late' });
    assert.deepEqual(told, [['unsubscribed', { reason: 'ended' }]]);
    assert.deepEqual([room.state, room.presence.users, room.position], ['unsubscribed', 0, undefined]);
    await reconnect(net);
    assert.equal(sent(net, 'zSubscribe').length, 1);
    await room.subscribe();
    assert.equal(room.state, 'subscribed');
  });

  it('the end that the server makes ends what the client asks by itself, and not what the program asks after it', async () => {
    const { net, client, server } = await withTopics();
    const [room, other] = [client.topic('room:1'), client.topic('room:2')];
    await Promise.all([room.subscribe(), other.subscribe()]);
    server.isDeaf = true;
    for (const topic of ['room:1', 'room:2']) {
      net.last.say({ event: 'message', topic, offset: 9, data: 'a gap' });
    }
    const again = watch(other.subscribe());
    for (const topic of ['room:1', 'room:2']) net.last.say({ event: 'unsubscribed', topic, reason: 'ended' });
    while (server.hear(net.last)) await settle();
    assert.deepEqual([room.state, other.state, again.state], ['unsubscribed', 'subscribed', 'resolved']);
    assert.deepEqual([...server.topic('room:1').inside], []);
  });

  it('unsubscribing ends all of it at once, also without a connection', async () => {
    const { net, client, server } = await withTopics();
    const room = client.topic('room:1');
    await room.subscribe();
    const told = tellings(room);
    const left = room.unsubscribe();
    server.publish('room:1', 'late');
    await left;
    await settle();
    assert.deepEqual(told, [['unsubscribed', { reason: 'unsubscribe' }]]);
    assert.deepEqual(sent(net, 'zUnsubscribe'), [{ topic: 'room:1' }]);
    await room.unsubscribe();
    await room.subscribe();
    net.last.drop();
    await room.unsubscribe();
    mock.timers.tick(10);
    net.last.accept();
    await settle();
    assert.deepEqual(net.last.sent, []);
    // Afterwards it begins anew, and what was missed is not asked for.
    await room.subscribe();
    assert.deepEqual(sent(net, 'zSubscribe').at(-1), { topic: 'room:1' });
  });

  it('events of topics that the client does not have, and others of such a form, are broadcasts', async () => {
    const { net, client } = await withTopics();
    const heard = [];
    client.onBroadcast((message) => heard.push(message));
    const messages = [
      { event: 'message', topic: 'nobody:1', data: 1 },
      { event: 'message', topic: 'not a name' },
      { event: 'presence', topic: 5 },
      { event: 'topic' },
    ];
    for (const message of messages) net.last.say(message);
    assert.deepEqual(heard, messages);
  });
});

describe('a topic that the server puts the client into', () => {
  const given = (offset) => ({ event: 'subscribed', topic: 'user:me', epoch: 'e1.s1', offset });
  const message = (offset) => ({ event: 'message', topic: 'user:me', offset, data: offset });

  it('is heard without asking, whenever the program looks at it', async () => {
    const { net, client } = await connected({ retryDelay: () => 10 });
    net.last.say(given(40));
    net.last.say(message(41));
    const own = client.topic('user:me');
    const told = tellings(own);
    assert.deepEqual([own.state, own.position], ['subscribed', { epoch: 'e1.s1', offset: 41 }]);
    net.last.say(message(42));
    assert.deepEqual(texts(told), [42]);
    assert.deepEqual(net.last.sent, []);
  });

  it('goes on from the last message when it is put in again, before or after it was let in', async () => {
    for (const isEarly of [true, false]) {
      const { net, client } = await connected({ retryDelay: () => 10 });
      net.last.say(given(40));
      const told = tellings(client.topic('user:me'), ['message', 'continuity']);
      const server = new TopicServer(net);
      const topic = server.topic('user:me');
      for (let n = 1; n <= 42; n += 1) server.publish('user:me', n);
      net.last.drop();
      mock.timers.tick(10);
      net.WebSocket.answersPing = !isEarly;
      net.last.accept();
      if (isEarly) {
        net.last.say({ ...given(42), epoch: topic.epoch });
        net.last.say({ result: {}, _requestId: net.last.sent[0]._requestId });
      } else {
        await settle();
        net.last.say({ ...given(42), epoch: topic.epoch });
      }
      await settle();
      assert.deepEqual(texts(told), [41, 42]);
      assert.deepEqual(of(told, 'continuity'), [{ recovered: true }]);
    }
  });

  it('is asked for from the last message where that was heard', async () => {
    const { net, client, server } = await withTopics();
    const told = tellings(client.topic('user:me', { last: 5 }), ['message']);
    net.last.say(given(0));
    server.publish('user:me', 1);
    net.last.say(message(1));
    net.last.say(given(1)); // again, which changes nothing
    assert.deepEqual(net.last.sent, []);
    server.publish('user:me', 2);
    await client.topic('user:me').subscribe();
    assert.deepEqual(sent(net, 'zSubscribe'), [{ topic: 'user:me', since: { epoch: 'e1.s1', offset: 1 } }]);
    assert.deepEqual(texts(told), [1, 2]);
  });

  it('goes on, with a hole that is told, where the server lets nobody ask for it', async () => {
    const { net, client, server } = await withTopics();
    net.last.say(given(0));
    const own = client.topic('user:me');
    const told = tellings(own, ['message', 'continuity', 'unsubscribed']);
    server.refuse = () => ({ code: 'permission_denied' });
    await reconnect(net);
    net.last.say(given(3));
    await settle();
    net.last.say(message(5));
    net.last.say(message(6));
    await assert.rejects(own.subscribe(), { code: 'permission_denied' });
    net.last.say(message(7));
    assert.deepEqual(
      told.map(([, { data, reason }]) => data ?? reason),
      ['permission_denied', 5, 6, 'permission_denied', 7],
    );
    assert.equal(sent(net, 'zSubscribe').length, 2);
  });

  it('is read by a loop without being asked for', async () => {
    const { net, client } = await withTopics();
    net.last.say(given(0));
    const reader = client.topic('user:me')[Symbol.asyncIterator]();
    net.last.say(message(1));
    assert.equal((await reader.next()).value.data, 1);
    assert.deepEqual(net.last.sent, []);
  });

  it('is left with what was said before the server heard of it', async () => {
    const { net, client, server } = await withTopics();
    net.last.say(given(0));
    server.isLazy = true;
    const own = client.topic('user:me');
    const left = own.unsubscribe();
    net.last.say(given(0));
    server.deliver(net.last);
    await left;
    assert.equal(own.state, 'unsubscribed');
  });

  it('is not asked for by the client itself', async () => {
    const { net, client } = await connected({ retryDelay: () => 10 });
    net.last.say(given(40));
    client.topic('user:me').on('message', () => {});
    await reconnect(net);
    assert.deepEqual(net.last.sent, []);
    assert.equal(client.topic('user:me').state, 'unsubscribed');
  });

  it('begins with the newest where the program subscribes as well', async () => {
    const { net, client, server } = await withTopics();
    for (const n of [1, 2, 3]) server.publish('user:me', n);
    net.last.say(given(3));
    const own = client.topic('user:me', { last: 2 });
    const told = tellings(own, ['message', 'continuity']);
    await own.subscribe();
    assert.deepEqual(
      told.map(([, { data }]) => data),
      [2, 3],
    );
  });

  it("cannot be left where it is one's own, and goes on", async () => {
    const { net, client, server } = await withTopics();
    net.last.say(given(0));
    const own = client.topic('user:me');
    const told = tellings(own, ['message', 'continuity']);
    server.refuse = ({ zKey }) => zKey === 'zUnsubscribe' && { code: 'invalid' };
    const left = own.unsubscribe();
    server.publish('user:me', 'meanwhile');
    await assert.rejects(left, { code: 'invalid' });
    await settle();
    assert.equal(own.state, 'subscribed');
    server.publish('user:me', 'then');
    await settle();
    assert.deepEqual(texts(told), ['meanwhile', 'then']);
    assert.deepEqual(of(told, 'continuity'), [{ recovered: true }]);
  });
});
