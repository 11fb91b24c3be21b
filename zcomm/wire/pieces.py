"""Large values as JSON, made piece by piece in a thread: while one piece is made, no other thread has its turn."""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterable
from itertools import islice
from threading import Lock
from typing import Any

from zcomm.budget.written import PIECE, Written, write_json
from zcomm.wire.frames import is_light

__all__ = ["LIGHT", "TooLarge", "written"]

#: Values that are made into JSON in one piece, which takes a millisecond.
LIGHT = 16 * 1024
#: Items of a list or an object that are looked at together.
TOGETHER = 2048
#: Bytes that are made into base64 in one piece: a multiple of three, so that the pieces fit together.
BYTES = 3 * PIECE // 4

#: Of several threads that compute, each would make the reactor wait for its turn.
_one_at_a_time = Lock()


class TooLarge(Exception):
    """More is written than may be."""


def written(value: Any, most: int) -> Any:
    """``value`` as :class:`~zcomm.budget.written.Written` where it is large; any other as it is.

    Lists and objects are gone through; what else holds values, such as an instance of a dataclass, is one piece. Nobody
    may change the value meanwhile; one of which it is found that somebody does is returned as it is.

    :param most: bytes that all may come to.
    :raises TooLarge: for more; with whatever :func:`~zcomm.budget.written.write_json` raises for what JSON has no form
        for, and RecursionError for what is nested too deeply.
    """
    if is_light(value, LIGHT):
        return value
    made = Written()
    try:
        _put(made, value, most)
    except RecursionError:
        raise
    except RuntimeError:
        return value
    return made


def _put(made: Written, value: Any, most: int) -> None:
    if isinstance(value, dict):
        _put_items(made, b"{}", dict.items(value), True, most)
    elif isinstance(value, list | tuple):
        _put_items(made, b"[]", value, False, most)
    elif type(value) is bytes:
        made.write(b'"')
        for start in range(0, len(value), BYTES):
            made.write(b2a_base64(value[start : start + BYTES], newline=False))
        made.write(b'"')
    else:
        made.put(value)
    if len(made) > most:
        raise TooLarge


def _put_items(made: Written, around: bytes, items: Iterable[Any], are_pairs: bool, most: int) -> None:
    made.write(around[:1])
    before, left = b"", iter(items)
    while batch := list(islice(left, TOGETHER)):
        _put_batch(made, before, batch, are_pairs, most)
        before = b","
    made.write(around[1:])


def _put_batch(made: Written, before: bytes, batch: list[Any], are_pairs: bool, most: int) -> None:
    """Add some items, ``before`` which something stands: together, where that is little, otherwise by halves."""
    if len(made) > most:
        raise TooLarge
    if is_light(batch, LIGHT):
        made.write(before)
        with _one_at_a_time:
            made.write(memoryview(write_json(dict(batch) if are_pairs else batch))[1:-1])
    elif len(batch) > 1:
        half = len(batch) // 2
        _put_batch(made, before, batch[:half], are_pairs, most)
        _put_batch(made, b",", batch[half:], are_pairs, most)
    elif are_pairs:
        ((name, value),) = batch
        made.write(before + write_json({name: None})[1 : -len("null}")])
        _put(made, value, most)
    else:
        made.write(before)
        _put(made, batch[0], most)
