"""The worker: a process that serves clients on sockets that its parent has bound, with no services of its own."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

from twisted.application.reactors import installReactor
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred
from twisted.internet.error import ReactorNotRunning
from twisted.internet.task import LoopingCall
from twisted.logger import FileLogObserver, LogEvent, Logger, eventAsText, globalLogBeginner
from twisted.python.failure import Failure

from zcomm.bifrost.messages import encode_text
from zcomm.bifrost.server import zBifrost
from zcomm.budget.allocator import give_back_large_memory, settle
from zcomm.comm import zComm
from zcomm.errors import Unavailable, ZCommError
from zcomm.host import Host, demo
from zcomm.interfaces import Broadcast
from zcomm.runtime.acceptor import pause_while
from zcomm.runtime.endpoints import shared_endpoints
from zcomm.runtime.stdio import keep_every_line, use_non_blocking_output
from zcomm.web.health import HealthReport
from zcomm.web.metrics import metrics_of, numbers_of
from zcomm.web.pages import WebPages
from zcomm.workers.channel import Channel, Tell, Together, connect, decoded, encoded, receive, told_of
from zcomm.workers.crew import Begin
from zcomm.workers.shares import Shares

__all__ = ["Worker", "run"]

#: Seconds that a report of all workers may take; after that it is that of this one.
PATIENCE = 3.0
#: Seconds for which one that is ahead of the others accepts nobody.
PAUSE = 0.01


class Worker(zComm):
    """zComm in a worker.

    :param begin: all that it is to be.
    """

    _log = Logger()
    channel: Channel

    def __init__(self, begin: Begin, reactor: Any):
        self._begin_with = begin
        config = begin.config
        super().__init__(Host(config, reactor), config=config, reactor=reactor)
        if config.demo:
            demo.add_to(self.program)
        self.sockets = [socket.socket(fileno=number) for number in begin.sockets]
        for copied in self.sockets:
            copied.set_inheritable(False)
        self.bifrost = self.create_websocket()
        self.bifrost.endpoints = partial(shared_endpoints, self.sockets)
        self._ask_health = Together(lambda: self.channel.ask("health", timeout=PATIENCE))
        self._ask_metrics = Together(lambda: self.channel.ask("metrics", timeout=PATIENCE))
        self.nodes.on("reload", lambda _: self._reload())
        self.shares = Shares(self.bifrost, begin.count, self._send, reactor)

    # -- what the parent does

    def claim(self) -> None:
        """Leave the data directory to the parent, which has it."""

    def _say_where(self) -> None:
        """Leave it to the parent to write down where it listens."""

    @property
    def wanted_services(self) -> list[str]:
        """None: they are the parent's."""
        return []

    @property
    def services_manager(self) -> NoReturn:
        """None: a second one would take what the parent's has."""
        raise Unavailable("Local services are those of the parent of the workers")

    def check_below(self) -> None:
        """Leave it to the parent, which has looked."""

    def _pages(self) -> WebPages:
        own = self._health_report()
        return WebPages(partial(self._health, own), self._site(), self._metrics)

    @inlineCallbacks
    def _health(self, own: HealthReport, bifrost: zBifrost) -> Any:
        try:
            report = dict((yield self._ask_health()))
        except Exception:
            # The parent does not answer, or is gone.
            report = yield own(bifrost)
            report["workers"] = "unavailable"
        return report

    @inlineCallbacks
    def _metrics(self, bifrost: zBifrost) -> Any:
        try:
            text = yield self._ask_metrics()
        except Exception:
            return metrics_of(bifrost)
        return text

    # -- the channel

    def handlers(self) -> dict[str, Callable[..., Any]]:
        """The names that the parent may say, each with what it does."""
        others = self.shares.others
        report = self._health_report()
        return {
            "report": lambda: report(self.bifrost),
            "numbers": lambda: numbers_of(self.bifrost),
            "others": others.heard,
            "gone": others.gone,
            "failed": self.shares.failures,
            "moved": self._moved,
            "event": lambda event: self.engine.tell(Broadcast(encode_text(event))),
            "reload": self._reload,
            "stop": self.end,
        }

    def _send(self, name: str, *args: Any) -> bool:
        if self.channel.is_behind:
            return False
        self.channel.tell(name, *args)
        return True

    def _moved(self, database: str | None, engine: str | None) -> None:
        """Go on with what has another place than before."""
        if database is not None and isinstance(self.zcli, Host):
            self._begin_with.database = database
            self.zcli.move_data(database)
        connect_to = getattr(self.engine, "connect_to", None)
        if engine is not None and connect_to is not None:
            connect_to(engine)

    def _reload(self, tells: bool = False) -> None:
        if tells:
            self.nodes.tell("reload")
        # What was read, the parent says, once.
        for _, error in self.read_anew():
            if error is not None:
                self._log.error("not reloaded, what was read before still holds: {reason}", reason=str(error))

    def end(self) -> None:
        """Stop in order, and end the process."""
        try:
            self.reactor.stop()
        except ReactorNotRunning:
            pass

    # -- its life

    _looking: LoopingCall | None = None

    def begin(self) -> None:
        """Accept clients, connect to the database, then tell the parent."""
        maybeDeferred(self._begin_to_serve).addCallbacks(lambda _: self.channel.tell("ready"), self._give_up)

    def _begin_to_serve(self) -> Deferred[None]:
        self.startService()
        for port in self.bifrost.ports:
            pause_while(port, self.shares.is_ahead, PAUSE)
        for copied in self.sockets:
            # Of the port's own no process that is forked here has a copy.
            copied.close()
        self._looking = settle(self.reactor)
        return self.start_below()

    @inlineCallbacks
    def _start_data(self) -> Any:
        if isinstance(self.zcli, Host):
            yield self.zcli.start_data(self._begin_with.database)

    def _give_up(self, failure: Failure) -> None:
        if self.is_stopping:
            return
        if failure.check(ZCommError):
            error: Any = failure.value
            self.channel.tell("refused", told_of(error))
        else:
            self._log.failure("the start failed", failure)
        self.failed = True
        self.end()

    #: Whether it ends because it cannot serve.
    failed = False

    def stopService(self) -> Deferred[None]:
        """Stop all of it, in order."""
        self.shares.stop()
        looking, self._looking = self._looking, None
        if looking is not None and looking.running:
            looking.stop()
        return super().stopService()


def run(number: int, control: int) -> NoReturn:
    """Be a worker, from the first message of the parent on to the end of the process."""
    # Ctrl-C on the terminal is for the parent, which ends its workers in order.
    os.setpgid(0, 0)
    # Programs that are started here have neither that nor the ports.
    os.set_inheritable(control, False)
    channel = socket.socket(fileno=control)
    try:
        begin = decoded(receive(channel), Begin)
    except EOFError:
        # The parent had no use for it.
        sys.exit(0)
    sys.path[:] = [os.fsdecode(place) for place in begin.path]
    install(begin.reactor)
    give_back_large_memory()
    keep_every_line()
    output: Any = use_non_blocking_output() or sys.stdout
    globalLogBeginner.beginLoggingTo([FileLogObserver(output, _line)], redirectStandardIO=False)
    from twisted.internet import reactor

    try:
        worker = Worker(begin, reactor)
    except ZCommError as error:
        _refuse(channel, error)
    worker.channel = Channel(worker.handlers(), reactor, worker.end)
    connect(worker.channel, channel, reactor)
    running: Any = reactor
    running.callWhenRunning(_take_signals, worker)
    running.callWhenRunning(worker.begin)
    running.run()
    sys.exit(1 if worker.failed else 0)


def install(name: str) -> None:
    """Make the reactor of that name the one of this process."""
    if name:
        installReactor(name)


def _line(event: LogEvent) -> str:
    # When it was, the parent says.
    return eventAsText(event, includeTimestamp=False) + "\n"


def _refuse(channel: socket.socket, error: ZCommError) -> NoReturn:
    message = encoded(Tell("refused", [told_of(error)]))
    channel.sendall(len(message).to_bytes(4) + message)
    sys.exit(1)


def _take_signals(worker: Worker) -> None:
    """Stop in order for SIGTERM; leave what the parent is sent to the parent."""
    signal.signal(signal.SIGTERM, lambda *_: worker.reactor.callFromThread(worker.end))
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, lambda *_: None)
