"""The table by which a service goes from one state to the next."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, strategies
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zcomm.errors import ServiceError
from zcomm.services.declaration import ServiceDeclaration
from zcomm.services.kinds.declared import DeclaredService
from zcomm.services.manager import ServiceManager
from zcomm.services.supervision.states import TRANSITIONS, Action, Event, State, step
from zcomm.services.supervision.supervisor import Supervisor

S, E, A = State, Event, Action
REQUESTS = (E.START, E.RESTART, E.CHANGE, E.STOP, E.STOP_BY_FORCE)
#: The operation that runs in a state, by the events with which it can end.
UNDER_WAY = {
    **dict.fromkeys((S.STARTING, S.RECOVERING, S.CANCELLING, S.CHANGING, S.LEAVING), "start"),
    **dict.fromkeys((S.STOPPING, S.FORCING, S.RESTARTING), "stop"),
    S.ENDING: "end",
}
ENDS = {
    "start": (E.READY, E.CANCELLED, E.RUNS_ELSEWHERE, E.FELL, E.GAVE_UP, E.STUCK),
    "stop": (E.STOPPED, E.REFUSED, E.STUCK, E.RUNS_ELSEWHERE),
    "end": (E.FELL, E.GAVE_UP, E.STUCK),
}
BEGINS = {
    A.START: "start",
    A.REST_AND_START: "start",
    A.STOP: "stop",
    A.STOP_BY_FORCE: "stop",
    A.END: "end",
}


@pytest.mark.parametrize(
    ("events", "last", "actions"),
    [
        # A start and a stop.
        ((E.START, E.READY, E.STOP, E.STOPPED), S.DOWN, (A.START, A.WATCH, A.STOP, A.REST)),
        # Concurrent starts are one.
        ((E.START, E.START, E.RESTART, E.READY, E.START), S.UP, (A.START, A.WATCH, A.TELL_READY)),
        # A stop ends a start in progress; what an earlier zComm may have left is stopped as well.
        ((E.START, E.STOP, E.CANCELLED, E.STOPPED), S.DOWN, (A.START, A.CANCEL, A.STOP, A.REST)),
        # It became ready before it heard of that.
        ((E.START, E.STOP, E.READY, E.STOPPED), S.DOWN, (A.START, A.CANCEL, A.STOP, A.REST)),
        # The last request decides.
        (
            (E.START, E.STOP, E.START, E.CANCELLED, E.STOPPED),
            S.STARTING,
            (A.START, A.CANCEL, A.STOP, A.REST_AND_START),
        ),
        (
            (E.START, E.CHANGE, E.CANCELLED, E.STOPPED, E.READY),
            S.UP,
            (A.START, A.CANCEL, A.STOP, A.REST_AND_START, A.WATCH),
        ),
        ((E.START, E.CHANGE, E.STOP, E.CANCELLED), S.STOPPING, (A.START, A.CANCEL, A.STOP)),
        # A start that comes during a stop waits for its end.
        (
            (E.START, E.READY, E.STOP, E.START, E.STOPPED, E.READY),
            S.UP,
            (A.START, A.WATCH, A.STOP, A.REST_AND_START, A.WATCH),
        ),
        ((E.START, E.READY, E.RESTART, E.STOP, E.STOPPED), S.DOWN, (A.START, A.WATCH, A.STOP, A.REST)),
        # One that cannot save its data goes on; by force it is stopped all the same.
        ((E.START, E.READY, E.STOP, E.REFUSED), S.UP, (A.START, A.WATCH, A.STOP, A.WATCH_AGAIN)),
        (
            (E.START, E.READY, E.STOP, E.STOP_BY_FORCE, E.REFUSED, E.STOPPED),
            S.DOWN,
            (A.START, A.WATCH, A.STOP, A.STOP_BY_FORCE, A.REST),
        ),
        # A start that fails is not tried again; one that was begun by itself is.
        ((E.START, E.GAVE_UP), S.FAILED, (A.START, A.LEAVE)),
        (
            (E.START, E.READY, E.FELL, E.RETRY, E.FELL, E.RETRY, E.GAVE_UP),
            S.FAILED,
            (A.START, A.WATCH, A.RETRY_LATER, A.START, A.RETRY_LATER, A.START, A.LEAVE),
        ),
        # It is somebody's as soon as somebody asks for it.
        ((E.START, E.READY, E.FELL, E.RETRY, E.START), S.STARTING, (A.START, A.WATCH, A.RETRY_LATER, A.START)),
        ((E.START, E.READY, E.FELL, E.STOP, E.STOPPED), S.DOWN, (A.START, A.WATCH, A.RETRY_LATER, A.STOP, A.REST)),
        # One that hangs is ended, and started again.
        ((E.START, E.READY, E.HUNG, E.FELL, E.RETRY), S.RECOVERING, (A.START, A.WATCH, A.END, A.RETRY_LATER, A.START)),
        ((E.START, E.READY, E.HUNG, E.STUCK, E.START), S.STARTING, (A.START, A.WATCH, A.END, A.SAY_STUCK, A.START)),
        # A start begun by itself that fails after somebody asked for it, for other settings, or for a stop.
        (
            (E.START, E.READY, E.FELL, E.RETRY, E.START, E.FELL),
            S.FAILED,
            (A.START, A.WATCH, A.RETRY_LATER, A.START, A.LEAVE),
        ),
        (
            (E.START, E.READY, E.FELL, E.RETRY, E.CHANGE, E.FELL, E.STOPPED),
            S.STARTING,
            (A.START, A.WATCH, A.RETRY_LATER, A.START, A.CANCEL, A.STOP, A.REST_AND_START),
        ),
        (
            (E.START, E.READY, E.FELL, E.RETRY, E.STOP, E.FELL, E.STOPPED),
            S.DOWN,
            (A.START, A.WATCH, A.RETRY_LATER, A.START, A.CANCEL, A.STOP, A.REST),
        ),
        # It goes on without us, and is taken over by the next start.
        ((E.START, E.READY, E.LET_GO, E.START), S.STARTING, (A.START, A.WATCH, A.REST, A.START)),
        # A start is given up with it, unless somebody asks for it, or for its end, before that is done.
        ((E.START, E.LET_GO, E.CANCELLED), S.DOWN, (A.START, A.CANCEL, A.REST)),
        ((E.START, E.LET_GO, E.READY), S.DOWN, (A.START, A.CANCEL, A.REST)),
        ((E.START, E.CHANGE, E.LET_GO, E.CANCELLED), S.DOWN, (A.START, A.CANCEL, A.REST)),
        (
            (E.START, E.READY, E.FELL, E.RETRY, E.LET_GO),
            S.LEAVING,
            (A.START, A.WATCH, A.RETRY_LATER, A.START, A.CANCEL),
        ),
        (
            (E.START, E.LET_GO, E.START, E.CANCELLED, E.STOPPED),
            S.STARTING,
            (A.START, A.CANCEL, A.STOP, A.REST_AND_START),
        ),
        ((E.START, E.LET_GO, E.STOP, E.CANCELLED), S.STOPPING, (A.START, A.CANCEL, A.STOP)),
        # What an earlier zComm left running ends before a restart begins.
        ((E.RESTART, E.STOPPED, E.READY), S.UP, (A.STOP, A.REST_AND_START, A.WATCH)),
        ((E.CHANGE, E.STOP, E.STOPPED), S.DOWN, (A.STOP, A.REST)),
        ((E.START, E.GAVE_UP, E.RESTART, E.STOPPED), S.STARTING, (A.START, A.LEAVE, A.STOP, A.REST_AND_START)),
        # One that waits for its next attempt is left alone when this zComm lets its services go.
        ((E.START, E.READY, E.FELL, E.LET_GO), S.FAILED, (A.START, A.WATCH, A.RETRY_LATER)),
        # Another zComm has it.
        ((E.START, E.RUNS_ELSEWHERE), S.DOWN, (A.START, A.CONCEDE)),
        ((E.STOP, E.RUNS_ELSEWHERE), S.DOWN, (A.STOP, A.REFUSE)),
        ((E.RESTART, E.RUNS_ELSEWHERE), S.DOWN, (A.STOP, A.REFUSE)),
        ((E.START, E.STOP, E.START, E.RUNS_ELSEWHERE), S.DOWN, (A.START, A.CANCEL, A.REFUSE)),
    ],
)
def test_the_ways_of_a_service(events: tuple[Event, ...], last: State, actions: tuple[Action, ...]):
    """What happens, where that leads, and what is done on the way."""
    state, done = S.DOWN, []
    for event in events:
        state, action = step(state, event)
        done.append(action)
    assert state is last and tuple(action for action in done if action is not A.NOTHING) == actions


@pytest.mark.parametrize("state", list(State))
def test_every_request_is_heard_in_every_state(state: State):
    """None is lost: each has its row, whatever is under way."""
    assert [request for request in REQUESTS if (state, request) not in TRANSITIONS] == []


@pytest.mark.parametrize("state", list(UNDER_WAY))
def test_every_end_of_an_operation_leads_on(state: State):
    """No state waits for an operation that has ended: each of its ends has a row."""
    for event in ENDS[UNDER_WAY[state]]:
        assert (state, event) in TRANSITIONS, (state, event)
        after, action = step(state, event)
        assert UNDER_WAY.get(after) is None or action in BEGINS, (state, event)


def test_no_operation_begins_while_another_is_under_way():
    """There are never two; what hung is ended by whoever asks for something."""
    ends = {(state, event) for state, name in UNDER_WAY.items() for event in ENDS[name]}
    for (state, event), (after, action) in TRANSITIONS.items():
        if state in UNDER_WAY and state is not S.ENDING and (state, event) not in ends:
            assert action not in BEGINS and UNDER_WAY[after] == UNDER_WAY[state], (state, event)
        if action in BEGINS:
            assert UNDER_WAY[after] == BEGINS[action], (state, event)


class Quiet(Supervisor):
    """A supervisor whose operations never begin: what its actions say and whom they tell is all there is."""

    def _begin(self, operation: Any) -> None:
        operation.close()


def walked(manager: ServiceManager, events: Sequence[Event]) -> Quiet:
    """A supervisor that has met these events, the requests among them with those who wait for them."""
    service = Quiet(manager.environment, ServiceDeclaration("one", argv=("true",)), DeclaredService)
    asked: list[Deferred[Any]] = []
    for event in events:
        match event:
            case E.START:
                asked.append(service.start())
            case E.RESTART:
                asked.append(service.restart())
            case E.CHANGE:
                other = "/two" if service.context.data_dir() == Path("/one") else "/one"
                asked.append(service.restart(service.kind.read_options({"data_dir": other})))
            case E.STOP | E.STOP_BY_FORCE:
                asked.append(service.stop(event is E.STOP_BY_FORCE))
            case E.LET_GO:
                asked.append(service.release())
            case E.RETRY:
                service._cancel_retry()
                service._handle(event)
            case _:
                service._handle(event, ServiceError("one", "it went wrong"))
    for answer in asked:
        answer.addErrback(lambda failure: failure.trap(ServiceError))
    return service


def test_no_way_into_rest_leaves_anybody_waiting(place: Path):
    """Over the whole table, by every way in it: whoever asked for something has an answer when nothing is under way."""
    manager = ServiceManager(place / "home", {"PATH": os.defpath}, Clock())
    ways: dict[tuple[State, bool, bool], tuple[Event, ...]] = {(S.DOWN, False, False): ()}
    todo = list(ways)
    met = set()
    while todo:
        way = ways[todo.pop()]
        state = walked(manager, way)._where
        spontaneous = [event for before, event in TRANSITIONS if before is state and event not in REQUESTS]
        for event in (*REQUESTS, E.LET_GO, *spontaneous):
            met.add((state, event))
            service = walked(manager, (*way, event))
            found = service._where, bool(service._up), bool(service._down)
            if service._where not in UNDER_WAY:
                assert found[1:] == (False, False), (*way, event)
            if found not in ways:
                ways[found] = (*way, event)
                todo.append(found)
    assert set(TRANSITIONS) <= met


@given(events=strategies.lists(strategies.sampled_from(Event), max_size=30))
def test_what_means_nothing_changes_nothing(events: list[Event]):
    """Whatever comes in whatever order, a state is reached from which a stop leads down."""
    state = S.DOWN
    for event in events:
        before = state
        state, action = step(state, event)
        assert (before, event) in TRANSITIONS or (state is before and action is A.NOTHING)
    state, _ = step(state, E.STOP)
    for event in (E.CANCELLED, E.STOPPED):
        state, _ = step(state, event)
    assert state is S.DOWN
