/**
 * Controls of forms that lose nothing: what nobody touched is told from what was filled in, and a value goes back as
 * it came. Each is {input, touched(), read(), more}: `touched` compares the control with how it was made and
 * not with the value, of which a control shows only a part.
 */
import { make } from './dom.js';
import { edited, parse, stringify, toNumber } from './values.js';

const LEFT_OUT = 'left-out';
const NULL = 'null';
const EMPTY = 'empty';

/** A text of any length. Enter in a single line is left to the form, Shift and Enter begin a second one. */
export function textControl(value, properties = {}) {
  const input = make('textarea', { rows: 1, spellcheck: false, autocapitalize: 'off', ...properties, value });
  input.dataset.grows = '';
  if (input.value.includes('\n')) input.rows = Math.min(8, input.value.split('\n').length);
  const initial = input.value;
  return {
    input,
    touched: () => input.value !== initial,
    read: () => edited(value, initial, input.value),
  };
}

function lineControl(value, properties) {
  const input = make('input', { type: 'text', spellcheck: false, autocapitalize: 'off', ...properties, value });
  const initial = input.value;
  return { input, touched: () => input.value !== initial, read: () => input.value };
}

/** Whether Enter in `element` means the form's main button. */
export function isSubmit({ key, shiftKey, isComposing, target }) {
  if (key !== 'Enter' || shiftKey || isComposing) return false;
  return target.tagName === 'INPUT' || ('grows' in target.dataset && !target.value.includes('\n'));
}

/**
 * The control for a field of a row.
 *
 * @param {object} field as zDescribe has it, with its `label` and `kind`
 * @param {*} value of the row; undefined where there is none, so that the field is left out until it is touched
 */
export function fieldControl(field, value, properties) {
  const control = { bool: boolControl, text: optionalText, json: jsonControl }[field.kind] ?? plainControl;
  return control(field, value, properties);
}

function optionalText(field, value, properties) {
  const text = textControl(value ?? '', { ...properties, inputMode: field.name === 'email' ? 'email' : 'text' });
  const choices = [];
  if (value === undefined) choices.push([LEFT_OUT, 'default' in field ? `${field.default}, by default` : 'left out']);
  if (!field.required || value === null) choices.push([NULL, 'NULL']);
  choices.push([EMPTY, 'empty text']);
  const chosen = value === null ? NULL : value === undefined ? LEFT_OUT : EMPTY;
  const more = picker(choices, chosen, { className: 'more', 'aria-label': `${field.label}, where it is empty` });
  const show = () => {
    more.hidden = text.input.value !== '' || choices.length < 2;
  };
  text.input.addEventListener('input', show);
  show();
  const initial = more.value;
  return {
    ...text,
    more,
    touched: () => text.touched() || (text.input.value === '' && more.value !== initial),
    read() {
      if (text.input.value !== '') return text.read();
      return { [LEFT_OUT]: undefined, [NULL]: null, [EMPTY]: '' }[more.value];
    },
  };
}

function boolControl(field, value, properties) {
  const choices = [
    ['true', 'yes'],
    ['false', 'no'],
  ];
  if (!field.required || value === null) choices.unshift([NULL, 'NULL']);
  if (value === undefined) {
    choices.unshift([LEFT_OUT, 'default' in field ? (field.default ? 'yes, by default' : 'no, by default') : '–']);
  }
  const input = picker(choices, value === undefined ? LEFT_OUT : String(value), properties);
  const initial = input.value;
  return {
    input,
    touched: () => input.value !== initial,
    read: () => ({ [LEFT_OUT]: undefined, [NULL]: null, true: true, false: false })[input.value],
  };
}

function jsonControl(field, value, properties) {
  const shown = value === null || value === undefined ? '' : stringify(value, 2);
  const input = make('textarea', { rows: field.lines ?? 3, spellcheck: false, ...properties, value: shown });
  const initial = input.value;
  return {
    input,
    touched: () => input.value !== initial,
    read: () => (input.value.trim() === '' ? null : parse(input.value)),
  };
}

/** Numbers, times and whatever else is written on one line; empty is no value. */
function plainControl({ type, kind, default: proposed }, value, properties) {
  const keyboard = { int: 'numeric', float: 'decimal', decimal: 'decimal' }[type] ?? 'text';
  const written = { date: '2026-12-31', datetime: '2026-12-31T18:30:00Z', time: '18:30:00' }[type];
  const placeholder = value === null ? 'NULL' : String(written ?? proposed ?? '');
  const shown = String(value ?? '');
  const more = { ...properties, inputMode: keyboard, placeholder };
  const { read, ...control } = /[\r\n]/.test(shown) ? textControl(shown, more) : lineControl(shown, more);
  return {
    ...control,
    read() {
      const typed = read();
      if (typed === '') return null;
      return kind === 'number' ? toNumber(typed) : typed;
    },
  };
}

function picker(choices, value, properties) {
  const select = make('select', properties, ...choices.map(([key, text]) => new Option(text, key)));
  select.value = value;
  return select;
}
