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
 * Five promises hold everywhere below. Every call settles exactly once: by its answer, its timeout, its
 * abort signal or the end of the connection. Nothing is ever sent twice on its own, but what is published to a topic,
 * under a key that makes it count once: a command that was under way when the connection broke may have run, and only
 * its author knows whether it may run again.
 * Values arrive as they were written, or are refused: what JSON has no form for is a TypeError, and an integer
 * that a number cannot hold is a BigInt. What the caller passes in is never changed. The token appears in no
 * message, log line or error.
 *
 * Order of the file: errors, what goes over the wire (values in, values out), listeners, calls, topics, live queries,
 * the client.
 */

const PROTOCOL = 'zbifrost.v1';
const LARGEST_DELAY = 2 ** 31 - 1; // setTimeout fires at once for anything above
const STEADY_AFTER = 5000; // a connection that lasted this long starts the backoff anew
const PROBE_TIMEOUT = 5000;
const SILENCE_STEP = 50; // and how many of them in a row prove that nothing more has arrived
const SILENCE_STEPS = 10;
const HANG_UP_AFTER = 1000; // for a server to answer a goodbye
const MESSAGE_SIZE = 1024 * 1024; // bytes, where the server does not tell its limit
const DEEPEST = 1000;
const DEFAULTS = {
  debug: false,
  autoReconnect: true,
  timeout: 30000,
  connectTimeout: 10000,
  heartbeat: 30000,
  maxInFlight: 64,
  tokenInQuery: false,
  bigints: 'bigint',
  retryDelay: 500,
  WebSocket: undefined,
};
const CALL_OPTIONS = ['timeout', 'signal', 'onProgress', 'idempotencyKey'];
const READ_OPTIONS = ['fields', 'order_by', 'limit', 'offset', ...CALL_OPTIONS];
const WRITE_OPTIONS = ['all', ...CALL_OPTIONS];
const PUBLISH_OPTIONS = ['timeout', 'signal', 'idempotencyKey'];
const HISTORY_OPTIONS = ['limit', 'reverse', 'since', 'before', 'timeout', 'signal'];
const LIVE_OPTIONS = ['fields', 'order_by', 'limit'];

const KEPT = 'zbifrost.token'; // where a tab keeps what it signs in with
const TOPIC_NAME = /^[\w.:@/%-]{1,255}$/;
const TOPIC_EVENTS = ['message', 'continuity', 'presence', 'subscribed', 'unsubscribed', 'error'];
const MOST_UNREAD = 1000; // messages that a `for await` keeps
const OWN_KEYS = 1000; // of publishes that are remembered
const LIVE_EVENTS = ['status', 'error'];

/** With it a class says that Immer may make drafts of its instances. */
const DRAFTABLE = Symbol.for('immer-draftable');
const HALF_CHARACTER = /[\uD800-\uDFFF]/u; // it has no form in UTF-8

/* The server said no for a reason that trying again does not change (1002, 1003, 1007: what this client sends cannot
   be used; 1008: origin, token or a flood), or it said goodbye (1000). The list is that of zcomm.wire.closecodes. */
const FINAL_CODES = new Set([1000, 1002, 1003, 1007, 1008]);

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

/** The address as text. Only the getter `href` of URL is used: React Native has no more of it. */
function parseAddress(url) {
  let href = '';
  try {
    if (typeof url === 'string' || typeof url?.href === 'string') {
      href = new URL(url.href ?? url, globalThis.location?.href).href.replace(/^http/, 'ws').replace(/#.*/s, '');
    }
  } catch {
    // The text of that error quotes the URL, which may hold a token.
  }
  if (!/^wss?:\/\/[^/?]/.test(href)) {
    if (/^\w+:\/\/[^/?#]*\[[^\]/?#]*%/.test(String(url?.href ?? url))) {
      throw new TypeError(
        'zBifrost: a URL has no zone such as %eth0 here; write an address without one, or a host name',
      );
    }
    throw new TypeError("zBifrost: the URL must look like 'ws://127.0.0.1:56891' or 'wss://example.com/path'");
  }
  return href;
}

/** `address` with `change(name, pair)` in place of each `name=value` of its query; null takes it out. */
function withQuery(address, change, more = []) {
  const [path, query] = address.split(/\?(.*)/s);
  const pairs = (query ?? '').split('&').filter(Boolean);
  const changed = pairs.map((pair) => {
    let name = pair.split('=', 1)[0];
    try {
      name = decodeURIComponent(name);
    } catch {
      // It stays as it is.
    }
    return change(name, pair);
  });
  const left = [...changed.filter((pair) => pair !== null), ...more].join('&');
  return left === '' ? path : `${path}?${left}`;
}

function withoutSecrets(address) {
  const shown = address.replace(/^(wss?:\/\/[^/?:@]*):[^/?@]*@/, '$1:redacted@');
  return withQuery(shown, (name, pair) => (name === 'token' || name === 'api_key' ? `${name}=redacted` : pair));
}

/** As `application/x-www-form-urlencoded` has it. */
const inQuery = (text) => encodeURIComponent(text).replaceAll('%20', '+');

/** The address to connect to and the subprotocols to offer. A token travels as a subprotocol when HTTP allows its
 * characters there (RFC 7230 `token`), because URLs end up in the logs of proxies. */
function credentials(address, token, tokenInQuery) {
  if (!token) return { url: address, protocols: [] };
  if (!tokenInQuery && /^[\w!#$%&'*+.^`|~-]+$/.test(token)) {
    return { url: address, protocols: [PROTOCOL, `bearer.${token}`] };
  }
  const others = (name, pair) => (name === 'token' ? null : pair);
  return { url: withQuery(address, others, [`token=${inQuery(token)}`]), protocols: [] };
}

/** A command as JSON, its id first: where the rest cannot be read, the server's answer still finds its call. */
function encodeCommand(command, id, idempotencyKey) {
  const own = { _requestId: String(id) };
  if (idempotencyKey !== undefined) {
    const horizontal = plainOf(command.zHorizontal, 'zHorizontal');
    if (!isObject(horizontal)) throw new TypeError('zBifrost: an idempotencyKey goes with commands on models');
    const key = { _idempotencyKey: encode(idempotencyKey, 'idempotencyKey') };
    own.zHorizontal = encodeObject(horizontal, 'zHorizontal', [command], key);
  }
  return encodeObject(command, '', [], own);
}

const isObject = (value) => value !== null && typeof value === 'object' && !Array.isArray(value);

/** `value` in the form that it gives itself for JSON. */
function plainOf(value, place) {
  if (value === null || typeof value !== 'object') return value;
  if (typeof value.toJSON === 'function') return value.toJSON(place);
  return value instanceof Number || value instanceof String || value instanceof Boolean ? value.valueOf() : value;
}

/** `value` as JSON. What JSON.stringify would drop or replace by null or {} is refused, by its place: a field would be
 * erased, or a filter match rows that nobody meant. A property that is undefined is left out, but not of a filter. */
function encode(value, place = '', around = []) {
  const plain = plainOf(value, place);
  if (plain === null && value === null) return 'null';
  switch (typeof plain) {
    case 'string':
      if (HALF_CHARACTER.test(plain)) refuse(place, 'a text with half a character, such as half an emoji');
      return JSON.stringify(plain);
    case 'number':
      if (!Number.isFinite(plain)) refuse(place, String(plain));
      // Of a larger integer a number may be the neighbour. Written so, it is no integer, and names nothing.
      return Number.isInteger(plain) && !Number.isSafeInteger(plain) ? plain.toExponential() : JSON.stringify(plain);
    case 'boolean':
    case 'bigint':
      return String(plain);
    case 'object':
      if (plain !== null) break;
      refuse(place, value instanceof Date ? 'an invalid date' : 'an object that becomes null');
    // falls through
    default:
      refuse(place, plain === value ? typeof value : `an object that becomes ${typeof plain}`);
  }
  if (!Array.isArray(plain)) return encodeObject(plain, place, around);
  const inner = within(plain, place, around);
  return `[${Array.from(plain, (item, at) => encode(item, `${place}[${at}]`, inner)).join(',')}]`;
}

/** An object as JSON; `own` has texts by name that stand in it instead of what it has there itself. */
function encodeObject(plain, place, around, own = {}) {
  const inner = within(plain, place, around);
  const filter = /^(zHorizontal\.)?(where|filters)\b/.test(place);
  const parts = Object.entries(own).map(([name, text]) => `"${name}":${text}`);
  for (const name of namesOf(plain, place)) {
    if (Object.hasOwn(own, name)) continue;
    const item = plain[name];
    if (item === undefined && !filter && name !== 'where' && name !== 'filters') continue;
    parts.push(`${encode(name, place)}:${encode(item, placeOf(name, place), inner)}`);
  }
  return `{${parts.join(',')}}`;
}

function within(plain, place, around) {
  if (around.includes(plain)) refuse(place, 'a part of itself');
  if (around.length > DEEPEST) refuse(place, 'nested too deeply');
  return [...around, plain];
}

const placeOf = (name, place) => (place === '' ? name : `${place}.${name}`);

/** The names of all that an object holds. JSON is written of the enumerable properties of its own with a text for a name:
 * where it holds anything else, that is refused. Methods are not what it holds, nor are marks. */
function namesOf(plain, place) {
  const kind = Object.prototype.toString.call(plain).slice(8, -1);
  const names = Object.keys(plain);
  const prototype = Object.getPrototypeOf(plain);
  if (kind !== 'Object' || (names.length === 0 && prototype !== null && Object.getPrototypeOf(prototype) !== null)) {
    const name = kind === 'Object' ? (prototype.constructor?.name ?? kind) : kind;
    refuse(place, `a ${name}, which needs a method toJSON()`);
  }
  for (let holder = plain; holder !== null && !isRoot(holder); holder = Object.getPrototypeOf(holder)) {
    const keys = Reflect.ownKeys(holder);
    if (holder === plain && keys.length === names.length) continue;
    for (const key of keys) {
      const property = Object.getOwnPropertyDescriptor(holder, key);
      if (typeof key === 'symbol') {
        const method = holder !== plain && typeof property?.value === 'function';
        if (property?.enumerable && !method && key !== DRAFTABLE) {
          refuse(`${place}[${String(key)}]`, 'named by a symbol', 'which JSON leaves out');
        }
      } else if (property && !isMethodOrMark(key, property) && !isWritten(plain, key)) {
        const what = property.get ? 'an accessor' : holder === plain ? 'not enumerable' : 'inherited';
        refuse(placeOf(key, place), what, 'which JSON leaves out; its object needs a method toJSON()');
      }
    }
  }
  return names;
}

const isWritten = (plain, name) => Object.prototype.propertyIsEnumerable.call(plain, name);

/** The object that all others inherit from, also that of another frame. What programs add there is no value of any. */
const isRoot = (holder) =>
  holder === Object.prototype || (Object.getPrototypeOf(holder) === null && Object.hasOwn(holder, 'isPrototypeOf'));

/** What is no value: a function, an accessor that cannot be read, and what libraries keep in objects for themselves
 * (`__ob__` and `__v_skip` of Vue, `__observers__` of Aurelia; others take symbols that are not enumerable). */
function isMethodOrMark(name, { value, get, set, enumerable }) {
  return typeof value === 'function' || (set && !get) || (!enumerable && name.startsWith('__'));
}

function refuse(place, what, why = 'which JSON has no form for') {
  throw new TypeError(`zBifrost: ${place.replace(/^zHorizontal\./, '')} is ${what}, ${why}`);
}

/** What `text` says in JSON, with integers that no number holds as BigInt or as text. */
function decode(text, bigints) {
  const value = JSON.parse(text);
  if (bigints === 'number' || !/\d{16}/.test(text)) return value;
  // Each of them is put between quotation marks, with a mark that nobody can know beforehand.
  const mark = `${Math.random()} `;
  const token = /"|-?\d+(\.\d+)?([eE][+-]?\d+)?/g;
  let marked = '';
  let from = 0;
  for (let found = token.exec(text); found !== null; found = token.exec(text)) {
    const [digits, fraction, exponent] = found;
    if (digits === '"') token.lastIndex = endOfString(text, token.lastIndex);
    else if (!fraction && !exponent && !Number.isSafeInteger(Number(digits))) {
      marked += `${text.slice(from, found.index)}"${mark}${digits}"`;
      from = token.lastIndex;
    }
  }
  if (from === 0) return value;
  const exact = bigints === 'string' ? String : BigInt;
  return JSON.parse(marked + text.slice(from), (_, part) =>
    typeof part === 'string' && part.startsWith(mark) ? exact(part.slice(mark.length)) : part,
  );
}

/** The index behind the quotation mark that ends the string whose text begins at `at`. */
function endOfString(text, at) {
  for (let end = text.indexOf('"', at); ; end = text.indexOf('"', end + 1)) {
    let escapes = end;
    while (text[escapes - 1] === '\\') escapes -= 1;
    if ((end - escapes) % 2 === 0) return end + 1;
  }
}

/** The bytes of `text` in UTF-8. */
function sizeOf(text) {
  let size = text.length;
  for (let at = 0; at < text.length; at += 1) {
    const unit = text.charCodeAt(at);
    // Each half of a pair of units counts two of the four bytes.
    if (unit > 0x7f) size += unit > 0x7ff && (unit < 0xd800 || unit > 0xdfff) ? 2 : 1;
  }
  return size;
}

/** Whether brackets nest deeper in the JSON `text` than `limit`. */
function isDeeper(text, limit) {
  if (limit === Infinity || text.length <= limit) return false;
  let depth = 0;
  for (let at = 0; at < text.length; at += 1) {
    switch (text[at]) {
      case '"':
        at = endOfString(text, at + 1) - 1;
        break;
      case '[':
      case '{':
        depth += 1;
        if (depth > limit) return true;
        break;
      case ']':
      case '}':
        depth -= 1;
        break;
      default:
    }
  }
  return false;
}

/** `where` of a command: an id, a list of ids, or a filter object. */
function toWhere(filters) {
  if (filters === undefined || filters === null) return undefined;
  return typeof filters === 'object' && !Array.isArray(filters) ? filters : { id: filters };
}

function modelCommand(action, model, rest) {
  if (typeof model !== 'string' || model === '') throw new TypeError('zBifrost: the model must be a name');
  const given = Object.entries(rest).filter(([, value]) => value !== undefined);
  return { zKey: `${action}_${model}`, zHorizontal: { action, model, ...Object.fromEntries(given) } };
}

/** `zLink(/path)` or `zOpen(file)` from the bare word or from the finished form. */
function formCommand(form, text) {
  if (typeof text !== 'string' || text.trim() === '') throw new TypeError(`zBifrost: ${form} needs a text`);
  const finished = text.trimStart().startsWith(`${form}(`);
  // What the form has no way to write.
  if (form === 'zOpen' && !finished && /^ | $|,/.test(text)) return { zKey: form, zHorizontal: { name: text } };
  return { zKey: form, zHorizontal: finished ? text.trim() : `${form}(${text})` };
}

function functionCommand(name, args, kwargs) {
  if (typeof name !== 'string' || !/^[A-Za-z_][\w.]*$/.test(name)) {
    throw new TypeError("zBifrost: a function is called by its name, or as 'zFunc(name, {argument: value})'");
  }
  if (!Array.isArray(args)) throw new TypeError('zBifrost: args is a list; options.kwargs has arguments by name');
  const given = args.map((arg) => arg ?? null);
  return { zKey: 'zFunc', zHorizontal: { name, args: given, ...(kwargs === undefined ? {} : { kwargs }) } };
}

/** What a text frame is. Text that is not JSON is a broadcast that somebody wrote as plain text. */
function classify(text, bigints) {
  let message;
  try {
    message = decode(text, bigints);
  } catch {
    return { kind: 'broadcast', message: text };
  }
  const has = (key) => Object.hasOwn(message, key);
  if (message === null || typeof message !== 'object') return { kind: 'broadcast', message };
  if (has('_requestId') && (has('result') || has('error'))) return { kind: 'reply', message };
  if (has('event') && ['ask', 'ask_closed', 'display', 'progress', 'service', 'engine'].includes(message.event)) {
    return { kind: message.event, message };
  }
  const ofTopic = ['message', 'topic', 'presence', 'subscribed', 'unsubscribed'].includes(message.event);
  if (ofTopic && TOPIC_NAME.test(message.topic)) return { kind: 'topic', message };
  if (message.event === 'live' && isObject(message.queries)) return { kind: 'live', message };
  // The answer to something that was no message at all. Broadcasts of results have a zKey.
  const { error, code, retryable, zKey } = message;
  if (typeof error === 'string' && typeof code === 'string' && typeof retryable === 'boolean' && zKey === undefined) {
    return { kind: 'error', message };
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

/** Whether the command, sent again by the program, could make a change a second time: a change of a model without a key,
 * or a publish, which would have another key than the client has made for it (`isOnce`). */
function couldDouble({ text, isOnce }) {
  const { zKey, cmd, zHorizontal } = JSON.parse(text);
  const isChange = /^(create|update|delete|upsert)_/.test(zKey ?? cmd);
  return isOnce || (isChange && typeof zHorizontal?._idempotencyKey !== 'string');
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

/** Refuse options that nobody would look at: a misspelt limit would bring the whole table. */
function checkNames(options, known) {
  if (options === undefined || options === null) return;
  if (typeof options !== 'object' || Array.isArray(options)) throw new TypeError('zBifrost: options are an object');
  for (const name of Object.keys(options)) {
    if (known.includes(name)) continue;
    const near = known.find((each) => distance(each, name) <= Math.max(1, Math.floor(name.length / 3)));
    throw new TypeError(`zBifrost: there is no option ${name}${near ? `; did you mean ${near}?` : ''}`);
  }
}

/** How many letters differ between two names, their case and _ left aside (Levenshtein). */
function distance(one, other) {
  const [a, b] = [one, other].map((name) => name.replaceAll('_', '').toLowerCase());
  let row = Array.from({ length: b.length + 1 }, (_, at) => at);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length];
}

function checkCallOptions({ signal, onProgress, idempotencyKey }) {
  if (signal !== undefined && typeof signal?.addEventListener !== 'function') {
    throw new TypeError('zBifrost: signal is an AbortSignal');
  }
  if (onProgress !== undefined && typeof onProgress !== 'function') {
    throw new TypeError('zBifrost: onProgress is a function');
  }
  if (idempotencyKey !== undefined && typeof idempotencyKey !== 'string') {
    throw new TypeError('zBifrost: idempotencyKey is a string');
  }
}

/** The options of the constructor, each of its type. */
function toOptions(options) {
  checkNames(options, Object.keys(DEFAULTS));
  const given = Object.entries(options ?? {}).filter(([, value]) => value !== undefined);
  const all = { ...DEFAULTS, ...Object.fromEntries(given) };
  for (const name of ['timeout', 'connectTimeout', 'heartbeat']) toTimeout(all[name], name);
  const { maxInFlight, retryDelay, WebSocket, bigints, debug } = all;
  const delays = typeof retryDelay === 'function' || (typeof retryDelay === 'number' && retryDelay >= 0);
  for (const [name, fine, what] of [
    ['debug', typeof debug === 'boolean' || typeof debug === 'function', 'true, false or a function'],
    ['autoReconnect', typeof all.autoReconnect === 'boolean', 'true or false'],
    ['tokenInQuery', typeof all.tokenInQuery === 'boolean', 'true or false'],
    ['maxInFlight', typeof maxInFlight === 'number' && maxInFlight >= 1, 'a number of calls from 1'],
    ['WebSocket', WebSocket === undefined || typeof WebSocket === 'function', 'a class'],
    ['retryDelay', delays, 'a number of milliseconds from 0, or a function that gives one'],
    ['bigints', ['bigint', 'string', 'number'].includes(bigints), "'bigint', 'string' or 'number'"],
  ]) {
    if (!fine) throw new TypeError(`zBifrost: ${name} is ${what}`);
  }
  return all;
}

/** Call `act` when everything that has arrived by now was read. */
const afterReading = globalThis.setImmediate ?? ((act) => setTimeout(act, 0));

/** Call `expire` in `delay` milliseconds, but not before what has arrived by then was read: after a machine or a process
 * stood still its timers fire before its sockets are looked at, and an answer may stand behind many other messages.
 * `ask()` gives a promise of an answer that comes behind all others; without one, or where none comes, it is over when
 * nothing is heard for a while in which this process ran. `heard()` counts the messages. Returns the function that
 * ends it. */
function deadline(delay, expire, heard = () => 0, ask = () => undefined) {
  if (delay === Infinity) return () => {};
  let over = false;
  let timer;
  const finish = () => {
    if (over) return;
    over = true;
    clearTimeout(timer);
    expire();
  };
  const after = (wait, act) => {
    const due = performance.now() + wait;
    const before = heard();
    timer = setTimeout(() => act(performance.now() - due < SILENCE_STEP && heard() === before), wait);
  };
  const listen = (left) => {
    if (left === 0) finish();
    else if (!over) after(SILENCE_STEP, (silent) => listen(silent ? left - 1 : SILENCE_STEPS));
  };
  const wait = Math.min(delay, LARGEST_DELAY);
  const due = performance.now() + wait;
  timer = setTimeout(() => {
    const before = heard();
    const late = performance.now() - due >= SILENCE_STEP;
    afterReading(() => {
      if (over) return;
      const answer = ask();
      if (answer === undefined && !late && heard() === before) {
        finish();
        return;
      }
      answer?.then(finish, () => {});
      listen(SILENCE_STEPS);
    });
  }, wait);
  return () => {
    over = true;
    clearTimeout(timer);
  };
}

// ---------------------------------------------------------------------------------------------- listeners

/** Functions by event. One that throws never keeps the message from the others. What happens while one of them runs, by
 * what it does, is told to all of them afterwards: everybody hears everything in its order. */
class Listeners {
  #byEvent = new Map();
  #due = [];
  #busy = false;
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
    this.inTurn(() => this.tell(event, ...values));
  }

  /** Run `act`, which does not throw, after all that was to be told before. */
  inTurn(act) {
    this.#due.push(act);
    this.#tellDue();
  }

  /** Let what `act` has to tell follow each other, without what the program does in between. */
  together(act) {
    const busy = this.#busy;
    this.#busy = true;
    try {
      act();
    } finally {
      this.#busy = busy;
      this.#tellDue();
    }
  }

  #tellDue() {
    if (this.#busy) return;
    this.#busy = true;
    while (this.#due.length > 0) this.#due.shift()();
    this.#busy = false;
  }

  /** Call the listeners at once. */
  tell(event, ...values) {
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

/** The calls that have no answer yet, by request id; those above `maxInFlight` wait here for their turn: a server
 * refuses what is above its own. */
class Calls {
  #byId = new Map();
  #waiting = [];
  #inFlight = 0;
  #nextId = 1;

  /** While this returns true no call runs out of time: a person is being asked something. */
  paused = () => false;

  /** Whether there is a connection. What may be sent again waits here for the next one. */
  open = false;

  /** The number of messages that have come, and a promise of an answer that comes behind all that are under way. */
  heard = () => 0;
  ask = () => undefined;

  constructor(maxInFlight) {
    this.maxInFlight = maxInFlight;
  }

  get size() {
    return this.#byId.size;
  }

  has(call) {
    return this.#byId.get(call.id) === call;
  }

  /** A command with a fresh id, as it will be sent. Throws on bad arguments. The program's own toJSON() and accessors run
   * in here, and may do anything with the client. */
  prepare(command, { idempotencyKey }) {
    const plain = plainOf(command, '');
    if (!isObject(plain)) throw new TypeError("zBifrost: a command is an object such as {zKey: 'ping'}");
    const id = this.#nextId;
    this.#nextId += 1;
    return { id, text: encodeCommand(plain, id, idempotencyKey), name: commandName(plain) };
  }

  /** Send what was prepared; `settle` is the call's `{resolve, reject}`. */
  start({ id, text, name }, { timeout, signal, onProgress, urgent, again, isOnce }, transmit, settle) {
    if (signal?.aborted) throw new RequestAborted('The call was aborted', { cause: signal.reason });
    const call = { id, text, name, timeout, urgent, again, isOnce, onProgress, settle, started: Date.now() };
    this.#byId.set(id, call);
    if (signal) {
      const abort = () =>
        this.#finish(call)?.reject(new RequestAborted('The call was aborted', { cause: signal.reason }));
      signal.addEventListener('abort', abort, { once: true });
      call.forgetSignal = () => signal.removeEventListener('abort', abort);
    }
    call.send = () => {
      call.inFlight = true;
      call.wasSent = true;
      this.#inFlight += 1;
      transmit(text, call);
    };
    this.#arm(call);
    if (urgent) call.send();
    else {
      this.#waiting.push(call);
      this.#sendDue();
    }
  }

  #sendDue() {
    while (this.open && this.#waiting.length > 0 && this.#inFlight < this.maxInFlight) this.#waiting.shift().send();
  }

  /** There is a connection: send what `first` starts, and then what waited for one. */
  reopen(first) {
    const waited = this.#waiting;
    this.#waiting = [];
    this.open = true;
    first();
    this.#waiting.push(...waited);
    this.#sendDue();
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

  /** The connection has ended. Where another one follows, what may be sent again waits for that. */
  rejectAll(errorOf, another) {
    this.open = false;
    this.#waiting = [];
    for (const call of [...this.#byId.values()]) {
      if (another && call.again) this.#waiting.push(call);
      else this.fail(call, errorOf(call));
    }
    for (const call of this.#waiting) call.inFlight = false;
    this.#inFlight = 0;
  }

  #arm(call) {
    call.forgetTime?.();
    const expire = () => {
      if (!call.urgent && this.paused()) this.#arm(call);
      else {
        const retryable = !(call.wasSent && couldDouble(call));
        this.fail(call, new RequestTimeout(`No answer to ${call.name} within ${call.timeout} ms`, { retryable }));
      }
    };
    call.forgetTime = deadline(call.timeout, expire, this.heard, () =>
      call.inFlight && !call.urgent ? this.ask() : undefined,
    );
  }

  #finish(call) {
    if (!this.#byId.delete(call.id)) return undefined;
    call.forgetTime();
    call.forgetSignal?.();
    if (call.inFlight) this.#inFlight -= 1;
    else this.#waiting = this.#waiting.filter((other) => other !== call);
    this.#sendDue();
    return call.settle;
  }
}

// ------------------------------------------------------------------------------------------------- topics

function toSettle() {
  const settle = {};
  settle.promise = new Promise((resolve, reject) => Object.assign(settle, { resolve, reject }));
  return settle;
}

/** The options of a topic, each of its type; the state is a copy, which nobody changes. */
function toTopicOptions(options) {
  checkNames(options, ['presence', 'last', 'state', 'echo']);
  const given = Object.fromEntries(Object.entries(options ?? {}).filter(([, value]) => value !== undefined));
  const { presence = false, last = 1, echo = true } = given;
  for (const [name, fine, what] of [
    ['presence', typeof presence === 'boolean', 'true or false'],
    ['last', Number.isInteger(last) && last >= 1 && last <= 1000, 'a number of messages from 1 to 1000'],
    ['echo', typeof echo === 'boolean', 'true or false'],
  ]) {
    if (!fine) throw new TypeError(`zBifrost: ${name} is ${what}`);
  }
  if (given.state !== undefined) given.state = toState(given.state);
  return given;
}

function toState(state) {
  if (!isObject(state)) throw new TypeError("zBifrost: state is an object such as {device: 'phone'}");
  return decode(encode(state, 'state'), 'bigint');
}

/** A key that nobody else uses; it is no secret. */
const newKey = () => [0, 0].map(() => Math.random().toString(36).slice(2).padEnd(11, '0')).join('');

const toPosition = ({ epoch, offset }) => (offset === undefined ? undefined : { epoch, offset });

/** The names in `some` that `others` does not have. */
const without = (some, others) => Object.keys(some).filter((name) => !Object.hasOwn(others, name));

const NOBODY = Object.freeze({ members: undefined, users: 0, connections: 0 });

/** A diff of who is there, put to `members`. Through maps: a user may be called __proto__. */
function mergeMembers(members, joined, left) {
  const merged = new Map(Object.entries(members));
  for (const [user, states] of Object.entries(joined ?? {})) merged.set(user, { ...merged.get(user), ...states });
  for (const [user, connections] of Object.entries(left ?? {})) {
    const gone = new Set(connections);
    const states = Object.entries(merged.get(user) ?? {}).filter(([connection]) => !gone.has(connection));
    if (states.length > 0) merged.set(user, Object.fromEntries(states));
    else merged.delete(user);
  }
  return Object.fromEntries(merged);
}

/** The messages of a topic that wait for a loop over it, and how that ends. Before there is one, the newest wait. Where a
 * loop was left, the next one is told that some are missing, before those that follow. */
class Unread {
  #messages = [];
  #waiting = [];
  #end = null;
  #onEnd = null; // of the loop
  #isLeft = false;
  #missing; // since it was left
  #topic;

  constructor(topic) {
    this.#topic = topic;
  }

  begin(onEnd) {
    this.#onEnd = onEnd;
  }

  /** The loop was left before its end. */
  leave() {
    this.#onEnd = null;
    this.#isLeft = true;
    for (const { resolve } of this.#waiting.splice(0)) resolve({ value: undefined, done: true });
  }

  /** What the next loop is told in the place of messages, once. */
  takeMissing() {
    const missing = this.#missing;
    if (missing !== undefined) {
      this.#missing = undefined;
      this.#isLeft = false;
    }
    return missing;
  }

  push(message) {
    if (this.#messages.length >= MOST_UNREAD) {
      if (this.#onEnd !== null) {
        this.lost('too_slow');
        return;
      }
      if (this.#isLeft) this.#missing ??= this.#toError('too_slow');
      this.#messages.shift();
    }
    this.#messages.push(message);
    this.#settle();
  }

  lost(reason) {
    if (this.#onEnd !== null) this.finish(this.#toError(reason));
    else {
      if (this.#isLeft) this.#missing ??= this.#toError(reason);
      this.#messages = [];
    }
  }

  #toError(reason) {
    return new BifrostError(`Messages of ${this.#topic} are missing: ${reason}`, { code: 'messages_lost', reason });
  }

  finish(error) {
    this.#end ??= { error };
    this.#onEnd?.();
    this.#settle();
  }

  next() {
    const { promise, ...call } = toSettle();
    this.#waiting.push(call);
    this.#settle();
    return promise;
  }

  #settle() {
    while (this.#waiting.length > 0 && (this.#messages.length > 0 || this.#end !== null)) {
      const { resolve, reject } = this.#waiting.shift();
      if (this.#messages.length > 0) resolve({ value: this.#messages.shift(), done: false });
      else if (this.#end.error === undefined) resolve({ value: undefined, done: true });
      else {
        reject(this.#end.error);
        this.#end = {};
      }
    }
  }
}

/**
 * A topic as one client sees it. It keeps the position of the last message, and subscribes again with that after each
 * reconnect: its listeners are told every message once and in order, or `continuity` with `recovered: false` first.
 */
class Topic {
  #name;
  #client;
  #configured = {}; // the options as the program gave them
  #options = {};
  #accepted; // the options that the server has taken
  #isChanged = false; // since it was asked
  #isWanted = false; // by the program
  #isGiven = false; // by the server, in this connection
  #isJoined = false; // in this connection, and no zSubscribe is under way
  #hasStood = false; // whoever listens has to hear what was missed
  #hasBegun = false; // with its newest messages, or some that came
  #position; // where messages are kept
  #reason; // why the next answer is no continuation
  #asked = null; // the zSubscribe under way
  #settle = null; // of the subscribe() under way
  #failures = 0;
  #timer;
  #readers = new Set(); // for the loops
  #unread; // for the next loop
  #ownKeys = new Set(); // of what was published without an echo
  #span = 0; // what is still to be told of a subscription that is over is not
  #stores = new Set(); // who is told of #here
  #here = NOBODY;
  #version; // of #here
  #connection; // one's own
  #missed = 0; // the version that could not be put to it
  #question = null; // the zPresence under way

  /** Who is here: a store, with what one says of oneself. */
  presence;

  constructor(name, client) {
    this.#name = name;
    this.#client = client;
    this.#unread = new Unread(name);
    const topic = this;
    const here = () => topic.#here;
    this.presence = Object.freeze({
      get members() {
        return here().members;
      },
      get users() {
        return here().users;
      },
      get connections() {
        return here().connections;
      },
      get connection() {
        return topic.#connection;
      },
      setState: (state) => topic.#setState(state),
      subscribe: (listener) => topic.#watch(listener),
      getSnapshot: here,
    });
    Object.defineProperty(this, '__v_skip', { value: true });
  }

  get name() {
    return this.#name;
  }

  get state() {
    if (this.#isJoined) return 'subscribed';
    return this.#isWanted || this.#isGiven ? 'subscribing' : 'unsubscribed';
  }

  /** {epoch, offset} of the last message; undefined where none are kept. */
  get position() {
    return this.#position && { ...this.#position };
  }

  /** Call `listener` at each `event`; returns the function that ends it. */
  on(event, listener) {
    if (!TOPIC_EVENTS.includes(event)) {
      throw new TypeError(`zBifrost: a topic has no event ${event}, but ${TOPIC_EVENTS.join(', ')}`);
    }
    const stop = this.#client.listeners.add(this.#event(event), listener);
    this.#keep();
    return () => {
      stop();
      this.#keep();
    };
  }

  /**
   * Resolves with the topic when the subscription stands, which may be after the next connection does. It is kept up,
   * through lost connections and connect() after disconnect(), until unsubscribe() or the server ends it.
   */
  subscribe() {
    if (this.#isJoined && this.#isWanted && !this.#isChanged) return Promise.resolve(this);
    this.#isWanted = true;
    this.#keep();
    this.#settle ??= toSettle();
    const { promise } = this.#settle;
    if (this.#client.isOpen() && (this.#asked === null || this.#isChanged)) this.#ask();
    return promise;
  }

  /** No message is told from now on; resolves when the server knows. */
  unsubscribe() {
    const isAsked = this.#isJoined || this.#asked !== null;
    const before = { position: this.#position, isGiven: this.#isGiven, accepted: this.#accepted };
    this.#settle?.promise.catch(() => {});
    this.#settle?.reject(new RequestAborted('unsubscribe() was called'));
    this.#finish('unsubscribe');
    if (!isAsked || !this.#client.isOpen()) return Promise.resolve();
    const settle = toSettle();
    this.#leave({
      resolve: () => {
        // What the server had put it in before it heard of this is over as well.
        if (this.#isGiven && !this.#isWanted) this.#finish('unsubscribe');
        settle.resolve();
      },
      reject: (error) => {
        if (error instanceof ConnectionLost) settle.resolve();
        else settle.reject(error);
        // One's own topic cannot be left.
        if (error instanceof CommandFailed && before.isGiven && !this.#isWanted && this.#asked === null) {
          this.#isGiven = this.#hasStood = true;
          this.#position = before.position;
          this.#resume();
        }
      },
    });
    return settle.promise;
  }

  /**
   * Resolves with {key, epoch, offset}. While the client connects again it waits, and what may have been lost with the
   * connection is sent again with the same key, so that it counts once.
   */
  publish(data, options) {
    const key = options?.idempotencyKey ?? newKey();
    const build = () => {
      if (data === undefined) throw new TypeError('zBifrost: publish() needs data that JSON has a form for');
      return { zKey: 'zPublish', zHorizontal: { topic: this.#name, data } };
    };
    if (this.#options.echo === false) {
      this.#ownKeys.add(key);
      if (this.#ownKeys.size > OWN_KEYS) this.#ownKeys.delete(this.#ownKeys.values().next().value);
    }
    return this.#client.call(build, options, PUBLISH_OPTIONS, { again: true, key }, (reply) => ({
      key,
      ...toPosition(reply ?? {}),
    }));
  }

  /** Resolves with {messages, more, epoch, offset}, or {recovered: false, reason} where `since` or `before` are of
   * another numbering. */
  history(options) {
    const { limit, reverse, since, before } = options ?? {};
    const build = () => ({ zKey: 'zHistory', zHorizontal: { topic: this.#name, limit, reverse, since, before } });
    return this.#client.call(build, options, HISTORY_OPTIONS, {}, ({ topic, ...reply }) => {
      const messages = reply.messages?.map((message) => this.#toMessage(message, true));
      return messages ? { ...reply, messages } : reply;
    });
  }

  /** The messages that nobody has listened to yet, and all that follow. It subscribes where that was not done, ends when
   * the subscription does, and throws where messages were lost: by the server, or because more than 1,000 waited. */
  [Symbol.asyncIterator]() {
    const missing = this.#unread.takeMissing();
    const fresh = new Unread(this.#name);
    const unread = missing ? fresh : this.#unread;
    if (!missing) this.#unread = fresh;
    unread.begin(() => {
      this.#readers.delete(unread);
      this.#keep();
    });
    this.#readers.add(unread);
    this.#keep();
    if (missing) unread.finish(missing);
    else if (!this.#isJoined) this.subscribe().catch((error) => unread.finish(error));
    let isLeft = false;
    return {
      next: () => (isLeft ? Promise.resolve({ value: undefined, done: true }) : unread.next()),
      return: (value) => {
        if (isLeft) return Promise.resolve({ value, done: true });
        isLeft = true;
        const isLast = this.#readers.delete(unread) && this.#readers.size === 0;
        unread.leave();
        // What was not read is for the next loop.
        if (isLast) this.#unread = unread;
        this.#keep();
        return Promise.resolve({ value, done: true });
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  // What the client does with it.

  /** Take `options` over, but for those that were given before: setState() may have changed one since then. */
  static configure(topic, options) {
    const before = topic.#configured;
    topic.#configured = { ...before, ...options };
    const isNew = (name) => encode({ [name]: before[name] }) !== encode({ [name]: options[name] });
    for (const name of Object.keys(options).filter(isNew)) {
      topic.#options = { ...topic.#options, [name]: options[name] };
      topic.#isChanged = true;
    }
  }

  /** There is a connection, and nothing else was sent yet. */
  static opened(topic) {
    if (topic.#isWanted || (topic.#isGiven && !topic.#isJoined)) topic.#ask();
  }

  /** The connection has ended, with `failure` where no other follows. */
  static closed(topic, failure, isOwn) {
    clearTimeout(topic.#timer);
    topic.#isJoined = topic.#isGiven = false;
    topic.#asked = null;
    if (failure === undefined) return;
    // The end of the connection is told elsewhere: who does not look at this promise need not.
    topic.#settle?.promise.catch(() => {});
    topic.#settle?.reject(failure);
    topic.#settle = null;
    for (const unread of topic.#readers) unread.finish(isOwn ? undefined : failure);
    topic.#keep();
  }

  static received(topic, message) {
    const { event, epoch, offset, recovered, reason } = message;
    if (event === 'subscribed') topic.#given(toPosition(message));
    else if (event === 'unsubscribed') topic.#ended(reason);
    else if (!topic.#isJoined) return;
    else if (event === 'message') topic.#hear(message);
    else if (event === 'presence') topic.#merge(message);
    else if (recovered === false) topic.#interrupted(toPosition({ epoch, offset }), reason);
    else topic.#renumber({ ...topic.#position, ...message });
  }

  // Subscribing.

  #ask() {
    clearTimeout(this.#timer);
    const asked = {};
    this.#asked = asked;
    this.#question = null;
    this.#isJoined = this.#isChanged = false;
    const options = this.#options;
    const { presence, last, state, echo } = options;
    // The first subscribe() begins with the newest messages, also where the server has put the client in before.
    const anew = this.#isWanted && !this.#hasBegun && last !== undefined;
    const since = anew ? undefined : this.#position;
    const isDue = this.#hasStood && !anew;
    const horizontal = { topic: this.#name, since, last: since ? undefined : last, state };
    if (presence) horizontal.presence = true;
    if (echo === false) horizontal.echo = false;
    this.#client.issue(
      {
        resolve: (reply) => this.#asked === asked && this.#answered(reply ?? {}, since, isDue, options),
        reject: (error) => this.#asked === asked && this.#refused(error),
      },
      () => ({ zKey: 'zSubscribe', zHorizontal: horizontal }),
    );
  }

  #answered(reply, since, isDue, options) {
    const { recovered, reason, messages = [], presence } = reply;
    this.#asked = null;
    this.#failures = 0;
    if (since && !recovered && options.last !== undefined) {
      this.#beginAnew(reason);
      return;
    }
    const why = this.#reason ?? reason ?? 'not_kept';
    this.#reason = undefined;
    this.#accepted = options;
    this.#isJoined = this.#hasStood = this.#hasBegun = true;
    this.#position = toPosition(reply);
    this.#connection = reply.connection;
    this.#version = presence?.version;
    this.#settle?.resolve(this);
    this.#settle = null;
    this.#client.listeners.together(() => {
      if (isDue) this.#tellContinuity(recovered ? { recovered } : { recovered: false, reason: why });
      for (const message of messages) {
        if (!since || message.offset > since.offset) this.#tell(message, true);
      }
      if (presence) this.#see(presence);
      else if (this.#here !== NOBODY) this.#show(NOBODY);
      this.#emit('subscribed', { ...toPosition(reply), connection: reply.connection });
    });
  }

  #refused(error) {
    this.#asked = null;
    if (error instanceof ConnectionLost) return; // the next connection is asked
    if (this.#hasStood && error.retryable) {
      this.#timer = setTimeout(() => this.#ask(), fullJitter()(this.#failures));
      this.#failures += 1;
      this.#report(error);
      return;
    }
    const settle = this.#settle;
    this.#settle = null;
    if (this.#accepted !== undefined && this.#accepted !== this.#options) {
      // What stood before stands on, without the options that the server does not take.
      this.#options = this.#accepted;
      this.#ask();
    } else if (this.#isGiven) {
      // The server has put it in all the same, and does not say what was missed.
      this.#isWanted = false;
      this.#isJoined = true;
      this.#position = undefined;
      if (this.#hasStood) this.#tellContinuity({ recovered: false, reason: error.code });
    } else {
      // It may have come too late, and not have been refused.
      if (error instanceof RequestTimeout) this.#leave();
      this.#finish(error.code, error);
    }
    if (settle) settle.reject(error);
    else this.#report(error);
  }

  #leave(settle = { resolve() {}, reject() {} }) {
    this.#client.issue(settle, () => ({ zKey: 'zUnsubscribe', zHorizontal: { topic: this.#name } }));
  }

  /** What was missed is asked for, as soon as that can be. */
  #resume() {
    this.#isJoined = false;
    if (this.#client.isOpen()) this.#ask();
  }

  #beginAnew(reason) {
    this.#position = undefined;
    this.#reason ??= reason;
    this.#resume();
  }

  /** The server has put this connection in. */
  #given(position) {
    this.#isGiven = true;
    this.#keep();
    if (this.#asked !== null) return;
    const before = this.#position;
    if (this.#isJoined && before?.epoch === position?.epoch && before?.offset === position?.offset) return;
    if (before !== undefined || this.#isWanted) {
      this.#resume();
      return;
    }
    const isDue = this.#hasStood;
    this.#position = position;
    this.#isJoined = this.#hasStood = true;
    this.#client.listeners.together(() => {
      if (isDue) this.#tellContinuity({ recovered: false, reason: 'not_kept' });
      this.#emit('subscribed', { ...position, connection: undefined });
    });
  }

  /** The server has ended it. A subscribe() of the program's that is under way was called after that. */
  #ended(reason) {
    if (this.#settle !== null) return;
    if (this.#asked !== null) this.#leave();
    this.#finish(reason);
  }

  #finish(reason, error) {
    const hasStood = this.#hasStood;
    clearTimeout(this.#timer);
    this.#isWanted = this.#isGiven = this.#isJoined = this.#hasStood = this.#hasBegun = false;
    this.#position = this.#reason = this.#accepted = this.#version = this.#connection = undefined;
    this.#asked = this.#settle = this.#question = null;
    this.#failures = 0;
    for (const unread of this.#readers) unread.finish(error);
    this.#unread = new Unread(this.#name);
    this.#span += 1;
    this.#client.listeners.together(() => {
      if (this.#here !== NOBODY) this.#show(NOBODY);
      if (hasStood) this.#emit('unsubscribed', { reason });
    });
    this.#keep();
  }

  // Messages.

  #toMessage({ data, from, offset, key, own = this.#ownKeys.has(key) }, replayed) {
    return { data, from, offset, key, own, replayed };
  }

  #hear(message) {
    const { offset, epoch } = message;
    const before = this.#position;
    if (before !== undefined && offset !== undefined) {
      if (offset <= before.offset) return;
      if (offset > before.offset + 1) {
        this.#missing();
        return;
      }
      this.#position = { epoch: epoch ?? before.epoch, offset };
    }
    this.#tell(message, false);
  }

  /** The same messages under another epoch. */
  #renumber(position) {
    if (position.offset > this.#position?.offset) this.#missing();
    else this.#position = toPosition(position);
  }

  #missing() {
    this.#reason = 'gap';
    this.#resume();
  }

  #interrupted(position, reason) {
    if (this.#options.last !== undefined) this.#beginAnew(reason);
    else {
      this.#position = position;
      this.#tellContinuity({ recovered: false, reason });
    }
  }

  #tell(given, replayed) {
    const message = this.#toMessage(given, replayed);
    const isHeard = this.#client.listeners.has(this.#event('message'));
    if (this.#readers.size > 0 || isHeard) this.#hasBegun = true;
    else if (this.#isWanted) this.#unread.push(message);
    for (const unread of this.#readers) unread.push(message);
    this.#emit('message', message);
  }

  #tellContinuity(continuity) {
    if (!continuity.recovered) for (const unread of [...this.#readers, this.#unread]) unread.lost(continuity.reason);
    this.#emit('continuity', continuity);
  }

  // Presence.

  #setState(state) {
    const settle = toSettle();
    try {
      this.#options = { ...this.#options, state: toState(state) };
    } catch (error) {
      settle.reject(error);
      return settle.promise;
    }
    const { state: own } = this.#options;
    if (!this.#client.isOpen() || (!this.#isJoined && this.#asked === null)) return Promise.resolve();
    // Who says that somebody is typing does not wait for it; what fails is told to the listeners.
    settle.promise.catch(() => {});
    this.#client.issue(
      {
        resolve: (reply) => {
          if (this.#accepted) this.#accepted = { ...this.#accepted, state: own };
          this.#look(reply ?? {});
          settle.resolve();
        },
        reject: (error) => {
          if (error instanceof ConnectionLost) {
            settle.resolve(); // the next subscription has it
            return;
          }
          if (error.code === 'invalid' && this.#accepted && this.#options.state === own) {
            this.#options = { ...this.#options, state: this.#accepted.state };
          }
          this.#report(error);
          settle.reject(error);
        },
      },
      () => ({ zKey: 'zPresence', zHorizontal: { topic: this.#name, state: own } }),
    );
    return settle.promise;
  }

  #watch(listener) {
    if (typeof listener !== 'function') throw new TypeError('zBifrost: a listener is a function');
    const tell = () => listener(this.#here);
    this.#stores.add(tell);
    this.#keep();
    // A store of Svelte tells its value at once; others do not mind.
    this.#client.listeners.guard('presence', tell);
    return () => {
      this.#stores.delete(tell);
      this.#keep();
    };
  }

  #merge(event) {
    const { after, version, joined, left, users, connections } = event;
    if (this.#version === undefined || version <= this.#version) return;
    if (after > this.#version) {
      this.#missed = Math.max(this.#missed, version);
      this.#inquire();
      return;
    }
    const { members: before } = this.#here;
    const isDiff = before !== undefined && (joined !== undefined || left !== undefined);
    const members = event.members ?? (isDiff ? mergeMembers(before, joined, left) : undefined);
    this.#see({ version, users, connections, members }, event);
  }

  /** Ask who is there, one question at a time. */
  #inquire() {
    if (this.#question !== null) return;
    const question = {};
    this.#question = question;
    const version = this.#version;
    this.#client.issue(
      {
        resolve: (reply) => {
          if (this.#question !== question) return;
          this.#question = null;
          this.#look(reply ?? {});
          if (this.#missed > this.#version && this.#version > version) this.#inquire();
        },
        reject: () => {
          if (this.#question === question) this.#question = null; // the next event asks again
        },
      },
      () => ({ zKey: 'zPresence', zHorizontal: { topic: this.#name } }),
    );
  }

  #look(reply) {
    if (this.#isJoined && this.#version !== undefined && reply.version > this.#version) this.#see(reply);
  }

  #see({ version, users, connections, members }, told = {}) {
    const { members: before } = this.#here;
    const isKnown = before !== undefined && members !== undefined;
    const arrived = isKnown ? without(members, before) : (told.arrived ?? []);
    const gone = isKnown ? without(before, members) : (told.gone ?? []);
    this.#version = version;
    this.#client.listeners.together(() => {
      this.#show(Object.freeze({ members, users, connections }));
      this.#emit('presence', { members, users, connections, arrived, gone });
    });
  }

  #show(here) {
    const { listeners } = this.#client;
    this.#here = here;
    listeners.inTurn(() => {
      for (const tell of [...this.#stores]) if (this.#stores.has(tell)) listeners.guard('presence', tell);
    });
  }

  // Telling.

  #event(name) {
    return `${name} of ${this.#name}`;
  }

  #emit(event, value) {
    const { listeners } = this.#client;
    const span = this.#span;
    listeners.inTurn(() => span === this.#span && listeners.tell(this.#event(event), value));
  }

  /** An error that no promise tells. */
  #report(error) {
    const own = this.#event('error');
    this.#client.listeners.emit(this.#client.listeners.has(own) ? own : 'error', error);
  }

  /** Whether somebody counts on this object, also where nobody has it in hand. */
  #keep() {
    const isHeard = TOPIC_EVENTS.some((event) => this.#client.listeners.has(this.#event(event)));
    const isUsed = this.#isWanted || this.#isGiven || isHeard || this.#readers.size > 0 || this.#stores.size > 0;
    this.#client.keep(this, isUsed);
  }
}

// ------------------------------------------------------------------------------------------- live queries

const NO_ROWS = { keys: [], rows: Object.freeze([]) };
const SAME = Object.freeze({ kind: 'same', added: [], removed: [], changed: [] });

/** The value of a key as a text that no other has. */
const toKey = (value) => JSON.stringify(value, (_, part) => (typeof part === 'bigint' ? [String(part)] : part));

/** Whether two values are the same in JSON. */
function isSame(one, other) {
  if (Object.is(one, other)) return true;
  if (typeof one !== 'object' || typeof other !== 'object' || one === null || other === null) return false;
  const names = Object.keys(one);
  if (Array.isArray(one) !== Array.isArray(other) || names.length !== Object.keys(other).length) return false;
  return names.every((name) => Object.hasOwn(other, name) && isSame(one[name], other[name]));
}

/** What becomes of rows with an event: `{state, change}`. A row that has not changed stays the same object. `names` are
 * those of the key's fields. */
function follow(state, names, { reset, gone = [], set = [] }, kind) {
  const keyOf = (row) => toKey(names.length === 1 ? row[names[0]] : names.map((name) => row[name]));
  const placed = (reset?.map((row, at) => [at, row]) ?? set).map(([at, row]) => ({ at, row, key: keyOf(row) }));
  const touched = new Set(reset ? state.keys : [...gone.map(toKey), ...placed.map(({ key }) => key)]);
  const out = new Map();
  const left = [];
  state.keys.forEach((key, at) => (touched.has(key) ? out.set(key, state.rows[at]) : left.push(at)));
  const [keys, rows, added, changed] = [[], [], [], []];
  let next = 0;
  const stay = () => {
    keys.push(state.keys[left[next]]);
    rows.push(state.rows[left[next]]);
    next += 1;
  };
  for (const { at, row, key } of placed) {
    while (rows.length < at && next < left.length) stay();
    const before = out.get(key);
    out.delete(key);
    const isKept = before !== undefined && isSame(before, row);
    if (before === undefined) added.push(row);
    else if (!isKept) changed.push({ row, before });
    keys.push(key);
    rows.push(isKept ? before : row);
  }
  while (next < left.length) stay();
  const isAll = rows.length === state.rows.length && rows.every((row, at) => row === state.rows[at]);
  if (isAll && kind !== 'initial') return { state, change: SAME };
  // Who sorts them in place has to copy them first.
  return { state: { keys, rows: Object.freeze(rows) }, change: { kind, added, removed: [...out.values()], changed } };
}

/**
 * The rows that match, now and from now on: a store. It runs while somebody subscribes to it or loops over it, and is
 * asked for again with each connection, where nothing is sent of rows that have not changed.
 */
class Live {
  #client;
  #words; // of its zLive
  #heard = new Set(); // who listens, and to what: {event, listener, end}
  #status = 'loading';
  #error = null;
  #sees;
  #digest;
  #names; // of the key's fields; undefined: no rows have come yet
  #state = NO_ROWS;
  #isWanted = false;
  #query = null; // its name on this connection, from the zLive on
  #failures = 0;
  #timer;

  constructor(words, client) {
    this.#words = words;
    this.#client = client;
    Object.defineProperty(this, '__v_skip', { value: true });
  }

  get rows() {
    return this.#state.rows;
  }

  get status() {
    return this.#status;
  }

  /** Why it has ended, or is waited for; null while all is well. */
  get error() {
    return this.#error;
  }

  get sees() {
    return this.#sees;
  }

  get digest() {
    return this.#digest;
  }

  /** The same list until something has changed. */
  getSnapshot = () => this.#state.rows;

  /** Call `listener(rows, change)` at once, and whenever rows, status, error or `sees` have changed; returns the
   * function that ends it. */
  subscribe = (listener) => {
    const entry = this.#add('rows', listener);
    const { rows } = this.#state;
    // A store of Svelte tells its value at once; others do not mind.
    const change = this.#names ? { ...SAME, kind: 'initial', added: rows } : SAME;
    this.#client.listeners.guard(this.#event('rows'), () => listener(rows, change));
    if (this.#heard.has(entry)) this.#begin();
    return () => this.#remove(entry);
  };

  /** Call `listener` with each `status` or `error`; returns the function that ends it. */
  on(event, listener) {
    if (!LIVE_EVENTS.includes(event)) {
      throw new TypeError(`zBifrost: a live query has no event ${event}, but ${LIVE_EVENTS.join(', ')}`);
    }
    const entry = this.#add(event, listener);
    return () => this.#remove(entry);
  }

  /** End it at once, for all who subscribe to it and loop over it. */
  stop() {
    this.#endLoops();
    for (const entry of this.#heard) if (entry.event === 'rows') this.#heard.delete(entry);
    this.#end();
  }

  /** The rows now and after each change; of several changes that nobody has waited for, after the last of them. It ends
   * with stop() and disconnect(), and throws where the query fails or no connection comes any more. */
  [Symbol.asyncIterator]() {
    const waiting = [];
    let due; // the rows that were not read yet
    let over; // {error}
    const settle = () => {
      while (waiting.length > 0 && (due ?? over)) {
        const { resolve, reject } = waiting.shift();
        const { error } = over ?? {};
        if (due) resolve({ value: due, done: false });
        else if (error) reject(error);
        else resolve({ value: undefined, done: true });
        if (!due && error) over = {};
        due = undefined;
      }
    };
    const end = (error) => {
      over ??= { error };
      settle();
    };
    const take = (rows, { kind }) => {
      if (kind !== 'same') due = rows;
      settle();
    };
    const entry = this.#add('rows', take, end);
    if (this.#names) due = this.rows;
    this.#begin();
    return {
      next() {
        const { promise, ...call } = toSettle();
        waiting.push(call);
        settle();
        return promise;
      },
      return: (value) => {
        due = undefined;
        this.#remove(entry);
        end();
        over = {};
        return Promise.resolve({ value, done: true });
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  // What the client does with it.

  /** There is a connection, and nothing else was sent yet but for topics. */
  static opened(live) {
    live.#ask();
  }

  /** The connection has ended, with `failure` where no other follows. */
  static closed(live, failure, isOwn) {
    clearTimeout(live.#timer);
    live.#query = null;
    if (live.#status === 'live') live.#become('stale');
    if (failure === undefined) return;
    live.#endLoops(isOwn ? undefined : failure);
    live.#rest();
  }

  /** What an event has for it, if anything; none concerns it from its zLive to the answer. */
  static received(live, queries) {
    if (live.#status !== 'live' || !Object.hasOwn(queries, live.#query)) return;
    const news = queries[live.#query];
    if (Object.hasOwn(news, 'error')) live.#fail(toCommandFailed(news));
    else live.#take(news, news.reset ? 'reset' : 'change');
  }

  // Asking.

  #begin() {
    if (this.#isWanted) return;
    this.#isWanted = true;
    this.#client.keep(this, true);
    if (this.#status === 'error') this.#become(this.#names ? 'stale' : 'loading');
    if (this.#query === null && this.#client.isOpen()) this.#ask();
  }

  /** End it where nobody looks at it any more. Strict mode of React, and pages that follow one another, look again at
   * once. */
  #rest() {
    const isUsed = () => [...this.#heard].some(({ event }) => event === 'rows');
    if (!isUsed()) afterReading(() => isUsed() || this.#end());
  }

  #end() {
    if (!this.#isWanted) return;
    this.#forget();
    if (this.#status !== 'live') return; // where it is under way its answer ends it
    this.#leave();
    this.#become('stale');
  }

  #forget() {
    clearTimeout(this.#timer);
    this.#isWanted = false;
    this.#failures = 0;
    this.#client.keep(this, false);
  }

  #ask() {
    clearTimeout(this.#timer);
    // Each has another name: what comes for one that is over is for nobody.
    const query = this.#client.newQuery();
    this.#query = query;
    const horizontal = { query, ...this.#words, known: this.#digest };
    this.#client.issue(
      {
        resolve: (reply) =>
          this.#client.listeners.guard('zLive', () => this.#query === query && this.#answered(reply)),
        reject: (error) => this.#query === query && this.#refused(error),
      },
      () => ({ zKey: 'zLive', zHorizontal: horizontal }),
    );
  }

  #answered({ same, rows, key, ...news }) {
    if (!this.#isWanted) {
      this.#leave();
      return;
    }
    this.#failures = 0;
    const kind = this.#names ? 'reset' : 'initial';
    this.#names = key ?? this.#names;
    this.#take(same ? news : { ...news, reset: rows }, kind);
  }

  #refused(error) {
    // It may have come too late, and not have been refused.
    if (error instanceof RequestTimeout) this.#leave();
    this.#query = null;
    if (!this.#isWanted || error instanceof ConnectionLost) return; // the next connection is asked
    if (!error.retryable) {
      this.#fail(error);
      return;
    }
    this.#timer = setTimeout(() => this.#ask(), fullJitter()(this.#failures));
    this.#failures += 1;
    this.#client.listeners.together(() => {
      this.#become(this.#status, { error });
      if (this.#failures === 1) this.#report(error);
    });
  }

  #leave() {
    const query = this.#query;
    this.#query = null;
    this.#client.issue({ resolve() {}, reject() {} }, () => ({ zKey: 'zUnsubscribe', zHorizontal: { query } }));
  }

  #fail(error) {
    this.#query = null;
    this.#forget();
    this.#client.listeners.together(() => {
      this.#become('error', { error });
      if (!this.#endLoops(error) || this.#hears('error')) this.#report(error);
    });
  }

  // Rows.

  #take({ digest, sees, ...news }, kind) {
    const isNew = news.reset ?? news.set ?? news.gone;
    const { state, change } = isNew ? follow(this.#state, this.#names, news, kind) : {};
    this.#digest = digest ?? this.#digest;
    this.#become('live', { sees, state, change });
  }

  /** Have it so, and tell of it when all of it is so. */
  #become(status, { error = null, sees = this.#sees, state = this.#state, change = SAME } = {}) {
    const previous = this.#status;
    const isElse = change !== SAME || status !== previous || error !== this.#error || sees !== this.#sees;
    [this.#status, this.#error, this.#sees, this.#state] = [status, error, sees, state];
    this.#client.listeners.together(() => {
      if (isElse) this.#tell('rows', state.rows, change);
      if (status !== previous) this.#tell('status', { status, previous });
    });
  }

  // Telling.

  #event(name) {
    return `${name} of ${this.#words.model}`;
  }

  #add(event, listener, end) {
    if (typeof listener !== 'function') throw new TypeError('zBifrost: a listener is a function');
    const entry = { event, listener, end };
    this.#heard.add(entry);
    return entry;
  }

  #remove(entry) {
    if (this.#heard.delete(entry)) this.#rest();
  }

  #hears(name) {
    return [...this.#heard].some(({ event }) => event === name);
  }

  /** Tell those who listen now: who comes later is told what is so by then. */
  #tell(name, ...values) {
    const { listeners } = this.#client;
    const meant = [...this.#heard].filter(({ event }) => event === name);
    listeners.inTurn(() => {
      for (const entry of meant) {
        if (this.#heard.has(entry)) listeners.guard(this.#event(name), () => entry.listener(...values));
      }
    });
  }

  /** An error that no loop throws. */
  #report(error) {
    if (this.#hears('error')) this.#tell('error', error);
    else this.#client.listeners.emit('error', error);
  }

  /** Whether there were any. */
  #endLoops(error) {
    const loops = [...this.#heard].filter(({ end }) => end);
    for (const loop of loops) {
      this.#heard.delete(loop);
      this.#client.listeners.inTurn(() => loop.end(error));
    }
    return loops.length > 0;
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
  #heard = 0; // messages so far
  #retries = 0;
  #retryTimer;
  #logging = false;
  #page = null; // AbortController of the listeners on window and document
  #topics = new Map(); // name -> WeakRef of its topic
  #forgotten = new FinalizationRegistry((name) => this.#topics.get(name)?.deref() ?? this.#topics.delete(name));
  #keptTopics = new Set(); // those that somebody listens to or wants, also where nobody has them
  #ofTopics = {
    listeners: this.#listeners,
    isOpen: () => this.#calls.open,
    keep: (topic, is) => (is ? this.#keptTopics.add(topic) : this.#keptTopics.delete(topic)),
    call: (...given) => this.#command(...given),
    issue: (settle, build) => this.#issue(settle, build, undefined, []),
  };
  #lives = new Set(); // the live queries that somebody wants
  #queries = 0; // so many names were given to them
  #ofLives = {
    ...this.#ofTopics,
    keep: (live, is) => (is ? this.#lives.add(live) : this.#lives.delete(live)),
    newQuery: () => `q${(this.#queries += 1)}`,
  };

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
    // Without the token itself, which is a secret.
    if (HALF_CHARACTER.test(token))
      throw new TypeError('zBifrost: the token has half a character, such as half an emoji');
    this.#token = token ?? '';
    this.#options = toOptions(options);
    // Vue would put a proxy around it, which cannot reach what is private here.
    Object.defineProperty(this, '__v_skip', { value: true });
    const { retryDelay } = this.#options;
    this.#retryDelay = typeof retryDelay === 'function' ? retryDelay : fullJitter({ base: retryDelay });
    this.#calls = new Calls(this.#options.maxInFlight);
    this.#calls.paused = () => this.#asks.size > 0;
    this.#calls.heard = () => this.#heard;
    this.#calls.ask = () => this.#ping(this.#link, Infinity);
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

  /** Close for good: pending calls and a connect() under way are rejected, which nobody needs to catch who does not look
   * at them; nothing reconnects until connect() is called again. */
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
      READ_OPTIONS,
    );
  }

  /** Resolves with {updated: n}. Without filters the server refuses, unless `options.all` is true. */
  update(model, filters, values, options) {
    return this.#command(
      () => modelCommand('update', model, { where: toWhere(filters), values, all: options?.all }),
      options,
      WRITE_OPTIONS,
    );
  }

  /** Resolves with {deleted: n}. Without filters the server refuses, unless `options.all` is true. */
  delete(model, filters, options) {
    return this.#command(
      () => modelCommand('delete', model, { where: toWhere(filters), all: options?.all }),
      options,
      WRITE_OPTIONS,
    );
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

  /** zFunc with a list of arguments and the options of a call, `onProgress` among them; `options.kwargs` has arguments
   * by name, such as {cart_id: 123}. */
  call(name, args = [], options = undefined) {
    return this.#command(() => functionCommand(name, args, options?.kwargs), options, ['kwargs', ...CALL_OPTIONS]);
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

  /**
   * The topic of that name, always the same object; nothing is sent before its subscribe() or publish(). `options`
   * (presence, last, state, echo) count from the next subscribe() on.
   */
  topic(name, options) {
    if (typeof name !== 'string' || !TOPIC_NAME.test(name)) {
      throw new TypeError("zBifrost: a topic's name is 1 to 255 of A-Z a-z 0-9 _ . : @ / % -");
    }
    const given = toTopicOptions(options);
    let topic = this.#topics.get(name)?.deref();
    if (topic === undefined) {
      topic = new Topic(name, this.#ofTopics);
      this.#topics.set(name, new WeakRef(topic));
      this.#forgotten.register(topic, name);
    }
    Topic.configure(topic, given);
    return topic;
  }

  /**
   * The rows that `read()` would bring, now and from now on; nothing is sent before somebody subscribes to it or loops
   * over it. `options` are fields, order_by and limit.
   */
  live(model, filters, options) {
    if (typeof model !== 'string' || model === '') throw new TypeError('zBifrost: the model must be a name');
    checkNames(options, LIVE_OPTIONS);
    const { fields, order_by, limit } = options ?? {};
    const asked = Object.entries({ model, where: toWhere(filters), fields, order_by, limit });
    const given = Object.fromEntries(asked.filter(([, value]) => value !== undefined));
    // As it is now, whatever becomes of the objects.
    return new Live(decode(encode(given), 'bigint'), this.#ofLives);
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

  #command(build, options, known, kind, shape) {
    const settle = toSettle();
    const { resolve } = settle;
    if (shape) settle.resolve = (result) => resolve(shape(result));
    this.#issue(settle, build, options, known, kind);
    return settle.promise;
  }

  /** Send what `build` makes; `settle` hears of its end, and `resolve` of it at once when the answer is read. `kind` says
   * whether it is `urgent`, or may be sent `again` by the next connection, and what it has for a `key`. */
  #issue(settle, build, options, known = CALL_OPTIONS, { urgent = false, again = false, key } = {}) {
    try {
      checkNames(options, known);
      const call = { ...options, timeout: toTimeout(options?.timeout ?? this.#options.timeout), urgent, again };
      call.isOnce = key !== undefined && call.idempotencyKey === undefined;
      call.idempotencyKey ??= key;
      checkCallOptions(call);
      const prepared = this.#calls.prepare(build(), call);
      if (this.#state !== 'connected' && (!again || this.#state === 'disconnected')) {
        throw new NotConnected('Not connected: the command was not sent');
      }
      this.#calls.start(prepared, call, (text, started) => this.#transmit(text, started), settle);
    } catch (error) {
      settle.reject(error);
    }
  }

  #transmit(text, call) {
    const link = this.#link;
    // A closing socket swallows what it is given without a word.
    if (link.socket.readyState !== 1) {
      if (!call.again) this.#calls.fail(call, new NotConnected('Not connected: the command was not sent'));
    } else if (text.length * 3 > link.messageSize && sizeOf(text) > link.messageSize) {
      // It would end the connection, and all the other calls with it.
      const error = `The command has ${sizeOf(text)} bytes, and the server takes ${link.messageSize}: it was not sent`;
      this.#calls.fail(call, new CommandFailed(error, { code: 'invalid' }));
    } else if (isDeeper(text, link.depth)) {
      const error = `The command has more than the ${link.depth} levels of nesting that the server takes: it was not sent`;
      this.#calls.fail(call, new CommandFailed(error, { code: 'invalid' }));
    } else {
      link.socket.send(text);
      this.#log(`#${call.id} ${call.name} sent`);
    }
  }

  // The connection.

  #begin() {
    clearTimeout(this.#retryTimer);
    const link = { socket: null, heardAt: 0 };
    this.#link = link;
    link.forgetTime = deadline(
      this.#options.connectTimeout,
      () => this.#drop(link, `no answer within ${this.#options.connectTimeout} ms`),
      () => this.#heard,
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
      // The error itself is not passed on: it quotes the URL or the subprotocol, and so the token. Not at once, as who
      // connects again whenever it ends would do nothing else.
      afterReading(() => this.#ended(link, { final: true, detail: notAllowed() }));
      return;
    }
    link.socket = socket;
    if (this.#link !== link) {
      // A class of the program's own has called disconnect().
      hangUp(link);
      return;
    }
    if (typeof socket.terminate !== 'function') link.terminate = terminatorOf(socket);
    socket.binaryType = 'arraybuffer';
    socket.addEventListener('open', () => this.#greet(link));
    socket.addEventListener('message', (event) => this.#received(link, event.data));
    socket.addEventListener('error', (event) => {
      link.detail = event.message; // only Node's ws says anything here
      // Node 22 has no close for an attempt that failed; everywhere else it is the next event.
      if (socket.readyState !== 1) afterReading(() => this.#ended(link, { detail: link.detail }));
    });
    socket.addEventListener('close', ({ code, reason, wasClean }) => {
      // Deno says 0 where others say that there was no close frame.
      this.#ended(link, { code: code || 1006, reason, wasClean, detail: link.detail });
    });
  }

  /** An open socket is not yet admitted: a refused client is told so by a close right after the handshake,
   * since a page cannot see an HTTP status. The answer to a first command, whatever it says, settles it. It tells the
   * limits to keep, which may be others than those of the connection before. */
  #greet(link) {
    if (this.#link !== link) return;
    this.#demand(link, { zKey: 'zDescribe', zHorizontal: ['limits'] }, this.#options.connectTimeout).then(
      (told) => this.#admitted(link, told?.limits),
      (error) => {
        if (error instanceof CommandFailed) this.#admitted(link);
      },
    );
  }

  /** Resolves when the server answers at all, an error included. */
  #ping(link, timeout) {
    return this.#demand(link, { zKey: 'ping' }, timeout).catch((error) => {
      if (!(error instanceof CommandFailed)) throw error;
    });
  }

  /** A command of the client's own, which waits for no turn. */
  #demand(link, payload, timeout) {
    return new Promise((resolve, reject) => {
      const transmit = (text) => link.socket.send(text);
      this.#calls.start(this.#calls.prepare(payload, {}), { timeout, urgent: true }, transmit, { resolve, reject });
    });
  }

  #admitted(link, limits) {
    if (this.#link !== link) return;
    link.forgetTime();
    const { maxInFlight } = this.#options;
    const { message_size: size, in_flight: most, json_depth: depth } = limits ?? {};
    link.messageSize = Number.isInteger(size) ? size : MESSAGE_SIZE;
    link.depth = Number.isInteger(depth) ? depth : Infinity;
    this.#calls.maxInFlight = Number.isInteger(most) && most >= 1 ? Math.min(maxInFlight, most) : maxInFlight;
    link.steady = setTimeout(() => {
      this.#retries = 0;
    }, STEADY_AFTER);
    this.#listen(link);
    this.#admittedOnce = true;
    this.#attempt?.resolve(this);
    this.#attempt = null;
    this.#listeners.together(() => {
      this.#setState('connected');
      this.#calls.reopen(() => {
        this.#keptTopics.forEach(Topic.opened);
        this.#lives.forEach(Live.opened);
      });
    });
    if (this.#link === link) this.#listeners.emit('open');
  }

  /** Ask whether anybody is there when nothing was heard for longer than `heartbeat`. */
  #listen(link) {
    const { heartbeat } = this.#options;
    if (heartbeat === Infinity) return;
    const silent = Math.max(0, Date.now() - link.heardAt);
    if (silent > heartbeat) this.#probe(link);
    const wait = silent > heartbeat ? heartbeat : heartbeat - silent;
    link.heartbeat = setTimeout(() => this.#listen(link), Math.min(wait + 1, LARGEST_DELAY));
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

  /** End the first attempt, which begins again when the page comes back: its connect() goes on waiting. */
  #putOff(link) {
    this.#link = null;
    link.forgetTime();
    this.#calls.rejectAll(() => new NotConnected('The page was left'), true);
    hangUp(link);
  }

  /** Give a connection up without waiting for a closing handshake that may never come. */
  #drop(link, detail) {
    if (this.#link !== link) return;
    this.#ended(link, { detail });
    hangUp(link);
  }

  /** 1015, a certificate that cannot be trusted, passes where the server was let in before: it may just have another. */
  #isFinal(code) {
    return FINAL_CODES.has(code) || (code === 1015 && !this.#admittedOnce);
  }

  /** The one place where a connection or an attempt ends. */
  #ended(
    link,
    { code = 1006, reason = '', wasClean = false, final = this.#isFinal(code), own = false, detail, error },
  ) {
    if (this.#link !== link) return;
    const retry = !final && this.#options.autoReconnect && this.#admittedOnce;
    const failure = error ?? this.#explain({ code, reason, final, own, detail });
    const ofChange = error ?? this.#explain({ code, reason, final: true, own, detail });
    const attempt = this.#attempt;
    const asks = [...this.#asks.values()];
    const previous = this.#state;
    // All of it first, and then what the program hears of it: its functions may connect or disconnect.
    this.#link = null;
    this.#attempt = null;
    this.#asks.clear();
    this.#state = retry ? 'reconnecting' : 'disconnected';
    link?.forgetTime();
    clearTimeout(link?.steady);
    clearTimeout(link?.heartbeat);
    if (!retry) {
      this.#retries = 0;
      this.#admittedOnce = false;
      this.#page?.abort();
      this.#page = null;
    }
    this.#calls.rejectAll((call) => {
      // Who disconnects knows: what nobody looks at is no reason for Node to end the process.
      if (own) call.settle.promise?.catch(() => {});
      if (!call.wasSent) return new NotConnected('Not connected: the command was not sent');
      return couldDouble(call) ? ofChange : failure;
    }, retry);
    this.#keptTopics.forEach((topic) => Topic.closed(topic, retry ? undefined : failure, own));
    if (own) attempt?.promise.catch(() => {});
    attempt?.reject(failure);
    this.#listeners.together(() => {
      this.#lives.forEach((live) => Live.closed(live, retry ? undefined : failure, own));
      this.#log(`connection ended: ${failure.message}`);
      this.#listeners.inTurn(() => asks.forEach((open) => open.abort()));
      this.#tellState(previous, retry ? 'reconnecting' : 'disconnected');
      const closed = { code, reason: this.#redact(reason), wasClean, error: failure };
      if (link !== null) this.#listeners.inTurn(() => this.#tellClosed(retry, closed));
      if (retry) this.#listeners.inTurn(() => this.#retry());
      else if (!own && !attempt) this.#listeners.emit('error', failure);
    });
  }

  #tellClosed(retry, closed) {
    // A function that heard of it before may have called disconnect().
    this.#listeners.tell('close', { ...closed, final: !retry || this.#state === 'disconnected' });
  }

  /** Begin again in a while, where nobody has connected or disconnected meanwhile. */
  #retry() {
    const isMeant = () => this.#state === 'reconnecting' && this.#link === null;
    if (!isMeant()) return;
    let delay;
    this.#listeners.guard('retryDelay', () => {
      delay = this.#retryDelay(this.#retries);
    });
    if (!isMeant()) return;
    delay = delay >= 0 ? delay : fullJitter()(this.#retries);
    this.#retries += 1;
    clearTimeout(this.#retryTimer);
    this.#retryTimer = setTimeout(() => this.#begin(), Math.min(delay, LARGEST_DELAY));
    this.#listeners.emit('reconnecting', { attempt: this.#retries, delay });
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
    const forms = [this.#token, encodeURIComponent(this.#token), inQuery(this.#token)];
    return forms.reduce((shown, form) => shown.replaceAll(form, '[token]'), text);
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
        const link = this.#link;
        if (link === null) return;
        if (this.#admittedOnce || this.#attempt === null) this.#drop(link, 'the page was left');
        else this.#putOff(link);
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
    link.heardAt = Date.now();
    this.#heard += 1;
    if (typeof data !== 'string') {
      this.#listeners.emit('error', new BifrostError('The server sent a binary message', { code: 'bad_message' }));
      return;
    }
    const { kind, message } = classify(data, this.#options.bigints);
    switch (kind) {
      case 'reply': {
        const call = this.#calls.answer(message);
        if (call) this.#log(`#${call.id} ${call.name} answered after ${Date.now() - call.started} ms`);
        else this.#log('an answer came too late and was ignored');
        break;
      }
      case 'error':
        this.#listeners.emit('error', toCommandFailed(message));
        break;
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
      case 'engine':
        this.#listeners.emit('engine', { state: message.state, recovered: message.recovered });
        break;
      case 'ask':
        this.#ask(message);
        break;
      case 'ask_closed':
        this.#asks.get(message.askId)?.abort(message.reason);
        this.#asks.delete(message.askId);
        break;
      case 'topic': {
        // The server puts clients into topics that they did not ask for.
        const { event, topic: name } = message;
        const topic = event === 'subscribed' ? this.topic(name) : this.#topics.get(name)?.deref();
        // What a program broadcasts in such a form may be no such event.
        if (topic) this.#listeners.guard(`${event} of ${name}`, () => Topic.received(topic, message));
        else this.#listeners.emit('broadcast', message);
        break;
      }
      case 'live':
        // All of it is one step: nobody is told before all of them have taken it.
        this.#listeners.together(() => {
          for (const live of [...this.#lives]) {
            this.#listeners.guard('live', () => Live.received(live, message.queries));
          }
        });
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
    let unwritable = false;
    while (!open.signal.aborted) {
      let value;
      try {
        if (!unwritable) value = await this.#onAsk?.(prompt, { askId, timeout, signal: open.signal, error });
      } catch (thrown) {
        if (!open.signal.aborted) this.#listenerThrew('ask', thrown);
      }
      if (open.signal.aborted) return;
      const answer = value === null || value === undefined ? { askId, cancelled: true } : { askId, value };
      try {
        await this.#command(() => ({ zKey: 'zAnswer', zHorizontal: answer }), undefined, CALL_OPTIONS, {
          urgent: true,
        });
        break;
      } catch (failure) {
        error = failure;
        if (failure instanceof TypeError && !unwritable) {
          // What JSON has no form for is no answer, as if the function had thrown.
          unwritable = true;
          this.#listenerThrew('ask', failure);
          continue;
        }
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
    this.#tellState(previous, state);
  }

  #tellState(previous, state) {
    if (previous === state) return;
    this.#listeners.together(() => {
      this.#log(state);
      this.#listeners.emit('state', { state, previous });
    });
  }

  #listenerThrew(event, error) {
    if (event === 'error' || !this.#listeners.has('error')) {
      console.error(`zBifrost: a listener of '${event}' failed`, error);
      return;
    }
    const text = `A listener of '${event}' failed`;
    this.#listeners.tell('error', new BifrostError(text, { code: 'listener_failed', cause: error }));
  }

  #log(text) {
    const { debug } = this.#options;
    // What the function does itself is not told to it: that would have no end.
    if (debug === false || this.#logging) return;
    this.#listeners.inTurn(() => {
      this.#logging = true;
      this.#listeners.guard('debug', () => (debug === true ? console.debug(`zBifrost ${text}`) : debug(text)));
      this.#logging = false;
    });
  }
}

/** A client that is already connected; rejects when the server does not let it in. */
export function createClient(url, token, options) {
  return new zBifrost(url, token, options).connect();
}

/**
 * What a page's own client signs in with: `new zBifrost(undefined, await signIn())`. It is the token that a link brings
 * (`#code=…` in the page's address, as `zcomm url` prints it), else the one that this tab has from before, else null.
 * Rejects when the server does not take the link.
 * @param {string} [token]  kept for this tab in the place of what it has; '' for none
 */
export async function signIn(token) {
  const { location, history, sessionStorage } = globalThis;
  if (location === undefined || sessionStorage === undefined) throw new TypeError('zBifrost: signIn() is for pages');
  const code = token === undefined ? new URLSearchParams(location.hash.slice(1)).get('code') : null;
  let kept = token;
  if (code !== null) {
    try {
      kept = await trade(code);
    } finally {
      // Where nobody finds it who looks over a shoulder, or into the history.
      history.replaceState(history.state, '', location.pathname + location.search);
    }
  }
  if (kept) sessionStorage.setItem(KEPT, kept);
  else if (kept === '') sessionStorage.removeItem(KEPT);
  return sessionStorage.getItem(KEPT);
}

/** The token of a session for a code, which is good once: it is in the answer to the first `zDescribe` of a connection
 * that the code has opened. Empty where the server asks nobody for a token. */
function trade(code) {
  return new Promise((resolve, reject) => {
    const socket = new globalThis.WebSocket(parseAddress(globalThis.location), [PROTOCOL, `code.${code}`]);
    const describe = { zKey: 'zDescribe', zHorizontal: ['identity'], _requestId: 1 };
    socket.addEventListener('open', () => socket.send(JSON.stringify(describe)));
    socket.addEventListener('message', ({ data }) => {
      // What others are told may come before the answer.
      const { _requestId, result, error } = JSON.parse(data);
      if (_requestId !== 1) return;
      if (error === undefined) resolve(result.session ?? '');
      else reject(new BifrostError(error, { code: 'invalid' }));
      socket.close(1000);
    });
    socket.addEventListener('close', ({ code: closeCode, reason }) => {
      const why = `${reason || 'no connection'} (close code ${closeCode})`;
      reject(
        new ConnectionRefused(`The link does not sign in: ${why}; zcomm url prints another`, { closeCode, reason }),
      );
    });
  });
}

function hangUp(link) {
  const socket = link?.socket;
  try {
    socket?.close(1000);
  } catch {
    // Some sockets refuse to be closed while they connect; nobody listens to this one any more.
  }
  // A server that hangs never says goodbye. ws would wait for it for half a minute, Node's own WebSocket for ever.
  const terminate = link?.terminate ?? (() => socket?.terminate?.());
  if (socket) setTimeout(terminate, HANG_UP_AFTER).unref?.();
}

/** What cuts off a WebSocket of Node's own, which has no method for it: its TCP socket, as Node's diagnostics tell it.
 * Undefined elsewhere: a browser's page ends with all its sockets. */
function terminatorOf(websocket) {
  const channels = globalThis.process?.getBuiltinModule?.('node:diagnostics_channel');
  if (channels === undefined || globalThis.Deno !== undefined) return undefined;
  const byPort = new Map();
  let port;
  let found;
  const connected = ({ socket }) => byPort.set(socket?.localPort, socket);
  const opened = ({ websocket: other, address }) => {
    // Node 22 does not say which one it is; its event follows at once, where in Node 24 it came right before.
    if (other === undefined || other === websocket) port = address?.port;
  };
  const settled = () => {
    channels.unsubscribe('undici:client:connected', connected);
    channels.unsubscribe('undici:websocket:open', opened);
    found ??= byPort.get(port);
    byPort.clear();
  };
  channels.subscribe('undici:client:connected', connected);
  channels.subscribe('undici:websocket:open', opened);
  for (const event of ['open', 'error', 'close']) {
    websocket.addEventListener(event, () => queueMicrotask(settled));
  }
  return () => found?.destroy();
}

/** Why no socket could be made, as far as that is known: browsers block some addresses, Deno all that it is not given. */
function notAllowed() {
  return globalThis.Deno === undefined
    ? 'the browser does not allow this address'
    : 'Deno does not allow this address; --allow-net does';
}

async function importWebSocket() {
  const name = ['w', 's'].join(''); // made here so that no bundler finds it and pulls it into a page
  try {
    const module = await import(/* webpackIgnore: true */ /* @vite-ignore */ name);
    return module.WebSocket ?? module.default;
  } catch (error) {
    try {
      // Jest has no import() for modules that are required; Node itself finds the package from the project.
      const node = error?.code === 'ERR_MODULE_NOT_FOUND' ? null : globalThis.process.getBuiltinModule('node:module');
      if (node) return node.createRequire(`${process.cwd()}/index.js`)(name);
    } catch {
      // There is none.
    }
    throw new BifrostError(
      'This JavaScript has no WebSocket: install the ws package (npm install ws), pass options.WebSocket, or use Node 22',
      { code: 'no_websocket' },
    );
  }
}
