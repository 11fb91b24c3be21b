"""Models and their fields, as a zSchema file declares them.

::

    Users:
      id:     {type: int, pk: true}
      email:  {type: str, required: true, unique: true, rules: {format: email}}
      active: {type: bool, default: true}
      joined: {type: datetime, default: now}
      team:   {type: int, fk: Teams.id, on_delete: cascade}
      motto:  str

Reading a file is in :mod:`zcomm.data.schema`; this module has the values it makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any
from uuid import uuid4

from zcomm.data.rules import Rules
from zcomm.data.values import Kind
from zcomm.errors import ConfigError, Invalid, UnknownField, UnknownModel
from zcomm.interfaces import NO_FIELD_RIGHTS, FieldRights
from zcomm.text import did_you_mean, quoted

__all__ = ["Capabilities", "Column", "Default", "Field", "Given", "Model", "Reference", "Schema"]


#: How many rights to its fields a model is remembered for. Those of a policy are as many as its roles; a program may
#: make up others for each user.
_MAX_RESTRICTED = 200


@dataclass(frozen=True, slots=True)
class Reference:
    """The target of a foreign key, and what becomes of a row when its target goes.

    :ivar on_delete: ``restrict``, ``cascade`` or ``set null``.
    """

    model: str
    field: str
    on_delete: str = "restrict"


@dataclass(frozen=True, slots=True)
class Default:
    """The default of a field, stored when a create leaves it out: a value, the time or a new UUID.

    :ivar source: ``value``, ``now`` or ``uuid``.
    """

    source: str = "value"
    value: Any = None

    def make(self, kind: Kind) -> Any:
        """The value, in the field's Python type."""
        if self.source == "now":
            now = datetime.now(UTC)
            return {"datetime": now, "date": now.date(), "time": now.time()}[kind.name]
        if self.source == "uuid":
            unique = uuid4()
            return unique if kind.name == "uuid" else str(unique)
        return self.value


#: Makes a parameter of SQL for a value, of a type of SQLAlchemy's and with a conversion as :attr:`Column.bind`.
Given = Callable[[Any, Callable[[Any], Any] | None], Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """The column of a field in its database: how values come and go there.

    :ivar type: SQLAlchemy's type that values are bound as; ``None`` for that of the kind.
    :ivar compared_type: likewise in filters; ``None`` for the same.
    :ivar kept: from the value, given as parameters, to the SQL expression that is written, which fails for a value that
        the column would keep as another one; ``None`` for one parameter alone.
    :ivar asked: likewise for what the column is compared with.
    :ivar bind: from the kind's Python type to what the driver takes; ``None`` where that is the same. It raises
        ``ValueError``, with a text that reads on from the field's name, for what the column cannot hold.
    :ivar read: from what the driver brings to JSON; likewise.
    :ivar raw: likewise to what may be JSON that is written already; ``None`` where ``read`` does.
    :ivar check: raises ``ValueError`` for a value that the column would refuse, or keep as another one.
    :ivar fitted: from a value that is made here, as the present time, to the nearest that the column keeps; it raises
        ``ValueError`` as ``check`` does.
    :ivar shown: from the column to the SQL expression that is read.
    :ivar compare: the condition that a field's operator and its parameters make of the column, where that is not what
        the operator says of ``compared``.
    :ivar unfit: takes a value that the kind does not, for a filter that asks for equality, where the column may hold
        values of other kinds. It raises ``ValueError`` for what none holds.
    :ivar compared: from the column to the SQL expression that filters and orders ask.
    :ivar key: from the column to the SQL expression that is equal for all forms of one value; ``None`` where one value
        has one form.
    :ivar keyed: likewise from a parameter; ``None`` where a value that is bound is its own key.
    :ivar forms: from a value's key to the SQL expressions of all its forms, by which an index finds it; ``None`` where
        they are without number.
    :ivar matched: from the column to the SQL expression that patterns are matched with.
    :ivar formless: whether what is written takes the form of what is there, and nothing was; ``check`` is then for the
        first write to it.
    :ivar nullable: whether the database lets it be null.
    :ivar exact: whether it finds equal only what is the same, letter by letter.
    :ivar padded: whether blanks at the end of a text count for nothing.
    :ivar caseless: whether patterns take no notice of case.
    :ivar by_code_point: whether its texts are ordered by their code points, and it keeps nothing but texts.
    :ivar accepts: a value of the column in words that follow "must be", for errors.
    :ivar listed: SQL that brings the texts that the column takes, where it takes some only; ``""`` elsewhere.
    :ivar tried: SQL with the parameters of one value, as a statement has them, which fails for a value that cannot be
        written; ``""`` where there is none.
    :ivar tried_compared: likewise for one that cannot be compared with.
    """

    type: Any = None
    compared_type: Any = None
    kept: Callable[[Given], Any] | None = None
    asked: Callable[[Given], Any] | None = None
    bind: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None
    raw: Callable[[Any], Any] | None = None
    check: Callable[[Any], None] | None = None
    fitted: Callable[[Any], Any] | None = None
    shown: Callable[[Any], Any] | None = None
    compared: Callable[[Any], Any] | None = None
    compare: Callable[[Any, str, Any], Any] | None = None
    unfit: Callable[[Any], Any] | None = None
    key: Callable[[Any], Any] | None = None
    keyed: Callable[[Any], Any] | None = None
    forms: Callable[[Any], list[Any]] | None = None
    matched: Callable[[Any], Any] | None = None
    formless: bool = False
    nullable: bool = True
    exact: bool = True
    padded: bool = False
    caseless: bool = False
    by_code_point: bool = False
    accepts: str = ""
    listed: str = ""
    tried: str = ""
    tried_compared: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One field of a model.

    :ivar column_name: what the database calls it; the same as its name where that is left out.
    :ivar column: where its values are kept; ``None`` until the database has been asked.
    :ivar required: may not be null; has to be given unless there is a default.
    :ivar hidden: clients can neither read, filter by nor write it; for them it is not there.
    :ivar readonly: clients can read it and not write it.
    """

    name: str
    kind: Kind
    pk: bool = False
    required: bool = False
    unique: bool = False
    index: bool = False
    default: Default | None = None
    fk: Reference | None = None
    rules: Rules | None = None
    hidden: bool = False
    readonly: bool = False
    column_name: str = ""
    column: Column | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "column_name", self.column_name or self.name)

    def accept(self, value: Any) -> Any:
        """``value``, sent to be stored, in the field's Python type.

        :raises ValueError: with a text that reads on from the field's name.
        """
        if value is None:
            if self.required or self.pk:
                raise ValueError("is required")
            return None
        parsed = self.kind.parse(value)
        if self.rules is not None:
            reason = self.rules.broken_by(parsed, self.kind)
            if reason is not None:
                raise ValueError(reason)
        if self.column is not None and self.column.check is not None and not self.column.formless:
            self.column.check(parsed)
        return parsed


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """The capabilities of a model's table, as far as requests have to know it.

    :ivar makes_key: whether the database may make the values of a primary key that is a number.
    :ivar takes_key: whether they may be given.
    :ivar lacks: the actions that the database does not do, with the reason.
    :ivar fills: the names of the fields of the key that the database fills by a default or an identity of their own.
    :ivar fixed: the names of the fields that it alone writes: what it generates always.
    :ivar perhaps: whether it may fill others as well, from a trigger say.
    :ivar rereads: whether a written row may change after it was reported, by a trigger say.
    :ivar defers: whether that may happen as late as at the end of the transaction.
    :ivar skips: whether a trigger or a rule may take a row that is written, so that none comes back.
    :ivar lenient: whether its constraints may pass over a conflict unless a statement says that it is an error.
    :ivar disturbs: whether code of the database's users runs with a statement, which may leave the session otherwise
        than it was.
    :ivar only: whether statements mean the table without those that inherit from it.
    """

    makes_key: bool = True
    takes_key: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    fills: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    perhaps: bool = False
    rereads: bool = False
    defers: bool = False
    skips: bool = False
    lenient: bool = False
    disturbs: bool = False
    only: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """One model: a table and what may be in it."""

    name: str
    fields: Mapping[str, Field]
    #: What the database calls it; the same as its name where that is left out.
    table: str = ""
    #: The schema of the database that its table is in, in PostgreSQL; empty until the database has been asked.
    namespace: str = ""
    #: Whether nobody may write it.
    read_only: bool = False
    #: Whether its table is watched for changes by whomever, for live queries.
    live: bool = False
    #: The groups of fields that no two rows have alike, beside the key and the fields that are unique alone.
    unique: tuple[tuple[str, ...], ...] = ()
    #: The groups of fields that have an index together where the table is made.
    index: tuple[tuple[str, ...], ...] = ()
    #: Until the database has been asked, those of a table which zComm makes.
    capabilities: Capabilities = Capabilities()
    #: The fields that clients see, in the order of the schema.
    visible: tuple[str, ...] = field(init=False)
    #: The fields that a write brings back, from which everybody is told what they may see: those that the schema hides
    #: from nobody.
    returned: tuple[str, ...] = field(init=False)
    #: The fields whose values have to match a pattern.
    patterned: tuple[str, ...] = field(init=False)
    #: The names of the primary key, one or more.
    key: tuple[str, ...] = field(init=False)
    #: The one primary key when it is a number and the database makes its values, otherwise ``None``.
    generated: str | None = field(init=False)
    #: The fields whose values the database makes where a create leaves them out.
    made: frozenset[str] = field(init=False)
    #: Those whose values may not be sent.
    unsent: frozenset[str] = field(init=False)
    #: Those without which nothing can be created.
    needed: frozenset[str] = field(init=False)
    #: The same model as others see it, by their rights to its fields.
    _restricted: dict[FieldRights, Model] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        keys = [each for each in self.fields.values() if each.pk]
        alone = keys[0] if len(keys) == 1 else None
        made = self.capabilities.makes_key and alone is not None and alone.fk is None and alone.default is None
        generated = made and alone is not None and alone.kind.name == "int"
        store = object.__setattr__
        store(self, "fields", MappingProxyType(dict(self.fields)))
        store(self, "table", self.table or self.name)
        store(self, "visible", tuple(each.name for each in self.fields.values() if not each.hidden))
        store(self, "returned", self.visible)
        store(self, "_restricted", {})
        rules = {each.name: each.rules for each in self.fields.values() if each.rules is not None}
        store(self, "patterned", tuple(name for name, each in rules.items() if each.pattern is not None))
        store(self, "key", tuple(each.name for each in keys))
        store(self, "generated", alone.name if generated and alone is not None else None)
        own = frozenset({alone.name} if generated and alone is not None else ())
        capabilities = self.capabilities
        store(self, "made", own | capabilities.fills | capabilities.fixed)
        store(self, "unsent", capabilities.fixed | (frozenset() if capabilities.takes_key else own))
        store(self, "needed", frozenset(name for name in self.fields if self._needs(self.fields[name])))

    def _needs(self, field: Field) -> bool:
        if field.default is not None or field.name in self.made:
            return False
        # Where nothing fills a key, its row is refused afterwards.
        return not self.capabilities.perhaps if field.pk else field.required

    def restricted(self, rights: FieldRights) -> Model:
        """The model as it is for who has these rights to its fields: what they hide is hidden, and what may only be
        read is readonly. Fields that it does not have are no matter.

        :raises ValueError: where a field of the primary key is hidden: its rows would have no names.
        """
        if rights is NO_FIELD_RIGHTS:
            return self
        known = self._restricted.get(rights)
        if known is None:
            if not rights.hide.isdisjoint(self.key):
                raise ValueError(f"{self.name}: the primary key, {', '.join(self.key)}, cannot be hidden from anybody")
            fields = {
                name: replace(
                    each, hidden=each.hidden or name in rights.hide, readonly=each.readonly or name in rights.readonly
                )
                for name, each in self.fields.items()
            }
            known = replace(self, fields=fields)
            object.__setattr__(known, "returned", self.returned)
            if len(self._restricted) >= _MAX_RESTRICTED:
                self._restricted.clear()
            self._restricted[rights] = known
        return known

    def invalid(self, reasons: Mapping[str, str]) -> Invalid:
        """The error for values of fields, each with what is wrong with it: those that may be known are named."""
        told = {name: reason for name, reason in reasons.items() if name in self.visible or name not in self.fields}
        if not told:
            return Invalid("A value that is not yours to give is missing, or cannot be used")
        return Invalid("; ".join(f"{name} {reason}" for name, reason in told.items()), told)

    @property
    def identifying(self) -> list[tuple[str, ...]]:
        """The groups of fields that tell rows apart: the primary key first, unique fields, unique groups."""
        alone = [(name,) for name, field in self.fields.items() if field.unique]
        return [self.key, *(each for each in alone if each != self.key), *self.unique]

    def fields_of(self, columns: Iterable[str]) -> tuple[str, ...]:
        """The names of the fields that are kept in ``columns``; what no field is kept in is left out."""
        names = {field.column_name: name for name, field in self.fields.items()}
        return tuple(names[column] for column in columns if column in names)

    def find(self, name: Any) -> Field:
        """The field that clients know as ``name``.

        :raises UnknownField: when there is none, naming the nearest there is.
        """
        found = self.fields.get(name) if isinstance(name, str) else None
        if found is None or found.hidden:
            raise UnknownField(f"{self.name} has no field {quoted(name)}{did_you_mean(name, self.visible)}")
        return found


@dataclass(frozen=True, slots=True)
class Schema:
    """All models of a server, by name."""

    models: Mapping[str, Model]

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", MappingProxyType(dict(self.models)))

    def find(self, name: Any, known: Callable[[str], bool] = lambda name: True) -> Model:
        """The model called ``name``.

        :param known: which models the asker may hear of.
        :raises UnknownModel: when there is none, naming the nearest of those.
        """
        found = self.models.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownModel(f"There is no model {quoted(name)}{did_you_mean(name, self.models, allowed=known)}")
        return found

    def merge(self, other: Schema, name: str = "schema") -> Schema:
        """Both schemas' models together.

        :param name: which file ``other`` is from, for the error.
        :raises ConfigError: when both declare the same model.
        """
        # SQLite takes no notice of case in names: Users and users would be one table.
        taken = {each.lower(): each for each in self.models}
        for each in other.models:
            if each.lower() in taken:
                raise ConfigError(
                    name, f"model {each} is declared already (as {taken[each.lower()]}); rename one of the two"
                )
        merged = Schema({**self.models, **other.models})
        merged.check_tables(name)
        return merged

    def check_tables(self, name: str) -> None:
        """Refuse two models of one table.

        :param name: of the file, for the error.
        :raises ConfigError: naming both.
        """
        taken: dict[str, str] = {}
        for model in self.models.values():
            other = taken.setdefault(model.table.lower(), model.name)
            if other != model.name:
                raise ConfigError(name, f"models {other} and {model.name} have the same table, {quoted(model.table)}")
