"""Random models: their schema, their tables, and policies for them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from random import Random
from typing import Any

from live.differ.values import COLUMNS, POOLS

__all__ = ["MARKS", "USERS", "Field", "Model", "models_of", "policy_of", "schema_of", "tables_of"]

#: By user, the role.
USERS = {"ann": "own", "bob": "own", "eve": "shy", "tim": "shift", "root": "all"}
#: The model by which it is seen that everything before has come.
MARKS = "Marks"


@dataclass
class Field:
    """A field of a model.

    :ivar column: the type of its column in PostgreSQL; empty where zComm makes the table.
    :ivar fk: the model that it points to, and the one field of its key.
    """

    name: str
    kind: str
    column: str
    pool: list[Any]
    pk: bool = False
    nullable: bool = True
    unique: bool = False
    hidden: bool = False
    fk: tuple[str, str] | None = None
    on_delete: str = "restrict"
    on_update: str = ""
    is_made: bool = False

    def value(self, dice: Random) -> Any:
        """A random value of it, as JSON."""
        if self.kind == "int" and (self.is_made or self.fk or (self.pk and dice.random() < 0.5)):
            return dice.randrange(1, 40)
        if (self.pk or self.unique) and self.kind in ("str", "uuid") and self.pool is POOLS[self.kind]:
            if self.kind == "uuid":
                return f"{dice.choice('0a')}0000000-0000-4000-8000-0000000000{dice.randrange(40):02}"
            return dice.choice(self.pool) + dice.choice(["", "x", "X", "1", "ä"])
        return dice.choice(self.pool)


@dataclass
class Model:
    """A model, and what is known of its table.

    :ivar children: the models that point to it.
    :ivar is_split: whether its table is partitioned.
    """

    name: str
    fields: list[Field]
    live: bool
    children: list[str] = field(default_factory=list)
    is_split: bool = False

    @property
    def key(self) -> list[Field]:
        """The fields of its key, in order."""
        return [each for each in self.fields if each.pk]

    @property
    def has_owner(self) -> bool:
        """Whether rights to some rows may look at it."""
        return any(each.name == "owner" for each in self.fields)

    def field(self, name: str) -> Field:
        """The field of that name."""
        return next(each for each in self.fields if each.name == name)


def models_of(dice: Random, is_special: bool, is_sqlite: bool) -> list[Model]:
    """Two to four models.

    :param is_special: whether their tables have columns that only PostgreSQL has.
    """
    models: list[Model] = []
    for number in range(dice.randrange(2, 5)):
        name = f"M{number}"
        fields = _key(dice, models, is_special)
        if dice.random() < 0.7:
            column, pool = _column(dice, "str", is_special)
            pool = [*pool[:6], "ann", "bob", "Ann"] if column in ("", "text", "citext", "varchar(10)") else pool
            fields.append(Field("owner", "str", column, pool))
        for at in range(dice.randrange(2, 7)):
            kind = dice.choice([*POOLS, "str", "int", "str"])
            column, pool = _column(dice, kind, is_special)
            if is_sqlite and kind == "float":
                pool = [each for each in pool if each != "NaN"]
            made = Field(f"f{at}", kind, column, pool)
            if kind == "str" and column in ("", "text") and dice.random() < 0.1:
                # So that a client that does not read has something to wait for it.
                made.pool = [*(letter * 20_000 for letter in "aA"), *pool[:4]]
            made.nullable = dice.random() < 0.75
            made.unique = kind in ("str", "int", "uuid", "date") and dice.random() < 0.2
            made.hidden = made.nullable and dice.random() < 0.08
            fields.append(made)
        for parent in models:
            if len(parent.key) == 1 and dice.random() < 0.6:
                to = parent.key[0]
                link = Field(f"to_{parent.name}", to.kind, to.column, to.pool, fk=(parent.name, to.name))
                link.on_delete = dice.choice(["cascade", "cascade", "set null", "restrict"])
                link.on_update = dice.choice(["", "CASCADE"]) if is_special else ""
                fields.append(link)
                parent.children.append(name)
        dice.shuffle(fields)
        model = Model(name, fields, live=dice.random() < 0.85)
        if is_special and dice.random() < 0.12 and len(model.key) == 1:
            model.is_split = True
            for each in fields:
                each.unique = False
        models.append(model)
    return models


def _column(dice: Random, kind: str, is_special: bool) -> tuple[str, list[Any]]:
    return dice.choice(COLUMNS[kind]) if is_special else ("", POOLS[kind])


def _key(dice: Random, models: list[Model], is_special: bool) -> list[Field]:
    how = dice.choice(["int", "int", "str", "uuid", "pair", "odd"])
    if how == "int":
        return [Field("id", "int", "bigint" if is_special else "", [], pk=True, nullable=False, is_made=True)]
    if how == "pair":
        kinds = dice.sample(["str", "int", "uuid", "date"], 2)
    elif how == "odd":
        kinds = [dice.choice(["date", "datetime", "decimal", "time", "bool"])]
    else:
        kinds = [how]
    found = []
    for number, kind in enumerate(kinds):
        column, pool = _column(dice, kind, is_special)
        # One of two that are alike.
        pool = [each for each in pool if each not in ("1.50", "2024-01-02T03:04:05+02:00")]
        found.append(Field(f"k{number}", kind, column, pool, pk=True, nullable=False))
    return found


def schema_of(models: list[Model]) -> str:
    """The schema file."""
    document: dict[str, Any] = {
        MARKS: {"_model": {"live": True}, "id": {"type": "int", "pk": True}, "n": "int"},
    }
    for model in models:
        fields: dict[str, Any] = {"_model": {"live": True}} if model.live else {}
        for each in model.fields:
            told: dict[str, Any] = {"type": each.kind}
            told |= {"pk": True} if each.pk else {}
            told |= {"required": True} if not each.nullable and not each.pk else {}
            told |= {"unique": True} if each.unique else {}
            told |= {"hidden": True} if each.hidden else {}
            if each.fk:
                told |= {"fk": ".".join(each.fk), "on_delete": each.on_delete}
            fields[each.name] = told
        document[model.name] = fields
    return json.dumps(document, indent=1)


def tables_of(models: list[Model]) -> list[str]:
    """The statements that make their tables in PostgreSQL, where zComm does not."""
    made = []
    for model in models:
        parts = []
        for each in model.fields:
            words = [f'"{each.name}" {each.column}']
            if each.is_made:
                # A partitioned table has no identities.
                made.append(f'CREATE SEQUENCE "{model.name}_made"')
                words.append(
                    f"DEFAULT nextval('\"{model.name}_made\"')"
                    if model.is_split
                    else "GENERATED BY DEFAULT AS IDENTITY"
                )
            words += ["NOT NULL"] if not each.nullable else []
            words += ["UNIQUE"] if each.unique else []
            if each.fk:
                words.append(f'REFERENCES "{each.fk[0]}" ("{each.fk[1]}") ON DELETE {each.on_delete}')
                words += [f"ON UPDATE {each.on_update}"] if each.on_update else []
            parts.append(" ".join(words))
        parts.append(f"PRIMARY KEY ({', '.join(each.name for each in model.key)})")
        split = f' PARTITION BY HASH ("{model.key[0].name}")' if model.is_split else ""
        made.append(f'CREATE TABLE "{model.name}" ({", ".join(parts)}, spare text){split}')
        for number in range(2 * model.is_split):
            made.append(
                f'CREATE TABLE "{model.name}_{number}" PARTITION OF "{model.name}" '
                f"FOR VALUES WITH (MODULUS 2, REMAINDER {number})"
            )
    return made


def policy_of(models: list[Model], dice: Random) -> str:
    """A policy file: everything for one role, some rows for another, some fields for a third, and for the fourth what
    the dice say, anew each time."""

    def rows(model: Model) -> Any:
        return {"actions": "*", "rows": {"owner": "$name"}} if model.has_owner else "*"

    def fields(model: Model, dice: Random) -> Any:
        names = [each.name for each in model.fields if not each.pk and not each.hidden and each.nullable]
        hidden = [name for name in names if dice.random() < 0.4]
        return {"actions": "*", "fields": {"hide": hidden}} if hidden else "*"

    fixed = Random(str([each.name for model in models for each in model.fields]))
    shift: dict[str, Any] = {}
    for model in models:
        shift[model.name] = dice.choice(["*", "*", [], ["read"], rows(model), fields(model, dice)])
    marks = {MARKS: "*"}
    document = {
        "all": {"models": "*"},
        "own": {"models": marks | {model.name: rows(model) for model in models}},
        "shy": {"models": marks | {model.name: fields(model, fixed) for model in models}},
        "shift": {"models": marks | shift},
    }
    return json.dumps(document, indent=1)
