/** What the server says is there for us (zDescribe): models, functions, pages, and who we are. */
import { client, on } from './connection.js';
import { $ } from './dom.js';
import { forget, onForget } from './visitor.js';

const NOTHING = { identity: null, models: {}, functions: {}, pages: {}, files: true };

export let description = NOTHING;

let shownTo = null; // the server and identity that the page shows things of
let current = false; // whether the connection that there is has told of them
let asking = Promise.resolve();

/** Ask anew, and offer what there is. */
export function describe() {
  asking = ask();
  return asking;
}

/** Wait until `description` is of the connection that there is. Fails where there is none. */
export async function described() {
  await asking;
  if (!current) throw new Error('Not connected: nothing was sent.');
}

async function ask() {
  const asked = client;
  let answer = NOTHING;
  try {
    answer = { ...NOTHING, ...(await asked.send({ zKey: 'zDescribe' })) };
  } catch {
    // A server that does not describe itself can be used all the same.
  }
  if (asked !== client || !asked.connected) return;
  const { identity, functions, pages, files } = answer;
  // A token may stand for somebody else after a reconnection.
  const now = JSON.stringify([asked.url, identity?.name, identity?.role]);
  if (shownTo !== null && shownTo !== now) forget();
  shownTo = now;
  [description, current] = [answer, true];
  $('identity').textContent = identity ? `as ${identity.name}` : '';
  offer('function-names', Object.keys(functions));
  offer('link-paths', Object.keys(pages));
  suggest('function-name', Object.keys(functions)[0]);
  suggest('link-path', Object.keys(pages).find((path) => path !== '/') ?? Object.keys(pages)[0]);
  $('function-hint').hidden = Object.keys(functions).length > 0;
  $('link-hint').hidden = Object.keys(pages).length > 0;
  $('open-hint').hidden = files;
}

const offer = (list, names) => $(list).replaceChildren(...names.map((name) => new Option('', name)));

/** Propose what is there. What a person typed is left alone. */
function suggest(field, name = '') {
  const input = $(field);
  if (input.value === input.defaultValue) input.value = input.defaultValue = name;
}

// What comes back after a loss may be another server.
on('state', ({ state }) => {
  if (state !== 'connected') current = false;
});

onForget(() => {
  [description, shownTo] = [NOTHING, null];
  for (const list of ['function-names', 'link-paths']) $(list).replaceChildren();
  for (const field of ['function-name', 'link-path']) $(field).defaultValue = '';
  for (const hint of ['function-hint', 'link-hint', 'open-hint']) $(hint).hidden = true;
});
