/** The exercise under Node, Deno or Bun: runtime.mjs URL TOKEN NOBODY. It has to end by itself. */
import process from 'node:process';
import * as client from '../../js/zBifrost.js';
import { exercise } from './exercise.mjs';

const [url, token, nobody] = process.argv.slice(2);
await exercise(client, { url, token, nobody });
