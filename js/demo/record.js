/** The dialogs for one row: create, edit, upsert, delete. */
import { client } from './connection.js';
import { fieldControl, isSubmit } from './controls.js';
import { $, make, newId, showError, words } from './dom.js';
import { label, shown } from './fields.js';
import { own, stringify } from './values.js';
import { onForget } from './visitor.js';

/** The row that is in a dialog, as `openRecord` got it. `row` is null for a new one. */
let open = null;
let parts = [];

/**
 * Open the dialog for a row.
 *
 * @param {object} what {model, row, name, fields, where, upsert, done}: `fields` by name as zDescribe has them, empty
 *   when they are not known; `where` is the filter that finds the row; `upsert` says whether the visitor may; `done` is
 *   called after a change.
 */
export function openRecord(what) {
  open = { ...what, busy: false };
  const { model, row, name, upsert } = what;
  parts = partsOf(what).map(formPart);
  const unique = upsert ? upsertField() : undefined;
  $('record-title').textContent = row ? `Edit ${name}` : `New row of ${model}`;
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
function partsOf({ fields, row }) {
  if (Object.keys(fields).length === 0) {
    return [{ name: '', label: 'Values', kind: 'json', lines: 8, value: row ?? {} }];
  }
  const order = { text: 0, number: 0, plain: 0, json: 1, bool: 2 };
  return shown(fields)
    .filter((name) => !fields[name].readonly && !fields[name].made && !(row && fields[name].pk))
    .map((name) => {
      const value = row === null ? undefined : own(row, name);
      return { ...fields[name], name, label: label(name), kind: kindOf(fields[name].type, value), value };
    })
    .sort((a, b) => order[a.kind] - order[b.kind]);
}

/** What kind of control holds a value of a type; types that are not known here are told by their value. */
function kindOf(type, value) {
  if (type === 'json' || (value !== null && typeof value === 'object')) return 'json';
  if (type === 'bool' || typeof value === 'boolean') return 'bool';
  if (type === 'int' || type === 'float' || typeof value === 'number') return 'number';
  return type === 'str' || type === 'bytes' ? 'text' : 'plain';
}

const upsertField = () => Object.keys(open.fields).find((name) => open.fields[name].unique && !open.fields[name].pk);

/** One field of the form with its label, its control and the place for its error. */
function formPart(field) {
  const [id, errorId] = [newId(), newId()];
  const error = make('p', { className: 'error', id: errorId, hidden: true });
  const control = fieldControl(field, field.value, { id, 'aria-describedby': errorId });
  const { input, more } = control;
  const hint = field.references ? make('span', { className: 'hint' }, ` → ${field.references}`) : null;
  const text = make('label', { htmlFor: id }, field.label, hint);
  if (field.required) input.setAttribute('aria-required', 'true');
  const long = typeof field.value === 'string' && field.value.includes('\n');
  const wide = long || field.kind === 'json' || (field.kind === 'text' && (field.required || field.unique));
  const part = make('div', { className: wide ? 'part wide' : 'part' }, text, input, more, error);
  part.dataset.field = field.name;
  return {
    ...control,
    name: field.name,
    value: field.value,
    element: part,
    fail(message) {
      showError(error, message);
      input.setAttribute('aria-invalid', String(Boolean(message)));
    },
  };
}

/** The values of what was touched, and of nothing else. */
function readValues() {
  const values = [];
  for (const { name, value, touched, read, fail } of parts) {
    if (!touched()) continue;
    try {
      if (name === '') return wholeRow(value, read());
      values.push([name, read()]);
    } catch (error) {
      fail(error instanceof SyntaxError ? `is not JSON: ${words(error)}` : words(error));
      throw new SyntaxError(words(error));
    }
  }
  return Object.fromEntries(values.filter(([, value]) => value !== undefined));
}

/** Of a row that is written as a whole: what was changed in it. */
function wholeRow(before, after) {
  if (after === null || typeof after !== 'object' || Array.isArray(after))
    throw new TypeError('write {"field": value}');
  const gone = Object.keys(before).find((name) => !Object.hasOwn(after, name));
  if (gone !== undefined) throw new TypeError(`${gone} is missing; write null for no value`);
  const changed = ([name, value]) => !Object.hasOwn(before, name) || stringify(value) !== stringify(before[name]);
  return Object.fromEntries(Object.entries(after).filter(changed));
}

async function save(way) {
  const mine = open;
  // A second press while the first is under way would be a second row.
  if (mine.busy) return;
  mine.busy = true;
  for (const part of parts) part.fail(null);
  showError($('record-error'), null);
  const { model, row, where, done } = mine;
  try {
    const values = readValues();
    if (row && Object.keys(values).length > 0) {
      const { updated } = await client.update(model, where, values);
      if (updated === 0) throw new Error('This row is gone: somebody deleted it.');
    } else if (!row) {
      await once(mine, way + stringify(values), (options) =>
        way === 'upsert'
          ? client.upsert(model, values, [upsertField()], options)
          : client.create(model, values, options),
      );
    }
    if (open === mine) $('record').close();
    done();
  } catch (error) {
    if (open === mine) explain(error);
  } finally {
    mine.busy = false;
  }
}

/** Make a row with `send(options)`. When its answer is lost and the button is pressed again for the same `values`, that
 * is the same request and no second row; but where the server has no place to remember it. */
async function once(mine, values, send) {
  if (Object.keys(mine.fields).length === 0) return send();
  if (mine.values !== values) {
    const idempotencyKey = crypto.getRandomValues(new Uint32Array(4)).join('-');
    Object.assign(mine, { values, options: { idempotencyKey } });
  }
  try {
    return await send(mine.options);
  } catch (error) {
    if (!Object.hasOwn(error.fields ?? {}, '_idempotencyKey')) throw error;
    mine.options = undefined;
    return send();
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
  open = { ...what, busy: false };
  $('removal-text').textContent = `${what.name} will be gone for everybody.`;
  showError($('removal-error'), null);
  $('removal').showModal();
}

async function remove() {
  const mine = open;
  if (mine.busy) return;
  mine.busy = true;
  try {
    await client.delete(mine.model, mine.where);
    if (open === mine) {
      $('removal').close();
      $('rows-title').focus();
    }
    mine.done();
  } catch (error) {
    if (open === mine) showError($('removal-error'), words(error));
  } finally {
    mine.busy = false;
  }
}

for (const dialog of [$('record'), $('removal')]) {
  dialog.querySelector('[data-close]').addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    // The button that opened it may have been drawn anew meanwhile.
    if (document.activeElement === document.body) open?.focus();
  });
}
$('record-form').addEventListener('submit', (event) => {
  event.preventDefault();
  save(event.submitter?.value === 'upsert' ? 'upsert' : 'save');
});
// Enter in a field means the main button, not the first one.
$('record-form').addEventListener('keydown', (event) => {
  if (!isSubmit(event)) return;
  event.preventDefault();
  $('record-form').requestSubmit($('record-save'));
});
$('removal-form').addEventListener('submit', (event) => {
  event.preventDefault();
  remove();
});
onForget(() => {
  for (const dialog of [$('record'), $('removal')]) dialog.close();
  [open, parts] = [null, []];
  $('record-fields').replaceChildren();
  for (const id of ['record-title', 'record-error', 'removal-text', 'removal-error']) $(id).textContent = '';
});
