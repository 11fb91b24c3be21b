"""zDescribe: a client learns of what is there for it, and of nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from zcomm.auth.policy import AllowAll, Policy
from zcomm.commands import description as description_module
from zcomm.commands.description import Description
from zcomm.commands.files import Files
from zcomm.commands.functions import FunctionRegistry
from zcomm.commands.pages import PageRegistry
from zcomm.config import Limits
from zcomm.data.schema import Schema, load_schema
from zcomm.errors import Invalid
from zcomm.interfaces import Identity, Permissions, Request

SCHEMA = load_schema("""
Teams:
  id:   {type: int, pk: true}
Users:
  id:      {type: int, pk: true}
  email:   {type: str, required: true, unique: true}
  active:  {type: bool, required: true, default: false}
  balance: {type: decimal, default: "1.50"}
  joined:  {type: datetime, default: now, readonly: true}
  team:    {type: int, fk: Teams.id}
  secret:  {type: str, hidden: true}
""")
POLICY = Policy.from_yaml(
    """
clerk:
  models: {Users: [read, create]}
  functions: [total]
  pages: [/users]
stranger: {}
""",
    "policy",
)


class Someone:
    """A client, as far as a command that sends nothing needs one."""

    def __init__(self, role: str):
        self.identity = Identity(name="ann", role=role)


def describe(role: str, permissions: Permissions, schema: Schema | None = SCHEMA) -> dict[str, Any]:
    functions, pages = FunctionRegistry(), PageRegistry()

    @functions.register
    def total(cart: dict[str, Any], *, identity: Identity) -> int:
        """The sum of a cart.

        More that nobody needs to read."""
        return 0

    @functions.register
    async def shutdown() -> None:
        pass

    pages.register("/", title="Home")
    pages.register("/users", title="Users")
    description = Description(lambda: schema, functions, pages, Files(None, permissions, None), permissions)
    return description.respond(Request(key="zDescribe", horizontal="zDescribe", request_id=1), Someone(role))


def test_everything_for_whom_everything_is_allowed():
    """Fields with what is so of them; hidden ones, and what the server fills in, are not the client's."""
    told = describe("user", AllowAll())
    assert told["identity"] == {"name": "ann", "role": "user"}
    assert told["models"]["Users"]["actions"] == ["create", "read", "update", "delete"]
    fields = told["models"]["Users"]["fields"]
    assert list(fields) == ["id", "email", "active", "balance", "joined", "team"]
    assert fields["id"] == {"type": "int", "pk": True, "made": True}
    assert fields["email"] == {"type": "str", "required": True, "unique": True}
    assert fields["active"] == {"type": "bool", "default": False}
    assert fields["joined"] == {"type": "datetime", "readonly": True, "made": True}
    assert fields["team"] == {"type": "int", "references": "Teams.id"}
    assert told["functions"] == {
        "total": {"parameters": ["cart"], "about": "The sum of a cart."},
        "shutdown": {"parameters": [], "about": ""},
    }
    assert told["pages"] == {"/": "Home", "/users": "Users"}
    assert told["files"] is False


@pytest.mark.parametrize(
    "role, models, functions, pages",
    [
        ("clerk", {"Users": ["create", "read"]}, ["total"], ["/users"]),
        ("stranger", {}, [], []),
        ("nobody", {}, [], []),
    ],
)
def test_what_the_policy_keeps_from_a_client_is_not_named(
    role: str,
    models: dict[str, list[str]],
    functions: list[str],
    pages: list[str],
):
    """A model without any right, a function, a page: not even their names."""
    told = describe(role, POLICY)
    assert {name: model["actions"] for name, model in told["models"].items()} == models
    assert list(told["functions"]) == functions
    assert list(told["pages"]) == pages


def test_contact_f25_fields_have_their_own_names_and_read_only_models_one_action():
    """Of tables and columns nothing is told; a unique group is, unless a field of it is hidden."""
    schema = load_schema("""
Details:
  _model: {table: Order Details, unique: [[email, id], [id, secret]], index: [[id, secret]]}
  id:     {type: int, pk: true, column: Order ID}
  email:  {type: str, column: e-mail}
  secret: {type: str, hidden: true}
Totals:
  _model: {read_only: true}
  id:     {type: int, pk: true}
""")
    told = describe("user", AllowAll(), schema)["models"]
    assert told["Details"]["unique"] == [["email", "id"]]
    assert list(told["Details"]["fields"]) == ["id", "email"]
    assert told["Totals"] == {"actions": ["read"], "fields": {"id": {"type": "int", "pk": True, "made": True}}}
    assert "Order" not in str(told)
    writer = Policy.from_yaml("user: {models: {Totals: [create, delete], Details: [read]}}", "policy")
    assert list(describe("user", writer, schema)["models"]) == ["Details"]


def test_fields_that_are_hidden_from_a_role_are_left_out():
    """So are references to them and groups with them; what it may not write is readonly, for it alone."""
    schema = load_schema("""
Teams:
  _model: {unique: [[code, label]]}
  id:    {type: int, pk: true}
  code:  {type: str, unique: true}
  label: str
Users:
  _model: {unique: [[email, name], [name, salary]]}
  id:     {type: int, pk: true}
  email:  {type: str, required: true}
  name:   {type: str, required: true}
  salary: {type: int, default: 5}
  team:   {type: str, fk: Teams.code}
""")
    policy = Policy.from_yaml(
        """
boss: {models: "*"}
clerk:
  models:
    Users: {actions: [read, update], fields: {hide: [salary], readonly: [name, email]}}
    Teams: {actions: [read], fields: {hide: [code]}}
""",
        "policy",
    )
    before = describe("boss", policy, schema)["models"]
    told = describe("clerk", policy, schema)["models"]
    assert "salary" not in str(told) and "code" not in str(told) and "unique" not in told["Teams"]
    assert told["Users"]["unique"] == [["email", "name"]]
    assert told["Users"]["fields"] == {
        "id": {"type": "int", "pk": True, "made": True},
        "email": {"type": "str", "required": True, "readonly": True},
        "name": {"type": "str", "required": True, "readonly": True},
        "team": {"type": "str"},
    }
    assert list(told["Teams"]["fields"]) == ["id", "label"]
    # Of one server, in whatever order they ask.
    description = Description(
        lambda: schema, FunctionRegistry(), PageRegistry(), Files(None, policy, None), policy, Limits()
    )
    for role in ("boss", "clerk", "boss", "clerk"):
        answer: Any = description.respond(Request(key="zDescribe", horizontal=["models"]), Someone(role))
        assert answer["models"] == (before if role == "boss" else told)
    assert before["Users"]["fields"]["team"]["references"] == "Teams.code"


def test_contact_r26_the_limits_are_told_and_parts_can_be_asked_for():
    """Those that a client can keep by itself, as the server has them; asked for alone, they cost nothing else."""

    def respond(horizontal: Any, limits: Limits | None = None) -> Any:
        description = Description(
            lambda: SCHEMA, FunctionRegistry(), PageRegistry(), Files(None, POLICY, None), POLICY, limits
        )
        return description.respond(Request(key="zDescribe", horizontal=horizontal), Someone("stranger"))

    limits = {
        "message_size": 1048576,
        "json_depth": 64,
        "in_flight": 64,
        "command_timeout": 30.0,
        "read_rows": 10000,
        "topics_per_client": 128,
        "publish_rate": 100.0,
    }
    assert respond("zDescribe")["limits"] == limits
    assert respond(["limits"]) == {"limits": limits}
    assert respond(["files", "limits"], Limits(message_size=5000)) == {
        "files": False,
        "limits": {**limits, "message_size": 5000},
    }
    assert respond([]) == {}
    for wrong in (["limit"], [5], [["limits"]], [None]):
        with pytest.raises(Invalid, match="zDescribe has no part"):
            respond(wrong)


def test_a_host_with_data_of_its_own():
    """Its models are not known here."""
    assert describe("user", AllowAll(), None)["models"] == {}


def test_a_default_is_written_as_clients_write_it():
    """A decimal is a text, as in a row."""
    assert describe("user", AllowAll())["models"]["Users"]["fields"]["balance"] == {
        "type": "decimal",
        "default": "1.50",
    }


def test_contact_a20_a_reference_does_not_name_a_model_that_is_not_for_the_client():
    """The field is there, and the model that it points to is named to who may do anything with that one (B20)."""
    policy = Policy.from_yaml("clerk: {models: {Users: [read]}}\nboss: {models: {'*': [read]}}", "policy")
    for role, references in (("clerk", None), ("boss", "Teams.id")):
        field = describe(role, policy)["models"]["Users"]["fields"]["team"]
        assert field["type"] == "int" and field.get("references") == references


def test_b12_what_is_the_same_for_all_is_found_out_once(monkeypatch: pytest.MonkeyPatch):
    """A flood of zDescribe looks at no field twice; other rights and another schema are heeded at once."""
    looked: list[str] = []

    def counting(field: Any, model: Any) -> dict[str, Any]:
        looked.append(field.name)
        return field_of(field, model)

    field_of = description_module._field
    monkeypatch.setattr(description_module, "_field", counting)
    permissions = AllowAll()
    schemas = [SCHEMA]
    files = Files(None, permissions, None)
    everybody = Description(lambda: schemas[0], FunctionRegistry(), PageRegistry(), files, permissions)
    request = Request(key="zDescribe", horizontal=["models"], request_id=1)
    first = everybody.respond(request, Someone("user"))
    count = len(looked)
    assert all(everybody.respond(request, Someone("user")) == first for _ in range(100))
    assert len(looked) == count == 7
    schemas[0] = load_schema("Teams:\n  id: {type: int, pk: true}\n  name: {type: str}\n")
    told = everybody.respond(request, Someone("user"))
    assert list(told["models"]) == ["Teams"] and list(told["models"]["Teams"]["fields"]) == ["id", "name"]
    grants = {"clerk": POLICY}

    class Changing(AllowAll):
        def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
            return grants[identity.role].allows(identity, action, kind, name)

    changing = Description(lambda: SCHEMA, FunctionRegistry(), PageRegistry(), files, Changing())
    told = changing.respond(request, Someone("clerk"))
    assert list(told["models"]) == ["Users"] and told["models"]["Users"]["fields"]["team"] == {"type": "int"}
    grants["clerk"] = AllowAll()
    told = changing.respond(request, Someone("clerk"))
    assert told["models"]["Users"]["fields"]["team"]["references"] == "Teams.id"


def test_b12_a_part_is_told_once_however_often_it_is_asked_for():
    """A long list of parts is refused, before any is made."""
    with pytest.raises(Invalid, match="once"):
        asked_for(["models"] * 100_000)
    assert list(asked_for(["files", "files"])) == ["files"]


def asked_for(parts: list[str]) -> dict[str, Any]:
    permissions = AllowAll()
    files = Files(None, permissions, None)
    description = Description(lambda: SCHEMA, FunctionRegistry(), PageRegistry(), files, permissions)
    return description.respond(Request(key="zDescribe", horizontal=parts, request_id=1), Someone("user"))
