"""A server of topics whose every word a test decides: a real zBifrost with commands of its own.

What the product's own topics promise they never break; a client has to stand it all the same: lost events, replies
that come late or say no, other epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet import reactor as installed
from twisted.internet.defer import Deferred

from zcomm import WebSocketConfig, zBifrost
from zcomm.config import Limits
from zcomm.errors import CommandError
from zcomm.interfaces import Client, Request

__all__ = ["TopicServer"]

reactor: Any = installed


class TopicServer:
    """Keeps one topic, ``room:1``, of which a test may lose or change what it likes.

    :ivar epoch: its epoch; ``None``: it is not kept.
    :ivar kept: the messages that are kept, by offset.
    :ivar top: the newest offset.
    :ivar asked: each command that came, as its key and what it said.
    :ivar say: called before a command is answered, by its key; what it returns is the answer, unless that is ``None``.
    """

    def __init__(self) -> None:
        self.bifrost = zBifrost(WebSocketConfig(port=0, require_auth=False, limits=Limits(ping_interval=3600.0)))
        self.epoch: str | None = "e1.a"
        self.kept: dict[int, dict[str, Any]] = {}
        self.top = 0
        self.keys: dict[str, int] = {}
        self.there: list[Client] = []
        self.asked: list[tuple[str, Any]] = []
        self.say: dict[str, Callable[[Any], Any]] = {}
        self.swallow = 0
        for key, command in (
            ("zSubscribe", self._subscribe),
            ("zUnsubscribe", self._unsubscribe),
            ("zPublish", self._publish),
            ("zHistory", self._history),
            ("zPresence", self._presence),
        ):
            # In the place of the product's own.
            self.bifrost.dispatcher.reserve(key, self._asked(key, command))

    def _asked(self, key: str, command: Callable[[Any, Client], Any]) -> Callable[..., Any]:
        def answer(request: Request, client: Client) -> Any:
            asked: Any = request.horizontal
            self.asked.append((key, asked))
            said = self.say[key](asked) if key in self.say else None
            if isinstance(said, Deferred):
                return said.addCallback(lambda late: command(asked, client) if late is None else late)
            if isinstance(said, CommandError):
                raise said
            return command(asked, client) if said is None else said

        return answer

    def asked_for(self, key: str) -> list[Any]:
        """What each command of that key said."""
        return [asked for name, asked in self.asked if name == key]

    @property
    def place(self) -> dict[str, Any]:
        """Epoch and offset as messages tell them."""
        return {} if self.epoch is None else {"epoch": self.epoch, "offset": self.top}

    def _subscribe(self, asked: Any, client: Client) -> Any:
        if client not in self.there:
            self.there.append(client)
        reply = {"topic": asked["topic"], **self.place}
        since = asked.get("since")
        if since is not None:
            missed = range(since["offset"] + 1, self.top + 1)
            if self.epoch is None:
                reply.update(recovered=False, reason="not_kept")
            elif since["epoch"] != self.epoch:
                reply.update(recovered=False, reason="epoch")
            elif not all(offset in self.kept for offset in missed):
                reply.update(recovered=False, reason="too_old")
            else:
                reply.update(recovered=True, messages=[self.kept[offset] for offset in missed])
        elif "last" in asked and self.epoch is not None:
            reply["messages"] = list(self.kept.values())[-asked["last"] :]
        if asked.get("presence"):
            reply.update(connection="c1", presence=self._presence(asked, client))
        return reply

    def _unsubscribe(self, asked: Any, client: Client) -> Any:
        if client in self.there:
            self.there.remove(client)
        return {"topic": asked["topic"]}

    def _publish(self, asked: Any, client: Client) -> Any:
        key = asked.get("_idempotencyKey")
        if key not in self.keys:
            self.publish(asked["data"], key=key, by=client)
            self.keys[key] = self.top
        return {"topic": asked["topic"], **({} if self.epoch is None else {"epoch": self.epoch, "offset": self.top})}

    def _history(self, asked: Any, client: Client) -> Any:
        messages = list(self.kept.values())
        return {"topic": asked["topic"], **self.place, "messages": messages[: asked.get("limit", 100)], "more": False}

    def _presence(self, asked: Any, client: Client) -> Any:
        return {"version": 1, "users": 1, "connections": 1, "members": {"ann": {"c1": asked.get("state") or {}}}}

    def publish(self, data: Any, key: str | None = None, by: Client | None = None) -> None:
        """A message of the program, or of ``by``; the next ``swallow`` reach nobody."""
        message: dict[str, Any] = {"data": data}
        if self.epoch is not None:
            self.top += 1
            message["offset"] = self.top
            self.kept[self.top] = message
        if key is not None:
            message["key"] = key
        if by is not None:
            message["from"] = "ann"
        if self.swallow:
            self.swallow -= 1
        else:
            self.tell(event="message", **message)

    def tell(self, **event: Any) -> None:
        """An event to all that are there, behind the replies to what has come by now."""
        for client in self.there:
            reactor.callLater(0, client.send, {"topic": "room:1", **event})

    def lose_all(self, code: int = 1001) -> None:
        """End all connections."""
        self.there.clear()
        for client in self.bifrost.clients:
            client.close(code, "restart")
