"""The commands on topics as values: what a client asks for, checked (docs/protocol.rst, "Topics")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeGuard

import msgspec

from zcomm.budget.written import write_json
from zcomm.errors import Invalid
from zcomm.interfaces import Position
from zcomm.text import did_you_mean, quoted
from zcomm.topics.names import MAX_NAME, is_topic_name

__all__ = [
    "History",
    "MAX_DATA",
    "MAX_MESSAGES",
    "MAX_STATE",
    "Presence",
    "Publish",
    "Subscribe",
    "encode_data",
    "parse_history",
    "parse_presence",
    "parse_publish",
    "parse_subscribe",
    "parse_unsubscribe",
]

#: Bytes of the JSON of a message, and of a state.
MAX_DATA, MAX_STATE = 64 * 1024, 1024
#: Messages of one answer, and how many are told where nobody says.
MAX_MESSAGES, MESSAGES = 1000, 100
#: Characters of a key that makes publishing safe to repeat, as of one that makes writing so.
MAX_KEY = 128
#: Characters of an epoch.
MAX_EPOCH = 64
_MAX_OFFSET = 2**53
_OFFSET = f"a whole number from 0 to {_MAX_OFFSET}"
_KEY = f"must be a text of 1 to {MAX_KEY} printable ASCII characters"

_UNSET = object()


class Subscribe(msgspec.Struct, frozen=True, kw_only=True):
    """The request ``zSubscribe``.

    :ivar since: the position from which on nothing is to be missed.
    :ivar last: how many of the newest messages are wanted, where there is no ``since``.
    :ivar presence: whether it is told who is there.
    :ivar state: one's own, as JSON.
    :ivar echo: whether one's own messages come back whole.
    :ivar is_own: whether the server asks it, because the topic is the user's own.
    """

    topic: str
    since: Position | None = None
    last: int = 0
    presence: bool = False
    state: bytes | None = None
    echo: bool = True
    is_own: bool = False


class Publish(msgspec.Struct, frozen=True, kw_only=True):
    """The request ``zPublish``."""

    topic: str
    data: Any
    key: str | None = None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The request ``zHistory``.

    :ivar before: its epoch is empty where only an offset was given.
    """

    topic: str
    since: Position | None = None
    before: Position | None = None
    limit: int = MESSAGES
    reverse: bool = False


class Presence(msgspec.Struct, frozen=True, kw_only=True):
    """The request ``zPresence``.

    :ivar state: the new one, as JSON; ``None`` to look only.
    """

    topic: str
    state: bytes | None = None


def _object(horizontal: Any, key: str, known: tuple[str, ...]) -> dict[str, Any]:
    if type(horizontal) is not dict:
        raise Invalid(f'{key} needs an object as its zHorizontal: {{"topic": "room:1"}}', {"topic": "is missing"})
    for name in horizontal:
        if name not in known:
            raise Invalid(
                f"{key} has no field {quoted(name)}{did_you_mean(name, known, or_list=True)}",
                {name[:64]: "is not known"},
            )
    return horizontal


def _wrong(field: str, reason: str) -> Invalid:
    return Invalid(f"{field}: {reason}", {field: reason})


def _topic(asked: Mapping[str, Any]) -> str:
    topic = asked.get("topic", _UNSET)
    if topic is _UNSET:
        raise _wrong("topic", "is missing")
    if not is_topic_name(topic):
        raise _wrong("topic", f"must be a text of 1 to {MAX_NAME} of the characters A-Z a-z 0-9 _.:@/%-")
    name: str = topic
    return name


def _flag(asked: Mapping[str, Any], field: str, default: bool) -> bool:
    value = asked.get(field, default)
    if type(value) is not bool:
        raise _wrong(field, "must be true or false")
    return value


def _number(asked: Mapping[str, Any], field: str, default: int) -> int:
    value = asked.get(field, _UNSET)
    if value is _UNSET:
        return default
    if type(value) is not int or not 1 <= value <= MAX_MESSAGES:
        raise _wrong(field, f"must be a whole number from 1 to {MAX_MESSAGES}")
    return value


def _is_offset(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MAX_OFFSET


def _position(asked: Mapping[str, Any], field: str, or_else: str = "") -> Position | None:
    if field not in asked:
        return None
    value = asked[field]
    if type(value) is not dict or value.keys() != {"epoch", "offset"}:
        raise _wrong(field, f'must be a position, {{"epoch": …, "offset": …}}{or_else}')
    epoch, offset = value["epoch"], value["offset"]
    if type(epoch) is not str or not 0 < len(epoch) <= MAX_EPOCH:
        raise _wrong(field, f"its epoch must be the text that the server told, of at most {MAX_EPOCH} characters")
    if not _is_offset(offset):
        raise _wrong(field, f"its offset must be {_OFFSET}")
    return Position(epoch, offset)


def _state(asked: Mapping[str, Any]) -> bytes | None:
    if "state" not in asked:
        return None
    state = asked["state"]
    if type(state) is not dict:
        raise _wrong("state", "must be an object")
    return encode_state(state)


def encode_state(state: Any) -> bytes:
    """``state`` as JSON.

    :raises Invalid: for one that is too large.
    """
    text = write_json(state)
    if len(text) > MAX_STATE:
        raise _wrong("state", f"has {len(text)} bytes as JSON, at most {MAX_STATE}")
    return text


def encode_data(data: Any) -> bytes:
    """The ``data`` of a message as JSON.

    :raises Invalid: for what JSON has no form for, or is too large.
    """
    try:
        text = write_json(data)
    except (TypeError, ValueError, RecursionError, OverflowError):
        raise _wrong("data", "has no form in JSON") from None
    if len(text) > MAX_DATA:
        raise _wrong("data", f"has {len(text)} bytes as JSON, at most {MAX_DATA}")
    return text


def check_key(key: Any) -> str | None:
    """The key that makes publishing safe to repeat.

    :raises Invalid: for what is none.
    """
    if key is None or (type(key) is str and 0 < len(key) <= MAX_KEY and key.isascii() and key.isprintable()):
        return key
    raise _wrong("_idempotencyKey", _KEY)


_SUBSCRIBE = ("topic", "since", "last", "presence", "state", "echo")


def parse_subscribe(horizontal: Any) -> Subscribe:
    """Read ``zSubscribe``.

    :raises Invalid: naming the field that is wrong.
    """
    asked = _object(horizontal, "zSubscribe", _SUBSCRIBE)
    topic = _topic(asked)
    if len(asked) == 1:
        return Subscribe(topic=topic)
    return Subscribe(
        topic=topic,
        since=_position(asked, "since"),
        last=_number(asked, "last", 0),
        presence=_flag(asked, "presence", False),
        state=_state(asked),
        echo=_flag(asked, "echo", True),
    )


def parse_unsubscribe(horizontal: Any) -> str:
    """Read ``zUnsubscribe``; returns the topic.

    :raises Invalid: naming the field that is wrong.
    """
    return _topic(_object(horizontal, "zUnsubscribe", ("topic",)))


def parse_publish(horizontal: Any) -> Publish:
    """Read ``zPublish``.

    :raises Invalid: naming the field that is wrong.
    """
    asked = _object(horizontal, "zPublish", ("topic", "data", "_idempotencyKey"))
    topic = _topic(asked)
    if "data" not in asked:
        raise _wrong("data", "is missing")
    if len(asked) == 2:
        return Publish(topic=topic, data=asked["data"])
    key = check_key(asked["_idempotencyKey"])
    if key is None:
        raise _wrong("_idempotencyKey", _KEY)
    return Publish(topic=topic, data=asked["data"], key=key)


def parse_history(horizontal: Any) -> History:
    """Read ``zHistory``.

    :raises Invalid: naming the field that is wrong.
    """
    asked = _object(horizontal, "zHistory", ("topic", "since", "before", "limit", "reverse"))
    topic = _topic(asked)
    offset = asked.get("before")
    before = Position("", offset) if _is_offset(offset) else _position(asked, "before", f", or {_OFFSET}")
    return History(
        topic=topic,
        since=_position(asked, "since"),
        before=before,
        limit=_number(asked, "limit", MESSAGES),
        reverse=_flag(asked, "reverse", False),
    )


def parse_presence(horizontal: Any) -> Presence:
    """Read ``zPresence``.

    :raises Invalid: naming the field that is wrong.
    """
    asked = _object(horizontal, "zPresence", ("topic", "state"))
    return Presence(topic=_topic(asked), state=_state(asked))
