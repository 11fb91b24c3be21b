"""Rights by row, on both databases: what is out of reach is neither found nor changed, whatever is asked."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import nullcontext
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import rows_of_a_test
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import blockingCallFromThread, deferToThread

from zcomm.data.requests import parse_command
from zcomm.data.row_security import validate_grant
from zcomm.data.schema import load_schema
from zcomm.errors import CommandError, Conflict, Invalid, PermissionDenied
from zcomm.interfaces import NO_FIELD_RIGHTS

SCHEMA = load_schema("""
Notes:
  id:     {type: int, pk: true}
  title:  {type: str, unique: true}
  owner:  {type: str, readonly: true}
  shelf:  {type: int, default: 1}
  public: {type: bool, default: false}
  price:  decimal
  secret: {type: str, hidden: true, default: x}
""")
MINE = {"owner": "ann"}


@pytest.fixture
def notes(make_store, url, postgresql):
    """A store with two notes of Ann's and two of Bob's."""
    store = make_store(url, SCHEMA)
    pytest_twisted.blockon(store.start())
    for title, owner in (("a", "ann"), ("b", "ann"), ("c", "bob"), ("d", "bob")):
        pytest_twisted.blockon(run(store, {"owner": owner}, action="create", values={"title": title}))
    return store


def run(store, rows: dict[str, Any], **request: Any):
    """A Deferred of the result of a request that reaches ``rows``."""
    done = store.execute(1, parse_command({"model": "Notes", **request}), "somebody", rows)
    return done.addCallback(lambda done: done.result)


async def everything(store) -> list[tuple[str, str, int]]:
    return [(row["title"], row["owner"], row["shelf"]) for row in await store.read(1, "Notes", order_by="title")]


FILTERS = [
    None,
    {},
    {"owner": "bob"},
    {"owner__ne": "ann"},
    {"$or": [{"owner": "bob"}, {"owner": "ann"}]},
    {"$not": {"owner": "ann"}},
    {"id__gte": 0},
    {"title__in": ["a", "c"]},
    1,
    3,
    {"$or": []},
    {"owner": []},
]


@pytest_twisted.ensureDeferred
async def test_only_what_is_in_reach_is_found(notes):
    """No filter leads beyond it; within it a filter selects as usual."""
    own = {row["id"] for row in await run(notes, MINE, action="read")}
    assert len(own) == 2
    with rows_of_a_test() as row:
        for where in FILTERS:
            with row(repr(where)):
                found = {each["id"] for each in await run(notes, MINE, action="read", where=where)}
                selected = {each["id"] for each in await notes.read(1, "Notes", where)}
                assert found == own & selected


@pytest_twisted.ensureDeferred
async def test_only_what_is_in_reach_is_changed(notes):
    """Every row means every one of one's own."""
    before = await everything(notes)
    assert await run(notes, MINE, action="update", where={"title": "c"}, values={"shelf": 9}) == {"updated": 0}
    assert await run(notes, MINE, action="delete", where={"$or": [{"title": "c"}, {"title": "d"}]}) == {"deleted": 0}
    assert await everything(notes) == before
    assert await run(notes, MINE, action="update", all=True, values={"shelf": 2}) == {"updated": 2}
    assert await everything(notes) == [("a", "ann", 2), ("b", "ann", 2), ("c", "bob", 1), ("d", "bob", 1)]
    assert await run(notes, MINE, action="delete", all=True) == {"deleted": 2}
    assert await everything(notes) == [("c", "bob", 1), ("d", "bob", 1)]


@pytest_twisted.ensureDeferred
async def test_a_new_row_is_in_reach(notes):
    """It gets the values of those rows, also in a field that clients cannot write; others are refused."""
    row = await run(notes, {"owner": "ann", "shelf": 7}, action="create", values={"title": "new"})
    assert (row["owner"], row["shelf"]) == ("ann", 7)
    row = await run(notes, {"owner": "ann", "shelf": 7}, action="create", values={"title": "same", "shelf": 7})
    assert row["shelf"] == 7
    with pytest.raises(PermissionDenied) as caught:
        await run(notes, {"owner": "ann", "shelf": 7}, action="create", values={"title": "away", "shelf": 1})
    assert caught.value.fields == {"shelf": "cannot have this value"}
    assert [title for title, _, _ in await everything(notes)] == ["a", "b", "c", "d", "new", "same"]


@pytest_twisted.ensureDeferred
async def test_no_row_leaves_the_reach(notes):
    """An update that would take it away is refused whole."""
    shelf = {"shelf": 1}
    with pytest.raises(PermissionDenied):
        await run(notes, shelf, action="update", where={"title": "a"}, values={"shelf": 2, "price": "1.5"})
    assert await run(notes, shelf, action="update", where={"title": "a"}, values={"shelf": 1, "price": "1.5"}) == {
        "updated": 1
    }
    assert [row["price"] for row in await notes.read(1, "Notes", {"price__isnull": False})] == ["1.5"]


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("key", [None, "once"])
async def test_an_upsert_takes_no_row_of_others(notes, key: str | None):
    """One's own is changed, a new one is made, another's is left as it is."""

    async def upsert(title: str, shelf: int) -> Any:
        return await run(
            notes,
            MINE,
            action="upsert",
            values={"title": title, "shelf": shelf},
            conflict_fields=["title"],
            _idempotencyKey=key and key + title,
        )

    assert (await upsert("a", 5))["shelf"] == 5
    assert (await upsert("e", 6))["owner"] == "ann"
    with pytest.raises(PermissionDenied):
        await upsert("c", 7)
    with pytest.raises(PermissionDenied):
        await upsert("c", 7)
    assert await everything(notes) == [
        ("a", "ann", 5),
        ("b", "ann", 1),
        ("c", "bob", 1),
        ("d", "bob", 1),
        ("e", "ann", 6),
    ]


titles = st.sampled_from(["a", "b", "c", "d", "e"])
filters = st.recursive(
    st.dictionaries(
        st.sampled_from(["title", "owner", "owner__ne", "shelf__gte", "public", "id__in", "owner__like"]),
        st.sampled_from(["a", "ann", "bob", "%", 1, True, None, [1, 2, 3], []]),
        max_size=2,
    ),
    lambda inner: st.fixed_dictionaries(
        {}, optional={"$or": st.lists(inner, max_size=2), "$and": st.lists(inner, max_size=2), "$not": inner}
    ),
    max_leaves=4,
)
values = st.dictionaries(
    st.sampled_from(["title", "owner", "shelf", "public"]),
    st.one_of(titles, st.sampled_from(["ann", "bob", 1, 2, True])),
    max_size=3,
)
requests = st.one_of(
    st.fixed_dictionaries({"action": st.just("read"), "where": filters}),
    st.fixed_dictionaries({"action": st.just("create"), "values": values}),
    st.fixed_dictionaries(
        {"action": st.just("update"), "values": values}, optional={"where": filters, "all": st.booleans()}
    ),
    st.fixed_dictionaries({"action": st.just("delete")}, optional={"where": filters, "all": st.booleans()}),
    st.fixed_dictionaries(
        {"action": st.just("upsert"), "values": values},
        optional={"conflict_fields": st.sampled_from([["title"], ["id"]])},
    ),
)


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_whatever_is_asked_others_rows_stay(notes):
    """After any requests in Ann's name Bob's rows are as they were, and she has seen none of them."""

    def of_bob() -> list[dict[str, Any]]:
        return notes.handle_request({"action": "read", "model": "Notes", "where": {"owner": "bob"}, "order_by": "id"})

    before = await deferToThread(of_bob)

    @settings(
        max_examples=150,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(requests)
    def check(request: dict[str, Any]) -> None:
        try:
            result = blockingCallFromThread(reactor, run, notes, MINE, **request)
        except CommandError as error:
            assert error.code in ("permission_denied", "invalid", "conflict"), error
        else:
            rows = result if isinstance(result, list) else [result] if "owner" in result else []
            assert all(row["owner"] == "ann" for row in rows)
        assert of_bob() == before

    await deferToThread(check)


@pytest_twisted.ensureDeferred
async def test_a_unique_value_is_taken_all_the_same(notes):
    """What must be unique is so among all rows, also those that are out of reach."""
    with pytest.raises(Conflict):
        await run(notes, MINE, action="create", values={"title": "c"})


@pytest.mark.parametrize(
    ("model", "rows", "fault"),
    [
        ("Notes", {"owner": "x", "shelf": 1, "public": True}, ""),
        ("Nots", {"owner": "x"}, 'there is no model "Nots"'),
        ("Notes", {"ownr": "x"}, 'Notes has no field "ownr"'),
        ("Notes", {"secret": "x"}, 'Notes has no field "secret"'),
        ("Notes", {"price": 1}, "Notes.price is of type decimal; rows can be told apart by bool, int, str"),
        ("Notes", {"shelf": "ann"}, "Notes.shelf must be"),
        ("Notes", {"owner": 5}, "Notes.owner must be"),
        ("Notes", {"public": 1}, "Notes.public must be"),
    ],
)
def test_what_no_schema_can_grant(model: str, rows: dict[str, Any], fault: str):
    """A rule that could never hold is found before anybody relies on it."""
    found = validate_grant(SCHEMA, model, rows, NO_FIELD_RIGHTS, True)
    assert found.removeprefix("rows: ").startswith(fault) and bool(found) == bool(fault)


TENANTS = load_schema("""
Projects:
  id:     {type: int, pk: true}
  code:   {type: str, unique: true}
  owner:  str
  parent: {type: str, fk: Projects.code}
Tasks:
  id:      {type: int, pk: true}
  name:    {type: str, unique: true}
  project: {type: int, fk: Projects.id}
  second:  {type: str, fk: Projects.code}
  owner:   {type: str, default: nobody}
Files:
  id:      {type: int, pk: true}
  project: {type: int, fk: Projects.id, on_delete: cascade}
  usual:   {type: str, fk: Projects.code, default: bobs}
""")


class Tenants:
    """A store with a project of Ann's, one of Bob's and a task of Ann's that points to Bob's."""

    def __init__(self, store: Any):
        self.store = store

    async def start(self) -> Tenants:
        await self.store.start()
        self.anns = (await self.of("ann", "Projects", action="create", values={"code": "anns"}))["id"]
        self.bobs = (await self.of("bob", "Projects", action="create", values={"code": "bobs"}))["id"]
        await self.store.create(1, "Tasks", {"name": "given", "project": self.bobs, "second": "bobs", "owner": "ann"})
        return self

    async def of(self, owner: str | None, model: str, readable: bool = True, **request: Any) -> Any:
        """What comes of a request of who reaches what is its own."""

        def reach(model: str, field: str = "") -> dict[str, Any] | None:
            if not readable and model == "Projects":
                return None
            return {} if owner is None or model == "Files" else {"owner": owner}

        command = parse_command({"model": model, **request})
        return (await self.store.execute(1, command, "somebody", reach(model) or {}, reach)).result

    async def refused(self, owner: str, model: str, fields: set[str], **request: Any) -> None:
        """What is refused for these fields, as what points to nothing is."""
        with pytest.raises(Conflict) as caught:
            await self.of(owner, model, **request)
        assert caught.value.fields == dict.fromkeys(sorted(fields), "points to a row that does not exist")
        assert str(caught.value) == f"{', '.join(sorted(fields))} points to a row that does not exist"


@pytest.fixture
def tenants(make_store, url, postgresql):
    return pytest_twisted.blockon(ensureDeferred(Tenants(make_store(url, TENANTS)).start()))


@pytest_twisted.ensureDeferred
@pytest.mark.parametrize("key", [None, "once"])
async def test_b19_a_reference_points_to_rows_in_reach(tenants: Tenants, key: str | None):
    """To others it cannot, in no command, and the answer is that of a row which is not there; nothing is written."""
    count = 0

    def written(values: dict[str, Any]) -> dict[str, Any]:
        nonlocal count
        count += 1
        return {"values": values, "_idempotencyKey": key and f"{key}{count}"}

    for other in (tenants.bobs, 1000):
        values = {"name": "new", "project": other}
        await tenants.refused("ann", "Tasks", {"project"}, action="create", **written(values))
        await tenants.refused("ann", "Tasks", {"project"}, action="create", **written({**values, "second": "anns"}))
        await tenants.refused("ann", "Tasks", {"project"}, action="upsert", conflict_fields=["name"], **written(values))
    for code in ("bobs", "none"):
        await tenants.refused(
            "ann", "Tasks", {"project", "second"}, action="create", **written({"project": 1000, "second": code})
        )
        await tenants.refused("ann", "Projects", {"parent"}, action="create", **written({"code": "x", "parent": code}))
        await tenants.refused(
            "ann", "Projects", {"parent"}, action="update", where={"code": "anns"}, **written({"parent": code})
        )
    for taken in ({"name": "given", "project": tenants.bobs}, {"name": "given", "project": 1000}):
        # What else is wrong with it tells nothing either.
        await tenants.refused("ann", "Tasks", {"project"}, action="create", **written(taken))
    assert [row["name"] for row in await tenants.store.read(1, "Tasks")] == ["given"]
    made = await tenants.of("ann", "Tasks", action="create", **written({"project": tenants.anns, "second": "anns"}))
    assert made["owner"] == "ann"
    await tenants.of("ann", "Projects", action="create", **written({"code": "child", "parent": "anns"}))
    await tenants.of("ann", "Projects", action="create", **written({"code": "own", "parent": "own"}))
    await tenants.of("ann", "Projects", action="update", where={"code": "own"}, **written({"parent": "anns"}))
    await tenants.store.delete(1, "Tasks", {"name": "given"})
    assert await tenants.of("bob", "Projects", action="delete", where={"code": "bobs"}) == {"deleted": 1}


@pytest_twisted.ensureDeferred
async def test_b19_what_a_row_has_it_may_be_sent_again(tenants: Tenants):
    """A row that points out of reach already keeps that value when it is written as it was read; no other row gets it,
    and an update that changes no row is none."""
    (task,) = await tenants.of("ann", "Tasks", action="read", where={"name": "given"})
    same = {"project": tenants.bobs, "second": "bobs"}
    assert (task["project"], task["second"]) == (tenants.bobs, "bobs")
    await tenants.of("ann", "Tasks", action="update", where=task["id"], values=same)
    upserted = await tenants.of(
        "ann", "Tasks", action="upsert", values={"name": "given", **same}, conflict_fields=["name"]
    )
    assert upserted["id"] == task["id"]
    for values in (same, {"second": "bobs"}):
        nowhere = {"name": "nowhere"}
        assert await tenants.of("ann", "Tasks", action="update", where=nowhere, values=values) == {"updated": 0}
    await tenants.of("ann", "Tasks", action="create", values={"name": "another"})
    await tenants.refused("ann", "Tasks", {"project", "second"}, action="update", all=True, values=same)
    await tenants.refused(
        "ann",
        "Tasks",
        {"project", "second"},
        action="upsert",
        values={"name": "another", **same},
        conflict_fields=["name"],
    )
    # Nobody finds out by that what a row out of reach points to.
    for other in (tenants.bobs, 1000):
        await tenants.refused(
            "carol",
            "Tasks",
            {"project"},
            action="upsert",
            values={"name": "given", "project": other},
            conflict_fields=["name"],
        )


@pytest_twisted.ensureDeferred
async def test_b19_without_a_right_to_read_nothing_can_be_pointed_to(tenants: Tenants):
    """Whether a row is there is told to nobody who may not read that model; null points nowhere, and what schema and
    policy fill in is theirs."""
    for project in (tenants.anns, tenants.bobs, 1000):
        with pytest.raises(Conflict, match="project points to a row that does not exist"):
            await tenants.of("ann", "Tasks", readable=False, action="create", values={"project": project})
    row = await tenants.of("ann", "Tasks", readable=False, action="create", values={"project": None})
    assert row["project"] is None
    row = await tenants.of("ann", "Files", readable=False, action="create", values={})
    assert row["usual"] == "bobs"
    command = parse_command({"model": "Tasks", "action": "create", "values": {"name": "filled"}})
    granted = {"second": "bobs"}
    done = await tenants.store.execute(1, command, "ann", granted, lambda model, field: None)
    assert done.result["second"] == "bobs"
    command = parse_command({"model": "Tasks", "action": "update", "where": {"name": "filled"}, "values": granted})
    assert (await tenants.store.execute(1, command, "ann", granted, lambda model, field: None)).result == {"updated": 1}


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_b19_nothing_tells_whether_a_row_out_of_reach_is_there(make_store, url, tmp_path, postgresql):
    """With Bob's projects and without them, whatever Ann asks of references has the same answers."""
    there = await Tenants(make_store(url, TENANTS)).start()
    gone = await Tenants(make_store(f"sqlite:///{tmp_path}/gone.sqlite3", TENANTS)).start()
    for each in (there, gone):
        await each.store.update(1, "Tasks", {"name": "given"}, {"project": None, "second": None})
    await gone.store.delete(1, "Projects", {"code": "bobs"})
    chosen = random.Random(19)
    told: Counter[str] = Counter()
    for _ in range(400):
        values: dict[str, Any] = {"name": chosen.choice(["given", "a", "b"])}
        if chosen.random() < 0.6:
            values["project"] = chosen.choice([there.anns, there.bobs, 1000, None])
        if chosen.random() < 0.6:
            values["second"] = chosen.choice(["anns", "bobs", "none", None])
        model, action = "Tasks", chosen.choice(["create", "update", "upsert"])
        if chosen.random() < 0.2:
            model, action, values = "Projects", "update", {"parent": chosen.choice(["anns", "bobs", "none", None])}
        request: dict[str, Any] = {"action": action, "values": values}
        if action == "update":
            request |= chosen.choice([{"all": True}, {"where": {"id__gt": 0}}, {"where": {"id": 1}}, {"where": -1}])
        elif action == "upsert":
            request["conflict_fields"] = ["name"]
        answers = []
        for each in (there, gone):
            try:
                row = await each.of("ann", model, **request)
                answers.append({name: value for name, value in row.items() if name != "id"})
            except CommandError as error:
                answers.append((error.code, str(error), error.fields))
        assert answers[0] == answers[1], (model, request)
        told[answers[0][0] if isinstance(answers[0], tuple) else "done"] += 1
    assert min(told["done"], told["conflict"]) > 50, told


@pytest_twisted.ensureDeferred
async def test_b19_a_row_is_not_itself_where_it_keeps_another_key(make_store, url, postgresql):
    """A new row may point to itself. An upsert that finds a row, whose key stays, points to no other by that."""
    store = make_store(
        url,
        load_schema("""
Nodes:
  id:     {type: str, pk: true}
  code:   {type: str, unique: true}
  owner:  str
  parent: {type: str, fk: Nodes.id}
"""),
    )
    await store.start()
    await store.create(1, "Nodes", {"id": "bobs", "code": "b", "owner": "bob"})

    async def of(owner: str, **request: Any) -> Any:
        rows = {"owner": owner}
        command = parse_command({"model": "Nodes", **request})
        return (await store.execute(1, command, "somebody", rows, lambda model, field: rows)).result

    made = await of("ann", action="create", values={"id": "anns", "code": "a", "parent": "anns"})
    assert made["parent"] == "anns"
    theirs = {"id": "bobs", "code": "a", "parent": "bobs"}
    with pytest.raises(Conflict, match="parent points to a row that does not exist"):
        await of("ann", action="upsert", values=theirs, conflict_fields=["code"])
    same = await of("ann", action="upsert", values={"id": "anns", "parent": "anns"}, conflict_fields=["id"])
    assert same["parent"] == "anns"


@pytest_twisted.ensureDeferred
async def test_contact_a19_a20_keys_of_the_database_hold_for_all_rows(tenants: Tenants):
    """What docs/security.rst says that rights do not hide: unique fields tell of rows out of reach, a row may be held
    by another's, and a cascade takes others' rows along. The errors say nothing more."""
    with pytest.raises(Conflict) as taken:
        await tenants.of("ann", "Projects", action="create", values={"code": "bobs"})
    with pytest.raises(Conflict, match="still point to this row") as kept:
        await tenants.of("bob", "Projects", action="delete", where={"id": tenants.bobs})
    for error in (taken, kept):
        assert "ann" not in str(error.value) and "Tasks" not in str(error.value)
    await tenants.store.delete(1, "Tasks", all=True, where=None)
    await tenants.store.create(1, "Files", {"project": tenants.bobs, "usual": None})
    assert await tenants.of("bob", "Projects", action="delete", where={"id": tenants.bobs}) == {"deleted": 1}
    assert await tenants.store.read(1, "Files") == []


#: Types of a column that tells rows apart, which take some texts only, with one that they take.
FEW_TEXTS = {
    "few": "ann",
    "other_few": "ann",
    "addresses": "ann@b.c",
    "varchar(3)": "ann",
    "char(5)": "ann",
    "inet": "10.0.0.1/32",
    "interval": "1 day",
    "int4range": "[1,2)",
    "xml": "<a/>",
    "name": "ann",
    "bit(3)": "101",
}


@pytest_twisted.ensureDeferred
async def test_contact_a_name_that_the_column_cannot_have_reaches_no_row(make_store, postgresql_url, postgresql):
    """Rows are told apart by a column of a type that takes no text but some: who is called otherwise has no rows."""
    name = postgresql_url.split("/")[3].split("?")[0]
    tables = "; ".join(
        f"CREATE TABLE t{number} (id bigserial PRIMARY KEY, owner {kind}, n int);"
        f"INSERT INTO t{number} (owner, n) VALUES ('{text}', 1), (NULL, 2)"
        for number, (kind, text) in enumerate(FEW_TEXTS.items())
    )
    postgresql.execute(
        "CREATE TYPE few AS ENUM ('ann', 'bob'); CREATE DOMAIN other_few AS few;"
        f"CREATE DOMAIN addresses AS text CHECK (VALUE ~ '@'); {tables}",
        name,
    )
    fields = "{id: {type: int, pk: true}, owner: str, n: int}"
    store = make_store(postgresql_url, load_schema("\n".join(f"t{n}: {fields}" for n in range(len(FEW_TEXTS)))))
    await store.start()
    with rows_of_a_test() as row:
        for number, (kind, text) in enumerate(FEW_TEXTS.items()):

            async def of(owner: str, model: str = f"t{number}", **request: Any) -> Any:
                command = parse_command({"model": model, **request})
                return (await store.execute(1, command, "somebody", {"owner": owner})).result

            with row(kind):
                for other in ("nobody by this name", "", "ANN", "ann ", "\u00e9'\\"):
                    assert await of(other, action="read") == []
                    assert await of(other, action="update", where={"n": 1}, values={"n": 5}) == {"updated": 0}
                    assert await of(other, action="delete", where={"n__gt": 0}) == {"deleted": 0}
                assert [each["n"] for each in await of(text, action="read")] == [1]
                assert await of(text, action="update", where={"n": 1}, values={"n": 5}) == {"updated": 1}
                with pytest.raises(Invalid, match="owner") if kind not in ("xml", "name") else nullcontext():
                    await of("nobody by this name", action="create", values={"n": 7})
