/** Who is in the chat, and who of them is typing. */
import { $, counted, make } from './dom.js';

/* So many are named. */
const MOST = 50;

/** Without authentication all are one user, of this name. */
export const ANONYMOUS = 'anonymous';
const SEVERAL = 'Several people';

/** Show who is here: a snapshot of the presence of a topic, null while that is not known, and one's own connection. */
export function showPeople(here, connection) {
  const people = here?.members === undefined ? [] : sorted(here.members, connection);
  showTyping(people);
  const names = people.slice(0, MOST).map(personOf);
  const rest = (here?.users ?? 0) - names.length;
  if (rest > 0) {
    const text = names.length > 0 ? `and ${rest.toLocaleString()} more` : counted(rest, 'user', 'users');
    names.push(make('li', { className: 'quiet' }, text));
  }
  if (here === null) names.push(make('li', { className: 'quiet' }, 'not known while away'));
  $('chat-people').replaceChildren(...names);
  const number = Object.hasOwn(here?.members ?? {}, ANONYMOUS) ? here.connections : here?.users;
  $('chat-count').textContent = number?.toLocaleString() ?? '';
}

/** {user, isOwn, tabs, typing} of each, oneself first; `typing` is how many of their other tabs do. */
function sorted(members, connection) {
  const people = Object.entries(members).map(([user, tabs]) => ({
    user,
    isOwn: Object.hasOwn(tabs, connection ?? ''),
    tabs: Object.keys(tabs).length,
    typing: Object.entries(tabs).filter(([id, state]) => id !== connection && state?.typing === true).length,
  }));
  return people.sort((one, other) => other.isOwn - one.isOwn || one.user.localeCompare(other.user));
}

function personOf({ user, isOwn, tabs, typing }) {
  const dot = make('span', { className: `dot ${typing ? 'warn' : 'good'}`, ariaHidden: 'true' });
  return make('li', {}, dot, make('bdi', {}, user), make('span', { className: 'quiet' }, aboutOf(user, isOwn, tabs)));
}

function aboutOf(user, isOwn, tabs) {
  if (user === ANONYMOUS && isOwn) return tabs > 1 ? `you and ${counted(tabs - 1, 'other', 'others')}` : 'you';
  return [isOwn ? 'you' : '', tabs > 1 ? counted(tabs, 'tab', 'tabs') : ''].filter(Boolean).join(', ');
}

function showTyping(people) {
  const typing = people.filter((person) => person.typing > 0);
  // One's own other tabs are of interest only where nobody else types.
  const others = typing.filter(({ user, isOwn }) => !isOwn || user === ANONYMOUS);
  const names = others.map(({ user, typing: tabs }) => {
    if (user !== ANONYMOUS) return user;
    return tabs === 1 ? 'Somebody' : SEVERAL;
  });
  const shown = names.length > 3 ? [SEVERAL] : names;
  const between = (n) => (n === 0 ? '' : n < shown.length - 1 ? ', ' : ' and ');
  const parts = shown.flatMap((name, n) => [between(n), make('bdi', {}, name)]);
  if (shown.length > 0) parts.push(shown.length > 1 || shown[0] === SEVERAL ? ' are typing…' : ' is typing…');
  else if (typing.length > 0) parts.push('You are typing in another tab…');
  $('chat-typing').replaceChildren(...parts);
}
