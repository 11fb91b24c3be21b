/* Rooms: each is a topic. Who is there, who is writing, what was said and what was missed are the client's to know. */
import { signIn, zBifrost } from '/zBifrost.js';

const PAGE = 50;
const STILL_TYPING = 4000; // milliseconds after the last key
const $ = (id) => document.getElementById(id);

let client;
let me = '';
let role = '';
let shown; // the room on the page
let stopTyping;
let rights = {}; // actions by pattern of topics
const rooms = new Map();

/** An element with these properties and children; text is text, whatever stands in it. */
function make(name, properties = {}, ...children) {
  const { data = {}, ...others } = properties;
  const element = Object.assign(document.createElement(name), others);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

const store = {
  get: (name) => JSON.parse(localStorage.getItem(`chat.${me}.${name}`) ?? 'null'),
  set: (name, value) => localStorage.setItem(`chat.${me}.${name}`, JSON.stringify(value)),
};

class Room {
  unread = 0;
  more = false;
  oldest; // the offset of the first message in the list
  divider = null;
  sending = new Map(); // what is not published yet, by key

  constructor(name) {
    this.name = name;
    this.list = make('ol', { className: 'messages' });
    this.badge = make('span', { className: 'badge', hidden: true });
    this.button = make('button', { onclick: () => show(this) }, make('span', {}, `# ${name}`), this.badge);
    this.seen = store.get(`seen.${name}`);
    this.topic = client.topic(`room:${name}`, { presence: true, last: PAGE });
    this.topic.on('message', (message) => this.hear(message));
    this.topic.on('continuity', (continuity) => this.comeBack(continuity));
    this.topic.on('presence', () => this === shown && showPeople());
    this.topic.on('unsubscribed', ({ reason }) => this.end(reason));
    this.topic.on('error', (error) => tell(error.message));
    this.topic.subscribe().catch(({ code }) => this.end(code));
  }

  hear(message) {
    const { offset, from, key, replayed } = message;
    this.sending.get(key)?.remove();
    this.sending.delete(key);
    const isNew = this.seen !== null && this.seen.epoch === this.topic.position?.epoch && offset > this.seen.offset;
    if (replayed && isNew && from !== me && this.divider === null) {
      this.divider = make('li', { className: 'divider' }, 'What you missed');
      this.append(this.divider);
    }
    this.append(line(message));
    if (this.oldest === undefined) {
      this.oldest = offset;
      this.more = offset > 1;
      showEarlier();
    }
    if (this === shown && document.visibilityState === 'visible') this.see();
    else if (from !== me && (isNew || !replayed)) this.count(this.unread + 1);
  }

  /** At the end, before what is still being sent; the view stays at the end if it was there. */
  append(item) {
    const log = $('log');
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    const [pending] = this.sending.values();
    if (pending === undefined) this.list.append(item);
    else pending.before(item);
    if (this === shown && atEnd) log.scrollTop = log.scrollHeight;
  }

  comeBack({ recovered, reason }) {
    this.divider?.remove();
    this.divider = null;
    if (recovered) return;
    // What is missing cannot be known: begin again with the newest that there are.
    this.list.replaceChildren(...this.sending.values());
    this.oldest = undefined;
    this.more = false;
    const isNew = reason === 'epoch' || reason === 'history_lost';
    const why = isNew ? 'The server has started anew' : 'Much was said meanwhile';
    this.append(make('li', { className: 'divider' }, `${why}: messages may be missing`));
    showEarlier();
  }

  async earlier() {
    if (!this.more) return;
    this.more = false;
    showEarlier();
    const before = { epoch: this.topic.position.epoch, offset: this.oldest };
    try {
      const { messages = [], more = false } = await this.topic.history({ limit: PAGE, reverse: true, before });
      const log = $('log');
      const height = log.scrollHeight;
      log.ariaBusy = 'true';
      for (const message of messages) this.list.prepend(line(message));
      if (this === shown) log.scrollTop += log.scrollHeight - height;
      log.ariaBusy = 'false';
      this.oldest = messages.at(-1)?.offset ?? this.oldest;
      this.more = more;
    } catch (error) {
      tell(error.message);
      this.more = true;
    }
    showEarlier();
  }

  async say(data, key = crypto.randomUUID()) {
    const item = line({ data, from: me });
    item.classList.add('sending');
    this.sending.set(key, item);
    this.list.append(item);
    if (this === shown) $('log').scrollTop = $('log').scrollHeight;
    try {
      await this.topic.publish(data, { idempotencyKey: key });
    } catch (error) {
      if (!this.sending.delete(key)) return; // it has come all the same
      item.classList.replace('sending', 'failed');
      const again = () => {
        item.remove();
        this.say(data, key); // under its key it counts once, whatever became of the first
      };
      item.append(make('p', { className: 'error' }, `${error.message} `, make('button', { onclick: again }, 'Send again')));
      if (item.nextElementSibling === null) item.scrollIntoView({ block: 'nearest' });
    }
  }

  see() {
    this.count(0);
    if (this.topic.position === undefined) return;
    this.seen = this.topic.position;
    store.set(`seen.${this.name}`, this.seen);
  }

  count(unread) {
    this.unread = unread;
    this.badge.hidden = unread === 0;
    this.badge.textContent = unread > 99 ? '99+' : unread;
    this.badge.ariaLabel = `${unread} unread`;
    const all = [...rooms.values()].reduce((sum, room) => sum + room.unread, 0);
    document.title = all > 0 ? `(${all}) Chat` : 'Chat';
  }

  end(reason) {
    const words = reason === 'permission_denied' ? `You may not be in this room as ${role}.` : `The room has ended: ${reason}.`;
    this.list.append(make('li', { className: 'divider' }, words));
  }
}

const hue = (name) => [...name].reduce((sum, letter) => (sum * 31 + letter.codePointAt(0)) % 360, 7);

function face(name) {
  const circle = make('span', { className: 'face', ariaHidden: 'true' }, [...name][0]?.toUpperCase() ?? '?');
  circle.style.setProperty('--hue', hue(name));
  return circle;
}

/** One message as it is shown. */
function line({ data, from = 'the server' }) {
  const text = typeof data?.text === 'string' ? data.text : JSON.stringify(data);
  const at = new Date(data?.at ?? NaN);
  const time = Number.isNaN(at.getTime())
    ? ''
    : make('time', { dateTime: at.toISOString() }, at.toLocaleTimeString([], { hour: '2-digit', minute: '2-digit' }));
  const head = make('p', { className: 'head' }, make('b', {}, from), time);
  return make('li', { className: from === me ? 'mine' : '' }, face(from), make('div', {}, head, make('p', {}, text)));
}

function show(room) {
  quiet();
  shown?.list.remove();
  shown = room;
  for (const each of rooms.values()) each.button.ariaCurrent = each === room ? 'true' : 'false';
  $('room-name').textContent = `# ${room.name}`;
  $('log').append(room.list);
  $('log').scrollTop = $('log').scrollHeight;
  history.replaceState(null, '', `?room=${encodeURIComponent(room.name)}`);
  room.see();
  showPeople();
  showEarlier();
  showRights();
}

function showEarlier() {
  $('earlier').hidden = !shown?.more;
}

function showPeople() {
  const { members, users } = shown.topic.presence;
  const people = Object.entries(members ?? {});
  $('people').replaceChildren(
    ...people.slice(0, 12).map(([name]) => make('li', { title: name }, face(name), make('span', {}, name))),
    ...(users > Math.min(people.length, 12) ? [make('li', {}, `${users} in all`)] : []),
  );
  const typing = people
    .filter(([name, states]) => name !== me && Object.values(states).some((state) => state?.typing === true))
    .map(([name]) => name);
  const who = typing.length > 2 ? 'Several people' : typing.join(' and ');
  $('typing').textContent = typing.length === 0 ? '' : `${who} ${typing.length === 1 ? 'is' : 'are'} writing…`;
}

/** Whether a pattern of the rights, where `*` is any text, fits the name. */
function fits(pattern, name) {
  const parts = pattern.split('*').map((part) => part.replace(/[^\w]/g, '\\$&'));
  return new RegExp(`^${parts.join('.*')}$`).test(name);
}

function showRights() {
  const name = shown.topic.name;
  // One that stands there by itself has those rights and no others.
  const granted = rights[name] ?? Object.entries(rights).flatMap(([pattern, can]) => (fits(pattern, name) ? can : []));
  const mayWrite = granted.includes('publish');
  $('compose').hidden = !mayWrite;
  $('read-only').hidden = mayWrite || !granted.includes('subscribe');
}

function tell(text) {
  $('notice').textContent = text;
}

/** Nobody is writing here any more. */
function quiet() {
  if (stopTyping === undefined) return;
  clearTimeout(stopTyping);
  stopTyping = undefined;
  shown.topic.presence.setState({ typing: false }).catch(() => {}); // `error` has told
}

/** The room of that name; one is in all rooms of the list, whichever is shown. */
function enter(name) {
  if (!rooms.has(name)) {
    const room = new Room(name);
    rooms.set(name, room);
    $('rooms').append(make('li', {}, room.button));
    store.set('rooms', [...rooms.keys()]);
  }
  return rooms.get(name);
}

async function describe() {
  const { identity, topics } = await client.send({ zKey: 'zDescribe', zHorizontal: ['identity', 'topics'] });
  me = identity.name;
  role = identity.role;
  rights = topics;
  $('me').textContent = `${me} (${role})`;
}

async function start() {
  const token = await signIn();
  client = new zBifrost(undefined, token);
  client.on('state', ({ state }) => {
    $('status').dataset.state = state;
    $('status').textContent = state;
    // It does not come back by itself; `error` tells why.
    $('sign-out').textContent = state === 'disconnected' ? 'Sign in again' : 'Sign out';
  });
  await client.connect();
  await describe();
  // With another connection there may be other rights.
  client.on('open', () => describe().then(showRights, (error) => tell(error.message)));
  client.on('error', (error) => tell(error.message));
  $('sign-in').hidden = true;
  $('chat').hidden = false;
  const wanted = new URLSearchParams(location.search).get('room');
  for (const name of store.get('rooms') ?? ['lobby', 'help', 'random']) enter(name);
  show(wanted && /^[\w.@-]{1,40}$/.test(wanted) ? enter(wanted) : [...rooms.values()][0]);
  if (matchMedia('(pointer: fine)').matches) $('text').focus();
}

function begin() {
  start().catch((error) => {
    client?.disconnect();
    $('chat').hidden = true;
    $('sign-in').hidden = false;
    const isFirst = error.reason === 'Authentication required';
    $('sign-in-reason').textContent = isFirst ? '' : error.message;
    $('token').focus();
  });
}

$('sign-in').addEventListener('submit', async (event) => {
  event.preventDefault();
  await signIn($('token').value.trim());
  $('token').value = '';
  begin();
});

$('sign-out').addEventListener('click', async () => {
  await signIn('');
  location.reload();
});

$('join').addEventListener('submit', (event) => {
  event.preventDefault();
  show(enter($('join-name').value));
  $('join-name').value = '';
  $('text').focus();
});

$('compose').addEventListener('submit', (event) => {
  event.preventDefault();
  const text = $('text').value.trim();
  if (text === '') return;
  $('text').value = '';
  quiet();
  shown.say({ text, at: new Date().toISOString() });
});

$('text').addEventListener('input', () => {
  clearTimeout(stopTyping);
  if (stopTyping === undefined) shown.topic.presence.setState({ typing: true }).catch(() => {});
  stopTyping = setTimeout(quiet, STILL_TYPING);
});

$('log').addEventListener('scroll', () => {
  if ($('log').scrollTop < 40) shown.earlier();
});
$('earlier').addEventListener('click', () => shown.earlier());
document.addEventListener('visibilitychange', () => document.visibilityState === 'visible' && shown?.see());

begin();
