"""Live queries of the Python client against the product's own, over loopback TCP."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
import pytest_twisted
from support.served import Served
from support.waiting import wait_until, wait_until_blocking
from twisted.internet.threads import deferToThread

from zcomm import errors
from zcomm.client import Client, Live, LiveChange, connect, threaded

SCHEMA = """
Orders:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: {type: str, default: admin-user}
  status: {type: str, default: new}
  total: {type: int, default: 0}
  note: {type: json}
Lines:
  _model: {live: true}
  part: {type: str, pk: true}
  place: {type: int, pk: true}
  text: str
"""
POLICY = """
admin: {models: "*"}
guest:
  models:
    Orders: {actions: [read, update], rows: {owner: $name}}
blind: {}
"""
Enter = Callable[..., Any]


@pytest_twisted.async_yield_fixture
async def shop(tmp_path: Path) -> AsyncIterator[Served]:
    """A server with orders in a SQLite file that others write to as well."""
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    config = {"schemas": (tmp_path / "schema.yaml",), "database": f"sqlite:///{tmp_path}/shop.sqlite3"}
    server = await Served(tmp_path, policy=POLICY, config=config).start()
    yield server
    await server.stop()


@pytest_twisted.async_yield_fixture
async def enter(shop: Served) -> AsyncIterator[Enter]:
    """``await enter()`` is a client of it: the operator's, unless ``token`` says whose."""
    clients: list[Client] = []

    async def enter(token: str = "") -> Client:
        client = await connect(shop.bifrost.url, token or shop.admin)
        clients.append(client)
        return client

    yield enter
    for client in clients:
        await client.disconnect()


def write(shop: Served, *statements: str) -> None:
    """Write to the file as another program does."""
    with closing(sqlite3.connect(shop.directory / "shop.sqlite3")) as database, database:
        for statement in statements:
            database.execute(statement)


async def cut(server: Served, client: Client) -> None:
    """End the connections of the server, and wait until this client has noticed; it may be back by then."""
    closed: list[Any] = []
    stop = client.on("close", closed.append)
    for connection in list(server.bifrost.registry):
        connection.close(1001, "restart")
    await wait_until(lambda: closed, "the loss")
    stop()


def ids(live: Live) -> list[int]:
    """The ids of its rows, in their order."""
    return [row["id"] for row in live.rows]


class Onlooker:
    """One that looks: what it is told leads from what it was told before to what it is told now.

    :ivar wrong: what does not; listeners that raise harm nobody.
    """

    def __init__(self, live: Live, key: tuple[str, ...]):
        self.key = key
        self.rows: dict[str, Any] = {}
        self.kinds: list[str] = []
        self.wrong: list[Any] = []
        self.stop = live.subscribe(self.told)

    def by_key(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {json.dumps([row[name] for name in self.key]): row for row in rows}

    def told(self, rows: list[dict[str, Any]], change: LiveChange) -> None:
        self.kinds.append(change["kind"])
        before, now = self.rows, self.by_key(rows)
        self.rows = now
        added, removed = self.by_key(change["added"]), self.by_key(change["removed"])
        changed = self.by_key([one["row"] for one in change["changed"]])
        expected = {key: row for key, row in before.items() if key not in removed} | added | changed
        if expected.keys() != now.keys() or any(expected[key] is not row for key, row in now.items()):
            self.wrong.append((before, change, rows))
        if added.keys() & before.keys() or removed.keys() - before.keys() or len(now) != len(rows):
            self.wrong.append((before, change, rows))
        if any(json.dumps(one["row"]) == json.dumps(one["before"]) for one in change["changed"]):
            self.wrong.append(change)


@pytest_twisted.ensureDeferred
async def test_rows_follow_whoever_writes(enter: Enter, shop: Served):
    """Rows enter, change, move and leave, by this client, another one and another program; what has not changed is the
    same object, over a lost connection as well."""
    client, other = await enter(), await enter()
    for total in (30, 10, 20):
        await client.create("Orders", {"total": total, "note": {"a": [total]}})
    live = client.live("Orders", {"status": "new"}, fields=["id", "total", "note"], order_by="total DESC", limit=3)
    look = Onlooker(live, ("id",))
    await live.start()
    assert ids(live) == [1, 3, 2]
    # Where the server's own writes came first as it started, it takes a moment.
    await wait_until(lambda: live.sees == "all", "a table that is watched")
    first = live.rows[0]
    await other.create("Orders", {"total": 25})
    await wait_until(lambda: ids(live) == [1, 4, 3], "the one that enters")
    await other.update("Orders", 3, {"total": 40})
    await wait_until(lambda: ids(live) == [3, 1, 4], "the one that moves")
    write(shop, "UPDATE Orders SET status = 'paid' WHERE id = 4")
    await wait_until(lambda: ids(live) == [3, 1, 2], "the one that leaves")
    write(shop, "UPDATE Orders SET owner = 'bob' WHERE id = 1")
    await client.update("Orders", 2, {"note": {"a": [True]}})
    await wait_until(lambda: live.rows[2]["note"] == {"a": [True]}, "the one that changes")
    assert live.rows[1] is first
    rows = live.rows
    statuses: list[str] = []
    live.on("status", statuses.append)
    await cut(shop, client)
    await wait_until(lambda: statuses == ["stale", "live"], "the next connection")
    assert live.rows is rows and look.kinds[-2:] == ["same", "same"]
    await cut(shop, client)
    write(shop, "DELETE FROM Orders WHERE id = 3")
    await wait_until(lambda: live.status == "live" and ids(live) == [1, 2], "what was missed")
    assert live.rows[0] is first and look.kinds[-1] in ("reset", "change") and not look.wrong
    assert live.rows == await client.read(
        "Orders", {"status": "new"}, {"fields": ["id", "total", "note"], "order_by": "total DESC"}
    )


@pytest_twisted.ensureDeferred
async def test_rights_hold(enter: Enter, shop: Served):
    """Nobody sees the rows of others, and who may read nothing is told so; what cannot be asked says why."""
    client = await enter(shop.tokens["guest"])
    live = client.live("Orders", order_by=["id"])
    assert await live.start() == []
    await wait_until(lambda: live.sees == "all", "a table that is watched")
    write(shop, "INSERT INTO Orders (owner, status, total) VALUES ('guest-user', 'new', 1), ('bob', 'new', 2)")
    await wait_until(lambda: ids(live) == [1], "one's own")
    write(shop, "UPDATE Orders SET owner = 'bob' WHERE id = 1")
    await wait_until(lambda: ids(live) == [], "one's own, which is another's now")
    blind = (await enter(shop.tokens["blind"])).live("Orders")
    with pytest.raises(errors.PermissionDenied):
        await blind.start()
    admin = await enter()
    for wrong, field in (
        (admin.live("Orders", {"statuz": "new"}), "statuz"),
        (admin.live("Orders", limit=1001), "limit"),
        (admin.live("Orders", order_by="totl"), "totl"),
        (admin.live("Orders", fields=["nothing"]), "nothing"),
    ):
        with pytest.raises(errors.CommandError, match=field):
            await wrong.start()
        assert wrong.status == "error" and field in str(wrong.error)


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("seed", range(3))
async def test_random_histories(seed: int, enter: Enter, shop: Served):
    """Writes by all of them, losses, and looks that come and go: in the end each query has the rows that read() has,
    and whoever looked was told of each difference."""
    random = Random(seed)
    client, other = await enter(), await enter()
    asked: list[tuple[str, Any, dict[str, Any]]] = [
        ("Orders", {"status": "new"}, {"order_by": "total DESC, id", "limit": 4}),
        ("Orders", {"total__gte": 2}, {"fields": ["status"]}),
        ("Orders", None, {"order_by": "status, total"}),
        ("Lines", {"place__lt": 3}, {"order_by": "text"}),
    ]
    lives = [client.live(model, filters, **options) for model, filters, options in asked]
    keys = {"Orders": ("id",), "Lines": ("part", "place")}
    looks: list[tuple[Live, Onlooker]] = []

    async def row(_: Live) -> None:
        values = {"status": random.choice(["new", "paid"]), "total": random.randrange(5)}
        act = random.randrange(4)
        place, line = random.randrange(1, 9), {"part": random.choice("ab"), "place": random.randrange(4)}
        if act == 0:
            await (other.update("Orders", place, values) if place % 2 else other.create("Orders", values))
        elif act == 1:
            await other.delete("Orders", place)
        elif act == 2:
            await other.upsert("Lines", {**line, "text": random.choice("xyz")}, ["part", "place"])
        else:
            write(
                shop,
                f"INSERT OR REPLACE INTO Orders (id, owner, status, total) VALUES ({place}, 'x', 'new', {act})",
                f"DELETE FROM Lines WHERE place = {random.randrange(4)}",
                f"UPDATE Orders SET total = total + 1 WHERE id % 3 = {random.randrange(3)} AND total < 6",
            )

    async def look(live: Live) -> None:
        looks.append((live, Onlooker(live, keys[live.model])))

    async def leave(_: Live) -> None:
        if looks:
            looks.pop(random.randrange(len(looks)))[1].stop()

    async def wait(_: Live) -> None:
        await client.send({"zKey": "ping"})

    async def lose(_: Live) -> None:
        if random.random() < 0.2:
            await cut(shop, client)
            await wait_until(lambda: client.state == other.state == "connected", "the next connection")

    for _ in range(60):
        await random.choice([row, row, row, look, look, leave, wait, lose])(random.choice(lives))
    for live in lives:
        await look(live)
    await row(lives[0])
    for live, (model, filters, options) in zip(lives, asked, strict=True):
        await live.start()
        shown = {**options, "fields": [*keys[model], *options["fields"]]} if "fields" in options else options
        order = ", ".join((*([options["order_by"]] if "order_by" in options else []), *keys[model]))
        found = await client.read(model, filters, {**shown, "order_by": order.replace("id, id", "id")})
        await wait_until(lambda live=live, found=found: live.rows == found, f"the rows of {model}: {found}")
    assert not [one.wrong for _, one in looks if one.wrong]
    for live, one in looks:
        assert list(one.rows.values()) == live.rows


@pytest_twisted.ensureDeferred
async def test_a_program_without_a_reactor(shop: Served):
    """It waits for rows, and for each change."""

    def use() -> None:
        with threaded.connect(shop.bifrost.url, shop.admin) as client:
            live = client.live("Orders", order_by="id")
            heard: list[Any] = []
            live.subscribe(lambda rows, change: heard.append(len(client.read("Orders"))))
            seen = []
            for rows in live:
                seen.append(len(rows))
                if len(rows) == 3:
                    break
                client.create("Orders", {"total": len(rows)})
            assert seen == [0, 1, 2, 3] and live.get_snapshot() == client.read("Orders", None, {"order_by": "id"})
            wait_until_blocking(lambda: heard and heard[-1] == 3, "what the listener has read")

    await deferToThread(use)
