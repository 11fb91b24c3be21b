/** A process that stood still, and a server that does: against real sockets, with the time that passes there. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createRequire } from 'node:module';
import { createServer } from 'node:net';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { Worker } from 'node:worker_threads';
import { WebSocket, WebSocketServer } from 'ws';
import { RequestTimeout, createClient } from '../zBifrost.js';

const WS = createRequire(import.meta.url).resolve('ws');

/** Hold this thread up until `count` has changed, and then for some time: nothing is read, and no timer fires. */
function standStill(count, before, milliseconds) {
  Atomics.wait(count, 0, before, 30_000);
  Atomics.wait(count, 0, Atomics.load(count, 0), milliseconds);
}

describe('contact R13: an answer that came while the process stood still', () => {
  const answered = new Int32Array(new SharedArrayBuffer(4));
  let worker;
  let url;

  before(async () => {
    // In a thread of its own, which goes on while this one stands still, and says when an answer is on its way.
    const source = `
      const { WebSocketServer } = require(${JSON.stringify(WS)});
      const { parentPort, workerData: answered } = require('node:worker_threads');
      const server = new WebSocketServer({ port: 0, host: '127.0.0.1' }, () =>
        parentPort.postMessage(server.address().port),
      );
      server.on('connection', (socket) => socket.on('message', (data) => {
        const { zKey, zHorizontal, _requestId } = JSON.parse(data);
        if (zKey === 'silence') return;
        if (zKey === 'large') for (let sent = 0; sent < 500; sent += 1) socket.send(JSON.stringify({ sent }));
        const result = zKey === 'large' ? 'x'.repeat(zHorizontal) : zKey;
        socket.send(JSON.stringify({ result, _requestId }), () => {
          if (zKey !== 'large') return;
          Atomics.add(answered, 0, 1);
          Atomics.notify(answered, 0);
        });
      }));`;
    worker = new Worker(source, { eval: true, workerData: answered });
    const [port] = await once(worker, 'message');
    url = `ws://127.0.0.1:${port}/`;
  });
  after(() => worker.terminate());

  for (const [text, timeout, still, size] of [
    ['for 0.1 s', 50, 150, 5],
    ['for 0.5 s', 100, 600, 5],
    ['for 0.9 s', 100, 1000, 5],
    ['for 5 s, with a large answer', 100, 5100, 300_000],
  ]) {
    it(`contact: counts behind many others: ${text}`, async () => {
      const client = await createClient(url, null, { WebSocket });
      const before = Atomics.load(answered, 0);
      const call = client.send({ zKey: 'large', zHorizontal: size }, timeout);
      const silence = client.send({ zKey: 'silence' }, timeout);
      standStill(answered, before, still);
      assert.equal((await call).length, size);
      await assert.rejects(silence, RequestTimeout);
      client.disconnect();
    });
  }
});

it('contact R20: nothing keeps a process alive after disconnect(), not even a server that hangs', async () => {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  server.on('connection', (socket) => {
    socket.on('message', (data) => {
      socket.send(JSON.stringify({ result: 'ping', _requestId: JSON.parse(data)._requestId }));
      socket.pause(); // it reads no goodbye
    });
  });
  const module = fileURLToPath(new URL('../zBifrost.js', import.meta.url));
  const program = `
    import { createClient } from ${JSON.stringify(module)};
    import { WebSocket } from 'ws';
    const client = await createClient('ws://127.0.0.1:${server.address().port}/', null, { WebSocket });
    client.disconnect();`;
  const start = performance.now();
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
    cwd: fileURLToPath(new URL('..', import.meta.url)),
    stdio: 'inherit',
  });
  const [status] = await once(child, 'exit');
  const seconds = (performance.now() - start) / 1000;
  for (const socket of server.clients) socket.terminate();
  server.close();
  assert.equal(status, 0);
  assert.ok(seconds < 15, `it lived on for ${seconds} s`);
});

it('contact: nothing keeps a process alive after disconnect() in whatever state, with calls under way', async () => {
  const { port, close } = await serverOf((socket, { zKey, _requestId }) => {
    if (zKey === 'zDescribe') socket.send(JSON.stringify({ result: {}, _requestId }));
  });
  const greetsNobody = await serverOf(() => {});
  const silent = createServer(() => {}).listen(0, '127.0.0.1');
  await once(silent, 'listening');
  const program = `
    import { zBifrost } from ${JSON.stringify(fileURLToPath(new URL('../zBifrost.js', import.meta.url)))};
    import { WebSocket } from 'ws';
    const make = (port) => new zBifrost('ws://127.0.0.1:' + port + '/', null, { WebSocket, retryDelay: () => 1e6 });
    const left = [];
    const leave = (client, wait) => {
      if (wait === undefined) client.disconnect();
      else left.push(new Promise((done) => setTimeout(() => done(client.disconnect()), wait)));
    };
    for (const port of [${silent.address().port}, ${greetsNobody.port}]) {
      for (const wait of [undefined, 0, 100]) {
        const client = make(port);
        client.connect(); // connecting, or waiting for the answer to its greeting
        leave(client, wait);
      }
    }
    for (const wait of [undefined, 0, 100]) {
      const client = make(${port});
      await client.connect();
      for (let n = 0; n < 100; n += 1) client.send({ zKey: 'silence' });
      client.send({ zKey: 'silence' }, 50).catch(() => {}); // its time is over before it has been sent
      client.send({ zKey: 'silence' }, { signal: new AbortController().signal });
      leave(client, wait);
    }
    const inOpen = make(${port});
    inOpen.on('open', () => inOpen.disconnect());
    await inOpen.connect().catch(() => {});
    const lost = make(${port});
    await lost.connect();
    lost.on('reconnecting', () => lost.disconnect());
    lost.send({ zKey: 'silence' }).catch(() => {});
    const again = make(${port});
    await again.connect();
    again.disconnect();
    again.connect();
    again.disconnect();
    again.disconnect();
    await Promise.all(left);
    console.log('done');`;
  const start = performance.now();
  const child = spawn(process.execPath, ['--input-type=module', '--eval', program], {
    cwd: fileURLToPath(new URL('..', import.meta.url)),
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  await once(child.stdout, 'data');
  close(); // the one that is left loses its connection, and is told to wait for a quarter of an hour
  const [status] = await once(child, 'exit');
  const seconds = (performance.now() - start) / 1000;
  greetsNobody.close();
  silent.close();
  assert.equal(status, 0);
  assert.ok(seconds < 15, `it lived on for ${seconds} s`);
});

/** A server that answers each message as `answer(socket, message)` does; `close` ends it and its connections. */
async function serverOf(answer) {
  const server = new WebSocketServer({ port: 0, host: '127.0.0.1' });
  await once(server, 'listening');
  server.on('connection', (socket) => socket.on('message', (data) => answer(socket, JSON.parse(data))));
  const close = () => {
    for (const socket of server.clients) socket.terminate();
    server.close();
  };
  return { port: server.address().port, close };
}
