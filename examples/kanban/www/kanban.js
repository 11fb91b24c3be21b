/* Boards with cards. The cards of one board are read once and then follow the broadcasts of what others change. */
import { signIn, zBifrost } from '/zBifrost.js';

const COLUMNS = { todo: 'To do', doing: 'Doing', done: 'Done' };
const NAMES = Object.keys(COLUMNS);
const READ_AGAIN = 500; // milliseconds between two reads for `many`, at least
const $ = (id) => document.getElementById(id);

let client;
let board; // its id
let topic;
let mayWrite = false;
let boards = new Map(); // titles by id
let cards = new Map(); // rows by id
let dragged = null;
let reading = null;
const mine = new Map(); // how many changes of one's own a card has that have only just been made
const told = new Set(); // topics whose presence is listened to

/** An element with these properties and children; text is text, whatever stands in it. */
function make(name, properties = {}, ...children) {
  const { data = {}, ...others } = properties;
  const element = Object.assign(document.createElement(name), others);
  Object.assign(element.dataset, data);
  element.append(...children);
  return element;
}

const tell = (text) => ($('notice').textContent = text);
const say = (text) => ($('said').textContent = text);

// ---------------------------------------------------------------------------------------- what the server tells

/** Everything that is shown, as it is now; what was asked before and answered later is of no interest. */
async function read() {
  const turn = {};
  reading = turn;
  const rows = await client.read('Boards', {}, { order_by: 'title' });
  boards = new Map(rows.map(({ id, title }) => [id, title]));
  if (!boards.has(board)) board = rows[0]?.id;
  const found = board === undefined ? [] : await client.read('Cards', { board_id: board }, { order_by: 'position' });
  if (reading !== turn) return;
  reading = null;
  cards = new Map(found.map((card) => [card.id, card]));
  look();
  show();
}

let readAgain;
/** Read soon, once for many who ask for it. */
function readSoon() {
  readAgain ??= setTimeout(() => {
    readAgain = undefined;
    read().catch((error) => tell(error.message));
  }, READ_AGAIN);
}

function follow({ zKey, result, changes, ids, many }) {
  const [, action, model] = /^(create|update|delete)_(Boards|Cards)$/.exec(zKey) ?? [];
  if (model === undefined) return;
  // While an answer is under way nobody knows whether this is in it.
  if (many || model === 'Boards' || reading !== null) {
    readSoon();
    return;
  }
  if (action === 'create' && result.board_id === board) cards.set(result.id, result);
  for (const { id, values } of changes ?? []) {
    // Whose change was the last, theirs or one's own, the order of a broadcast and a reply does not tell.
    if (mine.has(id)) readSoon();
    if (values.board_id !== undefined && values.board_id !== board) cards.delete(id);
    else if (cards.has(id)) cards.set(id, { ...cards.get(id), ...values });
    else if (values.board_id === board) readSoon();
  }
  for (const id of ids ?? []) cards.delete(id);
  show();
}

/** Be among those who look at the board that is shown, and at no other. */
function look() {
  const name = board === undefined ? undefined : `board:${board}`;
  if (topic?.name === name) return;
  topic?.unsubscribe().catch(() => {}); // a connection that is lost has left it, too
  topic = name && client.topic(name, { presence: true });
  if (topic === undefined) return;
  if (!told.has(name)) topic.on('presence', showPeople);
  told.add(name);
  // Who has gone to another board meanwhile has not failed.
  topic.subscribe().then(showPeople, (error) => error.code !== 'request_aborted' && tell(error.message));
  showPeople();
}

// ------------------------------------------------------------------------------------------- what a person does

/** Show a change at once, send it, and take it back with a word of why when it fails. */
async function change(id, values, send) {
  const before = cards.get(id);
  if (values === null) cards.delete(id);
  else cards.set(id, { ...before, ...values });
  show();
  mine.set(id, (mine.get(id) ?? 0) + 1);
  const settled = () => (mine.get(id) > 1 ? mine.set(id, mine.get(id) - 1) : mine.delete(id));
  try {
    await send();
    tell('');
    if (reading !== null) readSoon();
  } catch (error) {
    cards.set(id, before);
    tell(`“${before.title}” stays as it was: ${error.message}`);
    show();
    // It may have been made all the same.
    if (client.connected) readSoon();
  } finally {
    setTimeout(settled, READ_AGAIN);
  }
}

const update = (id, values) => change(id, values, () => client.update('Cards', id, values));
const remove = (id) => change(id, null, () => client.delete('Cards', id));

const inColumn = (name) =>
  [...cards.values()].filter(({ column }) => column === name).sort((a, b) => a.position - b.position || a.id - b.id);

/** Put a card into a column, in front of its `at`th other card. */
function move(id, name, at) {
  const card = cards.get(id);
  const others = inColumn(name).filter((other) => other.id !== id);
  const place = Math.max(0, Math.min(at, others.length));
  const [before, behind] = [others[place - 1], others[place]];
  let position = 1;
  if (before && behind) position = (before.position + behind.position) / 2;
  else if (before) position = before.position + 1;
  else if (behind) position = behind.position - 1;
  say(`${card.title}: ${COLUMNS[name]}, ${place + 1} of ${others.length + 1}`);
  if (position !== before?.position && position !== behind?.position) {
    update(id, { column: name, position });
    return;
  }
  // Nothing is left between the two: count the column anew.
  others.splice(place, 0, card);
  others.forEach((other, n) => update(other.id, { column: name, position: n + 1 }));
}

async function add(name, title) {
  const last = inColumn(name).at(-1);
  const values = { board_id: board, column: name, position: (last?.position ?? 0) + 1, title };
  const card = await client.create('Cards', values);
  // Unless it is another board by now, or was told by an answer.
  if (card.board_id === board) cards.set(card.id, card);
  show();
}

/** What can be done with a card, by the key that does it. */
const ACTIONS = {
  ArrowLeft: { sign: '←', about: 'To the column on the left', run: (card) => sideways(card, -1) },
  ArrowUp: { sign: '↑', about: 'Up', run: (card, at) => at > 0 && move(card.id, card.column, at - 1) },
  ArrowDown: { sign: '↓', about: 'Down', run: (card, at) => move(card.id, card.column, at + 1) },
  ArrowRight: { sign: '→', about: 'To the column on the right', run: (card) => sideways(card, 1) },
  Enter: { sign: '✎', about: 'Rename', run: rename },
  Delete: { sign: '✕', about: 'Delete', run: drop },
};

function act(key, id) {
  const card = cards.get(id);
  if (card === undefined) return;
  ACTIONS[key].run(card, inColumn(card.column).findIndex((other) => other.id === id));
}

function sideways(card, by) {
  const name = NAMES[NAMES.indexOf(card.column) + by];
  if (name !== undefined) move(card.id, name, inColumn(name).filter(({ position }) => position < card.position).length);
}

/** Delete a card; the focus goes to its neighbour. */
function drop(card) {
  const item = $(`card-${card.id}`);
  (item.nextElementSibling ?? item.previousElementSibling ?? $(`add-${card.column}`)).focus();
  remove(card.id);
}

/** An input in the place of the title; Enter and leaving it take what it has, Escape does not. */
function rename(card) {
  const item = $(`card-${card.id}`);
  if (item.querySelector('input') !== null) return;
  const input = make('input', { value: card.title, maxLength: 200, ariaLabel: 'Title of the card' });
  const label = item.firstElementChild;
  let isOver = false;
  const end = (isTaken) => {
    if (isOver) return;
    isOver = true;
    const title = input.value.trim();
    const had = document.activeElement === input;
    input.remove();
    label.hidden = false;
    item.draggable = true;
    if (had) item.focus();
    if (isTaken && title !== '' && title !== card.title && cards.has(card.id)) update(card.id, { title });
  };
  input.addEventListener('blur', () => end(true));
  input.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' || event.key === 'Escape') end(event.key === 'Enter');
    event.stopPropagation();
  });
  item.draggable = false; // so that its text can be marked
  label.hidden = true;
  label.after(input);
  input.select();
}

// ------------------------------------------------------------------------------------------------ what is shown

/** The element of a card: the one that is there, so that focus and a name that is being typed stay. */
function itemOf(card) {
  let item = $(`card-${card.id}`);
  if (item === null) {
    const label = make('span', {});
    item = make('li', { id: `card-${card.id}`, className: 'card', tabIndex: 0, draggable: mayWrite }, label);
    if (mayWrite) item.append(toolsOf(item, card.id));
  }
  const label = item.firstElementChild;
  if (label.textContent !== card.title) label.textContent = card.title;
  return item;
}

/** Keys, dragging, and for fingers the same as buttons, which the card with the focus shows. */
function toolsOf(item, id) {
  item.addEventListener('keydown', (event) => {
    if (event.target !== item || ACTIONS[event.key] === undefined || event.ctrlKey || event.altKey) return;
    event.preventDefault();
    act(event.key, id);
  });
  item.addEventListener('dblclick', () => act('Enter', id));
  item.addEventListener('dragstart', (event) => {
    dragged = id;
    event.dataTransfer.effectAllowed = 'move';
    event.dataTransfer.setData('text/plain', cards.get(id)?.title ?? '');
  });
  item.addEventListener('dragend', () => (dragged = null));
  const buttons = Object.entries(ACTIONS).map(([key, { sign, about }]) => {
    const onclick = () => {
      item.focus();
      act(key, id);
    };
    return make('button', { className: 'plain', tabIndex: -1, title: about, ariaLabel: about, onclick }, sign);
  });
  return make('div', { className: 'tools' }, ...buttons);
}

/** Leave in `list` exactly `items`, in their order, and move none that is in its place: what moves loses the focus. */
function arrange(list, items) {
  const wanted = new Set(items);
  for (const child of [...list.children]) if (!wanted.has(child)) child.remove();
  items.forEach((item, at) => {
    if (list.children[at] !== item) list.insertBefore(item, list.children[at] ?? null);
  });
}

function show() {
  const focused = document.activeElement;
  arrange(
    $('board'),
    [...boards].map(([id, title]) => {
      const option = [...$('board').options].find(({ value }) => value === String(id)) ?? make('option', { value: id });
      if (option.textContent !== title) option.textContent = title;
      return option;
    }),
  );
  $('board').value = board ?? '';
  $('columns').hidden = $('board').hidden = board === undefined;
  $('empty').hidden = board !== undefined;
  document.querySelector('footer').hidden = board === undefined;
  for (const hint of document.querySelectorAll('footer > span')) hint.hidden = hint.id === 'read-only' ? mayWrite : !mayWrite;
  const placed = NAMES.map((name) => inColumn(name).map(itemOf));
  NAMES.forEach((name, n) => {
    arrange($(`cards-${name}`), placed[n]);
    $(`count-${name}`).textContent = placed[n].length;
  });
  if (focused !== document.activeElement && focused?.isConnected) focused.focus();
}

function showPeople() {
  const { members = {}, users } = topic?.presence ?? { users: 0 };
  const names = Object.keys(members);
  const named = names.slice(0, 8).map((name) => make('li', { title: name }, name));
  $('people').replaceChildren(...named, ...(users > named.length ? [make('li', {}, `${users} in all`)] : []));
}

function build() {
  const columns = NAMES.map((name) => {
    const list = make('ul', { id: `cards-${name}`, className: 'cards' });
    const count = make('span', { id: `count-${name}`, className: 'count' });
    const heading = make('h2', { id: `heading-${name}` }, `${COLUMNS[name]} `, count);
    list.setAttribute('aria-labelledby', heading.id);
    const input = make('input', { id: `add-${name}`, placeholder: 'Add a card', required: true, maxLength: 200 });
    input.ariaLabel = `New card: ${COLUMNS[name]}`;
    const form = make('form', { className: 'add', hidden: !mayWrite }, input, make('button', {}, 'Add'));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      const title = input.value.trim();
      input.value = '';
      if (title === '') return;
      add(name, title).catch((error) => {
        input.value ||= title;
        tell(error.message);
      });
    });
    const section = make('section', {}, heading, list, form);
    section.addEventListener('dragover', (event) => {
      if (dragged !== null) event.preventDefault();
    });
    section.addEventListener('drop', (event) => {
      event.preventDefault();
      if (!cards.has(dragged)) return;
      const items = [...list.children].filter((item) => item.id !== `card-${dragged}`);
      const below = items.findIndex((item) => {
        const { top, height } = item.getBoundingClientRect();
        return event.clientY < top + height / 2;
      });
      move(dragged, name, below < 0 ? items.length : below);
    });
    return section;
  });
  $('columns').replaceChildren(...columns);
}

// ------------------------------------------------------------------------------------------------------ beginning

async function start() {
  client = new zBifrost(undefined, await signIn());
  client.on('state', ({ state }) => {
    $('status').dataset.state = state;
    $('status').textContent = state;
    // It does not come back by itself; `error` tells why.
    $('sign-out').textContent = state === 'disconnected' ? 'Sign in again' : 'Sign out';
  });
  client.onBroadcast(follow);
  client.on('error', (error) => tell(error.message));
  await client.connect();
  const { identity, models } = await client.send({ zKey: 'zDescribe', zHorizontal: ['identity', 'models'] });
  $('me').textContent = identity.name;
  mayWrite = models.Cards?.actions.includes('update') ?? false;
  $('new-board').hidden = $('add-one').hidden = !models.Boards?.actions.includes('create');
  if (!models.Boards?.actions.includes('read') || !models.Cards?.actions.includes('read')) {
    throw new Error(`The role ${identity.role} may not look at boards: policy.yaml says which may.`);
  }
  board = Number(new URLSearchParams(location.search).get('board')) || undefined;
  build();
  await read();
  // What was changed while there was no connection, nobody tells.
  client.on('open', () => {
    tell('');
    read().catch((error) => tell(error.message));
  });
  $('sign-in').hidden = true;
  $('app').hidden = false;
}

function begin() {
  start().catch((error) => {
    client?.disconnect();
    $('app').hidden = true;
    $('sign-in').hidden = false;
    $('sign-in-reason').textContent = error.reason === 'Authentication required' ? '' : error.message;
    $('token').focus();
  });
}

$('sign-in').addEventListener('submit', async (event) => {
  event.preventDefault();
  await signIn($('token').value.trim());
  $('token').value = '';
  begin();
});

$('sign-out').addEventListener('click', async () => {
  await signIn('');
  location.reload();
});

function open(id) {
  board = id;
  cards.clear();
  history.replaceState(null, '', `?board=${id}`);
  read().catch((error) => tell(error.message));
}

$('board').addEventListener('change', () => open(Number($('board').value)));

$('new-board').addEventListener('submit', async (event) => {
  event.preventDefault();
  try {
    const { id } = await client.create('Boards', { title: $('board-title').value });
    $('board-title').value = '';
    open(id);
  } catch (error) {
    tell(error.message);
  }
});

begin();
