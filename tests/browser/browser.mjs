/** Chromium, and pages in it that remember what went wrong on their console. */
import { createRequire } from 'node:module';
import { setTimeout } from 'node:timers/promises';

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

/** A tab that can be hidden, as those of Playwright cannot, which have it that each of them is looked at. */
export class HidableTab {
  #session;
  #id;
  #attached;
  #number = 0;
  #answers = new Map();

  static async open(browser, url) {
    const tab = new HidableTab();
    const session = (tab.#session = await browser.newBrowserCDPSession());
    session.on('Target.receivedMessageFromTarget', ({ message }) => {
      const { id, result, error } = JSON.parse(message);
      tab.#answers.get(id)?.(result ?? { exceptionDetails: { text: error?.message } });
    });
    ({ targetId: tab.#id } = await session.send('Target.createTarget', { url }));
    tab.#attached = await session.send('Target.attachToTarget', { targetId: tab.#id, flatten: false });
    await tab.until(`location.href === ${JSON.stringify(url)} && document.readyState === 'complete'`);
    await tab.show();
    return tab;
  }

  async #send(method, params) {
    const id = (this.#number += 1);
    const answer = new Promise((resolve) => this.#answers.set(id, resolve));
    const message = JSON.stringify({ id, method, params });
    await this.#session.send('Target.sendMessageToTarget', { ...this.#attached, message });
    return answer;
  }

  /** The value of an expression, or what its promise resolves with. */
  async evaluate(expression) {
    const params = { expression, awaitPromise: true, returnByValue: true };
    const { result, exceptionDetails } = await this.#send('Runtime.evaluate', params);
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** Wait until an expression is true, which is looked at every now and then; it may fail until the page is there. */
  async until(expression) {
    const end = performance.now() + DEADLINE;
    for (;;) {
      const seen = await this.evaluate(expression).catch((error) => error);
      if (seen === true) return;
      if (performance.now() > end) throw new Error(`it did not become so, but ${seen}: ${expression}`);
      await setTimeout(50);
    }
  }

  /** Open another tab before it. */
  async hide() {
    await this.#session.send('Target.createTarget', { url: 'about:blank' });
    await this.until('document.hidden');
  }

  async show() {
    await this.#session.send('Target.activateTarget', { targetId: this.#id });
    await this.until('!document.hidden');
  }

  /** Have none of its tasks run, as a browser does with tabs that nobody looks at for long. */
  freeze() {
    return this.#send('Page.setWebLifecycleState', { state: 'frozen' });
  }

  thaw() {
    return this.#send('Page.setWebLifecycleState', { state: 'active' });
  }
}

/** Wait until the page says so in its top bar. */
export async function isState(page, state) {
  await page.locator(`#status[data-state="${state}"]`).waitFor();
}

export const rowOf = (page, name) =>
  page.getByRole('row').filter({ has: page.getByRole('cell', { name, exact: true }) });
