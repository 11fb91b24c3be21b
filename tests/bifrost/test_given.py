"""The pace of progress, on a virtual clock: from the reactor's thread, from another one, and at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zcomm import FunctionRegistry, Request
from zcomm.bifrost.given import INTERVAL, Progress
from zcomm.errors import InternalError
from zcomm.testing import MemoryServer, assert_error, assert_reply

STEPS = 100_000


class Reactor(Clock):
    """A clock, and the way into its thread."""

    woken = 0

    def callFromThread(self, function: Callable[..., Any], *args: Any) -> None:
        self.woken += 1
        self.callLater(0, function, *args)


class Listener:
    """A connection that is only written to."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def send_payloads(self, payloads: list[bytes]) -> None:
        self.heard += [json.loads(payload) for payload in payloads]

    @property
    def steps(self) -> list[float]:
        return [message["done"] for message in self.heard]


def watched(request_id: int | None = 7) -> tuple[Progress, Reactor, Listener]:
    reactor, listener = Reactor(), Listener()
    return Progress(reactor, listener, Request("zFunc", "zFunc(f)", request_id)), reactor, listener


def in_a_thread(function: Callable[[], Any]) -> None:
    thread = Thread(target=function)
    thread.start()
    thread.join()


def test_the_first_word_leaves_at_once_and_the_newest_after_the_interval():
    """What is told between the two is not sent; a pause later the next word leaves at once again."""
    progress, reactor, listener = watched()
    for step in range(1, 11):
        progress(step, 10, f"step {step}")
        reactor.advance(0)
    assert listener.heard == [{"event": "progress", "progressOf": 7, "done": 1, "total": 10, "text": "step 1"}]
    reactor.advance(INTERVAL - 0.001)
    assert listener.steps == [1]
    reactor.advance(0.001)
    assert listener.steps == [1, 10]
    reactor.advance(INTERVAL)
    progress(11)
    reactor.advance(0)
    assert listener.heard[-1] == {"event": "progress", "progressOf": 7, "done": 11, "total": None, "text": ""}


def test_a_long_function_sends_twenty_a_second():
    """Ten seconds of a thousand steps each are told in about two hundred messages, in order, with the last."""
    progress, reactor, listener = watched()
    for step in range(10_000):
        progress(step, 10_000)
        reactor.advance(0.001)
    progress.finish()
    assert 180 <= len(listener.heard) <= 202
    assert listener.steps == sorted(set(listener.steps)) and listener.steps[-1] == 9_999


def test_a_thread_wakes_the_reactor_twice_however_much_it_tells():
    """For the first word and for the newest, which waits for its time; the end brings the last one."""
    progress, reactor, listener = watched()
    in_a_thread(lambda: [progress(step) for step in range(STEPS)])
    assert reactor.woken == 2 and listener.heard == []
    reactor.advance(0)
    assert listener.steps == [0]
    progress.finish()
    assert listener.steps == [0, STEPS - 1]
    assert reactor.getDelayedCalls() == []


def test_a_late_timer_sends_nothing_old():
    """The word told while the reactor was busy for longer than the interval takes the held one's place."""
    progress, reactor, listener = watched()
    in_a_thread(lambda: (progress(1), progress(2)))
    reactor.rightNow += 2 * INTERVAL
    in_a_thread(lambda: (progress(3), progress(4)))
    reactor.advance(0)
    assert listener.steps == [1, 3]
    reactor.advance(INTERVAL)
    assert listener.steps == [1, 3, 4]


def test_a_timer_that_was_made_for_an_older_word_waits_on():
    """The word it finds was told after another one left, and has an interval of its own."""
    progress, reactor, listener = watched()
    progress(1)
    progress(2)
    reactor.rightNow += INTERVAL
    in_a_thread(lambda: (progress(3), progress(4)))
    for _ in range(3):
        reactor.advance(0)
    assert listener.steps == [1, 3]
    reactor.advance(INTERVAL)
    assert listener.steps == [1, 3, 4] and reactor.getDelayedCalls() == []


def test_nothing_follows_the_end():
    """A thread that goes on after its command timed out is not heard any more."""
    progress, reactor, listener = watched()
    in_a_thread(lambda: (progress(1), progress(2)))
    progress.finish()
    reactor.advance(1)
    in_a_thread(lambda: progress(3))
    reactor.advance(1)
    assert listener.steps == [1, 2]


def test_a_request_without_an_id_hears_nothing():
    """Its sender could not tell whose progress it is."""
    progress, reactor, listener = watched(request_id=None)
    progress(1)
    reactor.advance(1)
    progress.finish()
    assert listener.heard == []


@pytest.mark.parametrize(
    ("told", "error"),
    [
        (("half",), TypeError),
        ((None,), TypeError),
        ((True,), TypeError),
        ((1, "2"), TypeError),
        ((1, 2, b"text"), TypeError),
        ((1, 2, "\ud800"), InternalError),
    ],
)
def test_what_cannot_be_sent_is_refused_where_it_was_written(told: tuple[Any, ...], error: type[Exception]):
    """Not later, in the reactor's thread, where nobody could find the cause; the pace is not touched."""
    progress, reactor, listener = watched()
    with pytest.raises(error):
        progress(*told)
    progress(1)
    reactor.advance(0)
    assert listener.steps == [1]


def told_by(server: MemoryServer, name: str) -> tuple[list[Any], Any]:
    client = server.connect()
    answer = client.call("zFunc", f"zFunc({name})")
    return [message["done"] for message in client.messages], answer


def test_the_last_step_stands_before_the_reply():
    """Of plain functions, coroutines, Deferreds and failures alike."""
    functions = FunctionRegistry()

    @functions.register(thread=False)
    def here(*, progress):
        progress(1)
        progress(2)
        return "done"

    @functions.register
    def in_thread(*, progress):
        return here(progress=progress)

    @functions.register
    async def coroutine(*, progress):
        return here(progress=progress)

    @functions.register
    def failing(*, progress):
        raise ValueError(here(progress=progress))

    server = MemoryServer(functions=functions)
    for name in ("here", "in_thread", "coroutine"):
        told, answer = told_by(server, name)
        assert told == [1, 2]
        assert_reply(answer, "done")
    told, answer = told_by(server, "failing")
    assert told == [1, 2]
    assert_error(answer, "internal")


def test_a_command_that_times_out_has_told_how_far_it_came():
    """The last step is sent, then the error."""
    functions = FunctionRegistry()

    @functions.register
    async def endless(*, progress):
        progress(1)
        progress(2)
        await Deferred()

    server = MemoryServer(functions=functions, command_timeout=0.01)
    client = server.connect()
    answer = client.call("zFunc", "zFunc(endless)")
    server.advance(0.02)
    assert [message["done"] for message in client.messages] == [1, 2]
    assert_error(answer, "timeout")


def test_a_function_asks_in_memory():
    """What the server gives functions, the server in memory gives too."""
    functions = FunctionRegistry()

    @functions.register
    async def greet(*, ask):
        return f"Hello {await ask('Name?')}"

    server = MemoryServer(functions=functions)
    client = server.connect()
    answer = client.call("zFunc", "zFunc(greet)")
    asked = client.messages[-1]
    client.call("zAnswer", {"askId": asked["askId"], "value": "Alice"})
    assert_reply(answer, "Hello Alice")
