/** What was said in the chat: a list that stays at its end, and tells where something was missed or is gone. */
import { $, asJson, counted, make } from './dom.js';

/* So many lines stay in the page. */
const MOST = 200;
/* A text of more characters or lines is opened by who wants to read it. */
const [LONG, LINES, BRIEF] = [1000, 20, 160];
/* So many pixels from its end the list is at its end. */
const NEAR = 40;

const AFTERWARDS = {
  epoch: 'The server has begun this chat anew. What was said before is gone there.',
  history_lost: 'The server has lost the last of what was said before.',
  too_old: 'Some of what was said while you were away is kept no longer.',
  too_many: 'More was said while you were away than can be told. These are the newest messages.',
  not_kept: 'This server keeps no messages. What was said while you were away is not known.',
};
/* After these nothing of what is shown exists on the server any more. */
const BEGUN_ANEW = ['epoch', 'history_lost'];

const [log, list, newer] = [$('chat-log'), $('chat-said'), $('chat-newer')];

const waiting = new Map(); // key -> the line of what this page has said, until it comes back; they stand at the end
const ids = new WeakMap(); // line -> whose message it is, and its key
let missed = null; // {count, divider, isBreak, isAnew} while that is told which was missed
let rest = 0; // the part of a pixel that could not be scrolled
let unseen = 0; // lines below what a reader looks at

export const isEmpty = () => list.children.length === 0;

export function clear() {
  list.replaceChildren();
  waiting.clear();
  missed = null;
  toEnd();
}

const isAtEnd = () => log.scrollHeight - log.scrollTop - log.clientHeight < NEAR;

function toEnd() {
  log.scrollTop = log.scrollHeight;
  unseen = 0;
  newer.hidden = true;
}

/** Change the list with `change`, and leave who reads further up where they are. */
function keepingPlace(change, isNews = true) {
  const stays = !isAtEnd();
  change();
  let removed = 0;
  while (list.children.length > MOST) {
    removed += list.firstChild.getBoundingClientRect().height;
    list.firstChild.remove();
  }
  if (!stays) {
    toEnd();
    return;
  }
  // What is scrolled is whole pixels, and lines are not.
  const place = log.scrollTop - removed + rest;
  log.scrollTop = place;
  rest = Math.abs(place - log.scrollTop) < 1 ? place - log.scrollTop : 0;
  if (!isNews) return;
  unseen += 1;
  newer.textContent = `${counted(unseen, 'new message', 'new messages')} ↓`;
  newer.hidden = false;
}

/** Before what was said here and has not come back yet. */
function insert(line) {
  const [next] = waiting.values();
  if (line.isConnected && line.nextElementSibling === (next?.line ?? null)) return;
  list.insertBefore(line, next?.line.isConnected ? next.line : null);
}

newer.addEventListener('click', () => {
  toEnd();
  log.focus();
});
let wasAtEnd = true;
log.addEventListener('scroll', () => {
  wasAtEnd = isAtEnd();
  if (wasAtEnd) [unseen, newer.hidden] = [0, true];
});
// In a window of another size its end is elsewhere.
new ResizeObserver(() => wasAtEnd && toEnd()).observe(log);

function timeOf(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  const clock = { hour: '2-digit', minute: '2-digit' };
  const text = isToday
    ? date.toLocaleTimeString([], clock)
    : date.toLocaleString([], { day: 'numeric', month: 'short', ...clock });
  return make('time', { dateTime: date.toISOString(), title: date.toLocaleString() }, text);
}

/** When something was said: now, or for what was kept when its sender says so, and that can be. */
function whenSaid(data, replayed) {
  if (!replayed) return new Date();
  const date = new Date(typeof data?.at === 'string' ? data.at : NaN);
  return date.getTime() > 0 && date.getTime() <= Date.now() + 60_000 ? date : null;
}

const textOf = (data) => (typeof data?.text === 'string' ? data.text : asJson(data, 2));

function textElement(text) {
  if (text.length <= LONG && text.split('\n').length <= LINES) {
    return make('p', { className: 'text', dir: 'auto' }, text);
  }
  const length = counted(text.length, 'character', 'characters');
  const brief = text.trim().slice(0, BRIEF).replace(/[\ud800-\udbff]$/, '');
  return make(
    'details',
    { className: 'text' },
    make('summary', {}, `${brief}… `, make('span', { className: 'quiet' }, length)),
    make('pre', { tabIndex: 0, dir: 'auto' }, text),
  );
}

function lineOf(from, isOwn, text, date) {
  // Programs have no names.
  const author = from === undefined ? make('i', {}, 'the server') : make('bdi', {}, from);
  const you = isOwn ? make('span', {}, 'you') : null;
  return make(
    'li',
    { className: isOwn ? 'own' : '' },
    make('p', { className: 'who' }, make('b', {}, author), you, date && timeOf(date)),
    textElement(text),
  );
}

function divider(text) {
  const line = make('li', { className: 'divider' }, make('span', {}, text));
  keepingPlace(() => insert(line), false);
  return line;
}

/** A message has come. */
export function hear({ data, from, key, replayed }, isOwn) {
  const said = waiting.get(key);
  if (said !== undefined) {
    confirmed(key, said, from);
    return;
  }
  const id = JSON.stringify([from, key]);
  if (replayed && key !== undefined) [...list.children].find((line) => ids.get(line) === id)?.remove();
  const line = lineOf(from, isOwn, textOf(data), whenSaid(data, replayed));
  ids.set(line, id);
  if (replayed && missed !== null) {
    line.classList.add('missed');
    missed.count += 1;
    const text = `While you were away: ${counted(missed.count, 'message', 'messages')}`;
    if (missed.divider === null) missed.divider = divider(text);
    else if (!missed.isBreak) missed.divider.firstChild.textContent = text;
  }
  keepingPlace(() => insert(line));
}

/** Say from where on messages are those that were missed, or that there is no telling. */
export function goOn({ recovered, reason }) {
  missed = { count: 0, divider: null, isBreak: false, isAnew: false };
  if (recovered) return;
  if (isEmpty()) return;
  missed.isAnew = BEGUN_ANEW.includes(reason);
  const ours = new Set([...waiting.values()].map(({ line }) => line));
  if (missed.isAnew) for (const line of list.children) if (!ours.has(line)) line.classList.add('gone');
  missed.divider = divider(AFTERWARDS[reason] ?? `Messages may be missing here (${reason}).`);
  missed.isBreak = true;
}

/** What comes from now on was not missed. */
export function isUpToDate() {
  // What the server had taken, and is not among what it has told since, was lost or is kept no longer.
  if (missed?.isBreak) {
    for (const [key, { line, isTaken }] of [...waiting]) {
      if (!isTaken) continue;
      waiting.delete(key);
      missed.divider.before(line);
      if (missed.isAnew) line.classList.add('gone');
    }
  }
  missed = null;
}

/**
 * Show what is being said here before it has come back. The answer is {taken(), failed(text, choices), again()};
 * `choices` are buttons, {label: what it does}. `from` is who says it.
 */
export function say(text, key, from) {
  const line = lineOf(from, true, text, new Date());
  const state = make('p', { className: 'state quiet' }, 'Sending…');
  line.append(state);
  line.classList.add('waiting');
  const said = { line, state, isTaken: false };
  waiting.set(key, said);
  list.append(line);
  keepingPlace(() => {}, false);
  toEnd();
  const settle = (className, ...content) => {
    // The buttons go: who was on one of them goes on to write.
    if (state.contains(document.activeElement)) $('chat-text').focus();
    state.className = `state ${className}`;
    state.replaceChildren(...content);
  };
  return {
    taken() {
      said.isTaken = true;
      line.classList.remove('waiting');
      settle('', '');
    },
    failed(reason, choices) {
      if (waiting.get(key) !== said) return; // it has come all the same
      const buttons = Object.entries(choices).map(([label, act]) => {
        const button = make('button', { type: 'button' }, label);
        button.addEventListener('click', act);
        return button;
      });
      keepingPlace(() => settle('error', make('span', {}, reason), ...buttons), false);
    },
    again: () => settle('quiet', 'Sending…'),
    remove() {
      settle('', '');
      waiting.delete(key);
      line.remove();
    },
  };
}

function confirmed(key, { line, state }, from) {
  if (state.contains(document.activeElement)) $('chat-text').focus();
  state.remove();
  line.classList.remove('waiting');
  ids.set(line, JSON.stringify([from, key]));
  waiting.delete(key);
  keepingPlace(() => insert(line), false);
}
