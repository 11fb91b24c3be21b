"""The rows of live queries as a client has them, by the rule of docs/protocol.rst, and other programs that write."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psycopg
from support.rawclient import Frame, Opcode, RawClient
from support.served import Served
from support.waiting import wait_until
from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread

__all__ = ["Rows", "ask", "events", "serve", "texts", "write", "writing"]


async def serve(directory: Path, schema: str, url: str = "", users: Iterable[str] = (), **options: Any) -> Served:
    """A server that runs, of a schema and a database; with tokens of ``users``, who are members."""
    (directory / "schema.yaml").write_text(schema)
    config = {"schemas": (directory / "schema.yaml",)} | ({"database": url} if url else {})
    server = await Served(directory, config=config, **options).start()
    server.tokens |= {name: server.store.add(name, "member").token for name in users}
    return server


async def ask(client: RawClient, key: str, horizontal: Any) -> Any:
    """The reply to a command; it fails with the error's message."""
    reply = await client.call(key, horizontal)
    assert "result" in reply, reply
    return reply["result"]


def events(client: RawClient) -> list[dict[str, Any]]:
    """The live events that came so far."""
    texts = [item.payload for item in client.received if isinstance(item, Frame) and item.opcode == Opcode.TEXT]
    return [message for message in map(json.loads, texts) if message.get("event") == "live"]


class Rows:
    """The rows of a query as a client has them, by the rule of docs/protocol.rst."""

    def __init__(self, client: RawClient, name: str, key: str = "id"):
        self.client, self.name, self.key = client, name, key
        self.rows: list[dict[str, Any]] = []
        self.digest = self.error = ""
        self.seen = 0

    async def ask(self, model: str, **asked: Any) -> Rows:
        """Begin."""
        self.seen = len(events(self.client))
        result = await ask(self.client, "zLive", {"query": self.name, "model": model, **asked})
        self.rows, self.digest = result["rows"], result["digest"]
        # What came before the reply is part of it.
        self.seen = sum(event["step"] <= result["step"] for event in events(self.client))
        return self

    def now(self) -> list[dict[str, Any]]:
        """The rows after all events that have come."""
        for event in events(self.client)[self.seen :]:
            made = event["queries"].get(self.name)
            if made is None:
                continue
            if "error" in made:
                self.error = made["code"]
                continue
            if "reset" in made:
                self.rows = made["reset"]
            gone = {json.dumps(key) for key in made.get("gone", ())}
            gone |= {json.dumps(row[self.key]) for _, row in made.get("set", ())}
            self.rows = [row for row in self.rows if json.dumps(row[self.key]) not in gone]
            for place, row in made.get("set", ()):
                self.rows.insert(place, row)
            self.digest = made.get("digest", self.digest)
        self.seen = len(events(self.client))
        return self.rows

    async def until(self, check: Callable[[list[dict[str, Any]]], bool]) -> list[dict[str, Any]]:
        """The rows once they are as they should be."""
        await wait_until(lambda: check(self.now()), f"the rows of {self.name}, which are {self.rows!r}")
        return self.rows


def texts(rows: list[dict[str, Any]]) -> list[Any]:
    """The texts of notes."""
    return [row["text"] for row in rows]


def write(url: str, *statements: str) -> None:
    """Let another program write, each statement in a transaction of its own."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None) as connection:
            connection.execute("PRAGMA foreign_keys = ON")
            for statement in statements:
                connection.execute(statement.replace("TRUNCATE", "DELETE FROM").replace(" CASCADE", ""))
        connection.close()
        return
    with psycopg.connect(url, autocommit=True) as session:
        for statement in statements:
            session.execute(statement)


def writing(url: str, *statements: str) -> Deferred[None]:
    """Likewise, in a thread: a statement may wait for a step, and that for the reactor. Fires once all is written."""
    return deferToThread(write, url, *statements)
