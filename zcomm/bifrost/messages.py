"""Messages as values: the payload of a text frame in, a request out; a result in, a payload out (docs/protocol.rst).

JSON is read strictly (RFC 8259): no NaN, no lone surrogates, no numbers beyond 64 bits, no deep nesting.
What JSON lacks is written in one documented form: dates and times in ISO 8601, ``Decimal`` and
``UUID`` as strings, bytes in base64, a number that is not finite as null.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from zcomm.errors import BadMessage, CommandError, InternalError
from zcomm.interfaces import Request
from zcomm.wire.frames import depth_within

__all__ = ["decode", "encode", "encode_broadcast", "encode_error", "encode_reply", "encode_text", "request_id_of"]

MAX_DEPTH = 64
MAX_KEY = 4096
MAX_REQUEST_ID = 64
#: A reply may be larger than what a client may send, but not without bound.
MAX_RESULT = 16 * 1024 * 1024

_read_request = msgspec.json.Decoder(Request).decode
_read_any = msgspec.json.Decoder().decode
_UNWRITABLE = (TypeError, ValueError, RecursionError, OverflowError)
_write = msgspec.json.Encoder(decimal_format="string", uuid_format="canonical").encode


class _Reply(msgspec.Struct, gc=False):
    result: Any


class _ReplyTo(msgspec.Struct, gc=False, rename={"request_id": "_requestId"}):
    result: Any
    request_id: int | str


def decode(payload: bytes, max_depth: int = MAX_DEPTH) -> Request:
    """Read one request.

    :raises BadMessage: for anything that is not one; the connection may stay.
    """
    if not depth_within(payload, max_depth):
        raise BadMessage(f"Too deep: at most {max_depth} levels of nesting")
    try:
        request = _read_request(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        # The usual message costs one typed pass; the reason for the others is found here.
        return _decode_untyped(payload)
    key = request.key
    request_id = request.request_id
    if not key or len(key) > MAX_KEY or (type(request_id) is str and len(request_id.encode()) > MAX_REQUEST_ID):
        return _decode_untyped(payload)
    return request


def _decode_untyped(payload: bytes) -> Request:
    message = _object(payload)
    request_id = message.get("_requestId")
    if request_id is not None and not _is_request_id(request_id):
        raise BadMessage(f"Invalid _requestId: an integer or a string of at most {MAX_REQUEST_ID} bytes")
    key = message.get("zKey", message.get("cmd"))
    if key is None or key == "":
        raise BadMessage('Missing zKey: a request is {"zKey": …, "zHorizontal": …}')
    if not isinstance(key, str) or len(key) > MAX_KEY:
        raise BadMessage(f"Invalid zKey: a string of at most {MAX_KEY} characters")
    return Request(key=key, horizontal=message.get("zHorizontal", key), request_id=request_id)


def _object(payload: bytes) -> dict[str, Any]:
    try:
        message = _read_any(payload)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError, OverflowError):
        raise BadMessage("Invalid JSON") from None
    if not isinstance(message, dict):
        raise BadMessage("Message must be an object")
    return message


def _is_request_id(value: Any) -> bool:
    if isinstance(value, str):
        return len(value.encode("utf-8", "replace")) <= MAX_REQUEST_ID
    return isinstance(value, int) and not isinstance(value, bool)


def request_id_of(payload: bytes, max_depth: int = MAX_DEPTH) -> int | str | None:
    """The id of a message that was refused, where it has a usable one, so that its error finds its call."""
    if not depth_within(payload, max_depth):
        return None
    try:
        request_id = _object(payload).get("_requestId")
    except BadMessage:
        return None
    return request_id if _is_request_id(request_id) else None


def encode(value: Any) -> bytes:
    """``value`` as JSON.

    :raises InternalError: for a value JSON has no form for, or one larger than a message may be.
    """
    try:
        payload = _write(value)
    except _UNWRITABLE:
        raise InternalError("Result not serializable") from None
    return payload if len(payload) <= MAX_RESULT else _too_large()


def _too_large() -> NoReturn:
    raise InternalError(f"Result too large: at most {MAX_RESULT} bytes; ask for less with limit or fields")


def encode_reply(request_id: int | str | None, result: Any) -> bytes:
    """A reply: ``{"result": …, "_requestId": …}``."""
    try:
        payload = _write(_Reply(result) if request_id is None else _ReplyTo(result, request_id))
    except _UNWRITABLE:
        raise InternalError("Result not serializable") from None
    return payload if len(payload) <= MAX_RESULT else _too_large()


def encode_error(request_id: int | str | None, error: CommandError) -> bytes:
    """An error: text, code, whether a retry may help, and for validation the reason by field."""
    message: dict[str, Any] = {"error": error.text, "code": error.code, "retryable": error.retryable}
    if error.fields:
        message["fields"] = error.fields
    if request_id is not None:
        message["_requestId"] = request_id
    return _write(message)


def encode_broadcast(key: str, result: Any, announcement: dict[str, Any] | None = None) -> bytes:
    """A broadcast of a result. It never carries a ``_requestId``: ids belong to one client."""
    return encode({"zKey": key, **(announcement or {}), "result": result})


def encode_text(message: Any) -> bytes:
    """The payload of a message that the program sends: a string as it is, anything else as JSON.

    :raises InternalError: as :func:`encode`.
    """
    if isinstance(message, str):
        try:
            return message.encode("utf-8")
        except UnicodeEncodeError:
            raise InternalError("Message not serializable") from None
    return encode(message)
