"""Insides of Twisted and of Python that zComm touches: the installed versions have each of them."""

from __future__ import annotations

import atexit
import errno
import os
import select
from pathlib import Path

import pytest
import pytest_twisted
from twisted.internet import _signals, tcp
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.protocol import Factory, Protocol
from twisted.logger import globalLogBeginner
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.logfile import LogFile

from zcomm.runtime import transports
from zcomm.runtime.process import open_log_files


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (AsyncioSelectorReactor, "_disconnectSelectable"),
        (_signals, "_SIGCHLDWaker"),
        (tcp.Port, "_buildAddr"),
        (tcp.Port, "doRead"),
        (tcp.Port, "_logger"),
        (tcp.Connection, "doRead"),
        (tcp.Connection, "dataBuffer"),
        (tcp.Connection, "offset"),
        (atexit, "_run_exitfuncs"),
        (globalLogBeginner, "_temporaryObserver"),
        pytest.param(select, "epoll", marks=pytest.mark.skipif(not hasattr(select, "epoll"), reason="Linux's")),
    ],
)
def test_each_inside_that_is_touched_exists(owner: object, name: str):
    """What is on a class or in a module."""
    assert hasattr(owner, name)


def test_a_reactor_over_asyncio_keeps_its_loop_its_readers_and_its_wakers():
    """What an instance has, and what kind it is."""
    import asyncio

    reactor = AsyncioSelectorReactor(asyncio.new_event_loop())
    try:
        assert isinstance(reactor._asyncioEventloop, asyncio.AbstractEventLoop)
        assert isinstance(reactor._readers, dict) and isinstance(reactor._internalReaders, set)
    finally:
        for reader in list(reactor._internalReaders):
            reactor.removeReader(reader)
            reader.connectionLost(None)
        reactor._asyncioEventloop.close()


@pytest_twisted.ensureDeferred
async def test_a_transport_tells_what_it_holds_and_lets_its_reads_be_taken_over():
    """On a connection of Twisted's own, at both of its ends."""
    from support.waiting import wait_until
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

    made: list[Protocol] = []
    factory = Factory.forProtocol(Protocol)
    factory.noisy = False

    def build(addr: object) -> Protocol:
        made.append(Protocol())
        return made[-1]

    factory.buildProtocol = build
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Protocol())
    try:
        await wait_until(lambda: made and made[0].transport, "the other end")
        transport = made[0].transport
        assert transports.is_plain(transport) and transports.holds_nothing(transport)
        assert transports.bytes_held(transport) == 0
        transport.write(b"12345")
        assert transports.bytes_held(transport) == 5 and not transports.holds_nothing(transport)
        paused: list[str] = []

        class Producer:
            def pauseProducing(self) -> None:
                paused.append("paused")

            def resumeProducing(self) -> None:
                paused.append("resumed")

            def stopProducing(self) -> None:
                paused.append("stopped")

        transport.registerProducer(Producer(), True)
        transports.pause_above(transport, 5)
        assert paused == []
        acknowledged = transports.bytes_acknowledged(transport)
        for _ in range(2):
            transports.pause_above(transport, 4)
        await wait_until(lambda: paused == ["paused", "resumed"], "the transport to be empty")
        await wait_until(lambda: transports.bytes_acknowledged(transport) == acknowledged + 5, "the other's system")
        assert transports.bytes_unacknowledged(transport) == 0
        transports.pause_above(transport, 0)
        transport.unregisterProducer()
        assert paused == ["paused", "resumed"]
        reads: list[bool] = []
        assert transports.read_instead(transport, lambda: reads.append(True))
        transport.doRead()
        assert reads == [True]
        transports.stop_reading_instead(transport)
        assert transport.doRead.__func__ is transports.read_as_usual
        assert transports.bytes_held(object()) is None and not transports.is_plain(object())
        assert not transports.read_instead(object(), lambda: None)
    finally:
        client.transport.abortConnection()
        made[0].transport.abortConnection()
        await port.stopListening()


@pytest_twisted.ensureDeferred
async def test_reads_below_a_transport_bring_little_and_are_taken_over():
    """With a protocol between, as TLS is one; a socket of its own is left as it was."""
    from support.waiting import wait_until
    from twisted.internet import reactor
    from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

    came: list[int] = []
    made: list[ProtocolWrapper] = []

    class Between(ProtocolWrapper):
        def connectionMade(self) -> None:
            made.append(self)
            transports.read_pieces_below(self, 1000)
            super().connectionMade()

        def dataReceived(self, data: bytes) -> None:
            came.append(len(data))

    factory = WrappingFactory(Factory.forProtocol(Protocol))
    factory.protocol, factory.noisy = Between, False
    port = reactor.listenTCP(0, factory, interface="127.0.0.1")
    client = await connectProtocol(TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port), Protocol())
    try:
        await wait_until(lambda: made, "the other end")
        client.transport.write(b"x" * 10_000)
        await wait_until(lambda: sum(came) == 10_000, "all of it")
        assert max(came) <= 1000
        above = made[0]
        taken: list[object] = []
        transports.read_instead_below(above, taken.append)
        above.transport.doRead()
        assert taken == [above.transport]
        transports.stop_reading_instead(above)
        assert above.transport.doRead.__func__ is transports.read_as_usual
        size = client.transport.bufferSize
        transports.read_pieces_below(client.transport, 1000)
        transports.read_instead_below(client.transport, taken.append)
        assert client.transport.bufferSize == size and len(taken) == 1
        assert client.transport.doRead.__func__ is transports.read_as_usual
        transports.read_pieces_below(object(), 1000)
    finally:
        client.transport.abortConnection()
        made[0].transport.abortConnection()
        await port.stopListening()


def test_contact_a_rotation_that_fails_ends_no_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Twisted has closed the file by then; each line is in one of the files, wherever that got to."""
    file = LogFile("some.log", str(tmp_path), rotateLength=10)
    assert file in open_log_files()
    written: list[str] = []

    def write(count: int) -> None:
        for _ in range(count):
            written.append(f"line {len(written):05}\n")
            file.write(written[-1])

    def fail(*arguments: object, **more: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    try:
        for function in ("os.rename", "os.dup", "builtins.open"):
            with monkeypatch.context() as patch:
                patch.setattr(function, fail)
                write(2)
            write(1)
        # Moved or cut off by somebody else.
        (tmp_path / "some.log").rename(tmp_path / "aside.log")
        write(2)
        assert (tmp_path / "some.log").read_text() == written[-1]
        os.truncate(tmp_path / "some.log", 0)
        write(1)
        assert (tmp_path / "some.log").read_text() == written[-1]
        found = "".join(path.read_text() for path in tmp_path.iterdir())
        assert sorted(found.splitlines(True)) == [*written[:-2], written[-1]] and "\0" not in found
    finally:
        file.close()


def test_log_files_that_are_open_are_found(tmp_path: Path):
    """Those of this process, whoever opened them."""
    file = LogFile("some.log", str(tmp_path))
    try:
        assert file in open_log_files()
    finally:
        file.close()
