"""The host's data: a few models in SQLite behind ``handle_request``, which blocks as zData's does."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path
from typing import Any

from zcomm.errors import Invalid, UnknownField, UnknownModel

__all__ = ["Data"]

MODELS = {
    "Users": (
        "id INTEGER PRIMARY KEY, name TEXT, email TEXT UNIQUE, active INTEGER DEFAULT 1, inactive INTEGER DEFAULT 0, "
        "age INTEGER DEFAULT 18, role TEXT DEFAULT 'user', verified INTEGER DEFAULT 0, last_login TEXT, "
        "created_at TEXT DEFAULT CURRENT_TIMESTAMP"
    ),
    "Messages": "id INTEGER PRIMARY KEY, text TEXT, timestamp TEXT",
}
OPERATORS = {"": "=", "gte": ">=", "lte": "<="}


class Data:
    """A database of one file; one request at a time."""

    #: Clients may write, and filters are looked at.
    zcomm_filters = True

    def __init__(self, path: Path):
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._fields = {}
        for model, columns in MODELS.items():
            self._connection.execute(f"CREATE TABLE IF NOT EXISTS {model} ({columns})")
            self._fields[model] = [row["name"] for row in self._connection.execute(f"PRAGMA table_info({model})")]

    def handle_request(self, request: dict[str, Any]) -> Any:
        """Answer ``{"action": …, "model": …, …}``."""
        model = request["model"]
        if model not in MODELS:
            raise UnknownModel(f"Unknown model {model!r}")
        with self._lock:
            return getattr(self, f"_{request['action']}")(model, request)

    def _known(self, model: str, fields: Any) -> list[str]:
        for field in fields:
            if field not in self._fields[model]:
                raise UnknownField(f"{model} has no field {field!r}")
        return list(fields)

    def _where(self, model: str, request: dict[str, Any]) -> tuple[str, list[Any]]:
        conditions, values = [], []
        for key, value in (request.get("where") or request.get("filters") or {}).items():
            field, _, operator = key.partition("__")
            self._known(model, [field])
            conditions.append(f"{field} {OPERATORS[operator]} ?")
            values.append(value)
        return (" WHERE " + " AND ".join(conditions) if conditions else ""), values

    def _row(self, model: str, number: Any) -> dict[str, Any]:
        return dict(self._connection.execute(f"SELECT * FROM {model} WHERE id = ?", [number]).fetchone())

    def _create(self, model: str, request: dict[str, Any], conflict: str = "") -> dict[str, Any]:
        values = request["values"]
        names = self._known(model, values)
        places = ", ".join("?" * len(names))
        try:
            (number,) = self._connection.execute(
                f"INSERT INTO {model} ({', '.join(names)}) VALUES ({places}){conflict} RETURNING id",
                list(values.values()),
            ).fetchone()
        except sqlite3.IntegrityError:
            raise Invalid("There is such a row already", {"email": "taken"}) from None
        return self._row(model, number)

    def _upsert(self, model: str, request: dict[str, Any]) -> dict[str, Any]:
        keys = self._known(model, request["conflict_fields"])
        sets = ", ".join(f"{name} = excluded.{name}" for name in self._known(model, request["values"]))
        return self._create(model, request, f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sets}")

    def _read(self, model: str, request: dict[str, Any]) -> list[dict[str, Any]]:
        where, values = self._where(model, request)
        fields = ", ".join(self._known(model, request.get("fields") or self._fields[model]))
        order = ""
        if request.get("order_by"):
            field, _, direction = request["order_by"].partition(" ")
            self._known(model, [field])
            order = f" ORDER BY {field} {'DESC' if direction == 'DESC' else 'ASC'}, id"
        limits = [request.get("limit", -1), request.get("offset", 0)]
        rows = self._connection.execute(
            f"SELECT {fields} FROM {model}{where}{order} LIMIT ? OFFSET ?",
            [*values, *limits],
        )
        return [dict(row) for row in rows]

    def _update(self, model: str, request: dict[str, Any]) -> dict[str, int]:
        where, values = self._where(model, request)
        sets = ", ".join(f"{name} = ?" for name in self._known(model, request["values"]))
        cursor = self._connection.execute(
            f"UPDATE {model} SET {sets}{where}",
            [*request["values"].values(), *values],
        )
        return {"updated": cursor.rowcount}

    def _delete(self, model: str, request: dict[str, Any]) -> dict[str, int]:
        where, values = self._where(model, request)
        return {"deleted": self._connection.execute(f"DELETE FROM {model}{where}", values).rowcount}
