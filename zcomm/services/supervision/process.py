"""One running server process, from its start to its end, whether we started it or found it running.

Both kinds have the same small life: ``running`` until ``exited``, once. A signal goes through something
that cannot mean another process (the unreaped child, or a pidfd), never through a bare number.
"""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ProcessExitedAlready
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.protocol import ProcessProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from zcomm.runtime.deferreds import Waiters
from zcomm.services.declaration import StopStep
from zcomm.services.machine.identity import process_identity
from zcomm.services.supervision.launch import Launch, Tools, command_line

__all__ = [
    "AdoptedProcess",
    "Exit",
    "Life",
    "ManagedProcess",
    "ProcessEnded",
    "ServerProcess",
    "StillRunning",
    "process_identity",
]

#: Seconds between two looks at a process that nothing can announce the end of (no pidfd: macOS).
POLL = 0.05


class Life(Enum):
    """The state of a process."""

    NEW = "new"
    RUNNING = "running"
    EXITED = "exited"


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a process.

    :ivar code: its exit status, negative for the signal that ended it, ``None`` when it was not our
        child and the system does not tell.
    """

    code: int | None

    def __str__(self) -> str:
        if self.code is None:
            return "ended"
        if self.code < 0:
            try:
                return f"was ended by {signal.Signals(-self.code).name}"
            except ValueError:
                return f"was ended by signal {-self.code}"
        return f"ended with status {self.code}"


class ProcessEnded(Exception):
    """The process ended while something was expected of it.

    :ivar exit: how.
    """

    def __init__(self, exit: Exit):
        super().__init__(str(exit))
        self.exit = exit


class StillRunning(Exception):
    """The process survived its whole stop ladder.

    :ivar seconds: how long that took.
    """

    def __init__(self, seconds: float):
        super().__init__(f"still running after {seconds:g} s")
        self.seconds = seconds


class ServerProcess(ABC):
    """A server process, started by this zComm or adopted from an earlier one.

    :ivar pid: the process id.
    :ivar life: where it is in its life.
    :ivar exit: how it ended, once it has.
    :ivar identity: see :func:`process_identity`.
    """

    def __init__(self, reactor: Any):
        self._reactor = reactor
        self._waiting: Waiters[Exit] = Waiters()
        self.life = Life.NEW
        self.pid = 0
        self.identity = ""
        self.exit: Exit | None = None

    def when_exited(self) -> Deferred[Exit]:
        """Fires with the :class:`Exit`; at once if it is over. May be asked any number of times."""
        return succeed(self.exit) if self.exit is not None else self._waiting.add()

    def guard(self, operation: Deferred[Any]) -> Deferred[Any]:
        """The result of ``operation``, which is cancelled if the process ends first.

        :return: fails with :class:`ProcessEnded` then. This is why nothing that waits for a server
            waits for a dead one.
        """
        settled = False

        def give_up(_: Deferred[Any]) -> None:
            nonlocal settled
            operation.cancel()
            # An operation that takes its time to end must not be heard, nor the end of the process.
            settled = True
            ended.cancel()

        outer: Deferred[Any] = Deferred(give_up)
        ended = self.when_exited()

        def finish(result: Any) -> None:
            nonlocal settled
            if not settled:
                settled = True
                ended.cancel()
                outer.callback(result)

        def gone(exit: Exit) -> None:
            nonlocal settled
            if not settled:
                settled = True
                operation.cancel()
                outer.errback(Failure(ProcessEnded(exit)))

        ended.addCallbacks(gone, lambda _: None)
        operation.addBoth(finish)
        return outer

    @abstractmethod
    def signal(self, number: int) -> bool:
        """Send a signal; ``False`` when the process is over."""

    @abstractmethod
    def let_go(self) -> None:
        """Stop watching; the process goes on."""

    def stop(self, ladder: Sequence[StopStep]) -> Deferred[Exit]:
        """Climb the ladder until the process ends.

        ``SIGCONT`` goes ahead of every step, because a stopped process hears nothing but ``SIGKILL``.

        :return: fires with the exit, or fails with :class:`StillRunning` after the last step.
        """
        return Deferred.fromCoroutine(self._climb(ladder))

    async def _climb(self, ladder: Sequence[StopStep]) -> Exit:
        for step in ladder:
            self.signal(step.signal)
            self.signal(signal.SIGCONT)
            if (exit := await self.exited_within(step.seconds)) is not None:
                return exit
        raise StillRunning(sum(step.seconds for step in ladder))

    async def exited_within(self, seconds: float) -> Exit | None:
        """Wait for the end, ``None`` when it did not come in time."""
        ended = self.when_exited()
        timer = self._reactor.callLater(seconds, ended.cancel)
        try:
            return await ended
        except Exception:
            if self.exit is None and not timer.active():
                return None
            raise
        finally:
            if timer.active():
                timer.cancel()

    def _ended(self, exit: Exit) -> None:
        if self.life is Life.EXITED:
            return
        self.life = Life.EXITED
        self.exit = exit
        self._waiting.fire(exit)


@implementer(IReadDescriptor)
class _PidWatch:
    """Calls back once when the process behind a pidfd ends. Owns the descriptor."""

    def __init__(self, reactor: Any, descriptor: int, ended: Any):
        self._reactor = reactor
        self._descriptor = descriptor
        self._on_end = ended
        reactor.addReader(self)

    def fileno(self) -> int:
        return self._descriptor

    def logPrefix(self) -> str:
        return "pidfd"

    def doRead(self) -> None:
        on_end = self._on_end
        self.close()
        on_end()

    def connectionLost(self, reason: Failure) -> None:
        self.close()

    def close(self) -> None:
        if self._descriptor >= 0:
            self._reactor.removeReader(self)
            os.close(self._descriptor)
            self._descriptor = -1


class ManagedProcess(ServerProcess, ProcessProtocol):
    """A server we started: a direct child."""

    transport: Any

    def __init__(self, reactor: Any):
        super().__init__(reactor)
        self._watch: _PidWatch | None = None
        self._poll: Any = None
        #: The size its log had before it wrote anything.
        self.log_start = 0

    @classmethod
    def spawn(cls, reactor: Any, launch: Launch, tools: Tools) -> ManagedProcess:
        """Start the program of the server.

        :raises OSError: when the log cannot be opened or the system has no process left.
        """
        process = cls(reactor)
        words = command_line(launch, tools)
        log = launch.log.open()
        try:
            process.log_start = os.fstat(log).st_size
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            try:
                transport = reactor.spawnProcess(
                    process,
                    words[0],
                    words,
                    env=dict(launch.environment),
                    path=None,
                    childFDs={0: null, 1: log, 2: log},
                )
            finally:
                os.close(null)
        finally:
            os.close(log)
        process._watch_child(transport)
        return process

    def makeConnection(self, transport: Any) -> None:
        self.life = Life.RUNNING
        super().makeConnection(transport)

    def _watch_child(self, transport: Any) -> None:
        self.pid = transport.pid or 0
        if self.life is Life.EXITED or not self.pid:
            return
        self.identity = process_identity(self.pid) or ""
        # Twisted reaps on SIGCHLD, which only a reactor on the main thread can install; a reactor in
        # a background thread would never learn of the end. The pidfd works in both.
        if hasattr(os, "pidfd_open"):
            try:
                self._watch = _PidWatch(self._reactor, os.pidfd_open(self.pid), transport.reapProcess)
                return
            except OSError:
                self._watch = None
        self._poll_child(transport)

    def _poll_child(self, transport: Any) -> None:
        if self.life is Life.RUNNING:
            transport.reapProcess()
            self._poll = self._reactor.callLater(POLL, self._poll_child, transport)

    def let_go(self) -> None:
        self._unwatch()
        self._waiting = Waiters()

    def _unwatch(self) -> None:
        if self._watch is not None:
            self._watch.close()
        if self._poll is not None and self._poll.active():
            self._poll.cancel()

    def processEnded(self, reason: Failure) -> None:
        self._unwatch()
        status = reason.value
        killed_by = getattr(status, "signal", None)
        self._ended(Exit(-killed_by if killed_by else getattr(status, "exitCode", None)))

    def signal(self, number: int) -> bool:
        if self.life is not Life.RUNNING:
            return False
        try:
            self.transport.signalProcess(
                signal.Signals(number).name.removeprefix("SIG")
                if number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGHUP)
                else int(number)
            )
        except (ProcessExitedAlready, ProcessLookupError):
            return False
        return True


class AdoptedProcess(ServerProcess):
    """A server an earlier zComm started and this one found running."""

    def __init__(self, reactor: Any, pid: int, identity: str, descriptor: int | None):
        super().__init__(reactor)
        self.pid = pid
        self.identity = identity
        self.life = Life.RUNNING
        self._watch: _PidWatch | None = None
        self._poll: Any = None
        self._descriptor = descriptor
        if descriptor is not None:
            self._watch = _PidWatch(reactor, descriptor, self._gone)
        else:
            self._look()

    @classmethod
    def find(cls, reactor: Any, pid: int, identity: str) -> AdoptedProcess | None:
        """The process with this pid and start, or ``None`` if it is no more.

        The descriptor is opened first and the start compared after: whatever the pid means later, the
        descriptor means the process that was compared.
        """
        if pid <= 1:
            return None
        descriptor = None
        if hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(pid)
            except OSError:
                return None
        if process_identity(pid) != identity or not identity:
            if descriptor is not None:
                os.close(descriptor)
            return None
        return cls(reactor, pid, identity, descriptor)

    def _look(self) -> None:
        if process_identity(self.pid) != self.identity:
            self._gone()
        else:
            self._poll = self._reactor.callLater(POLL, self._look)

    def _gone(self) -> None:
        self._descriptor = None
        self._ended(Exit(None))

    def signal(self, number: int) -> bool:
        if self.life is not Life.RUNNING:
            return False
        try:
            if self._descriptor is not None:
                signal.pidfd_send_signal(self._descriptor, number)
            elif process_identity(self.pid) == self.identity:
                os.kill(self.pid, number)
            else:
                return False
        except ProcessLookupError:
            return False
        return True

    def let_go(self) -> None:
        self._waiting = Waiters()
        if self._watch is not None:
            self._watch.close()
            self._descriptor = None
        if self._poll is not None and self._poll.active():
            self._poll.cancel()
        self.life = Life.EXITED
