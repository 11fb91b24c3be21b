/** The page of docs/live.rst in Chromium, and another program that writes: told in ZCOMM_TEST_SERVER as `options`,
 * `database` and `statements`. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { launchBeside, openTab } from './browser.mjs';
import { Server, given } from './server.mjs';

/* A page of a dozen lines has no icon; and the server is away for a while. */
const KNOWN = /status of 404|WebSocket connection/;
const WRITE = 'import sqlite3, sys; sqlite3.connect(sys.argv[1], isolation_level=None).execute(sys.argv[2])';

describe('the page of docs/live.rst', () => {
  const server = new Server(...given.options);
  const write = (statement) => execFileSync(given.twistd[0], ['-c', WRITE, given.database, statement]);
  let browser;
  before(async () => {
    browser = await launchBeside(server.start());
  });
  after(async () => {
    await browser?.close();
    await server.stop();
  });

  it('follows what another program writes, and what it wrote while the server was away', async () => {
    const tab = await openTab(browser);
    await tab.goto(await server.link());
    const shows = (lines, status = 'live') =>
      tab.waitForFunction(
        ([wanted, state]) =>
          document.querySelector('p').textContent.trim() === state &&
          [...document.querySelectorAll('li')].map((item) => item.textContent).join() === wanted,
        [lines.join(), status],
      );
    await shows([]);
    const [insert, dearer, fresh, gone] = given.statements;
    write(insert);
    await shows(['order 2: 7', 'order 1: 5']);
    write(dearer);
    await shows(['order 1: 8', 'order 2: 7']);
    await server.stop();
    await shows(['order 1: 8', 'order 2: 7'], 'stale');
    write(fresh);
    await server.start();
    await shows(['order 3: 9', 'order 1: 8', 'order 2: 7']);
    write(gone);
    await shows(['order 3: 9', 'order 1: 8']);
    assert.deepEqual(
      tab.complaints.filter((text) => !KNOWN.test(text)),
      [],
    );
  });
});
