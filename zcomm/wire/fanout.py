"""The same messages to many clients: framed once, compressed once for each size of window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from zcomm.wire.deflate import deflated_frames
from zcomm.wire.frames import frames
from zcomm.wire.sockets import send_all

__all__ = ["fan_out"]


class Output(Protocol):
    """The outgoing side of a client. Plain attributes, because a broadcast looks at each of thousands."""

    #: The socket, where nothing waits before it and uncompressed frames may be written to it by a system call;
    #: otherwise -1.
    fd: int
    #: The size of the window that the client agreed to compress with; 0 for none.
    window_bits: int


class Recipient(Protocol):
    """The transport of a client's messages."""

    @property
    def outgoing(self) -> Output:
        """Its outgoing side."""

    def send_frames(self, data: bytes) -> None:
        """Queue finished frames for this client."""


def fan_out(recipients: Sequence[Recipient], payloads: list[bytes]) -> None:
    """Send text messages to many clients, with one system call for each that can take them at once."""
    data = frames(payloads)
    compressed: dict[int, bytes] = {}
    for index, sent in send_all([recipient.outgoing.fd for recipient in recipients], data):
        # Something waits there already, or the system did not take it all: the transport knows what to do, and meets
        # whatever error there was.
        recipient = recipients[index]
        bits = recipient.outgoing.window_bits
        if not bits:
            recipient.send_frames(data[sent:] if sent > 0 else data)
        else:
            if bits not in compressed:
                compressed[bits] = deflated_frames(payloads, bits)
            recipient.send_frames(compressed[bits])
