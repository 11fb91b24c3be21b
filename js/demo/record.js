/** The dialogs for one row: create, edit, upsert, delete. */
import { BifrostError } from '../zBifrost.js';
import { differences, mayBeWritten, present, writeToShown } from './condition.js';
import { client } from './connection.js';
import { fieldControl, isSubmit } from './controls.js';
import { described, description } from './description.js';
import { $, asJson, make, newId, showError, words } from './dom.js';
import { note } from './feed.js';
import { label, shown } from './fields.js';
import { own, stringify } from './values.js';
import { onForget, visit } from './visitor.js';

/* What is longer is cut off where a change is told. */
const BRIEF = 120;

const GONE = 'This row is gone: somebody deleted it.';

/** The row that is in a dialog, as `openRecord` got it. `row` is null for a new one. */
let open = null;
let parts = [];

/** What a dialog knows of its row: see condition.js; and `now`, the row of which the visitor has been told that it has
 * become this, and has not yet said to go on with; and whether they have been told that it is `gone`. */
function opened(dialog, what) {
  const { row, fields } = what;
  const names = Object.keys(fields).length > 0 ? shown(fields) : Object.keys(row ?? {});
  const sets = { told: new Set(), loose: new Set(), unfit: new Set() };
  const state = { ...sets, now: null, gone: false, busy: false, doubtful: false };
  open = { ...what, ...state, dialog, client, visit, names };
  showError($(`${dialog}-error`), null);
  $(`${dialog}-changed`).hidden = true;
  $(`${dialog}-changed`).replaceChildren();
}

/** Say which row the dialog is about. */
function nameRow({ dialog, model, row, nameOf }) {
  if (dialog === 'removal') $('removal-text').textContent = `${nameOf(row)} will be gone for everybody.`;
  else $('record-title').textContent = row ? `Edit ${nameOf(row)}` : `New row of ${model}`;
}

const isShown = (mine) => open === mine && $(mine.dialog).open;

/** Wait until the server has told what it has, and fail unless that is what it had when the dialog was opened: a key
 * may tell other rows apart now. */
async function stillThere(mine) {
  await described();
  if (mine.client !== client) throw new Error('Not connected: nothing was sent.');
  if (stringify(own(description.models, mine.model)?.fields ?? {}) !== stringify(mine.fields)) {
    throw new Error(`The fields of ${mine.model} are others than when this was opened. Close it, and open it anew.`);
  }
}

/**
 * Open the dialog for a row.
 *
 * @param {object} what {model, row, fields, where, nameOf, title, upsert, done, refused, focus}: `fields` by name as zDescribe
 *   has them, empty when they are not known; `where` is the filter that finds the row by its key; `nameOf(row)` is what
 *   people call it, by its field `title` if it has one; `upsert` says whether the visitor may; `done` is called after a
 *   change, and `refused` where the visitor has no right to it.
 */
export function openRecord(what) {
  opened('record', what);
  const { row, upsert } = what;
  parts = partsOf(what).map(formPart);
  const unique = upsert ? upsertField() : undefined;
  nameRow(open);
  $('record-save').textContent = row ? 'Save' : 'Create';
  $('record-upsert').hidden = row !== null || !unique;
  $('record-upsert').textContent = `Upsert by ${unique}`;
  $('record-upsert').title = `Updates the row with this ${unique} if there is one`;
  $('record-fields').replaceChildren(...parts.map((part) => part.element));
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

/** The values of what was touched, and of nothing else. What cannot be read is said at its field, unless `quiet`. */
function readValues(quiet = false) {
  const values = [];
  for (const { name, value, touched, read, fail } of parts) {
    if (!touched()) continue;
    try {
      if (name === '') return wholeRow(value, read());
      values.push([name, read()]);
    } catch (error) {
      if (!quiet) fail(error instanceof SyntaxError ? `is not JSON: ${words(error)}` : words(error));
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
  if (mine.busy || mustLook(mine)) return;
  mine.busy = true;
  for (const part of parts) part.fail(null);
  showError($('record-error'), null);
  const { model, row, done } = mine;
  try {
    const values = readValues();
    await stillThere(mine);
    if (row && Object.keys(values).length > 0) {
      const update = async (where) => (await mine.client.update(model, where, values)).updated;
      const now = await writeToShown(mine, values, (where) => sendOf(mine, () => update(where)));
      if (now === null) throw new Error(GONE);
      if (now !== undefined) {
        if (isShown(mine)) tellChanges(mine, now);
        else noteEnd(mine, endOf(mine, new Error('it had changed meanwhile'), 'saved'));
        return;
      }
    } else if (!row) {
      await once(mine, way + stringify(values), (options) =>
        sendOf(mine, () =>
          way === 'upsert'
            ? mine.client.upsert(model, values, [upsertField()], options)
            : mine.client.create(model, values, options),
        ),
      );
    }
    if (isShown(mine)) $('record').close();
    else noteEnd(mine, 'was saved');
    done();
  } catch (error) {
    if (isShown(mine)) explain(error, mine);
    else noteEnd(mine, endOf(mine, error, 'saved'));
  } finally {
    mine.busy = false;
  }
}

/** Send a write, unless its dialog was closed before it could be. Whether one may have happened that failed is kept:
 * what comes after it does not undo it. */
async function sendOf(mine, send) {
  if (!isShown(mine)) throw new Error('its dialog was closed');
  try {
    return await send();
  } catch (error) {
    mine.doubtful ||= error instanceof BifrostError && mayBeWritten(error);
    // Nobody tells of rights to write that have gone.
    if (error.code === 'permission_denied' && mine.visit === visit) mine.refused();
    throw error;
  }
}

/** A word for who has closed the dialog before its end was known. */
function noteEnd(mine, end) {
  // Of an earlier visitor nothing is told.
  if (mine.visit !== visit) return;
  note(`${mine.row ? mine.nameOf(mine.row) : `New row of ${mine.model}`} ${end}.`);
}

const endOf = (mine, error, done) =>
  mine.doubtful
    ? `may have been ${done}, or not: ${words(error)}`
    : `was not ${done}: ${words(error).replace(/\.$/, '')}`;

/** What an open dialog says, and beside it that what was sent from there may have happened, where nobody knows. */
function withDoubt({ dialog, doubtful }, text) {
  if (!doubtful) return text;
  const doubt = `What was sent before may have ${dialog === 'removal' ? 'deleted it' : 'been saved'}, or not.`;
  return text === '' ? doubt : `${text.replace(/\.$/, '')}. ${doubt}`;
}

/** Whether the visitor has yet to say what is to be done with what has changed. */
function mustLook(mine) {
  if (mine.now === null) return false;
  $(`${mine.dialog}-changed`).scrollIntoView({ block: 'nearest' });
  return true;
}

/** Tell in which fields the row of the dialog has become `now`, and do nothing more before the visitor goes on with it. */
function tellChanges(mine, now) {
  const { names, row, told, title } = mine;
  const changed = differences(mine, now);
  mine.now = now;
  // What changes faster than anybody can look at it would never be written. What the row is known by is always compared,
  // and something besides.
  const stays = names.some((name) => !Object.hasOwn(mine.where, name) && !told.has(name) && !changed.includes(name));
  const restless = stays ? changed.filter((name) => told.has(name) && name !== title) : [];
  const brief = (value) => {
    const text = value === null || value === undefined ? 'NULL' : value === '' ? 'empty text' : asJson(value);
    return text.length > BRIEF ? `${text.slice(0, BRIEF)} …` : text;
  };
  const items = changed.map((name) =>
    make('li', {}, make('b', {}, label(name)), `: ${brief(own(row, name))} → ${brief(own(now, name))}`),
  );
  const more =
    restless.length > 0 ? ` Again: if you go on, ${restless.map(label).join(', ')} may become anything.` : '';
  const unwritten = mine.doubtful
    ? 'It may be your own change, whose answer was lost: look at it before you go on.'
    : 'Nothing was written.';
  const button = make('button', { type: 'button' }, 'Go on with these values');
  button.addEventListener('click', () => {
    // It stays where it is, so that a second press hits nothing else.
    button.disabled = true;
    goOn(mine, changed, restless);
  });
  $(`${mine.dialog}-changed`).replaceChildren(
    make('p', {}, `Meanwhile this row has changed, or another one has its key. ${unwritten}${more}`),
    make('ul', {}, ...items),
    button,
  );
  $(`${mine.dialog}-changed`).hidden = false;
}

/** The row of the dialog is what the visitor was told. What they typed stays, and everything else shows what is there. */
function goOn(mine, changed, restless) {
  for (const name of changed) mine.told.add(name);
  for (const name of restless) mine.loose.add(name);
  [mine.row, mine.now] = [mine.now, null];
  mine.unfit.clear();
  showError($(`${mine.dialog}-error`), null);
  nameRow(mine);
  if (mine.dialog === 'removal') {
    $('removal').querySelector('[data-close]').focus();
    return;
  }
  parts = partsOf(mine).map((field) => {
    const before = parts.find(({ name }) => name === field.name);
    if (before?.touched() && field.name !== '') {
      // Also when it is put back to what it was first: that is not there any more.
      if (changed.includes(field.name)) before.touched = () => true;
      return before;
    }
    const fresh = formPart(field);
    if (before.touched()) {
      try {
        const typed = wholeRow(before.value, before.read());
        fresh.input.value = stringify({ ...field.value, ...typed }, 2);
      } catch {
        // It is compared with what it was made of until it can be read.
        return before;
      }
    }
    before.element.replaceWith(fresh.element);
    return fresh;
  });
  parts[0]?.input.focus();
}

function typedValues({ dialog }) {
  try {
    return dialog === 'record' ? readValues(true) : {};
  } catch {
    return {};
  }
}

/** Look whether the row of an open dialog is still as it is shown, and tell if it is not; `concerns(where)` says whether
 * there is a reason to. */
export async function review(concerns = () => true) {
  const mine = open;
  const idle = () => isShown(mine) && !mine.busy && mine.now === null;
  if (mine === null || mine.row === null || !idle() || !concerns(mine.where)) return;
  const tell = (text) => idle() && showError($(`${mine.dialog}-error`), withDoubt(mine, text));
  try {
    await stillThere(mine);
  } catch (error) {
    if (client.connected) tell(words(error));
    return;
  }
  try {
    const now = await present(mine);
    if (now !== null && mine.gone) tell('');
    mine.gone = now === null;
    if (mine.gone) tell(GONE);
    else if (idle() && differences(mine, now, typedValues(mine)).length > 0) tellChanges(mine, now);
  } catch {
    // Whoever saves is told.
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
function explain(error, mine) {
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
  const text = first === null ? [words(error), rest].filter(Boolean).join(' ') : atField ? '' : rest;
  showError($('record-error'), withDoubt(mine, text));
  first?.input.focus();
}

/** Ask whether the row shall be deleted: {model, row, fields, where, nameOf, title, done, refused, focus}. */
export function openRemoval(what) {
  opened('removal', what);
  nameRow(open);
  $('removal').showModal();
}

async function remove() {
  const mine = open;
  if (mine.busy || mustLook(mine)) return;
  mine.busy = true;
  showError($('removal-error'), null);
  try {
    await stillThere(mine);
    const drop = async (where) => (await mine.client.delete(mine.model, where)).deleted;
    const now = await writeToShown(mine, {}, (where) => sendOf(mine, () => drop(where)));
    if (now && isShown(mine)) {
      tellChanges(mine, now);
      return;
    }
    if (!isShown(mine)) {
      noteEnd(mine, now ? endOf(mine, new Error('it had changed meanwhile'), 'deleted') : 'was deleted');
    } else {
      $('removal').close();
      $('rows-title').focus();
    }
    mine.done();
  } catch (error) {
    if (isShown(mine)) showError($('removal-error'), withDoubt(mine, words(error)));
    else noteEnd(mine, endOf(mine, error, 'deleted'));
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
  for (const dialog of ['record', 'removal']) $(`${dialog}-changed`).replaceChildren();
  $('record-fields').replaceChildren();
  for (const id of ['record-title', 'record-error', 'removal-text', 'removal-error']) $(id).textContent = '';
});
