/**
 * A WebSocket whose server is the test itself, and the small things every test needs.
 *
 * `network()` gives a WebSocket class of its own to each test. Its sockets wait until the test says what the
 * server does: `accept()`, `refuse(code)`, `say(message)`, `drop(code)`. Unless told otherwise an accepted
 * socket answers `ping`, and the question for limits with `limits`, as a server does for a client that it lets in.
 */
import { afterEach } from 'node:test';
import { setImmediate as nextTurn } from 'node:timers/promises';
import { zBifrost } from '../zBifrost.js';

const made = [];

// The heartbeat of a client that is left connected would keep the test process alive.
afterEach(() => made.splice(0).forEach((client) => client.disconnect()));

export const URL = 'ws://127.0.0.1:56891/';

/** Let every promise that can settle do so; no time passes on mocked timers. */
export async function settle() {
  for (let turn = 0; turn < 5; turn += 1) await nextTurn();
}

export function network({ answersPing = true, limits = {} } = {}) {
  const sockets = [];

  class FakeWebSocket extends EventTarget {
    readyState = 0;
    sent = [];
    closedBy = null;

    constructor(url, protocols) {
      super();
      this.url = url;
      this.protocols = protocols;
      sockets.push(this);
    }

    send(text) {
      if (this.readyState !== 1) return;
      const message = JSON.parse(text);
      const result = { ping: 'ping', zDescribe: { limits: FakeWebSocket.limits } }[message.zKey];
      if (result !== undefined && FakeWebSocket.answersPing) {
        queueMicrotask(() => this.say({ result, _requestId: message._requestId }));
      } else {
        this.sent.push(message);
        FakeWebSocket.topics?.received(this, message);
      }
    }

    close(code) {
      if (this.readyState >= 2) return;
      this.readyState = 2;
      this.closedBy = code;
    }

    accept() {
      this.readyState = 1;
      this.dispatchEvent(new Event('open'));
    }

    say(message) {
      this.sayText(typeof message === 'string' ? message : JSON.stringify(message));
    }

    sayText(data) {
      this.dispatchEvent(Object.assign(new Event('message'), { data }));
    }

    drop(code = 1006, reason = '') {
      this.readyState = 3;
      FakeWebSocket.topics?.lost(this);
      if (code === 1006) this.dispatchEvent(new Event('error'));
      this.dispatchEvent(Object.assign(new Event('close'), { code, reason, wasClean: code !== 1006 }));
    }

    /** A completed handshake and the close right behind it. */
    refuse(code, reason) {
      this.accept();
      this.drop(code, reason);
    }
  }

  Object.assign(FakeWebSocket, { answersPing, limits });
  return {
    WebSocket: FakeWebSocket,
    sockets,
    get last() {
      return sockets.at(-1);
    },
  };
}

/** A client with its own network; not connected yet. */
export function make(options = {}, token = null, url = URL) {
  const net = network();
  const client = new zBifrost(url, token, { WebSocket: net.WebSocket, ...options });
  made.push(client);
  return { net, client };
}

/** A client whose first connection stands. */
export async function connected(options = {}, token = null, url = URL) {
  const { net, client } = make(options, token, url);
  const ready = client.connect();
  net.last.accept();
  await ready;
  return { net, client };
}

/** What became of a promise so far: 'pending', or {value}, or {error}; and how often it settled (never twice). */
export function watch(promise) {
  const outcome = { state: 'pending' };
  promise.then(
    (value) => Object.assign(outcome, { state: 'resolved', value }),
    (error) => Object.assign(outcome, { state: 'rejected', error }),
  );
  return outcome;
}
