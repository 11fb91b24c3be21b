"""Three ways for the same clients to reach the same server: plain calls, frames in memory, TCP.

A *world* is a server and the means to join it; a *party* is one client in it. Tests of behaviour use
nothing else, so that each runs unchanged in all three.
"""

from __future__ import annotations

import json
from typing import Any

from support.rawclient import Opcode, RawClient, Response, connect, handshake
from support.waiting import DEADLINE, wait_until
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionDone
from twisted.python.failure import Failure
from twisted.test.iosim import FakeTransport

from zcomm import Identity, Limits, WebSocketConfig, zBifrost
from zcomm.bifrost.connection import Connection
from zcomm.testing import MemoryServer
from zcomm.testing.server import _Tokens, _VirtualReactor

__all__ = ["WORLDS", "IDENTITIES", "Party", "World"]

IDENTITIES = {
    "alice-token": Identity("alice", "admin", "1"),
    "bob-token": Identity("bob", "admin", "2"),
    "guest-token": Identity("guest", "guest", "3"),
}


class Party:
    """One client: what it was sent, message by message, and how its connection ended."""

    def __init__(self, world: World):
        self.world = world
        self.ids = iter(range(1, 10**6))

    def items(self) -> list[Any]:
        """Messages that came, not yet taken: the list itself."""
        raise NotImplementedError

    def ending(self) -> tuple[int, str] | None:
        """Close code and reason; 1006 without a close frame; ``None`` while it lasts."""
        raise NotImplementedError

    def is_decided(self) -> bool:
        """Whether it is let in, refused or gone."""
        raise NotImplementedError

    def send(self, message: Any) -> None:
        """Text as it is, bytes as a binary message, anything else as JSON."""
        raise NotImplementedError

    def vanish(self) -> None:
        """Leave without a goodbye."""
        raise NotImplementedError

    def stop_reading(self) -> None:
        """Take nothing."""
        raise NotImplementedError

    def read_again(self) -> None:
        """Take what waits, and what comes."""
        raise NotImplementedError

    async def next(self) -> Any:
        """The next message."""
        await self.world.until(lambda: self.items() or self.ending() is not None, "a message")
        assert self.items(), f"the connection ended with {self.ending()}"
        return self.items().pop(0)

    async def reply(self, request_id: int | str) -> Any:
        """The reply to that request, whatever else comes before it."""

        def found() -> Any:
            return [item for item in self.items() if isinstance(item, dict) and item.get("_requestId") == request_id]

        await self.world.until(lambda: found() or self.ending() is not None, f"the reply to {request_id}")
        message = found()[0]
        self.items().remove(message)
        return message

    async def call(self, key: str, *horizontal: Any) -> Any:
        """A command's reply without its id."""
        number = next(self.ids)
        message = {"zKey": key, "_requestId": number}
        if horizontal:
            message["zHorizontal"] = horizontal[0]
        self.send(message)
        reply = dict(await self.reply(number))
        del reply["_requestId"]
        return reply

    async def ended(self) -> tuple[int, str]:
        """The end of the connection, which is waited for."""
        await self.world.until(lambda: self.ending() is not None, "the end of the connection")
        return self.ending()


class World:
    """A server; ``options`` are fields of ``WebSocketConfig`` and ``Limits``.

    :ivar bifrost: to register commands on.
    """

    bifrost: zBifrost

    @staticmethod
    def configured(options: dict[str, Any]) -> WebSocketConfig:
        limits = {name: options.pop(name) for name in list(options) if name in Limits.__slots__}
        return WebSocketConfig(port=0, limits=Limits(**limits), **options)

    async def start(self) -> None:
        """Let clients come."""

    async def join(self, token: str | None = "alice-token", **how: Any) -> Party:
        """A client, admitted or refused already."""
        party = await self.arrive(token, **how)
        await self.until(party.is_decided, "the answer to the handshake")
        return party

    async def arrive(self, token: str | None = "alice-token", **how: Any) -> Party:
        """A client that has asked to be let in."""
        raise NotImplementedError

    async def until(self, condition: Any, what: str) -> Any:
        """Let time pass until ``condition()`` is true."""
        raise NotImplementedError

    async def settled(self) -> None:
        """Let everything happen that takes no time: a round trip of a client that nobody else is."""
        witness = await self.join("bob-token")
        assert await witness.call("ping") == {"result": "ping"}
        witness.vanish()
        await self.until(lambda: witness.ending() is not None, "the witness to leave")

    def stop(self) -> Deferred[None]:
        """Shut the server down."""
        return self.bifrost.stopService()

    async def end(self) -> None:
        """Leave nothing behind."""


class MemoryParty(Party):
    """A client of ``zcomm.testing``."""

    def __init__(self, world: World, client: Any):
        super().__init__(world)
        self.client = client

    def items(self) -> list[Any]:
        return self.client.messages

    def ending(self) -> tuple[int, str] | None:
        closed = self.client.closed
        return None if closed is None else (closed.code, closed.reason)

    def is_decided(self) -> bool:
        return self.client.closed is not None or self.client._channel._session is not None

    def send(self, message: Any) -> None:
        self.client.send(message)

    def vanish(self) -> None:
        self.client.vanish()

    def stop_reading(self) -> None:
        self.client.stop_reading()

    def read_again(self) -> None:
        self.client.read_again()


class MemoryWorld(World):
    """No frames, no sockets, no time."""

    def __init__(self, permissions: Any = None, checker: Any = None, **options: Any):
        tokens = None if options.get("require_auth") is False else IDENTITIES
        self.server = MemoryServer(tokens=tokens, checker=checker, permissions=permissions, **options)
        self.bifrost = self.server.bifrost

    async def arrive(self, token: str | None = "alice-token", **how: Any) -> Party:
        return MemoryParty(self, self.server.connect(token, **how))

    async def until(self, condition: Any, what: str) -> Any:
        self.server.settle()
        for _ in range(int(DEADLINE * 20)):
            if value := condition():
                return value
            self.server.advance(0.05)
        raise AssertionError(f"waited {DEADLINE} virtual seconds for {what}")

    def stop(self) -> Deferred[None]:
        return self.server.stop()


class WireParty(Party):
    """A client that speaks frames; it answers pings and goodbyes as browsers do."""

    def __init__(self, world: World, client: RawClient):
        super().__init__(world)
        self.client = client
        self.seen = 0
        self._items: list[Any] = []
        self._code: tuple[int, str] | None = None
        self.reading = True

    def items(self) -> list[Any]:
        if not self.reading:
            return []
        while self.seen < len(self.client.received):
            item = self.client.received[self.seen]
            self.seen += 1
            if isinstance(item, Response):
                if item.status != 101:
                    self._code = 1006, f"HTTP {item.status}"
            elif item.opcode == Opcode.TEXT:
                try:
                    self._items.append(item.json)
                except ValueError:
                    self._items.append(item.text)
            elif item.opcode == Opcode.PING:
                self.client.send_frame(Opcode.PONG, item.payload)
            elif item.opcode == Opcode.CLOSE:
                self._code = item.close_code or 1005, item.close_reason
                self.client.send_close(item.close_code)
        return self._items

    def ending(self) -> tuple[int, str] | None:
        self.items()
        if self._code is None and self.client.ended:
            self._code = 1006, ""
        return self._code

    def is_decided(self) -> bool:
        return bool(self.client.received) or self.client.ended

    def send(self, message: Any) -> None:
        if isinstance(message, bytes):
            self.client.send_frame(Opcode.BINARY, message)
        elif isinstance(message, str):
            self.client.send_text(message)
        else:
            self.client.send_text(json.dumps(message))

    def vanish(self) -> None:
        self._code = self._code or (1006, "")
        self.client.abort()

    def stop_reading(self) -> None:
        self.reading = False
        self.client.stop_reading()

    def read_again(self) -> None:
        self.reading = True
        self.client.read_again()


HERE = IPv4Address("TCP", "127.0.0.1", 40000)


class _Pipe(FakeTransport):
    """iosim's transport with what it lacks: pausing, a full buffer, a reset."""

    HIGH_WATER = 64 * 1024
    paused = False
    aborted = False

    def __init__(self, protocol: Any, is_server: bool):
        super().__init__(protocol, is_server, HERE, HERE)

    def write(self, data: bytes) -> None:
        super().write(data)
        if self.producer is not None and sum(map(len, self.stream)) > self.HIGH_WATER:
            self.producer.pauseProducing()

    def pauseProducing(self) -> None:
        self.paused = True

    def resumeProducing(self) -> None:
        self.paused = False

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True

    def lost(self) -> None:
        if not self.disconnected:
            self.disconnected = True
            self.protocol.connectionLost(Failure(ConnectionDone()))

    def flow_to(self, other: _Pipe) -> None:
        """Carry what was written here to the other end, unless that one takes nothing now."""
        if not other.paused and not self.disconnected and not other.disconnected:
            data = self.getOutBuffer()
            if data:
                other.bufferReceived(data)
            if self.producer is not None and not self.stream:
                self.producer.resumeProducing()
        if self.aborted or self.disconnecting and not self.stream:
            self.lost()
            other.lost()


class IosimWorld(World):
    """The real protocol and real frames on transports in memory, on a clock of their own."""

    def __init__(self, permissions: Any = None, checker: Any = None, **options: Any):
        self.clock = _VirtualReactor()
        config = self.configured(options)
        self.bifrost = zBifrost(
            config,
            checker=(checker or _Tokens(IDENTITIES)) if config.require_auth else None,
            permissions=permissions,
            reactor=self.clock,
        )
        self.pipes: list[tuple[_Pipe, _Pipe]] = []

    async def start(self) -> None:
        # On a port that opens nothing.
        await self.bifrost.listen()

    async def arrive(self, token: str | None = "alice-token", **how: Any) -> Party:
        server = self.bifrost.factory.buildProtocol(HERE)
        client = RawClient(handshake("127.0.0.1", token=token, **how))
        near, far = _Pipe(server, True), _Pipe(client, False)
        if server is None:
            client.makeConnection(far)
            far.lost()
            return WireParty(self, client)
        self.pipes.append((near, far))
        server.makeConnection(near)
        client.makeConnection(far)
        far.flow_to(near)
        return WireParty(self, client)

    async def until(self, condition: Any, what: str) -> Any:
        for _ in range(int(DEADLINE * 20)):
            for _ in range(4):
                for near, far in self.pipes:
                    far.flow_to(near)
                    near.flow_to(far)
                self.clock.advance(0)
            if value := condition():
                return value
            self.clock.advance(0.05)
        raise AssertionError(f"waited {DEADLINE} virtual seconds for {what}")


class LoopbackWorld(World):
    """The real thing."""

    def __init__(
        self, permissions: Any = None, checker: Any = None, connection: type[Connection] = Connection, **options: Any
    ):
        from twisted.internet import reactor

        self.reactor = reactor
        config = self.configured(options)
        self.bifrost = zBifrost(
            config,
            checker=(checker or _Tokens(IDENTITIES)) if config.require_auth else None,
            permissions=permissions,
            reactor=reactor,
            connection=connection,
        )
        self.clients: list[RawClient] = []

    async def start(self) -> None:
        await self.bifrost.listen()

    async def arrive(self, token: str | None = "alice-token", **how: Any) -> Party:
        port = self.bifrost.port
        client = await connect(port, handshake(f"127.0.0.1:{port}", token=token, **how))
        self.clients.append(client)
        return WireParty(self, client)

    def until(self, condition: Any, what: str) -> Any:
        return wait_until(condition, what)

    async def end(self) -> None:
        for client in self.clients:
            if not client.ended:
                client.abort()
                await client.when_ended()
        await self.bifrost.stopService()


WORLDS = {"memory": MemoryWorld, "iosim": IosimWorld, "loopback": LoopbackWorld}
