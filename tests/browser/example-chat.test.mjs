/** examples/chat, as two people, a guest and one who comes late use it. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { after, afterEach, before, it } from 'node:test';
import { createClient } from '../../js/zBifrost.js';
import { launchBeside, openTab } from './browser.mjs';
import { Network } from './proxy.mjs';
import { Server } from './server.mjs';

const EXAMPLE = join(import.meta.dirname, '..', '..', 'examples', 'chat');
const server = new Server(
  ...['--www', join(EXAMPLE, 'www'), '--topics', join(EXAMPLE, 'topics.yaml')],
  ...['--policy', join(EXAMPLE, 'policy.yaml')],
);
const network = new Network(() => server.port);
const tabs = [];
let browser;
let ada;
let ben;

before(async () => {
  browser = await launchBeside(server.start(), network.start());
  [ada, ben] = await Promise.all([visit('ada', 'member'), visit('ben', 'member', network.port)]);
});

after(async () => {
  await browser?.close();
  network.stop();
  await server.stop();
});

afterEach(() => {
  for (const tab of tabs) assert.deepEqual(tab.complaints.splice(0), []);
});

/** Somebody's tab, who signs in with a token as the page asks for one. */
async function visit(user, role, port = server.port, path = '', options = {}) {
  const tab = await openTab(browser, options);
  tabs.push(tab);
  const [token] = await Promise.all([Server.token(user, role), tab.goto(`http://127.0.0.1:${port}/${path}`)]);
  await tab.getByLabel('Your token').fill(token);
  await tab.getByRole('button', { name: 'Sign in' }).click();
  await tab.locator('#me', { hasText: user }).waitFor();
  return tab;
}

const said = (tab, text) => tab.getByRole('log').getByText(text, { exact: true });
const texts = (tab) => tab.locator('.messages li:not(.divider) > div > p:last-child').allTextContents();
const isState = (tab, state) => tab.locator(`#status[data-state="${state}"]`).waitFor();

async function say(tab, text) {
  await tab.getByLabel('Message').fill(text);
  await tab.keyboard.press('Enter');
}

it('signs in with the link of the server, which leaves the address', async () => {
  const tab = await openTab(browser);
  await tab.goto(await server.link());
  await tab.locator('#me', { hasText: '(admin)' }).waitFor();
  assert.equal(new URL(tab.url()).hash, '');
  await tab.reload();
  await tab.locator('#me', { hasText: '(admin)' }).waitFor();
  await tab.getByRole('button', { name: 'Sign out' }).click();
  await tab.getByLabel('Your token').fill('wrong');
  await tab.keyboard.press('Enter');
  await tab.getByRole('alert').filter({ hasText: 'Invalid token' }).waitFor();
  await tab.context().close();
});

it('tells who is here, who is writing and what they say, as text', async () => {
  await Promise.all([
    ada.getByLabel('Who is here').getByText('ben').waitFor(),
    ben.getByLabel('Who is here').getByText('ada').waitFor(),
  ]);
  await ada.getByLabel('Message').pressSequentially('hi');
  await ben.getByText('ada is writing…').waitFor();
  await say(ada, '<b>hi</b> & "all"');
  await said(ben, '<b>hi</b> & "all"').waitFor();
  await ben.locator('#typing:empty').waitFor({ state: 'attached' });
  await ada.locator('.sending').waitFor({ state: 'detached' });
  assert.deepEqual(await texts(ada), ['<b>hi</b> & "all"']);
});

it('counts what is said in rooms that are not shown', async () => {
  await ada.getByRole('button', { name: '# help' }).click();
  await say(ada, 'help!');
  const badge = ben.getByRole('button', { name: '# help' }).locator('.badge');
  await badge.filter({ hasText: '1' }).waitFor();
  assert.equal(await ben.title(), '(1) Chat');
  await ben.getByRole('button', { name: '# help' }).press('Enter');
  await said(ben, 'help!').waitFor();
  await badge.waitFor({ state: 'hidden' });
  assert.equal(await ben.title(), 'Chat');
  for (const tab of [ada, ben]) await tab.getByRole('button', { name: '# lobby' }).click();
});

it('shows after a lost connection what was missed, once, and sends what was written meanwhile, once', async () => {
  network.cut();
  await isState(ben, 'reconnecting');
  await ada.getByLabel('Who is here').getByText('ben').waitFor({ state: 'detached' });
  await say(ben, 'written without a connection');
  await ben.locator('.sending').waitFor();
  await say(ada, 'one');
  await say(ada, 'two');
  await said(ada, 'two').waitFor();
  network.mend();
  await isState(ben, 'connected');
  await ben.locator('.sending').waitFor({ state: 'detached' });
  await said(ada, 'written without a connection').waitFor();
  const all = ['<b>hi</b> & "all"', 'one', 'two', 'written without a connection'];
  assert.deepEqual(await texts(ben), all);
  assert.deepEqual(await texts(ada), all);
  assert.equal(await ben.locator('.divider').textContent(), 'What you missed');
  assert.deepEqual(
    await ben.locator('.divider + li').evaluateAll((found) => found.map((item) => item.innerText.includes('one'))),
    [true],
  );
});

it('gives who comes late the newest messages, and earlier ones when they scroll up', async () => {
  const client = await createClient(`ws://127.0.0.1:${server.port}`, await Server.token('dan', 'member'));
  const lobby = await client.topic('room:lobby').subscribe();
  for (let n = 1; n <= 90; n += 1) lobby.publish({ text: `number ${n}` });
  await said(ada, 'number 90').waitFor();
  client.disconnect();
  const cid = await visit('cid', 'member', server.port, '', { viewport: { width: 390, height: 700 } });
  await said(cid, 'number 90').waitFor();
  assert.equal((await texts(cid)).length, 50);
  assert.equal(await cid.evaluate(() => document.documentElement.scrollWidth), 390);
  for (let n = 0; !(await said(cid, 'one').isVisible()); n += 1) {
    assert.ok(n < 60);
    await cid.getByRole('log').press('Home');
    await cid.evaluate(() => new Promise(requestAnimationFrame));
  }
  const all = await texts(cid);
  assert.deepEqual(all.slice(0, 3), ['<b>hi</b> & "all"', 'one', 'two']);
  assert.deepEqual(all.slice(4), Array.from({ length: 90 }, (_, n) => `number ${n + 1}`));
  await cid.getByRole('button', { name: 'Earlier messages' }).waitFor({ state: 'hidden' });
});

it('lets a guest read along where the policy says so, and nowhere else', async () => {
  const gil = await visit('gil', 'guest');
  await said(gil, 'number 90').waitFor();
  await gil.getByText('You may read along here.').waitFor();
  assert.equal(await gil.getByLabel('Message').isVisible(), false);
  await gil.getByRole('button', { name: '# random' }).click();
  await gil.getByText('You may not be in this room as guest.').waitFor();
});

it('says after a restart of the server that what was said is gone, and goes on', async () => {
  await server.stop('SIGKILL');
  await isState(ada, 'reconnecting');
  await say(ada, 'written while the server was down');
  await server.start();
  await isState(ada, 'connected');
  await ada.getByText('The server has started anew: messages may be missing').waitFor();
  await said(ben, 'written while the server was down').waitFor();
  await say(ben, 'here again');
  await said(ada, 'here again').waitFor();
  assert.deepEqual(await texts(ada), ['written while the server was down', 'here again']);
});
