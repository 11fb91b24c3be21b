import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync, copyFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import * as client from '../zBifrost.js';

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));

it('the types agree with a program that uses all of them', () => {
  const typescript = dirname(createRequire(import.meta.url).resolve('typescript/package.json'));
  const run = spawnSync(process.execPath, [join(typescript, 'bin', 'tsc'), '--project', join(ROOT, 'test', 'types')], {
    encoding: 'utf8',
  });
  assert.equal(run.status, 0, run.stdout + run.stderr);
});

it('the types name exactly what the module exports', () => {
  const types = readFileSync(join(ROOT, 'zBifrost.d.ts'), 'utf8');
  const named = [...types.matchAll(/^export (?:class|function|const) (\w+)/gm)].map((match) => match[1]);
  assert.deepEqual(named.sort(), Object.keys(client).sort());
  const [, body] = types.match(/export class zBifrost \{([^]*?)\n\}/);
  const members = new Set([...body.matchAll(/^ {2}(?:readonly )?(\w+)[<(:]/gm)].map((match) => match[1]));
  assert.deepEqual([...members].sort(), Object.getOwnPropertyNames(client.zBifrost.prototype).sort());
});

it('nothing is needed beside the one file', () => {
  assert.equal(manifest.dependencies, undefined);
  const source = readFileSync(join(ROOT, 'zBifrost.js'), 'utf8');
  assert.doesNotMatch(source, /^\s*import\s[^(]/m);
  assert.doesNotMatch(source, /\beval\b|new Function|innerHTML/);
});

it('the version is the same as that of the Python package', () => {
  const python = readFileSync(join(ROOT, '..', 'zcomm', '_version.py'), 'utf8');
  assert.equal(python.match(/__version__ = "([^"]+)"/)[1], manifest.version);
});

it('the lock file names no registry', () => {
  assert.doesNotMatch(readFileSync(join(ROOT, 'package-lock.json'), 'utf8'), /"resolved"|https?:/);
});

describe('the package as npm would publish it', () => {
  let place;

  before(() => {
    place = mkdtempSync(join(tmpdir(), 'zbifrost-'));
  });
  after(() => rmSync(place, { recursive: true, force: true }));

  it('holds the client, its types, its licence and nothing of the tests', () => {
    const [{ files }] = JSON.parse(
      execFileSync('npm', ['pack', '--dry-run', '--json', '--ignore-scripts'], {
        cwd: ROOT,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
      }),
    );
    assert.deepEqual(files.map(({ path }) => path).sort(), [
      'LICENSE',
      'README.md',
      'package.json',
      'zBifrost.d.ts',
      'zBifrost.js',
    ]);
  });

  it(
    'works as one copied file, and says what is missing where there is no WebSocket',
    { skip: globalThis.WebSocket !== undefined && 'this Node has one' },
    () => {
      mkdirSync(place, { recursive: true });
      copyFileSync(join(ROOT, 'zBifrost.js'), join(place, 'zBifrost.mjs'));
      writeFileSync(
        join(place, 'main.mjs'),
        `
      import { createClient } from './zBifrost.mjs';
      createClient('ws://127.0.0.1:9').catch((error) => console.log(error.code, error.message));
    `,
      );
      const said = execFileSync(process.execPath, [join(place, 'main.mjs')], { encoding: 'utf8' });
      assert.match(said, /^no_websocket .*npm install ws.*options\.WebSocket.*Node 22/);
    },
  );
});
