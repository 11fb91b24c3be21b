"""One service as its kind sees it: its settings and places, what is known of its run, and its locks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger

from zcomm.config import make_directory
from zcomm.errors import ConfigError, DataDirectoryError, ServiceError
from zcomm.network import check_port, find_free_port, port_holder
from zcomm.runtime.files import DirectoryLock
from zcomm.runtime.process import keep_from_children
from zcomm.services.declaration import AUTO, ServiceDeclaration
from zcomm.services.machine.account import Account, choose_account
from zcomm.services.machine.directories import (
    DirectoryFacts,
    judge_directory,
    look_at_directory,
    require_port,
    socket_directory,
)
from zcomm.services.machine.identity import MARK, processes_marked, started_at
from zcomm.services.machine.installations import Installation, reachable_installation
from zcomm.services.options import Options, Setting, read_options
from zcomm.services.status import Health, ServiceState, ServiceStatus
from zcomm.services.supervision.environment import ServiceHome, ServicesEnvironment, make_private
from zcomm.services.supervision.launch import Launch, server_environment
from zcomm.services.supervision.process import AdoptedProcess
from zcomm.services.supervision.record import (
    Record,
    of_process,
    read_record,
    session_of,
    still_runs,
    write_record,
)

__all__ = ["ServiceContext"]

#: Says that a start makes progress: what it does, for people, and how far the server is.
Progress = Callable[[str, Health], None]


class ServiceContext:
    """The supervisor as a kind of server sees it. What is known of a run is changed by telling what happened.

    :param accounts: the accounts that such servers usually run as, the first that exists is taken.
    :param settings: what a start of this kind takes, beyond what every service has.
    :param progress: called with each sign of progress of a start.
    """

    log = Logger()

    def __init__(
        self,
        environment: ServicesEnvironment,
        declaration: ServiceDeclaration,
        accounts: Sequence[str],
        settings: Sequence[Setting],
        progress: Progress,
    ):
        self.environment = environment
        self.declaration = declaration
        self.name = declaration.name
        self._options: Options | None = None
        self._record = Record()
        self._accounts = tuple(name for name in (declaration.user, *accounts) if name)
        self._settings = settings
        self._progress = progress
        self._written = Record()
        self._home: ServiceHome | None = None
        self._locks: list[DirectoryLock] = []
        #: The port that somebody took between our look and our start.
        self._avoided = 0

    # -- settings ------------------------------------------------------------------------------------------

    @property
    def options(self) -> Options | None:
        """The settings of the last start that was asked for, ``None`` before the first."""
        return self._options

    def runs_otherwise(self, options: Options) -> bool:
        """Whether a server that this zComm did not start runs with other settings than these ask for, as far as its
        record tells."""
        record = read_record(self.home.record)
        if not options.asked or not still_runs(record):
            return False
        # The account is that of the data directory, whoever is asked for.
        port = "port" in options.asked and options.port not in (AUTO, record.port)
        return port or ("data_dir" in options.asked and str(options.data_dir or self.home.data) != record.data_dir)

    def choose(self, options: Options) -> None:
        """Take these settings for each start from now on."""
        self._options = options

    def read_options(self, arguments: dict[str, Any]) -> Options:
        """The settings that a start with these arguments has. :raises ConfigError: for a bad one."""
        return read_options(self.declaration, arguments, self.environment.environ, self._settings)

    def account_for(self, data_dir: Path, wanted: str = "") -> Account:
        """The account of the server of a data directory. :raises ConfigError: when ``wanted`` may not be taken."""
        return choose_account(data_dir, wanted, self._accounts, self.environment.environ)

    # -- places --------------------------------------------------------------------------------------------

    @property
    def home(self) -> ServiceHome:
        """The directory of the service's files."""
        if self._home is None:
            self._home = ServiceHome(self.environment, self.name)
        return self._home

    def port(self) -> int:
        """The port it has, or would have; 0 while none is settled."""
        if self.record.pid and self.record.port:
            return self.record.port
        known = read_record(self.home.record)
        if still_runs(known) and known.port:
            return known.port
        wanted = (self.options or self.read_options({})).port
        return known.port if wanted == AUTO else int(wanted)

    def socket_dir(self) -> str:
        """The directory of its Unix socket while it runs, whoever started it; empty otherwise."""
        known = self.record if self.record.pid else read_record(self.home.record)
        return known.socket_dir if still_runs(known) else ""

    def data_dir(self) -> Path:
        """The data directory it has, or would have."""
        if self.record.pid and self.record.data_dir:
            return Path(self.record.data_dir)
        if self.options is None:
            known = read_record(self.home.record)
            if still_runs(known) and known.data_dir:
                return Path(known.data_dir)
        options = self.options or self.read_options({})
        return options.data_dir or self.home.data

    # -- before it is spawned --------------------------------------------------------------------------------

    def claim_home(self, account: Account) -> None:
        """Make the service's own directories and lock them.

        :raises ServiceError: when another zComm has the service, or something is in the way.
        """
        self.home.make()
        if not self.lock(self.home.directory):
            raise self.refuse_second()
        self.home.require_moved()
        for directory in self.home.open_to(account):
            self.log.info(
                "{name}: {account} may pass {directory} from now on, by an entry in its access control list",
                name=self.name,
                account=account.name,
                directory=str(directory),
            )
        self.home.make_run(account)

    def claim_data_dir(
        self, data_dir: Path, facts: DirectoryFacts, account: Account, files: Sequence[str] = ()
    ) -> None:
        """Judge a data directory whose content does not matter, make it if it is missing, and lock it. **Blocks**.

        :param files: the names by which the directory of such a server is known.
        :raises DataDirectoryError: when the server cannot work in it, or another zComm uses it.
        """
        judge_directory(self.name, facts, account.uid, account.name, files=files)
        if facts.kind == "missing":
            self.make_parents(data_dir)
            make_private(data_dir, account, self.name)
        self.lock_data_dir(data_dir)

    def make_parents(self, data_dir: Path) -> None:
        """Make what is missing above a data directory; **blocks**.

        :raises DataDirectoryError: when it cannot be made.
        """
        try:
            make_directory(data_dir.parent)
        except OSError as error:
            raise DataDirectoryError(self.name, str(data_dir), f"cannot be made: {error.strerror}") from error

    def look_at_data_dir(self, data_dir: Path, account: Account, files: int) -> DirectoryFacts:
        """The facts about a data directory; **blocks**. ``files`` inside are looked at for a foreign owner."""
        return look_at_directory(data_dir, account.uid, tuple(account.groups), files)

    def lock_data_dir(self, data_dir: Path) -> None:
        """Take the lock of a data directory. :raises DataDirectoryError: when another zComm has it."""
        if not self.lock(data_dir):
            raise DataDirectoryError(self.name, str(data_dir), "another zComm uses it", "stop it there")

    def run_dir(self, socket: str, account: Account) -> Path:
        """A directory of ``account`` in which the path of a ``socket`` is short enough; made if missing."""
        run = socket_directory(self.home.run, socket, account.uid)
        if run != self.home.run:
            make_private(run.parent, account, self.name)
            make_private(run, account, self.name)
        return run

    async def reachable(self, chosen: Installation, account: Account) -> Installation:
        """The installation, or a copy of it where the account may run it. :raises ServiceError: when it may not."""
        if os.geteuid() != 0:
            return chosen
        copies = self.home.root / "programs"
        found: Installation = await self.in_thread(
            reachable_installation, chosen, account.uid, account.groups, copies, self.name
        )
        return found

    async def choose_port(self, wanted: int | str) -> int:
        """The port for this run; ``"auto"`` keeps the one it had if that is free.

        :raises PortInUse: naming the holder.
        """
        reactor, host = self.environment.reactor, self.declaration.host
        if wanted == AUTO:
            before = read_record(self.home.record).port
            usual = self.declaration.port if isinstance(self.declaration.port, int) else None
            if self._avoided:
                self._avoided = 0
                return await find_free_port(host, reactor=reactor)
            if before and await check_port(before, host, reactor=reactor):
                return before
            return await find_free_port(host, usual or None, reactor=reactor)
        port = int(wanted)
        if port:
            await require_port(self.name, port, host, reactor=reactor)
        return port

    def avoid_port(self) -> bool:
        """Take another port the next time than the one that was taken; False where only that one will do."""
        self._avoided = self.record.port
        return self.options is not None and self.options.port == AUTO

    def launch(
        self, argv: Sequence[str], account: Account, directory: str = "/", environment: dict[str, str] | None = None
    ) -> Launch:
        """A run of the server with this command: it logs to the service's log and ends with zComm, unless it is to
        outlive it."""
        lasting = self.environment.lifetime == "persistent"
        marked = {**(environment or {}), MARK: self._record.mark}
        return Launch(
            argv=tuple(argv),
            log=self.home.log,
            account=account,
            environment=server_environment(self.environment.environ, account, marked),
            death_signal=None if lasting else self.declaration.parent_death_signal,
            directory=directory,
        )

    # -- while it starts -------------------------------------------------------------------------------------

    def progress(self, text: str = "", health: Health = Health.UNKNOWN) -> None:
        """Report a sign of progress: the time allowed for the start begins anew.

        :param text: what it waits for, for people.
        """
        self._progress(text, health)

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Run what waits for a disk in a thread of the reactor's pool."""
        reactor = self.environment.reactor
        return deferToThreadPool(reactor, reactor.getThreadPool(), function, *arguments)

    # -- what happens to the server --------------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """The facts of the run, also written to disk; its ``pid`` is 0 while no server runs."""
        return self._record

    @property
    def log_start(self) -> int:
        """The size in bytes that the log had before this run wrote to it."""
        return self._record.log_start

    def about_to_start(
        self,
        port: int,
        data_dir: Path,
        account: Account,
        *,
        version: str = "",
        identity: str = "",
        socket_dir: Path | None = None,
    ) -> None:
        """A server is about to be started here, on this port.

        :param identity: who it will say it is, where that is known before.
        :param socket_dir: the directory of its Unix socket, if it has one.
        """
        self._record = Record(
            host=self.declaration.host,
            port=port,
            data_dir=str(data_dir),
            version=version,
            user=account.name,
            identity=identity,
            log=str(self.home.log.path),
            socket_dir=str(socket_dir or ""),
            mark=secrets.token_hex(8),
        )

    def spawned(self, pid: int, process_identity: str, log_start: int, restarts: int) -> None:
        """The process of the server is there, after so many restarts that nobody asked for."""
        told = replace(self._record, restarts=restarts, log_start=log_start)
        self._record = of_process(told, pid, process_identity, self.environment.now())
        if self._options is not None:
            # What was asked for is done; the record has it from now on.
            self._options = replace(self._options, asked=frozenset())
        self.save_record()

    def taken_over(self, record: Record, keep: Collection[str] = ()) -> None:
        """The server of ``record``, which an earlier zComm started, is ours; it is started again where it was.

        :param keep: the settings that stay as they were chosen.
        """
        self._record = record
        # A start has read the settings by now; a stop needs none.
        with suppress(ConfigError):
            options = self._options or self.read_options({})
            if "port" not in keep and options.port != AUTO and record.port:
                options = replace(options, port=record.port)
            if "data_dir" not in keep and record.data_dir:
                where = Path(record.data_dir)
                options = replace(options, data_dir=None if where == self.home.data else where)
            self._options = options

    def identified(self, identity: str) -> None:
        """The server has said who it is."""
        self._record = replace(self._record, identity=identity)

    def ended(self) -> None:
        """The process of the server is gone."""
        self._record = self._record.ended()
        self.save_record()

    async def left_behind(self, record: Record) -> list[AdoptedProcess]:
        """The processes that the server of ``record`` has started and that did not end with it, itself aside."""
        if not record.mark:
            return []
        found: list[tuple[int, str]] = await self.in_thread(processes_marked, record.mark, session_of(record))
        every = [AdoptedProcess.find(self.environment.reactor, *one) for one in found if one[0] != record.pid]
        return [process for process in every if process is not None]

    # -- a stranger on its port ------------------------------------------------------------------------------

    async def foreign_status(self, port: int, health: Health, version: str = "") -> ServiceStatus:
        """The status of a server on the service's port that somebody else runs."""
        holder = await port_holder(port, reactor=self.environment.reactor)
        pid = holder.pid if holder else None
        return ServiceStatus(
            name=self.name,
            state=ServiceState.RUNNING,
            pid=pid,
            host=self.declaration.host,
            port=port,
            started=started_at(pid) if pid else None,
            health=health,
            reason="another server that zComm does not manage",
            managed=False,
            version=version,
            user=holder.user if holder else "",
        )

    # -- locks and the record --------------------------------------------------------------------------------

    def lock(self, directory: Path) -> bool:
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
            keep_from_children(lock)
            self._locks.append(lock)
        return taken

    def unlock(self) -> None:
        """Give the locks back."""
        for lock in self._locks:
            lock.release()
        self._locks.clear()
        # From now on another zComm may write it.
        self._written = Record()

    def refuse_second(self) -> ServiceError:
        """The error for a service that another zComm has."""
        return ServiceError(self.name, "another zComm on this machine manages it", "stop it there, or end that zComm")

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
