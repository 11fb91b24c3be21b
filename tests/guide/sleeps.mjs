// The guide's sleeping times, without the sleeping: the pause between two messages is none, and what "keeps
// listening" does so until the test closes standard input.
const { setTimeout: real } = globalThis;
const PAUSE = 2000;
const LISTENING = new Set([15000, 60000]);

globalThis.setTimeout = (action, delay, ...values) => {
  if (delay === PAUSE) return real(action, 0, ...values);
  if (!LISTENING.has(delay)) return real(action, delay, ...values);
  process.stdin.once('end', action).resume();
  return undefined;
};
