import assert from 'node:assert/strict';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { afterEach, beforeEach, describe, it, mock } from 'node:test';
import { connected, make, settle, watch } from './fakes.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'Date'] }));
afterEach(() => mock.timers.reset());

const A = { id: 1, name: 'a', tags: ['x'] };
const B = { id: 2, name: 'b', tags: [] };
const C = { id: 3, name: 'c', tags: [] };
const REPLY = { key: ['id'], step: 1, sees: 'all' };

/** What the last connection was asked in commands of that name. */
const asked = (net, zKey = 'zLive') => net.last.sent.filter((message) => message.zKey === zKey);

/** Answer the newest zLive. */
function answer(net, result) {
  const { zHorizontal, _requestId } = asked(net).at(-1);
  net.last.say({ result: { query: zHorizontal.query, ...REPLY, ...result }, _requestId });
  return zHorizontal.query;
}

function refuse(net, code, retryable = false) {
  net.last.say({ error: `It is ${code}`, code, retryable, _requestId: asked(net).at(-1)._requestId });
}

const say = (net, queries) => net.last.say({ event: 'live', step: 2, queries });

/** All that a live query tells: [rows, change]; and of its status and errors by name. */
function tellings(live) {
  const told = [];
  const unsubscribe = live.subscribe((rows, change) => told.push([rows, change]));
  live.on('status', ({ status, previous }) => told.push(['status', previous, status]));
  live.on('error', (error) => told.push(['error', error.code]));
  return Object.defineProperty(told, 'unsubscribe', { value: unsubscribe });
}

/** A query of which A and B have come. */
async function withRows(options = {}) {
  const { net, client } = await connected({ retryDelay: () => 10, ...options });
  const live = client.live('Orders', { status__in: ['new'] }, { order_by: 'name' });
  const told = tellings(live);
  const query = answer(net, { rows: [A, B], digest: 'd1' });
  told.splice(0);
  return { net, client, live, told, query };
}

async function reconnect(net, meanwhile = () => {}) {
  net.last.drop();
  meanwhile();
  mock.timers.tick(10);
  net.last.accept();
  await settle();
}

const nothing = { added: [], removed: [], changed: [] };

describe('a live query', () => {
  it('is asked for by the first who subscribes, as it was meant when it was made', async () => {
    const { net, client } = await connected();
    const filters = { status__in: ['new'], total__gt: 2n ** 60n };
    const fields = ['name'];
    const live = client.live('Orders', filters, { fields, order_by: ['name'], limit: 5 });
    filters.status__in.push('paid');
    fields.push('total');
    await settle();
    assert.deepEqual([net.last.sent, live.rows, live.status, live.error], [[], [], 'loading', null]);
    live.subscribe(() => {});
    live.subscribe(() => {});
    assert.equal(asked(net).length, 1);
    assert.deepEqual(asked(net)[0].zHorizontal, {
      query: 'q1',
      model: 'Orders',
      where: { status__in: ['new'], total__gt: 2 ** 60 },
      fields: ['name'],
      order_by: ['name'],
      limit: 5,
    });
    client.live('Users', 7).subscribe(() => {});
    assert.deepEqual(asked(net)[1].zHorizontal, { query: 'q2', model: 'Users', where: { id: 7 } });
  });

  it('has the rows and what is different, at once for who comes later', async () => {
    const { net, client } = await connected();
    const live = client.live('Orders');
    const told = tellings(live);
    assert.deepEqual(told.splice(0), [[[], { kind: 'same', ...nothing }]]);
    const query = answer(net, { rows: [A, B], digest: 'd1' });
    assert.deepEqual(told.splice(0), [
      [[A, B], { kind: 'initial', ...nothing, added: [A, B] }],
      ['status', 'loading', 'live'],
    ]);
    assert.deepEqual([live.status, live.sees, live.digest], ['live', 'all', 'd1']);
    const [a, b] = live.rows;
    const changed = { ...A, name: 'z' };
    say(net, { [query]: { gone: [2], set: [[0, C], [1, changed]], digest: 'd2' } });
    assert.deepEqual(told.splice(0), [
      [[C, changed], { kind: 'change', added: [C], removed: [b], changed: [{ row: changed, before: a }] }],
    ]);
    assert.equal(live.digest, 'd2');
    const later = [];
    live.subscribe((rows, change) => later.push(rows, change));
    assert.deepEqual(later, [[C, changed], { kind: 'initial', ...nothing, added: [C, changed] }]);
    assert.deepEqual(told, []);
  });

  it('keeps rows that have not changed, and the list where none has', async () => {
    const { net, live, told, query } = await withRows();
    const before = live.getSnapshot();
    say(net, { [query]: { reset: [A, B].map((row) => structuredClone(row)), digest: 'd1' } });
    say(net, { [query]: { set: [[0, structuredClone(A)]], digest: 'd1' } });
    assert.deepEqual([told.splice(0), live.getSnapshot() === before], [[], true]);
    say(net, { [query]: { set: [[1, structuredClone(A)]], digest: 'd2' } });
    assert.deepEqual(told.splice(0), [[[B, A], { kind: 'change', ...nothing }]]);
    assert.deepEqual([live.rows[0] === before[1], live.rows[1] === before[0]], [true, true]);
    for (const tags of [['y'], [], ['x', 'y'], { 0: 'x' }, { 1: 'x' }, null, 'x', true, 1, '1', [[]], [{}], [0]]) {
      say(net, { [query]: { reset: [{ ...A, tags }] } });
      assert.deepEqual(live.rows, [{ ...A, tags }]);
    }
    say(net, { [query]: { reset: [A, C] } });
    assert.deepEqual(live.rows, [A, C]);
    assert.throws(() => live.rows.reverse(), TypeError);
  });

  it('tells nobody before all queries of a step have taken it', async () => {
    const { net, client, live, query } = await withRows();
    const other = client.live('Users');
    const seen = [];
    other.subscribe((rows, { kind }) => seen.push([kind, live.rows.length, rows.length]));
    const second = answer(net, { rows: [A], digest: 'e' });
    live.subscribe((rows, { kind }) => seen.push([kind, rows.length, other.rows.length]));
    seen.splice(0);
    say(net, { [query]: { gone: [1] }, [second]: { set: [[1, B]] }, q99: { gone: [1] }, __proto__: { gone: [2] } });
    assert.deepEqual(seen, [
      ['change', 1, 2],
      ['change', 1, 2],
    ]);
  });

  it('ends when nobody looks any more, and not between two looks', async () => {
    const { net, live, told, query } = await withRows();
    const snapshot = live.getSnapshot();
    told.unsubscribe();
    told.unsubscribe();
    // Strict mode of React.
    const again = live.subscribe(() => {});
    again();
    await Promise.resolve();
    const third = live.subscribe(() => {});
    await settle();
    assert.deepEqual([asked(net).length, asked(net, 'zUnsubscribe'), live.status], [1, [], 'live']);
    say(net, { [query]: { gone: [2] } });
    assert.equal(live.rows.length, 1);
    third();
    await nextTurn();
    assert.deepEqual(
      asked(net, 'zUnsubscribe').map(({ zHorizontal }) => zHorizontal),
      [{ query }],
    );
    assert.deepEqual([live.status, told], ['stale', [['status', 'live', 'stale']]]);
    say(net, { [query]: { gone: [1] } });
    assert.deepEqual(live.rows, [snapshot[0]]);
  });

  it('goes on with its rows when somebody looks again', async () => {
    const { net, live, told } = await withRows();
    const [a] = live.rows;
    told.unsubscribe();
    await settle();
    told.splice(0);
    live.subscribe((rows, { kind, changed }) => told.push([kind, rows.length, changed.length]));
    assert.deepEqual(told.splice(0), [['initial', 2, 0]]);
    assert.deepEqual(asked(net).at(-1).zHorizontal, { ...asked(net)[0].zHorizontal, query: 'q2', known: 'd1' });
    answer(net, { rows: [A, { ...B, name: 'bb' }], digest: 'd2' });
    assert.deepEqual(told.splice(0), [
      ['reset', 2, 1],
      ['status', 'stale', 'live'],
    ]);
    assert.equal(live.rows[0], a);
  });

  it('that nobody wants any more while it is asked for ends with the answer, or is taken by who comes', async () => {
    const { net, client } = await connected();
    const live = client.live('Orders');
    live.subscribe(() => {})();
    await settle();
    assert.deepEqual([asked(net).length, asked(net, 'zUnsubscribe').length], [1, 0]);
    const end = live.subscribe(() => {});
    assert.equal(asked(net).length, 1);
    end();
    await settle();
    const query = answer(net, { rows: [A], digest: 'd' });
    assert.deepEqual([live.rows, live.status], [[], 'loading']);
    assert.deepEqual(asked(net, 'zUnsubscribe')[0].zHorizontal, { query });
    live.subscribe(() => {});
    assert.equal(asked(net).length, 2);
    answer(net, { rows: [A], digest: 'd' });
    assert.deepEqual(live.rows, [A]);
  });

  it('stop() ends it for all at once', async () => {
    const { net, live, told, query } = await withRows();
    const loop = watch(
      (async () => {
        for await (const rows of live) told.push(rows.length);
      })(),
    );
    await settle();
    live.stop();
    live.stop();
    say(net, { [query]: { gone: [1] } });
    await settle();
    assert.deepEqual([told, loop.state, live.status], [[2, ['status', 'live', 'stale']], 'resolved', 'stale']);
    assert.equal(asked(net, 'zUnsubscribe').length, 1);
  });

  it('refuses what cannot be meant', async () => {
    const { client } = await connected();
    assert.throws(() => client.live('Orders', null, { orderBy: 'name' }), /no option orderBy; did you mean order_by\?/);
    assert.throws(() => client.live('Orders', null, { offset: 5 }), /no option offset/);
    assert.throws(() => client.live(''), /model must be a name/);
    assert.throws(() => client.live('Orders', { name: undefined }), /where\.name is undefined/);
    assert.throws(() => client.live('Orders').subscribe(), /listener is a function/);
    assert.throws(() => client.live('Orders').on('rows', () => {}), /no event rows, but status, error/);
  });
});

describe('keys', () => {
  it('of several fields are lists, in the order that the answer tells', async () => {
    const { net, client } = await connected();
    const live = client.live('Lines');
    live.subscribe(() => {});
    const rows = [
      { order: 'a', at: 1, text: 'x' },
      { order: 'a', at: 2, text: 'x' },
      { order: '1', at: 1, text: 'x' },
    ];
    const query = answer(net, { rows, key: ['order', 'at'] });
    say(net, { [query]: { gone: [['a', 2]], set: [[1, { order: 'a', at: 1, text: 'y' }]] } });
    assert.deepEqual(live.rows, [rows[2], { order: 'a', at: 1, text: 'y' }]);
  });

  for (const bigints of ['bigint', 'string']) {
    it(`beyond 2^53 are told apart, read as ${bigints}`, async () => {
      const { net, client } = await connected({ bigints });
      const live = client.live('Orders');
      live.subscribe(() => {});
      const { zHorizontal, _requestId } = asked(net)[0];
      const [one, other] = ['9007199254740993', '9007199254740992'];
      const result = `{"key":["id"],"rows":[{"id":${one}},{"id":${other}},{"id":1}],"digest":"d","sees":"all"}`;
      net.last.say(`{"result":${result},"_requestId":${_requestId}}`);
      const [, second] = live.rows;
      const say = (news) => net.last.say(`{"event":"live","step":2,"queries":{"${zHorizontal.query}":${news}}}`);
      say(`{"gone":[${one}]}`);
      assert.deepEqual(
        live.rows.map(({ id }) => String(id)),
        [other, '1'],
      );
      say(`{"set":[[1,{"id":${other}}]]}`);
      assert.equal(live.rows[1], second);
    });
  }

  it('are those of the last answer: the model may be another', async () => {
    const { net, live } = await withRows();
    await reconnect(net);
    const rows = [
      { id: 1, name: 'a' },
      { id: 1, name: 'b' },
    ];
    const query = answer(net, { rows, key: ['name'] });
    assert.deepEqual(live.rows, rows);
    say(net, { [query]: { gone: ['a'] } });
    assert.deepEqual(live.rows, rows.slice(1));
  });

  it('that are texts are no numbers, and one may be called __proto__', async () => {
    const { net, client } = await connected();
    const live = client.live('Orders');
    live.subscribe(() => {});
    const query = answer(net, { rows: [{ id: '1' }, { id: '__proto__' }, { id: '' }] });
    say(net, { [query]: { gone: [1, '__proto__'] } });
    assert.deepEqual(live.rows, [{ id: '1' }, { id: '' }]);
  });
});

describe('a connection that is lost', () => {
  it('makes the rows stale until the next one; nobody is told of rows that are the same', async () => {
    const { net, live, told } = await withRows();
    const before = live.getSnapshot();
    await reconnect(net, () => {
      assert.deepEqual(told.splice(0), [
        [before, { kind: 'same', ...nothing }],
        ['status', 'live', 'stale'],
      ]);
    });
    assert.deepEqual(asked(net).map(({ zHorizontal }) => [zHorizontal.known, zHorizontal.query]), [['d1', 'q2']]);
    say(net, { q1: { gone: [1] }, q2: { gone: [1] } });
    assert.equal(live.getSnapshot(), before);
    answer(net, { same: true, digest: 'd1' });
    assert.deepEqual(told.splice(0), [
      [before, { kind: 'same', ...nothing }],
      ['status', 'stale', 'live'],
    ]);
    assert.equal(live.getSnapshot(), before);
    say(net, { q2: { gone: [1] } });
    assert.deepEqual(live.rows, [before[1]]);
  });

  it('brings what has changed meanwhile, and keeps what has not', async () => {
    const { net, live, told } = await withRows();
    const [, b] = live.rows;
    await reconnect(net, () => told.splice(0));
    answer(net, { rows: [C, B], digest: 'd2', sees: 'own' });
    assert.deepEqual(told[0], [[C, b], { kind: 'reset', added: [C], removed: [A], changed: [] }]);
    assert.deepEqual([live.rows[1] === b, live.sees], [true, 'own']);
  });

  it('while it is asked for is no answer; the next one is asked', async () => {
    const { net, client } = make({ retryDelay: () => 10 });
    const live = client.live('Orders');
    const told = tellings(live);
    const ready = client.connect();
    net.last.accept();
    await ready;
    assert.equal(asked(net).length, 1);
    await reconnect(net);
    assert.equal(asked(net).length, 1);
    answer(net, { rows: [], digest: 'd' });
    assert.deepEqual(told, [
      [[], { kind: 'same', ...nothing }],
      [[], { kind: 'initial', ...nothing }],
      ['status', 'loading', 'live'],
    ]);
  });

  it('for good ends loops, and the next connect() has the rest live again', async () => {
    const { net, client, live, told } = await withRows();
    const loop = watch(
      (async () => {
        for await (const rows of live) told.push(rows.length);
      })(),
    );
    await settle();
    told.splice(0);
    client.disconnect();
    await settle();
    assert.deepEqual([loop.state, live.status, told.at(-1)], ['resolved', 'stale', ['status', 'live', 'stale']]);
    const ready = client.connect();
    net.last.accept();
    await ready;
    assert.equal(asked(net).at(-1).zHorizontal.known, 'd1');
    const second = watch(
      (async () => {
        for await (const rows of live) told.push(rows.length);
      })(),
    );
    net.last.drop(1008, 'put out');
    await settle();
    assert.deepEqual([second.state, second.error.code, live.status], ['rejected', 'connection_refused', 'stale']);
  });

  it('has nothing live again that nobody looks at any more', async () => {
    const { net, client, live, told } = await withRows();
    const loop = watch(client.live('Users')[Symbol.asyncIterator]().next());
    client.disconnect();
    await settle();
    assert.equal(loop.state, 'resolved');
    told.unsubscribe();
    await settle();
    const ready = client.connect();
    net.last.accept();
    await ready;
    await settle();
    assert.deepEqual(net.last.sent, []);
    live.subscribe(() => {});
    assert.equal(asked(net)[0].zHorizontal.known, 'd1');
  });
});

it('what is no news of rows is told as well, and to no loop', async () => {
  const { net, live, told, query } = await withRows();
  const iterator = live[Symbol.asyncIterator]();
  await iterator.next();
  const next = watch(iterator.next());
  say(net, { [query]: { sees: 'own' } });
  say(net, { [query]: { sees: 'own' } });
  await reconnect(net);
  answer(net, { same: true, sees: 'own' });
  await settle();
  assert.deepEqual(
    told.map(([rows, change]) => change.kind ?? rows),
    ['same', 'same', 'status', 'same', 'status'],
  );
  assert.deepEqual([live.sees, live.digest, next.state], ['own', 'd1', 'pending']);
  assert.equal(asked(net)[0].zHorizontal.known, 'd1');
});

describe('an error', () => {
  it('of the first question ends it, is told once, and the next look begins anew', async () => {
    const { net, client } = await connected();
    const live = client.live('Orders');
    const told = tellings(live);
    const ofClient = [];
    client.on('error', ({ code }) => ofClient.push(code));
    refuse(net, 'permission_denied');
    assert.deepEqual(told.splice(0), [
      [[], { kind: 'same', ...nothing }],
      [[], { kind: 'same', ...nothing }],
      ['status', 'loading', 'error'],
      ['error', 'permission_denied'],
    ]);
    assert.deepEqual([live.status, live.error.code, ofClient], ['error', 'permission_denied', []]);
    const unheard = client.live('Users');
    unheard.subscribe(() => {});
    refuse(net, 'unknown_model');
    assert.deepEqual(ofClient, ['unknown_model']);
    unheard.subscribe(() => {});
    assert.deepEqual([unheard.status, unheard.error, asked(net).length], ['loading', null, 3]);
  });

  it('ends it later as well: in an event, or when it is asked for again', async () => {
    for (const end of [
      async (net, query) => say(net, { [query]: { error: 'No more', code: 'permission_denied', final: true } }),
      async (net) => {
        await reconnect(net);
        refuse(net, 'permission_denied');
      },
    ]) {
      const { net, client, live, told, query } = await withRows();
      const ofClient = [];
      client.on('error', ({ code }) => ofClient.push(code));
      const loop = watch(
        (async () => {
          for await (const rows of live) told.push(rows.length);
        })(),
      );
      await settle();
      await end(net, query);
      await settle();
      assert.deepEqual([loop.state, loop.error?.code], ['rejected', 'permission_denied']);
      assert.deepEqual(ofClient, []);
      assert.deepEqual([live.status, live.rows.length], ['error', 2]);
      assert.deepEqual(told.splice(-1), [['error', 'permission_denied']]);
      assert.equal(told.flat().includes('permission_denied'), false);
      assert.equal(asked(net, 'zUnsubscribe').length, 0);
      await reconnect(net);
      assert.equal(asked(net).length, 0);
    }
  });

  it('that may pass is told once, and asked again after a while', async () => {
    const { net, client } = await connected({ retryDelay: () => 10 });
    const live = client.live('Orders');
    const told = tellings(live);
    told.splice(0);
    for (let time = 0; time < 3; time += 1) {
      refuse(net, 'too_busy', true);
      assert.deepEqual([live.status, live.error.code], ['loading', 'too_busy']);
      mock.timers.tick(30_000);
      await settle();
    }
    assert.deepEqual(told.filter(([what]) => what === 'error'), [['error', 'too_busy']]);
    assert.equal(asked(net).length, 4);
    answer(net, { rows: [A] });
    assert.deepEqual([live.status, live.error, live.rows], ['live', null, [A]]);
    await reconnect(net);
    told.splice(0);
    refuse(net, 'too_busy', true);
    assert.deepEqual([told.at(-1), live.status, live.rows], [['error', 'too_busy'], 'stale', [A]]);
    told.unsubscribe();
    await settle();
    mock.timers.tick(30_000);
    assert.equal(asked(net).length, 1);
    live.subscribe(() => {});
    assert.equal(asked(net).length, 2);
  });

  it('that only a loop can hear is thrown there, once, and told nowhere else', async () => {
    const { net, client } = await connected();
    const ofClient = [];
    client.on('error', ({ code }) => ofClient.push(code));
    const iterator = client.live('Orders')[Symbol.asyncIterator]();
    refuse(net, 'permission_denied');
    await assert.rejects(iterator.next(), { code: 'permission_denied' });
    assert.deepEqual(await iterator.next(), { value: undefined, done: true });
    assert.deepEqual(ofClient, []);
  });

  it('of no answer is none: it may have come too late, and is ended before it is asked again', async () => {
    const { net, client } = await connected({ heartbeat: Infinity, timeout: 1000 });
    const live = client.live('Orders');
    live.subscribe(() => {});
    net.WebSocket.answersPing = true;
    for (let time = 0; time < 40 && live.error === null; time += 1) {
      mock.timers.tick(1000);
      await settle();
    }
    assert.equal(live.error.code, 'request_timeout');
    assert.deepEqual(asked(net, 'zUnsubscribe')[0].zHorizontal, { query: 'q1' });
    mock.timers.tick(500);
    assert.deepEqual(asked(net).map(({ zHorizontal }) => zHorizontal.query), ['q1', 'q2']);
  });

  it('of a listener keeps none of the others from hearing', async () => {
    const { net, client, live, query } = await withRows();
    const errors = [];
    client.on('error', ({ code, cause }) => errors.push([code, cause.message]));
    const throws = () => {
      throw new Error('mine');
    };
    live.subscribe(throws);
    const heard = [];
    live.subscribe((rows) => heard.push(rows.length));
    say(net, { [query]: { gone: [1] } });
    assert.deepEqual(heard, [2, 1]);
    assert.deepEqual(errors, Array(2).fill(['listener_failed', 'mine']));
  });

  it('in what the server says leaves the rows as they are', async () => {
    const { net, client, live, query } = await withRows();
    const errors = [];
    client.on('error', (error) => errors.push(error.code));
    for (const news of [null, 5, 'x', { reset: 5 }, { set: [[0]] }, { set: 7 }, { set: [[0, null]] }, { gone: 3 }]) {
      say(net, { [query]: news });
    }
    assert.deepEqual([live.rows, live.status], [[A, B], 'live']);
    const broadcasts = [];
    client.onBroadcast((message) => broadcasts.push(message));
    net.last.say({ event: 'live', song: 1 });
    assert.deepEqual(broadcasts, [{ event: 'live', song: 1 }]);
  });
});

describe('a loop', () => {
  it('has the rows now and after changes, the last of several, and ends the query when it is left', async () => {
    const { net, client } = await connected();
    const live = client.live('Orders');
    const iterator = live[Symbol.asyncIterator]();
    const [first, second] = [watch(iterator.next()), watch(iterator.next())];
    const query = answer(net, { rows: [A], digest: 'd' });
    await settle();
    assert.deepEqual([first.value, second.state], [{ value: [A], done: false }, 'pending']);
    say(net, { [query]: { set: [[1, B]] } });
    say(net, { [query]: { set: [[2, C]] } });
    say(net, { [query]: { gone: [1] } });
    await settle();
    assert.deepEqual(second.value, { value: [A, B], done: false });
    assert.deepEqual(await iterator.next(), { value: [B, C], done: false });
    const pending = watch(iterator.next());
    assert.deepEqual(await iterator.return(7), { value: 7, done: true });
    await settle();
    assert.deepEqual(pending.value, { value: undefined, done: true });
    assert.deepEqual(await iterator.next(), { value: undefined, done: true });
    assert.deepEqual(asked(net, 'zUnsubscribe')[0].zHorizontal, { query });
  });

  it('begins with the rows that are there', async () => {
    const { live } = await withRows();
    for await (const rows of live) {
      assert.deepEqual(rows, [A, B]);
      break;
    }
  });
});

it('who subscribes while others are told hears nothing twice', async () => {
  const { net, client, live, query } = await withRows();
  const other = client.live('Users');
  other.subscribe(() => {});
  const second = answer(net, { rows: [A] });
  const heard = [];
  live.subscribe((_, { kind }) => {
    if (kind !== 'change') return;
    other.subscribe((rows, { kind: first, added }) => heard.push([first, rows.length, added.length]));
  });
  say(net, { [query]: { gone: [1] }, [second]: { set: [[1, B]] } });
  assert.deepEqual(heard, [['initial', 2, 2]]);
});

it('who is taken out by another, or stops it all, hears nothing more', async () => {
  const { net, client, live, query } = await withRows();
  const heard = [];
  live.subscribe((rows, { kind }) => kind === 'change' && second());
  const second = live.subscribe((rows) => heard.push(rows.length));
  say(net, { [query]: { gone: [1] } });
  assert.deepEqual(heard, [2]);
  const other = client.live('Users');
  other.subscribe(() => other.stop());
  assert.equal(asked(net).length, 1);
});
