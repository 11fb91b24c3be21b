"""Assertions about replies, broadcasts and connections."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zcomm.testing.client import MemoryClient
from zcomm.testing.link import Closed

__all__ = ["assert_broadcast", "assert_closed", "assert_error", "assert_reply", "assert_silent"]

#: Stands for whatever it is.
ANY: Any = object()


def assert_reply(reply: Any, result: Any = ANY) -> Any:
    """Check that a command succeeded.

    :param reply: what :meth:`MemoryClient.call` returned, or a reply itself.
    :param result: what it must have answered; anything when left out.
    :returns: the result.
    :raises AssertionError: when there is no reply yet, an error, or another result.
    """
    message = _settled(reply)
    if "result" not in message:
        raise AssertionError(f"the command failed: {message}")
    if result is not ANY and message["result"] != result:
        raise AssertionError(f"the result is {message['result']!r}, not {result!r}")
    return message["result"]


def assert_error(reply: Any, code: str, fields: Any = ANY) -> dict[str, Any]:
    """Check that a command was answered with an error.

    :param code: its code, as in docs/protocol.rst.
    :param fields: what it must say by field; anything when left out.
    :returns: the error.
    :raises AssertionError: when there is no reply yet, a result, or another error.
    """
    message = _settled(reply)
    if message.get("code") != code:
        raise AssertionError(f"the reply is {message}, not an error {code!r}")
    if fields is not ANY and message.get("fields") != fields:
        raise AssertionError(f"the fields are {message.get('fields')!r}, not {fields!r}")
    return message


def assert_broadcast(client: MemoryClient, key: str, result: Any = ANY) -> dict[str, Any]:
    """Check that ``client`` heard of somebody else's command, and take that message from its ``messages``.

    :param key: the command's ``zKey``.
    :param result: what it must have answered; anything when left out.
    :returns: the whole message.
    :raises AssertionError: when it did not, or heard something else of it.
    """
    for message in client.messages:
        if isinstance(message, dict) and message.get("zKey") == key and "result" in message:
            break
    else:
        raise AssertionError(f"no broadcast of {key!r}, only {client.messages!r}")
    if "_requestId" in message:
        raise AssertionError(f"a broadcast carries an id: {message}")
    if result is not ANY and message["result"] != result:
        raise AssertionError(f"the broadcast says {message['result']!r}, not {result!r}")
    client.messages.remove(message)
    return message


def assert_silent(*clients: MemoryClient) -> None:
    """Check that the clients have nothing in ``messages``.

    :raises AssertionError: naming what one of them heard.
    """
    for client in clients:
        if client.messages:
            raise AssertionError(f"heard {client.messages!r}")


def assert_closed(client: MemoryClient, code: int, reason: Any = ANY) -> Closed:
    """Check that the connection ended with ``code``.

    :param reason: the text that must have come with it; anything when left out.
    :raises AssertionError: when it is open, or ended otherwise.
    """
    closed = client.closed
    if closed is None:
        raise AssertionError("the connection is open")
    if closed.code != code or (reason is not ANY and closed.reason != reason):
        raise AssertionError(f"the connection ended with {closed}")
    return closed


def _settled(reply: Any) -> dict[str, Any]:
    if not isinstance(reply, Deferred):
        settled: dict[str, Any] = reply
        return settled
    found: list[Any] = []

    def note(value: Any) -> Any:
        found.append(value)
        return value

    reply.addBoth(note)
    if not found:
        raise AssertionError("there is no reply yet")
    if isinstance(found[0], Failure):
        reply.addErrback(lambda _: None)
        raise AssertionError(f"there is no reply: {found[0].getErrorMessage()}")
    answer: dict[str, Any] = found[0]
    return answer
