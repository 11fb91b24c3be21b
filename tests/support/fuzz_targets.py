"""What is fuzzed: each target takes any bytes, and raises when what must hold of every input does not.

:data:`TARGETS` is what ``benchmarks/fuzz.py`` and ``test_fuzz.py`` run.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
from sqlalchemy.dialects import postgresql, sqlite
from support.fuzz_connection import connection

from zcomm.auth.policy import Policy
from zcomm.bifrost.handshake import HttpRefusal, accept_response, bearer_tokens, parse_head, parse_upgrade
from zcomm.bifrost.messages import MAX_DEPTH, MAX_KEY, decode, encode_error, encode_reply, request_id_of
from zcomm.commands.grammar import FUNCTION_NAME, PAGE_PATH, parse_call
from zcomm.data.requests import make_plan, parse_command
from zcomm.data.schema import demo_schema, load_schema
from zcomm.data.sql.conditions import ALLOWANCE
from zcomm.data.sql.statements import Statements
from zcomm.data.sql.tables import build_tables
from zcomm.errors import BadMessage, CommandError, ConfigError
from zcomm.interfaces import ACTIONS, Identity
from zcomm.origin import OriginPolicy, is_loopback, parse_host, parse_origin
from zcomm.services.servicefile import load_services
from zcomm.wire import frames, frames_pure
from zcomm.wire.deflate import deflated_frames, negotiate

__all__ = ["TARGETS"]

_SOMEBODY = Identity("somebody", "clerk", "1")
_LISTED = OriginPolicy.from_list(["https://app.example.com", "null"])
_UNLISTED = OriginPolicy.from_list([])
_SCHEMA = demo_schema()
_, _TABLES, _ = build_tables(_SCHEMA)
_DIALECTS = [
    Statements(_TABLES, dialect)
    for dialect in (sqlite.dialect(paramstyle="qmark"), postgresql.dialect(paramstyle="format"))
]


def handshake(data: bytes) -> None:
    """A request head is read or refused; what is written back is one head, whatever was asked."""
    try:
        head = parse_head(data)
        assert all(
            name == name.lower() and not set(name + value) & set(b"\r\n\0") for name, value in head.headers.items()
        )
        assert head.path and not set(head.path + head.query) & set("\r\n\0 #")
        bearer_tokens(head)
        upgrade = parse_upgrade(head)
    except HttpRefusal as refusal:
        response = refusal.response()
    else:
        response = accept_response(upgrade)
        _LISTED.allows(upgrade.origin or "", upgrade.host, True)
        _LISTED.knows_host(upgrade.host)
        assert len(set(upgrade.tokens)) == len(upgrade.tokens)
    assert response.startswith(b"HTTP/1.1 ") and response.find(b"\r\n\r\n") == len(response) - 4
    assert response.count(b"\r\n") < 10


def origin(data: bytes) -> None:
    """An origin or host is understood or not; nobody gets in by a longer name; a list is built or refused."""
    text = data.decode("latin-1")
    host, found = parse_host(text), parse_origin(text)
    assert host is None or 0 <= host[1] < 65536
    if found is not None:
        # Written again, it is the same.
        name = f"[{found[1]}]" if ":" in found[1] else found[1]
        assert parse_origin(f"{found[0]}://{name}:{found[2]}") == found
    if _LISTED.allows(text, "evil.example", True):
        assert text == "null" or found == ("https", "app.example.com", 443)
    if _UNLISTED.allows(text, "evil.example", True):
        assert found is not None and found[0] in ("http", "https") and is_loopback(found[1])
    assert not _UNLISTED.allows(text, "evil.example", False)
    try:
        OriginPolicy.from_list(text.split(",")).allows(text, text, False)
    except ConfigError:
        pass


def wire_frames(data: bytes) -> None:
    """The compiled functions and those in Python see the same frames and the same nesting."""
    if not data:
        return
    offset, body = data[0] % 16, data[1:]
    compiled, pure = (_seen(functions, body, offset) for functions in (frames, frames_pure))
    assert compiled == pure
    if compiled[0] != "refused":
        payloads, end = compiled[0]
        assert offset <= end <= len(body)
        for payload in payloads:
            payload.decode("utf-8")
        assert frames.frames(payloads) == b"".join(map(frames_pure.frame, payloads))


def _seen(functions: Any, body: bytes, offset: int) -> list[Any]:
    try:
        split: Any = functions.split(body, offset, 1000)
    except ValueError:
        split = "refused"
    return [
        split,
        functions.request_id(body),
        functions.price(body),
        *(functions.depth_within(body, limit) for limit in (0, 1, 5, 64)),
    ]


def messages(data: bytes) -> None:
    """A message is a request or is refused in words; what was taken in can be given back."""
    try:
        request = decode(data)
    except BadMessage as error:
        answer = json.loads(encode_error(request_id_of(data), error))
        assert answer["code"] == "bad_message" and answer["error"]
        return
    assert 0 < len(request.key) <= MAX_KEY
    assert request.request_id is None or type(request.request_id) in (int, str)
    reply = json.loads(encode_reply(request.request_id, request.horizontal))
    assert reply.get("_requestId") == request.request_id
    assert _depth(reply) <= MAX_DEPTH + 1


def commands(data: bytes) -> None:
    """A CRUD request is planned and its plan compiled, or it is refused in words; no write goes without a filter."""
    try:
        horizontal = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return
    for action in (None, *ACTIONS):
        try:
            command = parse_command(horizontal, action)
            plan = make_plan(command, _SCHEMA.find(command.model), 100)
        except CommandError as error:
            json.loads(encode_error(None, error))
            assert error.code != "internal", error
            continue
        if plan.action in ("update", "delete"):
            assert horizontal.get("all") is True or plan.shape[-1] != ("$true",)
        command.digest()
        hash(plan.shape)
        for statements in _DIALECTS:
            statement = statements.of(plan)
            numbers = {parameter.number for parameter in statement.parameters} - {ALLOWANCE}
            assert all(0 <= number < len(plan.slots) for number in numbers)


def grammar(data: bytes) -> None:
    """A call is understood or refused in words; its arguments are plain data."""
    text = data.decode("utf-8", "replace")
    for form in ("zFunc", "zLink", "zOpen"):
        for written in (text, f"{form}({text})"):
            try:
                call = parse_call(written, form)
            except CommandError as error:
                json.loads(encode_error(None, error))
                continue
            encode_reply(None, call.args)
            assert call.form == form
            assert form != "zFunc" or FUNCTION_NAME.match(call.name)
            assert form != "zLink" or PAGE_PATH.match(call.name)


def deflate(data: bytes) -> None:
    """An offer of compression is taken or declined, and what is then compressed can be read."""
    agreed, answer = negotiate(data.decode("latin-1"))
    assert (agreed is None) == (answer == "")
    if agreed is not None:
        assert answer.isascii() and answer.isprintable() and answer.startswith("permessage-deflate")
        assert 9 <= agreed.window_bits <= 12
        text = b"x" * 100 + data * 3
        framed = deflated_frames([text], agreed.window_bits)
        if framed[0] & 0x40:
            size = framed[1]
            start = 2 if size < 126 else 4 if size == 126 else 10
            assert zlib.decompressobj(-agreed.window_bits).decompress(framed[start:] + b"\0\0\xff\xff") == text


def schema(data: bytes) -> None:
    """A schema file is read or refused in words; one that was read makes tables."""
    found = _refused_in_words(lambda text: load_schema(text, "file"), data)
    if found is not None:
        _, tables, _ = build_tables(found)
        assert tables


def policy(data: bytes) -> None:
    """A policy file is read or refused in words; one that was read answers yes or no."""
    rights = _refused_in_words(lambda text: Policy.from_yaml(text, "file"), data)
    if rights is not None:
        answers = [
            rights.allows(_SOMEBODY, "read", "model", "Users"),
            rights.allows(_SOMEBODY, "call", "function", "f"),
            rights.allows(_SOMEBODY, "visit", "page", "/a/b"),
            rights.allows(_SOMEBODY, "open", "file", "a.yaml"),
            rights.allows(_SOMEBODY, "use", "command", "x"),
        ]
        assert set(map(type, answers)) == {bool}


def services(data: bytes) -> None:
    """A file that declares services is read or refused in words."""
    for declaration in _refused_in_words(lambda text: load_services(text, "file"), data) or ():
        assert declaration.name and declaration.start_timeout > 0


def _refused_in_words(load: Callable[[str], Any], data: bytes) -> Any:
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    try:
        return load(text)
    except ConfigError as error:
        assert error.reason
        return None


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, inner), default=0) if isinstance(value, (dict, list)) else 0


#: By name, which is also the name of the folder in ``corpus/``.
TARGETS: dict[str, Callable[[bytes], None]] = {
    "handshake": handshake,
    "origin": origin,
    "frames": wire_frames,
    "connection": connection,
    "messages": messages,
    "commands": commands,
    "grammar": grammar,
    "deflate": deflate,
    "schema": schema,
    "policy": policy,
    "services": services,
}
