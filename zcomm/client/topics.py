"""Topics of the Python client: subscriptions that outlast connections, publishing, history and presence."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Coroutine, Mapping
from contextlib import suppress
from typing import Any, TypedDict
from weakref import WeakValueDictionary

import msgspec
from twisted.internet.defer import Deferred, DeferredLock, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.client.listeners import Listeners
from zcomm.client.members import Named, Whole, copied
from zcomm.client.repeated import Repeated, retry_delay
from zcomm.client.requests import written
from zcomm.client.subscription import Message, News, Subscribed, Subscription
from zcomm.client.unread import Unread
from zcomm.errors import CommandError, CommandTimeout, ConnectionLost, InternalError, Invalid

__all__ = ["History", "Messages", "Position", "Presence", "Published", "Topic", "Topics", "is_event"]

#: The server's events of topics, and what listeners hear of.
_EVENTS = frozenset(("message", "presence", "subscribed", "topic", "unsubscribed"))
HEARD = ("message", "continuity", "presence", "subscribed", "unsubscribed")
#: Seconds that are left for what has had to wait for its turn.
SHORTEST = 0.01
#: Bytes of chance in the key of a publish.
KEY_BYTES = 16


class Position(TypedDict):
    """A place in a topic that keeps its messages."""

    epoch: str
    offset: int


class Published(TypedDict):
    """The place of a message, and the key that makes it one. A topic without history has no epoch and no offset."""

    key: str
    epoch: str | None
    offset: int | None


class History(TypedDict):
    """Messages that a server has kept, and where the topic is; ``more`` says whether there are more of them.

    Where ``since`` or ``before`` cannot be used there are none, ``recovered`` is false, and ``reason`` says why.
    """

    topic: str
    epoch: str | None
    offset: int | None
    messages: list[Message]
    more: bool
    recovered: bool
    reason: str | None


class Topic:
    """One topic, as a client takes part in it; made by :meth:`zcomm.client.Client.topic`.

    A subscription outlasts the connection: after a loss the client subscribes again from where it was, by itself.
    Iterated over (``async for message in topic``), it subscribes and gives each message; the iteration ends with the
    subscription, and raises :class:`~zcomm.errors.MessagesLost` where messages are missing.

    :ivar name: its name.
    """

    _log = Logger()

    def __init__(self, topics: Topics, subscription: Subscription):
        self.name = subscription.topic
        self._topics = topics
        self._subscription = subscription
        self._listeners = Listeners(HEARD, f"topic {self.name}")
        #: Whether it is to be subscribed to, on whichever connection; and whether the server has begun it on this one.
        self._is_wanted = self._is_given = False
        #: The options that the server has taken, and whether others were given since.
        self._accepted: tuple[Any, ...] | None = None
        #: The word that the server has ended it while it was asked to go on.
        self._ended: dict[str, Any] | None = None
        #: Subscribing and unsubscribing take turns.
        self._turns = DeferredLock()
        self._joining: list[Deferred[Subscribed]] = []
        self._is_resuming = self._is_asking_members = False
        self._retry: IDelayedCall | None = None
        self._retries = 0
        #: What iterations read, and what waits for the next one.
        self._read: list[Unread] = []
        self._unread = Unread(self.name)

    def __repr__(self) -> str:
        return f"<topic {self.name}, {self.state}>"

    # -- what programs call

    @property
    def state(self) -> str:
        """``unsubscribed``, ``subscribing`` (on whichever connection) or ``subscribed``."""
        if self._subscription.is_subscribed:
            return "subscribed"
        return "subscribing" if self._is_wanted else "unsubscribed"

    @property
    def position(self) -> Position | None:
        """The place of the last message; ``None`` where none are kept."""
        epoch, offset = self._subscription.epoch, self._subscription.offset
        return None if epoch is None or offset is None else {"epoch": epoch, "offset": offset}

    @property
    def presence(self) -> Presence:
        """The members of the topic."""
        return Presence(self)

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``message``, ``continuity``, ``presence``, ``subscribed`` or ``unsubscribed``;
        returns the function that ends it."""
        remove = self._listeners.on(event, listener)
        self._topics.hold(self, self._is_held)

        def stop() -> None:
            remove()
            self._topics.hold(self, self._is_held)

        return stop

    def subscribe(self, *, timeout: float | None = None) -> Deferred[Subscribed]:
        """A Deferred of where the subscription begins. Listeners hear of what the server has kept, where ``last`` was
        asked for, before it fires."""
        joining: Deferred[Subscribed] = self._in_turn(self._join, self._topics.seconds(timeout))
        if not joining.called:
            self._joining.append(joining)
            joining.addBoth(self._joined, joining)
        return joining

    def _joined(self, result: Any, joining: Deferred[Subscribed]) -> Any:
        self._joining.remove(joining)
        return result

    def unsubscribe(self, *, timeout: float | None = None) -> Deferred[None]:
        """A Deferred that fires when nothing comes any more. A ``subscribe()`` that waits for a connection is
        cancelled."""
        seconds = self._topics.seconds(timeout)
        if not self._topics.is_connected():
            for joining in list(self._joining):
                joining.cancel()
        return self._in_turn(self._leave, seconds)

    def publish(
        self, data: Any, *, idempotency_key: str | None = None, timeout: float | None = None
    ) -> Deferred[Published]:
        """A Deferred of the place of the message. It is published once, also where the connection is lost meanwhile:
        it is then sent again on the next, within its time.

        :param data: any JSON value.
        :param idempotency_key: the key that makes it one and the same, for who sends it again later; a random one when
            left out. Choose one that nobody guesses, of at least 16 characters.
        """
        key = secrets.token_urlsafe(KEY_BYTES) if idempotency_key is None else idempotency_key
        # As it is now, whenever it is sent.
        payload = msgspec.Raw(written({"topic": self.name, "data": data, "_idempotencyKey": key}))
        seconds = self._topics.seconds(timeout)
        self._subscription.publishes(key)
        return Deferred.fromCoroutine(self._publish(key, payload, seconds, idempotency_key is None))

    def history(
        self,
        *,
        limit: int | None = None,
        reverse: bool = False,
        since: Mapping[str, Any] | None = None,
        before: Mapping[str, Any] | int | None = None,
        timeout: float | None = None,
    ) -> Deferred[History]:
        """A Deferred of what the server has kept of the topic, without a subscription.

        :param limit: how many messages at most; 100 when left out.
        :param reverse: whether the newest come first.
        :param since: the ``epoch`` and ``offset`` after which to begin.
        :param before: the offset, or ``epoch`` and ``offset``, before which to end.
        """
        asked: dict[str, Any] = {"topic": self.name}
        if limit is not None:
            asked["limit"] = limit
        if reverse:
            asked["reverse"] = reverse
        if since is not None:
            asked["since"] = _place(since, "since")
        if before is not None:
            asked["before"] = before if isinstance(before, int) else _place(before, "before")
        return self._topics.call("zHistory", asked, self._topics.seconds(timeout)).addCallback(self._kept)

    def __aiter__(self) -> Messages:
        return Messages(self)

    # -- in their turn

    def _in_turn(self, step: Callable[[float], Coroutine[Any, Any, Any]], timeout: float) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._take_turn(step, timeout))

    async def _take_turn(self, step: Callable[[float], Coroutine[Any, Any, Any]], timeout: float) -> Any:
        clock = self._topics.clock
        until = clock.seconds() + timeout
        late = CommandTimeout(f"No answer within {timeout:g} s")
        await self._turns.acquire().addTimeout(timeout, clock, lambda *_: Failure(late))
        try:
            return await step(max(until - clock.seconds(), SHORTEST))
        finally:
            self._turns.release()

    @property
    def _is_held(self) -> bool:
        return self._is_wanted or self._subscription.is_subscribed or bool(self._listeners)

    def _want(self, is_wanted: bool) -> None:
        self._is_wanted = is_wanted
        self._topics.hold(self, self._is_held)

    async def _join(self, timeout: float) -> Subscribed:
        subscription = self._subscription
        if self._is_wanted and subscription.is_subscribed and self._accepted == subscription.options:
            return subscription.place
        is_first = not self._is_wanted
        if is_first:
            subscription.begin()
        self._want(True)
        try:
            await self._ask(lambda: self._topics.repeated.run("zSubscribe", subscription.ask, timeout), is_first)
        except CommandError as error:
            if is_first and not self._is_given:
                self._give_up()
            elif is_first or not error.retryable:
                self._refused(error.code)
            raise
        except BaseException:
            if is_first and not self._is_given:
                self._give_up()
            elif is_first:
                self._refused("unsubscribe")
            raise
        return subscription.place

    async def _ask(self, send: Callable[[], Any], is_first: bool) -> None:
        """Subscribe, and tell of the reply."""
        subscription = self._subscription
        while True:
            self._ended = None
            options = subscription.options
            try:
                result = await send()
            except BaseException:
                subscription.refused()
                raise
            if self._ended is not None and not is_first:
                # Where it was refused before it went on, or ended since: who calls subscribe() has called after that.
                self._give_up()
                self._tell([("unsubscribed", {"topic": self.name, "reason": str(self._ended.get("reason"))})])
                return
            try:
                news = subscription.answered(result)
            except ValueError:
                raise InternalError("The server's answer to zSubscribe is none") from None
            self._retries = 0
            self._accepted = options
            self._tell(news)
            if not (subscription.must_ask and self._topics.is_connected()):
                return

    def _give_up(self) -> None:
        """Nobody waits any more for a subscription that may yet come to be."""
        self._end()
        if self._topics.is_connected():
            self._topics.call("zUnsubscribe", {"topic": self.name}).addErrback(lambda _: None)

    async def _leave(self, timeout: float) -> None:
        if self._topics.is_connected():
            try:
                await self._topics.call("zUnsubscribe", {"topic": self.name}, timeout)
            except ConnectionLost:
                # It has ended with it.
                pass
            except CommandTimeout:
                self._finish("unsubscribe")
                raise
        self._finish("unsubscribe")

    def change_to(self, asked: Subscription) -> None:
        """Have it as ``asked`` says from the next subscribe() on."""
        self._subscription.become(asked.options)

    @property
    def _is_live(self) -> bool:
        """Whether messages may come."""
        return (self._is_wanted or self._subscription.is_subscribed) and self._topics.is_open()

    def _end(self) -> None:
        """The subscription is over, and so is every iteration."""
        self._subscription.ended()
        self._accepted = None
        self._is_given = False
        self._stop_retrying()
        self._want(False)
        # Who reads may end there and then.
        for unread in list(self._read):
            unread.put(StopAsyncIteration())
        self._unread = Unread(self.name)

    # -- on the next connection

    def came_back(self) -> None:
        """There is a connection, and nothing has been sent on it."""
        self._stop_retrying()
        self._resume()

    def lost(self) -> None:
        """The connection has ended."""
        self._subscription.lost()
        self._is_given = False
        self._stop_retrying()
        self._topics.hold(self, self._is_held)

    def closed(self, end: Exception) -> None:
        """No connection comes by itself any more."""
        for unread in list(self._read):
            unread.put(end)

    def _resume(self) -> None:
        """Begin again what has to, as soon as nothing else is under way."""
        if self._needs_resuming() and not self._is_resuming and self._retry is None:
            self._is_resuming = True
            self._turns.run(lambda: Deferred.fromCoroutine(self._resumed())).addErrback(
                lambda failure: self._log.failure("{topic} could not go on", failure, topic=self)
            )

    def _needs_resuming(self) -> bool:
        subscription = self._subscription
        return self._topics.is_connected() and (
            subscription.must_ask or (self._is_wanted and not subscription.is_subscribed)
        )

    async def _resumed(self) -> None:
        try:
            if self._needs_resuming():
                await self._ask(lambda: self._topics.call("zSubscribe", self._subscription.ask()), False)
        except ConnectionLost:
            # The next one begins it anew.
            pass
        except CommandError as error:
            if not self._topics.is_connected():
                return
            if error.retryable:
                self._retries += 1
                self._retry = self._topics.clock.callLater(retry_delay(self._retries), self._try_again)
                return
            self._refused(error.code)
        finally:
            self._is_resuming = False

    def _refused(self, reason: str) -> None:
        """What was subscribed to may be no more, or not with the options that it has now."""
        if self._accepted is not None and self._accepted != self._subscription.options:
            self._subscription.become(self._accepted)
            self._topics.clock.callLater(0, self._resume)
        elif self._is_given:
            # It goes on all the same, and nobody says what was missed.
            self._want(False)
            self._tell(self._subscription.goes_on_all_the_same(reason))
        else:
            self._finish(reason)

    def _finish(self, reason: str) -> None:
        stood = self._accepted is not None or self._subscription.is_subscribed
        self._end()
        if stood:
            self._tell([("unsubscribed", {"topic": self.name, "reason": reason})])

    def _try_again(self) -> None:
        self._retry = None
        self._resume()

    def _stop_retrying(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    # -- what arrives

    def heard(self, event: dict[str, Any]) -> None:
        """An event of the server.

        :raises ValueError: when it is none.
        """
        subscription = self._subscription
        self._is_given = self._is_given or event["event"] == "subscribed"
        if event["event"] == "subscribed" and self._is_wanted and not subscription.is_subscribed:
            # It is asked for in any case, with what the program wants of it.
            return
        if event["event"] == "unsubscribed" and subscription.is_asking:
            self._ended = event
        news = subscription.heard(event)
        if event["event"] == "unsubscribed" and news:
            self._end()
        elif event["event"] == "subscribed":
            self._topics.hold(self, self._is_held)
        self._tell(news)
        self._resume()
        if subscription.members.must_ask:
            self._ask_members()

    def _tell(self, news: News) -> None:
        for event, value in news:
            if event == "message":
                self._offer(value)
            elif event == "continuity" and not value["recovered"]:
                for unread in (*self._read, self._unread):
                    unread.is_missing(value["reason"])
            self._listeners.emit(event, value)

    def _offer(self, message: Message) -> None:
        if self._read:
            for unread in list(self._read):
                unread.put(message)
        elif self._is_wanted and "message" not in self._listeners:
            self._unread.put(message)

    def _ask_members(self) -> None:
        """Ask who is there; once at a time."""
        if self._is_asking_members or not self._topics.is_connected():
            return
        self._is_asking_members = True

        def asked(_: Any) -> None:
            self._is_asking_members = False

        # Where that fails, the next event asks again.
        self._topics.call("zPresence", {"topic": self.name}).addCallbacks(
            self._take_members, lambda failure: failure.trap(CommandError, ConnectionLost) and None
        ).addBoth(asked)

    def _take_members(self, result: Any) -> None:
        with suppress(ValueError):
            whole = msgspec.convert(result, Whole)
            if self._subscription.is_subscribed and self._subscription.presence:
                told = self._subscription.members.take(whole)
                self._tell([] if told is None else [("presence", told)])

    # -- publishing, history, state

    async def _publish(self, key: str, payload: msgspec.Raw, timeout: float, is_own: bool) -> Published:
        sent = 0

        def horizontal() -> msgspec.Raw:
            nonlocal sent
            sent += 1
            return payload

        try:
            result = await self._topics.repeated.run("zPublish", horizontal, timeout)
        except ConnectionLost as error:
            lost = ConnectionLost(error.close_code, error.reason)
            lost.retryable = error.retryable and not (sent and is_own)
            raise lost from None
        except CommandTimeout as error:
            # Another publish would have another key.
            error.retryable = error.retryable and not (sent and is_own)
            raise
        reply = result if isinstance(result, dict) else {}
        return {"key": key, "epoch": reply.get("epoch"), "offset": reply.get("offset")}

    def _kept(self, reply: Any) -> History:
        try:
            messages = self._subscription.kept(reply)
        except ValueError:
            raise InternalError("The server's answer to zHistory is none") from None
        return {
            "topic": self.name,
            "epoch": reply.get("epoch"),
            "offset": reply.get("offset"),
            "messages": messages,
            "more": reply.get("more") is True,
            "recovered": reply.get("recovered") is not False,
            "reason": reply.get("reason"),
        }

    def set_state(self, state: Mapping[str, Any], timeout: float | None) -> Deferred[None]:
        """Keep the state, and tell the server of it; see :meth:`Presence.set_state`."""
        seconds = self._topics.seconds(timeout)
        subscription = self._subscription
        before, kept = subscription.state, _json_object(state)
        subscription.state = kept
        if self._accepted is not None:
            # It is what the server has, or is told below.
            self._accepted = subscription.options
        is_there = subscription.is_subscribed or subscription.is_asking
        if not is_there or not self._topics.is_connected():
            return succeed(None)

        def lost(failure: Failure) -> None:
            if failure.check(ConnectionLost) and self._topics.repeated.comes_back:
                return
            if failure.check(Invalid) and subscription.state is kept:
                # With it, the next subscription would be refused as well.
                subscription.state = before
                if self._accepted is not None:
                    self._accepted = subscription.options
            failure.raiseException()

        return self._topics.call("zPresence", {"topic": self.name, "state": kept}, seconds).addCallbacks(
            self._take_members, lost
        )


class Presence:
    """The members of a topic: known while one is subscribed, where the topic was made with ``presence=True``."""

    def __init__(self, topic: Topic):
        self._topic = topic

    @property
    def members(self) -> Named | None:
        """The connections of each user and the state of each; ``None`` where it is not known, as in large topics."""
        return copied(self._topic._subscription.members.named)

    @property
    def connection(self) -> str | None:
        """The name of one's own connection among the members; ``None`` where it is not known."""
        return self._topic._subscription.connection

    @property
    def users(self) -> int:
        """The number of users."""
        return self._topic._subscription.members.users

    @property
    def connections(self) -> int:
        """The number of their connections."""
        return self._topic._subscription.members.connections

    def set_state(self, state: Mapping[str, Any], *, timeout: float | None = None) -> Deferred[None]:
        """Let the others see ``state``; a Deferred that fires when the server has it. It is kept, and sent with each
        subscription.

        :param state: a small JSON object.
        """
        return self._topic.set_state(state, timeout)


class Messages:
    """An iteration over the messages of a topic; it begins with those that nobody has listened to."""

    def __init__(self, topic: Topic):
        self._topic = topic
        self._unread, topic._unread = topic._unread, Unread(topic.name)
        self._unread.begin()
        topic._read.append(self._unread)

    def __aiter__(self) -> Messages:
        return self

    async def __anext__(self) -> Message:
        if self._unread not in self._topic._read:
            raise StopAsyncIteration
        try:
            if not self._unread and not self._topic._is_live:
                await self._topic.subscribe()
            item = await self._unread.next()
        except (CommandError, ConnectionLost):
            self.close()
            raise
        if isinstance(item, BaseException):
            self._unread.begin_anew()
            self.close()
            if isinstance(item, ConnectionLost):
                # The same one may end others.
                raise ConnectionLost(item.close_code, item.reason)
            raise item
        message: Message = item
        return message

    def close(self) -> None:
        """End it. What it has not read is for the next iteration."""
        topic, unread = self._topic, self._unread
        if unread in topic._read:
            topic._read.remove(unread)
            if not topic._read:
                topic._unread = unread

    def __del__(self) -> None:
        # Where the loop was left by break, too.
        self.close()


class Topics:
    """The topics of one client, by name.

    :param clock: for time limits.
    :param call: sends one command, once; a Deferred of its result.
    :param state: the state of the client.
    :param seconds: the time limit that a program has given, checked; the client's where it has given none.
    """

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        call: Callable[..., Deferred[Any]],
        state: Callable[[], str],
        seconds: Callable[[Any], float],
    ):
        self.clock = clock
        self.call = call
        self.seconds = seconds
        self.repeated = Repeated(clock, call, state)
        self._state = state
        self._known: WeakValueDictionary[str, Topic] = WeakValueDictionary()
        #: Those that something may come of although the program holds none of them.
        self._held: dict[str, Topic] = {}

    def is_connected(self) -> bool:
        """Whether a command can be sent."""
        return self._state() == "connected"

    def is_open(self) -> bool:
        """Whether there is a connection, or one is being made."""
        return self._state() != "disconnected"

    def topic(
        self, name: str, *, presence: bool, last: int | None, state: Mapping[str, Any] | None, echo: bool
    ) -> Topic:
        """The topic of that name; see :meth:`zcomm.client.Client.topic`."""
        if not isinstance(name, str) or not name:
            raise TypeError("a topic is named by a non-empty string")
        for option, value in (("presence", presence), ("echo", echo)):
            if not isinstance(value, bool):
                raise TypeError(f"{option} is True or False, not {value!r:.60}")
        if last is not None and (type(last) is not int or last < 1):
            raise TypeError(f"last is a number of messages, at least 1, not {last!r:.60}")
        asked = Subscription(
            name, presence=presence, last=last, state=None if state is None else _json_object(state), echo=echo
        )
        topic = self._known.get(name)
        if topic is None:
            self._known[name] = topic = Topic(self, asked)
        elif asked.options != Subscription(name).options:
            topic.change_to(asked)
        return topic

    def _topic_of(self, event: dict[str, Any]) -> Topic | None:
        name = event["topic"]
        topic = self._known.get(name)
        if topic is None and event["event"] == "subscribed":
            # The program may ask for it later.
            self._known[name] = topic = Topic(self, Subscription(name))
        return topic

    def hold(self, topic: Topic, is_held: bool) -> None:
        """Keep a topic that the program may not hold, or keep it no more."""
        if is_held:
            self._held[topic.name] = topic
        else:
            self._held.pop(topic.name, None)

    def heard(self, event: dict[str, Any]) -> bool:
        """An event of the server about a topic; whether the program knows that topic."""
        topic = self._topic_of(event)
        if topic is None:
            return False
        try:
            topic.heard(event)
        except ValueError as error:
            # What a program broadcasts in such a form may be no such event.
            self._log.warn("the server's event {event} is none: {reason}", event=event["event"], reason=str(error))
        return True

    def came_back(self) -> None:
        """Subscribe anew, before anything else is sent."""
        for topic in list(self._known.values()):
            topic.came_back()
        self.repeated.came_back()

    def lost(self) -> None:
        """The connection has ended."""
        for topic in list(self._known.values()):
            topic.lost()

    def ended(self, error: ConnectionLost, by_program: bool = False) -> None:
        """No connection comes by itself any more; where the program wants that, its iterations just end."""
        self.lost()
        self.repeated.ended(error)
        for topic in list(self._known.values()):
            topic.closed(StopAsyncIteration() if by_program else error)


def is_event(message: Any) -> bool:
    """Whether a message is the server's event of a topic, and not what a program broadcasts."""
    if not isinstance(message, dict):
        return False
    event = message.get("event")
    return isinstance(event, str) and event in _EVENTS and isinstance(message.get("topic"), str)


def _place(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        raise TypeError(f"{name} is a dict of epoch and offset, not {type(given).__name__}")
    return {part: given[part] for part in ("epoch", "offset") if part in given}


def _json_object(state: Mapping[str, Any]) -> dict[str, Any]:
    """``state`` as it is now, whatever becomes of the object that was given."""
    if not isinstance(state, Mapping):
        raise TypeError(f"state is a dict, not {type(state).__name__}")
    kept: dict[str, Any] = msgspec.json.decode(written({"state": state}))["state"]
    return kept
