/** The demo page with what others bring: their data, names, rights, proxies. */
import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { connect } from 'node:net';
import { join } from 'node:path';
import { after, afterEach, before, beforeEach, describe, it } from 'node:test';
import { createClient, zBifrost } from '../../js/zBifrost.js';
import { DEADLINE, isState, launchBeside, openTab } from './browser.mjs';
import { Server, given } from './server.mjs';

const SCHEMA = `
Notes:
  id:       {type: int, pk: true}
  name:     {type: str, required: true}
  text:     {type: str}
  role:     {type: str, default: user}
  active:   {type: bool, default: true}
  verified: {type: bool}
  age:      {type: int}
  size:     {type: int}
  ratio:    {type: float}
  price:    {type: decimal}
  day:      {type: date}
  moment:   {type: datetime}
  hour:     {type: time}
  raw:      {type: bytes}
  tree:     {type: json}
Kept:
  id: {type: int, pk: true}
${['other_line_ends_stay', 'new_line_is_like_others', 'blanks_are_kept', 'line_end_in_one_line', 'cleared_is_empty']
  .concat('cleared_is_null_if_chosen', 'null_becomes_empty', 'empty_becomes_null')
  .map((name) => `  ${name}: {type: str}`)
  .join('\n')}
  no_is_not_null: {type: bool}
  null_is_not_no: {type: bool}
  all_digits: {type: int}
  number_cleared: {type: int}
  zero: {type: int}
  moment: {type: datetime}
  json: {type: json}
  json_text: {type: json}
  last: {type: str}
Odd:
  id:            {type: int, pk: true}
  hidden:        {type: str}
  data:          {type: str}
  card:          {type: str}
  error:         {type: str}
  big:           {type: int}
  price:         {type: decimal}
  ratio:         {type: float}
  tree:          {type: json}
  constructor:   {type: str}
  toString:      {type: str}
  valueOf:       {type: bool}
  values:        {type: str}
  submit:        {type: str}
  requestSubmit: {type: str}
  nodeName:      {type: str}
Snow:
  id:   {type: int, pk: true}
  name: {type: str, required: true}
Blobs:
  key:  {type: bytes, pk: true}
  name: {type: str}
Wide:
  id: {type: int, pk: true}
${Array.from({ length: 205 }, (_, n) => `  n${n}: {type: int}`).join('\n')}
`;
/* What a server may have under one name before and after it is restarted. */
const MOVED = `
Moved:
  id:   {type: int, pk: true}
  name: {type: str, required: true}
  team: {type: str}
`;
const MOVED_ON = `
Moved:
  name: {type: str, pk: true}
  id:   {type: int}
`;
const POLICY = `
admin:
  models: {"*": [create, read, update, delete]}
  functions: ["*"]
writer:
  models:
    Notes: [create]
    Odd: [read]
  functions: ["*"]
guest: {}
`;

const place = Server.dataDirectory('contact');
mkdirSync(place);
writeFileSync(join(place, 'schema.yaml'), SCHEMA + MOVED);
writeFileSync(join(place, 'policy.yaml'), POLICY);
// The operator, for whom links are, may do little here.
const data = join(given.environ.HOME, '.zolo', 'zcomm');
mkdirSync(data, { recursive: true, mode: 0o700 });
const operator = { name: 'an operator', role: 'writer', token: 'ein Schlüssel & 🔑 of the operator' };
writeFileSync(join(data, 'operator.json'), JSON.stringify(operator), { mode: 0o600 });
const server = new Server(
  ...['--schema', join(place, 'schema.yaml'), '--policy', join(place, 'policy.yaml')],
  ...['--database', `sqlite:///${given.database}`, '--functions', 'support.browser_functions'],
);
let browser;
let client;
let tokens;
let page;

before(async () => {
  browser = await launchBeside(server.start());
  const [admin, writer, guest] = await Promise.all(
    ['admin', 'writer', 'guest'].map((role) => Server.token(`a ${role}`, role)),
  );
  tokens = { admin, writer, guest };
  client = new zBifrost(`ws://127.0.0.1:${server.port}`, admin);
  await client.connect();
  page = await visit(admin);
});

after(async () => {
  client?.disconnect();
  await browser?.close();
  await server.stop();
});

/** Open the page at `home` as it is for `token`'s owner, who has signed in in this tab before. */
async function open(tab, token, home = `http://127.0.0.1:${server.port}/`) {
  await tab.addInitScript((kept) => {
    // Once: what the page does with it afterwards is its own affair.
    if (window.name) return;
    window.name = 'signed in';
    sessionStorage.setItem('zbifrost.token', kept);
  }, token);
  await tab.goto(home);
  await isState(tab, 'connected');
}

/** A tab of `token`'s owner. `page.sent` has all commands that it sends. */
async function visit(token, options) {
  const tab = await openTab(browser, options);
  tab.sent = [];
  tab.on('websocket', (socket) => socket.on('framesent', ({ payload }) => tab.sent.push(JSON.parse(payload))));
  await open(tab, token);
  return tab;
}

const dialogOf = (tab) => tab.getByRole('dialog');
const control = (name, tab = page) =>
  dialogOf(tab).locator(`[data-field="${name}"] > :is(input, textarea, select:not(.more))`);
const more = (name, tab = page) => dialogOf(tab).locator(`[data-field="${name}"] > .more`);
const closed = (tab = page) => tab.locator('dialog[open]').waitFor({ state: 'detached' });
const show = async (model, tab = page) => {
  await tab.locator('#model').selectOption(model);
  await tab.locator('#model-name', { hasText: model }).waitFor();
};
/** The writes among what `tab` has sent. */
const writes = (tab) => tab.sent.filter(({ zKey }) => /^(?:create|update|delete|upsert)_/.test(zKey));
/** What tells in a dialog that its row has become another. */
const changed = (tab, text) => dialogOf(tab).locator('[id$="-changed"]:not([hidden])', { hasText: text }).waitFor();
const GO_ON = 'Go on with these values';
const focused = (tab = page) => tab.evaluate(() => document.activeElement.id || document.activeElement.tagName);

/** Open the dialog for the row of that name, do `what` in it, save. The answer is what was sent as values. */
async function edit(name, what) {
  await page.getByRole('button', { name: `Edit ${name}`, exact: true }).click();
  page.sent.length = 0;
  await what();
  await dialogOf(page).getByRole('button', { name: 'Save', exact: true }).click();
  await closed();
  const [update] = page.sent.filter(({ zKey }) => zKey?.startsWith('update_'));
  return update?.zHorizontal.values;
}

async function create(what) {
  await page.getByRole('button', { name: 'New', exact: true }).click();
  page.sent.length = 0;
  await what();
  await dialogOf(page).getByRole('button', { name: 'Create', exact: true }).click();
  await closed();
  return page.sent.find(({ zKey }) => zKey?.startsWith('create_')).zHorizontal.values;
}

async function call(name, args = '', tab = page) {
  await tab.locator('#function-name').fill(name);
  await tab.locator('#function-args').fill(args);
  await tab.getByRole('button', { name: 'Call', exact: true }).click();
}

describe('contact_b01: what nobody touched', () => {
  const FULL = {
    name: 'kept',
    text: ' line one\nline two  ',
    role: '',
    active: null,
    verified: null,
    size: 9007199254740991,
    ratio: 0.1,
    price: '0.10000000000001',
    day: '0001-01-02',
    moment: '2024-10-15T08:30:00.123456Z',
    hour: '08:30:00.000001',
    raw: 'AAEC/w==',
    tree: { z: [1, { a: null }], a: 'x' },
  };

  it('is not sent, whatever the control makes of it, and stays', async () => {
    const before_ = await client.create('Notes', FULL);
    await show('Notes');
    assert.deepEqual(await edit('kept', () => control('age').fill('31')), { age: 31 });
    const [stored] = await client.read('Notes', before_.id);
    assert.deepEqual(stored, { ...before_, age: 31 });
    // Nothing at all was touched, or it was put back as it was.
    assert.equal(await edit('kept', () => {}), undefined);
    const undone = async () => {
      await control('text').fill('other');
      await control('text').fill(FULL.text);
      await control('active').selectOption('yes');
      await control('active').selectOption('NULL');
    };
    assert.equal(await edit('kept', undone), undefined);
  });

  it('is not sent beside what was: that goes as it was meant, to the last line end, blank and digit', async () => {
    const atEnd = async (typed, ...keys) => {
      await typed.press('Control+End');
      for (const key of keys) await typed.press(key);
    };
    // By field: what was there, what is done to its control, what is to be sent.
    const cases = {
      other_line_ends_stay: ['a\r\nb\rc\n', (typed) => atEnd(typed, 'd'), 'a\r\nb\rc\nd'],
      new_line_is_like_others: ['a\r\nb', (typed) => atEnd(typed, 'Enter', 'c'), 'a\r\nb\r\nc'],
      blanks_are_kept: [' blank ', (typed) => typed.fill('  two  '), '  two  '],
      line_end_in_one_line: ['one', (typed) => atEnd(typed, 'Shift+Enter', 't'), 'one\nt'],
      cleared_is_empty: ['gone', (typed) => typed.fill(''), ''],
      cleared_is_null_if_chosen: [
        'gone',
        async (typed, choice) => {
          await typed.fill('');
          await choice.selectOption('NULL');
        },
        null,
      ],
      null_becomes_empty: [null, (_, choice) => choice.selectOption('empty text'), ''],
      empty_becomes_null: ['', (_, choice) => choice.selectOption('NULL'), null],
      no_is_not_null: [null, (typed) => typed.selectOption('no'), false],
      null_is_not_no: [false, (typed) => typed.selectOption('NULL'), null],
      all_digits: [1, (typed) => typed.fill('9007199254740991'), 9007199254740991],
      number_cleared: [5, (typed) => typed.fill(''), null],
      zero: [null, (typed) => typed.fill('0'), 0],
      moment: [
        '2024-10-15T08:30:00.123456Z',
        (typed) => atEnd(typed, 'ArrowLeft', 'Backspace', '7'),
        '2024-10-15T08:30:00.123457Z',
      ],
      json: [
        { a: 1 },
        (typed) => typed.fill('{"__proto__": {"b": null}, "a": 1.50}'),
        JSON.parse('{"__proto__": {"b": null}, "a": 1.5}'),
      ],
      json_text: [null, (typed) => typed.fill('""'), ''],
    };
    const values = (n) => Object.fromEntries(Object.entries(cases).map(([name, each]) => [name, each[n]]));
    const { id } = await client.create('Kept', values(0));
    await show('Kept');
    const sent = await edit(String(id), async () => {
      for (const [name, [, change]] of Object.entries(cases)) await change(control(name), more(name));
    });
    assert.deepEqual(sent, values(2));
    assert.deepEqual((await client.read('Kept', id))[0], { id, ...values(2), last: null });
    await show('Notes');
  });

  it('is left out of a new row, and what is chosen is not', async () => {
    const values = await create(async () => {
      await control('name').fill('fresh');
      await more('role').selectOption('empty text');
      await more('text').selectOption('NULL');
      await control('active').selectOption('no');
    });
    assert.deepEqual(values, { name: 'fresh', role: '', text: null, active: false });
    assert.deepEqual(await create(() => control('name').fill('defaults')), { name: 'defaults' });
    const [row] = await client.read('Notes', { name: 'defaults' });
    assert.deepEqual([row.role, row.active, row.verified], ['user', true, null]);
    await client.delete('Notes', { name: ['fresh', 'defaults'] });
  });

  it('is one row, however often the button is pressed', async () => {
    await page.getByRole('button', { name: 'New', exact: true }).click();
    await control('name').fill('pressed twice');
    await page.evaluate(() => {
      const form = document.getElementById('record-form');
      for (let n = 0; n < 3; n += 1) form.requestSubmit(document.getElementById('record-save'));
    });
    await closed();
    assert.equal((await client.read('Notes', { name: 'pressed twice' })).length, 1);
    await client.delete('Notes', { name: 'pressed twice' });
  });

  it('comes back from a prompt as it was proposed, and a text may have all its characters', async () => {
    await call('letter');
    await dialogOf(page).getByRole('button', { name: 'Answer' }).click();
    await page.locator('#function-result pre', { hasText: 'Dear' }).waitFor();
    assert.equal(
      await page.locator('#function-result pre').evaluate((pre) => pre.textContent),
      'Dear you,\r\n  hello.  ',
    );
    await call('three');
    await dialogOf(page).getByRole('textbox').fill('😀😀😀');
    await page.keyboard.press('Enter');
    await page.locator('#function-result pre', { hasText: '😀😀😀' }).waitFor();
  });
});

describe('contact_b02: names of others', () => {
  it('style nothing, and every value stands under its own heading', async () => {
    await client.create('Odd', {
      ...{ hidden: 'hidden text', data: 'some data', card: 'a card', error: 'no error', big: 15, price: '1.5' },
      ...{ ratio: 2.5, tree: { a: 1 }, constructor: 'built', toString: 'a text', valueOf: true, values: 'v' },
      ...{ submit: 's', requestSubmit: 'r', nodeName: 'n' },
    });
    await show('Odd');
    await page.locator('#rows-body tr').waitFor();
    const places = await page.evaluate(() => {
      const box = (element) => {
        const { left, width, height } = element.getBoundingClientRect();
        return { field: element.dataset.field, left: Math.round(left), width: Math.round(width), shown: height > 0 };
      };
      return [document.querySelector('#rows-head tr'), document.querySelector('#rows-body tr')].map((row) =>
        [...row.querySelectorAll('[data-field]')].map(box),
      );
    });
    assert.equal(places[0].length, 16);
    assert.deepEqual(places[0], places[1]);
    assert.ok(places[0].every(({ shown, width }) => shown && width > 10));
    const [own, others] = await page.evaluate(() => {
      const names = new Set(
        [...document.querySelectorAll('#rows [data-field]')].map((element) => element.dataset.field),
      );
      const classes = [...document.querySelectorAll('[class]')].flatMap((element) => [...element.classList]);
      const ids = [...document.querySelectorAll('[id], [name]')].flatMap(({ id, name }) => [id, name]);
      return [[...names].length, ids.filter((id) => names.has(id)).concat(classes.filter((name) => names.has(name)))];
    });
    assert.equal(own, 16);
    // Those that the page itself has.
    assert.deepEqual(new Set(others), new Set(['hidden', 'data', 'card', 'error']));
  });

  it('are read, written and saved like any others', async () => {
    const values = await edit('1', async () => {
      for (const name of ['constructor', 'toString', 'values', 'submit', 'requestSubmit', 'nodeName', 'hidden'])
        await control(name).fill(`new ${name}`);
      await control('valueOf').selectOption('no');
    });
    const wanted = Object.fromEntries(
      ['hidden', 'constructor', 'toString', 'values', 'submit', 'requestSubmit', 'nodeName'].map((name) => [
        name,
        `new ${name}`,
      ]),
    );
    assert.deepEqual(values, { ...wanted, valueOf: false });
    await page.locator('td[data-field="constructor"]', { hasText: 'new constructor' }).waitFor();
  });

  it('contact_a41: of functions are told from what every object has', async () => {
    for (const name of ['constructor', 'toString', 'hasOwnProperty', '__proto__']) {
      await page.locator('#function-name').fill(name);
      const about = { constructor: 'A name that every JavaScript object has.', toString: 'Another one.' };
      assert.equal(await page.locator('#function-about').textContent(), Object.hasOwn(about, name) ? about[name] : '');
    }
    await call('constructor', '7');
    await page.locator('#function-result pre', { hasText: '7' }).waitFor();
    assert.deepEqual(page.complaints.splice(0), []);
  });
});

describe('contact_b01: numbers beyond 2^53', () => {
  const snow = async () =>
    (await client.read('Snow', null, { order_by: 'id' })).map(({ id, name }) => [String(id), name]);

  it('name the row that they stand in, and no neighbour', async () => {
    await show('Snow');
    await page.locator('td[data-field="name"]', { hasText: 'last' }).waitFor();
    const ids = await page.locator('td[data-field="id"]').allTextContents();
    assert.deepEqual(ids, ['9223372036854775807', '9007199254740993', '9007199254740992']);
    assert.deepEqual(await edit('odd', () => control('name').fill('changed')), { name: 'changed' });
    const others = [
      ['9007199254740992', 'even'],
      ['9223372036854775807', 'last'],
    ];
    assert.deepEqual(await snow(), [others[0], ['9007199254740993', 'changed'], others[1]]);
    await page.locator('#filter').fill('{"id": 9007199254740993}');
    await page.locator('#filter').press('Enter');
    await page.locator('#rows-count', { hasText: '1 row' }).waitFor();
    assert.deepEqual(await page.locator('td[data-field="name"]').allTextContents(), ['changed']);
    await page.locator('#raw').fill('{"zKey": "ping", "zHorizontal": [9007199254740993, -9223372036854775808, 0.5]}');
    await page.locator('#raw').press('Control+Enter');
    await page.locator('#raw-result', { hasText: '9007199254740993,' }).waitFor();
    assert.match(await page.locator('#raw-result').textContent(), /9007199254740993,\s+-9223372036854775808,\s+0\.5/);
    await page.locator('#raw').fill('{"zKey": "ping", "zHorizontal": 1e400}');
    await page.locator('#raw').press('Control+Enter');
    await page.locator('#raw-result .bad', { hasText: '1e400 is beyond' }).waitFor();
    await page.getByRole('button', { name: 'Delete changed' }).click();
    await dialogOf(page).getByRole('button', { name: 'Delete', exact: true }).click();
    await closed();
    assert.deepEqual(await snow(), others);
    await client.create('Snow', { name: 'odd' });
    await page.locator('#filter').fill('');
  });

  it('are written to the last digit, in columns and inside of JSON', async () => {
    const { id } = await client.create('Notes', { name: 'digits', tree: { kept: 9007199254740993n, other: 1 } });
    await show('Notes');
    await edit('digits', async () => {
      await control('size').fill('9223372036854775807');
      await control('tree').fill((await control('tree').inputValue()).replace('"other": 1', '"other": 2'));
    });
    const [row] = await client.read('Notes', id);
    assert.deepEqual([row.size, row.tree], [9223372036854775807n, { kept: 9007199254740993n, other: 2 }]);
    assert.deepEqual(page.complaints.splice(0), []);
  });
});

describe('contact: a form while something else happens', () => {
  after(() => client.delete('Notes', { name__startswith: 'meanwhile' }));

  it('is one row when the answer is lost and the button is pressed again', async () => {
    const tab = await openTab(browser);
    const lost = [];
    await tab.routeWebSocket(/.*/, (socket) => {
      const behind = socket.connectToServer();
      const dropped = new Set();
      socket.onMessage((text) => {
        const { zKey, _requestId } = JSON.parse(text);
        if (zKey.startsWith('create_') && lost.length === 0) dropped.add(_requestId);
        behind.send(text);
      });
      behind.onMessage((text) => {
        if (!dropped.has(JSON.parse(text)._requestId)) socket.send(text);
        else {
          lost.push(text);
          socket.close({ code: 1011 });
          behind.close();
        }
      });
    });
    await open(tab, tokens.admin);
    await show('Notes', tab);
    await tab.getByRole('button', { name: 'New', exact: true }).click();
    await control('name', tab).fill('meanwhile lost');
    const press = dialogOf(tab).getByRole('button', { name: 'Create', exact: true });
    await press.click();
    await dialogOf(tab).locator('#record-error', { hasText: 'connection' }).waitFor();
    await isState(tab, 'connected');
    await press.click();
    await closed(tab);
    assert.equal(lost.length, 1);
    assert.equal((await client.read('Notes', { name: 'meanwhile lost' })).length, 1);
    // Another row with the same values is another row.
    await tab.getByRole('button', { name: 'New', exact: true }).click();
    await control('name', tab).fill('meanwhile lost');
    await press.click();
    await closed(tab);
    assert.equal((await client.read('Notes', { name: 'meanwhile lost' })).length, 2);
    assert.deepEqual(tab.complaints, []);
    await tab.context().close();
  });

  it('keeps what is typed over a restart of the server, and sends that alone; what another wrote stays', async () => {
    const { id } = await client.create('Notes', { name: 'meanwhile edited', text: 'first', size: 1 });
    await show('Notes');
    await page.getByRole('button', { name: 'Edit meanwhile edited', exact: true }).click();
    await control('text').fill('mine\nof two lines');
    await server.stop('SIGKILL');
    await isState(page, 'reconnecting');
    await dialogOf(page).getByRole('button', { name: 'Save', exact: true }).click();
    await dialogOf(page).locator('#record-error', { hasText: 'Not connected' }).waitFor();
    await server.start();
    await isState(page, 'connected');
    await client.connect();
    await client.update('Notes', id, { size: 2n ** 63n - 1n, price: '12345678901234567890.123456789012345678' });
    page.sent.length = 0;
    // What another wrote is told before anything is saved.
    await dialogOf(page).getByRole('button', { name: 'Save', exact: true }).click();
    await changed(page, 'Size: 1 → 9223372036854775807');
    assert.deepEqual(writes(page), []);
    await dialogOf(page).getByRole('button', { name: GO_ON }).click();
    await dialogOf(page).getByRole('button', { name: 'Save', exact: true }).click();
    await closed();
    const sent = writes(page);
    assert.deepEqual(
      sent.map(({ zHorizontal }) => zHorizontal.values),
      [{ text: 'mine\nof two lines' }],
    );
    assert.equal(sent[0].zHorizontal.where.id, id);
    const [row] = await client.read('Notes', id);
    assert.deepEqual(
      [row.text, row.size, row.price],
      ['mine\nof two lines', 2n ** 63n - 1n, '12345678901234567890.123456789012345678'],
    );
    assert.deepEqual(page.complaints.splice(0), []);
  });

  it('refuses in JSON what a number cannot hold, and keeps every digit of what it can', async () => {
    const { id } = await client.create('Notes', { name: 'meanwhile exact', tree: { a: 0.1, b: 1e22 } });
    await show('Notes');
    await page.getByRole('button', { name: 'Edit meanwhile exact', exact: true }).click();
    const save = dialogOf(page).getByRole('button', { name: 'Save', exact: true });
    for (const typed of ['0.12345678901234567890123', '12345678901234567890.12', '1e-400', '-1e400']) {
      await control('tree').fill(`{"a": ${typed}}`);
      page.sent.length = 0;
      await save.click();
      await dialogOf(page)
        .locator('[data-field="tree"] .error', { hasText: /than a number can hold|what a number can hold/ })
        .waitFor();
      assert.deepEqual(writes(page), []);
    }
    await control('tree').fill('{"a": 1.50, "b": 1e22, "c": 5e-324, "d": -0.10, "e": 12345678901234567890}');
    await save.click();
    await closed();
    const [{ tree }] = await client.read('Notes', id);
    assert.deepEqual(tree, { a: 1.5, b: 1e22, c: 5e-324, d: -0.1, e: 12345678901234567890n });
    assert.deepEqual(page.complaints.splice(0), []);
  });

  it('in a tab that slept goes on: its calls are answered, its rows are those of now', async () => {
    const tab = await visit(tokens.admin);
    await show('Notes', tab);
    const devtools = await tab.context().newCDPSession(tab);
    await tab.getByRole('button', { name: 'New', exact: true }).click();
    await control('name', tab).fill('meanwhile slept');
    await devtools.send('Page.setWebLifecycleState', { state: 'frozen' });
    await client.create('Notes', { name: 'meanwhile of another' });
    await devtools.send('Page.setWebLifecycleState', { state: 'active' });
    await dialogOf(tab).getByRole('button', { name: 'Create', exact: true }).click();
    await closed(tab);
    for (const name of ['meanwhile slept', 'meanwhile of another']) {
      await tab.locator('td[data-field="name"]', { hasText: name }).waitFor();
    }
    await isState(tab, 'connected');
    assert.deepEqual(tab.complaints, []);
    await tab.context().close();
  });

  it('leaves nothing in the form of the next visitor, nor at the server when the tab is closed', async () => {
    const tab = await visit(tokens.admin);
    await show('Notes', tab);
    await tab.getByRole('button', { name: 'New', exact: true }).click();
    await control('name', tab).fill('meanwhile a draft');
    await tab.evaluate(() => document.getElementById('disconnect').click());
    await isState(tab, 'disconnected');
    await closed(tab);
    await tab.locator('#token').fill(tokens.admin);
    await tab.keyboard.press('Enter');
    await isState(tab, 'connected');
    await show('Notes', tab);
    await tab.getByRole('button', { name: 'New', exact: true }).click();
    assert.equal(await control('name', tab).inputValue(), '');
    await tab.keyboard.press('Escape');
    // In the middle of a call that asks.
    await call('confirm', '', tab);
    await dialogOf(tab).waitFor();
    await tab.context().close();
    assert.equal((await client.read('Notes', { name: 'meanwhile a draft' })).length, 0);
    assert.equal(await client.send({ zKey: 'ping', zHorizontal: 1 }), 1);
  });
});

describe('contact: the row of a dialog', () => {
  let tab;
  // Done once before a write of `tab` is passed on to the server, and the answer to it is lost if this is true; if it is an
  // error, that is the answer.
  let before_ = null;
  const pressed = (name) => dialogOf(tab).getByRole('button', { name, exact: true });
  const act = (what, name) => tab.getByRole('button', { name: `${what} ${name}`, exact: true }).click();
  const sql = (...statements) =>
    execFileSync('python3', [
      ...['-c', 'import sqlite3, sys\nwith sqlite3.connect(sys.argv[1]) as c: [c.execute(s) for s in sys.argv[2:]]'],
      ...[given.database, ...statements],
    ]);
  const rowNamed = async (name) => (await client.read('Notes', { name }))[0];
  /** Wait until the write is sent before which something is to be done. */
  const isSent = async () => {
    const until = Date.now() + DEADLINE;
    while (before_ !== null) {
      assert.ok(Date.now() < until, 'no write was sent');
      await new Promise(setImmediate);
    }
  };

  before(async () => {
    tab = await openTab(browser);
    tab.sent = [];
    await tab.routeWebSocket(/.*/, (socket) => {
      const behind = socket.connectToServer();
      const dropped = new Map();
      socket.onMessage(async (text) => {
        const message = JSON.parse(text);
        tab.sent.push(message);
        if (before_ !== null && writes({ sent: [message] }).length > 0) {
          const act_ = before_;
          before_ = null;
          const end = await act_();
          if (end) dropped.set(message._requestId, end);
        }
        behind.send(text);
      });
      behind.onMessage((text) => {
        const { _requestId } = JSON.parse(text);
        const end = dropped.get(_requestId);
        if (end === undefined) socket.send(text);
        else if (end !== true) socket.send(JSON.stringify({ ...end, _requestId }));
        else {
          socket.close({ code: 1011 });
          behind.close();
        }
      });
    });
    await open(tab, tokens.admin);
    await show('Notes', tab);
  });
  after(async () => {
    await client.delete('Notes', { name__startswith: 'shown' });
    await tab.context().close();
  });
  beforeEach(() => {
    tab.sent.length = 0;
  });
  afterEach(() => assert.deepEqual(tab.complaints.splice(0), []));

  it('that becomes another one is told, and not deleted before the visitor goes on with it', async () => {
    const { id } = await client.create('Notes', { name: 'shown Carl' });
    await act('Delete', 'shown Carl');
    await client.update('Notes', id, { name: 'shown Dora', age: 5 });
    await changed(tab, 'Name: shown Carl → shown Dora');
    // Without looking: however often.
    for (let n = 0; n < 3; n += 1) await pressed('Delete').click();
    assert.deepEqual(writes(tab), []);
    await pressed(GO_ON).click();
    await dialogOf(tab).getByText('shown Dora will be gone').waitFor();
    // Another change after that is told too, also one in the moment before the write.
    before_ = () => client.update('Notes', id, { name: 'shown Emil' }).then(() => false);
    await pressed('Delete').click();
    await changed(tab, 'Name: shown Dora → shown Emil');
    assert.equal((await client.read('Notes', id))[0].name, 'shown Emil');
    await pressed(GO_ON).click();
    await pressed('Delete').click();
    await closed(tab);
    assert.deepEqual(await client.read('Notes', id), []);
  });

  it('that becomes another one in the moment before the write is not edited', async () => {
    const { id } = await client.create('Notes', { name: 'shown Fred', text: 'a', tree: { a: 1 } });
    await act('Edit', 'shown Fred');
    await control('text', tab).fill('typed');
    before_ = () => client.update('Notes', id, { name: 'shown Gina', ratio: 0.5 }).then(() => false);
    await pressed('Save').click();
    await changed(tab, 'Name: shown Fred → shown Gina');
    assert.equal((await rowNamed('shown Gina')).text, 'a');
    await pressed(GO_ON).click();
    assert.equal(await tab.locator('#record-title').textContent(), 'Edit shown Gina');
    assert.deepEqual(await Promise.all(['text', 'name', 'ratio'].map((name) => control(name, tab).inputValue())), [
      'typed',
      'shown Gina',
      '0.5',
    ]);
    // A filter does not compare json: it is looked at before.
    await client.update('Notes', id, { tree: { a: 2 } });
    await changed(tab, 'Tree: {"a":1} → {"a":2}');
    await pressed(GO_ON).click();
    tab.sent.length = 0;
    await pressed('Save').click();
    await closed(tab);
    assert.deepEqual(
      writes(tab).map(({ zHorizontal }) => zHorizontal.values),
      [{ text: 'typed' }],
    );
    const { text, name, ratio, tree } = await rowNamed('shown Gina');
    assert.deepEqual([text, name, ratio, tree], ['typed', 'shown Gina', 0.5, { a: 2 }]);
  });

  it('that is deleted says so in the dialog, and there is no other to be changed', async () => {
    const { id } = await client.create('Notes', { name: 'shown Hugo' });
    await act('Edit', 'shown Hugo');
    await client.delete('Notes', id);
    await dialogOf(tab).getByText('This row is gone').waitFor();
    await control('text', tab).fill('typed');
    await pressed('Save').click();
    await dialogOf(tab).getByText('This row is gone').waitFor();
    assert.deepEqual(writes(tab), []);
    await pressed('Cancel').click();
    await closed(tab);
  });

  it('that another changes all the time can be saved: what was told twice may become anything', async () => {
    const { id } = await client.create('Notes', { name: 'shown Ida', size: 0 });
    let size = 0;
    const tick = () => client.update('Notes', id, { size: (size += 1) }).then(() => false);
    await act('Edit', 'shown Ida');
    await control('text', tab).fill('typed');
    for (const text of ['Size: 0 → 1', 'Again: if you go on, Size may become anything.']) {
      before_ = tick;
      await pressed('Save').click();
      await changed(tab, text);
      await pressed(GO_ON).click();
    }
    before_ = tick;
    await pressed('Save').click();
    await closed(tab);
    const row = await rowNamed('shown Ida');
    assert.deepEqual([row.text, row.size], ['typed', 3]);
  });

  it('can be saved whatever it holds: more than a filter takes, and what a filter does not find', async () => {
    await client.create('Wide', Object.fromEntries(Array.from({ length: 205 }, (_, n) => [`n${n}`, n])));
    const long = '€'.repeat(180_000);
    await client.create('Notes', { name: 'shown long', text: long, raw: 'AAEC/w==', ratio: 1e300, price: '0.10' });
    // Not UTF-8, an infinite number, a day that is none.
    sql(
      `INSERT INTO "Notes" (name, text, active, ratio, day) VALUES ('shown odd', CAST(X'ff61' AS TEXT), 1, 9e999, 'soon')`,
    );
    await show('Wide', tab);
    await act('Edit', '1');
    await control('n204', tab).fill('7');
    await pressed('Save').click();
    await closed(tab);
    assert.equal((await client.read('Wide', 1))[0].n204, 7);
    await show('Notes', tab);
    await act('Edit', 'shown long');
    await control('text', tab).press('Control+End');
    await control('text', tab).press('z');
    await pressed('Save').click();
    await closed(tab);
    assert.equal((await rowNamed('shown long')).text, `${long}z`);
    await act('Edit', 'shown odd');
    await control('age', tab).fill('7');
    await pressed('Save').click();
    await closed(tab);
    assert.equal((await rowNamed('shown odd')).age, 7);
    // Of those that are found, none is left out.
    const { where } = writes(tab).at(-1).zHorizontal;
    assert.deepEqual([where.name, where.active, where.age, 'text' in where], ['shown odd', true, null, false]);
    await client.delete('Notes', { name: 'shown long' });
  });

  it('is saved once when the answer is lost, and whoever closed the dialog gets a word', async () => {
    await client.create('Notes', { name: 'shown Jan', age: 1 });
    const row = tab.locator('#rows-body tr', { hasText: 'shown Jan' });
    const ageOfJan = (age) => row.locator('td[data-field="age"]', { hasText: String(age) });
    const lose = async (age) => {
      await act('Edit', 'shown Jan');
      await control('age', tab).fill(age);
      before_ = () => true;
    };
    await lose('2');
    await pressed('Save').click();
    await dialogOf(tab).locator('#record-error', { hasText: 'onnection' }).waitFor();
    await isState(tab, 'connected');
    // The row has become what was typed: that is nothing to tell.
    await ageOfJan(2).waitFor();
    assert.equal((await rowNamed('shown Jan')).age, 2);
    await pressed('Save').click();
    await closed(tab);
    await lose('3');
    let release;
    const held = new Promise((resolve) => {
      release = resolve;
    });
    before_ = () => held.then(() => true);
    await pressed('Save').click();
    await tab.waitForFunction(() => document.querySelector('#record[open]') !== null);
    await isSent();
    await tab.keyboard.press('Escape');
    await closed(tab);
    release();
    await tab.getByRole('log').getByText('shown Jan may have been saved, or not').waitFor();
    await isState(tab, 'connected');
    await ageOfJan(3).waitFor();
  });

  it('contact: of a write that may have happened is not said that it did not, whatever is to be retried', async () => {
    const { id } = await client.create('Notes', { name: 'shown Kim', age: 0 });
    const feed = tab.getByRole('log');
    const row = tab.locator('#rows-body tr', { hasText: 'shown Kim' });
    let age = 0;
    const answered = async (open_, button, error) => {
      await act(open_, 'shown Kim');
      if (open_ === 'Edit') await control('age', tab).fill(String(age + 1));
      let release;
      const held = new Promise((resolve) => {
        release = resolve;
      });
      before_ = () => held.then(() => error);
      tab.sent.length = 0;
      await pressed(button).click();
      await isSent();
      await tab.keyboard.press('Escape');
      await closed(tab);
      release();
    };
    for (const code of ['timeout', 'unavailable', 'internal', 'too_busy', 'of_a_host', 'conflict']) {
      await answered('Edit', 'Save', { error: `said ${code}`, code, retryable: false });
      const end = code === 'conflict' ? `was not saved: said ${code}` : `may have been saved, or not: said ${code}`;
      await feed.getByText(`shown Kim ${end}`).waitFor();
      // No filter is to blame, so that none is tried.
      const tried = tab.sent.filter(({ zKey, zHorizontal }) => zKey === 'read_Notes' && zHorizontal.limit === 1);
      if (!['internal', 'of_a_host'].includes(code)) assert.deepEqual(tried, [], code);
      age += 1;
      await row.locator('td[data-field="age"]', { hasText: new RegExp(`^${age}$`) }).waitFor();
    }
    await answered('Delete', 'Delete', { error: 'said gone', code: 'unavailable', retryable: false });
    await feed.getByText('shown Kim may have been deleted, or not: said gone').waitFor();
    assert.deepEqual(await client.read('Notes', id), []);
  });

  it('contact: in the dialog of a write that may have happened nothing says that it did not', async () => {
    const { id } = await client.create('Notes', { name: 'shown Lea', age: 1 });
    await act('Edit', 'shown Lea');
    await control('age', tab).fill('2');
    before_ = async () => ({ error: 'said late', code: 'timeout', retryable: false });
    await pressed('Save').click();
    const doubt = 'said late. What was sent before may have been saved, or not.';
    await dialogOf(tab).locator('#record-error', { hasText: doubt }).waitFor();
    // As a trigger does it with the write.
    await client.update('Notes', id, { size: 1 });
    await changed(tab, 'It may be your own change, whose answer was lost');
    await changed(tab, 'Age: 1 → 2');
    assert.doesNotMatch(await tab.locator('#record').textContent(), /othing was/);
    await pressed(GO_ON).click();
    before_ = async () => ({ error: 'said no', code: 'conflict', retryable: false });
    await pressed('Save').click();
    await dialogOf(tab).locator('#record-error', { hasText: 'said no. What was sent before' }).waitFor();
    await pressed('Cancel').click();
    await act('Delete', 'shown Lea');
    before_ = async () => ({ error: 'said gone', code: 'unavailable', retryable: false });
    await pressed('Delete').click();
    // That the row is gone may come after the answer.
    const gone = /(said gone|This row is gone: .*)\. What was sent before may have deleted it, or not\./;
    await dialogOf(tab).getByText(gone).waitFor();
    await pressed('Cancel').click();
    await closed(tab);
  });

  it('is no row of another server: what was opened before is withdrawn, and rows that cannot be read go', async () => {
    await client.create('Moved', { name: 'Alice', team: 'b' });
    await client.create('Moved', { name: 'Bob', team: 'a' });
    await show('Moved', tab);
    await tab.getByLabel('Sort').selectOption('team ASC');
    await tab.locator('#rows-body tr:first-child td[data-field="name"]', { hasText: 'Bob' }).waitFor();
    await act('Delete', 'Alice');
    await server.stop('SIGKILL');
    await isState(tab, 'reconnecting');
    await pressed('Delete').click();
    await dialogOf(tab).locator('#removal-error', { hasText: 'Not connected' }).waitFor();
    sql(
      'DROP TABLE "Moved"',
      'CREATE TABLE "Moved" (name TEXT PRIMARY KEY, id INTEGER)',
      `INSERT INTO "Moved" VALUES ('Xaver', 1), ('Zoe', 1)`,
    );
    writeFileSync(join(place, 'schema.yaml'), SCHEMA + MOVED_ON);
    await server.start();
    // A press in the moment before the server has told what it has waits for that.
    const early = tab.evaluate(async () => {
      while (document.querySelector('#status').dataset.state !== 'connected') {
        document.querySelector('#retry:not([hidden])')?.click();
        await new Promise((resolve) => setTimeout(resolve, 50));
      }
      document.getElementById('removal-form').requestSubmit();
    });
    await Promise.all([early, isState(page, 'connected'), client.connect()]);
    await tab.locator('td[data-field="name"]', { hasText: 'Zoe' }).waitFor();
    assert.equal(await tab.locator('#sort').inputValue(), 'name DESC');
    for (let n = 0; n < 2; n += 1) {
      await dialogOf(tab).locator('#removal-error', { hasText: 'The fields of Moved are others' }).waitFor();
      await pressed('Delete').click();
    }
    await dialogOf(tab).locator('#removal-error', { hasText: 'The fields of Moved are others' }).waitFor();
    assert.deepEqual(writes(tab), []);
    assert.equal((await client.read('Moved')).length, 2);
    await pressed('Cancel').click();
    await closed(tab);
    await show('Notes', tab);
  });

  it('of a model that is not described keeps what was typed beside what another wrote', async () => {
    const other = await openTab(browser);
    other.sent = [];
    await other.routeWebSocket(/.*/, (socket) => {
      const behind = socket.connectToServer();
      socket.onMessage((text) => {
        other.sent.push(JSON.parse(text));
        behind.send(text);
      });
      behind.onMessage((text) => {
        const message = JSON.parse(text);
        if (message.result?.models) message.result.models = {};
        socket.send(JSON.stringify(message));
      });
    });
    const { id } = await client.create('Notes', { name: 'shown Lea', tree: { a: [1] } });
    await open(other, tokens.admin);
    await other.locator('#model-typed').fill('Notes');
    await other.keyboard.press('Enter');
    await other.getByRole('button', { name: 'Edit shown Lea', exact: true }).click();
    const typed = JSON.parse(await control('', other).inputValue());
    await control('', other).fill(JSON.stringify({ ...typed, text: 'typed' }));
    await client.update('Notes', id, { age: 9, tree: { a: [2] } });
    await changed(other, 'Age: NULL → 9');
    await dialogOf(other).getByRole('button', { name: GO_ON }).click();
    await dialogOf(other).getByRole('button', { name: 'Save', exact: true }).click();
    await closed(other);
    const [update] = writes(other);
    assert.deepEqual(update.zHorizontal.values, { text: 'typed' });
    assert.deepEqual([update.zHorizontal.where.id, update.zHorizontal.where.age], [id, 9]);
    const { text, age, tree } = await rowNamed('shown Lea');
    assert.deepEqual([text, age, tree], ['typed', 9, { a: [2] }]);
    await client.update('Notes', id, { name: 'shown Mia' });
    await other.getByRole('button', { name: 'Delete shown Mia', exact: true }).click();
    await dialogOf(other).getByRole('button', { name: 'Delete', exact: true }).click();
    await closed(other);
    assert.deepEqual(await client.read('Notes', id), []);
    assert.deepEqual(other.complaints, []);
    await other.context().close();
  });

  it('is shown where its key has no order', async () => {
    await client.create('Blobs', { key: 'AAEC/w==', name: 'shown blob' });
    await show('Blobs', tab);
    await act('Edit', 'shown blob');
    await control('name', tab).fill('renamed blob');
    await pressed('Save').click();
    await closed(tab);
    await tab.locator('td[data-field="name"]', { hasText: 'renamed blob' }).waitFor();
    assert.deepEqual(await tab.locator('#rows-head button').allTextContents(), ['Name']);
    assert.equal(await tab.locator('#filter-error').isVisible(), false);
    await show('Notes', tab);
  });

  it('keeps its numbers to the last digit: one that would become another is refused', async () => {
    await client.create('Notes', { name: 'shown Karl', ratio: 0.5, size: 1 });
    await act('Edit', 'shown Karl');
    for (const [field, typed] of [
      ['ratio', '0.12345678901234567890123'],
      ['ratio', '1e-400'],
      ['size', '9007199254740990.6'],
    ]) {
      await control(field, tab).fill(typed);
      await pressed('Save').click();
      await dialogOf(tab).locator(`[data-field="${field}"] .error`, { hasText: 'than a number can hold' }).waitFor();
      await control(field, tab).fill('2');
    }
    // The server's to say.
    await control('ratio', tab).fill('9007199254740993');
    await pressed('Save').click();
    await dialogOf(tab).locator('[data-field="ratio"] .error', { hasText: /./ }).waitFor();
    const row = await rowNamed('shown Karl');
    assert.deepEqual([row.ratio, row.size], [0.5, 1]);
    await pressed('Cancel').click();
    await closed(tab);
  });
});

describe('contact_b05: another visitor', () => {
  /** What the page still has of the visitor before. */
  const left = (tab) =>
    tab.evaluate(() => {
      const text = [...document.querySelectorAll('body :is(td, li, pre, option, dialog, output)')].map(
        (e) => e.textContent,
      );
      const typed = [...document.querySelectorAll('input, textarea')].map(({ value }) => value);
      return [...text, ...typed, ...Object.values(sessionStorage)].filter((found) => /secret|zc_/.test(found));
    });
  const fill = async (tab) => {
    await show('Notes', tab);
    await tab.locator('td[data-field="name"]', { hasText: 'secret row' }).waitFor();
    await tab.locator('#raw').fill('{"zKey": "ping", "zHorizontal": "secret ping"}');
    await tab.getByRole('button', { name: 'Send', exact: true }).click();
    await tab.locator('#raw-result', { hasText: 'secret ping' }).waitFor();
    await client.create('Notes', { name: 'secret broadcast' });
    await tab.getByRole('log').getByText('create_Notes').waitFor();
    await tab.locator('#filter').fill('secret');
    await tab.locator('#function-args').fill('"secret"');
    await tab.locator('#open-file').fill('secret.txt');
    await tab.getByRole('button', { name: 'Edit secret row' }).click();
    await dialogOf(tab).getByRole('textbox', { name: 'Text', exact: true }).fill('secret text');
    await tab.keyboard.press('Escape');
  };

  before(() => client.create('Notes', { name: 'secret row' }));
  after(() => client.delete('Notes', { name__startswith: 'secret' }));

  it('finds nothing of the one before after Disconnect, also of a call that was under way', async () => {
    const tab = await visit(tokens.admin);
    await fill(tab);
    await call('confirm', '', tab);
    await dialogOf(tab).waitFor();
    await tab.evaluate(() => document.getElementById('disconnect').click());
    await isState(tab, 'disconnected');
    await closed(tab);
    assert.deepEqual(await left(tab), []);
    assert.equal(await tab.locator('#token').inputValue(), '');
    assert.equal(await tab.locator('#function-result').textContent(), '');
    assert.equal(await tab.getByRole('button', { name: 'New', exact: true }).isDisabled(), true);
    await tab.reload();
    await isState(tab, 'disconnected');
    await tab.locator('#token').fill(tokens.guest);
    await tab.keyboard.press('Enter');
    await isState(tab, 'connected');
    await tab.getByText('This server tells of no models that you may use.').waitFor();
    assert.deepEqual(await left(tab), [tokens.guest, tokens.guest]);
    await tab.context().close();
  });

  it('nor when another link is opened in the same tab', async () => {
    const tab = await visit(tokens.admin);
    await fill(tab);
    const [, hash] = (await server.link()).split('#');
    await tab.evaluate((code) => {
      location.hash = code;
    }, hash);
    await tab.locator('#identity', { hasText: 'an operator' }).waitFor();
    await tab.getByText('You may not read this model.').waitFor();
    const session = await tab.evaluate(() => sessionStorage.getItem('zbifrost.token'));
    assert.ok(!Object.values(tokens).includes(session));
    assert.deepEqual(await left(tab), [session, session]);
    assert.equal(await tab.getByRole('button', { name: 'New', exact: true }).isDisabled(), false);
    await show('Odd', tab);
    await tab.locator('#rows-body tr').waitFor();
    assert.equal(await tab.getByRole('button', { name: 'New', exact: true }).isDisabled(), true);
    assert.equal(await tab.getByRole('button', { name: 'Edit 1' }).isDisabled(), true);
    assert.equal(await tab.getByRole('button', { name: 'Delete 1' }).isDisabled(), true);
    assert.deepEqual(tab.complaints, []);
    await tab.context().close();
  });

  it('contact: whose token is beyond ASCII is let in, by the page and by Node', async () => {
    const direct = await createClient(`ws://127.0.0.1:${server.port}`, operator.token);
    assert.equal((await direct.send({ zKey: 'zDescribe' })).identity.name, 'an operator');
    direct.disconnect();
    const tab = await visit(operator.token);
    await tab.locator('#identity', { hasText: 'an operator' }).waitFor();
    assert.deepEqual(tab.complaints, []);
    await tab.context().close();
  });

  it('contact_n07: who may use no model is told so, and offered nothing that is not there', async () => {
    const tab = await visit(tokens.guest);
    await tab.getByText('This server tells of no models that you may use.').waitFor();
    assert.match(await tab.locator('#rows-title').textContent(), /^\s*Data\s*$/);
    assert.equal(await tab.getByRole('button', { name: 'New', exact: true }).isDisabled(), true);
    assert.equal(await tab.locator('#sort').isVisible(), false);
    assert.equal(await tab.locator('[role="alert"]:not([hidden])').count(), 0);
    assert.equal(await tab.getByText('Not connected.').first().isVisible(), false);
    for (const field of ['function-name', 'function-args', 'link-path', 'open-file'])
      assert.equal(await tab.locator(`#${field}`).inputValue(), '', field);
    await tab.getByText('This server tells of no functions that you may call.').waitFor();
    // A host may have models of its own that it does not tell of.
    await tab.locator('#model-typed').fill('Notes');
    await tab.keyboard.press('Enter');
    await tab.locator('#filter-error', { hasText: 'ermission' }).waitFor();
    assert.deepEqual(tab.complaints, []);
    await tab.context().close();
  });
});

describe('long values', () => {
  before(async () => {
    await client.create('Notes', {
      name: 'n'.repeat(300),
      text: 'someone@a-very-long-name.example.com',
      size: 501123,
      day: '2026-01-02',
    });
  });
  after(() => client.delete('Notes', { name__startswith: 'nnn' }));

  it('contact_b09, contact_b10: neither widen the page nor break numbers and dates', async () => {
    const tab = await visit(tokens.admin);
    await show('Notes', tab);
    await tab.locator('td[data-field="name"]', { hasText: 'nnn' }).waitFor();
    for (const width of [390, 1024, 1440]) {
      await tab.setViewportSize({ width, height: 900 });
      const [wide, broken, aligned, cut] = await tab.evaluate(() => {
        const height = (cell) => {
          const range = document.createRange();
          range.selectNodeContents(cell);
          return range.getBoundingClientRect().height;
        };
        const cells = [...document.querySelectorAll('td:is(.number, .when)')];
        return [
          document.documentElement.scrollWidth - document.documentElement.clientWidth,
          cells.filter((cell) => height(cell) > 32).map((cell) => cell.textContent),
          cells.filter((cell) => cell.matches('.number')).map((cell) => getComputedStyle(cell).textAlign),
          getComputedStyle(document.querySelector('td.title')).textOverflow,
        ];
      });
      assert.deepEqual([wide, broken], [0, []], String(width));
      if (width > 800) assert.deepEqual([new Set(aligned), cut], [new Set(['right']), 'ellipsis']);
    }
    await tab.context().close();
  });
});

describe('the connection', () => {
  let tab;

  before(async () => {
    tab = await visit(tokens.admin);
    await show('Notes', tab);
    await tab.locator('#rows-body tr').first().waitFor();
  });
  after(() => tab.context().close());

  it('contact_b15, contact_b16: after Disconnect the way back is in sight and has the focus', async () => {
    await tab.evaluate(() => window.scrollTo(0, document.body.scrollHeight));
    await tab.locator('#disconnect').focus();
    await tab.keyboard.press('Enter');
    await isState(tab, 'disconnected');
    assert.equal(await focused(tab), 'token');
    assert.ok(await tab.locator('#token').evaluate((input) => input.getBoundingClientRect().top > 56));
    await tab.evaluate(() => window.scrollTo(0, document.body.scrollHeight));
    await tab.getByRole('button', { name: 'Sign in' }).click();
    assert.equal(await focused(tab), 'token');
    assert.ok(await tab.locator('#token').evaluate((input) => input.getBoundingClientRect().top > 56));
    // contact_n17: whoever pressed it needs no word of a loss.
    assert.equal(await tab.getByRole('log').getByText('Connection lost').count(), 0);
    await tab.locator('#token').fill(tokens.admin);
    await tab.keyboard.press('Enter');
    await isState(tab, 'connected');
    assert.equal(await focused(tab), 'disconnect');
  });

  it('contact_b15: a question that is asked again gives the focus back in the end', async () => {
    await tab.locator('#function-name').fill('three');
    await tab.locator('#function-args').fill('');
    await tab.getByRole('button', { name: 'Call', exact: true }).focus();
    await tab.keyboard.press('Enter');
    await dialogOf(tab).getByRole('textbox').fill('too long');
    await tab.keyboard.press('Enter');
    await dialogOf(tab).locator('.error', { hasText: 'At most 3' }).waitFor();
    assert.equal(await dialogOf(tab).getByRole('textbox').inputValue(), 'too long');
    await dialogOf(tab).getByRole('textbox').fill('yes');
    await tab.keyboard.press('Enter');
    await closed(tab);
    await tab.locator('#function-result pre', { hasText: 'yes' }).waitFor();
    assert.equal(await tab.evaluate(() => document.activeElement.textContent), 'Call');
  });

  it('Enter on a question does not say yes, unless yes is proposed', async () => {
    for (const [name, first] of [
      ['confirm', 'No'],
      ['sure', 'Yes'],
    ]) {
      await call(name, '', tab);
      await dialogOf(tab).waitFor();
      assert.equal(await tab.evaluate(() => document.activeElement.textContent), first);
      await tab.keyboard.press('Enter');
      await tab.locator('#function-result pre', { hasText: first === 'Yes' ? 'true' : 'false' }).waitFor();
    }
  });

  for (const viewport of [
    { width: 1440, height: 900 },
    { width: 390, height: 844 },
  ]) {
    it(`contact_b15: what gets the focus by key is not under the bar at ${viewport.width} px`, async () => {
      await tab.setViewportSize(viewport);
      await tab.locator('footer a').last().focus();
      const under = [];
      for (let n = 0; n < 80; n += 1) {
        await tab.keyboard.press('Shift+Tab');
        const [name, hidden] = await tab.evaluate(() => {
          const [it, bar] = [document.activeElement, document.querySelector('.bar')];
          const below = it.getBoundingClientRect().bottom > bar.getBoundingClientRect().bottom;
          return [
            it.outerHTML.slice(0, 80),
            it !== document.body && !bar.contains(it) && !it.matches('.skip') && !below,
          ];
        });
        if (hidden) under.push(name);
        if (name.startsWith('<a class="skip"')) break;
      }
      assert.deepEqual(under, []);
      await tab.keyboard.press('Enter');
      const [title, bar, outline] = await tab.evaluate(() => [
        document.getElementById('rows-title').getBoundingClientRect().top,
        document.querySelector('.bar').getBoundingClientRect().bottom,
        getComputedStyle(document.getElementById('rows-title')).outlineStyle,
      ]);
      assert.ok(title >= bar, `${title} is under ${bar}`);
      assert.notEqual(outline, 'none');
    });
  }

  it('contact_b17: roles stand where they may, before and after the first description', async () => {
    const early = await openTab(browser);
    await early.goto(`http://127.0.0.1:${server.port}/`);
    await isState(early, 'disconnected');
    for (const each of [early, tab]) {
      const wrong = await each.evaluate(() => {
        const seen = (element) => element.checkVisibility();
        const all = (selector) => [...document.querySelectorAll(selector)].filter(seen);
        return [
          ...all('li').filter((item) => !item.parentElement.matches('ol:not([role]), ul:not([role])')),
          ...all('[role="row"]').filter((row) => row.children.length === 0),
          ...all('[role="rowgroup"], [role="table"]').filter((group) => !group.querySelector('[role="row"]')),
          ...all(':is(ol, ul, dl)[role]'),
        ].map((element) => element.outerHTML.slice(0, 120));
      });
      assert.deepEqual(wrong, []);
    }
    await early.context().close();
  });

  it('contact_b21: no page is proposed where there is none', async () => {
    assert.equal(await tab.locator('#link-path').inputValue(), '');
    await tab.getByText('This server tells of no pages that you may visit.').waitFor();
  });

  it('contact_b12: another model while the server is away has no rows of the one before', async () => {
    await server.stop('SIGKILL');
    await isState(tab, 'reconnecting');
    await tab.locator('#model').selectOption('Snow');
    assert.deepEqual(await tab.locator('#rows-head button').allTextContents(), ['ID', 'Name']);
    assert.equal(await tab.locator('#rows-body tr').count(), 0);
    assert.equal(await tab.locator('#more').isVisible(), false);
    await tab.locator('#rows-empty', { hasText: 'Not connected.' }).waitFor();
    assert.equal(await tab.locator('#rows-count').textContent(), '');
    assert.equal(await tab.getByRole('log').getByText('Connection lost').count(), 1);
    await tab.getByRole('button', { name: 'Call', exact: true }).waitFor();
    await server.start();
    await isState(tab, 'connected');
    await tab.locator('td[data-field="name"]', { hasText: 'last' }).waitFor();
    assert.deepEqual(tab.complaints, []);
  });
});

describe('contact_r17: below a path of a proxy', () => {
  let nginx;

  before(async () => {
    writeFileSync(
      join(place, 'nginx.conf'),
      `
daemon off;
pid ${place}/nginx.pid;
error_log ${place}/nginx.log;
events {}
http {
  access_log off;
  ${['client_body', 'proxy', 'fastcgi', 'uwsgi', 'scgi'].map((part) => `${part}_temp_path ${place}/${part};`).join('\n  ')}
  server {
    listen 127.0.0.1:${given.port};
    location /tools/zcomm/ {
      proxy_pass http://127.0.0.1:${server.port}/;
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection "upgrade";
      proxy_set_header Host $http_host;
    }
  }
}
`,
    );
    nginx = spawn(given.nginx, ['-p', place, '-e', join(place, 'nginx.log'), '-c', join(place, 'nginx.conf')], {
      stdio: 'ignore',
    });
    const until = Date.now() + DEADLINE;
    for (;;) {
      const socket = connect(given.port, '127.0.0.1');
      const open = await Promise.race([
        once(socket, 'connect').then(() => true),
        once(socket, 'error').then(
          () => false,
          () => false,
        ),
      ]).catch(() => false);
      socket.destroy();
      if (open) break;
      assert.ok(Date.now() < until && nginx.exitCode === null, 'nginx did not start');
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  });
  after(async () => {
    nginx.kill('SIGTERM');
    await once(nginx, 'exit');
  });

  it('the page works as it does at the root, with its links, its scripts and its report', async () => {
    const tab = await openTab(browser);
    const home = `http://127.0.0.1:${given.port}/tools/zcomm/`;
    await open(tab, tokens.admin, home);
    assert.equal(tab.url(), home);
    assert.equal(await tab.locator('#url').inputValue(), home.replace('http', 'ws'));
    await show('Snow', tab);
    await tab.locator('td[data-field="name"]', { hasText: 'last' }).waitFor();
    await tab.locator('#health', { hasText: 'Database' }).waitFor();
    for (const target of await tab.locator('footer a').evaluateAll((links) => links.map(({ href }) => href)))
      assert.equal((await tab.request.get(target)).status(), 200);
    assert.deepEqual(tab.complaints, []);
    await tab.context().close();
  });
});

describe('contact_r31: the client of the server', () => {
  it('is imported by a page of another origin that is allowed', async () => {
    const program = `import { zBifrost } from 'http://127.0.0.1:${server.port}/zBifrost.js';
      const client = new zBifrost('ws://127.0.0.1:${server.port}', '${tokens.admin}');
      await client.connect();
      document.title = (await client.send({ zKey: 'ping', zHorizontal: 'hello there' }));`;
    const site = createServer((request, response) => {
      response.setHeader('Content-Type', request.url === '/main.js' ? 'text/javascript' : 'text/html');
      response.end(
        request.url === '/main.js' ? program : '<!DOCTYPE html><script type="module" src="main.js"></script>',
      );
    });
    await once(site.listen(0, '127.0.0.1'), 'listening');
    const tab = await openTab(browser);
    await tab.goto(`http://localhost:${site.address().port}/`);
    await tab.waitForFunction(() => document.title === 'hello there');
    await tab.context().close();
    site.close();
  });
});
