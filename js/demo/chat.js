/** The chat: a topic of the server, with who is here, who is typing, and what was missed after a lost connection. */
import { client, on } from './connection.js';
import { describe, description } from './description.js';
import { $, words } from './dom.js';
import { ANONYMOUS, showPeople } from './people.js';
import * as said from './said.js';
import { onForget } from './visitor.js';

const TOPIC = 'room:demo';
/* So many of the newest messages are there at first. */
const LAST = 100;
/* Milliseconds without a key after which nobody is typing any more. */
const PAUSE = 3000;

const ENDED = {
  ended: 'The server has ended this chat.',
  kind_gone: 'This server has no such chat any more.',
  permission_denied: 'This server does not let you into its chat.',
  not_found: 'This server has no such chat.',
  unknown_command: 'This server has no topics.',
};
/* Errors after which the same is refused again. */
const HOPELESS = ['invalid', 'permission_denied', 'not_found', 'conflict'];

let topic = null; // of the client that is shown, while one is in it or on the way
let stops = []; // what ends our listening to it
let refusal = ''; // why one is not in it
let hasPresence = false; // whether it is told who is here
let mayWrite = false;
let keys = new Set(); // of what was said here
let isTyping = false;
let pause = null; // the timer after which one is not

const [form, text] = [$('chat-form'), $('chat-text')];

/** The actions on the topic that the server has told of; null where it tells of none of any topic. */
function granted() {
  if (description.topics === undefined) return null;
  const fits = (pattern) => {
    const parts = pattern.split('*').map((part) => part.replace(/[\\^$.*+?()[\]{}|]/g, '\\$&'));
    return new RegExp(`^${parts.join('.*')}$`).test(TOPIC);
  };
  return Object.entries(description.topics).flatMap(([pattern, actions]) => (fits(pattern) ? actions : []));
}

/** Be in the chat, as far as the server lets us. */
export function enter() {
  const actions = granted();
  mayWrite = actions?.includes('publish') ?? true;
  const mayEnter = actions?.includes('subscribe') ?? true;
  if (!mayEnter) {
    leave();
    refusal = ENDED.permission_denied;
  } else if (topic === null || topic !== client.topic(TOPIC) || topic.state === 'unsubscribed') {
    leave();
    said.clear();
    subscribe(actions?.includes('presence') ?? true);
  }
  show();
}

async function subscribe(presence) {
  const mine = client.topic(TOPIC, { last: LAST, presence });
  [topic, refusal, hasPresence] = [mine, '', false];
  stops = [
    mine.on('message', (message) => {
      said.hear(message, isOwn(message));
      show();
    }),
    mine.on('continuity', said.goOn),
    mine.on('subscribed', () => {
      refusal = '';
      hasPresence = presence;
      said.isUpToDate();
      show();
    }),
    mine.on('presence', () => show()),
    mine.on('unsubscribed', ({ reason }) => ended(reason)),
    // What else fails is who is typing; the next key tells it anew.
    mine.on('error', (error) => {
      if (mine.state !== 'subscribed') refusal = named(error);
      isTyping = false;
      show();
    }),
  ];
  try {
    await mine.subscribe();
  } catch (error) {
    if (topic !== mine) return;
    // Who is here is not told everywhere.
    if (presence && HOPELESS.includes(error.code)) {
      leave();
      await subscribe(false);
      return;
    }
    if (client.state === 'connected') ended(error.code, error);
  }
}

const isOwn = ({ from, key }) => keys.has(key) || (from === description.identity?.name && from !== ANONYMOUS);

const named = (error) => `${words(error)} (${error.code})`;

function ended(reason, error) {
  const about = ENDED[reason] ?? (error ? words(error) : 'You are not in this chat any more.');
  leave();
  refusal = `${about.replace(/\.$/, '')} (${reason}).`;
  show();
}

function leave() {
  for (const stop of stops) stop();
  topic?.unsubscribe().catch(() => {});
  [topic, stops, isTyping] = [null, [], false];
  clearTimeout(pause);
}

/** Show who is here, whether one may write, and what is the matter. */
function show() {
  const isIn = topic?.state === 'subscribed';
  $('chat-here').hidden = topic === null || !hasPresence;
  showPeople(isIn && hasPresence ? topic.presence.getSnapshot() : null, topic?.presence.connection);
  const isDenied = !mayWrite && topic !== null;
  // Who was about to write reads on.
  if ((isDenied || topic === null) && form.contains(document.activeElement)) $('chat-title').focus();
  form.hidden = isDenied || topic === null;
  $('chat-denied').hidden = !isDenied;
  $('chat-enter').hidden = topic !== null || client?.state !== 'connected' || refusal === '';
  const note = noteOf(isIn);
  $('chat-note').hidden = note === '';
  if ($('chat-note').textContent !== note) $('chat-note').textContent = note;
}

function noteOf(isIn) {
  if (client === null || client.state === 'disconnected') return 'Not connected.';
  if (refusal) return refusal;
  if (client.state !== 'connected') {
    if (topic === null) return 'Not connected.';
    return mayWrite ? 'Away. What you say now goes out when the connection is back.' : 'Away.';
  }
  if (isIn && said.isEmpty()) return 'Nothing has been said here. Open this page in a second tab and try.';
  return '';
}

// Saying something.

/* crypto.randomUUID is there on secure pages only. */
const newKey = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (n) => n.toString(16).padStart(2, '0')).join('');

function say(words_) {
  const key = newKey();
  const data = { text: words_, at: new Date().toISOString() };
  const line = said.say(words_, key, description.identity?.name);
  keys.add(key);
  const publish = async () => {
    const mine = topic;
    line.again();
    try {
      if (mine === null) throw new Error('You are not in this chat.');
      await mine.publish(data, { idempotencyKey: key });
      line.taken();
    } catch (error) {
      if (error.code === 'permission_denied' && topic === mine) mayWrite = false;
      const choices = {};
      if (!HOPELESS.includes(error.code)) choices.Again = publish;
      if (mayWrite) choices.Edit = edit;
      else choices.Discard = line.remove;
      const fields = Object.values(error.fields ?? {}).join(', ');
      line.failed(`${words(error)}${fields && `: ${fields}`}${error.code ? ` (${error.code})` : ''}`, choices);
      show();
    }
  };
  const edit = () => {
    line.remove();
    text.value = [words_, text.value].filter((part) => part !== '').join('\n');
    text.focus();
    show();
  };
  publish();
  show();
}

form.addEventListener('submit', (event) => {
  event.preventDefault();
  text.focus();
  if (text.value.trim() === '' || topic === null) return;
  const words_ = text.value;
  text.value = '';
  typing(false);
  say(words_);
});
text.addEventListener('keydown', (event) => {
  // Enter says it, however many lines it has.
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  form.requestSubmit();
});

/** Tell the others that one is typing, once, and that one is no longer. */
function typing(is) {
  clearTimeout(pause);
  if (is) pause = setTimeout(() => typing(false), PAUSE);
  if (is === isTyping || !hasPresence || topic === null) return;
  isTyping = is;
  topic.presence.setState(is ? { typing: true } : {}).catch(() => {}); // its errors are told to the listener
}
text.addEventListener('input', () => typing(text.value.trim() !== ''));

$('chat-enter').addEventListener('click', async () => {
  const asked = client;
  // One may be allowed to do more now.
  await describe();
  if (client !== asked || !client.connected) return;
  enter();
  if (!form.hidden) text.focus();
});

on('state', show);

onForget(() => {
  leave();
  said.clear();
  [refusal, mayWrite, keys] = ['', false, new Set()];
  form.reset();
  show();
});
