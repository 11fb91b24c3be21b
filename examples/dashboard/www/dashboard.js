/* A line for each sensor of the halls that are chosen. What came before, and what was missed, the topics bring. */
import { signIn, zBifrost } from '/zBifrost.js';

const KEPT = 300; // seconds
const LAST = 600; // values of one sensor in that time
const $ = (id) => document.getElementById(id);

let client;
let heard = 0;
const sensors = new Map(); // by topic
const chosen = new Set(JSON.parse(localStorage.getItem('dashboard.halls') ?? '["north"]'));

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

const tell = (text) => ($('notice').textContent = text);

class Sensor {
  points = []; // [seconds, value], the oldest first
  isStale = true;

  constructor({ topic, unit }) {
    const [, hall, name] = topic.split(':');
    this.hall = hall;
    this.unit = unit;
    this.now = make('b', {}, '–');
    this.range = make('p', { className: 'quiet range' }, '\u00a0');
    this.line = make('canvas', { ariaHidden: 'true' });
    const heading = make('h2', {}, name, make('span', { className: 'quiet' }, ` ${hall}`));
    this.tile = make('article', {}, heading, make('p', { className: 'now' }, this.now, ` ${unit}`), this.line, this.range);
    this.tile.dataset.topic = topic;
    this.topic = client.topic(topic, { last: LAST });
    this.topic.on('message', ({ data, replayed }) => {
      this.points.push([data.at, data.value]);
      this.isStale = true;
      if (!replayed) heard += 1;
    });
    this.topic.on('continuity', ({ recovered }) => {
      if (recovered) return;
      this.points = [];
      tell('The program has started anew: earlier values are gone.');
    });
    this.topic.on('error', (error) => tell(error.message));
  }

  watch(isWanted) {
    this.tile.hidden = !isWanted;
    // Without a subscription nothing comes; with one the past comes first.
    if (isWanted && this.topic.state === 'unsubscribed') {
      this.points = [];
      // Chosen and given up again at once is no failure.
      this.topic.subscribe().catch((error) => error.code !== 'request_aborted' && tell(error.message));
    } else if (!isWanted && this.topic.state !== 'unsubscribed') {
      this.topic.unsubscribe().catch((error) => tell(error.message));
    }
  }

  draw(colour) {
    this.isStale = false;
    const end = this.points.at(-1)?.[0] ?? 0;
    const old = this.points.findIndex(([at]) => at > end - KEPT);
    if (old > 0) this.points.splice(0, old);
    const { clientWidth, clientHeight } = this.line;
    const scale = devicePixelRatio;
    const [width, height] = [Math.round(clientWidth * scale), Math.round(clientHeight * scale)];
    if (this.line.width !== width || this.line.height !== height) Object.assign(this.line, { width, height });
    const context = this.line.getContext('2d');
    context.clearRect(0, 0, width, height);
    if (this.points.length === 0) return;
    const values = this.points.map(([, value]) => value);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const x = (at) => width * (1 - (end - at) / KEPT);
    const y = (value) => height - 3 * scale - ((value - low) / (high - low || 1)) * (height - 6 * scale);
    context.beginPath();
    for (const [at, value] of this.points) context.lineTo(x(at), y(value));
    Object.assign(context, { lineWidth: 1.5 * scale, lineJoin: 'round', strokeStyle: colour });
    context.stroke();
    this.now.textContent = values.at(-1).toFixed(1);
    this.range.textContent = `${low.toFixed(1)} to ${high.toFixed(1)}, ${this.points.length} values`;
  }
}

/** Draws what has changed, at most once for each picture of the screen. */
function draw() {
  const colour = getComputedStyle(document.body).getPropertyValue('--accent');
  for (const sensor of sensors.values()) if (sensor.isStale && !sensor.tile.hidden) sensor.draw(colour);
  requestAnimationFrame(draw);
}

function choose() {
  localStorage.setItem('dashboard.halls', JSON.stringify([...chosen]));
  for (const sensor of sensors.values()) sensor.watch(chosen.has(sensor.hall));
  $('none').hidden = [...sensors.values()].some(({ hall }) => chosen.has(hall));
}

function build(described) {
  for (const each of described) sensors.set(each.topic, new Sensor(each));
  const halls = [...new Set([...sensors.values()].map(({ hall }) => hall))];
  $('halls').append(
    ...halls.map((hall) => {
      const box = make('input', { type: 'checkbox', checked: chosen.has(hall) });
      box.addEventListener('change', () => {
        if (box.checked) chosen.add(hall);
        else chosen.delete(hall);
        choose();
      });
      return make('label', {}, box, hall);
    }),
  );
  $('sensors').append(...[...sensors.values()].map(({ tile }) => tile));
}

async function start() {
  client = new zBifrost(undefined, await signIn());
  client.on('state', ({ state }) => {
    $('status').dataset.state = state;
    $('status').textContent = state;
    // It does not come back by itself; `error` tells why.
    $('sign-out').textContent = state === 'disconnected' ? 'Sign in again' : 'Sign out';
  });
  client.on('error', (error) => tell(error.message));
  await client.connect();
  build(await client.send({ zKey: 'sensors' }));
  $('sign-in').hidden = true;
  $('app').hidden = false;
  choose();
  requestAnimationFrame(draw);
  setInterval(() => {
    $('rate').textContent = Math.round(heard / 2);
    heard = 0;
  }, 2000);
  for (const query of ['(prefers-color-scheme: dark)', '(max-width: 640px)']) {
    matchMedia(query).addEventListener('change', stale);
  }
  addEventListener('resize', stale);
}

function stale() {
  for (const sensor of sensors.values()) sensor.isStale = true;
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

begin();
