"""PostgreSQL as a service.

Ready means: the pid file names our own child and says ``ready``, and the server answers a startup packet on
its port. A probe that only connects takes another server on the port, or our own in the middle of its
recovery, for ready.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger

from zcomm.errors import DataDirectoryError, ServiceError, ServiceStartFailed
from zcomm.services.declaration import Probe, ServiceDeclaration, StopStep
from zcomm.services.kinds.postgresql.cluster import (
    ClusterNote,
    Clusters,
    checked_name,
    read_note,
    system_identifier,
    working_in,
    write_note,
)
from zcomm.services.kinds.postgresql.directory import judge_postgresql_directory, look_at_cluster
from zcomm.services.kinds.postgresql.examiner import PostgreSQLExaminer
from zcomm.services.kinds.postgresql.lockfile import Claim, Verdict, look_at_claim, move_aside, parse_pid_file
from zcomm.services.kinds.postgresql.log import LOG
from zcomm.services.kinds.postgresql.programs import PROGRAMS, major, postgresql_for
from zcomm.services.kinds.postgresql.protocol import ask_postgresql, speaks_postgresql
from zcomm.services.machine.account import Account
from zcomm.services.machine.directories import DirectoryFacts, look_at_directory, require_space
from zcomm.services.machine.identity import process_identity, stands_in, users_of, working_directory
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.programs import discover
from zcomm.services.machine.query import Address, NoAnswer
from zcomm.services.options import BIN_DIR, PASSWORD, Options, Setting
from zcomm.services.status import ConnectionInfo, Health, ServiceStatus
from zcomm.services.supervision.context import ServiceContext
from zcomm.services.supervision.environment import make_private
from zcomm.services.supervision.kind import KnownKind
from zcomm.services.supervision.launch import Launch
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import AdoptedProcess, ServerProcess
from zcomm.services.supervision.record import Record

__all__ = ["POSTGRESQL", "PostgreSQLService"]

#: Fast shutdown, then immediate, then the end. Never SIGTERM: the smart shutdown waits for every client
#: to leave and may wait for ever.
POSTGRESQL = ServiceDeclaration(
    "postgresql",
    kind="postgresql",
    port=5432,
    ready=Probe("postgresql", every=0.001),
    alive=Probe("postgresql", every=2.0, timeout=2.0),
    stop=(StopStep(signal.SIGINT, 10.0), StopStep(signal.SIGQUIT, 5.0), StopStep(signal.SIGKILL, 5.0)),
    url="postgresql://{host}:{port}",
    parent_death_signal=signal.SIGINT,
)
DATABASE = "zolo_dev"
#: The status in its pid file of a server that was told to end, from that moment on.
STOPPING = "stopping"
#: What a copied configuration may say of files and logs elsewhere does not hold for our child.
_OURS = (
    "lc_messages=C",
    "logging_collector=off",
    "log_destination=stderr",
    "unix_socket_permissions=0700",
)
#: Settings that let a cluster start whose own settings keep it from starting.
_SAFE_MODE = (
    "shared_buffers=16MB",
    "shared_preload_libraries=",
    "session_preload_libraries=",
    "huge_pages=off",
    "max_connections=20",
    "max_wal_senders=2",
    "autovacuum=off",
    "archive_mode=off",
)


class PostgreSQLService(KnownKind):
    """The PostgreSQL service: clusters, starts, probes and orderly stops.

    Settings of a start, besides ``data_dir``, ``port`` and ``user``: ``bin_dir``, ``password`` (of the
    superuser; a random one by default), ``database`` (made if it is not there; ``zolo_dev`` by default)
    and ``safe_mode`` (overrides settings that keep the server from starting).
    """

    name = "postgresql"
    declaration = POSTGRESQL
    accounts = ("postgres",)
    settings = (
        BIN_DIR,
        PASSWORD,
        Setting("database", help=f"the database to make ({DATABASE})"),
        Setting("safe_mode", bool, "override settings that keep it from starting"),
    )
    programs = PROGRAMS
    log = LOG
    examiner = PostgreSQLExaminer()
    has_idle_work = True
    _log = Logger()

    def __init__(self, service: ServiceContext):
        super().__init__(service)
        self._installation: Installation | None = None
        #: The cluster that was made for this start, as long as it may not be on the disk.
        self._made: tuple[Clusters, Path] | None = None

    def read_options(self, arguments: Mapping[str, Any]) -> Options:
        """Check that a database's name needs no quotes, too."""
        options = super().read_options(arguments)
        if options.get("database") is not None:
            checked_name("database", options.get("database"))
        return options

    def secrets(self) -> tuple[str, ...]:
        """The superuser's password."""
        note = read_note(self.service.data_dir())
        asked = self.service.options.password if self.service.options else ""
        return tuple(word for word in (note.password if note else "", asked) if word)

    # -- before it is spawned ------------------------------------------------------------------------------

    async def prepare(self, options: Options) -> Launch:
        """Check everything, make the cluster if there is none, and say how to run the server."""
        service = self.service
        data_dir = options.data_dir or service.home.data
        account = service.account_for(data_dir, options.user)
        service.claim_home(account)
        version, exists, left = await service.in_thread(self._look, data_dir, account)
        installation = await self._choose(options, data_dir, version, account)
        port = await service.choose_port(options.port)
        run = service.run_dir(f".s.PGSQL.{port}", account)
        clusters = Clusters(service.environment, service.name, installation, account, service.home.run)
        if not exists:
            await self._create(clusters, data_dir, options)
        service.lock_data_dir(data_dir)
        if left != "nothing":
            await self._clear_claim(data_dir, account)
        # In our own private directory, under our lock, with nobody in the data directory: PostgreSQL would believe it
        # of any process that has its number by now, a thread too.
        (run / f".s.PGSQL.{port}.lock").unlink(missing_ok=True)
        await self._apply_settings(clusters, data_dir, options, account)
        service.about_to_start(
            port,
            data_dir,
            account,
            version=installation.version_text,
            identity=system_identifier(data_dir),
            socket_dir=run,
        )
        where = [*working_in(data_dir), "-p", str(port), "-h", service.declaration.host, "-k", str(run)]
        words = [str(installation.server), *where]
        # Never empty: PostgreSQL would try to write it all the same, and log an error.
        pid_file = f"external_pid_file={run / f'postgresql.{port}.pid'}"
        for setting in (*_OURS, pid_file, *(_SAFE_MODE if options.get("safe_mode") else ())):
            words += ["-c", setting]
        return service.launch(words, account)

    def _look(self, data_dir: Path, account: Account) -> tuple[str | None, bool, str]:
        """Judge the directory; its version, whether a cluster is there, and what is left of an earlier server.

        **Blocks** on the disk; one visit to a thread for all of it.
        """
        facts, cluster = self.service.look_at_data_dir(data_dir, account, 0), look_at_cluster(data_dir)
        exists = judge_postgresql_directory(facts, cluster, account.uid, account.name, self.service.name)
        require_space(self.service.name, data_dir, self.service.environment.space[exists])
        return cluster.version, exists, _leftover_processes(data_dir) if exists else "nothing"

    async def _choose(self, options: Options, data_dir: Path, version: str | None, account: Account) -> Installation:
        known = self._installation
        fits = known is not None and version in (None, major(known)) and known.server.exists()
        if known is not None and fits and not options.bin_dir:
            return known
        environment = self.service.environment
        found = await discover(
            PROGRAMS, environment.environ, options.bin_dir, environment.reactor, service=self.service.name
        )
        chosen = await self.service.reachable(postgresql_for(found, data_dir, version, self.service.name), account)
        if not options.bin_dir:
            self._installation = chosen
        return chosen

    async def _create(self, clusters: Clusters, data_dir: Path, options: Options) -> None:
        self.service.progress("making a database cluster")
        await self.service.in_thread(self.service.make_parents, data_dir)
        await self.service.in_thread(clusters.remove_leftovers, data_dir)
        if not clusters.take_reserve(self.service.home.root, data_dir):
            await clusters.make(data_dir, options.password, options.get("database") or DATABASE)
            self._made = clusters, data_dir

    async def _apply_settings(self, clusters: Clusters, data_dir: Path, options: Options, account: Account) -> None:
        """Apply the settings of this start that the cluster lacks; a cluster of others is left as it is."""
        note = read_note(data_dir)
        if note is None:
            return
        amended = await clusters.amend(data_dir, note, options.get("database") or DATABASE, options.password)
        if amended != note:
            write_note(data_dir, amended, account)

    async def _clear_claim(self, data_dir: Path, account: Account) -> None:
        """Judge what an earlier server left, its pid file and its processes; no pid file is there afterwards.

        So whatever is in one later is of the server that is started now, which may have the number of the earlier one:
        in a container that is the rule.
        """
        for _ in range(20):
            left = await self.service.in_thread(_leftover_processes, data_dir)
            if left != "children":
                break
            # Those of a postmaster that was killed notice it within milliseconds and go.
            await deferLater(self.service.environment.reactor, 0.004)
        if left == "nothing":
            return
        verdict: Verdict = await self.service.in_thread(look_at_claim, data_dir, account.uid)
        for _ in range(100):
            if verdict.claim is not Claim.ZOMBIE:
                break
            await deferLater(self.service.environment.reactor, 0.03)
            verdict = await self.service.in_thread(look_at_claim, data_dir, account.uid)
        if verdict.claim in (Claim.LIVE, Claim.UNKNOWN, Claim.ZOMBIE):
            raise DataDirectoryError(
                self.service.name,
                str(data_dir),
                f"is in use: {verdict.proof}; zComm did not start that",
                f"stop that server first (pid {verdict.pid}), or give another data directory",
            )
        if verdict.left:
            await self._end_left(data_dir, [one.pid for one in verdict.left])
        if verdict.claim is not Claim.ABSENT:
            aside = await self.service.in_thread(move_aside, data_dir, verdict)
            self._log.info(
                "{name}: moved an earlier pid file to {path}: {proof}",
                name=self.service.name,
                path=str(aside),
                proof=verdict.proof,
            )

    async def _end_left(self, data_dir: Path, pids: list[int]) -> None:
        """End backends that survived their postmaster: nothing starts while they hold its memory."""
        identities = {pid: process_identity(pid) for pid in pids}
        for number in (signal.SIGQUIT, signal.SIGKILL):
            for pid, identity in identities.items():
                if identity is not None and process_identity(pid) == identity:
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(pid).send_signal(number)
            for _ in range(50):
                if not await self.service.in_thread(users_of, data_dir):
                    return
                await deferLater(self.service.environment.reactor, 0.02)
        # A restart is worth another attempt: they end, only later.
        reason = f"processes {pids} of an earlier server still use {data_dir}"
        raise ServiceStartFailed(self.service.name, reason, f"end them: kill -9 {' '.join(map(str, pids))}")

    # -- ready, alive ------------------------------------------------------------------------------------

    async def become_ready(self, process: ServerProcess) -> None:
        """The pid file names our child and says ready; then one answer over its port.

        :raises ServiceStartFailed: when it is shutting down. One that was told to while it recovers from the crash of
            a child may hang in that for ever. Also when it was taken over and its directory was moved: its next
            checkpoint would go by the former path.
        """
        ready, reactor = self.service.declaration.ready, self.service.environment.reactor
        data_dir = Path(self.service.record.data_dir)
        if isinstance(process, AdoptedProcess) and _was_moved(process.pid):
            raise ServiceStartFailed(self.service.name, "its data directory was moved while it ran")
        log_size = -1
        while True:
            status = _status(data_dir, process.pid)
            if status == STOPPING:
                raise ServiceStartFailed(self.service.name, "it is shutting down")
            if status not in ("ready", "standby"):
                await deferLater(reactor, ready.every)
                # Recovery may take its time as long as it tells of its progress.
                if (size := self.service.home.log.size()) != log_size:
                    log_size = size
                    self.service.progress()
                continue
            try:
                if (await self.ask(self.service.record, ready.timeout)).ready:
                    break
            except NoAnswer:
                # It may only be halted.
                process.signal(signal.SIGCONT)
            await deferLater(reactor, 0.02)
        self.service.identified(system_identifier(data_dir))

    def stop_steps(self, record: Record) -> Sequence[StopStep]:
        """No orderly shutdown where its data directory was moved: its last checkpoint would go by the former path, into
        the control file of whatever cluster is there now. What was committed is in its log all the same."""
        steps = self.service.declaration.stop
        if not _was_moved(record.pid):
            return steps
        return [step for step in steps if step.signal in (signal.SIGQUIT, signal.SIGKILL)]

    async def inspect(self) -> tuple[str, str]:
        """One file with a wrong owner: the server is ready, and every connection fails."""
        record = self.service.record
        data_dir = Path(record.data_dir)
        uid = data_dir.stat().st_uid
        facts: DirectoryFacts = await self.service.in_thread(look_at_directory, data_dir, uid, (), 100_000)
        # A file may come and go while it is looked at; only one that stays is somebody else's.
        if facts.foreign is None or not facts.foreign.exists():
            return "", ""
        take = shlex.join(["sudo", "chown", "-R", record.user, str(data_dir)])
        return f"{facts.foreign} does not belong to the account of the server", f"run: {take}"

    def ask(self, record: Record, timeout: float) -> Deferred[Reply]:
        """A startup packet on its port. One that is shutting down lets nobody in again, so that is no answer."""
        address = (self.service.declaration.host, record.port)
        data_dir = Path(record.data_dir)
        note = self._note(data_dir)

        def judge(reply: Reply) -> Reply:
            if not reply.ready and _status(data_dir, record.pid) == STOPPING:
                raise NoAnswer(reply.detail)
            return reply

        asked = ask_postgresql(self.service.environment.reactor, address, note.user, "postgres", timeout)
        return asked.addCallback(judge)

    @staticmethod
    def question(reactor: Any, address: Address, timeout: float) -> Deferred[Reply]:
        """A startup packet of the usual superuser."""
        return ask_postgresql(reactor, address, "postgres", "postgres", timeout)

    async def recognise(self, record: Record) -> bool:
        """The process stands in the data directory and its pid file names it."""
        data_dir = Path(record.data_dir)
        held = read_pid(data_dir)
        return held == record.pid and stands_in(record.pid, data_dir) and self.service.lock(data_dir)

    # -- how to reach it -----------------------------------------------------------------------------------

    def _note(self, data_dir: Path) -> ClusterNote:
        options = self.service.options
        return read_note(data_dir) or ClusterNote("postgres", options.password if options else "", {})

    def connection_info(self) -> ConnectionInfo:
        """The URL with the password, the socket, ``psql``'s command and the variables of libpq."""
        service = self.service
        note, port, host = self._note(service.data_dir()), service.port(), service.declaration.host
        asked = (service.options.get("database") if service.options else None) or ""
        known = note.databases
        database = asked or (DATABASE if not known or DATABASE in known else next(iter(known)))
        login = quote(note.user, safe="") + (f":{quote(note.password, safe='')}" if note.password else "")
        url = f"postgresql://{login}@{host}:{port}/{quote(database, safe='')}"
        run = service.socket_dir()
        environment = {
            "DATABASE_URL": url,
            "PGHOST": host,
            "PGPORT": str(port),
            "PGDATABASE": database,
            "PGUSER": note.user,
        }
        if note.password:
            environment["PGPASSWORD"] = note.password
        psql = shutil.which("psql") or "psql"
        command = shlex.join([psql, "-h", host, "-p", str(port), "-U", note.user, database])
        socket = str(Path(run) / f".s.PGSQL.{port}") if run else ""
        return ConnectionInfo(
            host=host,
            port=port,
            connection_string=url,
            database=database,
            user=note.user,
            password=note.password,
            unix_socket=socket,
            command=command,
            environment=environment,
        )

    async def foreign(self) -> ServiceStatus | None:
        """The PostgreSQL on our port that somebody else runs."""
        port, environment = self.service.port(), self.service.environment
        address = (self.service.declaration.host, port)
        try:
            if not port or not await speaks_postgresql(environment.reactor, address, 1.0):
                return None
        except NoAnswer:
            return None
        return await self.service.foreign_status(port, Health.HEALTHY)

    # -- when it runs ------------------------------------------------------------------------------------

    async def finish_start(self) -> None:
        """Write a cluster that was just made through to the disk, without which a power failure may spoil it."""
        made, self._made = self._made, None
        if made is None:
            return
        clusters, data_dir = made
        try:
            await clusters.write_through(data_dir)
        except ServiceError as error:
            self._log.warn("{name}: {path}: {reason}", name=self.service.name, path=str(data_dir), reason=error.reason)

    async def use_idle_time(self) -> None:
        """Make a cluster in reserve, which a later start on a new directory takes instead of making one."""
        await self.make_reserve()

    async def make_reserve(self) -> bool:
        """Make a cluster in reserve, if there is none; for idle moments.

        :return: whether there is one now.
        """
        service = self.service
        account = service.account_for(service.home.data)
        service.home.make()
        make_private(service.home.run, account, service.name)
        installation = await self._choose(self.read_options({}), service.home.data, None, account)
        clusters = Clusters(service.environment, service.name, installation, account, service.home.run)
        reserve = clusters.reserve_path(service.home.root)
        if reserve.exists():
            return True
        make_private(reserve.parent, Account("", os.geteuid(), os.getegid()), service.name, 0o711)
        await service.in_thread(clusters.remove_leftovers, reserve)
        try:
            await service.in_thread(require_space, service.name, reserve, service.environment.space[0])
            await clusters.make(reserve, "", DATABASE, low_priority=True)
        except ServiceError as error:
            self._log.info("{name}: no cluster in reserve: {reason}", name=service.name, reason=error.reason)
            return False
        return True


def read_pid(data_dir: Path) -> int:
    """The pid in ``postmaster.pid``, 0 when there is none."""
    try:
        text = (data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0
    parsed = parse_pid_file(text)
    return parsed.pid if parsed else 0


def _was_moved(pid: int) -> bool:
    """Whether the path by which a server knows its data directory leads there no more, but nowhere or to another."""
    place = working_directory(pid)
    if not place or not stands_in(pid, Path(place)):
        return bool(place)
    try:
        text = Path(place, "postmaster.pid").read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return False
    parsed = parse_pid_file(text)
    if parsed is None or parsed.pid != pid or not parsed.data_dir:
        return False
    try:
        return not os.path.samefile(parsed.data_dir, place)
    except OSError:
        return True


def _status(data_dir: Path, pid: int) -> str:
    """The status that the server ``pid`` wrote into ``postmaster.pid``, empty when there is none of it."""
    try:
        text = (data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    parsed = parse_pid_file(text)
    return parsed.status if parsed is not None and parsed.pid == pid else ""


def _leftover_processes(data_dir: Path) -> str:
    """``nothing`` of an earlier server, ``children`` of a dead one, or a ``claim`` to be judged thoroughly.

    The cheap look: it costs a millisecond, and after an orderly stop it is all that is needed.
    """
    held = os.path.lexists(data_dir / "postmaster.pid")
    if held:
        pid = read_pid(data_dir)
        if not pid or psutil.pid_exists(pid):
            return "claim"
    return "children" if users_of(data_dir) else "claim" if held else "nothing"
