"""Telling who comes into topics and goes: what happens within a moment together (docs/protocol.rst, "Presence")."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Any

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.python.failure import Failure

from zcomm.budget.account import Account
from zcomm.budget.written import write_json
from zcomm.errors import CommandError
from zcomm.interfaces import Change, IEngine, Members
from zcomm.topics.presence import DETAIL, DETAIL_AGAIN, Crossing, Window, raw_members
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
    :ivar window: for those who watch it; ``None`` where nobody here does.
    :ivar crossing: for the program; ``None`` where it does not hear of it.
    """

    __slots__ = ("crossing", "tellers", "window")

    def __init__(self) -> None:
        self.window: Window | None = None
        self.crossing: Crossing | None = None
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
        """Tell those who watch the topic ``name`` of a change within a moment.

        :param topic: where somebody here is subscribed to it.
        :param teller: whose time it takes.
        """
        if topic is None or not topic.watchers:
            return
        waiting = self._waiting(name)
        if waiting.window is None:
            waiting.window = Window()
        waiting.window.add(change)
        if change.since != topic.presence_version and topic.presence_version is not None and change.since:
            waiting.window.is_broken = True
        topic.presence_version = change.version
        if teller is not None:
            waiting.tellers[teller] = None

    def look(self, name: str) -> None:
        """Ask who is in the topic ``name``, where somebody here watches that, and tell what was not heard."""
        topic = self._topic(name)
        if topic is not None and topic.watchers:
            asking = self._engine.members(name)
            asking.addCallbacks(self._looked, self._tell_later, (name,), errbackArgs=(name,))

    def _looked(self, now: Members, name: str) -> None:
        topic = self._topic(name)
        if topic is None or not topic.watchers or now.version == topic.presence_version:
            return
        topic.presence_version = now.version
        window = Window()
        window.is_broken = True
        _note_size(topic, now.connections)
        self._send(topic, window.told_whole(now), _Waiting())

    def note(self, name: str, change: Change) -> None:
        """Tell the program of a change within a moment, where it hears of the topic ``name``."""
        waiting = self._windows.get(name)
        if waiting is None or waiting.crossing is None:
            if not self._is_heard(name):
                return
            waiting = self._waiting(name)
            waiting.crossing = Crossing()
        if waiting.crossing is not None:
            waiting.crossing.add(change)

    def _waiting(self, name: str) -> _Waiting:
        waiting = self._windows.get(name)
        if waiting is None:
            waiting = self._windows[name] = _Waiting()
            if self._timer is None:
                self._timer = self._clock.callLater(WINDOW, self._tell)
        return waiting

    def _tell(self) -> None:
        self._timer = None
        windows, self._windows = self._windows, {}
        self._tell_some(deque(windows.items()))

    def _tell_some(self, windows: deque[tuple[str, _Waiting]]) -> None:
        until = perf_counter() + SLICE
        while windows:
            name, waiting = windows.popleft()
            self._tell_one(name, waiting)
            if perf_counter() > until:
                if windows:
                    self._batch.next_turn(partial(self._tell_some, windows))
                return

    def _tell_one(self, name: str, waiting: _Waiting) -> None:
        topic, window, crossing = self._topic(name), waiting.window, waiting.crossing
        if topic is not None and topic.watchers and window is not None and window.last is not None:
            was_detailed = topic.is_detailed
            _note_size(topic, window.last.connections)
            if window.is_broken or (topic.is_detailed and not was_detailed):
                telling = self._engine.members(name)
                telling.addCallbacks(self._tell_whole, self._tell_later, (name, window, waiting), errbackArgs=(name,))
            else:
                self._send(topic, window.told(topic.is_detailed), waiting)
        if crossing is not None:
            arrived, gone = crossing.arrived, crossing.gone
            if arrived or gone:
                self._on_presence(name, arrived, gone)

    def _tell_whole(self, now: Members, name: str, window: Window, waiting: _Waiting) -> None:
        topic = self._topic(name)
        if topic is not None and topic.watchers:
            self._send(topic, window.told_whole(now), waiting)

    def _tell_later(self, failure: Failure, name: str) -> None:
        """The engine is away: tell all of it when it is back."""
        failure.trap(CommandError)
        topic = self._topic(name)
        for subscription in list((topic.watchers if topic is not None else None) or ()):
            _misses(subscription)

    def _send(self, topic: Topic, event: bytes, waiting: _Waiting) -> None:
        begun = perf_counter()
        payload = b'{"event":"presence","topic":"%s",%s}' % (topic.name.encode(), event)
        self._fan_out.add(list(topic.watchers or ()), [payload], list(waiting.tellers), _misses, topic.name)
        self._fan_out.begin(begun)

    def tell_members(self, subscription: Subscription) -> None:
        """Tell a subscriber who has missed some of it who is there."""
        asking = self._engine.members(subscription.topic.name)
        asking.addCallbacks(self._tell_members, self._missed_again, (subscription,), errbackArgs=(subscription,))

    def _missed_again(self, failure: Failure, subscription: Subscription) -> None:
        failure.trap(CommandError)
        _misses(subscription)

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


def _note_size(topic: Topic, connections: int) -> None:
    """Tell names no more where they are too many, and again where they are few."""
    if connections > DETAIL:
        topic.is_detailed = False
    elif connections < DETAIL_AGAIN:
        topic.is_detailed = True


def _misses(subscription: Subscription) -> None:
    """Tell a subscriber all of it later, who does not take what it has been sent."""
    subscriber = subscription.subscriber
    if subscriber.stale is None:
        subscriber.stale = {}
    subscriber.stale[subscription] = None
