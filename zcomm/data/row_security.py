"""Row-level security: the rows in reach are those that have given values in given fields.

A policy grants it, as ``rows: {owner: $name}`` (:mod:`zcomm.auth.policy`); the values may also be those of a field in
rows of another model (:class:`~zcomm.interfaces.Among`), which the database looks up. What is asked is narrowed to
those rows, and what is written has to stay among them. What is written to a field that points to another row points to
one in reach, or to where it pointed before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zcomm.data.filters import EVERYTHING, Filter, and_
from zcomm.data.models import Field, Model, Schema
from zcomm.errors import PermissionDenied
from zcomm.interfaces import Among, FieldRights
from zcomm.text import did_you_mean, quoted

__all__ = [
    "check_written",
    "members",
    "restrict",
    "targets",
    "tells_apart",
    "told_apart",
    "validate_grant",
    "visible",
]

#: Kinds whose values are the same in Python, in JSON and in a policy file.
_KINDS = ("bool", "int", "str")
#: Kinds by which rows may belong to those of another model.
_MEMBERS = ("int", "str", "uuid")
#: The filter that no row matches.
_NOTHING = Filter(("$false",))


def validate_grant(schema: Schema, model: str, rows: Mapping[str, Any], fields: FieldRights, creates: bool) -> str:
    """Validate a grant to some rows and fields of ``model``.

    :param rows: their values resolved.
    :param creates: whether rows may be made by it.
    :return: why it cannot be granted, after where in the grant that stands; empty when it can.
    """
    found = schema.models.get(model)
    if found is None:
        return f"there is no model {quoted(model)}{did_you_mean(model, schema.models)}"
    fault = _fault_of_rows(found, rows, schema)
    if fault:
        return f"rows: {fault}"
    fault = _fault_of_fields(found, fields, rows, creates)
    return fault and f"fields: {fault}"


def _unknown(model: Model, name: str) -> str:
    return f"{model.name} has no field {quoted(name)}{did_you_mean(name, model.visible)}"


def _fault_of_fields(model: Model, rights: FieldRights, rows: Mapping[str, Any], creates: bool) -> str:
    for part, names in (("hide", rights.hide), ("readonly", rights.readonly)):
        for name in sorted(names):
            field = model.fields.get(name)
            if field is None or field.hidden:
                return f"{part}: {_unknown(model, name)}"
            if field.pk and part == "hide":
                return f"hide: {model.name}.{name} is the primary key, which clients need to name a row"
            # Whether a table makes a key that is missing here, nobody knows yet.
            is_needed = isinstance(rows.get(name), Among) or (name in model.needed and not field.pk)
            if creates and not model.read_only and is_needed and (name not in rows or isinstance(rows[name], Among)):
                return (
                    f"{part}: {model.name}.{name} is required, and who creates a row could not give it; "
                    "give it a default in the schema, or take create away"
                )
    return ""


def _fault_of_rows(model: Model, rows: Mapping[str, Any], schema: Schema) -> str:
    for name, value in rows.items():
        field = model.fields.get(name)
        if field is None or field.hidden:
            return _unknown(model, name)
        if isinstance(value, Among):
            fault = _fault_of_members(model, field, value, schema)
            if fault:
                return f"{name}: in: {fault}"
            continue
        if field.kind.name not in _KINDS:
            return f"{model.name}.{name} is of type {field.kind.name}; rows can be told apart by {', '.join(_KINDS)}"
        try:
            field.kind.parse(value)
        except ValueError as error:
            return f"{model.name}.{name} {error}"
    return ""


def _fault_of_members(model: Model, field: Field, among: Among, schema: Schema) -> str:
    other = schema.models.get(among.model)
    if other is None:
        return f"there is no model {quoted(among.model)}{did_you_mean(among.model, schema.models)}"
    target = other.fields.get(among.field)
    if target is None or target.hidden:
        return _unknown(other, among.field)
    if field.kind.name != target.kind.name:
        return (
            f"{model.name}.{field.name} is of type {field.kind.name}, and {other.name}.{target.name} of type "
            f"{target.kind.name}"
        )
    if field.kind.name not in _MEMBERS:
        return f"{model.name}.{field.name} is of type {field.kind.name}; rows can belong by {', '.join(_MEMBERS)}"
    fault = _fault_of_rows(other, dict(among.where), schema)
    return fault and f"where: {fault}"


def tells_apart(field: Field) -> bool:
    """Whether rights may tell rows apart by ``field``."""
    return field.kind.name in _KINDS


def restrict(where: Filter, model: Model, rows: Mapping[str, Any]) -> Filter:
    """The filter ``where``, narrowed to the rows in reach."""
    for name, value in rows.items():
        if isinstance(value, Among):
            found = members(value)
            reached = Filter((name, "among", value.model, value.field, found.shape), found.slots)
        else:
            reached = Filter((name, "same"), ((model.fields[name].kind.name, value),))
        where = and_(reached, where)
    return where


def members(among: Among) -> Filter:
    """The rows of the other model that ``among`` means, as a filter on that."""
    where = EVERYTHING
    for name, value in among.where:
        where = and_(Filter((name, "same"), ((type(value).__name__, value),)), where)
    return where


def check_written(values: dict[str, Any], model: Model, rows: Mapping[str, Any], fill: bool) -> dict[str, Any]:
    """Check that ``values`` leave the row that they are written to in reach.

    :param fill: whether the row is new, and gets the granted values where it has none.
    :return: the values to write.
    :raises PermissionDenied: naming the fields that would take it out of reach.
    :raises Invalid: for a granted value that its column cannot keep.
    """
    fixed = {name: value for name, value in rows.items() if not isinstance(value, Among)}
    outside = {name: "cannot have this value" for name in fixed if name in values and values[name] != fixed[name]}
    if outside:
        raise PermissionDenied(
            f"{', '.join(f'{model.name}.{name}' for name in outside)} cannot have this value", outside
        )
    if not fill:
        return values
    missing = {name: "is required" for name in rows if name not in fixed and values.get(name) is None}
    if missing:
        # Whose a row is that says nothing of it, nobody can tell.
        raise model.invalid(missing)
    for name, value in fixed.items():
        column = model.fields[name].column
        if column is None:
            continue
        if column.padded and isinstance(value, str) and value.endswith(" "):
            # The row would be that of whoever has the same name without them.
            raise model.invalid({name: "cannot be kept with the blanks at its end"})
        if column.check is not None:
            try:
                column.check(value)
            except ValueError as error:
                raise model.invalid({name: str(error)}) from None
    return {**values, **fixed}


def told_apart(model: Model, row: dict[str, Any]) -> dict[str, Any]:
    """``row``, as clients see it, with the values by which rights tell it from others: without blanks that fill up."""
    padded = [name for name, field in model.fields.items() if field.column is not None and field.column.padded]
    stripped = {name: row[name].rstrip(" ") for name in padded if isinstance(row.get(name), str)}
    return {**row, **stripped} if stripped else row


def visible(model: Model, rows: Mapping[str, Any]) -> Filter:
    """A filter that matches the rows in reach."""
    return restrict(EVERYTHING, model, rows)


def targets(model: Model, rows: Mapping[str, Any] | None) -> Filter:
    """A filter that matches the rows which others may point to.

    :param rows: those in reach of who writes; ``None`` where it may read none.
    """
    return _NOTHING if rows is None else visible(model, rows)
