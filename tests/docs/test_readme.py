"""The README's program, with a client."""

from __future__ import annotations

import sys
from pathlib import Path

from support.docs_blocks import block, runs
from support.rawclient import BlockingRawClient
from support.serverprocess import RunningServer, clean_environ


@runs("readme-server")
def test_the_program_serves_its_command(tmp_path: Path):
    """It prints its address; one client calls, the other hears of it."""
    (tmp_path / "program.py").write_text(block("readme-server").text, "utf-8")
    environ = clean_environ(tmp_path, {"WEBSOCKET_PORT": "0"})
    server = RunningServer([sys.executable, "program.py"], tmp_path, environ)
    try:
        match = server.wait_for_log(r"Serving ws://127\.0\.0\.1:(\d+)")
        port = int(match[1])
        with (
            BlockingRawClient(port, token=server.token) as caller,
            BlockingRawClient(port, token=server.token) as other,
        ):
            reply = caller.call("greet", "Bob")
            assert reply["result"].endswith(" says hello to Bob")
            assert other.next_json() == {"zKey": "greet", "result": reply["result"]}
        assert server.stop() == 0, server.log
    finally:
        server.kill()
