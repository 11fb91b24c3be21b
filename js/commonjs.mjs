/**
 * Makes zBifrost.cjs and zBifrost.d.cts, which are zBifrost.js and its types for `require`: for what knows
 * no other form (Jest, old bundlers, what `npm init` writes). They are kept beside their originals so that a checkout,
 * a wheel and a package have them alike; a test tells when they are not what this makes.
 *
 *     node commonjs.mjs           # write them
 */
import { readFileSync, writeFileSync } from 'node:fs';
import { pathToFileURL } from 'node:url';

const here = (name) => new URL(name, import.meta.url);

/** What is to be in the two files, by name. */
export function commonjs() {
  const source = readFileSync(here('zBifrost.js'), 'utf8');
  const names = [];
  const body = source.replace(/^export (?=(?:async )?(?:class|function|const) (\w+))/gm, (_, name) => {
    names.push(name);
    return '';
  });
  const left = /^(?:import|export)\b.*|\bimport\.meta\b/m.exec(body);
  if (left) throw new Error(`zBifrost.js: this has no form in CommonJS: ${left[0]}`);
  return {
    'zBifrost.cjs': `'use strict';\n\n${body}\nmodule.exports = { ${names.join(', ')} };\n`,
    'zBifrost.d.cts': readFileSync(here('zBifrost.d.ts'), 'utf8'),
  };
}

if (import.meta.url === pathToFileURL(process.argv[1] ?? '').href) {
  for (const [name, text] of Object.entries(commonjs())) writeFileSync(here(name), text);
}
