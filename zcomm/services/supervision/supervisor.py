"""One service over all its runs: what was asked for last, what is so, and the way from one to the other.

:mod:`zcomm.services.supervision.states` has the table by which it goes; here is what the actions in it do.
"""

from __future__ import annotations

import errno
import signal
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.errors import (
    ConfigError,
    PortInUse,
    ServiceError,
    ServiceStartFailed,
    ServiceStartTimeout,
    ServiceStopFailed,
    ServiceStopTimeout,
)
from zcomm.runtime.deferreds import Waiters
from zcomm.services.declaration import Probe, ServiceDeclaration
from zcomm.services.machine.identity import stands_in, working_directory
from zcomm.services.machine.query import Deadline, NoAnswer
from zcomm.services.options import Options
from zcomm.services.status import Health, ServiceState, ServiceStatus
from zcomm.services.supervision.context import ServiceContext
from zcomm.services.supervision.diagnosis import Diagnosis, diagnose
from zcomm.services.supervision.environment import ServicesEnvironment
from zcomm.services.supervision.health import Watch
from zcomm.services.supervision.kind import Kind
from zcomm.services.supervision.launch import Guardian
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import (
    AdoptedProcess,
    Exit,
    ManagedProcess,
    ProcessEnded,
    ServerProcess,
    StillRunning,
)
from zcomm.services.supervision.record import (
    IDENTITY_FILE,
    Record,
    read_record,
    read_replaced,
    record_trouble,
    still_runs,
)
from zcomm.services.supervision.states import Action, Event, State, step
from zcomm.text import redact

__all__ = ["Supervisor"]

#: Attempts of one start with port="auto" to get a port before somebody else does.
_PORT_ATTEMPTS = 4
#: Times that what a server left behind is looked for and ended.
_END_ATTEMPTS = 10
#: Seconds a server that we do not watch may take to say how it does.
UNATTENDED_TIMEOUT = 2.0
#: Seconds after which a process that was just born shows which server it is, and between two looks.
BIRTH, LOOK = 5.0, 0.02
#: Said where this process may open no more files; of dup2(2) and its like also where the number would be too high.
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE, errno.EBADF)
#: Python's words where the system lets this process have no more threads.
_NO_THREAD = "can't start new thread"
#: What becomes of a start when one of these comes before its end.
ENDS = {Event.STOP: "stopped", Event.STOP_BY_FORCE: "stopped", Event.LET_GO: "given up"}
#: Why a server is stopped that nobody stopped.
UNWATCHED = "it ended while no zComm watched it"


class _RunsElsewhere(Exception):
    """Another zComm has this service, and it runs."""


@dataclass(frozen=True)
class _Request:
    """What somebody asked for. Whether it can be had is found out in its turn: what was asked for before may be
    waiting too, and decides what it meets."""

    waiter: Deferred[bool]
    waiters: Waiters[bool]
    options: Options | None


class Supervisor:
    """Starts, watches and stops the server of one service.

    :ivar context: what its kind knows of it: settings, places, the record.
    :ivar kind: how servers of its kind are prepared, asked and stopped.
    :ivar state: what it does, see :class:`~zcomm.services.status.ServiceState`.
    :ivar process: the server, while it runs.
    :ivar restarts: how often it was started again by itself; starts and restarts that somebody asked for do not count.
    :param kind: a subclass of :class:`~zcomm.services.supervision.kind.Kind`.
    :param changed: called with the supervisor whenever its state or health is another.
    """

    log = Logger()

    def __init__(
        self,
        environment: ServicesEnvironment,
        declaration: ServiceDeclaration,
        kind: type[Kind],
        changed: Callable[[Supervisor], None] = lambda service: None,
    ):
        self.environment = environment
        self.declaration = declaration
        self.name = declaration.name
        self.context = ServiceContext(environment, declaration, kind.accounts, kind.settings, self._progressed)
        self.kind = kind(self.context)
        self.state = ServiceState.STOPPED
        self.health = Health.UNKNOWN
        self.reason = self.fix = self.progress = ""
        self.process: ServerProcess | None = None
        self.restarts = 0
        self._changed = changed
        self._where = State.DOWN
        self._events: deque[tuple[Event, Exception | None, _Request | None]] = deque()
        self._handling = False
        #: Those who wait until it is ready, and until it is down.
        self._up: Waiters[bool] = Waiters()
        self._down: Waiters[bool] = Waiters()
        #: Starts that were asked for and wait for what they need.
        self._pending: Waiters[bool] = Waiters()
        #: The start that can be cancelled, and the time it may take.
        self._starting: Deferred[None] = succeed(None)
        self._deadline: Deadline | None = None
        #: The call that starts it again after a failure, and how long it waits.
        self._retry: Any = None
        self._delay = 0.0
        self._failures: tuple[float, ...] = ()
        self._ready_at: float | None = None
        self._watch: Watch | None = None
        self._guardian: Guardian | None = None
        self._rotating = False
        #: The processes of which the log said last that they are ended; an end and the next start both see to that.
        self._told: set[int] = set()
        #: What is wrong with it though it answers, with the repair; shown until the next start.
        self._warning = ("", "")

    @property
    def has_taken_over(self) -> bool:
        """Whether it watches a server that it did not start itself."""
        return isinstance(self.process, AdoptedProcess)

    @property
    def rests(self) -> bool:
        """Whether nothing runs here, nothing is under way and nothing will begin by itself."""
        return self._where in (State.DOWN, State.FAILED) and self.process is None and not self._pending

    # -- requests ----------------------------------------------------------------------------------------

    def start(self, options: Options | None = None) -> Deferred[bool]:
        """Fires with True when it is ready; joins a start in progress; a running one is ready at once.

        :param options: as :meth:`Kind.read_options` made them; without, those of the last start.
        :raises ConfigError: at once, when there was no start yet and the environment has a bad setting.
        """
        return self._request(Event.START, self._up, options or self._first_options())

    def stop(self, force: bool = False) -> Deferred[bool]:
        """Fires with True when its process has ended; so it does when none was running.

        :param force: end it even if it cannot save its data.
        """
        return self._request(Event.STOP_BY_FORCE if force else Event.STOP, self._down)

    def restart(self, options: Options | None = None) -> Deferred[bool]:
        """Stop it if it runs, start it with the settings it had (or new ones); fires when ready again.

        :raises ConfigError: at once, when there was no start yet and the environment has a bad setting.
        """
        return self._request(Event.RESTART, self._up, options or self._first_options())

    def after(self, needed: Deferred[Any], ask: Callable[[], Deferred[bool]]) -> Deferred[bool]:
        """Ask this service for a start as soon as what it needs is ready, unless a stop or :meth:`release` comes first.

        :param needed: fires when that is ready; it is cancelled when the start is not wanted any more.
        :param ask: :meth:`start` or :meth:`restart`.
        :return: the outcome of ``ask``; it fails with the error of ``needed`` too.
        """
        pending = self._pending
        outcome = pending.add()

        def go(_: Any) -> None:
            # A stop that takes them away is in force before they hear of it.
            if pending is self._pending and pending.leave(outcome):
                maybeDeferred(ask).addBoth(tell)

        def fail(failure: Failure) -> None:
            if pending.leave(outcome):
                outcome.errback(failure)

        def tell(result: Any) -> None:
            if not outcome.called:
                outcome.callback(result)

        def over(result: Any) -> Any:
            needed.cancel()
            return result

        needed.addCallbacks(go, fail)
        return outcome.addBoth(over)

    def adopt(self) -> Deferred[bool]:
        """Take over the server of an earlier zComm if it runs; fires with whether it did."""
        if self.process is not None or not still_runs(read_record(self.context.home.record)):
            return succeed(False)
        return self.start()

    def release(self) -> Deferred[None]:
        """Let a running server go on without us; a start that is under way is given up, and what it started ends.

        :return: fires when nothing is under way any more; fails with a
            :class:`~zcomm.errors.ServiceError` when what was to end goes on.
        """
        return Deferred.fromCoroutine(self._release())

    async def _release(self) -> None:
        if self._handling:
            # Whoever asks was just told of something, and what they asked for before comes first.
            await deferLater(self.environment.reactor, 0)
        self._take_pending().fail(self._ended_by(Event.LET_GO))
        self._cancel_retry()
        try:
            if self._where in (State.STARTING, State.RECOVERING, State.CHANGING):
                given_up = self._down.add()
                self._handle(Event.LET_GO)
                await given_up
            elif self._where in (State.CANCELLING, State.STOPPING, State.FORCING, State.RESTARTING, State.ENDING):
                await self.stop()
        finally:
            # Unless somebody has asked for another start meanwhile.
            if self._where in (State.DOWN, State.UP, State.WAITING, State.FAILED):
                self._stop_watching()
                self._dismiss_guardian()
                if self.process is not None:
                    self.process.let_go()
                    self.process = None
                self.context.unlock()
                self._handle(Event.LET_GO)

    def _first_options(self) -> Options | None:
        """The settings of a first start; those of the last stay as they are."""
        return self.kind.read_options({}) if self.context.options is None else None

    def _request(self, event: Event, waiters: Waiters[bool], options: Options | None = None) -> Deferred[bool]:
        """Handle a request of the user, once what was asked for before is under way."""
        request = _Request(Deferred(), waiters, options)
        pending = self._take_pending() if event in ENDS else None
        self._handle(event, request=request)
        if pending is not None:
            pending.fail(self._ended_by(event))
        return request.waiter

    def _take_pending(self) -> Waiters[bool]:
        """The starts that wait for what they need; they wait no more."""
        pending, self._pending = self._pending, Waiters()
        return pending

    def _ended_by(self, event: Event) -> ServiceStartFailed:
        return ServiceStartFailed(self.name, f"it was {ENDS[event]} before it was ready")

    def _granted(self, event: Event, request: _Request) -> Event | None:
        """The event of a request, which waits from now on; none when its settings are not those of what runs."""
        options = request.options or self.context.options
        if event is Event.START and request.options is not None and self._runs_otherwise(request.options):
            reason, fix = "it already runs with other settings", "stop it first, or restart it with the new ones"
            if not request.waiter.called:
                request.waiter.errback(ServiceStartFailed(self.name, reason, fix))
            return None
        if options is not None:
            if event is Event.RESTART and options != self.context.options:
                event = Event.CHANGE
            self.context.choose(options)
        # Earlier failures are forgotten.
        self._cancel_retry()
        self._failures = ()
        request.waiters.join(request.waiter)
        return event

    def _runs_otherwise(self, options: Options) -> bool:
        """Whether a start with these settings would meet a server that has others."""
        if self._where in (State.UP, State.STARTING, State.RECOVERING, State.CHANGING):
            return options != self.context.options
        # An earlier zComm may have left one running, or another may have it.
        left = self.process is None and self._where in (State.DOWN, State.WAITING, State.FAILED)
        return left and self.context.runs_otherwise(options)

    # -- the way between the states ------------------------------------------------------------------------

    def _handle(self, event: Event, error: Exception | None = None, request: _Request | None = None) -> None:
        """Go where the table says; an event that comes of handling another waits for its turn."""
        self._events.append((event, error, request))
        if self._handling:
            return
        self._handling = True
        try:
            while self._events:
                event, error, request = self._events.popleft()
                granted = event if request is None else self._granted(event, request)
                if granted is not None:
                    if granted in ENDS:
                        self._up.fail(self._ended_by(granted))
                    self._where, action = step(self._where, granted)
                    self._act(action, error)
        finally:
            self._handling = False

    def _act(self, action: Action, error: Exception | None) -> None:
        match action:
            case Action.START:
                self._begin(self._start())
            case Action.CANCEL:
                self._starting.cancel()
            case Action.STOP | Action.STOP_BY_FORCE:
                self._begin(self._stop(action is Action.STOP_BY_FORCE))
            case Action.REST:
                self._rest()
            case Action.REST_AND_START:
                self._rest()
                self._begin(self._start())
            case Action.WATCH:
                self._ready_at = self.environment.reactor.seconds()
                self._become(ServiceState.RUNNING, health=Health.HEALTHY)
                self._begin_watching()
                self._up.fire(True)
                self._begin(self._inspect())
            case Action.WATCH_AGAIN:
                self._say_error(ServiceState.RUNNING, error, Health.DEGRADED)
                self._begin_watching()
                self._fail_all(error)
            case Action.END:
                self._begin(self._end_hung())
            case Action.RETRY_LATER:
                self._say_error(ServiceState.ERROR, error)
                self._retry = self.environment.reactor.callLater(self._delay, self._try_again)
                self._give_up_waiting(error)
            case Action.LEAVE:
                self.context.unlock()
                self._say_error(ServiceState.ERROR, error)
                self._give_up_waiting(error)
            case Action.TELL_READY:
                self._up.fire(True)
            case Action.CONCEDE:
                self._become(ServiceState.STOPPED)
                self._down.fail(self.context.refuse_second())
                self._up.fire(True)
            case Action.REFUSE:
                self._become(ServiceState.STOPPED)
                self._fail_all(self.context.refuse_second())
            case Action.SAY_STUCK:
                self._say_error(ServiceState.ERROR, error)
                self._fail_all(error)
            case Action.NOTHING:
                pass

    def _begin(self, operation: Any) -> None:
        """Let a coroutine of ours run; it tells of its end by an event."""
        running = Deferred.fromCoroutine(operation)
        running.addErrback(lambda failure: self.log.failure("{name}: unexpected failure", failure, name=self.name))

    def _rest(self) -> None:
        self.context.unlock()
        self._become(ServiceState.STOPPED)
        self._down.fire(True)

    def _say_error(self, state: ServiceState, error: Exception | None, health: Health = Health.UNKNOWN) -> None:
        self._become(state, getattr(error, "reason", str(error)), getattr(error, "fix", ""), health)

    def _fail_all(self, error: Exception | None) -> None:
        if error is not None:
            self._down.fail(error)
            self._up.fail(error)

    def _give_up_waiting(self, error: Exception | None) -> None:
        """A start failed, or the server ended: those who wait for it hear of it; who waits for its end has it."""
        if error is not None:
            self._up.fail(error)
        self._down.fire(True)

    # -- a start -------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        self._warning = ("", "")
        self._become(ServiceState.STARTING, progress="preparing")
        self._starting = Deferred.fromCoroutine(self._take_over_or_launch())
        error: ServiceError
        try:
            await self._starting
        except _RunsElsewhere:
            self._handle(Event.RUNS_ELSEWHERE)
            return
        except CancelledError:
            error = ServiceStartFailed(self.name, "it was cancelled")
            outcome = Event.CANCELLED
        except ServiceError as failed:
            error = failed
            if isinstance(failed.__cause__, OSError) and failed.__cause__.errno in _NO_DESCRIPTOR:
                fix = "allow zComm more open files: ulimit -n 1024, or LimitNOFILE= of its unit"
                error = ServiceStartFailed(self.name, "zComm has no file descriptor left", fix)
            outcome = Event.GAVE_UP
        except ConfigError as failed:
            error = ServiceStartFailed(self.name, str(failed), permanent=True)
            outcome = Event.GAVE_UP
        except Exception as failed:
            if isinstance(failed, MemoryError) or str(failed) == _NO_THREAD:
                fix = "allow zComm more memory and threads: ulimit -v and -u, or MemoryMax= and TasksMax= of its unit"
                error = ServiceStartFailed(self.name, f"zComm itself gets no more: {failed or 'memory'}", fix)
            else:
                self.log.failure("{name}: unexpected failure of a start", name=self.name)
                error = ServiceStartFailed(self.name, f"unexpected: {type(failed).__name__}")
            outcome = Event.GAVE_UP
        else:
            self._handle(Event.READY)
            return
        try:
            if not (self._where is State.LEAVING and self.has_taken_over):
                await self._end_process()
        except ServiceStopTimeout as stuck:
            self._handle(Event.STUCK, stuck)
            return
        if self._where is State.RECOVERING and self._will_retry(error):
            outcome = Event.FELL
        self._handle(outcome, error)

    async def _take_over_or_launch(self) -> None:
        # What a start may find: a server that hung and has not ended yet.
        await self._end_process()
        found = await self._take_over()
        if found is not None:
            try:
                return await self._until_ready(found)
            except ServiceError as error:
                # It ended, or never will be ready: an earlier zComm may have been killed while it stopped this one.
                if found.exit is None:
                    self.log.warn(
                        "{name}: {reason}; it is ended, and started anew", name=self.name, reason=error.reason
                    )
                await self._end_process()
        await self._end_left(read_record(self.context.home.record))
        for attempt in range(_PORT_ATTEMPTS):
            try:
                return await self._until_ready(await self._launch())
            except PortInUse:
                # Free when it was looked at, taken when it was bound: with "auto" any other will do.
                if not self.context.avoid_port() or attempt == _PORT_ATTEMPTS - 1:
                    raise
                await self._end_process()

    async def _launch(self) -> ServerProcess:
        self.context.choose(options := self.context.options or self.kind.read_options({}))
        launch = await self.kind.prepare(options)
        # What is known before the fork, so that with what the child writes down nothing is ever unknown.
        self.context.save_record(but_identity=True)
        launch = replace(launch, identity_file=str(self.context.home.record.with_name(IDENTITY_FILE)))
        try:
            process = ManagedProcess.spawn(self.environment.reactor, launch, self.environment.tools)
        except OSError as error:
            raise ServiceStartFailed(self.name, f"it could not be started: {error.strerror}") from error
        self.context.spawned(process.pid, process.identity, process.log_start, self.restarts)
        self._attend(process)
        return process

    async def _take_over(self, to_end: bool = False) -> ServerProcess | None:
        """The server of an earlier zComm, if it runs.

        :param to_end: it is stopped, and what is started after it has the settings that were asked for.
        :raises _RunsElsewhere: when another zComm has it.
        :raises ServiceError: when it works in another directory: the one that was here was moved away, or replaced.
        """
        record = read_record(self.context.home.record)
        if not still_runs(record):
            self._require_none_astray(read_replaced(self.context.home.record))
            return None
        if not self.context.lock(self.context.home.directory):
            raise _RunsElsewhere
        process = AdoptedProcess.find(self.environment.reactor, record.pid, record.process_identity)
        if process is None:
            return None
        try:
            known = await self._recognise_in_time(process, record)
            if known and not to_end:
                await self.kind.require_access(record)
        except BaseException:
            process.let_go()
            raise
        if not known:
            process.let_go()
            self._require_none_astray(record)
            if to_end and still_runs(record):
                raise ServiceError(
                    self.name,
                    f"the server that was started here before (pid {record.pid}) still runs, and cannot be told from "
                    f"another one: nothing shows that it works in {record.data_dir}",
                    f"look at it, and end it: kill -{self._end_signal(record)} {record.pid}",
                )
            return None
        self.log.info("{name}: took over the running server, pid {pid}", name=self.name, pid=record.pid)
        options = self.context.options
        self.restarts = record.restarts
        self.context.taken_over(record, keep=options.asked if to_end and options is not None else ())
        self._attend(process)
        return process

    def _require_none_astray(self, record: Record) -> None:
        """Make sure that no server which was started here goes on in a directory that is here no more.

        Its clients would write where nobody looks, and a second one would take its place unseen.
        """
        place = working_directory(record.pid) if record.mark and still_runs(record) else ""
        if not place or stands_in(record.pid, Path(record.data_dir)):
            return
        raise ServiceError(
            self.name,
            f"the server that was started here before (pid {record.pid}) still runs, in {place}",
            f"end that one first: kill -{self._end_signal(record)} {record.pid}",
        )

    def _end_signal(self, record: Record) -> str:
        """The signal that ends the server of ``record``, as ``kill`` knows it."""
        return signal.Signals(self.kind.stop_steps(record)[0].signal).name.removeprefix("SIG")

    async def _recognise_in_time(self, process: ServerProcess, record: Record) -> bool:
        """Whether the process is the server of the record; asked again until it can tell: a zComm may have died right
        after the fork, and the child be on its way to its program, its directory or its port."""
        until = self.environment.reactor.seconds() + BIRTH
        while not await self.kind.recognise(record):
            if self.environment.reactor.seconds() >= until or await process.exited_within(LOOK) is not None:
                return False
        return True

    def _attend(self, process: ServerProcess) -> None:
        """Take a running process for the service's own, and tie its life to ours unless the kernel does."""
        self.process = process
        process.when_exited().addCallback(self._exited, process)
        tied = isinstance(process, ManagedProcess) and self.environment.tools.watches_parent and self.kind.ends_whole
        if self.environment.lifetime == "session" and not tied:
            mark = "" if self.kind.ends_whole else self.context.record.mark
            self._guardian = Guardian.beside(self.environment.reactor, process.pid, self.declaration.stop, mark)

    async def _until_ready(self, process: ServerProcess) -> None:
        limit = self.declaration.start_timeout
        waiting = Deferred.fromCoroutine(self.kind.become_ready(process))
        self._deadline = Deadline(self.environment.reactor, limit, waiting)
        try:
            await process.guard(self._deadline.outcome)
        except ProcessEnded as error:
            raise self._explain(error.exit) from None
        except NoAnswer:
            cause = self._diagnose()
            reason = f"not ready after {limit:g} s" + (f": {cause.reason}" if cause.reason else "")
            output = self._output()[-2000:]
            fix = cause.fix or self._fix_for_silence()
            raise ServiceStartTimeout(self.name, limit, reason, fix, output_tail=output) from None
        self.context.save_record()

    def _progressed(self, text: str, health: Health) -> None:
        """The start makes progress: give it its whole time anew."""
        if self._deadline is not None:
            self._deadline.extend()
        if text:
            self._become(ServiceState.STARTING, health=health, progress=text)

    # -- a stop --------------------------------------------------------------------------------------------

    async def _stop(self, force: bool) -> None:
        try:
            process = self.process or await self._take_over(to_end=True)
            if process is not None:
                self._stop_watching()
                self._become(ServiceState.STOPPING, health=self.health)
                await self.kind.before_stop(process, force)
                await process.stop(self.kind.stop_steps(self.context.record))
            # Where none ran, what the last one left may still run.
            await self._end_left(self.context.record if process else read_record(self.context.home.record))
            if process is not None:
                self._forget_process()
        except _RunsElsewhere:
            self._handle(Event.RUNS_ELSEWHERE)
        except ServiceStopFailed as error:
            self._handle(Event.REFUSED, error)
        except StillRunning as error:
            self._handle(Event.STUCK, ServiceStopTimeout(self.name, error.seconds))
        except ServiceError as error:
            self._handle(Event.STUCK, error)
        except Exception as error:
            self.log.failure("{name}: unexpected failure of a stop", name=self.name)
            self._handle(Event.STUCK, ServiceError(self.name, f"unexpected: {type(error).__name__}"))
        else:
            self._handle(Event.STOPPED)

    async def _end_process(self) -> None:
        """End what still runs of an earlier attempt. :raises ServiceStopTimeout: when it does not end."""
        if self.process is not None:
            try:
                await self.process.stop(self.kind.stop_steps(self.context.record))
                await self._end_left(self.context.record)
            except StillRunning as error:
                raise ServiceStopTimeout(self.name, error.seconds) from None
        self._forget_process()

    async def _end_left(self, record: Record) -> None:
        """End what a server that has ended started, and what goes on without it: it may have the port.

        :raises ServiceStopTimeout: when some of it does not end.
        """
        if self.kind.ends_whole or still_runs(record):
            return
        for attempt in range(_END_ATTEMPTS):
            # What is asked to end may start something else.
            left = await self.context.left_behind(record)
            if not left:
                return
            pids = {process.pid for process in left}
            if not attempt and not pids <= self._told:
                self._told = pids
                self.log.info(
                    "{name}: ends what it left running: pid {pids}",
                    name=self.name,
                    pids=", ".join(map(str, sorted(pids))),
                )
            ending: Any = DeferredList([one.stop(self.declaration.stop) for one in left], consumeErrors=True)
            if not all(ended for ended, _ in await ending):
                break
        raise ServiceStopTimeout(self.name, sum(step.seconds for step in self.declaration.stop))

    def _forget_process(self) -> None:
        """The process is gone: forget it, here and on disk."""
        self._stop_watching()
        self._dismiss_guardian()
        if self.process is not None:
            self.process = None
            self.context.ended()

    def _dismiss_guardian(self) -> None:
        if self._guardian is not None:
            self._guardian.dismiss()
            self._guardian = None

    # -- while it runs -------------------------------------------------------------------------------------

    def _begin_watching(self) -> None:
        probe = self.declaration.alive or Probe("none", every=5.0)

        def ask() -> Deferred[Reply]:
            self._rotate_log()
            return self.kind.ask(self.context.record, probe.timeout)

        self._watch = Watch(self.environment.reactor, probe.every, self.environment.misses, ask, self._answered)
        self._watch.start()

    def _stop_watching(self) -> None:
        if self._watch is not None:
            self._watch.stop()
            self._watch = None

    def _answered(self, reply: Reply | None, missed: int) -> None:
        """Record the answer to a liveness question; without one, the number missed in a row."""
        if self._where is not State.UP or self.process is None:
            return
        if reply is not None:
            self._say_health(reply.health, reply.detail)
        elif missed > self.environment.misses:
            self._handle(Event.HUNG)
        else:
            reason = f"no answer to {missed} questions in a row"
            self._become(ServiceState.RUNNING, reason, health=Health.UNRESPONSIVE)
            if missed == self.environment.misses:
                self.process.signal(signal.SIGCONT)

    def _say_health(self, health: Health, detail: str = "") -> None:
        """Show the health of a running server; one that answers well may still have something wrong."""
        reason, fix = self._warning
        if health is Health.HEALTHY and reason:
            self._become(ServiceState.RUNNING, reason, fix, Health.DEGRADED)
        else:
            self._become(ServiceState.RUNNING, detail, health=health)

    async def _inspect(self) -> None:
        """Take the time, now that it runs, for what a start should not wait for."""
        process = self.process
        found = await self.kind.inspect()
        if self.process is process and self._where is State.UP and found[0]:
            self._warning = found
            self._say_health(self.health)

    def _rotate_log(self) -> None:
        if self._rotating or not self.context.home.log.due():
            return
        self._rotating = True

        def done(result: Any) -> None:
            self._rotating = False
            if isinstance(result, Failure):
                self.log.failure("{name}: its log cannot be rotated", result, name=self.name)

        self.context.in_thread(self.context.home.log.rotate).addBoth(done)

    def _exited(self, exit: Exit, process: ServerProcess) -> None:
        """The server ended. While it was starting or stopping, what waits for it knows already."""
        if self.process is not process or self._where is not State.UP:
            return
        cause = self._diagnose()
        self._begin(self._end_left(self.context.record.ended()))
        self._forget_process()
        reason = f"it {exit}" + (f": {cause.reason}" if cause.reason else "")
        self._fell(ServiceStartFailed(self.name, reason, cause.fix, permanent=cause.permanent))

    async def _end_hung(self) -> None:
        """No answer to several questions: end it, to start it again."""
        process = self.process
        reason = f"it hung: no answer to {self.environment.misses} questions in a row"
        self._become(ServiceState.ERROR, reason, health=Health.UNRESPONSIVE)
        if process is None:
            return
        stuck: ServiceStopTimeout | None = None
        try:
            await process.stop(self.kind.stop_steps(self.context.record))
            await self._end_left(self.context.record)
        except StillRunning as error:
            stuck = ServiceStopTimeout(self.name, error.seconds)
        except ServiceStopTimeout as error:
            stuck = error
        if self.process is not process or self._where is not State.ENDING:
            # Somebody asked for something meanwhile: the operation that began then deals with the process.
            return
        if stuck is not None:
            self._handle(Event.STUCK, stuck)
        else:
            self._forget_process()
            self._fell(ServiceStartFailed(self.name, reason))

    def _fell(self, error: ServiceError) -> None:
        self.log.error("{name}: {reason}", name=self.name, reason=error.reason)
        self._handle(Event.FELL if self._will_retry(error) else Event.GAVE_UP, error)

    def _will_retry(self, error: ServiceError) -> bool:
        """Whether the service is worth another attempt after this failure, by the policy; sets the wait before it.

        The exit code says nothing: PostgreSQL ends with 0 after ``SIGQUIT`` and after somebody removed its pid file,
        so every exit that nobody asked for is a failure.
        """
        policy = self.environment.policy
        self._failures = policy.remembered(self._failures, self._ready_at, self.environment.reactor.seconds())
        self._ready_at = None
        # Its port was its own a moment ago: whoever has it now may only be passing, as a search for a free one is.
        transient = isinstance(error, (ServiceStartFailed, ServiceStartTimeout, PortInUse))
        if not transient or getattr(error, "permanent", False):
            return False
        delay = policy.delay(self._failures, self.environment.chance)
        if delay is None:
            self.log.error(
                "{name}: it failed {count} times in a row and is left alone", name=self.name, count=len(self._failures)
            )
            return False
        self._delay = delay
        return True

    def _try_again(self) -> None:
        self._retry = None
        self.restarts += 1
        self._handle(Event.RETRY)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # -- what is said about it -----------------------------------------------------------------------------

    def _output(self) -> str:
        """The end of what this run wrote to its log, without secrets."""
        return redact(self.context.home.log.tail(since=self.context.log_start), *self.kind.secrets())

    def _diagnose(self) -> Diagnosis:
        """The meaning of its last words."""
        return diagnose(self.kind.log, self._output())

    def _explain(self, exit: Exit) -> ServiceError:
        """The error for a server that ended before it was ready."""
        cause = self._diagnose()
        if cause.port_taken:
            return PortInUse(self.name, self.context.record.port, fix=cause.fix)
        return ServiceStartFailed(
            self.name,
            f"it {exit} before it was ready" + (f": {cause.reason}" if cause.reason else ""),
            cause.fix or self._fix_for(exit),
            exit_code=exit.code,
            output_tail=self._output()[-2000:],
            permanent=cause.permanent,
        )

    def _fix_for(self, exit: Exit) -> str:
        """The repair where its log names no cause."""
        log = f"its log: {self.context.home.log.path}"
        if exit.code == 0 and not self.kind.ends_whole:
            # Nothing went wrong, so it may have gone into the background, where it was ended.
            return f"let it run in the foreground, if it makes itself a daemon; {log}"
        return log

    def _fix_for_silence(self) -> str:
        """The repair where nothing answers in time and its log names no cause: it may listen elsewhere, on ``::1``."""
        port = self.context.record.port
        if self.kind.ends_whole or not port or self.declaration.ready.kind not in ("tcp", "http"):
            return ""
        host = self.declaration.host
        return f"let it listen on {host}, port {port}, where it is asked, or name it as host in the declaration"

    def _become(
        self, state: ServiceState, reason: str = "", fix: str = "", health: Health = Health.UNKNOWN, progress: str = ""
    ) -> None:
        """Show another state, and tell."""
        now = (state, redact(reason, *self.kind.secrets()), fix, health, progress)
        if state is not self.state:
            self._log_change(state)
        if now != (self.state, self.reason, self.fix, self.health, self.progress):
            self.state, self.reason, self.fix, self.health, self.progress = now
            self._changed(self)

    def _log_change(self, state: ServiceState) -> None:
        """Tell the log of starts and ends; failures are told where they are met."""
        if state is ServiceState.STARTING:
            self.log.info("{name}: {starts}", name=self.name, starts="starts again" if self.restarts else "starts")
        elif state is ServiceState.RUNNING and self.state is ServiceState.STARTING:
            record = self.context.record
            port = f", port {record.port}" if record.port else ""
            self.log.info("{name}: ready, pid {pid}{port}", name=self.name, pid=record.pid, port=port)
        elif state is ServiceState.STOPPED and self.state is ServiceState.STOPPING:
            self.log.info("{name}: stopped", name=self.name)

    def describe(self) -> ServiceStatus:
        """The service as this zComm knows it."""
        if self.process is None and self.state is ServiceState.STOPPED:
            # Another zComm may run it, or an earlier one left it running.
            record = read_record(self.context.home.record)
            if still_runs(record):
                return replace(self._status_of(record, ServiceState.RUNNING), restarts=record.restarts)
            if record == Record() and (trouble := record_trouble(self.context.home.record)):
                # It may run; a start finds out, by the data directory and the port.
                return replace(
                    self._status_of(record, ServiceState.UNKNOWN),
                    reason=trouble,
                    fix=f"look with the account that started it, or start it: zcomm service start {self.name}",
                )
            if record.pid and not self.reason:
                # Whoever stops a server writes down that it ended.
                log = f"its log: {self.context.home.log.path}"
                return replace(self._status_of(self.context.record, self.state), reason=UNWATCHED, fix=log)
        return self._status_of(self.context.record, self.state)

    async def look_at_unattended(self, seen: ServiceStatus) -> ServiceStatus:
        """The status ``seen`` of a server that another zComm, or an earlier one, started, with what it answers."""
        record = read_record(self.context.home.record)
        try:
            reply: Reply = await self.kind.ask(record, UNATTENDED_TIMEOUT)
        except NoAnswer:
            return replace(seen, health=Health.UNRESPONSIVE)
        seen = replace(seen, health=reply.health, reason=seen.reason or reply.detail)
        if reply.health is Health.DEGRADED:
            try:
                await self.kind.require_access(record)
            except ServiceError as error:
                return replace(seen, reason=error.reason, fix=error.fix)
        return seen

    def _status_of(self, record: Record, state: ServiceState) -> ServiceStatus:
        reason = self.reason
        try:
            port: int | str = record.port or (self.context.options or self.kind.read_options({})).port
            data_dir = record.data_dir or str(self.context.data_dir())
        except ConfigError as error:
            # The environment has a bad setting, which no start has met yet: what runs is shown all the same.
            port, data_dir = 0, record.data_dir
            reason = reason or str(error)
        return ServiceStatus(
            name=self.name,
            state=state,
            pid=record.pid or None,
            host=self.declaration.host,
            port=port if isinstance(port, int) and port else None,
            started=record.started if record.pid else None,
            health=self.health,
            reason=reason,
            fix=self.fix,
            version=record.version,
            user=record.user,
            log=str(self.context.home.log.path),
            data_dir=data_dir,
            identity=record.identity,
            restarts=self.restarts,
            progress=self.progress,
        )
