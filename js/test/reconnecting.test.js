import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { ConnectionLost, NotConnected, fullJitter } from '../zBifrost.js';
import { connected, make, network, settle, watch } from './fakes.js';

const HALF = { retryDelay: fullJitter({ random: () => 0.5 }) };

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'setInterval', 'Date'] }));
afterEach(() => mock.timers.reset());

describe('reconnecting', () => {
  for (const code of [1001, 1005, 1006, 1009, 1011, 1012, 1013, 1015, 4000]) {
    it(`follows close code ${code}`, async () => {
      const { net, client } = await connected(HALF);
      net.last.drop(code);
      assert.equal(client.state, 'reconnecting');
      mock.timers.tick(250);
      assert.equal(net.sockets.length, 2);
      net.last.accept();
      await settle();
      assert.equal(client.state, 'connected');
    });
  }

  for (const code of [1000, 1002, 1003, 1007, 1008]) {
    it(`never follows close code ${code} (N3)`, async () => {
      const { net, client } = await connected(HALF);
      const errors = [];
      client.on('error', (error) => errors.push(error));
      net.last.drop(code, 'because');
      assert.equal(client.state, 'disconnected');
      mock.timers.tick(3_600_000);
      assert.equal(net.sockets.length, 1);
      assert.equal(errors.length, 1);
      assert.equal(errors[0].closeCode, code);
      assert.equal(errors[0].retryable, false);
    });
  }

  it('never follows disconnect() (N4)', async () => {
    const { net, client } = await connected(HALF);
    client.disconnect();
    assert.equal(client.state, 'disconnected');
    assert.equal(net.last.closedBy, 1000);
    net.last.drop(1006);
    mock.timers.tick(3_600_000);
    assert.equal(net.sockets.length, 1);
  });

  it('is ended by disconnect() while it waits and while it tries', async () => {
    const { net, client } = await connected(HALF);
    net.last.drop();
    client.disconnect();
    mock.timers.tick(3_600_000);
    assert.equal(net.sockets.length, 1);
    const ready = client.connect();
    net.last.accept();
    await ready;
    net.last.drop();
    mock.timers.tick(250);
    client.disconnect();
    net.last.accept();
    await settle();
    assert.equal(client.state, 'disconnected');
    assert.equal(net.last.closedBy, 1000);
  });

  it('does not follow a first attempt that fails after disconnect() and connect()', async () => {
    const { net, client } = await connected(HALF);
    client.disconnect();
    client.connect().catch(() => {});
    net.last.drop();
    assert.equal(client.state, 'disconnected');
    mock.timers.tick(3_600_000);
    assert.equal(net.sockets.length, 2);
  });

  it('can be switched off', async () => {
    const { net, client } = await connected({ autoReconnect: false });
    net.last.drop();
    assert.equal(client.state, 'disconnected');
    mock.timers.tick(3_600_000);
    assert.equal(net.sockets.length, 1);
  });

  it('backs off with growing delays up to the cap, and starts anew after a steady connection', async () => {
    const { net, client } = await connected(HALF);
    const delays = [];
    client.on('reconnecting', ({ attempt, delay }) => delays.push([attempt, delay]));
    for (let attempt = 0; attempt < 8; attempt += 1) {
      net.last.drop();
      mock.timers.tick(30_000);
    }
    assert.deepEqual(delays, [
      [1, 250],
      [2, 500],
      [3, 1000],
      [4, 2000],
      [5, 4000],
      [6, 8000],
      [7, 15000],
      [8, 15000],
    ]);
    net.last.accept();
    await settle();
    mock.timers.tick(5000);
    net.last.drop();
    assert.deepEqual(delays.at(-1), [1, 250]);
  });

  it('does not start the backoff anew for a connection that is lost at once', async () => {
    const { net, client } = await connected(HALF);
    const delays = [];
    client.on('reconnecting', ({ delay }) => delays.push(delay));
    for (let attempt = 0; attempt < 3; attempt += 1) {
      net.last.drop(1013);
      mock.timers.tick(delays.at(-1));
      net.last.accept();
      await settle();
    }
    assert.deepEqual(delays, [250, 500, 1000]);
  });

  it('stops when the server refuses an attempt for good', async () => {
    const { net, client } = await connected(HALF);
    net.last.drop();
    mock.timers.tick(250);
    net.last.refuse(1008, 'Invalid token');
    await settle();
    assert.equal(client.state, 'disconnected');
    mock.timers.tick(3_600_000);
    assert.equal(net.sockets.length, 2);
  });

  it('takes a number or a function as the delay, and survives a bad function', async () => {
    for (const [retryDelay, limit] of [
      [10, 10],
      [() => 70, 70],
      [
        () => {
          throw new Error('no');
        },
        500,
      ],
      [() => NaN, 500],
      [() => 'x', 500],
    ]) {
      const { net, client } = await connected({ retryDelay });
      client.on('error', () => {});
      let delay;
      client.on('reconnecting', (event) => {
        delay = event.delay;
      });
      net.last.drop();
      assert.ok(delay >= 0 && delay <= limit, `${retryDelay}: ${delay}`);
      mock.timers.tick(limit);
      assert.equal(net.sockets.length, 2);
    }
  });

  it('tries at once when connect() is called, and goes on when that fails', async () => {
    const { net, client } = await connected(HALF);
    net.last.drop();
    const ready = watch(client.connect());
    assert.equal(net.sockets.length, 2);
    assert.equal(client.state, 'reconnecting');
    net.last.drop();
    await settle();
    assert.ok(ready.error instanceof ConnectionLost);
    mock.timers.tick(500);
    assert.equal(net.sockets.length, 3);
    net.last.accept();
    await settle();
    assert.equal(client.state, 'connected');
  });

  it('ignores whatever a socket that was given up still says', async () => {
    const { net, client } = await connected(HALF);
    const heard = [];
    client.onBroadcast((message) => heard.push(message));
    const [old] = net.sockets;
    old.drop();
    mock.timers.tick(250);
    net.last.accept();
    await settle();
    old.say({ old: true });
    old.drop(1008);
    assert.deepEqual(heard, []);
    assert.equal(client.state, 'connected');
  });
});

describe('fullJitter', () => {
  it('spreads from zero to a limit that doubles up to the cap', () => {
    const most = fullJitter({ random: () => 1 });
    assert.deepEqual([0, 1, 2, 5, 6, 7, 2000].map(most), [500, 1000, 2000, 16000, 30000, 30000, 30000]);
    assert.equal(fullJitter({ random: () => 0 })(9), 0);
  });

  it('keeps a thousand clients apart (N2)', () => {
    const delay = fullJitter();
    const slots = new Array(10).fill(0);
    for (let client = 0; client < 1000; client += 1) slots[Math.floor(delay(1) / 100)] += 1;
    assert.ok(Math.max(...slots) < 200, String(slots));
  });
});

it('a call without a connection is refused in every state', async () => {
  const { net, client } = make(HALF);
  for (const move of [
    () => {},
    () => {
      client.connect().catch(() => {});
    },
    () => net.last.drop(),
  ]) {
    move();
    await assert.rejects(client.create('Users', { name: 'Alice' }), NotConnected);
  }
});

describe('contact functions of the program that connect or disconnect', () => {
  const places = {
    retryDelay: (use) => ({ options: { retryDelay: () => use() ?? 100 } }),
    debug: (use) => ({ options: { debug: (line) => line.startsWith('connection ended') && use() } }),
    state: (use) => ({ event: 'state', listener: ({ state }) => state === 'reconnecting' && use() }),
    close: (use) => ({ event: 'close', listener: use }),
    reconnecting: (use) => ({ event: 'reconnecting', listener: use }),
    signal: (use) => ({ onAbort: use }),
  };

  /** A client whose connection is lost, with `act(client)` called once in the function that `place` names. */
  async function lost(place, act) {
    let client;
    let called = 0;
    const used = places[place](() => {
      called += 1;
      if (called === 1) act(client);
    });
    const { net, client: made } = await connected({ retryDelay: () => 100, ...used.options });
    client = made;
    if (used.event) client.on(used.event, used.listener);
    client.onAsk((_, { signal }) => {
      signal.addEventListener('abort', () => used.onAbort?.());
      return new Promise(() => {});
    });
    net.last.say({ event: 'ask', askId: 'a', prompt: { kind: 'text' }, timeout: 5 });
    const states = [];
    client.on('state', ({ state }) => states.push(state));
    const call = watch(client.send({ zKey: 'x' }));
    net.last.drop();
    await settle();
    assert.ok(call.error instanceof ConnectionLost);
    assert.ok(called > 0);
    return { net, client, states };
  }

  for (const place of Object.keys(places)) {
    it(`${place}: disconnect() is for good`, async () => {
      const { net, client, states } = await lost(place, (c) => c.disconnect());
      assert.equal(client.state, 'disconnected');
      assert.deepEqual(states, ['reconnecting', 'disconnected']);
      mock.timers.tick(3_600_000);
      await settle();
      assert.equal(net.sockets.length, 1);
    });

    it(`${place}: connect() is the next attempt, and the only one`, async () => {
      let ready;
      const { net, client, states } = await lost(place, (c) => {
        ready = watch(c.connect());
      });
      assert.equal(net.sockets.length, 2);
      net.last.accept();
      await settle();
      assert.equal(ready.value, client);
      assert.deepEqual(states, ['reconnecting', 'connected']);
      mock.timers.tick(4000);
      await settle();
      assert.equal(net.sockets.length, 2);
    });

    it(`${place}: disconnect() and connect() begin anew`, async () => {
      let ready;
      const { net, client, states } = await lost(place, (c) => {
        c.disconnect();
        ready = watch(c.connect());
      });
      assert.deepEqual(states, ['reconnecting', 'disconnected', 'connecting']);
      net.last.drop();
      await settle();
      assert.ok(ready.error instanceof ConnectionLost);
      // A first attempt is not tried again.
      assert.equal(client.state, 'disconnected');
      mock.timers.tick(3_600_000);
      await settle();
      assert.equal(net.sockets.length, 2);
    });
  }

  it('debug may do so at every line, and may throw', async () => {
    for (const act of [(c) => c.disconnect(), (c) => c.connect().catch(() => {}), (c) => c.send({ zKey: 'x' })]) {
      let client;
      const failures = [];
      const made = make({
        debug: () => {
          act(client).catch?.(() => {});
          throw new Error('no log');
        },
      });
      client = made.client;
      client.on('error', ({ code }) => failures.push(code));
      client.connect().catch(() => {});
      made.net.last?.accept();
      await settle();
      client.send({ zKey: 'x' }).catch(() => {});
      client.disconnect();
      await settle();
      assert.ok(failures.length > 0 && failures.every((code) => code === 'listener_failed'));
    }
  });

  it('a WebSocket class may disconnect while it is made', async () => {
    const net = network();
    let client;
    class Own extends net.WebSocket {
      constructor(...given) {
        super(...given);
        client.disconnect();
      }
    }
    client = make({ WebSocket: Own }).client;
    const ready = watch(client.connect());
    await settle();
    assert.equal(ready.error.message, 'disconnect() was called');
    assert.deepEqual([client.state, net.last.closedBy], ['disconnected', 1000]);
    net.last.accept();
    await settle();
    assert.equal(client.state, 'disconnected');
  });

  it('a listener that connects again whenever it cannot leaves everybody else their turn', async () => {
    let made = 0;
    class Forbidden {
      constructor() {
        made += 1;
        throw new Error('no');
      }
    }
    const { client } = make({ WebSocket: Forbidden });
    client.on('state', ({ state }) => state === 'disconnected' && made < 50 && client.connect().catch(() => {}));
    await assert.rejects(client.connect(), ConnectionLost);
    assert.ok(made < 50);
    while (made < 50) await settle();
  });

  it('every listener hears the events in their order', async () => {
    const { net, client } = await connected({ retryDelay: () => 1 });
    client.on('state', ({ state }) => state === 'reconnecting' && client.disconnect());
    const heard = [];
    for (const event of ['state', 'close', 'reconnecting', 'error']) {
      client.on(event, ({ state, final }) => heard.push(state ?? `${event} ${final}`));
    }
    net.last.drop();
    assert.deepEqual(heard, ['reconnecting', 'close true', 'disconnected']);
  });
});
