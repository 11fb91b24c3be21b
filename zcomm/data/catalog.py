"""Existing tables, compared with what the schema says of them.

A constraint that the schema declares and the table does not have would be kept by nobody. It is an error of the start,
as is a table that cannot be used; what the database merely forbids is left out of what a model can do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from zcomm.data.models import Capabilities, Field, Model, Schema
from zcomm.errors import ConfigError

__all__ = ["Relation", "UniqueKey", "fit_model", "misspelt", "what_changed"]


@dataclass(frozen=True, slots=True)
class UniqueKey:
    """A unique constraint or index.

    :ivar columns: all of its columns.
    :ivar flaw: why it does not hold for each row and at each moment, in words that follow "is"; empty when it does.
    """

    columns: frozenset[str]
    flaw: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A table, or what passes for one, in a database.

    :ivar kind: ``table``, ``view``, ``materialized view`` or ``foreign table``.
    :ivar columns: their names.
    :ivar uniques: what is unique in it.
    :ivar references: its foreign keys of one column: that column, the table and the column that it points to, and
        what becomes of the row when the target goes: ``cascade``, ``set null`` or ``restrict``.
    :ivar nullable: the columns that may be null.
    :ivar made: the columns that get a value of their own when they are left out.
    :ivar fixed: those of them that nobody else writes: what is generated always.
    :ivar perhaps: whether others may get one as well, from a trigger or from the table below a view.
    :ivar lacks: the actions that the database does not do, with the reason.
    :ivar rereads: whether a written row may change after it was reported.
    :ivar defers: whether that may happen as late as at the end of the transaction.
    :ivar skips: whether a row that is written may be taken by a trigger or a rule, so that none comes back.
    :ivar lenient: whether its own constraints may pass over a conflict, or remove the other rows of it.
    :ivar disturbs: whether code of the database's users runs with a statement, a trigger say.
    :ivar namespace: the schema that it is in, in PostgreSQL.
    :ivar heirs: the tables that inherit from it, and have rows of their own under keys of their own.
    :ivar only: whether it is a table that others could inherit from, and none does.
    :ivar declared: by column, what decides how its values are kept, first of all what decides that for UUIDs only;
        empty where that cannot change unnoticed.
    """

    kind: str = "table"
    columns: frozenset[str] = frozenset()
    uniques: tuple[UniqueKey, ...] = ()
    references: frozenset[tuple[str, str, str, str]] = frozenset()
    nullable: frozenset[str] = frozenset()
    made: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    perhaps: bool = False
    lacks: Mapping[str, str] = field(default_factory=dict)
    rereads: bool = False
    defers: bool = False
    skips: bool = False
    lenient: bool = False
    disturbs: bool = False
    namespace: str = ""
    heirs: tuple[str, ...] = ()
    only: bool = False
    declared: Mapping[str, tuple[object, ...]] = field(default_factory=dict)


def misspelt(model: str, there: str, url: str) -> ConfigError:
    """The error for a model whose table is there under a name that differs from its own in case."""
    return ConfigError(
        url,
        f"model {model}: the existing table is spelt {there}; spell the model the same way, or give its table with "
        f"_model: {{table: {there}}}",
    )


def fit_model(model: Model, relation: Relation, schema: Schema, url: str) -> Model:
    """``model`` as it can be served from ``relation``.

    :param schema: the models that it points to.
    :param url: the database as the user may see it, for errors.
    :raises ConfigError: when the relation does not keep what the schema declares.
    """

    def error(place: str, reason: str) -> ConfigError:
        return ConfigError(url, f"model {model.name}{place}: {reason}")

    if relation.heirs and not model.read_only:
        raise error(
            "",
            f"other tables inherit from its own ({', '.join(relation.heirs)}), and no key is kept for all of them "
            "together; partition it instead, or give it a view of that table's own rows (of ONLY the table)",
        )
    if relation.kind == "table":
        for names in model.identifying:
            columns = frozenset(model.fields[name].column_name for name in names)
            # One that is missing is somebody else's error.
            flaw = _flaw(columns, relation) if columns <= relation.columns else ""
            if flaw and names in model.unique:
                raise error(
                    "",
                    f"_model says that {', '.join(names)} are unique together, and the existing table does not keep "
                    f"them so ({flaw}); add a unique index of all rows to it, or take them out of the schema",
                )
            if flaw:
                what = "the primary key" if names == model.key else "unique"
                raise error(
                    f", field {', '.join(names)}",
                    f"it is {what} in the schema, and the existing table does not keep it so ({flaw}); add a UNIQUE "
                    "constraint to it or change the schema",
                )
        for each in model.fields.values():
            place = f", field {each.name}"
            if each.required and not each.pk and each.column_name in relation.nullable:
                raise error(
                    place,
                    "it is required in the schema, and the existing column may be null; add NOT NULL to it or take "
                    "required out of the schema",
                )
            if each.column_name in relation.columns and (reason := _dangling(each, relation, schema)):
                raise error(place, reason)
    fields = model.fields.values()
    fixed = frozenset(each.name for each in fields if each.column_name in relation.fixed)
    filled = (each for each in fields if each.pk and each.default is None and each.column_name in relation.made)
    for each in fields:
        if each.name in fixed and each.default is not None:
            raise error(
                f", field {each.name}",
                "it has a default in the schema, and its values are the database's alone; take default out of it",
            )
    capabilities = Capabilities(
        lacks=relation.lacks,
        fills=frozenset(each.name for each in filled if each.name != model.generated),
        fixed=fixed - {model.generated},
        perhaps=relation.perhaps,
        rereads=relation.rereads,
        defers=relation.defers,
        skips=relation.skips,
        lenient=relation.lenient,
        disturbs=relation.disturbs,
        only=relation.only,
    )
    if model.generated is not None:
        made = model.fields[model.generated].column_name in relation.made
        capabilities = replace(capabilities, makes_key=made or relation.perhaps, takes_key=not made)
    return replace(model, capabilities=capabilities, namespace=relation.namespace)


def what_changed(model: Model, then: Relation, now: Relation | None, schema: Schema, url: str) -> str:
    """The reason why ``model`` cannot be served from its relation any more as it was at the start; empty for
    what does no harm, other columns, indexes and triggers say.

    :param then: the relation as it was at the start.
    :param now: as it is; ``None`` where it is gone.
    """
    if now is None:
        return "it is gone"
    if now.kind != then.kind:
        return f"it is a {now.kind} now"
    for each in model.fields.values():
        name = each.column_name
        if name not in now.columns:
            return f"{name} is gone"
        first = 0 if each.kind.name == "uuid" else 1
        if now.declared.get(name, ())[first:] != then.declared.get(name, ())[first:]:
            return f"{name} is declared otherwise"
        if name in now.nullable - then.nullable:
            return f"{name} may be null now"
    try:
        fitted = [fit_model(model, relation, schema, url).capabilities for relation in (then, now)]
    except ConfigError as error:
        return str(error)
    before, after = (replace(each, rereads=False, skips=False) for each in fitted)
    return "" if before == after else "what can be written is otherwise"


def _flaw(columns: frozenset[str], relation: Relation) -> str:
    """Why ``columns`` together are not unique; empty when they are."""
    flaws = [key.flaw for key in relation.uniques if key.columns == columns]
    if not flaws:
        return "nothing makes it unique"
    return "" if "" in flaws else f"what makes it unique is {flaws[0]}"


def _dangling(each: Field, relation: Relation, schema: Schema) -> str:
    """Why the foreign key of a field is not kept; empty when it is."""
    target = each.fk
    if target is None:
        return ""
    other = schema.models[target.model]
    wanted = (each.column_name, other.table, other.fields[target.field].column_name)
    found = [reference[3] for reference in relation.references if reference[:3] == wanted]
    if not found:
        return (
            f"it points to {target.model}.{target.field} in the schema, and the existing column has no such foreign "
            "key; add it or take fk out of the schema"
        )
    if target.on_delete != "restrict" and target.on_delete not in found:
        return (
            f"its on_delete is {target.on_delete} in the schema, and the existing foreign key has another; "
            "change one of the two"
        )
    return ""
