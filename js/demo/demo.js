/**
 * The demo page: what a program does with zBifrost.js, shown part by part. Whatever comes from the server is
 * put on the page as text, never as markup.
 */
import { BifrostError, CommandFailed, zBifrost } from './zBifrost.js';

const $ = (id) => document.getElementById(id);
const PAGE_SIZE = 50;
const FEED_LENGTH = 100;

/** The client of the connection that is shown; another one is made when the form asks for another server. */
let client = null;

// --------------------------------------------------------------------------------------------- small things

/** make('td', {className: 'name'}, 'Alice', otherElement): text stays text. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function showError(element, text) {
  element.hidden = !text;
  element.textContent = text ?? '';
}

function words(error) {
  if (error instanceof BifrostError || error instanceof TypeError) return error.message.replace(/^zBifrost: /, '');
  return String(error?.message ?? error);
}

const asJson = (value, space) =>
  typeof value === 'string' ? value : (JSON.stringify(value, null, space) ?? 'nothing');
const milliseconds = (since) => `${(performance.now() - since).toFixed(1)} ms`;
const closest = (number, one, many) => `${number.toLocaleString()} ${number === 1 ? one : many}`;

/** Show what became of a call: its result or error, and how long it took. */
async function showOutcome(output, call, render = (value) => make('pre', {}, asJson(value, 2))) {
  const since = performance.now();
  const latency = () => make('p', { className: 'latency' }, milliseconds(since));
  try {
    output.replaceChildren(render(await call()), latency());
  } catch (error) {
    const fields = Object.entries(error.fields ?? {}).map(([name, text]) => `\n${name}: ${text}`);
    const code = error.code ? ` (${error.code})` : '';
    output.replaceChildren(make('pre', { className: 'bad' }, `${words(error)}${code}${fields.join('')}`), latency());
  }
}

for (const dialog of document.querySelectorAll('dialog')) {
  dialog.querySelector('[data-close]').addEventListener('click', () => dialog.close());
}

// ----------------------------------------------------------------------------------------------- connection

const token = {
  read() {
    const given = new URLSearchParams(location.hash.slice(1)).get('token');
    if (given !== null) {
      this.keep(given);
      history.replaceState(null, '', location.pathname + location.search);
    }
    return sessionStorage.getItem('zbifrost.token') ?? '';
  },
  keep(value) {
    if (value) sessionStorage.setItem('zbifrost.token', value);
    else sessionStorage.removeItem('zbifrost.token');
  },
};

const STATES = {
  disconnected: 'Disconnected',
  connecting: 'Connecting',
  connected: 'Connected',
  reconnecting: 'Reconnecting',
};
let countdown = null;

function showState(state, detail = '') {
  clearInterval(countdown);
  $('status').dataset.state = state;
  if ($('status-text').textContent !== STATES[state]) $('status-text').textContent = STATES[state];
  $('status-detail').textContent = detail;
  $('retry').hidden = state !== 'reconnecting';
  $('disconnect').hidden = state === 'disconnected';
  $('connect').hidden = state !== 'disconnected';
  const connected = state === 'connected';
  for (const button of document.querySelectorAll(
    '#function-form button, #link-form button, #open-form button, #raw-form button, #new-row',
  )) {
    button.disabled = !connected;
  }
}

function showCountdown({ attempt, delay }) {
  const end = performance.now() + delay;
  const show = () => {
    const seconds = Math.max(0, Math.ceil((end - performance.now()) / 1000));
    $('status-detail').textContent = seconds > 0 ? `in ${seconds} s, attempt ${attempt}` : `now, attempt ${attempt}`;
  };
  clearInterval(countdown);
  countdown = setInterval(show, 250);
  show();
}

async function connect(url, secret) {
  client?.disconnect();
  showError($('connect-error'), null);
  let mine;
  try {
    mine = new zBifrost(url, secret || null);
  } catch (error) {
    showError($('connect-error'), words(error));
    showState('disconnected');
    return;
  }
  client = mine;
  // What an earlier client still says is of no interest any more.
  const on = (event, listener) =>
    mine.on(event, (...values) => {
      if (client === mine) listener(...values);
    });
  on('state', ({ state, previous }) => {
    showState(state);
    if (previous === 'connected') feed.note('Connection lost');
    if (state !== 'connected') {
      rows.pause();
      health.clear();
    }
  });
  on('open', () => {
    showError($('connect-error'), null);
    feed.note('Connected');
    rows.load().then(measure);
    health.load();
  });
  on('reconnecting', showCountdown);
  on('error', (error) => showError($('connect-error'), words(error)));
  on('broadcast', (message) => {
    feed.broadcast(message);
    rows.heard(message);
  });
  on('display', (data) => feed.display(data));
  on('service', ({ name, status }) => {
    feed.note(`${name}: ${status?.state ?? 'changed'}`);
    health.load();
  });
  mine.onAsk((prompt, question) => ask(prompt, question));
  try {
    await mine.connect();
  } catch (error) {
    if (client === mine) showError($('connect-error'), words(error));
  }
}

async function measure() {
  if (!client?.connected || document.visibilityState !== 'visible') return;
  const since = performance.now();
  await client.send({ zKey: 'ping' }).then(
    () => {
      if (client.connected) $('status-detail').textContent = milliseconds(since);
    },
    () => {},
  ); // the state says it
}

$('connect-form').addEventListener('submit', (event) => {
  event.preventDefault();
  token.keep($('token').value);
  connect($('url').value, $('token').value);
});
$('disconnect').addEventListener('click', () => client.disconnect());
$('retry').addEventListener('click', () => client.connect().catch(() => {}));

// -------------------------------------------------------------------------------------------------- records

/* What the demo schema's Users has; other models are edited as JSON. */
const USER_COLUMNS = ['id', 'name', 'email', 'age', 'role', 'active', 'verified', 'created_at'];
const USER_FIELDS = [
  { name: 'name', label: 'Name', kind: 'text', wide: true },
  { name: 'email', label: 'Email', kind: 'text', inputMode: 'email', wide: true },
  { name: 'age', label: 'Age', kind: 'number' },
  { name: 'role', label: 'Role', kind: 'text' },
  { name: 'active', label: 'Active', kind: 'bool', initial: true },
  { name: 'verified', label: 'Verified', kind: 'bool' },
];

const rows = {
  model: 'Users',
  shown: [],
  known: new Map(), // id -> the row as JSON, to see which ones changed
  order: 'id DESC',
  limit: PAGE_SIZE,
  loads: 0,
  soon: null,

  async load() {
    clearTimeout(this.soon);
    const load = (this.loads += 1);
    let filters;
    try {
      filters = this.filters();
    } catch (error) {
      this.showFilterError(`This is not a filter: ${words(error)}`);
      return;
    }
    try {
      const found = await client.read(this.model, filters, {
        order_by: this.order || undefined,
        limit: this.limit + 1,
      });
      if (load !== this.loads) return; // a newer one is under way
      this.showFilterError(null);
      this.show(found);
    } catch (error) {
      if (load !== this.loads || !client.connected) return;
      this.showFilterError(words(error));
    }
  },

  /** Plain words are searched in name and email; a text that begins with { is a filter. */
  filters() {
    const text = $('filter').value.trim();
    if (text === '') return undefined;
    if (text.startsWith('{')) return JSON.parse(text);
    const pattern = `%${text.replace(/[\\%_]/g, '\\$&')}%`;
    return this.model === 'Users' ? { $or: [{ name__ilike: pattern }, { email__ilike: pattern }] } : { id: text };
  },

  showFilterError(text) {
    showError($('filter-error'), text);
    $('filter').setAttribute('aria-invalid', String(Boolean(text)));
  },

  show(found) {
    const more = found.length > this.limit;
    this.shown = found.slice(0, this.limit);
    const columns = this.columns();
    this.showHead(columns);
    const before = this.known;
    this.known = new Map(this.shown.map((row) => [row.id, JSON.stringify(row)]));
    const focused = document.activeElement?.dataset?.focus;
    $('rows-body').replaceChildren(
      ...this.shown.map((row) => {
        const fresh = before.size > 0 && before.get(row.id) !== this.known.get(row.id);
        return make(
          'tr',
          { role: 'row', className: fresh ? 'fresh' : '' },
          ...columns.map((name) => cell(name, row[name])),
          this.actions(row),
        );
      }),
    );
    if (focused) document.querySelector(`[data-focus="${CSS.escape(focused)}"]`)?.focus();
    $('rows-count').textContent = more ? `first ${this.limit}` : closest(this.shown.length, 'row', 'rows');
    $('more').hidden = !more;
    $('rows-empty').hidden = this.shown.length > 0;
    $('rows-empty').textContent = $('filter').value.trim() ? 'No row matches.' : 'No rows yet. Create the first one.';
  },

  columns() {
    if (this.model === 'Users') return USER_COLUMNS;
    return [...new Set(this.shown.flatMap((row) => Object.keys(row)))];
  },

  showHead(columns) {
    const wanted = `${this.model} ${columns.join()} ${this.order}`;
    if ($('rows-head').dataset.shown === wanted) return;
    $('rows-head').dataset.shown = wanted;
    const [ordered, direction = 'ASC'] = this.order.split(' ');
    $('rows-head').replaceChildren(
      ...columns.map((name) => {
        const button = make('button', { type: 'button' }, label(name));
        button.addEventListener('click', () => {
          const ascending = name === ordered && direction === 'ASC';
          this.sort(`${name} ${ascending ? 'DESC' : 'ASC'}`);
          $('rows-head').children[columns.indexOf(name)].firstChild.focus();
        });
        const sorted = { ASC: 'ascending', DESC: 'descending' }[direction];
        return make(
          'th',
          { role: 'columnheader', scope: 'col', 'aria-sort': name === ordered ? sorted : 'none' },
          button,
        );
      }),
      make('th', { role: 'columnheader', scope: 'col' }, make('span', { className: 'hidden' }, 'Actions')),
    );
    $('sort').replaceChildren(
      ...columns.flatMap((name) => [
        new Option(`${label(name)}, up`, `${name} ASC`),
        new Option(`${label(name)}, down`, `${name} DESC`),
      ]),
    );
    $('sort').value = this.order;
  },

  sort(order) {
    this.order = order;
    this.showHead(this.columns());
    this.load();
  },

  actions(row) {
    const name = String(row.name ?? row.id);
    const button = (text, act) => {
      const made = make(
        'button',
        { type: 'button', className: 'plain', 'aria-label': `${text} ${name}`, 'data-focus': `${text} ${row.id}` },
        text,
      );
      made.addEventListener('click', act);
      return made;
    };
    return make(
      'td',
      { role: 'cell', className: 'row-actions' },
      button('Edit', () => record.edit(row)),
      button('Delete', () => removal.open(row, name)),
    );
  },

  /** Somebody else changed something: read anew, once for a burst. */
  heard(message) {
    const [, model] = /^(?:create|update|delete|upsert)_(.+)$/.exec(message?.zKey ?? '') ?? [];
    if (model !== this.model) return;
    clearTimeout(this.soon);
    this.soon = setTimeout(() => this.load(), 80);
  },

  pause() {
    clearTimeout(this.soon);
    this.loads += 1;
    for (const button of document.querySelectorAll('.row-actions button')) button.disabled = true;
    if (this.shown.length === 0) $('rows-empty').textContent = 'Not connected.';
  },
};

const label = (name) =>
  ({ id: 'ID', created_at: 'Created' })[name] ?? (name.charAt(0).toUpperCase() + name.slice(1)).replaceAll('_', ' ');

function cell(name, value) {
  const properties = { role: 'cell', className: name, 'data-label': label(name) };
  if (value === null || value === undefined) return make('td', { ...properties, className: `${name} none` }, '–');
  if (typeof value === 'boolean')
    return make('td', { ...properties, className: `${name} ${value ? 'yes' : 'none'}` }, value ? 'yes' : 'no');
  if (typeof value === 'string' && /^\d{4}-\d\d-\d\dT/.test(value) && !Number.isNaN(Date.parse(value))) {
    const shown = new Date(value).toLocaleString(undefined, {
      month: 'short',
      day: 'numeric',
      hour: '2-digit',
      minute: '2-digit',
    });
    return make(
      'td',
      { ...properties, className: `${name} when` },
      make('time', { dateTime: value, title: value }, shown),
    );
  }
  return make('td', properties, typeof value === 'object' ? JSON.stringify(value) : String(value));
}

/** One field of a form with its label and the place for its error. `read()` gives its value. */
function formPart({ name, label: text, kind, wide, inputMode, initial, rows: lines }, value) {
  const id = `field-${name}`;
  const error = make('p', { className: 'error', id: `${id}-error`, hidden: true });
  const described = { id, name, 'aria-describedby': error.id };
  let input;
  if (kind === 'bool') input = make('input', { ...described, type: 'checkbox', checked: value ?? initial ?? false });
  else if (kind === 'json')
    input = make('textarea', {
      ...described,
      rows: lines,
      spellcheck: false,
      value: JSON.stringify(value ?? {}, null, 2),
    });
  else
    input = make('input', {
      ...described,
      type: 'text',
      inputMode: inputMode ?? (kind === 'number' ? 'numeric' : 'text'),
      value: value ?? '',
    });
  const labelled =
    kind === 'bool'
      ? make('label', { className: 'check', htmlFor: id }, input, text)
      : make('label', { className: 'field', htmlFor: id }, text, input);
  const read = () => {
    if (kind === 'bool') return input.checked;
    if (kind === 'json') return JSON.parse(input.value);
    const typed = input.value.trim();
    if (typed === '') return null;
    // What is no number goes to the server as it is: its answer says what is wrong.
    return kind === 'number' && Number.isFinite(Number(typed)) ? Number(typed) : typed;
  };
  const fail = (message) => {
    showError(error, message);
    input.setAttribute('aria-invalid', String(Boolean(message)));
  };
  return { name, input, read, fail, element: make('div', { className: wide ? 'part wide' : 'part' }, labelled, error) };
}

const record = {
  parts: [],
  row: null,

  create() {
    this.open(null, rows.model === 'Users' ? 'New user' : `New row of ${rows.model}`, 'Create');
  },

  edit(row) {
    this.open(row, `Edit ${row.name ?? row.id}`, 'Save');
  },

  open(row, title, action) {
    this.row = row;
    const fields =
      rows.model === 'Users' ? USER_FIELDS : [{ name: 'values', label: 'Values', kind: 'json', rows: 8, wide: true }];
    this.parts = fields.map((field) => formPart(field, field.kind === 'json' ? row : row?.[field.name]));
    $('record-title').textContent = title;
    $('record-save').textContent = action;
    $('record-upsert').hidden = row !== null || rows.model !== 'Users';
    $('record-fields').replaceChildren(...this.parts.map((part) => part.element));
    showError($('record-error'), null);
    $('record').showModal();
    this.parts[0].input.focus();
  },

  /** On create what was left empty is left out, so that defaults apply; on edit only what changed is sent. */
  values() {
    if (rows.model !== 'Users') {
      const values = this.parts[0].read();
      if (this.row) delete values.id;
      return values;
    }
    const values = {};
    for (const { name, read } of this.parts) {
      const value = read();
      if (this.row ? value !== this.row[name] : value !== null) values[name] = value;
    }
    return values;
  },

  async save(way) {
    for (const part of this.parts) part.fail(null);
    showError($('record-error'), null);
    try {
      const values = this.values();
      if (this.row && Object.keys(values).length > 0) {
        const { updated } = await client.update(rows.model, this.row.id, values);
        if (updated === 0) throw new Error('This row is gone: somebody deleted it.');
      } else if (!this.row && way === 'upsert') {
        await client.upsert(rows.model, values, ['email']);
      } else if (!this.row) {
        await client.create(rows.model, values);
      }
      $('record').close();
      rows.load();
    } catch (error) {
      this.fail(error);
    }
  },

  /** Each complaint at its field; what concerns no field of the form goes above it. */
  fail(error) {
    const fields = new Map(Object.entries(error.fields ?? {}));
    let first = null;
    for (const part of this.parts) {
      if (!fields.has(part.name)) continue;
      part.fail(fields.get(part.name));
      fields.delete(part.name);
      first ??= part;
    }
    const rest = [...fields].map(([name, text]) => `${name}: ${text}`).join('; ');
    showError($('record-error'), first === null ? [words(error), rest].filter(Boolean).join(' ') : rest);
    first?.input.focus();
  },
};

const removal = {
  row: null,

  open(row, name) {
    this.row = row;
    $('removal-text').textContent = `${name} (id ${row.id}) will be gone for everybody.`;
    showError($('removal-error'), null);
    $('removal').showModal();
  },

  async confirm() {
    try {
      await client.delete(rows.model, this.row.id);
      $('removal').close();
      rows.load();
      $('rows-title').focus();
    } catch (error) {
      showError($('removal-error'), words(error));
    }
  },
};

$('new-row').addEventListener('click', () => record.create());
$('record-form').addEventListener('submit', (event) => {
  event.preventDefault();
  record.save(event.submitter?.value === 'upsert' ? 'upsert' : 'save');
});
// Enter in a field means the main button, not the first one.
$('record-form').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.target.tagName !== 'INPUT') return;
  event.preventDefault();
  $('record-form').requestSubmit($('record-save'));
});
$('removal-form').addEventListener('submit', (event) => {
  event.preventDefault();
  removal.confirm();
});

let typing = null;
$('filter').addEventListener('input', () => {
  clearTimeout(typing);
  rows.limit = PAGE_SIZE;
  // A filter that is being typed is no JSON yet; plain words are looked for at once.
  if (!$('filter').value.trim().startsWith('{'))
    typing = setTimeout(() => {
      if (client?.connected) rows.load();
    }, 150);
});
$('filter-form').addEventListener('submit', (event) => {
  event.preventDefault();
  clearTimeout(typing);
  if (client?.connected) rows.load();
});
$('sort').addEventListener('change', () => rows.sort($('sort').value));
$('more').addEventListener('click', () => {
  rows.limit += PAGE_SIZE;
  rows.load();
});
$('model').addEventListener('change', () => {
  Object.assign(rows, { model: $('model').value, shown: [], known: new Map(), order: 'id DESC', limit: PAGE_SIZE });
  $('model-name').textContent = rows.model;
  $('filter').value = '';
  rows.load();
});

// ------------------------------------------------------------------------------------------------ questions

/** What was answered last to a question that is still open, by its id: nobody types a form twice. */
const answered = new Map();

/** One question of the server as a dialog. Resolves with the answer, or null when it is declined. */
function ask(prompt, { askId, timeout, signal, error }) {
  const id = `ask-${askId}`;
  const before = answered.get(askId);
  const parts =
    prompt.kind === 'form'
      ? Object.entries(prompt.fields).map(([name, field]) => questionPart(field, `${id}-${name}`, before?.[name], name))
      : [questionPart(prompt, id, before)];
  const complaint = make('p', { className: 'notice bad', role: 'alert', hidden: true });
  const remaining = make('span', { className: 'quiet' });
  const cancel = make('button', { type: 'button', className: 'plain' }, 'Cancel');
  const title = make('h2', { id: `${id}-title` }, prompt.label || 'A question of the server');
  const buttons =
    prompt.kind === 'confirm'
      ? [
          make('button', { type: 'submit', value: 'false' }, 'No'),
          make('button', { type: 'submit', value: 'true', className: 'primary' }, 'Yes'),
        ]
      : [make('button', { type: 'submit', className: 'primary' }, 'Answer')];
  const form = make(
    'form',
    { method: 'dialog', noValidate: true },
    title,
    complaint,
    ...parts.map((part) => part.element),
    make('p', { className: 'dialog-actions' }, cancel, remaining, ...buttons),
  );
  const dialog = make('dialog', { className: 'ask', 'aria-labelledby': title.id }, form);
  const end = performance.now() + timeout * 1000;
  const clock = setInterval(() => {
    const left = Math.ceil((end - performance.now()) / 1000);
    remaining.textContent = left <= 20 ? `${Math.max(0, left)} s left` : '';
  }, 500);
  if (error) {
    const fields = new Map(Object.entries(error.fields));
    for (const part of parts) part.fail(fields.get(part.name) ?? null);
    if (fields.size === 0 && parts.length === 1) parts[0].fail(words(error));
    else if (fields.size === 0) showError(complaint, words(error));
  }
  return new Promise((resolve) => {
    const settle = (value) => {
      clearInterval(clock);
      if (value === null) answered.delete(askId);
      else answered.set(askId, value);
      resolve(value);
      dialog.remove();
    };
    cancel.addEventListener('click', () => dialog.close());
    dialog.addEventListener('close', () => settle(null));
    signal.addEventListener('abort', () => dialog.close());
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (prompt.kind === 'confirm') settle(event.submitter.value === 'true');
      else if (prompt.kind === 'form') settle(formAnswer(parts));
      else if (parts[0].read() === undefined) parts[0].fail('Choose one.');
      else settle(parts[0].read());
    });
    document.body.append(dialog);
    dialog.showModal();
    (parts.find((part) => part.invalid) ?? parts[0]).focus(buttons.at(-1));
  });
}

/** What nobody chose is left out. */
function formAnswer(parts) {
  return Object.fromEntries(parts.map((part) => [part.name, part.read()]).filter(([, value]) => value !== undefined));
}

/** One prompt as a control: {name, element, read, fail, focus}. `before` is the answer that was not accepted. */
function questionPart(prompt, id, before, name = '') {
  const { kind, choices = [], multiple = false } = prompt;
  const inForm = name !== '';
  const initial = kind === 'password' ? '' : (before ?? prompt.default);
  const text = inForm ? prompt.label || name : 'Answer';
  const error = make('p', { className: 'error', id: `${id}-error`, hidden: true });
  const described = { id, 'aria-describedby': error.id };
  let read;
  let controls = [];
  let body;
  if (kind === 'choice' || (kind === 'confirm' && inForm)) {
    const options = kind === 'confirm' ? [true] : choices;
    const chosen = [initial].flat();
    controls = options.map((choice, n) =>
      make('input', {
        id: `${id}-${n}`,
        name: id,
        'aria-describedby': error.id,
        type: multiple || kind === 'confirm' ? 'checkbox' : 'radio',
        checked: chosen.includes(choice),
      }),
    );
    const labels = controls.map((control, n) =>
      make(
        'label',
        { className: 'check', htmlFor: control.id },
        control,
        kind === 'confirm' ? text : asJson(options[n]),
      ),
    );
    body = kind === 'confirm' ? labels[0] : make('fieldset', {}, make('legend', {}, text), ...labels);
    read = () => {
      if (kind === 'confirm') return controls[0].checked;
      const picked = options.filter((_, n) => controls[n].checked);
      return multiple ? picked : picked[0];
    };
  } else if (kind !== 'confirm') {
    controls = [
      make('input', {
        ...described,
        type: kind === 'password' ? 'password' : 'text',
        value: initial ?? '',
        autocomplete: 'off',
      }),
    ];
    if (prompt.max_length > 0) controls[0].maxLength = prompt.max_length;
    body = make(
      'label',
      { className: inForm ? 'field' : 'field sole', htmlFor: id },
      make('span', { className: inForm ? '' : 'hidden' }, text),
      controls[0],
    );
    read = () => controls[0].value;
  }
  return {
    name,
    read,
    invalid: false,
    element: make('div', { className: 'part' }, body, error),
    fail(message) {
      this.invalid = Boolean(message);
      showError(error, message);
      for (const control of controls) control.setAttribute('aria-invalid', String(Boolean(message)));
    },
    focus(otherwise) {
      (controls.find((control) => control.checked) ?? controls[0] ?? otherwise).focus();
    },
  };
}

// ------------------------------------------------------------------------- functions, pages, files, commands

$('function-form').addEventListener('submit', (event) => {
  event.preventDefault();
  const [name, args] = [$('function-name').value.trim(), $('function-args').value.trim()];
  const box = $('function-progress');
  const bar = box.querySelector('progress');
  const onProgress = ({ done, total, text }) => {
    box.hidden = false;
    if (total) Object.assign(bar, { max: total, value: done });
    else bar.removeAttribute('value');
    $('function-progress-text').textContent = text ?? '';
  };
  $('function-result').replaceChildren();
  showOutcome($('function-result'), () =>
    client.zFunc(`zFunc(${name}${args ? `, ${args}` : ''})`, { onProgress }),
  ).finally(() => {
    box.hidden = true;
  });
});
for (const button of document.querySelectorAll('[data-function]')) {
  button.addEventListener('click', () => {
    $('function-name').value = button.dataset.function;
    $('function-args').value = button.dataset.args;
    $('function-form').requestSubmit();
  });
}

$('link-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showOutcome($('link-result'), () => client.zLink($('link-path').value));
});

$('open-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showOutcome(
    $('open-result'),
    () => client.zOpen($('open-file').value),
    ({ name, type, size, modified, text }) =>
      make(
        'div',
        {},
        make(
          'p',
          { className: 'latency' },
          [name, type, closest(size, 'byte', 'bytes'), new Date(modified).toLocaleString()].join(' · '),
        ),
        make('pre', {}, text ?? 'Not a text.'),
      ),
  );
});

$('raw-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showOutcome($('raw-result'), async () => client.send(JSON.parse($('raw').value)));
});
$('raw').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('raw-form').requestSubmit();
});

// ----------------------------------------------------------------------------------------- feed and health

const feed = {
  add(item) {
    const list = $('feed');
    list.prepend(item);
    while (list.children.length > FEED_LENGTH) list.lastChild.remove();
    $('feed-empty').hidden = true;
  },

  time: () => make('time', { dateTime: new Date().toISOString() }, new Date().toLocaleTimeString()),

  note(text) {
    this.add(make('li', { className: 'said' }, this.time(), text));
  },

  display(data) {
    const text = typeof data?.text === 'string' ? data.text : asJson(data);
    this.add(make('li', { className: 'display' }, this.time(), text));
  },

  broadcast(message) {
    const keyed = typeof message?.zKey === 'string';
    const content = keyed && Object.hasOwn(message, 'result') ? message.result : message;
    const summary = make('summary', {}, this.time(), keyed ? make('b', {}, `${message.zKey} `) : null, asJson(content));
    this.add(make('li', {}, make('details', {}, summary, make('pre', {}, asJson(content, 2)))));
  },
};
$('feed-clear').addEventListener('click', () => {
  $('feed').replaceChildren();
  $('feed-empty').hidden = false;
});

const health = {
  async load() {
    // The report is about the server of this page, which may not be the one we are connected to.
    if (!client?.connected || new URL(client.url).host !== location.host) return;
    let report;
    try {
      report = await (await fetch('/health', { cache: 'no-store' })).json();
    } catch {
      return; // the connection's own state says that the server is away
    }
    const entries = [];
    const add = (name, mark, text) =>
      entries.push(
        make('dt', {}, name),
        make('dd', {}, make('span', { className: `dot ${mark}`, ariaHidden: 'true' }), text),
      );
    add('Server', report.status === 'ok' ? 'good' : 'bad', report.status);
    if (report.database) add('Database', report.database === 'ok' ? 'good' : 'bad', report.database);
    for (const [name, { state, health: condition, port }] of Object.entries(report.services ?? {})) {
      const mark = { running: 'good', error: 'bad', starting: 'warn', stopping: 'warn' }[state] ?? '';
      add(
        name,
        mark,
        [state, condition === state ? null : condition, port && `port ${port}`].filter(Boolean).join(', '),
      );
    }
    entries.push(make('dt', {}, 'Clients'), make('dd', {}, String(report.clients)));
    entries.push(make('dt', {}, 'Running for'), make('dd', {}, duration(report.uptime)));
    $('health').replaceChildren(...entries);
    $('health-empty').hidden = true;
    if (report.status !== 'ok') setTimeout(() => this.load(), 2000);
    if (Array.isArray(report.models)) this.showModels(report.models);
  },

  clear() {
    $('health').replaceChildren();
    $('health-empty').hidden = false;
  },

  showModels(models) {
    if ($('model').options.length === models.length) return;
    $('model').replaceChildren(...models.map((name) => new Option(name, name)));
    $('model').value = rows.model;
    $('model-label').hidden = models.length < 2;
  },
};

function duration(seconds) {
  const parts = [
    [Math.floor(seconds / 86400), 'd'],
    [Math.floor(seconds / 3600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'min'],
    [Math.floor(seconds) % 60, 's'],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  return first < 0
    ? '0 s'
    : parts
        .slice(first, first + 2)
        .map(([value, unit]) => `${value} ${unit}`)
        .join(' ');
}

setInterval(() => {
  if (document.visibilityState !== 'visible') return;
  measure();
  health.load();
}, 10_000);

// ---------------------------------------------------------------------------------------------------- start

const secret = token.read();
$('url').value = location.origin.replace(/^http/, 'ws');
$('token').value = secret;
rows.showHead(USER_COLUMNS);
connect($('url').value, secret);

// A link with a token that is opened in a tab where the page is already changes only the fragment.
window.addEventListener('hashchange', () => {
  if (!location.hash.startsWith('#token=')) return;
  const given = token.read();
  $('token').value = given;
  connect($('url').value, given);
});
