import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { ConnectionLost, ConnectionRefused, createClient, fullJitter, zBifrost } from '../zBifrost.js';
import { URL, connected, make, network, settle, watch } from './fakes.js';

const HALF = { retryDelay: fullJitter({ random: () => 0.5 }) };

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('connect', () => {
  it('resolves with the client once the server has answered a first command', async () => {
    const { net, client } = make();
    const ready = watch(client.connect());
    assert.equal(client.state, 'connecting');
    net.WebSocket.answersPing = false;
    net.last.accept();
    await settle();
    assert.equal(ready.state, 'pending');
    const [{ _requestId, ...question }] = net.last.sent;
    assert.deepEqual(question, { zKey: 'zDescribe', zHorizontal: ['limits'] });
    net.last.say({ result: { limits: {} }, _requestId });
    await settle();
    assert.equal(ready.value, client);
    assert.equal(client.state, 'connected');
    assert.equal(client.connected, true);
  });

  it('takes an error as an answer too: an older server may know no zDescribe', async () => {
    const { net, client } = make();
    const ready = watch(client.connect());
    net.WebSocket.answersPing = false;
    net.last.accept();
    net.last.say({ error: 'Unknown command', code: 'unknown_command', _requestId: net.last.sent[0]._requestId });
    await settle();
    assert.equal(ready.state, 'resolved');
  });

  it('gives all callers of one attempt the same promise, and opens one socket (N8)', async () => {
    const { net, client } = make();
    const first = client.connect();
    assert.equal(client.connect(), first);
    net.last.accept();
    assert.equal(client.connect(), first);
    await first;
    assert.equal(await client.connect(), client);
    assert.equal(net.sockets.length, 1);
  });

  it('rejects when the server cannot be reached, and does not go on by itself (N8)', async () => {
    const { net, client } = make();
    const ready = watch(client.connect());
    net.last.drop(1006);
    await settle();
    assert.ok(ready.error instanceof ConnectionLost);
    assert.equal(ready.error.code, 'connection_lost');
    assert.equal(ready.error.closeCode, 1006);
    assert.match(ready.error.message, /Cannot connect to ws:\/\/127\.0\.0\.1:56891\//);
    assert.equal(client.state, 'disconnected');
    mock.timers.tick(120_000);
    assert.equal(net.sockets.length, 1);
  });

  it('can be called again after a failure', async () => {
    const { net, client } = make();
    client.connect().catch(() => {});
    net.last.drop(1006);
    const again = client.connect();
    net.last.accept();
    assert.equal(await again, client);
  });

  it('gives up a socket that never opens', async () => {
    const { net, client } = make({ connectTimeout: 4000 });
    const ready = watch(client.connect());
    mock.timers.tick(4000);
    await settle();
    assert.match(ready.error.message, /no answer within 4000 ms/);
    assert.equal(net.last.closedBy, 1000);
  });

  for (const [code, reason] of [
    [1008, 'Invalid token'],
    [1008, 'Invalid origin'],
    [1013, 'Try again later'],
    [1011, 'x'],
  ]) {
    it(`rejects with ConnectionRefused when the server closes with ${code} ${reason}`, async () => {
      const { net, client } = make();
      const ready = watch(client.connect());
      net.last.refuse(code, reason);
      await settle();
      assert.ok(ready.error instanceof ConnectionRefused);
      assert.equal(ready.error.closeCode, code);
      assert.equal(ready.error.reason, reason);
      assert.equal(ready.error.retryable, code !== 1008);
      assert.match(ready.error.message, new RegExp(reason));
    });
  }

  it('ends in ConnectionLost when disconnect() comes first', async () => {
    const { net, client } = make();
    const ready = watch(client.connect());
    client.disconnect();
    net.last.drop(1006);
    await settle();
    assert.ok(ready.error instanceof ConnectionLost);
    assert.equal(client.state, 'disconnected');
  });

  it('is what createClient() does', async () => {
    const net = network();
    const ready = createClient(URL, null, { WebSocket: net.WebSocket });
    net.last.accept();
    assert.equal((await ready).state, 'connected');
  });

  it('reports a socket class that throws, without the text of that error', async () => {
    class Thrower {
      constructor(url) {
        throw new SyntaxError(`${url} is invalid`);
      }
    }
    const client = new zBifrost(URL, 'a=secret', { WebSocket: Thrower });
    await assert.rejects(
      client.connect(),
      (error) => error instanceof ConnectionLost && !error.message.includes('secret'),
    );
    globalThis.Deno = {};
    try {
      await assert.rejects(client.connect(), /Deno does not allow this address; --allow-net does/);
    } finally {
      delete globalThis.Deno;
    }
  });
});

describe('bad arguments', () => {
  for (const url of ['', 'nonsense', 'ftp://host/', 42, null, 'ws://', 'javascript:alert(1)']) {
    it(`refuse the URL ${JSON.stringify(url)} at once`, () => {
      assert.throws(() => new zBifrost(url), TypeError);
    });
  }

  for (const options of [
    { timeout: 0 },
    { timeout: '5' },
    { timeout: NaN },
    { heartbeat: -1 },
    { maxInFlight: 0 },
    { connectTimeout: null },
  ]) {
    it(`refuse the options ${JSON.stringify(options)}`, () => {
      assert.throws(() => new zBifrost(URL, null, options), TypeError);
    });
  }

  it('contact: say what to write in place of the zone of an address', () => {
    for (const url of ['ws://[fe80::1%25eth0]:1/', 'ws://[fe80::1%eth0]/x', 'wss://u@[fe80::1%25lo]']) {
      assert.throws(() => new zBifrost(url), /has no zone such as %eth0 here; write an address without one/);
    }
    for (const [url, shown] of [
      ['ws://[::1]:8/', 'ws://[::1]:8/'],
      ['ws://[0:0::1]:8/%25a', 'ws://[::1]:8/%25a'],
      ['ws://[::ffff:127.0.0.1]:8/', 'ws://[::ffff:7f00:1]:8/'],
    ]) {
      assert.equal(new zBifrost(url).url, shown);
    }
  });

  it('contact: refuse a token that has no form in UTF-8, by name', () => {
    for (const token of ['\ud83d', 'half \udd11 a key', '🔑\ud83d']) {
      assert.throws(() => new zBifrost(URL, token), /^TypeError: zBifrost: the token has half a character/);
    }
  });

  it('refuse a token that is not a string', () => {
    assert.throws(() => new zBifrost(URL, { token: 'x' }), TypeError);
  });
});

describe('the events of a connection', () => {
  it('tell each state once, with the one before, and every close', async () => {
    const { net, client } = make(HALF);
    const told = [];
    client.on('state', ({ state, previous }) => told.push(`${previous}>${state}`));
    client.on('open', () => told.push('open'));
    client.on('close', ({ code, final }) => told.push(`close ${code} ${final}`));
    client.on('reconnecting', () => told.push('reconnecting'));
    const ready = client.connect();
    net.last.accept();
    await ready;
    net.last.drop(1001);
    mock.timers.tick(250);
    net.last.accept();
    await settle();
    client.disconnect();
    client.disconnect();
    assert.deepEqual(told, [
      'disconnected>connecting',
      'connecting>connected',
      'open',
      'connected>reconnecting',
      'close 1001 false',
      'reconnecting',
      'reconnecting>connected',
      'open',
      'connected>disconnected',
      'close 1000 true',
    ]);
  });

  it('tell the state once for all attempts of one outage, and one close for each', async () => {
    const { net, client } = await connected(HALF);
    const told = [];
    client.on('state', ({ state }) => told.push(state));
    client.on('close', ({ code }) => told.push(code));
    for (let attempt = 0; attempt < 3; attempt += 1) {
      net.last.drop();
      mock.timers.tick(30_000);
    }
    assert.deepEqual(told.splice(0), ['reconnecting', 1006, 1006, 1006]);
    net.last.drop();
    client.disconnect();
    assert.deepEqual(told, [1006, 'disconnected']);
  });

  it('are no errors when a rejection or disconnect() tells the same', async () => {
    const { net, client } = make();
    const errors = [];
    client.on('error', (error) => errors.push(error));
    client.connect().catch(() => {});
    net.last.refuse(1008, 'Invalid token');
    client.connect().catch(() => {});
    net.last.accept();
    await settle();
    client.disconnect();
    assert.deepEqual(errors, []);
  });

  it('stop where a listener of the same change ended the connection', async () => {
    const { net, client } = await connected(HALF);
    const told = [];
    for (const event of ['open', 'close', 'reconnecting']) client.on(event, () => told.push(event));
    const stop = client.on('close', () => client.disconnect());
    net.last.drop();
    assert.deepEqual(told, ['close']);
    stop();
    client.on('state', ({ state }) => {
      if (state === 'connected') client.disconnect();
    });
    client.connect().catch(() => {});
    net.last.accept();
    await settle();
    assert.deepEqual(told, ['close', 'close']);
    assert.equal(client.state, 'disconnected');
  });

  it('let a listener call disconnect() or connect() from within', async () => {
    const { net, client } = await connected(HALF);
    const stop = client.on('close', () => client.disconnect());
    net.last.drop();
    assert.equal(client.state, 'disconnected');
    stop();
    mock.timers.tick(3_600_000);
    assert.equal(net.sockets.length, 1);
    client.connect();
    net.last.accept();
    await settle();
    const ending = client.on('close', () => {
      ending();
      client.connect().catch(() => {});
    });
    net.last.drop(1008);
    assert.equal(net.sockets.length, 3);
    net.last.accept();
    await settle();
    assert.equal(client.state, 'connected');
  });
});

describe('an attempt that ends in another way', () => {
  it('contact B7: fails at once where a socket has an error and no close (Node 22)', async () => {
    const { net, client } = make();
    const ready = watch(client.connect());
    net.last.dispatchEvent(new Event('error'));
    await settle();
    assert.ok(ready.error instanceof ConnectionLost);
    assert.match(ready.error.message, /Cannot connect to/);
    assert.doesNotMatch(ready.error.message, /no answer within/);
    assert.equal(client.state, 'disconnected');
  });

  it('contact B7: is retried at once, and a close that does come is the same end', async () => {
    const { net, client } = await connected({ retryDelay: () => 10 });
    const told = [];
    client.on('close', ({ code }) => told.push(code));
    net.last.drop();
    mock.timers.tick(10);
    net.last.dispatchEvent(new Event('error'));
    await settle();
    mock.timers.tick(10);
    assert.equal(net.sockets.length, 3);
    net.last.drop();
    await settle();
    assert.deepEqual(told, [1006, 1006, 1006]);
    mock.timers.tick(10);
    net.last.accept();
    await settle();
    net.last.dispatchEvent(new Event('error'));
    await settle();
    assert.equal(client.state, 'connected');
  });

  for (const code of [0, undefined]) {
    it(`contact B20: is no refusal where the close code is ${code} (Deno)`, async () => {
      const { net, client } = make();
      const ready = watch(client.connect());
      net.last.dispatchEvent(new Event('error'));
      net.last.dispatchEvent(Object.assign(new Event('close'), { code, reason: '', wasClean: false }));
      await settle();
      assert.ok(ready.error instanceof ConnectionLost && !(ready.error instanceof ConnectionRefused));
      assert.equal(ready.error.closeCode, 1006);
      assert.equal(ready.error.retryable, true);
    });
  }
});

describe('contact R28: disconnect() leaves no rejection that nobody handles', () => {
  it('neither of connect() nor of calls; who looks is told', async () => {
    // The test runner fails a test for each rejection that nobody handles.
    const { net, client } = make();
    client.connect();
    client.disconnect();
    client.connect();
    net.last.accept();
    await settle();
    client.send({ zKey: 'forgotten' });
    const [call, read] = [client.send({ zKey: 'looked at' }), client.read('Users')];
    client.disconnect();
    await assert.rejects(call, /disconnect\(\) was called/);
    await assert.rejects(read, ConnectionLost);
    const again = client.connect();
    client.disconnect();
    await assert.rejects(again, ConnectionLost);
    await settle();
  });

  it('as in React, whose StrictMode mounts twice', async () => {
    const { net, client } = make();
    const mount = () => {
      client.connect();
      return () => client.disconnect();
    };
    mount()();
    mount();
    net.sockets[0].drop();
    net.last.accept();
    await settle();
    assert.equal(client.state, 'connected');
  });
});

it('contact R1: an error that answers nothing is an error event and no broadcast', async () => {
  const { net, client } = await connected();
  const [heard, errors] = [[], []];
  client.onBroadcast((message) => heard.push(message));
  net.last.say({ error: 'Invalid JSON', code: 'bad_message', retryable: false });
  client.on('error', (error) => errors.push(error));
  net.last.say({ error: 'Invalid JSON', code: 'bad_message', retryable: false });
  net.last.say({ error: 'Busy', code: 'too_busy', retryable: true, _requestId: null });
  assert.deepEqual(heard, []);
  assert.deepEqual(
    errors.map(({ name, code, retryable, message }) => [name, code, retryable, message]),
    [['CommandFailed', 'bad_message', false, 'Invalid JSON']],
  );
  for (const message of [
    { zKey: 'f', error: 'of the program', code: 'x', retryable: false },
    { error: 'of the program' },
    { error: 'x', code: 5, retryable: true },
  ]) {
    net.last.say(message);
    assert.deepEqual(heard.pop(), message);
  }
});

it('contact R14: a framework that makes proxies of objects leaves a client alone', async () => {
  const { client } = await connected();
  assert.equal(client.__v_skip, true);
  assert.deepEqual(Object.keys(client), []);
});

it('contact R24: the address needs no more of URL than React Native has', async () => {
  const { URL: whole } = globalThis;
  class Bare {
    constructor(url, base) {
      this.href = new whole(url, base).href;
    }
  }
  globalThis.URL = Bare;
  try {
    for (const [url, token, options, shown, sent] of [
      ['ws://h:1', 'abc', {}, 'ws://h:1/', 'ws://h:1/'],
      ['https://h/p?x=1#frag', 'a b', {}, 'wss://h/p?x=1', 'wss://h/p?x=1&token=a+b'],
      [
        'ws://u:s3@h/?TOKEN=1&%74oken=s3',
        'n',
        { tokenInQuery: true },
        'ws://u:redacted@h/?TOKEN=1&token=redacted',
        'ws://u:s3@h/?TOKEN=1&token=n',
      ],
      ['ws://h/?api_key=s3&&a', null, {}, 'ws://h/?api_key=redacted&a', 'ws://h/?api_key=s3&&a'],
    ]) {
      const { net, client } = make(options, token, url);
      assert.equal(client.url, shown);
      client.connect().catch(() => {});
      assert.equal(net.last.url, sent);
      client.disconnect();
    }
  } finally {
    globalThis.URL = whole;
  }
});

describe('a connection that is dead without saying so', () => {
  it('is found by the heartbeat, given up and replaced', async () => {
    const { net, client } = await connected({ ...HALF, heartbeat: 20_000 });
    net.WebSocket.answersPing = false;
    mock.timers.tick(20_000);
    assert.equal(net.last.sent.length, 0);
    mock.timers.tick(1);
    assert.equal(net.last.sent[0].zKey, 'ping');
    mock.timers.tick(5000);
    await settle();
    assert.equal(client.state, 'reconnecting');
    assert.equal(net.last.closedBy, 1000);
    mock.timers.tick(250);
    assert.equal(net.sockets.length, 2);
  });

  it('contact B18: is asked after just as long as heartbeat says, counted from the last message', async () => {
    const { net } = await connected({ heartbeat: 2000 });
    mock.timers.tick(1900);
    net.last.say({ news: 1 });
    mock.timers.tick(2000);
    net.WebSocket.answersPing = false;
    assert.equal(net.last.sent.length, 0);
    mock.timers.tick(1);
    assert.equal(net.last.sent.length, 1);
    net.last.say({ result: 'ping', _requestId: net.last.sent[0]._requestId });
    await settle();
    mock.timers.tick(2000);
    assert.equal(net.last.sent.length, 1);
    mock.timers.tick(1);
    assert.equal(net.last.sent.length, 2);
  });

  it('costs nothing while messages come in', async () => {
    const { net } = await connected({ heartbeat: 20_000 });
    net.WebSocket.answersPing = false;
    for (let round = 0; round < 5; round += 1) {
      net.last.say({ news: round });
      mock.timers.tick(20_000);
    }
    assert.equal(net.last.sent.length, 0);
  });

  it('is not looked for when heartbeat is Infinity', async () => {
    const { net } = await connected({ heartbeat: Infinity });
    net.WebSocket.answersPing = false;
    mock.timers.tick(2 ** 31);
    mock.timers.tick(2 ** 31);
    assert.equal(net.last.sent.length, 0);
  });
});

describe('in a page', () => {
  let page;

  beforeEach(() => {
    page = new EventTarget();
    globalThis.addEventListener = page.addEventListener.bind(page);
    globalThis.document = Object.assign(new EventTarget(), { visibilityState: 'visible' });
  });

  afterEach(() => {
    delete globalThis.addEventListener;
    delete globalThis.document;
  });

  const shown = () => globalThis.document.dispatchEvent(new Event('visibilitychange'));

  for (const [name, happen] of [
    ['comes back online', () => page.dispatchEvent(new Event('online'))],
    ['becomes visible', shown],
    [
      'returns from the back-forward cache',
      () => page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true })),
    ],
  ]) {
    it(`tries at once when the page ${name}`, async () => {
      const { net } = await connected({ retryDelay: () => 30_000 });
      net.last.drop();
      happen();
      assert.equal(net.sockets.length, 2);
      mock.timers.tick(9_000);
      assert.equal(net.sockets.length, 2);
    });
  }

  it('asks a connection that stands whether it still does, once', async () => {
    const { net, client } = await connected(HALF);
    net.WebSocket.answersPing = false;
    shown();
    shown();
    assert.equal(net.last.sent.length, 1);
    mock.timers.tick(5000);
    await settle();
    assert.equal(client.state, 'reconnecting');
  });

  it('lets go of the socket when the page is left, so that the page can be kept', async () => {
    const { net, client } = await connected({ retryDelay: () => 30_000 });
    page.dispatchEvent(new Event('pagehide'));
    assert.equal(net.last.closedBy, 1000);
    page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true }));
    net.last.accept();
    await settle();
    assert.equal(client.state, 'connected');
  });

  it('contact R27: goes on with a first attempt when the page that was left comes back', async () => {
    const { net, client } = make();
    const ready = watch(client.connect());
    page.dispatchEvent(new Event('pagehide'));
    assert.equal(net.last.closedBy, 1000);
    net.sockets[0].drop();
    mock.timers.tick(60_000);
    await settle();
    assert.equal(ready.state, 'pending');
    assert.equal(client.state, 'connecting');
    page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: true }));
    assert.equal(net.sockets.length, 2);
    net.last.accept();
    await settle();
    assert.equal(ready.value, client);
    client.disconnect();
    const again = watch(client.connect());
    net.last.accept();
    page.dispatchEvent(new Event('pagehide'));
    client.disconnect();
    await settle();
    assert.ok(again.error instanceof ConnectionLost);
    assert.equal(client.state, 'disconnected');
  });

  it('listens to the page once, however often it connects', async () => {
    let added = 0;
    const add = globalThis.addEventListener;
    globalThis.addEventListener = (...values) => {
      added += 1;
      add(...values);
    };
    const { net } = await connected(HALF);
    const first = added;
    for (let attempt = 0; attempt < 3; attempt += 1) {
      net.last.drop();
      mock.timers.tick(30_000);
    }
    assert.ok(first > 0);
    assert.equal(added, first);
  });

  it('does nothing for a hidden page or an ordinary pageshow, and nothing after disconnect()', async () => {
    const { net, client } = await connected({ retryDelay: () => 30_000 });
    net.last.drop();
    globalThis.document.visibilityState = 'hidden';
    shown();
    page.dispatchEvent(Object.assign(new Event('pageshow'), { persisted: false }));
    assert.equal(net.sockets.length, 1);
    client.disconnect();
    globalThis.document.visibilityState = 'visible';
    shown();
    page.dispatchEvent(new Event('online'));
    page.dispatchEvent(new Event('pagehide'));
    assert.equal(net.sockets.length, 1);
  });
});

describe('without a WebSocket in this JavaScript', () => {
  it(
    'uses the ws package when it is installed',
    { skip: globalThis.WebSocket !== undefined && 'this Node has one' },
    async () => {
      const client = new zBifrost('ws://127.0.0.1:9/', null, { connectTimeout: 60_000 });
      mock.timers.reset();
      await assert.rejects(
        client.connect(),
        (error) => error.code === 'connection_lost' && /ECONNREFUSED/.test(error.message),
      );
    },
  );
});
