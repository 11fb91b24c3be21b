"""The channel between parent and worker: messages in msgpack on a socket that nobody else has, in both directions.

Nothing that comes over it is evaluated: a message names what is asked for, and each side knows the names that it
answers to.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.protocols.basic import Int32StringReceiver
from twisted.python.failure import Failure

import zcomm.errors
from zcomm.errors import Unavailable, ZCommError
from zcomm.runtime.deferreds import Waiters, following

__all__ = ["Channel", "Together", "connect", "decoded", "encoded", "error_from", "receive", "told_of"]

#: Bytes of one message at most; more is a mistake.
MOST = 64 << 20
#: Of an error, what it carries is told as far as it is one of these.
_PLAIN = (str, int, float, bool, type(None))

T = TypeVar("T")


class Ask(msgspec.Struct, tag=0, array_like=True):
    """A question; the other side gives an :class:`Answer`, or a :class:`Refusal`."""

    id: int
    name: str
    args: list[Any]


class Answer(msgspec.Struct, tag=1, array_like=True):
    """The value that the question ``id`` has got."""

    id: int
    value: Any


class Refusal(msgspec.Struct, tag=2, array_like=True):
    """The error of the question ``id``."""

    id: int
    error: list[Any]


class Tell(msgspec.Struct, tag=3, array_like=True):
    """A message that has no answer."""

    name: str
    args: list[Any]


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return os.fsencode(value)
    raise NotImplementedError(f"{type(value).__name__} is nothing that a process tells another")


def _made(kind: type, value: Any) -> Any:
    if issubclass(kind, Path) and isinstance(value, bytes):
        return Path(os.fsdecode(value))
    raise TypeError(f"{type(value).__name__} is no {kind.__name__}")


def encoded(value: Any) -> bytes:
    """The bytes of a value: plain ones, paths, and dataclasses of those."""
    return msgspec.msgpack.encode(value, enc_hook=_plain)


def decoded(data: bytes, kind: type[T]) -> T:
    """The value of ``kind`` that was :func:`encoded`.

    :raises msgspec.ValidationError: for what is none.
    """
    return msgspec.msgpack.decode(data, type=kind, dec_hook=_made)


_MESSAGES = msgspec.msgpack.Decoder(Ask | Answer | Refusal | Tell)


def receive(control: socket.socket) -> bytes:
    """The first message on a channel, waiting for it: of a process that has no reactor yet.

    :raises EOFError: when the other side has gone.
    """
    return _exactly(control, int.from_bytes(_exactly(control, 4)))


def _exactly(control: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        piece = control.recv(size - len(found))
        if not piece:
            raise EOFError
        found += piece
    return found


def told_of(error: BaseException) -> list[Any]:
    """An error in plain values, for :func:`error_from`: its class where it is one of zComm's, its arguments, its
    attributes."""
    if not isinstance(error, ZCommError) or not hasattr(zcomm.errors, type(error).__name__):
        return ["", [str(error) or type(error).__name__], {}]
    fields = {name: value for name, value in vars(error).items() if _is_plain(value)}
    return [type(error).__name__, [each if _is_plain(each) else str(each) for each in error.args], fields]


def _is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, _PLAIN)


def error_from(told: Sequence[Any]) -> ZCommError:
    """The error that :func:`told_of` told of; one that is none of zComm's becomes an
    :class:`~zcomm.errors.Unavailable`."""
    name, args, fields = told
    kind = getattr(zcomm.errors, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, ZCommError)):
        return Unavailable(str(args[0]) if args else "")
    # Their constructors differ, and have done what they do where the error was raised.
    error: ZCommError = kind.__new__(kind, *args)
    error.args = tuple(args)
    vars(error).update(fields)
    return error


class Together:
    """A question that is asked once for all who want its answer meanwhile: anybody may ask for a health report, and
    each question goes to every process.

    :param ask: asks it.
    """

    def __init__(self, ask: Callable[[], Deferred[Any]]):
        self._ask = ask
        self._waiting: Waiters[Any] = Waiters()
        self._is_asked = False

    def __call__(self) -> Deferred[Any]:
        """A Deferred of the answer; it fails as the question does."""
        waiting = self._waiting.add()
        if not self._is_asked:
            self._is_asked = True
            maybeDeferred(self._ask).addBoth(self._answered)
        return waiting

    def _answered(self, answer: Any) -> None:
        self._is_asked = False
        (self._waiting.fail if isinstance(answer, Failure) else self._waiting.fire)(answer)


class Channel(Int32StringReceiver):
    """One side of the channel.

    :param handlers: the names that it answers to. What one returns, or the Deferred of it, is the answer to a question.
    :param clock: an ``IReactorTime``.
    :param lost: called once when the other side has gone.
    """

    MAX_LENGTH = MOST
    _log = Logger()

    def __init__(self, handlers: Mapping[str, Callable[..., Any]], clock: Any, lost: Callable[[], None]):
        self._handlers = handlers
        self._clock = clock
        self._lost = lost
        self._asked: dict[int, Deferred[Any]] = {}
        self._last = 0
        self.is_open = True
        #: Whether the other side does not read: what can wait is told later.
        self.is_behind = False

    def connectionMade(self) -> None:
        """Hear of it when the other side does not read."""
        transport: Any = self.transport
        transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """Note that the other side does not read; called by the transport."""
        self.is_behind = True

    def resumeProducing(self) -> None:
        """Note that the other side reads; called by the transport."""
        self.is_behind = False

    def stopProducing(self) -> None:
        """Do nothing more: the end is told in another way. Called by the transport."""

    def tell(self, name: str, *args: Any) -> None:
        """Send a message that has no answer; nothing happens where the other side has gone."""
        self._send(Tell(name, list(args)))

    def ask(self, name: str, *args: Any, timeout: float | None = None) -> Deferred[Any]:
        """Ask the other side.

        :param timeout: seconds to answer in; without it, until it has gone.
        :returns: a Deferred of the answer. It fails with the :class:`~zcomm.errors.ZCommError` that the other side
            told of, with :class:`~zcomm.errors.Unavailable` where there is no other side (any more), and with
            ``TimeoutError`` of Twisted's.
        """
        answer: Deferred[Any] = Deferred()
        if not self.is_open:
            answer.errback(Unavailable("The other process has ended"))
            return answer
        self._last = number = self._last + 1
        self._asked[number] = answer
        self._send(Ask(number, name, list(args)))
        waiting = following(answer)
        return waiting if timeout is None else waiting.addTimeout(timeout, self._clock)

    def _send(self, message: Any) -> None:
        if self.is_open:
            self.sendString(encoded(message))

    def stringReceived(self, string: bytes) -> None:  # noqa: N802 (the name is Twisted's)
        """Take a message; one that makes no sense ends the channel."""
        message = _MESSAGES.decode(string)
        if isinstance(message, Tell):
            try:
                self._handlers[message.name](*message.args)
            except Exception:
                self._log.failure("what another process has told was not understood")
        elif isinstance(message, Ask):
            self._answer(message)
        else:
            answer = self._asked.pop(message.id, None)
            if answer is None:
                return
            if isinstance(message, Answer):
                answer.callback(message.value)
            else:
                answer.errback(error_from(message.error))

    def _answer(self, question: Ask) -> None:
        handler = self._handlers.get(question.name)
        if handler is None:
            self._send(Refusal(question.id, ["", [f"{question.name}: no such question"], {}]))
            return

        def refuse(failure: Failure) -> None:
            if not failure.check(ZCommError):
                self._log.failure("a question of another process could not be answered", failure)
            error: Any = failure.value
            self._send(Refusal(question.id, told_of(error)))

        answered = maybeDeferred(handler, *question.args)
        answered.addCallback(lambda value: self._send(Answer(question.id, value))).addErrback(refuse)

    def connectionLost(self, reason: Failure | None = None) -> None:
        """Tell whoever waits for an answer that there will be none."""
        self.is_open = False
        asked, self._asked = self._asked, {}
        for answer in asked.values():
            answer.errback(Unavailable("The other process has ended"))
        self._lost()

    def close(self) -> None:
        """End it; what was told before is sent."""
        transport: Any = self.transport
        if transport is not None:
            transport.unregisterProducer()
            transport.loseConnection()


class _Once(Factory):
    noisy = False

    def __init__(self, channel: Channel):
        self._channel = channel

    def buildProtocol(self, addr: Any) -> Channel:
        return self._channel


def connect(channel: Channel, control: socket.socket, reactor: Any) -> None:
    """Let ``channel`` be on ``control``, which is closed here."""
    control.setblocking(False)
    with control:
        reactor.adoptStreamConnection(control.fileno(), socket.AF_UNIX, _Once(channel))
