"""Results for clients: stored JSON is passed on as it is, large ones are made in slices, with memory held for them."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
import pytest_twisted
import sqlalchemy as sa
from support.postgres import Cluster
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred

from zcomm.budget.written import Written
from zcomm.data.drivers.driver import FREE_BYTES
from zcomm.data.requests import parse_command
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.data.values import json_raw, json_value
from zcomm.errors import InternalError, Invalid, TooBusy

MIB = 1024 * 1024
SCHEMA = load_schema("""
Notes:
  id:   {type: int, pk: true}
  tree: json
  text: str
Numbers:
  id:  {type: int, pk: true}
  one: int
  two: int
""")


@pytest.fixture
def notes(postgresql: Cluster, make_store: Callable[..., Store], url: str) -> Store:
    """A store of notes, started."""
    store = make_store(url, SCHEMA, deadline=50.0)
    pytest_twisted.blockon(store.start())
    return store


def stored(url: str, statement: str, *rows: dict[str, Any]) -> None:
    """Rows that another program writes."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:", 1))
    with engine.begin() as connection:
        connection.execute(sa.text(statement), list(rows))
    engine.dispose()


def filled(url: str, count: int, tree: str) -> None:
    kind = "jsonb" if url.startswith("postgresql") else "text"
    statement = f'INSERT INTO "Notes" (id, tree) VALUES (:id, CAST(:tree AS {kind}))'
    stored(url, statement, *({"id": number, "tree": tree} for number in range(count)))


def asked(store: Store, owner: str, **request: Any) -> Deferred[Any]:
    """The result of a read for a client."""
    command = parse_command({"action": "read", "model": "Notes", **request})
    return store.execute(owner, command, as_json=True).addCallback(lambda done: done.result)


def value_of(result: Any) -> Any:
    return json.loads(result.json()) if isinstance(result, Written) else result


def released(result: Any) -> None:
    assert isinstance(result, Written)
    if result.hold is not None:
        result.hold.release()


JSON = [
    *("[1]", "{}", "[-0]", "[-0.0]", '["-0"]', "[ -0 ]", "[1,-0]", '{"a":-0}', "[-0,-0.5]", "[1e400]", "[1e-400]"),
    *("[5e-324]", "[0.1234567890123456789]", "[0.12345678901234568]", '["0.1234567890123456789"]', "[1E5]", "[1.50]"),
    *('["a 0.1234567890123456789", 0.1234567890123456789]', '["\\"0.1234567890123456789", 1e400]', '["1e400"]'),
    *(f"[{'1' * 4000}]", f"[{'1' * 4001}]", f"[-{'1' * 4001}]", "[1e22]", "[12345678901234567890]", "[1e-5000000]"),
    *("[123456789012345678.0]", "[9007199254740993.0]", "[9007199254740993]", '["1234567890123456.78.9"]'),
    *("[" * 64 + "]" * 64, "[" * 65 + "]" * 65, f'["{"[" * 100}"]', "[" * 5000 + "]" * 5000),
    *(
        "[NaN]",
        '["\\ud800"]',
        '["\\ud83d\\ude00"]',
        '["\\udc00"]',
        '"text"',
        "5",
        "null",
        " [1]",
        '[1e309,"\\\\",1e309]',
    ),
    *("[1,]", "[1]x", '["\x01"]', "{1:2}", "[01]", "[1}", "\ufeff[1]"),
    *(
        f'["{"a" * length}",{number},{number}]'
        for length in range(65500, 65550, 7)
        for number in ("1e400", "-0", "0.5")
    ),
]


@pytest.mark.parametrize("text", JSON, ids=lambda text: f"{len(text)}-{text[:20]}")
def test_a_json_text_is_passed_on_as_the_value_that_it_was(text: str):
    """What a client reads of it is what it read of the objects, in every rare case; what is no JSON is none."""
    try:
        value = json_value(text)
    except ValueError:
        with pytest.raises(ValueError):
            json_raw(text)
        return
    raw = json_raw(text)
    if isinstance(raw, msgspec.Raw):
        raw = json.loads(bytes(raw))
    assert json.dumps(raw) == json.dumps(value)


def number(source: random.Random) -> str:
    made = source.choice(["", "-"]) + str(source.randrange(10 ** source.randrange(1, 25)))
    if source.random() < 0.5:
        made += "." + "".join(source.choices("0123456789", k=source.randrange(1, 25)))
    if source.random() < 0.4:
        made += (
            source.choice("eE") + source.choice(["", "+", "-"]) + str(source.randrange(10 ** source.randrange(1, 4)))
        )
    return made


def test_numbers_of_all_lengths_are_passed_on_as_they_were():
    """Thousands of numbers between texts that look like them."""
    source = random.Random(11)
    for _ in range(3000):
        text = f'["{number(source)}",{number(source)},{{"a-0":{number(source)}}},"\\"-0"]'
        raw = json_raw(text)
        assert isinstance(raw, msgspec.Raw)
        assert json.dumps(json.loads(bytes(raw))) == json.dumps(json_value(text)), text


@pytest.mark.unmeasured
@pytest_twisted.ensureDeferred
async def test_b3_stored_json_never_becomes_objects(notes: Store, url: str):
    """Four rows of a MiB of empty lists, which as objects are sixty times as much."""
    tree = "[" + "[]," * (MIB // 3 - 10) + "[]]"
    filled(url, 4, tree)
    tracemalloc.start()
    try:
        result = await asked(notes, "me")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(result, Written)
    assert [row["id"] for row in value_of(result)] == [0, 1, 2, 3]
    assert peak < 24 * MIB


@pytest_twisted.ensureDeferred
async def test_small_results_are_rows_with_their_json_as_it_is(notes: Store):
    """A program gets values, a client the text of lists and objects; both the same plain values."""
    await notes.create("me", "Notes", {"tree": {"a": [1, 2.5]}, "text": "é"})
    await notes.create("me", "Notes", {"tree": "plain"})
    expected = [{"id": 1, "tree": {"a": [1, 2.5]}, "text": "é"}, {"id": 2, "tree": "plain", "text": None}]
    assert await notes.read("me", "Notes", order_by="id") == expected
    rows = await asked(notes, "me", order_by="id")
    assert isinstance(rows[0]["tree"], msgspec.Raw) and rows[1]["tree"] == "plain"
    assert json.loads(msgspec.json.encode(rows)) == expected


@pytest_twisted.ensureDeferred
async def test_large_results_are_the_same_rows(notes: Store, url: str):
    """Many rows, long texts with all that JSON escapes, and long JSON: as a program reads them."""
    for count, values in ((500, {"one": 7}), (0, {})):
        for _ in range(count // 100):
            await notes.create("me", "Numbers", values)
    stored(
        url,
        'INSERT INTO "Numbers" (id, one, two) VALUES (:id, :id, NULL)',
        *({"id": number} for number in range(1000, 2500)),
    )
    command = parse_command({"action": "read", "model": "Numbers"})
    many = (await notes.execute("me", command, as_json=True)).result
    assert isinstance(many, Written) and value_of(many) == await notes.read("me", "Numbers")
    odd = "".join(map(chr, (*range(1, 0xD800), *range(0xE000, 0x11000)))) * 3
    await notes.create("me", "Notes", {"text": odd, "tree": [odd]})
    await notes.create("me", "Notes", {"text": "", "tree": {}})
    large = await asked(notes, "me", order_by="id")
    assert isinstance(large, Written)
    assert value_of(large) == await notes.read("me", "Notes", order_by="id")
    released(large)
    assert notes._budgets.memory.held == 0


@pytest_twisted.ensureDeferred
async def test_answers_to_writes_pass_json_on_too(notes: Store):
    """The row of a create, and the same row again for the same key."""
    values = {"tree": [[], {"a": 0.5}], "text": "x" * 70_000}
    answers = []
    for key in ("one", "one", None):
        request = {"action": "create", "model": "Notes", "values": values, "_idempotencyKey": key}
        answers.append((await notes.execute("me", parse_command(request), "me", as_json=True)).result)
    assert all(isinstance(each["tree"], msgspec.Raw) for each in answers)
    assert [json.loads(msgspec.json.encode(each)) for each in answers] == [
        {"id": id, "tree": [[], {"a": 0.5}], "text": "x" * 70_000} for id in (1, 1, 2)
    ]


@pytest_twisted.ensureDeferred
async def test_a_large_result_holds_as_much_memory_as_it_takes(notes: Store, url: str):
    """From before it is read until it is released; a small one holds none."""
    memory = notes._budgets.memory
    filled(url, 3, json.dumps(["x" * (FREE_BYTES - 1000)]))
    small = await asked(notes, "me", where={"id": 0})
    assert memory.held == 0 and len(small) < FREE_BYTES
    for _ in range(2):
        large = await asked(notes, "me")
        assert memory.held == len(large) > 2 * FREE_BYTES
        released(large)
        released(large)
        assert memory.held == 0


@pytest_twisted.ensureDeferred
async def test_a_read_may_bring_more_than_one_of_its_shape_did_before(notes: Store, url: str):
    """What a read of the same shape came to is a guess: one that brings more is repeated with as much memory as it
    takes, and one that brings too much says so."""
    statement = 'INSERT INTO "Notes" (id, text) VALUES (:id, :text)'
    stored(url, statement, *({"id": number, "text": "x" * MIB} for number in range(18)))
    for most in (2, 5, 15):
        result = await asked(notes, "me", where={"id__lt": most})
        assert len(value_of(result)) == most
        released(result)
    with pytest.raises(InternalError, match="too large"):
        await asked(notes, "me", where={"id__lt": 18})


@pytest_twisted.ensureDeferred
async def test_a_large_result_waits_for_memory_and_holds_no_thread(notes: Store, url: str):
    """Small reads of the same user go on meanwhile; it is read when there is room."""
    memory, account = notes._budgets.memory, notes._budgets.account("me")
    filled(url, 3, json.dumps(["x" * (FREE_BYTES - 1000)]))
    assert memory.hold(account, memory.total // 2)
    ended: list[Any] = []
    waiting = [asked(notes, "me").addCallback(lambda result: ended.append(result) or result) for _ in range(6)]
    assert [row["id"] for row in value_of(await asked(notes, "me", where={"id": 0}))] == [0]
    await wait_until(lambda: not notes._workers.running)
    assert not ended
    another = await asked(notes, "another")
    released(another)
    memory.release(account, memory.total // 2)
    for each in waiting:
        result = await each
        assert len(value_of(result)) == 3
        assert memory.held <= memory.total // 2
        released(result)
    assert memory.held == account.held == 0


@pytest_twisted.ensureDeferred
async def test_a_large_result_is_refused_when_there_is_no_room_in_time(
    postgresql: Cluster, make_store: Callable[..., Store], url: str
):
    """That user is told to try again; others are not concerned."""
    store = make_store(url, SCHEMA, deadline=0.2)
    await store.start()
    memory, account = store._budgets.memory, store._budgets.account("me")
    filled(url, 2, json.dumps(["x" * (FREE_BYTES - 1000)]))
    assert memory.hold(account, memory.total // 2)
    with pytest.raises(TooBusy, match="Large results of yours"):
        await asked(store, "me")
    assert account.refused == 1 and account.held == memory.total // 2
    released(await asked(store, "another"))
    memory.release(account, account.held)


@pytest_twisted.ensureDeferred
async def test_a_read_that_nobody_waits_for_gives_its_memory_back(notes: Store, url: str):
    """While it waits in line, and while a thread is at it: then when that has ended, not before."""
    memory, account = notes._budgets.memory, notes._budgets.account("me")
    filled(url, 4, json.dumps(["x" * (FREE_BYTES - 1000)]))
    released(await asked(notes, "me"))
    assert memory.hold(account, memory.total // 2)
    waiting = asked(notes, "me")
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting
    memory.release(account, memory.total // 2)
    with notes._execution._converting:
        running = asked(notes, "me")
        await wait_until(lambda: len(notes._execution.pool._used) == 1)
        running.cancel()
        with pytest.raises(CancelledError):
            await running
        assert memory.held == account.held > 0
    await wait_until(lambda: not memory.held)
    assert not account.held


@pytest_twisted.ensureDeferred
async def test_what_is_larger_than_any_result_is_refused_at_once(notes: Store, url: str):
    """It waits for nothing, and nothing is held for it; too many rows are said to be just that."""
    memory = notes._budgets.memory
    filled(url, 17, json.dumps(["x" * (MIB - 100)]))
    for _ in range(2):
        with pytest.raises(InternalError, match="Result too large; ask for less with limit or fields"):
            await asked(notes, "me")
    assert memory.held == 0
    stored(url, 'INSERT INTO "Numbers" (id) VALUES (:id)', *({"id": number} for number in range(10_001)))
    command = parse_command({"action": "read", "model": "Numbers"})
    with pytest.raises(Invalid, match="More than 10000 rows match"):
        await notes.execute("me", command, as_json=True)
    assert memory.held == 0


@pytest_twisted.ensureDeferred
async def test_numbers_that_a_column_would_write_out_are_bounded(notes: Store, url: str):
    """PostgreSQL makes 309 digits of 1e308; what is in a text counts for nothing."""
    values: dict[str, Any] = {"tree": ["9e308 " * 20_000, 1e300]}
    made = parse_command({"action": "create", "model": "Notes", "values": values})
    row = (await notes.execute("me", made, as_json=True)).result
    text, number = json.loads(bytes(row["tree"]))
    assert text == values["tree"][0] and float(number) == 1e300
    many = notes.create("me", "Notes", {"tree": [1e308] * 2000})
    if url.startswith("postgresql"):
        with pytest.raises(Invalid, match="tree has too many numbers like 1e308"):
            await many
    else:
        assert (await many)["tree"] == [1e308] * 2000
