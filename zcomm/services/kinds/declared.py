"""A service a user declared: anything with a command, a port and a way to see that it works."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from twisted.internet.defer import Deferred, succeed

from zcomm.errors import DataDirectoryError, ServiceNotInstalled, ServiceStartFailed
from zcomm.services.declaration import Probe, Settings, fill
from zcomm.services.options import Options, read_options
from zcomm.services.status import ConnectionInfo, Health
from zcomm.services.supervision.access import blocked_by
from zcomm.services.supervision.account import Account, choose_account
from zcomm.services.supervision.command import run_command
from zcomm.services.supervision.directories import judge_redis_directory, look_at_directory
from zcomm.services.supervision.environment import make_private
from zcomm.services.supervision.launch import Launch, command_line, server_environment
from zcomm.services.supervision.logfile import LogFile
from zcomm.services.supervision.probes import Reply, ask_http, ask_postgresql, ask_redis, ask_tcp
from zcomm.services.supervision.process import ManagedProcess, ServerProcess
from zcomm.services.supervision.query import NoAnswer, pause
from zcomm.services.supervision.record import Record
from zcomm.services.supervision.supervisor import Supervised

__all__ = ["DeclaredService"]


class DeclaredService(Supervised):
    """A service that is nothing but its declaration."""

    def read_options(self, arguments: Mapping[str, Any]) -> Options:
        """``data_dir``, ``port`` and ``user``."""
        return read_options(self.declaration, arguments, self.context.environ)

    def account(self) -> Account:
        """The declared account, or whoever root's servers run as."""
        usual = (self.declaration.user,) if self.declaration.user else ()
        return choose_account(Path("/nonexistent"), "", usual, self.context.environ)

    async def prepare(self, options: Options) -> Launch:
        """Resolve the command, the port and the directory."""
        data_dir = options.data_dir or self.home.data
        account = choose_account(data_dir, options.user, (), self.context.environ)
        self.home.make()
        if not self.lock(self.home.directory):
            raise self.refuse_second()
        self.home.make_run(account)
        facts = await self.in_thread(look_at_directory, data_dir, account.uid, tuple(account.groups), 0)
        judge_redis_directory(facts, account.uid, account.name, self.name)
        if facts.kind == "missing":
            make_private(data_dir, account, self.name)
        if not self.lock(data_dir):
            raise DataDirectoryError(self.name, str(data_dir), "another zComm uses it", "stop it there")
        port = await self.choose_port(options.port)
        settings = Settings(self.declaration.host, port, str(data_dir), account.name)
        words = self.declaration.command(settings)
        if not words:
            raise ServiceStartFailed(self.name, "its declaration has no command", permanent=True)
        program = self._program(words[0], account)
        self.record = Record(
            0,
            "",
            self.declaration.host,
            port,
            str(data_dir),
            0.0,
            "",
            account.name,
            "",
            str(self.home.log.path),
            str(self.home.run),
        )
        lasting = self.context.lifetime == "persistent"
        return Launch(
            (program, *words[1:]),
            self.home.log,
            account,
            self._environment(account, settings),
            None if lasting else self.declaration.parent_death_signal,
            str(data_dir),
        )

    def _program(self, word: str, account: Account) -> str:
        """The first program of that name on the PATH that the account may run."""
        blocked = ""
        for directory in self.context.environ.get("PATH", os.defpath).split(os.pathsep):
            path = shutil.which(word, path=directory)
            if path is None:
                continue
            path = os.path.abspath(path)
            obstacle = blocked_by(Path(path), account.uid, account.groups | {account.gid}, wanted=1)
            if obstacle is None:
                return path
            blocked = blocked or f"{account.name} may not run {path}: {obstacle} is closed to it"
        if blocked:
            raise ServiceStartFailed(self.name, blocked, "name another account with user=…", permanent=True)
        raise ServiceNotInstalled(
            self.name,
            f"the program {word!r} is not on this machine",
            "install it, or give its full path in the declaration",
        )

    def _environment(self, account: Account, settings: Settings) -> dict[str, str]:
        extra = {name: fill(value, settings) for name, value in self.declaration.environment.items()}
        return server_environment(self.context.environ, account, extra)

    # -- ready, alive ------------------------------------------------------------------------------------

    async def become_ready(self, process: ServerProcess) -> None:
        """The readiness probe succeeds, and the port is our own process's."""
        probe = self.declaration.ready
        while True:
            try:
                reply = await self._ask(probe, probe.timeout)
            except NoAnswer:
                reply = Reply(False)
            port = self.record.port
            if reply.ready and (not port or await self.in_thread(_listens, process.pid, port)):
                self.record = replace(self.record, identity=process.stamp)
                return
            await pause(self.context.reactor, probe.every)

    def ask(self, timeout: float) -> Deferred[Reply]:
        """The liveness probe; a service without one lives as long as its process."""
        return self._ask(self.declaration.alive or Probe("none"), timeout)

    def _ask(self, probe: Probe, timeout: float) -> Deferred[Reply]:
        reactor, address = self.context.reactor, (self.declaration.host, self.record.port)
        if probe.kind == "tcp":
            return ask_tcp(reactor, address, timeout)
        if probe.kind == "http":
            return ask_http(reactor, address, probe.path, timeout)
        if probe.kind == "postgresql":
            return ask_postgresql(reactor, address, "postgres", "postgres", timeout)
        if probe.kind == "redis":
            return ask_redis(reactor, address, "", timeout)
        if probe.kind == "exec":
            return Deferred.fromCoroutine(self._run(probe, timeout))
        if probe.kind == "log":
            since = self.process.log_start if isinstance(self.process, ManagedProcess) else 0
            text = self.home.log.tail(1 << 20, since)
            return succeed(Reply(re.search(probe.pattern, text, re.MULTILINE) is not None))
        return succeed(Reply(True))

    async def _run(self, probe: Probe, timeout: float) -> Reply:
        settings = Settings(self.declaration.host, self.record.port, self.record.data_dir, self.record.user)
        account = choose_account(Path(self.record.data_dir), "", (), self.context.environ)
        environment = self._environment(account, settings)
        words = [fill(word, settings) for word in probe.argv]
        program = self._program(words[0], account)
        launch = Launch((program, *words[1:]), LogFile(Path(os.devnull)), account, environment)
        argv = command_line(launch, self.context.tools)
        status, output = await run_command(self.context.reactor, argv, environment, timeout)
        if status == 0:
            return Reply(True)
        return Reply(False, Health.DEGRADED, f"its probe ended with {status}: {output.strip()[-200:]}")

    async def recognise(self, record: Record) -> bool:
        """The start of the process proves it; the lock of its directory goes with it."""
        return self.lock(Path(record.data_dir))

    # -- how to reach it -----------------------------------------------------------------------------------

    def connection_info(self) -> ConnectionInfo:
        """The declared URL with the settings filled in."""
        port = self.port() if self.declaration.port else 0
        settings = Settings(self.declaration.host, port, str(self.data_dir()))
        url = fill(self.declaration.url, settings)
        name = self.name.upper().replace("-", "_")
        command = shlex.join(["curl", url]) if url.startswith("http") else ""
        return ConnectionInfo(
            self.declaration.host, port, url, command=command, environment={f"{name}_URL": url} if url else {}
        )


def _listens(pid: int, port: int) -> bool:
    """Whether the process or a child of it listens on the port; True where the system does not tell."""
    try:
        server = psutil.Process(pid)
        return any(
            one.status == psutil.CONN_LISTEN and one.laddr.port == port
            for process in (server, *server.children(recursive=True))
            for one in process.net_connections("tcp")
        )
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True
