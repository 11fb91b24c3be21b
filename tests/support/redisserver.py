"""A real Redis or Valkey for tests, in a directory of its own, with every way of ending there is.

All of it blocks, for milliseconds where the server is well. A test on the reactor that has to go on meanwhile gives the
method to :func:`~twisted.internet.threads.deferToThread`::

    with RedisServer(appendonly="yes") as server:
        server.call("SET", "a", 1)
        server.kill()
        await deferToThread(server.start)
"""

from __future__ import annotations

import functools
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import pytest
from support.certificates import Authority
from support.guarded import Guarded
from support.ports import unused_port
from support.resp import PATIENCE, Client, ReplyError
from support.waiting import wait_until_blocking

from zcomm.services.kinds.redis.programs import PROGRAMS
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.programs import find_all

__all__ = ["FLAVOURS", "HERE", "Place", "RedisServer", "installation"]

#: Ports that are tried where another program was quicker with one.
ATTEMPTS = 5
#: The account that the kit itself uses where others need a password.
KIT = "kit"

#: What makes a server quick and quiet; settings of a test win over it.
DEFAULTS = {
    "save": '""',
    "appendonly": "no",
    "repl-diskless-sync": "yes",
    "repl-diskless-sync-delay": "0",
    # Over a file Valkey takes a second.
    "repl-diskless-load": "on-empty-db",
    "repl-ping-replica-period": "1",
    "daemonize": "no",
    "tcp-backlog": "128",
}


class Place(Protocol):
    """Some network to run in, of this machine or a namespace.

    :ivar address: that its processes listen on.
    """

    address: str

    def words(self, command: Sequence[object]) -> list[str]:
        """The command line that runs ``command`` there."""

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection made from there."""


class Here:
    """The network that the tests run in."""

    address = "127.0.0.1"

    def words(self, command: Sequence[object]) -> list[str]:
        return [str(word) for word in command]

    def connect(self, address: str, port: int) -> socket.socket:
        return socket.create_connection((address, port), timeout=PATIENCE)


HERE: Place = Here()


@functools.cache
def installations() -> dict[str, Installation]:
    # The test's own HOME and REDIS_BIN_DIR are nobody's business here.
    found: dict[str, Installation] = {}
    for one in find_all(PROGRAMS, {"PATH": os.defpath}):
        found.setdefault(one.flavour, one)
    return found


#: To have a test run with each: ``@pytest.mark.parametrize("flavour", FLAVOURS)``.
FLAVOURS = ("redis", "valkey")


def installation(flavour: str = "redis") -> Installation:
    """The server's program; skips the test where there is none."""
    found = installations().get(flavour)
    if found is None:
        pytest.skip(f"no {flavour} is installed")
    return found


class RedisServer:
    """A server, which runs after :meth:`start` or within its ``with`` block, and leaves nothing behind it.

    :param flavour: ``redis`` or ``valkey``.
    :param password: of the user ``default``.
    :param users: further users with their rules, such as ``{"zcomm": "on >secret ~zc:* &zc:* +@all"}``.
    :param tls: whose certificate for 127.0.0.1 and localhost it has; it then speaks nothing but TLS on its port.
    :param certificate: the files of another key and certificate to use instead.
    :param unix: whether it has a Unix socket, at :attr:`path`.
    :param tcp: whether it has a port.
    :param place: the network that it runs in.
    :param mode: ``sentinel`` or ``""``.
    :param settings: as in its configuration, with ``_`` for ``-``; a list is a setting more than once.
    :ivar port: stays the same for life.
    :ivar directory: of its data, configuration and log.
    :ivar is_paused: between :meth:`pause` and :meth:`go_on`.
    """

    def __init__(
        self,
        flavour: str = "redis",
        *,
        password: str = "",
        users: Mapping[str, str] | None = None,
        tls: Authority | None = None,
        certificate: tuple[Path, Path] | None = None,
        unix: bool = True,
        tcp: bool = True,
        place: Place = HERE,
        mode: str = "",
        **settings: object,
    ):
        self.flavour = flavour
        self.password = password
        self.place = place
        self._program = installation(flavour).server
        # Not under pytest's directory: the path of a socket has room for 107 characters.
        self.directory = Path(tempfile.mkdtemp(prefix="zrd"))
        self.path = self.directory / "socket"
        self._has_socket, self._has_port, self._mode = unix, tcp, mode
        self.port = 0
        self._tls = tls
        self._certificate = certificate
        self._users = dict(users or {})
        self._secret = secrets.token_hex(8) if password or users else ""
        self._settings = {name.replace("_", "-"): value for name, value in settings.items()}
        self._process: Guarded | None = None
        self.is_paused = False

    def __enter__(self) -> RedisServer:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def host(self) -> str:
        """The address that it listens on."""
        return self.place.address

    @property
    def address(self) -> tuple[str, int]:
        """Its address and port."""
        return self.host, self.port

    @property
    def url(self) -> str:
        """As redis-py reads it, for the user ``default``."""
        scheme = "rediss" if self._tls else "redis"
        return f"{scheme}://{f':{self.password}@' if self.password else ''}{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        """That of its Unix socket."""
        return f"unix://{f':{self.password}@' if self.password else ''}{self.path}"

    @property
    def pid(self) -> int:
        """The process; it must have been started."""
        return self._started().pid

    @property
    def is_running(self) -> bool:
        """Whether there is a process, be it one that is paused."""
        return self._process is not None and self._process.is_running

    @property
    def log(self) -> str:
        """The text it has written about itself, over all its starts."""
        path = self.directory / "log"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    # --- Its life ------------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Choose its port before its start, for others to be told of it."""
        if not self.port and self._has_port:
            self.port = unused_port()

    def start(self) -> None:
        """Start it and wait until it answers. Its port is the one it had before."""
        for attempt in range(ATTEMPTS):
            is_new = not self.port
            self.reserve()
            if not (self.directory / "redis.conf").exists():
                self._configure()
            try:
                self.launch()
                self.wait_until_ready()
                return
            except RuntimeError:
                self.kill()
                if "Failed finding TLS support" in self.log:
                    pytest.skip(f"this {self.flavour} speaks no TLS")
                if not is_new or "Address already in use" not in self.log or attempt == ATTEMPTS - 1:
                    raise
                self.port = 0
                (self.directory / "redis.conf").unlink()

    def launch(self) -> None:
        """Start it without waiting for it."""
        if self.is_running:
            raise RuntimeError("the server runs already")
        with open(self.directory / "log", "ab") as log:
            words = [
                self._program,
                self.directory / "redis.conf",
                *(["--sentinel"] if self._mode == "sentinel" else []),
            ]
            # Its data are nowhere else, and neither is what a crash writes.
            self._process = Guarded(
                self.place.words(words), cwd=self.directory, stdout=log, stderr=subprocess.STDOUT, env={"LC_ALL": "C"}
            )

    def wait_until_ready(self) -> None:
        """Wait until it answers PING and has read its data.

        :raises RuntimeError: when it ends instead, with the end of its log.
        """

        def answers() -> bool:
            if not self.is_running:
                raise RuntimeError(f"{self._program.name} ended: {self.log[-2000:]}")
            try:
                return bool(self.call("PING") == "PONG")
            except (OSError, ReplyError):
                return False

        wait_until_blocking(answers, f"an answer of {self._program.name}", PATIENCE)

    def stop(self) -> None:
        """End it in order: what it would write to its disk is written."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it as a loss of power does, but for what the kernel still has of its files."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Have it do nothing from now on; connections stay, and new ones are still accepted by the kernel."""
        self._started().send(signal.SIGSTOP)
        self.is_paused = True

    def go_on(self) -> None:
        """End the pause."""
        self._started().send(signal.SIGCONT)
        self.is_paused = False

    def restart(self, *, kill: bool = True, data: Path | None = None, empty: bool = False) -> None:
        """End it and start it again on its port.

        :param kill: whether by force.
        :param data: a copy from :meth:`copy_data`, which then is all it has: what came later is lost.
        :param empty: whether all its data are lost.
        """
        self._end(signal.SIGKILL if kill else signal.SIGTERM)
        if empty or data is not None:
            self.remove_data()
        if data is not None:
            shutil.copytree(data, self.directory / "data", dirs_exist_ok=True)
        self.start()

    def copy_data(self) -> Path:
        """A copy of its data directory as it is at this moment, in :attr:`directory`; gone with it.

        Before the copy all that was acknowledged is in the file, for the server writes to it before it answers.
        """
        target = Path(tempfile.mkdtemp(prefix="copy", dir=self.directory))
        shutil.copytree(self.directory / "data", target, dirs_exist_ok=True)
        return target

    def remove_data(self) -> None:
        """Remove all of its data, while it does not run."""
        shutil.rmtree(self.directory / "data")
        (self.directory / "data").mkdir()

    def set(self, **settings: object) -> None:
        """Change settings of its next start; ``None`` takes one away. What the server itself wrote into its
        configuration is gone."""
        for name, value in settings.items():
            self._settings[name.replace("_", "-")] = value
        (self.directory / "redis.conf").unlink(missing_ok=True)

    def setting(self, name: str) -> object:
        """A setting that it was made with or got by :meth:`set`."""
        return self._settings[name]

    def remove(self) -> None:
        """Kill it and remove everything of it."""
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    # --- To talk to it -------------------------------------------------------------------------------------------

    def call(self, *words: object) -> Any:
        """Run one command on a connection of its own; the reply.

        :raises ReplyError: when the reply is an error.
        """
        with self.client() as client:
            return client.call(*words)

    def calls(self, *commands: Sequence[object]) -> list[Any]:
        """Run commands on one connection; their replies, errors among them."""
        with self.client() as client:
            return client.calls(*commands)

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO, by name."""
        lines = str(self.call("INFO", section)).splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def role(self) -> str:
        """``master`` or ``slave``; empty while it does not say, as when a sentinel ends all connections to it."""
        if not self.is_running or self.is_paused:
            return ""
        try:
            return self.info("replication")["role"]
        except (OSError, ReplyError):
            return ""

    def client(self) -> Client:
        """A connection that is logged in with all rights; to be closed, or used in a ``with`` block."""
        client = Client(self._connect())
        if self._secret:
            try:
                client.call("AUTH", KIT, self._secret)
            except BaseException:
                client.close()
                raise
        return client

    def _connect(self) -> socket.socket:
        if self._has_socket:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.settimeout(PATIENCE)
                connection.connect(str(self.path))
            except BaseException:
                connection.close()
                raise
            return connection
        connection = self.place.connect(self.host, self.port)
        if self._tls is None:
            return connection
        # The kit wants its commands run whatever is wrong with the certificate that a test gave the server.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            return context.wrap_socket(connection)
        except BaseException:
            connection.close()
            raise

    # --- Within --------------------------------------------------------------------------------------------------

    def _started(self) -> Guarded:
        if self._process is None:
            raise RuntimeError("the server is not started")
        return self._process

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            self.is_paused = False
            process.end(how)
        # A killed server leaves it, and whoever connects then is refused just as without it.
        with suppress(FileNotFoundError):
            self.path.unlink()

    def _configure(self) -> None:
        (self.directory / "data").mkdir(exist_ok=True)
        lines: dict[str, object] = {
            **(DEFAULTS if self._mode != "sentinel" else {"daemonize": "no"}),
            "dir": self.directory / "data",
            "bind": self.host,
            "port": 0 if self._tls or not self._has_port else self.port,
            "protected-mode": "no",
        }
        if self._has_socket:
            lines["unixsocket"] = self.path
        if self._tls is not None:
            key, certificate = self._certificate or self._tls.issue(
                *dict.fromkeys(("localhost", "127.0.0.1", self.host))
            )
            authority = self.directory / "authority.pem"
            authority.write_bytes(self._tls.pem)
            lines |= {
                "tls-port": self.port,
                "tls-key-file": key,
                "tls-cert-file": certificate,
                "tls-ca-cert-file": authority,
                "tls-auth-clients": "no",
                "tls-replication": "yes",
            }
        if self.password:
            lines |= {"requirepass": self.password, "masterauth": self.password}
        if self._secret:
            users = {KIT: f"on >{self._secret} ~* &* +@all", **self._users}
            lines["user"] = [f"{name} {rules}" for name, rules in users.items()]
        lines |= self._settings
        (self.directory / "redis.conf").write_text(
            "".join(
                f"{name} {one}\n"
                for name, value in lines.items()
                for one in (value if isinstance(value, list) else [value])
                if one is not None
            )
        )
