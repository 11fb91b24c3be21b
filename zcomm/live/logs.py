"""The log of changes that fits a database."""

from __future__ import annotations

import json
from functools import partial

from zcomm.data.drivers.postgresql import PostgreSQLDatabase
from zcomm.data.models import Model
from zcomm.data.store import Store
from zcomm.live.log import ChangeLog, KeyForm
from zcomm.live.own_log import OwnLog
from zcomm.live.postgresql_log import PostgreSQLLog

__all__ = ["open_log"]


def open_log(store: Store) -> ChangeLog:
    """The log of the database of ``store``."""
    execution = store.execution
    if isinstance(execution.database, PostgreSQLDatabase):
        return PostgreSQLLog(execution.database, lambda: store.schema)

    def key_form(model: Model) -> KeyForm | str:
        if len(model.key) != 1:
            return "its key has several fields"
        quoted = model.fields[model.key[0]].column_name.replace('"', '""')
        condition = f'"{quoted}" IN (SELECT value FROM json_each(?))'  # noqa: S608 (a quoted name)
        return KeyForm((f'"{quoted}"',), condition, json.dumps)

    return OwnLog(partial(execution.pool.connection, spare=True), key_form)
