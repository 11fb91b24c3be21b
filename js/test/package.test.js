import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync, copyFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { commonjs } from '../commonjs.mjs';
import * as client from '../zBifrost.js';

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const manifest = JSON.parse(readFileSync(join(ROOT, 'package.json'), 'utf8'));

const tsc = () => join(dirname(createRequire(import.meta.url).resolve('typescript/package.json')), 'bin', 'tsc');

it('the types agree with a program that uses all of them', () => {
  const run = spawnSync(process.execPath, [tsc(), '--project', join(ROOT, 'test', 'types')], {
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

it('contact_r31: the files for require are what commonjs.mjs makes of the others (node js/commonjs.mjs)', () => {
  for (const [name, text] of Object.entries(commonjs()))
    assert.ok(readFileSync(join(ROOT, name), 'utf8') === text, `${name} is stale: run node js/commonjs.mjs`);
});

describe('contact_r21: the package as npm would publish it', () => {
  let place;
  let packed;
  let project; // somebody's, in which it is installed

  const npm = (cwd, ...command) =>
    execFileSync(
      'npm',
      [...command, '--offline', '--ignore-scripts', '--no-audit', '--no-fund', '--no-update-notifier'],
      {
        cwd,
        encoding: 'utf8',
        stdio: ['ignore', 'pipe', 'ignore'],
        env: { ...process.env, npm_config_cache: join(place, 'cache') },
      },
    );

  before(() => {
    place = mkdtempSync(join(tmpdir(), 'zbifrost-'));
    project = join(place, 'project');
    mkdirSync(project);
    [packed] = JSON.parse(npm(ROOT, 'pack', '--json', '--pack-destination', place));
    npm(project, 'init', '-y');
    const made = JSON.parse(readFileSync(join(project, 'package.json'), 'utf8'));
    writeFileSync(join(project, 'package.json'), JSON.stringify({ ...made, type: 'commonjs' })); // as npm 11 does
    npm(project, 'install', join(place, packed.filename));
  });
  after(() => rmSync(place, { recursive: true, force: true }));

  it('holds the client, its types, its licence and nothing of the tests', () => {
    assert.deepEqual(
      packed.files.map(({ path }) => path).sort(),
      ['LICENSE', 'README.md', 'package.json', 'zBifrost.cjs', 'zBifrost.d.cts', 'zBifrost.d.ts', 'zBifrost.js'].sort(),
    );
    for (const target of [manifest.main, manifest.module, manifest.types])
      assert.ok(
        packed.files.some(({ path }) => `./${path}` === target),
        target,
      );
  });

  it('contact_r31: works by import and by require in what npm init writes, and in a module', () => {
    const wanted = Object.keys(client).sort();
    const say = 'console.log(JSON.stringify(Object.keys(client).sort()), typeof zBifrost)';
    const programs = {
      'required.js': `const client = require('zbifrost'); const { zBifrost } = client; ${say}`,
      'imported.mjs': `import * as client from 'zbifrost'; import { zBifrost } from 'zbifrost'; ${say}`,
      'later.js': `import('zbifrost').then((client) => { const { zBifrost } = client; ${say} })`,
      // A copied file, in the form that the name says.
      'copied.js': `const client = require('./zBifrost.cjs'); const { zBifrost } = client; ${say}`,
      'copied.mjs': `import * as client from './zBifrost.mjs'; import { zBifrost } from './zBifrost.mjs'; ${say}`,
    };
    copyFileSync(join(ROOT, 'zBifrost.cjs'), join(project, 'zBifrost.cjs'));
    copyFileSync(join(ROOT, 'zBifrost.js'), join(project, 'zBifrost.mjs'));
    for (const [name, text] of Object.entries(programs)) {
      writeFileSync(join(project, name), text);
      const said = execFileSync(process.execPath, [name], { cwd: project, encoding: 'utf8' });
      assert.equal(said, `${JSON.stringify(wanted)} function\n`, name);
    }
  });

  it('has the types of both forms', () => {
    const use =
      "const client: zBifrost = new zBifrost('ws://127.0.0.1:9', null, { timeout: 1 }); client.pending.toFixed();";
    // What the types need of a browser, whose own types take longer to read than all the rest.
    writeFileSync(join(project, 'globals.d.ts'), 'declare class AbortSignal {} declare class URL {}');
    writeFileSync(join(project, 'use.mts'), `import { zBifrost } from 'zbifrost';\n${use}\n`);
    writeFileSync(join(project, 'use.cts'), `import { zBifrost } from 'zbifrost';\n${use}\n`);
    const options = ['--noEmit', '--strict', '--module', 'node16', '--lib', 'es2022', '--target', 'es2022'];
    const run = spawnSync(process.execPath, [tsc(), ...options, 'globals.d.ts', 'use.mts', 'use.cts'], {
      cwd: project,
      encoding: 'utf8',
    });
    assert.equal(run.status, 0, run.stdout + run.stderr);
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
