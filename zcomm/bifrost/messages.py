"""Messages as values: the payload of a text frame in, a request out; a result in, a payload out (docs/protocol.rst).

JSON is read strictly (RFC 8259): no NaN, no lone surrogates, no float beyond double precision, no deep nesting.
What JSON lacks is written in one documented form: dates and times in ISO 8601, ``Decimal`` and
``UUID`` as strings, bytes in base64, a number that is not finite as null.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import msgspec

from zcomm.budget.written import Pieces, Written, write_json
from zcomm.errors import BadMessage, CommandError, InternalError
from zcomm.interfaces import MAX_REQUEST_ID, MIN_REQUEST_ID, Request
from zcomm.wire import pieces
from zcomm.wire.frames import depth_within, price, request_id

__all__ = [
    "code_of",
    "decode",
    "encode",
    "encode_broadcast",
    "encode_error",
    "encode_notice",
    "encode_reply",
    "encode_text",
    "encode_written",
    "read",
    "request_id_of",
    "written",
]

MAX_DEPTH = 64
#: What a message may cost to read (:func:`zcomm.wire.frames.price`), which is some 12 ms: the reactor is the reader.
MAX_PRICE = 1_000_000
MAX_KEY = 4096
#: Bytes of a ``_requestId`` that is a string.
MAX_ID_SIZE = 64
#: A reply may be larger than what a client may send, but not without bound.
MAX_RESULT = 16 * 1024 * 1024
#: Bytes of a result's broadcast; of what is larger the others are told that it is there to be read.
MAX_BROADCAST = 64 * 1024

_read_request = msgspec.json.Decoder(Request).decode
_read_any = msgspec.json.Decoder().decode
_UNREADABLE = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError)
_UNWRITABLE = (TypeError, ValueError, RecursionError, OverflowError)
_write = write_json


class _Reply(msgspec.Struct, gc=False):
    result: Any


class _ReplyTo(msgspec.Struct, gc=False, rename={"request_id": "_requestId"}):
    result: Any
    request_id: int | str


def decode(payload: bytes, max_depth: int = MAX_DEPTH) -> Request:
    """Read one request.

    :raises BadMessage: for anything that is not one; the connection may stay.
    """
    return read(payload, depth_within(payload, max_depth), max_depth)


def read(payload: bytes, shape: int, max_depth: int) -> Request:
    """Read one request that was looked at before.

    :param shape: what :func:`zcomm.wire.frames.depth_within` says of it.
    :raises BadMessage: as :func:`decode`.
    """
    if not shape:
        raise BadMessage(f"Too deep: at most {max_depth} levels of nesting")
    if shape > 1 and (cost := price(payload)) > MAX_PRICE:
        raise BadMessage(f"Too many values to read at once: they cost {cost}, at most {MAX_PRICE}; send fewer")
    try:
        request = _read_request(payload)
    except msgspec.ValidationError:
        # The usual message costs one typed pass; the reason for the others is found here.
        return _decode_untyped(payload)
    except _UNREADABLE:
        raise BadMessage("Invalid JSON") from None
    key = request.key
    request_id = request.request_id
    if not key or len(key) > MAX_KEY or (type(request_id) is str and len(request_id.encode()) > MAX_ID_SIZE):
        return _decode_untyped(payload)
    return request


def _decode_untyped(payload: bytes) -> Request:
    message = _object(payload)
    request_id = message.get("_requestId")
    if request_id is not None and not _is_request_id(request_id):
        raise BadMessage(f"Invalid _requestId: an integer of 64 bits or a string of at most {MAX_ID_SIZE} bytes")
    key = message.get("zKey", message.get("cmd"))
    if key is None or key == "":
        raise BadMessage('Missing zKey: a request is {"zKey": …, "zHorizontal": …}')
    if not isinstance(key, str) or len(key) > MAX_KEY:
        raise BadMessage(f"Invalid zKey: a string of at most {MAX_KEY} characters")
    return Request(key=key, horizontal=message.get("zHorizontal", key), request_id=request_id)


def _object(payload: bytes) -> dict[str, Any]:
    try:
        message = _read_any(payload)
    except _UNREADABLE:
        raise BadMessage("Invalid JSON") from None
    if not isinstance(message, dict):
        raise BadMessage("Message must be an object")
    return message


def _is_request_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace")) <= MAX_ID_SIZE
    return isinstance(value, int) and not isinstance(value, bool) and MIN_REQUEST_ID <= value <= MAX_REQUEST_ID


def request_id_of(payload: bytes) -> int | str | None:
    """The id of a message that was refused, where it has a usable one, so that its error finds its call.

    It is found as well in what is nested too deeply, is cut off or is no JSON (``NaN``, a lone surrogate, a comma too
    many), as long as it can be told to be the message's own: a member of the outermost object, of which the last one
    counts, as in JSON. None is better than that of another message, which stands in an inner object.
    """
    found = request_id(payload)
    try:
        identifier = _read_any(found) if found else None
    except _UNREADABLE:
        return None
    return identifier if _is_request_id(identifier) else None


def encode(value: Any) -> bytes:
    """``value`` as JSON.

    :raises InternalError: for a value JSON has no form for, or one larger than a message may be.
    """
    try:
        payload = _write(value)
    except _UNWRITABLE as error:
        raise InternalError("Result not serializable") from error
    return payload if len(payload) <= MAX_RESULT else _too_large()


def _too_large() -> NoReturn:
    raise InternalError(f"Result too large: at most {MAX_RESULT} bytes; ask for less with limit or fields")


def encode_reply(request_id: int | str | None, result: Any) -> bytes:
    """A reply: ``{"result": …, "_requestId": …}``."""
    try:
        payload = _write(_Reply(result) if request_id is None else _ReplyTo(result, request_id))
    except _UNWRITABLE as error:
        raise InternalError("Result not serializable") from error
    return payload if len(payload) <= MAX_RESULT else _too_large()


def written(result: Any) -> Any:
    """``result`` as JSON where it is large, made piece by piece: for a thread, so that the reactor has no more to do
    than to pass it on. Any other as it is, and so is one that somebody changes meanwhile.

    :raises InternalError: as :func:`encode_reply`.
    """
    try:
        return pieces.written(result, MAX_RESULT)
    except pieces.TooLarge:
        return _too_large()
    except _UNWRITABLE as error:
        raise InternalError("Result not serializable") from error


def encode_written(request_id: int | str | None, result: Written) -> bytes | Pieces:
    """A reply with a result that is JSON already."""
    payload = result.reply(b"}" if request_id is None else b',"_requestId":%s}' % _write(request_id))
    return payload if len(payload) <= MAX_RESULT else _too_large()


def encode_error(
    request_id: int | str | None, error: CommandError, replaced: Callable[[InternalError], object] = repr
) -> bytes:
    """An error: text, code, whether a retry may help, and for validation the reason by field.

    It is written whatever the error holds, which a program may have filled with anything: characters that UTF-8 does
    not have are replaced, and what should be a text and is none is left out of it.

    :param replaced: called with the error that takes the place of one which is larger than a message may be.
    """
    fields = _part(error, "fields")
    told = {_clean(name): _clean(reason) for name, reason in dict.items(fields)} if _is_a(fields, dict) else {}
    message = {
        "error": _clean(_part(error, "text")),
        "code": code_of(error),
        "retryable": _part(error, "retryable") is True,
    }
    if told:
        message["fields"] = told
    if request_id is not None:
        message["_requestId"] = request_id
    payload = _write(message)
    if len(payload) <= MAX_RESULT:
        return payload
    larger = InternalError("Error too large")
    replaced(larger)
    return encode_error(request_id, larger)


def code_of(error: CommandError) -> str:
    """The code of an error; that of an internal one where it has none that is a text."""
    code = _part(error, "code")
    return code if type(code) is str and code.isascii() else InternalError.code


def _part(error: CommandError, name: str) -> Any:
    """What a program's error has under ``name``, which may be anything, or raise anything."""
    try:
        return getattr(error, name, None)
    except BaseException:
        return None


def _is_a(value: Any, kind: type) -> bool:
    """Whether ``value`` is of that type, asking nothing of it: it may say otherwise, or raise."""
    return issubclass(type(value), kind)


def _clean(text: Any) -> str:
    # The methods of str itself: a subclass may raise in its own.
    return str.encode(text, "utf-8", "replace").decode() if _is_a(text, str) else "(not a text)"


def encode_broadcast(
    key: str, result: Any, announcement: dict[str, Any] | None = None, told: Mapping[str, Any] | None = None
) -> bytes:
    """A broadcast of a result. It never carries a ``_requestId``: ids belong to one client.

    :param told: what it has in the place of the result, with the keys.
    """
    if told is None:
        told = {"result": msgspec.Raw(result.json()) if isinstance(result, Written) else result}
    return encode({"zKey": key, **(announcement or {}), **told})


def encode_notice(key: str, announcement: dict[str, Any] | None = None) -> bytes:
    """A broadcast in the place of one that is too much: something changed, and is there to be read anew."""
    return encode({"zKey": key, **(announcement or {}), "many": True})


def encode_text(message: Any) -> bytes:
    """The payload of a message that the program sends: a string as it is, anything else as JSON.

    :raises InternalError: as :func:`encode`.
    """
    if isinstance(message, str):
        try:
            return message.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InternalError("Message not serializable") from error
    return encode(message)
