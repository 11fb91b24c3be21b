"""The PROXY protocol, versions 1 and 2, in front of a connection: ``haproxy:`` endpoints.

Twisted's own wrapper hangs up on a header that comes in small pieces, and does not tell when one has come: the client
may say nothing for a while after it. The headers are read by Twisted's parsers.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IListeningPort, IStreamServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.protocols.haproxy._exceptions import InvalidProxyHeader
from twisted.protocols.haproxy._v1parser import V1Parser
from twisted.protocols.haproxy._v2parser import V2Parser
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from zope.interface import implementer

__all__ = ["ProxiedEndpoint"]

#: Bytes of the longest header of version 1, its line end included, and of a header of version 2 without addresses.
LONGEST_V1, FIXED_V2 = 107, 16


@implementer(IAddress)
class _Untold:
    """The address of a client that a header will tell."""

    host = ""


@implementer(IStreamServerEndpoint)
class ProxiedEndpoint:
    """An endpoint whose connections begin with a header that says where their client is.

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
    _info: Any = None
    wrappedProtocol: Any  # noqa: N815 (the name is Twisted's)

    def dataReceived(self, data: bytes) -> None:
        """Read the header, then pass on what comes."""
        if self._header is not None:
            self._header += data
            try:
                end = self._end_of_header(self._header)
            except (InvalidProxyHeader, ValueError, KeyError):
                # Where a header should be there may be anything.
                self.wrappedProtocol.drop("proxy_header")
                return
            if end is None:
                return
            data, self._header = self._header[end:], None
            self.wrappedProtocol.proxied()
        if data:
            self.wrappedProtocol.dataReceived(data)

    def _end_of_header(self, data: bytes) -> int | None:
        """Read the header at the start of ``data``; returns its length, or ``None`` where it is not all there."""
        prefix = V2Parser.PREFIX
        if data.startswith(prefix):
            end = FIXED_V2 + int.from_bytes(data[14:16], "big")
            if len(data) < FIXED_V2 or len(data) < end:
                return None
            self._info = V2Parser.parse(data[:end])
            return end
        if data.startswith(b"PROXY "):
            end = data.find(b"\r\n", 0, LONGEST_V1)
            if end >= 0:
                # Twisted's parser takes this for the name of no protocol where nothing follows it.
                if data[:end] != b"PROXY UNKNOWN":
                    self._info = V1Parser.parse(data[:end])
                return end + 2
            if len(data) < LONGEST_V1:
                return None
        elif prefix.startswith(data) or b"PROXY ".startswith(data):
            return None
        raise InvalidProxyHeader

    def getPeer(self) -> Any:  # noqa: N802 (the name is Twisted's)
        """The address of the client, once it is told."""
        return (self._info and self._info.source) or self._below.getPeer()

    def getHost(self) -> Any:
        """The address that the client has connected to, once it is told."""
        return (self._info and self._info.destination) or self._below.getHost()

    @property
    def _below(self) -> Any:
        return self.transport
