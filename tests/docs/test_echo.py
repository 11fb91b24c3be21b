"""The program that answers messages in a way of its own, as docs/api.rst shows it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.deflate import deflated, inflated
from support.rawclient import BlockingRawClient, Opcode
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ

ECHO = "examples/echo.py"
OFFER = ("Sec-WebSocket-Extensions", "permessage-deflate")


@pytest.mark.parametrize("options", [[], ["--compression"]], ids=["plain", "compressed"])
def test_everything_comes_back(tmp_path: Path, options: list[str]):
    """Text that is no command, binary, and a message of 16 MiB; then it ends in order."""
    server = RunningServer(
        [sys.executable, str(CHECKOUT / "docs" / ECHO), *options],
        tmp_path,
        clean_environ(tmp_path, {"WEBSOCKET_PORT": "0"}),
    )
    try:
        port = int(server.wait_for_log(LISTENING)[2])
        with BlockingRawClient(port, headers=[OFFER]) as client:
            client.send_text("no command")
            assert client.next().text == "no command"
            client.send_frame(Opcode.BINARY, b"\xff\xfe")
            frame = client.next()
            assert frame.opcode == Opcode.BINARY
            assert (inflated(frame.payload) if frame.rsv else frame.payload) == b"\xff\xfe"
            if options:
                client.send_frame(Opcode.BINARY, deflated(bytes(10_000)), rsv=4)
                assert inflated(client.next().payload) == bytes(10_000)
            else:
                client.send_text("x" * 2**24)
                # A busy machine may take so long for it that the server asks whether the client is there.
                while (frame := client.next()).opcode == Opcode.PING:
                    client.send_frame(Opcode.PONG, frame.payload)
                assert frame.payload == b"x" * 2**24
    finally:
        status = server.stop()
    assert status == 0, server.log
