/** axe looks at the demo page and at the pages of the examples: light and dark, wide and narrow, signed out, in use, away
 * and refused. */
import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { after, before, it } from 'node:test';
import { zBifrost } from '../../js/zBifrost.js';
import { launch, openTab } from './browser.mjs';
import { Network } from './proxy.mjs';
import { Server, given } from './server.mjs';

const EXAMPLES = join(import.meta.dirname, '..', '..', 'examples');
const AXE = readFileSync(createRequire(new URL('../../js/package.json', import.meta.url)).resolve('axe-core'), 'utf8');

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

/** Fails with what axe finds on the page as it is now. */
async function look(tab, what) {
  if (!(await tab.evaluate(() => 'axe' in globalThis))) await tab.evaluate(AXE);
  const size = tab.viewportSize();
  const found = [];
  for (const width of [size.width, 390]) {
    await tab.setViewportSize({ ...size, width });
    for (const colorScheme of ['light', 'dark']) {
      await tab.emulateMedia({ colorScheme, reducedMotion: 'reduce' });
      const { violations, passes } = await tab.evaluate(() => axe.run());
      assert.ok(passes.some(({ id }) => id === 'color-contrast'));
      for (const { id, help, nodes } of violations) {
        const places = nodes.map(({ target, failureSummary }) => `${target}: ${failureSummary}`);
        found.push(`${what}, ${colorScheme}, ${width} wide: ${id}: ${help}\n${places.join('\n')}`);
      }
    }
  }
  await tab.setViewportSize(size);
  assert.deepEqual(found, []);
}

/** Does `use` with a page of a server, to which the way can be cut, and ends both. */
async function serving(server, use) {
  const network = new Network(() => server.port);
  await Promise.all([server.start(), network.start()]);
  const tab = await openTab(browser);
  try {
    await tab.goto(`http://127.0.0.1:${network.port}/`);
    await use(tab, network);
    assert.deepEqual(tab.complaints, []);
  } finally {
    await tab.context().close();
    network.stop();
    await server.stop();
  }
}

const isState = (tab, state) => tab.locator(`#status[data-state="${state}"]`).waitFor();

/** Sign in to an example, after an attempt that fails. Returns the token. */
async function signIn(tab, user, role) {
  await tab.getByLabel('Your token').waitFor();
  await look(tab, 'signed out');
  await tab.getByLabel('Your token').fill('wrong');
  await tab.keyboard.press('Enter');
  await tab.getByRole('alert').filter({ hasText: 'Invalid token' }).waitFor();
  await look(tab, 'refused');
  const token = await Server.token(user, role);
  await tab.getByLabel('Your token').fill(token);
  await tab.keyboard.press('Enter');
  await isState(tab, 'connected');
  return token;
}

it('finds nothing on the demo page, with its chat in use', async () => {
  const server = new Server();
  await serving(server, async (tab, network) => {
    await tab.getByLabel('Token').waitFor();
    await look(tab, 'signed out');
    const other = new zBifrost(`ws://127.0.0.1:${server.port}`, await Server.token('bob', 'admin'));
    await other.connect();
    try {
      const room = other.topic('room:demo', { presence: true });
      await room.subscribe();
      await other.create('Users', { name: 'Ada', email: 'ada@example.com' });
      await tab.getByLabel('Token').fill(await Server.token('alice', 'admin'));
      await tab.keyboard.press('Enter');
      await isState(tab, 'connected');
      await tab.getByRole('cell', { name: 'Ada', exact: true }).waitFor();
      await tab.getByRole('textbox', { name: 'Message' }).fill('Hello');
      await tab.keyboard.press('Enter');
      await room.publish({ text: 'word '.repeat(400) });
      await room.presence.setState({ typing: true });
      await other.update('Users', { name: 'Ada' }, { age: 36 });
      await tab.getByText('bob is typing').waitFor();
      await tab.locator('#feed').getByText('update_Users').waitFor();
      await look(tab, 'in use');
      await tab.getByRole('button', { name: 'New', exact: true }).click();
      await tab.getByRole('dialog').waitFor();
      await look(tab, 'a new row');
      await tab.getByRole('button', { name: 'Cancel' }).click();
      network.cut();
      await isState(tab, 'reconnecting');
      await tab.getByRole('textbox', { name: 'Message' }).fill('Said while away');
      await tab.keyboard.press('Enter');
      await tab.getByText('Sending…').waitFor();
      await look(tab, 'away');
      await room.publish({ text: 'missed' });
      network.mend();
      await isState(tab, 'connected');
      await tab.getByText('While you were away').waitFor();
      await look(tab, 'back');
      await server.stop('SIGKILL');
      await server.start();
      await isState(tab, 'connected');
      await tab.getByText('The server has begun this chat anew').waitFor();
      await look(tab, 'after a restart');
    } finally {
      other.disconnect();
    }
  });
});

it('finds nothing on the page of the chat', async () => {
  const file = (name) => join(EXAMPLES, 'chat', name);
  const server = new Server('--www', file('www'), '--topics', file('topics.yaml'), '--policy', file('policy.yaml'));
  await serving(server, async (tab, network) => {
    const token = await signIn(tab, 'ada', 'member');
    const other = new zBifrost(`ws://127.0.0.1:${server.port}`, await Server.token('ben', 'member'));
    await other.connect();
    try {
      const lobby = other.topic('room:lobby', { presence: true });
      const help = other.topic('room:help');
      await Promise.all([lobby.subscribe(), help.subscribe()]);
      await Promise.all([lobby.publish({ text: 'Hello' }), help.publish({ text: 'Help!' })]);
      await lobby.presence.setState({ typing: true });
      await tab.getByText('ben is writing').waitFor();
      await tab.locator('.badge:visible').waitFor();
      await look(tab, 'in use');
      network.cut();
      await isState(tab, 'reconnecting');
      await tab.getByLabel('Message').fill('Said while away');
      await tab.keyboard.press('Enter');
      await tab.locator('.sending').waitFor();
      await look(tab, 'away');
      await lobby.publish({ text: 'missed' });
      network.mend();
      await tab.getByText('What you missed').waitFor();
      await look(tab, 'back');
      await Server.revoke('ada');
      await isState(tab, 'disconnected');
      await tab.getByLabel('Message').fill('Said by nobody');
      await tab.keyboard.press('Enter');
      await tab.getByRole('button', { name: 'Send again' }).waitFor();
      await look(tab, 'signed out by the server');
      await tab.getByRole('button', { name: 'Sign in again' }).click();
      await tab.getByLabel('Your token').waitFor();
      assert.equal(await tab.evaluate((text) => JSON.stringify(sessionStorage).includes(text), token), false);
    } finally {
      other.disconnect();
    }
  });
});

it('finds nothing on the page of the kanban', async () => {
  const file = (name) => join(EXAMPLES, 'kanban', name);
  const server = new Server(
    ...['--www', file('www'), '--schema', file('schema.yaml')],
    ...['--topics', file('topics.yaml'), '--policy', file('policy.yaml')],
  );
  await serving(server, async (tab, network) => {
    await signIn(tab, 'root', 'admin');
    await tab.getByText('There is no board yet').waitFor();
    await look(tab, 'empty');
    await tab.getByLabel('Title of a new board').fill('Plan');
    await tab.keyboard.press('Enter');
    await tab.getByLabel('New card: To do').fill('A card');
    await tab.keyboard.press('Enter');
    const card = tab.getByRole('listitem').filter({ hasText: 'A card' });
    await card.click();
    await look(tab, 'a card');
    await tab.getByRole('button', { name: 'Rename' }).click();
    await look(tab, 'renaming');
    await tab.keyboard.press('Escape');
    network.cut();
    await isState(tab, 'reconnecting');
    await card.press('ArrowRight');
    await tab.getByRole('alert').filter({ hasText: 'stays as it was' }).waitFor();
    await look(tab, 'away');
    network.mend();
    await isState(tab, 'connected');
    await tab.locator('#notice:empty').waitFor({ state: 'attached' });
    await tab.getByRole('button', { name: 'Sign out' }).click();
    await tab.getByLabel('Your token').fill(await Server.token('zed', 'stranger'));
    await tab.keyboard.press('Enter');
    await tab.getByText('The role stranger may not look at boards').waitFor();
    await tab.getByLabel('Your token').fill(await Server.token('gil', 'guest'));
    await tab.keyboard.press('Enter');
    await tab.getByText('You may look at the cards, but not change them.').waitFor();
    assert.equal(await tab.getByText('Drag a card').isVisible(), false);
    await look(tab, 'as a guest');
  });
});

it('finds nothing on the page of the dashboard', async () => {
  const server = Server.of([given.twistd[0], join(EXAMPLES, 'dashboard', 'sensors.py')]);
  await serving(server, async (tab) => {
    await signIn(tab, 'viewer', 'member');
    await tab.locator('.range').first().filter({ hasText: 'values' }).waitFor();
    await look(tab, 'in use');
    await tab.getByLabel('north').uncheck();
    await tab.getByText('Choose a hall').waitFor();
    await look(tab, 'without a hall');
    await tab.getByLabel('north').check();
    await tab.getByText('Choose a hall').waitFor({ state: 'hidden' });
    await server.stop('SIGKILL');
    await server.start();
    await tab.getByText('The program has started anew').waitFor();
    await look(tab, 'after a restart');
  });
});
