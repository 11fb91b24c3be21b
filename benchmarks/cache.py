"""What the benchmarks need and version control does not hold: the load generator, and the peers with their packages."""

from __future__ import annotations

import json
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
    return python_of("venv", PEERS / "requirements.txt")


def python_of(name: str, wanted: Path) -> Path:
    """The Python of an environment that holds a list of packages, installed when that is newer."""
    environment = cache_directory() / name
    python, mark = environment / "bin" / "python", environment / "installed"
    if not _is_current(mark, wanted):
        print("installing the peers' packages …", file=sys.stderr)
        venv.create(environment, with_pip=True)
        subprocess.run(
            [str(python), "-I", "-m", "pip", "install", "--quiet", "--upgrade", "-r", str(wanted)], check=True
        )
        mark.touch()
    return python


def node_script(name: str, *packages: str, directory: str = "node") -> Path | None:
    """The script of a peer on Node beside its packages, which are installed; ``None`` where there is no Node."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if not (node and npm):
        return None
    place = cache_directory() / directory
    place.mkdir(exist_ok=True)
    missing = [each for each in packages if not _has(place, each)]
    if missing:
        print(f"installing {', '.join(missing)} …", file=sys.stderr)
        subprocess.run([npm, "install", "--silent", "--no-audit", "--no-fund", *missing], cwd=place, check=True)
    shutil.copy(PEERS / name, place / name)
    return place / name


def _has(place: Path, package: str) -> bool:
    """Whether a package is there, in the version that stands behind its name, if any."""
    name, at, version = package[1:].partition("@")
    made = place / "node_modules" / (package[0] + name) / "package.json"
    return made.exists() and (not at or json.loads(made.read_text())["version"] == version)


def nchan_module() -> Path | None:
    """Nchan's module of nginx: the system's, or that of its package, unpacked; ``None`` where there is none."""
    module = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
    if module.exists():
        return module
    directory = cache_directory() / "nchan"
    found = list(directory.rglob("ngx_nchan_module.so"))
    if not found and shutil.which("apt-get") and shutil.which("nginx"):
        directory.mkdir(exist_ok=True)
        subprocess.run(["apt-get", "-q", "download", "libnginx-mod-nchan"], cwd=directory, capture_output=True)
        for package in directory.glob("*.deb"):
            subprocess.run(["dpkg", "-x", str(package), str(directory)], check=True)
        found = list(directory.rglob("ngx_nchan_module.so"))
    return found[0] if found else None
