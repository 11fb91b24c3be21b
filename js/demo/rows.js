/** The table: the rows of one model, searched, sorted, and read anew when somebody else changes them. */
import { client, on } from './connection.js';
import { description } from './description.js';
import { $, counted, make, showError, words } from './dom.js';
import { shown as fieldsToShow } from './fields.js';
import { openRecord, openRemoval } from './record.js';
import { cell, showHead } from './table.js';

/* On a phone each row takes the place of four. */
const PAGE_SIZE = matchMedia('(max-width: 640px)').matches ? 10 : 50;

let model = 'Users';
let shown = [];
let known = new Map(); // key -> the row as JSON, to see which ones changed
let order = '';
let limit = PAGE_SIZE;
let loads = 0;
let soon = null;

const fields = () => description.models[model]?.fields ?? {};
const may = (action) => description.models[model]?.actions.includes(action) ?? true;

/** The filter that finds one row, by its primary key. */
function where(row) {
  const keys = Object.keys(fields()).filter((name) => fields()[name].pk);
  return Object.fromEntries((keys.length > 0 ? keys : ['id']).map((name) => [name, row[name]]));
}
const keyOf = (row) => JSON.stringify(where(row));

/** Read the rows and show them. */
export async function loadRows() {
  clearTimeout(soon);
  const load = (loads += 1);
  let filters;
  try {
    filters = readFilter();
  } catch (error) {
    showFilterError(`This is not a filter: ${words(error)}`);
    return;
  }
  try {
    const found = await client.read(model, filters, { order_by: order || undefined, limit: limit + 1 });
    if (load !== loads) return; // a newer one is under way
    showFilterError(null);
    show(found);
  } catch (error) {
    if (load === loads && client.connected) showFilterError(words(error));
  }
}

/** Plain words are searched in all texts; what begins with { is a filter. */
function readFilter() {
  const text = $('filter').value.trim();
  if (text === '') return undefined;
  if (text.startsWith('{')) return JSON.parse(text);
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
  showHead(model, columns(), order, sort);
  const before = known;
  known = new Map(shown.map((row) => [keyOf(row), JSON.stringify(row)]));
  const focused = document.activeElement?.dataset?.focus;
  $('rows-body').replaceChildren(
    ...shown.map((row) => {
      const fresh = before.size > 0 && before.get(keyOf(row)) !== known.get(keyOf(row));
      const cells = columns().map((name) => cell(name, row[name]));
      return make('tr', { role: 'row', className: fresh ? 'fresh' : '' }, ...cells, actions(row));
    }),
  );
  if (focused) document.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
  $('rows-count').textContent = more ? `first ${limit}` : counted(shown.length, 'row', 'rows');
  $('more').hidden = !more;
  $('rows-empty').hidden = shown.length > 0;
  $('rows-empty').textContent = $('filter').value.trim() ? 'No row matches.' : 'No rows yet. Create the first one.';
}

/** Names and numbers first, then switches, then what the server made. */
function columns() {
  const names = fieldsToShow(fields());
  if (names.length === 0) return [...new Set(shown.flatMap((row) => Object.keys(row)))];
  const place = (name) => (fields()[name].pk ? 0 : fields()[name].made ? 3 : fields()[name].type === 'bool' ? 2 : 1);
  return names.sort((a, b) => place(a) - place(b));
}

function actions(row) {
  const name = String(row.name ?? Object.values(where(row)).join(' '));
  const what = { model, row, name, fields: fields(), where: where(row), done: loadRows };
  const button = (text, allowed, act) => {
    const focus = `${text} ${keyOf(row)}`;
    const properties = { type: 'button', className: 'plain', 'aria-label': `${text} ${name}`, 'data-focus': focus };
    const made = make('button', { ...properties, disabled: !allowed }, text);
    made.addEventListener('click', () => act(what));
    return made;
  };
  return make(
    'td',
    { role: 'cell', className: 'row-actions' },
    button('Edit', may('update'), openRecord),
    button('Delete', may('delete'), openRemoval),
  );
}

function sort(by) {
  order = by;
  showHead(model, columns(), order, sort);
  loadRows();
}

/** Go to the model called `name`. */
function choose(name) {
  [model, shown, known, limit] = [name, [], new Map(), PAGE_SIZE];
  const key = Object.keys(fields()).find((field) => fields()[field].pk) ?? 'id';
  order = `${key} DESC`;
  $('model').value = model;
  $('model-name').textContent = model;
  $('filter').value = '';
  $('new-row').disabled = !client?.connected || !may('create');
}

/** Offer the models that the server has told of. */
export function offerModels() {
  const models = Object.keys(description.models);
  $('model').replaceChildren(...models.map((name) => new Option(name, name)));
  $('model-label').hidden = models.length < 2;
  if (models.includes(model) && order) $('model').value = model;
  else choose(models.includes(model) ? model : (models[0] ?? 'Users'));
  $('new-row').disabled = !may('create');
  showHead(model, columns(), order, sort);
}

/** Somebody else changed something: read anew, once for a burst. */
on('broadcast', (message) => {
  const [, changed] = /^(?:create|update|delete|upsert)_(.+)$/.exec(message?.zKey ?? '') ?? [];
  if (changed !== model) return;
  clearTimeout(soon);
  soon = setTimeout(loadRows, 80);
});

on('state', ({ state }) => {
  if (state === 'connected') return;
  clearTimeout(soon);
  loads += 1;
  for (const button of document.querySelectorAll('.row-actions button')) button.disabled = true;
  if (shown.length === 0) $('rows-empty').textContent = 'Not connected.';
});

$('new-row').addEventListener('click', () => openRecord({ model, row: null, fields: fields(), done: loadRows }));

let typing = null;
$('filter').addEventListener('input', () => {
  clearTimeout(typing);
  limit = PAGE_SIZE;
  // A filter that is being typed is no JSON yet; plain words are looked for at once.
  if ($('filter').value.trim().startsWith('{')) return;
  typing = setTimeout(() => {
    if (client?.connected) loadRows();
  }, 150);
});
$('filter-form').addEventListener('submit', (event) => {
  event.preventDefault();
  clearTimeout(typing);
  if (client?.connected) loadRows();
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
