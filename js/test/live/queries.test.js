/**
 * Live queries against a real server: ZCOMM_URL and ZCOMM_TOKEN say which. It has the models Orders (id, status, total,
 * note) and Lines (part and place are the key, text), and lets one client have 20 queries.
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { WebSocket } from 'ws';
import { createClient } from '../../zBifrost.js';

const { ZCOMM_URL: url, ZCOMM_TOKEN: token } = process.env;
assert.ok(url && token, 'set ZCOMM_URL and ZCOMM_TOKEN');

const BIG = 9007199254740993n;
const ORDER = { order_by: ['total DESC', 'id'] };

/** A client whose connections can be cut off. */
async function make(options) {
  const sockets = [];
  class Cut extends WebSocket {
    constructor(...given) {
      super(...given);
      sockets.push(this);
    }
  }
  const client = await createClient(url, token, { retryDelay: () => 1, WebSocket: Cut, ...options });
  return { client, cut: () => sockets.at(-1).terminate() };
}

/** Resolves when the rows, the status or the error are as `fits` says. */
const until = (live, fits) =>
  new Promise((resolve) => {
    const look = () => {
      if (!fits(live.rows)) return;
      resolve();
      queueMicrotask(() => stop());
    };
    const stop = live.subscribe(look);
  });
const isLive = (live) => until(live, () => live.status === 'live');

const keyOf = (row) => (row.part === undefined ? String(row.id) : `${row.part} ${row.place}`);
const textOf = (value) => JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? `${part}n` : part));

/** Follows a live query by what it is told is different; `wrong` has what does not lead to the rows that it is told. */
function onlooker(live) {
  const told = { rows: new Map(), kinds: [], wrong: [] };
  told.stop = live.subscribe((rows, { kind, added, removed, changed }) => {
    const expected = new Map(told.rows);
    for (const row of removed) if (!expected.delete(keyOf(row))) told.wrong.push(['removed', row]);
    for (const row of added) if (expected.has(keyOf(row))) told.wrong.push(['added', row]);
    for (const { row, before } of changed) {
      if (told.rows.get(keyOf(row)) !== before || textOf(row) === textOf(before)) told.wrong.push(['changed', row]);
    }
    for (const row of [...added, ...changed.map(({ row }) => row)]) expected.set(keyOf(row), row);
    told.rows = new Map(rows.map((row) => [keyOf(row), row]));
    told.kinds.push(kind);
    const isAll = told.rows.size === expected.size && told.rows.size === rows.length;
    if (!isAll || rows.some((row) => expected.get(keyOf(row)) !== row)) told.wrong.push([kind, rows]);
  });
  return told;
}

let alice;
let bob;
before(async () => {
  [alice, bob] = await Promise.all([make(), make()]);
});
beforeEach(async () => {
  await bob.client.delete('Orders', {}, { all: true });
  await bob.client.delete('Lines', {}, { all: true });
});
after(() => {
  alice.client.disconnect();
  bob.client.disconnect();
});

describe('rows', () => {
  it('enter, move, change and leave, and stay the same objects where they do not', async () => {
    const made = [];
    for (const total of [30, 10, 20]) made.push((await bob.client.create('Orders', { total, note: [total] })).id);
    const [a, b, c] = made;
    const live = alice.client.live('Orders', { status: 'new' }, { ...ORDER, fields: ['total', 'note'], limit: 3 });
    const told = onlooker(live);
    const is = (...ids) => until(live, (rows) => String(rows.map(({ id }) => id)) === String(ids));
    await is(a, c, b);
    const [first] = live.rows;
    assert.deepEqual(first, { id: a, total: 30, note: [30] });
    const { id: d } = await bob.client.create('Orders', { total: 25 });
    await is(a, d, c);
    await alice.client.update('Orders', c, { total: 40 });
    await is(c, a, d);
    await bob.client.update('Orders', d, { status: 'paid' });
    await is(c, a, b);
    await bob.client.update('Orders', b, { note: { deep: [true, null, String(BIG)] } });
    await until(live, (rows) => rows[2].note.deep);
    await bob.client.delete('Orders', c);
    await is(a, b);
    assert.equal(live.rows[0], first);
    assert.deepEqual(told.wrong, []);
    assert.deepEqual(live.rows, await alice.client.read('Orders', { status: 'new' }, { ...ORDER, fields: ['id', 'total', 'note'] }));
    told.stop();
    await until(live, () => true);
  });

  it('with a key of two fields, of which one may be beyond 2^53', async () => {
    const live = alice.client.live('Lines', null, { order_by: 'text' });
    const told = onlooker(live);
    await isLive(live);
    for (const place of [BIG, BIG - 1n, 1]) await bob.client.create('Lines', { part: 'a', place, text: `${place}` });
    await until(live, (rows) => rows.length === 3);
    await bob.client.update('Lines', { place: BIG }, { text: '0' });
    await until(live, (rows) => rows[0].text === '0');
    await bob.client.delete('Lines', { place: BIG - 1n });
    await until(live, (rows) => rows.length === 2);
    assert.deepEqual(
      live.rows.map(({ place }) => place),
      [BIG, 1],
    );
    assert.deepEqual(told.wrong, []);
    told.stop();
  });

  it('of all queries go together, and loops have the last of them', async () => {
    const [all, some] = [alice.client.live('Orders'), alice.client.live('Orders', { total__gt: 5 })];
    const seen = [];
    const stops = [all, some].map((live) => live.subscribe(() => seen.push([all.rows.length, some.rows.length])));
    await Promise.all([isLive(all), isLive(some)]);
    const loop = (async () => {
      for await (const rows of some) if (rows.length >= 30) return rows;
    })();
    await Promise.all(Array.from({ length: 30 }, () => bob.client.create('Orders', { total: 9 })));
    assert.equal(await loop, some.rows);
    // A row of the one is in the other by the time that anybody is told.
    for (const [one, other] of seen) assert.equal(one, other);
    stops.forEach((stop) => stop());
  });
});

describe('a lost connection', () => {
  it('brings what was missed, and nothing where nothing was', async () => {
    const { client, cut } = await make();
    for (const total of [1, 2]) await bob.client.create('Orders', { total });
    const live = client.live('Orders', null, ORDER);
    const told = onlooker(live);
    await isLive(live);
    const rows = live.getSnapshot();
    const statuses = [];
    live.on('status', ({ status }) => statuses.push(status));
    const away = new Promise((resolve) => client.on('close', resolve));
    cut();
    await away;
    await isLive(live);
    assert.deepEqual([statuses, live.getSnapshot() === rows], [['stale', 'live'], true]);
    const again = new Promise((resolve) => client.on('close', resolve));
    cut();
    await again;
    await bob.client.create('Orders', { total: 3 });
    await until(live, ({ length }) => length === 3);
    assert.deepEqual([live.rows[1], live.rows[2]], [rows[0], rows[1]]);
    assert.ok(live.rows[1] === rows[0] && live.rows[2] === rows[1]);
    assert.deepEqual(told.wrong, []);
    client.disconnect();
  });

  it('at any time: what is shown is right in the end', async () => {
    const { client, cut } = await make();
    const [orders, lines] = [client.live('Orders', { status: 'new' }, { ...ORDER, limit: 5 }), client.live('Lines')];
    const told = [onlooker(orders), onlooker(lines)];
    for (let n = 0; n < 120; n += 1) {
      const values = { status: n % 3 ? 'new' : 'paid', total: (n * 7) % 13 };
      const written = [bob.client.create('Orders', values)];
      if (n % 4 === 0) written.push(bob.client.delete('Orders', { total: n % 13 }));
      if (n % 5 === 0) written.push(bob.client.update('Orders', { total__lt: n % 7 }, { total: n % 11 }));
      written.push(bob.client.upsert('Lines', { part: 'ab'[n % 2], place: n % 6, text: `${n}` }, ['part', 'place']));
      await Promise.all(written);
      if (n % 17 === 5) cut();
      if (n % 13 === 5) told.push(onlooker(orders));
      if (n % 13 === 11) told.pop().stop();
    }
    const expected = await bob.client.read('Orders', { status: 'new' }, { ...ORDER, limit: 5 });
    await until(orders, (rows) => orders.status === 'live' && textOf(rows) === textOf(expected));
    const all = await bob.client.read('Lines', null, { order_by: ['part', 'place'] });
    await until(lines, (rows) => lines.status === 'live' && textOf(rows) === textOf(all));
    assert.deepEqual(told.map(({ wrong }) => wrong), told.map(() => []));
    client.disconnect();
  });
});

describe('what is refused', () => {
  it('says why, and is asked for again by who looks again', async () => {
    for (const [make_, code] of [
      [() => alice.client.live('Nothing'), 'unknown_model'],
      [() => alice.client.live('Orders', { totl: 1 }), 'unknown_field'],
      [() => alice.client.live('Orders', null, { limit: 5000 }), 'invalid'],
      [() => alice.client.live('Orders', null, { order_by: 'nothing' }), 'unknown_field'],
    ]) {
      const live = make_();
      const error = new Promise((resolve) => live.on('error', resolve));
      const stop = live.subscribe(() => {});
      assert.equal((await error).code, code);
      assert.deepEqual([live.status, live.error.code], ['error', code]);
      await assert.rejects(async () => {
        for await (const rows of live) assert.fail(String(rows));
      }, { code });
      stop();
    }
  });

  it('because of others passes when they end', async () => {
    const { client } = await make();
    const lives = Array.from({ length: 21 }, () => client.live('Orders'));
    const stops = lives.map((live) => live.subscribe(() => {}));
    const error = new Promise((resolve) => lives[20].on('error', resolve));
    assert.equal((await error).code, 'too_busy');
    assert.equal(lives[20].status, 'loading');
    stops[0]();
    await isLive(lives[20]);
    client.disconnect();
  });
});
