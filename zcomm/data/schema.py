"""zSchema YAML to :class:`~zcomm.data.models.Schema`, and the built-in demo schema.

A mistake is a :class:`~zcomm.errors.ConfigError` that names the file, the model, the field and what to
write instead. Nothing that a file says is executed.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from decimal import Decimal
from functools import cache
from typing import Any

from zcomm.data.models import Default, Field, Model, Reference, Schema
from zcomm.data.rules import FORMATS, Rules
from zcomm.data.values import KINDS, Kind, kind_named
from zcomm.errors import ConfigError
from zcomm.patterns import Pattern, PatternError
from zcomm.strictyaml import read_yaml
from zcomm.text import did_you_mean, quoted

__all__ = ["Schema", "demo_schema", "load_schema"]

#: The longest identifier PostgreSQL keeps whole (NAMEDATALEN - 1).
MAX_NAME = 63
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z", re.ASCII)
#: Keys beside the models that zSchema files carry; where the data is belongs to the server's options.
_NOT_MODELS = frozenset({"Meta", "db_path"})
_RESERVED = ("zcomm_", "sqlite_", "pg_")
_FIELD_KEYS = (
    "type",
    "pk",
    "required",
    "unique",
    "index",
    "default",
    "fk",
    "on_delete",
    "rules",
    "hidden",
    "readonly",
    "description",
    "column",
)
#: What concerns a model as a whole stands under this key in it.
_MODEL = "_model"
_MODEL_KEYS = ("table", "read_only", "live", "unique", "index")
#: Columns that PostgreSQL has in one index at most.
_MAX_GROUP = 32
_RULE_KEYS = ("min_length", "max_length", "min", "max", "pattern", "format", "error_message")
_ON_DELETE = {"restrict": "restrict", "cascade": "cascade", "set null": "set null", "set_null": "set null"}

_DEMO = """
Users:
  _model:     {live: true}
  id:         {type: int, pk: true}
  name:       {type: str, required: true, rules: {min_length: 1, max_length: 200}}
  email:      {type: str, unique: true, rules: {format: email}}
  active:     {type: bool, default: true}
  inactive:   {type: bool, default: false}
  age:        {type: int, rules: {min: 0, max: 150}}
  role:       {type: str, default: user, rules: {min_length: 1, max_length: 50}}
  verified:   {type: bool, default: false}
  last_login: {type: datetime}
  created_at: {type: datetime, default: now}

Messages:
  _model:     {live: true}
  id:         {type: int, pk: true}
  text:       {type: str, required: true, rules: {max_length: 10000}}
  timestamp:  {type: datetime, default: now}
"""


def is_name(text: object) -> bool:
    """Whether ``text`` can name a model or a field.

    Two underscores in a row separate a field from its operator in a filter (``age__gte``), so that no
    name may have them.
    """
    return isinstance(text, str) and len(text) <= MAX_NAME and _NAME.match(text) is not None and "__" not in text


@cache
def demo_schema() -> Schema:
    """The schema of a new default database: ``Users`` and ``Messages``. Nobody can change it, so it is read once."""
    return load_schema(_DEMO, "demo schema")


def load_schema(text: str, name: str = "schema") -> Schema:
    """Read a zSchema file.

    :param text: the YAML.
    :param name: the file as the user named it, for errors.
    :raises ConfigError: for a file that cannot be used, with the reason and the fix.
    """
    document = read_yaml(text, name)
    if not isinstance(document, dict):
        raise ConfigError(name, "a schema is a mapping of model names to their fields")
    models: dict[str, Model] = {}
    folded: set[str] = set()
    for key, body in document.items():
        if key in _NOT_MODELS:
            if _looks_like_a_model(body):
                raise ConfigError(
                    name,
                    f"{key} is no model: what a zSchema file says of itself stands there; give the model another name, "
                    f"and its table with {_MODEL}: {{table: {key}}}",
                )
            continue
        if not is_name(key) or key.lower().startswith(_RESERVED):
            raise ConfigError(
                name,
                f"{quoted(str(key))} cannot name a model; use letters, digits and "
                "single underscores, at most 63, not beginning with "
                f"{', '.join(_RESERVED)}; a table of another name is that of {_MODEL}: {{table: …}}",
            )
        if key.lower() in folded:
            raise ConfigError(name, f"model {key} is declared twice (case does not count)")
        folded.add(key.lower())
        models[key] = _model(name, key, body)
    if not models:
        raise ConfigError(name, "it declares no model; write for example: Users: {id: {type: int, pk: true}}")
    _check_references(name, models)
    schema = Schema(models)
    schema.check_tables(name)
    return schema


def _looks_like_a_model(body: Any) -> bool:
    return isinstance(body, dict) and any(
        key == _MODEL or (isinstance(value, dict) and not value.keys().isdisjoint(("type", "pk")))
        for key, value in body.items()
    )


def _model(file: str, name: str, body: Any) -> Model:
    if not isinstance(body, dict) or not body:
        raise ConfigError(file, f"model {name}: it needs fields; write for example: id: {{type: int, pk: true}}")
    fields: dict[str, Field] = {}
    folded: set[str] = set()
    columns: dict[str, str] = {}
    for key, declared in body.items():
        if key == _MODEL:
            continue
        if not is_name(key):
            raise ConfigError(
                file,
                f"model {name}: {quoted(str(key))} cannot name a field; use letters, "
                "digits and single underscores, at most 63; a column of another name is that of column: …",
            )
        if key.lower() in folded:
            raise ConfigError(file, f"model {name}: field {key} is declared twice (case does not count)")
        folded.add(key.lower())
        fields[key] = _FieldReader(file, name, key, declared).read()
        column = fields[key].column_name
        other = columns.setdefault(column.lower(), key)
        if other != key:
            raise ConfigError(file, f"model {name}: fields {other} and {key} have the same column, {quoted(column)}")
    model = _whole(file, name, fields, body.get(_MODEL, {}))
    if not model.key:
        raise ConfigError(file, f"model {name}: no field is the primary key; add pk: true to one")
    if not model.visible:
        raise ConfigError(file, f"model {name}: all fields are hidden; leave one of them visible")
    return model


def _whole(file: str, name: str, fields: dict[str, Field], declared: Any) -> Model:
    """The model of ``fields``, with what ``_model`` declares of it."""
    place = f"model {name}: {_MODEL}"
    if not isinstance(declared, dict):
        raise ConfigError(file, f'{place} must be a mapping, like {{table: "Order Details"}}')
    for key in declared:
        if key not in _MODEL_KEYS:
            raise ConfigError(file, f"{place}: unknown setting {quoted(str(key))}{did_you_mean(str(key), _MODEL_KEYS)}")
    table = declared.get("table", name)
    if not _is_identifier(table) or table.lower().startswith(_RESERVED):
        raise ConfigError(
            file,
            f"{place}: table must be the table's name in the database, {_IDENTIFIER}, not beginning with "
            f"{', '.join(_RESERVED)}",
        )
    read_only = declared.get("read_only", False)
    if type(read_only) is not bool:
        raise ConfigError(file, f"{place}: read_only must be true or false")
    live = declared.get("live", False)
    if type(live) is not bool:
        raise ConfigError(file, f"{place}: live must be true or false")
    unique, index = (_groups(file, f"{place}: {key}", fields, declared.get(key, [])) for key in ("unique", "index"))
    return Model(name=name, fields=fields, table=table, read_only=read_only, live=live, unique=unique, index=index)


def _groups(file: str, place: str, fields: dict[str, Field], declared: Any) -> tuple[tuple[str, ...], ...]:
    """Groups of two fields and more."""
    if not isinstance(declared, list) or not all(isinstance(group, list) for group in declared):
        raise ConfigError(file, f"{place} must be a list of lists of fields, like [[board_id, user]]")
    found: list[tuple[str, ...]] = []
    for group in declared:
        for name in group:
            field = fields.get(name) if isinstance(name, str) else None
            if field is None:
                raise ConfigError(file, f"{place}: there is no field {quoted(str(name))}{did_you_mean(name, fields)}")
            if not field.kind.comparable:
                raise ConfigError(file, f"{place}: a {field.kind.name} field cannot be in it")
        if len(set(group)) != len(group) or not 2 <= len(group) <= _MAX_GROUP:
            raise ConfigError(
                file, f"{place}: each list names 2 to {_MAX_GROUP} fields, each once; for one field use its own setting"
            )
        if any(set(group) == set(other) for other in found):
            raise ConfigError(file, f"{place}: {', '.join(group)} stands there twice")
        found.append(tuple(group))
    return tuple(found)


_IDENTIFIER = f"a text of at most {MAX_NAME} bytes without control characters"


def _is_identifier(text: object) -> bool:
    """Whether a database can have a table or a column of this name."""
    return (
        isinstance(text, str)
        and 0 < len(text.encode(errors="replace")) <= MAX_NAME
        and not any(char < " " or char == "\x7f" or "\ud800" <= char <= "\udfff" for char in text)
    )


def _check_references(file: str, models: Mapping[str, Model]) -> None:
    for model in models.values():
        for field in model.fields.values():
            if field.fk is None:
                continue
            place = f"model {model.name}, field {field.name}: fk"
            other = models.get(field.fk.model)
            target = other.fields.get(field.fk.field) if other is not None else None
            if other is None or target is None:
                known = [f"{each.name}.{key}" for each in models.values() for key in each.key]
                wanted = f"{field.fk.model}.{field.fk.field}"
                raise ConfigError(
                    file, f"{place} points to {wanted}, which is not in this file{did_you_mean(wanted, known)}"
                )
            if not (target.unique or other.key == (target.name,)):
                raise ConfigError(
                    file, f"{place} points to {other.name}.{target.name}, which must be the primary key or unique"
                )
            if target.kind is not field.kind:
                raise ConfigError(file, f"{place} points to a field of type {target.kind.name}; use that type")
            if field.fk.on_delete == "set null" and (field.required or field.pk):
                raise ConfigError(
                    file,
                    f"model {model.name}, field {field.name}: on_delete is set null, but "
                    "the field is required; use cascade or restrict",
                )


class _FieldReader:
    """Reads one field's declaration; knows its place for the errors."""

    def __init__(self, file: str, model: str, name: str, declared: Any):
        self._file = file
        self._place = f"model {model}, field {name}"
        self._name = name
        if isinstance(declared, str):
            declared = {"type": declared}
        if not isinstance(declared, dict):
            raise self._error("write a type (str) or a mapping ({type: str, required: true})")
        self._declared = declared
        self._only(declared, _FIELD_KEYS, "")

    def _error(self, reason: str) -> ConfigError:
        return ConfigError(self._file, f"{self._place}: {reason}")

    def _only(self, mapping: dict[Any, Any], known: tuple[str, ...], where: str) -> None:
        for key in mapping:
            if key not in known:
                raise self._error(f"unknown {where}setting {quoted(str(key))}{did_you_mean(str(key), known)}")

    def _flag(self, key: str) -> bool:
        value = self._declared.get(key, False)
        if type(value) is not bool:
            raise self._error(f"{key} must be true or false")
        return value

    def read(self) -> Field:
        declared = self._declared.get("type")
        kind = kind_named(declared) if isinstance(declared, str) else None
        if kind is None:
            raise self._error(f"type must be one of {', '.join(KINDS)}{did_you_mean(declared, KINDS)}")
        rules = self._rules(kind)
        column = self._declared.get("column", self._name)
        if not _is_identifier(column):
            raise self._error(f"column must be the column's name in the database, {_IDENTIFIER}")
        field = Field(
            name=self._name,
            kind=kind,
            pk=self._flag("pk"),
            required=self._flag("required"),
            unique=self._flag("unique"),
            index=self._flag("index"),
            default=self._default(kind),
            fk=self._reference(),
            rules=rules,
            hidden=self._flag("hidden"),
            readonly=self._flag("readonly"),
            column_name=column,
        )
        if not kind.comparable and (field.pk or field.unique or field.fk is not None or field.index):
            raise self._error("a json field cannot be pk, unique, fk or index")
        if field.pk and field.hidden:
            raise self._error("a primary key cannot be hidden; clients need it to name a row")
        if (
            field.default is not None
            and field.default.source == "value"
            and (field.default.value is not None or field.required or field.pk)
        ):
            try:
                accepted = field.accept(field.default.value)
            except ValueError as error:
                raise self._error(f"its default {error}") from None
            field = replace(field, default=Default("value", accepted))
        # A key the table may make; whether it does is known when it has been looked at.
        if field.default is None and field.required and not field.pk and (field.hidden or field.readonly):
            raise self._error("clients cannot write it, and it is required; give it a default")
        return field

    def _default(self, kind: Kind) -> Default | None:
        if "default" not in self._declared:
            return None
        value = self._declared["default"]
        if value == "now" and kind.name in ("datetime", "date", "time"):
            return Default("now")
        if value == "uuid" and kind.name in ("uuid", "str"):
            return Default("uuid")
        if value is None:
            return Default("value", None)
        try:
            return Default("value", kind.parse(value))
        except ValueError as error:
            hint = {"datetime": ", or now", "date": ", or now", "time": ", or now", "uuid": ", or uuid"}
            raise self._error(f"its default {error}{hint.get(kind.name, '')}") from None

    def _reference(self) -> Reference | None:
        target = self._declared.get("fk")
        on_delete = self._declared.get("on_delete", "restrict")
        if target is None:
            if "on_delete" in self._declared:
                raise self._error("on_delete needs an fk")
            return None
        model, dot, field = target.partition(".") if isinstance(target, str) else ("", "", "")
        if not dot or not is_name(model) or not is_name(field):
            raise self._error("fk must name a model and its field, like Teams.id")
        action = _ON_DELETE.get(on_delete.lower()) if isinstance(on_delete, str) else None
        if action is None:
            raise self._error("on_delete must be restrict, cascade or set null")
        return Reference(model, field, action)

    def _rules(self, kind: Kind) -> Rules | None:
        declared = self._declared.get("rules")
        if declared is None:
            return None
        if not isinstance(declared, dict):
            raise self._error("rules must be a mapping, like {min_length: 1}")
        self._only(declared, _RULE_KEYS, "rules ")
        made: dict[str, Any] = {}
        for key, value in declared.items():
            made[key] = self._rule(key, value, kind)
        rules = Rules(**made)
        for low, high in (("min_length", "max_length"), ("min", "max")):
            if made.get(low) is not None and made.get(high) is not None and made[low] > made[high]:
                raise self._error(f"rules: {low} is more than {high}")
        return rules

    def _rule(self, key: str, value: Any, kind: Kind) -> Any:
        if key == "error_message":
            if not isinstance(value, str) or not 0 < len(value) <= 300:
                raise self._error("rules: error_message must be a text of at most 300 characters")
            return value
        if key in ("min", "max"):
            if not kind.ordered or kind.name in ("str", "bool", "uuid"):
                raise self._error(f"rules: {key} is for numbers and dates; for text use {key}_length")
            try:
                bound = kind.parse(value)
            except ValueError as error:
                raise self._error(f"rules: {key} {error}") from None
            if isinstance(bound, (float, Decimal)) and not math.isfinite(bound):
                raise self._error(f"rules: {key} must be finite")
            return bound
        if kind.name != "str":
            raise self._error(f"rules: {key} is for fields of type str")
        if key in ("min_length", "max_length"):
            if type(value) is not int or value < 0:
                raise self._error(f"rules: {key} must be a whole number of characters")
            return value
        if key == "format":
            if not isinstance(value, str) or value not in FORMATS:
                raise self._error(f"rules: format must be one of {', '.join(FORMATS)}")
            return value
        if not isinstance(value, str):
            raise self._error("rules: pattern must be a text; put it in single quotes")
        try:
            return Pattern(value)
        except PatternError as error:
            raise self._error(f"rules: pattern: {error}") from None
