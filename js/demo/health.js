/** The server card: the health report of the server, its database and the services that it runs. */
import { client, home, on } from './connection.js';
import { $, make } from './dom.js';
import { own } from './values.js';
import { visit } from './visitor.js';

const MARKS = { running: 'good', error: 'bad', starting: 'warn', stopping: 'warn' };

let again = null;

function entry(name, mark, text) {
  const dot = mark === null ? null : make('span', { className: `dot ${mark}`, ariaHidden: 'true' });
  return [make('dt', {}, name), make('dd', {}, dot, make('span', {}, text))];
}

/** Ask for the report and show it. */
export async function loadHealth() {
  clearTimeout(again);
  // The report is about the server of this page, which may not be the one we are connected to.
  if (!client?.connected || client.url.split('?')[0] !== home) return;
  const mine = visit;
  let report;
  try {
    report = await (await fetch(home.replace(/^ws/, 'http') + 'health', { cache: 'no-store' })).json();
  } catch {
    return; // the connection's own state says that the server is away
  }
  if (!client.connected || visit !== mine) return;
  const well = (text) => (text === 'ok' ? 'good' : 'bad');
  const entries = [entry('Server', well(report.status), report.status)];
  if (report.database) entries.push(entry('Database', well(report.database), report.database));
  for (const [name, { state, health, port }] of Object.entries(report.services ?? {})) {
    const ill = ['healthy', 'unknown', state].includes(health) ? null : health;
    const where = state === 'running' ? `port ${port}` : null;
    entries.push(entry(name, own(MARKS, state) ?? '', [state, ill, where].filter(Boolean).join(', ')));
  }
  entries.push(entry('Clients', null, String(report.clients)), entry('Running for', null, duration(report.uptime)));
  $('health').replaceChildren(...entries.flat());
  $('health-empty').hidden = true;
  if (report.status !== 'ok') again = setTimeout(loadHealth, 2000);
}

function duration(seconds) {
  const parts = [
    [Math.floor(seconds / 86400), 'd'],
    [Math.floor(seconds / 3600) % 24, 'h'],
    [Math.floor(seconds / 60) % 60, 'min'],
    [Math.floor(seconds) % 60, 's'],
  ];
  const first = parts.findIndex(([value]) => value > 0);
  if (first < 0) return '0 s';
  const shown = parts.slice(first, first + 2);
  return shown.map(([value, unit]) => `${value} ${unit}`).join(' ');
}

on('open', loadHealth);
on('service', loadHealth);
on('state', ({ state }) => {
  if (state === 'connected') return;
  clearTimeout(again);
  $('health').replaceChildren();
  $('health-empty').hidden = false;
});
