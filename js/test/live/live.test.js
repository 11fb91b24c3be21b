/**
 * The client against a real server: ZCOMM_URL and ZCOMM_TOKEN say which. It needs the demo schema and functions,
 * and a file config.yaml that zOpen may read. Rows that these tests make are theirs; others are not touched.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { after, before, describe, it } from 'node:test';
import { WebSocket } from 'ws';
import { CommandFailed, ConnectionRefused, createClient, zBifrost } from '../../zBifrost.js';

const { ZCOMM_URL: url, ZCOMM_TOKEN: token } = process.env;
assert.ok(url && token, 'set ZCOMM_URL and ZCOMM_TOKEN');
const run = randomUUID().slice(0, 8);
const email = (name) => `${name}.${run}@example.com`;

/** The next event as a promise. */
const next = (client, event, fits = () => true) =>
  new Promise((resolve) => {
    const stop = client.on(event, (value) => {
      if (fits(value)) {
        stop();
        resolve(value);
      }
    });
  });

let client;
before(async () => {
  client = await createClient(url, token, { retryDelay: 50 });
});
after(() => client.disconnect());

describe('rows', () => {
  it('are created with their id and defaults, read, updated, deleted', async () => {
    const user = await client.create('Users', { name: 'Alice', email: email('alice') });
    assert.equal(typeof user.id, 'number');
    assert.equal(user.active, true);
    assert.deepEqual(await client.read('Users', user.id), [user]);
    assert.deepEqual(await client.update('Users', user.id, { verified: true, age: 30 }), { updated: 1 });
    const [found] = await client.read('Users', { email: email('alice') }, { fields: ['id', 'verified', 'age'] });
    assert.deepEqual(found, { id: user.id, verified: true, age: 30 });
    assert.deepEqual(await client.delete('Users', user.id), { deleted: 1 });
    assert.deepEqual(await client.read('Users', user.id), []);
  });

  it('are filtered, ordered and paged as the options say', async () => {
    for (const [name, age] of [
      ['c', 17],
      ['a', 18],
      ['b', 40],
    ])
      await client.create('Users', { name, age, email: email(name) });
    const mine = { email__endswith: `${run}@example.com` };
    const names = async (filters, options) =>
      (await client.read('Users', { ...mine, ...filters }, options)).map(({ name }) => name);
    assert.deepEqual(await names({ age__gte: 18 }, { order_by: 'name' }), ['a', 'b']);
    assert.deepEqual(await names({}, { order_by: 'age DESC', limit: 2 }), ['b', 'a']);
    assert.deepEqual(await names({}, { order_by: ['age DESC'], limit: 2, offset: 1 }), ['a', 'c']);
    assert.deepEqual(await names({ $or: [{ name: 'a' }, { name: 'c' }] }, { order_by: 'name' }), ['a', 'c']);
    assert.deepEqual(await client.update('Users', mine, { role: 'tester' }), { updated: 3 });
    const ids = (await client.read('Users', mine)).map(({ id }) => id);
    assert.deepEqual(await client.delete('Users', ids), { deleted: 3 });
    assert.deepEqual(await client.delete('Users', []), { deleted: 0 });
  });

  it('are inserted or updated by upsert', async () => {
    const first = await client.upsert('Users', { name: 'Ann', email: email('ann') }, ['email']);
    const second = await client.upsert('Users', { name: 'Anna', email: email('ann') }, 'email');
    assert.deepEqual([second.id, second.name], [first.id, 'Anna']);
    await client.delete('Users', first.id);
  });

  it('are written once when a write with an idempotency key is sent twice', async () => {
    const write = () =>
      client.create('Users', { name: 'Once', email: email('once') }, { idempotencyKey: `once-${run}` });
    const [first, second] = [await write(), await write()];
    assert.equal(first.id, second.id);
    await client.delete('Users', first.id);
  });

  it('may be written hundreds at once', async () => {
    const made = await Promise.all(
      Array.from({ length: 300 }, (_, n) => client.create('Messages', { text: `${run} ${n}` })),
    );
    assert.equal(new Set(made.map(({ id }) => id)).size, 300);
    assert.deepEqual(
      await client.delete(
        'Messages',
        made.map(({ id }) => id),
      ),
      { deleted: 300 },
    );
  });
});

describe('errors', () => {
  it('name the fields that are wrong', async () => {
    await assert.rejects(client.create('Users', { name: '', email: 'nowhere', age: 'old' }), (error) => {
      assert.ok(error instanceof CommandFailed);
      assert.equal(error.code, 'invalid');
      assert.deepEqual(Object.keys(error.fields).sort(), ['age', 'email', 'name']);
      return true;
    });
  });

  for (const [code, act] of [
    ['unknown_model', (c) => c.read('Userz')],
    ['unknown_field', (c) => c.read('Users', { agee: 1 })],
    ['invalid', (c) => c.delete('Users')],
    ['invalid', (c) => c.update('Users', {}, { name: 'x' })],
    ['unknown_command', (c) => c.zFunc('nothing_of_that_name')],
    ['unknown_command', (c) => c.send({ zKey: 'custom_command', zHorizontal: {} })],
    ['bad_message', (c) => c.send({ zHorizontal: 1 })],
    ['not_found', (c) => c.zOpen('../../etc/passwd')],
  ]) {
    it(`have the code ${code}: ${act}`, async () => {
      await assert.rejects(act(client), { name: 'CommandFailed', code, retryable: false });
    });
  }

  it('of a unique field are a conflict at that field', async () => {
    const user = await client.create('Users', { name: 'One', email: email('one') });
    await assert.rejects(
      client.create('Users', { name: 'Two', email: email('one') }),
      (error) => error.code === 'conflict' && 'email' in error.fields,
    );
    await client.delete('Users', user.id);
  });
});

describe('commands', () => {
  it('send() answers raw ones', async () => {
    const data = { message: 'Hello ä € 😀', list: [1, null, true] };
    assert.deepEqual(await client.send({ zKey: 'ping', zHorizontal: data }, 10000), data);
  });

  it('zFunc calls a function, in both forms', async () => {
    const total = await client.zFunc('zFunc(calculateTotal, {cart_id: 123})');
    assert.deepEqual(await client.zFunc('calculateTotal', { cart_id: 123 }), total);
  });

  it('zLink and zOpen go and read, in both forms', async () => {
    assert.deepEqual(await client.zLink('/admin/users'), await client.zLink('zLink(/admin/users)'));
    const file = await client.zOpen('config.yaml');
    assert.equal(file.name, 'config.yaml');
    assert.deepEqual(await client.zOpen('zOpen(config.yaml)'), file);
  });

  it('a function asks and reports its progress', async () => {
    const prompts = [];
    const steps = [];
    client.onAsk((prompt, { error }) => {
      prompts.push([prompt.kind, error?.code]);
      return error ? 'Frida' : '';
    });
    const welcome = await client.call('greet', [], { onProgress: ({ done, total }) => steps.push(`${done}/${total}`) });
    assert.match(welcome, /Frida/);
    assert.deepEqual(prompts, [
      ['text', undefined],
      ['text', 'invalid'],
    ]);
    assert.equal(steps.at(-1).split('/')[0], steps.at(-1).split('/')[1]);
  });
});

describe('two clients', () => {
  it("hear of each other's changes, and not of each other's reads", async () => {
    const other = await createClient(url, token);
    const heard = [];
    const done = next(other, 'broadcast', (message) => {
      heard.push(message);
      return message.zKey === 'delete_Users';
    });
    const own = [];
    const listener = (message) => own.push(message);
    client.onBroadcast(listener);
    const user = await client.create('Users', { name: '<img src=x onerror=alert(1)>', email: email('heard') });
    await client.read('Users', user.id);
    await client.delete('Users', user.id);
    await done;
    client.removeBroadcastListener(listener);
    other.disconnect();
    assert.deepEqual(heard, [
      { zKey: 'create_Users', result: user },
      { zKey: 'delete_Users', result: { deleted: 1 }, ids: [user.id] },
    ]);
    assert.deepEqual(own, []);
  });
});

describe('the connection', () => {
  for (const wrong of ['wrong-token', 'wrong & not a subprotocol', null]) {
    it(`is refused for good with the token ${wrong}`, async () => {
      const refused = new zBifrost(url, wrong);
      await assert.rejects(refused.connect(), (error) => {
        assert.ok(error instanceof ConnectionRefused);
        assert.equal(error.closeCode, 1008);
        assert.ok(wrong === null || !error.message.includes(wrong));
        return true;
      });
      assert.equal(refused.state, 'disconnected');
    });
  }

  it('takes the token in the query too', async () => {
    const inQuery = await createClient(url, token, { tokenInQuery: true });
    assert.equal(await inQuery.send({ zKey: 'ping', zHorizontal: 1 }), 1);
    inQuery.disconnect();
  });

  it('contact R26: outlives a message that is too big; that call alone fails, and one of just the limit arrives', async () => {
    const big = await createClient(url, token);
    const beside = big.send({ zKey: 'ping', zHorizontal: 'beside' });
    const limit = 1024 * 1024;
    const [none, over, just] = ['', 'x'.repeat(limit), 'é'.repeat((limit - 60) / 2)].map((text) =>
      big.send({ zKey: 'ping', zHorizontal: text }),
    );
    await assert.rejects(
      over,
      (error) => error instanceof CommandFailed && error.code === 'invalid' && !error.retryable,
    );
    assert.deepEqual([await none, (await just).length, await beside], ['', (limit - 60) / 2, 'beside']);
    assert.equal(big.state, 'connected');
    big.disconnect();
  });

  it('contact R1: answers what it cannot read, at once and to its call', async () => {
    const deep = '['.repeat(70) + ']'.repeat(70);
    class Wilful extends WebSocket {
      // The client itself does not send what is too deep for the server.
      send(text) {
        super.send(text.replace('"deep"', deep));
      }
    }
    const raw = await createClient(url, token, { WebSocket: Wilful });
    const others = await createClient(url, token);
    const heard = [];
    others.onBroadcast((message) => heard.push(message));
    raw.onBroadcast((message) => heard.push(message));
    for (const [horizontal, code] of [
      ['deep', 'bad_message'],
      [[Array(20_000).fill([[[1]]]), 'deep'], 'bad_message'],
      [JSON.parse(deep), 'invalid'],
    ]) {
      await assert.rejects(raw.send({ zKey: 'ping', zHorizontal: horizontal }), { name: 'CommandFailed', code });
    }
    await assert.rejects(raw.create('Users', { name: 'Hi 😀'.slice(0, 4) }), TypeError);
    await others.send({ zKey: 'ping' });
    assert.deepEqual(heard, []);
    raw.disconnect();
    others.disconnect();
  });

  it('contact F4.1: keeps integers beyond 2^53, both ways', async () => {
    for (const [bigints, value, back] of [
      ['bigint', [2n ** 53n + 1n, -(2n ** 80n), 5], undefined],
      ['string', [2n ** 53n + 1n], ['9007199254740993']],
      ['number', [2 ** 53 - 1, 2 ** 60], undefined],
    ]) {
      const exact = await createClient(url, token, { bigints });
      assert.deepEqual(await exact.send({ zKey: 'ping', zHorizontal: value }), back ?? value);
      for (const age of [2n ** 53n + 1n, '9007199254740993']) {
        // Too old for the rules of the model, which only an exact integer gets as far as.
        await assert.rejects(exact.create('Users', { name: 'Old', email: email('old'), age }), (error) => {
          assert.doesNotMatch(error.fields.age, /whole number/);
          return true;
        });
      }
      await assert.rejects(exact.update('Users', 2 ** 53 + 2, { age: 5 }), ({ fields, message }) =>
        /whole number, written with all its digits/.test(fields.id ?? message),
      );
      exact.disconnect();
    }
  });

  it('1.16: a function gets what a message can hold, by place and by name', async () => {
    const total = await client.zFunc('zFunc(calculateTotal, {cart_id: 123})');
    assert.deepEqual(await client.call('calculateTotal', [{ cart_id: 123, note: 'x'.repeat(500_000) }]), {
      ...total,
      ...((await client.call('calculateTotal', [{ cart_id: 123 }])) ?? {}),
    });
    await assert.rejects(client.call('greet', [], { kwargs: { client: 1 } }), { code: 'invalid' });
  });

  it('ends by disconnect() and can be made again', async () => {
    const again = await createClient(url, token);
    again.disconnect();
    assert.equal(again.state, 'disconnected');
    await again.connect();
    assert.equal(await again.send({ zKey: 'ping', zHorizontal: 2 }), 2);
    again.disconnect();
  });
});
