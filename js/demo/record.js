/** The dialogs for one row: create, edit, upsert, delete. */
import { client } from './connection.js';
import { $, make, showError, words } from './dom.js';
import { label, shown } from './fields.js';

/** The row that is in a dialog: {model, row, fields, where, done}. `row` is null for a new one. */
let open = null;
let parts = [];

/**
 * Open the dialog for a row.
 *
 * @param {object} what {model, row, fields, where, done}: `fields` by name as zDescribe has them, empty when they are
 *   not known; `where` is the filter that finds the row; `done` is called after a change.
 */
export function openRecord(what) {
  open = what;
  const { model, row, fields } = what;
  parts = partsOf(fields).map((part) => formPart(part, part.kind === 'json-row' ? row : row?.[part.name]));
  const unique = upsertField();
  $('record-title').textContent = row ? `Edit ${row.name ?? `a row of ${model}`}` : `New row of ${model}`;
  $('record-save').textContent = row ? 'Save' : 'Create';
  $('record-upsert').hidden = row !== null || !unique;
  $('record-upsert').textContent = `Upsert by ${unique}`;
  $('record-upsert').title = `Updates the row with this ${unique} if there is one`;
  $('record-fields').replaceChildren(...parts.map((part) => part.element));
  showError($('record-error'), null);
  $('record').showModal();
  parts[0]?.input.focus();
}

/** What a person fills in: short things first, switches last; nothing that the server makes itself. */
function partsOf(fields) {
  const names = Object.keys(fields);
  if (names.length === 0) return [{ name: 'values', label: 'Values', kind: 'json-row' }];
  const kind = ({ type }) => ({ bool: 'bool', json: 'json', int: 'number', float: 'number' })[type] ?? 'text';
  const order = { text: 0, number: 0, json: 1, bool: 2 };
  return shown(fields)
    .filter((name) => !fields[name].readonly && !fields[name].made)
    .map((name) => ({ name, label: label(name), kind: kind(fields[name]), ...fields[name] }))
    .sort((a, b) => order[a.kind] - order[b.kind]);
}

const upsertField = () => Object.keys(open.fields).find((name) => open.fields[name].unique && !open.fields[name].pk);

/** One field of the form with its label and the place for its error. `read()` gives its value. */
function formPart({ name, label: text, kind, type, required, unique, references, default: initial }, value) {
  const id = `field-${name}`;
  const error = make('p', { className: 'error', id: `${id}-error`, hidden: true });
  const described = { id, name, 'aria-describedby': error.id };
  const lines = kind === 'json-row' ? 8 : 3;
  let input;
  if (kind === 'bool') {
    input = make('input', { ...described, type: 'checkbox', checked: value ?? initial ?? false });
  } else if (kind.startsWith('json')) {
    const json = value === undefined || value === null ? (kind === 'json' ? '' : '{}') : JSON.stringify(value, null, 2);
    input = make('textarea', { ...described, rows: lines, spellcheck: false, value: json });
  } else {
    const keyboard = { int: 'numeric', float: 'decimal', decimal: 'decimal' }[type] ?? 'text';
    const inputMode = name === 'email' ? 'email' : keyboard;
    const written = { date: '2026-12-31', datetime: '2026-12-31T18:30:00Z', time: '18:30:00' }[type];
    const placeholder = String(written ?? initial ?? '');
    input = make('input', { ...described, type: 'text', inputMode, placeholder, value: value ?? '' });
    input.required = Boolean(required);
  }
  const hint = references ? make('span', { className: 'hint' }, ` → ${references}`) : null;
  const labelled =
    kind === 'bool'
      ? make('label', { className: 'check', htmlFor: id }, input, text)
      : make('label', { className: 'field', htmlFor: id }, make('span', {}, text, hint), input);
  const wide = kind.startsWith('json') || (type === 'str' && (required || unique));
  return {
    name,
    input,
    element: make('div', { className: wide ? 'part wide' : 'part' }, labelled, error),
    read() {
      if (kind === 'bool') return input.checked;
      const typed = input.value.trim();
      if (typed === '') return null;
      if (kind.startsWith('json')) return JSON.parse(typed);
      // What is no number goes to the server as it is: its answer says what is wrong.
      return kind === 'number' && Number.isFinite(Number(typed)) ? Number(typed) : typed;
    },
    fail(message) {
      showError(error, message);
      input.setAttribute('aria-invalid', String(Boolean(message)));
    },
  };
}

/** On create what was left empty is left out, so that defaults apply; on edit only what changed is sent. */
function readValues() {
  const { row } = open;
  if (parts[0].name === 'values') {
    const { ...values } = parts[0].read();
    if (row) delete values.id;
    return values;
  }
  const values = {};
  for (const { name, read, fail } of parts) {
    let value;
    try {
      value = read();
    } catch (error) {
      fail(`is not JSON: ${words(error)}`);
      throw error;
    }
    const before = row?.[name] ?? null;
    if (row ? JSON.stringify(value) !== JSON.stringify(before) : value !== null) values[name] = value;
  }
  return values;
}

async function save(way) {
  for (const part of parts) part.fail(null);
  showError($('record-error'), null);
  const { model, row, where, done } = open;
  try {
    const values = readValues();
    if (row && Object.keys(values).length > 0) {
      const { updated } = await client.update(model, where, values);
      if (updated === 0) throw new Error('This row is gone: somebody deleted it.');
    } else if (!row && way === 'upsert') {
      await client.upsert(model, values, [upsertField()]);
    } else if (!row) {
      await client.create(model, values);
    }
    $('record').close();
    done();
  } catch (error) {
    explain(error);
  }
}

/** Each complaint at its field; what concerns no field of the form goes above it. */
function explain(error) {
  const fields = new Map(Object.entries(error.fields ?? {}));
  let first = parts.find((part) => error instanceof SyntaxError && part.input.ariaInvalid === 'true') ?? null;
  const atField = first !== null;
  for (const part of parts) {
    if (!fields.has(part.name)) continue;
    part.fail(fields.get(part.name));
    fields.delete(part.name);
    first ??= part;
  }
  const rest = [...fields].map(([name, text]) => `${name}: ${text}`).join('; ');
  showError($('record-error'), first === null ? [words(error), rest].filter(Boolean).join(' ') : atField ? null : rest);
  first?.input.focus();
}

/** Ask whether the row shall be deleted: {model, row, name, where, done}. */
export function openRemoval(what) {
  open = what;
  $('removal-text').textContent = `${what.name} will be gone for everybody.`;
  showError($('removal-error'), null);
  $('removal').showModal();
}

async function remove() {
  try {
    await client.delete(open.model, open.where);
    $('removal').close();
    open.done();
    $('rows-title').focus();
  } catch (error) {
    showError($('removal-error'), words(error));
  }
}

for (const dialog of [$('record'), $('removal')]) {
  dialog.querySelector('[data-close]').addEventListener('click', () => dialog.close());
}
$('record-form').addEventListener('submit', (event) => {
  event.preventDefault();
  save(event.submitter?.value === 'upsert' ? 'upsert' : 'save');
});
// Enter in a field means the main button, not the first one.
$('record-form').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.target.tagName !== 'INPUT') return;
  event.preventDefault();
  $('record-form').requestSubmit($('record-save'));
});
$('removal-form').addEventListener('submit', (event) => {
  event.preventDefault();
  remove();
});
