import assert from 'node:assert/strict';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { signIn } from '../zBifrost.js';

/** What a page has; `answer` is what its server does with a WebSocket that was opened. */
function page(href, answer) {
  const location = new URL(href);
  const stored = new Map();
  globalThis.location = location;
  globalThis.history = {
    state: { kept: 1 },
    replaceState(state, _, path) {
      assert.deepEqual(state, { kept: 1 });
      location.href = new URL(path, href).href;
    },
  };
  Object.defineProperty(globalThis, 'sessionStorage', {
    configurable: true,
    value: {
      getItem: (name) => stored.get(name) ?? null,
      setItem: (name, value) => stored.set(name, value),
      removeItem: (name) => stored.delete(name),
    },
  });
  const opened = [];
  globalThis.WebSocket = class extends EventTarget {
    constructor(url, protocols) {
      super();
      opened.push([url, protocols]);
      queueMicrotask(() => answer(this));
    }
    send(text) {
      this.say(Object.assign(new Event('message'), { data: '{"zKey":"ping","result":1}' }));
      assert.deepEqual(JSON.parse(text).zHorizontal, ['identity']);
      this.say(Object.assign(new Event('message'), { data: JSON.stringify(this.reply) }));
    }
    say(event) {
      this.dispatchEvent(event);
    }
    close() {}
  };
  return { location, stored, opened };
}

const lets = (result) => (socket) => {
  socket.reply = { result, _requestId: 1 };
  socket.say(new Event('open'));
};
const refuses = (code, reason) => (socket) => socket.say(Object.assign(new Event('close'), { code, reason }));

describe('signIn()', () => {
  const real = {};
  beforeEach(() => Object.assign(real, { WebSocket: globalThis.WebSocket }));
  afterEach(() => {
    for (const name of ['location', 'history', 'sessionStorage']) delete globalThis[name];
    globalThis.WebSocket = real.WebSocket;
  });

  it('trades the code of a link for a token, which the tab keeps, and takes it out of the address', async () => {
    const { location, opened, stored } = page('http://h:1/p?room=a#code=abc_123', lets({ session: 'zc_x' }));
    assert.equal(await signIn(), 'zc_x');
    assert.deepEqual(opened, [['ws://h:1/p?room=a', ['zbifrost.v1', 'code.abc_123']]]);
    assert.equal(location.href, 'http://h:1/p?room=a');
    assert.equal(await signIn(), 'zc_x');
    assert.equal(opened.length, 1);
    assert.deepEqual([...stored], [['zbifrost.token', 'zc_x']]);
  });

  it('leaves a fragment of the page alone, and is null where there is nothing', async () => {
    const { location, opened } = page('http://h:1/#top', refuses(1008, ''));
    assert.equal(await signIn(), null);
    assert.equal(location.hash, '#top');
    assert.deepEqual(opened, []);
  });

  it('keeps a token that it is given, and forgets it', async () => {
    page('http://h:1/', refuses(1008, ''));
    assert.equal(await signIn('mine'), 'mine');
    assert.equal(await signIn(), 'mine');
    assert.equal(await signIn(''), null);
    assert.equal(await signIn(), null);
  });

  it('says that a link is spent, without its code, and keeps what the tab had', async () => {
    const { location } = page('http://h:1/#code=spent', refuses(1008, 'Invalid token'));
    sessionStorage.setItem('zbifrost.token', 'before');
    const told = { name: 'ConnectionRefused', closeCode: 1008, message: /^(?!.*spent).*Invalid token \(close code 1008\); zcomm url/ };
    await assert.rejects(signIn(), told);
    assert.equal(location.hash, '');
    assert.equal(await signIn(), 'before');
  });

  it('has no token where the server asks nobody for one', async () => {
    page('http://h:1/#code=any', lets({ name: 'anonymous' }));
    assert.equal(await signIn(), null);
  });
});

it('signIn() outside of a page says so', async () => {
  await assert.rejects(signIn(), /is for pages/);
});
