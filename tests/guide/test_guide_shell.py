"""The guide's shell blocks: what they export is read by what is made afterwards."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.guide_blocks import guide_block
from support.guide_host import host_environ
from support.preloaded import run_python

SETTINGS = """\
from zCLI.zCLI import zCLI
zcli = zCLI({})
config = zcli.comm._comm.config.websocket
status = {name: zcli.comm.service_status(name) for name in ('postgresql', 'redis')}
services = {name: (status[name]['port'], status[name]['data_dir']) for name in status}
websocket = {'auth': config.require_auth, 'origins': config.allowed_origins}
print({'port': config.port, 'host': config.host, **websocket, **services})
"""


def after(text: str, home: Path) -> dict[str, Any]:
    """The settings of a zCLI that is started after ``text``."""
    (home / "settings.py").write_text(SETTINGS)
    shell = subprocess.run(
        ["bash", "-c", f"{text}\nenv -0"],
        cwd=home,
        env=host_environ(home),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert shell.returncode == 0, shell.stderr
    exported = dict(line.split("=", 1) for line in shell.stdout.split("\0") if line)
    done = run_python([sys.executable, "settings.py"], cwd=home, env=exported, timeout=120)
    assert done.returncode == 0, done.stderr
    return ast.literal_eval(done.stdout)


def lines(name: str, start: str) -> str:
    """Those lines of a block that start so."""
    found = [line for line in guide_block(name).text.splitlines() if line.startswith(start)]
    assert found
    return "\n".join(found)


LOCAL = ("http://localhost:3000", "http://localhost:8080")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Enable Authentication (Production):", {"auth": True}),
        ("Disable Authentication (Testing):", {"auth": False}),
        ("Origin Validation", {"origins": LOCAL}),
        (
            "WebSocket Configuration:",
            {
                "port": 56891,
                "host": "127.0.0.1",
                "auth": True,
                "origins": ("http://localhost:3000", "https://app.example.com"),
            },
        ),
        (
            "Service Configuration:",
            {"postgresql": (15432, "/usr/local/var/postgresql"), "redis": (16379, "/usr/local/var/redis")},
        ),
        ("Authentication Best Practices", {"auth": True}),
        ("Authentication Best Practices 2", {"origins": ("https://app.example.com",)}),
        ("Authentication Best Practices 3", {"host": "127.0.0.1"}),
        ("2. Authentication Required Error", {"auth": False}),
        ("3. Port Already in Use", {"port": 8080}),
    ],
)
def test_exports(name: str, expected: dict[str, Any], tmp_path: Path):
    """Each variable has its effect."""
    found = after(lines(name, "export ").replace("5432", "15432").replace("6379", "16379"), tmp_path)
    assert {key: found[key] for key in expected} == expected


def test_checking_a_port_from_the_shell(tmp_path: Path):
    """The troubleshooting's one line of Python prints a bool."""
    line = lines("1. Connection Refused", "python3 -c").replace("python3", sys.executable, 1)
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=tmp_path,
        env=host_environ(tmp_path),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout in ("True\n", "False\n"), done.stderr
