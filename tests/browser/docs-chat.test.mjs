/** The chats that README and quick start show, in two tabs that came by links: told in ZCOMM_TEST_SERVER as `pages`,
 * objects {name, options}. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { launch, openTab } from './browser.mjs';
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
