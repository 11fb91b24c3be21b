"""The life of a service as a table: in each state, what each event leads to. Values in, values out.

Requests never run side by side: while an operation (a start, a stop) is under way, a request only changes the state,
which says what follows when the operation ends. So the last request decides the final state, a stop ends a start in
progress, and a start that comes during a stop waits for the end of the old process: there are never two.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum

__all__ = ["TRANSITIONS", "Action", "Event", "State", "step"]


class State(Enum):
    """The states of a supervised service."""

    #: Nothing runs and nothing is to run.
    DOWN = "down"
    #: It is being started because somebody asked.
    STARTING = "starting"
    #: It is being started again by itself, after a failure.
    RECOVERING = "recovering"
    #: The start in progress is being given up, for a stop.
    CANCELLING = "cancelling"
    #: The start in progress is being given up, for one with other settings.
    CHANGING = "changing"
    #: The start in progress is being given up, as this zComm lets its services go.
    LEAVING = "leaving"
    #: It is ready and watched.
    UP = "up"
    #: It is being stopped.
    STOPPING = "stopping"
    #: It is being stopped, and is to be stopped by force if it refuses.
    FORCING = "forcing"
    #: It is being stopped, to be started anew.
    RESTARTING = "restarting"
    #: It hung and is being ended.
    ENDING = "ending"
    #: It failed and is started again after a while.
    WAITING = "waiting"
    #: It failed and is left alone.
    FAILED = "failed"


class Event(Enum):
    """The events in the life of a service."""

    # Somebody asks.
    START = "start"
    RESTART = "restart"
    #: Start with other settings than the start in progress has.
    CHANGE = "change"
    STOP = "stop"
    STOP_BY_FORCE = "stop by force"
    # A start ended.
    READY = "ready"
    CANCELLED = "cancelled"
    #: Another zComm has it, and it runs there.
    RUNS_ELSEWHERE = "runs elsewhere"
    # A stop ended.
    STOPPED = "stopped"
    #: It cannot save its data, and goes on.
    REFUSED = "refused"
    #: It survived every signal.
    STUCK = "stuck"
    # The server did something by itself, or a start failed.
    HUNG = "hung"
    #: It failed, and a later attempt may succeed.
    FELL = "fell"
    #: It failed, and is not worth another attempt.
    GAVE_UP = "gave up"
    #: The wait before another attempt is over.
    RETRY = "retry"
    #: This zComm lets it go: its server goes on, and a start is given up.
    LET_GO = "let go"


class Action(Enum):
    """The actions taken between one state and the next."""

    NOTHING = "nothing"
    START = "start"
    #: Give up the start in progress.
    CANCEL = "cancel"
    STOP = "stop"
    STOP_BY_FORCE = "stop by force"
    #: Release the locks and say that it is down.
    REST = "rest"
    REST_AND_START = "rest and start"
    #: Say that it is ready, and watch it.
    WATCH = "watch"
    #: Say that it goes on though it was to be stopped, and watch it.
    WATCH_AGAIN = "watch again"
    #: End the process of a server that hangs.
    END = "end"
    #: Say what is wrong, and start it again later.
    RETRY_LATER = "retry later"
    #: Say what is wrong, release the locks, and leave it alone.
    LEAVE = "leave"
    #: Tell those who wait for it that it is ready.
    TELL_READY = "tell ready"
    #: Say that it is down here, and to those who wait for it that it runs.
    CONCEDE = "concede"
    #: Say that another zComm has it.
    REFUSE = "refuse"
    #: Say that it does not end.
    SAY_STUCK = "say that it is stuck"


def _rows(
    states: Iterable[State], ways: Mapping[Event, tuple[State, Action]]
) -> dict[tuple[State, Event], tuple[State, Action]]:
    return {(state, event): way for state in states for event, way in ways.items()}


_S, _E, _A = State, Event, Action

#: (state, event) -> (next state, action). What is not in it changes nothing.
TRANSITIONS: Mapping[tuple[State, Event], tuple[State, Action]] = {
    # Nothing is under way: a request begins an operation.
    **_rows(
        (_S.DOWN, _S.WAITING, _S.FAILED, _S.ENDING),
        {
            _E.START: (_S.STARTING, _A.START),
            _E.STOP: (_S.STOPPING, _A.STOP),
            _E.STOP_BY_FORCE: (_S.STOPPING, _A.STOP_BY_FORCE),
        },
    ),
    # An earlier zComm's server may run, which a start would take over as it is.
    **_rows((_S.DOWN, _S.WAITING, _S.FAILED), dict.fromkeys((_E.CHANGE, _E.RESTART), (_S.RESTARTING, _A.STOP))),
    # The one that hangs is ours; a start begins with its end.
    **_rows((_S.ENDING,), dict.fromkeys((_E.CHANGE, _E.RESTART), (_S.STARTING, _A.START))),
    (_S.WAITING, _E.LET_GO): (_S.FAILED, _A.NOTHING),
    (_S.WAITING, _E.RETRY): (_S.RECOVERING, _A.START),
    **_rows(
        (_S.UP,),
        {
            _E.START: (_S.UP, _A.TELL_READY),
            _E.CHANGE: (_S.RESTARTING, _A.STOP),
            _E.RESTART: (_S.RESTARTING, _A.STOP),
            _E.STOP: (_S.STOPPING, _A.STOP),
            _E.STOP_BY_FORCE: (_S.STOPPING, _A.STOP_BY_FORCE),
            _E.HUNG: (_S.ENDING, _A.END),
            _E.LET_GO: (_S.DOWN, _A.REST),
        },
    ),
    # It ended, or what hung was ended.
    **_rows((_S.UP, _S.ENDING), {_E.FELL: (_S.WAITING, _A.RETRY_LATER), _E.GAVE_UP: (_S.FAILED, _A.LEAVE)}),
    (_S.ENDING, _E.STUCK): (_S.FAILED, _A.SAY_STUCK),
    # A start is under way.
    **_rows(
        (_S.STARTING, _S.RECOVERING),
        {
            # Joins it; one that was begun by itself is somebody's from now on, and is not tried again if it fails.
            _E.START: (_S.STARTING, _A.NOTHING),
            _E.RESTART: (_S.STARTING, _A.NOTHING),
            _E.CHANGE: (_S.CHANGING, _A.CANCEL),
            _E.STOP: (_S.CANCELLING, _A.CANCEL),
            _E.STOP_BY_FORCE: (_S.CANCELLING, _A.CANCEL),
            _E.READY: (_S.UP, _A.WATCH),
            _E.RUNS_ELSEWHERE: (_S.DOWN, _A.CONCEDE),
            # One that would be tried again, but that somebody has asked for since it failed.
            _E.FELL: (_S.FAILED, _A.LEAVE),
            _E.GAVE_UP: (_S.FAILED, _A.LEAVE),
            _E.CANCELLED: (_S.FAILED, _A.LEAVE),
            _E.STUCK: (_S.FAILED, _A.SAY_STUCK),
        },
    ),
    (_S.RECOVERING, _E.FELL): (_S.WAITING, _A.RETRY_LATER),
    # A start is being given up.
    **_rows(
        (_S.CANCELLING, _S.CHANGING, _S.LEAVING),
        {
            _E.START: (_S.CHANGING, _A.NOTHING),
            _E.CHANGE: (_S.CHANGING, _A.NOTHING),
            _E.RESTART: (_S.CHANGING, _A.NOTHING),
            _E.STOP: (_S.CANCELLING, _A.NOTHING),
            _E.STOP_BY_FORCE: (_S.CANCELLING, _A.NOTHING),
            _E.STUCK: (_S.FAILED, _A.SAY_STUCK),
        },
    ),
    # An earlier zComm's server that was to be taken over goes on; so does one that is ready by now.
    **_rows((_S.STARTING, _S.RECOVERING), {_E.LET_GO: (_S.LEAVING, _A.CANCEL)}),
    (_S.CHANGING, _E.LET_GO): (_S.LEAVING, _A.NOTHING),
    **_rows(
        (_S.LEAVING,),
        dict.fromkeys((_E.CANCELLED, _E.READY, _E.RUNS_ELSEWHERE, _E.FELL, _E.GAVE_UP), (_S.DOWN, _A.REST)),
    ),
    # It may have ended in another way before it heard of that.
    # Whatever came of it, an earlier zComm's server may run that the start had not taken over yet.
    **_rows((_S.CHANGING,), dict.fromkeys((_E.CANCELLED, _E.READY, _E.FELL, _E.GAVE_UP), (_S.RESTARTING, _A.STOP))),
    (_S.CHANGING, _E.RUNS_ELSEWHERE): (_S.DOWN, _A.REFUSE),
    **_rows(
        (_S.CANCELLING,),
        dict.fromkeys((_E.CANCELLED, _E.READY, _E.RUNS_ELSEWHERE, _E.FELL, _E.GAVE_UP), (_S.STOPPING, _A.STOP)),
    ),
    # A stop is under way.
    **_rows(
        (_S.STOPPING, _S.FORCING, _S.RESTARTING),
        {
            _E.START: (_S.RESTARTING, _A.NOTHING),
            _E.CHANGE: (_S.RESTARTING, _A.NOTHING),
            _E.RESTART: (_S.RESTARTING, _A.NOTHING),
            _E.STOP: (_S.STOPPING, _A.NOTHING),
            _E.STOP_BY_FORCE: (_S.FORCING, _A.NOTHING),
            _E.STOPPED: (_S.DOWN, _A.REST),
            _E.REFUSED: (_S.UP, _A.WATCH_AGAIN),
            _E.STUCK: (_S.FAILED, _A.SAY_STUCK),
            _E.RUNS_ELSEWHERE: (_S.DOWN, _A.REFUSE),
        },
    ),
    (_S.RESTARTING, _E.STOPPED): (_S.STARTING, _A.REST_AND_START),
    (_S.FORCING, _E.STOP): (_S.FORCING, _A.NOTHING),
    (_S.FORCING, _E.REFUSED): (_S.STOPPING, _A.STOP_BY_FORCE),
}


def step(state: State, event: Event) -> tuple[State, Action]:
    """The next state and what is to be done; an event that means nothing in a state changes nothing."""
    return TRANSITIONS.get((state, event), (state, Action.NOTHING))
