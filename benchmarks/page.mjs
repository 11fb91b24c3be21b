/**
 * Frames of the demo page in Chromium while another program changes all 1,000 rows of its table at once:
 * `node benchmarks/page.mjs [STEPS]`, with `twistd` and `zcomm` of this checkout on the PATH. CHROMIUM is the browser.
 *
 * Of each kind of change it prints the longest time between two frames, and the most work of the page's main thread for
 * one frame: processor time of scripts, style, layout and paint, from the browser's trace. The first has what else the
 * machine does in it, the second has not: 60 frames a second can be kept where it is less than 16.7 ms.
 */
import { execFileSync, spawn } from 'node:child_process';
import { mkdtempSync, rmSync } from 'node:fs';
import { loadavg, tmpdir } from 'node:os';
import { join } from 'node:path';
import { launch, openTab } from '../tests/browser/browser.mjs';

const STEPS = Number(process.argv[2] ?? 10);
const ROWS = 1000;
/* Milliseconds that are looked at from the moment on in which a step comes, and of a page in which nothing happens. */
const SPAN = 1500;
const CATEGORIES = ['devtools.timeline', 'disabled-by-default-devtools.timeline', 'toplevel'];

const home = mkdtempSync(join(tmpdir(), 'zcomm-page-'));
process.env.ZCOMM_HOME = home;
const database = join(home, 'rows.db');

/** Run SQL as a program beside the server. */
const sql = (...statements) =>
  execFileSync('python3', [
    ...['-c', 'import sqlite3, sys\nwith sqlite3.connect(sys.argv[1], 30) as c: [c.execute(s) for s in sys.argv[2:]]'],
    ...[database, ...statements],
  ]);
const numbers = (from) => `WITH RECURSIVE n(i) AS (SELECT ${from} UNION ALL SELECT i + 1 FROM n WHERE i < ${from + ROWS - 1})`;
const insert = (from) =>
  `INSERT INTO "Users" (name, email, active, inactive, age, role, verified, created_at) ${numbers(from)}
   SELECT 'Person ' || i, 'person' || i || '@example.com', 1, 0, 10 + i % 90, 'user', 0, '2026-11-30 12:00:00' FROM n`;

const KINDS = [
  ['nothing', () => null],
  ['one field of each', (n) => `UPDATE "Users" SET age = 10 + (id * 7 + ${n}) % 90`],
  [
    'five fields of each',
    (n) => `UPDATE "Users" SET age = 10 + (id * 7 + ${n}) % 90, name = 'Other ' || (id * ${n + 2}), role = 'role ' || ${n},
      verified = NOT verified, active = NOT active`,
  ],
  ['the order of all', (n) => `UPDATE "Users" SET age = 10 + (id * ${n % 2 ? 31 : 17}) % 90`, 'age ASC'],
  ['all leave, others enter', (n) => ['DELETE FROM "Users"', insert(ROWS * (n + 2))], 'id DESC'],
];

function start() {
  const words = ['--pidfile=', '-n', 'zcomm', '--port', '0', '--database', `sqlite:///${database}`];
  const server = spawn('twistd', words, { stdio: ['ignore', 'pipe', 'inherit'] });
  return new Promise((resolve, reject) => {
    let log = '';
    server.stdout.on('data', (data) => {
      log += data;
      if (/listening on ws:/.test(log)) resolve(server);
    });
    server.on('exit', () => reject(new Error(`the server ended:\n${log}`)));
  });
}

/** Remember when steps came, and when frames did. */
function remember() {
  Object.assign(window, { steps: [], frames_: [] });
  const Plain = WebSocket;
  window.WebSocket = class extends Plain {
    constructor(...words) {
      super(...words);
      this.addEventListener('message', ({ data }) => {
        if (data.startsWith('{"event":"live"')) window.steps.push(performance.now());
      });
    }
  };
  const frame = (now) => {
    window.frames_.push(now);
    requestAnimationFrame(frame);
  };
  requestAnimationFrame(frame);
}

/** Do `act`, and measure the frames from its step on: {longest, work} in milliseconds. */
async function measure(browser, tab, act) {
  await tab.evaluate(() => {
    window.steps.length = window.frames_.length = 0;
  });
  await browser.startTracing(tab, { categories: CATEGORIES });
  if (act !== null) {
    sql(...[act].flat());
    await tab.waitForFunction(() => window.steps.length > 0);
  }
  await tab.waitForTimeout(SPAN);
  const { traceEvents } = JSON.parse((await browser.stopTracing()).toString());
  const [steps, frames] = await tab.evaluate(() => [window.steps, window.frames_]);
  const since = steps[0] ?? frames[0];
  const seen = frames.filter((at, n) => (frames[n + 1] ?? at) >= since);
  const longest = Math.max(...seen.slice(1).map((at, n) => at - seen[n]));
  return { longest, work: workOf(traceEvents), steps: steps.length };
}

/** The most processor time that the main thread of the page had between the beginnings of two frames. */
function workOf(events) {
  const animated = events.filter(({ name }) => name === 'FireAnimationFrame');
  const [{ pid, tid }] = animated;
  const begins = animated.filter((event) => event.pid === pid).map(({ ts }) => ts);
  const tasks = events.filter((event) => event.pid === pid && event.tid === tid && event.name === 'RunTask' && event.tdur);
  const work = new Map();
  for (const { ts, dur, tdur } of tasks) {
    const frame = begins.findIndex((begin) => begin > ts + dur);
    work.set(frame, (work.get(frame) ?? 0) + tdur / 1000);
  }
  return Math.max(...work.values());
}

const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
const shown = (values) => `${median(values).toFixed(1).padStart(8)} ${Math.max(...values).toFixed(1).padStart(8)}`;

const server = await start();
const browser = await launch();
try {
  sql(insert(0));
  const tab = await openTab(browser);
  await tab.addInitScript(remember);
  await tab.goto(execFileSync('zcomm', ['url'], { encoding: 'utf8' }).trim());
  for (const count of ['first 50', 'first 100', 'first 200', 'first 400', 'first 800']) {
    await tab.locator('#rows-count', { hasText: new RegExp(`^${count}$`) }).waitFor();
    await tab.getByRole('button', { name: 'Show more' }).click();
  }
  await tab.locator('#rows-count', { hasText: 'first 1,000' }).waitFor();
  console.log(`${ROWS} rows, ${STEPS} steps of each kind, load ${loadavg()[0].toFixed(1)}; milliseconds, median and most`);
  console.log(`${'what changes'.padEnd(26)} between frames   work of one frame`);
  for (const [name, change, order = 'id DESC'] of KINDS) {
    await tab.locator('#sort').selectOption(order);
    await tab.locator('#rows-state[data-state="live"]').waitFor();
    await tab.waitForTimeout(SPAN);
    const found = [];
    for (let n = 0; n < STEPS; n += 1) found.push(await measure(browser, tab, change(n)));
    console.log(`${name.padEnd(24)} ${shown(found.map(({ longest }) => longest))} ${shown(found.map(({ work }) => work))}`);
  }
  console.log(`load ${loadavg()[0].toFixed(1)}`);
  if (tab.complaints.length > 0) throw new Error(tab.complaints.join('\n'));
} finally {
  await browser.close();
  server.kill();
  rmSync(home, { recursive: true, force: true });
}
