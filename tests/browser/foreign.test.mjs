/** Pages of others: none of them runs a command by HTTP, whatever it tries; the server's own page does. */
import assert from 'node:assert/strict';
import { writeFileSync, mkdirSync } from 'node:fs';
import { createServer } from 'node:http';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { createClient } from '../../js/zBifrost.js';
import { launch, openTab } from './browser.mjs';
import { Server, given } from './server.mjs';

const SCHEMA = 'Notes:\n  id: {type: int, pk: true}\n  text: {type: str, required: true}\n';
const CREATE = JSON.stringify({ zKey: 'create_Notes', zHorizontal: { values: { text: 'forged' } } });

/* The name that a stranger has pointed at this machine; Chromium is told so in the place of a name server. */
const REBOUND = 'rebound.example';
const FOREIGN = 'foreign.example';

let server, foreign, foreignPort, browser;

before(async () => {
  const pages = `${given.files}-pages`;
  mkdirSync(pages);
  writeFileSync(join(pages, 'index.html'), '<!DOCTYPE html><title>Mine</title><p>mine</p>');
  writeFileSync(join(pages, 'schema.yaml'), SCHEMA);
  server = new Server('--no-auth', '--schema', join(pages, 'schema.yaml'), '--www', pages);
  await server.start();
  foreign = createServer((request, response) => {
    response.setHeader('Content-Type', 'text/html');
    response.end('<!DOCTYPE html><title>Foreign</title><p>foreign</p>');
  });
  await new Promise((resolve) => foreign.listen(0, '127.0.0.1', resolve));
  foreignPort = foreign.address().port;
  browser = await launch([`--host-resolver-rules=MAP ${REBOUND} 127.0.0.1, MAP ${FOREIGN} 127.0.0.1`]);
});

after(async () => {
  await browser?.close();
  foreign?.close();
  await server?.stop();
});

async function notes() {
  const client = await createClient(`ws://127.0.0.1:${server.port}`);
  try {
    return await client.read('Notes');
  } finally {
    client.disconnect();
  }
}

/** What became of one try of a page: a status that it can read, `opaque`, or the error. */
const tries = {
  'a simple request with text': (url, body) =>
    fetch(url, { method: 'POST', body, headers: { 'Content-Type': 'text/plain' } }),
  'one without CORS': (url, body) =>
    fetch(url, { method: 'POST', mode: 'no-cors', credentials: 'include', body, headers: { 'Content-Type': 'text/plain' } }),
  'one without CORS that claims to be JSON': (url, body) =>
    fetch(url, { method: 'POST', mode: 'no-cors', body, headers: { 'Content-Type': 'application/json' } }),
  'one with a preflight': (url, body) =>
    fetch(url, { method: 'POST', body, headers: { 'Content-Type': 'application/json' } }),
  'one with a token and a preflight': (url, body) =>
    fetch(url, { method: 'POST', body, headers: { 'Content-Type': 'application/json', Authorization: 'Bearer x' } }),
  'a blob of that type': (url, body) =>
    fetch(url, { method: 'POST', mode: 'no-cors', body: new Blob([body], { type: 'application/json' }) }),
  'one without a referrer': (url, body) =>
    fetch(url, { method: 'POST', mode: 'no-cors', referrerPolicy: 'no-referrer', body }),
  'one that is kept alive': (url, body) => fetch(url, { method: 'POST', mode: 'no-cors', keepalive: true, body }),
  'a beacon': async (url, body) => (navigator.sendBeacon(url, body), { status: 'sent' }),
  'a beacon of that type': async (url, body) => (
    navigator.sendBeacon(url, new Blob([body], { type: 'application/json' })), { status: 'sent' }
  ),
  'an XMLHttpRequest': (url, body) =>
    new Promise((resolve, reject) => {
      const request = new XMLHttpRequest();
      request.open('POST', url);
      request.onload = () => resolve(request);
      request.onerror = () => reject(new TypeError('failed'));
      request.send(body);
    }),
};

async function tryFrom(page, name, url) {
  return page.evaluate(
    async ([source, url, body]) => {
      try {
        const answer = await (0, eval)(`(${source})`)(url, body);
        return answer.type === 'opaque' ? 'opaque' : answer.status;
      } catch (error) {
        return error.name;
      }
    },
    [tries[name].toString(), url, CREATE],
  );
}

/** Post a form, into a frame of the page. */
async function postForm(page, url, enctype, sandbox) {
  await page.evaluate(
    ([url, enctype, body, sandbox]) =>
      new Promise((resolve) => {
        const frame = document.createElement('iframe');
        if (sandbox) frame.sandbox = 'allow-forms allow-scripts';
        frame.name = `frame${Math.random()}`;
        document.body.append(frame);
        const form = document.createElement('form');
        Object.assign(form, { method: 'post', action: url, enctype, target: frame.name });
        const input = document.createElement('input');
        // With text/plain the body is name=value: JSON with an equals sign in a text.
        [input.name, input.value] = [body.replace('forged"', 'forged'), '"}}}'];
        form.append(input);
        document.body.append(form);
        frame.onload = () => resolve();
        form.submit();
        setTimeout(resolve, 3000);
      }),
    [url, enctype, CREATE.slice(0, -3), sandbox],
  );
}

describe('a page of a foreign origin', () => {
  for (const path of ['/call', '/publish']) {
    it(`runs nothing by ${path}`, async () => {
      const page = await openTab(browser);
      await page.goto(`http://${FOREIGN}:${foreignPort}/`);
      const url = `http://127.0.0.1:${server.port}${path}`;
      for (const name of Object.keys(tries)) {
        const became = await tryFrom(page, name, url);
        assert.ok([403, 'opaque', 'TypeError', 'sent'].includes(became), `${name}: ${became}`);
      }
      for (const enctype of ['text/plain', 'application/x-www-form-urlencoded', 'multipart/form-data'])
        for (const sandbox of [false, true]) await postForm(page, url, enctype, sandbox);
      assert.deepEqual(await notes(), []);
      await page.context().close();
    });
  }

  it('nor by another name of the server, the loopback origin with another port included', async () => {
    const page = await openTab(browser);
    await page.goto(`http://${FOREIGN}:${foreignPort}/`);
    for (const host of ['localhost', '[::1]', '127.0.0.2', REBOUND])
      for (const name of ['one without CORS', 'one with a preflight'])
        await tryFrom(page, name, `http://${host}:${server.port}/call`);
    // An origin that may use the WebSocket may ask for no more than that: who asks first is answered 405.
    await page.goto(`http://localhost:${foreignPort}/`);
    assert.equal(
      await tryFrom(page, 'one with a preflight', `http://127.0.0.1:${server.port}/call`),
      'TypeError',
    );
    for (const name of ['one without CORS', 'a simple request with text', 'a blob of that type'])
      await tryFrom(page, name, `http://127.0.0.1:${server.port}/call`);
    assert.deepEqual(await notes(), []);
    await page.context().close();
  });
});

describe('a name that was pointed at this machine', () => {
  it('is none of the server, so that a page below it is of a foreign origin', async () => {
    // The stranger's script runs in a page of that name and port, as if it had been loaded before that was pointed here.
    const page = await openTab(browser, { bypassCSP: true });
    const answer = await page.goto(`http://${REBOUND}:${server.port}/`);
    assert.equal(answer.status(), 421);
    const url = `http://${REBOUND}:${server.port}/call`;
    for (const name of ['one with a preflight', 'one with a token and a preflight', 'a simple request with text'])
      assert.equal(await tryFrom(page, name, url), 421, name);
    assert.deepEqual(await notes(), []);
    await page.context().close();
  });
});

describe('the page that the server serves', () => {
  it('calls, with the type of its body and nothing else', async () => {
    const page = await openTab(browser);
    await page.goto(`http://127.0.0.1:${server.port}/`);
    assert.equal(await page.title(), 'Mine');
    assert.equal(await tryFrom(page, 'a simple request with text', '/call'), 415);
    assert.deepEqual(await notes(), []);
    assert.equal(await tryFrom(page, 'one with a preflight', '/call'), 200);
    assert.deepEqual(
      (await notes()).map(({ text }) => text),
      ['forged'],
    );
    await page.context().close();
  });

  it('imports the client from there, and so does a foreign one', async () => {
    for (const from of [`http://127.0.0.1:${server.port}/`, `http://${FOREIGN}:${foreignPort}/`]) {
      const page = await openTab(browser);
      await page.goto(from);
      const names = await page.evaluate(
        async (url) => Object.keys(await import(url)),
        `http://127.0.0.1:${server.port}/zBifrost.js`,
      );
      assert.ok(names.includes('zBifrost'));
      await page.context().close();
    }
  });
});
