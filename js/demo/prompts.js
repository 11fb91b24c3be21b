/** Prompts: what the server asks the person in front of the page: text, password, choice, confirmation, form. */
import { asJson, make, showError, words } from './dom.js';

/** What was answered last to a prompt that is still open, by its id: nobody types a form twice. */
const answered = new Map();

/** One prompt of the server as a dialog. Resolves with the answer, or null when it is declined. */
export function ask(prompt, { askId, timeout, signal, error }) {
  const id = `ask-${askId}`;
  const before = answered.get(askId);
  const parts =
    prompt.kind === 'form'
      ? Object.entries(prompt.fields).map(([name, field]) => promptPart(field, `${id}-${name}`, before?.[name], name))
      : [promptPart(prompt, id, before)];
  const complaint = make('p', { className: 'notice bad', role: 'alert', hidden: true });
  const remaining = make('span', { className: 'quiet' });
  const cancel = make('button', { type: 'button', className: 'plain' }, 'Cancel');
  const title = make('h2', { id: `${id}-title` }, prompt.label || 'A prompt from the server');
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
function promptPart(prompt, id, before, name = '') {
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
