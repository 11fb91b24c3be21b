"""The WebSocket close codes that zBifrost sends (RFC 6455 section 7.4.1 and the IANA registry)."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["CloseCode", "close_reason"]


class CloseCode(IntEnum):
    """Why a connection ends. 1002, 1003, 1008 and 1009 are final: coming back would end the same way."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013


def close_reason(text: str) -> bytes:
    """``text`` in UTF-8, cut between characters to the 123 bytes a close frame has room for (RFC 6455 5.5)."""
    return text.encode("utf-8", "replace")[:123].decode("utf-8", "ignore").encode("utf-8")
