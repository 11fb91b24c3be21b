"""The configuration: read once, when a thing is created, into frozen values (never at import).

Precedence: argument, then option, then environment, then default. Each part of zComm is handed only
its own piece.
"""

from __future__ import annotations

import io
import os
import re
import resource
import stat
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, fields
from pathlib import Path
from typing import Any
from unicodedata import category

from zcomm.errors import ConfigError
from zcomm.origin import OriginPolicy, is_loopback
from zcomm.peers import TrustedProxies, socket_address
from zcomm.reading import open_to_everybody, read_regular

__all__ = [
    "BROADCAST_MODES",
    "DEFAULT_HOST",
    "DEFAULT_PORT",
    "MOST_CONNECTIONS",
    "RESERVED_FILES",
    "SPARE_FILES",
    "Config",
    "Limits",
    "WebSocketConfig",
    "data_directory",
    "file_limit",
    "has_control",
    "make_data_directory",
    "make_directory",
    "is_unicode",
    "most_connections",
    "operator_path",
    "raise_file_limit",
    "read_file",
    "read_text",
    "thread_count",
    "threads_from",
    "tokens_path",
    "zauth_path",
]

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 56891
DEFAULT_THREADS, MAX_THREADS = 10, 1000
#: What an acknowledged message has survived.
ACKS = ("memory", "fsync", "replica")
BROADCAST_MODES = ("changes", "all", "none")
#: Bytes of a file that an option names, at most.
MAX_FILE = 4 << 20
#: Open connections, where nobody asks for more.
MOST_CONNECTIONS = 10_000
#: Files that are not clients: the log, the database's connections, the listener, pipes to children; and those who are
#: not let in yet.
RESERVED_FILES = 256
#: Of these, files that those who are not let in yet leave free.
SPARE_FILES = 128
#: Connections that may wait for a handshake or for the turn of their tokens, and more than that are being closed.
CROWD = 6_144


def file_limit() -> int:
    """The files that this process may have open now."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def most_connections() -> int:
    """The open connections for which the file limit has room, up to :data:`MOST_CONNECTIONS`."""
    return max(16, min(MOST_CONNECTIONS, file_limit() - RESERVED_FILES))


def raise_file_limit(connections: int) -> None:
    """Raise the soft limit of open files of this process, as far as the hard one lets it, to what a server needs.

    For a process that is the server's own: a program that uses ``select()`` cannot use files beyond 1,024.

    :param connections: that are to be open at a time.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + CROWD + RESERVED_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        # A system may have a limit of its own below the one that it tells.
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _limit(default: Any, what: str, lowest: float = 1) -> Any:
    return field(default=default, metadata={"what": what, "lowest": lowest})


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The limits of a client, of a peer and of all of them together. Each is an option of ``twistd zcomm``."""

    message_size: int = _limit(1024 * 1024, "bytes of one message, exact in every form", 125)
    head_size: int = _limit(16 * 1024, "bytes of an opening handshake", 1024)
    head_count: int = _limit(100, "headers of an opening handshake", 10)
    handshake_timeout: float = _limit(5.0, "seconds for the opening handshake, authentication included", 0.1)
    pending: int = _limit(256, "handshakes pending in all")
    pending_per_peer: int = _limit(32, "handshakes pending of one peer")
    connections: int = field(
        default_factory=most_connections,
        metadata={
            "what": "open connections [10000, or what the file limit allows]",
            "lowest": 1,
        },
    )
    frame_rate: float = _limit(10_000.0, "frames a second of one client")
    frame_burst: float = _limit(20_000.0, "frames at once of one client")
    connections_per_user: int = _limit(0, "open connections of one user; 0 for half of --connections, 100 at least", 0)
    auth_failures: int = _limit(10, "failed tokens of one peer within a minute")
    json_depth: int = _limit(64, "levels of nesting in a message")
    in_flight: int = _limit(64, "commands of one client that are not answered yet")
    command_timeout: float = _limit(30.0, "seconds a command may take", 0.01)
    queue_size: int = _limit(1024 * 1024, "bytes waiting for one client before it is dropped with 1013", 1024)
    stall_timeout: float = _limit(10.0, "seconds a client that takes nothing, or far too little, is kept", 0.05)
    ping_interval: float = _limit(20.0, "seconds between pings, and the time to answer one", 0.05)
    read_rows: int = _limit(10_000, "rows one read may return")
    database_time: float = _limit(1.0, "seconds a second that one user's statements may run, 30 of them at once", 0.001)
    results_size: int = _limit(
        32 * 1024 * 1024, "bytes of all users' results on their way, half of them one user's", 1024 * 1024
    )
    broadcast_rate: float = _limit(512 * 1024.0, "bytes a second that one user's commands tell others in full", 1024)
    topics_per_client: int = _limit(128, "topics that one client is subscribed to")
    publish_rate: float = _limit(100.0, "messages a second that one client publishes to topics, twice as many at once")
    history_memory: int = _limit(
        256 * 1024 * 1024, "bytes of the messages that topics keep, a quarter of them one user's", 1024 * 1024
    )
    live_per_client: int = _limit(64, "live queries of one client")
    live_memory: int = _limit(
        256 * 1024 * 1024, "bytes that the rows of live queries take, a quarter of them one user's", 1024 * 1024
    )
    shutdown_timeout: float = _limit(5.0, "seconds for clients to leave at shutdown", 0)

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            name = "--" + item.name.replace("_", "-")
            whole = item.type == "int"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ConfigError(name, f"{value!r} is not a {'whole ' if whole else ''}number")
            if not item.metadata["lowest"] <= value < 2**40:
                lowest = item.metadata["lowest"]
                raise ConfigError(name, f"{value} is out of range; it is at least {lowest}, and below {2**40}")


def flag(name: str, text: str) -> bool:
    """An environment switch. Only a clear no is a no: a typing error never turns a protection off."""
    return text.strip().lower() not in ("false", "0", "no", "off")


def port_number(name: str, value: Any, lowest: int = 0) -> int:
    """A TCP port as a number; a numeral is taken for its number.

    :param name: what errors call the setting.
    :param lowest: 0 where that stands for any free port, else 1.
    :raises ConfigError: for anything but a whole number from ``lowest`` to 65535.
    """
    text = str(value).strip() if type(value) in (int, str) else ""
    if not (text.isascii() and text.isdigit()) or len(text) > 5 or not lowest <= int(text) <= 65535:
        first = "0 (any free one)" if lowest == 0 else str(lowest)
        raise ConfigError(name, f"{value!r} is not a port; use a number from {first} to 65535")
    return int(text)


def thread_count(name: str, value: Any) -> int:
    """A number of worker threads; a numeral is taken for its number.

    :param name: what errors call the setting.
    :raises ConfigError: for anything but a whole number from 1 to 1,000.
    """
    text = str(value).strip() if type(value) in (int, str) else ""
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= MAX_THREADS:
        raise ConfigError(name, f"{value!r} is no number of threads; use one from 1 to {MAX_THREADS:,}")
    return int(text)


def threads_from(environ: Mapping[str, str], option: str | None = None) -> int:
    """The number of worker threads: ``--threads``, ``ZCOMM_THREADS``, 10.

    :raises ConfigError: as :func:`thread_count`, naming which of them.
    """
    if option is not None:
        return thread_count("--threads", option)
    text = environ.get("ZCOMM_THREADS", "").strip()
    return thread_count("ZCOMM_THREADS", text) if text else DEFAULT_THREADS


def engine_from_environ(environ: Mapping[str, str], option: str | None = None) -> str:
    """The URL of the engine: ``--engine``, ``ZCOMM_ENGINE``; empty for memory."""
    url = (environ.get("ZCOMM_ENGINE", "") if option is None else option).strip()
    return "" if url == "memory" else url


def split_endpoint(description: str) -> tuple[list[str], dict[str, str]]:
    """The parts of a Twisted endpoint description: those by place, its kind first, and those by name, unescaped."""
    by_place: list[str] = []
    by_name: dict[str, str] = {}
    for part in re.split(r"(?<!\\):", description):
        name, named, value = part.partition("=")
        if named:
            by_name[name] = re.sub(r"\\(.)", r"\1", value)
        else:
            by_place.append(re.sub(r"\\(.)", r"\1", part))
    return by_place, by_name


def read_file(path: Path, option: str, what: str = "") -> bytes:
    """The content of a file that an option named. It never waits for a pipe, nor reads without an end.

    :param what: stands before the path in an error, to say which file that is.
    :raises ConfigError: naming the option and the file, when it cannot be read, could be anybody's, is no regular file,
        or has more than :data:`MAX_FILE` bytes.
    """
    shown = f"{what} {path}".lstrip()

    def check(facts: os.stat_result) -> None:
        if not stat.S_ISREG(facts.st_mode):
            raise ConfigError(option, f"{shown} is no regular file; put what it should say into one")

    try:
        content, _ = read_regular(path, MAX_FILE, check)
    except OSError as error:
        raise ConfigError(option, f"{shown} cannot be read: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise ConfigError(option, f"{shown} has more than {MAX_FILE >> 20} MB, far more than such a file needs")
    if reason := open_to_everybody(path):
        raise ConfigError(option, f"{shown} cannot be trusted: {reason}")
    return content


def read_text(path: Path, option: str) -> str:
    """The text in a file that an option named, with line feeds at the ends of its lines.

    :raises ConfigError: as :func:`read_file`, and for what is not UTF-8.
    """
    try:
        return io.TextIOWrapper(io.BytesIO(read_file(path, option)), "utf-8").read()
    except UnicodeDecodeError:
        raise ConfigError(option, f"{path} is not text in UTF-8") from None


def is_unicode(text: str) -> bool:
    """Whether an argument or variable was text in the encoding of the locale; Python keeps other bytes as halves of
    surrogate pairs, which can be sent, stored and logged nowhere."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def has_control(text: str) -> bool:
    """Whether a control character, such as the end of a line or a tabulator, is in a text."""
    return any(category(character) == "Cc" for character in text)


def data_directory(environ: Mapping[str, str], option: str | None = None) -> Path:
    """The directory of databases, tokens, service data and logs: ``--data-dir``, ``ZCOMM_HOME``, ``~/.zolo/zcomm``.

    It need not exist. A relative ``--data-dir`` is taken from the working directory, as a shell would; an empty
    ``ZCOMM_HOME`` counts as none. ``~`` and ``~/`` stand for the user's home.

    :raises ConfigError: for an empty ``--data-dir``, a relative ``ZCOMM_HOME``, another user's ``~name``, a name that
        is not UTF-8 or has control characters, something that is not a directory, and when there is no home directory
        to put it in.
    """
    name = "ZCOMM_HOME" if option is None else "--data-dir"
    chosen = environ.get("ZCOMM_HOME", "").strip() if option is None else option
    if option is None and not chosen:
        path = home_directory(environ) / ".zolo" / "zcomm"
    elif not chosen.strip():
        raise ConfigError(name, f"{chosen!r} is not a path; name a directory")
    elif chosen == "~" or chosen.startswith("~/"):
        path = home_directory(environ) / chosen[1:].lstrip("/")
    elif chosen.startswith("~"):
        raise ConfigError(name, f"{chosen!r} names the home of another user; write the whole path")
    else:
        path = Path(chosen) if option is None else Path.cwd() / chosen
    if not path.is_absolute():
        raise ConfigError(name, f"{chosen!r} is not an absolute path")
    if ".." in path.parts:
        # What is above a link's target: not everybody who is handed the path would go there.
        path = Path(os.path.realpath(path))
    if has_control(str(path)) or has_control(os.path.realpath(path)):
        # It goes into the settings of servers and into logs, line by line.
        raise ConfigError(name, f"{str(path)!r} has a control character in it; name another directory")
    if not is_unicode(str(path)):
        raise ConfigError(name, f"{str(path)!r} is not text in UTF-8; rename it, or start with a locale of UTF-8")
    _require_directory(path, name)
    return path


def operator_path(data_dir: Path) -> Path:
    """The file with the operator's own token."""
    return data_dir / "operator.json"


def tokens_path(data_dir: Path) -> Path:
    """The file with the hashes of users' tokens."""
    return data_dir / "tokens.json"


def zauth_path(environ: Mapping[str, str]) -> Path | None:
    """zAuth's login file, ``~/.zolo/credentials``; ``None`` where there is no home directory."""
    try:
        return home_directory(environ) / ".zolo" / "credentials"
    except ConfigError:
        return None


def make_data_directory(path: Path) -> None:
    """Make the data directory as :func:`make_directory` does, if it is missing.

    :raises ConfigError: when that is not possible, or something else stands in its place.
    """
    _require_directory(path, "--data-dir")
    if reason := open_to_everybody(path):
        raise ConfigError("--data-dir", f"{reason}, or name a directory of your own, which is made where it is missing")
    try:
        make_directory(path)
    except OSError as error:
        raise ConfigError("--data-dir", f"{path} cannot be made: {error.strerror}") from None
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        raise ConfigError("--data-dir", f"{path} cannot be written to; use a directory of your own")
    facts = path.stat()
    trusted = {0, os.geteuid()}
    if os.geteuid() == 0 and not os.stat(path.parent).st_mode & stat.S_ISVTX:
        # A volume that belongs to an account of another machine; in a directory as /tmp anybody may have made it.
        trusted.add(facts.st_uid)
    if facts.st_uid not in trusted:
        raise ConfigError("--data-dir", f"{path} belongs to somebody else (uid {facts.st_uid}); use one of your own")


def make_directory(path: Path) -> None:
    """Make a directory of zComm's own, and what is missing above it; one that exists keeps its mode and owner.

    Its owner alone may list it, whatever the umask is. Root's has mode 0711: servers that root runs as accounts of
    their own pass through it to their data, wherever that is decided. Everybody else's has mode 0700.

    :raises OSError: when it cannot be made.
    """
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for missing in reversed([place for place in (path, *path.parents) if not place.exists()]):
        try:
            missing.mkdir(mode=mode)
        except FileExistsError:
            # Another process was faster, or a link leads nowhere.
            if not missing.is_dir():
                raise
        else:
            if mode & ~missing.stat().st_mode:
                missing.chmod(mode)


def _require_directory(path: Path, name: str) -> None:
    """:raises ConfigError: naming the setting, where ``path`` or what is above it exists and is no directory."""
    place = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not place.is_dir():
        what = f"{place} is not a directory"
        raise ConfigError(name, what if place == path else f"{path} cannot be made: {what}")


def home_directory(environ: Mapping[str, str]) -> Path:
    """The user's home.

    :raises ConfigError: when the environment names none.
    """
    home = environ.get("HOME", "").strip()
    if not home or not Path(home).is_absolute():
        raise ConfigError("HOME", "is not set; give --data-dir, or set HOME or ZCOMM_HOME to an absolute path")
    return Path(home)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketConfig:
    """The settings of one zBifrost.

    :ivar port: 0 for any free one.
    :ivar require_auth: whether clients need a token.
    :ivar allowed_origins: exact origins, or ``@FILE`` for a file that names one a line (``#`` begins a comment);
        empty for loopback origins only.
    :ivar broadcast: ``changes``, ``all`` or ``none``.
    :ivar web: whether the page, the client and the health report are served on the port.
    :ivar www: a directory whose files are served on the port, before the demo page.
    :ivar compression: whether permessage-deflate is accepted from clients that offer it (RFC 7692).
    :ivar listen: Twisted endpoint descriptions to listen on instead of host and port.
    :ivar trusted_proxies: addresses, networks and ``unix``: the proxies whose ``X-Forwarded-For`` is believed.
    """

    port: int = DEFAULT_PORT
    host: str = DEFAULT_HOST
    require_auth: bool = True
    allowed_origins: tuple[str, ...] = ()
    broadcast: str = "changes"
    web: bool = True
    www: Path | None = None
    compression: bool = False
    insecure: bool = False
    listen: tuple[str, ...] = ()
    trusted_proxies: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        port_number("--port", self.port)
        if not self.host or any(character.isspace() for character in self.host):
            raise ConfigError("--host", f"{self.host!r} is not an interface; use an address such as 127.0.0.1")
        if self.broadcast not in BROADCAST_MODES:
            raise ConfigError("--broadcast", f"{self.broadcast!r} is none of {', '.join(BROADCAST_MODES)}")
        # Before twistd changes directory as a daemon.
        object.__setattr__(self, "allowed_origins", tuple(_absolute_file(entry) for entry in self.allowed_origins))
        self.origins()
        self.proxies()
        if self.www is not None and not self.web:
            raise ConfigError("--www", "nothing is served with --no-web; leave one of the two out")
        if not self.require_auth and not self.insecure and not self.on_loopback:
            raise ConfigError(
                "--no-auth",
                f"without authentication everybody who reaches {', '.join(self.open_places())} is let in; "
                "listen on 127.0.0.1, or add --insecure if that is what you want",
            )

    @property
    def on_loopback(self) -> bool:
        """Whether only programs on this machine can reach the server, and no proxy brings it others."""
        return not self.open_places()

    def open_places(self) -> list[str]:
        """The interface, endpoints and proxies over which others than this machine may reach the server."""
        if self.listen:
            places = [description for description in self.listen if not _endpoint_is_local(description)]
        else:
            places = [] if is_loopback(self.host) else [self.host]
        return places + [f"the proxy {proxy}" for proxy in self.trusted_proxies]

    def origins(self) -> OriginPolicy:
        """The origin policy, as the list and the files that it names have it now.

        :raises ConfigError: for an entry that is no origin, naming the file and the line if it is in one, and for a
            file that cannot be read or names no origin.
        """
        host = socket_address(self.host)
        hosts = () if host in ("0.0.0.0", "::") else (host,)
        return OriginPolicy.from_list(self.listed_origins(), hosts)

    def proxies(self) -> TrustedProxies:
        """The trusted proxies.

        :raises ConfigError: for an entry that is no address, no network and not ``unix``.
        """
        return TrustedProxies.from_list(self.trusted_proxies)

    def listed_origins(self) -> list[str]:
        """The allowed origins, those in files among them.

        :raises ConfigError: as :meth:`origins`.
        """
        return _listed(self.allowed_origins)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **given: Any) -> WebSocketConfig:
        """The configuration from ``WEBSOCKET_*`` variables, ``ZCOMM_BROADCAST``, ``ZCOMM_TRUSTED_PROXY`` and
        ``ZCOMM_WWW``; what is ``given`` wins.

        :raises ConfigError: naming the variable.
        """
        values = {name: value for name, value in given.items() if value is not None}

        def default(name: str, variable: str, read: Any) -> None:
            text = environ.get(variable, "").strip()
            if name not in values and text:
                values[name] = read(variable, text)

        default("port", "WEBSOCKET_PORT", port_number)
        default("host", "WEBSOCKET_HOST", lambda variable, text: text)
        default("require_auth", "WEBSOCKET_REQUIRE_AUTH", flag)
        default("allowed_origins", "WEBSOCKET_ALLOWED_ORIGINS", _origins)
        default("broadcast", "ZCOMM_BROADCAST", _broadcast)
        default("trusted_proxies", "ZCOMM_TRUSTED_PROXY", _proxies)
        default("www", "ZCOMM_WWW", lambda variable, text: Path.cwd() / os.path.expanduser(text))
        return cls(**values)


def _origins(variable: str, text: str) -> tuple[str, ...]:
    entries = tuple(item.strip() for item in text.split(",") if item.strip())
    try:
        OriginPolicy.from_list(_listed(entries))
    except ConfigError as error:
        raise ConfigError(variable, error.reason) from None
    return entries


def _absolute_file(entry: str) -> str:
    return f"@{Path.cwd() / os.path.expanduser(entry[1:])}" if entry.startswith("@") else entry


def _listed(entries: Iterable[str]) -> list[str]:
    """The origins of a list, each file that it names replaced by what the file names."""
    found: list[str] = []
    for entry in entries:
        found += _origins_in(Path(_absolute_file(entry)[1:])) if entry.startswith("@") else [entry]
    return found


def _origins_in(path: Path) -> list[str]:
    found = []
    for number, line in enumerate(read_text(path, "--allowed-origin").split("\n"), 1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        try:
            OriginPolicy.from_list([entry])
        except ConfigError as error:
            raise ConfigError(error.name, f"{path}, line {number}: {error.reason}") from None
        found.append(entry)
    if not found:
        # No list at all would let in the pages of this machine, which nobody asked for.
        raise ConfigError(
            "--allowed-origin", f"{path} names no origin; write one a line, such as https://app.example.com"
        )
    return found


def _proxies(variable: str, text: str) -> tuple[str, ...]:
    entries = tuple(item.strip() for item in text.split(",") if item.strip())
    TrustedProxies.from_list(entries, variable)
    return entries


def _broadcast(variable: str, text: str) -> str:
    if text not in BROADCAST_MODES:
        raise ConfigError(variable, f"{text!r} is none of {', '.join(BROADCAST_MODES)}")
    return text


def _endpoint_is_local(description: str) -> bool:
    """Whether an endpoint description can only be reached from this machine, and by no proxy for others."""
    by_place, by_name = split_endpoint(description)
    if by_place[:1] == ["haproxy"]:
        return False
    return by_place[:1] == ["unix"] or is_loopback(by_name.get("interface", ""))


@dataclass(frozen=True, slots=True)
class Config:
    """The whole configuration of ``twistd zcomm``.

    :ivar data_dir: the data directory.
    :ivar database: an SQLAlchemy URL, ``service:postgresql``, or empty for SQLite in the data directory.
    :ivar schemas: zSchema files; empty for the built-in demo schema.
    :ivar functions: Python modules whose registered functions zFunc may call.
    :ivar files: the only directory zOpen may read.
    :ivar policy: the permission file.
    :ivar topics: the file of the kinds of topics; without one, and where the program declares none, every name is one.
    :ivar services: services to start with the server.
    :ivar declarations: YAML files that declare further services.
    :ivar engine: the URL of the engine that carries topics and broadcasts between processes, ``service:redis``, or
        empty for one process alone.
    :ivar ack: what a message of a topic has survived when it is acknowledged: ``memory``, the engine has it; ``fsync``,
        it is on the engine's disk; ``replica``, the engine's replicas have it.
    :ivar threads: how many plain functions and commands run at once, each in a worker thread.
    """

    data_dir: Path
    websocket: WebSocketConfig = field(default_factory=WebSocketConfig)
    _: KW_ONLY
    database: str = ""
    schemas: tuple[Path, ...] = ()
    functions: tuple[str, ...] = ()
    files: Path | None = None
    policy: Path | None = None
    topics: Path | None = None
    services: tuple[str, ...] = ()
    declarations: tuple[Path, ...] = ()
    engine: str = ""
    ack: str = "memory"
    threads: int = DEFAULT_THREADS

    def __post_init__(self) -> None:
        thread_count("--threads", self.threads)
        if self.ack not in ACKS:
            raise ConfigError("--ack", f"{self.ack!r} is none of {', '.join(ACKS)}")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Config:
        """The configuration that the environment alone makes: data directory, ``WEBSOCKET_*`` and ``ZCOMM_*``.

        :raises ConfigError: naming the variable.
        """
        return cls(
            data_directory(environ),
            WebSocketConfig.from_environ(environ),
            engine=engine_from_environ(environ),
            threads=threads_from(environ),
        )

    @property
    def demo(self) -> bool:
        """Whether the built-in demo (schema, functions, pages) is what runs: nothing of the user's own was named."""
        return not (self.schemas or self.functions)

    @property
    def database_service(self) -> str | None:
        """The managed service the database is, or ``None`` for a database that zComm does not run itself."""
        prefix, _, name = self.database.partition(":")
        return name if prefix == "service" else None

    @property
    def engine_service(self) -> str | None:
        """The managed service the engine is, or ``None``."""
        prefix, _, name = self.engine.partition(":")
        return name if prefix == "service" else None

    @property
    def database_url(self) -> str:
        """The SQLAlchemy URL, for a database that zComm does not run itself."""
        # What has a meaning in a URL may stand in the name of a directory.
        path = str(self.data_dir / "zcomm.sqlite3").replace("%", "%25").replace("?", "%3F").replace("#", "%23")
        return self.database or f"sqlite:///{path}"
