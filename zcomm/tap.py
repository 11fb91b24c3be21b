"""``twistd zcomm``: options and environment in, one service out."""

from __future__ import annotations

import atexit
import errno
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any, NoReturn

from twisted.application.service import IService
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python import usage
from twisted.python.failure import Failure

from zcomm.auth.sessions import invite
from zcomm.budget.allocator import give_back_large_memory, settle
from zcomm.config import (
    BROADCAST_MODES,
    MOST_CONNECTIONS,
    RESERVED_FILES,
    Config,
    Limits,
    WebSocketConfig,
    data_directory,
    engine_from_environ,
    file_limit,
    make_data_directory,
    most_connections,
    port_number,
    raise_file_limit,
    threads_from,
)
from zcomm.errors import ConfigError, CredentialsError, Unavailable, ZCommError
from zcomm.host import Host, demo
from zcomm.runtime.process import PidFile, exit_failed, remove_stale_pid_file, wait_for_daemon
from zcomm.runtime.reactor import UvloopReactor, install_if_free
from zcomm.runtime.signals import Signals
from zcomm.runtime.stdio import keep_every_line, use_non_blocking_output
from zcomm.text import did_you_mean, redact_url, some
from zcomm.workers.crew import MOST_WORKERS, Crew
from zcomm.workers.parent import Parent, for_parent

__all__ = ["Options", "makeService"]


def _plain(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


def _absolute(text: str) -> Path:
    # Before twistd changes directory as a daemon. What is above a link's target stays that.
    return Path.cwd() / os.path.expanduser(text)


class Options(usage.Options):
    """The command line of ``twistd zcomm``; each value is checked when it is read."""

    longdesc = (
        "Serve WebSocket clients, the demo page and local database servers. Without options: a SQLite database "
        "with a demo model, on http://127.0.0.1:56891/, for whoever holds a token: zcomm token show. "
        "An option wins over the environment: WEBSOCKET_PORT, WEBSOCKET_HOST, WEBSOCKET_REQUIRE_AUTH, "
        "WEBSOCKET_ALLOWED_ORIGINS, ZCOMM_DATABASE, ZCOMM_BROADCAST, ZCOMM_TRUSTED_PROXY, "
        "ZCOMM_THREADS, ZCOMM_ENGINE, ZCOMM_WORKERS, ZCOMM_WWW, ZCOMM_HOME"
    )

    optFlags = [
        ["no-auth", None, "let everybody in as anonymous, role guest (testing; loopback only)"],
        ["insecure", None, "allow --no-auth on an interface that others can reach"],
        ["no-web", None, "serve no page, client file, health report or metrics on the port"],
        ["compression", None, "accept permessage-deflate from clients that offer it"],
    ]

    optParameters = [
        ["port", "p", None, "port to listen on; 0 picks a free one [WEBSOCKET_PORT, else 56891]"],
        ["host", None, None, "interface to listen on [WEBSOCKET_HOST, else 127.0.0.1]"],
        [
            "database",
            None,
            None,
            "SQLAlchemy URL, or service:postgresql for the managed one "
            "[ZCOMM_DATABASE, else SQLite in the data directory]",
        ],
        [
            "engine",
            None,
            None,
            "what carries changes and topics between processes and machines: memory, for one process alone; the URL of "
            "a Redis or Valkey (redis://, rediss://, unix://, redis+sentinel://, redis+cluster://); or service:redis "
            "for the managed one [ZCOMM_ENGINE, else memory]",
        ],
        [
            "ack",
            None,
            None,
            "what a published message has survived when it is acknowledged: memory (the engine has it), fsync (it is "
            "on the engine's disk) or replica (its replicas have it) [memory]",
        ],
        ["files", None, None, "the only directory that zOpen may read [none: zOpen refuses]"],
        ["www", None, None, "a directory whose files anybody gets: its index.html is the page [ZCOMM_WWW, else none]"],
        ["policy", None, None, "YAML file that grants each role its rights [everybody may do everything]"],
        ["topics", None, None, "YAML file of the kinds of topics that there are [any name is a topic]"],
        [
            "broadcast",
            None,
            None,
            f"which results others hear of: {', '.join(BROADCAST_MODES)}; all includes those made for one person "
            "[ZCOMM_BROADCAST, else changes]",
        ],
        [
            "workers",
            None,
            None,
            "processes that serve clients; with more than one the parent only keeps them [ZCOMM_WORKERS, else 1]",
        ],
        ["threads", None, None, "worker threads, for plain functions and commands [ZCOMM_THREADS, else 10]"],
        ["data-dir", None, None, "databases, tokens, service data, logs [ZCOMM_HOME, else ~/.zolo/zcomm]"],
        *(
            [
                item.name.replace("_", "-"),
                None,
                None,
                item.metadata["what"] + ("" if item.default is MISSING else f" [{_plain(item.default)}]"),
            ]
            for item in fields(Limits)
        ),
    ]

    _wrong = False

    def __init__(self) -> None:
        super().__init__()
        # The command line is read before anything needs a reactor: the last moment to choose one.
        install_if_free()
        for name in ("allowed-origin", "listen", "trusted-proxy", "schema", "functions", "service", "services"):
            self[name] = []

    def getUsage(self, width: int | None = None) -> str:
        """The help, with the limits apart from what most people want to set."""
        if self._wrong:
            # twistd prints this before it says what is wrong, which must not be far below.
            return "`twistd zcomm --help` lists the options.\n"
        # What starts services takes a while to load, and of the options only their help needs it.
        from zcomm.services.kinds import KINDS
        from zcomm.services.options import variables

        limits = {item.name.replace("_", "-") + "=" for item in fields(Limits)}
        options, about = self.longOpt, self.longdesc
        of_services = [variable for kind in KINDS for variable in variables(kind.declaration, kind.settings)]
        try:
            self.longOpt, self.longdesc = [each for each in options if each not in limits], ""
            everyday = super().getUsage(width)
            self.longOpt, self.longdesc = sorted(limits), ", ".join((about, *of_services)) + "."
            return f"{everyday}\n{super().getUsage(width).replace('Options:', 'Limits:', 1)}"
        finally:
            self.longOpt, self.longdesc = options, about

    def parseOptions(self, options: list[str] | None = None) -> None:
        """Read the command line.

        :raises twisted.python.usage.UsageError: naming the option or variable that is wrong.
        """
        try:
            super().parseOptions(options)
        except usage.UsageError as error:
            self._wrong = True
            unknown = re.fullmatch(r"option --(\S+) not recognized", str(error))
            if unknown is None:
                raise
            hint = did_you_mean(unknown[1], [option.removesuffix("=") for option in self.longOpt])
            raise usage.UsageError(f"{error}{hint}") from None
        # The last moment before twistd looks at it.
        if self.parent is not None and (path := self.parent.get("pidfile")):
            remove_stale_pid_file(path)

    def opt_allowed_origin(self, origin: str) -> None:
        """an exact origin whose pages are let in, or @FILE with one a line, read again on SIGHUP; repeatable
        [WEBSOCKET_ALLOWED_ORIGINS, else loopback origins only]"""
        self["allowed-origin"].append(origin)

    def opt_listen(self, endpoint: str) -> None:
        """a Twisted endpoint to listen on instead of host and port (ssl:..., unix:...); repeatable"""
        self["listen"].append(endpoint)

    def opt_trusted_proxy(self, address: str) -> None:
        """a proxy whose X-Forwarded-For is believed: an address, a network, or unix; repeatable
        [ZCOMM_TRUSTED_PROXY, else none]"""
        self["trusted-proxy"].append(address)

    def opt_schema(self, path: str) -> None:
        """a zSchema YAML file; repeatable [a demo schema]"""
        self["schema"].append(_absolute(path))

    def opt_functions(self, module: str) -> None:
        """a Python module whose registered functions zFunc may call; repeatable"""
        self["functions"].append(module)

    def opt_service(self, name: str) -> None:
        """start this local service with the server and stop it with it; repeatable"""
        self["service"].append(name)

    def opt_services(self, path: str) -> None:
        """a YAML file that declares further services; repeatable"""
        self["services"].append(_absolute(path))

    def postOptions(self) -> None:
        """Check everything that can be checked without touching anything.

        :raises twisted.python.usage.UsageError: naming the option or variable.
        """
        try:
            self["config"] = self._config()
            self["count"] = worker_count(os.environ, self["workers"])
            if self["count"] > 1 and self["engine"] == "memory":
                raise ConfigError(
                    "--engine",
                    "memory is for one process alone; leave it out, and workers share zComm's own Redis",
                )
        except ConfigError as error:
            raise usage.UsageError(str(error)) from None

    def _config(self) -> Config:
        limits: dict[str, Any] = {}
        for item in fields(Limits):
            text = self[item.name.replace("_", "-")]
            if text is not None:
                limits[item.name] = _number("--" + item.name.replace("_", "-"), text, whole=item.type == "int")
        environ = os.environ
        websocket = WebSocketConfig.from_environ(
            environ,
            port=None if self["port"] is None else port_number("--port", self["port"]),
            host=self["host"],
            require_auth=False if self["no-auth"] else None,
            allowed_origins=tuple(self["allowed-origin"]) or None,
            broadcast=self["broadcast"],
            web=not self["no-web"],
            www=_absolute(self["www"]) if self["www"] else None,
            compression=bool(self["compression"]),
            insecure=bool(self["insecure"]),
            listen=tuple(self["listen"]),
            trusted_proxies=tuple(self["trusted-proxy"]) or None,
            limits=Limits(**limits),
        )
        return Config(
            data_dir=data_directory(environ, self["data-dir"]),
            websocket=websocket,
            database=self["database"] or environ.get("ZCOMM_DATABASE", "").strip(),
            schemas=tuple(self["schema"]),
            functions=tuple(self["functions"]),
            files=_absolute(self["files"]) if self["files"] else None,
            policy=_absolute(self["policy"]) if self["policy"] else None,
            topics=_absolute(self["topics"]) if self["topics"] else None,
            services=tuple(self["service"]),
            declarations=tuple(self["services"]),
            engine=engine_from_environ(environ, self["engine"]),
            ack=self["ack"] or "memory",
            threads=threads_from(environ, self["threads"]),
        )


def worker_count(environ: Mapping[str, str], option: str | None) -> int:
    """The number of workers: ``--workers``, ``ZCOMM_WORKERS``, 1.

    :raises ConfigError: naming which of them is no whole number from 1 to :data:`MOST_WORKERS`.
    """
    name = "ZCOMM_WORKERS" if option is None else "--workers"
    text = (environ.get(name, "") if option is None else option).strip()
    if option is None and not text:
        return 1
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= MOST_WORKERS:
        raise ConfigError(name, f"{text!r} is no number of workers; use one from 1 to {MOST_WORKERS}")
    return int(text)


def _number(name: str, text: str, whole: bool) -> int | float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        raise ConfigError(name, f"{text!r} is not a {'whole ' if whole else ''}number") from None


class Server(Parent):
    """zComm as a daemon: what cannot be started ends the process with one line and status 1."""

    _log = Logger()
    #: Called once with why the start failed, or with nothing when all is ready; in a daemon only.
    tell_starter: Callable[[str], None] | None = None
    #: twistd removes it at an orderly end only.
    pid_file: str = ""
    _looking: LoopingCall | None = None

    def privilegedStartService(self) -> None:
        """Bind, or say in one line why not."""
        if self.pid_file:
            pid_file = PidFile(self.pid_file)
            pid_file.hold()
            atexit.register(pid_file.remove)
        # Whoever sees it listen may ask it to read something anew.
        Signals(self.reactor, self.reload).install()
        self.nodes.on("reload", lambda _: self.reload_here())
        try:
            super().privilegedStartService()
        except CannotListenError as error:
            reason = getattr(error.socketError, "strerror", None) or error.socketError
            if isinstance(error.port, (str, bytes)):
                stop = (
                    "stop the server there, or " if getattr(error.socketError, "errno", 0) == errno.EADDRINUSE else ""
                )
                self._refuse(
                    f"zcomm: cannot listen on {os.fsdecode(error.port)}: {reason}; "
                    f"{stop}name another path with --listen"
                )
            self._refuse(
                f"zcomm: cannot listen on {error.interface or 'all interfaces'} port {error.port}: {reason}; "
                "choose another with --port, or --port 0 for a free one"
            )
        except ConfigError as error:
            self._refuse(f"zcomm: {error}")
        except OSError as error:
            # A directory that is missing or may not be written, say.
            path = error.filename2 or error.filename
            where = f" on {os.fsdecode(path)}" if isinstance(path, (str, bytes)) else ""
            self._refuse(f"zcomm: cannot listen{where}: {error.strerror or error}")

    def _refuse(self, line: str) -> NoReturn:
        self._tell(line)
        sys.exit(line)

    def _tell(self, line: str) -> None:
        tell, self.tell_starter = self.tell_starter, None
        if tell is not None:
            tell(line)

    def startService(self) -> None:
        """Serve; then start what the commands need, in the order in which they need it."""
        try:
            super().startService()
        except Exception as error:
            self._tell(f"zcomm: the start failed: {error}; the log says why")
            raise
        for line in self._announcement():
            self._log.info("{line}", line=line)
        self.program.tell_of_roles()
        self._show_link()
        self._looking = settle(self.reactor)
        self.reactor.callWhenRunning(lambda: self.start_below().addCallbacks(self._ready, self._give_up))

    def stopService(self) -> Deferred[None]:
        """Stop all of it, in order."""
        looking, self._looking = self._looking, None
        if looking is not None and looking.running:
            looking.stop()
        return super().stopService()

    def reload(self) -> None:
        """Read everything anew that can be, here and in the other processes on the same engine."""
        self.nodes.tell("reload")
        self.reload_here()

    def reload_here(self) -> None:
        """Read the policy, the tokens, the kinds of topics, the allowed origins and the TLS certificates anew; nobody
        who may stay notices. Then say which policy and which kinds are in force.

        What cannot be used is not taken: the log says why, and what was read before still holds.
        """
        if self._stopping or not self.websockets:
            self._log.info("nothing is read anew: it stops")
            return
        for what, error in self.read_anew():
            if error is not None:
                self._log.error("not reloaded, what was read before still holds: {reason}", reason=str(error))
            else:
                self._log.info("{what} were read anew", what=what)
        if self.crew is not None:
            self.crew.reload()
        self._log.info("{line}", line=self._in_force())

    def _in_force(self) -> str:
        """The policy and the kinds of topics that hold now."""
        policy = self.config.policy or "none, everybody may do everything"
        return f"policy: {policy}; topics: {some(kind.pattern.text for kind in self.topics.kinds) or 'any'}"

    def _announcement(self) -> list[str]:
        config = self.config
        websocket = config.websocket
        origins = ", ".join(websocket.listed_origins()) or "loopback origins only"
        # The server has said its WebSocket addresses already.
        lines = []
        if websocket.www is not None:
            lines.append(f"files of {websocket.www} for everybody; the demo page is below /demo/")
        if page := self.websockets[0].page:
            hint = " (run `zcomm url` for a link that signs you in)" if websocket.require_auth else ""
            lines.append(f"page {page}{hint}")
        lines.append(f"authentication {'on' if websocket.require_auth else 'OFF: everybody is let in as guest'}")
        lines.append(f"allowed origins: {origins}")
        lines.append(self._in_force())
        shown = redact_url(config.database) if config.database else config.data_dir / "zcomm.sqlite3"
        lines.append(f"database {shown}")
        if config.engine:
            lines.append(f"engine {redact_url(config.engine)}")
        if self.crew is not None:
            lines.append(f"workers: {self.crew.count}, engine {redact_url(self.engine_of_workers)}")
        lines.append(f"services: {', '.join(self.wanted_services) or 'none'}")
        if os.geteuid() == 0:
            lines.append(
                "WARNING: this runs as root, and so do its functions; "
                "give it an account of its own (docs/operations.rst)"
            )
        needed = websocket.limits.connections + RESERVED_FILES
        if needed > file_limit():
            lines.append(
                f"WARNING: {websocket.limits.connections} connections need {needed} open files, and no more than "
                f"{file_limit()} may be open; raise the hard limit (ulimit -Hn, LimitNOFILE)"
            )
        if websocket.trusted_proxies:
            lines.append(f"trusted proxies: {', '.join(websocket.trusted_proxies)}")
        for address, is_plain in self.websockets[0].open_to_others():
            advice = "; put TLS in front (docs/operations.rst)" if is_plain else ""
            lines.append(f"WARNING: {address} can be reached from other machines{advice}")
        return lines

    def _show_link(self) -> None:
        """On a terminal only: a link that signs in once, its code in the fragment, which no server and no log sees."""
        if not self.config.websocket.require_auth or not sys.__stdout__ or not sys.__stdout__.isatty():
            return
        page = self.websockets[0].page
        if not self.program.operator_token or not page:
            return
        try:
            code = invite(self.config.data_dir)
        except CredentialsError as error:
            self._log.warn("no link that signs in: {reason}", reason=str(error))
            return
        link = f"{page}#code={code}"
        print(f"\nOpen this page; the link signs you in, once:\n\n{link}\n", file=sys.__stdout__, flush=True)

    def _ready(self, _: Any) -> None:
        self._log.info("ready")
        self._tell("")

    def _give_up(self, failure: Failure) -> None:
        """Stop because the commands cannot work: log one line, stop what runs, exit with status 1."""
        if self.is_stopping:
            # It was told to stop before it was ready; that is no failure.
            return
        if failure.check(Unavailable):
            database = self.config.database
            line = f"zcomm: {f'database {redact_url(database)}: ' if database else ''}{failure.value}"
        elif failure.check(ZCommError):
            line = f"zcomm: {failure.value}"
        else:
            self._log.failure("the start failed", failure)
            line = "zcomm: the start failed; the log says why"
        self._log.critical("{line}", line=line)
        self._tell(line)
        atexit.register(exit_failed)
        self.reactor.stop()


def reactor_name(reactor: Any, options: Options) -> str:
    """The name by which twistd knows the reactor of this process; empty for Twisted's own choice."""
    if isinstance(reactor, UvloopReactor):
        return "zcomm"
    # twistd's own options are those of the parent.
    return "" if options.parent is None else options.parent.get("reactor") or ""


def makeService(options: Options, reactor: Any = None) -> IService:
    """Assemble the one service that ``options`` describe.

    A setting that cannot be used ends the process with one line and status 1, before anything runs.
    """
    if reactor is None:
        from twisted.internet import reactor
    config: Config = options["config"]
    if not isinstance(reactor, SelectReactor):
        # That one cannot watch a file beyond 1,024.
        wanted = config.websocket.limits.connections
        raise_file_limit(MOST_CONNECTIONS if options["connections"] is None else wanted)
    if options["connections"] is None:
        limits = replace(config.websocket.limits, connections=most_connections())
        config = replace(config, websocket=replace(config.websocket, limits=limits))
    give_back_large_memory()
    keep_every_line()
    if options.parent is not None and options.parent.get("nodaemon"):
        use_non_blocking_output()
    try:
        make_data_directory(config.data_dir)
        count = options["count"]
        own = for_parent(config) if count > 1 else config
        server = Server(Host(own, reactor), config=own, environ=os.environ, reactor=reactor)
        if config.demo:
            demo.add_to(server.program)
        if count > 1:
            server.have_workers(Crew(server, count, reactor_name(reactor, options)), config.engine, config.ack)
        server.create_websocket()
        server.check_below()
        # Before it becomes a daemon, so that whoever started it sees why not.
        server.claim()
    except ZCommError as error:
        sys.exit(f"zcomm: {error}")
    if options.parent is not None:
        server.pid_file = options.parent.get("pidfile") or ""
        if not options.parent.get("nodaemon"):
            server.tell_starter = wait_for_daemon()
    return server
