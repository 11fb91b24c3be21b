"""CRUD requests: what a client or a program may ask for, checked field by field and made into a plan.

Two steps, because permission is checked between them: :func:`parse_command` looks at the request's form
and needs no schema; :func:`make_plan` checks it against the model. A plan is everything a database needs,
with no trace of the client's text outside the values.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from zcomm.data.filters import Filter, Slot, parse_filter, parse_order
from zcomm.data.models import Field, Model
from zcomm.data.row_security import check_written, members, restrict, visible
from zcomm.data.values import is_small, json_pieces
from zcomm.errors import Invalid, PermissionDenied
from zcomm.interfaces import ACTIONS, Among
from zcomm.text import did_you_mean, quoted

__all__ = ["Command", "Confined", "MAX_OFFSET", "Plan", "finds_few", "make_plan", "parse_command"]

#: What each action takes beside ``action`` and ``model``.
_TAKES: dict[str, frozenset[str]] = {
    "create": frozenset({"values"}),
    "read": frozenset({"where", "filters", "fields", "order_by", "limit", "offset"}),
    "update": frozenset({"values", "where", "filters", "all"}),
    "delete": frozenset({"where", "filters", "all"}),
    "upsert": frozenset({"values", "conflict_fields"}),
}
IDEMPOTENCY_KEY = "_idempotencyKey"
_KEYS = (
    "action",
    "model",
    "values",
    "where",
    "filters",
    "fields",
    "order_by",
    "limit",
    "offset",
    "conflict_fields",
    "all",
    IDEMPOTENCY_KEY,
)
#: Beyond this a filter on the last row seen (``id__gt``) is the way to page.
MAX_OFFSET = 1_000_000
MAX_IDEMPOTENCY_KEY = 128
_WRITER = json.JSONEncoder(sort_keys=True, default=repr)

Rows = Mapping[str, Any]
_ALL: Rows = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A request whose form is right; its model, fields and values are still the client's word."""

    action: str
    model: Any
    values: Any = None
    where: Any = None
    fields: Any = None
    order_by: Any = None
    limit: Any = None
    offset: Any = None
    conflict_fields: Any = None
    all: bool = False
    idempotency_key: str | None = None

    def digest(self) -> str:
        """A fingerprint of what is asked, the same for the same request."""
        asked = [self.action, self.model, self.values, self.where, self.conflict_fields, self.all]
        text = hashlib.sha256()
        for piece in [_WRITER.encode(asked)] if is_small(asked) else json_pieces(asked, _WRITER):
            text.update(piece.encode())
        return text.hexdigest()

    def takes_long(self, model: Model) -> bool:
        """Whether looking at the values that are to be written takes more than some milliseconds."""
        values = self.values
        if type(values) is not dict:
            return False
        for name in model.patterned:
            text, rules = values.get(name), model.fields[name].rules
            if type(text) is str and rules is not None and rules.pattern is not None and rules.pattern.takes_long(text):
                return True
        return not is_small(values)


class Confined(NamedTuple):
    """A written field that may have the values of some rows only.

    :ivar name: of the field.
    :ivar model: the model of those rows.
    :ivar field: the field of it whose values are meant.
    :ivar shape: of the filter for them.
    :ivar is_right: whether that is a right to the row that is written, and not what it may point to.
    """

    name: str
    model: str
    field: str
    shape: tuple[Any, ...]
    is_right: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A request checked against its model.

    :ivar shape: everything but the values, hashable: the same shape is the same SQL.
    :ivar slots: the values with their kinds, in the order of the shape.
    :ivar returning: the fields that each row brings back, in order; empty for update and delete.
    :ivar cap: how many rows the answer may have, when the request set no limit itself.
    :ivar written: the names of the fields that are written.
    :ivar nothing: whether no row can match, so that the database need not be asked.
    :ivar restricted: whether an upsert may meet a row that is not in reach.
    :ivar confined: the written fields that may have the values of some rows only; the values of their filters are the
        last slots.
    """

    action: str
    model: Model
    shape: tuple[Any, ...]
    slots: tuple[Slot, ...]
    returning: tuple[str, ...] = ()
    cap: int | None = None
    written: tuple[str, ...] = ()
    nothing: bool = False
    restricted: bool = False
    confined: tuple[Confined, ...] = ()


def parse_command(horizontal: Any, action: str | None = None, model: str | None = None) -> Command:
    """Check the form of a request.

    :param horizontal: ``{action, model, values, where or filters, …}``.
    :param action: what ``action`` has to be, when the key named it already.
    :param model: what ``model`` has to be.
    :raises Invalid: for keys that are unknown, contradict each other or have no meaning for the action.
    """
    if type(horizontal) is not dict:
        raise Invalid('zHorizontal must be an object like {"action": "read", "model": "Users"}')
    for key in horizontal:
        if key not in _KEYS:
            raise Invalid(f"Unknown key {quoted(key)}{did_you_mean(key, _KEYS)}")
    given = {key: value for key, value in horizontal.items() if value is not None}
    asked = given.pop("action", action)
    if action is not None and asked != action:
        raise Invalid("zKey does not match action")
    if not isinstance(asked, str) or asked not in _TAKES:
        raise Invalid(f"action must be one of {', '.join(ACTIONS)}{did_you_mean(asked, ACTIONS)}")
    named = given.pop("model", model)
    if model is not None and named != model:
        raise Invalid("zKey does not match model")
    if named is None:
        raise Invalid("model is missing", {"model": "is required"})
    key = given.pop(IDEMPOTENCY_KEY, None)
    for name in given:
        if name not in _TAKES[asked]:
            raise Invalid(f"{name} has no meaning for {asked}")
    if "where" in given and "filters" in given:
        raise Invalid("Give where or filters, not both")
    everything = given.get("all", False)
    if type(everything) is not bool:
        raise Invalid("all must be true or false")
    return Command(
        action=asked,
        model=named,
        values=given.get("values"),
        where=given.get("where", given.get("filters")),
        fields=given.get("fields"),
        order_by=given.get("order_by"),
        limit=given.get("limit"),
        offset=given.get("offset"),
        conflict_fields=given.get("conflict_fields"),
        all=everything,
        idempotency_key=_idempotency_key(key, asked),
    )


def _idempotency_key(key: Any, action: str) -> str | None:
    if key is None:
        return None
    if action == "read":
        raise Invalid(f"{IDEMPOTENCY_KEY} has no meaning for read")
    if not isinstance(key, str) or not 0 < len(key) <= MAX_IDEMPOTENCY_KEY or not (key.isascii() and key.isprintable()):
        raise Invalid(f"{IDEMPOTENCY_KEY} must be a text of 1 to {MAX_IDEMPOTENCY_KEY} printable ASCII characters")
    return key


def make_plan(
    command: Command,
    model: Model,
    row_cap: int,
    rows: Rows = _ALL,
    targets: Callable[[str, str], Filter] | None = None,
) -> Plan:
    """Check ``command`` against ``model``.

    :param model: as it is for who sent the command (:meth:`zcomm.data.models.Model.restricted`).
    :param row_cap: how many rows one read may bring.
    :param rows: the rows in reach, by the values of their fields (:mod:`zcomm.data.row_security`).
    :param targets: tells of a model and a field of it, by their names, which rows may be pointed to by that field; all
        of any when it is left out.
    :raises CommandError: naming the field and what is wrong with it.
    """
    if model.read_only and command.action != "read":
        raise PermissionDenied(f"{model.name} is read-only")
    for action in ("create", "update") if command.action == "upsert" else (command.action,):
        if action in model.capabilities.lacks:
            raise PermissionDenied(f"The database does no {action} on {model.name}: {model.capabilities.lacks[action]}")
    plan = _PLANNERS[command.action](command, model, row_cap, rows)
    if targets is not None:
        plan = _confine(plan, command, rows, targets)
    return _confine_members(plan, rows)


def _confine_members(plan: Plan, rows: Rows) -> Plan:
    """``plan``, which leaves the rows that it writes among those that rights reach by a membership."""
    confined, slots = plan.confined, plan.slots
    for name, value in rows.items():
        if isinstance(value, Among) and name in plan.written:
            found = members(value)
            confined += (Confined(name, value.model, value.field, found.shape, True),)
            slots += found.slots
    return plan if confined is plan.confined else replace(plan, confined=confined, slots=slots)


def _confine(plan: Plan, command: Command, rows: Rows, targets: Callable[[str, str], Filter]) -> Plan:
    """``plan``, whose values that were sent point to rows in reach only. Defaults and the values of those rows are
    whoever's who wrote schema and policy."""
    confined = []
    slots = plan.slots
    for name, (_, value) in zip(plan.written, plan.slots, strict=False):
        reference = plan.model.fields[name].fk
        if reference is None or value is None or name in rows or name not in command.values:
            continue
        if reference.model == plan.model.name and _is_itself(plan, reference.field, value):
            continue
        where = targets(reference.model, reference.field)
        if not where.everything:
            confined.append(Confined(name, reference.model, reference.field, where.shape))
            slots += where.slots
    return replace(plan, confined=tuple(confined), slots=slots) if confined else plan


def _is_itself(plan: Plan, field: str, value: Any) -> bool:
    """Whether the row that has ``value`` in ``field`` is the one that is written."""
    if plan.action == "upsert" and field not in plan.shape[2] + plan.shape[3]:
        # A row that is there keeps what it has.
        return False
    if field not in plan.model.visible:
        # Which values fit would tell what it has.
        return False
    given = dict(zip(plan.written, plan.slots, strict=False)).get(field)
    return given is not None and given[1] == value


def _create(command: Command, model: Model, row_cap: int, rows: Rows) -> Plan:
    names, slots = _complete(model, check_written(_values(command, model, rows), model, rows, True))
    return Plan(
        action="create", model=model, shape=("create", names), slots=slots, returning=model.returned, written=names
    )


def _read(command: Command, model: Model, row_cap: int, rows: Rows) -> Plan:
    where = restrict(parse_filter(model, command.where), model, rows)
    fields = _fields(command.fields, model)
    order = parse_order(model, command.order_by)
    limit = _number("limit", command.limit, row_cap)
    offset = _number("offset", command.offset, MAX_OFFSET) or 0
    cap = None
    if _finds_one(model, where):
        order = ()
    else:
        # With the key last, rows that tie keep one order, so that pages neither repeat nor skip any.
        order += tuple((name, False) for name in model.key if name not in dict(order))
    if limit is None:
        cap = row_cap
    slots = (*where.slots, ("int", row_cap + 1 if limit is None else limit), ("int", offset))
    shape = ("read", fields, where.shape, order)
    return Plan(
        action="read",
        model=model,
        shape=shape,
        slots=slots,
        returning=fields,
        cap=cap,
        nothing=where.nothing or limit == 0,
    )


def _update(command: Command, model: Model, row_cap: int, rows: Rows) -> Plan:
    where = restrict(_selective(command, model), model, rows)
    accepted = check_written(_values(command, model, rows), model, rows, False)
    for name in model.key:
        if name in accepted:
            # Nobody may: no right would help, another command does.
            raise Invalid(f"{model.name}.{name} cannot be changed", {name: "cannot be changed"})
    if not accepted:
        raise Invalid("values is empty; name at least one field to change")
    names = tuple(accepted)
    slots = tuple((model.fields[name].kind.name, value) for name, value in accepted.items()) + where.slots
    return Plan(
        action="update",
        model=model,
        shape=("update", names, where.shape),
        slots=slots,
        written=names,
        nothing=where.nothing,
    )


def _delete(command: Command, model: Model, row_cap: int, rows: Rows) -> Plan:
    where = restrict(_selective(command, model), model, rows)
    return Plan(
        action="delete",
        model=model,
        shape=("delete", where.shape),
        slots=where.slots,
        nothing=where.nothing,
    )


def _upsert(command: Command, model: Model, row_cap: int, rows: Rows) -> Plan:
    given = check_written(_values(command, model, rows), model, rows, True)
    conflict = _conflict_fields(command.conflict_fields, model, given)
    names, slots = _complete(model, given)
    # Defaults are for rows that are new: an existing one keeps what it has.
    replaced = tuple(name for name in given if name not in conflict and name not in model.key)
    # An existing row has to be in reach as well.
    replaceable = visible(model, rows)
    shape = ("upsert", names, conflict, replaced, replaceable.shape)
    return Plan(
        action="upsert",
        model=model,
        shape=shape,
        slots=slots + replaceable.slots,
        returning=model.returned,
        written=names,
        restricted=not replaceable.everything,
    )


_PLANNERS = {"create": _create, "read": _read, "update": _update, "delete": _delete, "upsert": _upsert}


def _values(command: Command, model: Model, rows: Rows) -> dict[str, Any]:
    """The values that were sent, each checked; all that is wrong with them, or missing beside them, is told at once.

    :param rows: the values of the rows in reach, which a new row gets where it is sent without.
    """
    values = command.values
    if type(values) is not dict:
        raise Invalid('values must be an object like {"name": "Alice"}')
    protected: dict[str, str] = {}
    wrong: dict[str, str] = {}
    accepted: dict[str, Any] = {}
    for name, value in values.items():
        field = model.find(name)
        if field.readonly:
            protected[name] = "cannot be written"
            continue
        if name in model.unsent and not (field.pk and command.action == "update"):
            wrong[name] = "is made by the database; leave it out"
            continue
        try:
            accepted[name] = field.accept(value)
        except ValueError as error:
            wrong[name] = str(error)
    if protected:
        names = ", ".join(f"{model.name}.{name}" for name in protected)
        raise PermissionDenied(f"{names} cannot be written", protected)
    if wrong:
        if command.action != "update":
            given = {*values, *(name for name, value in rows.items() if not isinstance(value, Among))}
            wrong |= {name: "is required" for name in model.fields if name not in given and name in model.needed}
        raise model.invalid(wrong)
    return accepted


def _complete(model: Model, accepted: dict[str, Any]) -> tuple[tuple[str, ...], tuple[Slot, ...]]:
    """The values of a new row, defaults filled in; fails for required ones that are missing and defaults that fail."""
    names: list[str] = []
    slots: list[Slot] = []
    wrong: dict[str, str] = {}
    for name, field in model.fields.items():
        if name in accepted:
            value = accepted[name]
        elif field.default is not None:
            value = field.default.make(field.kind)
            if field.default.source == "now" and field.column is not None and field.column.fitted is not None:
                try:
                    value = field.column.fitted(value)
                except ValueError as error:
                    wrong[name] = str(error)
        else:
            if name in model.needed:
                wrong[name] = "is required"
            continue
        names.append(name)
        slots.append((field.kind.name, value))
    if wrong:
        raise model.invalid(wrong)
    return tuple(names), tuple(slots)


def _fields(fields: Any, model: Model) -> tuple[str, ...]:
    if fields is None or fields == "*" or fields == ["*"]:
        return model.visible
    if type(fields) is not list or not fields:
        raise Invalid('fields must be a list like ["id", "name"]')
    names: dict[str, None] = {}
    for each in fields:
        name = model.find(each).name
        if name in names:
            raise Invalid(f"fields names {name} twice")
        names[name] = None
    return tuple(names)


def _number(name: str, value: Any, maximum: int) -> int | None:
    if value is None:
        return None
    if type(value) is not int or not 0 <= value <= maximum:
        raise Invalid(
            f"{name} must be a whole number from 0 to {maximum}", {name: f"must be a whole number from 0 to {maximum}"}
        )
    return value


def _finds_one(model: Model, where: Filter) -> bool:
    """Whether the filter asks for one value of a unique field, so that at most one row matches."""
    parts = where.shape[1:] if where.shape[0] == "$and" else (where.shape,)
    return any(len(part) == 2 and part[1] == "eq" and _identifies(model, part[0]) for part in parts)


def finds_few(model: Model, shape: tuple[Any, ...]) -> bool:
    """Whether a filter of that shape asks for the values of fields that tell rows apart, so that no more than a few
    match."""
    parts = shape[1:] if shape[0] == "$and" else (shape,)
    equal = {part[0] for part in parts if len(part) == 2 and part[1] == "eq"}
    if any(equal.issuperset(group) for group in model.identifying):
        return True
    return any(len(part) == 3 and part[1] == "in" and _identifies(model, part[0]) for part in parts)


def _identifies(model: Model, name: Any) -> bool:
    field: Field | None = model.fields.get(name) if isinstance(name, str) else None
    return field is not None and (field.unique or model.key == (name,))


def _selective(command: Command, model: Model) -> Filter:
    """The filter of an update or delete, which has to select something."""
    where = parse_filter(model, command.where)
    if where.everything and not command.all:
        raise Invalid(
            f'Refusing unfiltered {command.action}: give a where that selects rows, or "all": true for every row'
        )
    if command.all and not where.everything:
        raise Invalid('Give a where or "all": true, not both')
    return where


def _conflict_fields(fields: Any, model: Model, given: Mapping[str, Any]) -> tuple[str, ...]:
    identifying = [each for each in model.identifying if all(name in model.visible for name in each)]
    if fields is None:
        fitting = [each for each in identifying if all(given.get(name) is not None for name in each)]
        if len(fitting) != 1:
            raise Invalid('conflict_fields is needed: a list of the unique field that tells rows apart, like ["email"]')
        return fitting[0]
    if type(fields) is not list or not fields or len(fields) > len(model.fields):
        raise Invalid('conflict_fields must be a list like ["email"]')
    names = tuple(model.find(each).name for each in fields)
    if len(set(names)) != len(names) or sorted(names) not in map(sorted, identifying):
        raise Invalid(f"conflict_fields must be the primary key, one unique field or one unique group of {model.name}")
    for name in names:
        if name in model.unsent:
            unique = ", ".join(each for each in model.visible if model.fields[each].unique and each != name)
            fix = f"name a unique field: {unique}" if unique else f"{model.name} has no unique field to name instead"
            raise Invalid(f"conflict_fields: {model.name}.{name} is made by the database; {fix}")
        if given.get(name) is None:
            raise Invalid(f"{name} is required, as conflict_fields names it", {name: "is required"})
    return names
