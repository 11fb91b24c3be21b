"""One question to a server over a socket, and its answer: connect, send, read until it makes sense, close."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure

__all__ = ["Address", "Deadline", "HungUp", "NoAnswer", "ask", "within"]

#: A Unix socket's path, or a numeric host and a port.
Address = str | tuple[str, int]
#: More than any answer asked for here.
_MAX_BYTES = 1 << 20


class NoAnswer(Exception):
    """The server refused the connection, closed it, or said nothing in time."""


class HungUp(NoAnswer):
    """The server took the connection and closed it without a word: it lives, but has no time for us."""


class _Question(Protocol):
    transport: Any

    def __init__(self, request: bytes, parse: Callable[[bytes], Any]):
        self._request = request
        self._parse = parse
        self._received = b""
        self.answer: Deferred[Any] = Deferred(lambda _: self.transport.abortConnection())

    def connectionMade(self) -> None:
        if self._request:
            self.transport.write(self._request)
        self._look()

    def dataReceived(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > _MAX_BYTES:
            self.transport.abortConnection()
        else:
            self._look()

    def _look(self) -> None:
        if self.answer.called:
            return
        try:
            found = self._parse(self._received)
        except Exception:
            self.answer.errback(Failure())
            self.transport.abortConnection()
            return
        if found is not None:
            self.answer.callback(found)
            self.transport.loseConnection()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if not self.answer.called:
            self.answer.errback(Failure(HungUp("the connection was closed without an answer")))


def ask(reactor: Any, address: Address, request: bytes, parse: Callable[[bytes], Any], timeout: float) -> Deferred[Any]:
    """Ask one question.

    :param address: a Unix socket's path, or a numeric host and a port.
    :param parse: what was received so far to the answer, or ``None`` while it is incomplete.
    :param timeout: seconds for all of it.
    :return: fires with the answer, fails with :class:`NoAnswer` or what ``parse`` raised.
    """
    return within(reactor, timeout, Deferred.fromCoroutine(_ask(reactor, address, request, parse)))


async def _ask(reactor: Any, address: Address, request: bytes, parse: Callable[[bytes], Any]) -> Any:
    if isinstance(address, str):
        endpoint: Any = UNIXClientEndpoint(reactor, address)
    else:
        kind = TCP6ClientEndpoint if ":" in address[0] else TCP4ClientEndpoint
        endpoint = kind(reactor, *address)
    factory = Factory.forProtocol(lambda: _Question(request, parse))
    factory.noisy = False
    try:
        question = await endpoint.connect(factory)
    except ConnectingCancelledError:
        # Whoever asked does not want to know any more; taken for "no answer" it would be asked again.
        raise CancelledError from None
    except OSError as error:
        raise NoAnswer(str(error)) from error
    except Exception as error:
        if type(error).__module__.startswith("twisted.internet.error"):
            raise NoAnswer(str(error)) from error
        raise
    return await question.answer


class Deadline:
    """Cancels an operation that takes too long; what shows progress may put it off.

    :ivar outcome: the result of the operation; fails with :class:`NoAnswer` when the time was up.
    """

    def __init__(self, reactor: Any, seconds: float, operation: Deferred[Any]):
        self.seconds = seconds
        self._operation = operation
        self._late = False
        self._timer = reactor.callLater(seconds, self._give_up)
        self.outcome = operation.addBoth(self._settle)

    def extend(self) -> None:
        """Begin to count anew."""
        if self._timer.active():
            self._timer.reset(self.seconds)

    def _give_up(self) -> None:
        self._late = True
        self._operation.cancel()

    def _settle(self, result: Any) -> Any:
        if self._timer.active():
            self._timer.cancel()
        if self._late and isinstance(result, Failure):
            return Failure(NoAnswer(f"no answer within {self.seconds:g} s"))
        return result


def within(reactor: Any, seconds: float, operation: Deferred[Any]) -> Deferred[Any]:
    """The result of ``operation``, which is cancelled after ``seconds``.

    :return: fails with :class:`NoAnswer` when the time was up; cancelling it cancels ``operation``.
    """
    return Deadline(reactor, seconds, operation).outcome
