/** The look of the table: its head with the order, and one cell for each kind of value. */
import { $, make } from './dom.js';
import { label } from './fields.js';

/** Show the columns and the order; `sort` is called with another order, such as 'name DESC'. */
export function showHead(model, columns, order, sort) {
  const wanted = `${model} ${columns.join()} ${order}`;
  if ($('rows-head').dataset.shown === wanted) return;
  $('rows-head').dataset.shown = wanted;
  const [ordered, direction = 'ASC'] = order.split(' ');
  const heads = columns.map((name) => {
    const button = make('button', { type: 'button' }, label(name));
    button.addEventListener('click', () => {
      sort(`${name} ${name === ordered && direction === 'ASC' ? 'DESC' : 'ASC'}`);
      $('rows-head').children[columns.indexOf(name)].firstChild.focus();
    });
    const sorted = { ASC: 'ascending', DESC: 'descending' }[direction];
    const properties = { role: 'columnheader', scope: 'col', 'aria-sort': name === ordered ? sorted : 'none' };
    return make('th', properties, button);
  });
  const last = make('th', { role: 'columnheader', scope: 'col' }, make('span', { className: 'hidden' }, 'Actions'));
  $('rows-head').replaceChildren(...heads, last);
  $('sort').replaceChildren(
    ...columns.flatMap((name) => [
      new Option(`${label(name)} ↑`, `${name} ASC`),
      new Option(`${label(name)} ↓`, `${name} DESC`),
    ]),
  );
  $('sort').value = order;
}

/** One cell: absent values, yes and no, and times are easy to tell apart. */
export function cell(name, value) {
  const made = (kind, ...content) =>
    make('td', { role: 'cell', className: `${name} ${kind}`.trim(), 'data-label': label(name) }, ...content);
  if (value === null || value === undefined) return made('none', '–');
  if (typeof value === 'boolean') return made(value ? 'yes' : 'none', value ? 'yes' : 'no');
  if (typeof value === 'string' && /^\d{4}-\d\d-\d\dT/.test(value) && !Number.isNaN(Date.parse(value))) {
    const options = { month: 'short', day: 'numeric', hour: '2-digit', minute: '2-digit' };
    const shown = new Date(value).toLocaleString(undefined, options);
    return made('when', make('time', { dateTime: value, title: value }, shown));
  }
  return made('', typeof value === 'object' ? JSON.stringify(value) : String(value));
}
