"""The commands on topics: ``zSubscribe``, ``zUnsubscribe``, ``zPublish``, ``zHistory`` and ``zPresence``."""

from __future__ import annotations

from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed

from zcomm.errors import Invalid, PermissionDenied
from zcomm.interfaces import Client, Permissions, Position, Request, Slice
from zcomm.topics.kinds import Found, own_topic
from zcomm.topics.requests import (
    History,
    Presence,
    Publish,
    Subscribe,
    encode_data,
    parse_history,
    parse_presence,
    parse_publish,
    parse_subscribe,
    parse_unsubscribe,
)
from zcomm.topics.subscriber import Subscriber, author_of, sender_of
from zcomm.topics.subscriptions import encode_messages
from zcomm.topics.topics import Topics, answer_of

__all__ = ["TopicCommands"]


class TopicCommands:
    """Answers the commands on topics at one server.

    :param topics: those of the program.
    :param permissions: of the server.
    """

    def __init__(self, topics: Topics, permissions: Permissions):
        self._topics = topics
        self._permissions = permissions

    # -- zSubscribe, zUnsubscribe

    def subscribe(self, request: Request, client: Client) -> Any:
        """Subscribe the client; a Deferred of its position, and what was asked for beside."""
        asked = parse_subscribe(request.horizontal)
        subscriber = self._subscriber(client, "zSubscribe")
        return subscriber.in_order(asked.topic, partial(self._subscribe, asked, client, subscriber))

    def _subscribe(self, asked: Subscribe, client: Client, subscriber: Subscriber) -> Any:
        def judge() -> Found:
            found = self._check(client, "subscribe", asked.topic)
            if asked.presence:
                self._check(client, "presence", asked.topic)
            if not found.kind.presence:
                for field, is_given in (("presence", asked.presence), ("state", asked.state is not None)):
                    if is_given:
                        raise Invalid(f"{field}: the topic has no presence", {field: "the topic has no presence"})
            return found

        found = judge()
        hub = self._topics.hub
        answer = self._topics.ask(found, client.identity, "subscribe", *(("presence",) if asked.presence else ()))
        if isinstance(answer, Deferred):
            return answer.addCallback(lambda _: hub.subscribe(subscriber, asked, found, judge))
        return hub.subscribe(subscriber, asked, found, judge)

    def unsubscribe(self, request: Request, client: Client) -> Any:
        """End a subscription of the client."""
        topic = parse_unsubscribe(request.horizontal)
        subscriber = self._subscriber(client, "zUnsubscribe")
        return subscriber.in_order(topic, partial(self._unsubscribe, topic, client, subscriber))

    def _unsubscribe(self, topic: str, client: Client, subscriber: Subscriber) -> dict[str, Any]:
        found = self._topics.kinds.find(topic)
        if found is not None and found.kind.personal and own_topic(found.kind, client.identity) == topic:
            raise Invalid("topic: nobody leaves their own topic", {"topic": "nobody leaves their own topic"})
        subscription = subscriber.topics.get(topic)
        if subscription is not None:
            self._topics.hub.leave(subscription)
        return {"topic": topic}

    # -- zPublish

    def publish(self, request: Request, client: Client) -> Any:
        """Publish a message; its position."""
        asked = parse_publish(request.horizontal)
        # Its messages are counted, and keep their order, whether it is subscribed to anything or not.
        subscriber = self._of(client)
        if subscriber is None:
            return self._publish(asked, client, None)
        found = self._topics.kinds.find(asked.topic)
        if (found is not None and (found.kind.allowing or found.kind.checking)) or subscriber.is_busy(asked.topic):
            # Others of the same client may overtake it while the program looks at it.
            return subscriber.in_order(asked.topic, partial(self._publish, asked, client, subscriber))
        return self._publish(asked, client, subscriber)

    def _publish(self, asked: Publish, client: Client, subscriber: Subscriber | None) -> Any:
        found = self._may_publish(asked, client, subscriber)
        self._topics.hub.take_publish(client, subscriber)
        data = encode_data(asked.data)
        kind = found.kind
        if not kind.allowing and kind.checking is None:
            return self._send(asked, client, subscriber, found, data, data)
        answer = self._topics.ask(found, client.identity, "publish")
        if answer is not None:
            return answer.addCallback(lambda _: self._clean(asked, client, subscriber, data))
        return self._clean(asked, client, subscriber, data)

    def _clean(self, asked: Publish, client: Client, subscriber: Subscriber | None, data: bytes) -> Any:
        """Let the program look at it."""
        # The rights and the kind may have changed meanwhile, by what the program was asked with as well.
        found = self._may_publish(asked, client, subscriber)
        check = found.kind.checking
        if check is None:
            return self._send(asked, client, subscriber, found, data, data)
        checked = answer_of(check(client.identity, asked.data, **found.parts))
        if isinstance(checked, Deferred):
            return checked.addCallback(self._cleaned, asked, client, subscriber, data)
        return self._cleaned(checked, asked, client, subscriber, data)

    def _cleaned(self, checked: Any, asked: Publish, client: Client, subscriber: Subscriber | None, data: bytes) -> Any:
        found = self._may_publish(asked, client, subscriber)
        return self._send(asked, client, subscriber, found, encode_data(checked), data)

    def _may_publish(self, asked: Publish, client: Client, subscriber: Subscriber | None) -> Found:
        found = self._check(client, "publish", asked.topic)
        publishers = found.kind.publish
        if publishers == "nobody":
            raise PermissionDenied("Permission denied: only the program publishes to this topic")
        if publishers == "subscribers" and (subscriber is None or not subscriber.is_in(asked.topic)):
            text = "Permission denied: only who is subscribed publishes to this topic"
            if _hears(client):
                text += "; subscribe first, or publish from a script to a kind with publish: anybody"
            else:
                text += ", which takes a WebSocket; a call publishes to kinds with publish: anybody"
            raise PermissionDenied(text)
        return found

    def _send(
        self,
        asked: Publish,
        client: Client,
        subscriber: Subscriber | None,
        found: Found,
        data: bytes,
        original: bytes,
    ) -> Any:
        if subscriber is None:
            sender, author, origin = sender_of(client.identity), author_of(client), ""
        else:
            sender, author, origin = subscriber.sender, subscriber.author, subscriber.id
        teller = getattr(client, "account", None)
        sent = self._topics.send(asked.topic, found, data, sender, author, origin, asked.key, original, teller)
        if sent.called and (sent.result is None or type(sent.result) is Position):
            # Most engines know it at once: a callback less for each message.
            return _published(sent.result, asked.topic)
        return sent.addCallback(_published, asked.topic)

    # -- zHistory

    def history(self, request: Request, client: Client) -> Any:
        """A Deferred of some of the messages that a topic keeps."""
        asked = parse_history(request.horizontal)
        subscriber = self._of(client)
        run = partial(self._history, asked, client)
        return run() if subscriber is None else subscriber.in_order(asked.topic, run)

    def _history(self, asked: History, client: Client) -> Any:
        answer = self._topics.ask(self._may_read(asked, client), client.identity, "history")
        if isinstance(answer, Deferred):
            return answer.addCallback(lambda _: self._read(asked, client))
        return self._read(asked, client)

    def _may_read(self, asked: History, client: Client) -> Found:
        found = self._check(client, "history", asked.topic)
        if not found.kind.history:
            raise Invalid("topic: it keeps no history", {"topic": "keeps no history"})
        return found

    def _read(self, asked: History, client: Client) -> Deferred[dict[str, Any]]:
        # The rights may have changed while the program was asked.
        self._may_read(asked, client)
        read = self._topics.hub.read(
            asked.topic, asked.since, asked.before, asked.limit, asked.reverse, self._topics.hub.most
        )
        return read.addCallback(_shown, asked)

    # -- zPresence

    def presence(self, request: Request, client: Client) -> Any:
        """A Deferred of who is in a topic; first the client's own state becomes another, where one is given."""
        asked = parse_presence(request.horizontal)
        subscriber = self._of(client)
        run = partial(self._presence, asked, client, subscriber)
        return run() if subscriber is None else subscriber.in_order(asked.topic, run)

    def _presence(self, asked: Presence, client: Client, subscriber: Subscriber | None) -> Any:
        found, may_look = self._may_look(asked, client, subscriber)
        answer = self._topics.ask(found, client.identity, "presence") if may_look else None
        if isinstance(answer, Deferred):
            return answer.addCallback(lambda _: self._state(asked, client, subscriber))
        return self._state(asked, client, subscriber)

    def _may_look(self, asked: Presence, client: Client, subscriber: Subscriber | None) -> tuple[Found, bool]:
        """The topic, and whether the client may be told who is in it."""
        is_in = subscriber is not None and asked.topic in subscriber.topics
        may_look = True
        try:
            found = self._check(client, "presence", asked.topic)
        except PermissionDenied:
            # Who is in may say something of itself, and is told how many hear it.
            if not is_in or asked.state is None:
                raise
            may_look = False
            found = self._check(client, "subscribe", asked.topic)
        if not found.kind.presence:
            raise Invalid("topic: it has no presence", {"topic": "has no presence"})
        if asked.state is not None and not is_in:
            raise Invalid("state: subscribe first", {"state": "needs a subscription"})
        return found, may_look

    def _state(self, asked: Presence, client: Client, subscriber: Subscriber | None) -> Deferred[Any]:
        topics = self._topics
        # The rights may have changed while the program was asked.
        _, may_look = self._may_look(asked, client, subscriber)
        entered: Deferred[Any] = succeed(None)
        if asked.state is not None and subscriber is not None:
            # Whoever leaves the topic leaves its members, if it is known that there are any.
            topics.hub.judging.renew(asked.topic)
            entered = topics.engine.enter(
                asked.topic, subscriber.id, subscriber.user, asked.state, subscriber.client.account
            )

        def shown(now: Any) -> dict[str, Any]:
            told = topics.hub.watching.shown(topics.hub.topic(asked.topic), now)
            if not may_look:
                told.pop("members", None)
            return {"topic": asked.topic, **told}

        return entered.addCallback(lambda _: topics.engine.members(asked.topic)).addCallback(shown)

    # -- who may

    def _check(self, client: Client, action: str, topic: str) -> Found:
        return self._topics.check(client.identity, self._permissions, action, topic)

    def _of(self, client: Any) -> Subscriber | None:
        """The side of topics of a client, where its commands have their order; ``None`` of a call over HTTP."""
        subscriber: Subscriber | None = getattr(client, "subscriber", None)
        return self._topics.hub.subscriber(client) if subscriber is None and _hears(client) else subscriber

    def _subscriber(self, client: Any, key: str) -> Subscriber:
        if not _hears(client):
            raise Invalid(f"{key} needs a WebSocket connection: nothing is told over any other")
        return self._topics.hub.subscriber(client)


def _hears(client: Any) -> bool:
    """Whether a client can be told of messages: it is no call over HTTP."""
    return getattr(client, "is_lasting", False) is True


def _published(position: Position | None, topic: str) -> dict[str, Any]:
    if position is None:
        return {"topic": topic}
    return {"topic": topic, "epoch": position.epoch, "offset": position.offset}


def _shown(part: Slice, asked: History) -> dict[str, Any]:
    result: dict[str, Any] = {"topic": asked.topic, "epoch": part.position.epoch, "offset": part.position.offset}
    if part.reason:
        return result | {"recovered": False, "reason": part.reason}
    if asked.since is not None:
        result["recovered"] = True
    messages = msgspec.Raw(b"[" + b",".join(encode_messages(part.messages)) + b"]")
    return result | {"messages": messages, "more": part.more}
