/** The chats that README and quick start show, in two tabs that came by links: told in ZCOMM_TEST_SERVER as `pages`,
 * objects {name, options}; and the README's live query, which follows what `write`, [database, SQL], changes. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createClient } from '../../js/zBifrost.js';
import { launch, openTab } from './browser.mjs';
import { Network } from './proxy.mjs';
import { Server, given } from './server.mjs';

/* A page of a dozen lines has no icon. */
const ICON = /status of 404/;

let browser;
before(async () => {
  browser = await launch();
});
after(() => browser?.close());

for (const { name, options } of given.pages) {
  describe(name, () => {
    const server = new Server(...options);
    before(() => server.start());
    after(() => server.stop());

    it('says what it lacks who comes without a link, or with one that was used', async () => {
      const tab = await openTab(browser);
      await tab.goto(`http://127.0.0.1:${server.port}/`);
      await tab.getByText('Authentication required').waitFor();
      const link = await server.link();
      const first = await openTab(browser);
      await first.goto(link);
      await first.waitForFunction(() => location.hash === '' && sessionStorage.length > 0);
      // Else it would be counted among those who are here.
      await first.context().close();
      await tab.goto(link);
      await tab.reload();
      await tab.getByText(/zcomm url prints another|Authentication required/).waitFor();
      await tab.goto(`http://127.0.0.1:${server.port}/rooms.html`);
      await tab.getByText('Authentication required').waitFor();
    });

    it('shows two tabs what each says, and keeps it for who comes later and for who was away', async () => {
      const open = async () => {
        const tab = await openTab(browser);
        await tab.goto(await server.link());
        return tab;
      };
      const say = async (tab, text) => {
        await tab.getByRole('textbox', { name: 'Message' }).fill(text);
        await tab.keyboard.press('Enter');
      };
      const [one, two] = [await open(), await open()];
      assert.equal(new URL(one.url()).pathname + new URL(one.url()).hash, '/');
      await say(one, 'Hello <b>you</b>');
      await two.getByText('Hello <b>you</b>').waitFor();
      await say(two, 'Hello back');
      await one.getByText('Hello back').waitFor();
      const late = await open();
      await late.getByText('Hello back').waitFor();
      await late.reload();
      await late.getByText('Hello back').waitFor();
      if (name.startsWith('quickstart')) await one.getByText('3 here').waitFor();
      await server.stop('SIGKILL');
      await server.start();
      await say(one, 'After the restart');
      await two.getByText('After the restart').waitFor();
      if (name.startsWith('quickstart')) assert.equal(await two.getByText('Hello back').count(), 0);
      for (const tab of [one, two, late]) assert.deepEqual(tab.complaints.filter((text) => !ICON.test(text)), []);
    });
  });
}

describe('quickstart-rooms', () => {
  const server = new Server(...given.pages[0].options);
  const network = new Network(() => server.port);
  before(() => Promise.all([server.start(), network.start()]));
  after(async () => {
    network.stop();
    await server.stop();
  });

  it('has rooms, who is there, who is typing, and what was missed', async () => {
    const open = async (port) => {
      const tab = await openTab(browser);
      const link = new URL(await server.link());
      link.port = port;
      await tab.goto(link.href);
      await tab.waitForFunction(() => location.hash === '' && sessionStorage.length > 0);
      await tab.goto(new URL('/rooms.html', link).href);
      await tab.getByText(/^Here: \S+$/).waitFor();
      return tab;
    };
    const message = (tab) => tab.getByRole('textbox', { name: 'Message' });
    const say = async (tab, text) => {
      await message(tab).fill(text);
      await tab.keyboard.press('Enter');
    };
    const lines = (tab) => tab.getByRole('listitem').allTextContents();
    const [one, two] = [await open(server.port), await open(network.port)];
    await message(one).pressSequentially('Hello');
    await two.getByText('typing…').waitFor();
    await one.keyboard.press('Enter');
    await two.getByText(': Hello').waitFor();
    await two.getByText('typing…').waitFor({ state: 'detached' });
    await one.getByLabel('Room').selectOption('help');
    await say(one, 'Help');
    await one.getByText(': Help').waitFor();
    assert.equal(await two.getByText(': Help').count(), 0);
    await two.getByLabel('Room').selectOption('help');
    await two.getByText(': Help').waitFor();
    network.cut();
    await say(one, 'while you were away');
    await one.getByText(': while you were away').waitFor();
    await say(two, 'written away');
    network.mend();
    await two.getByText(': written away').waitFor();
    const expected = [': Help', 'What you missed:', ': while you were away', ': written away'];
    assert.deepEqual((await lines(two)).map((line, n) => line.endsWith(expected[n])), [true, true, true, true]);
    await two.getByLabel('Room').selectOption('lobby');
    assert.equal((await lines(two)).length, 1);
    await server.stop('SIGKILL');
    await server.start();
    await say(one, 'anew');
    await one.getByText(': anew').waitFor();
    assert.equal((await lines(one)).length, 1);
    for (const tab of [one, two]) assert.deepEqual(tab.complaints.filter((text) => !ICON.test(text)), []);
  });
});

describe('readme-live', () => {
  const server = new Server(...given.pages[0].options);
  before(() => server.start());
  after(() => server.stop());

  it('follows a client and another program, and goes on after a restart', async () => {
    const tab = await openTab(browser);
    await tab.goto(await server.link());
    await tab.waitForFunction(() => location.hash === '' && sessionStorage.length > 0);
    await tab.goto(`http://127.0.0.1:${server.port}/live.html`);
    const client = await createClient(`ws://127.0.0.1:${server.port}`, await Server.token('carol', 'admin'));
    const isShown = (text) => tab.waitForFunction((all) => document.querySelector('pre').textContent === all, text);
    try {
      for (const [name, age] of [['Bea', 40], ['Ada', 36], ['Kid', 8]])
        await client.create('Users', { name, age, email: `${name}@example.com` });
      await isShown('Ada, 36\nBea, 40');
      const [database, statement] = given.write;
      const write = () =>
        execFileSync('python3', [
          ...['-c', 'import sqlite3, sys\nwith sqlite3.connect(sys.argv[1], 30) as c: c.execute(sys.argv[2])'],
          ...[join(given.environ.HOME, database), statement],
        ]);
      write();
      await isShown('Ada, 37\nBea, 41');
      await server.stop('SIGKILL');
      write();
      await server.start();
      await isShown('Ada, 38\nBea, 42');
    } finally {
      client.disconnect();
    }
    assert.deepEqual(tab.complaints.filter((text) => !ICON.test(text)), []);
  });
});
