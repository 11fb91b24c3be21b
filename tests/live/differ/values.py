"""The values that random rows have and random filters ask for: few of each type, so that they meet."""

from __future__ import annotations

import base64
import json
from typing import Any

__all__ = ["COLUMNS", "POOLS", "PREPARE", "stored"]

#: By type, as JSON has them.
POOLS: dict[str, list[Any]] = {
    "str": [
        *("", "a", "A", "ab", "aB", "Ab", "b", "B", "z", "ä", "Ä", "ß", "ss", "é", "e\u0301", "ı", "I", "i", "İ", "Σ"),
        *("😀", "😀a", "\uffee", "a b", "a%", "a_", "a\\", "*", "[a]", "0", "10", "9", " a", "a ", "ann", "Ann", "bob"),
    ],
    "int": [-(2**63), -2, -1, 0, 1, 2, 3, 9, 10, 2**53 + 1, 2**63 - 1],
    "float": [-1e300, -2.5, -0.0, 0.0, 0.1, 1.0, 1.5, 3.0, 1e-7, 1e22, "Infinity", "-Infinity"],
    "decimal": ["-2.25", "0", "0.1", "1.5", "1.50", "2", "10", "19.99", "123456789012345678.5"],
    "bool": [True, False],
    "date": ["1999-12-31", "2024-01-02", "2024-02-29", "2024-10-15", "9999-12-31", "0001-01-01"],
    "datetime": [
        *("1999-12-31T23:59:59Z", "2024-01-02T03:04:05Z", "2024-01-02T03:04:05.5Z", "2024-01-02T03:04:05.500001Z"),
        *("2024-01-02T00:00:00Z", "2024-10-15T08:30:00Z", "9999-12-31T23:59:59.999999Z", "2024-01-02T03:04:05+02:00"),
    ],
    "time": ["00:00:00", "03:04:05", "03:04:05.5", "08:30:00", "23:59:59.999999"],
    "uuid": [
        "00000000-0000-0000-0000-000000000000",
        "0a000000-0000-4000-8000-000000000001",
        "a0000000-0000-4000-8000-000000000002",
        "f0e1d2c3-b4a5-4697-8879-6a5b4c3d2e1f",
        "ffffffff-ffff-ffff-ffff-ffffffffffff",
    ],
    "json": [None, {}, [], {"a": 1, "b": [1.5, "x"]}, {"b": 2, "a": 1}, "x", 1, 1.5, True, "ä😀"],
    "bytes": [base64.b64encode(each).decode() for each in (b"", b"\0", b"a", b"A", b"\xff\xfe", b"abc")],
}

#: In PostgreSQL, what has to be there for the columns below.
PREPARE = """
CREATE EXTENSION citext;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'Happy', 'a');
CREATE COLLATION swedish (provider = icu, locale = 'sv-SE');
CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
CREATE DOMAIN short AS varchar(10);
"""

_TEXTS = POOLS["str"]
_SHORT = [each for each in _TEXTS if not each.endswith(" ")]
#: In PostgreSQL by type: columns of it, and their values where those are others.
COLUMNS: dict[str, list[tuple[str, list[Any]]]] = {
    "str": [
        ("text", _TEXTS),
        ("text", _TEXTS),
        ('text COLLATE "C"', _TEXTS),
        ('text COLLATE "swedish"', _TEXTS),
        ('text COLLATE "caseless"', _TEXTS),
        ('text COLLATE "ucs_basic"', _TEXTS),
        ("citext", _TEXTS),
        ("varchar(10)", _TEXTS),
        ("short", _TEXTS),
        ("char(3)", [each.ljust(3) for each in _SHORT if len(each) <= 3]),
        ("mood", ["sad", "ok", "Happy", "a"]),
        ("int[]", ["{}", "{1,2}", "{1}", "{2}", "{10}", "{NULL,1}", "[0:1]={1,2}"]),
        ("text[]", ["{}", "{a}", "{A}", "{ä,b}", '{"a b"}', "{NULL}"]),
        ("interval", ["1 day", "24:00:00", "-1 days", "00:00:01.5", "1 mon", "30 days"]),
        ("inet", ["10.0.0.1", "10.0.0.1/8", "::1", "9.0.0.1"]),
    ],
    "int": [
        ("bigint", POOLS["int"]),
        ("integer", [-(2**31), -1, 0, 1, 2, 3, 9, 10, 2**31 - 1]),
        ("smallint", [-1, 0, 1, 2, 3, 9, 10]),
    ],
    "float": [
        ("double precision", [*POOLS["float"], "NaN"]),
        ("real", [-2.5, 0.0, -0.0, 0.1, 1.0, 1.5, 3.0, "NaN", "Infinity"]),
    ],
    "decimal": [
        ("numeric", [*POOLS["decimal"], "NaN", "Infinity", "0.00"]),
        ("numeric(8,2)", ["-2.25", "0.00", "0.10", "1.50", "10.00", "19.99", "NaN"]),
    ],
    "bool": [("boolean", POOLS["bool"])],
    "date": [("date", [*POOLS["date"], "infinity", "0044-03-15 BC"])],
    "datetime": [
        ("timestamptz", [*POOLS["datetime"], "infinity", "-infinity"]),
        ("timestamp", POOLS["datetime"]),
        ("timestamp(0)", ["1999-12-31T23:59:59Z", "2024-01-02T03:04:05Z", "2024-10-15T08:30:00Z"]),
    ],
    "time": [
        ("time", [*POOLS["time"], "24:00:00"]),
        ("timetz", ["00:00:00+00", "03:04:05+02", "01:04:05+00", "08:30:00-05:30"]),
    ],
    "uuid": [("uuid", POOLS["uuid"])],
    "json": [
        ("json", POOLS["json"]),
        ("jsonb", POOLS["json"]),
        ("int[]", [[], [1, 2], [1], [None, 1]]),
        ("text[]", [[], ["a"], ["ä", "b"], [None]]),
    ],
    "bytes": [("bytea", POOLS["bytes"])],
}


def stored(kind: str, column: str, value: Any, is_sqlite: bool) -> Any:
    """A value as another program would give it to the driver of its database."""
    if value is None and kind != "json":
        return None
    if kind == "bytes":
        return base64.b64decode(value)
    if kind == "json":
        if column.endswith("[]"):
            return None if value is None else value
        return json.dumps(value, ensure_ascii=False)
    if not is_sqlite:
        return value if kind == "bool" else str(value)
    if kind == "bool":
        return int(value)
    if kind == "float":
        return float(value)
    if kind == "datetime":
        value = value.replace("T", " ").replace("Z", "")
    if kind in ("datetime", "time") and "." in value:
        # As zComm writes it: the same moment twice in other digits would be two keys that look alike.
        value = value.ljust(value.index(".") + 7, "0")
    return value
