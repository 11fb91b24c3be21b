"""twistd finds zComm: from a checkout, from any directory, and when its plugin cache cannot be written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import pytest_twisted
from support.serverprocess import CHECKOUT, RunningServer, clean_environ, scripts, twistd_command
from twisted.application.service import IServiceMaker
from twisted.plugin import IPlugin
from zope.interface.verify import verifyObject

from zcomm import WebSocketConfig, zBifrost
from zcomm.errors import ConfigError

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


#: Listens as systemd would, and becomes the server that gets the socket.
ACTIVATE = """
import os, socket, sys
listener = socket.create_server((sys.argv[1], 0))
os.dup2(listener.fileno(), 3)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_FDNAMES="web", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""


@pytest.mark.child
@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_contact_b23_what_others_reach_is_what_the_sockets_say(tmp_path: Path, address: str):
    """A socket of systemd's on the loopback interface is nothing to warn of; an open one is, with its own address."""
    command = twistd_command("--listen", "systemd:domain=INET:index=0", "--listen", f"unix:{tmp_path}/socket")
    server = RunningServer(
        [sys.executable, "-c", ACTIVATE, address, *command], tmp_path, clean_environ(tmp_path), preloaded=False
    )
    try:
        server.wait_for_log(r"services: ")
        server.wait_for_log(r"\] ready")
        warned = [line for line in server.log.splitlines() if "other machines" in line]
        if address == "127.0.0.1":
            assert warned == []
        else:
            (line,) = warned
            assert "WARNING: 0.0.0.0 can be reached from other machines; put TLS in front" in line
    finally:
        assert server.stop() == 0, server.log


@pytest_twisted.ensureDeferred
async def test_contact_n12_only_of_plain_endpoints_tls_is_asked(tmp_path: Path):
    """Which those are is known of Twisted's own kinds."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-subj",
            "/CN=x",
            "-keyout",
            key,
            "-out",
            certificate,
        ],
        check=True,
        capture_output=True,
    )
    bifrost = zBifrost(
        WebSocketConfig(
            listen=(
                "tcp:0:interface=127.0.0.1",
                "tcp:0:interface=0.0.0.0",
                "haproxy:tcp:0:interface=0.0.0.0",
                f"ssl:0:interface=0.0.0.0:privateKey={key}:certKey={certificate}",
                "tcp6:0:interface=\\:\\:1",
                f"unix:{tmp_path}/socket",
            )
        )
    )
    await bifrost.listen()
    try:
        assert bifrost.open_to_others() == [("0.0.0.0", True), ("0.0.0.0", True), ("0.0.0.0", False)]
    finally:
        await bifrost.stopService()


def test_contact_no_auth_names_what_is_open():
    """The endpoint, or the proxy that brings others, and not an interface that nobody listens on."""
    for options, named in (
        ({"listen": ("systemd:domain=INET:index=0",)}, "reaches systemd:domain=INET:index=0 is"),
        ({"listen": ("haproxy:tcp:1:interface=127.0.0.1",)}, "reaches haproxy:tcp:1:interface=127.0.0.1 is"),
        ({"trusted_proxies": ("127.0.0.1",)}, "reaches the proxy 127.0.0.1 is"),
        ({"host": "192.0.2.1"}, "reaches 192.0.2.1 is"),
    ):
        with pytest.raises(ConfigError, match=re.escape(named)):
            WebSocketConfig(require_auth=False, **options)
        WebSocketConfig(require_auth=False, insecure=True, **options)
