"""A server process whose memory is watched: by the peak that the system counted."""

from __future__ import annotations

import json
import re
import socket
import ssl
from pathlib import Path
from typing import Any

from support.rawclient import BlockingRawClient, ConnectionEnded
from support.serverprocess import RunningServer

__all__ = ["MIB", "Watched", "ending", "push"]

MIB = 1024 * 1024


class Watched:
    """A server and its memory.

    :param tls: what its clients trust, where it speaks TLS.
    """

    def __init__(self, server: RunningServer, tls: ssl.SSLContext | None = None):
        self.server = server
        self.port = server.port
        self.token = server.token
        self.path = Path(f"/proc/{server.process.pid}")
        self.tls = tls

    def client(self, **options: Any) -> BlockingRawClient:
        options.setdefault("token", self.token)
        return BlockingRawClient(self.port, tls=self.tls, **options)

    def _kib(self, name: str) -> int:
        status = (self.path / "status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))

    def mark(self) -> None:
        """From here on the peak counts."""
        (self.path / "clear_refs").write_text("5")
        self.base = self._kib("VmRSS")

    @property
    def grown(self) -> int:
        """KiB between the mark and the highest since."""
        return self._kib("VmHWM") - self.base

    def serves(self) -> bool:
        """Another client is answered."""
        with self.client() as other:
            return other.call("ping", 1)["result"] == 1

    def _get(self, path: str) -> str:
        asking: socket.socket = socket.create_connection(("127.0.0.1", self.port))
        if self.tls is not None:
            asking = self.tls.wrap_socket(asking, server_hostname="127.0.0.1")
        with asking:
            asking.sendall(
                f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {self.token}\r\n\r\n".encode()
            )
            text = b""
            while data := asking.recv(65536):
                text += data
        return text.partition(b"\r\n\r\n")[2].decode()

    def clients(self) -> int:
        """The number of those in the registry, as the health report has it."""
        return json.loads(self._get("/health"))["clients"]

    def drops(self, reason: str) -> int:
        """The number of connections that ended for that reason, as the metrics have it."""
        found = re.search(rf'zcomm_drops_total{{reason="{reason}"}} (\d+)', self._get("/metrics"))
        return int(found[1]) if found else 0


def push(client: BlockingRawClient, data: bytes, times: int = 1) -> None:
    """Send, for as long as the server lets it."""
    try:
        for _ in range(times):
            client.send(data)
    except OSError:
        pass


def ending(client: BlockingRawClient) -> int | None:
    """The close code the server sent, if it came through."""
    try:
        return client.next_close().close_code
    except (ConnectionEnded, OSError):
        return None
