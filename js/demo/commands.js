/** The cards for functions, pages, files and raw commands. */
import { client } from './connection.js';
import { description } from './description.js';
import { $, counted, make, showOutcome } from './dom.js';
import { own, parse } from './values.js';
import { onForget } from './visitor.js';

/** What the examples of the guide are called with. */
const ARGUMENTS = { calculateTotal: '{cart_id: 123}' };

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

/** Buttons for the first few functions. One without parameters is called at once, and so is one we know. */
export function offerExamples() {
  const buttons = Object.entries(description.functions)
    .slice(0, 3)
    .map(([name, { parameters, about }]) => {
      const button = make('button', { type: 'button', className: 'example', title: about, 'data-online': '' }, name);
      button.addEventListener('click', () => {
        const known = own(ARGUMENTS, name);
        $('function-name').value = name;
        $('function-args').value = known ?? '';
        showParameters();
        if (parameters.length === 0 || known !== undefined) $('function-form').requestSubmit();
        else $('function-args').focus();
      });
      return button;
    });
  $('function-examples').replaceChildren(...buttons);
  // What is proposed comes with the arguments that it takes.
  if ($('function-args').value === '' && $('function-name').value === $('function-name').defaultValue) {
    $('function-args').value = own(ARGUMENTS, $('function-name').value) ?? '';
  }
  showParameters();
}

function showParameters() {
  const known = own(description.functions, $('function-name').value.trim());
  $('function-args').placeholder = known?.parameters.join(', ') || 'none';
  $('function-about').textContent = known?.about ?? '';
}
$('function-name').addEventListener('input', showParameters);

$('link-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showOutcome($('link-result'), () => client.zLink($('link-path').value));
});

$('open-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showOutcome(
    $('open-result'),
    () => client.zOpen($('open-file').value),
    ({ name, type, size, modified, text }) => {
      const facts = [name, type, counted(size, 'byte', 'bytes'), new Date(modified).toLocaleString()];
      return make(
        'div',
        {},
        make('p', { className: 'latency' }, facts.join(' · ')),
        make('pre', {}, text ?? 'Not a text.'),
      );
    },
  );
});

$('raw-form').addEventListener('submit', (event) => {
  event.preventDefault();
  showOutcome($('raw-result'), async () => client.send(parse($('raw').value)));
});
$('raw').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) $('raw-form').requestSubmit();
});

onForget(() => {
  for (const form of ['function-form', 'link-form', 'open-form', 'raw-form']) $(form).reset();
  for (const result of ['function-result', 'link-result', 'open-result', 'raw-result']) $(result).replaceChildren();
  $('function-examples').replaceChildren();
  $('function-progress').hidden = true;
  showParameters();
});
