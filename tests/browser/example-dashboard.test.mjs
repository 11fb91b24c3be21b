/** examples/dashboard, in tabs and for two hundred viewers. */
import assert from 'node:assert/strict';
import { execFile } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, it } from 'node:test';
import { promisify } from 'node:util';
import { zBifrost } from '../../js/zBifrost.js';
import { launchBeside, openTab } from './browser.mjs';
import { Network } from './proxy.mjs';
import { Server, given } from './server.mjs';

const EXAMPLE = join(import.meta.dirname, '..', '..', 'examples', 'dashboard');
const server = Server.of([given.twistd[0], join(EXAMPLE, 'sensors.py')]);
const network = new Network(() => server.port);
const KEPT = 600; // values of a sensor
const HALL = 10; // sensors in one
const tabs = [];
let browser;
let token;
let one;
let two;

before(async () => {
  browser = await launchBeside(server.start(), network.start());
  token = await Server.token('viewer', 'member');
  [one, two] = await Promise.all([visit(), visit(network.port, { viewport: { width: 390, height: 780 } })]);
});

after(async () => {
  await browser?.close();
  network.stop();
  await server.stop();
});

afterEach(() => {
  for (const tab of tabs) assert.deepEqual(tab.complaints.splice(0), []);
});

async function visit(port = server.port, options = {}) {
  const tab = await openTab(browser, options);
  tabs.push(tab);
  tab.positions = new Map(); // by topic: the offsets of the messages, as they came
  tab.on('websocket', (socket) =>
    socket.on('framereceived', ({ payload }) => {
      const { event, topic, offset, result } = JSON.parse(payload);
      if (event === 'message') offsets(tab, topic).push(offset);
      for (const message of result?.messages ?? []) offsets(tab, result.topic).push(message.offset);
    }),
  );
  await tab.goto(`http://127.0.0.1:${port}/`);
  await tab.getByLabel('Your token').fill(token);
  await tab.getByRole('button', { name: 'Sign in' }).click();
  await tab.locator('article:visible').first().waitFor();
  return tab;
}

it('ends with a word of what to do where it runs already, or its port is taken', async () => {
  for (const [environ, word] of [
    [{}, /is in use by another zComm/],
    [{ ZCOMM_HOME: Server.dataDirectory('second') }, /WEBSOCKET_PORT names another port/],
  ]) {
    const env = { ...given.environ, WEBSOCKET_PORT: String(server.port), ...environ };
    await assert.rejects(
      promisify(execFile)(given.twistd[0], [join(EXAMPLE, 'sensors.py')], { env }),
      ({ code, stdout, stderr }) => code === 1 && word.test(stdout + stderr) && !/Traceback/.test(stdout + stderr),
    );
  }
});

function offsets({ positions }, topic) {
  if (!positions.has(topic)) positions.set(topic, []);
  return positions.get(topic);
}

/** None is missing, none is there twice. */
function areWhole(positions) {
  for (const [topic, found] of positions) {
    assert.deepEqual(found, Array.from(found, (_, n) => found[0] + n), topic);
  }
}

const isState = (tab, state) => tab.locator(`#status[data-state="${state}"]`).waitFor();
const full = (tab) => tab.locator('article:visible .range', { hasText: /, (5[89]\d|60\d) values/ });

it('shows five minutes to who comes late, at once, and of the chosen halls alone', async () => {
  for (const tab of [one, two]) {
    await full(tab).nth(HALL - 1).waitFor();
    assert.equal(tab.positions.size, HALL);
    for (const found of tab.positions.values()) assert.ok(found.length >= KEPT);
  }
  assert.equal(await two.evaluate(() => document.documentElement.scrollWidth), 390);
  await one.getByLabel('east').press('Space');
  await one.getByLabel('north').press('Space');
  await full(one).nth(HALL - 1).waitFor();
  await one.locator('#rate', { hasText: /^(1[6-9]|2[0-4])$/ }).waitFor();
  assert.deepEqual(new Set(await one.locator('article:visible h2 span').allTextContents()), new Set([' east']));
});

it('bears it that one cannot make up their mind, and shows the past anew', async () => {
  const north = one.getByLabel('north');
  await north.evaluate((box) => {
    for (let n = 0; n < 7; n += 1) box.click();
  });
  await full(one).nth(2 * HALL - 1).waitFor();
  await north.press('Space');
  await one.locator('article:visible h2 span', { hasText: 'north' }).first().waitFor({ state: 'detached' });
  await north.press('Space');
  await full(one).nth(2 * HALL - 1).waitFor();
  await one.locator('#rate', { hasText: /^(3[4-9]|4[0-6])$/ }).waitFor();
  assert.equal(await one.locator('#notice').textContent(), '');
  await north.press('Space');
  await one.locator('#rate', { hasText: /^(1[6-9]|2[0-4])$/ }).waitFor();
});

it('goes on without a gap after a lost connection', async () => {
  network.cut();
  await isState(two, 'reconnecting');
  // As long as some values of each sensor take, as who was not away sees it.
  const [[, seen]] = [...one.positions].filter(([topic]) => topic === 'sensor:east:power');
  const length = seen.length;
  while (seen.length < length + 3) await one.waitForEvent('websocket', { timeout: 200 }).catch(() => {});
  network.mend();
  await isState(two, 'connected');
  await two.locator('#rate', { hasText: /^[1-9]/ }).waitFor();
  areWhole(two.positions);
  assert.equal(await two.locator('#notice').textContent(), '');
});

/** Seconds of processor time that the server has had. */
function processorTime() {
  const fields = readFileSync(`/proc/${server.pid}/stat`, 'utf8').replace(/.*\) /, '').split(' ');
  return (Number(fields[11]) + Number(fields[12])) / 100;
}

it('gives each of two hundred viewers every value of their sensors, in order', async (t) => {
  const viewers = await Promise.all(
    Array.from({ length: 200 }, async () => {
      const client = new zBifrost(`ws://127.0.0.1:${server.port}`, token);
      await client.connect();
      return { client, heard: new Map() };
    }),
  );
  try {
    const sensors = (await viewers[0].client.send({ zKey: 'sensors' })).map(({ topic }) => topic);
    await Promise.all(
      viewers.map(async ({ client, heard }, n) => {
        // Ten of the fifty, others for each viewer.
        const mine = Array.from({ length: 10 }, (_, k) => sensors[(n * 7 + k * (1 + (n % 4))) % sensors.length]);
        for (const name of mine) {
          const found = [];
          heard.set(name, found);
          const topic = client.topic(name, { last: 1 });
          topic.on('message', ({ offset, data }) => found.push([offset, data]));
          await topic.subscribe();
        }
      }),
    );
    const [started, used] = [performance.now(), processorTime()];
    const count = () => viewers.reduce((sum, { heard }) => [...heard.values()].reduce((all, { length }) => all + length, sum), 0);
    const before_ = count();
    // Until the first viewer has had ten more values of their last sensor: about five seconds.
    const [, sample] = [...viewers[0].heard].at(-1);
    const wanted = sample.length + 10;
    await new Promise((resolve) => {
      const name = [...viewers[0].heard.keys()].at(-1);
      const stop = viewers[0].client.topic(name).on('message', () => {
        if (sample.length < wanted) return;
        stop();
        resolve();
      });
    });
    const seconds = (performance.now() - started) / 1000;
    const processor = processorTime() - used;
    const rate = Math.round((count() - before_) / seconds);
    t.diagnostic(`${rate} values a second to 200 viewers: ${((100 * processor) / seconds).toFixed(0)} % of a processor`);
    // What the server has is what everybody was told, each once and in order.
    const kept = new Map();
    for (const name of sensors) {
      const { messages } = await viewers[0].client.topic(name).history({ limit: 1000 });
      kept.set(name, new Map(messages.map(({ offset, data }) => [offset, data])));
    }
    for (const { heard } of viewers) {
      areWhole(new Map([...heard].map(([name, found]) => [name, found.map(([offset]) => offset)])));
      for (const [name, found] of heard) {
        assert.ok(found.length >= 8, `${name}: ${found.length}`);
        for (const [offset, data] of found) {
          // What was told after the history was read is in none of it.
          if (kept.get(name).has(offset)) assert.deepEqual(data, kept.get(name).get(offset), name);
        }
      }
    }
  } finally {
    for (const { client } of viewers) client.disconnect();
  }
});

it('lets nobody else publish', async () => {
  const client = new zBifrost(`ws://127.0.0.1:${server.port}`, token);
  await client.connect();
  await assert.rejects(client.topic('sensor:north:power').publish({ at: 0, value: 1 }), { code: 'permission_denied' });
  client.disconnect();
});

it('says after a restart of the program that earlier values are gone, and shows what there is now', async () => {
  await server.stop('SIGKILL');
  await isState(one, 'reconnecting');
  await server.start();
  await isState(one, 'connected');
  await one.getByText('The program has started anew').waitFor();
  await full(one).nth(HALL - 1).waitFor();
});
