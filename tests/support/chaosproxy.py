"""A proxy between a client and a server that does what networks do: stall, cut, refuse, delay.

It runs on the reactor of the test; whatever blocks that one stalls the proxy as well::

    async with ChaosProxy(server.address) as proxy:
        client = await connect("127.0.0.1", proxy.port)
        proxy.stall("to_client")  # The server gets what the client sends, and its answers are lost:
        ...
        proxy.cut()
        proxy.go_on()
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any, Literal

from support.ports import unused_port
from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.endpoints import TCP4ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IPushProducer
from twisted.internet.protocol import Factory, Protocol
from twisted.python.failure import Failure
from zope.interface import implementer

__all__ = ["ChaosProxy", "Direction"]

Direction = Literal["to_server", "to_client"]
DIRECTIONS: tuple[Direction, ...] = ("to_server", "to_client")

#: Ports that are tried where another program was quicker with one.
ATTEMPTS = 5
#: Seconds for a connection to a server of this machine.
PATIENCE = 20


class ChaosProxy:
    """A port of the loopback before a server, within an ``async with`` block or from :meth:`start` to :meth:`stop`.

    :param target: the server's address and port, or the path of its Unix socket.
    :param port: to listen on; one that nobody has when it is left out.
    :ivar port: that it listens on; it is the same after :meth:`refuse`.
    :ivar accepted: connections there were, from the start.
    :ivar passed: bytes that went through, by direction.
    """

    def __init__(self, target: tuple[str, int] | Path, *, port: int = 0, reactor: Any = None):
        if reactor is None:
            from twisted.internet import reactor
        self.reactor = reactor
        self.port = port
        self.accepted = 0
        self.passed: dict[Direction, int] = dict.fromkeys(DIRECTIONS, 0)
        self.stalled: set[Direction] = set()
        self.seconds: dict[Direction, float] = dict.fromkeys(DIRECTIONS, 0.0)
        self.links: set[Link] = set()
        self._chosen = bool(port)
        self._listening: Any = None
        self.target: Any = (
            UNIXClientEndpoint(reactor, str(target), timeout=PATIENCE)
            if isinstance(target, Path)
            else TCP4ClientEndpoint(reactor, *target, timeout=PATIENCE)
        )

    async def __aenter__(self) -> ChaosProxy:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    @property
    def address(self) -> tuple[str, int]:
        """The address and port it listens on."""
        return "127.0.0.1", self.port

    @property
    def open(self) -> int:
        """Connections there are now."""
        return len(self.links)

    @property
    def waiting(self) -> int:
        """Pieces of what was sent that wait here for their time."""
        return sum(flow.waiting for link in self.links for flow in link.flows)

    def start(self) -> None:
        """Accept connections from now on."""
        if self._listening is not None:
            return
        factory = Factory.forProtocol(Side)
        factory.noisy = False
        factory.buildProtocol = lambda _: Link(self).client
        for attempt in range(ATTEMPTS):
            # Not 0: the system would give the same port to others while connections are refused.
            port = self.port if self._chosen else unused_port()
            try:
                self._listening = self.reactor.listenTCP(port, factory, interface="127.0.0.1")
            except CannotListenError:
                if self._chosen or attempt == ATTEMPTS - 1:
                    raise
                continue
            self.port, self._chosen = port, True
            return

    def stop(self) -> Deferred[Any]:
        """Refuse and cut everything; fires when no socket is left."""
        ends = [link.ended for link in self.links]
        closed = self.refuse()
        self.cut()
        return DeferredList([closed, *ends], fireOnOneErrback=True)

    def refuse(self) -> Deferred[Any]:
        """Refuse connections from now on; those there are stay. Fires when the port is closed."""
        listening, self._listening = self._listening, None
        closed = Deferred[Any]()
        if listening is None:
            closed.callback(None)
        else:
            listening.stopListening().chainDeferred(closed)
        return closed

    def stall(self, direction: Direction | None = None) -> None:
        """Pass nothing on any more, in one direction or both, also on connections that come later. Connections stay,
        and what is sent waits in the kernel until there is no room."""
        self.stalled |= {direction} if direction else set(DIRECTIONS)
        for link in self.links:
            link.look()

    def delay(self, seconds: float, direction: Direction | None = None) -> None:
        """Pass on what comes from now on so much later, in order, in one direction or both."""
        for one in (direction,) if direction else DIRECTIONS:
            self.seconds[one] = seconds

    def cut(self) -> int:
        """Reset all connections, on both sides; what was stalled or delayed in them is lost. The number of them."""
        links = list(self.links)
        for link in links:
            link.cut()
        return len(links)

    def go_on(self) -> None:
        """End :meth:`stall`, :meth:`delay` and :meth:`refuse`."""
        self.stalled.clear()
        self.delay(0)
        for link in self.links:
            link.look()
        self.start()


class Link:
    """A client's connection and that to the server.

    :ivar ended: fires when both have ended.
    """

    def __init__(self, proxy: ChaosProxy):
        self.proxy = proxy
        self.client, self.server = Side(self), Side(self)
        self.flows: tuple[Flow, ...] = ()
        self.ended: Deferred[None] = Deferred()
        self._is_cut = False
        self._connecting: Deferred[Any] | None = None

    def made(self, side: Side) -> None:
        if side is self.server:
            return
        self.proxy.links.add(self)
        self.proxy.accepted += 1
        # What it says at once waits for the other connection.
        side.transport.pauseProducing()
        factory = Factory()
        factory.noisy = False
        factory.buildProtocol = lambda _: self.server
        self._connecting = self.proxy.target.connect(factory)
        self._connecting.addCallbacks(self._connected, lambda _: self.cut())

    def _connected(self, _: object) -> None:
        self._connecting = None
        if self._is_cut:
            self.server.transport.abortConnection()
            return
        self.flows = (
            Flow(self.proxy, "to_server", self.client, self.server),
            Flow(self.proxy, "to_client", self.server, self.client),
        )
        self.look()

    def look(self) -> None:
        """Do what the proxy is told now."""
        for flow in self.flows:
            flow.look()

    def received(self, side: Side, data: bytes) -> None:
        self.flows[side is self.server].add(data)

    def lost(self, side: Side, reason: Failure) -> None:
        other = self.server if side is self.client else self.client
        if not other.is_open:
            for flow in self.flows:
                flow.clear()
            if self._connecting is not None:
                self._connecting.cancel()
            self.proxy.links.discard(self)
            if not self.ended.called:
                self.ended.callback(None)
        elif reason.check(ConnectionDone) and not self._is_cut:
            # What it said before goes first.
            self.flows[side is self.server].finish()
        else:
            self.cut()

    def cut(self) -> None:
        self._is_cut = True
        for flow in self.flows:
            flow.clear()
        for side in (self.client, self.server):
            if side.is_open:
                side.transport.abortConnection()


class Side(Protocol):
    """One of the two connections of a link."""

    transport: Any
    is_open = False

    def __init__(self, link: Link):
        self._link = link

    def connectionMade(self) -> None:
        self.is_open = True
        # A Unix socket has no such thing.
        if hasattr(self.transport, "setTcpNoDelay"):
            self.transport.setTcpNoDelay(True)
        self._link.made(self)

    def dataReceived(self, data: bytes) -> None:
        self._link.received(self, data)

    def connectionLost(self, reason: Failure = ConnectionDone) -> None:
        self.is_open = False
        self._link.lost(self, reason)


@implementer(IPushProducer)
class Flow:
    """What goes from one side to the other: it waits here for its time, and in the kernel while all is stalled."""

    def __init__(self, proxy: ChaosProxy, direction: Direction, source: Side, sink: Side):
        self._proxy, self._direction, self._source, self._sink = proxy, direction, source, sink
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._timer: Any = None
        self._is_full = self._is_finished = False
        sink.transport.registerProducer(self, True)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, data: bytes) -> None:
        # A shorter delay does not let it overtake what came before: only the first is looked at.
        self._waiting.append((self._proxy.reactor.seconds() + self._proxy.seconds[self._direction], data))
        self.look()

    def look(self) -> None:
        """Pass on what is due, and read or not."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        is_stalled = self._direction in self._proxy.stalled
        while self._waiting and not is_stalled and self._sink.is_open:
            wait = self._waiting[0][0] - self._proxy.reactor.seconds()
            if wait > 0:
                self._timer = self._proxy.reactor.callLater(wait, self._again)
                break
            data = self._waiting.popleft()[1]
            self._proxy.passed[self._direction] += len(data)
            self._sink.transport.write(data)
        if self._is_finished and not self._waiting and self._sink.is_open:
            self._sink.transport.unregisterProducer()
            self._sink.transport.loseConnection()
        if self._source.is_open:
            if is_stalled or self._is_full:
                self._source.transport.pauseProducing()
            else:
                self._source.transport.resumeProducing()

    def _again(self) -> None:
        self._timer = None
        self.look()

    def finish(self) -> None:
        """Close the other side when all has been passed on."""
        self._is_finished = True
        self.look()

    def clear(self) -> None:
        self._waiting.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pauseProducing(self) -> None:
        self._is_full = True
        self.look()

    def resumeProducing(self) -> None:
        self._is_full = False
        self.look()

    def stopProducing(self) -> None:
        """The other side is gone, as its own connectionLost says."""
