/** Live queries over random histories: of the rows, of the connection and of those who look. */
import assert from 'node:assert/strict';
import { afterEach, beforeEach, it, mock } from 'node:test';
import { connected, settle } from './fakes.js';
import { TopicServer } from './topicserver.js';

beforeEach(() => mock.timers.enable({ apis: ['setTimeout', 'Date'] }));
afterEach(() => mock.timers.reset());

const clone = (value) => JSON.parse(JSON.stringify(value));
const keyOf = (row, key) => (key.length === 1 ? row[key[0]] : key.map((name) => row[name]));
const textOf = (row, key) => JSON.stringify(keyOf(row, key));

/** Rows that some database has, as one query finds them, and what tells a client of them. */
class Found {
  constructor(random, key) {
    this.random = random;
    this.key = key;
    this.rows = [];
    this.known = null; // what the client has
  }

  pick(count) {
    return Math.floor(this.random() * count);
  }

  row() {
    const [id, at] = [this.pick(9), this.pick(2)];
    const note = [null, 'x', 1, true, [1], { a: [1, { b: null }] }][this.pick(6)];
    return { id: this.key.length === 1 && at ? String(id) : id, at, note };
  }

  /** Something happens to some of the rows. */
  change() {
    const rows = [...this.rows];
    for (let count = this.pick(4); count >= 0; count -= 1) {
      const row = this.row();
      const at = rows.findIndex((other) => textOf(other, this.key) === textOf(row, this.key));
      if (at >= 0) rows.splice(at, 1);
      if (at < 0 || this.pick(3) > 0) rows.splice(this.pick(rows.length + 1), 0, row);
    }
    this.rows = rows;
  }

  /** The event that leads from what the client has to these rows. */
  news() {
    const before = new Map(this.known.map((row, at) => [textOf(row, this.key), { at, row }]));
    this.known = clone(this.rows);
    if (this.pick(8) === 0) return { reset: this.rows };
    const after = new Set(this.rows.map((row) => textOf(row, this.key)));
    const gone = [...before].filter(([key]) => !after.has(key)).map(([, { row }]) => keyOf(row, this.key));
    // What stays where it is: some that kept their order.
    let last = -1;
    const set = [];
    this.rows.forEach((row, at) => {
      const was = before.get(textOf(row, this.key));
      if (was && was.at > last && JSON.stringify(was.row) === JSON.stringify(row) && this.pick(6) > 0) last = was.at;
      else set.push([at, row]);
    });
    // Rows of `set` may be named in `gone` as well.
    if (set.length > 0 && this.pick(4) === 0) gone.push(keyOf(set[0][1], this.key));
    return { ...(gone.length > 0 && { gone }), ...(set.length > 0 && { set }) };
  }
}

/** One that looks: what it was told last, with what was different, has to lead to what it is told now. */
class Onlooker {
  constructor(live, found) {
    this.rows = [];
    this.told = 0;
    this.end = live.subscribe((rows, { kind, added, removed, changed }) => {
      const byKey = (some) => new Map(some.map((row) => [textOf(row, found.key), row]));
      const [before, after] = [byKey(this.rows), byKey(rows)];
      this.rows = rows;
      if (kind === 'same') assert.equal(added.length + removed.length + changed.length, 0);
      if (kind === 'initial') assert.deepEqual(added, rows);
      for (const row of removed) assert.equal(before.get(textOf(row, found.key)), row);
      for (const row of added) assert.ok(!before.has(textOf(row, found.key)));
      for (const change of changed) {
        assert.equal(before.get(textOf(change.row, found.key)), change.before);
        assert.notDeepEqual(change.row, change.before);
      }
      for (const row of removed) before.delete(textOf(row, found.key));
      for (const row of [...added, ...changed.map((change) => change.row)]) before.set(textOf(row, found.key), row);
      assert.equal(before.size, after.size);
      for (const [key, row] of after) assert.equal(before.get(key), row);
      this.told += 1;
    });
  }
}

async function history(seed, steps) {
  const random = TopicServer.random(seed);
  const pick = (count) => Math.floor(random() * count);
  const { net, client } = await connected({ retryDelay: () => 10 });
  const errors = [];
  client.on('error', (error) => errors.push(error.cause ?? error));
  const all = [['id'], ['id', 'at'], ['at', 'id']].map((key) => {
    const found = new Found(random, key);
    return { found, live: client.live('Rows'), onlookers: [], loop: { rows: null }, query: null };
  });
  const digests = new Map();
  const digestOf = (rows) => {
    const text = JSON.stringify(rows);
    if (!digests.has(text)) digests.set(text, `d${digests.size}`);
    return digests.get(text);
  };
  let heard = 0; // of what this connection has said
  /** The server reads what was said, and answers some of it. */
  const hear = (isAll) => {
    for (; heard < net.last.sent.length && (isAll || pick(3) > 0); heard += 1) {
      const { zKey, zHorizontal, _requestId } = net.last.sent[heard];
      const { query, known } = zHorizontal;
      if (zKey === 'zUnsubscribe') {
        for (const one of all) if (one.query === query) one.query = null;
        net.last.say({ result: { query }, _requestId });
        continue;
      }
      const one = all.find(({ live, query: standing }) => standing === null && live === byQuery(query));
      assert.ok(one, `${query} is asked for twice`);
      const digest = digestOf(one.found.rows);
      if (pick(10) === 0) {
        net.last.say({ error: 'Later', code: 'too_busy', retryable: true, _requestId });
        continue;
      }
      one.query = query;
      one.found.known = clone(one.found.rows);
      const what = known === digest ? { same: true } : { rows: one.found.rows };
      net.last.say({ result: { query, key: one.found.key, digest, step: 1, sees: 'all', ...what }, _requestId });
    }
  };
  // Which of them a name is of: they are told apart by their filter.
  const byQuery = (query) => {
    const { zHorizontal } = net.last.sent.find((sent) => sent.zHorizontal.query === query);
    return all[zHorizontal.where.number].live;
  };
  all.forEach((one, number) => (one.live = client.live('Rows', { number })));

  const check = () => {
    for (const { found, live, onlookers, query } of all) {
      for (const { rows } of onlookers) assert.equal(rows, live.rows);
      if (live.status === 'live' && query !== null) assert.deepEqual(clone(live.rows), found.known);
    }
  };
  const follow = async (one) => {
    for await (const rows of one.live) {
      one.loop.rows = rows;
      if (pick(6) === 0) break;
    }
    one.loop.rows = null;
    one.loop.isOn = false;
  };
  const acts = {
    look: (one) => one.onlookers.push(new Onlooker(one.live, one.found)),
    leave: (one) => one.onlookers.splice(pick(one.onlookers.length || 1), 1).forEach(({ end }) => end()),
    loop: (one) => {
      if (!one.loop.isOn) follow(one, (one.loop.isOn = true));
    },
    change: (one) => one.found.change(),
    step: () => {
      const queries = { q0: { gone: [1] } };
      const before = new Map(all.map(({ live }) => [live, live.rows]));
      for (const { query, found } of all) {
        if (query === null || pick(3) === 0) continue;
        const news = found.news();
        if (Object.keys(news).length > 0) queries[query] = { ...news, digest: digestOf(found.rows) };
      }
      net.last.say({ event: 'live', step: 2, queries });
      // What is equal is the same.
      for (const { live, found } of all) {
        const old = new Map(before.get(live).map((row) => [textOf(row, found.key), row]));
        const isSame = JSON.stringify(live.rows) === JSON.stringify(before.get(live));
        assert.equal(live.rows === before.get(live), isSame);
        for (const row of live.rows) {
          const was = old.get(textOf(row, found.key));
          assert.equal(was === row, was !== undefined && JSON.stringify(was) === JSON.stringify(row));
        }
      }
    },
    hear: () => hear(false),
    wait: () => settle(),
    pass: () => mock.timers.tick(1000),
    stop: (one) => {
      if (pick(4) > 0) return;
      one.live.stop();
      one.onlookers = [];
    },
    lose: async () => {
      if (pick(2) > 0) return;
      net.last.drop();
      heard = 0;
      for (const one of all) one.query = null;
      for (const { live } of all) assert.notEqual(live.status, 'live');
      mock.timers.tick(10);
      net.last.accept();
      await settle();
    },
  };
  const names = [...Object.keys(acts), 'change', 'change', 'step', 'step', 'step', 'hear', 'hear', 'look'];
  for (let count = 0; count < steps; count += 1) {
    await acts[names[pick(names.length)]](all[pick(all.length)]);
    check();
  }
  // In the end each that somebody looks at is as it is, and no other is there.
  for (let time = 0; time < 20; time += 1) {
    hear(true);
    await settle();
    mock.timers.tick(30_000);
  }
  hear(true);
  for (const one of all) one.found.change();
  acts.step();
  await settle();
  while (all.some(({ query, found }) => query !== null && JSON.stringify(found.known) !== JSON.stringify(found.rows))) {
    acts.step();
  }
  await settle();
  hear(true);
  for (const { live, found, onlookers, loop, query } of all) {
    const isWanted = onlookers.length > 0 || loop.isOn === true;
    assert.equal(live.status === 'live', isWanted);
    assert.equal(query !== null, isWanted);
    if (isWanted) assert.deepEqual(clone(live.rows), found.rows);
    if (loop.isOn) assert.equal(loop.rows, live.rows);
  }
  check();
  assert.deepEqual(errors.filter(({ code }) => code !== 'too_busy'), []);
  client.disconnect();
}

it('rows are as the server has them, told with what is different, and kept where they are the same', async () => {
  for (let seed = 1; seed <= 60; seed += 1) {
    try {
      await history(seed, 120);
    } catch (error) {
      error.message = `seed ${seed}: ${error.message}`;
      throw error;
    }
  }
});
