"""Catalogue group I: text that some other server would run, open or paste into SQL."""

from __future__ import annotations

import os
import time

import pytest
import pytest_twisted
from support.served import Served

pytestmark = pytest.mark.unmeasured

CODE = "__import__('os').system('touch {}')"


@pytest_twisted.async_yield_fixture(scope="module")
async def stocked(tmp_path_factory):
    """A server with three users and a directory of awkward files."""
    server = Served(tmp_path_factory.mktemp("stocked"))
    files = server.files
    (files / "sub").mkdir()
    (files / "sub" / "inner.txt").write_text("inner")
    outside = server.directory / "outside.txt"
    outside.write_text("outside")
    (files / "link.txt").symlink_to(outside)
    (files / "linked").symlink_to(server.directory)
    os.mkfifo(files / "fifo")
    os.truncate(os.open(files / "huge.bin", os.O_CREAT | os.O_WRONLY), 2 * 1024**3)
    await server.start()
    client = await server.client()
    for name in ("Ann", "Bob", "Cid"):
        assert "result" in await client.call("create_Users", {"values": {"name": name, "email": f"{name}@example.com"}})
    yield server
    await server.stop()


async def unchanged(server: Served, echoed: str = "") -> None:
    """The three users are there, as they were; then the standing assertions."""
    client = await server.client()
    rows = (await client.call("read_Users", {"fields": ["name", "role"], "order_by": "id"}))["result"]
    assert rows == [{"name": name, "role": "user"} for name in ("Ann", "Bob", "Cid")], rows
    await server.stands(echoed=echoed)


@pytest.mark.parametrize("key", ["zWizard", "zFunc", "zOpen", "zLink", "read_Users", "ping", "anything", None])
@pytest.mark.parametrize(
    "form", ["zWizard({})", "{}", "zFunc({})", "zFunc(calculateTotal, {})", "zOpen({})", "^{}", "{}!"]
)
@pytest_twisted.ensureDeferred
async def test_i1_nothing_is_evaluated(stocked: Served, key: str | None, form: str):
    """No text runs under any key; an error comes back at once (or, from ping, the text itself)."""
    proof = stocked.directory / "proof"
    text = form.format(CODE.format(proof))
    client = await stocked.client()
    reply = await client.call(key or text, text if key else None)
    if key != "ping":
        assert reply["code"] in ("unknown_command", "invalid", "not_found", "unknown_model"), reply
    assert not proof.exists()
    await stocked.stands(echoed=text)


CALLS: list[tuple[str, str, str | object]] = [
    ("I2-import", "zFunc(calculateTotal, __import__('os').system('id'))", "invalid"),
    ("I2-lambda", "zFunc(calculateTotal, (lambda: 1)())", "invalid"),
    ("I2-arithmetic", "zFunc(calculateTotal, 1+1)", "invalid"),
    ("I2-bare-keys", "zFunc(calculateTotal, {cart_id: 123})", {"given": {"cart_id": 123}}),
    ("I3-path", "zFunc(/tmp/evil.run)", "unknown_command"),
    ("I3-relative", "zFunc(../x.f)", "unknown_command"),
    ("I3-os-system", 'zFunc(os.system, "id")', "unknown_command"),
    ("I3-builtins", "zFunc(__builtins__.eval)", "unknown_command"),
    ("I3-globals", "zFunc(calculateTotal.__globals__)", "unknown_command"),
    ("I3-dunder", 'zFunc(__import__, "os")', "unknown_command"),
    ("I3-not-registered", "zFunc(print, 1)", "unknown_command"),
    ("I4-open", "zFunc(", "invalid"),
    ("I4-empty", "zFunc()", "invalid"),
    ("I4-surplus", "zFunc(calculateTotal))", "unknown_command"),
    ("I4-parentheses", "zFunc(" + "(" * 100_000, "invalid"),
    ("I4-parentheses-closed", "zFunc(" + "(" * 50_000 + ")" * 50_000, "unknown_command"),
    ("I4-brackets", "zFunc(calculateTotal, " + "[" * 50_000 + ")", "invalid"),
    ("I4-1-MB", 'zFunc(calculateTotal, "' + "x" * 1_000_000 + '")', "invalid"),
    ("I4-newline", "zFunc(calculate\nTotal, 1)", "unknown_command"),
    ("I4-nul", "zFunc(calculateTotal\0, 1)", "unknown_command"),
    ("I4-quote", "zFunc(calculateTotal, 'a)", "invalid"),
    ("I4-quotes", 'zFunc(calculateTotal, "' + '\\"' * 8000 + ")", "invalid"),
    ("I5-session", "zFunc(calculateTotal, session)", {"given": "session"}),
    ("I5-zContext", "zFunc(calculateTotal, zContext)", {"given": "zContext"}),
    ("I5-this", "zFunc(calculateTotal, this.x)", {"given": "this.x"}),
    ("I5-assignment", "zFunc(calculateTotal, session=zConv)", {"given": "session=zConv"}),
    (
        "I5-object",
        "zFunc(calculateTotal, {identity: admin, role: root})",
        {"given": {"identity": "admin", "role": "root"}},
    ),
    ("I10-dots", "zLink(../..)", "unknown_command"),
    ("I10-newline", "zLink(/a\n/b)", "invalid"),
    ("I10-javascript", "zLink(javascript:alert(1))", "invalid"),
    ("I10-long", "zLink(/" + "a" * 600 + ")", "invalid"),
    ("I10-unknown", "zLink(/admin)", "unknown_command"),
    ("I11-declared", 'zLink(/admin/users, {role: "guest"})', "invalid"),
    ("I9-hooks", "zOpen(config.yaml, onSuccess=zFunc(calculateTotal))", "invalid"),
]


@pytest.mark.parametrize(("text", "expected"), [pytest.param(*row[1:], id=row[0]) for row in CALLS])
@pytest_twisted.ensureDeferred
async def test_the_string_forms(stocked: Served, text: str, expected):
    """Only what was registered is called, with values only, and a refusal takes no time."""
    client = await stocked.client()
    await client.call("ping")
    began = time.process_time()
    reply = await client.call(text.partition("(")[0], text)
    spent = time.process_time() - began
    if isinstance(expected, str):
        assert reply["code"] == expected, reply
    else:
        assert reply["result"] == expected
    assert spent < 0.5, "refusing it took that many seconds of computing"
    await stocked.stands()


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/etc/passwd",
        "/etc/shadow",
        "~/.ssh/id_rsa",
        "~/.zolo/credentials",
        "/proc/self/environ",
        "..%2f..%2fetc/passwd",
        "..\\..\\etc\\passwd",
        "a\0.yaml",
        "config.yaml\0.txt",
        "link.txt",
        "linked/outside.txt",
        "linked/data/tokens.json",
        "/dev/zero",
        "fifo",
        "sub",
        ".",
        "..",
        "",
        " ",
        "huge.bin",
        "missing.txt",
        "sub/../../outside.txt",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "www.example.com",
        "javascript:alert(1)",
        "-rf",
        "config.yaml/",
        "config.yaml/x",
        "@file",
        "a" * 600,
        "./" * 200 + "config.yaml",
        "CONFIG.YAML",
        "config.yaml::$DATA",
    ],
    ids=lambda name: f"I6-{name[:24].encode('unicode_escape').decode()}",
)
@pytest_twisted.ensureDeferred
async def test_i6_files_outside_or_of_another_kind(stocked: Served, name: str):
    """One and the same words for missing and forbidden; nothing is opened, followed or waited for (I6 to I8)."""
    client = await stocked.client()
    reply = await client.call("zOpen", f"zOpen({name})")
    if name == "./" * 200 + "config.yaml" and "result" in reply:
        assert reply["result"]["text"] == "answer: 42\n"
    else:
        assert reply["code"] in ("not_found", "invalid"), reply
        if reply["code"] == "not_found":
            missing = await client.call("zOpen", "zOpen(nowhere.txt)")
            assert {**reply, "_requestId": 0} == {**missing, "_requestId": 0} or "large" in reply["error"], reply
    await stocked.stands()


@pytest.mark.parametrize(
    "horizontal",
    [
        {"zOpen": {"path": "config.yaml", "onSuccess": "zFunc(calculateTotal)"}},
        {"zFunc": "calculateTotal"},
        ["zOpen(config.yaml)"],
        {"path": "config.yaml"},
        5,
        None,
    ],
    ids=lambda value: f"I9-{type(value).__name__}",
)
@pytest_twisted.ensureDeferred
async def test_i9_a_form_is_a_string(stocked: Served, horizontal):
    """Objects with hooks are no form."""
    client = await stocked.client()
    reply = await client.call("zOpen", horizontal)
    assert reply["code"] in ("invalid", "unknown_command"), reply
    await stocked.stands()


MODELS = [
    "Users; DROP TABLE Users;--",
    "Users u, secrets",
    "pg_catalog.pg_authid",
    '"Users"',
    "Us\u0435rs",
    " Users",
    "users\0",
    "sqlite_master",
    "x" * 64,
    "@.zCloud.schemas.schema.zIndex.zUsers",
    "zcomm_idempotency",
    "Users--",
    "main.Users",
    "Users`",
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"I12-{model[:16]}")
@pytest.mark.parametrize("place", ["key", "horizontal"])
@pytest_twisted.ensureDeferred
async def test_i12_models_are_looked_up(stocked: Served, model: str, place: str):
    """An exact name of the schema, or an error that names none of the server's own tables."""
    client = await stocked.client()
    key = f"read_{model}" if place == "key" else "read_Users"
    reply = await client.call(key, {"model": model})
    assert reply["code"] == ("unknown_model" if place == "key" else "invalid"), reply
    await unchanged(stocked)


READS: list[tuple[str, dict, str]] = [
    ("I13-subquery", {"fields": ["id", "(SELECT api_key FROM zUsers LIMIT 1)"]}, "unknown_field"),
    ("I13-function", {"fields": ["pg_sleep(10)"]}, "unknown_field"),
    ("I13-text", {"fields": "*"}, "ok-or-invalid"),
    ("I13-star", {"fields": ["*"]}, "ok-or-unknown_field"),
    ("I13-twice", {"fields": ["id", "id"]}, "ok-or-invalid"),
    ("I13-many", {"fields": ["id"] * 100_000}, "ok-or-invalid"),
    ("I13-number", {"fields": [1]}, "unknown_field"),
    ("I13-rowid", {"fields": ["rowid"]}, "unknown_field"),
    ("I14-drop", {"order_by": "id; DROP TABLE Users"}, "invalid"),
    ("I14-case", {"order_by": "(CASE WHEN (SELECT 1) THEN id ELSE name END)"}, "invalid"),
    ("I14-position", {"order_by": "1"}, "invalid"),
    ("I14-sleep", {"order_by": "pg_sleep(5)"}, "invalid"),
    ("I14-direction", {"order_by": {"id": "DESC; --"}}, "invalid"),
    ("I14-sideways", {"order_by": "id SIDEWAYS"}, "invalid"),
    ("I14-nine", {"order_by": ["id"] * 9}, "invalid"),
    ("I14-good", {"order_by": "id DESC, name"}, "ok"),
    ("I14-list", {"order_by": ["created_at DESC", "name"]}, "ok"),
    ("I15-key", {"where": {"1=1 OR id": 1}}, "unknown_field"),
    ("I15-parenthesis", {"where": {"id) OR (1=1": 1}}, "unknown_field"),
    ("I15-comment", {"where": {"id--": 1}}, "unknown_field"),
    ("I15-operator", {"where": {"age__evil": 1}}, "unknown_field"),
    ("I15-two-operators", {"where": {"a__b__c": 1}}, "unknown_field"),
    ("I15-good", {"where": {"age__gte": 1}}, "ok"),
    ("I15-or-text", {"where": {"$or": "1=1"}}, "invalid"),
    ("I15-where", {"where": {"$where": "1=1"}}, "unknown_field"),
    ("I15-text", {"where": "1=1"}, "invalid"),
    ("I15-object-value", {"where": {"id": {"$ne": None}}}, "invalid"),
    ("I17-limit-text", {"limit": "10; DROP TABLE Users"}, "invalid"),
    ("I17-limit-negative", {"limit": -1}, "invalid"),
    ("I17-limit-zero", {"limit": 0}, "ok"),
    ("I17-limit-true", {"limit": True}, "invalid"),
    ("I17-limit-string", {"limit": "5"}, "invalid"),
    ("I17-limit-huge", {"limit": 10**12}, "invalid"),
    ("I17-limit-float", {"limit": 1.5}, "invalid"),
    ("I17-offset-text", {"offset": "1"}, "invalid"),
    ("I17-offset-negative", {"offset": -1}, "invalid"),
    ("I20-like", {"where": {"name__like": "%_" * 1000}}, "ok-or-invalid-or-timeout"),
    ("I8-schema", {"_schema_cached": {"Users": {}}}, "invalid"),
]


@pytest.mark.parametrize(("horizontal", "expected"), [pytest.param(*row[1:], id=row[0]) for row in READS])
@pytest_twisted.ensureDeferred
async def test_reads_that_would_be_sql_elsewhere(stocked: Served, horizontal: dict, expected: str):
    """Fields, operators, order and limits are looked up or checked; none is pasted."""
    client = await stocked.client()
    reply = await client.call("read_Users", horizontal)
    outcome = reply.get("code", "ok")
    assert outcome in expected.split("-or-"), reply
    # An error names what it does not know, in the client's own words.
    own = [str(name) for name in (horizontal.get("order_by"), *horizontal.get("fields", ())) if "SELECT" in str(name)]
    await unchanged(stocked, echoed=own[0] if own else "")


WRITES: list[tuple[str, str, dict, str]] = [
    ("I16-update-absent", "update", {"values": {"role": "admin"}}, "invalid"),
    ("I16-update-empty", "update", {"where": {}, "values": {"role": "admin"}}, "invalid"),
    ("I16-update-null", "update", {"where": None, "values": {"role": "admin"}}, "invalid"),
    ("I16-update-both", "update", {"where": {}, "filters": {}, "values": {"role": "admin"}}, "invalid"),
    ("I16-delete-absent", "delete", {}, "invalid"),
    ("I16-delete-empty", "delete", {"where": {}}, "invalid"),
    ("I16-delete-and", "delete", {"where": {"$and": []}}, "invalid-or-ok"),
    ("I16-delete-empty-list", "delete", {"where": {"id": []}}, "ok"),
    ("I16-delete-or", "delete", {"where": {"$or": []}}, "ok"),
    ("I16-delete-not-all", "delete", {"where": {}, "all": "true"}, "invalid"),
    ("I16-delete-all-1", "delete", {"all": 1}, "invalid"),
    ("I16-delete-all-and-filter", "delete", {"all": True, "where": {"id": 1}}, "invalid"),
    ("I16-update-empty-list", "update", {"where": {"id": []}, "values": {"role": "admin"}}, "ok"),
    ("I18-key", "update", {"where": {"id": 1}, "values": {"name = 'x', role": "admin"}}, "unknown_field"),
    (
        "I18-create-key",
        "create",
        {"values": {"name": "x", "email": "x@example.com", "api_key": "x"}},
        "unknown_field",
    ),
    (
        "I18-conflict",
        "upsert",
        {
            "values": {"name": "x", "email": "Ann@example.com"},
            "conflict_fields": ["email) DO UPDATE SET role='admin'--"],
        },
        "unknown_field",
    ),
    (
        "I18-conflict-not-unique",
        "upsert",
        {"values": {"name": "x", "email": "Ann@example.com"}, "conflict_fields": ["name"]},
        "invalid",
    ),
    ("I19-nul", "update", {"where": {"id": 1}, "values": {"name": "a\u0000b"}}, "invalid"),
    ("I19-2^70", "create", {"values": {"name": "x", "email": "x@example.com", "age": 2**70}}, "invalid"),
    ("I19-object", "update", {"where": {"id": 1}, "values": {"name": {"a": 1}}}, "invalid"),
    ("I19-list", "update", {"where": {"id": 1}, "values": {"name": ["a"]}}, "invalid"),
    ("I19-values-list", "update", {"where": {"id": 1}, "values": [1]}, "invalid"),
    ("I18-no-values", "update", {"where": {"id": 1}, "values": {}}, "invalid"),
]


@pytest.mark.parametrize(("action", "horizontal", "expected"), [pytest.param(*row[1:], id=row[0]) for row in WRITES])
@pytest_twisted.ensureDeferred
async def test_writes_that_touch_nothing(stocked: Served, action: str, horizontal: dict, expected: str):
    """A filter that is missing, empty or matches nothing changes no row; neither does a key nobody knows."""
    client, other = await stocked.client(), await stocked.client()
    reply = await client.call(f"{action}_Users", horizontal)
    assert reply.get("code", "ok") in expected.split("-or-"), reply
    if "result" in reply:
        assert reply["result"] in ({"updated": 0}, {"deleted": 0})
    await other.call("ping")
    await unchanged(stocked)


@pytest.mark.parametrize(
    "value",
    [
        "'; DROP TABLE Users; --",
        "Robert'); --",
        "%s %(a)s ? :a $1",
        "\\",
        "é\u200b\U0001f600",
        "<img onerror=x>",
    ],
)
@pytest_twisted.ensureDeferred
async def test_i19_texts_are_stored_letter_by_letter(stocked: Served, value: str):
    """What looks like SQL is a name like any other."""
    client = await stocked.client()
    row = (await client.call("create_Users", {"values": {"name": value, "email": "text@example.com"}}))["result"]
    assert row["name"] == value
    found = (await client.call("read_Users", {"where": {"name": value}, "fields": ["name"]}))["result"]
    assert found == [{"name": value}]
    assert (await client.call("delete_Users", {"where": {"id": row["id"]}}))["result"] == {"deleted": 1}
    await unchanged(stocked)


@pytest.mark.parametrize(
    "key",
    [
        "start_service",
        "stop_service",
        "zService",
        "service_postgresql",
        "set_schema",
        "exec",
        "eval",
        "__class__",
    ],
)
@pytest_twisted.ensureDeferred
async def test_i21_services_are_out_of_reach(stocked: Served, key: str):
    """Nothing a client sends starts or stops a program."""
    client = await stocked.client()
    reply = await client.call(key, {"service_name": "postgresql; id", "data_dir": "/", "port": "5432 -c x"})
    assert reply["code"] == "unknown_command"
    await stocked.stands()
