/** Small things that every part of the page uses. What comes from the server becomes text, never markup. */
import { BifrostError } from '../zBifrost.js';
import { stringify } from './values.js';
import { visit } from './visitor.js';

export const $ = (id) => document.getElementById(id);

/** make('td', {className: 'text'}, 'Alice', otherElement): text stays text. No property is named by what is data. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

let ids = 0;

/** An id that nothing else has: what is data names no element. */
export const newId = () => `made-${(ids += 1)}`;

export function showError(element, text) {
  element.hidden = !text;
  element.textContent = text ?? '';
}

/** What an error says to a person. */
export function words(error) {
  if (error instanceof BifrostError || error instanceof TypeError) return error.message.replace(/^zBifrost: /, '');
  return String(error?.message ?? error);
}

export const asJson = (value, space) => (typeof value === 'string' ? value : (stringify(value, space) ?? 'nothing'));

export const counted = (number, one, many) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

/** The time since `since`, a performance.now(), as text. */
export function elapsed(since) {
  const milliseconds = performance.now() - since;
  return milliseconds < 1000 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** Show what became of a call: its result or error, and how long it took. */
export async function showOutcome(output, call, render = (value) => make('pre', {}, asJson(value, 2))) {
  const [since, mine] = [performance.now(), visit];
  const took = () => make('p', { className: 'latency' }, elapsed(since));
  const show = (element) => {
    if (visit === mine) output.replaceChildren(element, took());
  };
  try {
    show(render(await call()));
  } catch (error) {
    const fields = Object.entries(error.fields ?? {}).map(([name, text]) => `\n${name}: ${text}`);
    const code = error.code ? ` (${error.code})` : '';
    show(make('pre', { className: 'bad' }, `${words(error)}${code}${fields.join('')}`));
  }
}

let online = false;
let kept = null; // who had the focus when it was switched off

/** Switch everything on or off that needs a connection. */
export function showOnline(connected) {
  online = connected;
  const focused = document.activeElement;
  for (const button of document.querySelectorAll('[data-online]')) refresh(button);
  // A browser takes the focus from what is switched off, and does not give it back.
  if (focused?.disabled) kept = focused;
  if (connected && kept !== null) {
    if (document.activeElement === document.body || document.activeElement === kept) kept.focus();
    kept = null;
  }
}

/** Say whether the visitor has the right that `button` needs. */
export function allow(button, allowed) {
  button.dataset.online = allowed ? '' : 'never';
  refresh(button);
}

function refresh(button) {
  button.disabled = !online || button.dataset.online === 'never';
}
