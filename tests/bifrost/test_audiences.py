"""Who hears of a result that names no audience: those who may ask for the same."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import Frame, Opcode, RawClient
from support.served import Served

from zcomm import Outcome
from zcomm.auth.policy import AllowAll
from zcomm.interfaces import EVERYBODY, NO_FIELD_RIGHTS, Audience, FieldRights, Identity, Rows
from zcomm.testing import MemoryServer, assert_reply

ROLES = ("admin", "guest", "blind")


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await start(broadcast=…)`` is a server with a policy and commands of its own."""
    servers: list[Served] = []

    async def start(**options: Any) -> Served:
        server = Served(tmp_path, policy=True, **options)
        servers.append(server)
        command = server.bifrost.command
        command("plain")(lambda horizontal: horizontal)
        command("odd")(lambda: (1, 2))

        @command("later")
        async def later() -> dict[str, int]:
            return {"later": 1}

        @command("asking")
        async def asking(horizontal: Any, client: Any) -> Any:
            return await server.bifrost.ask(client, "Name")

        command("unnamed")(lambda: Outcome("unnamed", changed=True))
        command("shouted", broadcast=True)(lambda: Outcome("shouted", changed=True))
        command("quiet")(lambda: Outcome("quiet"))
        command("public")(lambda: Outcome("public", changed=True, audience=EVERYBODY))
        command("read")(lambda: Outcome("read", changed=True, audience=Audience("model", "Users")))
        return await server.start()

    yield start
    for server in servers:
        server.forget()
        await server.stop()


async def ask_everything(client: RawClient) -> None:
    """One command of every kind, each of which is answered."""
    for key, horizontal in (
        ("plain", {"secret": 1}),
        ("odd", None),
        ("later", None),
        ("unnamed", None),
        ("shouted", None),
        ("quiet", None),
        ("public", None),
        ("read", None),
        ("zOpen", "zOpen(config.yaml)"),
        ("zOpen(config.yaml)", None),
        ("zLink", "zLink(/admin/users)"),
        ("zFunc", "zFunc(echo, 1)"),
        ("read_Users", {}),
        ("zDescribe", None),
    ):
        assert "result" in await client.call(key, horizontal), key
    client.send_json({"zKey": "asking", "_requestId": "asking"})
    asked = await client.next_json()
    assert (await client.call("zAnswer", {"askId": asked["askId"], "value": "Ann"}))["result"] is True


async def heard(client: RawClient) -> list[str]:
    """The keys of the broadcasts that have come."""
    assert (await client.call("ping", "the end"))["result"] == "the end"
    texts = [
        json.loads(item.payload) for item in client.received if isinstance(item, Frame) and item.opcode == Opcode.TEXT
    ]
    return [text["zKey"] for text in texts if "zKey" in text and text["zKey"] != "ping"]


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        (
            "all",
            {
                "admin": [
                    "plain",
                    "odd",
                    "later",
                    "unnamed",
                    "shouted",
                    "quiet",
                    "public",
                    "read",
                    "zOpen",
                    "zOpen(config.yaml)",
                    "zLink",
                    "zFunc",
                    "read_Users",
                    "asking",
                ],
                "guest": ["public", "read", "read_Users"],
                "blind": ["public"],
            },
        ),
        (
            "changes",
            {"admin": ["unnamed", "shouted", "public", "read"], "guest": ["public", "read"], "blind": ["public"]},
        ),
        ("none", {"admin": [], "guest": [], "blind": []}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_contact_a06_who_may_not_ask_hears_none(start: Callable[..., Any], mode: str, keys: dict[str, list[str]]):
    """Files, pages, functions and commands by their own rights, in every mode; the server's own commands never."""
    server = await start(broadcast=mode)
    others = {role: await server.client(token=server.tokens[role]) for role in ROLES}
    await ask_everything(await server.client())
    assert {role: await heard(client) for role, client in others.items()} == keys


def test_everybody_may_ping():
    """So everybody hears of it where all is told, as of everything where all may ask for all."""
    server = MemoryServer({"plain": lambda: 1}, broadcast="all")
    one, other = server.connect(), server.connect()
    one.call("ping", 5)
    one.call("plain")
    assert other.messages == [{"zKey": "ping", "result": 5}, {"zKey": "plain", "result": 1}]


class Narrow(AllowAll):
    """Rights by the role: which fields are hidden, and which rows are reached."""

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return {"owner": identity.name} if identity.role == "own" else {}

    def fields(self, identity: Identity, model: str) -> FieldRights:
        if identity.role == "wrong":
            raise RuntimeError("no rights to be had")
        return FieldRights(hide=["pay"]) if identity.role == "clerk" else NO_FIELD_RIGHTS


def test_fields_are_hidden_from_each_hearer():
    """Within one turn, in order, between messages of which all hear the same; from others nothing is kept."""
    staff = {"owner": "ann", "pay": 5}
    server = MemoryServer(permissions=Narrow())
    server.bifrost.command("staff")(
        lambda: Outcome(staff, changed=True, audience=Audience("model", "Staff", {"owner": "ann"}))
    )
    server.bifrost.command("plain", broadcast=True)(lambda: 1)
    sender = server.connect(identity=Identity("root", "admin"))
    hearers = {
        role: server.connect(identity=Identity(name, role))
        for role, name in (("admin", "x"), ("clerk", "y"), ("own", "ann"), ("wrong", "z"))
    }
    stranger = server.connect(identity=Identity("bob", "own"))
    for key in ("plain", "staff", "plain", "staff"):
        sender.call(key)
    server.settle()
    plain = {"zKey": "plain", "result": 1}

    def told(**row: Any) -> list[dict[str, Any]]:
        return [plain, {"zKey": "staff", "result": row}] * 2

    assert {role: client.messages for role, client in hearers.items()} == {
        "admin": told(owner="ann", pay=5),
        "clerk": told(owner="ann"),
        "own": told(owner="ann", pay=5),
        "wrong": [plain, plain],
    }
    assert stranger.messages == [plain, plain]


@pytest_twisted.ensureDeferred
async def test_each_hears_of_a_row_what_it_may_see_whoever_wrote_it(tmp_path: Path):
    """Who wrote it may see less than others: they hear all that they may see themselves."""
    (tmp_path / "schema.yaml").write_text(
        "Staff: {id: {type: int, pk: true}, name: str, pay: {type: int, default: 5}, owner: str}"
    )
    policy = """
boss: {models: "*"}
clerk: {models: {Staff: {actions: "*", fields: {hide: [pay]}}}}
owner: {models: {Staff: {actions: "*", rows: {owner: $name}, fields: {hide: [owner]}}}}
"""
    server = await Served(tmp_path, policy=policy, config={"schemas": (tmp_path / "schema.yaml",)}).start()
    clients = {
        name: await server.client(token=server.store.add(name, role).token)
        for name, role in (("bea", "boss"), ("cid", "clerk"), ("ann", "owner"), ("bob", "owner"))
    }
    fields = {"bea": ("id", "name", "pay", "owner"), "cid": ("id", "name", "owner"), "ann": ("id", "name", "pay")}
    for number, (asker, values) in enumerate(
        [
            ("bea", {"name": "x", "owner": "ann"}),
            ("cid", {"name": "y", "owner": "ann"}),
            ("ann", {"name": "z"}),
        ],
        1,
    ):
        row = {"id": number, "name": values["name"], "pay": 5, "owner": "ann"}
        reply = await clients[asker].call("create_Staff", {"values": values})
        assert reply["result"] == {name: row[name] for name in fields[asker]}
        for name, client in clients.items():
            if name not in (asker, "bob"):
                told = {"zKey": "create_Staff", "result": {each: row[each] for each in fields[name]}}
                assert await client.next_json() == told
    for name in ("ann", "bob"):
        assert (await clients[name].call("ping", 1))["result"] == 1
    assert not [item for item in clients["bob"].received if isinstance(item, Frame) and b"Staff" in item.payload]
    server.forget()
    await server.stop()


def test_what_the_others_hear_may_be_more_than_the_result():
    """A command answers its caller with one thing and tells the others another, each as far as it may."""
    server = MemoryServer(permissions=Narrow())
    rows = Rows(("id",), ("pay", "name"), ("owner",), (("ann",), ("bob",)))
    changes = [{"id": number, "values": {"pay": number, "name": "n"}} for number in (1, 2)]

    def raised() -> Outcome:
        told = {"result": {"updated": 2}, "changes": changes}
        return Outcome({"updated": 2}, changed=True, audience=Audience("model", "Staff", None, rows), told=told)

    server.bifrost.command("raise")(raised)
    sender, admin, clerk, ann, eve = (
        server.connect(identity=Identity(*who))
        for who in (("root", "admin"), ("x", "admin"), ("y", "clerk"), ("ann", "own"), ("eve", "own"))
    )
    assert_reply(sender.call("raise"), {"updated": 2})
    server.settle()
    assert admin.messages == [{"zKey": "raise", "result": {"updated": 2}, "changes": changes}]
    names = [{"id": number, "values": {"name": "n"}} for number in (1, 2)]
    assert clerk.messages == [{"zKey": "raise", "result": {"updated": 2}, "changes": names}]
    assert ann.messages == [{"zKey": "raise", "result": {"updated": 1}, "changes": changes[:1]}]
    assert eve.messages == []


class Role:
    """What a policy grants a role, and by that what it hears of: the rule of docs/security.rst, written once more."""

    def __init__(self, chosen: random.Random):
        self.models = {
            model: chosen.choice([None, ["read"], "*", ["create", "update", "delete"], {"owner": "$name"}])
            for model in ("Notes", "Tags")
        }
        self.names = {
            section: [name for name in names if chosen.random() < 0.4]
            for section, names in {
                "functions": ["echo", "calculateTotal"],
                "pages": ["/", "/admin/users"],
                "files": ["config.yaml", "missing.yaml"],
                "commands": ["plain", "odd"],
            }.items()
        }

    def policy(self) -> dict[str, Any]:
        models = {
            model: {"actions": "*", "rows": granted} if isinstance(granted, dict) else granted
            for model, granted in self.models.items()
            if granted is not None
        }
        return {"models": models, **self.names}

    def reached(self, user: str, model: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Those of ``rows`` that it may read, where it may read the model."""
        return [row for row in rows if not isinstance(self.models[model], dict) or row["owner"] == user]

    def hears(self, user: str, kind: str, name: str, rows: list[dict[str, Any]] | None = None) -> bool:
        """Whether it hears of a result of that command; ``rows`` are those whose content it tells."""
        if kind == "everybody":
            return True
        if kind != "models":
            return kind in self.names and name in self.names[kind]
        granted = self.models[name]
        if isinstance(granted, dict):
            # What is read are the rows in reach of who has asked.
            return rows is None or (len(rows) == 1 and rows[0].get("owner") == user)
        return granted is not None and (granted == "*" or "read" in granted)


def a_command(chosen: random.Random, users: list[str]) -> tuple[str, Any, str, str]:
    """A message, and what it is of."""
    model, user = chosen.choice(["Notes", "Tags"]), chosen.choice(users)
    file, page = chosen.choice(["config.yaml", "missing.yaml"]), chosen.choice(["/", "/admin/users", "/none"])
    function = chosen.choice(["echo", "calculateTotal"])
    key = chosen.choice(["plain", "odd"])
    return chosen.choice(
        [
            (f"create_{model}", {"values": {"owner": user, "label": "new"}}, "models", model),
            (f"create_{model}", {"values": {"label": "own"}, "_idempotencyKey": chosen.choice("ab")}, "models", model),
            (
                f"read_{model}",
                chosen.choice([{}, {"limit": 1}, {"fields": ["id"]}, {"where": {"id": 1}}]),
                "models",
                model,
            ),
            (f"update_{model}", {"where": {"owner": user}, "values": {"label": "x"}}, "models", model),
            (f"delete_{model}", {"where": {"id": chosen.randrange(9)}}, "models", model),
            (
                f"upsert_{model}",
                {"values": {"code": chosen.choice("ab"), "label": "u"}, "conflict_fields": ["code"]},
                "models",
                model,
            ),
            ("zOpen", f"zOpen({file})", "files", file),
            (f"zOpen({file})", None, "files", file),
            ("zOpen", {"name": file}, "files", file),
            ("zLink", f"zLink({page})", "pages", page),
            (f"zLink({page})", f"zLink({page})", "pages", page),
            ("zFunc", f"zFunc({function}, 1)", "functions", function),
            (f"zFunc({function}, 'secret')", None, "functions", function),
            ("zFunc", {"name": function, "args": [1]}, "functions", function),
            (key, {"secret": 1}, "commands", key),
            ("ping", "ping", "everybody", ""),
            ("zDescribe", chosen.choice([None, ["models"]]), "nobody", ""),
        ]
    )


FIELDS = "{id: {type: int, pk: true}, owner: str, code: {type: str, unique: true}, label: str, hid: %s}"
SCHEMA = "\n".join(f"{model}: {FIELDS}" for model in ("Notes", "Tags")).replace(
    "%s", "{type: str, hidden: true, default: hidden-secret}"
)


def told_of(key: str, kind: str, name: str, result: Any) -> dict[str, Any]:
    """The message by which others hear of a result; the arguments of a function are the caller's."""
    if kind != "functions":
        return {"zKey": key, "result": result}
    return {"zKey": f"zFunc({name})" if "(" in key else key, "function": name, "result": result}


def changed_of(key: str, matched: list[dict[str, Any]]) -> dict[str, Any]:
    """The message by which others hear that these rows were changed or removed."""
    if key.startswith("delete_"):
        return {"zKey": key, "result": {"deleted": len(matched)}, "ids": [row["id"] for row in matched]}
    changes = [{"id": row["id"], "values": {"label": "x"}} for row in matched]
    return {"zKey": key, "result": {"updated": len(matched)}, "changes": changes}


def rows_of(key: str, result: Any) -> list[dict[str, Any]] | None:
    """The rows that a result tells the content of, as far as others may be told of them one by one."""
    if key.startswith("read_"):
        return []
    return [result] if isinstance(result, dict) and "id" in result else None


@pytest.mark.unmeasured
@pytest.mark.parametrize("mode", ["all", "changes"])
@pytest_twisted.ensureDeferred
async def test_b6_one_hears_what_one_may_ask_for(tmp_path: Path, mode: str):
    """Random policies, commands and listeners: whoever hears of a result, and whoever does not, is who should."""
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    counts: dict[bool, int] = {True: 0, False: 0}
    for seed in range(4):
        chosen = random.Random(seed)
        roles = {f"r{number}": Role(chosen) for number in range(5)}
        policy = json.dumps({name: role.policy() for name, role in roles.items()} | {"idle": {}})
        (tmp_path / str(seed)).mkdir()
        server = Served(
            tmp_path / str(seed), policy=policy, broadcast=mode, config={"schemas": (tmp_path / "schema.yaml",)}
        )
        server.bifrost.command("plain")(lambda horizontal: horizontal)
        server.bifrost.command("odd", broadcast=True)(lambda: (1, 2))
        await server.start()
        clients = {
            name: await server.client(token=server.store.add(f"u{name}", name).token) for name in [*roles, "idle"]
        }
        kept: set[tuple[str, str, str]] = set()
        for number in range(120):
            asker = chosen.choice([*roles])
            key, horizontal, kind, name = a_command(chosen, [f"u{each}" for each in roles])
            marks = {each: len(client.received) for each, client in clients.items()}
            is_counted = key.startswith(("update_", "delete_"))
            matched = await server.comm.zcli.data.read(0, name, horizontal["where"]) if is_counted else []
            matched = roles[asker].reached(f"u{asker}", name, matched)
            message = {"zKey": key, "_requestId": f"n{number}"}
            clients[asker].send_json(message if horizontal is None else message | {"zHorizontal": horizontal})
            while (reply := await clients[asker].next_json()).get("_requestId") != f"n{number}":
                pass
            result = reply.get("result")
            is_change = key == "odd" or key.partition("_")[0] in ("create", "update", "delete", "upsert")
            is_told = "result" in reply and (mode == "all" or is_change) and kind != "nobody"
            if is_told and isinstance(horizontal, dict) and "_idempotencyKey" in horizontal:
                # Of the answer of before they have heard.
                done = asker, key, horizontal["_idempotencyKey"]
                is_told = done not in kept
                kept.add(done)
            for each, client in clients.items():
                if each == asker:
                    continue
                await client.call("zDescribe", ["limits"])
                frames = [item for item in client.received[marks[each] :] if isinstance(item, Frame)]
                heard = [message for frame in frames if "zKey" in (message := json.loads(frame.payload))]
                hears = kind == "everybody"
                if each in roles:
                    hears = roles[each].hears(f"u{each}", kind, name, rows_of(key, result))
                case = (seed, number, asker, each, message, horizontal, reply)
                if is_told and hears and matched:
                    mine = roles[each].reached(f"u{each}", name, matched)
                    assert heard == ([changed_of(key, mine)] if mine else []), case
                    counts[bool(mine)] += 1
                    continue
                if mode == "changes" and not heard and is_told and hears:
                    # Nothing was changed: no row matched.
                    assert result in ({"updated": 0}, {"deleted": 0}), case
                    continue
                assert heard == ([told_of(key, kind, name, result)] if is_told and hears else []), case
                assert "hidden-secret" not in str(heard)
                counts[is_told and hears] += 1
        server.forget()
        await server.stop()
    assert min(counts.values()) > 50, counts


@pytest.mark.unmeasured
@pytest.mark.parametrize("mode", ["all", "changes"])
@pytest_twisted.ensureDeferred
async def test_i23_whatever_others_do_no_hidden_field_is_heard(tmp_path: Path, mode: str):
    """Random rights to fields and rows, random commands of each: no byte that a client gets has a value that is hidden
    from it, nor names such a field, but where it named that itself."""
    fields = ("alpha", "bravo", "charlie", "delta")
    chosen = random.Random(mode)
    declared = "\n".join(f"  {name}: {{type: str, default: {name}-default}}" for name in fields)
    (tmp_path / "schema.yaml").write_text(
        f"Notes:\n  id: {{type: int, pk: true}}\n  owner: str\n  code: {{type: str, unique: true}}\n{declared}"
    )
    hidden = {f"r{number}": {name for name in fields if chosen.random() < 0.4} for number in range(5)} | {"r5": set()}
    policy: dict[str, Any] = {}
    for role, names in hidden.items():
        rights: dict[str, Any] = {"actions": "*"}
        if names:
            rights["fields"] = {"hide": sorted(names)}
        if role in ("r1", "r2"):
            rights["rows"] = {"owner": "$name"}
            rights.setdefault("fields", {"readonly": ["code"]}).setdefault("hide", []).append("owner")
            names.add("owner")
        policy[role] = {"models": {"Notes": rights}}
    server = Served(
        tmp_path, policy=json.dumps(policy), broadcast=mode, config={"schemas": (tmp_path / "schema.yaml",)}
    )
    await server.start()
    clients = {role: await server.client(token=server.store.add(f"u-{role}", role).token) for role in hidden}
    asked: dict[str, str] = dict.fromkeys(clients, "")
    changed = 0
    for number in range(250):
        role = chosen.choice([*clients])
        names = [name for name in fields if chosen.random() < 0.4]
        if chosen.random() < 0.8:
            names = [name for name in names if name not in hidden[role]]
        values: dict[str, Any] = {name: f"{name}-{number}" for name in names}
        where = chosen.choice([{"id": chosen.randint(1, 30)}, {"id__in": [1, 2, 3]}, {}])
        horizontal: dict[str, Any] = chosen.choice(
            [
                {"action": "create", "values": values | {"code": f"c{number}"}},
                {"action": "create", "values": values | {"owner": f"u-{chosen.choice(['r1', 'r2'])}"}},
                {"action": "update", "values": values, **({"where": where} if where else {"all": True})},
                {"action": "update", "values": values, "where": {f"{name}__like": f"{name}-%" for name in names}},
                {"action": "delete", "where": {"id": chosen.randint(1, 60)}},
                {"action": "upsert", "values": values | {"code": f"c{number // 9}"}, "conflict_fields": ["code"]},
                {"action": "read", "where": where, "fields": chosen.choice([None, ["id", *names]])},
            ]
        )
        if horizontal["action"] != "read" and chosen.random() < 0.2:
            horizontal["_idempotencyKey"] = chosen.choice("ab")
        key = f"{horizontal['action']}_Notes"
        asked[role] += json.dumps(horizontal)
        clients[role].send_json({"zKey": key, "zHorizontal": horizontal, "_requestId": f"n{number}"})
        while (reply := await clients[role].next_json()).get("_requestId") != f"n{number}":
            pass
        assert reply.get("code") != "internal"
        changed += "result" in reply and key != "read_Notes"
    heard = 0
    for role, client in clients.items():
        told = json.dumps((await client.call("zDescribe", ["models"]))["result"])
        assert not any(name in told for name in hidden[role])
        frames = [item.payload.decode() for item in client.received if isinstance(item, Frame)]
        heard += sum('"zKey"' in text for text in frames)
        text = "\n".join(frames)
        for name in hidden[role] - {"owner"}:
            # What it said itself was refused, and its name stands in the error.
            assert f"{name}-" not in text, (role, name)
            if name not in asked[role]:
                assert name not in text, (role, name)
        if "owner" in hidden[role]:
            assert '"owner"' not in text
    assert changed > 100 and heard > 200, (changed, heard)
    server.forget()
    await server.stop()
