/** The table: the rows of one model, searched, sorted, and kept live by the server, whoever changes them. */
import { dropRows, showRows } from './body.js';
import { client, on } from './connection.js';
import { describe, description } from './description.js';
import { $, allow, counted, make, showError, words } from './dom.js';
import { shown as fieldsToShow } from './fields.js';
import { openRecord, openRemoval, review } from './record.js';
import { cell, hasOrder, hideTable, recast, shareWidth, showHead } from './table.js';
import { own, parse, stringify } from './values.js';
import { onForget } from './visitor.js';

/* On a phone each row takes the place of four. */
const PAGE_SIZE = matchMedia('(max-width: 640px)').matches ? 10 : 50;
/* Rows that a live query may have. */
const MOST = 1000;
/* Milliseconds between two counts that a screen reader reads out, but for that of what was just asked for. */
const COUNTED = 5000;

let model = '';
let rows = [];
let most = PAGE_SIZE; // of these that are shown
let order = '';
let describedThen = ''; // what the server told of the fields of the model when it was chosen, as JSON
let limit = PAGE_SIZE;
let query = null; // what is followed: {client, asks, limit, live, isRead}; `asks` is all that it asks, as JSON
let look = null; // how the rows look, for body.js
let countedAt = -COUNTED; // when the last count was read out
let counting = null;

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

/** Follow the rows that are asked for. Those that are shown stay until they come. */
export function follow() {
  if (model === '' || !client?.connected) return;
  if (!may('read')) {
    clearRows('You may not read this model.');
    return;
  }
  let filters;
  try {
    filters = readFilter();
  } catch (error) {
    showFilterError(`This is not a filter: ${words(error)}`);
    return;
  }
  const options = { order_by: order || undefined, limit: Math.min(limit + 1, MOST) };
  const asks = stringify([model, filters, options]);
  if (query?.client === client && query.asks === asks && query.live.status !== 'error') return;
  leave();
  const mine = { client, asks, limit, live: client.live(model, filters, options), isRead: false };
  const read = () => mine.client.read(model, filters, options);
  query = mine;
  mine.live.subscribe((found, change) => {
    if (query === mine) hear(mine, found, change, read);
  });
}

function followAnew() {
  leave();
  follow();
}

function leave() {
  query?.live.stop();
  query = null;
}

/** Show what has become of the query. What cannot be kept live is read, this once. */
async function hear(mine, found, change, read) {
  const { error, status } = mine.live;
  if (change.kind !== 'same') {
    take(found, change.kind === 'change' ? [...change.added, ...change.changed.map(({ row }) => row)] : found);
    const { added, removed, changed } = change;
    const touched = (key) => [...removed, ...added, ...changed.map(({ row }) => row)].some((row) => keyOf(row) === key);
    review((where_) => touched(stringify(where_)));
  }
  showState();
  tellCount(change.kind === 'initial');
  if (change.kind === 'reset' || (status === 'error' && error.code === 'permission_denied')) await offerAnew();
  if (query === mine && error !== null && ['error', 'loading'].includes(status)) readOnce(mine, read);
}

/** Rights may be others: offer what there is now, and follow it where it is something else. */
async function offerAnew() {
  const mine = client;
  await describe();
  if (client !== mine || !mine.connected) return;
  offerModels();
  if (query !== null && may('read')) return;
  follow();
  review();
}

async function readOnce(mine, read) {
  const isAsked = () => query === mine && ['error', 'loading'].includes(mine.live.status);
  try {
    const found = await read();
    if (!isAsked()) return;
    mine.isRead = true;
    take(found, found);
    showState();
    review();
  } catch (error) {
    if (!isAsked() || !mine.client.connected) return;
    if (mine.live.status === 'error') {
      clearRows('The rows cannot be read.');
      $('again').hidden = false;
    }
    showFilterError(words(error));
  }
}

/** Whether the rows are those of now, and why not. */
function showState() {
  const { live = null } = query ?? {};
  const isAway = !client?.connected;
  const isOwn = live?.status === 'live' && live.sees === 'own';
  const reason = live?.error ? words(live.error) : '';
  const state = live === null || (isAway && rows.length === 0) ? '' : reason ? 'error' : isAway ? 'stale' : live.status;
  const text = {
    '': '',
    loading: 'Reading',
    live: isOwn ? 'Live, but for what other programs write' : 'Live',
    stale: isAway ? 'Not live: the connection is away' : 'Reading',
    error: `${query?.isRead ? 'Read once, not live' : 'Not live'}: ${reason}`,
  }[state];
  if (state) $('rows-state').dataset.state = state;
  else delete $('rows-state').dataset.state;
  if ($('rows-state-text').textContent !== text) {
    $('rows-state-text').textContent = text;
    $('rows-found').textContent = '';
  }
  $('again').hidden = !isOwn && state !== 'error';
}

/** Have a screen reader read out how many rows there are: soon, as steps may come faster than it can, or `now`. */
function tellCount(now) {
  clearTimeout(counting);
  const wait = now ? 0 : countedAt + COUNTED - performance.now();
  if (wait > 0) {
    counting = setTimeout(tellCount, wait);
    return;
  }
  const text = query?.live.status === 'live' ? countOf(rows) : '';
  if ($('rows-found').textContent === text) return;
  $('rows-found').textContent = text;
  if (text) countedAt = performance.now();
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

/** Show these rows, of which `fresh` were not there before, or not so. */
function take(found, fresh) {
  [rows, most] = [found, query.limit];
  showFilterError(null);
  const names = columns();
  showHead(model, names, types(), order, sort);
  shareWidth(names, fresh);
  if (look === null || look.names.join() !== names.join()) look = lookOf(names);
  $('rows').ariaRowCount = String(Math.min(most, found.length) + 1);
  showRows(found.length > most ? found.slice(0, most) : found, look);
}

/** How rows with these fields look; see body.js. */
function lookOf(names) {
  const [typeOf, title, ends] = [types(), titleField(), new WeakMap()];
  const cellOf = (name, row) => cell(name, typeOf.get(name), own(row, name), name === title);
  return {
    names,
    keyOf,
    focusOn,
    drawn: showCount,
    make(row) {
      const tr = make('tr', { role: 'row' }, ...names.map((name) => cellOf(name, row)));
      ends.set(tr, actions(row));
      tr.append(ends.get(tr).element);
      return tr;
    },
    renew(tr, row, before) {
      const changed = names.filter((name) => !isSame(own(before, name), own(row, name)));
      for (const name of changed) recast(tr.cells[names.indexOf(name)], cellOf(name, row));
      ends.get(tr).become(row);
      return changed.length > 0;
    },
  };
}

const isSame = (one, other) => one === other || stringify(one) === stringify(other);

const countOf = (found) =>
  found.length > most || found.length === MOST
    ? `first ${Math.min(most, MOST).toLocaleString()}`
    : counted(found.length, 'row', 'rows');

function showCount() {
  const count = countOf(rows);
  if ($('rows-count').textContent !== count) $('rows-count').textContent = count;
  $('more').hidden = rows.length <= most;
  $('rows-empty').hidden = rows.length > 0;
  $('rows-empty').textContent = $('filter').value.trim() ? 'No row matches.' : 'No rows yet. Create the first one.';
}

/** Follow nothing, take the rows away and say why there are none. */
function clearRows(reason) {
  leave();
  [rows, look] = [[], null];
  dropRows();
  showState();
  $('rows-count').textContent = '';
  $('more').hidden = true;
  $('rows-empty').hidden = false;
  $('rows-empty').textContent = reason;
}

/** Give the focus to the button with this mark, or where the rows begin when it is gone. */
function focusOn(mark) {
  const button = document.querySelector(`[data-focus="${CSS.escape(mark)}"]:enabled`);
  (button ?? $('rows-title')).focus({ preventScroll: button === null });
}

/** Names and numbers first, then switches, then what the server made. */
function columns() {
  const names = fieldsToShow(fields());
  if (names.length === 0) return [...new Set(rows.flatMap((row) => Object.keys(row)))];
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

/** The cell with the buttons of a row: {element, become(row)}. */
function actions(first) {
  let row = first;
  let name = nameOf(row);
  const filter = where(row);
  const button = (text, right, act) => {
    const focus = `${text} ${keyOf(row)}`;
    const made = make('button', { type: 'button', className: 'plain', 'data-focus': focus, 'data-online': '' }, text);
    made.ariaLabel = `${text} ${name}`;
    allow(made, may(right) && filter !== null);
    if (filter === null) made.title = 'No key tells this row from the others.';
    else made.dataset.right = right;
    made.addEventListener('click', () => act({ ...opening(row), where: filter, focus: () => focusOn(focus) }));
    return made;
  };
  const buttons = [button('Edit', 'update', openRecord), button('Delete', 'delete', openRemoval)];
  return {
    element: make('td', { role: 'cell', className: 'row-actions' }, ...buttons),
    become(now) {
      row = now;
      if (name === nameOf(row)) return;
      name = nameOf(row);
      for (const each of buttons) each.ariaLabel = `${each.textContent} ${name}`;
    },
  };
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
    done: follow,
    refused: offerAnew,
  };
}

function sort(by) {
  order = by;
  showHead(model, columns(), types(), order, sort);
  follow();
}

/** Go to the model called `name`; to none with ''. */
function choose(name) {
  [model, limit] = [name, PAGE_SIZE];
  describedThen = stringify(described()?.fields);
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
  else if (stringify(described()?.fields) !== describedThen) choose(model);
  else showHead(model, columns(), types(), order, sort);
  $('model').value = model;
  allow($('new-row'), may('create'));
  for (const button of document.querySelectorAll('#rows-body [data-right]')) allow(button, may(button.dataset.right));
}

on('state', ({ state }) => {
  if (state !== 'connected' && rows.length === 0) $('rows-empty').textContent = 'Not connected.';
  showState();
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
  typing = setTimeout(follow, 150);
});
$('filter-form').addEventListener('submit', (event) => {
  event.preventDefault();
  clearTimeout(typing);
  follow();
});
$('sort').addEventListener('change', () => sort($('sort').value));
$('again').addEventListener('click', followAnew);
$('more').addEventListener('click', () => {
  limit = Math.min(2 * limit, MOST);
  follow();
});
$('model').addEventListener('change', () => {
  choose($('model').value);
  follow();
});
$('model-form').addEventListener('submit', (event) => {
  event.preventDefault();
  choose($('model-typed').value.trim());
  follow();
});

onForget(() => {
  clearTimeout(typing);
  $('model').replaceChildren();
  $('model-label').hidden = true;
  $('model-form').hidden = true;
  $('model-form').reset();
  choose('');
});
