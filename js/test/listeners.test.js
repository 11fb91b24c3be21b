import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { connected, settle } from './fakes.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => {
  mock.timers.reset();
  mock.restoreAll();
});

describe('listeners', () => {
  it('are all called when one throws, and the fault is reported (N9)', async () => {
    const { net, client } = await connected();
    const told = [];
    const fault = new Error('mine');
    client.onBroadcast(() => {
      throw fault;
    });
    client.onBroadcast(() => told.push('second'));
    client.on('error', (error) => told.push(error));
    net.last.say({ n: 1 });
    assert.equal(told[0].code, 'listener_failed');
    assert.equal(told[0].cause, fault);
    assert.equal(told[1], 'second');
  });

  it('hear of the engine, which is no broadcast', async () => {
    const { net, client } = await connected();
    const told = [];
    client.onBroadcast((message) => told.push(message));
    client.on('engine', ({ state, recovered }) => told.push([state, recovered]));
    net.last.say({ event: 'engine', state: 'degraded' });
    net.last.say({ event: 'engine', state: 'ok' });
    net.last.say({ event: 'engine', state: 'ok', recovered: false });
    assert.deepEqual(told, [
      ['degraded', undefined],
      ['ok', undefined],
      ['ok', false],
    ]);
  });

  it('that throw are shown on the console when nobody listens for errors, or when that one throws', async () => {
    const shown = mock.method(console, 'error', () => {});
    const { net, client } = await connected();
    client.onBroadcast(() => {
      throw new Error('a');
    });
    net.last.say({ n: 1 });
    client.on('error', () => {
      throw new Error('b');
    });
    net.last.say({ n: 2 });
    assert.equal(shown.mock.callCount(), 2);
  });

  it('for errors that were removed leave the console to speak again', async () => {
    const shown = mock.method(console, 'error', () => {});
    const { net, client } = await connected();
    client.onBroadcast(() => {
      throw new Error('a');
    });
    client.on('error', () => {})();
    net.last.say({ n: 1 });
    assert.equal(shown.mock.callCount(), 1);
  });

  it('may remove themselves or others while a message is under way; nobody is skipped', async () => {
    const { net, client } = await connected();
    const told = [];
    const last = () => told.push('last');
    function once() {
      told.push('once');
      client.removeBroadcastListener(once);
      client.removeBroadcastListener(last);
      client.onBroadcast(() => told.push('new'));
    }
    client.onBroadcast(once);
    client.onBroadcast(() => told.push('middle'));
    client.onBroadcast(last);
    net.last.say({ n: 1 });
    assert.deepEqual(told, ['once', 'middle']);
    net.last.say({ n: 2 });
    assert.deepEqual(told, ['once', 'middle', 'middle', 'new']);
  });

  it('are called once however often they were added, and on() returns their end', async () => {
    const { net, client } = await connected();
    let calls = 0;
    const count = () => {
      calls += 1;
    };
    client.onBroadcast(count);
    const stop = client.on('broadcast', count);
    net.last.say({});
    assert.equal(calls, 1);
    stop();
    stop();
    client.removeBroadcastListener(() => {});
    net.last.say({});
    assert.equal(calls, 1);
  });

  it('may be ten thousand (N9)', async () => {
    const { net, client } = await connected();
    let calls = 0;
    const stops = Array.from({ length: 10_000 }, () =>
      client.onBroadcast(() => {
        calls += 1;
      }),
    );
    net.last.say({});
    assert.equal(calls, 10_000);
    for (const stop of stops) stop();
    net.last.say({});
    assert.equal(calls, 10_000);
  });

  it('are functions', async () => {
    const { client } = await connected();
    for (const bad of [undefined, null, 'f', {}]) {
      assert.throws(() => client.onBroadcast(bad), TypeError);
      assert.throws(() => client.onAsk(bad), TypeError);
    }
  });

  it('outlive a reconnection', async () => {
    const { net, client } = await connected({ retryDelay: () => 10 });
    const heard = [];
    client.onBroadcast((message) => heard.push(message));
    net.last.drop();
    mock.timers.tick(10);
    net.last.accept();
    await settle();
    net.last.say('still here');
    assert.deepEqual(heard, ['still here']);
  });
});

describe('a prompt from the server', () => {
  const ASK = { event: 'ask', askId: 'q1', prompt: { kind: 'text', label: 'Your name?' }, timeout: 60 };

  async function asked(answer, options) {
    const { net, client } = await connected({ heartbeat: Infinity, ...options });
    if (answer) client.onAsk(answer);
    net.last.say(ASK);
    await settle();
    return { net, client };
  }

  for (const [text, answer, horizontal] of [
    ['a value', () => 'Alice', { askId: 'q1', value: 'Alice' }],
    ['a promise of one', async () => ({ name: 'Alice' }), { askId: 'q1', value: { name: 'Alice' } }],
    ['false', () => false, { askId: 'q1', value: false }],
    ['an empty text', () => '', { askId: 'q1', value: '' }],
    ['null, as window.prompt() does', () => null, { askId: 'q1', cancelled: true }],
    ['nothing', () => {}, { askId: 'q1', cancelled: true }],
    ['nobody', null, { askId: 'q1', cancelled: true }],
  ]) {
    it(`is answered by ${text}`, async () => {
      const { net } = await asked(answer);
      const { _requestId, ...message } = net.last.sent[0];
      assert.deepEqual(message, { zKey: 'zAnswer', zHorizontal: horizontal });
      assert.equal(typeof _requestId, 'number');
    });
  }

  it('is given with its prompt, time and signal', async () => {
    let given;
    await asked((...values) => {
      given = values;
      return 1;
    });
    assert.deepEqual(given[0], ASK.prompt);
    assert.equal(given[1].askId, 'q1');
    assert.equal(given[1].timeout, 60);
    assert.equal(given[1].error, null);
    assert.ok(given[1].signal instanceof AbortSignal);
  });

  it('is cancelled when the function throws, and the fault reported', async () => {
    const shown = mock.method(console, 'error', () => {});
    const { net } = await asked(() => {
      throw new Error('no');
    });
    assert.deepEqual(net.last.sent[0].zHorizontal, { askId: 'q1', cancelled: true });
    assert.equal(shown.mock.callCount(), 1);
  });

  for (const value of [NaN, new Map(), { at: new Date(NaN) }, ['\ud83d']]) {
    it(`contact R12: is cancelled when JSON has no form for the answer, and the fault reported: ${value}`, async () => {
      const shown = mock.method(console, 'error', () => {});
      let calls = 0;
      const { net } = await asked(() => {
        calls += 1;
        return value;
      });
      assert.deepEqual(
        net.last.sent.map(({ zHorizontal }) => zHorizontal),
        [{ askId: 'q1', cancelled: true }],
      );
      assert.equal(calls, 1);
      assert.equal(shown.mock.callCount(), 1);
    });
  }

  it('is asked again with the error when the server does not accept the value', async () => {
    const errors = [];
    const { net } = await asked((prompt, { error }) => {
      errors.push(error);
      return error ? 'Alice' : '';
    });
    net.last.say({
      error: 'Too short',
      code: 'invalid',
      fields: { value: 'Too short' },
      _requestId: net.last.sent[0]._requestId,
    });
    await settle();
    assert.equal(errors[1].message, 'Too short');
    assert.deepEqual(errors[1].fields, { value: 'Too short' });
    assert.deepEqual(net.last.sent[1].zHorizontal, { askId: 'q1', value: 'Alice' });
    net.last.say({ result: true, _requestId: net.last.sent[1]._requestId });
    await settle();
    assert.equal(net.last.sent.length, 2);
  });

  it('is not asked again after any other error', async () => {
    let times = 0;
    const { net } = await asked(() => {
      times += 1;
      return 'x';
    });
    net.last.say({ error: 'Gone', code: 'not_found', _requestId: net.last.sent[0]._requestId });
    await settle();
    assert.equal(times, 1);
  });

  for (const [text, withdraw] of [
    ['withdraws it', ({ net }) => net.last.say({ event: 'ask_closed', askId: 'q1', reason: 'timeout' })],
    ['is lost', ({ net }) => net.last.drop()],
    ['is left', ({ client }) => client.disconnect()],
  ]) {
    it(`is aborted and not answered when the server ${text}`, async () => {
      let signal;
      let release;
      const parts = await asked((prompt, ask) => {
        signal = ask.signal;
        return new Promise((resolve) => {
          release = resolve;
        });
      });
      const socket = parts.net.last;
      withdraw(parts);
      assert.equal(signal.aborted, true);
      release('too late');
      await settle();
      assert.deepEqual(socket.sent, []);
    });
  }

  it('is put once, however often it is sent', async () => {
    let times = 0;
    const { net } = await asked(() => {
      times += 1;
      return new Promise(() => {});
    });
    net.last.say(ASK);
    await settle();
    assert.equal(times, 1);
  });

  it('does not keep a dead connection from being noticed', async () => {
    const { net, client } = await asked(() => new Promise(() => {}), { heartbeat: 20_000, retryDelay: () => 10 });
    net.WebSocket.answersPing = false;
    mock.timers.tick(40_000);
    mock.timers.tick(5000);
    await settle();
    assert.equal(client.state, 'reconnecting');
  });

  it('that ended with its connection stops no clock of the next one', async () => {
    const { net, client } = await asked(() => new Promise(() => {}), { retryDelay: () => 10 });
    net.last.drop();
    mock.timers.tick(10);
    net.last.accept();
    await settle();
    let failed = false;
    client.send({ zKey: 'x' }, 1000).catch(() => {
      failed = true;
    });
    mock.timers.tick(1000);
    await settle();
    assert.equal(failed, true);
  });

  it('stops the clock of the calls that wait behind it', async () => {
    let release;
    const { net, client } = await asked(
      () =>
        new Promise((resolve) => {
          release = resolve;
        }),
    );
    let failed = false;
    client.call('greet', [], { timeout: 1000 }).catch(() => {
      failed = true;
    });
    mock.timers.tick(50_000);
    await settle();
    assert.equal(failed, false);
    release('Alice');
    await settle();
    const answer = net.last.sent.find(({ zKey }) => zKey === 'zAnswer');
    net.last.say({ result: true, _requestId: answer._requestId });
    await settle();
    mock.timers.tick(2000);
    await settle();
    assert.equal(failed, true);
  });

  it('is answered although maxInFlight calls wait for that very answer', async () => {
    const { net, client } = await connected({ maxInFlight: 1 });
    client.onAsk(() => 'Alice');
    client.zFunc('greet').catch(() => {});
    net.last.say(ASK);
    await settle();
    assert.deepEqual(
      net.last.sent.map(({ zKey }) => zKey),
      ['zFunc', 'zAnswer'],
    );
  });

  it('goes to the function set last, until that one is taken back', async () => {
    const told = [];
    const { net, client } = await connected();
    client.onAsk(() => {
      told.push('old');
      return 1;
    });
    const stop = client.onAsk(() => {
      told.push('new');
      return 1;
    });
    net.last.say(ASK);
    await settle();
    stop();
    net.last.say({ ...ASK, askId: 'q2' });
    await settle();
    assert.deepEqual(told, ['new']);
    assert.equal(net.last.sent[1].zHorizontal.cancelled, true);
  });
});
