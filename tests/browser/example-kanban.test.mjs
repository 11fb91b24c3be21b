/** examples/kanban, as two people, a guest and one who comes late use it. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, before, it } from 'node:test';
import { zBifrost } from '../../js/zBifrost.js';
import { launchBeside, openTab } from './browser.mjs';
import { Network } from './proxy.mjs';
import { Server } from './server.mjs';

const EXAMPLE = join(import.meta.dirname, '..', '..', 'examples', 'kanban');
const file = (name) => join(EXAMPLE, name);
const server = new Server(
  ...['--www', file('www'), '--schema', file('schema.yaml')],
  ...['--topics', file('topics.yaml'), '--policy', file('policy.yaml')],
);
const network = new Network(() => server.port);
const tabs = [];
let browser;
let client; // a program that changes the same data
let plan; // a board
let ada;
let ben;

before(async () => {
  browser = await launchBeside(server.start(), network.start());
  client = new zBifrost(`ws://127.0.0.1:${server.port}`, await Server.token('a program', 'member'));
  await client.connect();
  plan = (await client.create('Boards', { title: 'Plan' })).id;
  for (const [n, title] of ['one', 'two', 'three'].entries()) {
    await client.create('Cards', { board_id: plan, column: 'todo', position: n + 1, title });
  }
  [ada, ben] = await Promise.all([visit('ada', 'member'), visit('ben', 'member', network.port)]);
});

after(async () => {
  client?.disconnect();
  await browser?.close();
  network.stop();
  await server.stop();
});

afterEach(() => {
  for (const tab of tabs) assert.deepEqual(tab.complaints.splice(0), []);
});

async function visit(user, role, port = server.port, options = {}) {
  const tab = await openTab(browser, options);
  tabs.push(tab);
  tab.reads = 0;
  tab.on('websocket', (socket) =>
    socket.on('framesent', ({ payload }) => {
      tab.reads += String(payload).includes('"read_Cards"');
    }),
  );
  const [token] = await Promise.all([Server.token(user, role), tab.goto(`http://127.0.0.1:${port}/`)]);
  await tab.getByLabel('Your token').fill(token);
  await tab.getByRole('button', { name: 'Sign in' }).click();
  await tab.locator('#me', { hasText: user }).waitFor();
  return tab;
}

/** Wait until the columns have these cards, in this order. */
async function has(tab, ...columns) {
  const wanted = JSON.stringify(columns);
  await tab
    .waitForFunction(
      (text) =>
        JSON.stringify(
          ['todo', 'doing', 'done'].map((name) =>
            [...document.querySelectorAll(`#cards-${name} > .card > span`)].map((card) => card.textContent),
          ),
        ) === text,
      wanted,
      { timeout: 10_000 },
    )
    .catch(async (error) => {
      throw new Error(`wanted ${wanted}, there is ${await tab.locator('#columns').innerText()}`, { cause: error });
    });
}

const card = (tab, title) => tab.locator('.card', { has: tab.getByText(title, { exact: true }) });
const isState = (tab, state) => tab.locator(`#status[data-state="${state}"]`).waitFor();

it('shows who looks at the board, and its cards in their order', async () => {
  await Promise.all([has(ada, ['one', 'two', 'three'], [], []), has(ben, ['one', 'two', 'three'], [], [])]);
  const here = (tab) => tab.getByLabel('Who looks at this board');
  await Promise.all([here(ada).getByText('ben').waitFor(), here(ben).getByText('ada').waitFor()]);
});

it('moves a card that is dragged, and tells the others without a read', async () => {
  const [reads] = [ben.reads];
  await card(ada, 'three').dragTo(ada.locator('#cards-doing'));
  await has(ada, ['one', 'two'], ['three'], []);
  await has(ben, ['one', 'two'], ['three'], []);
  await card(ada, 'three').dragTo(card(ada, 'one'), { targetPosition: { x: 20, y: 3 } });
  await has(ben, ['three', 'one', 'two'], [], []);
  assert.equal(ben.reads, reads);
});

it('moves, renames, adds and deletes by keyboard, and keeps the focus', async () => {
  await card(ben, 'one').focus();
  for (const key of ['ArrowRight', 'ArrowRight', 'ArrowLeft']) await ben.keyboard.press(key);
  await has(ada, ['three', 'two'], ['one'], []);
  await ben.keyboard.press('Enter');
  await ben.keyboard.type('<i>one</i>');
  await ben.keyboard.press('Enter');
  await has(ada, ['three', 'two'], ['<i>one</i>'], []);
  await ben.keyboard.press('ArrowLeft');
  await ben.keyboard.press('ArrowDown');
  await has(ada, ['three', 'two', '<i>one</i>'], [], []);
  assert.equal(await ben.evaluate(() => document.activeElement.textContent.includes('one')), true);
  await ben.getByLabel('New card: Done').fill('four');
  await ben.keyboard.press('Enter');
  await has(ada, ['three', 'two', '<i>one</i>'], [], ['four']);
  await card(ben, '<i>one</i>').press('Delete');
  await has(ada, ['three', 'two'], [], ['four']);
  await has(ben, ['three', 'two'], [], ['four']);
  assert.equal(await ben.evaluate(() => document.activeElement.textContent.includes('two')), true);
});

it('moves cards by buttons, for fingers', async () => {
  const phone = await visit('pia', 'member', server.port, { viewport: { width: 390, height: 780 }, hasTouch: true });
  await card(phone, 'four').tap();
  await card(phone, 'four').getByRole('button', { name: 'To the column on the left' }).tap();
  await has(ada, ['three', 'two'], ['four'], []);
  assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth), 390);
  await phone.context().close();
});

it('reads the board anew after a lost connection, and takes back what could not be done', async () => {
  network.cut();
  await isState(ben, 'reconnecting');
  await card(ben, 'four').press('ArrowRight');
  await ben.getByRole('alert').filter({ hasText: '“four” stays as it was' }).waitFor();
  await has(ben, ['three', 'two'], ['four'], []);
  await card(ada, 'two').press('ArrowRight');
  await has(ada, ['three'], ['four', 'two'], []).catch(() => has(ada, ['three'], ['two', 'four'], []));
  const columns = await ada.evaluate(() =>
    ['todo', 'doing', 'done'].map((name) =>
      [...document.querySelectorAll(`#cards-${name} > .card > span`)].map((each) => each.textContent),
    ),
  );
  network.mend();
  await isState(ben, 'connected');
  await has(ben, ...columns);
});

it('reads once for much at once', async () => {
  const before = ada.reads;
  for (let n = 0; n < 110; n += 1) {
    client.create('Cards', { board_id: plan, column: 'done', position: n, title: `card ${n}` });
  }
  await card(ada, 'card 109').waitFor();
  await client.delete('Cards', { column: 'done' });
  await ada.locator('#cards-done:empty').waitFor({ state: 'attached' });
  assert.ok(ada.reads > before && ada.reads < before + 8, `${ada.reads - before} reads`);
});

it('keeps boards apart, and shows one who comes late what there is; a guest moves nothing', async () => {
  await ada.getByLabel('Title of a new board').fill('Another');
  await ada.keyboard.press('Enter');
  await has(ada, [], [], []);
  await ben.getByLabel('Who looks at this board').getByText('ada').waitFor({ state: 'detached' });
  await ada.getByLabel('New card: To do').fill('elsewhere');
  await ada.keyboard.press('Enter');
  await has(ada, ['elsewhere'], [], []);
  const gil = await visit('gil', 'guest');
  await gil.getByLabel('Board', { exact: true }).selectOption('Another');
  await has(gil, ['elsewhere'], [], []);
  await gil.locator('.card').press('ArrowRight');
  await gil.locator('.card').press('Delete');
  assert.equal(await gil.getByLabel('New card: To do').isVisible(), false);
  await card(ada, 'elsewhere').press('ArrowRight');
  await has(gil, [], ['elsewhere'], []);
  assert.equal(await card(ben, 'elsewhere').count(), 0);
});

it('ends at what the server has when two move one card at once', async () => {
  await ben.getByLabel('Board', { exact: true }).selectOption('Another');
  await has(ben, [], ['elsewhere'], []);
  const both = new Promise((resolve) => {
    let count = 0;
    client.onBroadcast(({ zKey }) => zKey === 'update_Cards' && (count += 1) === 2 && resolve());
  });
  await Promise.all([card(ada, 'elsewhere').press('ArrowRight'), card(ben, 'elsewhere').press('ArrowLeft')]);
  await both;
  const [{ column }] = await client.read('Cards', { title: 'elsewhere' });
  const wanted = ['todo', 'doing', 'done'].map((name) => (name === column ? ['elsewhere'] : []));
  await Promise.all([has(ada, ...wanted), has(ben, ...wanted)]);
});
