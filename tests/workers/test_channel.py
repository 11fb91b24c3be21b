"""The channel between processes, with both of its ends in this one: a socket pair on the reactor."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred, TimeoutError
from twisted.internet.task import deferLater

from zcomm.config import Config, Limits, WebSocketConfig
from zcomm.errors import ConfigError, ServiceStartFailed, Unavailable, UnknownService, ZCommError
from zcomm.workers.channel import Channel, Together, connect, decoded, encoded, error_from, receive, told_of


class Pair:
    """Two channels, one at each end."""

    def __init__(self, here: Mapping[str, Callable[..., Any]], there: Mapping[str, Callable[..., Any]]):
        from twisted.internet import reactor

        self.lost: list[str] = []
        self.here = Channel(here, reactor, lambda: self.lost.append("here"))
        self.there = Channel(there, reactor, lambda: self.lost.append("there"))
        for channel, end in zip((self.here, self.there), socket.socketpair(), strict=True):
            connect(channel, end, reactor)

    async def end(self) -> None:
        self.here.close()
        await wait_until(lambda: len(self.lost) == 2, "the end of both")


@pytest_twisted.ensureDeferred
async def test_questions_in_both_directions():
    """Each gets its own answer, in whatever order they come; what is only told has none."""
    from twisted.internet import reactor

    told: list[Any] = []
    later: Deferred[str] = Deferred()
    pair = Pair({"double": lambda number: 2 * number}, {"note": told.append, "wait": lambda: later, "add": sum})
    slow = pair.here.ask("wait")
    assert await pair.here.ask("add", [1, 2]) == 3
    assert await pair.there.ask("double", 21) == 42
    pair.here.tell("note", {"one": [1, None, 2.5, "ü", b"\xff"]})
    later.callback("at last")
    assert await slow == "at last"
    assert told == [{"one": [1, None, 2.5, "ü", b"\xff"]}]
    # A message of megabytes comes whole.
    assert await pair.here.ask("add", [1] * 300_000) == 300_000
    await deferLater(reactor, 0)
    await pair.end()


@pytest_twisted.ensureDeferred
async def test_questions_without_an_answer():
    """A name that is not known, an error of zComm's, one of anybody's, no answer in time, the end of the other side."""

    def fail() -> None:
        raise ServiceStartFailed("redis", "it has no room", "make some")

    pair = Pair({}, {"fail": fail, "wait": Deferred})
    with pytest.raises(Unavailable, match="nothing: no such question"):
        await pair.here.ask("nothing")
    with pytest.raises(ServiceStartFailed, match="redis: it has no room; make some") as caught:
        await pair.here.ask("fail")
    assert (caught.value.service, caught.value.reason) == ("redis", "it has no room")
    with pytest.raises(TimeoutError):
        await pair.here.ask("wait", timeout=0.01)
    waiting = pair.here.ask("wait")
    pair.there.close()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await pair.here.ask("wait")
    pair.here.tell("nobody hears it")
    await pair.end()


@pytest_twisted.ensureDeferred
async def test_what_makes_no_sense_ends_the_channel():
    """Bytes that are no message of ours."""
    pair = Pair({}, {})
    pair.here.sendString(b"\xc1")
    await wait_until(lambda: "there" in pair.lost, "the end of the other side")
    await pair.end()


@pytest_twisted.ensureDeferred
async def test_a_side_that_does_not_read_is_known():
    """What can wait is told when it reads again."""
    pair = Pair({}, {"note": lambda text: None})
    transport: Any = pair.there.transport
    transport.pauseProducing()
    while not pair.here.is_behind:
        pair.here.tell("note", "x" * 100_000)
    transport.resumeProducing()
    await wait_until(lambda: not pair.here.is_behind, "a side that reads")
    await pair.end()


def test_a_question_is_asked_once_for_all_who_wait():
    """Who comes after the answer has another one; a failure is everybody's; who is cancelled changes nothing."""
    asked: list[Deferred[int]] = []

    def ask() -> Deferred[int]:
        asked.append(Deferred())
        return asked[-1]

    together = Together(ask)
    got: list[object] = []
    first, second, third = together(), together(), together()
    for each in (first, third):
        each.addCallback(got.append)
    second.addErrback(lambda failure: failure.trap(CancelledError)).cancel()
    assert len(asked) == 1
    asked[0].callback(1)
    assert got == [1, 1]
    for each in (together(), together()):
        each.addErrback(lambda failure: got.append(failure.type))
    assert len(asked) == 2
    asked[1].errback(Unavailable("not now"))
    assert got == [1, 1, Unavailable, Unavailable]
    together().addCallback(got.append)
    asked[2].callback(3)
    assert got[-1] == 3


def test_a_configuration_travels():
    """Every setting, and paths whatever their bytes are."""
    odd = Path(os.fsdecode(b"/srv/\xff"))
    config = Config(
        Path("/srv/zcomm"),
        WebSocketConfig(port=0, listen=("tcp:0",), limits=Limits(connections=5), trusted_proxies=("10.0.0.1",)),
        database="postgresql://u:p@h/d",
        schemas=(odd,),
        functions=("one",),
        threads=3,
    )
    assert decoded(encoded(config), Config) == config
    with pytest.raises(msgspec.ValidationError):
        decoded(encoded({"data_dir": 1}), Config)


@pytest.mark.parametrize(
    "error", [ConfigError("--x", "is wrong"), UnknownService("reddis", ["redis"]), Unavailable("It is away")]
)
def test_errors_travel(error: ZCommError):
    """With what they say and what they carry."""
    other = error_from(msgspec.msgpack.decode(msgspec.msgpack.encode(told_of(error))))
    assert type(other) is type(error) and str(other) == str(error)
    assert {name: list(value) if isinstance(value, tuple) else value for name, value in vars(error).items()} == {
        name: list(value) if isinstance(value, tuple) else value for name, value in vars(other).items()
    }


def test_an_error_of_nobody_is_none_of_others():
    """A name that is no error of zComm's makes nothing of that name."""
    for name in ("ValueError", "command_error", "", None):
        assert type(error_from([name, ["why"], {}])) is Unavailable
    assert str(error_from(told_of(KeyError("x")))) == "'x'"


def test_the_first_message_is_waited_for():
    """It comes in pieces, and nothing behind it is taken."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(b"\0\0\0\3a")
        ours.sendall(b"bcrest")
        assert receive(theirs) == b"abc" and theirs.recv(9) == b"rest"
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)
