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
  return text.match(/^\{"_requestId":\d+,"zKey":"x","zHorizontal":(.*)\}$/s)[1];
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

describe('contact what JSON would leave out of an object', () => {
  const or = Symbol('or');
  class Accessor {
    active = false;
    #age = 20;
    get age() {
      return this.#age;
    }
  }
  class Later extends Accessor {
    name = 'A';
  }
  function Old() {
    this.active = false;
  }
  Old.prototype.role = 'user';
  const hidden = Object.defineProperty({ active: false }, 'age', { value: 20 });
  const computed = Object.defineProperty({ active: false }, 'age', { get: () => 20 });
  const base = Object.create(null, { age: { value: 10, enumerable: true } });
  const lost = {
    'a symbol': [
      { active: false, [or]: [{ age: 10 }] },
      /\[Symbol\(or\)\] is named by a symbol, which JSON leaves out/,
    ],
    'a symbol alone': [{ [or]: [{ age: 10 }] }, /\[Symbol\(or\)\] is named/],
    'a symbol of all programs': [{ a: 1, [Symbol.for('gt')]: 1 }, /\[Symbol\(gt\)\]/],
    'a symbol further in': [{ age: { [or]: 1 } }, /age\[Symbol\(or\)\]/],
    'a symbol in a list': [{ a: [{ b: 1, [or]: 1 }] }, /a\[0\]\[Symbol\(or\)\]/],
    'a symbol of a class': [Object.assign(Object.create({ [or]: 1 }), { a: 1 }), /\[Symbol\(or\)\]/],
    'an accessor of a class': [new Accessor(), /age is an accessor, which JSON leaves out.*toJSON\(\)/],
    'an accessor of its base': [new Later(), /age is an accessor/],
    'an accessor through a proxy': [new Proxy(new Accessor(), {}), /age is an accessor/],
    'an inherited value': [Object.assign(Object.create({ age: 10 }), { active: false }), /age is inherited/],
    'a value of a base without a base': [Object.assign(Object.create(base), { a: 1 }), /age is inherited/],
    'a value of a prototype': [new Old(), /role is inherited/],
    'a value that is not enumerable': [hidden, /age is not enumerable/],
    'an accessor that is not enumerable': [computed, /age is an accessor/],
    'what toJSON gives': [{ toJSON: () => new Accessor() }, /age is an accessor/],
  };
  const calls = {
    create: (c, value) => c.create('Users', value),
    update: (c, value) => c.update('Users', 1, value),
    'update, filter': (c, value) => c.update('Users', value, { role: 'hit' }),
    'update, with a key': (c, value) => c.update('Users', value, { role: 'hit' }, { idempotencyKey: 'k' }),
    delete: (c, value) => c.delete('Users', value),
    read: (c, value) => c.read('Users', { $or: [value] }),
    upsert: (c, value) => c.upsert('Users', value),
    call: (c, value) => c.call('total', [value]),
    'call, by name': (c, value) => c.call('total', [], { kwargs: value }),
    send: (c, value) => c.send({ zKey: 'x', zHorizontal: value }),
    'send, the command': (c, value) => c.send(Object.assign(Object.create(Object.getPrototypeOf(value)), value)),
    'send, with a key': (c, value) => c.send({ zKey: 'x', zHorizontal: value }, { idempotencyKey: 'k' }),
  };
  it('is refused by every call and by its place, and nothing is sent', async () => {
    const { net, client } = await connected();
    for (const [name, call] of Object.entries(calls)) {
      for (const [text, [value, message]] of Object.entries(lost)) {
        // What a copy of a command's own properties would not have.
        if (name === 'send, the command' && /enumerable|proxy|toJSON/.test(text)) continue;
        const wanted = name === 'send, the command' ? /which JSON leaves out/ : message;
        await assert.rejects(call(client, value), { name: 'TypeError', message: wanted }, `${name}: ${text}`);
      }
    }
    assert.deepEqual(net.last.sent, []);
    assert.equal(client.pending, 0);
  });

  it('is no method, no mark of a library, and nothing of what all objects inherit', async () => {
    class User extends Empty {
      static kind = 'user';
      name = 'A';
      save() {}
      *[Symbol.iterator]() {}
      set secret(_) {}
    }
    Object.defineProperty(User.prototype, Symbol('stored annotations'), { value: {} });
    Object.defineProperty(User.prototype, '__isUser__', { value: true });
    const marked = { name: 'A' };
    for (const mark of ['__ob__', '__v_skip', Symbol('administration')]) {
      Object.defineProperty(marked, mark, { value: {}, configurable: true });
    }
    Object.defineProperty(marked, 'save', { value() {} });
    class Draftable {
      [Symbol.for('immer-draftable')] = true;
      name = 'A';
    }
    const { runInNewContext } = await import('node:vm');
    const all = [Object.prototype, runInNewContext('Object.prototype')];
    all.forEach((each) => Object.defineProperty(each, 'should', { get: () => 1, configurable: true }));
    const overridden = Object.assign(Object.create({ name: 'B' }), { name: 'A' });
    const own = { get name() { return 'A'; } }; // prettier-ignore
    const reactive = new Proxy(marked, {
      get: Reflect.get,
      ownKeys: Reflect.ownKeys,
      getPrototypeOf: Reflect.getPrototypeOf,
    });
    try {
      for (const value of [
        new User(),
        marked,
        reactive,
        new Draftable(),
        new Proxy(new Draftable(), {}),
        overridden,
        own,
        Object.assign(Object.create(null), { name: 'A' }),
        runInNewContext('({ name: "A" })'),
        Object.freeze({ name: 'A' }),
      ]) {
        assert.equal(await written(value), '{"name":"A"}');
      }
    } finally {
      all.forEach((each) => delete each.should);
    }
    assert.equal(await written(Object.assign([1], { index: 0 })), '[1]');
    assert.equal(await written('2024-05-01'.match(/(\d+)-/)), '["2024-","2024"]');
  });

  it('a command that gives its own form keeps its id and its key', async () => {
    const { net, client } = await connected();
    const values = { toJSON: () => ({ action: 'create', model: 'Users', values: {} }) };
    client.send({ toJSON: () => ({ zKey: 'x', zHorizontal: values }) }, { idempotencyKey: 'k' }).catch(() => {});
    const [{ _requestId, ...command }] = net.last.sent;
    assert.equal(typeof _requestId, 'number');
    assert.deepEqual(command, { zKey: 'x', zHorizontal: { ...values.toJSON(), _idempotencyKey: 'k' } });
    await assert.rejects(client.send({ toJSON: () => [] }), { name: 'TypeError', message: /a command is an object/ });
    await assert.rejects(client.send(new Map([['zKey', 'x']])), { name: 'TypeError', message: /a Map/ });
  });

  it('what gives its own form may use the client, and the answers stay with their calls', async () => {
    const { net, client } = await connected();
    let inner;
    const values = { toJSON: () => (inner = client.send({ zKey: 'inner' })) && { a: 1 } };
    const outer = client.create('Users', values);
    const ids = Object.fromEntries(net.last.sent.map(({ zKey, _requestId }) => [zKey, _requestId]));
    assert.notEqual(ids.inner, ids.create_Users);
    for (const [result, _requestId] of Object.entries(ids)) net.last.say({ result, _requestId });
    assert.deepEqual(await Promise.all([inner, outer]), ['inner', 'create_Users']);

    const leaving = { toJSON: () => client.disconnect() ?? { a: 1 } };
    await assert.rejects(client.create('Users', leaving), { code: 'not_connected' });
    assert.equal(client.pending, 0);
  });
});

describe('contact a message that is too deep', () => {
  it('fails alone and before it is sent, by the limit that the server has told', async () => {
    const nested = (levels) => JSON.parse('{"a":['.repeat(levels) + ']}'.repeat(levels));
    const { net, client } = make({ retryDelay: () => 1 });
    net.WebSocket.limits = { json_depth: 9 };
    const ready = client.connect();
    net.last.accept();
    await ready;
    const [fine, brackets, deep] = [nested(4), '[{"'.repeat(20), nested(5)].map((value) =>
      watch(client.send({ zKey: 'x', zHorizontal: value, more: 'a "\\" [' })),
    );
    await settle();
    assert.equal(net.last.sent.length, 2);
    assert.deepEqual([deep.error.name, deep.error.code, client.pending], ['CommandFailed', 'invalid', 2]);
    assert.match(deep.error.message, /more than the 9 levels of nesting that the server takes: it was not sent/);
    for (const { _requestId } of net.last.sent) net.last.say({ result: 'done', _requestId });
    await settle();
    assert.deepEqual([fine.value, brackets.value], ['done', 'done']);

    // The server of the next connection may tell another limit, or none.
    net.WebSocket.limits = {};
    net.last.drop(1012);
    client.connect();
    net.last.accept();
    await settle();
    client.send({ zKey: 'x', zHorizontal: nested(100) }).catch(() => {});
    assert.equal(net.last.sent.length, 1);
  });

  it('is found in a large one without delay', async () => {
    const { net, client } = make();
    net.WebSocket.limits = { json_depth: 64, message_size: 2 ** 24 };
    const ready = client.connect();
    net.last.accept();
    await ready;
    const rows = Array.from({ length: 10_000 }, () => ({ a: [{ b: 'x\\"[' }] }));
    const start = performance.now();
    client.call('f', rows).catch(() => {});
    assert.ok(performance.now() - start < 5000);
    assert.equal(net.last.sent.length, 1);
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
