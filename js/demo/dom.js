/** Small things that every part of the page uses. What comes from the server becomes text, never markup. */
import { BifrostError } from '../zBifrost.js';

export const $ = (id) => document.getElementById(id);

/** make('td', {className: 'name'}, 'Alice', otherElement): text stays text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function showError(element, text) {
  element.hidden = !text;
  element.textContent = text ?? '';
}

/** What an error says to a person. */
export function words(error) {
  if (error instanceof BifrostError || error instanceof TypeError) return error.message.replace(/^zBifrost: /, '');
  return String(error?.message ?? error);
}

export const asJson = (value, space) =>
  typeof value === 'string' ? value : (JSON.stringify(value, null, space) ?? 'nothing');

export const counted = (number, one, many) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

/** The time since `since`, a performance.now(), as text. */
export function elapsed(since) {
  const milliseconds = performance.now() - since;
  return milliseconds < 1000 ? `${milliseconds.toFixed(1)} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

/** Show what became of a call: its result or error, and how long it took. */
export async function showOutcome(output, call, render = (value) => make('pre', {}, asJson(value, 2))) {
  const since = performance.now();
  const took = () => make('p', { className: 'latency' }, elapsed(since));
  try {
    output.replaceChildren(render(await call()), took());
  } catch (error) {
    const fields = Object.entries(error.fields ?? {}).map(([name, text]) => `\n${name}: ${text}`);
    const code = error.code ? ` (${error.code})` : '';
    output.replaceChildren(make('pre', { className: 'bad' }, `${words(error)}${code}${fields.join('')}`), took());
  }
}
