"""The first bytes of a snapshot of Redis or Valkey, which say what wrote it and who can read it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from zcomm.errors import DataDirectoryError

__all__ = ["RdbHeader", "parse_rdb_header", "read_rdb_headers"]

_RDB = re.compile(rb"(REDIS|VALKEY)(\d{3,4})")


@dataclass(frozen=True)
class RdbHeader:
    """The first bytes of a Redis or Valkey snapshot.

    :ivar magic: ``REDIS`` or ``VALKEY``.
    :ivar version: the version of the format: 10 is Redis 7.0, 80 is Valkey 9.
    :ivar path: the file.
    """

    magic: str
    version: int
    path: str = ""


def parse_rdb_header(start: bytes) -> RdbHeader | None:
    """The header at the start of a snapshot (its first 10 bytes), None when it is none."""
    found = _RDB.match(start)
    if found is None:
        return None
    # "REDIS0011", but "VALKEY080": the sum of letters and digits is nine.
    digits = found[2][: 9 - len(found[1])]
    return RdbHeader(found[1].decode(), int(digits))


def read_rdb_headers(service: str, data_dir: Path) -> list[RdbHeader]:
    """The headers of what Redis would load: ``dump.rdb`` and the base of its append-only file; **blocks**.

    :raises DataDirectoryError: for a file that is empty or no snapshot; Redis would refuse it at every start.
    """
    headers = []
    paths = [data_dir / "dump.rdb", *sorted((data_dir / "appendonlydir").glob("*.base.rdb"))]
    for path in paths:
        try:
            with open(path, "rb") as file:
                start = file.read(10)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DataDirectoryError(
                service,
                str(path),
                f"cannot be read: {error.strerror}",
                f"look at its owner and mode: ls -l {shlex.quote(str(path))}",
            ) from error
        header = parse_rdb_header(start)
        if header is None:
            quoted = shlex.quote(str(path))
            raise DataDirectoryError(
                service,
                str(path),
                "is empty or no snapshot of Redis or Valkey",
                f"move it aside: mv {quoted} {quoted}.aside",
            )
        headers.append(RdbHeader(header.magic, header.version, str(path)))
    return headers
