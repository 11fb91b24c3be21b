"""One service of this machine: its state, its places, and what its kind of server has to say.

Subclasses say what is particular to a kind: :meth:`LocalService.read_options`, :meth:`~LocalService.prepare`,
:meth:`~LocalService.ask`, :meth:`~LocalService.become_ready`, and where needed ``before_stop`` and
``recognise``. How it gets from one state to another is in :mod:`zcomm.services.supervision.supervisor`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from zcomm.errors import DataDirectoryError, PortInUse, ServiceError, ServiceStartFailed
from zcomm.network import check_port, find_free_port
from zcomm.services.declaration import AUTO, ServiceDeclaration
from zcomm.services.options import Options
from zcomm.services.status import ConnectionInfo, Health, ServiceState, ServiceStatus
from zcomm.services.supervision.account import Account
from zcomm.services.supervision.diagnosis import Diagnosis, diagnose
from zcomm.services.supervision.directories import require_port
from zcomm.services.supervision.environment import Context, ServiceHome
from zcomm.services.supervision.launch import Launch
from zcomm.services.supervision.locks import DirectoryLock
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import Exit, ManagedProcess, ServerProcess
from zcomm.services.supervision.query import NoAnswer
from zcomm.services.supervision.record import Record, read_record, still_runs, write_record
from zcomm.text import redact

__all__ = ["LocalService"]

#: Seconds a server that we do not watch may take to say how it does.
UNATTENDED_TIMEOUT = 2.0
#: Seconds after which a process that was just born shows which server it is, and between two looks.
BIRTH, LOOK = 5.0, 0.02
#: Why a server is stopped that nobody stopped.
UNWATCHED = "it ended while no zComm watched it"


class LocalService:
    """One service.

    :ivar state: see :class:`~zcomm.services.status.ServiceState`.
    :ivar process: the server, while it runs.
    :ivar options: what the last start was asked for.
    :ivar record: what is known of the last run; also written to disk.
    :ivar changed: called with the service whenever its state or health is another.
    """

    log = Logger()
    #: Which table of :mod:`zcomm.services.supervision.diagnosis` reads its log.
    kind = ""

    def __init__(self, context: Context, declaration: ServiceDeclaration):
        self.context = context
        self.declaration = declaration
        self.name = declaration.name
        self.state = ServiceState.STOPPED
        self.health = Health.UNKNOWN
        self.reason = self.fix = self.progress = ""
        self.process: ServerProcess | None = None
        self.options: Options | None = None
        self.record = Record()
        self._written = Record()
        self.restarts = 0
        #: The port that somebody took between our look and our start.
        self.avoided = 0
        #: What is wrong with it though it answers, with the repair; shown until the next start.
        self.warning = ("", "")
        self.changed: Callable[[LocalService], None] = lambda service: None
        self._home: ServiceHome | None = None
        self._locks: list[DirectoryLock] = []

    # -- what a kind of server says about itself ---------------------------------------------------------

    def read_options(self, arguments: Mapping[str, Any]) -> Options:
        """Check the arguments of a start. :raises ConfigError: at once, for a bad one."""
        raise NotImplementedError

    def account(self) -> Account:
        """Who the server runs as by default; decides where its files lie."""
        raise NotImplementedError

    async def prepare(self, options: Options) -> Launch:
        """Everything before the server is spawned; sets ``self.record``. :raises ServiceError: typed."""
        raise NotImplementedError

    async def become_ready(self, process: ServerProcess) -> None:
        """Return when the server is ready and proved to be ``process``."""
        raise NotImplementedError

    def ask(self, timeout: float) -> Deferred[Reply]:
        """One liveness question; fails with NoAnswer."""
        raise NotImplementedError

    def connection_info(self) -> ConnectionInfo:
        """How to connect to it, running or not."""
        raise NotImplementedError

    async def foreign(self) -> ServiceStatus | None:
        """A server of this kind on our port that is not ours, if there is one."""
        return None

    async def inspect(self) -> None:
        """Look, once it runs, for what only shows later; may set ``self.warning``."""

    async def before_stop(self, process: ServerProcess, force: bool) -> None:
        """A gentler way than the first signal. :raises ServiceStopFailed: when it must go on running."""

    async def recognise(self, record: Record) -> bool:
        """Whether the living process of ``record`` really is this server."""
        return True

    async def recognise_in_time(self, process: ServerProcess, record: Record) -> bool:
        """:meth:`recognise`, again until it can tell: a zComm may have died right after the fork, and the child be
        on its way to its program, its directory or its port."""
        until = self.context.reactor.seconds() + BIRTH
        while not await self.recognise(record):
            if self.context.reactor.seconds() >= until or await process.exited_within(LOOK) is not None:
                return False
        return True

    def extend(self) -> None:
        """Called by :meth:`become_ready` at a sign of progress: the time allowed begins anew."""

    def heard(self, reply: Reply) -> None:
        """What a liveness question was answered; subclasses may look at the facts."""

    def secrets(self) -> tuple[str, ...]:
        """What must not appear in any message."""
        return ()

    @property
    def home(self) -> ServiceHome:
        """Where its files lie."""
        if self._home is None:
            self._home = ServiceHome(self.context, self.name, self.account())
        return self._home

    def lock(self, directory: Any) -> bool:
        """Take the lock of a directory until the server has ended; False when another zComm has it."""
        if any(lock.directory == directory for lock in self._locks):
            return True
        lock = DirectoryLock(directory)
        try:
            taken = lock.take()
        except OSError as error:
            reason = f"cannot be opened: {error.strerror}"
            raise DataDirectoryError(self.name, str(directory), reason) from error
        if taken:
            self._locks.append(lock)
        return taken

    def refuse_second(self) -> ServiceError:
        """The error for a service that another zComm has."""
        return ServiceError(self.name, "another zComm on this machine manages it", "stop it there, or end that zComm")

    def unlock(self) -> None:
        """Give the locks back."""
        for lock in self._locks:
            lock.release()
        self._locks.clear()
        # From now on another zComm may write it.
        self._written = Record()

    def save_record(self, but_identity: bool = False) -> None:
        """Write the record, if it is another than the one written last (its identity aside, if so asked)."""
        record, written = self.record, self._written
        if record == (replace(written, identity=record.identity) if but_identity else written):
            return
        try:
            write_record(self.home.record, record)
            self._written = record
        except OSError as error:
            self.log.warn("{name}: its record cannot be written: {reason}", name=self.name, reason=error.strerror)

    # -- for the kinds -----------------------------------------------------------------------------------

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run what waits for a disk in a thread of the reactor's pool."""
        reactor = self.context.reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)

    async def choose_port(self, wanted: int | str) -> int:
        """The port for this run; ``"auto"`` keeps the one it had if that is free.

        :raises PortInUse: naming the holder.
        """
        reactor, host = self.context.reactor, self.declaration.host
        if wanted == AUTO:
            before = read_record(self.home.record).port
            usual = self.declaration.port if isinstance(self.declaration.port, int) else None
            if self.avoided:
                self.avoided = 0
                return await find_free_port(host, reactor=reactor)
            if before and await check_port(before, host, reactor=reactor):
                return before
            return await find_free_port(host, usual or None, reactor=reactor)
        port = int(wanted)
        if port:
            await require_port(self.name, port, host, reactor=reactor)
        return port

    def port(self) -> int:
        """The port it has, or would have."""
        if self.record.pid and self.record.port:
            return self.record.port
        known = read_record(self.home.record)
        if still_runs(known) and known.port:
            return known.port
        wanted = (self.options or self.read_options({})).port
        return known.port if wanted == AUTO else int(wanted)

    def socket_dir(self) -> str:
        """Where its Unix socket is while it runs, whoever started it; empty otherwise."""
        known = self.record if self.record.pid else read_record(self.home.record)
        return known.socket_dir if still_runs(known) else ""

    def data_dir(self) -> Path:
        """The data directory it has, or would have."""
        if self.process is not None and self.record.data_dir:
            return Path(self.record.data_dir)
        if self.options is None:
            known = read_record(self.home.record)
            if still_runs(known) and known.data_dir:
                return Path(known.data_dir)
        options = self.options or self.read_options({})
        return options.data_dir or self.home.data

    def options_of(self, record: Record) -> Options:
        """What the server of ``record`` was started with, so that it is started again where it was."""
        options = self.options or self.read_options({})
        if options.port != AUTO and record.port:
            options = replace(options, port=record.port)
        elsewhere = record.data_dir and Path(record.data_dir) != self.home.data
        return replace(options, data_dir=Path(record.data_dir)) if elsewhere else options

    def output(self, process: ServerProcess) -> str:
        """The end of what this run wrote to its log, without secrets."""
        since = process.log_start if isinstance(process, ManagedProcess) else 0
        return redact(self.home.log.tail(since=since), *self.secrets())

    def diagnose(self, process: ServerProcess) -> Diagnosis:
        """What its last words mean."""
        return diagnose(self.kind, self.output(process))

    def explain(self, exit: Exit, process: ServerProcess) -> ServiceError:
        """The error for a server that ended before it was ready."""
        cause = self.diagnose(process)
        if cause.port_taken:
            return PortInUse(self.name, self.record.port, fix=cause.fix)
        reason = f"it {exit} before it was ready" + (f": {cause.reason}" if cause.reason else "")
        return ServiceStartFailed(
            self.name,
            reason,
            cause.fix or f"its log: {self.home.log.path}",
            exit_code=exit.code,
            output_tail=self.output(process)[-2000:],
            permanent=cause.permanent,
        )

    # -- what is said about it ---------------------------------------------------------------------------

    def become(
        self, state: ServiceState, reason: str = "", fix: str = "", health: Health = Health.UNKNOWN, progress: str = ""
    ) -> None:
        """Take another state, and tell."""
        now = (state, redact(reason, *self.secrets()), fix, health, progress)
        if now != (self.state, self.reason, self.fix, self.health, self.progress):
            self.state, self.reason, self.fix, self.health, self.progress = now
            self.changed(self)

    def describe(self) -> ServiceStatus:
        """The service as this zComm knows it."""
        if self.process is None and self.state is ServiceState.STOPPED:
            # Another zComm may run it, or an earlier one left it running.
            record = read_record(self.home.record)
            if still_runs(record):
                return self._status_of(record, ServiceState.RUNNING)
            if record.pid and not self.reason:
                # Whoever stops a server writes down that it ended.
                return replace(
                    self._status_of(self.record, self.state), reason=UNWATCHED, fix=f"its log: {self.home.log.path}"
                )
        return self._status_of(self.record, self.state)

    async def unattended_health(self) -> Health:
        """How well a server does that another zComm, or an earlier one, started."""
        before, self.record = self.record, read_record(self.home.record)
        try:
            asked = self.ask(UNATTENDED_TIMEOUT)
        finally:
            self.record = before
        try:
            return (await asked).health
        except NoAnswer:
            return Health.UNRESPONSIVE

    def _status_of(self, record: Record, state: ServiceState) -> ServiceStatus:
        runs = bool(record.pid)
        return ServiceStatus(
            self.name,
            state,
            record.pid if runs else None,
            self.declaration.host,
            self._known_port(record),
            record.started if runs else None,
            self.health,
            self.reason,
            self.fix,
            True,
            record.version,
            record.user,
            str(self.home.log.path),
            record.data_dir or str(self.data_dir()),
            record.identity,
            self.restarts,
            self.progress,
        )

    def _known_port(self, record: Record) -> int | None:
        if record.port:
            return record.port
        wanted = (self.options or self.read_options({})).port
        return wanted if isinstance(wanted, int) and wanted else None
