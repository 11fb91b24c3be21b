"""Rights by row, on both databases: what is out of reach is neither found nor changed, whatever is asked."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import pytest_twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.rows import rows_of_a_test
from twisted.internet import reactor
from twisted.internet.threads import blockingCallFromThread, deferToThread

from zcomm.data.requests import parse_command
from zcomm.data.row_security import validate_grant
from zcomm.data.schema import load_schema
from zcomm.errors import CommandError, Conflict, Invalid, PermissionDenied

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
    assert validate_grant(SCHEMA, model, rows).startswith(fault) and bool(validate_grant(SCHEMA, model, rows)) == bool(
        fault
    )


TENANTS = load_schema("""
Projects:
  id:    {type: int, pk: true}
  code:  {type: str, unique: true}
  owner: str
Tasks:
  id:      {type: int, pk: true}
  project: {type: int, fk: Projects.id}
  owner:   str
Files:
  id:      {type: int, pk: true}
  project: {type: int, fk: Projects.id, on_delete: cascade}
  owner:   str
""")


@pytest_twisted.ensureDeferred
async def test_contact_a19_a20_keys_of_the_database_hold_for_all_rows(make_store, url, postgresql):
    """What docs/security.rst says that rights do not hide: unique fields and foreign keys tell of rows out of reach, a
    row of another's may be held by them, and a cascade takes others' rows along. The errors say nothing more."""
    store = make_store(url, TENANTS)
    await store.start()
    ann, bob = {"owner": "ann"}, {"owner": "bob"}

    async def of(rows: dict[str, Any], model: str, **request: Any) -> Any:
        done = await store.execute(1, parse_command({"model": model, **request}), "somebody", rows)
        return done.result

    mine = await of(bob, "Projects", action="create", values={"code": "x"})
    with pytest.raises(Conflict) as taken:
        await of(ann, "Projects", action="create", values={"code": "x"})
    with pytest.raises(CommandError, match="points to a row that does not exist"):
        await of(ann, "Tasks", action="create", values={"project": 1000})
    held = await of(ann, "Tasks", action="create", values={"project": mine["id"]})
    with pytest.raises(Conflict, match="still point to this row") as kept:
        await of(bob, "Projects", action="delete", where={"id": mine["id"]})
    for error in (taken, kept):
        assert "ann" not in str(error.value) and "Tasks" not in str(error.value)
    await of(ann, "Tasks", action="delete", where={"id": held["id"]})
    await of(ann, "Files", action="create", values={"project": mine["id"]})
    assert await of(bob, "Projects", action="delete", where={"id": mine["id"]}) == {"deleted": 1}
    assert await of(ann, "Files", action="read") == []


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
