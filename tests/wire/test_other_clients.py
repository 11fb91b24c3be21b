"""A client that knows nothing of zComm: the command-line program of the websockets package."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from support.waiting import DEADLINE

pytestmark = pytest.mark.child


def test_the_websockets_program_logs_in_and_runs_a_command(running_server):
    """It connects with the token in the query, sends one line of JSON, and shows the reply."""
    server = running_server()
    program = subprocess.Popen(
        [sys.executable, "-m", "websockets", f"{server.url}/?token={server.token}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        program.stdin.write(json.dumps({"zKey": "ping", "zHorizontal": {"hello": "bridge"}, "_requestId": 7}) + "\n")
        program.stdin.flush()
        shown = ""
        while '"_requestId":7' not in shown:
            line = program.stdout.readline()
            assert line, f"it ended without a reply:\n{shown}"
            shown += line
        assert '{"result":{"hello":"bridge"},"_requestId":7}' in shown
        program.stdin.close()
        assert program.wait(DEADLINE) == 0
    finally:
        program.kill()
        program.wait()
