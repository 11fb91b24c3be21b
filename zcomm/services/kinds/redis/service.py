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
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.errors import DataDirectoryError, ServiceStartFailed, ServiceStopFailed
from zcomm.runtime.files import replace_file
from zcomm.services.declaration import Probe, ServiceDeclaration, StopStep
from zcomm.services.kinds.redis.config import FILES, RedisData, config_text, look_at_data, plan_appendonly
from zcomm.services.kinds.redis.examiner import RedisExaminer
from zcomm.services.kinds.redis.log import LOG
from zcomm.services.kinds.redis.programs import PROGRAMS, redis_for
from zcomm.services.kinds.redis.protocol import ask_redis, encode_resp, parse_resp
from zcomm.services.kinds.redis.rdb import RdbHeader, read_rdb_headers
from zcomm.services.machine.account import Account
from zcomm.services.machine.directories import require_space
from zcomm.services.machine.identity import stands_in, users_of
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.programs import discover
from zcomm.services.machine.query import Address, HungUp, NoAnswer, ask
from zcomm.services.options import BIN_DIR, PASSWORD, Options, Setting
from zcomm.services.status import ConnectionInfo, Health, ServiceStatus
from zcomm.services.supervision.context import ServiceContext
from zcomm.services.supervision.kind import KnownKind
from zcomm.services.supervision.launch import Launch
from zcomm.services.supervision.probes import Reply
from zcomm.services.supervision.process import AdoptedProcess, ServerProcess
from zcomm.services.supervision.record import Record, read_json

__all__ = ["REDIS", "RedisService"]

REDIS = ServiceDeclaration(
    "redis",
    kind="redis",
    port=6379,
    ready=Probe("redis", every=0.002),
    alive=Probe("redis", every=2.0, timeout=2.0),
    stop=(StopStep(signal.SIGTERM, 10.0), StopStep(signal.SIGKILL, 5.0)),
    url="redis://{host}:{port}/0",
    parent_death_signal=signal.SIGTERM,
)
#: Seconds an orderly shutdown may take; it writes all the data.
SHUTDOWN_TIMEOUT = 60.0
_SOCKET = "redis.sock"
#: How often to look for its socket, a millisecond each, before it is asked: it listens then, and a look costs
#: far less than a question in vain.
_LOOKS = 100
_SAVERS = ("redis-rdb-bgsave", "redis-aof-rewrite", "valkey-rdb-bgsave", "valkey-aof-rewrite")


class RedisService(KnownKind):
    """Redis, Valkey or KeyDB.

    Settings of a start, besides ``data_dir``, ``port`` and ``user``: ``bin_dir``, ``password`` (a random
    one by default), ``appendonly`` (True by default) and ``appendfsync``, or ``REDIS_APPENDFSYNC``:
    ``"everysec"``, the default, may lose what was acknowledged in the last moments before a crash;
    ``"always"`` loses nothing that was acknowledged, and writes as slowly as the disk.
    """

    name = "redis"
    declaration = REDIS
    accounts = ("redis", "valkey")
    settings = (
        BIN_DIR,
        PASSWORD,
        Setting("appendonly", bool, "keep an append-only file (on)"),
        Setting(
            "appendfsync",
            ("everysec", "always"),
            "what a crash may lose: the last moments, or nothing acknowledged [REDIS_APPENDFSYNC, else everysec]",
            variable="REDIS_APPENDFSYNC",
        ),
    )
    programs = PROGRAMS
    log = LOG
    examiner = RedisExaminer()
    _log = Logger()

    def __init__(self, service: ServiceContext):
        super().__init__(service)
        self._installation: Installation | None = None
        self._switch_on = False

    def secrets(self) -> tuple[str, ...]:
        """The password of the server."""
        return tuple(word for word in (self._password(),) if word)

    def _password(self) -> str:
        known = read_json(self.service.home.directory / "secret.json").get("password")
        return known if isinstance(known, str) else ""

    # -- before it is spawned ------------------------------------------------------------------------------

    async def prepare(self, options: Options) -> Launch:
        """Check everything, write the configuration, and say how to run the server."""
        service = self.service
        data_dir = options.data_dir or service.home.data
        account = service.account_for(data_dir, options.user)
        service.claim_home(account)
        # One visit to a thread for all of it: on a busy machine each visit costs more than the looking.
        users, data, headers = await service.in_thread(self._look, data_dir, account)
        if users:
            await self._nobody_in(data_dir)
            users, data, headers = await service.in_thread(self._look, data_dir, account)
        appendonly, self._switch_on = plan_appendonly(service.name, data_dir, data, options.get("appendonly"))
        installation = await self._choose(options, headers, account)
        port = await service.choose_port(options.port)
        run = service.run_dir(_SOCKET, account)
        # One that was killed left it.
        (run / _SOCKET).unlink(missing_ok=True)
        config = self._write_config(options, installation, account, data_dir, run, port, appendonly)
        service.about_to_start(port, data_dir, account, version=installation.version_text, socket_dir=run)
        return service.launch((str(installation.server), str(config)), account)

    def _look(self, data_dir: Path, account: Account) -> tuple[list[tuple[int, str]], RedisData, list[RdbHeader]]:
        """Judge the directory, make it if it is missing, lock it; the processes in it and what lies there.

        **Blocks** on the disk.
        """
        service = self.service
        facts = service.look_at_data_dir(data_dir, account, 2000)
        service.claim_data_dir(data_dir, facts, account, FILES)
        require_space(service.name, data_dir, service.environment.space[1])
        return users_of(data_dir), look_at_data(data_dir), read_rdb_headers(service.name, data_dir)

    async def _nobody_in(self, data_dir: Path) -> None:
        """No other server works there; a child of a dead one that still saves is ended."""
        for _ in range(100):
            users = await self.service.in_thread(users_of, data_dir)
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
                        self.service.name,
                        str(data_dir),
                        reason,
                        f"stop that process first (kill {pid}), or give another data directory",
                    )
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            await deferLater(self.service.environment.reactor, 0.02)
        raise DataDirectoryError(self.service.name, str(data_dir), "is still in use", "end the processes in it")

    async def _choose(self, options: Options, headers: list[RdbHeader], account: Account) -> Installation:
        known = self._installation
        if known is not None and not options.bin_dir and known.server.exists():
            return redis_for([known], headers, self.service.name)
        environment = self.service.environment
        found = await discover(
            PROGRAMS, environment.environ, options.bin_dir, environment.reactor, service=self.service.name
        )
        chosen = await self.service.reachable(redis_for(found, headers, self.service.name), account)
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
            replace_file(self.service.home.directory / "secret.json", _json_secret(password))
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
        path = self.service.home.run / "redis.conf"
        owner = (account.uid, account.gid) if os.geteuid() == 0 else (-1, -1)
        replace_file(path, text.encode(), *owner, durable=False)
        return path

    # -- ready, alive ------------------------------------------------------------------------------------

    async def become_ready(self, process: ServerProcess) -> None:
        """PONG from our own child; loading its data may take its time as long as it says so."""
        ready, reactor = self.service.declaration.ready, self.service.environment.reactor
        socket = Path(self.service.record.socket_dir, _SOCKET)
        for _ in range(_LOOKS):
            if socket.exists():
                break
            await deferLater(self.service.environment.reactor, 0.001)
        loading = 0
        while True:
            try:
                reply = await self.ask(self.service.record, ready.timeout)
            except NoAnswer:
                reply = Reply(False)
            ours = reply.facts.get("process_id") == str(process.pid)
            if reply.ready and ours:
                break
            if reply.health is Health.LOADING and ours:
                left = reply.facts.get("loading_eta_seconds", "?")
                self.service.progress(f"loading its data, {left} s left", Health.LOADING)
                # A small append-only file is loaded in no time, a large one is not to be asked all the time.
                loading += 1
                await deferLater(self.service.environment.reactor, min(0.05, 0.001 * loading))
            await deferLater(reactor, ready.every)
        self.service.identified(reply.facts.get("run_id", ""))
        options = self.service.options
        wanted = options.get("appendfsync") if options else None
        if wanted and isinstance(process, AdoptedProcess):
            await self._tell("CONFIG", "SET", "appendfsync", wanted)
        if self._switch_on:
            self._switch_on = False
            await self._switch_to_appendonly()

    async def _switch_to_appendonly(self) -> None:
        """Return when the append-only file holds all the data: until then a crash would lose what is written."""
        ready = self.service.declaration.ready
        answer = await self._tell("CONFIG", "SET", "appendonly", "yes")
        self._log.info("{name}: append-only file switched on: {answer}", name=self.service.name, answer=answer)
        while True:
            try:
                facts = (await self.ask(self.service.record, ready.timeout)).facts
            except NoAnswer:
                continue
            if facts.get("aof_rewrite_in_progress", "0") == facts.get("aof_rewrite_scheduled", "0") == "0":
                # One that failed is tried again by the server itself; the liveness questions tell of it.
                return
            self.service.progress("writing its append-only file")
            await deferLater(self.service.environment.reactor, 0.01)

    def ask(self, record: Record, timeout: float) -> Deferred[Reply]:
        """AUTH, PING and INFO on its port."""
        address = (self.service.declaration.host, record.port)
        question = ask_redis(self.service.environment.reactor, address, self._password(), timeout)

        def full(failure: Failure) -> Reply:
            # At maxclients it says so and closes at once; what we sent meanwhile makes the system drop
            # what it said. Either way it lives.
            failure.trap(HungUp)
            return Reply(True, Health.SATURATED, "it hangs up on new clients: there is no room for more")

        return question.addErrback(full)

    @staticmethod
    def question(reactor: Any, address: Address, timeout: float) -> Deferred[Reply]:
        """PING and INFO, without a password."""
        return ask_redis(reactor, address, "", timeout)

    async def recognise(self, record: Record) -> bool:
        """The process stands in the data directory. It need not answer: it may hang, be full, or have another password
        by now."""
        data_dir = Path(record.data_dir)
        return stands_in(record.pid, data_dir) and self.service.lock(data_dir)

    async def require_access(self, record: Record) -> None:
        """It tells whoever has our password which process it is, if it answers at all."""
        address = (record.host, record.port)
        try:
            reply: Reply = await ask_redis(self.service.environment.reactor, address, self._password(), 2.0)
        except NoAnswer:
            return
        if "process_id" not in reply.facts:
            raise ServiceStartFailed(
                self.service.name,
                f"it runs (pid {record.pid}), and lets zComm in no more: {reply.detail or 'it does not answer INFO'}",
                f"give it the password and the rights back that it was started with, or start it anew with: "
                f"zcomm service restart {self.service.name}",
            )

    # -- stop ----------------------------------------------------------------------------------------------

    async def _tell(self, *words: str, timeout: float = 5.0) -> str:
        """One command; its reply, errors with their ``-``. :raises NoAnswer: also when it hung up."""
        password = self._password()
        request = (encode_resp("AUTH", password) if password else b"") + encode_resp(*words)
        count = 2 if password else 1
        address = (self.service.declaration.host, self.service.record.port)
        answer = ask(self.service.environment.reactor, address, request, lambda data: parse_resp(data, count), timeout)
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
                self._log.warn("{name}: ending the script that keeps it busy", name=self.service.name)
                await self._tell("SCRIPT", "KILL")
                await deferLater(self.service.environment.reactor, 0.05)
                answer = await self._tell("SHUTDOWN", timeout=SHUTDOWN_TIMEOUT)
                if answer.startswith("-BUSY"):
                    answer = await self._tell("SHUTDOWN", "NOSAVE")
            if answer.startswith("-ERR Errors trying to SHUTDOWN"):
                if not force:
                    raise ServiceStopFailed(
                        self.service.name,
                        "it cannot save its data and goes on running; its log says why",
                        "make room or repair the directory; force=True stops it and loses what is not saved",
                    )
                self._log.warn("{name}: stopped without saving, as it was forced", name=self.service.name)
                await self._tell("SHUTDOWN", "NOSAVE", "FORCE")
            elif answer.startswith("-") and not force:
                await self._end_unasked(process, answer[1:])
        except NoAnswer:
            # That is how success looks: it hangs up and ends. Otherwise the ladder follows.
            await process.exited_within(2.0)

    async def _end_unasked(self, process: ServerProcess, answer: str) -> None:
        """End one that refuses the command, because its password is another by now, say: the signal has it save too.

        :raises ServiceStopFailed: when it goes on running: it may be unable to save.
        """
        self._log.warn("{name}: gets SIGTERM, as it refuses SHUTDOWN: {answer}", name=self.service.name, answer=answer)
        process.signal(signal.SIGTERM)
        if await process.exited_within(SHUTDOWN_TIMEOUT) is None:
            raise ServiceStopFailed(
                self.service.name,
                f"it refuses SHUTDOWN ({answer}) and goes on running after SIGTERM; its log says why",
                "make room or repair the directory; force=True stops it and loses what is not saved",
            )

    # -- how to reach it -----------------------------------------------------------------------------------

    def connection_info(self) -> ConnectionInfo:
        """The URL with the password, the socket and ``redis-cli``'s command."""
        port, host, password = self.service.port(), self.service.declaration.host, self._password()
        # With an empty user redis-cli sends one, and is refused; "default" is who a bare password means.
        login = f"default:{quote(password, safe='')}@" if password else ""
        url = f"redis://{login}{host}:{port}/0"
        environment = {"REDIS_URL": url}
        if password:
            environment["REDISCLI_AUTH"] = password
        run = self.service.socket_dir()
        client = shutil.which("redis-cli") or shutil.which("valkey-cli") or "redis-cli"
        return ConnectionInfo(
            host=host,
            port=port,
            connection_string=url,
            database="0",
            user="default",
            password=password,
            unix_socket=str(Path(run) / _SOCKET) if run else "",
            command=f"{client} -h {host} -p {port}",
            environment=environment,
        )

    async def foreign(self) -> ServiceStatus | None:
        """The Redis on our port that somebody else runs."""
        port = self.service.port()
        address = (self.service.declaration.host, port)
        try:
            reply: Reply = await self.question(self.service.environment.reactor, address, 1.0)
        except NoAnswer:
            return None
        return await self.service.foreign_status(port, reply.health, reply.facts.get("redis_version", ""))


def _json_secret(password: str) -> bytes:
    return json.dumps({"password": password}).encode()
