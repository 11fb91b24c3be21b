/**
 * Make docs/pictures/page.png, the demo page with its chat, from a server that has just been started: with `twistd zcomm`
 * and `zcomm` on the PATH, `ZCOMM_HOME=$(mktemp -d) node docs/draw_page.mjs`. CHROMIUM is the browser.
 */
import { execFileSync, spawn } from 'node:child_process';
import { zBifrost } from '../js/zBifrost.js';
import { launch, openTab } from '../tests/browser/browser.mjs';

const WIDTH = 1400;
const USERS = [
  ['Ada Lovelace', 'ada', 36, 'admin', true],
  ['Alan Turing', 'alan', 41, 'user', false],
  ['Grace Hopper', 'grace', 85, 'user', false],
  ['Edsger Dijkstra', 'edsger', 72, 'user', false],
  ['Barbara Liskov', 'barbara', 86, 'admin', true],
];
const SAID = [
  ['grace', 'The board is in the database. Who has renamed the third column?'],
  ['me', 'That was me. Undo it if you like.'],
];
const MISSED = [
  ['ada', 'The order of yesterday is through.'],
  ['grace', 'Then I close the ticket.'],
];

/** A server on any free port; resolves with its address. */
function start() {
  const server = spawn('twistd', ['--pidfile=', '-n', 'zcomm', '--port', '0'], { stdio: ['ignore', 'pipe', 'inherit'] });
  return new Promise((resolve, reject) => {
    let log = '';
    server.stdout.on('data', (data) => {
      log += data;
      const found = /listening on (ws:\/\/\S+:\d+)/.exec(log);
      if (found) resolve({ server, url: found[1] });
    });
    server.on('exit', () => reject(new Error(`the server ended:\n${log}`)));
  });
}

const zcomm = (...words) => execFileSync('zcomm', words, { encoding: 'utf8' }).trim();

const { server, url } = await start();
const browser = await launch();
const clients = {};
try {
  for (const name of ['ada', 'grace']) {
    const { token } = JSON.parse(zcomm('token', 'add', name, '--role', 'admin', '--json'));
    clients[name] = new zBifrost(url, token);
    await clients[name].connect();
    await clients[name].topic('room:demo', { presence: true }).subscribe();
  }
  const tab = await openTab(browser, { viewport: { width: WIDTH, height: 900 } });
  const box = tab.getByRole('textbox', { name: 'Message' });
  await tab.goto(zcomm('url'));
  await box.waitFor();
  for (const [name, account, age, role, verified] of USERS) {
    await clients.ada.create('Users', { name, email: `${account}@example.com`, age, role, verified });
  }
  let isHere = true;
  const say = async (name, text) => {
    if (name === 'me') {
      await box.fill(text);
      await box.press('Enter');
    } else await clients[name].topic('room:demo').publish({ text, at: new Date().toISOString() });
    if (isHere) await tab.locator('#chat-said').getByText(text).waitFor();
  };
  for (const [name, text] of SAID) await say(name, text);

  // Its client leaves and comes back, as after a lost connection.
  const own = (action) => tab.evaluate((name) => import('/demo/connection.js').then(({ client }) => client[name]()), action);
  await own('disconnect');
  isHere = false;
  for (const [name, text] of MISSED) await say(name, text);
  await own('connect');
  await tab.locator('#chat-said').getByText(MISSED.at(-1)[1]).waitFor();

  for (const name of ['Call', 'Go', 'Send']) {
    await tab.getByRole('button', { name, exact: true }).click();
    await tab.waitForTimeout(200);
  }
  await clients.grace.topic('room:demo').presence.setState({ typing: true });
  await tab.getByText('grace is typing').waitFor();
  await tab.locator('#status-detail', { hasText: 'ms' }).waitFor();
  await tab.mouse.move(0, 0);
  await tab.evaluate(() => document.activeElement.blur());
  // The bar stays at the top of what can be seen: all of the page.
  const height = await tab.evaluate(() => document.documentElement.scrollHeight);
  await tab.setViewportSize({ width: WIDTH, height });
  await tab.evaluate(() => scrollTo(0, 0));
  await tab.screenshot({ path: new URL('pictures/page.png', import.meta.url).pathname });
} finally {
  for (const client of Object.values(clients)) client.disconnect();
  await browser.close();
  server.kill();
}
