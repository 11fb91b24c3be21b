"""The configuration of a Redis or Valkey server, and what its data directory asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from zcomm.errors import DataDirectoryError

#: The names by which a data directory of Redis is known.
FILES = ("dump.rdb", "appendonlydir", "appendonly.aof")

__all__ = ["FILES", "RedisData", "config_text", "look_at_data", "plan_appendonly", "quoted"]


@dataclass(frozen=True, slots=True)
class RedisData:
    """The data files that lie in a data directory.

    :ivar snapshot: whether there is a ``dump.rdb`` with something in it.
    :ivar appendonly: whether there is a complete append-only file.
    :ivar orphaned: parts of an append-only file without the manifest that names them.
    """

    snapshot: bool = False
    appendonly: bool = False
    orphaned: tuple[str, ...] = ()


def look_at_data(directory: Path) -> RedisData:
    """**Blocks** on the disk."""
    try:
        snapshot = (directory / "dump.rdb").stat().st_size > 0
    except OSError:
        snapshot = False
    parts = directory / "appendonlydir"
    try:
        names = sorted(path.name for path in parts.iterdir())
    except OSError:
        names = []
    manifest = any(name.endswith(".manifest") and not name.startswith("temp") for name in names)
    # Redis 6 wrote one file; Redis 7 takes it over by itself.
    single = (directory / "appendonly.aof").exists()
    pieces = tuple(name for name in names if not name.startswith("temp") and (".base." in name or ".incr." in name))
    return RedisData(snapshot, manifest or single, () if manifest else pieces)


def plan_appendonly(service: str, directory: Path, data: RedisData, wanted: bool | None) -> tuple[bool, bool]:
    """Whether to start with the append-only file, and whether to switch it on once the data is loaded.

    Redis starts *empty*, without a word, when it is told to use an append-only file in a directory that
    only has a snapshot; so it is started on the snapshot and switched over afterwards.

    :raises DataDirectoryError: when a start would lose what is stored.
    """
    if data.orphaned and not data.appendonly:
        raise DataDirectoryError(
            service,
            str(directory / "appendonlydir"),
            f"has {', '.join(data.orphaned)} but not the manifest that names them; Redis would start empty",
            "restore the manifest from a copy, or move the directory aside",
        )
    if data.appendonly:
        if wanted is False:
            raise DataDirectoryError(
                service,
                str(directory),
                "has an append-only file, which would be ignored",
                "leave appendonly out, or move the file aside",
            )
        return True, False
    if wanted is False:
        return False, False
    return (False, True) if data.snapshot else (True, False)


def quoted(value: str) -> str:
    """A value as Redis reads it in its configuration file, whatever is in it."""
    return (
        '"'
        + "".join(
            f"\\{character}"
            if character in '"\\'
            else character
            if character.isprintable()
            else "".join(f"\\x{byte:02x}" for byte in character.encode())
            for character in value
        )
        + '"'
    )


def config_text(flavour: str, version: Sequence[int], settings: Mapping[str, str | Sequence[str]]) -> str:
    """The configuration file.

    :param settings: by directive; several values stand for several words. They come after, and so
        override, what every server of zComm gets: loopback only, no debug commands, a quiet log.
    """
    lines: dict[str, str] = {
        "daemonize": "no",
        "supervised": "no",
        "protected-mode": "yes",
        "tcp-backlog": "128",
        "always-show-logo": "no",
        "logfile": '""',
        "loglevel": "notice",
        "dbfilename": "dump.rdb",
        "unixsocketperm": "700",
        "stop-writes-on-bgsave-error": "yes",
    }
    modern = flavour == "valkey" or (flavour == "redis" and tuple(version) >= (7,))
    if modern:
        lines |= {"enable-debug-command": "no", "enable-module-command": "no", "enable-protected-configs": "no"}
    for name, value in settings.items():
        words = [value] if isinstance(value, str) else value
        lines[name] = " ".join(quoted(word) for word in words)
    return "".join(f"{name} {value}\n" for name, value in lines.items())
