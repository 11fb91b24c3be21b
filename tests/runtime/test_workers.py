"""The pool of threads that blocking commands run in."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from itertools import count
from random import Random
from typing import Any, NamedTuple

import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, DeferredList, gatherResults, succeed
from twisted.internet.threads import blockingCallFromThread, deferToThread

from zcomm.budget import askers
from zcomm.errors import TooBusy, Unavailable
from zcomm.runtime import workers
from zcomm.runtime.workers import Workers, aside, line

PATIENCE = 30.0


class Gate:
    """A call that blocks its thread until it is opened, and tells when it began."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self._open = threading.Event()

    def __call__(self, result: Any = None) -> Any:
        self.began.set()
        if not self._open.wait(PATIENCE):
            raise TimeoutError("nobody opened the gate")
        return result

    def open(self) -> None:
        self._open.set()


def wait_for(event: threading.Event) -> Deferred[bool]:
    """Fire once ``event`` is set."""
    return deferToThread(event.wait, PATIENCE)


def looks_every(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Look at calls that compute after so many seconds, in which a busy machine gives them little."""
    for module in (workers, line):
        monkeypatch.setattr(module, "LOOK", seconds)
    monkeypatch.setattr(line, "COMPUTES", 0.01)


@pytest.fixture
def make() -> Iterator[Any]:
    """A factory of started pools, all stopped at the end of the test."""
    pools: list[Workers] = []

    def build(start: bool = True, **settings: Any) -> Workers:
        pool = Workers(reactor=reactor, **settings)
        pools.append(pool)
        if start:
            pool.start()
        return pool

    yield build
    for pool in pools:
        pytest_twisted.blockon(pool.stop())


@pytest_twisted.ensureDeferred
async def test_result(make):
    """A call's result arrives on the reactor thread, and was made on another."""
    pool = make(threads=2)
    seen = []
    deferred = pool.run("a", lambda x, y: (x + y, threading.get_ident()), 1, y=2)
    deferred.addCallback(lambda result: (seen.append(threading.get_ident()), result)[1])
    total, thread = await deferred
    assert total == 3
    assert thread != threading.get_ident()
    assert seen == [threading.get_ident()]


@pytest.mark.parametrize("error", [KeyError("x"), SystemExit(3), KeyboardInterrupt(), MemoryError()])
@pytest_twisted.ensureDeferred
async def test_error(make, error):
    """Whatever a call raises reaches its caller, and the thread that raised it still serves."""
    pool = make(threads=1)

    def fail() -> None:
        raise error

    caught = []
    await pool.run("a", fail).addErrback(lambda failure: caught.append(failure.value))
    assert caught == [error]
    assert await pool.run("a", lambda: 7) == 7


@pytest_twisted.ensureDeferred
async def test_fair(make):
    """An owner with a long line does not make another owner wait behind all of it."""
    pool = make(threads=1)
    gate = Gate()
    order: list[str] = []
    calls = [pool.run("greedy", gate)]
    await wait_for(gate.began)
    calls += [pool.run("greedy", order.append, f"greedy {n}") for n in range(5)]
    calls += [pool.run("modest", order.append, f"modest {n}") for n in range(2)]
    gate.open()
    await gatherResults(calls)
    assert order.index("modest 0") <= 1
    assert order.index("modest 1") <= 3
    assert [entry for entry in order if entry.startswith("greedy")] == [f"greedy {n}" for n in range(5)]


@pytest_twisted.ensureDeferred
async def test_share(make):
    """An owner whose calls are all slow leaves threads to the others."""
    pool = make(threads=4, share=2)
    gates = [Gate() for _ in range(6)]
    slow = [pool.run("greedy", gate, number) for number, gate in enumerate(gates)]
    await wait_for(gates[0].began)
    await wait_for(gates[1].began)
    assert await pool.run("modest", lambda: "served") == "served"
    assert [gate.began.is_set() for gate in gates] == [True, True, False, False, False, False]
    # The thread that served modest tells its result first and gives itself back then.
    await wait_until(lambda: (pool.running, pool.waiting) == (2, 4), "the third thread to be free")
    for gate in gates:
        gate.open()
    assert await gatherResults(slow) == list(range(6))


@pytest_twisted.ensureDeferred
async def test_b8_owners_leave_half_of_what_is_left(make):
    """Several owners whose calls are all slow take less each, so that others find a thread; when one is done, the
    others have its places."""
    pool = make(threads=10)
    gates = {owner: [Gate() for _ in range(20)] for owner in "abc"}
    slow = {}

    def began(owner: str) -> int:
        return sum(gate.began.is_set() for gate in gates[owner])

    for owner, taken in (("a", 5), ("b", 2), ("c", 1)):
        slow[owner] = [pool.run(owner, gate) for gate in gates[owner]]
        await wait_until(lambda owner=owner, taken=taken: began(owner) == taken, f"{taken} calls of {owner}")
    assert await gatherResults([pool.run(f"light {number}", int) for number in range(20)]) == [0] * 20
    assert [began(owner) for owner in "abc"] == [5, 2, 1]
    for gate in gates["a"]:
        gate.open()
    await gatherResults(slow["a"])
    # Whichever of the two was first.
    await wait_until(lambda: sorted((began("b"), began("c"))) in ([3, 4], [2, 4], [3, 3]), "more calls of b and c")
    assert await pool.run("light", int) == 0
    for gate in gates["b"] + gates["c"]:
        gate.open()
    await gatherResults(slow["b"] + slow["c"])


@pytest_twisted.ensureDeferred
async def test_bound(make):
    """A full queue says so at once, and serves again when there is room."""
    pool = make(threads=1, waiting=2)
    gate = Gate()
    calls = [pool.run("a", gate)]
    await wait_for(gate.began)
    calls += [pool.run("a", int), pool.run("b", int)]
    for owner in ("a", "b", "c"):
        with pytest.raises(TooBusy):
            await pool.run(owner, int)
    gate.open()
    assert await gatherResults(calls) == [None, 0, 0]
    assert await pool.run("c", int) == 0


@pytest_twisted.ensureDeferred
async def test_bound_counts_an_owner_at_its_share(make):
    """The queue is bounded for an owner that may not use the threads that are idle, too."""
    pool = make(threads=4, share=1, waiting=1)
    gate = Gate()
    calls = [pool.run("a", gate)]
    await wait_for(gate.began)
    calls.append(pool.run("a", int))
    with pytest.raises(TooBusy):
        await pool.run("a", int)
    assert await pool.run("b", int) == 0
    gate.open()
    await gatherResults(calls)


@pytest_twisted.ensureDeferred
async def test_cancel_waiting(make):
    """A cancelled call that still waits never runs and makes room."""
    pool = make(threads=1, waiting=1)
    gate = Gate()
    ran: list[int] = []
    first = pool.run("a", gate)
    await wait_for(gate.began)
    unwanted = pool.run("a", ran.append, 1)
    unwanted.cancel()
    with pytest.raises(CancelledError):
        await unwanted
    assert pool.waiting == 0
    wanted = pool.run("a", ran.append, 2)
    gate.open()
    await gatherResults([first, wanted])
    assert ran == [2]


@pytest_twisted.ensureDeferred
async def test_b2_calls_that_wait_too_long_fail_while_no_thread_comes_free(make):
    """Those that are late and no others: what runs goes on, and what still waits has its turn."""
    pool, gate = make(threads=1), Gate()
    running = pool.run("a", gate, "late")
    await wait_for(gate.began)
    waiting = [pool.run(owner, str, word) for owner in "ab" for word in ("late", "early")]
    pool.give_up_waiting(lambda call, *args: call is str and args == ("late",), TooBusy("no thread"))
    for place in (0, 2):
        with pytest.raises(TooBusy, match="no thread"):
            await waiting[place]
    assert pool.waiting == 2 and not running.called
    gate.open()
    assert [await running, await waiting[1], await waiting[3]] == ["late", "early", "early"]
    await wait_until(lambda: (pool.waiting, pool.running) == (0, 0), "the last to give its place back")


@pytest_twisted.ensureDeferred
async def test_cancel_running(make):
    """A cancelled call that runs fails at once; what it returns later is dropped."""
    pool = make(threads=1)
    gate = Gate()
    unwanted = pool.run("a", gate)
    await wait_for(gate.began)
    unwanted.cancel()
    with pytest.raises(CancelledError):
        await unwanted
    gate.open()
    assert await pool.run("a", lambda: "next") == "next"


@pytest_twisted.ensureDeferred
async def test_before_start(make):
    """Calls made before the threads run are kept."""
    pool = make(start=False, threads=1)
    call = pool.run("a", lambda: 1)
    assert pool.waiting == 1
    pool.start()
    pool.start()
    assert await call == 1


@pytest_twisted.ensureDeferred
async def test_stop(make):
    """Stopping fails what waits, lets what runs end, and is done when the threads are."""
    pool = make(threads=1, name="stopping")
    gate = Gate()
    running = pool.run("a", gate, "ended")
    await wait_for(gate.began)
    waiting = pool.run("a", int)
    stopped = [pool.stop(), pool.stop()]
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await pool.run("a", int)
    assert not stopped[0].called
    gate.open()
    assert await running == "ended"
    await gatherResults(stopped)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("stopping")]
    await pool.stop()
    pool.start()
    assert await pool.run("a", lambda: "again") == "again"


@pytest_twisted.ensureDeferred
async def test_nothing_kept(make):
    """Owners that have nothing left are forgotten."""
    pool = make(threads=3)
    await gatherResults([pool.run(owner, int) for owner in range(500) for _ in range(2)])
    await pool.run("last", int)
    await pool.stop()
    assert not pool._lines
    assert (pool.running, pool.waiting) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_many_owners_all_served(make):
    """Under load every call is answered with its own result."""
    pool = make(threads=8, waiting=10_000)
    numbers = range(5000)
    assert await gatherResults([pool.run(n % 37, lambda n=n: n) for n in numbers]) == list(numbers)


@pytest.mark.parametrize("settings", [{"threads": 0}, {"waiting": -1}, {"threads": 2, "share": 3}, {"share": 0}])
def test_bad_settings(settings):
    """Numbers that make no pool are refused."""
    with pytest.raises(ValueError):
        Workers(reactor=reactor, **settings)


@pytest_twisted.ensureDeferred
async def test_contact_n3_a_full_line_is_nobody_elses(make):
    """However many calls of one owner wait, another still gets an even part of the places."""
    pool = make(threads=2, waiting=4)
    gate = Gate()
    greedy = [pool.run("greedy", gate)]
    await wait_for(gate.began)
    greedy += [pool.run("greedy", gate) for _ in range(4)]
    await wait_until(lambda: (pool.running, pool.waiting) == (1, 4), "the line to be full")
    with pytest.raises(TooBusy):
        await pool.run("greedy", gate)
    assert await pool.run("modest", lambda: "served") == "served"
    held = Gate()
    modest = [pool.run("modest", held)]
    await wait_for(held.began)
    modest += [pool.run("modest", held) for _ in range(2)]
    await wait_until(lambda: (pool.running, pool.waiting) == (2, 6), "modest to have its part")
    with pytest.raises(TooBusy):
        await pool.run("modest", held)
    gate.open()
    held.open()
    await gatherResults([*greedy, *modest])


@pytest_twisted.ensureDeferred
async def test_contact_n3_a_call_that_stands_aside_leaves_its_place(make):
    """However many calls wait for a person, others are served, and those that go on compute within the places."""
    pool = make(threads=2)
    open_questions = [Gate() for _ in range(6)]
    computing = [Gate() for _ in range(6)]

    def asks(number: int) -> int:
        with aside():
            open_questions[number]()
        computing[number]()
        return number

    asking = [pool.run("asking", asks, number) for number in range(6)]
    for gate in open_questions:
        await wait_for(gate.began)
    assert await pool.run("asking", lambda: "served") == "served"
    await wait_until(lambda: (pool.running, pool.waiting) == (0, 0), "no place to be held")
    for gate in open_questions:
        gate.open()
    await wait_until(lambda: sum(gate.began.is_set() for gate in computing) == 1, "the owner's share to compute")
    assert await pool.run("another", lambda: "served too") == "served too"
    assert sum(gate.began.is_set() for gate in computing) == 1
    for gate in computing:
        gate.open()
    assert await gatherResults(asking) == list(range(6))
    # The threads that took their places have ended.
    await wait_until(lambda: len(pool._pool) == 2, "the threads too many to end")


class Person(NamedTuple):
    """An owner with an address."""

    name: str
    address: str


def ask(question: Deferred[Any], asked: list[Deferred[Any]]) -> Any:
    """Wait for ``question`` as a function does for a person."""

    def begin() -> Deferred[Any]:
        asked.append(question)
        return question

    with aside() as standing:
        return blockingCallFromThread(reactor, standing.until, begin)


@pytest_twisted.ensureDeferred
async def test_b8_calls_aside_leave_the_others_their_threads(make, monkeypatch):
    """Where the system gives no more threads, a call that would stand aside is told so: as many as before serve."""
    pool = make(threads=2)

    def starts_none(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", starts_none)
    gate = Gate()

    def asks() -> Any:
        with aside():
            return gate()

    try:
        asked = [pool.run(f"asker {number}", asks) for number in range(4)]
        assert await pool.run("other", int) == 0
        for each in asked:
            with pytest.raises(TooBusy):
                await each
    finally:
        gate.open()
    assert (pool._standing, pool._aside) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_contact_calls_aside_have_a_bound_that_keeps_nobody_out(make, monkeypatch):
    """One owner's are refused at its bound; at everybody's the owner with most loses its oldest to another."""
    monkeypatch.setattr(workers, "ASIDE", 3)
    monkeypatch.setattr(workers, "ASIDE_OF_ONE", 2)
    pool = make(threads=2)
    asked: list[Deferred[Any]] = []

    async def asks(owner: Any) -> tuple[Deferred[Any], Deferred[Any]]:
        question: Deferred[Any] = Deferred()
        call = pool.run(owner, ask, question, asked)
        await wait_until(lambda: question in asked, "the question to be open")
        return question, call

    greedy = [await asks("a") for _ in range(2)]
    with pytest.raises(TooBusy, match="too many questions are open"):
        await pool.run("a", ask, Deferred(), asked)
    b, c = await asks("b"), await asks("c")
    with pytest.raises(TooBusy, match="too many questions are open"):
        await greedy[0][1]
    assert not greedy[1][1].called
    for number, (question, call) in enumerate([greedy[1], b, c]):
        question.callback(number)
        assert await call == number
    assert (pool._standing, pool._aside) == (0, 0)

    # Owners with one each: of those it is one whose address has most.
    crowd = [await asks(Person(name, "far")) for name in "xy"]
    alone = await asks(Person("z", "near"))
    late = await asks(Person("w", "elsewhere"))
    with pytest.raises(TooBusy):
        await crowd[0][1]
    for question, call in (crowd[1], alone, late):
        question.callback("answered")
        assert await call == "answered"
    await wait_until(lambda: (pool.running, pool._lines) == (0, {}), "nothing to be left")
    await wait_until(lambda: len(pool._pool) == pool.threads, "the threads too many to end")
    with aside():
        # No thread of a pool's: nothing to give away.
        pass


@pytest_twisted.ensureDeferred
async def test_contact_open_questions_take_no_threads_from_others(make):
    """However many are open, one after the other, there are as many threads as places."""
    pool = make(threads=4)
    asked: list[Deferred[Any]] = []
    for number in range(4):
        await wait_until(lambda: pool._idle == pool.threads, "all to be idle")
        pool.run("a", ask, Deferred(), asked).addErrback(lambda _: None)
        await wait_until(lambda n=number: len(asked) == n + 1, "the question to be open")
    gates = [Gate() for _ in range(4)]
    calls = [pool.run(owner, gate) for owner, gate in zip("bcde", gates, strict=True)]
    for gate in gates:
        assert await wait_for(gate.began)
    for gate in gates:
        gate.open()
    await gatherResults(calls)
    for question in asked:
        question.callback(None)


@pytest_twisted.ensureDeferred
async def test_contact_a_call_that_wants_its_place_back_keeps_nobody_out(make, monkeypatch):
    """It goes on with the error, without a place."""
    monkeypatch.setattr(workers, "ASIDE", 2)
    pool = make(threads=2)
    asked: list[Deferred[Any]] = []
    questions: list[Deferred[Any]] = [Deferred() for _ in range(2)]
    answered = [pool.run("a", ask, question, asked) for question in questions]
    await wait_until(lambda: len(asked) == 2, "both to be open")
    slow = Gate()
    running = pool.run("a", slow)
    await wait_for(slow.began)
    for question in questions:
        question.callback(None)
    await wait_until(lambda: len(pool._lines["a"].returning) == 2, "both to want their place")
    other: Deferred[Any] = Deferred()
    asking = pool.run("b", ask, other, asked)
    await wait_until(lambda: other in asked, "the other to be open")
    await wait_until(lambda: [call.called for call in answered] == [True, False], "the oldest to be sent back")
    other.callback("answered")
    assert await asking == "answered"
    slow.open()
    await running
    ends = await DeferredList(answered, consumeErrors=True)
    assert sorted(succeeded for succeeded, _ in ends) == [False, True]
    await wait_until(lambda: (pool.running, pool._lines) == (0, {}), "nothing to be left")
    assert (pool._standing, pool._aside) == (0, 0)


@pytest_twisted.ensureDeferred
async def test_contact_a_deferred_out_of_a_thread_takes_no_others_result_along(make):
    """It is an error of that call alone."""
    pool = make(threads=2)
    calls = [pool.run("a", fn) for fn in (lambda: Deferred(), lambda: 1, lambda: succeed(3), lambda: 2)]
    ends = await DeferredList(calls, consumeErrors=True)
    assert [succeeded for succeeded, _ in ends] == [False, True, False, True]


def _forks(ending: Callable[[], Any]) -> Callable[[], int]:
    def call() -> int:
        child = os.fork()
        if child:
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        return ending()

    return call


@pytest_twisted.ensureDeferred
async def test_contact_a_child_that_a_call_forks_ends_with_it(make):
    """As a program does, and goes on in no pool."""
    pool = make(threads=1)
    ends = {0: [lambda: 5, sys.exit], 3: [lambda: sys.exit(3)], 1: [lambda: sys.exit("no more"), lambda: 1 / 0]}
    for status, endings in ends.items():
        for ending in endings:
            assert await pool.run("a", _forks(ending)) == status


def asks_nothing() -> None:
    with aside():
        pass


@pytest_twisted.ensureDeferred
async def test_calls_aside_end_with_the_pool(make):
    """A stop waits for them, and neither they nor those that want their place back are kept from ending."""
    pool = make(threads=1)
    question, other, after = Gate(), Gate(), threading.Event()

    def asks() -> str:
        with aside():
            question()
        after.set()
        return "answered"

    asking = pool.run("a", asks)
    await wait_for(question.began)
    running = pool.run("b", other)
    await wait_for(other.began)
    question.open()
    stopped = pool.stop()
    assert await wait_for(after)
    assert not stopped.called
    other.open()
    await stopped
    assert (await asking, await running) == ("answered", None)


@pytest_twisted.ensureDeferred
async def test_one_call_of_each_owner_computes_at_a_time(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Where there are others: the next begins when it has ended; those of others are served meanwhile."""
    looks_every(monkeypatch, 0.5)
    monkeypatch.setattr(line, "LONG", 600.0)
    pool = make(threads=6, are_many=lambda: True)
    begun: list[str] = []
    over = [threading.Event() for _ in range(3)]

    def compute(name: str, end: threading.Event) -> str:
        begun.append(name)
        while not end.is_set():
            sum(range(1000))
        return name

    first, second = (pool.run("a", compute, f"a{number}", over[number]) for number in range(2))
    other = pool.run("b", compute, "b", over[2])
    await wait_until(lambda: sorted(begun) == ["a0", "b"], "one of each")
    looks: list[int] = []
    look = pool._look
    monkeypatch.setattr(pool, "_look", lambda: (looks.append(len(begun)), look()))
    await wait_until(lambda: len(looks) > 2, "looks at what computes")
    assert looks == [2] * len(looks)
    assert await pool.run("c", int, 7) == 7
    over[0].set()
    assert await first == "a0"
    await wait_until(lambda: "a1" in begun, "the next one")
    over[1].set()
    over[2].set()
    assert (await second, await other) == ("a1", "b")


@pytest_twisted.ensureDeferred
async def test_a_quick_call_waits_for_no_long_one(make: Any, monkeypatch: pytest.MonkeyPatch):
    """One that computes for long leaves room for one other of its owner; two that do leave none."""
    looks_every(monkeypatch, 0.5)
    pool = make(threads=8, are_many=lambda: True)
    over = threading.Event()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    long = [pool.run("a", compute)]
    assert [await pool.run("a", int, number) for number in range(3)] == [0, 1, 2]
    long += [pool.run("a", compute) for _ in range(2)]
    await wait_until(lambda: pool.running == 2, "the second")
    looks: list[int] = []
    look = pool._look
    monkeypatch.setattr(pool, "_look", lambda: (looks.append(pool.running), look()))
    await wait_until(lambda: len(looks) > 2, "looks at what computes")
    assert looks == [2] * len(looks)
    over.set()
    await gatherResults(long)


@pytest_twisted.ensureDeferred
async def test_calls_that_wait_for_something_run_side_by_side(make: Any):
    """Each is let in once the ones before it are seen to need no processor, as many as their owner may have."""
    pool = make(threads=6, are_many=lambda: True)
    gates = [Gate() for _ in range(4)]
    calls = [pool.run("a", gate, number) for number, gate in enumerate(gates)]
    for gate in gates[:3]:
        assert await wait_for(gate.began)
    assert not gates[3].began.is_set()
    for gate in gates:
        gate.open()
    assert await gatherResults(calls) == [0, 1, 2, 3]
    await wait_until(lambda: (pool.running, pool.waiting, pool._lines) == (0, 0, {}), "nothing to be left")


@pytest_twisted.ensureDeferred
async def test_calls_that_are_alike_run_side_by_side_when_the_last_computed_little(
    make: Any, monkeypatch: pytest.MonkeyPatch
):
    """No look has to say first that they wait, unless others ask as well; after one that computed, the next has to be
    alone again."""
    looks_every(monkeypatch, 1000)
    pool = make(threads=6, are_many=lambda: True, alike=True)
    monkeypatch.setattr(line, "LITTLE", 1000)
    monkeypatch.setattr(pool, "_look_later", lambda: None)
    started, gates = Gate(), [Gate() for _ in range(line.BESIDE)]
    calls = [pool.run("a", started), *(pool.run("a", int) for _ in range(line.IN_A_ROW))]
    calls += [pool.run("a", gate) for gate in gates]
    assert await wait_for(started.began)
    assert pool.running == 1
    started.open()
    for gate in gates:
        assert await wait_for(gate.began)
    monkeypatch.setattr(askers, "LATELY", 600.0)
    assert await pool.run("b", int, 7) == 7
    gates[0].open()
    await wait_until(lambda: pool.running == line.BESIDE - 1, "one fewer")
    later = Gate()
    later.open()
    calls.append(pool.run("a", later))
    assert await pool.run("b", int, 8) == 8
    assert not later.began.is_set()
    monkeypatch.setattr(line, "LITTLE", 0)
    monkeypatch.setattr(line, "COMPUTES", 0)
    alone = [Gate() for _ in range(2)]
    calls += [pool.run("a", gate) for gate in alone]
    for gate in gates:
        gate.open()
    assert await wait_for(alone[0].began)
    await wait_until(lambda: pool.running == 1, "one at a time")
    assert not alone[1].began.is_set()
    for gate in alone:
        gate.open()
    await gatherResults(calls)


@pytest_twisted.ensureDeferred
async def test_calls_of_a_kind_run_side_by_side_when_its_last_computed_little(
    make: Any, monkeypatch: pytest.MonkeyPatch
):
    """No look has to say first that they wait; those of another kind have to be seen to."""
    looks_every(monkeypatch, 1000)
    monkeypatch.setattr(line, "LITTLE", 1000)
    pool = make(threads=8, are_many=lambda: True)
    monkeypatch.setattr(pool, "_look_later", lambda: None)
    started, gates, others = Gate(), [Gate() for _ in range(3)], [Gate() for _ in range(2)]
    calls = [pool.run_one_of("asks", "a", started)]
    calls += [pool.run_one_of("asks", "a", int) for _ in range(line.IN_A_ROW)]
    calls += [pool.run_one_of("asks", "a", gate) for gate in gates]
    assert await wait_for(started.began)
    assert pool.running == 1
    started.open()
    for gate in gates:
        assert await wait_for(gate.began)
    gates[0].open()
    gates[1].open()
    await wait_until(lambda: pool.running == 1, "the last")
    calls += [pool.run_one_of("other", "a", gate) for gate in others]
    assert await wait_for(others[0].began)
    assert pool.running == 2 and not others[1].began.is_set()
    for gate in (*gates, *others):
        gate.open()
    await gatherResults(calls)


@pytest_twisted.ensureDeferred
async def test_a_kind_that_has_been_quick_goes_before_what_computes(make: Any, monkeypatch: pytest.MonkeyPatch):
    """It waits neither for the call of its owner that computes nor for those that wait for that."""
    looks_every(monkeypatch, 0.5)
    monkeypatch.setattr(line, "LONG", 600.0)
    pool = make(threads=8, are_many=lambda: True)
    over, keeping = threading.Event(), Gate()

    def compute() -> None:
        while not over.is_set():
            sum(range(1000))

    # The line remembers for as long as it has something.
    calls = [pool.run_one_of("waits", "a", keeping)]
    for _ in range(line.IN_A_ROW):
        await pool.run_one_of("quick", "a", int)
    calls += [pool.run_one_of("report", "a", compute) for _ in range(3)]
    await wait_until(lambda: pool.running == 2, "the first of them")
    assert [await pool.run_one_of("quick", "a", int, number) for number in range(20)] == list(range(20))
    # What has ended tells its result first and gives its place back then.
    await wait_until(lambda: (pool.running, pool.waiting) == (2, 2), "the quick ones to be over")
    over.set()
    keeping.open()
    await gatherResults(calls)


@pytest_twisted.ensureDeferred
async def test_who_has_made_a_large_result_leaves_as_much_to_others(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Its next call begins after that, be it asked for only then; nothing is kept of an owner that has rested."""
    monkeypatch.setattr(askers, "LATELY", 600.0)
    # On a busy machine, too, it keeps the other waiting until it has ended.
    monkeypatch.setattr(line, "LONG", 600.0)
    looks_every(monkeypatch, 600.0)
    pool = make(threads=4, are_many=lambda: True)
    assert await pool.run("b", int, 7) == 7

    def compute() -> tuple[float, bytes]:
        until = time.thread_time() + 0.03
        while time.thread_time() < until:
            sum(range(1000))
        return time.monotonic(), bytes(100_000)

    (ended, _), began = await gatherResults([pool.run("a", compute), pool.run("a", time.monotonic)])
    assert began - ended >= 0.03
    ended, _ = await pool.run("a", compute)
    assert await pool.run("a", time.monotonic) - ended >= 0.03
    await wait_until(lambda: pool._lines == {}, "nothing to be left")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
@pytest_twisted.ensureDeferred
async def test_the_reactor_has_the_processor_first(make: Any):
    """Each thread is as far behind it, also one that another of them has begun."""

    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, 0)

    def stands_aside() -> int:
        with aside():
            began.set()
            done.wait(PATIENCE)
        return niceness()

    pool = make(threads=1)
    expected = min(19, niceness() + workers.BEHIND)
    began, done = threading.Event(), threading.Event()
    standing = pool.run("a", stands_aside)
    assert await wait_for(began)
    assert await pool.run("b", niceness) == expected
    done.set()
    assert await standing == expected


@pytest_twisted.ensureDeferred
async def test_a_pool_that_has_ended_leaves_no_timer(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Nor an owner that rests: started again, the pool serves it at once."""
    monkeypatch.setattr(askers, "LATELY", 600.0)
    monkeypatch.setattr(line, "REST", 600.0)
    monkeypatch.setattr(line, "TIRING", 0.0)
    pool = make(threads=4, are_many=lambda: True)

    def due() -> list[Any]:
        return [call for call in reactor.getDelayedCalls() if call.getTime() > reactor.seconds() + 500]

    assert await pool.run("b", int, 7) == 7 and not due()
    monkeypatch.setattr(time, "thread_time", count(0, 600).__next__)
    await pool.run("a", bytes, 100_000)
    await wait_until(due, "the end of the rest to be due")
    await pool.stop()
    assert not due()
    assert pool._lines == {}
    pool.start()
    assert await pool.run("a", int, 8) == 8


@pytest_twisted.ensureDeferred
async def test_the_late_end_of_a_rest_forgets_no_call(make: Any, monkeypatch: pytest.MonkeyPatch):
    """An owner has one line whenever the reactor comes to that: its calls share its places, and end with the pool."""
    monkeypatch.setattr(askers, "LATELY", 600.0)
    pool = make(threads=4, are_many=lambda: True)
    assert await pool.run("b", int, 7) == 7
    # The reactor comes to the end of the rest below only when the test calls it.
    monkeypatch.setattr(pool, "_rest", lambda line, left: None)

    def compute() -> bytes:
        until = time.thread_time() + 0.01
        while time.thread_time() < until:
            sum(range(1000))
        return bytes(100_000)

    await pool.run("a", compute)
    resting = pool._lines["a"]
    await wait_until(lambda: not resting.running and time.monotonic() > resting.rests, "the rest to be over")
    assert await pool.run("a", int, 1) == 1
    gates = [Gate() for _ in range(pool.share)]
    calls = [pool.run("a", gate, number) for number, gate in enumerate(gates)]
    for gate in gates:
        assert await wait_for(gate.began)
    waiting = pool.run("a", int, 9)
    pool._rest_over(resting)
    over = pool.stop()
    with pytest.raises(Unavailable):
        await waiting
    for gate in gates:
        gate.open()
    assert await gatherResults(calls) == list(range(pool.share))
    await over


@pytest_twisted.ensureDeferred
async def test_quick_calls_go_on_while_their_owner_leaves_time_to_others(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Others that wait begin as soon as nobody else asks for anything."""
    monkeypatch.setattr(askers, "LATELY", 600.0)
    pool = make(threads=6, are_many=lambda: True)
    assert await pool.run("b", int, 7) == 7
    keeping, later = Gate(), Gate()
    # The line remembers for as long as it has something.
    keeping_call = pool.run_one_of("waits", "a", keeping)
    for _ in range(line.IN_A_ROW):
        await pool.run_one_of("quick", "a", int)
    resting = pool._lines["a"]
    with pool._lock:
        resting.rests, resting.is_timed = time.monotonic() + 600, True
    waiting = pool.run_one_of("report", "a", later, 9)
    assert [await pool.run_one_of("quick", "a", int, number) for number in range(20)] == list(range(20))
    assert not later.began.is_set()
    keeping.open()
    await keeping_call
    assert not later.began.is_set()
    monkeypatch.setattr(askers, "LATELY", 0.0)
    pool._rest_over(resting)
    later.open()
    assert await waiting == 9


@pytest_twisted.ensureDeferred
async def test_an_owner_that_is_alone_computes_as_much_as_it_likes(make: Any):
    """Nobody would notice: its calls begin at once, up to its share."""
    pool = make(threads=6)
    gates = [Gate() for _ in range(3)]
    calls = [pool.run("a", gate) for gate in gates]
    for gate in gates:
        assert await wait_for(gate.began)
    assert not pool._looks
    for gate in gates:
        gate.open()
    await gatherResults(calls)


@pytest.mark.parametrize("are_many", [False, True])
@pytest.mark.parametrize("seed", range(6))
@pytest_twisted.ensureDeferred
async def test_calls_at_random(make, seed, are_many):
    """Every call ends, no owner has more than its share, no more compute than there are places."""
    chance = Random(seed)
    pool = make(threads=chance.randint(1, 4), are_many=lambda: are_many)
    lock, computing, most, of_owner = threading.Lock(), 0, 0, dict.fromkeys("abc", 0)
    broken: list[str] = []

    def count(owner: str, change: int) -> None:
        nonlocal computing, most
        with lock:
            computing += change
            of_owner[owner] += change
            most = max(most, computing)
            if computing > pool.threads or of_owner[owner] > pool.share:
                broken.append(f"{computing} compute, {of_owner[owner]} of {owner}")

    def work(owner: str, steps: list[bool], number: int) -> int:
        count(owner, 1)
        for stands_aside in steps:
            if stands_aside:
                count(owner, -1)
                with aside():
                    sum(range(200))
                count(owner, 1)
            else:
                sum(range(200))
        count(owner, -1)
        return number

    calls = []
    for number in range(300):
        owner = chance.choice("abc")
        steps = [chance.random() < 0.6 for _ in range(chance.randint(0, 4))]
        calls.append(pool.run(owner, work, owner, steps, number))
    assert await gatherResults(calls) == list(range(300))
    assert broken == []
    await wait_until(lambda: (pool.running, pool.waiting, pool._lines) == (0, 0, {}), "nothing to be left")
    await wait_until(lambda: len(pool._pool) == pool.threads, "the threads too many to end")


@pytest_twisted.ensureDeferred
async def test_b12_many_results_are_handed_out_in_several_turns(make: Any, monkeypatch: pytest.MonkeyPatch):
    """Others have their turn between those that take long; none is lost, and their order stays."""
    monkeypatch.setattr(workers.Workers._deliver, "__defaults__", (-1.0,))
    pool = make(threads=1)
    order: list[Any] = []
    gate = Gate()
    blocked = pool.run("a", gate)
    results = [pool.run("a", int, number) for number in range(20)]
    for result in results:
        result.addCallback(order.append)
    delivered = pool._deliver
    turns: list[int] = []
    monkeypatch.setattr(pool, "_deliver", lambda: (turns.append(len(order)), delivered()))
    gate.open()
    await blocked
    await gatherResults(results)
    assert order == list(range(20)) and all(
        after - before <= 1 for before, after in zip(turns, turns[1:], strict=False)
    )


@pytest_twisted.ensureDeferred
async def test_an_idle_thread_keeps_nothing_of_its_last_call(make: Any):
    """What that returned is gone once whoever asked for it has let it go: ten threads would keep ten large results."""

    class Large:
        pass

    pool = make(threads=1)
    kept = weakref.ref(await pool.run("me", Large))
    await wait_until(lambda: kept() is None)


@pytest_twisted.ensureDeferred
async def test_b3_large_results_do_not_wait_in_heaps(make: Any):
    """A call whose result is large keeps its place until that is taken; one with a small result does not."""
    pool = make(threads=2)
    begun: list[int] = []
    others_are_done = threading.Event()
    seen: list[int] = []

    def large(number: int) -> list[dict[str, str]]:
        begun.append(number)
        return [{"text": "x" * 100_000}]

    def look(result: Any) -> None:
        # The reactor is busy here, for as long as the other's calls take.
        if not seen:
            assert others_are_done.wait(30)
            seen.append(len(begun))

    heavy = [pool.run("a", large, number).addCallback(look) for number in range(20)]
    light = [pool.run("b", int, number) for number in range(200)]
    light.append(pool.run("b", others_are_done.set))
    await gatherResults(heavy + light)
    assert seen[0] <= 1 + pool.share and len(begun) == 20
    await wait_until(lambda: (pool.running, pool.waiting, pool._lines) == (0, 0, {}), "nothing to be left")
