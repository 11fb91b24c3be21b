/**
 * zBifrost.js - the JavaScript client of zComm's WebSocket server, in one file without dependencies.
 *
 *     import { zBifrost } from './zBifrost.js';
 *     const client = new zBifrost('ws://127.0.0.1:56891', 'your-token');
 *     await client.connect();
 *     const user = await client.create('Users', { name: 'Alice', email: 'alice@example.com' });
 *
 * Pages get it from their own server or from npm. Node 22 has a WebSocket of its own; Node 20 takes the one
 * of the `ws` package, when that is installed, or whatever `options.WebSocket` names.
 *
 * Four promises hold everywhere below. Every call settles exactly once: by its answer, its timeout, its
 * abort signal or the end of the connection. Nothing is ever sent twice on its own: a command that was
 * under way when the connection broke may have run, and only its author knows whether it may run again.
 * What the caller passes in is never changed. The token appears in no message, log line or error.
 *
 * Order of the file: errors, what goes over the wire (values in, values out), listeners, calls, the client.
 */

const PROTOCOL = 'zbifrost.v1';
const LARGEST_DELAY = 2 ** 31 - 1; // setTimeout fires at once for anything above
const STEADY_AFTER = 5000; // a connection that lasted this long starts the backoff anew
const PROBE_TIMEOUT = 5000;
const DEFAULTS = {
  debug: false,
  autoReconnect: true,
  timeout: 30000,
  connectTimeout: 10000,
  heartbeat: 30000,
  maxInFlight: 64,
  tokenInQuery: false,
};

/* The server said no for a reason that trying again does not change (1002, 1003, 1007, 1009: what this
   client sends cannot be used; 1008: origin, token or rate), or it said goodbye (1000). 1015 is a certificate that
   cannot be trusted. The list is that of zcomm.wire.closecodes. */
const FINAL_CODES = new Set([1000, 1002, 1003, 1007, 1008, 1009, 1015]);

// ------------------------------------------------------------------------------------------------ errors

/** The base of every error of this module. `code` is for programs, `message` for people. */
export class BifrostError extends Error {
  constructor(message, { code, retryable = false, fields = {}, ...details } = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    delete details.cause;
    this.name = new.target.name;
    this.code = code;
    this.retryable = retryable;
    this.fields = fields;
    Object.assign(this, details);
  }
}

/** The connection ended before the answer came: the command may or may not have run. */
export class ConnectionLost extends BifrostError {
  constructor(message, details) {
    super(message, { code: 'connection_lost', retryable: true, closeCode: 1006, reason: '', ...details });
  }
}

/** There is no connection: the command was certainly not sent. */
export class NotConnected extends ConnectionLost {
  constructor(message, details) {
    super(message, { code: 'not_connected', ...details });
  }
}

/** The server did not let this client in, or put it out; `closeCode` and `reason` are its words. */
export class ConnectionRefused extends ConnectionLost {
  constructor(message, details) {
    super(message, { code: 'connection_refused', retryable: false, ...details });
  }
}

/** No answer in time: the command may or may not have run. */
export class RequestTimeout extends BifrostError {
  constructor(message, details) {
    super(message, { code: 'request_timeout', retryable: true, ...details });
  }
}

/** The caller's AbortSignal ended the wait; its reason is the `cause`. */
export class RequestAborted extends BifrostError {
  constructor(message, details) {
    super(message, { code: 'request_aborted', ...details });
  }
}

/** The server answered with an error: its `code`, `retryable` and, for bad values, `fields` by name. */
export class CommandFailed extends BifrostError {}

// ---------------------------------------------------------------------------------- what goes over the wire

/** The delay rule of reconnecting: any time up to a limit that doubles, so that a crowd spreads out. */
export function fullJitter({ base = 500, cap = 30000, random = Math.random } = {}) {
  return (attempt) => random() * Math.min(cap, base * 2 ** attempt);
}

function parseAddress(url) {
  let address;
  try {
    address = new URL(url, globalThis.location?.href);
  } catch {
    address = null; // the text of that error quotes the URL, which may hold a token
  }
  if (address?.protocol === 'http:') address.protocol = 'ws:';
  if (address?.protocol === 'https:') address.protocol = 'wss:';
  if (address?.protocol !== 'ws:' && address?.protocol !== 'wss:') {
    throw new TypeError("zBifrost: the URL must look like 'ws://127.0.0.1:56891' or 'wss://example.com/path'");
  }
  address.hash = '';
  return address;
}

function withoutSecrets(address) {
  const shown = new URL(address);
  shown.password &&= 'redacted';
  for (const name of ['token', 'api_key']) {
    if (shown.searchParams.has(name)) shown.searchParams.set(name, 'redacted');
  }
  return shown.href;
}

/** The address to connect to and the subprotocols to offer. A token travels as a subprotocol when HTTP allows its
 * characters there (RFC 7230 `token`), because URLs end up in the logs of proxies. */
function credentials(address, token, tokenInQuery) {
  if (!token) return { url: address.href, protocols: [] };
  if (!tokenInQuery && /^[\w!#$%&'*+.^`|~-]+$/.test(token)) {
    return { url: address.href, protocols: [PROTOCOL, `bearer.${token}`] };
  }
  const url = new URL(address);
  url.searchParams.set('token', token);
  return { url: url.href, protocols: [] };
}

/** `where` of a command: an id, a list of ids, or a filter object. JSON drops `undefined` and turns NaN into
 * null, and either would make the filter match rows the caller never meant. */
function toWhere(filters) {
  if (filters === undefined || filters === null) return undefined;
  const where = typeof filters === 'object' && !Array.isArray(filters) ? filters : { id: filters };
  rejectMissingValues(where, 'filters');
  return where;
}

function rejectMissingValues(value, place) {
  const plain = typeof value?.toJSON === 'function' ? value.toJSON() : value;
  const lost = ['undefined', 'function', 'symbol'].includes(typeof plain) || (plain === null && value !== null);
  if (lost || (typeof plain === 'number' && !Number.isFinite(plain))) {
    throw new TypeError(`zBifrost: ${place} is ${String(value)}, which a filter cannot compare with`);
  }
  if (plain !== null && typeof plain === 'object') {
    for (const [key, inner] of Object.entries(plain)) rejectMissingValues(inner, `${place}.${key}`);
  }
}

function modelCommand(action, model, rest) {
  if (typeof model !== 'string' || model === '') throw new TypeError('zBifrost: the model must be a name');
  return { zKey: `${action}_${model}`, zHorizontal: { action, model, ...rest } };
}

/** `zLink(/path)` or `zOpen(file)` from the bare word or from the finished form. */
function formCommand(form, text) {
  if (typeof text !== 'string' || text.trim() === '') throw new TypeError(`zBifrost: ${form} needs a text`);
  const finished = text.trimStart().startsWith(`${form}(`);
  return { zKey: form, zHorizontal: finished ? text.trim() : `${form}(${text})` };
}

function functionCommand(name, args) {
  if (typeof name !== 'string' || !/^[A-Za-z_][\w.]*$/.test(name)) {
    throw new TypeError("zBifrost: a function is called by its name, or as 'zFunc(name, {argument: value})'");
  }
  const list = [name, ...args.map((arg) => JSON.stringify(arg ?? null))];
  return { zKey: 'zFunc', zHorizontal: `zFunc(${list.join(', ')})` };
}

/** What a text frame is. Text that is not JSON is a broadcast that somebody wrote as plain text. */
function classify(text) {
  let message;
  try {
    message = JSON.parse(text);
  } catch {
    return { kind: 'broadcast', message: text };
  }
  const has = (key) => Object.hasOwn(message, key);
  if (message === null || typeof message !== 'object') return { kind: 'broadcast', message };
  if (has('_requestId') && (has('result') || has('error'))) return { kind: 'reply', message };
  if (has('event') && ['ask', 'ask_closed', 'display', 'progress', 'service'].includes(message.event)) {
    return { kind: message.event, message };
  }
  return { kind: 'broadcast', message };
}

function toCommandFailed({ error, code, retryable, fields }) {
  return new CommandFailed(typeof error === 'string' ? error : 'The command failed', {
    code: typeof code === 'string' ? code : 'internal',
    retryable: retryable === true,
    fields: fields !== null && typeof fields === 'object' ? fields : {},
  });
}

/** The command's name without its arguments, for messages and log lines. */
function commandName({ zKey, cmd }) {
  return String(zKey ?? cmd ?? 'the command').split('(')[0];
}

function toTimeout(value, name = 'timeout') {
  if (typeof value !== 'number' || !(value > 0)) {
    throw new TypeError(`zBifrost: ${name} is a number of milliseconds above 0, or Infinity`);
  }
  return value;
}

// ---------------------------------------------------------------------------------------------- listeners

/** Functions by event. One that throws never keeps the message from the others. */
class Listeners {
  #byEvent = new Map();
  #onThrow;

  constructor(onThrow) {
    this.#onThrow = onThrow;
  }

  has(event) {
    return this.#byEvent.has(event);
  }

  add(event, listener) {
    if (typeof listener !== 'function') throw new TypeError('zBifrost: a listener is a function');
    if (!this.#byEvent.has(event)) this.#byEvent.set(event, new Set());
    this.#byEvent.get(event).add(listener);
    return () => this.remove(event, listener);
  }

  remove(event, listener) {
    const listeners = this.#byEvent.get(event);
    listeners?.delete(listener);
    if (listeners?.size === 0) this.#byEvent.delete(event);
  }

  emit(event, ...values) {
    for (const listener of [...(this.#byEvent.get(event) ?? [])]) {
      // One that was removed by a listener before it is no longer meant.
      if (this.#byEvent.get(event)?.has(listener)) this.guard(event, () => listener(...values));
    }
  }

  guard(event, action) {
    try {
      action();
    } catch (error) {
      this.#onThrow(event, error);
    }
  }
}

// -------------------------------------------------------------------------------------------------- calls

/** The calls that have no answer yet, by request id; those above `maxInFlight` wait here for their turn. */
class Calls {
  #byId = new Map();
  #waiting = [];
  #inFlight = 0;
  #nextId = 1;
  #maxInFlight;

  /** While this returns true no call runs out of time: a person is being asked something. */
  paused = () => false;

  constructor(maxInFlight) {
    this.#maxInFlight = maxInFlight;
  }

  get size() {
    return this.#byId.size;
  }

  /** Send `payload` with a fresh id; `settle` is the call's `{resolve, reject}`. Throws on bad arguments. */
  start(payload, { timeout, signal, onProgress, idempotencyKey, urgent }, transmit, settle) {
    const id = this.#nextId;
    const message = { ...payload, _requestId: id };
    if (idempotencyKey !== undefined) message.zHorizontal = { ...message.zHorizontal, _idempotencyKey: idempotencyKey };
    const text = JSON.stringify(message);
    if (signal?.aborted) throw new RequestAborted('The call was aborted', { cause: signal.reason });
    this.#nextId += 1;
    const call = { id, name: commandName(payload), timeout, urgent, onProgress, settle, started: Date.now() };
    this.#byId.set(id, call);
    if (signal) {
      const abort = () =>
        this.#finish(call)?.reject(new RequestAborted('The call was aborted', { cause: signal.reason }));
      signal.addEventListener('abort', abort, { once: true });
      call.forgetSignal = () => signal.removeEventListener('abort', abort);
    }
    call.send = () => {
      call.inFlight = true;
      this.#inFlight += 1;
      transmit(text, call);
    };
    this.#arm(call);
    if (urgent || this.#inFlight < this.#maxInFlight) call.send();
    else this.#waiting.push(call);
  }

  /** Settle the call that `reply` answers; false when there is none (it timed out, or never was). */
  answer(reply) {
    const call = this.#byId.get(reply._requestId);
    if (call === undefined) return undefined;
    const settle = this.#finish(call);
    if (Object.hasOwn(reply, 'error')) settle.reject(toCommandFailed(reply));
    else settle.resolve(reply.result);
    return call;
  }

  /** News of a running call: it is alive, so its time starts again. */
  progress({ progressOf, done, total, text }) {
    const call = this.#byId.get(progressOf);
    if (call === undefined) return;
    this.#arm(call);
    call.onProgress?.({ done, total, text });
  }

  fail(call, error) {
    this.#finish(call)?.reject(error);
  }

  rejectAll(errorOf) {
    this.#waiting = [];
    for (const call of [...this.#byId.values()]) this.fail(call, errorOf(call));
  }

  #arm(call) {
    clearTimeout(call.timer);
    if (call.timeout === Infinity) return;
    call.timer = setTimeout(
      () => {
        if (!call.urgent && this.paused()) this.#arm(call);
        else this.fail(call, new RequestTimeout(`No answer to ${call.name} within ${call.timeout} ms`));
      },
      Math.min(call.timeout, LARGEST_DELAY),
    );
  }

  #finish(call) {
    if (!this.#byId.delete(call.id)) return undefined;
    clearTimeout(call.timer);
    call.forgetSignal?.();
    if (call.inFlight) this.#inFlight -= 1;
    else this.#waiting = this.#waiting.filter((other) => other !== call);
    while (this.#waiting.length > 0 && this.#inFlight < this.#maxInFlight) this.#waiting.shift().send();
    return call.settle;
  }
}

// ------------------------------------------------------------------------------------------------- client

/**
 * One connection to a zBifrost server, kept up until `disconnect()`.
 *
 * `state` is 'disconnected', 'connecting' (the first attempt), 'connected' or 'reconnecting'. Events of `on`:
 * state, open, close, reconnecting, error, broadcast, display, progress, service.
 */
export class zBifrost {
  #address;
  #token;
  #options;
  #retryDelay;
  #state = 'disconnected';
  #listeners = new Listeners((event, error) => this.#listenerThrew(event, error));
  #calls;
  #asks = new Map(); // askId -> AbortController of the prompt on screen
  #onAsk = null;
  #link = null; // the attempt or connection of the moment; late events of others are ignored
  #attempt = null; // {promise, resolve, reject} of the connect() under way
  #admittedOnce = false; // since the last connect() that started from 'disconnected'
  #retries = 0;
  #retryTimer;
  #page = null; // AbortController of the listeners on window and document

  /**
   * @param {string} [url] `ws://`, `wss://`, or the page's own address when left out
   * @param {string|null} [token]
   * @param {object} [options] see zBifrost.d.ts
   */
  constructor(url = globalThis.location?.href, token = null, options = {}) {
    this.#address = parseAddress(url);
    if (token !== null && token !== undefined && typeof token !== 'string') {
      throw new TypeError('zBifrost: the token must be a string');
    }
    this.#token = token ?? '';
    const given = Object.entries(options ?? {}).filter(([, value]) => value !== undefined);
    this.#options = { ...DEFAULTS, ...Object.fromEntries(given) };
    for (const name of ['timeout', 'connectTimeout', 'heartbeat', 'maxInFlight']) toTimeout(this.#options[name], name);
    const { retryDelay } = this.#options;
    this.#retryDelay = typeof retryDelay === 'function' ? retryDelay : fullJitter({ base: retryDelay });
    this.#calls = new Calls(this.#options.maxInFlight);
    this.#calls.paused = () => this.#asks.size > 0;
  }

  /** The server's address; a token in it is not shown. */
  get url() {
    return withoutSecrets(this.#address);
  }

  get state() {
    return this.#state;
  }

  get connected() {
    return this.#state === 'connected';
  }

  /** The number of calls without an answer yet. */
  get pending() {
    return this.#calls.size;
  }

  /**
   * Make one attempt to connect, now. Resolves with the client once the server has let it in, rejects with
   * ConnectionRefused or ConnectionLost. While an attempt is under way all callers share it.
   */
  connect() {
    if (this.#state === 'connected') return Promise.resolve(this);
    if (this.#attempt === null) {
      this.#attempt = {};
      this.#attempt.promise = new Promise((resolve, reject) => Object.assign(this.#attempt, { resolve, reject }));
    }
    const { promise } = this.#attempt;
    if (this.#link === null) this.#begin();
    return promise;
  }

  /** Close for good: pending calls are rejected, nothing reconnects until connect() is called again. */
  disconnect() {
    const link = this.#link;
    if (link === null && this.#state === 'disconnected') return;
    clearTimeout(this.#retryTimer);
    this.#ended(link, { code: 1000, reason: 'disconnect() was called', final: true, own: true });
    hangUp(link);
  }

  // Commands.

  /** Resolves with the row as stored, its id included. */
  create(model, values, options) {
    return this.#command(() => modelCommand('create', model, { values }), options);
  }

  /** Resolves with the list of rows. `filters` is an id, a list of ids or an object such as {age__gte: 18};
   * `options` takes fields, order_by, limit, offset besides those of a call. */
  read(model, filters, options) {
    const { fields, order_by, limit, offset } = options ?? {};
    return this.#command(
      () => modelCommand('read', model, { where: toWhere(filters), fields, order_by, limit, offset }),
      options,
    );
  }

  /** Resolves with {updated: n}. Without filters the server refuses, unless `options.all` is true. */
  update(model, filters, values, options) {
    return this.#command(
      () => modelCommand('update', model, { where: toWhere(filters), values, all: options?.all }),
      options,
    );
  }

  /** Resolves with {deleted: n}. Without filters the server refuses, unless `options.all` is true. */
  delete(model, filters, options) {
    return this.#command(() => modelCommand('delete', model, { where: toWhere(filters), all: options?.all }), options);
  }

  /** Resolves with the row: a new one, or the one that agreed in `conflictFields`, updated. */
  upsert(model, values, conflictFields, options) {
    const conflict_fields = typeof conflictFields === 'string' ? [conflictFields] : conflictFields;
    return this.#command(() => modelCommand('upsert', model, { values, conflict_fields }), options);
  }

  /** Call a function of the server: zFunc('zFunc(name, {a: 1})', options), or zFunc('name', ...args). */
  zFunc(call, ...rest) {
    if (typeof call === 'string' && /^\s*zFunc\s*\(/.test(call)) {
      return this.#command(() => ({ zKey: 'zFunc', zHorizontal: call.trim() }), rest[0]);
    }
    return this.call(call, rest);
  }

  /** zFunc with a list of arguments and the options of a call, `onProgress` among them. */
  call(name, args = [], options = undefined) {
    return this.#command(() => functionCommand(name, args), options);
  }

  /** Go to a page: zLink('/admin/users'). */
  zLink(path, options) {
    return this.#command(() => formCommand('zLink', path), options);
  }

  /** Read a file the server offers: zOpen('config.yaml'). */
  zOpen(file, options) {
    return this.#command(() => formCommand('zOpen', file), options);
  }

  /**
   * Send any command. The second argument is a timeout in milliseconds, or the options of a call:
   * {timeout, signal, onProgress, idempotencyKey}. The time starts again with each progress message and
   * stands still while the server is asking the user something.
   */
  send(payload, timeoutOrOptions) {
    return this.#command(
      () => payload,
      typeof timeoutOrOptions === 'number' ? { timeout: timeoutOrOptions } : timeoutOrOptions,
    );
  }

  // Events.

  /** Call `listener` at each `event`; returns the function that ends it. */
  on(event, listener) {
    return this.#listeners.add(event, listener);
  }

  onBroadcast(listener) {
    return this.on('broadcast', listener);
  }

  removeBroadcastListener(listener) {
    this.#listeners.remove('broadcast', listener);
  }

  /** What the server shows to this client: listener(data, message). */
  onDisplay(listener) {
    return this.on('display', listener);
  }

  /**
   * Answer the server's prompts: `ask(prompt, {askId, timeout, signal, error})` returns the value or a promise
   * of it; null or undefined cancels. When the server does not accept the value, `ask` is called again with
   * `error`. `signal` aborts when the prompt is withdrawn. Only the function set last is asked.
   */
  onAsk(ask) {
    if (typeof ask !== 'function') throw new TypeError('zBifrost: onAsk takes a function');
    this.#onAsk = ask;
    return () => {
      if (this.#onAsk === ask) this.#onAsk = null;
    };
  }

  // Sending.

  #command(build, options, urgent = false) {
    return new Promise((resolve, reject) => {
      const payload = build();
      if (payload === null || typeof payload !== 'object' || Array.isArray(payload)) {
        throw new TypeError("zBifrost: a command is an object such as {zKey: 'ping'}");
      }
      const call = { ...options, timeout: toTimeout(options?.timeout ?? this.#options.timeout), urgent };
      if (this.#state !== 'connected') {
        throw new NotConnected('Not connected: the command was not sent');
      }
      this.#calls.start(payload, call, (text, started) => this.#transmit(text, started), { resolve, reject });
    });
  }

  #transmit(text, call) {
    const { socket } = this.#link;
    // A closing socket swallows what it is given without a word.
    if (socket.readyState !== 1) {
      this.#calls.fail(call, new NotConnected('Not connected: the command was not sent'));
      return;
    }
    this.#log(`#${call.id} ${call.name} sent`);
    socket.send(text);
  }

  // The connection.

  #begin() {
    clearTimeout(this.#retryTimer);
    const link = { socket: null, heard: false };
    this.#link = link;
    link.timer = setTimeout(
      () => {
        this.#drop(link, `no answer within ${this.#options.connectTimeout} ms`);
      },
      Math.min(this.#options.connectTimeout, LARGEST_DELAY),
    );
    this.#watchPage();
    const Socket = this.#options.WebSocket ?? globalThis.WebSocket;
    if (this.#state === 'disconnected') this.#setState('connecting');
    if (Socket !== undefined) this.#dial(link, Socket);
    else
      importWebSocket().then(
        (found) => this.#dial(link, found),
        (error) => this.#ended(link, { final: true, error }),
      );
  }

  #dial(link, Socket) {
    if (this.#link !== link) return;
    const { url, protocols } = credentials(this.#address, this.#token, this.#options.tokenInQuery);
    let socket;
    try {
      socket = protocols.length > 0 ? new Socket(url, protocols) : new Socket(url);
    } catch {
      // The error itself is not passed on: it quotes the URL or the subprotocol, and so the token.
      this.#ended(link, { final: true, detail: 'the browser does not allow this address' });
      return;
    }
    link.socket = socket;
    socket.binaryType = 'arraybuffer';
    socket.addEventListener('open', () => this.#greet(link));
    socket.addEventListener('message', (event) => this.#received(link, event.data));
    socket.addEventListener('error', (event) => {
      link.detail = event.message; // only Node's ws says anything here
    });
    socket.addEventListener('close', (event) => {
      this.#ended(link, { code: event.code, reason: event.reason, wasClean: event.wasClean, detail: link.detail });
    });
  }

  /** An open socket is not yet admitted: a refused client is told so by a close right after the handshake,
   * since a page cannot see an HTTP status. The answer to a first command, whatever it says, settles it. */
  #greet(link) {
    if (this.#link !== link) return;
    this.#ping(link, this.#options.connectTimeout).then(
      () => this.#admitted(link),
      () => {},
    );
  }

  /** Resolves when the server answers at all, an error included. */
  #ping(link, timeout) {
    return new Promise((resolve, reject) => {
      const transmit = (text) => link.socket.send(text);
      const settle = { resolve, reject: (error) => (error instanceof CommandFailed ? resolve() : reject(error)) };
      this.#calls.start({ zKey: 'ping' }, { timeout, urgent: true }, transmit, settle);
    });
  }

  #admitted(link) {
    if (this.#link !== link) return;
    clearTimeout(link.timer);
    link.timer = setTimeout(() => {
      this.#retries = 0;
    }, STEADY_AFTER);
    if (this.#options.heartbeat !== Infinity) {
      link.heartbeat = setInterval(
        () => {
          if (!link.heard) this.#probe(link);
          link.heard = false;
        },
        Math.min(this.#options.heartbeat, LARGEST_DELAY),
      );
    }
    this.#admittedOnce = true;
    this.#attempt?.resolve(this);
    this.#attempt = null;
    this.#setState('connected');
    if (this.#link === link) this.#listeners.emit('open');
  }

  /** Is anybody there? A network that changed or a machine that slept leaves sockets that never say so. */
  #probe(link) {
    if (link.probing) return;
    link.probing = true;
    this.#ping(link, PROBE_TIMEOUT).then(
      () => {
        link.probing = false;
      },
      () => this.#drop(link, 'the server stopped answering'),
    );
  }

  /** Give a connection up without waiting for a closing handshake that may never come. */
  #drop(link, detail) {
    if (this.#link !== link) return;
    this.#ended(link, { detail });
    hangUp(link);
  }

  /** The one place where a connection or an attempt ends. */
  #ended(
    link,
    { code = 1006, reason = '', wasClean = false, final = FINAL_CODES.has(code), own = false, detail, error },
  ) {
    if (this.#link !== link) return;
    this.#link = null;
    clearTimeout(link?.timer);
    clearInterval(link?.heartbeat);
    const retry = !final && this.#options.autoReconnect && this.#admittedOnce;
    const failure = error ?? this.#explain({ code, reason, final, own, detail });
    const attempt = this.#attempt;
    this.#attempt = null;
    let delay;
    if (retry) {
      this.#listeners.guard('retryDelay', () => {
        delay = this.#retryDelay(this.#retries);
      });
      delay = delay >= 0 ? delay : fullJitter()(this.#retries);
      this.#retries += 1;
      this.#retryTimer = setTimeout(() => this.#begin(), Math.min(delay, LARGEST_DELAY));
    } else {
      this.#retries = 0;
      this.#admittedOnce = false;
      this.#page?.abort();
      this.#page = null;
    }
    this.#log(`connection ended: ${failure.message}`);
    this.#calls.rejectAll((call) =>
      call.inFlight ? failure : new NotConnected('Not connected: the command was not sent'),
    );
    for (const open of this.#asks.values()) open.abort();
    this.#asks.clear();
    attempt?.reject(failure);
    const attemptNumber = this.#retries;
    this.#setState(retry ? 'reconnecting' : 'disconnected');
    if (link !== null) {
      this.#listeners.emit('close', { code, reason: this.#redact(reason), wasClean, final: !retry, error: failure });
    }
    if (retry && this.#state === 'reconnecting')
      this.#listeners.emit('reconnecting', { attempt: attemptNumber, delay });
    if (!retry && !own && !attempt) this.#listeners.emit('error', failure);
  }

  #explain({ code, reason, final, own, detail }) {
    const said = this.#redact(reason || detail || '');
    const details = { closeCode: code, reason: this.#redact(reason), retryable: !final };
    if (own) return new ConnectionLost('disconnect() was called', details);
    const why = `${said === '' ? '' : `: ${said}`} (close code ${code})`;
    const connected = this.#state === 'connected';
    if (code === 1008 || (code !== 1006 && !connected)) {
      return new ConnectionRefused(`The server refused the connection${why}`, details);
    }
    if (connected) return new ConnectionLost(`The connection to the server was lost${why}`, details);
    return new ConnectionLost(`Cannot connect to ${withoutSecrets(this.#address)}${why}`, details);
  }

  #redact(text) {
    if (this.#token === '') return text;
    return text.replaceAll(this.#token, '[token]').replaceAll(encodeURIComponent(this.#token), '[token]');
  }

  /** A page that wakes up, comes back online or out of the back-forward cache does not sit out its delay. */
  #watchPage() {
    if (this.#page !== null || typeof globalThis.addEventListener !== 'function') return;
    this.#page = new AbortController();
    const until = { signal: this.#page.signal };
    const wake = () => {
      if (this.#link === null) this.#begin();
      else if (this.#state === 'connected') this.#probe(this.#link);
    };
    globalThis.addEventListener('online', wake, until);
    globalThis.addEventListener(
      'pageshow',
      (event) => {
        if (event.persisted) wake();
      },
      until,
    );
    // An open socket would keep the page out of the back-forward cache.
    globalThis.addEventListener(
      'pagehide',
      () => {
        if (this.#link !== null) this.#drop(this.#link, 'the page was left');
      },
      until,
    );
    globalThis.document?.addEventListener(
      'visibilitychange',
      () => {
        if (globalThis.document.visibilityState === 'visible') wake();
      },
      until,
    );
  }

  // Receiving.

  #received(link, data) {
    if (this.#link !== link) return;
    link.heard = true;
    if (typeof data !== 'string') {
      this.#listeners.emit('error', new BifrostError('The server sent a binary message', { code: 'bad_message' }));
      return;
    }
    const { kind, message } = classify(data);
    switch (kind) {
      case 'reply': {
        const call = this.#calls.answer(message);
        if (call) this.#log(`#${call.id} ${call.name} answered after ${Date.now() - call.started} ms`);
        else this.#log('an answer came too late and was ignored');
        break;
      }
      case 'progress':
        this.#listeners.guard('progress', () => this.#calls.progress(message));
        this.#listeners.emit('progress', message);
        break;
      case 'display':
        this.#listeners.emit('display', message.data, message);
        break;
      case 'service':
        this.#listeners.emit('service', { name: message.name, status: message.status });
        break;
      case 'ask':
        this.#ask(message);
        break;
      case 'ask_closed':
        this.#asks.get(message.askId)?.abort(message.reason);
        this.#asks.delete(message.askId);
        break;
      default:
        this.#listeners.emit('broadcast', message);
    }
  }

  async #ask({ askId, prompt, timeout }) {
    if (this.#asks.has(askId)) return;
    const open = new AbortController();
    this.#asks.set(askId, open);
    let error = null;
    while (!open.signal.aborted) {
      let value;
      try {
        value = await this.#onAsk?.(prompt, { askId, timeout, signal: open.signal, error });
      } catch (thrown) {
        if (!open.signal.aborted) this.#listenerThrew('ask', thrown);
      }
      if (open.signal.aborted) return;
      const answer = value === null || value === undefined ? { askId, cancelled: true } : { askId, value };
      try {
        await this.#command(() => ({ zKey: 'zAnswer', zHorizontal: answer }), undefined, true);
        break;
      } catch (failure) {
        error = failure;
        // Only a value can be mended by asking again.
        if (answer.cancelled || !(failure instanceof CommandFailed) || failure.code !== 'invalid') break;
      }
    }
    this.#asks.delete(askId);
  }

  // Reporting.

  #setState(state) {
    if (this.#state === state) return;
    const previous = this.#state;
    this.#state = state;
    this.#log(state);
    this.#listeners.emit('state', { state, previous });
  }

  #listenerThrew(event, error) {
    if (event === 'error' || !this.#listeners.has('error')) {
      console.error(`zBifrost: a listener of '${event}' failed`, error);
      return;
    }
    const text = `A listener of '${event}' failed`;
    this.#listeners.emit('error', new BifrostError(text, { code: 'listener_failed', cause: error }));
  }

  #log(text) {
    if (this.#options.debug === true) console.debug(`zBifrost ${text}`);
    else if (typeof this.#options.debug === 'function') this.#options.debug(text);
  }
}

/** A client that is already connected; rejects when the server does not let it in. */
export function createClient(url, token, options) {
  return new zBifrost(url, token, options).connect();
}

function hangUp(link) {
  try {
    link?.socket?.close(1000);
  } catch {
    // Some sockets refuse to be closed while they connect; nobody listens to this one any more.
  }
}

async function importWebSocket() {
  try {
    const name = 'ws'; // held in a variable so that no bundler pulls it into a page
    const module = await import(/* webpackIgnore: true */ /* @vite-ignore */ name);
    return module.WebSocket ?? module.default;
  } catch {
    throw new BifrostError(
      'This JavaScript has no WebSocket: install the ws package (npm install ws), pass options.WebSocket, or use Node 22',
      { code: 'no_websocket' },
    );
  }
}
