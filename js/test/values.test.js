import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { zBifrost } from '../zBifrost.js';
import { connected, make, settle, watch } from './fakes.js';

/** The text of the one message that `act` puts on the wire. */
async function textOf(act) {
  const { net, client } = await connected();
  const texts = [];
  const { send } = net.last;
  net.last.send = (text) => texts.push(text) && send.call(net.last, text);
  act(client).catch(() => {});
  await settle();
  client.disconnect();
  assert.equal(texts.length, 1);
  return texts[0];
}

/** The text of `value` where it stands in a message. */
const written = async (value) => {
  const text = await textOf((client) => client.send({ zKey: 'x', zHorizontal: value }));
  return text.match(/^\{"zKey":"x","zHorizontal":(.*),"_requestId":\d+\}$/s)[1];
};

class Empty {}
class Private {
  #amount = 5;
  get amount() {
    return this.#amount;
  }
}
const round = { name: 'round' };
round.itself = round;
const deep = [];
for (let level = 0, inner = deep; level < 5000; level += 1) {
  inner.push([]);
  [inner] = inner;
}

describe('contact R12: what JSON has no form for', () => {
  const holes = {
    NaN: parseInt('', 10),
    Infinity: 1 / 0,
    '-Infinity': -1 / 0,
    'a Number object that is NaN': Object(NaN),
    'an invalid date': new Date('31.12.2024'),
    'a Map': new Map([['a', 1]]),
    'a Set': new Set([1]),
    'a WeakMap': new WeakMap(),
    'a Blob': new Blob(['text']),
    'an ArrayBuffer': new ArrayBuffer(2),
    'a typed array': new Uint8Array([1, 2]),
    'a list of floats': new Float64Array([1.5]),
    'a DataView': new DataView(new ArrayBuffer(2)),
    'a promise that nobody awaited': Promise.resolve(1),
    'a pattern': /a/,
    'an error': new Error('x'),
    'form data': new FormData(),
    'search parameters': new URLSearchParams('a=1'),
    'a generator': (function* () {})(),
    'a function': () => 1,
    'a class': Empty,
    'a symbol': Symbol('x'),
    'an instance without anything': new Empty(),
    'an instance whose values are private': new Private(),
    'an object that becomes null': { toJSON: () => null },
    'an object that becomes undefined': { toJSON() {} },
    'half an emoji': 'Hi 😀'.slice(0, 4),
    'the other half': '😀'.slice(1),
    'a String object with half an emoji': Object('\ud83d'),
    'half an emoji as a name': { '\ud83d': 1 },
    'undefined in a list': [1, undefined],
    'a list with a gap': [1, , 3], // eslint-disable-line no-sparse-arrays
    'a part of itself': round,
    'thousands of levels': deep,
  };
  const calls = {
    create: (c, value) => c.create('Users', { name: 'A', field: value }),
    'create, deep': (c, value) => c.create('Users', { name: 'A', field: { list: [{ value }] } }),
    update: (c, value) => c.update('Users', 1, { field: value }),
    'update, filter': (c, value) => c.update('Users', { field: value }, { a: 1 }),
    upsert: (c, value) => c.upsert('Users', { field: value }),
    read: (c, value) => c.read('Users', { $or: [{ a: 1 }, { field__in: [value] }] }),
    'read, by id': (c, value) => c.read('Users', [value]),
    delete: (c, value) => c.delete('Users', { field: value }),
    zFunc: (c, value) => c.zFunc('total', { field: value }),
    call: (c, value) => c.call('total', [[value]]),
    'call, by name': (c, value) => c.call('total', [], { kwargs: { field: value } }),
    send: (c, value) => c.send({ zKey: 'x', zHorizontal: value }),
    'send, beside the command': (c, value) => c.send({ zKey: 'x', zHorizontal: 1, more: value }),
  };
  for (const [name, call] of Object.entries(calls)) {
    it(`is refused by ${name}, and nothing is sent`, async () => {
      const { net, client } = await connected();
      for (const [text, value] of Object.entries(holes)) {
        await assert.rejects(call(client, value), TypeError, text);
      }
      assert.deepEqual(net.last.sent, []);
      assert.equal(client.pending, 0);
      client.disconnect();
    });
  }

  it('is told by its place and with what helps', async () => {
    const { client } = await connected();
    for (const [act, message] of [
      [() => client.update('Users', 1, { age: NaN }), /values\.age is NaN, which JSON has no form for/],
      [() => client.create('Users', { at: [new Date(NaN)] }), /values\.at\[0\] is an invalid date/],
      [() => client.create('Users', { file: new Blob([]) }), /values\.file is a Blob, which needs a method toJSON\(\)/],
      [() => client.create('Users', { money: new Private() }), /values\.money is a Private/],
      [() => client.delete('Users', { id: undefined }), /where\.id is undefined/],
      [() => client.send({ zKey: 'x', zHorizontal: 'a\udc00' }), /zHorizontal is a text with half a character/],
    ]) {
      await assert.rejects(act(), { name: 'TypeError', message });
    }
    client.disconnect();
  });

  it('undefined is left out of values, never out of a filter', async () => {
    assert.equal(await written({ a: undefined, b: 1, c: { d: undefined } }), '{"b":1,"c":{}}');
    const { net, client } = await connected();
    for (const call of [
      client.read('Users', { a: 1, b: undefined }),
      client.read('Users', { $or: [{ a: 1, b: undefined }] }),
      client.send({ zKey: 'delete_Users', zHorizontal: { where: { id: undefined, active: true } } }),
      client.send({ zKey: 'delete_Users', zHorizontal: { filters: { $not: { id: undefined } } } }),
      client.send({ zKey: 'delete_Users', zHorizontal: { where: undefined, all: true } }),
    ]) {
      await assert.rejects(call, TypeError);
    }
    assert.deepEqual(net.last.sent, []);
    client.disconnect();
  });

  it('everything else is written as JSON.stringify does', async () => {
    class User {
      constructor() {
        this.name = 'Ann';
        this.at = new Date(0);
      }
    }
    for (const value of [
      null,
      true,
      '',
      'a "b" \\ \n \u2028 😀 ä',
      -0,
      0.1,
      1e300,
      5e-324,
      [],
      {},
      [[null, [1.5, 'x']], { a: { b: [] } }],
      new Date(0),
      new URL('http://h/'),
      new User(),
      Object.create(null, { a: { value: 1, enumerable: true } }),
      { toJSON: () => ({ a: [new Date(1)] }) },
      { toJSON: (key) => key },
      Buffer.from('ab'),
      Object(5),
      Object('x'),
      Object(false),
      { __proto__: null, ['__proto__']: 1, 'a.b': 2 },
      new Proxy({ a: [1] }, {}),
      Object.freeze([Object.freeze({ a: 1 })]),
    ]) {
      const key = typeof value?.toJSON === 'function' && String(value.toJSON) === '(key) => key';
      assert.equal(await written(value), key ? '"zHorizontal"' : JSON.stringify(value));
    }
    const twice = { a: 1 };
    assert.equal(await written([twice, twice, { twice }]), '[{"a":1},{"a":1},{"twice":{"a":1}}]');
  });
});

describe('contact F4.1: integers beyond 2^53', () => {
  const beyond = [
    '9007199254740993',
    '-9007199254740993',
    '9223372036854775807',
    '1234567890123456789012345678901234567890',
  ];
  const frame = (id, values) =>
    `{"_requestId":${id},"result":[{"id":${values[0]},"text":"id \\"${values[0]}\\" \\\\","n":{"list":[${values.join(', ')}],"small":9007199254740991,"float":12345678901234567890.5,"exponent":1e20,"digits":"12345678901234567890"}}]}`;

  for (const [bigints, expected] of [
    [undefined, BigInt],
    ['bigint', BigInt],
    ['string', String],
    ['number', Number],
  ]) {
    it(`are read with bigints: ${bigints}`, async () => {
      const { net, client } = await connected({ bigints });
      const heard = [];
      client.onBroadcast((message) => heard.push(message));
      const call = client.read('Users');
      net.last.sayText(frame(net.last.sent[0]._requestId, beyond));
      const [row] = await call;
      assert.deepEqual(row, {
        id: expected(beyond[0]),
        text: `id "${beyond[0]}" \\`,
        n: {
          list: beyond.map(expected),
          small: 9007199254740991,
          float: 12345678901234567000,
          exponent: 1e20,
          digits: '12345678901234567890',
        },
      });
      net.last.sayText(`{"zKey":"create_Users","result":{"id":${beyond[2]}}}`);
      assert.deepEqual(heard, [{ zKey: 'create_Users', result: { id: expected(beyond[2]) } }]);
      client.disconnect();
    });
  }

  it('are sent as they are, and what a number cannot keep is no integer any more', async () => {
    for (const digits of beyond) {
      assert.equal(await written([BigInt(digits), Object(BigInt(digits))].slice(0, 1)), `[${digits}]`);
    }
    for (const act of [
      (c) => c.update('Users', 9007199254740993n, { a: 1n }),
      (c) => c.update('Users', { id: 9007199254740993n }, { a: 1n }),
    ]) {
      assert.match(await textOf(act), /"where":\{"id":9007199254740993\},"values":\{"a":1\}/);
    }
    assert.match(await textOf((c) => c.read('Users', [1, 9007199254740993n])), /"id":\[1,9007199254740993\]/);
    // eslint-disable-next-line no-loss-of-precision
    assert.equal(
      await written([9007199254740993, 2 ** 53 - 1, -(2 ** 60)]),
      '[9.007199254740992e+15,9007199254740991,-1.152921504606847e+18]',
    );
  });

  it('leave everything else of a message as it is', async () => {
    const { net, client } = await connected();
    const heard = [];
    client.onBroadcast((message) => heard.push(message));
    const texts = [
      '{"a":"\\\\","b":12345678901234567890,"c":"\\\\\\"12345678901234567890"}',
      '{"12345678901234567890":"12345678901234567890"}',
      '["12345678901234567890\\n",{"__proto__":12345678901234567890}]',
      '12345678901234567890',
      '{"broken":12345678901234567890',
      '01234567890123456789',
      'order 12345678901234567890 "shipped"',
      '{"a":0.12345678901234567890,"b":-1.2345678901234567E+5}',
    ];
    for (const text of texts) net.last.sayText(text);
    assert.deepEqual(heard.slice(0, 2), [
      { a: '\\', b: 12345678901234567890n, c: '\\"12345678901234567890' },
      { ['12345678901234567890']: '12345678901234567890' },
    ]);
    assert.equal(heard[2][0], '12345678901234567890\n');
    assert.equal(Object.getOwnPropertyDescriptor(heard[2][1], '__proto__').value, 12345678901234567890n);
    assert.deepEqual(heard.slice(3, 7), [12345678901234567890n, ...texts.slice(4, 7)]);
    assert.deepEqual(heard[7], { a: 0.12345678901234568, b: -123456.78901234567 });
    client.disconnect();
  });

  it('are found in large messages without delay', async () => {
    const { net, client } = await connected();
    const rows = `{"id":9007199254740993,"text":"${'x\\"\\\\'.repeat(20)}"},`.repeat(20_000);
    const call = client.read('Users');
    const start = performance.now();
    net.last.sayText(`{"result":[${rows}${'"\\\\'.repeat(1)}"],"_requestId":${net.last.sent[0]._requestId}}`);
    const found = await call;
    assert.ok(performance.now() - start < 5000);
    assert.equal(found.length, 20_001);
    assert.ok(found.slice(0, -1).every(({ id }) => id === 9007199254740993n));
    client.disconnect();
  });
});

describe('contact B8: options that nobody knows', () => {
  for (const [text, act, message] of [
    ['limt', (c) => c.read('Users', null, { limt: 1 }), /no option limt; did you mean limit\?/],
    ['orderBy', (c) => c.read('Users', null, { orderBy: 'name' }), /did you mean order_by\?/],
    ['Timeout', (c) => c.create('Users', {}, { Timeout: 1 }), /did you mean timeout\?/],
    ['a limit on update', (c) => c.update('Users', 1, {}, { limit: 1 }), /no option limit$/],
    ['idempotency_key', (c) => c.upsert('Users', {}, 'a', { idempotency_key: 'x' }), /did you mean idempotencyKey\?/],
    ['al', (c) => c.delete('Users', null, { al: true }), /did you mean all\?/],
    ['all on read', (c) => c.read('Users', null, { all: true }), /no option all/],
    ['onprogres', (c) => c.call('f', [], { onprogres() {} }), /did you mean onProgress\?/],
    ['time out', (c) => c.zFunc('zFunc(f)', { timeOuts: 5 }), /did you mean timeout\?/],
    ['abort', (c) => c.zLink('/a', { abort: 1 }), /no option abort/],
    ['signals', (c) => c.zOpen('a', { signals: 1 }), /did you mean signal\?/],
    ['for send', (c) => c.send({ zKey: 'ping' }, { retries: 3 }), /no option retries/],
    ['a list', (c) => c.read('Users', null, ['id']), /options are an object/],
    ['a number', (c) => c.read('Users', null, 5), /options are an object/],
    ['a signal that is none', (c) => c.read('Users', null, { signal: {} }), /signal is an AbortSignal/],
    ['a listener that is none', (c) => c.call('f', [], { onProgress: 1 }), /onProgress is a function/],
    ['a key that is none', (c) => c.create('Users', {}, { idempotencyKey: 5 }), /idempotencyKey is a string/],
    ['a key for a text', (c) => c.zFunc('zFunc(f)', { idempotencyKey: 'k' }), /goes with commands on models/],
    ['arguments that are no list', (c) => c.call('f', { a: 1 }), /args is a list; options\.kwargs/],
  ]) {
    it(`refused: ${text}`, async () => {
      const { net, client } = await connected();
      await assert.rejects(act(client), { name: 'TypeError', message });
      assert.deepEqual(net.last.sent, []);
      client.disconnect();
    });
  }

  for (const [options, message] of [
    [{ unknown: 1 }, /no option unknown$/],
    [{ autoreconect: false }, /did you mean autoReconnect\?/],
    [{ token_in_query: true }, /did you mean tokenInQuery\?/],
    [{ autoReconnect: 'no' }, /autoReconnect is true or false/],
    [{ retryDelay: -5 }, /retryDelay is/],
    [{ retryDelay: '5' }, /retryDelay is/],
    [{ retryDelay: NaN }, /retryDelay is/],
    [{ WebSocket: 3 }, /WebSocket is a class/],
    [{ tokenInQuery: 1 }, /tokenInQuery is true or false/],
    [{ debug: 'yes' }, /debug is/],
    [{ maxInFlight: 0.5 }, /maxInFlight is/],
    [{ bigints: 'BigInt' }, /bigints is 'bigint', 'string' or 'number'/],
    [[], /options are an object/],
    ['debug', /options are an object/],
  ]) {
    it(`refused by the constructor: ${JSON.stringify(options)}`, () => {
      assert.throws(() => new zBifrost('ws://h/', null, options), { name: 'TypeError', message });
    });
  }

  it('none, null, and undefined for one that is known are taken', async () => {
    for (const options of [undefined, null, {}, { debug: undefined, timeout: undefined }]) {
      assert.equal(new zBifrost('ws://h/', null, options).state, 'disconnected');
    }
    const { net, client } = await connected();
    client.read('Users', null, { limit: undefined, order_by: undefined, timeout: undefined }).catch(() => {});
    client.read('Users', null, null).catch(() => {});
    assert.deepEqual(
      net.last.sent.map(({ zHorizontal }) => zHorizontal),
      [
        { action: 'read', model: 'Users' },
        { action: 'read', model: 'Users' },
      ],
    );
    client.disconnect();
  });
});

describe('contact R26: a message that is too big', () => {
  it('fails alone and before it is sent, by the limit that the server has told', async () => {
    const { net, client } = make({ retryDelay: () => 1 });
    net.WebSocket.limits = { message_size: 2000 };
    const ready = client.connect();
    net.last.accept();
    await ready;
    const send = (text) => watch(client.send({ zKey: 'x', zHorizontal: text }));
    const calls = ['small', 'x'.repeat(3000), 'é😀'.repeat(400), 'x'.repeat(1500), 'x'.repeat(2000)].map(send);
    await settle();
    for (const { error } of [calls[1], calls[2], calls[4]]) {
      assert.equal(error.code, 'invalid');
      assert.equal(error.name, 'CommandFailed');
      assert.match(error.message, /has \d+ bytes, and the server takes 2000: it was not sent/);
    }
    // What was called first is sent first, however large.
    assert.deepEqual(
      net.last.sent.map(({ zHorizontal }) => zHorizontal),
      ['small', 'x'.repeat(1500)],
    );
    for (const { _requestId } of net.last.sent) net.last.say({ result: 'done', _requestId });
    await settle();
    assert.deepEqual([calls[0].value, calls[3].value, client.connected], ['done', 'done', true]);

    // The server of the next connection may be another one.
    net.WebSocket.limits = { message_size: 4000 };
    const lost = send('x');
    net.last.drop(1009);
    client.connect();
    net.last.accept();
    await settle();
    assert.deepEqual([lost.error.code, lost.error.retryable], ['connection_lost', true]);
    send('x'.repeat(3000));
    assert.equal(net.last.sent.length, 1);
    client.disconnect();
  });

  it('is compared with the usual limit where the server tells none', async () => {
    for (const answer of [
      { error: 'Unknown command', code: 'unknown_command' },
      { result: null },
      { result: { limits: { message_size: '9', in_flight: 0 } } },
    ]) {
      const { net, client } = make();
      net.WebSocket.answersPing = false;
      const ready = client.connect();
      net.last.accept();
      net.last.say({ ...answer, _requestId: net.last.sent[0]._requestId });
      await ready;
      const calls = [1024 * 1024 - 100, 1024 * 1024].map((size) =>
        watch(client.send({ zKey: 'x', zHorizontal: 'x'.repeat(size) })),
      );
      await settle();
      assert.equal(net.last.sent.length, 2);
      assert.equal(calls[1].error.code, 'invalid');
      net.last.say({ result: 1, _requestId: net.last.sent[1]._requestId });
      await settle();
      assert.equal(calls[0].value, 1);
      client.disconnect();
    }
  });
});
