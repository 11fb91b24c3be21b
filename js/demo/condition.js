/**
 * Writes to the row that somebody was shown, and to no other: not to one that took its key meanwhile, nor over values
 * that they have not seen.
 *
 * A row that is shown is {client, model, fields, where, names, row, loose, unfit}: `where` finds it by its key, `names`
 * are the fields that were shown of `row`. Those in `loose` may have any value. `unfit` has the conditions that turned
 * out not to find the row although it has these values.
 */
import { CommandFailed } from '../zBifrost.js';
import { description } from './description.js';
import { own, stringify } from './values.js';

/* A filter takes 200 conditions, and a message 1 MiB unless the server says otherwise; some are for the rest of it. */
const [CONDITIONS, MESSAGE, REST] = [180, 2 ** 20, 4096];

const ATTEMPTS = 3;

/* Errors of the server that no filter is to blame for, whether they may be tried again or not. */
const BLAMELESS = ['permission_denied', 'conflict', 'timeout', 'unavailable', 'too_busy'];
/* Errors that tell that nothing was written. */
const UNWRITTEN = ['bad_message', 'unknown_command', 'unknown_model', 'unknown_field', 'invalid', 'not_found']
  .concat('conflict', 'permission_denied', 'not_connected');

/** The names of the fields in which `now` differs from what was shown. What `values` would make it is none: it is there
 * already where the answer to an earlier attempt was lost. */
export function differences({ names, row, loose }, now, values = {}) {
  const same = (one, other, name) => stringify(own(one, name)) === stringify(own(other, name));
  return names.filter(
    (name) => !loose.has(name) && !same(row, now, name) && !(Object.hasOwn(values, name) && same(values, now, name)),
  );
}

/** The row that has the key of the one that was shown, as it is now; null where there is none. */
export async function present({ client, model, where }) {
  const rows = await client.read(model, where, { limit: 2 });
  if (rows.length > 1) throw new Error('More than one row has this key.');
  return rows[0] ?? null;
}

/**
 * Have `write(filter)` change the row if it is as it was shown, with a filter that no other row matches.
 *
 * The filter names the key and what was shown, so that nothing happens where the row has changed since it was looked at.
 * What a filter cannot tell (json, and what is too long for one message) was compared a moment before.
 *
 * @param {object} shown the row as it was shown
 * @param {object} values what is to be written, by field
 * @param {Function} write resolves with the number of rows that it changed
 * @returns {Promise<object | null | undefined>} undefined when it is done; otherwise nothing was written, and this is
 *   the row as it is now, or null where it is gone
 */
export async function writeToShown(shown, values, write) {
  for (let attempt = 0; attempt < ATTEMPTS; attempt += 1) {
    const now = await present(shown);
    if (now === null || differences(shown, now, values).length > 0) return now;
    const conditions = conditionsOf(shown, now, values);
    let refused = null;
    try {
      if ((await write({ ...conditions, ...shown.where })) > 0) return undefined;
    } catch (error) {
      if (!blamesRequest(error)) throw error;
      refused = error;
    }
    const unfit = await findUnfit(shown, now, conditions);
    if (unfit.length > 0) {
      for (const condition of unfit) shown.unfit.add(condition);
      continue;
    }
    if (refused) throw refused;
    const after = await present(shown);
    if (after === null || differences(shown, after, values).length > 0) return after;
    break;
  }
  throw new Error('The row is there as it is shown, and the server changed none.');
}

/** Whether a write that failed with `error` may have happened all the same. */
export const mayBeWritten = ({ code, retryable }) => !UNWRITTEN.includes(code) && !(code === 'too_busy' && retryable);

/** Whether a filter may be to blame, and not the connection, a right or what is stored. */
const blamesRequest = (error) =>
  error instanceof CommandFailed && !error.retryable && !BLAMELESS.includes(error.code);

/** That the row is as `now`: as many conditions as go into one message with `values`, the short ones first. */
function conditionsOf({ fields, names, where, loose, unfit }, now, values) {
  const bytes = (value) => new TextEncoder().encode(stringify(value)).length;
  let room = (description.limits?.message_size ?? MESSAGE) - REST - bytes(values) - bytes(where);
  const conditions = names
    .filter((name) => !loose.has(name) && !Object.hasOwn(where, name))
    .map((name) => conditionOf(own(fields, name)?.type, name, own(now, name)))
    .filter((condition) => condition !== null && !unfit.has(condition[0]))
    .map((condition) => ({ condition, size: bytes(condition) }))
    .sort((one, other) => one.size - other.size)
    .slice(0, CONDITIONS)
    .filter(({ size }) => (room -= size) > 0);
  return Object.fromEntries(conditions.map(({ condition }) => condition));
}

/** The entry of a filter that holds for a field of this value; null where none can. */
function conditionOf(type, name, value) {
  if (value === undefined) return null;
  if (value !== null && type === 'json') return [`${name}__isnull`, false];
  // Of a model that is not described: a list would be one of these values.
  return value !== null && typeof value === 'object' ? null : [name, value];
}

/** Those of `conditions` that do not find the row, by key; none where it has just become another than `now`. */
async function findUnfit(shown, now, conditions) {
  const finds = async (some) => {
    try {
      return (await shown.client.read(shown.model, { ...some, ...shown.where }, { limit: 1 })).length > 0;
    } catch (error) {
      if (!blamesRequest(error)) throw error;
      return false;
    }
  };
  if (await finds(conditions)) return [];
  const names = Object.keys(conditions);
  const found = await Promise.all(names.map((name) => finds({ [name]: conditions[name] })));
  const after = await present(shown);
  if (after === null || differences({ ...shown, row: now }, after).length > 0) return [];
  return names.filter((_, n) => !found[n]);
}
