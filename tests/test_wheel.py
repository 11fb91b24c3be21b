"""What users install: the source distribution and the wheel built from it, in a clean environment."""
from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from rawclient import BlockingRawClient
from serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ
from zcomm._version import __version__
from zcomm.web.assets import ASSETS, asset, client_directory


def run(*command: str | Path, cwd: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def without_checkout(home: Path) -> dict[str, str]:
    """The environment of somebody who has no checkout, and pip's own settings, which say where packages are."""
    import os

    environ = clean_environ(home)
    del environ["PYTHONPATH"]
    kept = ("PIP_", "SSL_CERT", "REQUESTS_CA", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    environ |= {name: value for name, value in os.environ.items() if name.upper().startswith(kept)}
    return {name: value for name, value in environ.items() if not name.startswith("COV")}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist of what is committed or about to be, and the wheel built from that sdist alone."""
    work = tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"], cwd=CHECKOUT, capture_output=True, check=True
    ).stdout.decode().split("\0")
    source = work / "source"
    for name in filter(None, listed):
        if (CHECKOUT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((CHECKOUT / name).read_bytes())
    environ = without_checkout(work)
    # The build's own tools are in this environment already; what it may not do is look at the checkout.
    run(sys.executable, "-m", "build", "--outdir", work / "out", source, cwd=work, environ=environ)
    (sdist,) = (work / "out").glob("*.tar.gz")
    (wheel,) = (work / "out").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(distributions: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel and what it depends on, nothing else; returns its bin directory."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home / "venv", with_pip=True, symlinks=True)
    scripts = home / "venv" / "bin"
    run(scripts / "python", "-m", "pip", "install", "--quiet", distributions[1], cwd=home, environ=without_checkout(home))
    return scripts


def test_the_wheel_has_what_is_served_and_what_twistd_looks_for(distributions: tuple[Path, Path]):
    """Client, types, page and plugin are inside; tests and benchmarks are not."""
    names = set(zipfile.ZipFile(distributions[1]).namelist())
    wanted = {f"zcomm/js/{file}" for file, _ in ASSETS.values()} | {
        "twisted/plugins/zcomm_plugin.py", "zcomm/py.typed", "zcomm/js/zBifrost.d.ts", "zcomm/tap.py",
    }
    assert wanted - names == set()
    modules = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "zcomm").rglob("*.py")}
    assert modules - names == set()
    assert [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/")) or "node_modules" in name] == []
    assert [name for name in names if name.startswith("twisted/") and name.endswith("__init__.py")] == []


def test_the_source_distribution_can_be_tested(distributions: tuple[Path, Path]):
    """Tests, documentation and the test command travel with it; generated things do not."""
    names = {name.partition("/")[2] for name in tarfile.open(distributions[0]).getnames()}
    assert {"test", ".ci/run", "README.rst", "CHANGELOG.rst", "LICENSE", "docs/protocol.rst", "tests/conftest.py", "js/package.json"} <= names
    assert [name for name in names if "node_modules" in name or "__pycache__" in name or name.endswith((".so", "dropin.cache"))] == []


def test_metadata_say_what_it_is(installed: Path, tmp_path: Path):
    """Name, version, licence and the requirements of a bare installation."""
    code = (
        "import importlib.metadata as m, json; d = m.metadata('zcomm'); "
        "print(json.dumps([d['Name'], d['Version'], d['License-Expression'], m.requires('zcomm')]))"
    )
    name, version, licence, requires = json.loads(run(installed / "python", "-c", code, cwd=tmp_path, environ=without_checkout(tmp_path)))
    assert (name, version, licence) == ("zcomm", __version__, "MIT")
    bare = {re.split(r"[\[>=; ]", line)[0].lower() for line in requires if "extra ==" not in line}
    assert {"twisted", "autobahn", "service-identity", "psutil"} <= bare


def test_the_installed_server_serves_client_and_page(installed: Path, tmp_path: Path):
    """A new user's first start: the plugin is found, the page and the client come byte for byte, a command is answered."""
    environ = without_checkout(tmp_path)
    help_text = run(installed / "twistd", "--help", cwd=tmp_path, environ=environ)
    assert [line for line in help_text.splitlines() if line.split()[:1] == ["zcomm"]]
    server = RunningServer([str(installed / "twistd"), "-n", "--pidfile=", "zcomm", "--port", "0"], tmp_path, environ)
    try:
        match = server.wait_for_log(LISTENING)
        server.url, server.port = match[1], int(match[2])
        for path in ASSETS:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=30) as response:
                content, media_type = asset(path)
                assert (response.status, response.headers["Content-Type"], response.read()) == (200, media_type, content)
        with BlockingRawClient(server.port, token=server.token) as client:
            assert client.call("ping", {"hello": 1})["result"] == {"hello": 1}
        assert server.stop() == 0
    finally:
        server.kill()


def test_every_installed_module_imports_without_a_reactor(installed: Path, tmp_path: Path):
    """With the required packages alone, not one of the extras."""
    code = (
        "import importlib, pkgutil, sys, zcomm\n"
        "for module in pkgutil.walk_packages(zcomm.__path__, 'zcomm.'):\n"
        "    if not module.name.endswith(('.__main__', '._fast')):\n"
        "        importlib.import_module(module.name)\n"
        "assert 'twisted.internet.reactor' not in sys.modules\n"
        "print(zcomm.__file__)\n"
    )
    printed = run(installed / "python", "-c", code, cwd=tmp_path, environ=without_checkout(tmp_path))
    assert Path(printed.strip()).is_relative_to(installed.parent)


def test_the_console_command_is_installed(installed: Path, tmp_path: Path):
    """``zcomm --version`` answers with the version of the package."""
    assert run(installed / "zcomm", "--version", cwd=tmp_path, environ=without_checkout(tmp_path)).strip() == f"zcomm {__version__}"


def test_no_path_becomes_a_file_name():
    """Only the fixed paths are served, whatever else is asked for."""
    assert [path for path in ("/../setup.py", "/demo/index.html", "//zBifrost.js", "/zBifrost.js/", "", "/%7Ezbifrost.js") if asset(path)] == []
    assert client_directory() == CHECKOUT / "js"
