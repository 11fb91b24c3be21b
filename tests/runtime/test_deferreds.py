"""Deferreds that fire together, and those of coroutines."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Any

import pytest
from twisted.internet.defer import CancelledError, Deferred, gatherResults, succeed
from twisted.python.failure import Failure

from zcomm.runtime.deferreds import Waiters, awaited, following


def test_all_who_wait_hear_of_it():
    """Once each; whoever asks from a callback waits for the next outcome."""
    waiters: Waiters[str] = Waiters()
    heard: list[Any] = []
    assert not waiters
    waiters.add().addCallback(heard.append)
    waiters.add().addCallback(lambda result: waiters.add().addCallback(heard.append))
    assert len(waiters) == 2
    waiters.fire("one")
    assert heard == ["one"] and len(waiters) == 1
    waiters.fire("two")
    assert heard == ["one", "two"] and not waiters


def test_all_who_wait_fail():
    """With the error that they are given."""
    waiters: Waiters[None] = Waiters()
    failed: list[Any] = []
    for _ in range(2):
        waiters.add().addErrback(lambda failure: failed.append(failure.value))
    error = ValueError("no")
    waiters.fail(error)
    assert failed == [error, error] and not waiters


@pytest.mark.parametrize("end", [lambda waiters: waiters.fire(None), lambda waiters: waiters.fail(ValueError())])
def test_a_cancelled_one_is_forgotten(end: Any):
    """Before the outcome, and by another's callback while all are fired."""
    waiters: Waiters[None] = Waiters()
    ends: list[Any] = []
    first, second, third = waiters.add(), waiters.add(), waiters.add()
    first.cancel()
    assert len(waiters) == 2
    second.addBoth(lambda _: third.cancel())
    third.addErrback(lambda failure: ends.append(failure.type))
    first.addErrback(lambda failure: ends.append(failure.type))
    end(waiters)
    assert ends == [CancelledError, CancelledError]


def test_the_last_who_gives_up_is_told_of():
    """Once, and not where there was an outcome."""
    told: list[str] = []
    waiters: Waiters[None] = Waiters(lambda: told.append("abandoned"))
    ones = [waiters.add(), waiters.add()]
    for one in ones:
        assert not told
        one.addErrback(lambda failure: failure.trap(CancelledError))
        one.cancel()
    assert told == ["abandoned"]
    late = waiters.add()
    waiters.fire(None)
    late.cancel()
    assert told == ["abandoned"]


def test_whoever_follows_leaves_the_outcome_as_it_is():
    """It is told the outcome or the error; when it is cancelled, that goes on."""
    outcomes: list[Deferred[str]] = [Deferred(), Deferred(), Deferred()]
    heard: list[Any] = []
    followers = [following(outcome).addBoth(heard.append) for outcome in outcomes]
    followers[0].cancel()
    assert not outcomes[0].called and heard.pop().check(CancelledError)
    outcomes[0].callback("unheard")
    outcomes[1].callback("one")
    outcomes[2].errback(ValueError("no"))
    assert heard[0] == "one" and heard[1].check(ValueError)


def test_only_coroutines_become_deferreds():
    """They run up to where they wait; what is no coroutine stays as it is."""
    gate: Deferred[int] = Deferred()

    async def work() -> int:
        return await gate + 1

    result = awaited(work())
    gate.callback(1)
    found: list[int] = []
    result.addCallback(found.append)
    assert found == [2]
    ready = succeed(5)
    assert awaited(ready) is ready and awaited("text") == "text"


@pytest.fixture(params=["asyncio", "uvloop"])
def run_in_a_loop(request: pytest.FixtureRequest) -> Any:
    """Runs a coroutine in a loop, as the reactor that is one of its kind does."""
    if request.param == "asyncio":
        return asyncio.run
    return pytest.importorskip("uvloop").run


def later(value: Any) -> Deferred[Any]:
    """Fires in a turn of the loop that is to come, with a value or a failure."""
    fires: Deferred[Any] = Deferred()
    asyncio.get_running_loop().call_soon(fires.callback, value)
    return fires


#: What the coroutines here await of asyncio's; no test waits for a time.
timer = asyncio.sleep

VARIABLE: ContextVar[str] = ContextVar("variable", default="unset")


async def both() -> list[Any]:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    done.set_result("done")
    return [
        await later(1),
        await timer(0, 2),
        await succeed(3),
        await asyncio.gather(timer(0.001, 4), asyncio.to_thread(lambda: 5)),
        await later(6),
        await later(7),
        await done,
        await asyncio.create_task(timer(0, 8)),
        await later(9).asFuture(loop),
    ]


async def times_out(awaits: Callable[[], Any], limit: float = 0.001) -> str:
    try:
        async with asyncio.timeout(limit):
            await awaits()
    except TimeoutError:
        return f"late {await later('and on')} {await timer(0, 'and on')}"
    return "in time"


async def grouped() -> list[Any]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(timer(0.001, number)) for number in range(3)]
        await later(None)
    return [task.result() for task in tasks]


async def group_that_fails() -> list[str]:
    async def fails() -> None:
        raise KeyError("of a task")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await Deferred()
    except ExceptionGroup as errors:
        return [str(each) for each in errors.exceptions]
    return []


async def fails(awaits: Callable[[], Any]) -> str:
    try:
        await awaits()
    except (ValueError, KeyError) as error:
        return f"{type(error).__name__} {await later('caught')} {await timer(0, 'on')}"
    return "nothing"


async def raises_later() -> None:
    await timer(0)
    raise ValueError


async def remembers() -> list[str]:
    VARIABLE.set("mine")
    found = [VARIABLE.get()]
    for wait in (lambda: later(None), lambda: timer(0), lambda: later(None)):
        await wait()
        found.append(VARIABLE.get())
    return found


async def same_task() -> bool:
    tasks = [asyncio.current_task()]
    for wait in (lambda: later(None), lambda: timer(0), lambda: later(None)):
        await wait()
        tasks.append(asyncio.current_task())
    name = tasks[0].get_name()
    return all(task is tasks[0] for task in tasks) and name == tasks[-1].get_name()


async def nested() -> list[Any]:
    inner = awaited(remembers())
    mine = asyncio.current_task()
    return [VARIABLE.get(), await inner, await awaited(both()) == await both(), asyncio.current_task() is mine]


async def returns(promise: Callable[[], Any]) -> Any:
    await timer(0)
    return promise()


class Awaitable:
    def __await__(self) -> Any:
        yield from timer(0).__await__()
        return later("custom")


async def cancels_itself() -> str:
    asyncio.current_task().cancel()
    try:
        await later(None)
        await timer(5)
    except asyncio.CancelledError:
        return "cancelled"
    return "not"


#: What is awaited, and what comes of it: a value, or the type of an error.
OF_BOTH: dict[str, tuple[Callable[[], Any], Any]] = {
    "both": (both, [1, 2, 3, [4, 5], 6, 7, "done", 8, 9]),
    "a plain one": (lambda: returns(lambda: 1), 1),
    "time at a Deferred": (lambda: times_out(Deferred), "late and on and on"),
    "time at asyncio's": (lambda: times_out(lambda: timer(5)), "late and on and on"),
    "in time": (lambda: times_out(lambda: later(None), 20), "in time"),
    "a limit": (lambda: times_out(lambda: asyncio.wait_for(timer(0), 5), 20), "in time"),
    "a group": (grouped, [0, 1, 2]),
    "a group that fails": (group_that_fails, ["'of a task'"]),
    "a Deferred that fails": (lambda: fails(lambda: later(Failure(KeyError()))), "KeyError caught on"),
    "a task that fails": (lambda: fails(lambda: asyncio.create_task(raises_later())), "ValueError caught on"),
    "its own error": (raises_later, ValueError),
    "variables": (remembers, ["mine"] * 4),
    "one task": (same_task, True),
    "within another": (nested, ["unset", ["mine"] * 4, True, True]),
    "a Deferred in the end": (lambda: returns(lambda: later("fired")), "fired"),
    "a coroutine in the end": (lambda: returns(lambda: timer(0, "slept")), "slept"),
    "a task in the end": (lambda: returns(lambda: asyncio.create_task(timer(0, "slept"))), "slept"),
    "a task": (lambda: asyncio.get_running_loop().create_task(timer(0, "slept")), "slept"),
    "an awaitable": (Awaitable, "custom"),
    "cancels itself": (cancels_itself, "cancelled"),
    "asks to exit": (lambda: returns(lambda: sys.exit(3)), SystemExit),
    "interrupts": (lambda: returns(lambda: Failure(KeyboardInterrupt()).raiseException()), KeyboardInterrupt),
}


def test_contact_a_coroutine_awaits_deferreds_and_what_asyncio_has(run_in_a_loop: Any):
    """In any order, each in its own way, with the context and the task that it has."""

    async def main() -> None:
        outcomes = {}
        for name, (call, _) in OF_BOTH.items():
            outcome = awaited(call())
            assert isinstance(outcome, Deferred), name
            outcomes[name] = outcome
            outcome.addBoth(lambda result: result.value if isinstance(result, Failure) else result)
        ended = await asyncio.wait_for(gatherResults(outcomes.values()).asFuture(asyncio.get_running_loop()), 20)
        for (name, (_, expected)), found in zip(OF_BOTH.items(), ended, strict=True):
            assert isinstance(found, expected) if isinstance(expected, type) else found == expected, (name, found)
        await timer(0)
        assert asyncio.all_tasks() == {asyncio.current_task()} and VARIABLE.get() == "unset"

    run_in_a_loop(main())


def test_contact_what_waits_for_deferreds_alone_has_no_task_and_goes_on_at_once(run_in_a_loop: Any):
    """As without a loop: when the Deferred fires, and when it is cancelled."""

    async def main() -> None:
        gates: list[Deferred[int]] = [Deferred() for _ in range(4)]
        said: list[Any] = []

        async def waits() -> int:
            first = await gates[0] + await gates[1]
            try:
                await gates[2]
            except CancelledError:
                said.append("cancelled")
            return first + await gates[3]

        outcome = awaited(waits()).addBoth(said.append)
        gates[0].callback(1)
        gates[1].callback(2)
        assert said == [] and asyncio.all_tasks() == {asyncio.current_task()}
        outcome.cancel()
        # It goes on, and nobody waits for it any more.
        assert said[0] == "cancelled" and said[1].check(CancelledError)
        gates[3].callback(4)
        assert len(said) == 2
        immediate: list[int] = []
        awaited(returns_at_once()).addCallback(immediate.append)
        assert immediate == [7]

    async def returns_at_once() -> int:
        return 7

    run_in_a_loop(main())


def test_contact_whoever_gives_up_a_coroutine_ends_what_it_waits_for(run_in_a_loop: Any):
    """Whether the loop has begun to wait for it or not; the coroutine cleans up, and may wait for that."""

    async def main() -> None:
        for turns in range(4):
            for wait in (asyncio.Event().wait, Deferred, lambda: timer(50), asyncio.Future):
                ended: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()

                async def waits(wait: Any = wait, ended: Any = ended) -> None:
                    found: list[Any] = []
                    try:
                        await wait()
                    except (CancelledError, asyncio.CancelledError) as error:
                        found.append(type(error))
                        raise
                    finally:
                        found += [await later("cleans"), await timer(0, "up")]
                        ended.set_result(found)

                outcome = awaited(waits())
                failed: list[Failure] = []
                outcome.addErrback(failed.append)
                for _ in range(turns):
                    await timer(0)
                outcome.cancel()
                assert failed[0].check(CancelledError)
                kind = CancelledError if wait is Deferred else asyncio.CancelledError
                assert await asyncio.wait_for(ended, 20) == [kind, "cleans", "up"], (turns, wait)

    run_in_a_loop(main())


def test_contact_random_orders_of_both_come_to_the_same(run_in_a_loop: Any):
    """Coroutines that wait at random for one and the other, some of which are cancelled by the one or the other."""
    chance = random.Random(5)

    async def walk(steps: list[int], seen: list[int]) -> int:
        for step in steps:
            if step % 4 == 0:
                await later(None)
            elif step % 4 == 1:
                await timer(0)
            elif step % 4 == 2:
                await succeed(None)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(0 if step % 8 == 3 else 20):
                        await (later(None) if step % 16 < 8 else timer(0))
            seen.append(step)
        return len(steps)

    async def main() -> None:
        walks = []
        for _ in range(200):
            steps, seen = [chance.randrange(64) for _ in range(chance.randrange(12))], []
            walks.append((steps, seen, awaited(walk(steps, seen))))
        for steps, seen, outcome in walks:
            if given_up := chance.random() < 0.3:
                outcome.cancel()
                outcome.addErrback(lambda failure: failure.trap(CancelledError) and None)
            result = await asyncio.wait_for(outcome.asFuture(asyncio.get_running_loop()), 20)
            assert seen == steps[: len(seen)] and (given_up or (result == len(steps) and seen == steps))
        for _ in range(40):
            await timer(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run_in_a_loop(main())


def test_contact_without_a_loop_it_is_said_that_there_is_none():
    """Whatever it is that needs one; an error of its own is left as it is."""

    async def times() -> None:
        async with asyncio.timeout(1):
            pass

    async def group() -> None:
        async with asyncio.TaskGroup():
            pass

    async def future() -> None:
        await asyncio.Future(loop=loop)

    async def of_its_own() -> None:
        raise RuntimeError("of its own")

    def text_of(call: Callable[[], Any]) -> str:
        failed: list[Failure] = []
        awaited(call()).addErrback(failed.append)
        assert failed[0].type is RuntimeError
        return failed[0].getErrorMessage()

    loop = asyncio.new_event_loop()
    try:
        needing = [
            lambda: timer(1),
            times,
            group,
            future,
            lambda: asyncio.to_thread(int),
            lambda: asyncio.Event().wait(),
        ]
        for call in needing:
            assert "no asyncio loop runs in this thread" in text_of(call), call
        assert text_of(of_its_own) == "of its own"
    finally:
        loop.close()
