"""The replies of scripts as values."""

from __future__ import annotations

from typing import Any

import msgspec

from zcomm.interfaces import Change, KeptMessage, Members, Position, Slice

__all__ = ["changes_of", "members_of", "parts_of", "position_of", "read_text", "slice_of"]

_read_changes = msgspec.json.Decoder(list[tuple[int, int, int, int, str, str, msgspec.Raw, int, int]]).decode
#: A text of JSON.
read_text = msgspec.json.Decoder(str).decode


def position_of(reply: bytes) -> Position | None:
    """A position, as scripts tell it: ``42 epoch.history``; ``None`` of an empty text."""
    if not reply:
        return None
    offset, _, epoch = reply.partition(b" ")
    return Position(epoch.decode(), int(offset))


def parts_of(epoch: str) -> tuple[str, str]:
    """Epoch and history, of which a script may look for the latter; both are letters and digits, as those of ours."""
    number, _, history = epoch.partition(".")
    if not (number.isascii() and number.isalnum() and history.isascii() and history.isalnum()):
        return ("-", "-") if epoch else ("", "")
    return number, history


def slice_of(reply: list[Any]) -> Slice:
    """The messages that were read."""
    position = position_of(reply[0])
    if position is None:
        raise ValueError("a slice has a position")
    if reply[1]:
        return Slice(position, reason=reply[1].decode())
    messages = []
    for offset, payload in zip(reply[3::2], reply[4::2], strict=True):
        origin, _, fragment = payload.partition(b"\n")
        messages.append(KeptMessage(offset, fragment, origin.decode()))
    return Slice(position, messages, more=bool(reply[2]))


def changes_of(text: bytes) -> list[Change]:
    """The changes of a topic's members."""
    changes = []
    for since, version, before, after, connection, user, raw, users, connections in _read_changes(text):
        state: bytes | None = bytes(raw)
        if state == b"null":
            state = None
        changes.append(Change(since, version, connection, user, state, before, after, users, connections))
    return changes


def members_of(reply: list[Any]) -> Members:
    """The members of a topic."""
    named: dict[str, dict[str, bytes]] | None = None
    if len(reply) > 3 or not reply[2]:
        named = {}
        entries = reply[3] if len(reply) > 3 else []
        for connection, entry in zip(entries[::2], entries[1::2], strict=True):
            _, user, state = entry.split(b"\n", 2)
            named.setdefault(read_text(user), {})[read_text(connection)] = state
    return Members(int(reply[0]), reply[1], reply[2], named)
