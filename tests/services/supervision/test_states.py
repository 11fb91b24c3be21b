"""The table by which a service goes from one state to the next."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies

from zcomm.services.supervision.states import TRANSITIONS, Action, Event, State, step

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
        ((E.START, E.STOP, E.START, E.CANCELLED), S.STARTING, (A.START, A.CANCEL, A.REST_AND_START)),
        ((E.START, E.CHANGE, E.CANCELLED, E.READY), S.UP, (A.START, A.CANCEL, A.REST_AND_START, A.WATCH)),
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
            (E.START, E.READY, E.FELL, E.RETRY, E.CHANGE, E.FELL),
            S.STARTING,
            (A.START, A.WATCH, A.RETRY_LATER, A.START, A.CANCEL, A.REST_AND_START),
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
        ((E.START, E.LET_GO, E.START, E.CANCELLED), S.STARTING, (A.START, A.CANCEL, A.REST_AND_START)),
        ((E.START, E.LET_GO, E.STOP, E.CANCELLED), S.STOPPING, (A.START, A.CANCEL, A.STOP)),
        # Another zComm has it.
        ((E.START, E.RUNS_ELSEWHERE), S.DOWN, (A.START, A.CONCEDE)),
        ((E.STOP, E.RUNS_ELSEWHERE), S.DOWN, (A.STOP, A.REFUSE)),
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
