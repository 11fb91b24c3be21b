"""Clients that come back, as those of each product do: what they say, and what they remember of a connection."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["Channels", "Nchan", "PythonSocketIO", "SocketIO", "Talk", "ZComm"]

Say = Callable[[str], None]


class Talk:
    """A client, over all of its connections.

    :ivar got: the numbers of the messages that it has got.
    :ivar is_in: whether it is in its room on this connection.
    :ivar is_back: whether the server says that nothing was missed; ``None`` where it says nothing.
    :cvar resumes: whether the product has a way to get what was missed.
    """

    resumes = False
    headers = ""

    def __init__(self, room: int):
        self.room = room
        self.got: set[int] = set()
        self.is_in = self.is_again = False
        self.is_back: bool | None = None

    def begin(self) -> None:
        """There is a new connection to come."""
        self.is_in = False

    def opened(self, say: Say) -> None:
        """Say what is said first."""

    def heard(self, text: str, say: Say) -> None:
        """Take a message."""
        raise NotImplementedError

    def _take(self, data: Any) -> None:
        self.got.add(data["n"])


class ZComm(Talk):
    """Of zComm: subscribes with the position that it knows."""

    resumes = True
    position: dict[str, Any] | None = None

    def opened(self, say: Say) -> None:
        """Subscribe."""
        asked: dict[str, Any] = {"topic": f"room:{self.room}"}
        if self.position is not None:
            asked["since"] = self.position
        say(json.dumps({"zKey": "zSubscribe", "zHorizontal": asked, "_requestId": 1}))

    def heard(self, text: str, say: Say) -> None:
        """Take the reply, or a message."""
        said = json.loads(text)
        if "error" in said:
            raise RuntimeError(text)
        if "_requestId" in said:
            said = said["result"]
            self.position = {"epoch": said["epoch"], "offset": said["offset"]}
            for message in said.get("messages", ()):
                self._take(message["data"])
            if self.is_again:
                self.is_back = said.get("recovered")
            self.is_in = True
        elif said["event"] == "message":
            self.position = {"epoch": said.get("epoch", self.position["epoch"]), "offset": said["offset"]}  # type: ignore[index]
            self._take(said["data"])


class SocketIO(Talk):
    """Of socket.io with connection state recovery: shows the session and the position that it knows."""

    resumes = True
    session: str | None = None
    offset: str | None = None

    def heard(self, text: str, say: Say) -> None:
        """Take a packet."""
        if text == "2":
            say("3")
        elif text.startswith("0"):
            if self.resumes and self.is_again and self.session:
                say("40" + json.dumps({"pid": self.session, "offset": self.offset}))
            else:
                say("40")
        elif text.startswith("40"):
            session = json.loads(text[2:]).get("pid")
            if self.is_again and self.resumes:
                self.is_back = session is not None and session == self.session
            self.session = session
            if self.is_back:
                self.is_in = True
            else:
                say(f'420["join","room{self.room}"]')
        elif text.startswith("43"):
            self.is_in = True
        elif text.startswith("42"):
            said = json.loads(text[2:])
            if isinstance(said[-1], str):
                self.offset = said[-1]
            self._take(said[1])


class PythonSocketIO(SocketIO):
    """Of python-socketio, which has nothing to come back to."""

    resumes = False


class Channels(Talk):
    """Of Django Channels, which has nothing to come back to."""

    def opened(self, say: Say) -> None:
        """Join."""
        say(json.dumps({"join": f"room{self.room}"}))

    def heard(self, text: str, say: Say) -> None:
        """Take the answer, or a message."""
        said = json.loads(text)
        if "done" in said:
            self.is_in = True
        else:
            self._take(said)


class Nchan(Talk):
    """Of Nchan, by its subprotocol that tells the ids of messages."""

    resumes = True
    last: str | None = None

    def begin(self) -> None:
        """Ask for what came after the last message."""
        super().begin()
        self.headers = "Sec-WebSocket-Protocol: ws+meta.nchan\r\n"
        if self.last is not None:
            self.headers += f"Last-Event-ID: {self.last}\r\n"

    def opened(self, say: Say) -> None:
        """It is in with the handshake."""
        self.is_in = True

    def heard(self, text: str, say: Say) -> None:
        """Take a message."""
        head, _, body = text.partition("\n\n")
        for line in head.split("\n"):
            if line.startswith("id: "):
                self.last = line[4:]
        if body:
            self._take(json.loads(body))
