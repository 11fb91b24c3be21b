"""Which calls of an owner may begin beside those that run, by a clock and a processor that the test sets."""

from __future__ import annotations

from collections.abc import Hashable
from random import Random
from typing import Any

import pytest

from zcomm.runtime.workers import line
from zcomm.runtime.workers.line import (
    ALL,
    BESIDE,
    HEAVY,
    IN_A_ROW,
    LATELY,
    LIGHT,
    LITTLE_ELSEWHERE,
    LONG,
    LOOK,
    NONE,
    OVER,
    UNKNOWN,
    WAY,
    Job,
    Line,
    Misjudged,
)

#: For what there is room: for those alone that are known to be quick, and for all but those that are known to compute.
QUICK, NEW = LIGHT + 1, UNKNOWN + 1


class Model:
    """A line whose calls run on threads of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, alike: bool = False):
        self.now = 1.0
        self.used: dict[int, float] = {}
        monkeypatch.setattr(line.time, "clock_gettime", self.used.__getitem__)
        self.misjudged = Misjudged(lambda: self.now)
        self.alike = alike
        self.line = Line("me", alike, self.misjudged)

    def waits(self, kind: Hashable) -> Job:
        """A call that waits."""
        job = Job(self.line, kind, int, (), {})
        self.line.add(job)
        return job

    def begin(self, kind: Hashable) -> Job:
        """A call that a thread is at."""
        job = self.waits(kind)
        assert self.line.first(ALL) is job
        self.line.begin(job)
        self.line.at_work[job] = None
        self.used[job.number + 1] = 0.0
        job.begin(job.number + 1, job.number + 1, self.now, 0.0)
        return job

    def send(self, job: Job, way: float = 0.0) -> Elsewhere:
        """It has another process work for it, which is so many seconds away."""
        job.elsewhere = found = Elsewhere(self, way)
        return found

    def end(self, job: Job, seconds: float = 0.0001) -> None:
        """It ends after so much of the processor."""
        job.ended(seconds, seconds)
        del self.line.at_work[job]

    def teach(self, kind: Hashable, times: int = IN_A_ROW) -> None:
        """So many calls compute little."""
        for _ in range(times):
            self.end(self.begin(kind))

    def look(self, *computing: Job, seconds: float = LOOK) -> int:
        """For what there is room after so many seconds, in which some had the processor."""
        self.line.room(self.now)
        for job in computing:
            assert job.clock is not None
            self.used[job.clock] += seconds
        self.now += seconds
        return self.line.room(self.now)


class Elsewhere:
    """A process that works for a call from now on."""

    def __init__(self, model: Model, way: float):
        self.model = model
        self.way = way
        self.since = model.now

    @property
    def at_work(self) -> float:
        """The seconds so far, the way left aside."""
        return max(0.0, self.model.now - self.since - self.way)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(monkeypatch)


def test_quick_calls_wait_for_none_that_computes(model: Model):
    """Those of a kind that computed little begin beside it at once, ahead of what came earlier; of others the one that
    nothing is known of begins after a while, and one that is known to compute when it has ended."""
    model.teach("quick")
    running = model.begin("report")
    assert model.look(running) == QUICK
    report, new, quick = (model.waits(kind) for kind in ("report", "new", "quick"))
    assert model.line.thinks("report") == HEAVY
    assert [model.line.first(room) for room in (NONE, QUICK, NEW, ALL)] == [None, quick, new, report]
    assert model.look(running, seconds=LONG) == NEW
    model.end(running, 1.0)
    assert model.line.room(model.now) == ALL


@pytest.mark.parametrize("alike", [True, False])
def test_a_few_quick_calls_begin_side_by_side(monkeypatch: pytest.MonkeyPatch, alike: bool):
    """As statements do: more would get no more done. Those that are seen to wait are not of them, nor is one whose
    large result waits to be taken."""
    model = Model(monkeypatch, alike)
    model.teach("quick")
    beside = [model.begin("quick") for _ in range(BESIDE)]
    assert model.line.room(model.now) == (NONE if alike else ALL)
    assert model.look() == ALL
    more = [model.begin("quick") for _ in range(BESIDE - 1)]
    assert model.line.room(model.now) == ALL
    assert model.line.room(model.now, others_ask=True) == (NONE if alike else ALL)
    model.begin("quick")
    assert model.line.room(model.now) == (NONE if alike else ALL)
    more[0].thread = OVER
    assert model.line.room(model.now) == (NONE if alike else ALL)
    more[0].is_large = True
    assert model.line.room(model.now) == ALL
    for job in beside:
        model.end(job)


@pytest.mark.parametrize("milliseconds", [0, 1, 3])
def test_more_begin_side_by_side_where_another_process_is_far_away(monkeypatch: pytest.MonkeyPatch, milliseconds: int):
    """Nobody waits for calls that are on their way."""
    model = Model(monkeypatch, True)
    model.teach("read")
    for _ in range(IN_A_ROW):
        job = model.begin("read")
        model.send(job, milliseconds / 1000)
        model.end(job)
    more = round(milliseconds / 1000 / WAY)
    for number in range(BESIDE + more):
        model.begin("read")
        has_room = [model.line.room(model.now, others_ask) == ALL for others_ask in (True, False)]
        assert has_room == [number < BESIDE + more - 2, number < BESIDE + more - 1]


def test_what_another_process_computes_counts_as_what_a_thread_does(model: Model):
    """One such call runs at a time; the kind of it is remembered from when it took more than a little."""
    model.teach("report")
    running = model.begin("report")
    model.send(running)
    assert model.look(seconds=LOOK) == QUICK
    assert model.line.thinks("report") == LIGHT
    assert model.look(seconds=LITTLE_ELSEWHERE) == QUICK
    assert model.line.thinks("report") == HEAVY
    assert model.look(seconds=LONG) == NEW
    model.end(running)
    assert model.line.room(model.now) == ALL
    assert model.line.thinks("report") == HEAVY


def test_the_way_to_another_process_keeps_nobody(model: Model):
    """However long it is: a call that is on it waits."""
    for _ in range(5):
        running = model.begin("read")
        model.send(running, way=0.2)
        model.look(seconds=0.1)
        assert model.look(seconds=0.09) == ALL
        model.end(running)
        assert model.line.thinks("read") != HEAVY


@pytest.mark.parametrize(("seconds", "thought"), [(LITTLE_ELSEWHERE / 2, LIGHT), (2 * LITTLE_ELSEWHERE, HEAVY)])
def test_a_kind_for_which_another_process_works_for_long_computes(model: Model, seconds: float, thought: int):
    """Also where nobody looked at it while it ran."""
    for _ in range(IN_A_ROW):
        running = model.begin("read")
        model.send(running)
        model.now += seconds
        model.end(running)
    assert model.line.thinks("read") == thought


def test_two_that_compute_leave_room_for_one_quick_call(model: Model):
    """And three for none."""
    model.teach("quick")
    running = [model.begin(kind) for kind in ("report", "another")]
    assert model.look(*running) == QUICK
    running.append(model.begin("quick"))
    assert model.look(*running) == NONE
    assert model.line.thinks("quick") == HEAVY


def test_a_call_that_waited_first_computes_from_then_on(model: Model):
    """Another one may begin a while after it is seen to compute, not after it began."""
    running = model.begin("mixed")
    assert model.look() == ALL
    assert model.look(seconds=3 * LONG) == ALL
    assert model.look(running, seconds=3 * LONG) == QUICK
    assert model.look(running, seconds=LONG) == NEW
    assert model.look(seconds=LONG) == ALL


def test_one_that_turns_out_to_compute_counts_at_once_for_those_beside_it(model: Model):
    """They are no longer taken for quick ones, though nobody has looked at them for long enough."""
    model.teach("read", 10)
    beside = []
    for _ in range(3):
        beside.append(model.begin("read"))
        assert model.line.room(model.now) == ALL
        model.now += 0.4 * LOOK
    assert beside[0].clock is not None
    model.used[beside[0].clock] = LOOK
    assert model.line.room(model.now) == NONE
    assert all(job.computes(model.now) for job in beside)


def test_a_kind_that_was_misjudged_has_to_prove_itself_for_longer(model: Model):
    """Each time, for a minute: who lets some quick calls go before many dear ones gains nothing."""
    needs = IN_A_ROW
    for _ in range(3):
        model.teach("read", needs - 1)
        assert model.line.thinks("read") == UNKNOWN
        model.teach("read", 1)
        assert model.line.thinks("read") == LIGHT
        # The line is dropped between them.
        misjudged = model.begin("read")
        model.end(misjudged, 5.0)
        model.line = Line("me", False, model.misjudged)
        needs *= line.AGAIN
    model.teach("read")
    assert model.line.thinks("read") == UNKNOWN
    model.now += LATELY + 1
    assert model.line.thinks("read") == LIGHT


def test_a_kind_is_not_held_to_have_been_misjudged_for_little(model: Model):
    """Some milliseconds of the processor make it wait for three others, as before: nobody has noticed them."""
    for _ in range(3):
        model.teach("read")
        running = model.begin("read")
        model.line.room(model.now)
        model.look(running, seconds=LOOK / 2)
        model.look(seconds=LOOK)
        model.end(running, 0.9 * LOOK)
        assert model.line.thinks("read") == HEAVY
    model.teach("read")
    assert model.line.thinks("read") == LIGHT


def test_what_is_learnt_while_a_call_waits_counts_for_it(model: Model):
    """In both directions, and in the order in which they came."""
    running = model.begin("a")
    waiting = [model.waits(kind) for kind in ("a", "b", "a", "b")]
    model.end(running, 1.0)
    for _ in range(IN_A_ROW):
        job = Job(model.line, "b", int, (), {})
        job.ended(0.0001, 0.0001)
    order = []
    for room in (QUICK, QUICK, ALL, ALL):
        job = model.line.first(room)
        assert job is not None
        model.line.begin(job)
        order.append(waiting.index(job))
    assert order == [1, 3, 0, 2] and not len(model.line)


@pytest.mark.parametrize("alike", [False, True])
def test_what_a_new_kind_is_taken_for(monkeypatch: pytest.MonkeyPatch, alike: bool):
    """For quick where all calls are alike and the last ones were; a known one is judged by its own."""
    model = Model(monkeypatch, alike)
    for kind in ("dear", None):
        model.end(model.begin(kind), 1.0)
    model.teach("quick")
    expected: dict[Any, int] = {"quick": LIGHT, "dear": HEAVY, "new": LIGHT if alike else UNKNOWN}
    assert {kind: model.line.thinks(kind) for kind in expected} == expected
    assert model.line.thinks(None) == expected["new"]


def test_what_is_remembered_is_bounded(model: Model, monkeypatch: pytest.MonkeyPatch):
    """Kinds of a line, and misjudged ones of all."""
    for number in range(3 * line.KINDS):
        model.teach(number, 1)
    assert len(model.line._kinds) == line.KINDS
    monkeypatch.setattr(line, "MISJUDGED", 5)
    for number in range(20):
        model.misjudged.add("me", number)
    assert len(model.misjudged._known) == 5
    for _ in range(20):
        model.misjudged.add("me", "again")
    assert model.misjudged.needs("me", "again") == line.AT_MOST


@pytest.mark.parametrize("alike", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_those_that_wait_stand_where_they_belong(monkeypatch: pytest.MonkeyPatch, alike: bool, seed: int):
    """Whatever is learnt meanwhile: the oldest of those that may begin is the next, and who was given up is gone."""
    model, random = Model(monkeypatch, alike), Random(seed)
    waiting: list[Job] = []
    running: list[Job] = []
    for _ in range(600):
        act = random.randrange(4)
        if act == 0 or not waiting:
            waiting.append(model.waits(random.choice([None, "a", "b", "c"])))
        elif act == 1:
            given_up = waiting.pop(random.randrange(len(waiting)))
            assert model.line.remove(given_up) and not model.line.remove(given_up)
        elif act == 2 and running:
            model.line.learn(running.pop(), random.random() < 0.8, random.random() < 0.5)
        room = random.choice([NONE, QUICK, NEW, ALL])
        may = [job for job in waiting if model.line.thinks(job.kind) < room]
        first = model.line.first(room)
        assert first is (may[0] if may else None)
        if first is not None and random.random() < 0.4:
            model.line.begin(first)
            assert first.is_trusted == (model.line.thinks(first.kind) == LIGHT)
            waiting.remove(first)
            running.append(first)
        assert len(model.line) == len(waiting) and set(model.line) == set(waiting)


def test_those_that_wait_are_looked_through_only_where_something_else_is_thought_of_some(model: Model):
    """Two thousand may wait, and each that ends teaches something."""

    def learns(kind: str, is_light: bool) -> None:
        model.line.learn(Job(model.line, kind, int, (), {}), is_light, True)

    oldest = model.waits("dear")
    model.waits("quick")
    learns("dear", False)
    for _ in range(IN_A_ROW):
        learns("quick", True)
    assert model.line.first(ALL) is oldest
    for kind, is_light in (("dear", False), ("quick", True), ("dear", False)):
        learns(kind, is_light)
        assert not model.line._is_stale
    learns("quick", False)
    assert model.line._is_stale
