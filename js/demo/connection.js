/** The connection: its client, the top bar that shows its state, and the form for another server or token. */
import { zBifrost } from '../zBifrost.js';
import { $, elapsed, showError, showOnline, words } from './dom.js';
import { forget } from './visitor.js';

const STATES = {
  disconnected: 'Disconnected',
  connecting: 'Connecting',
  connected: 'Connected',
  reconnecting: 'Reconnecting',
};

/** The client of the connection that is shown; another one is made when the form asks for another server. */
export let client = null;

const listeners = [];
let onAsk = null;
let countdown = null;
let shownFor = null; // the address and token of the client, as the visitor gave them
let left = false; // whether the page was left while it connected

/** Hear an event of whichever client is shown; see `on` of zBifrost. */
export function on(event, listener) {
  listeners.push([event, listener]);
}

/** Who answers the server's prompts; see `onAsk` of zBifrost. */
export function answerWith(answer) {
  onAsk = answer;
}

/** What this tab signs in with: the code of the link that was opened, until it is traded for a token, and the token. */
const kept = {
  get: (what) => sessionStorage.getItem(`zbifrost.${what}`) ?? '',
  set(what, value) {
    if (value) sessionStorage.setItem(`zbifrost.${what}`, value);
    else sessionStorage.removeItem(`zbifrost.${what}`);
  },
};

function readLink() {
  const code = new URLSearchParams(location.hash.slice(1)).get('code');
  if (code === null) return;
  kept.set('code', code);
  history.replaceState(null, '', location.pathname + location.search);
}

/** Trade the code of a link, which is good once, for the token of a session: the answer to the first `zDescribe` of
 * a connection that the code has opened. Fails with the close event of one that it has not. */
function trade(url, code) {
  return new Promise((resolve, reject) => {
    const socket = new WebSocket(url, ['zbifrost.v1', `code.${code}`]);
    socket.addEventListener('open', () =>
      socket.send('{"zKey": "zDescribe", "zHorizontal": ["identity"], "_requestId": 1}'),
    );
    socket.addEventListener('message', ({ data }) => {
      // What others are told may come before the answer.
      if (!/"_requestId":\s*1\b/.test(data)) return;
      const { _requestId, result, error } = JSON.parse(data);
      if (_requestId !== 1) return;
      if (error === undefined) resolve(result.session ?? '');
      else reject(new Error(error));
      socket.close();
    });
    socket.addEventListener('close', reject);
  });
}

function showState(state) {
  clearInterval(countdown);
  $('status').dataset.state = state;
  if ($('status-text').textContent !== STATES[state]) $('status-text').textContent = STATES[state];
  $('status-detail').textContent = '';
  if (state !== 'connected') $('identity').textContent = '';
  const away = state === 'disconnected';
  // Whoever has the focus on what goes away gets it where to go on.
  const focused = document.activeElement;
  const goesAway = away ? focused === $('disconnect') : $('connect').contains(focused) || focused === $('to-connect');
  $('retry').hidden = state !== 'reconnecting';
  $('disconnect').hidden = away;
  $('to-connect').hidden = !away;
  $('connect').hidden = !away;
  if (focused === $('retry') && $('retry').hidden) $('disconnect').focus();
  else if (goesAway) (away ? $('token') : $('disconnect')).focus();
  showOnline(state === 'connected');
}

function showEngine({ state }) {
  if (client.connected) $('status-text').textContent = state === 'ok' ? STATES.connected : 'Connected, engine away';
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

/** Show in the top bar how long a command takes. */
export async function measure() {
  if (!client?.connected || document.visibilityState !== 'visible') return;
  const since = performance.now();
  try {
    await client.send({ zKey: 'ping' });
    if (client.connected) $('status-detail').textContent = elapsed(since);
  } catch {
    // The state says it.
  }
}

async function connect(url, secret) {
  client?.disconnect();
  const now = JSON.stringify([url, secret]);
  if (shownFor !== null && shownFor !== now) forget();
  shownFor = now;
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
  for (const [event, listener] of [
    ['state', ({ state }) => showState(state)],
    ['open', () => showError($('connect-error'), null)],
    ['reconnecting', showCountdown],
    ['engine', showEngine],
    ['error', (error) => showError($('connect-error'), words(error))],
    ...listeners,
  ]) {
    mine.on(event, (...values) => {
      // What an earlier client still says is of no interest any more.
      if (client === mine) listener(...values);
    });
  }
  mine.onAsk(onAsk);
  try {
    await mine.connect();
  } catch (error) {
    if (client === mine) showError($('connect-error'), words(error));
  }
}

/** The reason of a close that says that nobody has that code any more. */
const REFUSED = 'Invalid token';

function whyNot({ code, reason, message }, url) {
  if (code === 1006) return `Cannot connect to ${url}`;
  if (reason !== REFUSED) return `This link does not sign you in: ${reason || message} (${code ?? 'no answer'})`;
  return 'This link does not sign you in (1008): a link works once and for ten minutes; run "zcomm url" for another';
}

/** Connect with what this tab has; a link's code comes first, also when the attempt before did not reach the server. */
async function signIn() {
  const url = $('url').value;
  // It is for the server that the page is from, and for no other that the form may name.
  const code = url === home ? kept.get('code') : '';
  if (code) {
    // Who opens a link may be somebody else than the visitor before.
    client?.disconnect();
    if (shownFor !== null) forget();
    shownFor = null;
    kept.set('token', '');
    $('token').value = '';
    showError($('connect-error'), null);
    showState('connecting');
    let failure = null;
    const session = await trade(url, code).catch((event) => {
      failure = event;
    });
    // Disconnect was pressed meanwhile, or another link was opened.
    if (kept.get('code') !== code) return;
    // What passes, such as a server that is busy or away, leaves the code as good as it was.
    if (!(failure instanceof CloseEvent) || failure.reason === REFUSED) kept.set('code', '');
    if (failure !== null) {
      showState('disconnected');
      showError($('connect-error'), whyNot(failure, url));
      return;
    }
    kept.set('token', session);
  }
  $('token').value = kept.get('token');
  await connect(url, kept.get('token'));
}

/** The address of the server that the page is from: a proxy may have put it below a path. */
export const home = new URL('..', import.meta.url).href.replace(/^http/, 'ws');

/** Connect to the server that the page is from. */
export function start() {
  $('url').value = home;
  readLink();
  signIn();
}

$('connect-form').addEventListener('submit', (event) => {
  event.preventDefault();
  if ($('token').value) kept.set('code', '');
  kept.set('token', $('token').value);
  signIn();
});
$('disconnect').addEventListener('click', () => {
  client?.disconnect();
  kept.set('code', '');
  kept.set('token', '');
  [$('url').value, $('token').value] = [home, ''];
  showState('disconnected');
  forget();
});
$('to-connect').addEventListener('click', () => $('token').focus());
$('retry').addEventListener('click', () => client.connect().catch(() => {}));

// A link that is opened in a tab where the page is already changes only the fragment.
window.addEventListener('hashchange', () => {
  if (!location.hash.startsWith('#code=')) return;
  readLink();
  signIn();
});

// A page that was left during its first attempt comes back from the browser's cache without a connection.
window.addEventListener('pagehide', () => {
  left = client?.state === 'connecting';
});
window.addEventListener('pageshow', (event) => {
  if (event.persisted && left && client.state === 'disconnected') connect($('url').value, $('token').value);
});
