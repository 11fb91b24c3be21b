"""The JavaScript client under Node, against a real server. What needs no server is in ``js/test``."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from support.serverprocess import CHECKOUT, RunningServer, clean_environ

#: Seconds for the whole run; it takes two or three on an idle machine.
DEADLINE = 240


def run_node_tests(path: str, home: Path, extra: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """Run one file of Node tests to its end."""
    command = ["node", "--test", "--test-reporter=tap", path]
    with subprocess.Popen(
        command,
        cwd=CHECKOUT,
        env=clean_environ(home, extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as running:
        try:
            output, errors = running.communicate(timeout=DEADLINE)
        finally:
            # What runs the file is a child of its own, which would go on without it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(command, running.returncode, output, errors)


def test_client_against_server(tmp_path: Path, running_server: Callable[..., RunningServer]) -> None:
    """Every method of the client does against ``twistd zcomm`` what its documentation says."""
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.yaml").write_text("theme: dark\n")
    server = running_server("--files", str(files))
    run = run_node_tests(
        "js/test/live/live.test.js",
        tmp_path,
        {"ZCOMM_URL": server.url, "ZCOMM_TOKEN": server.token},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout and "# pass 0" not in run.stdout, run.stdout


def test_live_queries_against_server(tmp_path: Path, running_server: Callable[..., RunningServer]) -> None:
    """Live queries of the client do against ``twistd zcomm`` what its documentation says, over lost connections as
    well."""
    schema = tmp_path / "schema.yaml"
    schema.write_text(
        "Orders: {_model: {live: true}, id: {type: int, pk: true}, status: {type: str, default: new},"
        " total: {type: int, default: 0}, note: json}\n"
        "Lines: {_model: {live: true}, part: {type: str, pk: true}, place: {type: int, pk: true}, text: str}\n"
    )
    server = running_server("--schema", str(schema), "--live-per-client", "20")
    run = run_node_tests(
        "js/test/live/queries.test.js", tmp_path, {"ZCOMM_URL": server.url, "ZCOMM_TOKEN": server.token}
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout and "# pass 0" not in run.stdout, run.stdout


def test_topics_against_server(tmp_path: Path, running_server: Callable[..., RunningServer]) -> None:
    """Topics of the client do against ``twistd zcomm`` what its documentation says, over lost connections as well."""
    kinds = tmp_path / "topics.yaml"
    kinds.write_text(
        '"room:{id}": {history: 1000, presence: true, publish: anybody}\n'
        '"typing:{id}": {publish: anybody}\n'
        '"user:{name}": {personal: true, history: 100, publish: anybody}\n'
    )
    options = ("--topics", str(kinds))
    server, other = (running_server(*options, home=tmp_path / name) for name in ("one", "other"))
    run = run_node_tests(
        "js/test/live/topics.test.js",
        tmp_path,
        {
            "ZCOMM_URL": server.url,
            "ZCOMM_TOKEN": server.token,
            "ZCOMM_OTHER_URL": other.url,
            "ZCOMM_OTHER_TOKEN": other.token,
        },
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "# fail 0" in run.stdout and "# pass 0" not in run.stdout, run.stdout
