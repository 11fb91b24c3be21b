"""A change tells which rows: of an update and of a delete each hears the rows that it may read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest_twisted
from support.rawclient import RawClient
from support.served import Served

from zcomm.data.sql.statements import MAX_TOLD, Telling

SCHEMA = """
Tasks:
  id:    {type: int, pk: true}
  owner: str
  label: str
  cost:  int
"""
POLICY = """
admin: {models: "*"}
clerk: {models: {Tasks: {actions: [create, read, update, delete], fields: {hide: [cost]}}}}
own: {models: {Tasks: {actions: [read, update], rows: {owner: $name}}}}
blind: {models: {Tasks: [update]}}
"""


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await start(broadcast=…)`` is a server with tasks; the one before it is stopped."""
    servers: list[Served] = []
    (tmp_path / "schema.yaml").write_text(SCHEMA)

    async def start(**options: Any) -> Served:
        for server in servers:
            await server.stop()
        servers[:] = [Served(tmp_path, policy=POLICY, config={"schemas": (tmp_path / "schema.yaml",)}, **options)]
        return await servers[0].start()

    yield start
    for server in servers:
        server.forget()
        await server.stop()


async def joined(server: Served, name: str, role: str) -> RawClient:
    return await server.client(token=server.store.add(name, role).token)


async def heard(client: RawClient) -> list[Any]:
    """What has come, without what is the same in all of it."""
    told = []
    client.send_json({"zKey": "ping", "_requestId": "end"})
    while (message := await client.next_json()).get("_requestId") != "end":
        told.append(message)
    return told


def update(*changes: tuple[int, dict[str, Any]]) -> dict[str, Any]:
    items = [{"id": number, "values": values} for number, values in changes]
    return {"zKey": "update_Tasks", "result": {"updated": len(items)}, "changes": items}


def delete(*ids: int) -> dict[str, Any]:
    return {"zKey": "delete_Tasks", "result": {"deleted": len(ids)}, "ids": list(ids)}


@pytest_twisted.ensureDeferred
async def test_each_hears_of_the_rows_that_it_may_read(start: Callable[..., Any]):
    """Rows that come into reach and leave it, hidden fields, several rows of which some are one's own; the caller has
    its reply as ever, and a repeated command says nothing."""
    server = await start()
    admin = await joined(server, "root", "admin")
    for owner in ("ann", "bob", "ann"):
        await admin.call("create_Tasks", {"values": {"owner": owner, "label": "new", "cost": 1}})
    clerk, ann, bob = [await joined(server, *who) for who in (("c", "clerk"), ("ann", "own"), ("bob", "own"))]
    other, blind = await joined(server, "root", "admin"), await joined(server, "b", "blind")
    everybody = {"other": other, "clerk": clerk, "ann": ann, "bob": bob, "blind": blind}

    async def told(key: str, **horizontal: Any) -> dict[str, Any]:
        reply = await admin.call(key, horizontal)
        assert reply["result"].keys() <= {"updated", "deleted"}
        found = {name: await heard(client) for name, client in everybody.items()}
        assert found.pop("blind") == []
        return {name: messages[0] if messages else None for name, messages in found.items() if len(messages) < 2}

    assert await told("update_Tasks", where=1, values={"label": "a"}) == {
        "other": update((1, {"label": "a"})),
        "clerk": update((1, {"label": "a"})),
        "ann": update((1, {"label": "a"})),
        "bob": None,
    }
    both = {"label": "b", "cost": 2}
    assert await told("update_Tasks", where={"id__lt": 3}, values=both) == {
        "other": update((1, both), (2, both)),
        "clerk": update((1, {"label": "b"}), (2, {"label": "b"})),
        "ann": update((1, both)),
        "bob": update((2, both)),
    }
    cost = {"cost": 3}
    asked = {"where": {"owner": "ann"}, "values": cost, "_idempotencyKey": "once"}
    assert await told("update_Tasks", **asked) == {
        "other": update((1, cost), (3, cost)),
        "clerk": None,
        "ann": update((1, cost), (3, cost)),
        "bob": None,
    }
    assert await told("update_Tasks", **asked) == dict.fromkeys(("other", "clerk", "ann", "bob"))
    assert await told("update_Tasks", where=1, values={"owner": "bob", "cost": 4}) == {
        "other": update((1, {"owner": "bob", "cost": 4})),
        "clerk": update((1, {"owner": "bob"})),
        "ann": None,
        "bob": update((1, {"owner": "bob", "cost": 4})),
    }
    assert await told("delete_Tasks", where={"id__in": [1, 3]}) == {
        "other": delete(1, 3),
        "clerk": delete(1, 3),
        "ann": delete(3),
        "bob": delete(1),
    }
    # What one may not see oneself, others are told of.
    reply = await bob.call("update_Tasks", {"where": {"owner": "bob"}, "values": {"cost": 9}})
    assert reply["result"] == {"updated": 1}
    assert [await heard(client) for client in (admin, clerk, ann)] == [[update((2, {"cost": 9}))], [], []]


@pytest_twisted.ensureDeferred
async def test_of_many_rows_all_are_told_to_read_anew(start: Callable[..., Any]):
    """Beyond a hundred, and beyond the bytes of a broadcast; also who would hear of none of them."""
    server = await start()
    admin, other, ann = [await joined(server, *who) for who in (("root", "admin"), ("root", "admin"), ("ann", "own"))]
    for _ in range(MAX_TOLD + 1):
        await admin.call("create_Tasks", {"values": {"label": "x"}})
    await heard(other)
    many = {"zKey": "update_Tasks", "many": True}
    some = {"where": {"id__lte": MAX_TOLD}, "values": {"label": "x" * 700}}
    assert (await admin.call("update_Tasks", {"all": True, "values": {"label": "y"}}))["result"] == {"updated": 101}
    assert [await heard(client) for client in (other, ann)] == [[many], [many]]
    assert (await admin.call("update_Tasks", some))["result"] == {"updated": 100}
    assert await other.next_json() == await ann.next_json() == many
    assert (await admin.call("update_Tasks", {**some, "values": {"label": "z"}}))["result"] == {"updated": 100}
    message = await other.next_json()
    while message == many:
        message = await other.next_json()
    assert [change["id"] for change in message["changes"]] == [*range(1, MAX_TOLD + 1)]
    assert (await admin.call("delete_Tasks", {"all": True}))["result"] == {"deleted": 101}
    assert (await other.next_json()) == {"zKey": "delete_Tasks", "many": True}


@pytest_twisted.ensureDeferred
async def test_where_nobody_hears_no_rows_are_brought_back(start: Callable[..., Any]):
    """The database is asked for what others are told only where there are others; of a change that was under way when
    the first of them came, there is something to be read anew."""
    server = await start()
    alone = await joined(server, "root", "admin")
    statements = server.comm.zcli.data._execution._statements._known

    def telling() -> int:
        return sum(isinstance(statement, Telling) for statement in statements.values())

    await alone.call("create_Tasks", {"values": {"label": "x"}})
    asked = {"where": 1, "values": {"label": "y"}}
    assert (await alone.call("update_Tasks", asked))["result"] == {"updated": 1}
    assert telling() == 0
    other = await joined(server, "other", "admin")
    assert (await alone.call("update_Tasks", asked))["result"] == {"updated": 1}
    assert await heard(other) == [update((1, {"label": "y"}))]
    assert telling() == 1
    server = await start(broadcast="none")
    clients = [await joined(server, "root", "admin") for _ in range(2)]
    assert (await clients[0].call("update_Tasks", asked))["result"] == {"updated": 1}
    statements = server.comm.zcli.data._execution._statements._known
    assert telling() == 0 and await heard(clients[1]) == []
