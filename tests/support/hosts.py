"""Hosts as zComm meets them, and a zComm on one."""

from __future__ import annotations

import ast
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from support.rawclient import RawClient, connect
from twisted.internet import reactor

from zcomm import Config, WebSocketConfig, zComm

__all__ = ["Running", "ZData", "host", "zdispatch"]


def host(**parts: Any) -> SimpleNamespace:
    """A host with these parts."""
    return SimpleNamespace(session={}, **parts)


class ZData:
    """Data as a zCLI has it: ``create`` makes a table, a filter is a text or not looked at, failures are returned, a
    schema that comes with the request is taken, and two requests at once get in each other's way.

    :ivar requests: what it was asked.
    :ivar rows: the names in the table.
    """

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self._database = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._database.execute("CREATE TABLE Users (id INTEGER PRIMARY KEY, name TEXT)")
        self._database.execute("INSERT INTO Users (name) VALUES ('Alice'), ('Bob'), ('Carol')")

    @property
    def rows(self) -> list[str]:
        return [name for (name,) in self._database.execute("SELECT name FROM Users ORDER BY id")]

    @property
    def tables(self) -> set[str]:
        return {name for (name,) in self._database.execute("SELECT name FROM sqlite_master")}

    def handle_request(self, request: dict[str, Any]) -> Any:
        self.requests.append(request)
        schema = request.get("options", {}).get("_schema_cached") or {request["model"]: {}}
        try:
            return getattr(self, f"_{request['action']}")(next(iter(schema)), request)
        except (AttributeError, sqlite3.Error):
            return "error"

    def _where(self, request: dict[str, Any]) -> str:
        where = request.get("where") or request.get("options", {}).get("where")
        return f" WHERE {where.strip()}" if where else ""

    def _create(self, table: str, request: dict[str, Any]) -> bool:
        self._database.execute(f"CREATE TABLE IF NOT EXISTS {table} (id INTEGER)")
        return True

    def _read(self, table: str, request: dict[str, Any]) -> Any:
        fields = ", ".join(request.get("fields") or "*")
        limit = request.get("limit", -1)
        cursor = self._database.execute(f"SELECT {fields} FROM {table}{self._where(request)} LIMIT {limit}")
        return [dict(zip([column[0] for column in cursor.description], row, strict=True)) for row in cursor]

    def _update(self, table: str, request: dict[str, Any]) -> bool:
        sets = ", ".join(f"{name} = '{value}'" for name, value in request.get("values", {}).items())
        self._database.execute(f"UPDATE {table} SET {sets}{self._where(request)}")
        return True

    def _delete(self, table: str, request: dict[str, Any]) -> bool:
        self._database.execute(f"DELETE FROM {table}{self._where(request)}")
        return True


def zdispatch(zKey: str, zHorizontal: Any, walker: Any) -> Any:
    """A dispatcher as a zCLI has it: what is sent decides, whatever the key, and some of it is evaluated."""
    if isinstance(zHorizontal, dict):
        if "zWizard" in zHorizontal:
            return eval(zHorizontal["zWizard"])
        if "model" in zHorizontal:
            return walker.data.handle_request({"action": "read", **zHorizontal})
        return None
    if zHorizontal.startswith("zWizard("):
        return eval(zHorizontal[len("zWizard(") : -1])
    if zHorizontal.startswith("zFunc("):
        return ast.literal_eval(zHorizontal[len("zFunc(") : -1])
    return {"zBack": None, "failed": False, "broken": "error", "counted": 0}.get(zHorizontal, zHorizontal)


class Running:
    """A zComm on a host, listening."""

    def __init__(self, host: Any, directory: Path, walker: Any = None, policy: str = "", **options: Any):
        if policy:
            (directory / "policy.yaml").write_text(policy)
        config = Config(
            directory, WebSocketConfig(port=0, **options), policy=directory / "policy.yaml" if policy else None
        )
        self.comm = zComm(host, config=config, environ={"HOME": str(directory)}, reactor=reactor)
        self.walker = walker
        self.port = 0

    async def start(self) -> Running:
        self.port = (await self.comm.start_websocket(None, self.walker)).getHost().port
        return self

    async def client(self, token: str | None = None) -> RawClient:
        return await connect(self.port, token=token)
