"""twistd finds zComm: from a checkout, from any directory, and when its plugin cache cannot be written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from support.serverprocess import CHECKOUT, clean_environ, scripts
from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin
from zope.interface.verify import verifyObject

PLUGIN = CHECKOUT / "twisted" / "plugins" / "zcomm_plugin.py"


def twistd(*arguments: str, cwd: Path, home: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(scripts() / "twistd"), *arguments],
        cwd=cwd,
        env=clean_environ(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_plugin_names_the_module_that_builds_the_service():
    """It is a service maker as twistd looks for them, and names itself."""
    names: dict[str, object] = {}
    exec(compile(PLUGIN.read_text("utf-8"), str(PLUGIN), "exec"), names)
    maker = names["zcomm"]
    assert verifyObject(IServiceMaker, maker) and verifyObject(IPlugin, maker)
    assert (maker.tapname, maker.module) == ("zcomm", "zcomm.tap")


def test_no_package_file_hides_twisteds_own_plugins():
    """An __init__.py under twisted/ would replace Twisted itself."""
    assert list((CHECKOUT / "twisted").rglob("__init__.py")) == []


def test_twistd_lists_zcomm(tmp_path: Path):
    """``twistd --help`` names the command with its description, and no traceback."""
    done = twistd("--help", cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0
    assert [line for line in done.stdout.splitlines() if line.split()[:1] == ["zcomm"]]
    assert "Traceback" not in done.stdout + done.stderr


def test_twistd_knows_the_reactor_by_name(tmp_path: Path):
    """``twistd --help-reactors`` lists it, and naming it makes it the one that runs."""
    listed = twistd("--help-reactors", cwd=tmp_path, home=tmp_path)
    assert [line for line in listed.stdout.splitlines() if line.split()[:1] == ["zcomm"]]
    (tmp_path / "which.py").write_text(
        "from twisted.application.service import Application\n"
        "from twisted.internet import reactor\n"
        "application = Application('which')\n"
        "print(type(reactor).__name__, flush=True)\n"
        "reactor.callWhenRunning(reactor.stop)\n",
        "utf-8",
    )
    done = twistd(
        "--reactor=zcomm", "--pidfile=", "--nodaemon", "--no_save", "--python=which.py", cwd=tmp_path, home=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "UvloopReactor" in done.stdout


def test_twistd_zcomm_help_documents_every_option(tmp_path: Path):
    """All options of the table in the documentation are in the help text."""
    done = twistd("zcomm", "--help", cwd=tmp_path, home=tmp_path)
    assert done.returncode == 0
    for option in (
        "--port",
        "--host",
        "--listen",
        "--no-auth",
        "--allowed-origin",
        "--database",
        "--schema",
        "--functions",
        "--files",
        "--policy",
        "--service",
        "--broadcast",
        "--no-web",
        "--data-dir",
        "--insecure",
    ):
        assert option in done.stdout
    everyday, limits = done.stdout.split("\nLimits:\n")
    assert "--message-size" in limits and "--message-size" not in everyday and "[1048576]" in limits


#: twistd as it is where only an installed zComm exists: an editable installation put the checkout on the path.
TWISTD_WITHOUT_CHECKOUT = (
    f"import sys; sys.path = [entry for entry in sys.path if entry != {str(CHECKOUT)!r}]; "
    "sys.argv[0] = 'twistd'; from twisted.scripts.twistd import run; run()"
)


def unprivileged() -> list[str]:
    """What to put before a command so that file modes bind it: root is exempt from them unless told otherwise."""
    if os.getuid() != 0:
        return []
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]


def test_a_plugin_cache_that_cannot_be_written_is_no_obstacle(tmp_path: Path):
    """Twisted keeps a cache beside the plugins; in an installation that belongs to somebody else there is none."""
    site = tmp_path / "site"
    ignored = shutil.ignore_patterns("__pycache__", "dropin.cache")
    shutil.copytree(CHECKOUT / "zcomm", site / "zcomm", ignore=ignored)
    shutil.copytree(CHECKOUT / "twisted", site / "twisted", ignore=ignored)
    plugins = site / "twisted" / "plugins"
    environ = clean_environ(tmp_path, {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"})
    plugins.chmod(0o555)
    try:
        done = subprocess.run(
            [*unprivileged(), sys.executable, "-c", TWISTD_WITHOUT_CHECKOUT, "--help"],
            cwd=tmp_path,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        plugins.chmod(0o755)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.split()[:1] == ["zcomm"]]
    assert "Traceback" not in done.stdout + done.stderr
    assert not (plugins / "dropin.cache").exists()


def test_a_plugin_cache_from_before_does_not_hide_it(tmp_path: Path):
    """A cache that was written when zComm was not there is noticed to be old."""
    site = tmp_path / "site"
    shutil.copytree(CHECKOUT / "zcomm", site / "zcomm", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "twisted" / "plugins").mkdir(parents=True)
    environ = clean_environ(tmp_path, {"PYTHONPATH": str(site)})
    command = [sys.executable, "-c", TWISTD_WITHOUT_CHECKOUT, "--help"]
    (site / "twisted" / "plugins" / "other_plugin.py").write_text("", "utf-8")
    before = subprocess.run(
        command,
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert before.returncode == 0 and not [line for line in before.stdout.splitlines() if line.split()[:1] == ["zcomm"]]
    assert (site / "twisted" / "plugins" / "dropin.cache").exists()
    shutil.copy(PLUGIN, site / "twisted" / "plugins")
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert [line for line in done.stdout.splitlines() if line.split()[:1] == ["zcomm"]]
