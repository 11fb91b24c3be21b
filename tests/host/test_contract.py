"""The host contract: a host gets what it says that it can, and its failures are failures."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
import pytest_twisted
from support.hosts import Running, ZData, host, zdispatch
from support.rows import rows_of_a_test
from support.waiting import wait_until

from zcomm.data.requests import Command, parse_command
from zcomm.errors import CommandError, Invalid, PermissionDenied
from zcomm.host.contract import host_request
from zcomm.interfaces import NO_FIELD_RIGHTS

ALL = ["Alice", "Bob", "Carol"]


class Pair(NamedTuple):
    """A row whose fields have no names in JSON."""

    id: int
    salary: int


@dataclass
class Person:
    """One whose fields have."""

    id: int
    salary: int


#: What clients send to a host, and what becomes of it.
HARMFUL = [
    ("delete_Users", {"where": {"id": 1}}, "invalid"),
    ("delete_Users", {"filters": {"id": 1}}, "invalid"),
    ("delete_Users", {"where": "id = 1"}, "invalid"),
    ("delete_Users", {"all": True}, "invalid"),
    ("delete_Users", {}, "invalid"),
    ("update_Users", {"where": {"id": 1}, "values": {"name": "x"}}, "invalid"),
    ("update_Users", {"where": {"$or": [{"id": 1}]}, "values": {"name": "x"}}, "invalid"),
    ("upsert_Users", {"values": {"id": 1, "name": "x"}, "conflict_fields": ["id"]}, "invalid"),
    ("create_Users", {"values": {"name": "Dora"}}, "invalid"),
    ("create_Loot", {}, "invalid"),
    ("read_Users", {"where": {"id": 1}}, "invalid"),
    ("read_Users", {"filters": {"id": 1}}, "invalid"),
    ("read_Users", {"where": "1=1"}, "invalid"),
    ("read_Users", {"where": 1}, "invalid"),
    # Pasted into SQL, each.
    ("read_Users", {"fields": ["(SELECT sql FROM sqlite_master)"]}, "invalid"),
    ("read_Users", {"fields": "sqlite_version()"}, "invalid"),
    ("read_Users", {"limit": "1; DROP TABLE Users"}, "invalid"),
    ("read_Users", {"limit": True}, "invalid"),
    ("read_Users", {"limit": -1}, "invalid"),
    ("read_Users", {"order_by": "name; DROP TABLE Users"}, "invalid"),
    ("read_Users", {"order_by": [["name"]]}, "invalid"),
    # Names of files, of other databases and of several tables at once.
    ("read_@.zSchema.users", {}, "invalid"),
    ("read_../Users", {}, "invalid"),
    ("read_Users,Salaries", {}, "invalid"),
    ("read_main.Users", {}, "invalid"),
    ("read_Us\u0435rs", {}, "invalid"),
    ("read_Users\n", {}, "invalid"),
    # Keys of the host's own.
    ("read_Users", {"options": {"where": "1=1"}}, "invalid"),
    ("read_Users", {"options": {"_schema_cached": {"sqlite_master": {}}}}, "invalid"),
    ("create_Users", {"options": {"_schema_cached": {"stolen": {}}, "_alias_name": "a"}}, "invalid"),
    ("read_Users", {"tables": ["sqlite_master"]}, "invalid"),
    ("read_Users", {"joins": []}, "invalid"),
    ("read_Users", {"order": "name"}, "invalid"),
    ("read_Users", {"context": {"wizard_mode": True}}, "invalid"),
    ("read_Users", {"_schema_cached": {}}, "invalid"),
    ("read_Users", {"_idempotencyKey": "k"}, "invalid"),
    ("drop_Users", {}, "unknown_command"),
    ("insert_Users", {"values": {"name": "x"}}, "unknown_command"),
    ("list_tables", {}, "unknown_command"),
]


@pytest_twisted.ensureDeferred
async def test_contact_h1_h2_a_host_that_declares_nothing_is_read_and_nothing_else(run: Callable[..., Any]):
    """Whatever a client sends to a zCLI, its rows and tables are as they were; the text of the refusal has the cure."""
    data = ZData()
    client = await (await run(host(data=data), require_auth=False)).client()
    with rows_of_a_test() as row:
        for key, horizontal, code in HARMFUL:
            with row(f"{key} {horizontal}"):
                assert (await client.call(key, horizontal)).get("code") == code
                assert (data.rows, data.tables, data.requests) == (ALL, {"Users"}, [])
    assert "zcomm_filters = True" in (await client.call("delete_Users", {"where": {"id": 1}}))["error"]
    for horizontal in (None, {}, {"where": {}}, {"filters": None}):
        rows = (await client.call("read_Users", horizontal))["result"]
        assert [each["name"] for each in rows] == ALL
    page = {"fields": ["name"], "limit": 1, "order_by": "name DESC", "offset": 0}
    assert (await client.call("read_Users", page))["result"] == [{"name": "Alice"}]
    assert data.requests[-1] == {"action": "read", "model": "Users", **page}


@pytest_twisted.ensureDeferred
async def test_contact_h1_rights_to_some_rows_are_not_void_on_a_host(run: Callable[..., Any]):
    """Where the host cannot be trusted with a filter, who may reach some rows only reaches none."""
    data = ZData()
    policy = 'guest: {models: {Users: {actions: "*", rows: {name: Alice}}}}'
    client = await (await run(host(data=data), require_auth=False, policy=policy)).client()
    with rows_of_a_test() as row:
        for key, horizontal in [
            ("read_Users", {}),
            ("delete_Users", {"where": {"name": "Alice"}}),
            ("delete_Users", {"all": True}),
            ("update_Users", {"where": {"id": 2}, "values": {"name": "Alice"}}),
            ("create_Users", {"values": {"name": "Alice"}}),
        ]:
            with row(key):
                reply = await client.call(key, horizontal)
                assert reply["code"] in ("invalid", "permission_denied") and "zcomm_filters" in reply["error"]
    assert (data.rows, data.requests) == (ALL, [])


class Declared:
    """Data that takes filters. Remembers what it was asked and answers as it is told."""

    zcomm_filters = True

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.answer: Any = {"id": 1}

    def handle_request(self, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        return self.answer


def test_contact_a_value_of_another_type_is_another_value():
    """To Python 1 is ``true`` and 1.0; what a host makes of them is not for zComm to know."""
    alike = [1, True, 1.0, "1"], [0, False, 0.0, -0.0, "", "0", None]
    with rows_of_a_test() as row:
        for values in alike:
            for granted in (each for each in values if type(each) in (int, bool, str)):
                for given in values:
                    for key in ("values", "where"):
                        with row(f"{granted!r} {key} {given!r}"):
                            asked = {"where": {"id": 1}, "values": {"name": "x"}}
                            asked[key] = {"level": given}
                            command = Command(action="update", model="Notes", **asked)
                            if type(given) is type(granted) and given == granted:
                                made = host_request(command, {"level": granted}, NO_FIELD_RIGHTS, takes_filters=True)
                                assert made["where"]["level"] is granted
                                continue
                            with pytest.raises(PermissionDenied):
                                host_request(command, {"level": granted}, NO_FIELD_RIGHTS, takes_filters=True)


@pytest_twisted.ensureDeferred
async def test_contact_h2_only_known_keys_of_the_right_type_pass(run: Callable[..., Any]):
    """Also to a host that takes filters: it may put names into SQL, as its own examples do."""
    data = Declared()
    client = await (await run(host(data=data), require_auth=False)).client()
    refused = [
        *(each for each in HARMFUL if each[1].keys() & {"options", "tables", "joins", "order", "context"}),
        ("read_Users", {"where": "1=1"}),
        ("read_Users", {"where": [1]}),
        ("read_Users", {"where": {"id = 1 OR 1": 1}}),
        ("read_Users", {"where": {"$or": {"id": 1}}}),
        ("read_Users", {"where": {"$or": ["1=1"]}}),
        ("read_Users", {"where": {"$where": "1=1"}}),
        ("read_Users", {"where": {"$not": None}}),
        ("read_Users", {"where": {"": 1}}),
        ("read_Users", {"where": {"id": 1}, "filters": {"id": 2}}),
        ("create_Users", {"values": [1]}),
        ("create_Users", {"values": {"name) VALUES (1); --": 1}}),
        ("create_Users", {"values": {"name": 1}, "where": {"id": 1}}),
        ("upsert_Users", {"values": {"id": 1}, "conflict_fields": "id"}),
        ("upsert_Users", {"values": {"id": 1}, "conflict_fields": ["id) DO NOTHING --"]}),
        ("update_Users", {"where": {}, "values": {"a": 1}}),
        ("update_Users", {"where": {"$and": []}, "values": {"a": 1}}),
        ("update_Users", {"where": {"$and": [{}, {"$or": [{"id": 1}, {}]}]}, "values": {"a": 1}}),
        ("update_Users", {"where": {"$not": {"$or": []}}, "values": {"a": 1}}),
        ("delete_Users", {"where": {"id": 1}, "all": True}),
        ("delete_Users", {"all": "yes"}),
        ("delete_Users", {"where": {"$not": {"$not": {}}}}),
    ]
    with rows_of_a_test() as row:
        for key, horizontal, *_ in refused:
            with row(f"{key} {horizontal}"):
                assert (await client.call(key, horizontal)).get("code") == "invalid" and data.requests == []
        for key, horizontal, passed in [
            ("delete_Users", {"filters": {"id": 1}}, {"where": {"id": 1}}),
            ("delete_Users", {"where": {"$or": []}}, {"where": {"$or": []}}),
            ("delete_Users", {"where": {"$not": {}}}, {"where": {"$not": {}}}),
            ("delete_Users", {"all": True}, {"all": True}),
            ("delete_Users", {"where": {}, "all": True}, {"where": {}, "all": True}),
            ("read_Users", {"where": {"größe__gte": 1, "$not": {"a": None}}}, None),
            ("update_Users", {"where": {"id": [1, 2]}, "values": {"größe": {"x y": 1}}}, None),
            ("upsert_Users", {"values": {"id": 1}, "conflict_fields": ["id"]}, None),
            ("read_Users", {"order_by": ["a DESC", " b "], "offset": 2}, None),
        ]:
            with row(f"{key} {horizontal}"):
                data.answer = {"deleted": 1}
                assert "result" in await client.call(key, horizontal)
                action = key.partition("_")[0]
                assert data.requests == [{"action": action, "model": "Users", **(passed or horizontal)}]
                data.requests.clear()


def test_contact_h2_a_filter_that_is_very_deep():
    """It is refused before anything walks it to its end."""
    where: dict[str, Any] = {"id": 1}
    for _ in range(9):
        where = {"$not": where}
    with pytest.raises(Invalid, match="deep"):
        host_request(
            parse_command({"action": "read", "model": "Users", "where": where}), {}, NO_FIELD_RIGHTS, takes_filters=True
        )


@pytest_twisted.ensureDeferred
async def test_contact_h2_a_model_in_another_case_is_the_same_model(run: Callable[..., Any]):
    """A line of the policy that narrows is not passed by where the host's database does not tell case."""
    data = Declared()
    policy = 'guest: {models: {"*": [read, create], Salaries: [], Notes: {actions: "*", rows: {owner: me}}}}'
    client = await (await run(host(data=data), require_auth=False, policy=policy)).client()
    for model in ("Salaries", "salaries", "SALARIES", "notes", "nOTES"):
        assert (await client.call(f"read_{model}"))["code"] == "permission_denied"
    assert data.requests == []
    assert "result" in await client.call("read_Others") and "result" in await client.call("read_Notes")


class ByRole:
    """Users whose tokens say their role."""

    def validate(self, token: str) -> dict[str, str]:
        return {"username": token, "role": token.removesuffix("-token")}


FIELDS = """
guest:
  models:
    Staff: {actions: "*", fields: {hide: [salary, in], readonly: [role]}}
    Gone: {actions: [read], fields: {readonly: [role]}}
"""


@pytest_twisted.ensureDeferred
async def test_a_host_is_asked_for_no_field_that_is_hidden(run: Callable[..., Any]):
    """Nor for one that to its database may be the same; what is read-only it is not given to write."""
    data = Declared()
    client = await (await run(host(data=data), require_auth=False, policy=FIELDS)).client()
    named: list[Callable[[str], tuple[str, dict[str, Any]]]] = [
        lambda name: ("read", {"fields": ["id", name]}),
        lambda name: ("read", {"order_by": f"id, {name} desc"}),
        lambda name: ("read", {"order_by": [name]}),
        lambda name: ("read", {"where": {name: 1}}),
        lambda name: ("read", {"where": {f"{name}__gte": 1}}),
        lambda name: ("read", {"where": {f"{name}__what": 1}}),
        lambda name: ("read", {"where": {f"team__{name}": 1}}),
        lambda name: ("read", {"where": {f"team__{name}__in": [1]}}),
        lambda name: ("read", {"filters": {"$or": [{"$not": {"$and": [{f"{name}__isnull": True}]}}]}}),
        lambda name: ("create", {"values": {name: 1}}),
        lambda name: ("update", {"where": {"id": 1}, "values": {name: 1}}),
        lambda name: ("update", {"where": {name: 1}, "values": {"id": 1}}),
        lambda name: ("delete", {"where": {f"{name}__lt": 1}}),
        lambda name: ("upsert", {"values": {"id": 1}, "conflict_fields": [name]}),
    ]
    with rows_of_a_test() as row:
        for each in named:
            for name in ("salary", "SALARY", "ｓalary"):
                action, asked = each(name)
                with row(f"{action} {asked}"):
                    reply = await client.call(f"{action}_Staff", asked)
                    assert reply["code"] == "unknown_field" and data.requests == []
        for action, asked in (
            ("create", {"values": {"role": 1}}),
            ("update", {"where": {"role": 1}, "values": {"Role": 1}}),
            ("upsert", {"values": {"id": 1, "role": 1}, "conflict_fields": ["id"]}),
        ):
            with row(f"{action} {asked}"):
                reply = await client.call(f"{action}_Staff", asked)
                assert reply["code"] == "permission_denied" and list(reply["fields"]) in (["role"], ["Role"])
                assert data.requests == []
        for asked in (
            {"where": {"id__in": [1], "role__in": [2]}},
            {"where": {"id": {"salary": 1}}},
            {"order_by": "role"},
        ):
            with row(f"read {asked}"):
                assert "result" in await client.call("read_Staff", asked)


@pytest_twisted.ensureDeferred
async def test_what_is_hidden_is_in_no_answer_of_a_host(run: Callable[..., Any]):
    """It is taken out wherever it stands; an answer whose fields nobody could tell is none. Counts are left alone."""
    data = Declared()
    client = await (await run(host(data=data), require_auth=False, policy=FIELDS)).client()
    shown = [
        ({"id": 1, "salary": 5, "SALARY": 5, "role": "x"}, {"id": 1, "role": "x"}),
        ([{"id": 1, "salary": 5}, {"salary": 6}], [{"id": 1}, {}]),
        (({"id": 1, "salary": 5},), [{"id": 1}]),
        ({"rows": [{"salary": 5, "of": {"salary": [1]}}], "n": 1}, {"rows": [{"of": {}}], "n": 1}),
        ([], []),
        (Person(1, 5), {"id": 1}),
        ([Person(1, 5), {"id": Decimal("1.50"), "at": date(2024, 10, 15), "big": 2**70}], None),
        ([msgspec.Raw(b'{"salary": 5, "id": 7}')], [{"id": 7}]),
    ]
    with rows_of_a_test() as row:
        for data.answer, wanted in shown:
            for key in ("read_Staff", "create_Staff", "upsert_Staff"):
                with row(f"{key} {data.answer}"):
                    result = (await client.call(key, {}))["result"]
                    if wanted is None:
                        wanted = [{"id": 1}, {"id": "1.50", "at": "2024-10-15", "big": 2**70}]
                    assert result == wanted
        for data.answer in (5, "5", True, [5], [[5]], [{"id": 1}, (1, 5)], Pair(1, 5), [Pair(1, 5)], object()):
            with row(f"{data.answer}"):
                reply = await client.call("read_Staff")
                assert reply["code"] == "internal" and "5" not in reply["error"]
        for data.answer, wanted in (
            ({"updated": 5}, {"updated": 5}),
            (5, 5),
            ({"updated": {"salary": 5}}, {"updated": {}}),
        ):
            with row(f"{data.answer}"):
                asked = {"where": {"id": 1}, "values": {"id": 2}}
                assert (await client.call("update_Staff", asked))["result"] == wanted


@pytest_twisted.ensureDeferred
async def test_others_hear_of_a_hosts_row_what_they_may_see(run: Callable[..., Any]):
    """Whoever wrote it. An answer of another form than rows of plain values is to be read anew by all, where a field is
    hidden from anybody."""
    data = Declared()
    policy = FIELDS + 'user: {models: "*"}\n'
    guest, boss, other = "guest-token", "user-token", "user-token"
    running = await run(host(data=data, auth=ByRole()), policy=policy)
    clients = [await running.client(token) for token in (guest, boss, other)]

    async def heard(asker: int, key: str, answer: Any) -> list[Any]:
        data.answer = answer
        asked = {"where": {"id": 1}, "values": {"id": 2}} if key.startswith("update") else {"values": {"id": 2}}
        assert "result" in await clients[asker].call(key, asked)
        told = [await client.next_json() for number, client in enumerate(clients) if number != asker]
        assert all(message.pop("zKey") == key for message in told)
        return told

    row, cut = {"id": 1, "salary": 5, "name": "x"}, {"id": 1, "name": "x"}
    many = {"many": True}
    with rows_of_a_test() as case:
        for number, (asker, key, answer, told) in enumerate(
            [
                (0, "create_Staff", row, [{"result": row}, {"result": row}]),
                (1, "create_Staff", row, [{"result": cut}, {"result": row}]),
                (1, "update_Staff", [row, row], [{"result": [cut, cut]}, {"result": [row, row]}]),
                (1, "update_Staff", {"updated": 1}, [{"result": {"updated": 1}}, {"result": {"updated": 1}}]),
                (1, "create_Staff", {"id": 1, "SALARY": 5}, [many, many]),
                (1, "create_Staff", {"rows": [row]}, [many, many]),
                (0, "create_Staff", {"id": 1, "of": {"salary": 5}}, [many, many]),
                (1, "create_Staff", [Pair(1, 5)], [many, many]),
                (1, "create_Other", {"rows": [row]}, [{"result": {"rows": [row]}}]),
            ]
        ):
            with case(f"{number} {answer}"):
                if key == "create_Other":
                    data.answer = answer
                    assert "result" in await clients[1].call(key, {"values": {"id": 2}})
                    assert await clients[2].next_json() == {"zKey": key, "result": answer}
                else:
                    assert await heard(asker, key, answer) == told
    assert not [each for each in clients[0].received if b"salary" in getattr(each, "payload", b"").lower()]


@pytest_twisted.ensureDeferred
async def test_a_host_without_filters_cannot_keep_fields(run: Callable[..., Any]):
    """Nobody knows what it does with a name, so it is not asked; the error says what would help."""
    client = await (await run(host(data=ZData()), require_auth=False, policy=FIELDS)).client()
    for model in ("Staff", "Gone"):
        reply = await client.call(f"read_{model}")
        assert reply["code"] == "permission_denied" and "zcomm_filters = True" in reply["error"]


POLICY = """
guest: {models: {Users: [read]}, commands: [known, zFunc, zWizard, zBack, failed, broken, counted]}
other: {commands: [others]}
"""
PWN = "__import__('os').mkdir({!r})"


@pytest_twisted.ensureDeferred
async def test_contact_h3_a_dispatcher_gets_what_a_policy_names(run: Callable[..., Any], tmp_path: Path):
    """The key itself or its own form, of a key that stands there by its name; no object, and nothing of another key."""
    asked: list[Any] = []

    def dispatch(key: str, horizontal: Any, walker: Any) -> Any:
        asked.append((key, horizontal))
        return zdispatch(key, horizontal, walker)

    pwn = PWN.format(str(tmp_path / "pwned"))
    walker = SimpleNamespace(data=ZData(), zDispatch=dispatch)
    client = await (await run(host(), walker=walker, require_auth=False, policy=POLICY)).client()
    with rows_of_a_test() as row:
        for key, horizontal, code in [
            ("known", f"zWizard({pwn})", "invalid"),
            ("zFunc", f"zWizard({pwn})", "invalid"),
            ("zFunc", f" zFunc({pwn})", "invalid"),
            ("known", "other", "invalid"),
            ("known", "known(", "invalid"),
            ("known", {"zWizard": pwn}, "invalid"),
            ("known", {"model": "Users"}, "invalid"),
            ("known", [], "invalid"),
            ("known", 1, "invalid"),
            ("zFunc", {"name": "f", "args": []}, "invalid"),
            ("others", None, "permission_denied"),
            ("zOpen", "zOpen(/etc/passwd)", "not_found"),
            ("zLink", f"zWizard({pwn})", "unknown_command"),
            ("nobody", f"zWizard({pwn})", "permission_denied"),
            (f"zWizard({pwn})", None, "permission_denied"),
            ("known!", None, "permission_denied"),
            ("^known", None, "permission_denied"),
        ]:
            with row(f"{key} {horizontal}"):
                assert (await client.call(key, horizontal)).get("code") == code and asked == []
    assert not (tmp_path / "pwned").exists()
    assert (await client.call("known"))["result"] == "known"
    assert (await client.call("known", "known(a)"))["result"] == "known(a)"
    assert (await client.call("zFunc", "zFunc([1, 2])"))["result"] == [1, 2]
    assert asked == [("known", "known"), ("known", "known(a)"), ("zFunc", "zFunc([1, 2])")]
    assert (await client.call("read_Users"))["result"][0]["name"] == "Alice"


@pytest_twisted.ensureDeferred
async def test_contact_a_dispatcher_gets_one_call(run: Callable[..., Any]):
    """Whether a host goes by the first parenthesis, by the last, by pairs or by lines."""
    asked: list[Any] = []
    walker = SimpleNamespace(zDispatch=lambda key, horizontal, walker: asked.append(horizontal))
    client = await (await run(host(), walker=walker, require_auth=False, policy=POLICY)).client()
    single = [
        "known",
        "known()",
        "known(config.yaml, -1.5e3, true, null)",
        "known(&plugin.f, @.zSchema.users, %session.user)",
        "known({cart_id: 123, 'items': [1, [], {}]})",
        'known("Ann O\'Neil, 5 Main St. #3", "50% = half; and more")',
        "known(हिन्दी ’ 日本)",
        "known(" + "a" * 16_377 + ")",
    ]
    for text in single:
        assert "result" in await client.call("known", text), text
    assert asked == single
    asked.clear()
    with rows_of_a_test() as row:
        for text in [
            *(
                f"known({inner})"
                for inner in [
                    "a);zOpen(b",
                    "a) zOpen(b",
                    "a)\nzOpen(b",
                    "a\nzOpen: b",
                    "a\r",
                    "a\u2028b",
                    "a\x00",
                    "\u202e1",
                    "\u200b",
                    "zOpen(b)",
                    '"zOpen(b)"',
                    "\\)",
                    "a)",
                    "(a",
                    "\uff08a\uff09",
                    "a\ufe5a;",
                    "\u2474",
                    "a" * 16_378,
                ]
            ),
            "known(a) ",
            " known(a)",
            "known (a)",
            "Known(a)",
            "known\uff08a\uff09",
            "\uff4bnown(a)",
            "known(a)(b)",
            "known(",
            "known)",
            "known(a);",
        ]:
            with row(repr(text[:60])):
                reply = await client.call("known", text)
                assert reply.get("code") == "invalid" and "zHorizontal" in reply["fields"] and asked == [], reply


@pytest_twisted.ensureDeferred
async def test_contact_a_field_that_looks_like_a_granted_one_is_that_one(run: Callable[..., Any]):
    """A program may read letters by their compatibility form, as Python does in names."""
    data = Declared()
    policy = "guest: {models: {Users: {actions: [read, create], rows: {owner: me}}}}"
    client = await (await run(host(data=data), require_auth=False, policy=policy)).client()
    for field in ("OWNER", "\uff4fwner", "o\uff37ner"):
        reply = await client.call("create_Users", {"values": {field: "you"}})
        assert reply["code"] == "permission_denied", field
        assert (await client.call("read_Users", {"where": {field: "you"}}))["code"] == "permission_denied", field


@pytest_twisted.ensureDeferred
async def test_contact_h3_a_star_and_no_policy_name_nothing(run: Callable[..., Any]):
    """Then a dispatcher is never asked, and what zComm has itself is there as if there were none."""
    asked: list[Any] = []
    for policy in ("", 'guest: {models: "*", commands: "*"}', 'guest: {models: "*", commands: ["*"]}'):
        running = await run(
            host(data=ZData(), zDispatch=lambda *all: asked.append(all)), require_auth=False, policy=policy
        )
        client = await running.client()
        for key, horizontal in (("known", None), ("zWizard", "zWizard(1)"), ("zFunc", "zFunc(f)"), ("zDialog", {})):
            assert (await client.call(key, horizontal))["code"] in ("unknown_command", "permission_denied")
        assert len((await client.call("read_Users"))["result"]) == 3
    policy = 'guest: {commands: ["*", known]}\nother: {commands: [others]}'
    client = await (await run(host(zDispatch=zdispatch), require_auth=False, policy=policy)).client()
    assert (await client.call("known"))["result"] == "known"
    assert (await client.call("others"))["code"] == "unknown_command"
    assert asked == []


FAILURES = [False, "error", None, [None], [{"id": 1}, False], ["error"], (None,)]


@pytest_twisted.ensureDeferred
async def test_contact_h5_failures_of_a_host_are_errors_and_nobody_else_hears_of_them(run: Callable[..., Any]):
    """What says that it failed is no result, of no action; zero, nothing found and empty are results."""
    data = Declared()
    running = await run(host(data=data), require_auth=False, broadcast="all")
    client, other = await running.client(), await running.client()
    commands = [
        ("create_Users", {"values": {"a": 1}}),
        ("read_Users", {}),
        ("update_Users", {"where": {"id": 1}, "values": {"a": 1}}),
        ("delete_Users", {"where": {"id": 1}}),
        ("upsert_Users", {"values": {"a": 1}}),
    ]
    with rows_of_a_test() as row:
        for failure in FAILURES:
            data.answer = failure
            for key, horizontal in commands:
                with row(f"{key} {failure!r}"):
                    reply = await client.call(key, horizontal)
                    assert reply["code"] == "internal" and reply["retryable"] is False
    for answer in (0, [], {}, "", "errors", True, 1, [0], [{"error": None}], {"deleted": 0}):
        data.answer = answer
        assert (await client.call("delete_Users", {"where": {"id": 1}}))["result"] == answer
        # The next that others hear is this one, so none of the failures was told.
        assert await other.next_json() == {"zKey": "delete_Users", "result": answer}


@pytest_twisted.ensureDeferred
async def test_contact_h5_failures_of_a_dispatcher_are_errors(run: Callable[..., Any]):
    """Nothing at all is a result there: it is what many commands of a zCLI return."""
    running = await run(host(zDispatch=zdispatch), require_auth=False, broadcast="all", policy=POLICY)
    client, other = await running.client(), await running.client()
    for key in ("failed", "broken"):
        assert (await client.call(key))["code"] == "internal"
    for key, result in (("zBack", None), ("counted", 0), ("known", "known")):
        assert (await client.call(key))["result"] == result
        assert await other.next_json() == {"zKey": key, "result": result}


class Fragile:
    """A host whose parts get in each other's way."""

    zcomm_filters = True

    def __init__(self) -> None:
        self.session: dict[str, Any] = {}
        self.data = self
        self.inside = self.most = self.calls = 0
        self.gate = threading.Event()
        self._lock = threading.Lock()

    @contextmanager
    def _request(self) -> Iterator[None]:
        with self._lock:
            self.inside += 1
            self.calls += 1
            self.most = max(self.most, self.inside)
        self.gate.wait(30)
        yield
        with self._lock:
            self.inside -= 1

    def handle_request(self, request: dict[str, Any]) -> Any:
        with self._request():
            return [request["model"]]

    def zDispatch(self, key: str, horizontal: Any, walker: Any) -> Any:
        with self._request():
            return key


CONCURRENT = 'guest: {models: "*", commands: [known]}'


async def several(running: list[Running], clients: list[Any], fragile: Fragile, inside: int) -> None:
    """Let each client ask several things, and wait until as many of them are inside as can be."""
    for client in clients:
        # The reply to the ping says that the command before it has begun.
        client.send_json({"zKey": "read_Users", "_requestId": 1})
        client.send_json({"zKey": "known", "_requestId": 2})
        assert (await client.call("ping"))["result"] == "ping"
    await wait_until(lambda: fragile.inside == inside, "the host's requests")
    fragile.gate.set()
    for client in clients:
        found = {}
        while len(found) < 2:
            reply = await client.next_json()
            found[reply["_requestId"]] = reply["result"]
        assert found == {1: ["Users"], 2: "known"}
    assert fragile.calls == 2 * len(clients) and fragile.inside == 0


@pytest_twisted.ensureDeferred
async def test_contact_h5_requests_to_one_host_run_one_at_a_time(run: Callable[..., Any]):
    """Of all clients, of data and dispatcher, and of two zComms on the same host; nobody else waits with them."""
    fragile = Fragile()
    running = [await run(fragile, require_auth=False, policy=CONCURRENT) for _ in range(2)]
    clients = [await one.client() for one in running for _ in range(2)]
    await several(running, clients, fragile, 1)
    assert fragile.most == 1


@pytest.mark.parametrize("where", ["data", "host"])
@pytest_twisted.ensureDeferred
async def test_contact_h5_several_at_once_where_the_host_says_so(run: Callable[..., Any], where: str):
    """As many as it is asked."""
    fragile = Fragile()
    if where == "host":
        fragile.zcomm_concurrent = True
        running = [await run(fragile, require_auth=False, policy=CONCURRENT)]
        inside = 4
    else:
        data = SimpleNamespace(handle_request=fragile.handle_request, zcomm_filters=True, zcomm_concurrent=True)
        whole = SimpleNamespace(session={}, data=data, zDispatch=fragile.zDispatch)
        running = [await run(whole, require_auth=False, policy=CONCURRENT)]
        # The two reads, and one of the two commands, which nobody said may run together.
        inside = 3
    await several(running, [await running[0].client() for _ in range(2)], fragile, inside)
    assert fragile.most == inside


@pytest.mark.parametrize("declared", [1, "yes", "True", object(), lambda: True])
def test_contact_h1_only_true_is_a_declaration(declared: Any):
    """A host that answers to every name, as a mock does, has said nothing."""
    from zcomm.auth.policy import AllowAll
    from zcomm.host import HostCrud
    from zcomm.interfaces import Identity, Request

    asked: list[Any] = []
    data = SimpleNamespace(handle_request=asked.append, zcomm_filters=declared)
    client = SimpleNamespace(id=1, identity=Identity("a", "b"))
    crud = HostCrud(data, AllowAll(), SimpleNamespace(run=lambda owner, call, *given: call(*given)))
    with pytest.raises(CommandError, match="zcomm_filters"):
        crud.respond(Request(key="delete_Users", horizontal={"all": True}), client)
    assert asked == []
