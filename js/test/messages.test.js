import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { zBifrost } from '../zBifrost.js';
import { connected, settle } from './fakes.js';

/** What one call puts on the wire, without its id. */
async function sentBy(act) {
  const { net, client } = await connected();
  act(client).catch(() => {});
  await settle();
  client.disconnect();
  assert.equal(net.last.sent.length, 1);
  const { _requestId, ...message } = net.last.sent[0];
  assert.equal(typeof _requestId, 'number');
  return message;
}

const crud = (action, rest) => ({ zKey: `${action}_Users`, zHorizontal: { action, model: 'Users', ...rest } });

describe('what each method sends', () => {
  for (const [text, act, expected] of [
    ['create', (c) => c.create('Users', { name: 'Alice' }), crud('create', { values: { name: 'Alice' } })],
    ['read, all', (c) => c.read('Users'), crud('read', {})],
    ['read, null filters', (c) => c.read('Users', null), crud('read', {})],
    ['read, empty filters', (c) => c.read('Users', {}), crud('read', { where: {} })],
    [
      'read, filters',
      (c) => c.read('Users', { active: true, age__gte: 18 }),
      crud('read', { where: { active: true, age__gte: 18 } }),
    ],
    ['read, by id', (c) => c.read('Users', 5), crud('read', { where: { id: 5 } })],
    [
      'read, options',
      (c) =>
        c.read(
          'Users',
          { role: 'admin' },
          { fields: ['id', 'name'], order_by: 'created_at DESC', limit: 10, offset: 20, timeout: 5000 },
        ),
      crud('read', {
        where: { role: 'admin' },
        fields: ['id', 'name'],
        order_by: 'created_at DESC',
        limit: 10,
        offset: 20,
      }),
    ],
    [
      'update, number id',
      (c) => c.update('Users', 123, { verified: true }),
      crud('update', { where: { id: 123 }, values: { verified: true } }),
    ],
    ['update, id 0', (c) => c.update('Users', 0, { a: 1 }), crud('update', { where: { id: 0 }, values: { a: 1 } })],
    [
      'update, string id',
      (c) => c.update('Users', 'u-1', { a: 1 }),
      crud('update', { where: { id: 'u-1' }, values: { a: 1 } }),
    ],
    [
      'update, filters',
      (c) => c.update('Users', { email: 'a@b.c' }, { a: 1 }),
      crud('update', { where: { email: 'a@b.c' }, values: { a: 1 } }),
    ],
    [
      'update, list of ids',
      (c) => c.update('Users', [1, 2], { a: 1 }),
      crud('update', { where: { id: [1, 2] }, values: { a: 1 } }),
    ],
    ['update, nothing named', (c) => c.update('Users', undefined, { a: 1 }), crud('update', { values: { a: 1 } })],
    [
      'update, all on purpose',
      (c) => c.update('Users', null, { a: 1 }, { all: true }),
      crud('update', { values: { a: 1 }, all: true }),
    ],
    ['delete, string id', (c) => c.delete('Users', 'u-1'), crud('delete', { where: { id: 'u-1' } })],
    ['delete, filters', (c) => c.delete('Users', { inactive: true }), crud('delete', { where: { inactive: true } })],
    ['delete, empty list', (c) => c.delete('Users', []), crud('delete', { where: { id: [] } })],
    ['delete, a filter on null', (c) => c.delete('Users', { email: null }), crud('delete', { where: { email: null } })],
    [
      'upsert',
      (c) => c.upsert('Users', { email: 'a@b.c' }, ['email']),
      crud('upsert', { values: { email: 'a@b.c' }, conflict_fields: ['email'] }),
    ],
    [
      'upsert, one field',
      (c) => c.upsert('Users', { email: 'a@b.c' }, 'email'),
      crud('upsert', { values: { email: 'a@b.c' }, conflict_fields: ['email'] }),
    ],
    ['upsert, server decides', (c) => c.upsert('Users', { id: 1 }), crud('upsert', { values: { id: 1 } })],
    [
      'a date in a filter',
      (c) => c.read('Users', { created_at__gt: new Date(0) }),
      crud('read', { where: { created_at__gt: '1970-01-01T00:00:00.000Z' } }),
    ],
    [
      'zFunc, finished',
      (c) => c.zFunc('zFunc(calculateTotal, {cart_id: 123})'),
      { zKey: 'zFunc', zHorizontal: 'zFunc(calculateTotal, {cart_id: 123})' },
    ],
    [
      'zFunc, options behind it',
      (c) => c.zFunc(' zFunc (greet) ', { timeout: 9 }),
      { zKey: 'zFunc', zHorizontal: 'zFunc (greet)' },
    ],
    ['zFunc, name', (c) => c.zFunc('greet'), { zKey: 'zFunc', zHorizontal: { name: 'greet', args: [] } }],
    [
      'zFunc, arguments',
      (c) => c.zFunc('total', { cart_id: 1 }, 'a "b")', null, undefined, 2.5, [true]),
      { zKey: 'zFunc', zHorizontal: { name: 'total', args: [{ cart_id: 1 }, 'a "b")', null, null, 2.5, [true]] } },
    ],
    [
      'call',
      (c) => c.call('shop.total', [{ cart_id: 1 }], { timeout: 5 }),
      { zKey: 'zFunc', zHorizontal: { name: 'shop.total', args: [{ cart_id: 1 }] } },
    ],
    [
      'call, by name',
      (c) => c.call('total', [1], { kwargs: { cart_id: 2 } }),
      { zKey: 'zFunc', zHorizontal: { name: 'total', args: [1], kwargs: { cart_id: 2 } } },
    ],
    ['zLink, path', (c) => c.zLink('/admin/users'), { zKey: 'zLink', zHorizontal: 'zLink(/admin/users)' }],
    ['zLink, finished', (c) => c.zLink('zLink(/admin/users)'), { zKey: 'zLink', zHorizontal: 'zLink(/admin/users)' }],
    ['zOpen, file', (c) => c.zOpen('config.yaml'), { zKey: 'zOpen', zHorizontal: 'zOpen(config.yaml)' }],
    ['zOpen, a comma', (c) => c.zOpen('a, b.txt'), { zKey: 'zOpen', zHorizontal: { name: 'a, b.txt' } }],
    ['zOpen, a leading blank', (c) => c.zOpen(' a.txt'), { zKey: 'zOpen', zHorizontal: { name: ' a.txt' } }],
    ['zOpen, finished', (c) => c.zOpen('zOpen(config.yaml)'), { zKey: 'zOpen', zHorizontal: 'zOpen(config.yaml)' }],
    [
      'send',
      (c) => c.send({ zKey: 'custom_command', zHorizontal: { action: 'ping', data: { message: 'Hello' } } }, 10000),
      { zKey: 'custom_command', zHorizontal: { action: 'ping', data: { message: 'Hello' } } },
    ],
    ['send, cmd alone', (c) => c.send({ cmd: 'anything' }), { cmd: 'anything' }],
  ]) {
    it(text, async () => assert.deepEqual(await sentBy(act), expected));
  }
});

describe('what is refused before it is sent', () => {
  for (const [text, act] of [
    ['a filter value undefined, which JSON would drop', (c) => c.delete('Users', { id: undefined, active: true })],
    ['a filter value NaN, which JSON would make null', (c) => c.update('Users', { age: NaN }, {})],
    ['an id NaN', (c) => c.delete('Users', NaN)],
    ['an id Infinity', (c) => c.read('Users', Infinity)],
    ['undefined in a list', (c) => c.delete('Users', [1, undefined])],
    ['undefined deep down', (c) => c.read('Users', { $or: [{ a: 1 }, { b: { c: undefined } }] })],
    ['an invalid date, which JSON would make null', (c) => c.delete('Users', { created_at: new Date(NaN) })],
    ['an object that becomes undefined', (c) => c.delete('Users', { a: { toJSON() {} } })],
    ['a function as filter', (c) => c.read('Users', () => true)],
    ['a model that is no name', (c) => c.read('')],
    ['a model that is missing', (c) => c.create(undefined, {})],
    ['a function that is no name', (c) => c.zFunc('os.system("id")')],
    ['a function name with a comma', (c) => c.zFunc('a, b')],
    ['no function', (c) => c.zFunc()],
    ['no path', (c) => c.zLink()],
    ['an empty path', (c) => c.zLink('  ')],
    ['no file', (c) => c.zOpen(null)],
  ]) {
    it(text, async () => {
      const { net, client } = await connected();
      await assert.rejects(act(client), TypeError);
      assert.deepEqual(net.last.sent, []);
      client.disconnect();
    });
  }
});

describe('what a message of the server is (N10)', () => {
  for (const [text, frame, broadcast] of [
    ['an object', '{"zKey":"create_Users","result":{"id":1}}', { zKey: 'create_Users', result: { id: 1 } }],
    ['text that is not JSON', 'hello there', 'hello there'],
    ['a broken object', '{"a":', '{"a":'],
    ['nothing', '', ''],
    ['an array', '[1,2]', [1, 2]],
    ['null', 'null', null],
    ['a number', '5', 5],
    ['an event of the program', '{"event":"tick","n":1}', { event: 'tick', n: 1 }],
    ['an event that is no text', '{"event":{"ask":1}}', { event: { ask: 1 } }],
    ['an id without result or error', '{"_requestId":1}', { _requestId: 1 }],
    ['markup', '{"text":"<img src=x onerror=alert(1)>"}', { text: '<img src=x onerror=alert(1)>' }],
  ]) {
    it(`a broadcast: ${text}`, async () => {
      const { net, client } = await connected();
      const heard = [];
      client.onBroadcast((message) => heard.push(message));
      net.last.sayText(frame);
      assert.deepEqual(heard, [broadcast]);
      client.disconnect();
    });
  }

  for (const frame of [
    '{"result":1,"_requestId":99}',
    '{"error":"x","_requestId":"1"}',
    '{"result":1,"_requestId":null}',
    '{"result":1,"_requestId":{}}',
    '{"result":1,"_requestId":"__proto__"}',
  ]) {
    it(`ignored: the reply ${frame} to a call that is not there`, async () => {
      const { net, client } = await connected();
      const heard = [];
      client.onBroadcast((message) => heard.push(message));
      const call = client.send({ zKey: 'x' });
      net.last.sayText(frame);
      assert.deepEqual(heard, []);
      assert.equal(client.pending, 1);
      net.last.say({ result: 'mine', _requestId: net.last.sent[0]._requestId });
      assert.equal(await call, 'mine');
      client.disconnect();
    });
  }

  it('keys such as __proto__ and constructor are data', async () => {
    const { net, client } = await connected();
    const heard = [];
    client.onBroadcast((message) => heard.push(message));
    net.last.sayText('{"__proto__":{"polluted":true,"event":"ask","askId":1},"constructor":1,"toString":2}');
    net.last.sayText('{"__proto__":{"_requestId":1,"result":1}}');
    assert.equal({}.polluted, undefined);
    assert.equal(heard.length, 2);
    assert.equal(heard[0].toString, 2);
    client.on('__proto__', () => {});
    client.on('constructor', () => {});
    client.disconnect();
  });

  it('16 MB are taken', async () => {
    const { net, client } = await connected();
    const call = client.send({ zKey: 'x' });
    const big = 'x'.repeat(16 * 1024 * 1024);
    net.last.say({ result: big, _requestId: net.last.sent[0]._requestId });
    assert.equal((await call).length, big.length);
    client.disconnect();
  });

  it('binary is an error event; the client lives', async () => {
    const { net, client } = await connected();
    const errors = [];
    client.on('error', (error) => errors.push(error.code));
    net.last.sayText(new ArrayBuffer(3));
    assert.deepEqual(errors, ['bad_message']);
    assert.equal(client.connected, true);
    client.disconnect();
  });

  it('display and service have events of their own and are no broadcasts', async () => {
    const { net, client } = await connected();
    const told = [];
    client.onBroadcast((message) => told.push(['broadcast', message]));
    client.onDisplay((data) => told.push(['display', data]));
    client.on('service', (service) => told.push(['service', service]));
    net.last.say({ event: 'display', data: { text: 'Hello' } });
    net.last.say({ event: 'service', name: 'redis', status: { running: true } });
    assert.deepEqual(told, [
      ['display', { text: 'Hello' }],
      ['service', { name: 'redis', status: { running: true } }],
    ]);
    client.disconnect();
  });
});

it('a subclass adds methods of its own', async () => {
  class Shop extends zBifrost {
    total(cart) {
      return this.send({ zKey: 'total', zHorizontal: { cart } });
    }
  }
  const { net } = await connected();
  const shop = new Shop('ws://127.0.0.1:1/', null, { WebSocket: net.WebSocket });
  const ready = shop.connect();
  net.last.accept();
  await ready;
  const total = shop.total(7);
  net.last.say({ result: 70, _requestId: net.last.sent[0]._requestId });
  assert.equal(await total, 70);
  shop.disconnect();
});
