"""zSchema files: what they may say, and what is said about their mistakes."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcomm.data.schema import Schema, demo_schema, load_schema
from zcomm.errors import ConfigError, UnknownField, UnknownModel

ID = "id: {type: int, pk: true}"


def test_demo():
    """The built-in models are those that the guide's examples use."""
    users, messages = (demo_schema().models[name] for name in ("Users", "Messages"))
    assert users.visible == (
        "id",
        "name",
        "email",
        "active",
        "inactive",
        "age",
        "role",
        "verified",
        "last_login",
        "created_at",
    )
    assert users.fields["email"].unique
    assert messages.visible == ("id", "text", "timestamp")
    assert (users.generated, users.key) == ("id", ("id",))


def test_everything_a_field_can_say():
    """Each setting arrives where it belongs, in the field's Python type."""
    schema = load_schema(f"""
Meta: {{Data_Type: sqlite, Data_Path: /etc/passwd}}
Teams: {{{ID}}}
T:
  {ID}
  team: {{type: integer, fk: Teams.id, on_delete: set null, index: true, description: whose}}
  name: {{type: string, required: true, unique: true, default: x, rules: {{min_length: 1, max_length: 9,
          pattern: '[a-z]+', error_message: lower case please}}}}
  cost: {{type: decimal, default: "1.50", rules: {{min: 0, max: 99.9}}}}
  since: {{type: datetime, default: now, rules: {{min: 2020-01-01}}}}
  tag: {{type: uuid, default: uuid}}
  seen: {{type: bool, readonly: true}}
  key: {{type: text, hidden: true}}
  mail: {{type: str, rules: {{format: email}}}}
  note: str
""")
    model = schema.models["T"]
    assert list(schema.models) == ["Teams", "T"]
    team = model.fields["team"]
    assert (team.fk.model, team.fk.field, team.fk.on_delete, team.index) == ("Teams", "id", "set null", True)
    assert model.fields["cost"].default.value == Decimal("1.5")
    assert model.fields["cost"].rules.max == Decimal("99.9")
    assert model.fields["since"].rules.min == datetime(2020, 1, 1, tzinfo=UTC)
    assert "key" not in model.visible
    assert model.fields["seen"].readonly
    assert model.fields["name"].accept("abc") == "abc"
    for wrong in ("", "ABC", "a" * 10):
        with pytest.raises(ValueError, match="lower case please"):
            model.fields["name"].accept(wrong)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "a mapping of model names"),
        ("[]", "a mapping of model names"),
        ("a: [", "not YAML"),
        ("a: {b: &x [*x]}", "model a, field b"),
        ("Meta: {}", "declares no model"),
        ("!!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("T: {id: {type: !!python/name:os.system x, pk: true}}", "could not determine a constructor"),
        ("'Users; DROP TABLE x': {id: int}", "cannot name a model"),
        ("zcomm_idempotency: {id: int}", "cannot name a model"),
        ("sqlite_master: {id: int}", "cannot name a model"),
        ("5: {id: int}", "cannot name a model"),
        ("A: {id: {type: int, pk: true}}\na: {id: {type: int, pk: true}}", "declared twice"),
        ("A: 5", "it needs fields"),
        ("A: {}", "it needs fields"),
        ("A: {id: int}", "model A: no field is the primary key; add pk: true"),
        (f"A: {{{ID}, 'x y': str}}", "cannot name a field"),
        (f"A: {{{ID}, a__b: str}}", "cannot name a field"),
        (f"A: {{{ID}, ID: str}}", "declared twice"),
        (f"A: {{{ID}, id: int}}", "given twice"),
        (f"A: {{{ID}, b: 5}}", "model A, field b: write a type"),
        (f"A: {{{ID}, b: {{}}}}", "type must be one of"),
        (f"A: {{{ID}, b: {{type: sttr}}}}", 'did you mean "str"'),
        (f"A: {{{ID}, b: {{type: str, requierd: true}}}}", 'unknown setting "requierd"; did you mean "required"'),
        (f"A: {{{ID}, b: {{type: str, required: yep}}}}", "required must be true or false"),
        (f"A: {{{ID}, b: {{type: str, rules: 5}}}}", "rules must be a mapping"),
        (f"A: {{{ID}, b: {{type: str, rules: {{minlength: 1}}}}}}", 'did you mean "min_length"'),
        (f"A: {{{ID}, b: {{type: str, rules: {{min_length: -1}}}}}}", "whole number"),
        (
            f"A: {{{ID}, b: {{type: str, rules: {{min_length: 3, max_length: 2}}}}}}",
            "min_length is more than max_length",
        ),
        (f"A: {{{ID}, b: {{type: str, rules: {{min: 3}}}}}}", "use min_length"),
        (f"A: {{{ID}, b: {{type: int, rules: {{min: x}}}}}}", "rules: min must be a whole number"),
        (f"A: {{{ID}, b: {{type: int, rules: {{max_length: 3}}}}}}", "is for fields of type str"),
        (f"A: {{{ID}, b: {{type: float, rules: {{max: .inf}}}}}}", "finite"),
        (f"A: {{{ID}, b: {{type: str, rules: {{format: mail}}}}}}", "format must be one of email"),
        (f"A: {{{ID}, b: {{type: str, rules: {{format: [email]}}}}}}", "format must be one of email"),
        (f"A: {{{ID}, b: {{type: str, rules: {{format: {{email: true}}}}}}}}", "format must be one of email"),
        (f"A: {{{ID}, b: {{type: str, rules: {{pattern: 5}}}}}}", "pattern must be a text"),
        (f"A: {{{ID}, b: {{type: str, rules: {{pattern: '(a'}}}}}}", "missing ): (a; it can have what RE2 has"),
        (f"A: {{{ID}, b: {{type: str, rules: {{error_message: 5}}}}}}", "error_message must be a text"),
        (f"A: {{{ID}, b: {{type: int, default: x}}}}", "its default must be a whole number"),
        (f"A: {{{ID}, b: {{type: int, default: 5, rules: {{max: 3}}}}}}", "its default must be at most 3"),
        (f"A: {{{ID}, b: {{type: datetime, default: soon}}}}", "or now"),
        (f"A: {{{ID}, b: {{type: datetime, default: 2020-99-01}}}}", "not YAML"),
        (f"A: {{{ID}, b: {{type: str, required: true, default: null}}}}", "its default is required"),
        (f"A: {{{ID}, b: {{type: int, fk: B.id}}}}", 'points to B.id, which is not in this file; did you mean "A.id"'),
        (f"A: {{{ID}, b: {{type: int, fk: B}}}}", "like Teams.id"),
        (f"A: {{{ID}, b: {{type: str, fk: A.id}}}}", "use that type"),
        (f"A: {{{ID}, b: {{type: int, fk: A.c}}, c: int}}", "must be the primary key or unique"),
        (f"A: {{{ID}, b: {{type: int, fk: A.id, on_delete: explode}}}}", "restrict, cascade or set null"),
        (f"A: {{{ID}, b: {{type: int, fk: A.id, on_delete: set null, required: true}}}}", "use cascade or restrict"),
        (f"A: {{{ID}, b: {{type: int, on_delete: cascade}}}}", "on_delete needs an fk"),
        (f"A: {{{ID}, b: {{type: json, unique: true}}}}", "a json field cannot be"),
        (f"A: {{{ID}, b: {{type: str, hidden: true, required: true}}}}", "give it a default"),
        (f"A: {{{ID}, b: {{type: str, readonly: true, required: true}}}}", "give it a default"),
        ("A: {id: {type: int, pk: true, hidden: true}}", "a primary key cannot be hidden"),
    ],
)
def test_mistakes(text, says):
    """A mistake is one clear line that names the file and the place."""
    with pytest.raises(ConfigError) as caught:
        load_schema(text, "my.yaml")
    assert str(caught.value).startswith("my.yaml: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merge():
    """Files add up; a model that two of them declare is a mistake, whatever its case."""
    both = demo_schema().merge(load_schema(f"Teams: {{{ID}}}"))
    assert list(both.models) == ["Users", "Messages", "Teams"]
    with pytest.raises(ConfigError, match=r"^two.yaml: model USERS is declared already"):
        both.merge(load_schema(f"USERS: {{{ID}}}"), "two.yaml")


def test_frozen():
    """A schema does not change once it is read."""
    schema = demo_schema()
    with pytest.raises(TypeError):
        schema.models["X"] = None
    with pytest.raises(TypeError):
        schema.models["Users"].fields["x"] = None
    with pytest.raises(dataclasses.FrozenInstanceError):
        schema.models["Users"].fields["id"].hidden = True


@pytest.mark.parametrize(
    "name",
    [
        "Users; DROP TABLE Users;--",
        "Users u, secrets",
        "pg_catalog.pg_authid",
        '"Users"',
        "Us\u0435rs",
        "",
        "x" * 64,
        None,
        [],
        {},
        5,
        "@.zCloud.schemas.zUsers",
        "users",
        "__class__",
        "zcomm_idempotency",
        "sqlite_master",
    ],
)
def test_unknown_models(name):
    """Only what the schema declares is a model; nothing else is even looked at."""
    with pytest.raises(UnknownModel):
        demo_schema().find(name)


def test_nearest_model_is_one_that_may_be_known():
    """The hint names no model that the asker has no business with."""
    schema = load_schema(f"Salaries: {{{ID}}}\nSalads: {{{ID}}}")
    with pytest.raises(UnknownModel, match='did you mean "Salads"'):
        schema.find("Salarie", lambda name: name == "Salads")
    with pytest.raises(UnknownModel, match=r'^There is no model "Salarie"$'):
        schema.find("Salarie", lambda name: False)


@given(st.text(max_size=300))
def test_names_in_messages_are_tame(name):
    """Whatever a client calls a field, the message about it is short and printable."""
    with pytest.raises(UnknownField) as caught:
        demo_schema().models["Users"].find("?" + name)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


@given(st.text(max_size=200))
def test_any_text(text):
    """No file, however broken, raises anything but ConfigError."""
    try:
        assert isinstance(load_schema(text), Schema)
    except ConfigError:
        pass
