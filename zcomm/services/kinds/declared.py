"""A service a user declared: anything with a command, a port and a way to see that it works."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

import psutil
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import deferLater

from zcomm.errors import ServiceNotInstalled, ServiceStartFailed
from zcomm.services.declaration import Probe, Settings, fill
from zcomm.services.machine.account import Account, blocked_by, choose_account
from zcomm.services.machine.command import run_command
from zcomm.services.machine.identity import processes_marked
from zcomm.services.machine.logfile import LogFile, LogPlace
from zcomm.services.machine.query import NoAnswer
from zcomm.services.options import Options
from zcomm.services.status import ConnectionInfo, Health
from zcomm.services.supervision.context import ServiceContext
from zcomm.services.supervision.kind import Kind
from zcomm.services.supervision.launch import Launch, command_line, server_environment
from zcomm.services.supervision.probes import Reply, ask_http, ask_tcp
from zcomm.services.supervision.process import ServerProcess
from zcomm.services.supervision.record import Record

__all__ = ["DeclaredService"]

#: Bytes at the end of a log that are searched at most for what it said before the first question.
LOOKBACK = 1 << 20


class DeclaredService(Kind):
    """A service that is nothing but its declaration.

    Its command may be a shell, which ends without what it runs.
    """

    ends_whole = False

    def __init__(self, service: ServiceContext):
        super().__init__(service)
        #: How far the log of this run was searched for each probe, and for which it was found.
        self._searched: dict[Probe, LogPlace] = {}
        self._found: set[Probe] = set()

    async def prepare(self, options: Options) -> Launch:
        """Resolve the command, the port and the directory."""
        service = self.service
        data_dir = options.data_dir or service.home.data
        account = service.account_for(data_dir, options.user)
        service.claim_home(account)
        facts = await service.in_thread(service.look_at_data_dir, data_dir, account, 0)
        service.claim_data_dir(data_dir, facts, account)
        port = await service.choose_port(options.port)
        settings = Settings(service.declaration.host, port, str(data_dir), account.name)
        words = service.declaration.command(settings)
        if not words:
            raise ServiceStartFailed(service.name, "its declaration has no command", permanent=True)
        program = self._program(words[0], account)
        service.about_to_start(port, data_dir, account, socket_dir=service.home.run)
        return service.launch([program, *words[1:]], account, str(data_dir), self._variables(settings))

    def _program(self, word: str, account: Account) -> str:
        """The first program of that name on the PATH that the account may run."""
        blocked = ""
        for directory in self.service.environment.environ.get("PATH", os.defpath).split(os.pathsep):
            path = shutil.which(word, path=directory)
            if path is None:
                continue
            path = os.path.abspath(path)
            obstacle = blocked_by(Path(path), account.uid, account.groups | {account.gid}, wanted=1)
            if obstacle is None:
                return path
            blocked = blocked or f"{account.name} may not run {path}: {obstacle} is closed to it"
        if blocked:
            raise ServiceStartFailed(self.service.name, blocked, "name another account with user=…", permanent=True)
        raise ServiceNotInstalled(
            self.service.name,
            f"the program {word!r} is not on this machine",
            "install it, or give its full path in the declaration",
        )

    def _variables(self, settings: Settings) -> dict[str, str]:
        return {name: fill(value, settings) for name, value in self.service.declaration.environment.items()}

    # -- ready, alive ------------------------------------------------------------------------------------

    async def become_ready(self, process: ServerProcess) -> None:
        """The readiness probe succeeds, and the port is our own process's."""
        service = self.service
        probe, port = service.declaration.ready, service.record.port
        self._searched, self._found = {}, set()
        while True:
            try:
                reply = await self._ask(probe, service.record, probe.timeout)
            except NoAnswer:
                reply = Reply(False)
            if reply.ready and (not port or await service.in_thread(_listens, process.pid, port, service.record.mark)):
                service.identified(process.identity)
                return
            await deferLater(service.environment.reactor, probe.every)

    def ask(self, record: Record, timeout: float) -> Deferred[Reply]:
        """The liveness probe; a service without one lives as long as its process."""
        return self._ask(self.service.declaration.alive or Probe("none"), record, timeout)

    def _ask(self, probe: Probe, record: Record, timeout: float) -> Deferred[Reply]:
        environment, address = self.service.environment, (self.service.declaration.host, record.port)
        match probe.kind:
            case "none":
                return succeed(Reply(True))
            case "tcp":
                return ask_tcp(environment.reactor, address, timeout)
            case "http":
                return ask_http(environment.reactor, address, probe.path, timeout)
            case "exec":
                return Deferred.fromCoroutine(self._run(probe, record, timeout))
            case "log":
                return Deferred.fromCoroutine(self._search(probe))
            case kind:
                return environment.protocols[kind](environment.reactor, address, timeout)

    async def _search(self, probe: Probe) -> Reply:
        """Search what is new in the log, in a thread: there are patterns for which a second goes into a megabyte."""
        if probe not in self._found:
            log, place = self.service.home.log, self._searched.get(probe)

            def search() -> tuple[bool, LogPlace]:
                lines, after = log.lines_after(place or log.place(LOOKBACK, self.service.log_start))
                return any(map(probe.found_in, lines)), after

            found, self._searched[probe] = await self.service.in_thread(search)
            if found:
                self._found.add(probe)
        return Reply(probe in self._found)

    async def _run(self, probe: Probe, record: Record, timeout: float) -> Reply:
        environment = self.service.environment
        settings = Settings(self.service.declaration.host, record.port, record.data_dir, record.user)
        account = choose_account(Path(record.data_dir), "", (), environment.environ)
        variables = server_environment(environment.environ, account, self._variables(settings))
        words = [fill(word, settings) for word in probe.argv]
        program = self._program(words[0], account)
        launch = Launch(
            argv=(program, *words[1:]), log=LogFile(Path(os.devnull)), account=account, environment=variables
        )
        argv = command_line(launch, environment.tools)
        status, output = await run_command(environment.reactor, argv, variables, timeout)
        if status == 0:
            return Reply(True)
        return Reply(False, Health.DEGRADED, f"its probe ended with {status}: {output.strip()[-200:]}")

    async def recognise(self, record: Record) -> bool:
        """The start of the process proves it; the lock of its directory goes with it."""
        return self.service.lock(Path(record.data_dir))

    # -- how to reach it -----------------------------------------------------------------------------------

    def connection_info(self) -> ConnectionInfo:
        """The declared URL with the settings filled in."""
        declaration = self.service.declaration
        port = self.service.port() if declaration.port else 0
        settings = Settings(declaration.host, port, str(self.service.data_dir()), self.service.record.user)
        url = fill(declaration.url, settings)
        name = declaration.name.upper().replace("-", "_")
        return ConnectionInfo(
            host=declaration.host,
            port=port,
            connection_string=url,
            command=shlex.join(["curl", url]) if url.startswith("http") else "",
            environment={f"{name}_URL": url} if url else {},
        )


def _listens(pid: int, port: int, mark: str) -> bool:
    """Whether the process, a child of it or what else it started listens on the port; True where the system does not
    tell."""
    try:
        server = psutil.Process(pid)
        if any(_has(process, port) for process in (server, *server.children(recursive=True))):
            return True
        return any(_has(psutil.Process(started), port) for started, _ in processes_marked(mark, pid))
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def _has(process: psutil.Process, port: int) -> bool:
    return any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in process.net_connections("tcp"))
