"""The functions of :mod:`zcomm.wire.frames` in Python: always there, and what the compiled ones are tested against."""

from __future__ import annotations

import re
from itertools import accumulate, chain
from typing import Any

__all__ = ["depth_within", "frame", "frames", "header", "is_light", "price", "request_id", "split", "unmasked"]

#: Values that weigh as much as any, and those that have others in them.
_LEAVES = frozenset({bool, float, type(None)})
_NESTED: tuple[Any, ...] = (list, tuple, dict)
#: Characters of a text that weigh as much as a value; and levels of lists and objects that are looked at.
_CHARACTERS, _LEVELS = 32, 500
#: The least bits of an integer that weigh more than a value; how many as much as one, and how many of their square.
_WORD, _BITS, _BITS_SQUARED = 65, 32, 32_768

_TEXT = 0x81  # FIN, no extension bits, opcode 1
_MASKED = 0x80
_SHORT = [bytes((_TEXT, length)) for length in range(126)]

# Possessive, so that neither time nor memory grows beyond the length of what is matched.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?+', re.DOTALL)
#: All bytes but brackets.
_OTHERS = bytes(set(range(256)) - set(b"[]{}"))
# A string that has its end, and what stands before the next bracket that matters: with all that is nested in between,
# to the depth of a table's rows, as each step costs.
_WHOLE = rb'"(?:[^"\\]++|\\.)*+"'
_NO_BRACKET = rb'(?:[^"\[\]{}]++|' + _WHOLE + rb")*+"
_BOX = rb"(?:\[" + _NO_BRACKET + rb"\]|\{" + _NO_BRACKET + rb"\})"
_BOXES = rb'(?:[^"\[\]{}]++|' + _WHOLE + rb"|" + _BOX + rb")*+"
_PLAIN = rb'(?:[^"\[\]{}]++|' + _WHOLE + rb"|\[" + _BOXES + rb"\]|\{" + _BOXES + rb"\})*+"
_TO_BRACKET = re.compile(_PLAIN + rb"(?P<run>[\[{]++|[\]}]++)?+", re.DOTALL)
_CLOSED_BY = bytes.maketrans(b"[{", b"]}")
_WHOLE_STRING = re.compile(_WHOLE, re.DOTALL)
_COLON = re.compile(rb"\s*+:\s*+")
_VALUE = re.compile(rb"(?:" + _WHOLE + rb'|[^\s"\[\]{},:]++)(?=[\s,}])', re.DOTALL)
#: The name of the id, of which each character may be written as an escape.
_ID = re.compile(b'"' + b"".join(rb"(?:%c|\\u00(?i:%02x))" % (each, each) for each in b"_requestId") + b'"')
#: A string, and the colon behind it where it is a name.
_STRING_OR_NAME = re.compile(rb'("(?:[^"\\]++|\\.)*+"?+)\s*+(:)?+', re.DOTALL)
#: A number that may be dear to read: many digits, or an exponent.
_LONG_NUMBER = re.compile(
    rb"(?=[0-9][0-9.]{15}|[0-9][0-9.]*+[eE])(?P<digits>[0-9][0-9.]*+)"
    rb"(?P<e>[eE](?:(?P<minus>-)|\+)?(?P<exponent>[0-9]*+))?+"
)
_OF_NAME, _OF_NEW_NAME, _OF_STRING, _OF_CONTAINER, _OF_DEAR_NUMBER = 3, 16, 8, 22, 1900
#: Digits of an integer that is read.
_MAX_DIGITS = 4300
#: Of names that may stand again at no more than _OF_NAME.
_NAME_SLOTS = 256
_CHEAP = 256
#: What may be the beginning of an exponent, found at a glance.
_EXPONENT = re.compile(rb"[0-9:;<=>?][eE]")
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}


def split(data: bytes, offset: int, max_payload: int) -> tuple[list[bytes], int]:
    """Take whole text messages from ``data``, beginning at ``offset``, for as long as there is nothing else.

    Taken are complete, final, masked text frames without extension bits (RFC 6455 section 5.2), whose
    length is encoded in the fewest bytes and at most ``max_payload``, and whose unmasked payload is
    UTF-8. The first that is anything else, or not all there, ends it.

    :returns: the payloads, and the offset of the first byte that was not taken.
    :raises ValueError: for an ``offset`` outside of ``data``.
    """
    end = len(data)
    if not 0 <= offset <= end:
        raise ValueError("offset is outside of data")
    payloads: list[bytes] = []
    while end - offset >= 6 and data[offset] == _TEXT:
        length = data[offset + 1]
        if length < _MASKED:
            break
        length -= _MASKED
        start = offset + 2
        if length == 126:
            length = data[start] << 8 | data[start + 1]
            start += 2
            if length < 126:
                break
        elif length == 127:
            if end - offset < 14:
                break
            length = int.from_bytes(data[start : start + 8], "big")
            start += 8
            if length < 65536:
                break
        stop = start + 4 + length
        if length > max_payload or stop > end:
            break
        payload = unmasked(data[start + 4 : stop], data[start : start + 4])
        if not payload.isascii() and not _is_utf8(payload):
            break
        payloads.append(payload)
        offset = stop
    return payloads, offset


def unmasked(payload: bytes, mask: bytes) -> bytes:
    """``payload`` without its mask of four bytes."""
    length = len(payload)
    key = (mask * (length // 4 + 1))[:length]
    # One exclusive or of two large numbers: linear, and the loop over bytes is not Python's.
    return (int.from_bytes(payload, "little") ^ int.from_bytes(key, "little")).to_bytes(length, "little")


def _is_utf8(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True


def header(length: int) -> bytes:
    """The header of an unmasked text frame whose payload has ``length`` bytes.

    :raises ValueError: for a length that no frame can have.
    """
    if 0 <= length < 126:
        return _SHORT[length]
    if 0 <= length < 65536:
        return b"\x81\x7e" + length.to_bytes(2, "big")
    if 0 <= length < 1 << 63:
        return b"\x81\x7f" + length.to_bytes(8, "big")
    raise ValueError("a frame's length is from 0 to 2**63 - 1")


def frame(payload: bytes) -> bytes:
    """``payload`` as one unmasked text frame."""
    return header(len(payload)) + payload


def frames(payloads: list[bytes]) -> bytes:
    """``payloads`` as unmasked text frames, one after the other."""
    parts = []
    for payload in payloads:
        parts.append(header(len(payload)))
        parts.append(payload)
    return b"".join(parts)


def depth_within(payload: bytes, limit: int) -> int:
    """Whether the brackets of JSON never nest deeper than ``limit``, those inside of strings not counted: 0 where they
    do; 1 where they do not; 2 where besides it may be dear to read: it has more than 256 bytes, or a number in it, from
    its ninth byte on, may have an exponent.

    It looks at brackets, strings, and each "e" behind something like a digit alone. On text that is not JSON it gives
    an answer too, which means nothing then: a decoder refuses such text at the place where it stops being JSON, and up
    to there the nesting was counted.
    """
    if limit < 0:
        return 0
    if payload.count(b"[") + payload.count(b"{") > limit:
        brackets = _STRING.sub(b"", payload).translate(None, _OTHERS)
        if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > limit:
            return 0
    return 2 if len(payload) > _CHEAP or _EXPONENT.search(payload, 7) else 1


def price(payload: bytes) -> int:
    """The cost of reading JSON, in units of some 12 ns: as much as the dearest text of its kind was measured to.

    A value costs 1, by its comma; a text 8 more, a list or an object 22. A name costs 16; 3 where it stands again,
    as in rows. Most numbers cost no more than any value. Those do which a reader has to compute with exactly: a float
    of more than 15 digits, or with an exponent, that may lie between two doubles; one with an exponent of three digits,
    or of more than 150 digits; and an integer of more than 300 digits. No program writes many of these. On text that is
    not JSON it gives an answer too; a reader refuses that where it stops being JSON.
    """
    total = 0
    names: dict[int, bytes] = {}
    for match in _STRING_OR_NAME.finditer(payload):
        name, colon = match.groups()
        if colon is None:
            total += _OF_STRING
            continue
        # One name a slot: to find it takes the same time whatever names there are.
        slot = (name[1] + 3 * name[len(name) // 2] + 5 * name[-2] + 7 * len(name)) % _NAME_SLOTS
        total += _OF_NAME if names.get(slot) == name else _OF_NEW_NAME
        names[slot] = name
    text = _STRING.sub(b" ", payload)
    total += text.count(b",") + _OF_CONTAINER * (text.count(b"[") + text.count(b"{"))
    return total + sum(map(_price_of, _LONG_NUMBER.finditer(text)))


def _price_of(number: re.Match[bytes]) -> int:
    """The price of a number beyond that of any value."""
    written, exponent = number["digits"], number["exponent"]
    length = len(written)
    if number["e"] is None and b"." not in written:
        # What is longer is refused unread.
        return 4 * length if 300 < length <= _MAX_DIGITS else 0
    if length > 150 or exponent is not None and len(exponent) > 2:
        return _OF_DEAR_NUMBER + length
    price = 0 if exponent is None or number["minus"] and exponent.strip(b"0") else 80
    digits = len(written.lstrip(b"0."))
    if digits > 18:
        return price + 70 + digits
    return price + 60 if digits > 15 and written[-1] in b"05" else price


def request_id(payload: bytes) -> bytes:
    """The text of the ``_requestId`` in what may be JSON or not: the value of the outermost object's last member of
    that name; empty where there is none, or where nobody can tell.

    It is found as well in what is nested too deeply, is cut off or is no JSON, as long as each bracket that closes is
    of the kind that was opened last. The time is proportional to the length, whatever stands there.
    """
    at = 3 if payload.startswith(b"\xef\xbb\xbf") else 0
    at += len(payload) - at - len(payload[at:].lstrip())
    if payload[at : at + 1] != b"{":
        return b""
    at = first = at + 1
    found = b""
    # The brackets that are open inside of the outermost one.
    opened = bytearray()
    for name in _ID.finditer(payload, first):
        here = name.start()
        if here < at:
            # Within a string.
            continue
        before = at
        while (step := _TO_BRACKET.match(payload, at, here)) and (run := step["run"]):
            before = at = step.end()
            if run[0] in b"[{":
                opened += run
            elif len(run) <= len(opened) and opened[: -len(run) - 1 : -1].translate(_CLOSED_BY) == run:
                del opened[-len(run) :]
            else:
                return found
        at = step.end() if step else at
        if at < here:
            string = _WHOLE_STRING.match(payload, at)
            if string is None:
                return found
            at = string.end()
            continue
        between = payload[before:here].rstrip()
        is_member = between.endswith(b",") or (before == first and not between)
        if not opened and is_member and (colon := _COLON.match(payload, name.end())):
            at = colon.end()
            value = _VALUE.match(payload, at)
            found = value[0] if value else b""
    return found


def _weight_of_bits(bits: int) -> int:
    """What an integer of so many bits, more than a machine's word has, weighs beyond one that has less."""
    return bits // _BITS + bits * bits // _BITS_SQUARED


def is_light(value: Any, most: int) -> bool:
    """Whether ``value`` is no more work to make into JSON than ``most`` plain values are; no more are looked at.

    Every value counts, names as well, and long texts and integers for several: the digits of one take as long as the
    square of their number. What is nested too deeply to tell is not light.
    """
    level: list[Any] = [value]
    # Level by level, all values of a kind at once.
    for _ in range(_LEVELS):
        most -= len(level)
        kinds: set[Any] = set(map(type, level))
        if most < 0 or kinds <= _LEAVES:
            return most >= 0
        inner: list[Any] = []
        for kind in kinds - _LEAVES:
            of_kind = [each for each in level if type(each) is kind]
            if kind is str or kind is bytes:
                most -= sum(len(each) // _CHARACTERS for each in of_kind)
            elif issubclass(kind, int):
                most -= sum(map(_weight_of_bits, filter(_WORD.__le__, map(int.bit_length, of_kind))))
            elif base := next((each for each in _NESTED if issubclass(kind, each)), None):
                if sum(map(base.__len__, of_kind)) > most:
                    return False
                inner.extend(chain.from_iterable(map(base.__iter__, of_kind)))
                if base is dict:
                    inner.extend(chain.from_iterable(map(dict.values, of_kind)))
        level = inner
        if not level or most < 0:
            return most >= 0
    return False
