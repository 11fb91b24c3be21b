"""Catalogue case A15: one user's rows, another's, and what each hears of."""

from __future__ import annotations

import pytest_twisted
from support.served import Served, serving

policed = serving("policed", policy=True)


@pytest_twisted.ensureDeferred
async def test_a15_nobody_reads_or_writes_the_rows_of_others(policed: Served):
    """Filters, ids and "all" lead to one's own rows; a new row is one's own."""
    admin = await policed.client(token=policed.tokens["admin"])
    ann = await policed.client(token=policed.store.add("ann", "member").token)
    bob = await policed.client(token=policed.store.add("bob", "member").token)
    theirs = (await bob.call("create_Users", {"values": {"name": "bob", "email": "b@example.com"}}))["result"]
    mine = (
        await ann.call(
            "upsert_Users", {"values": {"name": "ann", "email": "a@example.com"}, "conflict_fields": ["email"]}
        )
    )["result"]
    assert mine["name"] == "ann"
    for where in ({}, {"id": theirs["id"]}, {"$or": [{"name": "bob"}, {"name": "ann"}]}, {"name__ne": "ann"}):
        found = (await ann.call("read_Users", {"where": where}))["result"]
        assert all(row["name"] == "ann" for row in found)
    assert (await ann.call("update_Users", {"where": theirs["id"], "values": {"age": 5}}))["result"] == {"updated": 0}
    assert (await ann.call("delete_Users", {"where": {"email": "b@example.com"}}))["result"] == {"deleted": 0}
    for values in ({"name": "bob", "email": "x@example.com"}, {"name": "carl", "email": "x@example.com"}):
        reply = await ann.call("create_Users", {"values": values})
        assert reply["code"] == "permission_denied" and reply["fields"] == {"name": "cannot have this value"}
    reply = await ann.call("update_Users", {"where": mine["id"], "values": {"name": "bob"}})
    assert reply["code"] == "permission_denied"
    reply = await ann.call(
        "upsert_Users", {"values": {"email": "b@example.com", "age": 9}, "conflict_fields": ["email"]}
    )
    assert reply["code"] == "permission_denied" and "fields" not in reply
    assert (await ann.call("delete_Users", {"all": True}))["result"] == {"deleted": 1}
    assert (await admin.call("read_Users", {}))["result"] == [theirs]
    await admin.call("delete_Users", {"all": True})
    await policed.stands()


@pytest_twisted.ensureDeferred
async def test_a16_a_row_is_broadcast_to_those_who_reach_it(policed: Served):
    """So is what was set in it, and that it was removed; who does not reach it hears nothing of all that."""
    admin = await policed.client(token=policed.tokens["admin"])
    guest = await policed.client(token=policed.tokens["guest"])
    ann = await policed.client(token=policed.store.add("ann", "member").token)
    bob = await policed.client(token=policed.store.add("bob", "member").token)
    row = (await admin.call("create_Users", {"values": {"name": "ann", "email": "a@example.com"}}))["result"]
    assert (await ann.next_json())["result"] == row
    assert (await guest.next_json())["result"] == row
    await admin.call("update_Users", {"where": row["id"], "values": {"age": 40}})
    told = {"zKey": "update_Users", "result": {"updated": 1}, "changes": [{"id": row["id"], "values": {"age": 40}}]}
    assert await ann.next_json() == await guest.next_json() == told
    assert (await ann.call("delete_Users", {"where": row["id"]}))["result"] == {"deleted": 1}
    told = {"zKey": "delete_Users", "result": {"deleted": 1}, "ids": [row["id"]]}
    assert await admin.next_json() == await guest.next_json() == told
    # The first that Bob hears of.
    mine = {"name": "bob", "email": "b@example.com"}
    made = (await admin.call("create_Users", {"values": mine}))["result"]
    assert await bob.next_json() == {"zKey": "create_Users", "result": made}
    await admin.call("delete_Users", {"all": True})
    assert (await bob.next_json())["ids"] == [made["id"]]
    await policed.stands()


@pytest_twisted.ensureDeferred
async def test_b28_what_one_may_not_use_is_as_if_it_were_not_there(policed: Served):
    """Models, functions, pages, files and commands, of whatever form: one answer, to the letter, and the same to a role
    that the policy does not name."""

    @policed.bifrost.command("wipeAll")
    def wipe() -> str:
        return "done"

    for role in ("blind", "unnamed"):
        client = await policed.client(token=policed.store.add(f"{role}-one", role).token)
        for there, missing in (
            (("read_Users", {}), ("read_Nobody", {})),
            (("read_Users", {"where": {"nme": 1}}), ("read_Nobody", {"where": {"nme": 1}})),
            (("create_Users", {"values": {}}), ("create_Nobody", {"values": {}})),
            (
                ("upsert_Users", {"values": {"id": 1}, "conflict_fields": ["x"]}),
                ("upsert_Nobody", {"values": {"id": 1}, "conflict_fields": ["x"]}),
            ),
            (("zFunc", "zFunc(echo, 1)"), ("zFunc", "zFunc(ecko, 1)")),
            (
                ("zFunc", {"name": "echo", "kwargs": {"client": 1}}),
                ("zFunc", {"name": "ecko", "kwargs": {"client": 1}}),
            ),
            (("zLink", "zLink(/admin/users)"), ("zLink", "zLink(/admin/user)")),
            (("zOpen", "zOpen(config.yaml)"), ("zOpen", "zOpen(confog.yaml)")),
            (("zOpen", {"name": "config.yaml"}), ("zOpen", {"name": "confog/yaml"})),
            (("wipeAll", None), ("wipeAl", None)),
            (("zAnswer", {"askId": "0123456789abcdef", "value": 1}), ("zAnswer", {"askId": "x", "value": 1})),
        ):
            answers = [await client.call(*each) for each in (there, missing)]
            for answer in answers:
                del answer["_requestId"]
            assert answers[0] == answers[1] and "error" in answers[0], (there, answers)
            assert there[0] == "zAnswer" or answers[0] == {
                "error": "Permission denied",
                "code": "permission_denied",
                "retryable": False,
            }
        described = (await client.call("zDescribe"))["result"]
        assert (described["models"], described["functions"], described["pages"]) == ({}, {}, {})
    await policed.stands()
