"""Runs zComm with the oldest and the newest packages that it allows, without its fast parts, and where others use it.

    nox                         # all of these
    nox -s lowest               # the lowest version that pyproject.toml allows of each requirement
    nox -s latest               # the newest
    nox -s pure                 # without the C extension
    nox -s epoll                # without uvloop, on Twisted's own reactor
    nox -s contact              # the JavaScript client in other runtimes, bundlers and browsers
    nox -s lowest -- tests/wire # what follows goes to pytest, instead of the core

Each session unpacks a source distribution and tests that, so nothing that the checkout has built takes part. The
system's packages are those that ``./test`` installs.
"""

from __future__ import annotations

import json
import tarfile
import tomllib
from pathlib import Path

import nox
from packaging.requirements import Requirement

nox.options.default_venv_backend = "venv"
nox.options.reuse_existing_virtualenvs = True

#: What says whether zComm works with other versions of what it stands on. Services, pages and the documentation's
#: blocks do not depend on them.
CORE = (
    "tests/auth",
    "tests/bifrost",
    "tests/client",
    "tests/commands",
    "tests/data",
    "tests/host",
    "tests/runtime",
    "tests/testing",
    "tests/web",
    "tests/wire",
    "tests/test_config.py",
    "tests/test_exports.py",
    "tests/test_threaded.py",
)


def unpack(session: nox.Session) -> Path:
    """The directory of an unpacked source distribution of this checkout."""
    place = Path(session.create_tmp()).resolve()
    session.install("build")
    session.run("python", "-m", "build", "--sdist", "--outdir", str(place), silent=True)
    (archive,) = place.glob("zcomm-*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(place, filter="data")
    archive.unlink()
    (root,) = place.glob("zcomm-*")
    return root


def lower_bounds() -> list[str]:
    """A constraint for each requirement of zComm and of its PostgreSQL extra: exactly the lowest version allowed."""
    project = tomllib.loads(Path("pyproject.toml").read_text("utf-8"))["project"]
    constraints = []
    for text in project["dependencies"] + project["optional-dependencies"]["postgresql"]:
        requirement = Requirement(text)
        (lowest,) = (bound.version for bound in requirement.specifier if bound.operator == ">=")
        constraints.append(f"{requirement.name}=={lowest}")
        constraints += [f"{requirement.name}-{extra}=={lowest}" for extra in requirement.extras if extra == "binary"]
    return constraints


def install(session: nox.Session, *constraints: str, pure: bool = False) -> Path:
    """Install an unpacked zComm with its test packages, as ``constraints`` say; the directory where it is."""
    root = unpack(session)
    environ = {"ZCOMM_PURE": "1"} if pure else {}
    arguments = ["--config-settings", "editable_mode=compat", "--editable", f"{root}[all,test]"]
    if constraints:
        path = root.parent / "constraints.txt"
        path.write_text("\n".join(constraints) + "\n", "utf-8")
        arguments += ["--constraint", str(path)]
    session.install(*arguments, env=environ)
    session.chdir(root / "js")
    session.run("npm", "ci", "--silent", external=True)
    session.chdir(root)
    return root


def run_core(session: nox.Session, *constraints: str, pure: bool = False, without: tuple[str, ...] = ()) -> None:
    """Install zComm as ``constraints`` say and run its core, or what the command line names instead."""
    install(session, *constraints, pure=pure)
    if without:
        session.run("python", "-m", "pip", "uninstall", "--yes", *without, silent=True)
    session.run("python", "-m", "pip", "list", "--format", "freeze")
    pytest = ("python", "-m", "pytest", "-p", "no:cacheprovider", "-q", "-n", "2", "--dist", "loadscope")
    session.run(*pytest, *(session.posargs or CORE))


@nox.session
def lowest(session: nox.Session) -> None:
    """Run the core with the lowest version that is allowed of each requirement."""
    run_core(session, *lower_bounds())


@nox.session
def latest(session: nox.Session) -> None:
    """Run the core with the newest version that is allowed of each requirement."""
    run_core(session)


@nox.session
def pure(session: nox.Session) -> None:
    """Run the core without the C extension."""
    run_core(session, pure=True)


@nox.session
def epoll(session: nox.Session) -> None:
    """Run the core without uvloop: ``twistd zcomm`` takes Twisted's own reactor."""
    run_core(session, without=("uvloop",))


@nox.session
def contact(session: nox.Session) -> None:
    """Run the JavaScript client under Node 22 and 24, Deno, Bun, Jest, Parcel, Firefox and Java."""
    root = install(session)
    script = root / "tests" / "contact" / "run.py"
    tools = Path(session.create_tmp()).resolve() / "tools"
    tools.mkdir(exist_ok=True)
    packages = json.loads(session.run("python", str(script), "--packages", silent=True))
    (tools / "package.json").write_text(json.dumps({"private": True, "dependencies": packages}), "utf-8")
    session.chdir(tools)
    session.run("npm", "install", "--silent", "--no-package-lock", external=True)
    session.chdir(root)
    session.run("python", str(script), str(tools))
