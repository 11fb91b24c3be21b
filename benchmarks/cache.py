"""What the benchmarks need and version control does not hold: the load generator, and the peers with their packages."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
PEERS = HERE / "peers"


def cache_directory() -> Path:
    """The directory of all that is kept: ``ZCOMM_BENCH_CACHE``, else ``zcomm-benchmarks`` in the user's cache."""
    chosen = os.environ.get("ZCOMM_BENCH_CACHE")
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    directory = Path(chosen) if chosen else base / "zcomm-benchmarks"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _is_current(made: Path, source: Path) -> bool:
    return made.exists() and made.stat().st_mtime >= source.stat().st_mtime


def load_generator() -> Path:
    """The path of ``wsload``, compiled when its source is newer."""
    return compiled(HERE / "wsload.c")


def compiled(source: Path) -> Path:
    """The path of a program in C, compiled when its source is newer."""
    made = cache_directory() / source.stem
    if not _is_current(made, source):
        subprocess.run(["gcc", "-O2", "-o", str(made), str(source)], check=True)
    return made


def installed(environment: Path, package: str) -> None:
    """Make an environment that holds one package."""
    print(f"installing {package} …", file=sys.stderr)
    venv.create(environment, with_pip=True)
    subprocess.run([str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", package], check=True)


def peers_python() -> Path:
    """The Python of an environment that holds the peers' packages, installed when their list is newer."""
    environment, wanted = cache_directory() / "venv", PEERS / "requirements.txt"
    python, mark = environment / "bin" / "python", environment / "installed"
    if not _is_current(mark, wanted):
        print("installing the peers' packages …", file=sys.stderr)
        venv.create(environment, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", "--upgrade", "-r", str(wanted)], check=True)
        mark.touch()
    return python


def node_script(name: str, package: str) -> Path | None:
    """The script of a peer on Node beside its package, which is installed; ``None`` where there is no Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        return None
    directory = cache_directory() / "node"
    if not (directory / "node_modules" / package).exists():
        directory.mkdir(exist_ok=True)
        print(f"installing {package} …", file=sys.stderr)
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", package], cwd=directory, check=True)
    shutil.copy(PEERS / name, directory / name)
    return directory / name
