"""One service over all its runs: what was asked for last, what is so, and the way from one to the other.

Requests never run side by side. ``start``, ``stop`` and ``restart`` only note what is wanted; one loop
makes it so, and the last request decides the final state. A stop ends a start in progress; a start that
comes during a stop waits for the end of the old process, so that there are never two.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, fail, succeed

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
from zcomm.services.declaration import AUTO, ServiceDeclaration
from zcomm.services.policy import ExitClass, classify_exit
from zcomm.services.status import Health, ServiceState
from zcomm.services.supervision.environment import Context
from zcomm.services.supervision.process import (
    AdoptedProcess,
    Exit,
    ManagedProcess,
    ProcessEnded,
    ServerProcess,
    StillRunning,
)
from zcomm.services.supervision.query import Deadline, NoAnswer
from zcomm.services.supervision.record import MARK, read_record, still_runs
from zcomm.services.supervision.watched import Watched

__all__ = ["Supervised"]

#: Attempts of one start with port="auto" to get a port before somebody else does.
_PORT_ATTEMPTS = 4
_START, _STOP, _RESTART = "start", "stop", "restart"


class _Observed(Exception):
    """Another zComm has this service, and it runs."""


class Supervised(Watched):
    """A service with the way between its states."""

    def __init__(self, context: Context, declaration: ServiceDeclaration):
        super().__init__(context, declaration)
        self._request: str | None = None
        self._force = False
        self._busy = False
        self._recovering = False
        self._starting: Deferred[None] | None = None
        self._up: Waiters[bool] = Waiters()
        self._down: Waiters[bool] = Waiters()
        self._retry: Any = None
        self._failures: tuple[float, ...] = ()
        self._ready_at: float | None = None
        self._deadline: Deadline | None = None

    # -- requests ----------------------------------------------------------------------------------------

    def start(self, **arguments: Any) -> Deferred[bool]:
        """Fires with True when it is ready; joins a start in progress; a running one is ready at once.

        :raises ConfigError: at once, for a bad argument.
        """
        if arguments or self.options is None:
            options = self.read_options(arguments)
            occupied = self.state in (ServiceState.RUNNING, ServiceState.STARTING)
            if occupied and self._request is not _STOP and options != self.options:
                return fail(
                    ServiceStartFailed(
                        self.name,
                        "it already runs with other settings",
                        "stop it first, or restart it with the new ones",
                    )
                )
            self.options = options
        if self.state is ServiceState.RUNNING and self._request is None and not self._busy:
            return succeed(True)
        waiter = self._up.add()
        self._note(_START)
        return waiter

    def stop(self, force: bool = False) -> Deferred[bool]:
        """Fires with True when its process has ended; so it does when none was running.

        :param force: end it even if it cannot save its data.
        """
        self._force = self._force or force
        self._up.fail(ServiceStartFailed(self.name, "it was stopped before it was ready"))
        waiter = self._down.add()
        self._note(_STOP)
        if self._starting is not None:
            self._starting.cancel()
        return waiter

    def restart(self, **arguments: Any) -> Deferred[bool]:
        """Stop it if it runs, start it with the settings it had (or new ones); fires when ready again.

        :raises ConfigError: at once, for a bad argument.
        """
        if arguments or self.options is None:
            options = self.read_options(arguments)
            if self._starting is not None and options != self.options:
                self._starting.cancel()
            self.options = options
        waiter = self._up.add()
        self._note(_START if self._starting is not None else _RESTART)
        return waiter

    def adopt(self) -> Deferred[bool]:
        """Take over the server of an earlier zComm if it runs; fires with whether it did."""
        if self.process is not None or not still_runs(read_record(self.home.record)):
            return succeed(False)
        return self.start()

    def release(self) -> None:
        """Let a running server go on without us."""
        self.unwatch()
        self._cancel_retry()
        self.dismiss_guardian()
        if self.process is not None:
            self.process.let_go()
            self.process = None
        self.unlock()

    def _note(self, request: str) -> None:
        """A request of somebody: earlier failures are forgotten."""
        self._cancel_retry()
        self._failures = ()
        self._recovering = False
        self._ask_for(request)

    def _ask_for(self, request: str) -> None:
        self._request = request
        if not self._busy:
            self._busy = True
            run = Deferred.fromCoroutine(self._fulfil())
            run.addErrback(lambda failure: self.log.failure("{name}: a request failed", failure, name=self.name))

    async def _fulfil(self) -> None:
        try:
            while (request := self._request) is not None:
                self._request = None
                down = True
                if request is _STOP or (request is _RESTART and self.process is not None):
                    down = await self._take_down()
                if request is _STOP or not down or self._request is not None:
                    continue
                if self.state is not ServiceState.RUNNING:
                    await self._bring_up()
                else:
                    self._up.fire(True)
        finally:
            self._busy = False

    # -- up ----------------------------------------------------------------------------------------------

    async def _bring_up(self) -> None:
        self.warning = ("", "")
        self.become(ServiceState.STARTING, progress="preparing")
        self._starting = Deferred.fromCoroutine(self._come_up())
        try:
            await self._starting
        except CancelledError:
            await self._abandon()
            self._lay_down()
            return
        except _Observed:
            self.become(ServiceState.STOPPED)
            self._up.fire(True)
            return
        except ServiceError as error:
            await self._abandon()
            self._start_failed(error)
            return
        except ConfigError as error:
            await self._abandon()
            self._start_failed(ServiceStartFailed(self.name, str(error), permanent=True))
            return
        except Exception as error:
            self.log.failure("{name}: unexpected failure of a start", name=self.name)
            await self._abandon()
            self._start_failed(ServiceStartFailed(self.name, f"unexpected: {type(error).__name__}"))
            return
        finally:
            self._starting = None
        self._ready_at = self.context.reactor.seconds()
        self.become(ServiceState.RUNNING, health=Health.HEALTHY)
        self.begin_watch()
        self._up.fire(True)
        closer = Deferred.fromCoroutine(self.look_closer())
        closer.addErrback(lambda failure: self.log.failure("{name}: cannot be looked at", failure, name=self.name))

    async def _come_up(self) -> None:
        # What a start may find: a server that hung and has not ended yet.
        await self._abandon()
        found = await self._take_over()
        if found is not None:
            try:
                return await self._until_ready(found)
            except ServiceError:
                # An earlier zComm was killed while it stopped this one, which has now ended.
                if found.exit is None:
                    raise
                self._over()
        for attempt in range(_PORT_ATTEMPTS):
            try:
                return await self._until_ready(await self._launch())
            except PortInUse:
                # Free when it was looked at, taken when it was bound: with "auto" any other will do.
                if self.options is None or self.options.port != AUTO or attempt == _PORT_ATTEMPTS - 1:
                    raise
                await self._abandon()
                self.avoided = self.record.port

    async def _until_ready(self, process: ServerProcess) -> None:
        limit = self.declaration.start_timeout
        waiting = Deferred.fromCoroutine(self.become_ready(process))
        self._deadline = Deadline(self.context.reactor, limit, waiting)
        try:
            await process.guard(self._deadline.outcome)
        except ProcessEnded as error:
            raise self.explain(error.exit, process) from None
        except NoAnswer:
            cause = self.diagnose(process)
            reason = f"not ready after {limit:g} s" + (f": {cause.reason}" if cause.reason else "")
            output = self.output(process)[-2000:]
            raise ServiceStartTimeout(self.name, limit, reason, cause.fix, output_tail=output) from None
        self.save_record()

    def extend(self) -> None:
        """The start makes progress: give it its whole time anew."""
        if self._deadline is not None:
            self._deadline.extend()

    async def _launch(self) -> ServerProcess:
        if self.options is None:
            self.options = self.read_options({})
        launch = await self.prepare(self.options)
        # What is known before the fork, so that with what the child writes down nothing is ever unknown.
        self.save_record(but_identity=True)
        launch = replace(launch, mark=str(self.home.record.with_name(MARK)))
        try:
            process = ManagedProcess.spawn(self.context.reactor, launch, self.context.tools)
        except OSError as error:
            raise ServiceStartFailed(self.name, f"it could not be started: {error.strerror}") from error
        self.process = process
        self.record = replace(self.record, pid=process.pid, stamp=process.stamp, started=self.context.now())
        self.save_record()
        self._attend(process)
        return process

    async def _take_over(self) -> ServerProcess | None:
        """The server of an earlier zComm, if it runs. :raises _Observed: when another zComm has it."""
        record = read_record(self.home.record)
        if not still_runs(record):
            return None
        if not self.lock(self.home.directory):
            raise _Observed
        process = AdoptedProcess.find(self.context.reactor, record.pid, record.stamp)
        if process is None:
            return None
        if not await self.recognise_in_time(process, record):
            process.let_go()
            return None
        self.log.info("{name}: took over the running server, pid {pid}", name=self.name, pid=record.pid)
        self.record = record
        self.options = self.options_of(record)
        self.process = process
        self._attend(process)
        return process

    def _attend(self, process: ServerProcess) -> None:
        process.when_exited().addCallback(self._exited, process)
        self.guard(process)

    def _start_failed(self, error: ServiceError) -> None:
        transient = isinstance(error, (ServiceStartFailed, ServiceStartTimeout))
        permanent = not transient or getattr(error, "permanent", False)
        again = self._recovering and self._plan_retry(permanent)
        if not again:
            self.unlock()
        self.become(ServiceState.ERROR, error.reason, error.fix)
        self._up.fail(error)
        self._down.fire(True)

    # -- down --------------------------------------------------------------------------------------------

    async def _take_down(self) -> bool:
        force, self._force = self._force, False
        try:
            process = self.process or await self._take_over()
        except _Observed:
            self._fail_both(self.refuse_second())
            return False
        if process is None:
            self._lay_down()
            return True
        self.unwatch()
        self.become(ServiceState.STOPPING, health=self.health)
        try:
            await self.before_stop(process, force)
            await process.stop(self.declaration.stop)
        except ServiceStopFailed as error:
            self.become(ServiceState.RUNNING, error.reason, error.fix, Health.DEGRADED)
            self.begin_watch()
            self._fail_both(error)
            return False
        except StillRunning as error:
            self.become(ServiceState.ERROR, str(error))
            self._fail_both(ServiceStopTimeout(self.name, error.seconds))
            return False
        self._over()
        self._lay_down()
        return True

    def _lay_down(self) -> None:
        """Nothing runs and nothing is to run."""
        self.unlock()
        self.become(ServiceState.STOPPED)
        self._down.fire(True)

    async def _abandon(self) -> None:
        """End what still runs of an earlier attempt."""
        if self.process is not None:
            try:
                await self.process.stop(self.declaration.stop)
            except StillRunning as error:
                raise ServiceStopTimeout(self.name, error.seconds) from None
        self._over()

    def _over(self) -> None:
        """The process is gone: forget it, here and on disk."""
        self.unwatch()
        self.dismiss_guardian()
        if self.process is not None:
            self.process = None
            self.record = self.record.ended()
            self.save_record()

    # -- by itself ---------------------------------------------------------------------------------------

    def _exited(self, exit: Exit, process: ServerProcess) -> None:
        """The server ended. While it was starting or stopping, whoever waits for it knows already."""
        if self.process is not process or self.state is not ServiceState.RUNNING:
            return
        cause = self.diagnose(process)
        self._over()
        self._fell(f"it {exit}" + (f": {cause.reason}" if cause.reason else ""), cause.fix, cause.permanent)

    def hung(self) -> None:
        """No answer to several questions: end it and start it again."""
        process = self.process
        if process is None or self.state is not ServiceState.RUNNING:
            return
        reason = f"it hung: no answer to {self.context.misses} questions in a row"
        self.become(ServiceState.ERROR, reason, health=Health.UNRESPONSIVE)

        def ended(_: Any) -> None:
            if self.process is process:
                self._over()
                if self.state is ServiceState.ERROR and self._request is None and not self._busy:
                    self._fell(reason, "", False)

        process.stop(self.declaration.stop).addCallbacks(
            ended, lambda failure: self.log.failure("{name}: it does not end", failure, name=self.name)
        )

    def _fell(self, reason: str, fix: str, permanent: bool) -> None:
        self.log.error("{name}: {reason}", name=self.name, reason=reason)
        if not self._plan_retry(permanent):
            self.unlock()
        self.become(ServiceState.ERROR, reason, fix)

    def _plan_retry(self, permanent: bool) -> bool:
        now = self.context.reactor.seconds()
        self._failures = self.context.policy.remembered(self._failures, self._ready_at, now)
        self._ready_at = None
        if classify_exit(False, permanent) is ExitClass.PERMANENT:
            return False
        delay = self.context.policy.delay(self._failures, self.context.chance)
        if delay is None:
            self.log.error(
                "{name}: it failed {count} times in a row and is left alone", name=self.name, count=len(self._failures)
            )
            return False
        self._cancel_retry()
        self._retry = self.context.reactor.callLater(delay, self._try_again)
        return True

    def _try_again(self) -> None:
        self._retry = None
        self._recovering = True
        self.restarts += 1
        self._ask_for(_START)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _fail_both(self, error: ServiceError) -> None:
        self._down.fail(error)
        self._up.fail(error)
