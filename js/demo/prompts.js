/** Prompts: what the server asks the person in front of the page: text, password, choice, confirmation, form. */
import { isSubmit, textControl } from './controls.js';
import { asJson, make, newId, showError, words } from './dom.js';
import { own } from './values.js';
import { onForget } from './visitor.js';

/** What was answered last to a prompt that is still open, by its id: nobody types a form twice. */
const answered = new Map();
onForget(() => answered.clear());

/** One prompt of the server as a dialog. Resolves with the answer, or null when it is declined. */
export function ask(prompt, { askId, timeout, signal, error }) {
  const before = error ? answered.get(askId) : undefined;
  const parts =
    prompt.kind === 'form'
      ? Object.entries(prompt.fields).map(([name, field]) => promptPart(field, own(before, name), name))
      : [promptPart(prompt, before)];
  const complaint = make('p', { className: 'notice bad', role: 'alert', hidden: true });
  const remaining = make('span', { className: 'quiet' });
  const cancel = make('button', { type: 'button', className: 'plain' }, 'Cancel');
  const title = make('h2', { id: newId() }, prompt.label || 'A prompt from the server');
  const buttons =
    prompt.kind === 'confirm'
      ? [
          make('button', { type: 'submit', value: 'false' }, 'No'),
          make('button', { type: 'submit', value: 'true', className: 'primary' }, 'Yes'),
        ]
      : [make('button', { type: 'submit', className: 'primary' }, 'Answer')];
  // Enter that was meant for something else must not say yes, unless the program proposes it.
  const first = prompt.kind === 'confirm' && prompt.default !== true ? buttons[0] : buttons.at(-1);
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
    let settled = false;
    const settle = (value) => {
      if (settled) return;
      settled = true;
      clearInterval(clock);
      if (value === null) answered.delete(askId);
      else answered.set(askId, value);
      resolve(value);
      // Closed first: that gives the focus back to where it was.
      dialog.close();
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
    form.addEventListener('keydown', (event) => {
      if (!isSubmit(event)) return;
      event.preventDefault();
      form.requestSubmit();
    });
    document.body.append(dialog);
    dialog.showModal();
    (parts.find((part) => part.invalid) ?? parts[0]).focus(first);
  });
}

/** What nobody chose is left out. */
function formAnswer(parts) {
  return Object.fromEntries(parts.map((part) => [part.name, part.read()]).filter(([, value]) => value !== undefined));
}

/** One prompt as a control: {name, element, read, fail, focus}. `before` is the answer that was not accepted. */
function promptPart(prompt, before, name = null) {
  const { kind, choices = [], multiple = false } = prompt;
  const inForm = name !== null;
  const id = newId();
  const initial = kind === 'password' ? '' : (before ?? prompt.default);
  const text = inForm ? prompt.label || name : 'Answer';
  const error = make('p', { className: 'error', id: newId(), hidden: true });
  const described = { 'aria-describedby': error.id };
  let read;
  let controls = [];
  let body;
  if (kind === 'choice' || (kind === 'confirm' && inForm)) {
    const options = kind === 'confirm' ? [true] : choices;
    const chosen = [initial].flat();
    const type = multiple || kind === 'confirm' ? 'checkbox' : 'radio';
    controls = options.map((choice) =>
      make('input', { ...described, id: newId(), name: id, type, checked: chosen.includes(choice) }),
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
    const properties = { ...described, id, autocomplete: 'off' };
    const control = kind === 'password' ? passwordControl(properties) : textControl(initial ?? '', properties);
    controls = [control.input];
    body = make(
      'label',
      { className: inForm ? 'field' : 'field sole', htmlFor: id },
      make('span', { className: inForm ? '' : 'hidden' }, text),
      control.input,
    );
    ({ read } = control);
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

function passwordControl(properties) {
  const input = make('input', { ...properties, type: 'password' });
  return { input, read: () => input.value };
}
