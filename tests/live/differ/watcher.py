"""A client with live queries: what it has of each after all events, by the rule that every client goes by."""

from __future__ import annotations

import json
import select
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec
from support.rawclient import BlockingRawClient, Frame, Opcode

__all__ = ["Broken", "Lost", "Query", "Watcher"]

Row = msgspec.Raw


class _Change(msgspec.Struct):
    gone: list[Any] = []
    set: list[tuple[int, Row]] = []
    reset: list[Row] | None = None
    digest: str = ""
    error: str = ""
    code: str = ""
    final: bool = False
    sees: str = ""


class _Event(msgspec.Struct):
    step: int
    queries: dict[str, _Change]


class _Reply(msgspec.Struct):
    query: str
    digest: str
    step: int
    sees: str
    key: list[str]
    rows: list[Row] | None = None
    same: bool = False


class _Answer(msgspec.Struct):
    result: Any


class _LiveAnswer(msgspec.Struct):
    result: _Reply


class _ReadAnswer(msgspec.Struct):
    result: list[Row]


class Lost(Exception):
    """The connection has ended."""


class Broken(Exception):
    """A client is told what it cannot apply."""

    def __init__(self, watcher: Watcher, query: Query, reason: str):
        super().__init__(reason)
        self.watcher, self.query, self.reason = watcher, query, reason


@dataclass
class Query:
    """A live query of a client.

    :ivar asked: as it was sent, without its name and what is known.
    :ivar rows: what the client has, byte for byte.
    :ivar code: the code of the error that has ended it; empty while it lives.
    :ivar misses: whether others have written what the server does not see.
    """

    name: str
    model: str
    asked: dict[str, Any]
    rows: list[bytes] = field(default_factory=list)
    digest: str = ""
    key: list[str] = field(default_factory=list)
    sees: str = ""
    code: str = ""
    error: str = ""
    misses: bool = False
    changes: int = 0
    resets: int = 0

    def key_of(self, row: bytes) -> str:
        found = json.loads(row)
        return json.dumps(found[self.key[0]] if len(self.key) == 1 else [found[name] for name in self.key])

    @property
    def shows_order(self) -> bool:
        """Whether what its rows are ordered by is in them: a digest covers that, too."""
        order, fields = self.asked.get("order_by", []), self.asked.get("fields")
        terms = order if isinstance(order, list) else order.split(",")
        return fields is None or {term.split()[0] for term in terms if term.strip()} <= {*fields, *self.key}

    def apply(self, change: _Change) -> None:
        """The rule."""
        if change.reset is not None:
            self.rows = [bytes(row) for row in change.reset]
        elif change.gone or change.set:
            gone = [json.dumps(key) for key in change.gone]
            shown = {self.key_of(row) for row in self.rows}
            assert set(gone) <= shown and len(set(gone)) == len(gone), f"gone has what was not shown: {gone}"
            out = {*gone, *(self.key_of(bytes(row)) for _, row in change.set)}
            assert len(out) == len(gone) + len(change.set), "a key is there twice"
            self.rows = [row for row in self.rows if self.key_of(row) not in out]
            for index, row in sorted(change.set, key=lambda each: each[0]):
                assert 0 <= index <= len(self.rows), f"{index} is no place among {len(self.rows)}"
                self.rows.insert(index, bytes(row))


class Watcher:
    """A user's connection with live queries.

    :param reach: the port of the server and the token of the user.
    """

    def __init__(self, user: str, reach: Callable[[str], tuple[int, str]]):
        self.user = user
        self.queries: dict[str, Query] = {}
        self.is_slow = False
        self.step = 0
        self.told: list[str] = []
        self._reach = reach
        self._client: BlockingRawClient | None = None
        self._ids = 0
        self._answers: dict[str, bytes] = {}
        #: By the numbers of zLive and zUnsubscribe their query's name, and the query whose rows are those of the reply
        #: from there on in what is heard.
        self._asking: dict[str, tuple[str, Query | None]] = {}

    @property
    def is_connected(self) -> bool:
        """Whether there is a connection, as far as it knows."""
        return self._client is not None

    def connect(self, small: bool = False) -> None:
        """Connect anew.

        :param small: with a small buffer.
        """
        self.close()
        port, token = self._reach(self.user)
        self._client = BlockingRawClient(port, token=token, receive_buffer=4096 if small else None)
        self._note(f"connected, {'small' if small else 'large'}")
        self.is_slow, self.step = False, 0

    def close(self) -> None:
        """Hang up."""
        if self._client is not None:
            self._client.abort()
            self._client = None
        self._answers.clear()
        self._asking.clear()

    def live(self, query: Query, knows: bool = False) -> str:
        """Ask for ``query``, again too.

        :param knows: whether to say what it has.
        :return: ``same``, ``rows``, or the code of the error.
        """
        self.queries[query.name] = query
        asked = {"query": query.name, "model": query.model, **query.asked}
        if knows and query.digest:
            asked["known"] = query.digest
        number = self._send("zLive", asked, (query.name, query))
        answer = json.loads(self._answer(number))
        if "error" in answer:
            query.code, query.error = answer["code"], answer["error"]
            self.queries.pop(query.name, None)
            return query.code
        return "same" if answer["result"].get("same") else "rows"

    def _replied(self, query: Query, answer: bytes) -> None:
        """Take the reply to zLive."""
        error = json.loads(answer)
        if "error" in error or self.queries.get(query.name) is not query:
            return
        reply = msgspec.json.decode(answer, type=_LiveAnswer).result
        assert reply.query == query.name and reply.sees in ("all", "own") and reply.key, error
        assert reply.same or reply.rows is not None, error
        query.code, query.sees, query.key, query.misses = "", reply.sees, reply.key, False
        if reply.rows is None:
            assert reply.digest == query.digest, "another digest than the one that is the same"
        else:
            query.rows, query.digest = [bytes(row) for row in reply.rows], reply.digest

    def hurry(self, queries: list[Query | None], name: str) -> None:
        """Ask for several queries of one name at once, ``None`` to end what there is, and wait for no reply between."""
        numbers = []
        for query in queries:
            if query is None:
                self.queries.pop(name, None)
                numbers.append((self._send("zUnsubscribe", {"query": name}, (name, None)), None))
            else:
                self.queries[name] = query
                asked = {"query": name, "model": query.model, **query.asked}
                numbers.append((self._send("zLive", asked, (name, query)), query))
        for number, query in numbers:
            answer = json.loads(self._answer(number))
            if query is None:
                assert answer.get("result") == {"query": name}, answer
            elif "error" in answer:
                query.code, query.error = answer["code"], answer["error"]
                if self.queries.get(name) is query:
                    del self.queries[name]

    def unsubscribe(self, name: str) -> None:
        """End a query."""
        answer = json.loads(self._ask("zUnsubscribe", {"query": name}))
        assert answer.get("result") == {"query": name}, answer
        self.queries.pop(name, None)

    def read(self, model: str, asked: dict[str, Any]) -> list[bytes] | str:
        """The rows of a read; or the code of its error."""
        answer = self._ask(f"read_{model}", asked)
        error = json.loads(answer)
        if "error" in error:
            return str(error["code"])
        return [bytes(row) for row in msgspec.json.decode(answer, type=_ReadAnswer).result]

    def call(self, key: str, horizontal: Any) -> Any:
        """The answer to a command."""
        return json.loads(self._ask(key, horizontal))

    def _ask(self, key: str, horizontal: Any) -> bytes:
        return self._answer(self._send(key, horizontal))

    def _send(self, key: str, horizontal: Any, asking: tuple[str, Query | None] | None = None) -> str:
        if self._client is None:
            raise Lost
        self._ids += 1
        number = f"{self.user}-{self._ids}"
        if asking is not None:
            self._asking[number] = asking
            self._note(f"asks {number} {key} {json.dumps(horizontal)}")
        try:
            self._client.send_json({"zKey": key, "zHorizontal": horizontal, "_requestId": number})
        except OSError:
            self.close()
            raise Lost from None
        return number

    def _answer(self, number: str) -> bytes:
        while number not in self._answers:
            if not self.hear(60.0):
                raise AssertionError("no answer")
        return self._answers.pop(number)

    def fileno(self) -> int:
        """Of its socket."""
        if self._client is None:
            raise Lost
        return self._client.socket.fileno()

    def hear(self, seconds: float = 0.0) -> bool:
        """Take what has come; whether something has within ``seconds``.

        :raises Lost: where the connection has ended.
        """
        if self._client is None:
            raise Lost
        ready, _, _ = select.select([self._client.socket], [], [], seconds)
        if not ready:
            return False
        try:
            data = self._client.socket.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.close()
            raise Lost
        for item in self._client.reader.feed(data):
            if isinstance(item, Frame):
                self._take(item)
        return True

    def _take(self, frame: Frame) -> None:
        if self._client is None:
            return
        if frame.opcode == Opcode.PING:
            self._client.send_frame(Opcode.PONG, frame.payload)
        if frame.opcode == Opcode.CLOSE:
            self._note(f"closed: {frame.close_code} {frame.close_reason}")
        if frame.opcode != Opcode.TEXT:
            return
        message = json.loads(frame.payload)
        if "_requestId" in message:
            number = message["_requestId"]
            self._answers[number] = frame.payload
            _, asked = self._asking.pop(number, ("", None))
            if asked is not None:
                self._note(frame.payload.decode())
                self._replied(asked, frame.payload)
        elif message.get("event") == "live":
            self._note(frame.payload.decode())
            self._event(msgspec.json.decode(frame.payload, type=_Event))

    def _note(self, line: str) -> None:
        self.told.append(line)
        del self.told[:-40]

    def _event(self, event: _Event) -> None:
        assert event.step > self.step, f"step {event.step} after {self.step}"
        self.step = event.step
        assert event.queries, "an event of nothing"
        for name, change in event.queries.items():
            query = self.queries.get(name)
            if any(name == asked for asked, _ in self._asking.values()):
                # Until the reply it is not about what was asked for last.
                continue
            assert query is not None, f"told of {name}, which it has not asked for"
            assert not query.code, f"told of {name}, which has ended"
            if change.error:
                assert change.final and change.code, change
                query.code, query.error = change.code, change.error
                continue
            query.sees = change.sees or query.sees
            if change.reset is not None or change.gone or change.set:
                assert change.digest, "a change without a digest"
                try:
                    query.apply(change)
                except AssertionError as error:
                    rows = b" ".join(query.rows).decode()
                    raise Broken(self, query, f"{error}; of the rows {rows[:1500]}") from error
                query.digest = change.digest
                query.changes += 1
                query.resets += change.reset is not None


def hear_all(watchers: Collection[Watcher], seconds: float) -> None:
    """Take what comes to any of them within ``seconds``."""
    ready, _, _ = select.select([each for each in watchers if each.is_connected], [], [], seconds)
    for each in ready:
        each.hear()
