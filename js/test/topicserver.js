/** The server's side of topics for tests, and what they look at. */
import { mock } from 'node:test';
import { connected, settle } from './fakes.js';

/** A copy that shares nothing, as what went over a wire. */
const copyOf = (value) => JSON.parse(JSON.stringify(value));

/**
 * The server's side of topics, for the sockets of a `network()`. It keeps the true history of each topic, and answers
 * as docs/protocol.rst has it. With `isLazy` what it says waits for `deliver(socket)`, with `isDeaf` what it is told
 * for `hear(socket)`; `refuse(message)` may give an error in place of an answer, and `loses(message)` says whether an
 * event is never sent.
 */
export class TopicServer {
  isLazy = false;
  isDeaf = false;
  refuse = () => undefined;
  loses = () => false;
  #topics = new Map();
  #epochs = 0;
  #connections = 0;

  /** `kept` is how many messages a topic keeps; 0: none, and no positions. */
  constructor(net, { kept = 100, user = 'me' } = {}) {
    this.kept = kept;
    this.user = user;
    this.outboxes = new Map(); // socket -> what it was not told yet
    this.inboxes = new Map(); // socket -> what it has said that was not heard yet
    net.WebSocket.topics = this;
  }

  topic(name) {
    if (!this.#topics.has(name)) {
      const topic = { name, top: 0, messages: [], all: [], keys: new Map(), inside: new Map(), members: new Map() };
      this.#topics.set(name, Object.assign(topic, { version: 0, told: 0, pending: new Map() }));
      this.#number(topic);
    }
    return this.#topics.get(name);
  }

  #number(topic) {
    this.#epochs += 1;
    Object.assign(topic, { number: `e${this.#epochs}`, suffixes: [], top: 0, messages: [], all: [], keys: new Map() });
    this.#suffix(topic);
  }

  #suffix(topic) {
    topic.suffixes.push(topic.top); // positions of the one before are good up to there
    topic.epoch = `${topic.number}.s${topic.suffixes.length}`;
  }

  /** Another server has taken over, which misses so many of the newest messages; it is told at once, if at all. */
  takeOver(name, missing, isTold) {
    const topic = this.topic(name);
    const lost = topic.messages.splice(Math.max(0, topic.messages.length - missing)).length;
    topic.all = topic.all.slice(0, topic.all.length - lost);
    topic.top -= lost;
    this.#suffix(topic);
    topic.isSaid = isTold || lost > 0;
    const event = { event: 'topic', topic: name, epoch: topic.epoch, offset: topic.top };
    if (lost > 0) Object.assign(event, { recovered: false, reason: 'history_lost' });
    if (topic.isSaid) for (const socket of topic.inside.keys()) this.say(socket, event);
  }

  /** Begin anew, with nothing kept: all connections are to be dropped. */
  restart() {
    for (const topic of this.#topics.values()) {
      this.#number(topic);
      topic.inside.clear();
      topic.members.clear();
      topic.pending.clear();
      topic.version = topic.told = 0;
    }
  }

  /** Forget all but the newest messages. */
  trim(name, left) {
    const topic = this.topic(name);
    topic.messages = topic.messages.slice(Math.max(0, topic.messages.length - left));
  }

  say(socket, message) {
    const text = JSON.stringify(message);
    if (!this.isLazy) queueMicrotask(() => socket.readyState === 1 && socket.say(text));
    else if (this.outboxes.has(socket)) this.outboxes.get(socket).push(text);
    else this.outboxes.set(socket, [text]);
  }

  /** Say the oldest of what waits; false where nothing does. */
  deliver(socket) {
    const text = this.outboxes.get(socket)?.shift();
    if (text !== undefined && socket.readyState === 1) socket.say(text);
    return text !== undefined;
  }

  lost(socket) {
    this.outboxes.delete(socket);
    this.inboxes.delete(socket);
    for (const topic of this.#topics.values()) this.leave(topic.name, socket);
  }

  received(socket, message) {
    if (!this.isDeaf) this.#answer(socket, message);
    else if (this.inboxes.has(socket)) this.inboxes.get(socket).push(message);
    else this.inboxes.set(socket, [message]);
  }

  /** Answer the oldest of what was not heard yet; false where there is nothing. */
  hear(socket) {
    const message = this.inboxes.get(socket)?.shift();
    if (message !== undefined && socket.readyState === 1) this.#answer(socket, message);
    return message !== undefined;
  }

  #answer(socket, { zKey, zHorizontal, _requestId }) {
    const answer = { zSubscribe: 1, zUnsubscribe: 1, zPublish: 1, zHistory: 1, zPresence: 1 }[zKey];
    if (answer === undefined) return;
    const error = this.refuse({ zKey, zHorizontal, socket });
    if (error === null) return; // it never answers
    if (error) this.say(socket, { retryable: false, error: error.code, ...error, _requestId });
    else this.say(socket, { result: copyOf(this[`_${zKey}`](socket, zHorizontal)), _requestId });
  }

  position(topic) {
    return this.kept > 0 ? { epoch: topic.epoch, offset: topic.top } : {};
  }

  _zSubscribe(socket, { topic: name, since, last, presence, state, echo = true }) {
    const topic = this.topic(name);
    const result = { topic: name, ...this.position(topic) };
    if (since) Object.assign(result, this.#since(topic, since));
    else if (last) result.messages = topic.messages.slice(-last);
    const connection = topic.inside.get(socket)?.connection ?? `c${(this.#connections += 1)}`;
    this.enter(name, socket, { connection, presence, echo, user: this.user, state: state ?? {} });
    if (presence) Object.assign(result, { connection, presence: this.presence(name) });
    return result;
  }

  #since(topic, { epoch, offset }) {
    const no = (reason) => ({ recovered: false, reason });
    if (this.kept === 0) return no('not_kept');
    const [number, suffix] = epoch.split('.s');
    if (number !== topic.number) return no('epoch');
    if (offset > Math.min(topic.top, ...topic.suffixes.slice(suffix))) return no('history_lost');
    if (topic.top - topic.messages.length > offset) return no('too_old');
    return { recovered: true, messages: topic.messages.filter((message) => message.offset > offset) };
  }

  _zUnsubscribe(socket, { topic }) {
    this.leave(topic, socket);
    return { topic };
  }

  _zPublish(socket, { topic: name, data, _idempotencyKey: key }) {
    const topic = this.topic(name);
    if (!topic.keys.has(key)) {
      this.publish(name, data, { from: this.user, key, socket });
      topic.keys.set(key, { topic: name, ...this.position(topic) });
    }
    return topic.keys.get(key);
  }

  _zHistory(socket, { topic: name, limit = 100, reverse = false, since }) {
    const topic = this.topic(name);
    const result = { topic: name, ...this.position(topic) };
    if (since && since.epoch !== topic.epoch) return { ...result, recovered: false, reason: 'epoch' };
    const found = topic.messages.filter(({ offset }) => !since || offset > since.offset);
    const messages = reverse ? found.toReversed().slice(0, limit) : found.slice(0, limit);
    return { ...result, messages, more: messages.length < found.length };
  }

  _zPresence(socket, { topic: name, state }) {
    const inside = this.topic(name).inside.get(socket);
    if (state) this.enter(name, socket, { ...inside, state });
    return { topic: name, ...this.presence(name) };
  }

  publish(name, data, { from = 'bob', key, socket } = {}) {
    const topic = this.topic(name);
    const message = { ...(this.kept > 0 && { offset: (topic.top += 1) }), data, from, key };
    const epoch = topic.isSaid === false ? { epoch: topic.epoch } : {};
    topic.isSaid = true;
    topic.all.push(message);
    topic.messages = [...topic.messages, message].slice(Math.max(0, topic.messages.length + 1 - this.kept));
    for (const [other, { echo }] of topic.inside) {
      const own = { offset: message.offset, key, own: true };
      const told = { event: 'message', topic: name, ...epoch, ...(other === socket && !echo ? own : message) };
      if (!this.loses(told)) this.say(other, told);
    }
  }

  // Who is there. Changes wait for tell(), as they do for 200 ms in the server.

  presence(name) {
    const { version, members } = this.topic(name);
    const named = Object.create(null); // for users called __proto__
    for (const [connection, { user, state }] of members) (named[user] ??= {})[connection] = state;
    return { version, users: Object.keys(named).length, connections: members.size, members: named };
  }

  enter(name, socket, entry) {
    const topic = this.topic(name);
    if (socket) topic.inside.set(socket, entry);
    topic.members.set(entry.connection, entry);
    topic.pending.set(entry.connection, entry.user);
    topic.version += 1;
  }

  leave(name, socket, connection = this.topic(name).inside.get(socket)?.connection) {
    const topic = this.topic(name);
    topic.inside.delete(socket);
    if (!topic.members.has(connection)) return;
    topic.pending.set(connection, topic.members.get(connection).user);
    topic.members.delete(connection);
    topic.version += 1;
  }

  /** Tell who has come and gone since `after`. */
  tell(name, { after = this.topic(name).told, isWhole = false } = {}) {
    const topic = this.topic(name);
    const { version, users, connections, members } = this.presence(name);
    const joined = Object.create(null);
    const left = Object.create(null);
    for (const [connection, user] of topic.pending) {
      const entry = topic.members.get(connection);
      if (entry) (joined[user] ??= {})[connection] = entry.state;
      else (left[user] ??= []).push(connection);
    }
    topic.pending.clear();
    topic.told = version;
    const what = isWhole ? { members } : { joined, left };
    const event = { event: 'presence', topic: name, after, version, ...what, users, connections };
    for (const [socket, { presence }] of topic.inside) if (presence && !this.loses(event)) this.say(socket, event);
  }

  /** A generator, 0 to 1, that gives the same numbers for the same seed. */
  static random(seed) {
    let state = seed;
    return () => {
      state = (state + 0x6d2b79f5) | 0;
      let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
      mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
      return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
    };
  }
}

/** A client that is connected to a server of topics. */
export async function withTopics(serverOptions = {}, options = {}) {
  const { net, client } = await connected({ retryDelay: () => 10, ...options });
  const server = new TopicServer(net, serverOptions);
  return { net, client, server };
}

/** All that a topic tells, in order: [event, value]. */
export function tellings(topic, events = ['message', 'continuity', 'presence', 'subscribed', 'unsubscribed', 'error']) {
  const told = [];
  for (const event of events) topic.on(event, (value) => told.push([event, value]));
  return told;
}

/** What the client has sent in commands of that name. */
export const sent = (net, zKey) =>
  net.sockets.flatMap((socket) => socket.sent.filter((message) => message.zKey === zKey).map((m) => m.zHorizontal));
/** The data of the messages in what was told. */
export const texts = (told) => told.filter(([event]) => event === 'message').map(([, { data }]) => data);
/** The values of one event in what was told. */
export const of = (told, event) => told.filter(([name]) => name === event).map(([, value]) => value);

/** Lose the connection, and have the next one; `meanwhile` is between them. */
export async function reconnect(net, meanwhile = () => {}) {
  net.last.drop();
  await meanwhile();
  mock.timers.tick(10);
  net.last.accept();
  await settle();
}
