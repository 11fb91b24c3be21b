/** The look of the table: its head with the order, and one cell for each kind of value. */
import { $, make } from './dom.js';
import { label } from './fields.js';
import { own, stringify } from './values.js';

/* What is longer is cut off in a cell, by whole characters; the dialog for the row has all of it. */
const LONG = 500;

/* Characters that a column of texts counts for when the width is shared. */
const [LEAST, MOST] = [8, 40];

let longest = []; // text of each column, in characters, since the head was made

/** Show the columns, of which `types` are known, and the order; `sort` is called with another order, such as 'name DESC'. */
export function showHead(model, columns, types, order, sort) {
  const wanted = `${model} ${columns.join()} ${order}`;
  if ($('rows-head').dataset.shown === wanted) return;
  $('rows-head').dataset.shown = wanted;
  longest = columns.map((name) => (cellKind(types.get(name)) === 'text' ? LEAST : 0));
  const [ordered, direction = 'ASC'] = order.split(' ');
  const heads = columns.map((name) => {
    const about = { role: 'columnheader', scope: 'col', className: cellKind(types.get(name)), 'data-field': name };
    if (!hasOrder(types.get(name))) return make('th', about, label(name));
    const button = make('button', { type: 'button' }, label(name));
    button.addEventListener('click', () => {
      sort(`${name} ${name === ordered && direction === 'ASC' ? 'DESC' : 'ASC'}`);
      $('rows-head').rows[0].cells[columns.indexOf(name)].firstChild.focus();
    });
    const sorted = { ASC: 'ascending', DESC: 'descending' }[direction];
    return make('th', { ...about, 'aria-sort': name === ordered ? sorted : 'none' }, button);
  });
  const last = make('th', { role: 'columnheader', scope: 'col' }, make('span', { className: 'hidden' }, 'Actions'));
  $('rows-head').replaceChildren(make('tr', { role: 'row' }, ...heads, last));
  setWidths();
  $('rows').hidden = false;
  $('sort').replaceChildren(
    ...columns
      .filter((name) => hasOrder(types.get(name)))
      .flatMap((name) => [
        new Option(`${label(name)} ↑`, `${name} ASC`),
        new Option(`${label(name)} ↓`, `${name} DESC`),
      ]),
  );
  $('sort').value = order;
}

/** Share the width among the columns of texts by the longest of each, now that `rows` have come; all others take what they
 * need. A column does not become narrower while one looks at it. */
export function shareWidth(columns, rows) {
  const before = longest;
  longest = columns.map((name, n) => {
    if (before[n] === 0 || before[n] === MOST) return before[n];
    return rows.reduce((most, row) => Math.max(most, Math.min(MOST, written(own(row, name)).length)), before[n]);
  });
  if (longest.some((length, n) => length !== before[n])) setWidths();
}

function setWidths() {
  const all = longest.reduce((sum, length) => sum + length, 0);
  const { cells } = $('rows-head').rows[0];
  for (const [n, length] of longest.entries()) cells[n].style.width = length ? `${(100 * length) / all}%` : '';
}

/** Take away the table and its order. */
export function hideTable() {
  $('rows').hidden = true;
  delete $('rows-head').dataset.shown;
  for (const part of ['rows-head', 'sort']) $(part).replaceChildren();
}

/** Whether rows can be sorted by a field of this type. */
export const hasOrder = (type) => type !== 'json' && type !== 'bytes';

/** The kind of cell that a field has, by its type as zDescribe has it. */
export function cellKind(type) {
  if (type === 'bool') return 'flag';
  if (['int', 'float', 'decimal'].includes(type)) return 'number';
  return ['date', 'time', 'datetime', 'uuid'].includes(type) ? 'when' : 'text';
}

/** One cell: absent values, empty texts, yes and no, and times are easy to tell apart. `title` names the row. */
export function cell(name, type, value, title = false) {
  const made = (kind, ...content) => {
    const properties = { role: 'cell', className: title ? `${kind} title` : kind, 'data-label': label(name) };
    return make('td', { ...properties, 'data-field': name }, ...content);
  };
  if (value === null || value === undefined) return made('none', make('span', { title: 'NULL' }, '–'));
  if (typeof value === 'boolean') return made(value ? 'yes' : 'none', value ? 'yes' : 'no');
  if (typeof value === 'number' || typeof value === 'bigint') return made('number', String(value));
  if (value === '') return made('none', make('em', {}, 'empty'));
  if (typeof value === 'string' && /^\d{4}-\d\d-\d\dT/.test(value) && !Number.isNaN(Date.parse(value))) {
    const time = new Date(value);
    const year = time.getFullYear() === new Date().getFullYear() ? undefined : 'numeric';
    const options = { year, month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' };
    return made('when', make('time', { dateTime: value, title: value }, time.toLocaleString(undefined, options)));
  }
  const text = written(value);
  const brief = text.length > LONG ? `${[...text.slice(0, LONG)].slice(0, -1).join('')}…` : text;
  return made(cellKind(type), make('span', { title: brief === text ? text : '' }, brief));
}

/** Have a cell show what `fresh` does, in its own elements where they are alike: that is half the work for a browser. */
export function recast(old, fresh) {
  const [shown, wanted] = [old.firstChild, fresh.firstChild];
  if (old.className !== fresh.className || shown.nodeName !== wanted.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  for (const { name, value } of wanted.attributes ?? []) shown.setAttribute(name, value);
  (shown.firstChild ?? shown).data = wanted.textContent;
}

/** A value as the text of a cell. */
const written = (value) => (value !== null && typeof value === 'object' ? stringify(value) : String(value ?? ''));
