/** What the demo page makes of what a person types. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { edited, toNumber } from '../demo/values.js';

describe('contact: what is typed', () => {
  it('is the number that it says, or refused, or left as the text that it is', () => {
    const cases = {
      5: 5,
      ' 7 ': 7,
      '-0.10': -0.1,
      '.5': 0.5,
      '5.': 5,
      '1e3': 1000,
      '3.0': 3,
      '0e999': 0,
      1e22: 1e22,
      '9007199254740993': 9007199254740993n,
      '-9223372036854775808': -9223372036854775808n,
      '9007199254740992.0': 9007199254740992,
      '1e-400': RangeError,
      '1e400': RangeError,
      '9007199254740990.6': RangeError,
      '9007199254740993.0': RangeError,
      '3.00000000000000000001': RangeError,
      '0.12345678901234567890123': RangeError,
      '12345678901234567890e0': RangeError,
      NaN: 'NaN',
      old: 'old',
      '1,5': '1,5',
      '0x10': '0x10',
    };
    for (const [typed, wanted] of Object.entries(cases)) {
      if (wanted === RangeError) assert.throws(() => toNumber(typed), RangeError, typed);
      else assert.equal(toNumber(typed), wanted, typed);
    }
  });

  it('is what is stored, line for line, whatever line ends stood around it', () => {
    assert.equal(edited('x\ry\nz', 'x\ny\nz', 'x\nq\n\nz'), 'x\rq\r\n\nz');
    assert.equal(edited('x\ry\nz', 'x\ny\nz', 'x\n\nz'), 'x\r\n\nz');
    assert.equal(edited('a\nb\rc', 'a\nb\nc', 'a\nb\n\nc'), 'a\nb\r\n\nc');
    assert.equal(edited('a\r\nb\rc\n', 'a\nb\nc\n', 'a\nb\nc\nd'), 'a\r\nb\rc\nd');
    let seed = 7;
    const below = (n) => {
      seed = (seed * 1103515245 + 12345) % 2 ** 31;
      return Math.floor((seed / 2 ** 31) * n);
    };
    const plain = (text) => text.replace(/\r\n|\r/g, '\n');
    const text = () =>
      Array.from({ length: below(8) }, () => ['a', 'b', '\r', '\n', '\r\n', '😀', '😁', 'é', ' '][below(9)]).join('');
    for (let n = 0; n < 20_000; n += 1) {
      const [original, put] = [text(), plain(text())];
      const shown = plain(original);
      const from = below(shown.length + 1);
      const typed = shown.slice(0, from) + put + shown.slice(from + below(shown.length - from + 1));
      const made = edited(original, shown, typed);
      assert.equal(plain(made), typed, JSON.stringify([original, typed, made]));
      if (typed === shown) assert.equal(made, original);
    }
  });
});
