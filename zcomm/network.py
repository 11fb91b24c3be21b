"""Ports of this machine: is one free, find a free one, wait for one, who holds it.

Nothing here blocks the reactor. Addresses are bound and released within one call; names are resolved by
the reactor; the process table is read in a thread. Bad arguments raise
:class:`~zcomm.errors.ConfigError` (a :class:`ValueError`) at once.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint
from twisted.internet.error import ConnectingCancelledError
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool

from zcomm.config import port_number
from zcomm.errors import ConfigError, PortNotReady
from zcomm.runtime.files import user_name
from zcomm.text import redact_command

__all__ = [
    "Holder",
    "check_port",
    "checked_host",
    "checked_port",
    "find_free_port",
    "find_holder",
    "is_free",
    "port_holder",
    "wait_for_port",
]

#: Ports tried upwards from the preferred one before the kernel is asked for any.
NEIGHBOURS = 100
#: Ports the kernel is asked for before giving up on one that is free for IPv4 and IPv6 alike.
ATTEMPTS = 200
#: Seconds between two attempts of :func:`wait_for_port`: the first, and the longest.
POLL, POLL_MAX = 0.01, 0.25
#: Seconds one attempt of :func:`wait_for_port` may take.
CONNECT_TIMEOUT = 2.0

_NOBODY: Any = Factory.forProtocol(Protocol)
_NOBODY.noisy = False
_LOOPBACK = ("127.0.0.1", "::1")
_ANY = ("0.0.0.0", "::")  # they are asked about, nothing listens on them


@dataclass(frozen=True)
class Holder:
    """The process that listens on a port.

    :ivar pid: its process id; None where the system does not tell an ordinary user.
    :ivar name: its program's name, or an empty string when it is not known.
    :ivar command: its command line, at most 200 characters, with what looks like a secret left out.
    :ivar user: the owner of the listening socket, where it is known.
    """

    pid: int | None
    name: str
    command: str
    user: str = ""

    def __str__(self) -> str:
        who = f"{self.name} (pid {self.pid})" if self.pid is not None else "another user's process"
        return f"{who} of user {self.user}" if self.user else who


def checked_port(port: object, name: str = "port", lowest: int = 1) -> int:
    """*port* if it is an integer from *lowest* to 65535.

    :raises ConfigError: for anything else, ``True`` and ``"80"`` included.
    """
    if isinstance(port, str):
        raise ConfigError(name, f"{port!r} is not a port but text; give the number")
    return port_number(name, port, lowest)


def checked_host(host: object) -> str:
    """*host* if it can be an address or a host name.

    :raises ConfigError: for anything else.
    """
    if not isinstance(host, str) or not 0 < len(host) <= 253 or not host.isprintable() or " " in host:
        raise ConfigError("host", f"{host!r} is not an address or a host name")
    return host


def _checked_seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
        raise ConfigError(name, f"{value!r} is not a number of seconds; give 0 or more")
    return float(value)


def check_port(port: int, host: str = "127.0.0.1", reactor: Any = None) -> Deferred[bool]:
    """Whether a server could listen on *port*.

    The port is bound and released, nothing connects, so the question disturbs nobody. For a loopback
    address IPv4 and IPv6 are both asked, because a browser that is told ``localhost`` may try either; the
    same holds for the wildcard addresses. A port that only has connections in TIME_WAIT is free.

    :param port: 1 to 65535.
    :param host: an address of this machine, or a name that resolves to some.
    :return: fires with True when it is free, False when it is taken or this user may not bind it; errbacks
        with :class:`~zcomm.errors.ConfigError` when *host* is not an address of this machine.
    :raises ConfigError: at once, for a bad port or host.
    """
    checked_port(port)
    addresses = _addresses(checked_host(host))
    if addresses is None:
        return _resolve(host, reactor).addCallback(lambda found: is_free(port, found))
    return defer.execute(is_free, port, addresses)


def find_free_port(host: str = "127.0.0.1", preferred: int | None = None, reactor: Any = None) -> Deferred[int]:
    """A port nobody listens on: *preferred*, else the next free one above it, else any.

    Another process may take the port before it is used; a server that must not lose it binds it itself.

    :return: fires with the port; errbacks with :class:`~zcomm.errors.PortNotReady` when there is none.
    :raises ConfigError: at once, for a bad port or host.
    """
    if preferred is not None:
        checked_port(preferred, "preferred")
    addresses = _addresses(checked_host(host))
    if addresses is None:
        return _resolve(host, reactor).addCallback(lambda found: _first_free(found, preferred, host))
    return defer.execute(_first_free, addresses, preferred, host)


def is_free(port: int, addresses: Iterable[str]) -> bool:
    """Whether *port* can be bound on each of the numeric *addresses* (those of a missing IP version aside).

    Does not block. :raises ConfigError: when one of them is not an address of this machine.
    """
    wanted = list(addresses)
    if sys.platform != "linux":
        # With SO_REUSEADDR the BSDs let 127.0.0.1 and 0.0.0.0 listen on one port side by side.
        wanted += [_ANY[":" in address] for address in wanted]
    return all(_binds(port, address, optional=len(wanted) > 1) for address in wanted)


def _binds(port: int, address: str, optional: bool) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        probe = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT) and optional:
            return True
        raise
    with probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            if error.errno in (errno.EADDRNOTAVAIL, errno.EINVAL):
                if optional and address in (*_LOOPBACK, *_ANY):
                    return True
                raise ConfigError("host", f"{address} is not an address of this machine") from error
            raise
    return True


def _first_free(addresses: Sequence[str], preferred: int | None, host: str) -> int:
    if preferred is not None:
        for port in range(preferred, min(preferred + NEIGHBOURS, 65536)):
            if is_free(port, addresses):
                return port
    for _ in range(ATTEMPTS):
        family = socket.AF_INET6 if ":" in addresses[0] else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((addresses[0], 0))
            except OSError as error:
                raise ConfigError("host", f"{addresses[0]} is not an address of this machine") from error
            port = probe.getsockname()[1]
        if is_free(port, addresses):
            return int(port)
    raise PortNotReady(host, 0, "no free port was found")


def _addresses(host: str) -> Sequence[str] | None:
    """The numeric addresses that *host* stands for, or None for a name that must be resolved."""
    if host.lower() in ("localhost", "localhost."):
        return _LOOPBACK
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    # IPv4 in IPv6's clothes is bound, and connected to, as IPv4.
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_unspecified:
        return _ANY
    # 127.0.0.1 and ::1 are the two halves of localhost; 127.0.0.2 is an address of its own.
    return _LOOPBACK if str(address) in _LOOPBACK else (str(address),)


def _resolve(host: str, reactor: Any) -> Deferred[Sequence[str]]:
    if reactor is None:
        from twisted.internet import reactor

    def look_up() -> Sequence[str]:
        try:
            told = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise ConfigError("host", f"{host!r} does not resolve to an address") from error
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in told))

    return deferToThreadPool(reactor, reactor.getThreadPool(), look_up)


def wait_for_port(port: int, host: str = "127.0.0.1", timeout: float = 30.0, reactor: Any = None) -> Deferred[None]:
    """Wait until something accepts connections on *port*.

    An open port says that somebody listens, not who, nor that it is ready: a service's own readiness
    probe is the better question where there is one.

    :param timeout: seconds.
    :return: fires with None once a connection was accepted (it is closed at once); errbacks with
        :class:`~zcomm.errors.PortNotReady` after *timeout*; cancelling it stops the waiting.
    :raises ConfigError: at once, for a bad argument.
    """
    checked_port(port)
    checked_host(host)
    timeout = _checked_seconds("timeout", timeout)
    if reactor is None:
        from twisted.internet import reactor
    return Deferred.fromCoroutine(_wait_for_port(port, host, timeout, reactor))


async def _wait_for_port(port: int, host: str, timeout: float, reactor: Any) -> None:
    targets = _targets(host) or await _resolve(host, reactor)
    deadline = reactor.seconds() + timeout
    pause = POLL
    while True:
        for target in targets:
            left = max(0.05, min(deadline - reactor.seconds(), CONNECT_TIMEOUT))
            endpoint = TCP6ClientEndpoint if ":" in target else TCP4ClientEndpoint
            try:
                connection: Any = await endpoint(reactor, target, port, timeout=left).connect(_NOBODY)
            except (defer.CancelledError, ConnectingCancelledError):
                raise defer.CancelledError() from None
            except Exception as error:
                last = str(error)
            else:
                connection.transport.abortConnection()
                return
        left = deadline - reactor.seconds()
        if left <= 0:
            raise PortNotReady(host, port, f"nothing accepted a connection within {timeout:g} s: {last}")
        await deferLater(reactor, min(pause, left))
        pause = min(pause * 1.5, POLL_MAX)


def _targets(host: str) -> Sequence[str] | None:
    """The addresses to connect to for *host*: a wildcard is reached on loopback, ``localhost`` on either version; None
    for a name that must be resolved."""
    addresses = _addresses(host)
    if addresses == _ANY:
        return (_LOOPBACK[":" in host],)
    return (host,) if addresses == _LOOPBACK and host in _LOOPBACK else addresses


def port_holder(port: int, reactor: Any = None) -> Deferred[Holder | None]:
    """The process that listens on *port*, on any address of this machine.

    :return: fires with the :class:`Holder`, or None when nobody listens. Of another user's process an
        ordinary user may learn the owner only: then ``pid`` is None.
    :raises ConfigError: at once, for a bad port.
    """
    checked_port(port)
    if reactor is None:
        from twisted.internet import reactor
    return deferToThreadPool(reactor, reactor.getThreadPool(), find_holder, port)


def find_holder(port: int) -> Holder | None:
    """As :func:`port_holder`, but **blocks** for some milliseconds."""
    listening, pid = False, None
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port:
                listening = True
                # A forked server's children hold the same socket: the oldest of them is the server.
                if connection.pid is not None and (pid is None or connection.pid < pid):
                    pid = connection.pid
    except psutil.AccessDenied:
        listening, pid = _own_listener(port)
    if not listening:
        return None
    owner = _socket_owner(port)
    if pid is None:
        return Holder(None, "", "", owner)
    try:
        process = psutil.Process(pid)
        with process.oneshot():
            return Holder(pid, process.name(), _command_line(process.cmdline()), process.username())
    except (psutil.Error, OSError):
        return Holder(pid, "", "", owner)


def _own_listener(port: int) -> tuple[bool, int | None]:
    """The listener where the whole table needs privileges (macOS): this user's processes, then a bind."""
    for process in psutil.process_iter():
        try:
            connections = process.net_connections(kind="tcp")
        except psutil.Error:
            continue
        if any(one.status == psutil.CONN_LISTEN and one.laddr.port == port for one in connections):
            return True, process.pid
    return not is_free(port, _LOOPBACK), None


def _socket_owner(port: int) -> str:
    """The user a listening socket belongs to, which Linux tells everybody."""
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table, encoding="ascii") as lines:
                rows = [line.split() for line in lines]
        except OSError:
            continue
        for row in rows[1:]:
            # local address:port in hexadecimal, state 0A is LISTEN, the eighth column is the uid.
            if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port:
                return user_name(int(row[7]))
    return ""


def _command_line(argv: Sequence[str]) -> str:
    return redact_command(argv)[:200]
