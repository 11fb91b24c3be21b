"""Models whose tables and columns are called as no model and no field can be, and what concerns a model as a whole."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import pytest_twisted
from support.postgres import Cluster
from support.rows import rows_of_a_test

from zcomm.data.schema import Schema, load_schema
from zcomm.data.store import Store
from zcomm.errors import ConfigError, Conflict, Invalid, PermissionDenied, UnknownField

from .test_store import run_sql

#: Names that databases have, and that neither a message nor a filter could.
NAMES = [
    "Order Details",
    "e-mail",
    "2fa",
    "a__b",
    "stra\u00dfe",
    "select",
    "100%",
    "a.b",
    "a, b",
    'say "hi"',
    "it's",
    "b\\s",
    "[x]",
    "`y`",
    "$1",
    ":z",
    "?",
    "%s",
    "%(q)s",
    "\u65e5\u672c",
    "zcomm__0",
    "(p)",
    "_model",
]


def table_of(name: str) -> str:
    """The name for a table; some are zComm's own."""
    return name.replace("zcomm__", "zcomm")


def quoted(name: str) -> str:
    """An identifier, as both databases quote it."""
    return '"' + name.replace('"', '""') + '"'


def quoted_in_yaml(name: str) -> str:
    """A name, as YAML has it whatever is in it."""
    return "'" + name.replace("'", "''") + "'"


@pytest_twisted.ensureDeferred
async def test_contact_f25_any_name_of_a_table_and_of_columns(
    make_store: Callable[..., Store], url: str, postgresql: Cluster
):
    """Tables and columns of any name are made, used and found again; requests and answers have the fields' names."""
    schema = load_schema(
        "\n".join(
            f"""
M{number}:
  _model: {{table: {quoted_in_yaml(table_of(name))}, unique: [[first, second]], index: [[second, third]]}}
  id: {{type: int, pk: true, column: {quoted_in_yaml("id of " + name)}}}
  first: {{type: str, column: {quoted_in_yaml(name)}}}
  second: {{type: int, column: {quoted_in_yaml(name + name)}, index: true}}
  third: {{type: str, unique: true, required: true, column: {quoted_in_yaml(name + ".1, " + name)}}}
  other: {{type: int, fk: M{number - 1 if number else 0}.id, column: {quoted_in_yaml("to " + name)}}}
"""
            for number, name in enumerate(NAMES)
        )
    )
    for start in ("made", "found"):
        store = make_store(url, schema)
        await store.start()
        with rows_of_a_test() as row:
            for number, name in enumerate(NAMES):
                with row(f"{start} {name}"):
                    await use(store, f"M{number}", start)
        await store.stop()
    run_sql(url, *(f"SELECT {quoted('id of ' + name)} FROM {quoted(table_of(name))}" for name in NAMES))


async def use(store: Store, model: str, text: str) -> None:
    """Ask all that can be asked of a model with a unique group."""
    made = await store.create(1, model, {"first": text, "second": 1, "third": text})
    assert made == {"id": made["id"], "first": text, "second": 1, "third": text, "other": None}
    assert await store.update(1, model, {"first__ilike": text.upper(), "second__in": [1]}, {"other": None}) == {
        "updated": 1
    }
    again = await store.upsert(1, model, {"second": 1, "first": text, "third": "new" + text}, ["second", "first"])
    assert again == {**made, "third": "new" + text}
    assert await store.read(1, model, {"first": text, "$or": [{"second__gte": 1}]}, order_by="first DESC, second") == [
        again
    ]
    assert await store.read(1, model, made["id"], fields=["third", "id"]) == [{"third": "new" + text, "id": made["id"]}]
    with pytest.raises(Conflict) as conflict:
        await store.create(1, model, {"first": text, "second": 1, "third": "other"})
    assert conflict.value.fields == {"first": "already exists", "second": "already exists"}
    with pytest.raises(Conflict) as conflict:
        await store.create(1, model, {"third": "new" + text})
    assert conflict.value.fields == {"third": "already exists"}
    with pytest.raises(Conflict) as conflict:
        await store.create(1, model, {"third": "x", "other": 99})
    assert conflict.value.fields == {"other": "points to a row that does not exist"}
    with pytest.raises(UnknownField, match=f"^{model} has no field"):
        await store.read(1, model, {"e-mail": 1})
    with pytest.raises(Invalid, match="conflict_fields must be the primary key, one unique field or one unique group"):
        await store.upsert(1, model, {"second": 1, "first": text, "third": "x"}, ["second"])


#: Columns with the type of each in PostgreSQL, the type of its field, a value and another.
CROSSED = [
    ("ip", "inet", "str", "10.0.0.1/32", "10.0.0.2/32"),
    ("address", "text", "str", "Main Street", "Low Street"),
    ("tags", "jsonb", "json", {"a": [1]}, {"b": None}),
    ("seen", "timestamptz", "datetime", "2024-05-06T07:08:09Z", "2025-05-06T07:08:09.500000Z"),
    ("raw", "bytea", "bytes", "AAEC", "AwQF"),
    ("size", "numeric", "decimal", "1.5", "2.5"),
    ("codes", "int[]", "json", [1, 2], [3]),
]


@pytest_twisted.ensureDeferred
async def test_contact_fields_that_are_named_like_the_columns_of_others(
    make_store: Callable[..., Store], url: str, postgresql: Cluster
):
    """However the names of fields and columns cross, each field is its own column in every request."""
    names = [column for column, *_ in CROSSED]
    crossings = [names[number:] + names[:number] for number in range(len(names))] + [names[::-1]]
    if url.startswith("postgresql"):
        columns = ", ".join(f"{column} {native}" for column, native, *_ in CROSSED)
        run_sql(
            url,
            *(f"CREATE TABLE t{number} (id bigserial PRIMARY KEY, {columns})" for number in range(len(crossings))),
            *(f"CREATE UNIQUE INDEX u{number} ON t{number} (address, size)" for number in range(len(crossings))),
        )
    models = []
    for number, fields in enumerate(crossings):
        its = dict(zip(names, fields, strict=True))
        lines = (f"{its[column]}: {{type: {kind}, column: {column}}}" for column, _, kind, *_ in CROSSED)
        unique = f"[[{its['address']}, {its['size']}]]"
        models.append(f"t{number}: {{_model: {{unique: {unique}}}, id: {{type: int, pk: true}}, {', '.join(lines)}}}")
    store = make_store(url, load_schema("\n".join(models)))
    await store.start()
    with rows_of_a_test() as row:
        for number, fields in enumerate(crossings):
            model = f"t{number}"
            its = dict(zip(names, fields, strict=True))
            first, second = ({its[line[0]]: line[place] for line in CROSSED} for place in (3, 4))
            with row(" ".join(fields)):
                one = await store.create(1, model, first)
                assert one == {"id": one["id"], **first}
                group = [its["address"], its["size"]]
                other = await store.upsert(1, model, second, group)
                assert await store.upsert(1, model, second, group) == other == {"id": other["id"], **second}
                order = f"{its['address']} DESC, {its['seen']}, id"
                assert await store.read(1, model, order_by=order) == [one, other]
                assert await store.read(1, model, {its["ip"]: "10.0.0.2/32", its["size"] + "__gt": "2"}) == [other]
                for name in fields:
                    assert await store.read(1, model, one["id"], fields=[name]) == [{name: one[name]}]
                pair = [its["address"], its["ip"]]
                assert await store.read(1, model, one["id"], fields=pair) == [{name: one[name] for name in pair}]
                values = {name: second[name] for name in fields if name != its["address"]}
                assert await store.update(1, model, {its["address"]: "Main Street"}, values) == {"updated": 1}
                assert await store.read(1, model, one["id"]) == [{**one, **values}]
                assert await store.delete(1, model, {its["address"] + "__like": "Low%"}) == {"deleted": 1}


@pytest_twisted.ensureDeferred
async def test_contact_f25_errors_of_existing_tables_name_fields(
    make_store: Callable[..., Store], url: str, postgresql: Cluster
):
    """What an existing table has beyond the schema is reported by the fields as well."""
    kind = "SERIAL" if url.startswith("postgresql") else "INTEGER"
    run_sql(
        url,
        f'CREATE TABLE "Order Details" ("Order ID" {kind} PRIMARY KEY, "Unit Price" INTEGER NOT NULL, "e-mail" TEXT, '
        'hidden TEXT, UNIQUE ("e-mail", "Unit Price"), UNIQUE (hidden))',
        'INSERT INTO "Order Details" ("Unit Price", "e-mail", hidden) VALUES (5, \'a\', \'h\')',
    )
    store = make_store(
        url,
        load_schema("""
Details:
  _model: {table: Order Details, unique: [[email, price]]}
  id: {type: int, pk: true, column: Order ID}
  price: {type: int, column: Unit Price}
  email: {type: str, column: e-mail}
  secret: {type: str, column: hidden, hidden: true, default: h}
"""),
    )
    await store.start()
    assert await store.read(1, "Details") == [{"id": 1, "price": 5, "email": "a"}]
    with pytest.raises(Invalid) as invalid:
        await store.create(1, "Details", {"email": "b"})
    assert (str(invalid.value), invalid.value.fields) == ("price is required", {"price": "is required"})
    with pytest.raises(Conflict) as conflict:
        await store.create(1, "Details", {"email": "c", "price": 7})
    assert (str(conflict.value), conflict.value.fields) == ("A row like this already exists", {})
    assert await store.update(1, "Details", {"price": 5}, {"price": 6}) == {"updated": 1}


MISFITS = [
    ("_model: {table: order details}", "spelt Order Details; spell the model the same way, or give its table"),
    ("_model: {table: Order Details, unique: [[a, b]]}", "a, b are unique together, and the existing table does not"),
    ("_model: {table: Order Details, unique: [[b, c]]}", "b, c are unique together, and the existing table does not"),
    ("_model: {table: nothing, read_only: true}", 'there is no table "nothing", and it is read_only; make the table'),
    ("_model: {table: Order Details}\n  d: {type: str, column: Bx}", 'no such column; did you mean "B"?'),
]


@pytest_twisted.ensureDeferred
async def test_contact_f25_what_does_not_fit_ends_the_start(
    make_store: Callable[..., Store], url: str, postgresql: Cluster
):
    """A table of another name, or without what _model says of it, is an error that names the model and the fix."""
    run_sql(
        url,
        'CREATE TABLE "Order Details" (id INTEGER PRIMARY KEY, a TEXT, "B" TEXT, c TEXT, UNIQUE (a, c))',
        'CREATE INDEX i ON "Order Details" (a, "B")',
        'CREATE UNIQUE INDEX p ON "Order Details" ("B", c) WHERE c > \'\'',
    )
    with rows_of_a_test() as row:
        for declared, says in MISFITS:
            with row(declared):
                store = make_store(
                    url,
                    load_schema(
                        f"D:\n  {declared}\n  id: {{type: int, pk: true}}\n  a: str\n  b: {{type: str, column: B}}\n"
                        "  c: str\n"
                    ),
                )
                with pytest.raises(ConfigError) as caught:
                    await store.start()
                assert says in str(caught.value)
    good = "D: {_model: {table: Order Details, unique: [[c, a]]}, id: {type: int, pk: true}, a: str, c: str}"
    store = make_store(url, load_schema(good))
    await store.start()


@pytest_twisted.ensureDeferred
async def test_contact_f25_read_only_models(make_store: Callable[..., Store], url: str, postgresql: Cluster):
    """A model that is read_only can be a view; every write of it is refused as permission_denied."""
    run_sql(
        url,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, n INTEGER)",
        "INSERT INTO t VALUES (1, 5)",
        'CREATE VIEW "Twice N" AS SELECT id, 2 * n AS twice FROM t',
    )
    schema = load_schema(
        "V: {_model: {table: Twice N, read_only: true}, id: {type: int, pk: true}, n: {type: int, column: twice}}"
    )
    store = make_store(url, schema)
    await store.start()
    assert await store.read(1, "V", {"n__gt": 9}) == [{"id": 1, "n": 10}]
    for write in (
        store.create(1, "V", {"n": 1}),
        store.update(1, "V", 1, {"n": 1}),
        store.delete(1, "V", 1),
        store.upsert(1, "V", {"id": 1, "n": 1}, ["id"]),
    ):
        with pytest.raises(PermissionDenied, match="V is read-only"):
            await write


MISTAKES: list[tuple[str, str]] = [
    ("T: {_model: 5, id: {type: int, pk: true}}", "model T: _model must be a mapping"),
    ("T: {_model: {tabel: x}, id: {type: int, pk: true}}", 'unknown setting "tabel"; did you mean "table"?'),
    ("T: {_model: {fresh: true}, id: {type: int, pk: true}}", '_model: unknown setting "fresh"'),
    ("T: {_model: {table: ''}, id: {type: int, pk: true}}", "table must be the table's name in the database"),
    ("T: {_model: {table: sqlite_master}, id: {type: int, pk: true}}", "not beginning with zcomm_, sqlite_, pg_"),
    ("T: {_model: {table: Zcomm_idempotency}, id: {type: int, pk: true}}", "not beginning with zcomm_"),
    ('T: {_model: {table: "a\\0b"}, id: {type: int, pk: true}}', "without control characters"),
    ("T: {_model: {table: " + 32 * "\u00e9" + "}, id: {type: int, pk: true}}", "at most 63 bytes"),
    ("T: {_model: {read_only: 1}, id: {type: int, pk: true}}", "read_only must be true or false"),
    ("T: {_model: {unique: [id, a]}, id: {type: int, pk: true}, a: str}", "a list of lists of fields"),
    ("T: {_model: {unique: [[id, b]]}, id: {type: int, pk: true}, bb: str}", 'no field "b"; did you mean "bb"?'),
    ("T: {_model: {unique: [[a]]}, id: {type: int, pk: true}, a: str}", "names 2 to 32 fields"),
    ("T: {_model: {unique: [[a, a]]}, id: {type: int, pk: true}, a: str}", "each once"),
    ("T: {_model: {unique: [[a, id], [id, a]]}, id: {type: int, pk: true}, a: str}", "id, a stands there twice"),
    ("T: {_model: {index: [[a, id]]}, id: {type: int, pk: true}, a: json}", "a json field cannot be in it"),
    ("T: {_model: {index: [[id, 5]]}, id: {type: int, pk: true}}", 'there is no field "5"'),
    ("T: {id: {type: int, pk: true}, a: {type: str, column: Id}}", 'fields id and a have the same column, "Id"'),
    ("T: {id: {type: int, pk: true, column: ''}}", "field id: column must be the column's name in the database"),
    ("T: {id: {type: int, pk: true}, e-mail: str}", "a column of another name is that of column: "),
    ("Order Details: {id: {type: int, pk: true}}", "a table of another name is that of _model: {table: "),
    (
        "A: {_model: {table: x}, id: {type: int, pk: true}}\nX: {id: {type: int, pk: true}}",
        "A and X have the same table",
    ),
    ("Meta: {id: {type: int, pk: true}}\nT: {id: {type: int, pk: true}}", "Meta is no model"),
    ("Meta: {_model: {table: m}, id: int}\nT: {id: {type: int, pk: true}}", "its table with _model: {table: Meta}"),
]


def test_contact_f25_mistakes_in_model_and_column():
    """Each says which model, which setting and what to write."""
    with rows_of_a_test() as row:
        for text, says in MISTAKES:
            with row(text), pytest.raises(ConfigError) as caught:
                load_schema(text)
            with row(text):
                assert says in str(caught.value)
    first = load_schema("A: {_model: {table: t}, id: {type: int, pk: true}}")
    with pytest.raises(ConfigError, match='A and B have the same table, "T"'):
        first.merge(load_schema("B: {_model: {table: T}, id: {type: int, pk: true}}"))
    with pytest.raises(ConfigError, match="A and T have the same table"):
        first.merge(load_schema("T: {id: {type: int, pk: true}}"))
    assert Schema({}).merge(first).models["A"].table == "t"
