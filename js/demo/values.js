/** Values as a person writes and sees them, kept to the last digit and character. Nothing here touches the page. */

/** What an object that came from the server has under `name`; nothing for names that every object inherits. */
export const own = (object, name) => (object && Object.hasOwn(object, name) ? object[name] : undefined);

/** JSON.parse that keeps integers beyond 2^53, as BigInt, and refuses numbers that would become others. An older browser
 * does not tell how a number was written; there only whole ones are looked at. */
export function parse(text) {
  return JSON.parse(text, (_, value, context) => {
    if (typeof value !== 'number') return value;
    const written = context?.source;
    if (written === undefined) {
      if (Number.isSafeInteger(value) || !Number.isInteger(value)) return value;
      throw new RangeError('this browser cannot keep whole numbers beyond 9007199254740991');
    }
    return exact(written, '; write it between quotation marks');
  });
}

/** The number that is written so: whole ones of any size, others where a number holds all their digits. `remedy` says
 * what else can be done. */
function exact(written, remedy = '') {
  const value = Number(written);
  if (/^-?\d+$/.test(written)) return Number.isSafeInteger(value) ? value : BigInt(written);
  if (!Number.isFinite(value)) throw new RangeError(`${written} is beyond what a number can hold`);
  if (digits(written) !== digits(String(value))) {
    throw new RangeError(`${written} has more digits than a number can hold${remedy}`);
  }
  return value;
}

/** The same text for all ways to write one number: its digits from the first that is not 0 to the last, and where the
 * point stands. */
function digits(number) {
  const [, sign, whole, fraction = '', exponent = '0'] = /^(-?)(\d*)(?:\.(\d*))?(?:e([+-]?\d+))?$/i.exec(number);
  const all = (whole + fraction).replace(/^0+/, '');
  return all === '' ? '0' : `${sign}${all.replace(/0+$/, '')}e${all.length - fraction.length + Number(exponent)}`;
}

/** JSON.stringify that writes BigInt as the number it is. */
export function stringify(value, space) {
  // JSON.rawJSON came to browsers together with the source text that `parse` reads.
  const raw = JSON.rawJSON ?? String;
  return JSON.stringify(value, (_, inner) => (typeof inner === 'bigint' ? raw(String(inner)) : inner), space);
}

/** A number as it was typed, to the last digit; one that would become another is refused. What is no number stays text,
 * so that the server can say so. */
export function toNumber(typed) {
  const text = typed.trim();
  return /^-?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) ? exact(text) : typed;
}

/**
 * The text that somebody made of `original` in a control that showed it as `shown` and now holds `typed`.
 *
 * A control has one kind of line end only. Around what was changed the original's own characters stay, and line ends
 * in what is new are like the first one of the original.
 */
export function edited(original, shown, typed) {
  if (original === shown) return typed;
  const before = commonStart(shown, typed);
  const after = commonEnd(shown.slice(before), typed.slice(before));
  const places = placesOf(original);
  const lineEnd = /\r\n|\r|\n/.exec(original)?.[0] ?? '\n';
  return [
    typed.slice(before, typed.length - after).replaceAll('\n', lineEnd),
    original.slice(places[shown.length - after]),
  ].reduce(joined, original.slice(0, places[before]));
}

/** Both texts in a row, with all the lines of both: CR before LF would be the end of one. */
const joined = (one, other) => `${one}${one.endsWith('\r') && other.startsWith('\n') ? '\n' : ''}${other}`;

/** Where in `original` each character of its text with plain line ends begins, and where the text ends. */
function placesOf(original) {
  const places = [];
  for (let at = 0; at < original.length; at += original.startsWith('\r\n', at) ? 2 : 1) places.push(at);
  return [...places, original.length];
}

function commonStart(one, other) {
  let length = 0;
  while (length < Math.min(one.length, other.length) && one[length] === other[length]) length += 1;
  return length;
}

function commonEnd(one, other) {
  let length = 0;
  while (length < Math.min(one.length, other.length) && one.at(-1 - length) === other.at(-1 - length)) length += 1;
  return length;
}
