"""CRUD commands: what a client may send, and that nothing it sends reaches the database but values."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rows import rows_of_a_test
from twisted.internet import reactor

from zcomm.auth.policy import AllowAll, Policy
from zcomm.budget.budgets import Budgets
from zcomm.commands.crud import StoreCrud, audience_of
from zcomm.config import Limits
from zcomm.data.schema import demo_schema, load_schema
from zcomm.data.store import Store
from zcomm.errors import CommandError, Invalid, PermissionDenied
from zcomm.interfaces import Audience, Identity, Outcome, Request
from zcomm.runtime.workers import Workers

POLICY = """
admin:
  models: {"*": "*"}
guest:
  models:
    Users: [read]
writer:
  models:
    Users: [create]
"""
EXTRA = """
Vault:
  id:      {type: int, pk: true}
  label:   {type: str, unique: true}
  level:   {type: int, readonly: true, default: 1}
  api_key: {type: str, hidden: true, default: top-secret}
"""
SCHEMA = demo_schema().merge(load_schema(EXTRA))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """A store with three users and a model that has secrets."""
    workers = Workers(3, name="test-crud", reactor=reactor)
    workers.start()
    budgets = Budgets.on(reactor, Limits())
    made = Store(f"sqlite:///{tmp_path}/crud.sqlite3", SCHEMA, workers, row_cap=50, budgets=budgets)
    pytest_twisted.blockon(made.start())
    for name in ("Ann", "Bob", "Cid"):
        pytest_twisted.blockon(made.create(0, "Users", {"name": name, "email": f"{name.lower()}@example.com"}))
    pytest_twisted.blockon(made.create(0, "Vault", {"label": "first"}))
    yield made
    pytest_twisted.blockon(made.stop())
    pytest_twisted.blockon(workers.stop())


@pytest.fixture
def crud(store: Store) -> StoreCrud:
    """Everybody may do everything."""
    return StoreCrud(store, AllowAll())


@pytest.fixture
def guarded(store: Store) -> StoreCrud:
    """Under a policy."""
    return StoreCrud(store, Policy.from_yaml(POLICY, "policy.yaml"))


async def ask(crud: StoreCrud, caller: Any, key: str, **horizontal: Any) -> Outcome:
    return await crud.respond(Request(key, horizontal, 1), caller)


async def refusal(crud: StoreCrud, caller: Any, key: str, horizontal: Any) -> CommandError:
    """What the command fails with; the failing is part of the check, and so is that nothing changed."""
    before = await crud._store.read("look", "Users"), await crud._store.read("look", "Vault")
    with pytest.raises(CommandError) as caught:
        await crud.respond(Request(key, horizontal, 1), caller)
    assert (await crud._store.read("look", "Users"), await crud._store.read("look", "Vault")) == before
    text = str(caught.value) + repr(caught.value.fields)
    assert len(text) < 1500
    for leak in ('SELECT "', "INSERT INTO", "UNIQUE constraint", "sqlite3", "Traceback", "top-secret"):
        assert leak not in text
    return caught.value


@pytest_twisted.ensureDeferred
async def test_guide(crud, caller):
    """The guide's CRUD examples, as their messages."""
    user = (
        await ask(
            crud,
            caller,
            "create_Users",
            action="create",
            model="Users",
            values={"name": "Alice", "email": "alice@example.com"},
        )
    ).result
    assert user["id"] == 4
    assert user["active"] is True
    found = await ask(
        crud, caller, "read_Users", action="read", model="Users", where={"active": True, "age__gte": 18}, limit=10
    )
    assert found.result == []
    found = await ask(
        crud,
        caller,
        "read_Users",
        action="read",
        model="Users",
        where={"role": "admin"},
        fields=["id", "name", "email"],
        order_by="created_at DESC",
        limit=10,
        offset=20,
    )
    assert found.result == []
    done = await ask(
        crud,
        caller,
        "update_Users",
        action="update",
        model="Users",
        where={"id": user["id"]},
        values={"verified": True},
    )
    assert done.result == {"updated": 1}
    done = await ask(crud, caller, "update_Users", action="update", model="Users", where=123, values={"verified": True})
    assert done.result == {"updated": 0}
    done = await ask(
        crud,
        caller,
        "update_Users",
        action="update",
        model="Users",
        where={"email": "alice@example.com"},
        values={"last_login": "2024-10-15"},
    )
    assert done.result == {"updated": 1}
    done = await ask(crud, caller, "delete_Users", action="delete", model="Users", where={"inactive": True})
    assert done.result == {"deleted": 0}
    row = (
        await ask(
            crud,
            caller,
            "upsert_Users",
            action="upsert",
            model="Users",
            conflict_fields=["email"],
            values={"email": "alice@example.com", "name": "Alicia", "role": "user"},
        )
    ).result
    assert (row["id"], row["name"], row["last_login"]) == (user["id"], "Alicia", "2024-10-15T00:00:00Z")
    done = await ask(crud, caller, "delete_Users", action="delete", model="Users", where=user["id"])
    assert done.result == {"deleted": 1}
    note = await ask(
        crud,
        caller,
        "create_Messages",
        action="create",
        model="Messages",
        values={"text": "Message 0", "timestamp": "2024-10-15T08:30:00.000Z"},
    )
    assert note.result == {"id": 1, "text": "Message 0", "timestamp": "2024-10-15T08:30:00Z"}


@pytest_twisted.ensureDeferred
async def test_key_alone(crud, caller):
    """A message without zHorizontal has the key in its place, which names action and model."""
    outcome = await crud.respond(Request("read_Users", "read_Users"), caller)
    assert [row["name"] for row in outcome.result] == ["Ann", "Bob", "Cid"]


@pytest_twisted.ensureDeferred
async def test_announcement(guarded, caller):
    """What changed something is announced, to those who may read the model; what did not, is not."""
    guest, nobody = Identity("g", "guest"), Identity("n", "nobody")
    rights = Policy.from_yaml(POLICY, "policy.yaml")
    changes = [
        ("create_Users", {"values": {"name": "Dan"}}, True),
        ("read_Users", {}, False),
        ("update_Users", {"where": 1, "values": {"age": 5}}, True),
        ("update_Users", {"where": 99, "values": {"age": 5}}, False),
        ("upsert_Users", {"values": {"name": "Eve", "email": "eve@example.com"}}, True),
        ("delete_Users", {"where": {"id": []}}, False),
        ("delete_Users", {"where": "1"}, True),
        ("delete_Users", {"where": 1}, False),
        ("delete_Vault", {"all": True}, True),
    ]
    for key, horizontal, changed in changes:
        outcome = await ask(guarded, caller, key, **horizontal)
        assert (key, outcome.changed) == (key, changed)
        assert outcome.audience.admits(caller.identity, rights)
        assert outcome.audience.admits(guest, rights) is key.endswith("Users")
        assert not outcome.audience.admits(nobody, rights)


@pytest.mark.parametrize(
    ("action", "result", "row"),
    [
        ("update", {"updated": 3}, None),
        ("delete", {"deleted": 0}, None),
        ("update", 3, None),
        ("delete", True, None),
        ("update", None, None),
        ("update", {"id": 1, "owner": "ann"}, {"id": 1, "owner": "ann"}),
        ("update", {"updated": {"owner": "ann"}}, {}),
        ("update", {"updated": "ann"}, {"updated": "ann"}),
        ("update", {"deleted": 1}, {"deleted": 1}),
        ("delete", [{"id": 1, "owner": "ann"}], {}),
        ("delete", "ann", {}),
        ("create", {"id": 1, "at": [1], "on": date(2024, 10, 15), "is": True}, {"id": 1, "is": True}),
        ("create", {"id": 1, 2: 3}, {}),
        ("create", {"id": 1, "far": math.inf}, {}),
        ("create", {"id": 2**64}, {}),
        ("read", [{"owner": "ann"}], {}),
        ("read", 5, {}),
    ],
)
def test_the_rows_that_a_result_tells_of(action: str, result: Any, row: dict[str, Any] | None):
    """None where it is no more than a number; a host may answer with the row, or with more than can be told apart."""
    assert audience_of(action, "Notes", result) == Audience("model", "Notes", row)


@pytest.mark.parametrize(
    ("key", "matches"),
    [
        ("create_Users", True),
        ("read_", False),
        ("read_x y", True),
        ("reads_Users", False),
        ("READ_Users", False),
        ("", False),
        ("upsert_Users\n", True),
        ("zFunc", False),
        ("ping", False),
    ],
)
def test_keys(crud, key, matches):
    """CRUD keys are known by their form alone."""
    assert crud.matches(key) is matches


UNFILTERED = "Refusing unfiltered"
BAD = [
    # the form of the request
    ("read_Users", {"action": "delete"}, "invalid", "zKey does not match action"),
    ("read_Users", {"model": "Vault"}, "invalid", "zKey does not match model"),
    ("read_Users", {"action": ["read"]}, "invalid", "zKey does not match action"),
    ("read_Users", "x", "invalid", "must be an object"),
    ("read_Users", None, "invalid", "must be an object"),
    ("read_Users", [], "invalid", "must be an object"),
    ("read_Users", 5, "invalid", "must be an object"),
    ("read_Users", {"_schema_cached": {"Data_Path": "/tmp/x"}}, "invalid", '"_schema_cached"'),
    ("read_Users", {"options": {}}, "invalid", 'Unknown key "options"'),
    ("read_Users", {"wehre": {}}, "invalid", 'did you mean "where"'),
    ("read_Users", {"__proto__": {}}, "invalid", "Unknown key"),
    ("read_Users", {"where": {"id": 1}, "filters": {"id": 1}}, "invalid", "not both"),
    ("read_Users", {"values": {}}, "invalid", "values has no meaning for read"),
    ("delete_Users", {"where": {"id": 1}, "limit": 1}, "invalid", "limit has no meaning for delete"),
    ("read_Users", {"_idempotencyKey": "k"}, "invalid", "no meaning for read"),
    ("create_Users", {"values": {"name": "x"}, "_idempotencyKey": 5}, "invalid", "_idempotencyKey"),
    ("create_Users", {"values": {"name": "x"}, "_idempotencyKey": "k" * 129}, "invalid", "_idempotencyKey"),
    ("nonsense", {}, "unknown_command", "Unknown command"),
    # models
    *(
        (f"read_{model}", {}, "unknown_model", "There is no model")
        for model in (
            "Users; DROP TABLE Users;--",
            "Users u, secrets",
            "pg_catalog.pg_authid",
            '"Users"',
            "Us\u0435rs",
            "x" * 64,
            "@.zCloud.schemas.zUsers",
            "zcomm_idempotency",
            "sqlite_master",
            "users",
            "\n",
        )
    ),
    # fields
    ("read_Users", {"fields": ["id", "(SELECT api_key FROM zUsers LIMIT 1)"]}, "unknown_field", "no field"),
    ("read_Users", {"fields": ["pg_sleep(10)"]}, "unknown_field", "no field"),
    ("read_Users", {"fields": ["*", "id"]}, "unknown_field", "no field"),
    ("read_Users", {"fields": ["nmae"]}, "unknown_field", 'did you mean "name"'),
    ("read_Users", {"fields": ["id", "id"]}, "invalid", "twice"),
    ("read_Users", {"fields": []}, "invalid", "fields must be a list"),
    ("read_Users", {"fields": "id"}, "invalid", "fields must be a list"),
    ("read_Users", {"fields": [None]}, "unknown_field", "no field"),
    ("read_Users", {"fields": ["id"] + [f"f{n}" for n in range(100_000)]}, "unknown_field", "no field"),
    ("read_Vault", {"fields": ["api_key"]}, "unknown_field", "no field"),
    ("read_Vault", {"where": {"api_key__startswith": "t"}}, "unknown_field", "no field"),
    ("read_Vault", {"order_by": "api_key"}, "unknown_field", "no field"),
    # order
    *(
        ("read_Users", {"order_by": order}, "invalid", "order_by")
        for order in (
            "id; DROP TABLE Users",
            "(CASE WHEN 1=1 THEN id END)",
            "1",
            "pg_sleep(5)",
            {"id": "DESC; --"},
            {"id": "DESC"},
            ["id; --"],
            5,
            "id,id,id,id,id,id,id,id,id",
        )
    ),
    # where
    ("read_Users", {"where": {"1=1 OR id": 1}}, "unknown_field", "no field"),
    ("read_Users", {"where": {"id) OR (1=1": 1}}, "unknown_field", "no field"),
    ("read_Users", {"where": {"id--": 1}}, "unknown_field", "no field"),
    ("read_Users", {"where": {"age__evil": 1}}, "unknown_field", "no operator"),
    ("read_Users", {"where": {"a__b__c": 1}}, "unknown_field", "no field"),
    ("read_Users", {"where": {"$or": 1}}, "invalid", "$or must be a list"),
    ("read_Users", {"where": "1=1"}, "invalid", "id must be a whole number"),
    # update and delete without a filter
    *(
        (f"{action}_Users", {**({"values": {"age": 5}} if action == "update" else {}), **where}, "invalid", UNFILTERED)
        for action in ("update", "delete")
        for where in (
            {},
            {"where": {}},
            {"where": None},
            {"filters": {}},
            {"where": {"$and": []}},
            {"all": False},
            {"where": {"$not": {"id": []}}},
            {"where": {"$or": [{"id": 1}, {}]}},
        )
    ),
    ("delete_Users", {"where": {"id": 1}, "all": True}, "invalid", "not both"),
    ("delete_Users", {"all": "yes"}, "invalid", "all must be true or false"),
    ("delete_Users", {"all": 1}, "invalid", "all must be true or false"),
    ("delete_Users", {"where": True}, "invalid", "where must be"),
    # limit and offset
    *(
        ("read_Users", {name: value}, "invalid", f"{name} must be a whole number from 0")
        for name in ("limit", "offset")
        for value in ("10; DROP", -1, 1e309, True, "5", 10**12, 1.0, [], {})
    ),
    ("read_Users", {"limit": 51}, "invalid", "from 0 to 50"),
    # values
    ("create_Users", {}, "invalid", "values must be an object"),
    ("create_Users", {"values": [{"name": "x"}]}, "invalid", "values must be an object"),
    ("create_Users", {"values": {}}, "invalid", "name is required"),
    ("create_Users", {"values": {"name": None}}, "invalid", "name is required"),
    ("create_Users", {"values": {"name": "x", "name = 'x', role": "y"}}, "unknown_field", "no field"),
    ("create_Users", {"values": {"name": "x", "id": 1}}, "invalid", "id is made by the database; leave it out"),
    ("upsert_Users", {"values": {"name": "x", "id": 1}, "conflict_fields": ["id"]}, "invalid", "id is made by"),
    ("upsert_Users", {"values": {"name": "x"}, "conflict_fields": ["id"]}, "invalid", "name a unique field: email"),
    ("update_Users", {"where": 1, "values": {"id": 9}}, "invalid", "Users.id cannot be changed"),
    ("update_Users", {"where": 1, "values": {}}, "invalid", "values is empty"),
    ("create_Vault", {"values": {"level": 9}}, "permission_denied", "Vault.level"),
    ("update_Vault", {"where": 1, "values": {"level": 9}}, "permission_denied", "Vault.level"),
    ("create_Vault", {"values": {"api_key": "mine"}}, "unknown_field", "no field"),
    ("update_Vault", {"where": 1, "values": {"api_key": "mine"}}, "unknown_field", "no field"),
    ("create_Users", {"values": {"name": "a\u0000b"}}, "invalid", "NUL"),
    ("create_Users", {"values": {"name": "\ud800"}}, "invalid", "Unicode"),
    ("create_Users", {"values": {"name": "x", "age": 2**70}}, "invalid", "64 bits"),
    ("create_Users", {"values": {"name": "x", "age": "5"}}, "invalid", "age must be a whole number"),
    ("create_Users", {"values": {"name": "x", "age": -1}}, "invalid", "age must be at least 0"),
    ("create_Users", {"values": {"name": {"a": 1}}}, "invalid", "name must be a string"),
    ("create_Users", {"values": {"name": "x" * 10_000_000}}, "invalid", "at most 200 characters"),
    ("create_Users", {"values": {"name": "x", "active": "yes"}}, "invalid", "active must be true or false"),
    ("create_Users", {"values": {"name": "x", "email": "x"}}, "invalid", "email must be an e-mail address"),
    ("create_Users", {"values": {"name": "x", "last_login": float("nan")}}, "invalid", "last_login must be"),
    ("create_Users", {"values": {"name": "x", "email": "ann@example.com"}}, "conflict", "email already exists"),
    ("update_Users", {"where": {"id__gt": 1}, "values": {"email": "ann@example.com"}}, "conflict", "email already"),
    # upsert
    *(
        ("upsert_Users", {"values": {"name": "x", "email": "x@y.zz"}, "conflict_fields": fields}, code, "")
        for fields, code in (
            (["email) DO UPDATE SET role='admin'--"], "unknown_field"),
            ("email", "invalid"),
            ([], "invalid"),
            (["name"], "invalid"),
            (["email", "email"], "invalid"),
            (["email", "name"], "invalid"),
            ([["email"]], "unknown_field"),
            ({}, "invalid"),
        )
    ),
    ("upsert_Users", {"values": {"name": "x"}}, "invalid", "conflict_fields is needed"),
    ("upsert_Users", {"values": {"name": "x"}, "conflict_fields": ["email"]}, "invalid", "email is required"),
    ("upsert_Users", {"values": {"email": "x@y.zz"}, "conflict_fields": ["email"]}, "invalid", "name is required"),
]


@pytest_twisted.ensureDeferred
async def test_bad_input(crud, caller):
    """Bad input gets its error and changes nothing."""
    with rows_of_a_test() as row:
        for number, (key, horizontal, code, says) in enumerate(BAD):
            with row(f"{number} {key} {str(horizontal)[:60]}"):
                error = await refusal(crud, caller, key, horizontal)
                assert error.code == code
                assert says in str(error)


@pytest_twisted.ensureDeferred
async def test_all_mistakes_at_once(crud, caller):
    """Everything that is wrong with the values is told by field, not the first thing only."""
    error = await refusal(crud, caller, "create_Users", {"values": {"name": 5, "email": "x", "age": -1}})
    assert error.fields == {
        "name": "must be a string",
        "email": "must be an e-mail address",
        "age": "must be at least 0",
    }


@pytest.mark.parametrize(
    "text", ["'; DROP TABLE Users; --", '"', "\\", "%s %(x)s ? :a $1 {0}", "\u202e\U0001f600", "é\u0301"]
)
@pytest_twisted.ensureDeferred
async def test_values_are_stored_as_they_are(crud, caller, text):
    """Whatever looks like SQL in a value is a value: it comes back as it was, and finds itself."""
    made = await ask(crud, caller, "create_Users", values={"name": text})
    for operator in ("", "__contains", "__startswith", "__endswith", "__in"):
        wanted = [text] if operator == "__in" else text
        found = await ask(crud, caller, "read_Users", where={"name" + operator: wanted})
        assert found.result == [made.result]


@pytest.mark.parametrize("fields", ["*", ["*"], None])
@pytest_twisted.ensureDeferred
async def test_hidden_is_never_returned(crud, caller, fields):
    """A star stands for the fields that clients may see; no write brings the others back either."""
    rows = (await ask(crud, caller, "read_Vault", fields=fields)).result
    assert rows == [{"id": 1, "label": "first", "level": 1}]
    made = await ask(crud, caller, "create_Vault", values={"label": "second"})
    again = await ask(crud, caller, "upsert_Vault", values={"label": "second"})
    assert made.result == again.result == {"id": 2, "label": "second", "level": 1}


@pytest.mark.parametrize(
    ("limit", "offset", "names"),
    [
        (0, 0, []),
        (1, 0, ["Ann"]),
        (2, 1, ["Bob", "Cid"]),
        (50, 0, ["Ann", "Bob", "Cid"]),
        (None, 2, ["Cid"]),
        (None, 1_000_000, []),
    ],
)
@pytest_twisted.ensureDeferred
async def test_pages(crud, caller, limit, offset, names):
    """Limits and offsets within their range."""
    rows = (await ask(crud, caller, "read_Users", limit=limit, offset=offset)).result
    assert [row["name"] for row in rows] == names


@pytest_twisted.ensureDeferred
async def test_row_cap(crud, caller):
    """A read that would pass the cap fails and says so; nothing is cut in silence."""
    for number in range(47):
        await ask(crud, caller, "create_Users", values={"name": f"n{number}"})
    assert len((await ask(crud, caller, "read_Users")).result) == 50
    await ask(crud, caller, "create_Users", values={"name": "one too many"})
    error = await refusal_of_read(crud, caller)
    assert error.code == "invalid"
    assert "More than 50 rows" in str(error)
    assert len((await ask(crud, caller, "read_Users", limit=50)).result) == 50
    assert len((await ask(crud, caller, "read_Users", where={"name": "Ann"})).result) == 1


async def refusal_of_read(crud: StoreCrud, caller: Any) -> CommandError:
    with pytest.raises(Invalid) as caught:
        await ask(crud, caller, "read_Users")
    return caught.value


@pytest_twisted.ensureDeferred
async def test_all(crud, caller):
    """Every row is reached only by saying so."""
    done = await ask(crud, caller, "update_Users", all=True, values={"age": 30})
    assert (done.result, done.changed) == ({"updated": 3}, True)
    done = await ask(crud, caller, "delete_Users", all=True)
    assert (done.result, done.changed) == ({"deleted": 3}, True)
    assert (await ask(crud, caller, "read_Users")).result == []


@pytest_twisted.ensureDeferred
async def test_permissions(guarded, caller, guest):
    """Rights are checked for each command; upsert needs those of create and of update."""
    assert len((await ask(guarded, guest, "read_Users")).result) == 3
    for key in ("create_Users", "update_Users", "delete_Users", "upsert_Users", "read_Vault", "create_Vault"):
        error = await refusal(guarded, guest, key, {})
        assert isinstance(error, PermissionDenied)
    caller.identity = Identity("w", "writer")
    error = await refusal(guarded, caller, "upsert_Users", {"values": {"name": "x", "email": "x@y.zz"}})
    assert isinstance(error, PermissionDenied)
    assert (await ask(guarded, caller, "create_Users", values={"name": "x"})).changed


@pytest_twisted.ensureDeferred
async def test_existence_is_not_revealed(guarded, guest):
    """Who has no rights hears the same of a model that exists and of one that does not."""
    texts = {str(await refusal(guarded, guest, f"read_{model}", {})) for model in ("Vault", "Vaults", "Nothing")}
    assert texts == {"Permission denied"}


@pytest_twisted.ensureDeferred
async def test_idempotency_keys_are_by_identity(crud, caller, guest):
    """A repeated write is made and announced once; another user's key of the same text is another key."""
    request = {"values": {"name": "Once"}, "_idempotencyKey": "k-1"}
    first, second = [await ask(crud, caller, "create_Users", **request) for _ in range(2)]
    assert (first.changed, second.changed) == (True, False)
    assert first.result == second.result
    other = await ask(crud, guest, "create_Users", **request)
    assert other.changed
    assert other.result["id"] != first.result["id"]


REFERENCES = """
writer:
  models:
    Teams: {actions: [read], rows: {owner: $name}}
    Members: "*"
blind:
  models:
    Members: "*"
"""


@pytest_twisted.ensureDeferred
async def test_b19_a_policy_says_what_may_be_pointed_to(caller, tmp_path: Path):
    """The rows of the other model that it grants to read; of one that it does not, none."""
    workers = Workers(3, name="test-references", reactor=reactor)
    workers.start()
    fields = "{id: {type: int, pk: true}, owner: str}"
    schema = load_schema(
        f"Teams: {fields}\nMembers: {{id: {{type: int, pk: true}}, team: {{type: int, fk: Teams.id}}}}"
    )
    store = Store(f"sqlite:///{tmp_path}/references.sqlite3", schema, workers, budgets=Budgets.on(reactor, Limits()))
    await store.start()
    crud = StoreCrud(store, Policy.from_yaml(REFERENCES, "policy.yaml"))
    for owner in ("ann", "bob"):
        await store.create(0, "Teams", {"owner": owner})
    answers = {}
    for role in ("writer", "blind"):
        for team in (1, 2, 3, None):
            request = Request("create_Members", {"values": {"team": team}}, 1)
            try:
                outcome = await crud.respond(request, replace(caller, identity=Identity("ann", role)))
                answers[role, team] = outcome.result["team"]
            except CommandError as error:
                answers[role, team] = str(error)
    missing = "team points to a row that does not exist"
    assert answers == {
        ("writer", 1): 1,
        ("writer", 2): missing,
        ("writer", 3): missing,
        ("writer", None): None,
        ("blind", 1): missing,
        ("blind", 2): missing,
        ("blind", 3): missing,
        ("blind", None): None,
    }
    await store.stop()
    await workers.stop()
