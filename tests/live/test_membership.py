"""Rights by membership: rows are in reach whose value another model has, for reads, writes and live queries."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.liverows import Rows, ask, events, serve, texts, write
from support.postgres import Cluster
from support.rawclient import Frame, Opcode, RawClient
from support.served import Served
from support.waiting import wait_until

from zcomm.auth.policy import Policy
from zcomm.errors import ConfigError

SCHEMA = """
Boards:
  _model: {live: true}
  id: {type: int, pk: true}
  title: {type: str}
Members:
  _model: {live: true}
  id: {type: int, pk: true}
  board_id: {type: int, fk: Boards.id, on_delete: cascade}
  user: {type: str}
Tasks:
  _model: {live: true}
  id: {type: int, pk: true}
  board_id: {type: int}
  text: {type: str}
Places:
  id: {type: int, pk: true}
  user: {type: str}
  board_id: {type: int}
"""
POLICY = """
admin: {models: "*"}
member:
  models:
    Boards: {actions: [read], rows: {id: {in: {model: Members, field: board_id, where: {user: $name}}}}}
    Tasks: {actions: "*", rows: {board_id: {in: {model: Members, field: board_id, where: {user: $name}}}}}
placed:
  models:
    Tasks: {actions: [read], rows: {board_id: {in: {model: Places, field: board_id, where: {user: $name}}}}}
"""


@pytest_twisted.async_yield_fixture
async def served(postgresql: Cluster, tmp_path: Path, url: str) -> AsyncIterator[Served]:
    """Three boards, of which ann is in the first and the second, bob in the third."""
    server = await serve(tmp_path, SCHEMA, url, users=("ann", "bob"), policy=POLICY)
    data = server.comm.zcli.data
    for title in ("a", "b", "c"):
        await data.create("test", "Boards", {"title": title})
    for board, user in ((1, "ann"), (2, "ann"), (3, "bob")):
        await data.create("test", "Members", {"board_id": board, "user": user})
    for board in (1, 2, 3):
        await data.create("test", "Tasks", {"board_id": board, "text": f"of {board}"})
    yield server
    await server.stop()


@pytest_twisted.ensureDeferred
async def test_reads_and_writes_reach_the_rows_of_members_alone(served: Served):
    """Other boards' tasks are neither read nor changed nor taken away, none is made there, and none is moved there."""
    ann = await served.client(token=served.tokens["ann"])
    assert texts(await ask(ann, "read_Tasks", {})) == ["of 1", "of 2"]
    assert await ask(ann, "read_Tasks", {"where": {"board_id": 3}}) == []
    assert [row["title"] for row in await ask(ann, "read_Boards", {})] == ["a", "b"]
    assert await ask(ann, "update_Tasks", {"where": {"text": "of 3"}, "values": {"text": "x"}}) == {"updated": 0}
    assert await ask(ann, "update_Tasks", {"all": True, "values": {"text": "x"}}) == {"updated": 2}
    assert await ask(ann, "delete_Tasks", {"where": {"board_id": 3}}) == {"deleted": 0}
    made = await ask(ann, "create_Tasks", {"values": {"board_id": 1, "text": "new"}})
    refused = (
        ("create_Tasks", {"values": {"board_id": 3, "text": "new"}}),
        ("create_Tasks", {"values": {"board_id": 99, "text": "new"}}),
        ("update_Tasks", {"where": {"id": made["id"]}, "values": {"board_id": 3}}),
        ("update_Tasks", {"where": {"id": made["id"]}, "values": {"board_id": None}}),
    )
    for key, asked in refused:
        reply = await ann.call(key, asked)
        assert reply["code"] == "permission_denied", reply
        assert reply["fields"] == {"board_id": "cannot have this value"}
    for values in ({"text": "new"}, {"board_id": None, "text": "new"}):
        reply = await ann.call("create_Tasks", {"values": values})
        assert (reply["code"], reply["fields"]) == ("invalid", {"board_id": "is required"})
    await ask(ann, "update_Tasks", {"where": {"id": made["id"]}, "values": {"board_id": 2}})
    admin = await served.client()
    assert [row["board_id"] for row in await ask(admin, "read_Tasks", {"order_by": "id"})] == [1, 2, 3, 2]
    assert texts(await ask(admin, "read_Tasks", {"where": {"board_id": 3}})) == ["of 3"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_an_upsert_takes_no_row_out_of_reach(served: Served):
    """A row of another board is not changed by its key, and none is made there; one's own is."""
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    keys = {row["board_id"]: row["id"] for row in await ask(admin, "read_Tasks", {})}
    if "id" not in (await ask(ann, "zDescribe", {}))["models"]["Tasks"].get("unsent", ()):
        for board, id in ((1, keys[3]), (3, keys[1]), (3, 77)):
            reply = await ann.call(
                "upsert_Tasks", {"values": {"id": id, "board_id": board, "text": "x"}, "conflict_fields": ["id"]}
            )
            assert reply["code"] in ("permission_denied", "invalid"), reply
    assert texts(await ask(admin, "read_Tasks", {"order_by": "id"})) == ["of 1", "of 2", "of 3"]
    await served.stands()


@pytest.mark.parametrize("foreign", [False, True])
@pytest_twisted.ensureDeferred
async def test_a_membership_that_comes_or_goes_takes_effect_in_running_queries(served: Served, url: str, foreign: bool):
    """Whoever writes it: the board's tasks come with the membership and go with it, and nothing else is told."""
    admin = await served.client()
    ann, bob = [await served.client(token=served.tokens[name]) for name in ("ann", "bob")]
    of_ann, of_bob = await Rows(ann, "q").ask("Tasks"), await Rows(bob, "q").ask("Tasks")
    boards = await Rows(ann, "boards").ask("Boards", order_by="title DESC")
    assert (texts(of_ann.rows), texts(of_bob.rows)) == (["of 1", "of 2"], ["of 3"])
    await ask(admin, "create_Tasks", {"values": {"board_id": 3, "text": "more"}})
    await of_bob.until(lambda rows: len(rows) == 2)
    assert len(events(ann)) == 0

    async def change(statement: str, key: str, asked: dict[str, Any]) -> None:
        if foreign:
            write(url, statement)
        else:
            await ask(admin, key, asked)

    await change(
        """INSERT INTO "Members" (id, board_id, "user") VALUES (50, 3, 'ann')""",
        "create_Members",
        {"values": {"board_id": 3, "user": "ann"}},
    )
    assert texts(await of_ann.until(lambda rows: len(rows) == 4)) == ["of 1", "of 2", "of 3", "more"]
    assert [row["title"] for row in await boards.until(lambda rows: len(rows) == 3)] == ["c", "b", "a"]
    await change(
        """UPDATE "Members" SET "user" = 'eve' WHERE board_id = 1""",
        "update_Members",
        {"where": {"board_id": 1}, "values": {"user": "eve"}},
    )
    assert texts(await of_ann.until(lambda rows: len(rows) == 3)) == ["of 2", "of 3", "more"]
    await change("""DELETE FROM "Boards" WHERE id = 3""", "delete_Boards", {"where": {"id": 3}})
    assert texts(await of_ann.until(lambda rows: len(rows) == 1)) == ["of 2"]
    await of_bob.until(lambda rows: rows == [])
    assert [row["title"] for row in await boards.until(lambda rows: len(rows) == 1)] == ["b"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_model_that_is_not_watched_decides_no_live_rights(served: Served):
    """A change of it would not be seen: the query is refused by name, and a read goes on."""
    token = served.store.add("ann", "placed").token
    ann = await served.client(token=token)
    await served.comm.zcli.data.create("test", "Places", {"user": "ann", "board_id": 2})
    assert texts(await ask(ann, "read_Tasks", {})) == ["of 2"]
    reply = await ann.call("zLive", {"query": "q", "model": "Tasks"})
    assert reply["code"] == "invalid" and "Places" in reply["error"]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_a_membership_that_is_watched_no_more_ends_the_queries_that_go_by_it(served: Served):
    """Nobody would see who leaves: that is said by name, and queries by other rights go on."""
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    mine, all_rows = await Rows(ann, "q").ask("Tasks"), await Rows(admin, "q").ask("Tasks")
    served.comm.zcli.live.feed._tended({"Members": "it was replaced"})
    await wait_until(lambda: (mine.now(), mine.error)[1] == "invalid", "the end of the query")
    assert "Members" in events(ann)[-1]["queries"]["q"]["error"]
    told = len(events(ann))
    await ask(admin, "create_Tasks", {"values": {"board_id": 1, "text": "new"}})
    await all_rows.until(lambda rows: len(rows) == 4)
    assert len(events(ann)) == told and not all_rows.error
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_who_has_lost_a_membership_gets_no_rows_by_asking_again(served: Served, monkeypatch: pytest.MonkeyPatch):
    """Also where so many queries have to be read anew that a step has no time for all: the reply waits."""
    monkeypatch.setattr("zcomm.live.reading.STEP_SECONDS", 0.0)
    admin, ann = await served.client(), await served.client(token=served.tokens["ann"])
    for number in range(20):
        await Rows(ann, f"q{number}").ask("Tasks", where={"board_id__lt": 100 + number})
    await ask(admin, "delete_Members", {"where": {"user": "ann"}})
    for number in range(20):
        asked = {"query": f"q{number}", "model": "Tasks", "where": {"board_id__lt": 100 + number}}
        assert (await ask(ann, "zLive", asked))["rows"] == []
    await served.stands()


def told(client: RawClient) -> list[dict[str, Any]]:
    """The broadcasts that came so far."""
    texts = [item.payload for item in client.received if isinstance(item, Frame) and item.opcode == Opcode.TEXT]
    return [message for message in map(json.loads, texts) if "zKey" in message]


@pytest_twisted.ensureDeferred
async def test_broadcasts_tell_members_of_their_rows_alone(served: Served):
    """Of what is created, changed and removed each hears what it may read, in the order in which it was done, and by
    the memberships that there are then."""
    admin = await served.client()
    ann, bob = [await served.client(token=served.tokens[name]) for name in ("ann", "bob")]
    await ask(admin, "create_Tasks", {"values": {"board_id": 3, "text": "of bob"}})
    await ask(admin, "create_Tasks", {"values": {"board_id": 1, "text": "of ann"}})
    await ask(admin, "update_Tasks", {"where": {"board_id__in": [1, 3]}, "values": {"text": "all"}})
    await ask(admin, "create_Members", {"values": {"board_id": 3, "user": "ann"}})
    await ask(admin, "create_Tasks", {"values": {"board_id": 3, "text": "of both"}})
    await ask(admin, "delete_Tasks", {"where": {"board_id": 1}})
    await ask(admin, "delete_Members", {"where": {"board_id": 3, "user": "bob"}})
    await ask(admin, "create_Tasks", {"values": {"board_id": 3, "text": "last"}})
    await wait_until(lambda: len(told(ann)) == 5, "what ann hears")
    assert [message["zKey"] for message in told(ann)] == [
        *("create_Tasks", "update_Tasks", "create_Tasks", "delete_Tasks", "create_Tasks")
    ]
    assert [message["result"]["text"] for message in told(ann) if message["zKey"] == "create_Tasks"] == [
        *("of ann", "of both", "last")
    ]
    (update,) = [message for message in told(ann) if message["zKey"] == "update_Tasks"]
    assert update["result"] == {"updated": 2} and [row["id"] for row in update["changes"]] == [1, 5]
    (delete,) = [message for message in told(ann) if message["zKey"] == "delete_Tasks"]
    assert delete["ids"] == [1, 5]
    await ask(bob, "ping", "to the end")
    assert [message["zKey"] for message in told(bob)] == ["create_Tasks", "update_Tasks", "create_Tasks"]
    assert [message["result"].get("text") for message in told(bob)] == ["of bob", None, "of both"]
    assert [row["id"] for row in told(bob)[1]["changes"]] == [3, 4]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_is_told_behind_a_membership_keeps_its_order(served: Served):
    """What has nothing to do with memberships waits for what has, and nobody waits for ever."""
    admin, other = await served.client(), await served.client()
    ann = await served.client(token=served.tokens["ann"])
    await ask(ann, "ping", 1)
    for number in range(10):
        admin.send_json({"zKey": "create_Tasks", "zHorizontal": {"values": {"board_id": 1, "text": str(number)}}})
        admin.send_json({"zKey": "create_Places", "zHorizontal": {"values": {"board_id": 1, "user": str(number)}}})
    await wait_until(lambda: len(told(other)) == 20, "all of it")
    await wait_until(lambda: len(told(ann)) == 10, "ann's part of it")
    assert sorted(message["result"]["text"] for message in told(ann)) == [str(number) for number in range(10)]
    await served.stands()


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("{board_id: {in: Members}}", "must be a value, or"),
        ("{board_id: {of: {model: Members}}}", "must be a value, or"),
        ("{board_id: {in: {model: Members, field: board_id}}}", "where must map"),
        ("{board_id: {in: {model: Members, where: {user: $name}}}}", "field must be a name"),
        ("{board_id: {in: {model: Members, field: board_id, were: {user: $name}}}}", "did you mean"),
        ("{board_id: {in: {model: Members, field: board_id, where: {user: $nam}}}}", "did you mean"),
        ("{board_id: {in: {model: M, field: b, where: {user: {in: {model: X, field: y, where: {z: 1}}}}}}}", "must be"),
    ],
)
def test_what_is_no_membership_is_named(rows: str, reason: str):
    """Where it stands, and the nearest word that is known."""
    with pytest.raises(ConfigError, match=reason):
        Policy.from_yaml(f"member: {{models: {{Tasks: {{actions: [read], rows: {rows}}}}}}}", "test")


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ("{board_id: {in: {model: Membrs, field: board_id, where: {user: $name}}}}", "did you mean"),
        ("{board_id: {in: {model: Members, field: board, where: {user: $name}}}}", "no field"),
        ("{board_id: {in: {model: Members, field: user, where: {user: $name}}}}", "of type"),
        ("{board_id: {in: {model: Members, field: board_id, where: {usr: $name}}}}", "where: .*no field"),
        ("{board_id: {in: {model: Members, field: board_id, where: {board_id: $name}}}}", "where: .*whole number"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_membership_that_the_schema_does_not_have_ends_the_start(tmp_path: Path, rows: str, reason: str):
    """It would look like a right and be none."""
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    policy = f"member: {{models: {{Tasks: {{actions: [read], rows: {rows}}}}}}}"
    with pytest.raises(ConfigError, match=reason):
        Served(tmp_path, policy=policy, config={"schemas": (tmp_path / "schema.yaml",)})
    await wait_until(lambda: True, "nothing")
