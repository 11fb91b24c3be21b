/** Chromium, and pages in it that remember what went wrong on their console. */
import { createRequire } from 'node:module';

const { chromium } = createRequire(new URL('../../js/package.json', import.meta.url))('playwright-core');

export const DEADLINE = 30_000;

/* A server that is away, or whose health report says that it is not ready yet, is the one thing that a page cannot
   keep the browser from writing about. */
const AWAY = /^WebSocket connection to 'ws:\/\/127\.0\.0\.1:\d+\/[\w.]*' failed|net::ERR_(?:CONNECTION_REFUSED|CONNECTION_RESET|EMPTY_RESPONSE)|status of 503/;

const OPTIONS = {
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: [
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
  ],
};

/** With further `switches` on its command line. */
export function launch(switches = []) {
  return chromium.launch({ ...OPTIONS, args: [...OPTIONS.args, ...switches] });
}

/** A browser, once all that the tests need besides, promised by `starts`, is there. Where one of these fails, the browser is
 * closed: nobody else would have it, and it would keep the run from ending. */
export async function launchBeside(...starts) {
  const [launched, ...others] = await Promise.allSettled([launch(), ...starts]);
  const failed = [launched, ...others].find(({ status }) => status === 'rejected');
  if (failed === undefined) return launched.value;
  await launched.value?.close();
  throw failed.reason;
}

/** A browser whose profile, with history and all, is kept in `directory`. */
export function launchIn(directory) {
  return chromium.launchPersistentContext(directory, OPTIONS);
}

/** A new tab with an empty profile of its own. `complaints` holds what its console and scripts complained about. */
export async function openTab(browser, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: 'en-GB', ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(DEADLINE);
  page.complaints = [];
  page.on('console', (message) => {
    if (['error', 'warning'].includes(message.type()) && !AWAY.test(message.text()))
      page.complaints.push(message.text());
  });
  page.on('pageerror', (error) => page.complaints.push(String(error.stack)));
  page.on('dialog', (dialog) => {
    page.complaints.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  return page;
}

/** Wait until the page says so in its top bar. */
export async function isState(page, state) {
  await page.locator(`#status[data-state="${state}"]`).waitFor();
}

export const rowOf = (page, name) =>
  page.getByRole('row').filter({ has: page.getByRole('cell', { name, exact: true }) });
