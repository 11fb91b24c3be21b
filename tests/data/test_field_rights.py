"""Rights by field, on both databases: what is hidden is not there, whatever is asked, and what is read-only stays."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import rows_of_a_test
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import blockingCallFromThread, deferToThread

from zcomm.auth.policy import Policy
from zcomm.bifrost.messages import encode_error, encode_reply
from zcomm.commands.crud import StoreCrud
from zcomm.data.row_security import validate_grant
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import CommandError, Conflict, Invalid, PermissionDenied, UnknownField
from zcomm.interfaces import FieldRights, Identity, Outcome, Request

SCHEMA = load_schema("""
Badges:
  id:    {type: str, pk: true}
  code:  {type: str, unique: true}
  label: {type: str, default: plain}
Employees:
  _model: {unique: [[name, office], [salary, office]]}
  id:     {type: str, pk: true}
  name:   {type: str, required: true, unique: true}
  office: {type: int, default: 1}
  role:   {type: str, default: staff, rules: {pattern: "[a-z]+"}}
  salary: {type: int, default: 1000}
  secret: {type: str, unique: true}
  owner:  str
  badge:  {type: str, fk: Badges.code}
  notes:  json
Tickets:
  id:     {type: int, pk: true}
  about:  {type: str, fk: Employees.secret}
  text:   str
""")
POLICY = """
boss: {models: "*"}
clerk:
  models:
    "*": [read, create, update, delete]
    Employees: {actions: "*", fields: {hide: [salary, secret], readonly: [role]}}
reader:
  models:
    Employees: {actions: [read], fields: {hide: [salary, secret, role, name, office, owner, badge, notes]}}
owner:
  models:
    Badges: [read]
    Employees: {actions: "*", rows: {owner: $name}, fields: {hide: [owner, secret], readonly: [office]}}
keyed:
  models:
    Badges: {actions: "*", fields: {hide: [code]}}
    Employees: "*"
"""


class Crud:
    """The commands on a store as its clients have them, and what they get."""

    def __init__(self, store: Store, policy: str = POLICY):
        self.store = store
        self.permissions = Policy.from_yaml(policy, "policy")
        self.crud = StoreCrud(store, self.permissions)

    async def ask(self, role: str, key: str, name: str = "ann", **horizontal: Any) -> Outcome:
        client: Any = SimpleNamespace(identity=Identity(name, role), id=1, peer="127.0.0.1")
        return await self.crud.respond(Request(key, horizontal, 1), client)

    async def result(self, role: str, key: str, name: str = "ann", **horizontal: Any) -> Any:
        result = (await self.ask(role, key, name, **horizontal)).result
        return json.loads(encode_reply(None, result))["result"]

    async def told(self, role: str, key: str, **horizontal: Any) -> bytes:
        """What the client gets, to the byte."""
        try:
            return encode_reply(1, (await self.ask(role, key, **horizontal)).result)
        except CommandError as error:
            assert error.code != "internal", error
            return encode_error(1, error)


@pytest.fixture
def crud(store: Store) -> Crud:
    return Crud(store)


@pytest.fixture
def schema() -> Any:
    return SCHEMA


async def hire(crud: Crud) -> None:
    await crud.store.create(1, "Badges", {"id": "b1", "code": "gold"})
    await crud.store.create(1, "Badges", {"id": "b2", "code": "tin"})
    for name, salary in (("ann", 5000), ("bob", 4000)):
        values = {"id": name, "name": name, "salary": salary, "secret": f"{name}s-secret", "owner": name}
        await crud.store.create(1, "Employees", {**values, "badge": "gold", "office": salary // 1000})


#: What the clerk sees of Ann.
ANN = {"id": "ann", "name": "ann", "office": 5, "role": "staff", "owner": "ann", "badge": "gold", "notes": None}


@pytest_twisted.ensureDeferred
async def test_hidden_fields_are_in_no_answer(crud: Crud):
    """Reads, creates, updates and upserts: as if they were not there, while others see them."""
    await hire(crud)
    for fields in (None, "*", ["*"]):
        rows = await crud.result("clerk", "read_Employees", where="ann", fields=fields)
        assert rows == [ANN] and list(rows[0]) == list(ANN)
    assert (await crud.result("boss", "read_Employees", where="ann"))[0]["salary"] == 5000
    assert await crud.result("reader", "read_Employees") == [{"id": "ann"}, {"id": "bob"}]
    made = await crud.result("clerk", "create_Employees", values={"id": "cid", "name": "cid"})
    again = await crud.result("clerk", "upsert_Employees", values={"id": "cid", "name": "cid"}, conflict_fields=["id"])
    assert made == again and made.keys() == ANN.keys()
    assert await crud.result("clerk", "update_Employees", where="ann", values={"office": 3}) == {"updated": 1}
    found = await crud.result("boss", "read_Employees", where={"id__in": ["ann", "cid"]}, order_by="id")
    assert [(row["salary"], row["office"]) for row in found] == [(5000, 3), (1000, 1)]


#: Every place in which a command can name a field.
PLACES: list[tuple[str, Callable[[str], dict[str, Any]]]] = [
    ("read", lambda name: {"fields": [name]}),
    ("read", lambda name: {"fields": ["id", name]}),
    ("read", lambda name: {"order_by": name}),
    ("read", lambda name: {"order_by": [f"{name} desc"]}),
    ("read", lambda name: {"where": {name: 5000}}),
    ("read", lambda name: {"where": {f"{name}__gte": 5000}}),
    ("read", lambda name: {"where": {f"{name}__wrong": 5000}}),
    ("read", lambda name: {"where": {"$or": [{"id": "ann"}, {"$not": {f"{name}__in": [1, 5000]}}]}}),
    ("read", lambda name: {"filters": {f"{name}__isnull": False}}),
    ("create", lambda name: {"values": {"id": "x", "name": "x", name: 1}}),
    ("create", lambda name: {"values": {name: {"bad": "value"}}}),
    ("update", lambda name: {"where": "ann", "values": {name: 1}}),
    ("update", lambda name: {"where": {f"{name}__lt": 1}, "values": {"office": 1}}),
    ("delete", lambda name: {"where": {name: 5000}}),
    ("upsert", lambda name: {"values": {"id": "ann", "name": "ann", name: 1}}),
    ("upsert", lambda name: {"values": {"id": "ann", "name": "ann"}, "conflict_fields": [name]}),
    ("upsert", lambda name: {"values": {"id": "ann", "name": "ann"}, "conflict_fields": [name, "office"]}),
]


@pytest_twisted.ensureDeferred
async def test_i23_a_hidden_field_is_one_that_does_not_exist(crud: Crud):
    """Wherever it is named the answer is letter by letter that for a name which nothing has, and nothing is done."""
    await hire(crud)
    before = await crud.store.read(1, "Employees", order_by="id")
    with rows_of_a_test() as row:
        for action, horizontal in PLACES:
            for name in ("salary", "secret"):
                with row(f"{action} {horizontal(name)}"):
                    told = await crud.told("clerk", f"{action}_Employees", **horizontal(name))
                    unknown = await crud.told("clerk", f"{action}_Employees", **horizontal("zzzzzz"))
                    assert json.loads(told)["code"] == "unknown_field"
                    assert told == unknown.replace(b"zzzzzz", name.encode())
    for near in ("salar", "salaryy", "secrets"):
        with pytest.raises(UnknownField) as caught:
            await crud.ask("clerk", "read_Employees", fields=[near])
        assert not any(name in str(caught.value).replace(near, "") for name in ("salary", "secret"))
    assert await crud.store.read(1, "Employees", order_by="id") == before


@pytest_twisted.ensureDeferred
async def test_a_read_only_field_is_read_and_not_written(crud: Crud):
    """It is asked for, filtered by and ordered by; a value for it is refused by its name, the same value included."""
    await hire(crud)
    rows = await crud.result("clerk", "read_Employees", where={"role": "staff"}, order_by="role, id", fields=["role"])
    assert rows == [{"role": "staff"}, {"role": "staff"}]
    for key, horizontal in (
        ("create_Employees", {"values": {"id": "x", "name": "x", "role": "chief"}}),
        ("update_Employees", {"where": "ann", "values": {"role": "staff"}}),
        ("update_Employees", {"where": "nobody", "values": {"role": "chief", "office": "no number"}}),
        ("upsert_Employees", {"values": {"id": "ann", "name": "ann", "role": "chief"}, "conflict_fields": ["id"]}),
    ):
        with pytest.raises(PermissionDenied) as caught:
            await crud.ask("clerk", key, **horizontal)
        assert caught.value.fields == {"role": "cannot be written"}
        assert str(caught.value) == "Employees.role cannot be written"
    assert await crud.result("boss", "update_Employees", where="ann", values={"role": "chief"}) == {"updated": 1}


@pytest_twisted.ensureDeferred
async def test_rights_to_rows_go_by_hidden_and_read_only_fields(crud: Crud):
    """The rows are narrowed, a new one gets the value, and who hears of it is judged by what the writer cannot see."""
    await hire(crud)
    assert [row["id"] for row in await crud.result("owner", "read_Employees")] == ["ann"]
    assert "owner" not in (await crud.result("owner", "read_Employees"))[0]
    outcome = await crud.ask("owner", "create_Employees", values={"id": "mine", "name": "mine"})
    assert "owner" not in outcome.result and outcome.audience is not None
    admitted = [outcome.audience.admits(Identity(name, "owner"), crud.permissions) for name in ("ann", "bob")]
    assert admitted == [True, False]
    assert await crud.result("owner", "update_Employees", all=True, values={"notes": {"a": 1}}) == {"updated": 2}
    upserted = await crud.result(
        "owner", "upsert_Employees", values={"id": "mine", "name": "new"}, conflict_fields=["id"]
    )
    assert upserted["name"] == "new" and "owner" not in upserted
    with pytest.raises(PermissionDenied, match="^Permission denied$"):
        await crud.ask("owner", "upsert_Employees", values={"id": "bob", "name": "bob"}, conflict_fields=["id"])
    with pytest.raises(UnknownField):
        await crud.ask("owner", "update_Employees", where="ann", values={"owner": "ann"})
    owners = await crud.store.read(1, "Employees", order_by="id", fields=["owner", "notes"])
    assert [row["owner"] for row in owners] == ["ann", "bob", "ann"] and owners[1]["notes"] is None


@pytest_twisted.ensureDeferred
async def test_what_is_hidden_and_long_is_not_written_for_others(crud: Crud):
    """It would take as long as it is large, and be too much to be told; that there is something to read is."""
    await hire(crud)
    policy = "clerk: {models: {Employees: {actions: '*', fields: {hide: [notes]}}}}"
    crud = Crud(crud.store, policy)
    for notes, is_known in ((["x" * 60_000], True), (["x" * 70_000], False), (["x" * 12_000_000], False)):
        await crud.store.update(1, "Employees", {"id": "ann"}, {"notes": notes})
        outcome = await crud.ask(
            "clerk", "upsert_Employees", values={"id": "ann", "name": "ann"}, conflict_fields=["id"]
        )
        assert outcome.is_known is is_known and "notes" not in outcome.result and outcome.told is not None


@pytest_twisted.ensureDeferred
async def test_i23_a_kept_result_has_no_more_than_one_may_see(crud: Crud):
    """Of two roles of one user each gets the answer to the same key as it may see it, whoever was the first."""
    await hire(crud)
    for office, key, action in ((10, "a", "create"), (11, "b", "upsert")):
        values = {"id": key, "name": key, "office": office}
        request = {"values": values, "_idempotencyKey": key} | ({"conflict_fields": ["id"]} if key == "b" else {})
        first = await crud.result("boss", f"{action}_Employees", **request)
        for role in ("clerk", "boss", "clerk"):
            outcome = await crud.ask(role, f"{action}_Employees", **request)
            assert outcome.repeated
            row = json.loads(encode_reply(None, outcome.result))["result"]
            assert row == {name: first[name] for name in (first if role == "boss" else ANN)}
    request = {"values": {"id": "c", "name": "c", "office": 12}, "_idempotencyKey": "c"}
    await crud.result("clerk", "create_Employees", **request)
    assert (await crud.result("boss", "create_Employees", **request))["salary"] == 1000
    # What named a hidden field is refused, though its result is kept.
    request = {"where": {"salary__gt": 1}, "values": {"notes": 1}, "_idempotencyKey": "d"}
    assert await crud.result("boss", "update_Employees", **request) == {"updated": 5}
    with pytest.raises(UnknownField):
        await crud.ask("clerk", "update_Employees", **request)


@pytest_twisted.ensureDeferred
async def test_i23_nobody_points_to_what_is_hidden(crud: Crud):
    """Which values a hidden field has would show in what is taken for a reference; a row that points there already may
    be written as it was read."""
    await hire(crud)
    for about in ("anns-secret", "no-secret"):
        with pytest.raises(Conflict) as caught:
            await crud.ask("clerk", "create_Tickets", values={"about": about})
        assert caught.value.fields == {"about": "points to a row that does not exist"}
    ticket = await crud.result("boss", "create_Tickets", values={"about": "anns-secret"})
    where = {"id": ticket["id"]}
    values = {"about": "anns-secret", "text": "seen"}
    assert await crud.result("clerk", "update_Tickets", where=where, values=values) == {"updated": 1}
    with pytest.raises(Conflict):
        await crud.ask("clerk", "update_Tickets", where=where, values={"about": "bobs-secret"})
    # From another role's side: the code of a badge is hidden, so that no badge can be given.
    for code in ("tin", "wood"):
        with pytest.raises(Conflict, match="^badge points to a row that does not exist$"):
            await crud.ask("keyed", "update_Employees", where="ann", values={"badge": code})


@pytest_twisted.ensureDeferred
async def test_conflicts_name_no_hidden_field(make_store, url, postgresql):
    """Of what has to be unique with a value that one cannot see, those fields are told that one sees."""
    crud = Crud(make_store(url, SCHEMA))
    await crud.store.start()
    await hire(crud)
    with pytest.raises(Conflict) as caught:
        await crud.ask("clerk", "create_Employees", values={"id": "x", "name": "ann"})
    assert caught.value.fields == {"name": "already exists"}
    await crud.store.create(1, "Employees", {"id": "c", "name": "c", "salary": 1, "office": 7, "secret": "x"})
    await crud.store.create(1, "Employees", {"id": "d", "name": "d", "salary": 1, "office": 8})
    with pytest.raises(Conflict) as caught:
        await crud.ask("clerk", "update_Employees", where="d", values={"office": 7})
    assert "salary" not in str(caught.value) and "salary" not in caught.value.fields
    with pytest.raises(Invalid) as wanted:
        # No group of fields that it sees is there with all its values.
        await crud.ask("clerk", "upsert_Employees", values={"office": 7})
    assert "salary" not in str(wanted.value) and "secret" not in str(wanted.value)


@pytest_twisted.ensureDeferred
async def test_values_that_are_not_ones_own_are_not_named(make_store, url, postgresql):
    """What rights put into a hidden field, and the database cannot keep, is an error that names no field."""
    store = make_store(
        url, load_schema("Notes: {id: {type: int, pk: true}, owner: str, text: {type: str, required: true}}")
    )
    await store.start()
    crud = Crud(store, "a: {models: {Notes: {actions: '*', rows: {owner: $name}, fields: {hide: [owner]}}}}")
    told = await crud.told("a", "create_Notes", name="a\0b", values={"text": "x"})
    other = await crud.told("a", "read_Notes", name="a\0b")
    assert b"owner" not in told + other
    # A program may hide what the schema asks for: nobody could create a row, and why is not told.
    hidden: Any = SimpleNamespace(
        allows=lambda *_: True, rows=lambda *_: {}, fields=lambda *_: FieldRights(hide=["text", "elsewhere"])
    )
    crud.crud = StoreCrud(store, hidden)
    assert json.loads(await crud.told("a", "create_Notes", values={}))["code"] == "invalid"
    assert b"text" not in await crud.told("a", "create_Notes", values={"owner": 5})
    hidden.fields = lambda *_: FieldRights(hide=["id"])
    with pytest.raises(ValueError, match="Notes: the primary key, id, cannot be hidden"):
        await crud.ask("a", "read_Notes")


@pytest_twisted.ensureDeferred
async def test_what_is_filled_in_tells_nothing(make_store, url, postgresql):
    """Neither a default nor the value that rights give is met by a guess: no row is found by it, and none points to
    itself by it."""
    store = make_store(
        url,
        load_schema("""
Nodes:
  id:     {type: int, pk: true}
  owner:  {type: str, unique: true}
  code:   {type: str, unique: true, default: guessed}
  parent: {type: str, fk: Nodes.code}
"""),
    )
    await store.start()
    policy = "boss: {models: '*'}\na: {models: {Nodes: {actions: '*', rows: {owner: $name}, fields: {hide: [%s]}}}}"
    crud = Crud(store, policy % "owner, code")
    for guess in ("guessed", "wrong"):
        with pytest.raises(Conflict, match="^parent points to a row that does not exist$"):
            await crud.ask("a", "create_Nodes", values={"parent": guess})
    with pytest.raises(Invalid, match="^conflict_fields is needed"):
        await crud.ask("a", "upsert_Nodes", values={"parent": None})
    with pytest.raises(Invalid) as caught:
        await crud.ask("a", "upsert_Nodes", values={"parent": None}, conflict_fields=["id"])
    assert not any(name in str(caught.value) for name in ("owner", "code"))
    made = await crud.result("boss", "create_Nodes", values={"parent": "guessed", "owner": "bob"})
    assert made["parent"] == made["code"] == "guessed"


@pytest_twisted.ensureDeferred
async def test_what_the_schema_hides_since_is_in_no_kept_result(make_store, url, postgresql):
    """A result that was kept before a restart with another schema comes without what that hides."""
    text = "Notes: {id: {type: int, pk: true}, text: {type: str, default: classified%s}}"
    request = {"action": "create", "model": "Notes", "values": {}, "_idempotencyKey": "k"}
    before = make_store(url, load_schema(text % ""))
    await before.start()
    assert (await Crud(before).result("boss", "create_Notes", **request))["text"] == "classified"
    after = make_store(url, load_schema(text % ", hidden: true"))
    await after.start()
    assert await Crud(after).result("boss", "create_Notes", **request) == {"id": 1}


@pytest_twisted.ensureDeferred
async def test_views_and_triggers(make_store, url, postgresql):
    """The row of a write is read again where a trigger may have changed it, for who hears of it as a whole and for who
    wrote it without what is hidden; views hide like tables."""
    store = make_store(
        url,
        load_schema("""
Notes: {id: {type: str, pk: true}, text: str, secret: {type: str, default: low}}
Seen:
  _model: {read_only: true, table: seen}
  id:     {type: str, pk: true}
  secret: str
"""),
    )
    is_sqlite = url.startswith("sqlite")
    statements = [
        'CREATE TABLE "Notes" (id TEXT PRIMARY KEY NOT NULL, text TEXT, secret TEXT)',
        'CREATE VIEW seen AS SELECT id, secret FROM "Notes"',
    ]
    if is_sqlite:
        statements.append(
            "CREATE TRIGGER raising AFTER INSERT ON Notes BEGIN UPDATE Notes SET secret = 'high' WHERE id = NEW.id; END"
        )
    else:
        statements += [
            "CREATE FUNCTION raising() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "UPDATE \"Notes\" SET secret = 'high' WHERE id = NEW.id; RETURN NEW; END $$",
            'CREATE TRIGGER raising AFTER INSERT ON "Notes" FOR EACH ROW EXECUTE FUNCTION raising()',
        ]
    with store._execution._database.engine().connect() as connected:
        for statement in statements:
            connected.exec_driver_sql(statement)
        connected.commit()
    await store.start()
    policy = "boss: {models: '*'}\na: {models: {Notes: {actions: '*', fields: {hide: [secret]}}, Seen: %s}}"
    crud = Crud(store, policy % "{actions: [read], fields: {hide: [secret]}}")
    outcome = await crud.ask("a", "create_Notes", values={"id": "x"})
    assert outcome.result == {"id": "x", "text": None}
    assert outcome.audience is not None and outcome.audience.row == {"id": "x", "text": None, "secret": "high"}
    assert (await crud.result("boss", "create_Notes", values={"id": "y"}))["secret"] == "high"
    assert await crud.result("a", "read_Seen", order_by="id") == [{"id": "x"}, {"id": "y"}]
    with pytest.raises(UnknownField):
        await crud.ask("a", "read_Seen", where={"secret": "high"})


@pytest.mark.parametrize(
    ("model", "hide", "readonly", "creates", "rows", "fault"),
    [
        ("Employees", ["salary"], ["role", "id"], True, {}, ""),
        ("Employees", ["name"], [], False, {}, ""),
        ("Employees", ["name"], ["office"], True, {"name": "x"}, ""),
        ("Tickets", ["about"], ["id"], True, {}, ""),
        ("Employes", ["x"], [], False, {}, 'there is no model "Employes"; did you mean "Employees"?'),
        ("Employees", ["salry"], [], False, {}, 'fields: hide: Employees has no field "salry"; did you mean "salary"?'),
        ("Employees", [], ["rol"], False, {}, 'fields: readonly: Employees has no field "rol"; did you mean "role"?'),
        ("Employees", ["id"], [], False, {}, "fields: hide: Employees.id is the primary key"),
        ("Employees", ["name"], [], True, {}, "fields: hide: Employees.name is required"),
        ("Employees", [], ["name"], True, {}, "fields: readonly: Employees.name is required"),
        ("Employees", ["name"], [], True, {"ownr": 1}, "rows: Employees has no field"),
    ],
)
def test_what_no_schema_can_restrict(
    model: str, hide: list[str], readonly: list[str], creates: bool, rows: dict[str, Any], fault: str
):
    """A rule that hides nothing, or leaves nobody able to do what is granted, is found before anybody relies on it."""
    found = validate_grant(SCHEMA, model, rows, FieldRights(hide, readonly), creates)
    assert found.startswith(fault) and bool(found) == bool(fault)


GUESSED = load_schema("""
Badges:
  id:    {type: str, pk: true}
  code:  {type: str, unique: true}
  label: {type: str, default: plain}
Employees:
  id:     {type: str, pk: true}
  name:   {type: str, required: true, unique: true, rules: {max_length: 20}}
  role:   {type: str, default: staff, rules: {pattern: "[a-z]+"}}
  salary: {type: int, default: 1000}
  born:   date
  secret: {type: str, unique: true, rules: {max_length: 20}}
  owner:  str
  badge:  {type: str, fk: Badges.code}
  boss:   {type: str, fk: Employees.id, on_delete: set null}
  about:  {type: str, fk: Employees.secret}
  notes:  json
  raw:    bytes
""")
#: What a field has where it is hidden, on one server and on the other; a client may guess it.
HIDDEN: dict[str, tuple[list[Any], list[Any]]] = {
    "name": (["sentinel-n1", "sentinel-n2", "sentinel-n3"], ["other-n1", "other-n2", "other-n3"]),
    "role": (["sentinela", "sentinelb", "sentinelc"], ["othera", "otherb", "otherc"]),
    "salary": ([918273645, 918273646, 5], [5, 5, 918273645]),
    "born": (["1918-02-03", "1918-02-04", None], [None, "1977-01-01", "1977-01-01"]),
    "secret": (["sentinel-s1", "sentinel-s2", "sentinel-s3"], ["other-s1", "other-s2", None]),
    "notes": ([{"k": "sentinel-j"}, ["sentinel-j"], None], [None, 1, {"k": 2}]),
    "raw": (["c2VudGluZWw=", None, "AAAA"], [None, "AAAA", "AAAA"]),
    "label": (["sentinel-l1", "sentinel-l2", "sentinel-l3"], ["other-l1", "other-l2", "other-l3"]),
    "code": (["sentinel-c1", "sentinel-c2", "sentinel-c3"], ["other-c1", "other-c2", "other-c3"]),
}
SEEN: dict[str, list[Any]] = {
    "name": ["n1", "n2", "n3"],
    "role": ["staff", "chief", "staff"],
    "salary": [1, 2, 3],
    "born": ["2001-02-03", None, "2001-02-03"],
    "secret": ["s1", "s2", "s3"],
    "notes": [1, {"a": 2}, None],
    "raw": ["AAAA", "BBBB", None],
    "label": ["l1", "l2", "l3"],
    "code": ["c1", "c2", "c3"],
}
LEAKS = ("sentinel", "91827364", "1918-02-0", "c2VudGluZWw")


class Guess:
    """Random rights, and random commands of who has them: guesses at what is hidden among all that clients send."""

    def __init__(self, chosen: random.Random):
        self._chosen = chosen
        self.hide = {
            model: [name for name in fields if name != "id" and chosen.random() < 0.35]
            for model, fields in FIELDS.items()
        }
        rest = {model: [name for name in FIELDS[model] if name not in self.hide[model]] for model in FIELDS}
        self.readonly = {model: [name for name in rest[model] if chosen.random() < 0.15] for model in FIELDS}
        models: dict[str, Any] = {}
        for model in FIELDS:
            actions = [action for action in ("create", "read", "update", "delete") if chosen.random() < 0.9]
            if "name" in self.hide[model] + self.readonly[model] and "create" in actions:
                actions.remove("create")
            models[model] = {"actions": actions}
            parts = {"hide": self.hide[model], "readonly": self.readonly[model]}
            if any(parts.values()):
                models[model]["fields"] = {part: names for part, names in parts.items() if names}
        if chosen.random() < 0.4:
            models["Employees"]["rows"] = {"owner": "$name"}
        self.policy = json.dumps({"clerk": {"models": models}})

    def rows(self, server: int) -> list[tuple[str, dict[str, Any]]]:
        """The rows of one server, in the order in which they can be made."""

        def values(model: str, number: int) -> dict[str, Any]:
            return {
                name: HIDDEN[name][server][number] if name in self.hide[model] else SEEN[name][number]
                for name in FIELDS[model]
                if name in SEEN
            }

        found = [("Badges", {"id": f"b{number}", **values("Badges", number)}) for number in range(3)]
        codes_are_one = "code" not in self.hide["Badges"]
        secrets_are_one = "secret" not in self.hide["Employees"]
        for number in range(3):
            row = {"id": f"e{number}", "owner": ["ann", "bob", "ann"][number], **values("Employees", number)}
            row["boss"] = "e0" if number else None
            row["badge"] = SEEN["code"][number] if codes_are_one else None
            row["about"] = SEEN["secret"][0] if secrets_are_one and number else None
            found.append(("Employees", row))
        return found

    def _name(self, model: str) -> str:
        return self._chosen.choice([*FIELDS[model], *self.hide[model], "zzz"])

    def _value(self, model: str, name: str) -> Any:
        known = [*SEEN.get(name, []), *(HIDDEN[name][0] if name in HIDDEN and name in self.hide[model] else [])]
        known += {"id": ["e0", "e1", "e9", "b0"], "owner": ["ann", "bob"], "boss": ["e0", "e1", "e9"]}.get(name, [])
        known += {"badge": ["c1", "sentinel-c1", "none"], "about": ["s1", "sentinel-s1", "none"]}.get(name, [])
        return self._chosen.choice([*known, *known, None, "x", 5, True, [], {}, "x" * 30])

    def _where(self, model: str, depth: int = 0) -> Any:
        chosen = self._chosen
        if not depth and chosen.random() < 0.2:
            return chosen.choice(["e0", "b1", "e9", 5])
        if depth < 2 and chosen.random() < 0.3:
            inner = self._where(model, depth + 1)
            return chosen.choice([{"$not": inner}, {"$or": [inner, {"id": "e1"}]}, {"$and": [inner]}])
        name = self._name(model)
        operator = chosen.choice(
            ["", "__eq", "__ne", "__gte", "__lt", "__in", "__like", "__isnull", "__between", "__zzz"]
        )
        value = self._value(model, name)
        if operator in ("__in", "__between"):
            value = [value, self._value(model, name)]
        elif operator == "__like":
            value = "sent%"
        elif operator == "__isnull":
            value = True
        return {name + operator: value}

    def command(self) -> tuple[str, dict[str, Any]]:
        """The key of a command, and its zHorizontal."""
        chosen, model = self._chosen, self._chosen.choice(["Employees", "Employees", "Badges"])
        action = chosen.choice(["read", "read", "create", "update", "update", "delete", "upsert"])
        asked: dict[str, Any] = {}
        if action in ("read", "update", "delete") and chosen.random() < 0.8:
            asked[chosen.choice(["where", "filters"])] = self._where(model)
        elif action in ("update", "delete"):
            asked["all"] = True
        if action == "read":
            if chosen.random() < 0.4:
                asked["fields"] = [self._name(model) for _ in range(chosen.randint(1, 3))]
            if chosen.random() < 0.4:
                asked["order_by"] = self._name(model) + chosen.choice(["", " desc", ", id"])
            if chosen.random() < 0.3:
                asked |= {"limit": 1}
        if action in ("create", "update", "upsert"):
            names = [self._name(model) for _ in range(chosen.randint(1, 2))]
            asked["values"] = {name: self._value(model, name) for name in names}
        if action in ("create", "upsert"):
            key = chosen.choice(["e0", "e1", "b1", "f1", "f2"])
            asked["values"] |= {"id": key} | (
                {"name": chosen.choice(["n1", "n7", "n8"])} if model == "Employees" else {}
            )
        if action == "upsert" and chosen.random() < 0.8:
            asked["conflict_fields"] = [chosen.choice(["id", "id", self._name(model)])]
        if action != "read" and chosen.random() < 0.3:
            asked["_idempotencyKey"] = chosen.choice("ab")
        return f"{action}_{model}", asked


FIELDS = {name: list(model.fields) for name, model in GUESSED.models.items()}


@pytest.fixture(params=["sqlite", "postgresql"])
def twins(request: pytest.FixtureRequest, make_store: Any, tmp_path: Path) -> Iterator[tuple[Store, Store]]:
    """Two stores that are started, on databases of one kind."""
    names: list[str] = []
    urls = [f"sqlite:///{tmp_path}/{name}.sqlite3" for name in ("here", "there")]
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgresql")
        names = [cluster.new_database() for _ in urls]
        urls = [cluster.url(name) for name in names]
    here, there = (make_store(url, GUESSED) for url in urls)
    for store in (here, there):
        pytest_twisted.blockon(store.start())
    yield here, there
    for store, name in zip((here, there), names, strict=False):
        pytest_twisted.blockon(store.stop())
        cluster.drop_database(name)


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_i23_whatever_is_hidden_the_answers_are_the_same(postgresql: Any, twins: tuple[Store, Store]):
    """Random rights and commands, to two servers that differ in nothing but what is hidden: what the client gets is the
    same to the byte, and so is what it did; no value that is hidden is in it, errors and what was kept included."""
    counts: Counter[str] = Counter()

    async def run(chosen: random.Random) -> None:
        guess = Guess(chosen)
        counts["examples"] += 1
        cruds = [Crud(store, guess.policy) for store in twins]
        for each in cruds[0].permissions.narrow_grants():
            assert not validate_grant(GUESSED, each.model, each.rows, each.fields, "create" in each.actions)
        for server, store in enumerate(twins):
            await store.update(1, "Employees", None, {"boss": None, "badge": None, "about": None}, all=True)
            await store.delete(1, "Employees", None, all=True)
            await store.delete(1, "Badges", None, all=True)
            for model, row in guess.rows(server):
                await store.create(1, model, row)
        for _ in range(10):
            key, horizontal = guess.command()
            if "_idempotencyKey" in horizontal:
                horizontal["_idempotencyKey"] += str(counts["examples"])
            told = [await crud.told("clerk", key, **horizontal) for crud in cruds]
            case = guess.policy, key, horizontal, told
            assert told[0] == told[1], case
            sent = json.dumps([key, horizontal])
            assert not any(leak in told[0].decode() and leak not in sent for leak in LEAKS), case
            answer = json.loads(told[0])
            counts[answer.get("code", "rows" if answer.get("result") else "none")] += 1
            # What was done is the same as well, as those see it who see the rest.
            for model in FIELDS:
                seen = [name for name in FIELDS[model] if name not in guess.hide[model]]
                after = [await store.read(1, model, fields=seen, order_by="id") for store in twins]
                assert after[0] == after[1], case

    @settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])
    @given(st.randoms(use_true_random=False))
    def check(chosen: random.Random) -> None:
        blockingCallFromThread(reactor, lambda: ensureDeferred(run(chosen)))

    await deferToThread(check)
    assert min(counts[code] for code in ("rows", "unknown_field", "permission_denied", "invalid", "conflict")), counts
