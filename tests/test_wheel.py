"""What users install: the source distribution and the wheel built from it, in a clean environment."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.docs_blocks import block, runs
from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ

from zcomm._version import __version__
from zcomm.web.assets import ASSETS, asset

GENERATED = (
    ".git",
    ".venv",
    ".test-cache",
    "node_modules",
    "__pycache__",
    "*.so",
    "*.egg-info",
    "build",
    "dist",
    "_build",
    ".pytest_cache",
    ".hypothesis",
    ".coverage*",
    "dropin.cache",
)


def run(*command: str | Path, cwd: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def without_checkout(home: Path) -> dict[str, str]:
    """The environment of somebody who has no checkout, and pip's own settings, which say where packages are."""
    environ = clean_environ(home)
    del environ["PYTHONPATH"]
    kept = ("PIP_", "SSL_CERT", "REQUESTS_CA", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    environ |= {name: value for name, value in os.environ.items() if name.upper().startswith(kept)}
    # Compiled when it is imported, so only what is.
    environ["PIP_COMPILE"] = "0"
    return {name: value for name, value in environ.items() if not name.startswith("COV")}


@pytest.fixture(scope="module")
def fresh_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what is committed or about to be, as somebody who just cloned it has it."""
    source = tmp_path_factory.mktemp("fresh") / "zcomm"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=CHECKOUT,
        capture_output=True,
    )
    if listed.returncode:
        # Unpacked from an archive, or somebody else's clone that git will not read.
        return shutil.copytree(CHECKOUT, source, ignore=shutil.ignore_patterns(*GENERATED))
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(CHECKOUT / name, source / name)
    return source


@pytest.fixture(scope="module")
def distributions(fresh_checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution, and the wheel that is built from it alone."""
    work = tmp_path_factory.mktemp("dist")
    source = shutil.copytree(
        fresh_checkout, work / "source", ignore=shutil.ignore_patterns(".venv", "build", "*.egg-info")
    )
    run(
        sys.executable,
        "-m",
        "build",
        # What a build asks for is installed by the README's command, which is run below.
        "--no-isolation",
        "--outdir",
        work / "out",
        source,
        cwd=work,
        environ=without_checkout(work),
    )
    (sdist,) = (work / "out").glob("*.tar.gz")
    (wheel,) = (work / "out").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def first_run(fresh_checkout: Path) -> Iterator[RunningServer]:
    """The README's first command, word for word, in a fresh checkout with an empty home; only the port is free."""
    home = fresh_checkout.parent / "home"
    home.mkdir(mode=0o700)
    environ = without_checkout(home) | {"WEBSOCKET_PORT": "0"}
    server = RunningServer(["bash", "-c", block("readme-run").text], home, environ, cwd=fresh_checkout)
    try:
        match = server.wait_for_log(LISTENING, timeout=300)
        server.url, server.port = match[1], int(match[2])
        yield server
        # bash is the process that was started; twistd is its child and in its process group.
        os.killpg(server.process.pid, signal.SIGTERM)
        server.wait()
    finally:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
        server.kill()


@pytest.fixture(scope="module")
def installed(first_run: RunningServer, fresh_checkout: Path) -> Path:
    """The bin directory of the environment that the README's command made: zComm and its requirements, nothing else."""
    return fresh_checkout / ".venv" / "bin"


def test_the_wheel_has_what_is_served_and_what_twistd_looks_for(distributions: tuple[Path, Path]):
    """Client, types, page and plugin are inside; tests, benchmarks and examples are not."""
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    wanted = {f"zcomm/js/{file}" for file, _ in ASSETS.values()} | {
        "twisted/plugins/zcomm_plugin.py",
        "zcomm/py.typed",
        "zcomm/js/package.json",
        "zcomm/js/LICENSE",
        "zcomm/tap.py",
    }
    # What the manifest names, npm installs.
    manifest = json.loads((CHECKOUT / "js" / "package.json").read_text("utf-8"))
    wanted |= {f"zcomm/js/{name}" for name in manifest["files"]}
    assert wanted - names == set()
    modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "zcomm").rglob("*.py")}
    assert modules - names == set()
    others = ("tests/", "benchmarks/", "docs/", "examples/")
    assert [name for name in names if name.startswith(others) or "node_modules" in name] == []
    assert [name for name in names if name.startswith("twisted/") and name.endswith("__init__.py")] == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="its files are of another kind")
def test_b40_what_is_compiled_is_hardened(distributions: tuple[Path, Path], tmp_path: Path):
    """An overrun ends the process; all that the linker fills in is read-only by then; no stack holds code."""
    readelf = shutil.which("readelf")
    assert readelf, "readelf is not installed; it comes with the compiler"
    with zipfile.ZipFile(distributions[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.startswith("zcomm/wire/_fast."))
        library = wheel.extract(name, tmp_path)
    told = run(
        readelf, "--wide", "--dynamic", "--segments", "--dyn-syms", library, cwd=tmp_path, environ=dict(os.environ)
    )
    assert "BIND_NOW" in told and "GNU_RELRO" in told and "__stack_chk_fail" in told
    assert re.search(r"GNU_STACK .* RW +0x", told)


def test_the_source_distribution_can_be_tested(distributions: tuple[Path, Path]):
    """Tests, documentation and the test command travel with it; generated things do not."""
    names = {name.partition("/")[2] for name in tarfile.open(distributions[0]).getnames()}
    assert {
        "test",
        ".ci/run",
        "README.rst",
        "CHANGELOG.rst",
        "CONTRIBUTING.rst",
        "SECURITY.md",
        ".editorconfig",
        "noxfile.py",
        "docs/pictures/architecture.svg",
        "LICENSE",
        "docs/protocol.rst",
        "tests/conftest.py",
        "js/package.json",
    } <= names
    assert [
        name
        for name in names
        if "node_modules" in name or "__pycache__" in name or name.endswith((".so", "dropin.cache"))
    ] == []


def test_metadata_say_what_it_is(installed: Path, tmp_path: Path):
    """Name, version, licence and the requirements of a bare installation (B22)."""
    code = (
        "import importlib.metadata as m, json; d = m.metadata('zcomm'); "
        "print(json.dumps([d['Name'], d['Version'], d['License-Expression'], m.requires('zcomm')]))"
    )
    name, version, licence, requires = json.loads(
        run(installed / "python", "-c", code, cwd=tmp_path, environ=without_checkout(tmp_path))
    )
    assert (name, version, licence) == ("zcomm", __version__, "MIT")
    description = run(
        installed / "python",
        "-c",
        "import importlib.metadata as m; print(m.metadata('zcomm').get_payload())",
        cwd=tmp_path,
        environ=without_checkout(tmp_path),
    )
    # Files beside the README are not there where a package index shows it.
    assert "zComm gives a Python program" in description and "Quick start" in description
    assert "image::" not in description and "docs/pictures" not in description and "<docs/" not in description
    bare = {re.split(r"[\[<>=; ]", line)[0].lower() for line in requires if "extra ==" not in line}
    assert {"twisted", "autobahn", "service-identity", "psutil"} <= bare
    # Older ones lack what is taken from it.
    assert any(line.replace(" ", "").startswith("autobahn") and ">=26.10" in line for line in requires)


@runs("readme-run")
def test_the_first_command_of_the_readme_leads_to_a_live_page(first_run: RunningServer):
    """A new user's first minute: page and client come byte for byte, the token is there, a command is answered."""
    for path in ASSETS:
        with urllib.request.urlopen(f"http://127.0.0.1:{first_run.port}{path}", timeout=30) as response:
            content = asset(path)
            assert (response.status, response.headers["Content-Type"], response.read()) == (
                200,
                f"{content.media_type}; charset=utf-8",
                content.body,
            )
    with BlockingRawClient(first_run.port, token=first_run.token) as client:
        created = client.call("create_Users", {"values": {"name": "Alice", "email": "alice@example.com"}})
        assert created["result"]["name"] == "Alice"
    assert first_run.token not in first_run.log


def test_twistd_lists_the_installed_zcomm(installed: Path, tmp_path: Path):
    """The plugin is found where only the wheel's files are."""
    help_text = run(installed / "twistd", "--help", cwd=tmp_path, environ=without_checkout(tmp_path))
    assert [line for line in help_text.splitlines() if line.split()[:1] == ["zcomm"]]


@runs("readme-test")
def test_the_test_command_of_the_readme_is_what_runs_all_this(fresh_checkout: Path):
    """It is there, executable, sound for bash, and what the continuous integration calls."""
    command = block("readme-test").text.split()
    assert command == ["./test"] and os.access(fresh_checkout / "test", os.X_OK)
    run("bash", "-n", "test", cwd=fresh_checkout, environ=without_checkout(fresh_checkout))
    assert os.access(fresh_checkout / ".ci" / "run", os.X_OK)
    assert (fresh_checkout / ".ci" / "run").read_text("utf-8").splitlines()[-1] == 'exec "$(dirname "$0")/../test"'


def test_every_installed_module_imports_without_a_reactor(installed: Path, tmp_path: Path):
    """With the required packages alone; the modules of an extra say so by their names."""
    code = (
        "import importlib, pkgutil, sys, zcomm\n"
        "for module in pkgutil.walk_packages(zcomm.__path__, 'zcomm.'):\n"
        "    try:\n"
        "        if not module.name.endswith(('.__main__', '._fast')):\n"
        "            importlib.import_module(module.name)\n"
        "    except ModuleNotFoundError as error:\n"
        "        found = (module.name, error.name)\n"
        "        extra = {'redis': 'hiredis', 'postgresql': 'psycopg'}\n"
        "        assert any(f'.{name}' in found[0] and found[1] == extra[name] for name in extra), found\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
        "print(zcomm.__file__)\n"
    )
    printed = run(installed / "python", "-c", code, cwd=tmp_path, environ=without_checkout(tmp_path))
    assert Path(printed.strip()).is_relative_to(installed.parent)


def test_the_console_command_is_installed(installed: Path, tmp_path: Path):
    """``zcomm --version`` answers with the version of the package."""
    assert (
        run(installed / "zcomm", "--version", cwd=tmp_path, environ=without_checkout(tmp_path)).strip()
        == f"zcomm {__version__}"
    )


@runs("quickstart-node")
def test_contact_r31_node_gets_the_client_from_the_installed_package(installed: Path, tmp_path: Path):
    """The quick start's command installs it beside what ``npm init`` wrote; a program of either kind has it then."""
    (tmp_path / ".venv").symlink_to(installed.parent)
    environ = without_checkout(tmp_path) | {"npm_config_offline": "true", "npm_config_cache": str(tmp_path / "cache")}
    run("bash", "-ec", block("quickstart-node").text, cwd=tmp_path, environ=environ)
    for name, text in (
        ("required.cjs", "const { zBifrost } = require('zbifrost'); console.log(new zBifrost('ws://localhost').url)"),
        ("imported.mjs", "import { zBifrost } from 'zbifrost'; console.log(new zBifrost('ws://localhost').url)"),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        assert run("node", name, cwd=tmp_path, environ=environ).strip() == "ws://localhost/"
    # A package that comes later, as ws does, leaves it the copy that it is.
    (tmp_path / "later").mkdir()
    (tmp_path / "later" / "package.json").write_text('{"name": "later", "version": "1.0.0"}')
    run("npm", "install", "./later", cwd=tmp_path, environ=environ)
    assert (tmp_path / "node_modules" / "zbifrost" / "zBifrost.js").is_file()
    assert not (tmp_path / "node_modules" / "zbifrost").is_symlink()
