/** The demo page: what a program does with zBifrost.js, shown part by part. Each part is a file beside this one. */
import { enter } from './chat.js';
import { offerExamples } from './commands.js';
import { answerWith, client, measure, on, start } from './connection.js';
import { describe } from './description.js';
import './feed.js';
import { loadHealth } from './health.js';
import { ask } from './prompts.js';
import { review } from './record.js';
import { follow, offerModels } from './rows.js';

answerWith(ask);

on('open', async () => {
  const opened = client;
  await describe();
  if (client !== opened || !client.connected) return;
  enter();
  offerModels();
  offerExamples();
  follow();
  review();
  measure();
});

setInterval(() => {
  if (document.visibilityState !== 'visible') return;
  measure();
  loadHealth();
}, 10_000);

start();
