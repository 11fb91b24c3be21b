"""The interface between the one supervisor and the kinds of servers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from twisted.internet.defer import Deferred

from zcomm.services.declaration import ServiceDeclaration, StopStep
from zcomm.services.examination import Examiner
from zcomm.services.machine.programs import Programs
from zcomm.services.machine.query import Address
from zcomm.services.options import Options, Setting
from zcomm.services.status import ConnectionInfo, ServiceStatus
from zcomm.services.supervision.context import ServiceContext
from zcomm.services.supervision.diagnosis import ANY_LOG, LogReading
from zcomm.services.supervision.launch import Launch
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import ServerProcess
from zcomm.services.supervision.record import Record

__all__ = ["Kind", "KnownKind"]


class Kind(ABC):
    """One service's kind: how such a server is prepared, asked, stopped and reached.

    A supervisor makes one for its service and calls it; a kind knows its service by the
    :class:`~zcomm.services.supervision.context.ServiceContext` alone and never calls the supervisor.

    :cvar accounts: the accounts that such servers usually run as when zComm is root.
    :cvar settings: what a start takes besides ``data_dir``, ``port`` and ``user``.
    :cvar log: how its log is read.
    :cvar ends_whole: whether all that such a server starts ends with it, by itself.
    """

    accounts: ClassVar[Sequence[str]] = ()
    settings: ClassVar[Sequence[Setting]] = ()
    log: ClassVar[LogReading] = ANY_LOG
    ends_whole: ClassVar[bool] = True

    def __init__(self, service: ServiceContext):
        self.service = service

    def read_options(self, arguments: Mapping[str, Any]) -> Options:
        """Check the arguments of a start. :raises ConfigError: at once, for a bad one."""
        return self.service.read_options(dict(arguments))

    @abstractmethod
    async def prepare(self, options: Options) -> Launch:
        """Do everything before the server is spawned, and say with
        :meth:`~zcomm.services.supervision.context.ServiceContext.about_to_start` where it will be.

        :raises ServiceError: typed, when the server could not start.
        """

    @abstractmethod
    async def become_ready(self, process: ServerProcess) -> None:
        """Return when the server is ready and proved to be ``process``."""

    @abstractmethod
    def ask(self, record: Record, timeout: float) -> Deferred[Reply]:
        """Ask the server of ``record`` whether it lives; fails with NoAnswer."""

    @abstractmethod
    def connection_info(self) -> ConnectionInfo:
        """The address and credentials of the server, running or not."""

    async def foreign(self) -> ServiceStatus | None:
        """The server of this kind on the service's port that is not ours, if there is one."""
        return None

    async def inspect(self) -> tuple[str, str]:
        """Look, once it runs, for what only shows later: what is wrong and the fix, or empty texts."""
        return "", ""

    async def before_stop(self, process: ServerProcess, force: bool) -> None:  # noqa: B027 (most need nothing)
        """End it in a gentler way than by the first signal.

        :raises ServiceStopFailed: when it must go on running.
        """

    def stop_steps(self, record: Record) -> Sequence[StopStep]:
        """The signals that end the server of ``record``, and how long each has to do it."""
        return self.service.declaration.stop

    async def recognise(self, record: Record) -> bool:
        """Whether the living process of ``record`` really is this server; takes the lock of its directory."""
        return True

    async def require_access(self, record: Record) -> None:  # noqa: B027 (most need none)
        """Make sure that the running server of ``record``, which is to go on, lets us in.

        :raises ServiceError: when it does not. Nobody ends it for that.
        """

    def secrets(self) -> tuple[str, ...]:
        """The texts that must not appear in any message."""
        return ()


class KnownKind(Kind):
    """A kind that zComm knows by name: it can find its programs, its running servers and what is wrong with them.

    :cvar name: its name, which a declaration, a probe and ``zcomm doctor`` use.
    :cvar declaration: the service of this kind that every manager has.
    :cvar programs: where its programs are.
    :cvar examiner: what ``zcomm doctor`` knows of it.
    :cvar has_idle_work: whether it has something to do in :meth:`finish_start` or :meth:`use_idle_time`.
    """

    name: ClassVar[str]
    declaration: ClassVar[ServiceDeclaration]
    programs: ClassVar[Programs]
    examiner: ClassVar[Examiner]
    has_idle_work: ClassVar[bool] = False

    @staticmethod
    @abstractmethod
    def question(reactor: Any, address: Address, timeout: float) -> Deferred[Reply]:
        """Ask a server of this kind of which nothing but its address is known; fails with NoAnswer."""

    async def finish_start(self) -> None:
        """Do, as soon as it runs, what nobody should wait for."""

    async def use_idle_time(self) -> None:
        """Do, in an idle moment after a start, what makes a later one faster."""
