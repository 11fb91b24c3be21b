"""Regular expressions whose matching time grows with the length of the text and with nothing else.

Python's ``re`` backtracks: a pattern like ``(a+)+b`` and thirty letters keep it busy for minutes, and
patterns come from schema files while the text comes from clients. Patterns here are simulated as
automata that follow all alternatives at once (Thompson 1968), so that no pattern is dangerous and none
has to be guessed to be.

The language is the usual one without back references and look-around, which no automaton has:
``. [a-z] [^a-z] \\d \\w \\s \\D \\W \\S | ( ) (?: ) * + ? {m} {m,} {m,n} ^ $``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

__all__ = ["MAX_PATTERN", "MAX_TEXT", "Pattern", "PatternError"]

#: How long a pattern may be, in characters.
MAX_PATTERN = 500
#: How long a text it is matched with may be; longer ones never match.
MAX_TEXT = 10_000
#: Counted repetitions are unrolled; this bounds what they unroll to.
MAX_STATES = 2_000
MAX_NESTING = 30
#: Remembered steps; beyond these the memory is emptied and filled anew.
MAX_STEPS = 5_000

Test = Callable[[str], bool]


class PatternError(ValueError):
    """A pattern that is not in the language; the text says where and why."""


@dataclass(slots=True)
class _State:
    """A node of the automaton.

    :ivar test: which character leads on to ``after``; ``None`` when none does.
    :ivar silent: the states that are reached without a character.
    :ivar condition: ``^`` or ``$`` when the silent ways are open only there.
    """

    test: Test | None = None
    after: int = 0
    silent: list[int] = field(default_factory=list)
    condition: str = ""


_CLASSES: dict[str, Test] = {
    "d": str.isdecimal,
    "w": lambda char: char.isalnum() or char == "_",
    "s": str.isspace,
    "D": lambda char: not char.isdecimal(),
    "W": lambda char: not (char.isalnum() or char == "_"),
    "S": lambda char: not char.isspace(),
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v"}


class Pattern:
    """A compiled pattern. The *whole* text has to match; write ``.*`` where anything may stand.

    :param text: the pattern.
    :raises PatternError: for what is not in the language or too long.
    """

    def __init__(self, text: str):
        if len(text) > MAX_PATTERN:
            raise PatternError(f"a pattern may have at most {MAX_PATTERN} characters")
        self.text = text
        self._at = 0
        self._states: list[_State] = []
        start, end = self._alternatives(0)
        if self._at != len(text):
            raise self._error("')' without '('")
        self._accept = end
        self._start = self._closure({start}, "^")
        self._steps: dict[tuple[frozenset[int], str], frozenset[int]] = {}

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def matches(self, text: str) -> bool:
        """Whether the whole of ``text`` matches."""
        if len(text) > MAX_TEXT:
            return False
        current = self._start
        for char in text:
            current = self._step(current, char)
            if not current:
                return False
        ends = "^$" if not text else "$"
        return self._accept in self._closure(set(current), ends)

    def _step(self, current: frozenset[int], char: str) -> frozenset[int]:
        """The states that ``char`` leads to."""
        key = (current, char)
        found = self._steps.get(key)
        if found is None:
            reached = {
                state.after
                for state in map(self._states.__getitem__, current)
                if state.test is not None and state.test(char)
            }
            found = self._closure(reached, "")
            if len(self._steps) >= MAX_STEPS:
                self._steps.clear()
            self._steps[key] = found
        return found

    def _closure(self, reached: set[int], conditions: str) -> frozenset[int]:
        """``reached`` and everything that is reached from it without a character."""
        todo = list(reached)
        while todo:
            state = self._states[todo.pop()]
            if state.condition and state.condition not in conditions:
                continue
            for target in state.silent:
                if target not in reached:
                    reached.add(target)
                    todo.append(target)
        return frozenset(reached)

    # The parser builds the automaton as it reads. Each part is a (first, last) pair of states.

    def _error(self, reason: str) -> PatternError:
        return PatternError(f"{reason} at character {min(self._at, len(self.text)) + 1}")

    def _new(self, test: Test | None = None, condition: str = "") -> int:
        if len(self._states) >= MAX_STATES:
            raise PatternError("the pattern is too big; use smaller repeat counts")
        self._states.append(_State(test, condition=condition))
        return len(self._states) - 1

    def _peek(self) -> str:
        return self.text[self._at] if self._at < len(self.text) else ""

    def _alternatives(self, depth: int) -> tuple[int, int]:
        if depth > MAX_NESTING:
            raise self._error("groups are nested too deeply")
        first, last = self._new(), self._new()
        while True:
            begin, end = self._sequence(depth)
            self._states[first].silent.append(begin)
            self._states[end].silent.append(last)
            if self._peek() != "|":
                return first, last
            self._at += 1

    def _sequence(self, depth: int) -> tuple[int, int]:
        first = last = self._new()
        while self._peek() not in ("", "|", ")"):
            begin, end = self._repeated(depth)
            self._states[last].silent.append(begin)
            last = end
        return first, last

    def _repeated(self, depth: int) -> tuple[int, int]:
        start_at = self._at
        begin, end = self._atom(depth)
        least, most = self._quantifier()
        if (least, most) == (1, 1):
            return begin, end
        if self._peek() and self._peek() in "*+?{":
            raise self._error("a repetition of a repetition")
        resume_at = self._at
        first = last = self._new()

        def copy() -> tuple[int, int]:
            # An automaton cannot count: each repetition is read, and built, anew.
            self._at = start_at
            return self._atom(depth)

        for number in range(least):
            part_begin, part_end = (begin, end) if number == 0 else copy()
            self._states[last].silent.append(part_begin)
            last = part_end
        if most is None:
            part_begin, part_end = copy()
            loop = self._new()
            self._states[last].silent.append(loop)
            self._states[loop].silent.append(part_begin)
            self._states[part_end].silent.append(loop)
            last = loop
        else:
            exit_state = self._new()
            for _ in range(most - least):
                part_begin, part_end = copy()
                self._states[last].silent += [part_begin, exit_state]
                last = part_end
            self._states[last].silent.append(exit_state)
            last = exit_state
        self._at = resume_at
        return first, last

    def _quantifier(self) -> tuple[int, int | None]:
        char = self._peek()
        if char not in ("*", "+", "?", "{"):
            return 1, 1
        if char != "{":
            self._at += 1
            bounds: tuple[int, int | None] = {"*": (0, None), "+": (1, None), "?": (0, 1)}[char]
        else:
            close = self.text.find("}", self._at)
            inner = self.text[self._at + 1 : close] if close > 0 else ""
            low, comma, high = inner.partition(",")
            if (
                close < 0
                or not (low.isdecimal() and low.isascii())
                or not (high == "" or (high.isdecimal() and high.isascii()))
            ):
                raise self._error("'{' begins a count like {2}, {2,} or {2,5}; write \\{ for the character")
            least = int(low)
            most = least if not comma else int(high) if high else None
            if (most is not None and most < least) or max(least, most or 0) > MAX_STATES:
                raise self._error("a count that is too big or the wrong way round")
            self._at = close + 1
            bounds = (least, most)
        if self._peek() == "?":
            # A lazy repetition matches the same whole texts as a greedy one.
            self._at += 1
        return bounds

    def _atom(self, depth: int) -> tuple[int, int]:
        char = self._peek()
        if char == "(":
            self._at += 1
            if self._peek() == "?":
                if self.text[self._at : self._at + 2] != "?:":
                    raise self._error("only plain groups and (?:…) are supported")
                self._at += 2
            part = self._alternatives(depth + 1)
            if self._peek() != ")":
                raise self._error("a group is not closed")
            self._at += 1
            return part
        if char in ("^", "$"):
            self._at += 1
            first, last = self._new(condition=char), self._new()
            self._states[first].silent.append(last)
            return first, last
        if char in ("*", "+", "?", "{"):
            raise self._error("nothing to repeat")
        first = self._new(self._test())
        last = self._new()
        self._states[first].after = last
        return first, last

    def _test(self) -> Test:
        """Which characters the next part of the pattern stands for."""
        char = self._peek()
        if char == "[":
            return self._set()
        if char == "\\":
            literal, test = self._escape()
            return test if test is not None else literal.__eq__
        self._at += 1
        if char == ".":
            return lambda candidate: candidate != "\n"
        return char.__eq__

    def _escape(self) -> tuple[str, Test | None]:
        char = self.text[self._at + 1 : self._at + 2]
        if char in _CLASSES:
            self._at += 2
            return "", _CLASSES[char]
        if char in _CONTROLS:
            self._at += 2
            return _CONTROLS[char], None
        if not char or char.isalnum():
            raise self._error(f"\\{char} is not supported")
        self._at += 2
        return char, None

    def _set(self) -> Test:
        self._at += 1
        negated = self._peek() == "^"
        if negated:
            self._at += 1
        tests: list[Test] = []
        ranges: list[tuple[str, str]] = []
        begun = self._at
        while self._peek() != "]" or self._at == begun:
            low = self._member(tests)
            if low and self._peek() == "-" and self.text[self._at + 1 : self._at + 2] not in ("", "]"):
                self._at += 1
                high = self._member(tests)
                if high < low:
                    raise self._error("a range that is the wrong way round")
                ranges.append((low, high))
            elif low:
                ranges.append((low, low))
        self._at += 1

        def test(candidate: str) -> bool:
            found = any(low <= candidate <= high for low, high in ranges) or any(member(candidate) for member in tests)
            return found is not negated

        return test

    def _member(self, tests: list[Test]) -> str:
        """One character of a set, or an empty string after adding a class like ``\\d``."""
        char = self._peek()
        if not char:
            raise self._error("a set is not closed")
        if char != "\\":
            self._at += 1
            return char
        literal, test = self._escape()
        if test is not None:
            tests.append(test)
        return literal
