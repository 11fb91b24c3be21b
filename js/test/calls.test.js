import assert from 'node:assert/strict';
import { getEventListeners } from 'node:events';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import {
  BifrostError,
  CommandFailed,
  ConnectionLost,
  ConnectionRefused,
  NotConnected,
  RequestAborted,
  RequestTimeout,
} from '../zBifrost.js';
import { connected, make, settle, watch } from './fakes.js';

const PING = { zKey: 'custom_command', zHorizontal: { action: 'ping' } };

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('a call', () => {
  it('settles by the reply that carries its id, whatever the order', async () => {
    const { net, client } = await connected();
    const [first, second] = [client.send(PING), client.send(PING)];
    const [a, b] = net.last.sent;
    assert.notEqual(a._requestId, b._requestId);
    net.last.say({ result: 'second', _requestId: b._requestId });
    net.last.say({ result: 'first', _requestId: a._requestId });
    assert.deepEqual(await Promise.all([first, second]), ['first', 'second']);
    assert.equal(client.pending, 0);
  });

  for (const result of [null, false, 0, '', [], { __proto__: null, error: 'not one' }]) {
    it(`resolves with ${JSON.stringify(result)} as it is`, async () => {
      const { net, client } = await connected();
      const call = client.send(PING);
      net.last.say({ result, _requestId: net.last.sent[0]._requestId });
      assert.deepEqual(await call, JSON.parse(JSON.stringify(result)));
    });
  }

  it('rejects with what the server says of the error', async () => {
    const { net, client } = await connected();
    const call = client.create('Users', { email: 'x' });
    net.last.say({
      error: 'email is taken',
      code: 'conflict',
      retryable: false,
      fields: { email: 'is taken' },
      _requestId: net.last.sent[0]._requestId,
    });
    await assert.rejects(call, (error) => {
      assert.ok(error instanceof CommandFailed && error instanceof BifrostError && error instanceof Error);
      assert.equal(error.name, 'CommandFailed');
      assert.equal(error.message, 'email is taken');
      assert.equal(error.code, 'conflict');
      assert.equal(error.retryable, false);
      assert.deepEqual(error.fields, { email: 'is taken' });
      return true;
    });
  });

  for (const [reply, expected] of [
    [
      { error: 'old servers say only this' },
      { message: 'old servers say only this', code: 'internal', retryable: false },
    ],
    [
      { error: 'busy', code: 'too_busy', retryable: true },
      { message: 'busy', code: 'too_busy', retryable: true },
    ],
    [
      { error: null, code: 7, retryable: 'yes', fields: 'x' },
      { message: 'The command failed', code: 'internal', retryable: false },
    ],
    [
      { error: { deep: 1 }, result: 5 },
      { message: 'The command failed', code: 'internal', retryable: false },
    ],
  ]) {
    it(`understands the error ${JSON.stringify(reply)}`, async () => {
      const { net, client } = await connected();
      const call = client.send(PING);
      net.last.say({ ...reply, _requestId: net.last.sent[0]._requestId });
      await assert.rejects(call, { ...expected, fields: {} });
    });
  }

  it('never changes the payload, and its own id wins over one in it', async () => {
    const { net, client } = await connected();
    const payload = Object.freeze({ zKey: 'ping2', zHorizontal: Object.freeze({ a: [1] }), _requestId: 'mine' });
    client.send(payload).catch(() => {});
    assert.deepEqual(net.last.sent[0].zHorizontal, { a: [1] });
    assert.equal(typeof net.last.sent[0]._requestId, 'number');
    assert.equal(payload._requestId, 'mine');
  });

  for (const payload of [undefined, null, 'ping', 5, [], [PING]]) {
    it(`cannot be ${JSON.stringify(payload)}`, async () => {
      const { net, client } = await connected();
      await assert.rejects(client.send(payload), TypeError);
      assert.equal(net.last.sent.length, 0);
    });
  }

  it('that JSON cannot express is rejected and leaves nothing behind', async () => {
    const { client } = await connected();
    const round = {};
    round.round = round;
    await assert.rejects(client.send({ zKey: 'x', zHorizontal: round }), TypeError);
    await assert.rejects(client.send({ zKey: 'x', zHorizontal: () => 1 }), TypeError);
    assert.equal(client.pending, 0);
  });

  it('carries the idempotency key of a write', async () => {
    const { net, client } = await connected();
    client.create('Users', { name: 'A' }, { idempotencyKey: 'k-1' }).catch(() => {});
    assert.deepEqual(net.last.sent[0].zHorizontal, {
      action: 'create',
      model: 'Users',
      values: { name: 'A' },
      _idempotencyKey: 'k-1',
    });
  });
});

describe('a timeout', () => {
  it('rejects once, with a late reply ignored and not taken for a broadcast (N6)', async () => {
    const { net, client } = await connected();
    const heard = [];
    client.onBroadcast((message) => heard.push(message));
    const call = watch(client.send(PING, 10_000));
    mock.timers.tick(9999);
    await settle();
    assert.equal(call.state, 'pending');
    mock.timers.tick(1);
    await settle();
    assert.ok(call.error instanceof RequestTimeout);
    assert.equal(call.error.code, 'request_timeout');
    assert.equal(call.error.retryable, true);
    assert.match(call.error.message, /custom_command within 10000 ms/);
    net.last.say({ result: 'late', _requestId: net.last.sent[0]._requestId });
    await settle();
    assert.equal(call.state, 'rejected');
    assert.deepEqual(heard, []);
    assert.equal(client.pending, 0);
  });

  it('is 30 s unless the client or the call says otherwise', async () => {
    for (const [options, callOptions, expected] of [
      [{}, undefined, 30_000],
      [{ timeout: 700 }, undefined, 700],
      [{ timeout: 700 }, { timeout: 900 }, 900],
      [{}, 50, 50],
      [{}, { onProgress() {} }, 30_000],
    ]) {
      const { client } = await connected({ heartbeat: Infinity, ...options });
      const call = watch(client.send(PING, callOptions));
      mock.timers.tick(expected - 1);
      await settle();
      assert.equal(call.state, 'pending');
      mock.timers.tick(1);
      await settle();
      assert.equal(call.state, 'rejected');
    }
  });

  it('may be Infinity, or longer than a timer can hold', async () => {
    const { client } = await connected({ heartbeat: Infinity });
    const calls = [watch(client.send(PING, Infinity)), watch(client.send(PING, 2 ** 40))];
    mock.timers.tick(1_000_000);
    await settle();
    assert.deepEqual(
      calls.map((call) => call.state),
      ['pending', 'pending'],
    );
  });

  for (const timeout of [0, -1, NaN, '1000', {}]) {
    it(`cannot be ${JSON.stringify(timeout)}`, async () => {
      const { net, client } = await connected();
      await assert.rejects(client.send(PING, { timeout }), TypeError);
      assert.equal(net.last.sent.length, 0);
    });
  }
});

describe('contact: an error without an answer says whether the call may be made again', () => {
  const keyed = { idempotencyKey: 'k-1' };
  // [made by, whether it may be made again]
  const calls = [
    [(client) => client.create('A', { v: 1 }), false],
    [(client) => client.update('A', 1, { v: 1 }), false],
    [(client) => client.delete('A', 1), false],
    [(client) => client.upsert('A', { v: 1 }, 'v'), false],
    [(client) => client.send({ zKey: 'create_A', zHorizontal: { values: { v: 1 }, _idempotencyKey: null } }), false],
    [(client) => client.send({ cmd: 'delete_A', zHorizontal: { where: { id: 2n ** 60n } } }), false],
    [(client) => client.send({ zKey: 'create_A' }), false],
    [(client) => client.create('A', { v: 1 }, keyed), true],
    [(client) => client.update('A', 1, { v: 1 }, keyed), true],
    [(client) => client.send({ zKey: 'create_A', zHorizontal: { values: {}, _idempotencyKey: 'k-2' } }), true],
    [(client) => client.read('A', { v: 1 }), true],
    [(client) => client.zFunc('create_A', 1), true],
    [(client) => client.send({ zKey: 'recreate_A' }), true],
    [(client) => client.send(PING), true],
  ];
  const made = (client) => calls.map(([make]) => watch(make(client)));
  const said = (watched) => watched.map(({ error }) => error.retryable);
  const wanted = calls.map(([, retryable]) => retryable);

  it('where its time is over: not for a change that was sent, unless it has a key', async () => {
    const { client } = await connected({ timeout: 1000, heartbeat: Infinity });
    const sent = made(client);
    mock.timers.tick(1000);
    await settle();
    assert.deepEqual(said(sent), wanted);
    assert.ok(sent.every(({ error }) => error instanceof RequestTimeout));
  });

  it('where the connection is lost: likewise, and each has an error that is right for it', async () => {
    for (const code of [1006, 1011, 1012]) {
      const { net, client } = await connected();
      const closed = [];
      client.on('close', ({ error }) => closed.push(error.retryable));
      const sent = made(client);
      net.last.drop(code, 'bye');
      await settle();
      assert.deepEqual(said(sent), wanted);
      for (const { error } of sent) {
        assert.deepEqual([error.code, error.closeCode, error.reason], ['connection_lost', code, 'bye']);
      }
      // Coming back is another matter.
      assert.deepEqual(closed, [true]);
    }
  });

  it('where it was certainly not sent: always', async () => {
    for (const end of [(net) => net.last.drop(), () => mock.timers.tick(1000)]) {
      const { net, client } = await connected({ timeout: 1000, maxInFlight: 1, heartbeat: Infinity });
      const first = watch(client.send(PING, 60_000));
      const waiting = watch(client.create('A', { v: 1 }));
      end(net);
      await settle();
      assert.equal(waiting.error.retryable, true);
      assert.notEqual(first.error?.retryable, false);
      client.disconnect();
    }
  });
});

describe('a lost connection', () => {
  it('rejects every pending call at once, for good (N5)', async () => {
    const { net, client } = await connected({ retryDelay: () => 100 });
    const calls = Array.from({ length: 10 }, () => watch(client.send(PING)));
    const ids = net.last.sent.map((message) => message._requestId);
    net.last.drop();
    await settle();
    for (const { error } of calls) {
      assert.ok(error instanceof ConnectionLost && !(error instanceof NotConnected));
      assert.equal(error.code, 'connection_lost');
      assert.equal(error.closeCode, 1006);
      assert.equal(error.retryable, true);
    }
    assert.equal(client.pending, 0);
    mock.timers.tick(100);
    net.last.accept();
    await settle();
    for (const id of ids) net.last.say({ result: 'stale', _requestId: id });
    await settle();
    assert.ok(calls.every((call) => call.state === 'rejected'));
  });

  it('rejects calls made while it is away, and sends none of them afterwards (N11)', async () => {
    const { net, client } = await connected({ retryDelay: () => 100 });
    net.last.drop();
    const calls = Array.from({ length: 100 }, () => watch(client.create('Users', { name: 'once' })));
    await settle();
    assert.ok(
      calls.every(({ error }) => error instanceof NotConnected && error.code === 'not_connected' && error.retryable),
    );
    mock.timers.tick(100);
    net.last.accept();
    await settle();
    assert.deepEqual(net.last.sent, []);
  });

  it('by disconnect() rejects too, not to be retried', async () => {
    const { client } = await connected();
    const call = watch(client.send(PING));
    client.disconnect();
    await settle();
    assert.ok(call.error instanceof ConnectionLost);
    assert.equal(call.error.retryable, false);
  });

  it('by a refusal rejects with that refusal', async () => {
    const { net, client } = await connected();
    const call = watch(client.send(PING));
    net.last.drop(1008, 'Token revoked');
    await settle();
    assert.ok(call.error instanceof ConnectionRefused && call.error instanceof ConnectionLost);
    assert.match(call.error.message, /Token revoked/);
  });

  it('is noticed by a socket that is closing already', async () => {
    const { net, client } = await connected();
    net.last.readyState = 2;
    await assert.rejects(client.send(PING), NotConnected);
    assert.equal(client.pending, 0);
  });
});

describe('an abort signal', () => {
  it('rejects the call with its reason as the cause; the reply is then ignored', async () => {
    const { net, client } = await connected();
    const abort = new AbortController();
    const call = watch(client.read('Users', {}, { signal: abort.signal }));
    abort.abort('changed my mind');
    await settle();
    assert.ok(call.error instanceof RequestAborted);
    assert.equal(call.error.cause, 'changed my mind');
    net.last.say({ result: [], _requestId: net.last.sent[0]._requestId });
    assert.equal(client.pending, 0);
  });

  it('that fired before keeps the command from being sent', async () => {
    const { net, client } = await connected();
    await assert.rejects(client.send(PING, { signal: AbortSignal.abort() }), RequestAborted);
    assert.equal(net.last.sent.length, 0);
    assert.equal(client.pending, 0);
  });

  it('that fires after the reply changes nothing', async () => {
    const { net, client } = await connected();
    const abort = new AbortController();
    const call = client.send(PING, { signal: abort.signal });
    net.last.say({ result: 1, _requestId: net.last.sent[0]._requestId });
    assert.equal(await call, 1);
    assert.equal(getEventListeners(abort.signal, 'abort').length, 0);
    abort.abort();
  });
});

describe('progress', () => {
  it('reaches the call it is about and starts its time again', async () => {
    const { net, client } = await connected({ heartbeat: Infinity });
    const seen = [];
    const general = [];
    client.on('progress', (message) => general.push(message.done));
    const call = watch(client.call('greet', [], { timeout: 1000, onProgress: (step) => seen.push(step) }));
    const id = net.last.sent[0]._requestId;
    for (let done = 1; done <= 3; done += 1) {
      mock.timers.tick(900);
      net.last.say({ event: 'progress', progressOf: id, done, total: 3, text: `step ${done}` });
    }
    await settle();
    assert.equal(call.state, 'pending');
    assert.deepEqual(seen[2], { done: 3, total: 3, text: 'step 3' });
    assert.deepEqual(general, [1, 2, 3]);
    mock.timers.tick(1000);
    await settle();
    assert.ok(call.error instanceof RequestTimeout);
    net.last.say({ event: 'progress', progressOf: id, done: 4, total: 4 });
    assert.equal(seen.length, 3);
  });

  it('that its listener chokes on is reported, and the call lives', async () => {
    const { net, client } = await connected();
    const errors = [];
    client.on('error', (error) => errors.push(error.code));
    const call = client.send(PING, {
      onProgress() {
        throw new Error('no');
      },
    });
    const id = net.last.sent[0]._requestId;
    net.last.say({ event: 'progress', progressOf: id, done: 1, total: 2 });
    net.last.say({ result: 'done', _requestId: id });
    assert.equal(await call, 'done');
    assert.deepEqual(errors, ['listener_failed']);
  });
});

describe('calls above maxInFlight', () => {
  it('wait for their turn in order, so that many at once are not refused', async () => {
    const { net, client } = await connected({ maxInFlight: 2 });
    const calls = [1, 2, 3, 4].map((n) => client.send({ zKey: 'n', zHorizontal: n }));
    const numbers = () => net.last.sent.map((message) => message.zHorizontal);
    assert.deepEqual(numbers(), [1, 2]);
    net.last.say({ result: 'b', _requestId: net.last.sent[1]._requestId });
    assert.deepEqual(numbers(), [1, 2, 3]);
    net.last.say({ error: 'a', _requestId: net.last.sent[0]._requestId });
    assert.deepEqual(numbers(), [1, 2, 3, 4]);
    net.last.say({ result: 'c', _requestId: net.last.sent[2]._requestId });
    net.last.say({ result: 'd', _requestId: net.last.sent[3]._requestId });
    const outcomes = await Promise.allSettled(calls);
    assert.deepEqual(
      outcomes.map(({ value, reason }) => value ?? reason.message),
      ['a', 'b', 'c', 'd'],
    );
  });

  it('contact: are as many as the server of the connection allows, if that is less', async () => {
    const { net, client } = make({ maxInFlight: 3 });
    for (const [limits, expected] of [
      [{ in_flight: 2 }, 2],
      [{ in_flight: 1 }, 1],
      [{ in_flight: 64 }, 3],
      [{}, 3],
    ]) {
      net.WebSocket.limits = limits;
      const ready = client.connect();
      net.last.accept();
      await ready;
      const calls = [1, 2, 3, 4, 5].map((n) => client.send({ zKey: 'n', zHorizontal: n }));
      assert.equal(net.last.sent.length, expected);
      // One that is answered makes room for one.
      for (let n = 0; n < 5; n += 1) {
        net.last.say({ result: n, _requestId: net.last.sent[n]._requestId });
        assert.equal(net.last.sent.length, Math.min(5, n + 1 + expected));
      }
      assert.deepEqual(await Promise.all(calls), [0, 1, 2, 3, 4]);
      net.last.drop();
    }
    client.disconnect();
  });

  it('are rejected as never sent when the connection is lost before their turn', async () => {
    const { net, client } = await connected({ maxInFlight: 1 });
    const calls = [watch(client.send(PING)), watch(client.send(PING))];
    net.last.drop();
    await settle();
    assert.deepEqual(
      calls.map(({ error }) => error.code),
      ['connection_lost', 'not_connected'],
    );
    assert.equal(net.sockets[0].sent.length, 1);
  });

  it('are never sent when they time out or are aborted while waiting', async () => {
    const { net, client } = await connected({ maxInFlight: 1, heartbeat: Infinity });
    const abort = new AbortController();
    client.send(PING, 5000).catch(() => {});
    const waiting = [watch(client.send(PING, 100)), watch(client.send(PING, { signal: abort.signal }))];
    mock.timers.tick(100);
    abort.abort();
    await settle();
    assert.deepEqual(
      waiting.map(({ error }) => error.code),
      ['request_timeout', 'request_aborted'],
    );
    net.last.say({ result: 1, _requestId: net.last.sent[0]._requestId });
    assert.equal(net.last.sent.length, 1);
    assert.equal(client.pending, 0);
  });

  it('leave no place behind: thousands pass one after the other', async () => {
    const { net, client } = await connected({ maxInFlight: 3 });
    let answered = 0;
    const calls = Array.from({ length: 3000 }, (_, n) => client.send({ zKey: 'n', zHorizontal: n }));
    while (answered < net.last.sent.length) {
      const { _requestId, zHorizontal } = net.last.sent[answered];
      answered += 1;
      net.last.say({ result: zHorizontal, _requestId });
    }
    assert.deepEqual(
      await Promise.all(calls),
      Array.from({ length: 3000 }, (_, n) => n),
    );
    assert.equal(client.pending, 0);
  });
});
