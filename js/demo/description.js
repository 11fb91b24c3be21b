/** What the server says is there for us (zDescribe): models, functions, pages, and who we are. */
import { client } from './connection.js';
import { $ } from './dom.js';

const NOTHING = { identity: null, models: {}, functions: {}, pages: {}, files: false };

export let description = NOTHING;

/** Ask anew, and offer what there is. */
export async function describe() {
  const asked = client;
  let answer = NOTHING;
  try {
    answer = { ...NOTHING, ...(await asked.send({ zKey: 'zDescribe' })) };
  } catch {
    // A server that does not describe itself can be used all the same.
  }
  if (asked !== client) return;
  description = answer;
  const { identity, functions, pages, files } = description;
  $('identity').textContent = identity ? `as ${identity.name}` : '';
  offer('function-names', Object.keys(functions));
  offer('link-paths', Object.keys(pages));
  suggest('function-name', Object.keys(functions));
  suggest('link-path', Object.keys(pages));
  $('open-hint').hidden = files;
}

const offer = (list, names) => $(list).replaceChildren(...names.map((name) => new Option('', name)));

/** What the field proposes must be there. What a person typed is left alone. */
function suggest(field, names) {
  const input = $(field);
  if (names.length > 0 && input.value === input.defaultValue && !names.includes(input.value)) {
    input.value = input.defaultValue = names[0];
  }
}
