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
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from twisted.internet.defer import Deferred

from zcomm.errors import ConfigError, DataDirectoryError, ServiceError
from zcomm.network import port_holder
from zcomm.services.declaration import Probe, ServiceDeclaration, StopStep
from zcomm.services.kinds.postgresql.cluster import (
    ClusterNote,
    Clusters,
    checked_name,
    read_note,
    system_identifier,
    write_note,
)
from zcomm.services.kinds.postgresql.lockfile import Claim, Verdict, look_at_claim, move_aside, parse_pid_file
from zcomm.services.options import Options, read_options
from zcomm.services.status import ConnectionInfo, Health, ServiceState, ServiceStatus
from zcomm.services.supervision.access import reachable_installation
from zcomm.services.supervision.account import Account, choose_account
from zcomm.services.supervision.directories import (
    DirectoryFacts,
    judge_postgresql_directory,
    look_at_directory,
    postgresql_for,
    require_space,
    socket_directory,
)
from zcomm.services.supervision.environment import Context, make_private
from zcomm.services.supervision.identity import start_stamp
from zcomm.services.supervision.installations import Installation
from zcomm.services.supervision.launch import Launch, server_environment
from zcomm.services.supervision.probes import Reply, ask_postgresql, speaks_postgresql
from zcomm.services.supervision.process import ServerProcess
from zcomm.services.supervision.programs import discover
from zcomm.services.supervision.query import NoAnswer, pause
from zcomm.services.supervision.record import Record, users_of
from zcomm.services.supervision.supervisor import Supervised

__all__ = ["POSTGRESQL", "PostgreSQLService"]

#: Fast shutdown, then immediate, then the end. Never SIGTERM: the smart shutdown waits for every client
#: to leave and may wait for ever.
POSTGRESQL = ServiceDeclaration(
    "postgresql",
    port=5432,
    ready=Probe("postgresql", every=0.001),
    alive=Probe("postgresql", every=2.0, timeout=2.0),
    stop=(StopStep(signal.SIGINT, 10.0), StopStep(signal.SIGQUIT, 5.0), StopStep(signal.SIGKILL, 5.0)),
    url="postgresql://{host}:{port}",
    user="",
    parent_death_signal=signal.SIGINT,
)
DATABASE = "zolo_dev"
_ACCOUNTS = ("postgres",)
#: What a copied configuration may say of files and logs elsewhere does not hold for our child.
_OURS = (
    "lc_messages=C",
    "logging_collector=off",
    "log_destination=stderr",
    "external_pid_file=",
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


class PostgreSQLService(Supervised):
    """One PostgreSQL server.

    Settings of a start, besides ``data_dir``, ``port`` and ``user``: ``bin_dir``, ``password`` (of the
    superuser; a random one by default), ``database`` (made if it is not there; ``zolo_dev`` by default)
    and ``safe_mode`` (overrides settings that keep the server from starting).
    """

    kind = "postgresql"

    def __init__(self, context: Context, declaration: ServiceDeclaration = POSTGRESQL):
        super().__init__(context, declaration)
        self._installation: Installation | None = None
        self._reserving: Deferred[Any] | None = None

    def read_options(self, arguments: Mapping[str, Any]) -> Options:
        """See the class."""
        options = read_options(
            self.declaration, arguments, self.context.environ, ("bin_dir", "password", "database", "safe_mode")
        )
        if options.get("database") is not None:
            checked_name("database", options.get("database"))
        if not isinstance(options.get("safe_mode", False), bool):
            raise ConfigError("safe_mode", "is True or False")
        return options

    def account(self) -> Account:
        """Who the server runs as by default."""
        usual = (self.declaration.user, *_ACCOUNTS)
        return choose_account(Path("/nonexistent"), "", usual, self.context.environ)

    def secrets(self) -> tuple[str, ...]:
        """The superuser's password."""
        note = read_note(self.data_dir())
        asked = self.options.password if self.options else ""
        return tuple(word for word in (note.password if note else "", asked) if word)

    # -- before it is spawned ------------------------------------------------------------------------------

    async def prepare(self, options: Options) -> Launch:
        """Check everything, make the cluster if there is none, and say how to run the server."""
        data_dir = options.data_dir or self.home.data
        account = choose_account(data_dir, options.user, _ACCOUNTS, self.context.environ)
        self.home.make()
        if not self.lock(self.home.directory):
            raise self.refuse_second()
        self.home.make_run(account)
        facts, exists, left = await self.in_thread(self._look, data_dir, account)
        installation = await self._choose(options, facts, account)
        port = await self.choose_port(options.port)
        run = socket_directory(self.home.run, port, account.uid)
        if run != self.home.run:
            make_private(run.parent, account, self.name)
            make_private(run, account, self.name)
        clusters = Clusters(self.context, self.name, installation, account, self.home.run)
        if not exists:
            await self._create(clusters, data_dir, options)
        if not self.lock(data_dir):
            raise DataDirectoryError(self.name, str(data_dir), "another zComm uses it", "stop it there")
        if left != "nothing":
            await self._clear_claim(data_dir, account, run, port)
        await self._amend(clusters, data_dir, options, account)
        self.record = Record(
            host=self.declaration.host,
            port=port,
            data_dir=str(data_dir),
            version=installation.version_text,
            user=account.name,
            identity=system_identifier(data_dir),
            log=str(self.home.log.path),
            socket_dir=str(run),
        )
        words = [
            str(installation.server),
            "-D",
            str(data_dir),
            "-p",
            str(port),
            "-h",
            self.declaration.host,
            "-k",
            str(run),
        ]
        for setting in (*_OURS, *(_SAFE_MODE if options.get("safe_mode") else ())):
            words += ["-c", setting]
        lasting = self.context.lifetime == "persistent"
        return Launch(
            tuple(words),
            self.home.log,
            account,
            server_environment(self.context.environ, account),
            None if lasting else self.declaration.parent_death_signal,
        )

    def _look(self, data_dir: Path, account: Account) -> tuple[DirectoryFacts, bool, str]:
        """Judge the directory; whether a cluster is there, and what is left of an earlier server.

        **Blocks** on the disk; one visit to a thread for all of it.
        """
        facts = look_at_directory(data_dir, account.uid, tuple(account.groups), 0)
        exists = judge_postgresql_directory(facts, account.uid, account.name)
        require_space(self.name, data_dir, self.context.space[exists])
        return facts, exists, _what_is_left(data_dir) if exists else "nothing"

    async def _choose(self, options: Options, facts: DirectoryFacts, account: Account) -> Installation:
        known = self._installation
        fits = known is not None and facts.version in (None, known.major) and known.server.exists()
        if known is not None and fits and not options.bin_dir:
            return known
        found = await discover(self.name, self.context.environ, options.bin_dir, reactor=self.context.reactor)
        chosen = postgresql_for(found, facts)
        if os.geteuid() == 0:
            chosen = await self.in_thread(
                reachable_installation, chosen, account.uid, account.groups, self.home.root / "programs", self.name
            )
        if not options.bin_dir:
            self._installation = chosen
        return chosen

    async def _create(self, clusters: Clusters, data_dir: Path, options: Options) -> None:
        self.become(ServiceState.STARTING, progress="making a database cluster")
        await self.in_thread(clusters.remove_leftovers, data_dir)
        if not clusters.take_reserve(self.home.root, data_dir):
            await clusters.make(data_dir, options.password, options.get("database") or DATABASE)

    async def _amend(self, clusters: Clusters, data_dir: Path, options: Options, account: Account) -> None:
        """What this start asks for beyond what the cluster has; a cluster of others is left as it is."""
        note = read_note(data_dir)
        if note is None:
            return
        amended = await clusters.amend(data_dir, note, options.get("database") or DATABASE, options.password)
        if amended != note:
            write_note(data_dir, amended, account)

    async def _clear_claim(self, data_dir: Path, account: Account, run: Path, port: int) -> None:
        """Judge what an earlier server left: its pid file, its processes, its socket's lock."""
        for _ in range(20):
            left = await self.in_thread(_what_is_left, data_dir)
            if left != "children":
                break
            # Those of a postmaster that was killed notice it within milliseconds and go.
            await pause(self.context.reactor, 0.004)
        if left == "nothing":
            return
        verdict: Verdict = await self.in_thread(look_at_claim, data_dir, account.uid)
        for _ in range(100):
            if verdict.claim is not Claim.ZOMBIE:
                break
            await pause(self.context.reactor, 0.03)
            verdict = await self.in_thread(look_at_claim, data_dir, account.uid)
        if verdict.claim in (Claim.LIVE, Claim.UNKNOWN, Claim.ZOMBIE):
            raise DataDirectoryError(
                self.name,
                str(data_dir),
                f"is in use: {verdict.proof}; zComm did not start that",
                f"stop that server first (pid {verdict.pid}), or give another data directory",
            )
        if verdict.left:
            await self._end_left(data_dir, [one.pid for one in verdict.left])
        if verdict.claim is Claim.FALSE:
            aside = await self.in_thread(move_aside, data_dir, verdict)
            self.log.warn("{name}: moved {path} aside: {proof}", name=self.name, path=str(aside), proof=verdict.proof)
        # In our own private directory, under our lock, with nobody in the data directory.
        (run / f".s.PGSQL.{port}.lock").unlink(missing_ok=True)

    async def _end_left(self, data_dir: Path, pids: list[int]) -> None:
        """End backends that survived their postmaster: nothing starts while they hold its memory."""
        stamps = {pid: start_stamp(pid) for pid in pids}
        for number in (signal.SIGQUIT, signal.SIGKILL):
            for pid, stamp in stamps.items():
                if stamp is not None and start_stamp(pid) == stamp:
                    psutil.Process(pid).send_signal(number)
            for _ in range(50):
                if not await self.in_thread(users_of, data_dir):
                    return
                await pause(self.context.reactor, 0.02)
        raise DataDirectoryError(self.name, str(data_dir), f"processes {pids} still use it", "end them")

    # -- ready, alive ------------------------------------------------------------------------------------

    async def become_ready(self, process: ServerProcess) -> None:
        """The pid file names our child and says ready; then one answer over its port."""
        data_dir = Path(self.record.data_dir)
        log_size = -1
        while not _says_ready(data_dir, process.pid):
            await pause(self.context.reactor, self.declaration.ready.every)
            # Recovery may take its time as long as it tells of its progress.
            if (size := self.home.log.size()) != log_size:
                log_size = size
                self.extend()
        while True:
            try:
                reply = await self.ask(self.declaration.ready.timeout)
            except NoAnswer:
                reply = Reply(False)
            if reply.ready:
                break
            await pause(self.context.reactor, 0.02)
        self.record = replace(self.record, identity=system_identifier(data_dir))

    async def inspect(self) -> None:
        """One file with a wrong owner: the server is ready, and every connection fails."""
        data_dir, process = Path(self.record.data_dir), self.process
        uid = data_dir.stat().st_uid
        facts: DirectoryFacts = await self.in_thread(look_at_directory, data_dir, uid, (), 100_000)
        # A file may come and go while it is looked at; only one that stays is somebody else's.
        if facts.foreign is not None and self.process is process and facts.foreign.exists():
            take = shlex.join(["sudo", "chown", "-R", self.record.user, str(data_dir)])
            self.warning = (f"{facts.foreign} does not belong to the account of the server", f"run: {take}")

    def ask(self, timeout: float) -> Deferred[Reply]:
        """A startup packet on its port."""
        info = self._facts()
        return ask_postgresql(
            self.context.reactor, (self.declaration.host, self.record.port), info.user, "postgres", timeout
        )

    async def recognise(self, record: Record) -> bool:
        """The process stands in the data directory and its pid file names it."""
        data_dir = Path(record.data_dir)
        held = read_pid(data_dir)
        return held == record.pid and self.lock(data_dir)

    # -- how to reach it -----------------------------------------------------------------------------------

    def _facts(self) -> ClusterNote:
        note = read_note(self.data_dir())
        return note or ClusterNote("postgres", self.options.password if self.options else "", ())

    def connection_info(self) -> ConnectionInfo:
        """The URL with the password, the socket, ``psql``'s command and the variables of libpq."""
        note, port, host = self._facts(), self.port(), self.declaration.host
        asked = (self.options.get("database") if self.options else None) or ""
        known = note.databases
        database = asked or (DATABASE if not known or DATABASE in known else known[0])
        login = quote(note.user, safe="") + (f":{quote(note.password, safe='')}" if note.password else "")
        url = f"postgresql://{login}@{host}:{port}/{quote(database, safe='')}"
        run = self.socket_dir()
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
        return ConnectionInfo(host, port, url, database, note.user, note.password, socket, command, True, environment)

    async def foreign(self) -> ServiceStatus | None:
        """The PostgreSQL on our port that somebody else runs."""
        port = self.port()
        address = (self.declaration.host, port)
        try:
            if not port or not await speaks_postgresql(self.context.reactor, address, 1.0):
                return None
        except NoAnswer:
            return None
        holder = await port_holder(port, reactor=self.context.reactor)
        pid = holder.pid if holder else None
        started = psutil.Process(pid).create_time() if pid and psutil.pid_exists(pid) else None
        return ServiceStatus(
            self.name,
            ServiceState.RUNNING,
            pid,
            address[0],
            port,
            started,
            Health.HEALTHY,
            "another server that zComm does not manage",
            managed=False,
            user=holder.user if holder else "",
        )

    # -- the reserve -------------------------------------------------------------------------------------

    async def make_reserve(self) -> bool:
        """Make a cluster in reserve, if there is none; for idle moments.

        :return: whether there is one now.
        """
        account = choose_account(self.home.data, "", _ACCOUNTS, self.context.environ)
        self.home.make()
        make_private(self.home.run, account, self.name)
        installation = await self._choose(self.read_options({}), DirectoryFacts(self.home.data), account)
        clusters = Clusters(self.context, self.name, installation, account, self.home.run)
        reserve = clusters.reserve_path(self.home.root)
        if reserve.exists():
            return True
        make_private(reserve.parent, Account("", os.geteuid(), os.getegid()), self.name, 0o711)
        await self.in_thread(clusters.remove_leftovers, reserve)
        try:
            await self.in_thread(require_space, self.name, reserve, self.context.space[0])
            await clusters.make(reserve, "", DATABASE, low_priority=True)
        except ServiceError as error:
            self.log.info("{name}: no cluster in reserve: {reason}", name=self.name, reason=error.reason)
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


def _says_ready(data_dir: Path, pid: int) -> bool:
    try:
        text = (data_dir / "postmaster.pid").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    parsed = parse_pid_file(text)
    return parsed is not None and parsed.pid == pid and parsed.status in ("ready", "standby")


def _what_is_left(data_dir: Path) -> str:
    """``nothing`` of an earlier server, ``children`` of a dead one, or a ``claim`` to be judged thoroughly.

    The cheap look: it costs a millisecond, and after an orderly stop it is all that is needed.
    """
    if (data_dir / "postmaster.pid").exists():
        pid = read_pid(data_dir)
        if not pid or psutil.pid_exists(pid):
            return "claim"
    return "children" if users_of(data_dir) else "nothing"
