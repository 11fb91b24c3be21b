"""The endpoints to listen on: TLS keys and certificates checked before anything listens, the PROXY protocol."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from OpenSSL import SSL, crypto
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError, VerifyError
from twisted.internet.interfaces import (
    IAddress,
    IListeningPort,
    IOpenSSLContextFactory,
    IProtocolNegotiationFactory,
    IStreamServerEndpoint,
)
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.protocols.tls import TLSMemoryBIOFactory
from zope.interface import implementer

from zcomm.config import WebSocketConfig, read_file, split_endpoint
from zcomm.errors import ConfigError
from zcomm.origin import is_loopback
from zcomm.peers import UNIX, read_proxy_header, socket_address
from zcomm.reading import open_to_everybody
from zcomm.runtime.acceptor import adopt
from zcomm.runtime.files import FileLock
from zcomm.runtime.process import keep_from_children

__all__ = ["Address", "ProxiedEndpoint", "TLSEndpoint", "addresses", "server_endpoints", "shared_endpoints"]

BACKLOG = 4096
_OPTION = "--listen"
#: Of an ``ssl:`` endpoint, what Twisted reads besides key and certificate.
_READ_BESIDES = frozenset({"extraCertChain", "dhParameters"})

_log = Logger()


class Address(NamedTuple):
    """One address at which clients reach a server.

    :ivar url: the address for a WebSocket: ``ws://…``, ``wss://…`` or ``unix:…``.
    :ivar port: of TCP; ``None`` for a Unix socket.
    :ivar is_proxied: whether a connection has to begin with the header of a proxy, which no client sends.
    """

    url: str
    port: int | None
    is_proxied: bool

    @property
    def page(self) -> str:
        """The address for a browser; empty where none gets in."""
        return "" if self.port is None or self.is_proxied else self.url.replace("ws", "http", 1) + "/"


def addresses(ports: Sequence[IListeningPort], descriptions: Sequence[str]) -> list[Address]:
    """The addresses of ``ports``, by the sockets as they are. First comes the one to tell clients on this machine: of
    those that need no proxy one without a certificate, which is for a name on the network, rather of TCP, rather on the
    machine's own interface.

    :param descriptions: the endpoints that they were opened for.
    """
    found = []
    for port, description in zip(ports, descriptions, strict=True):
        host: Any = port.getHost()
        is_proxied = description.startswith("haproxy:")
        if not hasattr(host, "port"):
            address = Address(f"unix:{getattr(host, 'name', b'').decode(errors='replace')}", None, is_proxied)
            found.append(((is_proxied, False, True, False), address))
            continue
        name = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.host) or socket_address(host.host)
        is_secure = isinstance(getattr(port, "factory", None), TLSMemoryBIOFactory)
        url = f"{'wss' if is_secure else 'ws'}://{f'[{name}]' if ':' in name else name}:{host.port}"
        found.append(((is_proxied, is_secure, False, not is_loopback(name)), Address(url, host.port, is_proxied)))
    return [address for _, address in sorted(found, key=itemgetter(0))]


def server_endpoints(config: WebSocketConfig, reactor: Any) -> list[IStreamServerEndpoint]:
    """The endpoints that ``config`` names, or the one for its host and port.

    :raises ConfigError: for a description that is none, and for a TLS key or certificate that cannot be used or that
        others could read.
    """
    if config.listen:
        return [_endpoint(description, reactor) for description in config.listen]
    host = socket_address(config.host)
    if is_loopback(host) and ":" not in host and not host[0].isdigit():
        # A name of this machine. Whatever a resolver makes of it, others are not let in.
        host = "127.0.0.1"
    kind = TCP6ServerEndpoint if ":" in host else TCP4ServerEndpoint
    return [kind(reactor, config.port, BACKLOG, host)]


def shared_endpoints(
    sockets: Sequence[socket.socket], config: WebSocketConfig, reactor: Any
) -> list[IStreamServerEndpoint]:
    """The endpoints that ``config`` names, on sockets that another process has bound for them and accepts on as well.

    :param sockets: one for each.
    :raises ConfigError: as :func:`server_endpoints`, for TLS.
    """
    descriptions = config.listen or ("tcp",)
    return [_shared(each, reactor, listening) for each, listening in zip(descriptions, sockets, strict=True)]


def _shared(description: str, reactor: Any, listening: socket.socket) -> IStreamServerEndpoint:
    kind, _, inner = description.partition(":")
    if kind == "haproxy":
        return ProxiedEndpoint(_shared(inner, reactor, listening))
    shared = SharedEndpoint(listening, reactor)
    return TLSEndpoint(description, shared) if _tls_files(description) else shared


@implementer(IStreamServerEndpoint)
class SharedEndpoint:
    """An endpoint on a socket that other processes accept on as well (:func:`~zcomm.runtime.acceptor.adopt`).

    It stands in the place of the reactor for a :class:`TLSEndpoint` above it.
    """

    def __init__(self, listening: socket.socket, reactor: Any):
        self._socket = listening
        self._reactor = reactor

    def listen(self, factory: Any) -> Deferred[IListeningPort]:
        """Accept; a Deferred of the port."""
        return maybeDeferred(adopt, self._socket, factory, self._reactor)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: IOpenSSLContextFactory, backlog: int, interface: str
    ) -> IListeningPort:
        """Accept with TLS; where, the socket knows."""
        return adopt(self._socket, TLSMemoryBIOFactory(contextFactory, False, factory), self._reactor)


@implementer(IStreamServerEndpoint, IOpenSSLContextFactory)
class TLSEndpoint:
    """An ``ssl:`` endpoint whose key and certificate can be read anew while it listens.

    Twisted's own keeps what it once made of its files. It hands that to its reactor, in whose place this stands, and
    listens with this instead: each connection asks it for the context of the day.

    :param description: the endpoint.
    :param reactor: the reactor.
    :raises ConfigError: as :func:`server_endpoints` does.
    """

    _options: IOpenSSLContextFactory
    #: The names of the protocols that its connections can be asked for, the best first.
    _spoken: tuple[bytes, ...] = ()

    def __init__(self, description: str, reactor: Any):
        self._description = description
        self._reactor = reactor
        self._endpoint = _described(description, self)

    def listen(self, factory: Any) -> Deferred[IListeningPort]:
        """Listen; a Deferred of the port."""
        listening: Deferred[IListeningPort] = self._endpoint.listen(factory)
        return listening

    def read_anew(self) -> None:
        """Read the files; the connections from now on get what is in them, those that are open keep what they have.

        :raises ConfigError: for a key or certificate that cannot be used; the old ones still hold.
        """
        endpoint: Any = _described(self._description, self)
        endpoint.listen(None)

    def listenSSL(
        self, port: int, factory: Any, contextFactory: IOpenSSLContextFactory, backlog: int, interface: str
    ) -> IListeningPort | None:
        """Take what the endpoint made of its files; called by it."""
        if factory is not None:
            negotiating = IProtocolNegotiationFactory(factory, None)
            self._spoken = () if negotiating is None else tuple(negotiating.acceptableProtocols())
        contextFactory.getContext().set_alpn_select_callback(self._chosen)
        self._options = contextFactory
        if factory is None:
            return None
        listening: IListeningPort = self._reactor.listenSSL(port, factory, self, backlog, interface)
        return listening

    def getContext(self) -> SSL.Context:
        """The context of a new connection."""
        return self._options.getContext()

    def _chosen(self, connection: SSL.Connection, offered: Sequence[bytes]) -> bytes:
        """The first of our protocols that a client offers.

        :raises SSL.Error: where it offers others only, which OpenSSL then tells it: ``no_application_protocol``
            (:rfc:`7301`), where Twisted would have it tell of an error of ours.
        """
        for protocol in self._spoken:
            if protocol in offered:
                return protocol
        raise SSL.Error([("ssl", "", "no application protocol")])


@implementer(IStreamServerEndpoint)
class UnixEndpoint:
    """A ``unix:`` endpoint that takes the place of a dead server, however that died, and never that of a living one.

    Twisted's own lock is a link to a process id, which it believes as long as any process has that: in a container, or
    after a power failure, its own. So the endpoint is given this for its reactor, which asks the socket itself.

    :param description: the endpoint.
    :param reactor: the reactor.
    :raises ConfigError: as :func:`server_endpoints` does.
    """

    def __init__(self, description: str, reactor: Any):
        self._reactor = reactor
        by_place, by_name = split_endpoint(description)
        path = by_name.get("address", by_place[1] if len(by_place) > 1 else "")
        # The socket itself is open, as a port is. What lies beside it could be replaced as it could.
        beside = os.path.join(os.path.dirname(os.path.abspath(path)), f".{os.path.basename(path)}.lock")
        if path and not path.startswith("\0") and (reason := open_to_everybody(beside)):
            raise ConfigError(_OPTION, f"somebody else could listen in the place of {path}: {reason}")
        self._endpoint = _described(description, self)

    def listen(self, factory: Any) -> Deferred[IListeningPort]:
        """Listen; a Deferred of the port."""
        listening: Deferred[IListeningPort] = self._endpoint.listen(factory)
        return listening

    def listenUNIX(self, address: str, factory: Any, backlog: int, mode: int, wantPID: bool) -> IListeningPort:
        """Listen on the path, if nobody does; called by the endpoint.

        :raises CannotListenError: when somebody does.
        """
        if address.startswith("\0"):
            # A name of Linux's that is no file, and ends with its holder.
            abstract: IListeningPort = self._reactor.listenUNIX(address, factory, backlog, mode, False)
            return abstract
        path = Path(address)
        if not path.name:
            raise CannotListenError(None, address, OSError(errno.EISDIR, os.strerror(errno.EISDIR)))
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            if not lock.take():
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
            _remove_dead_socket(path)
            port: Any = self._reactor.listenUNIX(address, factory, backlog, mode, False)
        except OSError as error:
            lock.release()
            raise CannotListenError(None, address, error) from error
        except BaseException:
            lock.release()
            raise
        keep_from_children(lock)
        # The port gives it back after it has removed its socket.
        port.lockFile = SimpleNamespace(unlock=lock.release)
        listening: IListeningPort = port
        return listening


def _remove_dead_socket(path: Path) -> None:
    """Remove a socket on which nobody listens, with what Twisted's lock left beside it.

    :raises OSError: when somebody listens there, when that cannot be told, or when it is no socket.
    """
    try:
        if stat.S_ISSOCK(path.lstat().st_mode):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
                asking.setblocking(False)
                asking.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        lock = path.with_name(f"{path.name}.lock")
        if lock.is_symlink():
            lock.unlink(missing_ok=True)
        return
    except PermissionError:
        raise
    except OSError:
        # It is too busy, or of another kind.
        pass
    raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _endpoint(description: str, reactor: Any) -> IStreamServerEndpoint:
    kind, _, inner = description.partition(":")
    if kind == "haproxy":
        if split_endpoint(inner)[0][:1] == ["ssl"]:
            raise ConfigError(
                _OPTION,
                f"{description!r} cannot be used: the header of a proxy comes before TLS, and would be read within it; "
                "let the proxy end TLS and listen on haproxy:tcp:, or listen on ssl: without a header",
            )
        return ProxiedEndpoint(_endpoint(inner, reactor))
    if split_endpoint(description)[0][:1] == ["unix"]:
        return UnixEndpoint(description, reactor)
    return TLSEndpoint(description, reactor) if _tls_files(description) else _described(description, reactor)


def _described(description: str, reactor: Any) -> IStreamServerEndpoint:
    files = _tls_files(description)
    for check, path in zip((_check_key, _check_certificate), files, strict=False):
        check(path)
    by_name = split_endpoint(description)[1] if files else {}
    for name in _READ_BESIDES & by_name.keys():
        read_file(Path(by_name[name]), _OPTION, name)
    try:
        endpoint: IStreamServerEndpoint = serverFromString(reactor, description)
    except VerifyError:
        both = " and the certificate ".join(map(str, files))
        raise ConfigError(_OPTION, f"the TLS key {both} do not belong together") from None
    except Exception as error:
        # Each kind of endpoint has its own way to say what it lacks: a file, a number, a name.
        reason = str(error) or type(error).__name__
        raise ConfigError(_OPTION, f"{description!r} cannot be used: {reason}") from error
    return endpoint


def _tls_files(description: str) -> tuple[Path, ...]:
    """The key and the certificate of an ``ssl:`` endpoint, with Twisted's own defaults; of any other none."""
    by_place, by_name = split_endpoint(description)
    if by_place[:1] != ["ssl"]:
        return ()
    key = by_name.get("privateKey", "server.pem")
    return Path(key), Path(by_name.get("certKey", key))


def _check_key(path: Path) -> None:
    content = read_file(path, _OPTION, "the TLS key")
    status = path.stat()
    # As PostgreSQL has it: a key of root's may be lent to a group, any other is its owner's alone.
    allowed = 0o640 if status.st_uid == 0 else 0o600
    if status.st_mode & 0o077 & ~allowed:
        raise ConfigError(
            _OPTION, f"the TLS key {path} can be read by others (mode {status.st_mode & 0o777:04o}); chmod 600 {path}"
        )
    if b"ENCRYPTED" in content:
        raise ConfigError(
            _OPTION,
            f"the TLS key {path} is encrypted, and nobody is there to give its password; store it without one, "
            "with mode 0600",
        )
    try:
        crypto.load_privatekey(crypto.FILETYPE_PEM, content)
    except (crypto.Error, TypeError, ValueError):
        raise ConfigError(_OPTION, f"the TLS key {path} is no private key in PEM") from None


def _check_certificate(path: Path) -> None:
    content = read_file(path, _OPTION, "the TLS certificate")
    try:
        certificate = crypto.load_certificate(crypto.FILETYPE_PEM, content)
    except (crypto.Error, ValueError):
        raise ConfigError(_OPTION, f"the TLS certificate {path} is no certificate in PEM") from None
    if certificate.has_expired():
        # Who renews it may need the server running; who checks it will not connect.
        _log.warn("WARNING: the TLS certificate {path} has expired; clients will refuse it", path=str(path))


@implementer(IAddress)
class _Untold:
    """The address of a client that a header will tell."""

    host = ""


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """An endpoint whose connections begin with a header that says where their client is: ``haproxy:``.

    Twisted's own hangs up on a header that comes in small pieces, and does not tell when one has come: the client may
    say nothing for a while after it.

    :param endpoint: where they come in. Whoever reaches it is believed.
    :ivar below: that endpoint.
    """

    def __init__(self, endpoint: IStreamServerEndpoint):
        self.below = endpoint

    def listen(self, factory: Any) -> Deferred[IListeningPort]:
        """Listen; a protocol of ``factory`` is made with an address whose ``host`` is empty, and its ``proxied`` is
        called when the header has come: ``getPeer`` and ``getHost`` of its transport are those of the client then."""
        return self.below.listen(_Proxied(factory))


class _Proxied(WrappingFactory):
    noisy = False

    def buildProtocol(self, addr: IAddress | None) -> Any:
        factory: Any = self
        return _Connection(factory, self.wrappedFactory.buildProtocol(_Untold()) or _Nobody())


class _Nobody(Protocol):
    """Hangs up: there is no room."""

    def connectionMade(self) -> None:
        transport: Any = self.transport
        transport.abortConnection()


class _Connection(ProtocolWrapper):
    """One connection, which stands between its transport and the protocol that reads what follows the header."""

    #: As far as it has come; ``None`` once it has been read.
    _header: bytes | None = b""
    _source: Any = None
    _destination: Any = None
    wrappedProtocol: Any  # noqa: N815 (the name is Twisted's)

    def dataReceived(self, data: bytes) -> None:
        """Read the header, then pass on what comes."""
        if self._header is not None:
            self._header += data
            try:
                told = read_proxy_header(self._header)
            except ValueError:
                self.wrappedProtocol.drop("proxy_header")
                return
            if told is None:
                return
            end, self._source, self._destination = told[0], _address(told[1]), _address(told[2])
            data, self._header = self._header[end:], None
            self.wrappedProtocol.proxied()
        if data:
            self.wrappedProtocol.dataReceived(data)

    def getPeer(self) -> Any:  # noqa: N802 (the name is Twisted's)
        """The address of the client, once it is told."""
        return self._source or self._below.getPeer()

    def getHost(self) -> Any:
        """The address that the client has connected to, once it is told."""
        return self._destination or self._below.getHost()

    @property
    def _below(self) -> Any:
        return self.transport


def _address(place: tuple[str, int] | None) -> Any:
    if place is None:
        return None
    if place[0] == UNIX:
        return UNIXAddress(None)
    return (IPv6Address if ":" in place[0] else IPv4Address)("TCP", *place)
