/** The table of the demo page follows what another program writes to the database, step by step, in its own elements. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import { HidableTab, isState, launchBeside, openTab } from './browser.mjs';
import { Server } from './server.mjs';

const FIELDS = `
  id:   {type: int, pk: true}
  name: {type: str, required: true}
  size: {type: int}
`;
const SCHEMA = `
Followed:
  _model: {live: true}${FIELDS}
Own:${FIELDS}`;
const MANY = 1000;
/* What a member may, from one policy to the next. */
const policy = (rights) => `
admin: {models: "*", topics: {"*": "*"}}
member: {models: {${rights}}, topics: {"*": "*"}}
`;

const place = Server.dataDirectory('live');
const database = join(place, 'rows.db');
mkdirSync(place);
writeFileSync(join(place, 'schema.yaml'), SCHEMA);
writeFileSync(join(place, 'policy.yaml'), policy('Followed: [create, read, update, delete]'));
const server = new Server(
  ...['--schema', join(place, 'schema.yaml'), '--policy', join(place, 'policy.yaml')],
  ...['--database', `sqlite:///${database}`],
);
let browser;
let tab;

/** Run SQL as another program, in one transaction. */
const sql = (...statements) =>
  execFileSync('python3', [
    ...['-c', 'import sqlite3, sys\nwith sqlite3.connect(sys.argv[1], 30) as c: [c.execute(s) for s in sys.argv[2:]]'],
    ...[database, ...statements],
  ]);
const insert = (...rows) =>
  `INSERT INTO "Followed" VALUES ${rows.map(([id, name, size]) => `(${id}, '${name}', ${size})`).join(', ')}`;
const state = (text) => tab.locator('#rows-state-text', { hasText: new RegExp(`^${text}$`) }).waitFor();
const show = async (model) => {
  await tab.locator('#model').selectOption(model);
  await tab.locator('#model-name', { hasText: model }).waitFor();
};
/** Wait until the rows in the page are these, told by their names. */
const areShown = (...names) =>
  tab.waitForFunction((wanted) => {
    const cells = [...document.querySelectorAll('#rows-body td[data-field="name"]')];
    return cells.map((cell) => cell.textContent).join() === wanted;
  }, names.join());
/** Mark the elements that there are, all cells and rows; the answer of `kept` is which rows, by name, have theirs still,
 * with the fields whose cells show something else than then. */
const mark = () =>
  tab.evaluate(() => {
    for (const element of document.querySelectorAll('#rows-body :is(tr, td[data-field])')) {
      element.shown = element.textContent;
    }
  });
const kept = () =>
  tab.evaluate(() =>
    [...document.querySelectorAll('#rows-body tr')]
      .filter((tr) => tr.shown !== undefined)
      .map((tr) => {
        const cells = [...tr.querySelectorAll('td[data-field]')].filter((cell) => cell.shown !== cell.textContent);
        return [tr.querySelector('[data-field="name"]').textContent, ...cells.map((cell) => cell.dataset.field)].join(' ');
      }),
  );

/** The page as somebody with a role has it. */
async function visit(name, role) {
  const opened = await openTab(browser);
  await opened.goto(`http://127.0.0.1:${server.port}/`);
  await opened.getByLabel('Token').fill(await Server.token(name, role));
  await opened.keyboard.press('Enter');
  await isState(opened, 'connected');
  return opened;
}

before(async () => {
  browser = await launchBeside(server.start());
  tab = await visit('alice', 'admin');
});
after(async () => {
  await browser?.close();
  await server.stop();
});
afterEach(() => assert.deepEqual(tab.complaints.splice(0), []));

describe('rows of a live model', () => {
  before(async () => {
    sql(insert([1, 'Ann', 10], [2, 'Ben', 20], [3, 'Cid', 30], [4, 'Dan', 40]));
    await show('Followed');
    await tab.getByLabel('Sort').selectOption('size ASC');
    await areShown('Ann', 'Ben', 'Cid', 'Dan');
    await state('Live');
  });

  it('are told to be so where a screen reader hears it', async () => {
    const region = tab.getByRole('status').filter({ hasText: 'Live' });
    assert.equal((await region.textContent()).trim(), 'Live 4 rows');
  });

  it('enter, change, move and leave, and the elements of the others stay', async () => {
    await mark();
    sql(insert([5, 'Eva', 35]), `UPDATE "Followed" SET name = 'Bob' WHERE id = 2`);
    await areShown('Ann', 'Bob', 'Cid', 'Eva', 'Dan');
    assert.deepEqual(await kept(), ['Ann', 'Bob name', 'Cid', 'Dan']);
    await tab.locator('#rows-count', { hasText: '5 rows' }).waitFor();
    await mark();
    sql(`UPDATE "Followed" SET size = 100 WHERE id = 1`, `DELETE FROM "Followed" WHERE id = 3`);
    await areShown('Bob', 'Eva', 'Dan', 'Ann');
    assert.deepEqual(await kept(), ['Bob', 'Eva', 'Dan', 'Ann size']);
    // Into the filter and out of it.
    await tab.getByLabel('Filter', { exact: true }).fill('{"size__lt": 38}');
    await tab.keyboard.press('Enter');
    await areShown('Bob', 'Eva');
    sql(`UPDATE "Followed" SET size = CASE id WHEN 4 THEN 5 ELSE 50 END WHERE id IN (2, 4)`);
    await areShown('Dan', 'Eva');
    await tab.getByLabel('Filter', { exact: true }).fill('');
    await areShown('Dan', 'Eva', 'Bob', 'Ann');
  });

  it('are edited as they are then, and keep the focus where they move', async () => {
    const button = tab.getByRole('button', { name: 'Edit Dan', exact: true });
    await button.focus();
    sql(`UPDATE "Followed" SET size = 200, name = 'Don' WHERE id = 4`);
    await areShown('Eva', 'Bob', 'Ann', 'Don');
    assert.equal(await tab.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Edit Don');
    await tab.keyboard.press('Enter');
    await tab.getByRole('dialog', { name: 'Edit Don' }).waitFor();
    assert.equal(await tab.getByRole('dialog').getByLabel('Size', { exact: true }).inputValue(), '200');
    // What becomes of it is told there.
    sql(`UPDATE "Followed" SET size = 300 WHERE id = 4`);
    await tab.getByText('Size: 200 → 300').waitFor();
    await tab.keyboard.press('Escape');
    await tab.keyboard.press('Enter');
    await tab.getByRole('dialog', { name: 'Edit Don' }).waitFor();
    sql(`DELETE FROM "Followed" WHERE id = 4`);
    await tab.getByText('This row is gone').waitFor();
    sql(insert([4, 'Don', 301]));
    await tab.getByText('Size: 300 → 301').waitFor();
    assert.equal(await tab.getByText('This row is gone').isVisible(), false);
    await tab.keyboard.press('Escape');
    await areShown('Eva', 'Bob', 'Ann', 'Don');
    await button.or(tab.getByRole('button', { name: 'Edit Don', exact: true })).focus();
    sql(`DELETE FROM "Followed" WHERE id = 4`);
    await areShown('Eva', 'Bob', 'Ann');
    assert.equal(await tab.evaluate(() => document.activeElement.id), 'rows-title');
  });

  it('stay where they are while a button is pressed, so that the press counts', async () => {
    const button = tab.getByRole('button', { name: 'Edit Ann', exact: true });
    await button.hover();
    await tab.mouse.down();
    sql(insert([11, 'Gil', 1], [12, 'Hal', 2], [13, 'Ida', 3]));
    await tab.locator('#rows[aria-rowcount="7"]').waitFor();
    await tab.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
    await tab.mouse.up();
    await tab.getByRole('dialog', { name: 'Edit Ann' }).waitFor();
    await tab.keyboard.press('Escape');
    await areShown('Gil', 'Hal', 'Ida', 'Eva', 'Bob', 'Ann');
    // One that is never let go keeps nothing for long.
    await button.hover();
    await tab.mouse.down();
    sql('DELETE FROM "Followed" WHERE id > 10');
    await areShown('Eva', 'Bob', 'Ann');
    await tab.mouse.move(0, 0);
    await tab.mouse.up();
  });

  it('are counted for a screen reader, as they are then and not at every step', async () => {
    const region = tab.getByRole('status').filter({ hasText: 'Live' });
    await tab.evaluate(() => {
      const found = document.getElementById('rows-found');
      window.counts = [];
      const note = () => window.counts.push([performance.now(), found.textContent]);
      new MutationObserver(note).observe(found, { childList: true });
    });
    const names = ['Eva', 'Bob', 'Ann'];
    for (let n = 0; n < 6; n += 1) {
      names.push(`P${n}`);
      sql(insert([20 + n, `P${n}`, 1000 + n]));
      await areShown(...names);
    }
    await tab.waitForFunction(() => document.getElementById('rows-found').textContent === '9 rows');
    assert.equal((await region.textContent()).trim(), 'Live 9 rows');
    const counts = await tab.evaluate(() => window.counts);
    const tooSoon = counts.filter(([time], n) => n > 0 && time - counts[n - 1][0] < 4900);
    assert.deepEqual(tooSoon, [], JSON.stringify(counts));
    sql('DELETE FROM "Followed" WHERE id >= 20');
    await areShown('Eva', 'Bob', 'Ann');
  });

  it('are those of now after a restart of the server, and what did not change was not touched', async () => {
    await mark();
    await server.stop('SIGKILL');
    await isState(tab, 'reconnecting');
    await state('Not live: the connection is away');
    await areShown('Eva', 'Bob', 'Ann');
    sql(insert([6, 'Fay', 1]), `UPDATE "Followed" SET name = 'Eve' WHERE id = 5`, `DELETE FROM "Followed" WHERE id = 1`);
    await server.start();
    await areShown('Fay', 'Eve', 'Bob');
    await state('Live');
    assert.deepEqual(await kept(), ['Eve name', 'Bob']);
    sql(`UPDATE "Followed" SET size = 0 WHERE id = 2`);
    await areShown('Bob', 'Fay', 'Eve');
  });
});

describe('rights that change while one looks', () => {
  const member = () => visit('bob', 'member');
  const allow = async (rights) => {
    const before = server.log.length;
    writeFileSync(join(place, 'policy.yaml'), policy(rights));
    process.kill(server.pid, 'SIGHUP');
    while (!/policy/.test(server.log.slice(before))) await server.said();
  };
  const heads = (guest, ...names) =>
    guest.waitForFunction(
      (wanted) => [...document.querySelectorAll('#rows-head th[data-field]')].map((th) => th.textContent).join() === wanted,
      names.join(),
    );

  it('take away what the page offers of a model, and the model, and the last one', async () => {
    const guest = await member();
    await guest.locator('#rows-body tr').first().waitFor();
    await heads(guest, 'ID', 'Name', 'Size');
    await allow('Followed: {actions: [read], fields: {hide: [size]}}, Own: [read]');
    await heads(guest, 'ID', 'Name');
    await guest.locator('#rows-body tr').first().waitFor();
    await guest.locator('#rows-state-text', { hasText: /^Live$/ }).waitFor();
    await allow('Own: [read]');
    await guest.locator('#model-name', { hasText: 'Own' }).waitFor();
    await guest.locator('#rows-empty', { hasText: 'No rows yet' }).waitFor();
    await allow('Else: [read]');
    await guest.getByText('This server tells of no models that you may use.').waitFor();
    assert.deepEqual(guest.complaints, []);
    await guest.context().close();
  });

  it('to write alone are noticed where the server refuses, and the rows stay as they are', async () => {
    await allow('Followed: [create, read, update, delete]');
    const guest = await member();
    await guest.getByLabel('Filter', { exact: true }).fill('{"size__lt": 100}');
    await guest.keyboard.press('Enter');
    const button = (name) => guest.getByRole('button', { name, exact: true });
    await button('Edit Eve').waitFor();
    assert.ok((await button('New').isEnabled()) && (await button('Delete Eve').isEnabled()));
    await allow('Followed: [read, create]');
    await guest.locator('#rows-body tr').evaluateAll((rows) => rows.forEach((row) => (row.isOld = true)));
    await button('Edit Eve').click();
    await guest.getByRole('dialog').getByLabel('Name', { exact: true }).fill('Evi');
    await guest.keyboard.press('Enter');
    await guest.locator('#record-error', { hasText: /./ }).waitFor();
    await guest.waitForFunction(() => !document.querySelector('#rows-body button:enabled'));
    await guest.keyboard.press('Escape');
    assert.ok(await button('New').isEnabled());
    assert.ok(await guest.locator('#rows-body tr').evaluateAll((rows) => rows.length > 1 && rows.every((row) => row.isOld)));
    assert.equal(await guest.getByLabel('Filter', { exact: true }).inputValue(), '{"size__lt": 100}');
    await allow('Followed: [read]');
    await button('New').click();
    await guest.getByRole('dialog').getByLabel('Name', { exact: true }).fill('New');
    await guest.keyboard.press('Enter');
    await guest.waitForFunction(() => document.getElementById('new-row').disabled);
    assert.deepEqual(guest.complaints, []);
    await guest.context().close();
  });

  it('that are refused can be asked for again', async () => {
    const filter = tab.getByLabel('Filter', { exact: true });
    await filter.fill('{"nope": 1}');
    await tab.keyboard.press('Enter');
    await tab.getByText('The rows cannot be read.').waitFor();
    await tab.getByRole('button', { name: 'Read again' }).click();
    await filter.fill('');
    await state('Live');
  });
});

describe('a thousand rows', () => {
  const numbers = `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${MANY})`;
  /** The names of the rows in view, and whether all of them fit `pattern`. */
  const allInView = (pattern) =>
    tab.waitForFunction((source) => {
      const isIn = ({ top, bottom }) => bottom > 60 && top < innerHeight;
      const seen = [...document.querySelectorAll('#rows-body tr')].filter((tr) => isIn(tr.getBoundingClientRect()));
      const full = [...document.querySelectorAll('.gap')].every((gap) => !isIn(gap.getBoundingClientRect()));
      return seen.length > 10 && full && seen.every((tr) => new RegExp(source).test(tr.textContent));
    }, pattern.source);

  before(async () => {
    sql('DELETE FROM "Followed"', `INSERT INTO "Followed" ${numbers} SELECT i, 'Person ' || i, i FROM n`);
    await tab.locator('#rows-count', { hasText: 'first 50' }).waitFor();
    for (const count of ['first 100', 'first 200', 'first 400', 'first 800', 'first 1,000']) {
      await tab.getByRole('button', { name: 'Show more' }).click();
      await tab.locator('#rows-count', { hasText: count }).waitFor();
    }
  });

  it('have elements where they are in view, which follow a change of all', async () => {
    assert.equal(await tab.getByRole('button', { name: 'Show more' }).isVisible(), false);
    await tab.evaluate(() => scrollTo(0, 0));
    await allInView(/Person/);
    sql(`UPDATE "Followed" SET name = 'Other ' || id`);
    await allInView(/Other/);
    assert.ok((await tab.locator('#rows-body tr').count()) < 60);
    const first = tab.locator('#rows-body tr').first();
    assert.deepEqual([await first.getAttribute('aria-rowindex'), await tab.locator('#rows').getAttribute('aria-rowcount')], [
      '2',
      '1001',
    ]);
  });

  it('are there wherever one scrolls, with their buttons, on a page that is as high as before', async () => {
    const height = await tab.evaluate(() => document.documentElement.scrollHeight);
    // In no frame is it less or more: what one is about to press below the rows stays.
    await tab.evaluate(() => {
      window.heights = [];
      const look = () => {
        window.heights.push(document.documentElement.scrollHeight);
        window.looking = requestAnimationFrame(look);
      };
      look();
      scrollTo(0, 1_000_000);
    });
    await tab.locator(`#rows-body [aria-rowindex="${MANY + 1}"]`).waitFor();
    await tab.evaluate(() => scrollTo(0, 0));
    await allInView(/Other/);
    const heights = await tab.evaluate(() => (cancelAnimationFrame(window.looking), window.heights));
    assert.ok(Math.max(...heights) - Math.min(...heights) < 200, `${Math.min(...heights)} to ${Math.max(...heights)}`);
    await tab.evaluate(() => scrollTo(0, 20_000));
    await allInView(/Other \d{3}/);
    const now = await tab.evaluate(() => document.documentElement.scrollHeight);
    assert.ok(Math.abs(now - height) < height / 100, `${height} has become ${now}`);
    sql(`UPDATE "Followed" SET name = 'Third ' || id`);
    await allInView(/Third \d{3}/);
    await tab.getByRole('button', { name: 'Edit Third 520', exact: true }).click();
    await tab.getByRole('dialog', { name: 'Edit Third 520' }).waitFor();
    await tab.keyboard.press('Escape');
    assert.equal(await tab.evaluate(() => document.activeElement.getAttribute('aria-label')), 'Edit Third 520');
  });

  it('become few again', async () => {
    sql('DELETE FROM "Followed" WHERE id > 3');
    await areShown('Third 1', 'Third 2', 'Third 3');
    await tab.locator('#rows-count', { hasText: '3 rows' }).waitFor();
  });
});

describe('a tab that nobody looks at', () => {
  const shown = `[...document.querySelectorAll('#rows-body td[data-field="name"]')].map((cell) => cell.textContent).join()`;
  const taken = (count) => `document.getElementById('rows').ariaRowCount === '${count + 1}'`;
  let hidden;

  before(async () => {
    sql('DELETE FROM "Followed"', insert([1, 'Ann', 10], [2, 'Ben', 20]));
    hidden = await HidableTab.open(browser, `http://127.0.0.1:${server.port}/`);
    await hidden.until(`document.querySelector('#status[data-state="disconnected"]') !== null`);
    const token = JSON.stringify(await Server.token('eve', 'admin'));
    await hidden.evaluate(`document.getElementById('token').value = ${token}; document.getElementById('connect-form').requestSubmit()`);
    await hidden.until(`${shown} === 'Ben,Ann'`);
    await hidden.evaluate(`
      window.texts = [];
      new MutationObserver((all) => texts.push(...all.filter(({ type }) => type === 'characterData')))
        .observe(document.getElementById('rows-body'), { subtree: true, childList: true, characterData: true })`);
  });

  it('has nothing drawn, and once what there is when it is shown', async () => {
    await hidden.hide();
    for (let n = 0; n < 10; n += 1) sql(`UPDATE "Followed" SET name = 'Ann ${n}' WHERE id = 1`, insert([10 + n, `P${n}`, n]));
    sql('DELETE FROM "Followed" WHERE id BETWEEN 11 AND 18');
    await hidden.until(taken(4));
    assert.equal(await hidden.evaluate(shown), 'Ben,Ann');
    await hidden.show();
    await hidden.until(`${shown} === 'P9,P0,Ben,Ann 9'`);
    assert.equal(await hidden.evaluate('texts.length'), 1);
    assert.equal(await hidden.evaluate(`document.getElementById('rows-count').textContent`), '4 rows');
  });

  it('has what there is when it was frozen, whatever has come meanwhile', async () => {
    await hidden.hide();
    await hidden.freeze();
    const numbers = `WITH RECURSIVE n(i) AS (SELECT 100 UNION ALL SELECT i + 1 FROM n WHERE i < 140)`;
    sql(`INSERT INTO "Followed" ${numbers} SELECT i, 'Many ' || i, i FROM n`);
    // More than a browser keeps for it: the server has to wait.
    for (let n = 0; n < 12; n += 1) sql(`UPDATE "Followed" SET name = '${n} ' || hex(zeroblob(12000)) WHERE id >= 100`);
    sql('DELETE FROM "Followed" WHERE id >= 100', `UPDATE "Followed" SET name = 'Bea' WHERE id = 2`);
    await hidden.thaw();
    await hidden.show();
    await hidden.until(`${shown} === 'P9,P0,Bea,Ann 9'`);
    sql(`UPDATE "Followed" SET name = 'Bel' WHERE id = 2`);
    await hidden.until(`${shown} === 'P9,P0,Bel,Ann 9'`);
    assert.equal(await hidden.evaluate(`document.getElementById('rows-state-text').textContent`), 'Live');
  });
});

describe('rows that are not kept live', () => {
  it('of a model that is not watched follow the server, say so, and are read again when asked', async () => {
    await show('Own');
    await state('Live, but for what other programs write');
    await tab.getByRole('button', { name: 'New', exact: true }).click();
    await tab.getByRole('dialog').getByLabel('Name', { exact: true }).fill('Mine');
    await tab.keyboard.press('Enter');
    await areShown('Mine');
    sql(`INSERT INTO "Own" VALUES (7, 'Theirs', 1)`);
    await tab.getByRole('button', { name: 'Read again' }).click();
    await areShown('Theirs', 'Mine');
  });

  it('because the server refuses are read, with its reason, and live when that has passed', async () => {
    const large = Array.from({ length: 4 }, (_, n) => `(${100 + n}, 'Large ' || hex(zeroblob(600000)), ${n})`);
    sql(`INSERT INTO "Own" VALUES ${large.join(', ')}`);
    await tab.getByRole('button', { name: 'Read again' }).click();
    await state('Read once, not live: Its rows come to more than 4 MiB.*');
    await tab.locator('#rows-count', { hasText: '6 rows' }).waitFor();
    assert.equal(await tab.locator('#filter-error').isVisible(), false);
    sql('DELETE FROM "Own" WHERE id > 100');
    await tab.getByRole('button', { name: 'Read again' }).click();
    await tab.locator('#rows-count', { hasText: '3 rows' }).waitFor();
    await state('Live, but for what other programs write');
  });
});
