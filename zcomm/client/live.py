"""Live queries of the Python client: the rows that match, now and from now on, over one connection after the other."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.client import requests
from zcomm.client.listeners import Listeners
from zcomm.client.repeated import retry_delay
from zcomm.client.rows import LiveChange, News, Row, Rows, first_of, same
from zcomm.errors import CommandError, CommandTimeout, ConnectionLost, InternalError, command_error
from zcomm.runtime.deferreds import Waiters

__all__ = ["Live", "Lives", "Snapshots", "is_step"]

#: What listeners hear of, but for rows.
HEARD = ("status", "error")

#: Calls of the program's functions, for when all is as it is.
Tellings = list[Callable[[], None]]
Listener = Callable[[list[Row], LiveChange], Any]


class Live:
    """The rows that match a query, now and from now on; made by :meth:`zcomm.client.Client.live`.

    It runs while somebody subscribes to it or iterates over it, or from :meth:`start` to :meth:`stop`. After a loss the
    client asks for it again by itself, and nothing is sent where no row has changed. A row that has not changed is the
    same object as before, and so is the list where none has; neither is to be changed by the program.

    Iterated over (``async for rows in live``), it gives the rows now and after each change; where several have come
    meanwhile, after the last of them. The iteration ends with :meth:`stop`, and raises where the query fails. A loop
    that is left by ``break``, by an exception or by cancelling what it waits for looks no more. Who keeps the iteration
    in a variable ends it for sure by its ``close()``, as in ``with contextlib.closing(aiter(live)) as changes``; after
    a cancelled wait it can also be read on.

    :ivar model: the model that is asked.
    """

    _log = Logger()

    def __init__(self, lives: Lives, model: str, words: bytes):
        self.model = model
        self._lives = lives
        #: What is asked, as a JSON object.
        self._words = words
        self._listeners = Listeners(HEARD, f"live {model}")
        self._subscribers: dict[object, Listener] = {}
        self._loops: list[Latest] = []
        self._rows = Rows()
        self._status = "loading"
        self._error: CommandError | None = None
        self._sees: str | None = None
        self._is_started = False
        self._starting: Waiters[list[Row]] = Waiters(self._give_up)
        #: Whether somebody wants it, on whichever connection.
        self._is_wanted = False
        #: Its name on this connection, from the question on.
        self._query: str | None = None
        self._retry: IDelayedCall | None = None
        self._retries = 0

    def __repr__(self) -> str:
        return f"<live {self.model}, {self._status}>"

    # -- what programs call

    @property
    def rows(self) -> list[Row]:
        """The rows in their order: the same list until one of them has changed."""
        return self._rows.list

    @property
    def status(self) -> str:
        """``loading`` before the first rows, ``live``, ``stale`` while the connection is away or nobody looks, or
        ``error``: it has ended, and begins again with the next :meth:`subscribe`, iteration or :meth:`start`."""
        return self._status

    @property
    def error(self) -> CommandError | None:
        """The reason why it has ended, or has to wait; ``None`` while all is well."""
        return self._error

    @property
    def sees(self) -> str | None:
        """``all``, or ``own``: writes that were not made through this server are not seen. ``None`` before the first
        rows."""
        return self._sees

    @property
    def digest(self) -> str | None:
        """The name that the server has for these rows in this order."""
        return self._rows.digest

    def get_snapshot(self) -> list[Row]:
        """The rows in their order: the same list until one of them has changed."""
        return self._rows.list

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener(rows, change)`` at once, and whenever rows, status, error or ``sees`` have changed; returns
        the function that ends it. ``change`` is a :class:`LiveChange`."""
        if not callable(listener):
            raise TypeError(f"a listener is a function, not {type(listener).__name__}")
        token = object()
        self._subscribers[token] = listener
        self._listeners.tell(listener, self._rows.list, first_of(self._rows))
        if token in self._subscribers:
            self._begin()

        def stop() -> None:
            if self._subscribers.pop(token, None) is not None:
                self._rest()

        return stop

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``status`` or ``error``; returns the function that ends it. An error is why the
        query has ended, or why it has to wait (``retryable``), and is told once; the client's own listeners are told
        where nobody listens here, and nothing that waits or iterates raises it."""
        return self._listeners.on(event, listener)

    def start(self, *, timeout: float | None = None) -> Deferred[list[Row]]:
        """A Deferred of the rows, which are kept live from then on until :meth:`stop`."""
        seconds = self._lives.seconds(timeout)
        if not self._lives.is_open():
            return fail(ConnectionLost(1006, "not connected: the command was not sent"))
        self._is_started = True
        self._begin()
        if self._status == "live":
            return succeed(self._rows.list)
        late = CommandTimeout(f"No answer within {seconds:g} s")
        return self._starting.add().addTimeout(seconds, self._lives.clock, lambda *_: Failure(late))

    def stop(self) -> None:
        """End it at once, for all who subscribe to it, iterate over it or wait for it."""
        self._subscribers.clear()
        tellings = [*self._end_loops(StopAsyncIteration()), *self._end()]
        stopped = ConnectionLost(1000, "stop() was called")
        self._lives.tell([*tellings, partial(self._fail_start, stopped)])

    def __aiter__(self) -> Snapshots:
        return Snapshots(self)

    # -- who looks

    @property
    def _is_used(self) -> bool:
        return bool(self._subscribers or self._is_started or self._is_read)

    @property
    def _is_read(self) -> bool:
        return any(not loop.is_left for loop in self._loops)

    def _begin(self) -> None:
        if self._is_wanted:
            return
        self._is_wanted = True
        self._lives.want(self, True)
        if self._status == "error":
            self._lives.tell(self._become("loading" if self._rows.key is None else "stale"))
        if self._query is None and self._lives.is_connected():
            self._ask()

    def _rest(self) -> None:
        """End it where nobody looks at it any more. Who looks away to look again does so at once."""
        if not self._is_used:
            self._lives.clock.callLater(0, lambda: None if self._is_used else self._lives.tell(self._end()))

    def _end(self) -> Tellings:
        if not self._is_wanted:
            return []
        self._forget()
        if self._status != "live":
            # Where it is under way its answer ends it.
            return []
        self._leave()
        return self._become("stale")

    def _forget(self) -> None:
        self._stop_retrying()
        self._retries = 0
        self._is_wanted = False
        self._lives.want(self, False)

    def _give_up(self) -> None:
        """Nobody waits for the start any more."""
        self._is_started = False
        self._rest()

    def _fail_start(self, error: Exception) -> None:
        """Those who wait for the start wait in vain; where it has started, it stays so."""
        if self._starting or not self._is_wanted:
            self._is_started = False
        self._starting.fail(error)

    def read(self, loop: Latest) -> None:
        """Let an iteration begin."""
        self._loops.append(loop)
        if self._rows.key is not None:
            loop.put(self._rows.list)
        self._begin()

    def look(self, loop: Latest, is_left: bool) -> None:
        """Let an iteration go on, or wait for nothing until it does."""
        loop.is_left = is_left
        if is_left:
            self._rest()
        elif loop in self._loops and self._lives.is_open():
            self._begin()
        elif loop in self._loops:
            self._loops.remove(loop)
            loop.end(ConnectionLost(1006, "not connected: the command was not sent"))

    def unread(self, loop: Latest) -> None:
        """Let an iteration end."""
        if loop in self._loops:
            self._loops.remove(loop)
            self._rest()

    def _end_loops(self, end: BaseException) -> Tellings:
        loops, self._loops = self._loops, []
        return [partial(loop.end, end) for loop in loops]

    # -- asking

    def _ask(self) -> None:
        self._stop_retrying()
        # Each has another name: what comes for one that is over is for nobody.
        self._query = query = self._lives.name()
        words = {"query": query} if self._rows.digest is None else {"query": query, "known": self._rows.digest}
        asked = requests.written(words)[:-1] + b"," + self._words[1:]
        self._lives.call("zLive", msgspec.Raw(asked)).addCallbacks(
            self._answered, self._refused, callbackArgs=(query,), errbackArgs=(query,)
        ).addErrback(lambda failure: self._log.failure("{live} could not go on", failure, live=self))

    def _answered(self, result: Any, query: str) -> None:
        if self._query != query:
            return
        if not self._is_wanted:
            self._leave()
            return
        try:
            news = msgspec.convert(result, News)
            if news.rows is None and not news.same:
                raise ValueError("there are no rows")
            change = self._rows.take(news)
        except ValueError:
            self._leave()
            self._lives.tell(self._fail(InternalError("The server's answer to zLive is none")))
            return
        self._retries = 0
        tellings = self._become("live", sees=news.sees, change=change)
        self._lives.tell([*tellings, partial(self._starting.fire, self._rows.list)])

    def _refused(self, failure: Failure, query: str) -> None:
        if self._query != query:
            return
        if failure.check(CommandTimeout):
            # It may have come too late, and not have been refused.
            self._leave()
        self._query = None
        if failure.check(ConnectionLost) or not self._is_wanted:
            # The next connection is asked.
            return
        failure.trap(CommandError)
        error: Any = failure.value
        if not error.retryable:
            self._lives.tell(self._fail(error))
            return
        self._retries += 1
        self._retry = self._lives.clock.callLater(retry_delay(self._retries), self._try_again)
        tellings = self._become(self._status, error=error)
        if self._starting:
            tellings += [partial(self._fail_start, error), self._rest]
        elif self._retries == 1:
            tellings.append(partial(self._report, error))
        self._lives.tell(tellings)

    def _try_again(self) -> None:
        self._retry = None
        self._ask()

    def _stop_retrying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _leave(self) -> None:
        query, self._query = self._query, None
        self._lives.call("zUnsubscribe", {"query": query}).addErrback(lambda _: None)

    def _fail(self, error: CommandError) -> Tellings:
        """It has ended."""
        self._query = None
        self._forget()
        is_raised = bool(self._is_read or self._starting)
        tellings = [*self._become("error", error=error), *self._end_loops(error)]
        if "error" in self._listeners or not is_raised:
            tellings.append(partial(self._report, error))
        return [*tellings, partial(self._fail_start, error)]

    # -- on the next connection, and what arrives

    def came_back(self) -> None:
        """There is a connection."""
        self._ask()

    def lost(self) -> Tellings:
        """The connection has ended; returns what to tell."""
        self._stop_retrying()
        self._query = None
        return self._become("stale") if self._status == "live" else []

    def closed(self, end: BaseException, error: ConnectionLost) -> None:
        """No connection comes by itself any more."""
        self._lives.tell([partial(self._fail_start, error), *self._end_loops(end), self._rest])

    def heard(self, queries: dict[str, Any]) -> Tellings:
        """Take what a step has for it, if anything; returns what to tell.

        :raises ValueError: where that is none.
        """
        if self._status != "live" or self._query not in queries:
            return []
        said = queries[self._query]
        if isinstance(said, dict) and "error" in said:
            return self._fail(command_error(said))
        news = msgspec.convert(said, News)
        return self._become("live", change=self._rows.take(news), sees=news.sees)

    # -- telling

    def _become(
        self,
        status: str,
        *,
        error: CommandError | None = None,
        sees: str | None = None,
        change: LiveChange | None = None,
    ) -> Tellings:
        """Have it so; returns what to tell when all is so."""
        before = (self._status, self._error, self._sees)
        self._status, self._error, self._sees = now = (status, error, sees or self._sees)
        change = change or same()
        tellings: Tellings = []
        if now != before or change["kind"] != "same":
            rows = self._rows.list
            # Those who look now: who comes later is told what is so by then.
            tellings += [partial(self._tell, token, rows, change) for token in self._subscribers]
            if change["kind"] != "same":
                tellings += [partial(loop.put, rows) for loop in self._loops]
        if status != before[0]:
            tellings.append(partial(self._listeners.emit, "status", status))
        return tellings

    def _tell(self, token: object, rows: list[Row], change: LiveChange) -> None:
        listener = self._subscribers.get(token)
        if listener is not None:
            self._listeners.tell(listener, rows, change)

    def _report(self, error: CommandError) -> None:
        if "error" in self._listeners:
            self._listeners.emit("error", error)
        else:
            self._lives.report(error)


class Latest:
    """The rows that one iteration has not read yet, or its end.

    :param live: the query.
    :ivar is_left: whether its reading was cancelled and has not gone on. A query that it alone has looked at has ended.
    """

    def __init__(self, live: Live) -> None:
        self.is_left = False
        self._live = live
        self._rows: list[Row] | None = None
        self._end: BaseException | None = None
        self._readers: deque[Deferred[list[Row] | BaseException]] = deque()

    def put(self, rows: list[Row]) -> None:
        """Have these in the place of those that were not read."""
        if self._readers:
            self._readers.popleft().callback(rows)
        else:
            self._rows = rows

    def end(self, end: BaseException) -> None:
        """End it with an exception, which is raised once."""
        self._end = StopAsyncIteration() if self._readers else end
        for number, reader in enumerate(list(self._readers)):
            reader.callback(StopAsyncIteration() if number else end)
        self._readers.clear()

    def close(self) -> None:
        """End it, also of rows that were not read."""
        self._rows, self.is_left = None, False
        self.end(StopAsyncIteration())

    def next(self) -> Deferred[Any]:
        """A Deferred of the rows or the exception. To cancel it leaves them to the next."""
        if self.is_left:
            self._live.look(self, False)
        if self._rows is not None:
            rows, self._rows = self._rows, None
            return succeed(rows)
        if self._end is not None:
            end, self._end = self._end, StopAsyncIteration()
            return succeed(end)
        reader: Deferred[Any] = Deferred(self._leave)
        self._readers.append(reader)
        return reader

    def _leave(self, reader: Deferred[Any]) -> None:
        self._readers.remove(reader)
        if not self._readers:
            # What is cancelled keeps its iteration as long as somebody keeps its traceback.
            self._live.look(self, True)


class Snapshots:
    """An iteration over the rows of a live query, as they are now and after each change."""

    def __init__(self, live: Live):
        self._live = live
        self._latest = Latest(live)
        live.read(self._latest)

    def __aiter__(self) -> Snapshots:
        return self

    async def __anext__(self) -> list[Row]:
        item = await self._latest.next()
        if isinstance(item, ConnectionLost):
            # The same one may end others.
            raise ConnectionLost(item.close_code, item.reason)
        if isinstance(item, BaseException):
            raise item
        rows: list[Row] = item
        return rows

    def close(self) -> None:
        """End this iteration for good."""
        self._live.unread(self._latest)
        self._latest.close()

    def __del__(self) -> None:
        # Where the loop was left by break, too.
        self._live.unread(self._latest)


class Lives:
    """The live queries of one client that somebody wants.

    :param clock: for time limits and retries.
    :param call: sends one command, once; a Deferred of its result.
    :param state: the state of the client.
    :param seconds: the time limit that a program has given, checked; the client's where it has given none.
    :param report: tells of an error that nothing else does.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        call: Callable[[str, Any], Deferred[Any]],
        state: Callable[[], str],
        seconds: Callable[[Any], float],
        report: Callable[[CommandError], None],
    ):
        self.clock = clock
        self.call = call
        self.seconds = seconds
        self.report = report
        self._state = state
        self._wanted: dict[Live, None] = {}
        self._names = 0
        self._due: deque[Callable[[], None]] = deque()
        self._is_telling = False

    def is_connected(self) -> bool:
        """Whether a command can be sent."""
        return self._state() == "connected"

    def is_open(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._state() != "disconnected"

    def name(self) -> str:
        """A name for a query that none has had before."""
        self._names += 1
        return f"q{self._names}"

    def live(self, model: str, filters: Any, fields: Any, order_by: Any, limit: Any) -> Live:
        """A live query; see :meth:`zcomm.client.Client.live`."""
        if not isinstance(model, str) or not model:
            raise TypeError("a model is named by a non-empty string")
        parts = {"where": requests.where(filters), "fields": fields, "order_by": order_by, "limit": limit}
        given = {name: value for name, value in parts.items() if value is not None}
        # As it is now, whatever becomes of the objects that were given.
        return Live(self, model, requests.written({"model": model, **given}))

    def want(self, live: Live, is_wanted: bool) -> None:
        """Keep a query that somebody looks at, or keep it no more."""
        if is_wanted:
            self._wanted[live] = None
        else:
            self._wanted.pop(live, None)

    def tell(self, tellings: Tellings) -> None:
        """Tell what is due: what happens meanwhile, by what a listener does, is told afterwards."""
        self._due.extend(tellings)
        if self._is_telling:
            return
        self._is_telling = True
        while self._due:
            self._due.popleft()()
        self._is_telling = False

    def heard(self, step: dict[str, Any]) -> None:
        """An event of the server: all queries have taken it before anybody is told."""
        tellings: Tellings = []
        for live in list(self._wanted):
            try:
                tellings += live.heard(step["queries"])
            except ValueError as error:
                self._log.warn("the server's event for {live} is none: {reason}", live=live, reason=str(error))
        self.tell(tellings)

    def came_back(self) -> None:
        """Ask for all of them, before programs send anything."""
        for live in list(self._wanted):
            live.came_back()

    def lost(self) -> None:
        """The connection has ended."""
        self.tell([telling for live in list(self._wanted) for telling in live.lost()])

    def ended(self, error: ConnectionLost, by_program: bool = False) -> None:
        """No connection comes by itself any more; where the program wants that, its iterations just end."""
        self.lost()
        for live in list(self._wanted):
            live.closed(StopAsyncIteration() if by_program else error, error)


def is_step(message: Any) -> bool:
    """Whether a message is the server's event of live queries, and not what a program broadcasts."""
    return isinstance(message, dict) and message.get("event") == "live" and isinstance(message.get("queries"), dict)
