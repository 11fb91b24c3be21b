/** The table: the rows of one model, searched, sorted, and read anew when somebody else changes them. */
import { client, on } from './connection.js';
import { description } from './description.js';
import { $, allow, counted, make, showError, words } from './dom.js';
import { shown as fieldsToShow } from './fields.js';
import { openRecord, openRemoval, review } from './record.js';
import { cell, hasOrder, hideTable, shareWidth, showHead } from './table.js';
import { own, parse, stringify } from './values.js';
import { onForget } from './visitor.js';

/* Milliseconds between two readings that others cause. */
const AGAIN = 250;
/* On a phone each row takes the place of four. */
const PAGE_SIZE = matchMedia('(max-width: 640px)').matches ? 10 : 50;

let model = '';
let shown = [];
let known = new Map(); // key -> the row as JSON, to see which ones changed
let order = '';
let fieldsThen = ''; // the model's fields when it was chosen, as JSON
let old = true; // whether the rows are none yet, or of an earlier connection
let limit = PAGE_SIZE;
let loads = 0;
let soon = null; // the timer of the next reading
let reading = 0; // readings under way
let began = 0; // when the last one did

const described = () => own(description.models, model);
const fields = () => described()?.fields ?? {};
const types = () => new Map(Object.entries(fields()).map(([name, { type }]) => [name, type]));
/* Of a model that the server does not describe only the server knows who may do what. */
const may = (action) => described()?.actions.includes(action) ?? model !== '';

/** The names of the fields that tell one row from all others; none where nothing is known to. */
function keys() {
  const names = Object.keys(fields());
  return names.length === 0 ? ['id'] : names.filter((name) => fields()[name].pk);
}

/** The filter that finds one row, by its primary key; null for a row that no key tells from the others. */
function where(row) {
  const found = keys().map((name) => [name, own(row, name)]);
  return found.length > 0 && found.every(([, value]) => value !== null && value !== undefined)
    ? Object.fromEntries(found)
    : null;
}
const keyOf = (row) => stringify(where(row) ?? row);

/** Read the rows and show them. */
export async function loadRows() {
  forgetNext();
  if (model === '' || !client?.connected) return;
  const load = (loads += 1);
  if (!may('read')) {
    clearRows('You may not read this model.');
    return;
  }
  let filters;
  try {
    filters = readFilter();
  } catch (error) {
    failed(`This is not a filter: ${words(error)}`);
    return;
  }
  began = performance.now();
  reading += 1;
  try {
    const found = await client.read(model, filters, { order_by: order || undefined, limit: limit + 1 });
    if (load !== loads) return; // a newer one is under way
    showFilterError(null);
    show(found);
    review();
  } catch (error) {
    if (load === loads && client.connected) failed(words(error));
  } finally {
    reading -= 1;
  }
}

function forgetNext() {
  clearTimeout(soon);
  soon = null;
}

/** Say why there are no rows to show. Those of an earlier connection may be of another server, and go. */
function failed(text) {
  showFilterError(text);
  if (old) clearRows('The rows cannot be read.');
}

/** Plain words are searched in all texts; what begins with { is a filter. */
function readFilter() {
  const text = $('filter').value.trim();
  if (text === '') return undefined;
  if (text.startsWith('{')) return parse(text);
  const texts = Object.keys(fields()).filter((name) => fields()[name].type === 'str');
  if (texts.length === 0) throw new Error('this model has no texts to search; write {"field": value}');
  const pattern = `%${text.replace(/[\\%_]/g, '\\$&')}%`;
  return { $or: texts.map((name) => ({ [`${name}__ilike`]: pattern })) };
}

function showFilterError(text) {
  showError($('filter-error'), text);
  $('filter').setAttribute('aria-invalid', String(Boolean(text)));
}

function show(found) {
  const more = found.length > limit;
  shown = found.slice(0, limit);
  old = false;
  const [names, typeOf, title] = [columns(), types(), titleField()];
  showHead(model, names, typeOf, order, sort);
  const before = known;
  known = new Map(shown.map((row) => [keyOf(row), stringify(row)]));
  const focused = document.activeElement?.dataset?.focus;
  $('rows-body').replaceChildren(
    ...shown.map((row) => {
      const fresh = before.size > 0 && before.get(keyOf(row)) !== known.get(keyOf(row));
      const cells = names.map((name) => cell(name, typeOf.get(name), own(row, name), name === title));
      return make('tr', { role: 'row', className: fresh ? 'fresh' : '' }, ...cells, actions(row));
    }),
  );
  shareWidth(names, typeOf, shown);
  $('rows-body').hidden = shown.length === 0;
  if (focused) focusOn(focused);
  $('rows-count').textContent = more ? `first ${limit}` : counted(shown.length, 'row', 'rows');
  $('more').hidden = !more;
  $('rows-empty').hidden = shown.length > 0;
  $('rows-empty').textContent = $('filter').value.trim() ? 'No row matches.' : 'No rows yet. Create the first one.';
}

/** Take the rows away and say why there are none. */
function clearRows(reason) {
  [shown, known] = [[], new Map()];
  loads += 1;
  $('rows-body').replaceChildren();
  $('rows-body').hidden = true;
  $('rows-count').textContent = '';
  $('more').hidden = true;
  $('rows-empty').hidden = false;
  $('rows-empty').textContent = reason;
}

/** Give the focus to the button with this mark, or where the rows begin when it is gone. */
function focusOn(mark) {
  const button = document.querySelector(`[data-focus="${CSS.escape(mark)}"]:enabled`);
  (button ?? $('rows-title')).focus();
}

/** Names and numbers first, then switches, then what the server made. */
function columns() {
  const names = fieldsToShow(fields());
  if (names.length === 0) return [...new Set(shown.flatMap((row) => Object.keys(row)))];
  const place = (name) => (fields()[name].pk ? 0 : fields()[name].made ? 3 : fields()[name].type === 'bool' ? 2 : 1);
  return names.sort((a, b) => place(a) - place(b));
}

/** The field that people know a row by. */
function titleField() {
  const texts = Object.keys(fields()).filter((name) => fields()[name].type === 'str');
  return texts.find((name) => ['name', 'title'].includes(name)) ?? texts.find((name) => fields()[name].required);
}

/** What people call a row: its `title`, or its key. */
function nameOf(row, title = titleField() ?? 'name', key = keys()) {
  const named = own(row, title);
  if (typeof named === 'string' && named !== '') return named;
  const values = key.map((name) => own(row, name)).filter((value) => value !== null && value !== undefined);
  return values.length > 0 ? values.map(String).join(' ') : 'a row without a key';
}

function actions(row) {
  const filter = where(row);
  const name = nameOf(row);
  const button = (text, allowed, act) => {
    const focus = `${text} ${keyOf(row)}`;
    const made = make(
      'button',
      { type: 'button', className: 'plain', 'aria-label': `${text} ${name}`, 'data-focus': focus, 'data-online': '' },
      text,
    );
    allow(made, allowed && filter !== null);
    if (filter === null) made.title = 'No key tells this row from the others.';
    made.addEventListener('click', () => act({ ...opening(row), where: filter, focus: () => focusOn(focus) }));
    return made;
  };
  return make(
    'td',
    { role: 'cell', className: 'row-actions' },
    button('Edit', may('update'), openRecord),
    button('Delete', may('delete'), openRemoval),
  );
}

/** What the dialogs have to know of a row, or of a new one. */
function opening(row) {
  const [title, key] = [titleField() ?? 'name', keys()];
  return {
    model,
    row,
    fields: fields(),
    title,
    nameOf: (other) => nameOf(other, title, key),
    upsert: may('create') && may('update'),
    done: loadRows,
  };
}

function sort(by) {
  order = by;
  showHead(model, columns(), types(), order, sort);
  loadRows();
}

/** Go to the model called `name`; to none with ''. */
function choose(name) {
  [model, limit, old] = [name, PAGE_SIZE, true];
  fieldsThen = stringify(fields());
  const names = Object.keys(fields());
  const ordered = names.filter((field) => hasOrder(fields()[field].type));
  const key = ordered.find((field) => fields()[field].pk) ?? ordered[0];
  order = key === undefined ? '' : `${key} DESC`;
  $('model').value = model;
  $('model-name').textContent = model || 'Data';
  $('filter').value = '';
  showFilterError(null);
  hideTable();
  clearRows(client?.connected ? 'Reading …' : 'Not connected.');
  if (names.length > 0) showHead(model, columns(), types(), order, sort);
  $('filter-form').hidden = model === '';
  allow($('new-row'), may('create'));
}

/** Offer the models that the server has told of. */
export function offerModels() {
  const models = Object.keys(description.models);
  $('model').replaceChildren(...models.map((name) => new Option(name, name)));
  $('model-label').hidden = models.length < 2;
  $('model-form').hidden = models.length > 0;
  if (models.length === 0) {
    if (model !== $('model-typed').value.trim()) choose('');
    if (model === '') clearRows('This server tells of no models that you may use.');
  } else if (!models.includes(model)) choose(models.includes('Users') ? 'Users' : models[0]);
  else if (stringify(fields()) !== fieldsThen) choose(model);
  else showHead(model, columns(), types(), order, sort);
  $('model').value = model;
  allow($('new-row'), may('create'));
}

/** Read anew, when the last answer is there. */
function readAnew() {
  soon = null;
  if (reading > 0) soon = setTimeout(readAnew, AGAIN);
  else loadRows();
}

/** Somebody else changed something, or more than is told (`many`): read anew, once for a burst, and now and then while
    it goes on. */
on('broadcast', (message) => {
  const [, changed] = /^(?:create|update|delete|upsert)_(.+)$/.exec(message?.zKey ?? '') ?? [];
  if (changed === model) soon ??= setTimeout(readAnew, Math.max(80, began + AGAIN - performance.now()));
});

on('state', ({ state }) => {
  if (state === 'connected') return;
  old = true;
  forgetNext();
  loads += 1;
  if (shown.length === 0) $('rows-empty').textContent = 'Not connected.';
});

$('new-row').addEventListener('click', () =>
  openRecord({ ...opening(null), where: null, focus: () => $('new-row').focus() }),
);

let typing = null;
$('filter').addEventListener('input', () => {
  clearTimeout(typing);
  limit = PAGE_SIZE;
  // A filter that is being typed is no JSON yet; plain words are looked for at once.
  if ($('filter').value.trim().startsWith('{')) return;
  typing = setTimeout(loadRows, 150);
});
$('filter-form').addEventListener('submit', (event) => {
  event.preventDefault();
  clearTimeout(typing);
  loadRows();
});
$('sort').addEventListener('change', () => sort($('sort').value));
$('more').addEventListener('click', () => {
  limit += PAGE_SIZE;
  loadRows();
});
$('model').addEventListener('change', () => {
  choose($('model').value);
  loadRows();
});
$('model-form').addEventListener('submit', (event) => {
  event.preventDefault();
  choose($('model-typed').value.trim());
  loadRows();
});

onForget(() => {
  forgetNext();
  clearTimeout(typing);
  $('model').replaceChildren();
  $('model-label').hidden = true;
  $('model-form').hidden = true;
  $('model-form').reset();
  choose('');
});
