"""Broadcasts that are too much to be told in full: a notice comes in their place, and nobody is hung up on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import RawClient
from support.served import Served, serving

from zcomm.bifrost.messages import MAX_BROADCAST

KIB = 1024

SCHEMA = """
Users:
  id: {type: int, pk: true}
  name: {type: str}
  email: {type: str, unique: true}
  age: {type: int}
"""


@pytest_twisted.async_yield_fixture(scope="module")
async def large_rows(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """A model with texts of any length."""
    directory = tmp_path_factory.mktemp("served")
    (directory / "schema.yaml").write_text(SCHEMA)
    server = await Served(
        directory, {"broadcast_rate": 64.0 * KIB}, config={"schemas": (directory / "schema.yaml",)}
    ).start()
    yield server
    await server.stop()


served = serving()
#: A user's commands may tell others 1 KiB, and then nothing for the time of a test.
brief = serving("brief", policy=True, limits={"broadcast_rate": 1024.0, "queue_size": 64 * KIB})
everything = serving("everything", broadcast="all")


async def last(client: RawClient, key: str) -> list[dict[str, Any]]:
    """What ``client`` is told until the first notice of ``key``."""
    told = [await client.next_json()]
    while told[-1] != {"zKey": key, "many": True}:
        told.append(await client.next_json())
    return told


def spend(server: Served) -> None:
    """Let every user have told all that it may, and as much again."""
    for account in server.bifrost.factory.state.budgets:
        account.broadcast.charge(1e9)


def create(name: str, number: int, values: str = "n") -> dict[str, Any]:
    return {
        "zKey": "create_Users",
        "zHorizontal": {"values": {"name": values, "email": f"{name}{number}@example.com"}},
        "_requestId": number,
    }


@pytest_twisted.ensureDeferred
async def test_b9_a_large_result_is_told_as_many(large_rows: Served):
    """Of each command that tells others: its key and what it announces, without the result; the sender has its reply,
    which is whole."""
    large = "x" * 70 * KIB
    large_rows.bifrost.command("large", broadcast=True)(lambda: large)
    sender, other = await large_rows.client(), await large_rows.client()
    made = await sender.call("create_Users", {"values": {"name": large, "email": "a9@example.com"}})
    assert made["result"]["name"] == large
    assert await other.next_json() == {"zKey": "create_Users", "many": True}
    assert len((await sender.call("large"))["result"]) == 70 * KIB
    assert await other.next_json() == {"zKey": "large", "many": True}
    upserted = {"values": {"name": large, "email": "a9@example.com"}, "conflict_fields": ["email"]}
    assert (await sender.call("upsert_Users", upserted))["result"]["name"] == large
    assert await other.next_json() == {"zKey": "upsert_Users", "many": True}
    await large_rows.stands()


@pytest_twisted.ensureDeferred
async def test_b9_the_limit_of_a_broadcast_is_exact(served: Served):
    """Its text, whatever the reply adds."""
    room = MAX_BROADCAST - len('{"zKey":"exact","result":""}')
    served.bifrost.command("exact", broadcast=True)(lambda size: "x" * size)
    sender, other = await served.client(), await served.client()
    await sender.call("exact", room)
    assert len((await other.next_json())["result"]) == room
    await sender.call("exact", room + 1)
    assert await other.next_json() == {"zKey": "exact", "many": True}
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_b9_what_one_user_tells_in_full_is_bounded(brief: Served):
    """Beyond it each kind of command is told as many, the last change of all too; the program, and another user, still
    tell everything."""
    sender, other = await brief.client(), await brief.client()
    for number in range(60):
        sender.send_json(create("bounded", number))
    for number in range(60):
        assert "result" in await sender.next_json(), number
    assert 1 < len(await last(other, "create_Users")) < 10
    spend(brief)
    one = {"email": "bounded1@example.com"}
    for key, horizontal in (("update_Users", {"where": one, "values": {"age": 3}}), ("delete_Users", {"where": one})):
        assert "result" in await sender.call(key, horizontal)
        assert not any("result" in told for told in await last(other, key) if told["zKey"] == key)
    brief.bifrost.broadcast({"program": "p" * 50 * KIB})
    while "program" not in (told := await other.next_json()):
        assert told["many"] is True
    member = await brief.client(token=brief.store.add("member-user", "member").token)
    await member.call("create_Users", {"values": {"name": "member-user", "email": "m@example.com"}})
    while "result" not in (told := await other.next_json()):
        assert told["many"] is True
    assert told["result"]["email"] == "m@example.com"
    await brief.stands()


@pytest_twisted.ensureDeferred
async def test_b9_rows_beyond_the_rate_are_told_to_whom_they_concern(brief: Served):
    """Who may read some rows only hears of those, once, and of others not even that there are any."""
    sender, all_rows = await brief.client(), await brief.client()
    member = await brief.client(token=brief.store.add("one-user", "member").token)
    spend(brief)
    for number in range(20):
        await sender.call("create_Users", create("rows", number)["zHorizontal"])
    await last(all_rows, "create_Users")
    assert (await member.call("ping", 1))["result"] == 1
    for number in range(20, 40):
        await sender.call("create_Users", create("rows", number, "one-user")["zHorizontal"])
    await last(member, "create_Users")
    await brief.stands()


@pytest_twisted.ensureDeferred
async def test_b9_functions_announce_their_names(everything: Served):
    """Arguments that stand in a key are not in the notice: notices of one function say the same."""
    sender, other = await everything.client(), await everything.client()
    for number in range(3):
        text = f"zFunc(echo, {number}, '{'x' * 1000}')"
        sender.send_json({"zKey": text, "zHorizontal": text, "_requestId": number})
        await sender.next_json()
        assert (await other.next_json())["zKey"] == "zFunc(echo)"
    large = json.dumps({"zKey": "zFunc", "zHorizontal": {"name": "echo", "args": ["y" * 70 * KIB]}, "_requestId": 9})
    sender.send_text(large)
    assert (await sender.next_json())["_requestId"] == 9
    assert await other.next_json() == {"zKey": "zFunc", "function": "echo", "many": True}
    await everything.stands()


@pytest.mark.parametrize("mode", ["changes", "all"])
@pytest_twisted.ensureDeferred
async def test_what_is_answered_with_a_kept_result_is_told_once(served: Served, everything: Served, mode: str):
    """In every mode: who hears of a create again would take it for another row."""
    server = everything if mode == "all" else served
    sender, other = await server.client(), await server.client()
    create = {"values": {"name": "first", "email": f"{mode}-first@example.com"}, "_idempotencyKey": f"{mode}-first"}
    answers = [(await sender.call("create_Users", create))["result"]["id"] for _ in range(3)]
    assert answers == answers[:1] * 3
    assert (await other.next_json())["result"]["id"] == answers[0]
    nothing = {"where": {"id": 999_999}, "_idempotencyKey": f"{mode}-none"}
    for _ in range(2):
        assert (await sender.call("delete_Users", nothing))["result"] == {"deleted": 0}
    if mode == "all":
        assert (await other.next_json())["result"] == {"deleted": 0}
    # Nothing has come in between.
    values = {"name": "last", "email": f"{mode}-last@example.com"}
    assert "result" in await sender.call("create_Users", {"values": values})
    assert (await other.next_json())["result"]["name"] == "last"
    await server.stands()


@pytest_twisted.ensureDeferred
async def test_b9_listeners_are_not_hung_up_on(large_rows: Served):
    """One that takes nothing while a user makes rows of 60 KB, a hundred of them, is there afterwards, and knows."""
    sender, slow = await large_rows.client(), await large_rows.client()
    slow.stop_reading()
    for number in range(100):
        reply = await sender.call("create_Users", create("large", number, "x" * 60_000)["zHorizontal"])
        assert "result" in reply
    slow.read_again()
    await last(slow, "create_Users")
    slow.send_json({"zKey": "ping", "_requestId": 1})
    while "_requestId" not in (told := await slow.next_json()):
        assert told["zKey"] == "create_Users"
    await large_rows.stands()
