"""Telling who comes into topics and goes: what happens within a moment together (docs/protocol.rst, "Presence")."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from zcomm.budget.account import Account
from zcomm.budget.written import write_json
from zcomm.interfaces import Change, IEngine, Members
from zcomm.topics.presence import DETAIL, DETAIL_AGAIN, Window, raw_members
from zcomm.topics.subscriptions import Subscription, Topic
from zcomm.wire.fanout import FanOut
from zcomm.wire.writebatch import WriteBatch

__all__ = ["SLICE", "Watching"]

#: Seconds for which what comes and goes is put together.
WINDOW = 0.2
#: Seconds of a turn that are spent on what can wait.
SLICE = 0.004


class _Waiting:
    """The changes of one topic that are to be told.

    :ivar tellers: whose time that takes.
    """

    __slots__ = ("tellers", "window")

    def __init__(self) -> None:
        self.window = Window()
        self.tellers: dict[Account, None] = {}


class Watching:
    """Tells those who watch a topic, and the program, who has come and gone.

    :param engine: knows who is there.
    :param clock: for the moment.
    :param batch: says when a turn is over.
    :param fan_out: sends to many.
    :param topic: the topic of that name, where somebody here is subscribed to it.
    :param is_heard: whether the program hears of a topic.
    :param on_presence: tells the program: topic, users who have come, users who have gone.
    """

    def __init__(
        self,
        engine: IEngine,
        clock: IReactorTime,
        batch: WriteBatch,
        fan_out: FanOut,
        topic: Callable[[str], Topic | None],
        is_heard: Callable[[str], bool],
        on_presence: Callable[[str, list[str], list[str]], None],
    ):
        self._engine = engine
        self._clock = clock
        self._batch = batch
        self._fan_out = fan_out
        self._topic = topic
        self._is_heard = is_heard
        self._on_presence = on_presence
        self._windows: dict[str, _Waiting] = {}
        self._timer: IDelayedCall | None = None

    def stop(self) -> None:
        """Leave no timer behind; what waits to be told is not told."""
        self._windows.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def change(self, name: str, topic: Topic | None, change: Change, teller: Account | None) -> None:
        """Tell of a change in the topic ``name`` within a moment.

        :param topic: where somebody here is subscribed to it.
        :param teller: whose time it takes.
        """
        waiting = self._windows.get(name)
        if waiting is None:
            if not (topic is not None and topic.watchers) and not self._is_heard(name):
                return
            waiting = self._windows[name] = _Waiting()
            if self._timer is None:
                self._timer = self._clock.callLater(WINDOW, self._tell)
        waiting.window.add(change)
        if teller is not None:
            waiting.tellers[teller] = None

    def _tell(self) -> None:
        self._timer = None
        windows, self._windows = self._windows, {}
        self._tell_some(deque(windows.items()))

    def _tell_some(self, windows: deque[tuple[str, _Waiting]]) -> None:
        until = perf_counter() + SLICE
        while windows:
            name, waiting = windows.popleft()
            self._engine.members(name).addCallback(self._tell_one, name, waiting)
            if perf_counter() > until:
                if windows:
                    self._batch.next_turn(partial(self._tell_some, windows))
                return

    def _tell_one(self, now: Members, name: str, waiting: _Waiting) -> None:
        begun = perf_counter()
        window = waiting.window
        counts = {user: self._engine.connections(name, user) for user in window.users}
        topic = self._topic(name)
        was_detailed = topic is None or topic.is_detailed
        if topic is not None:
            _note_size(topic, now)
        is_detailed = topic is not None and topic.is_detailed
        told = window.close(now, counts, is_detailed, is_detailed and not was_detailed)
        if topic is not None and topic.watchers:
            payload = b'{"event":"presence","topic":"%s",%s}' % (name.encode(), told.event)
            self._fan_out.add(list(topic.watchers), [payload], list(waiting.tellers), _misses, name)
            self._fan_out.begin(begun)
        if told.arrived or told.gone:
            self._on_presence(name, told.arrived, told.gone)

    def tell_members(self, subscription: Subscription) -> None:
        """Tell a subscriber who has missed some of it who is there."""
        self._engine.members(subscription.topic.name).addCallback(self._tell_members, subscription)

    def _tell_members(self, now: Members, subscription: Subscription) -> None:
        if subscription.transport is None:
            return
        event = {
            "event": "presence",
            "topic": subscription.topic.name,
            "after": 0,
            **self.shown(subscription.topic, now),
        }
        # What it missed is owed to it: that it waits ends no connection.
        subscription.transport.reply([write_json(event)])

    def shown(self, topic: Topic | None, now: Members) -> dict[str, Any]:
        """The members of a topic, as clients are told them."""
        is_detailed = now.members is not None
        if topic is not None:
            if now.connections > DETAIL:
                topic.is_detailed = False
            # Below the lower bound all are told names at the end of this moment, which this answer is part of.
            is_detailed = is_detailed and (topic.is_detailed or now.connections < DETAIL_AGAIN)
        shown: dict[str, Any] = {"version": now.version, "users": now.users, "connections": now.connections}
        if is_detailed and now.members is not None:
            shown["members"] = raw_members(now.members)
        return shown


def _note_size(topic: Topic, now: Members) -> None:
    """Tell names no more where they are too many, and again where they are few."""
    if now.connections > DETAIL:
        topic.is_detailed = False
    elif now.connections < DETAIL_AGAIN:
        topic.is_detailed = True


def _misses(subscription: Subscription) -> None:
    """Tell a subscriber all of it later, who does not take what it has been sent."""
    subscriber = subscription.subscriber
    if subscriber.stale is None:
        subscriber.stale = {}
    subscriber.stale[subscription] = None
