import assert from 'node:assert/strict';
import { afterEach, describe, it, mock } from 'node:test';
import { inspect } from 'node:util';
import { zBifrost } from '../zBifrost.js';
import { connected, make } from './fakes.js';

afterEach(() => mock.restoreAll());

describe('the token (N7)', () => {
  for (const [text, url, token, options, sentUrl, protocols] of [
    ['goes as a subprotocol', 'ws://h:1', 'abc.DEF-123_~', {}, 'ws://h:1/', ['zbifrost.v1', 'bearer.abc.DEF-123_~']],
    ['is left out when there is none', 'ws://h:1', null, {}, 'ws://h:1/', undefined],
    ['is left out when it is empty', 'ws://h:1', '', {}, 'ws://h:1/', undefined],
    [
      'goes into the query when asked to',
      'ws://h:1/p',
      'abc',
      { tokenInQuery: true },
      'ws://h:1/p?token=abc',
      undefined,
    ],
    [
      'goes into the query when no subprotocol can hold it',
      'wss://h',
      'a&b=c#d é/',
      {},
      'wss://h/?token=a%26b%3Dc%23d+%C3%A9%2F',
      undefined,
    ],
    ['joins a query that is there', 'ws://h/?x=1', 'a=', {}, 'ws://h/?x=1&token=a%3D', undefined],
    ['replaces one in the query', 'ws://h/?token=old', 'new', { tokenInQuery: true }, 'ws://h/?token=new', undefined],
    [
      'may be in the URL already',
      'ws://localhost:56891?token=mine',
      null,
      {},
      'ws://localhost:56891/?token=mine',
      undefined,
    ],
    ['with a fragment in the URL', 'ws://h/#x', 'abc', {}, 'ws://h/', ['zbifrost.v1', 'bearer.abc']],
    ['with the address of a page', 'https://h/app', 'abc', {}, 'wss://h/app', ['zbifrost.v1', 'bearer.abc']],
  ]) {
    it(text, () => {
      const { net, client } = make(options, token, url);
      client.connect().catch(() => {});
      assert.equal(net.last.url, sentUrl);
      assert.deepEqual(net.last.protocols, protocols);
      client.disconnect();
    });
  }

  for (const token of ['s3cret-token', 's3cret token=&#']) {
    for (const tokenInQuery of [false, true]) {
      it(`never shows: ${token}, in query ${tokenInQuery}`, async () => {
        const written = [];
        for (const name of ['debug', 'log', 'info', 'warn', 'error']) {
          mock.method(console, name, (...values) => written.push(...values.map((value) => inspect(value))));
        }
        const { net, client } = await connected({ debug: true, tokenInQuery, retryDelay: () => 0 }, token);
        client.on('close', (event) => written.push(inspect(event)));
        client.on('error', (error) => written.push(error.message, inspect(error)));
        const call = client.send({ zKey: 'login', zHorizontal: { password: 's3cret' } });
        net.last.drop(1011, `token ${token} (${encodeURIComponent(token)}) went wrong`);
        await assert.rejects(call, (error) => {
          written.push(error.message, error.stack, inspect(error));
          return true;
        });
        const again = client.connect();
        net.last.drop(1006);
        await assert.rejects(again, (error) => {
          written.push(inspect(error));
          return true;
        });
        written.push(
          inspect(client, { showHidden: true, depth: 9 }),
          JSON.stringify(client),
          String(client),
          client.url,
        );
        client.disconnect();
        assert.ok(written.length > 6);
        assert.ok(!written.join('\n').includes('s3cret'), written.join('\n'));
      });
    }
  }

  it('in the URL is not shown either', async () => {
    const client = new zBifrost('ws://user:s3cret@h/?api_key=s3cret&token=s3cret&x=1');
    assert.equal(client.url, 'ws://user:redacted@h/?api_key=redacted&token=redacted&x=1');
    for (const url of ['http//?token=s3cret', 'ftp://h/?token=s3cret']) {
      assert.throws(
        () => new zBifrost(url),
        (error) => !inspect(error).includes('s3cret'),
      );
    }
    const { net, client: other } = make({}, null, 'ws://h/?token=s3cret');
    const failed = other.connect();
    net.last.drop(1006);
    await assert.rejects(failed, (error) => !inspect(error).includes('s3cret'));
  });

  it('is offered again with every reconnection', async () => {
    mock.timers.enable({ apis: ['setTimeout', 'setInterval'] });
    const { net, client } = await connected({ retryDelay: () => 0 }, 'abc');
    net.last.drop();
    mock.timers.tick(1);
    assert.deepEqual(
      net.sockets.map(({ protocols }) => protocols),
      [
        ['zbifrost.v1', 'bearer.abc'],
        ['zbifrost.v1', 'bearer.abc'],
      ],
    );
    client.disconnect();
    mock.timers.reset();
  });
});

describe('debug', () => {
  it('says what happens, by name and not by content', async () => {
    const lines = [];
    const { net, client } = await connected({ debug: (line) => lines.push(line) });
    const call = client.send({ zKey: 'zFunc(login, "s3cret")' });
    net.last.say({ result: 's3cret', _requestId: net.last.sent[0]._requestId });
    await call;
    client.disconnect();
    assert.ok(
      lines.some((line) => /zFunc sent/.test(line)) && lines.some((line) => /zFunc answered after \d+ ms/.test(line)),
    );
    assert.ok(!lines.join().includes('s3cret'));
  });

  it('is silent unless switched on', async () => {
    const written = mock.method(console, 'debug', () => {});
    const { client } = await connected();
    client.disconnect();
    assert.equal(written.mock.callCount(), 0);
  });
});
