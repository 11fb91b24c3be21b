"""Parameters that the server fills: functions and commands may ask for them beside what the client sends.

It is given to keyword-only parameters of the names in :data:`PARAMETERS`, which no caller can fill. What stands behind
a name is the same everywhere; how it is used depends on where the function runs.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from functools import partial
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, isroutine, signature
from threading import Lock
from typing import Any, Literal, Protocol

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import blockingCallFromThread
from twisted.python.threadable import isInIOThread

from zcomm.bifrost.messages import encode_text, written
from zcomm.errors import TooBusy, Unavailable
from zcomm.interfaces import Client, Identity, Request, owner_of
from zcomm.runtime.deferreds import awaited, is_promise, then
from zcomm.runtime.thread import blocking, in_reactor, is_in_loop, is_reactors_thread
from zcomm.runtime.workers import Workers, aside, seconds_away
from zcomm.wire.frames import is_light

__all__ = [
    "BlockingClient",
    "Given",
    "INTERVAL",
    "InLoop",
    "Kind",
    "PARAMETERS",
    "Place",
    "Progress",
    "as_json",
    "ending",
    "in_the_loop",
    "in_worker",
    "kind_of",
    "unwrapped",
]

#: The names that the server fills.
PARAMETERS = ("identity", "client", "progress", "ask")

#: Where a function runs: on the reactor's thread, in a worker thread, or in a program's asyncio loop.
Place = Literal["reactor", "thread", "loop"]

#: What a call of a function gives: a value, a coroutine or another awaitable, a Deferred; whatever a plain function
#: makes of a coroutine function that it wraps; or a generator, which is no result.
Kind = Literal["plain", "coroutine", "deferred", "wrapped", "generator"]

#: Runs a coroutine in a program's asyncio loop; a Deferred of its result.
InLoop = Callable[[Coroutine[Any, Any, Any]], Deferred[Any]]

_PROMISE = re.compile(r"[\"']?(?:[A-Za-z_]\w*\.)*(Deferred|Awaitable|Coroutine)\b")

#: Seconds between two messages of one command: twenty a second are more than an eye can tell apart, and a
#: function with a million steps would fill its client's queue until the client is dropped for being slow.
INTERVAL = 0.05


#: Values that keep the reactor for some ms while they become JSON.
LONG = 128 * 1024

_NESTED = frozenset({dict, list, tuple})


class Given:
    """Makes the values for the functions and commands of one server.

    ``identity`` is the caller's :class:`~zcomm.interfaces.Identity`. ``client`` is its
    :class:`~zcomm.interfaces.Client`, outside of the reactor's thread one whose methods wait
    (:class:`zcomm.threaded.Client`). ``progress`` is a :class:`Progress`. ``ask(prompt,
    timeout=60.0)`` asks the person at the client. The thread that calls it decides: it returns a Deferred on the
    reactor's, an awaitable in an asyncio loop, and the answer itself in a worker thread, whose place another call has
    meanwhile.

    :param ask: asks a client; see :meth:`zcomm.bifrost.server.zBifrost.ask`.
    """

    def __init__(self, reactor: Any, ask: Callable[[Client, Any, float], Deferred[Any]]):
        self._reactor = reactor
        self._ask = ask

    def __call__(self, wants: Sequence[str], request: Request, client: Client, place: Place) -> dict[str, Any]:
        """The values of the parameters in ``wants``, for one call."""
        return {name: self._make(name, request, client, place) for name in wants}

    def _make(self, name: str, request: Request, client: Any, place: Place) -> Any:
        if name == "identity":
            return client.identity
        if name == "client":
            return client if place == "reactor" else BlockingClient(client)
        if name == "progress":
            return Progress(self._reactor, client, request)
        return partial(self._ask_from_here, client)

    def _ask_from_here(self, client: Client, prompt: Any, timeout: float = 60.0) -> Any:
        if is_reactors_thread():
            return self._ask(client, prompt, timeout)
        if is_in_loop():
            return in_reactor(self._ask, client, prompt, timeout)
        with aside() as standing:
            return blockingCallFromThread(self._reactor, standing.until, self._ask, client, prompt, timeout)


class _Kept:
    """A promise on its way out of a worker thread."""

    __slots__ = ("promise",)

    def __init__(self, promise: Any):
        self.promise = promise


def in_worker(
    workers: Workers, client: Client, call: Callable[..., Any], *, kind: Hashable, in_loop: InLoop | None
) -> Any:
    """A Deferred of what ``call()`` returns in a worker thread. What is to be waited for is waited for on the
    reactor's thread, or in the program's loop, and holds no worker. What is large is JSON already
    (:class:`~zcomm.budget.written.Written`).

    :param client: whose work it is, and who is charged the seconds that the thread was at it.
    :param kind: what is called: its last calls tell how much the next one computes.
    """
    taken: list[float] = []
    is_late = False

    def run() -> Any:
        begun = time.monotonic()
        try:
            result = call()
            return _Kept(result) if is_promise(result) else written(result)
        finally:
            taken.append(time.monotonic() - begun - seconds_away())
            if is_late:
                workers.reactor.callFromThread(charge)

    def charge(result: Any = None) -> Any:
        nonlocal is_late
        # It goes on where nobody waits for it any more.
        is_late = not taken
        account = getattr(client, "account", None)
        if taken and account is not None:
            account.in_threads.add(taken.pop())
        return result

    def wait(result: Any) -> Any:
        return awaited(result.promise, in_loop) if type(result) is _Kept else result

    return then(workers.run_one_of(kind, owner_of(client), run).addBoth(charge), wait)


def as_json(result: Any, workers: Workers, client: Client) -> Any:
    """``result``, or a Deferred of it as JSON, made in a thread, where it would keep the reactor for long.

    :param client: whose work it is.
    """
    if type(result) not in _NESTED or is_light(result, LONG):
        return result
    # Where no thread is to be had, the command has run all the same.
    return workers.run(owner_of(client), written, result).addErrback(
        lambda failure: result if failure.check(TooBusy, Unavailable) else failure
    )


async def in_the_loop(call: Callable[..., Any], *args: Any) -> Any:
    """The outcome of ``call(*args)``, called in the asyncio loop that runs this."""
    return call(*args)


def kind_of(function: Callable[..., Any]) -> Kind:
    """The kind of ``function``, as far as it can be told before it is called."""
    inner: Any = function
    is_wrapped = False
    while True:
        if isinstance(inner, partial):
            inner = inner.func
        elif not isroutine(inner) and isroutine(call := type(inner).__call__):
            inner = call
        elif isasyncgenfunction(inner) or (isgeneratorfunction(inner) and not is_wrapped):
            return "generator"
        elif isgeneratorfunction(inner):
            # What inlineCallbacks makes of one returns a Deferred.
            return "deferred"
        elif iscoroutinefunction(inner):
            return "wrapped" if is_wrapped else "coroutine"
        elif (wrapped := getattr(inner, "__wrapped__", None)) is not None:
            inner, is_wrapped = wrapped, True
        else:
            break
    try:
        returns = signature(function).return_annotation
    except (TypeError, ValueError):
        return "plain"
    if isinstance(returns, str):
        promised = _PROMISE.match(returns)
        name = promised[1] if promised else ""
    else:
        name = getattr(getattr(returns, "__origin__", None) or returns, "__name__", "")
    return "deferred" if name == "Deferred" else "coroutine" if name in ("Awaitable", "Coroutine") else "plain"


def ending(call: Callable[[], Any], given: Mapping[str, Any], in_loop: InLoop | None = None) -> Any:
    """The result of ``call``, a Deferred in the place of a coroutine. However it ends, the last word of its progress
    leaves before."""
    progress = given.get("progress")
    if progress is None:
        return awaited(call(), in_loop)

    def finish(result: Any) -> Any:
        progress.finish()
        return result

    return maybeDeferred(lambda: awaited(call(), in_loop)).addBoth(finish)


class Listener(Protocol):
    """The connection of the function's caller, as far as progress needs it."""

    def send_payloads(self, payloads: list[bytes]) -> None: ...


class Progress:
    """``progress(done, total, text)`` of one running function; may be called from any thread.

    The first word leaves at once. Of those that follow within :data:`INTERVAL` only the newest is sent, when
    the interval is over or when the function ends.

    :param reactor: its clock, and the way back from other threads.
    :param request: the request that started the function. Where it has no id, its caller could not tell whose progress
        it is, and nothing is sent.
    """

    def __init__(self, reactor: Any, client: Listener, request: Request):
        self._reactor = reactor
        self._client = client
        self._request_id = request.request_id
        # Guards the fields below: what is due is taken in the reactor's thread, and added in any.
        self._lock = Lock()
        self._due: list[bytes] = []
        self._held: bytes | None = None
        self._next = float("-inf")
        self._over = request.request_id is None
        self._timer: IDelayedCall | None = None

    def __call__(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell how far it is.

        :param total: how much it will be; ``None`` when that is not known.
        :raises TypeError: for what is no number, or a text that is none.
        """
        for number in (done, total):
            # At once and where it was written, not later in the reactor's thread.
            if type(number) not in (int, float) and (number is done or number is not None):
                raise TypeError(f"progress is told in numbers, not {number!r}")
        if not isinstance(text, str):
            raise TypeError(f"the text of progress is a string, not {text!r}")
        if self._over:
            return
        message = {"event": "progress", "progressOf": self._request_id, "done": done, "total": total, "text": text}
        payload = encode_text(message)
        with self._lock:
            now = self._reactor.seconds()
            if now >= self._next:
                self._next = now + INTERVAL
                self._due.append(payload)
                self._held = None
                carry_on = self._send
            else:
                already_waiting = self._held is not None
                self._held = payload
                if already_waiting:
                    return
                carry_on = self._wait
        if isInIOThread():
            carry_on()
        else:
            self._reactor.callFromThread(carry_on)

    def finish(self) -> None:
        """The function has ended: send its last word now, before the reply, and nothing after it.

        Called in the reactor's thread.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            self._over = True
            if self._held is not None:
                self._due.append(self._held)
                self._held = None
        self._send()

    def _wait(self) -> None:
        if self._timer is None and not self._over:
            self._timer = self._reactor.callLater(max(0.0, self._next - self._reactor.seconds()), self._release)

    def _release(self) -> None:
        """The interval is over: what was held is due, unless a newer word has left meanwhile."""
        self._timer = None
        with self._lock:
            if self._held is None:
                return
            now = self._reactor.seconds()
            if is_due := now >= self._next:
                self._next = now + INTERVAL
                self._due.append(self._held)
                self._held = None
        if is_due:
            self._send()
        else:
            self._wait()

    def _send(self) -> None:
        with self._lock:
            due, self._due = self._due, []
        if due:
            self._client.send_payloads(due)


class BlockingClient:
    """One connected client, to be used from any thread; its methods wait.

    Two are equal when they stand for the same connection.
    """

    __slots__ = ("_client",)

    def __init__(self, client: Client):
        self._client = client

    def __repr__(self) -> str:
        return repr(self._client)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BlockingClient) and other._client is self._client

    def __hash__(self) -> int:
        return hash(self._client)

    @property
    def id(self) -> int:
        """Its number at this server."""
        return self._client.id

    @property
    def identity(self) -> Identity:
        """The identity that the client's token proved."""
        return self._client.identity

    @property
    def peer(self) -> str:
        """The address it came from."""
        return self._client.peer

    @property
    def place(self) -> str:
        """The page zLink took it to last; empty at first."""
        return self._client.place

    def send(self, message: Any) -> None:
        """Send it ``message``, to it alone: a ``str`` as it is, anything else as JSON.

        :raises InternalError: for a message JSON has no form for.
        """
        self._call(self._client.send, message)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Begin the closing handshake.

        :param code: 1000 to 1003, 1007 to 1014, or 3000 to 4999.
        :param reason: cut to 123 bytes of UTF-8.
        :raises TypeError: for a ``code`` that is no ``int``, or a ``reason`` that is no ``str``.
        :raises ValueError: for any other ``code``.
        """
        self._call(self._client.close, code, reason)

    @staticmethod
    def _call(method: Callable[..., None], *args: Any) -> None:
        # On the reactor's thread as well: there runs a coroutine that a plain function has returned.
        if isInIOThread():
            method(*args)
        else:
            blocking(method, *args)


def unwrapped(client: BlockingClient | Client | None) -> Any:
    """The client that a blocking one stands for; any other as it is."""
    return client._client if isinstance(client, BlockingClient) else client
