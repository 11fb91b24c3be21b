/** The live feed: what other clients change, what programs display, and how the connection fares. */
import { on } from './connection.js';
import { $, asJson, make } from './dom.js';
import { onForget } from './visitor.js';

const LENGTH = 100;

function add(item) {
  $('feed').prepend(item);
  while ($('feed').children.length > LENGTH) $('feed').lastChild.remove();
}

const time = () => make('time', { dateTime: new Date().toISOString() }, new Date().toLocaleTimeString());

/** A line of the page's own. */
export function note(text) {
  add(make('li', { className: 'said' }, time(), text));
}

function broadcast(message) {
  const keyed = typeof message?.zKey === 'string';
  const { changes, ids } = message ?? {};
  const content = keyed && Object.hasOwn(message, 'result') ? (changes ?? ids ?? message.result) : message;
  const called = keyed && typeof message.function === 'string' ? `${message.function}: ` : '';
  const brief = keyed && message.many === true ? `${called}more than is told` : `${called}${asJson(content)}`;
  const summary = make(
    'summary',
    {},
    time(),
    keyed ? make('b', {}, message.zKey) : null,
    make('span', { className: 'brief' }, brief),
  );
  add(make('li', {}, make('details', {}, summary, make('pre', {}, asJson(content, 2)))));
  $('feed-empty').hidden = true;
}

on('broadcast', broadcast);
on('display', (data) => {
  add(make('li', { className: 'display' }, time(), typeof data?.text === 'string' ? data.text : asJson(data)));
});
on('state', ({ previous, state }) => {
  // Whoever presses Disconnect knows, and leaves nothing behind.
  if (previous === 'connected') note(state === 'reconnecting' ? 'Connection lost' : 'Disconnected');
});
on('open', () => note('Connected'));
on('service', ({ name, status }) => note(`${name}: ${status?.state ?? 'changed'}`));

function clear() {
  $('feed').replaceChildren();
  $('feed-empty').hidden = false;
}
$('feed-clear').addEventListener('click', clear);
onForget(clear);
