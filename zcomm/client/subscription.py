"""A subscription as one client knows it: how far it has got, what of an event is news, and what must be asked anew."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, TypedDict

import msgspec

from zcomm.client.members import Change, Members, PresenceNews, Whole

__all__ = ["Continuity", "Message", "News", "Subscribed", "Subscription", "Unsubscribed"]

#: Keys of publishes that are remembered, to tell one's own where the server sends them whole.
OWN_KEYS = 1000

Message = TypedDict(
    "Message",
    {
        "topic": str,
        "data": Any,
        "offset": int | None,
        "from": str | None,
        "key": str | None,
        "own": bool,
        "replayed": bool,
    },
)
Message.__doc__ = """A message of a topic.

``from`` is the user that published it, ``None`` the program. ``key`` is the key of the publish. ``own`` is one's own
where the topic was made with ``echo=False``: it has no data, or comes out of what the server has kept, as ``replayed``
says.
"""


class Continuity(TypedDict):
    """Whether nothing was missed, and the reason where something was."""

    recovered: bool
    reason: str | None


class Subscribed(TypedDict):
    """The place where a subscription has begun. A topic without history has no epoch and no offset."""

    topic: str
    epoch: str | None
    offset: int | None
    connection: str | None


class Unsubscribed(TypedDict):
    """The end of a subscription: the server's reason, the code of its refusal, or ``unsubscribe``."""

    topic: str
    reason: str


#: Events for listeners, with what they are told, in this order.
News = list[tuple[str, Any]]


class _Message(msgspec.Struct):
    data: Any = None
    offset: int | None = None
    epoch: str | None = None
    sender: str | None = msgspec.field(name="from", default=None)
    key: str | None = None
    own: bool = False


class _Reply(msgspec.Struct):
    epoch: str | None = None
    offset: int | None = None
    recovered: bool | None = None
    reason: str | None = None
    messages: list[_Message] = []
    connection: str | None = None
    presence: Whole | None = None


class _Place(msgspec.Struct):
    epoch: str | None = None
    offset: int | None = None
    recovered: bool | None = None
    reason: str | None = None


class _Kept(msgspec.Struct):
    messages: list[_Message]


class Subscription:
    """The subscription of one connection after the other to one topic.

    It is asked for with :meth:`ask`, whose reply goes to :meth:`answered`; from there on :meth:`heard` takes each event
    of the topic. Both return what to tell. Where messages are missing it :attr:`must_ask` again, and tells of nothing
    in between: what it tells has no gap and no double, or ``continuity`` says so first.

    :param presence: whether to ask for members.
    :param last: how many of the newest messages to begin with.
    :param state: what others see of this member.
    :param echo: whether one's own messages are told of.
    :ivar is_subscribed: whether this connection is in the topic.
    :ivar is_asking: whether a reply is waited for.
    :ivar must_ask: whether it has to begin again although it is subscribed.
    """

    def __init__(
        self,
        topic: str,
        *,
        presence: bool = False,
        last: int | None = None,
        state: dict[str, Any] | None = None,
        echo: bool = True,
    ):
        self.topic = topic
        self.presence = presence
        self.last = last
        self.state = state
        self.echo = echo
        self.members = Members()
        self.connection: str | None = None
        self.is_subscribed = self.is_asking = self.must_ask = False
        self.epoch: str | None = None
        self.offset: int | None = None
        #: Whether listeners hear of this topic as one that goes on, since they were told where it begins.
        self._goes_on = False
        #: Whether a message has been told of, and whether it was there already as it asked.
        self._has_told = self._was_here = False
        self._own: OrderedDict[str, None] = OrderedDict()

    @property
    def place(self) -> Subscribed:
        """The place it has come to."""
        return {"topic": self.topic, "epoch": self.epoch, "offset": self.offset, "connection": self.connection}

    @property
    def options(self) -> tuple[Any, ...]:
        """Everything that is asked of a subscription, to compare."""
        return self.presence, self.last, self.state, self.echo

    def become(self, options: tuple[Any, ...]) -> None:
        """Ask for these from now on."""
        self.presence, self.last, self.state, self.echo = options

    def begin(self) -> None:
        """Let a program begin that may have been in it already, by the server. With nothing told of before, the newest
        messages come first."""
        if self.last and not self._has_told:
            self._forget_place()
            self._goes_on = False

    def ask(self) -> dict[str, Any]:
        """The words of a ``zSubscribe`` that is sent now. Until its reply, events of the topic are part of that."""
        self.is_asking = True
        self.must_ask = False
        self._was_here = self.is_subscribed
        asked: dict[str, Any] = {"topic": self.topic}
        if self.epoch is not None and self.offset is not None:
            asked["since"] = {"epoch": self.epoch, "offset": self.offset}
        elif self.last:
            asked["last"] = self.last
        if self.presence:
            asked["presence"] = True
        if self.state is not None:
            asked["state"] = self.state
        if not self.echo:
            asked["echo"] = False
        return asked

    def answered(self, result: Any) -> News:
        """Take the reply.

        :raises ValueError: when it is none.
        """
        self.is_asking = False
        reply = msgspec.convert(result, _Reply)
        self.is_subscribed = True
        news: News = []
        went_on, self._goes_on = self._goes_on, True
        if went_on and not (self._was_here and reply.recovered is None):
            # Without a place to go on from, nobody knows what was missed.
            recovered = reply.recovered is True
            news.append(
                ("continuity", {"recovered": recovered, "reason": None if recovered else reply.reason or "not_kept"})
            )
            if not recovered:
                self._forget_place()
                if self.last and reply.epoch is not None:
                    # The newest ones come without a place to go on from.
                    self._goes_on = False
                    self.must_ask = True
                    return news
        self.connection = reply.connection
        for message in reply.messages:
            news += self._message(message, replayed=True)
        self.epoch, self.offset = reply.epoch, reply.offset
        if self.presence and reply.presence is not None:
            self.members.forget_version()
            news += _presence(self.members.take(reply.presence))
        news.append(("subscribed", self.place))
        return news

    def refused(self) -> None:
        """There is no reply, or an error."""
        self.is_asking = False
        self.must_ask = self.is_subscribed

    def goes_on_all_the_same(self, reason: str) -> News:
        """The server refuses to say what was missed, and has begun the subscription by itself."""
        self.is_subscribed, self.is_asking, self.must_ask = True, False, False
        self._forget_place()
        went_on, self._goes_on = self._goes_on, True
        return [("continuity", {"recovered": False, "reason": reason})] if went_on else []

    def lost(self) -> None:
        """The connection has ended. The place stays, to go on from."""
        self.is_subscribed = self.is_asking = self.must_ask = False

    def ended(self) -> None:
        """Forget the subscription: it is not to go on."""
        self.lost()
        self._forget_place()
        self._goes_on = self._has_told = False
        self.connection = None
        self.members = Members()

    def publishes(self, key: str) -> None:
        """Take note of the key of a message of one's own."""
        if not self.echo:
            self._own[key] = None
            if len(self._own) > OWN_KEYS:
                self._own.popitem(last=False)

    def kept(self, reply: Any) -> list[Message]:
        """The messages in a reply of ``zHistory``; none where its position is of another numbering.

        :raises ValueError: when it is none.
        """
        if isinstance(reply, dict) and reply.get("recovered") is False:
            return []
        return [self._told(message, True) for message in msgspec.convert(reply, _Kept).messages]

    def heard(self, event: dict[str, Any]) -> News:
        """Take an event of the topic.

        :raises ValueError: when it is none.
        """
        name = event["event"]
        if self.is_asking:
            return []
        if name == "unsubscribed":
            return self._ended_by_server(event)
        if name == "subscribed":
            return self._subscribed_by_server(msgspec.convert(event, _Place))
        if not self.is_subscribed or self.must_ask:
            return []
        if name == "message":
            return self._message(msgspec.convert(event, _Message), replayed=False)
        if name == "presence":
            return _presence(self.members.apply(msgspec.convert(event, Change))) if self.presence else []
        return self._moved(msgspec.convert(event, _Place))

    def _message(self, message: _Message, replayed: bool) -> News:
        offset = message.offset
        if offset is not None and self.offset is not None:
            if offset <= self.offset:
                return []
            if offset > self.offset + 1 and not replayed:
                # It is in the reply, and so is what is missing.
                self.must_ask = True
                return []
        if offset is not None:
            self.offset = offset
            self.epoch = message.epoch or self.epoch
        self._has_told = True
        return [("message", self._told(message, replayed))]

    def _told(self, message: _Message, replayed: bool) -> Message:
        return {
            "topic": self.topic,
            "data": message.data,
            "offset": message.offset,
            "from": message.sender,
            "key": message.key,
            "own": message.own or message.key in self._own,
            "replayed": replayed,
        }

    def _moved(self, place: _Place) -> News:
        """The topic goes on elsewhere."""
        if place.recovered is not False:
            if self.offset is not None and place.offset is not None and place.offset > self.offset:
                self.must_ask = True
            else:
                self.epoch, self.offset = place.epoch, place.offset
            return []
        self.epoch, self.offset = place.epoch, place.offset
        self.members.forget_version()
        self.members.must_ask = self.presence
        if self.last:
            self._forget_place()
            self._goes_on = False
            self.must_ask = True
        return [("continuity", {"recovered": False, "reason": place.reason})]

    def _subscribed_by_server(self, place: _Place) -> News:
        was_subscribed, self.is_subscribed = self.is_subscribed, True
        if self.epoch is not None and self.offset is not None:
            # What has come since then is in the reply.
            self.must_ask = not was_subscribed or (self.epoch, self.offset) != (place.epoch, place.offset)
            return []
        went_on, self._goes_on = self._goes_on and not was_subscribed, True
        self.epoch, self.offset = place.epoch, place.offset
        news: News = [("continuity", {"recovered": False, "reason": "not_kept"})] if went_on else []
        return [*news, ("subscribed", self.place)]

    def _ended_by_server(self, event: dict[str, Any]) -> News:
        if not self.is_subscribed:
            return []
        self.ended()
        return [("unsubscribed", {"topic": self.topic, "reason": str(event.get("reason"))})]

    def _forget_place(self) -> None:
        self.epoch = self.offset = None


def _presence(told: PresenceNews | None) -> News:
    return [] if told is None else [("presence", told)]
