"""Redis, or Valkey, as a service.

Ready means: ``PONG`` to our password, from the very process we started. Nothing but a file that only the
server's account may read holds the password, and a directory is given to one server at a time, because
Redis itself locks nothing and the last of two to save wins.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from zcomm.errors import ConfigError, DataDirectoryError, ServiceStopFailed
from zcomm.network import port_holder
from zcomm.runtime.files import replace_file
from zcomm.services.declaration import Probe, ServiceDeclaration, StopStep
from zcomm.services.kinds.redis.config import RedisData, config_text, look_at_data, plan_appendonly
from zcomm.services.kinds.redis.rdb import RdbHeader, read_rdb_headers
from zcomm.services.options import Options, read_options
from zcomm.services.status import ConnectionInfo, Health, ServiceState, ServiceStatus
from zcomm.services.supervision.access import reachable_installation
from zcomm.services.supervision.account import Account, choose_account
from zcomm.services.supervision.directories import (
    judge_redis_directory,
    look_at_directory,
    redis_for,
    require_space,
    socket_directory,
)
from zcomm.services.supervision.environment import Context, make_private
from zcomm.services.supervision.installations import Installation
from zcomm.services.supervision.launch import Launch, server_environment
from zcomm.services.supervision.probes import Reply, ask_redis, encode_resp, parse_resp
from zcomm.services.supervision.process import AdoptedProcess, ServerProcess
from zcomm.services.supervision.programs import discover
from zcomm.services.supervision.query import HungUp, NoAnswer, ask, pause
from zcomm.services.supervision.record import Record, read_json, users_of
from zcomm.services.supervision.supervisor import Supervised

__all__ = ["REDIS", "RedisService"]

REDIS = ServiceDeclaration(
    "redis",
    port=6379,
    ready=Probe("redis", every=0.002),
    alive=Probe("redis", every=2.0, timeout=2.0),
    stop=(StopStep(signal.SIGTERM, 10.0), StopStep(signal.SIGKILL, 5.0)),
    url="redis://{host}:{port}/0",
    parent_death_signal=signal.SIGTERM,
)
#: Seconds an orderly shutdown may take; it writes all the data.
SHUTDOWN_TIMEOUT = 60.0
_ACCOUNTS = ("redis", "valkey")
_APPENDFSYNC = ("everysec", "always")
_SOCKET = "redis.sock"
#: How often to look for its socket, a millisecond each, before it is asked: it listens then, and a look costs
#: far less than a question in vain.
_LOOKS = 100
_SAVERS = ("redis-rdb-bgsave", "redis-aof-rewrite", "valkey-rdb-bgsave", "valkey-aof-rewrite")


class RedisService(Supervised):
    """One Redis or Valkey server.

    Settings of a start, besides ``data_dir``, ``port`` and ``user``: ``bin_dir``, ``password`` (a random
    one by default), ``appendonly`` (True by default) and ``appendfsync``, or ``REDIS_APPENDFSYNC``:
    ``"everysec"``, the default, may lose what was acknowledged in the last moments before a crash;
    ``"always"`` loses nothing that was acknowledged, and writes as slowly as the disk.
    """

    kind = "redis"

    def __init__(self, context: Context, declaration: ServiceDeclaration = REDIS):
        super().__init__(context, declaration)
        self._installation: Installation | None = None
        self._switch_on = False

    def read_options(self, arguments: Mapping[str, Any]) -> Options:
        """See the class."""
        known = {"appendfsync": self.context.environ.get("REDIS_APPENDFSYNC", "").strip() or None}
        options = read_options(
            self.declaration,
            {**known, **arguments},
            self.context.environ,
            ("bin_dir", "password", "appendonly", "appendfsync"),
        )
        if not isinstance(options.get("appendonly", True), bool):
            raise ConfigError("appendonly", "is True or False")
        if options.get("appendfsync", "everysec") not in _APPENDFSYNC:
            raise ConfigError("appendfsync", f"is {' or '.join(_APPENDFSYNC)}")
        return options

    def account(self) -> Account:
        """Who the server runs as by default."""
        usual = (self.declaration.user, *_ACCOUNTS)
        return choose_account(Path("/nonexistent"), "", usual, self.context.environ)

    def secrets(self) -> tuple[str, ...]:
        """Its password."""
        return tuple(word for word in (self._password(),) if word)

    def _password(self) -> str:
        known = read_json(self.home.directory / "secret.json").get("password")
        return known if isinstance(known, str) else ""

    # -- before it is spawned ------------------------------------------------------------------------------

    async def prepare(self, options: Options) -> Launch:
        """Check everything, write the configuration, and say how to run the server."""
        data_dir = options.data_dir or self.home.data
        account = choose_account(data_dir, options.user, _ACCOUNTS, self.context.environ)
        self.home.make()
        if not self.lock(self.home.directory):
            raise self.refuse_second()
        self.home.make_run(account)
        # One visit to a thread for all of it: on a busy machine each visit costs more than the looking.
        users, data, headers = await self.in_thread(self._look, data_dir, account)
        if users:
            await self._nobody_in(data_dir)
            users, data, headers = await self.in_thread(self._look, data_dir, account)
        appendonly, self._switch_on = plan_appendonly(self.name, data_dir, data, options.get("appendonly"))
        installation = await self._choose(options, headers, account)
        port = await self.choose_port(options.port)
        run = socket_directory(self.home.run, port, account.uid, name=_SOCKET)
        if run != self.home.run:
            make_private(run.parent, account, self.name)
            make_private(run, account, self.name)
        # One that was killed left it.
        (run / _SOCKET).unlink(missing_ok=True)
        config = self._write_config(options, installation, account, data_dir, run, port, appendonly)
        self.record = Record(
            host=self.declaration.host,
            port=port,
            data_dir=str(data_dir),
            version=installation.version_text,
            user=account.name,
            log=str(self.home.log.path),
            socket_dir=str(run),
        )
        lasting = self.context.lifetime == "persistent"
        return Launch(
            (str(installation.server), str(config)),
            self.home.log,
            account,
            server_environment(self.context.environ, account),
            None if lasting else self.declaration.parent_death_signal,
        )

    def _look(self, data_dir: Path, account: Account) -> tuple[list[tuple[int, str]], RedisData, list[RdbHeader]]:
        """Judge the directory, make it if it is missing, lock it; who works in it and what lies there.

        **Blocks** on the disk.
        """
        facts = look_at_directory(data_dir, account.uid, tuple(account.groups), 2000)
        judge_redis_directory(facts, account.uid, account.name)
        if facts.kind == "missing":
            make_private(data_dir, account, self.name)
        if not self.lock(data_dir):
            raise DataDirectoryError(self.name, str(data_dir), "another zComm uses it", "stop it there")
        require_space(self.name, data_dir, self.context.space[1])
        return users_of(data_dir), look_at_data(data_dir), read_rdb_headers(self.name, data_dir)

    async def _nobody_in(self, data_dir: Path) -> None:
        """No other server works there; a child of a dead one that still saves is ended."""
        for _ in range(100):
            users = await self.in_thread(users_of, data_dir)
            if not users:
                return
            for pid, name in users:
                try:
                    process = psutil.Process(pid)
                    title = " ".join(process.cmdline()[:1])
                    orphan = process.ppid() in (0, 1, os.getpid()) or not psutil.pid_exists(process.ppid())
                except psutil.Error:
                    continue
                if not (orphan and title.startswith(_SAVERS)):
                    reason = f"is in use by {name} (pid {pid}); zComm did not start that"
                    raise DataDirectoryError(
                        self.name,
                        str(data_dir),
                        reason,
                        f"stop that process first (kill {pid}), or give another data directory",
                    )
                process.kill()
            await pause(self.context.reactor, 0.02)
        raise DataDirectoryError(self.name, str(data_dir), "is still in use", "end the processes in it")

    async def _choose(self, options: Options, headers: list[RdbHeader], account: Account) -> Installation:
        known = self._installation
        if known is not None and not options.bin_dir and known.server.exists():
            return redis_for([known], headers)
        found = await discover(self.name, self.context.environ, options.bin_dir, reactor=self.context.reactor)
        chosen = redis_for(found, headers)
        if os.geteuid() == 0:
            chosen = await self.in_thread(
                reachable_installation, chosen, account.uid, account.groups, self.home.root / "programs", self.name
            )
        if not options.bin_dir:
            self._installation = chosen
        return chosen

    def _write_config(
        self,
        options: Options,
        installation: Installation,
        account: Account,
        data_dir: Path,
        run: Path,
        port: int,
        appendonly: bool,
    ) -> Path:
        password = options.password or self._password() or secrets.token_urlsafe(24)
        if password != self._password():
            replace_file(self.home.directory / "secret.json", _json_secret(password))
        addresses = ("127.0.0.1", "-::1") if installation.version >= (6, 2) else ("127.0.0.1",)
        text = config_text(
            installation.flavour,
            installation.version,
            {
                "bind": addresses,
                "port": str(port),
                "requirepass": password,
                "dir": str(data_dir),
                "unixsocket": str(run / _SOCKET),
                "appendonly": "yes" if appendonly else "no",
                "appendfsync": options.get("appendfsync", "everysec"),
            },
        )
        path = self.home.run / "redis.conf"
        owner = (account.uid, account.gid) if os.geteuid() == 0 else (-1, -1)
        replace_file(path, text.encode(), *owner)
        return path

    # -- ready, alive ------------------------------------------------------------------------------------

    async def become_ready(self, process: ServerProcess) -> None:
        """PONG from our own child; loading its data may take its time as long as it says so."""
        socket = Path(self.record.socket_dir, _SOCKET)
        for _ in range(_LOOKS):
            if socket.exists():
                break
            await pause(self.context.reactor, 0.001)
        loading = 0
        while True:
            try:
                reply = await self.ask(self.declaration.ready.timeout)
            except NoAnswer:
                reply = Reply(False)
            ours = reply.facts.get("process_id") == str(process.pid)
            if reply.ready and ours:
                break
            if reply.health is Health.LOADING and ours:
                self.extend()
                left = reply.facts.get("loading_eta_seconds", "?")
                self.become(ServiceState.STARTING, health=Health.LOADING, progress=f"loading its data, {left} s left")
                # A small append-only file is loaded in no time, a large one is not to be asked all the time.
                loading += 1
                await pause(self.context.reactor, min(0.05, 0.001 * loading))
            await pause(self.context.reactor, self.declaration.ready.every)
        self.record = replace(self.record, identity=reply.facts.get("run_id", ""))
        wanted = self.options.get("appendfsync") if self.options else None
        if wanted and isinstance(process, AdoptedProcess):
            await self._tell("CONFIG", "SET", "appendfsync", wanted)
        if self._switch_on:
            self._switch_on = False
            await self._switch_to_appendonly()

    async def _switch_to_appendonly(self) -> None:
        """Return when the append-only file holds all the data: until then a crash would lose what is written."""
        answer = await self._tell("CONFIG", "SET", "appendonly", "yes")
        self.log.info("{name}: append-only file switched on: {answer}", name=self.name, answer=answer)
        while True:
            try:
                facts = (await self.ask(self.declaration.ready.timeout)).facts
            except NoAnswer:
                continue
            if facts.get("aof_rewrite_in_progress", "0") == facts.get("aof_rewrite_scheduled", "0") == "0":
                # One that failed is tried again by the server itself; the liveness questions tell of it.
                return
            self.extend()
            self.become(ServiceState.STARTING, progress="writing its append-only file")
            await pause(self.context.reactor, 0.01)

    def ask(self, timeout: float) -> Deferred[Reply]:
        """AUTH, PING and INFO on its port."""
        address = (self.declaration.host, self.record.port)
        question = ask_redis(self.context.reactor, address, self._password(), timeout)

        def full(failure: Failure) -> Reply:
            # At maxclients it says so and closes at once; what we sent meanwhile makes the system drop
            # what it said. Either way it lives.
            failure.trap(HungUp)
            return Reply(True, Health.SATURATED, "it hangs up on new clients: there is no room for more")

        return question.addErrback(full)

    async def recognise(self, record: Record) -> bool:
        """The process that answers to our password is the one of the record."""
        address = (record.host, record.port)
        try:
            reply: Reply = await ask_redis(self.context.reactor, address, self._password(), 2.0)
        except NoAnswer:
            # It may hang, or be suspended: then where it stands must do.
            users = await self.in_thread(users_of, Path(record.data_dir))
            return record.pid in [pid for pid, _ in users] and self.lock(Path(record.data_dir))
        return reply.facts.get("process_id") == str(record.pid) and self.lock(Path(record.data_dir))

    # -- stop ----------------------------------------------------------------------------------------------

    async def _tell(self, *words: str, timeout: float = 5.0) -> str:
        """One command; its reply, errors with their ``-``. :raises NoAnswer: also when it hung up."""
        password = self._password()
        request = (encode_resp("AUTH", password) if password else b"") + encode_resp(*words)
        count = 2 if password else 1
        address = (self.declaration.host, self.record.port)
        answer = ask(self.context.reactor, address, request, lambda data: parse_resp(data, count), timeout)
        replies: list[str] = await answer
        return replies[-1]

    async def before_stop(self, process: ServerProcess, force: bool) -> None:
        """``SHUTDOWN``, which saves first.

        :raises ServiceStopFailed: when it cannot save (a full disk) and was not forced: it goes on running,
            because what it holds in memory is nowhere else.
        """
        # One that is suspended (SIGSTOP) accepts the command and never answers it.
        process.signal(signal.SIGCONT)
        try:
            answer = await self._tell("SHUTDOWN", timeout=SHUTDOWN_TIMEOUT)
            if answer.startswith("-BUSY"):
                self.log.warn("{name}: ending the script that keeps it busy", name=self.name)
                await self._tell("SCRIPT", "KILL")
                await pause(self.context.reactor, 0.05)
                answer = await self._tell("SHUTDOWN", timeout=SHUTDOWN_TIMEOUT)
                if answer.startswith("-BUSY"):
                    answer = await self._tell("SHUTDOWN", "NOSAVE")
            if answer.startswith("-ERR Errors trying to SHUTDOWN"):
                if not force:
                    raise ServiceStopFailed(
                        self.name,
                        "it cannot save its data and goes on running; its log says why",
                        "make room or repair the directory; force=True stops it and loses what is not saved",
                    )
                self.log.warn("{name}: stopped without saving, as it was forced", name=self.name)
                await self._tell("SHUTDOWN", "NOSAVE", "FORCE")
        except NoAnswer:
            # That is how success looks: it hangs up and ends. Otherwise the ladder follows.
            await process.exited_within(2.0)

    # -- how to reach it -----------------------------------------------------------------------------------

    def connection_info(self) -> ConnectionInfo:
        """The URL with the password, the socket and ``redis-cli``'s command."""
        port, host, password = self.port(), self.declaration.host, self._password()
        # With an empty user redis-cli sends one, and is refused; "default" is who a bare password means.
        login = f"default:{quote(password, safe='')}@" if password else ""
        url = f"redis://{login}{host}:{port}/0"
        environment = {"REDIS_URL": url}
        if password:
            environment["REDISCLI_AUTH"] = password
        run = self.socket_dir()
        client = shutil.which("redis-cli") or shutil.which("valkey-cli") or "redis-cli"
        socket = str(Path(run) / _SOCKET) if run else ""
        return ConnectionInfo(
            host, port, url, "0", "default", password, socket, f"{client} -h {host} -p {port}", True, environment
        )

    async def foreign(self) -> ServiceStatus | None:
        """The Redis on our port that somebody else runs."""
        port = self.port()
        try:
            reply: Reply = await ask_redis(self.context.reactor, (self.declaration.host, port), "", 1.0)
        except NoAnswer:
            return None
        holder = await port_holder(port, reactor=self.context.reactor)
        pid = holder.pid if holder else None
        started = psutil.Process(pid).create_time() if pid and psutil.pid_exists(pid) else None
        return ServiceStatus(
            self.name,
            ServiceState.RUNNING,
            pid,
            self.declaration.host,
            port,
            started,
            reply.health,
            "another server that zComm does not manage",
            managed=False,
            version=reply.facts.get("redis_version", ""),
            user=holder.user if holder else "",
        )


def _json_secret(password: str) -> bytes:
    return json.dumps({"password": password}).encode()
