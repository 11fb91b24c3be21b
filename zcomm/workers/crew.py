"""The parent's side of the workers: it starts them, keeps them, tells them what they cannot know, and ends them."""

from __future__ import annotations

import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any, Protocol

import msgspec
from twisted.internet.defer import (
    Deferred,
    DeferredList,
    fail,
    gatherResults,
    inlineCallbacks,
    succeed,
)
from twisted.internet.error import ProcessDone, ProcessExitedAlready
from twisted.internet.interfaces import IDelayedCall, IListeningPort
from twisted.internet.protocol import ProcessProtocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.config import Config, Limits
from zcomm.errors import ConfigError, Unavailable, ZCommError
from zcomm.runtime.acceptor import lend
from zcomm.runtime.deferreds import Waiters
from zcomm.services.restart_policy import RestartPolicy
from zcomm.web.health import public_status
from zcomm.web.metrics import text_of
from zcomm.workers.channel import Channel, Together, connect, encoded, error_from
from zcomm.workers.sums import Totals, one_report

__all__ = ["MOST_WORKERS", "Begin", "Crew", "Kept"]

#: Workers of one server at most.
MOST_WORKERS = 64
#: Seconds that a worker has to answer, for a report of all.
PATIENCE = 2.0
#: Seconds beyond two shutdown timeouts after which a worker that is to end is killed: what it has to end has limits of
#: its own, each a little longer than that timeout.
GRACE = 20.0
#: Seconds for which the state of the services is told as it was found: to look is dear, and anybody may ask.
LOOK = 1.0
#: Seconds in which what a worker has said before its end is read.
LAST_WORDS = 1.0
#: Bytes of a line of a worker's output; what is longer comes in pieces.
LONGEST_LINE = 64 * 1024
#: The descriptors of a worker: that of its channel, then those that it accepts on.
CONTROL, FIRST_SOCKET = 3, 4
#: The limits of which each worker has its part; the others are of one connection, or are counted over all.
DIVIDED = (
    "pending",
    "pending_per_peer",
    "database_time",
    "results_size",
    "broadcast_rate",
    "history_memory",
    "live_memory",
)
#: When a worker that has ended is started again: it is for ever.
POLICY = RestartPolicy(attempts=1_000_000)


class Begin(msgspec.Struct, kw_only=True):
    """The first message to a worker: all that it is to be.

    :ivar config: its part of the configuration.
    :ivar path: where it finds modules.
    :ivar reactor: the name of its reactor, as twistd has it; empty for Twisted's own choice.
    :ivar sockets: the descriptors that it accepts on.
    :ivar database: the URL of a managed database.
    """

    number: int
    count: int
    config: Config
    path: list[bytes]
    reactor: str
    sockets: list[int]
    database: str | None


class Kept(Protocol):
    """The server whose clients the workers serve, as far as they need it."""

    reactor: Any

    @property
    def config(self) -> Config: ...

    @property
    def is_stopping(self) -> bool: ...

    @property
    def has_services(self) -> bool:
        """Whether it has local services, or may be asked for one."""

    def service_status(self, service_name: str | None = None) -> Deferred[dict[str, Any]]: ...


def share_of(config: Config, count: int) -> Config:
    """The configuration of one of ``count`` workers: no services, and its part of each limit that is divided."""
    lowest = {each.name: each.metadata["lowest"] for each in fields(Limits)}
    limits, parts = config.websocket.limits, {}
    for name in DIVIDED:
        whole = getattr(limits, name)
        part = ceil(whole / count) if isinstance(whole, int) else whole / count
        parts[name] = max(lowest[name], part)
    websocket = replace(config.websocket, limits=replace(limits, **parts))
    return replace(config, websocket=websocket, services=(), declarations=())


@dataclass(eq=False, kw_only=True)
class _Seat:
    """The place of one worker, which several processes may have, one after the other.

    :ivar failures: when those before have failed, by the policy of restarts.
    :ivar users: the connections of each user at it.
    """

    number: int
    worker: _Process | None = None
    failures: tuple[float, ...] = ()
    again: IDelayedCall | None = None
    users: dict[str, int] = field(default_factory=dict)
    total: int = 0


class _Process(ProcessProtocol):
    """One process of a worker.

    :ivar id: tells it from all others.
    :ivar channel: the channel to it.
    :ivar ready_at: when it could serve; ``None`` while it cannot.
    :ivar refused: why it cannot, in its own words.
    :ivar end: how it has ended; ``None`` while it runs.
    :ivar killing: what is done if it does not end, or its channel does not, in time.
    """

    def __init__(self, crew: Crew, seat: _Seat, id: int):
        self.id = id
        self.seat = seat
        self.ready_at: float | None = None
        self.refused: ZCommError | None = None
        self.begun = False
        self.end: str | None = None
        self.pid = 0
        self.ready: Waiters[None] = Waiters()
        self.ended: Waiters[None] = Waiters()
        self._crew = crew
        self._log = Logger(f"worker {seat.number}")
        self._pieces: dict[int, bytes] = {1: b"", 2: b""}
        self.killing: IDelayedCall | None = None
        self.channel = Channel(crew.handlers(self), crew.reactor, partial(crew.lost, self))

    def connectionMade(self) -> None:
        """Note the number of the process; called by the reactor."""
        transport: Any = self.transport
        self.pid = transport.pid

    def kill(self) -> None:
        """End it at once."""
        transport: Any = self.transport
        try:
            transport.signalProcess(signal.SIGKILL)
        except ProcessExitedAlready:
            pass

    def outReceived(self, data: bytes) -> None:
        """Log what it writes."""
        self._log_lines(1, data)

    def errReceived(self, data: bytes) -> None:
        """Log what it writes."""
        self._log_lines(2, data)

    def _log_lines(self, stream: int, data: bytes) -> None:
        *lines, rest = (self._pieces[stream] + data).split(b"\n")
        while len(rest) > LONGEST_LINE:
            lines.append(rest[:LONGEST_LINE])
            rest = rest[LONGEST_LINE:]
        self._pieces[stream] = rest
        for line in lines:
            self._log.info("{line}", line=line.decode("utf-8", "backslashreplace"))

    def processEnded(self, reason: Failure) -> None:
        """Tell of the end; called by the reactor."""
        for piece in filter(None, self._pieces.values()):
            self._log.info("{line}", line=piece.decode("utf-8", "backslashreplace"))
        self._crew.process_ended(self, reason)


class Crew:
    """The workers of one server.

    :param owner: the server.
    :param count: how many there are.
    :param reactor_name: the reactor that they run on, as twistd names it.
    """

    _log = Logger()

    def __init__(self, owner: Kept, count: int, reactor_name: str = ""):
        self._owner = owner
        self.count = count
        self.reactor = owner.reactor
        self._reactor_name = reactor_name
        self._sockets: list[socket.socket] = []
        self._seats = [_Seat(number=number) for number in range(1, count + 1)]
        self._ids = 0
        self._begin: Begin | None = None
        self._stopping = False
        self._is_up = False
        self._totals = Totals()
        #: The services as they were when they were looked at, and when that was.
        self._services: dict[str, Any] = {}
        self._looked = float("-inf")
        self._health = Together(self._make_report)
        self._metrics = Together(self._make_metrics)
        self._restarts = 0
        self._since = self.reactor.seconds()

    # -- the beginning

    def take(self, ports: Sequence[IListeningPort]) -> None:
        """Have the workers accept on the sockets of ``ports``, in their place.

        :raises ConfigError: for a kind of endpoint that has none.
        """
        for port in ports:
            try:
                self._sockets.append(lend(port))
            except TypeError as error:
                raise ConfigError("--workers", f"cannot serve that kind of endpoint: {error}") from None

    def spawn(self) -> None:
        """Start the processes, which load what they need and wait."""
        for seat in () if self._stopping else self._seats:
            self._spawn(seat)

    @inlineCallbacks
    def start(self, config: Config, database: str | None) -> Any:
        """Let them serve; fires when all do.

        :param config: the configuration of all of them together, with the URL of the engine.
        :param database: the URL of a managed database.
        :returns: a Deferred that fails with what kept one from it.
        """
        self._begin = Begin(
            number=0,
            count=self.count,
            config=share_of(config, self.count),
            path=[os.fsencode(place) for place in sys.path],
            reactor=self._reactor_name,
            sockets=list(range(FIRST_SOCKET, FIRST_SOCKET + len(self._sockets))),
            database=database,
        )
        # The first makes the tables that are missing; the others find them.
        first, *others = self._seats
        for seats in ([first], others):
            yield gatherResults([self._first(seat) for seat in seats], consumeErrors=True).addErrback(_first_failure)
        self._is_up = True

    def _first(self, seat: _Seat) -> Deferred[None]:
        """Let the first process of a seat serve; fires when it does."""
        if seat.worker is None:
            return fail(_failed(seat, "it has ended"))
        ready = seat.worker.ready.add()
        self._let_begin(seat.worker)
        return ready

    def _spawn(self, seat: _Seat) -> None:
        seat.again = None
        ours, theirs = socket.socketpair()
        self._ids += 1
        worker = seat.worker = _Process(self, seat, self._ids)
        program = str(Path(__file__).with_name("__main__.py"))
        descriptors: dict[int, Any] = {0: "w", 1: "r", 2: "r", CONTROL: theirs.fileno()}
        for number, listening in enumerate(self._sockets, FIRST_SOCKET):
            descriptors[number] = listening.fileno()
        try:
            with theirs:
                transport = self.reactor.spawnProcess(
                    worker,
                    sys.executable,
                    # Not from the directory that it stands in.
                    [sys.executable, "-P", program, str(seat.number), str(CONTROL)],
                    env=None,
                    childFDs=descriptors,
                )
        except OSError as error:
            ours.close()
            seat.worker = None
            self._try_again(seat, None, f"could not be started: {error.strerror}")
            return
        transport.closeChildFD(0)
        connect(worker.channel, ours, self.reactor)
        if self._begin is not None and self._is_up:
            self._let_begin(worker)

    def _let_begin(self, worker: _Process) -> None:
        begin = self._begin
        if begin is None or worker.begun:
            return
        worker.begun = True
        begin.number = worker.seat.number
        worker.channel.sendString(encoded(begin))

    # -- what workers say

    def handlers(self, worker: _Process) -> dict[str, Callable[..., Any]]:
        """The names that a worker may say, each with what it does."""
        return {
            "ready": partial(self._ready, worker),
            "refused": partial(self._refused, worker),
            "connections": partial(self._connections, worker.seat),
            "failed": partial(self._tell_others, worker.seat, "failed"),
            "health": self._health,
            "metrics": self._metrics,
        }

    def _ready(self, worker: _Process) -> None:
        worker.ready_at = self.reactor.seconds()
        self._log.info("worker {number} (pid {pid}) serves", number=worker.seat.number, pid=worker.pid)
        # It hears of those who serve, and they of it.
        for other in self._serving():
            if other is not worker and other.ready_at is not None:
                worker.channel.tell("others", other.seat.number, other.seat.users, other.seat.total)
                other.channel.tell("others", worker.seat.number, worker.seat.users, worker.seat.total)
        worker.ready.fire(None)

    @staticmethod
    def _refused(worker: _Process, told: list[Any]) -> None:
        worker.refused = error_from(told)

    def _connections(self, seat: _Seat, users: dict[str, int], total: int) -> None:
        seat.total = total
        for user, count in users.items():
            if count:
                seat.users[user] = count
            else:
                seat.users.pop(user, None)
        self._tell_others(seat, "others", seat.number, users, total)

    def _tell_others(self, seat: _Seat, name: str, *args: Any) -> None:
        for worker in self._serving():
            if worker.seat is not seat:
                worker.channel.tell(name, *args)

    def _serving(self) -> list[_Process]:
        return [seat.worker for seat in self._seats if seat.worker is not None and seat.worker.begun]

    @inlineCallbacks
    def _ask_all(self, name: str) -> Any:
        """A Deferred of the answers by process, and of the numbers of the workers that have given none in time."""
        # One that is started again says nothing of the others; at the first start there are no others.
        asked = [worker for worker in self._serving() if worker.ready_at is not None or not self._is_up]
        answers: dict[_Process, Any] = {}

        def keep(answer: Any, worker: _Process) -> None:
            answers[worker] = answer

        # One that has ended, or does not answer, is one that is missing.
        yield DeferredList(
            [
                worker.channel.ask(name, timeout=PATIENCE).addCallback(keep, worker).addErrback(lambda _: None)
                for worker in asked
            ]
        )
        here = {worker.seat.number for worker in answers}
        return answers, [seat.number for seat in self._seats if seat.number not in here]

    @inlineCallbacks
    def _make_report(self) -> Any:
        answers, missing = yield self._ask_all("report")
        reports = {worker.seat.number: answer for worker, answer in answers.items()}
        report = one_report(reports, missing, self.reactor.seconds() - self._since)
        if self._owner.has_services:
            now = self.reactor.seconds()
            if now - self._looked >= LOOK:
                self._looked = now
                services = yield self._owner.service_status()
                self._services = {name: public_status(status) for name, status in services.items()}
            report["services"] = self._services
        return report

    @inlineCallbacks
    def _make_metrics(self) -> Any:
        answers, missing = yield self._ask_all("numbers")
        families = self._totals.add({worker.id: answer for worker, answer in answers.items()})
        answering = [["zcomm_workers", {}, self.count - len(missing)]]
        restarts = [["zcomm_worker_restarts_total", {}, self._restarts]]
        families.append(["zcomm_workers", "gauge", "Workers that have answered", answering])
        families.append(["zcomm_worker_restarts", "counter", "Workers started anew so far", restarts])
        return text_of(families)

    # -- what they are told

    def reload(self) -> None:
        """Have them read what can be read anew, and one of them tell the other machines on the engine."""
        for number, worker in enumerate(self._serving()):
            worker.channel.tell("reload", number == 0)

    def service_changed(self, event: dict[str, Any], database: str | None, engine: str | None) -> None:
        """Tell of a local service.

        :param event: what clients are told, once.
        :param database: the URL of the managed database, where that service is it and runs.
        :param engine: the same of the managed engine.
        """
        begin = self._begin
        if begin is None:
            return
        begin.database = database or begin.database
        begin.config = replace(begin.config, engine=engine or begin.config.engine)
        workers = self._serving()
        for worker in workers:
            worker.channel.tell("moved", database, engine)
        for worker in [each for each in workers if each.ready_at is not None][:1]:
            worker.channel.tell("event", event)

    # -- the end of one, or of all

    def lost(self, worker: _Process) -> None:
        """A worker has closed its channel: it has ended or is about to, or is not what it should be."""
        if worker.end is not None:
            self._gone(worker)
        elif worker.killing is None:
            self._kill_later(worker)

    def _kill_later(self, worker: _Process) -> None:
        limit = 2 * self._owner.config.websocket.limits.shutdown_timeout + GRACE

        def kill() -> None:
            worker.killing = None
            self._log.warn("worker {number} did not end in time", number=worker.seat.number)
            worker.kill()

        worker.killing = self.reactor.callLater(limit, kill)

    def process_ended(self, worker: _Process, reason: Failure) -> None:
        """A worker has ended: another takes its place, unless all are to end."""
        seat = worker.seat
        seat.worker = None
        seat.users, seat.total = {}, 0
        if worker.killing is not None:
            worker.killing.cancel()
            worker.killing = None
        self._totals.ended(worker.id)
        worker.end = how = _how(reason)
        self._tell_others(seat, "gone", seat.number)
        if not self._stopping and not self._owner.is_stopping and self._is_up:
            self._try_again(seat, worker.ready_at, f"(pid {worker.pid}) has ended {how}")
        if worker.channel.is_open:
            # Its last words may be on their way; and a process that it has forked may have the channel.
            worker.killing = self.reactor.callLater(LAST_WORDS, worker.channel.close)
        else:
            self._gone(worker)

    @staticmethod
    def _gone(worker: _Process) -> None:
        """Nothing more is to be heard of a worker that has ended."""
        if worker.killing is not None and worker.killing.active():
            worker.killing.cancel()
        worker.ready.fail(worker.refused or _failed(worker.seat, f"it has ended {worker.end} before it could serve"))
        worker.ended.fire(None)

    def _try_again(self, seat: _Seat, ready_at: float | None, what: str) -> None:
        now = self.reactor.seconds()
        seat.failures = POLICY.remembered(seat.failures, ready_at, now)
        wait = POLICY.delay(seat.failures, random.random) or 0.0
        self._restarts += 1
        when = f" in {wait:.1f} s" if wait else ""
        self._log.warn("worker {number} {what}; it is started again{when}", number=seat.number, what=what, when=when)
        seat.again = self.reactor.callLater(wait, self._spawn, seat)

    def stop(self) -> Deferred[Any]:
        """End them all: they accept nobody, tell everybody 1001 and wait for them to leave. Fires when all have ended;
        what takes too long is killed."""
        self._stopping = True
        ending = []
        for seat in self._seats:
            if seat.again is not None:
                seat.again.cancel()
                seat.again = None
            if seat.worker is None:
                continue
            ending.append(seat.worker.ended.add())
            if seat.worker.begun:
                seat.worker.channel.tell("stop")
                if seat.worker.killing is None:
                    self._kill_later(seat.worker)
            else:
                # It has nothing to end yet.
                seat.worker.kill()
        for listening in self._sockets:
            listening.close()
        self._sockets.clear()
        return DeferredList(ending) if ending else succeed(None)


def _how(reason: Failure) -> str:
    """The way in which a process has ended."""
    if reason.check(ProcessDone):
        return "by itself"
    error: Any = reason.value
    if error.signal:
        return f"by signal {error.signal}"
    return f"with status {error.exitCode}"


def _first_failure(failure: Failure) -> Failure:
    error: Any = failure.value
    first: Failure = error.subFailure
    return first


def _failed(seat: _Seat, reason: str) -> Unavailable:
    return Unavailable(f"worker {seat.number} cannot serve: {reason}; the log says why")
