/**
 * The rows in the page: those of the query, in its order, whatever it becomes and however fast.
 *
 * A row that stays keeps its elements, and of one that has changed only the cells are made anew that show something else.
 * A browser lays out about a dozen rows in one frame; what is more comes in the next ones, what is in view first. Where the
 * rows are many, only those have elements that are in view or near it.
 */
import { $ } from './dom.js';

/* So many rows are all in the page: a browser's own search finds them. */
const WHOLE = 60;
/* Of more, those in view and so many above and below. */
const NEAR = 8;
/* Rows that are changed in one frame; to make or move one counts for two. */
const FRAME = 8;
/* Pixels of a row before one is there to be measured. */
const HEIGHT = 40;
/* Milliseconds that rows stay where they are at most while a button is pressed: of one that moves away meanwhile a browser
   makes no click. */
const PRESS = 2000;

const [above, body, below] = [$('rows-above'), $('rows-body'), $('rows-below')];

let rows = [];
let look = null; // how they look, from showRows
let drawn = new Map(); // key -> {row, tr}, of which the first was drawn the longest ago
let keys = new WeakMap(); // tr -> key
let height = 0; // of one row, in pixels; 0: to be measured
let frame = 0;
let pressed = null; // when a button was pressed that was not let go yet

/**
 * Show `wanted` in the place of the rows before, from the next frame on.
 *
 * @param {object[]} wanted
 * @param {object} how {keyOf, make, renew, focusOn, drawn}: `keyOf(row)` is the same text for one row at all times,
 *   `make(row)` makes its tr, `renew(tr, row, before)` makes of that what shows `row` and returns whether anything was to
 *   be done, `focusOn(mark)` gives the focus to what has `data-focus`, or to something else, and `drawn()` is called
 *   when the rows in view have come or changed. Rows of another `how` are made anew.
 */
export function showRows(wanted, how) {
  if (how !== look) dropRows();
  [rows, look] = [wanted, how];
  // To read as many as that took a good part of this frame.
  if (rows.length > WHOLE) frame ||= requestAnimationFrame(again);
  else soon();
}

/** Take all rows away, now. */
export function dropRows() {
  cancelAnimationFrame(frame);
  [rows, drawn, keys, height, frame] = [[], new Map(), new WeakMap(), 0, 0];
  body.replaceChildren();
  body.hidden = true;
  for (const gap of [above, below]) gap.hidden = true;
}

function soon() {
  frame ||= requestAnimationFrame(draw);
}

function again() {
  frame = requestAnimationFrame(draw);
}

function draw() {
  frame = 0;
  if (pressed !== null && performance.now() < pressed + PRESS) {
    soon();
    return;
  }
  const [first, end, inView] = near();
  const part = rows.slice(first, end);
  const names = named(part);
  const focused = document.activeElement?.closest('#rows-body tr');
  const mark = document.activeElement?.dataset.focus;
  const room = place(part, names, first);
  const isAll = room > 0 && renew(new Map(names.map((name, n) => [name, part[n]])), inView, room);
  // Until the last of them have come and gone the page is as high as it will be: what is below them stays.
  const there = body.rows.length;
  const before = Math.max(0, Math.min(first, rows.length - there));
  fill(above, before);
  fill(below, Math.max(0, rows.length - before - there));
  body.hidden = rows.length === 0;
  look.drawn();
  // What is moved loses the focus. What is only scrolled away is found again where it was.
  if (mark && document.activeElement === document.body && !isElsewhere(keys.get(focused))) look.focusOn(mark);
  if (!isAll) soon();
}

/** The places of the first row to draw and of the one after the last, and what says which of their places is in view. */
function near() {
  if (rows.length <= WHOLE) height = 0;
  else if (height === 0 && drawn.size > 0) height = body.getBoundingClientRect().height / drawn.size;
  const each = height || HEIGHT;
  const top = (above.hidden ? body : above).getBoundingClientRect().top;
  const within = (place) => Math.min(rows.length, Math.max(0, place));
  const [from, to] = [within(Math.floor(-top / each)), within(Math.ceil((innerHeight - top) / each))];
  const [first, end] = rows.length <= WHOLE ? [0, rows.length] : [within(from - NEAR), within(to + NEAR)];
  return [first, end, (n) => n + first >= from && n + first < to];
}

/** Their keys. Rows that no key tells from others may be there twice. */
function named(some) {
  const times = new Map();
  return some.map((row) => {
    const key = look.keyOf(row);
    const before = times.get(key) ?? 0;
    times.set(key, before + 1);
    return before === 0 ? key : `${key} ${before}`;
  });
}

const isElsewhere = (key) => !drawn.has(key) && rows.some((row) => look.keyOf(row) === key);

/** Have these rows in the page and in order, as far as one frame goes; what comes stands in for what has gone. Returns
 * how many more rows this frame may have; 0 means that it is not done. */
function place(part, names, first) {
  const wanted = new Set(names);
  const isGone = (tr) => !wanted.has(keys.get(tr));
  const next = (tr) => {
    const { nextSibling } = tr;
    drawn.delete(keys.get(tr));
    tr.remove();
    return nextSibling;
  };
  let room = FRAME;
  let at = body.firstChild;
  for (const [n, name] of names.entries()) {
    let tr = drawn.get(name)?.tr;
    while (tr !== undefined && at !== null && isGone(at)) at = next(at);
    // It is the row before it that has moved, further down.
    if (tr !== undefined && at?.nextSibling === tr) {
      body.append(at);
      at = tr;
    }
    if (at !== null && at === tr) at = at.nextSibling;
    else {
      if (room === 0) return 0;
      room -= 2;
      tr ??= add(name, part[n]);
      body.insertBefore(tr, at);
      if (at !== null && isGone(at)) at = next(at);
    }
    if (tr.ariaRowIndex !== String(first + n + 2)) tr.ariaRowIndex = String(first + n + 2);
  }
  while (at !== null) at = next(at);
  return Math.max(1, room);
}

function add(name, row) {
  const tr = look.make(row);
  drawn.set(name, { row, tr });
  keys.set(tr, name);
  return tr;
}

/** Have `room` of the rows show what they are now: those in view first, and among these the one that was drawn the longest
 * ago. Returns whether all do. */
function renew(wanted, inView, room) {
  const places = new Map([...wanted.keys()].map((name, n) => [name, n]));
  const old = [...drawn].filter(([name, { row }]) => row !== wanted.get(name));
  const seen = old.filter(([name]) => inView(places.get(name)));
  let left = room;
  for (const [name, { row, tr }] of [...seen, ...old.filter((each) => !seen.includes(each))]) {
    if (left === 0) return false;
    if (look.renew(tr, wanted.get(name), row)) left -= 1;
    drawn.delete(name);
    drawn.set(name, { row: wanted.get(name), tr });
  }
  return true;
}

/** Keep the place of so many rows that have no elements. */
function fill(gap, count) {
  gap.hidden = count === 0;
  gap.rows[0].style.height = `${Math.round(count * (height || HEIGHT))}px`;
}

addEventListener('scroll', () => rows.length > WHOLE && soon(), { passive: true });
addEventListener('resize', () => {
  height = 0;
  if (rows.length > WHOLE) soon();
});
addEventListener('pointerdown', ({ target, button }) => {
  if (button === 0 && target.closest('button')) pressed = performance.now();
});
for (const end of ['pointerup', 'pointercancel', 'blur']) {
  addEventListener(end, () => {
    pressed = null;
  });
}
