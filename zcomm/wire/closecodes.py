"""The WebSocket close codes of zBifrost and its clients (RFC 6455 section 7.4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

__all__ = ["CloseCode", "Ending", "close_reason", "is_final", "require_sendable"]


class CloseCode(IntEnum):
    """The reason of an end. No peer sends 1006 and 1015: a client that is told nothing finds them itself."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    ABNORMAL = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    TRY_AGAIN_LATER = 1013
    TLS_HANDSHAKE = 1015

    @property
    def is_final(self) -> bool:
        """Whether coming back would end the same way, or the peer has said goodbye."""
        return self in _FINAL


#: The same list stands in js/zBifrost.js and, as prose, in docs/protocol.rst, "Closing".
_FINAL = frozenset(
    (
        CloseCode.NORMAL,
        CloseCode.PROTOCOL_ERROR,
        CloseCode.UNSUPPORTED_DATA,
        CloseCode.INVALID_PAYLOAD,
        CloseCode.POLICY_VIOLATION,
    )
)


def is_final(code: int) -> bool:
    """Whether a client whose connection ended with ``code`` stays away; a code that is not known is not final."""
    return code in _FINAL


def require_sendable(code: int, reason: str) -> None:
    """Refuse what a close frame may not say: a code that is reserved or that nobody has registered, and what is none.

    :param code: 1000 to 1003, 1007 to 1014 (RFC 6455 section 7.4 and IANA's registry), or 3000 to 4999.
    :param reason: any text; one that is too long is cut where it is sent.
    :raises TypeError: naming the argument, when it is no ``int`` or no ``str``.
    :raises ValueError: for another code.
    """
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"code: a close code is an int, not {code!r:.60}")
    if not isinstance(reason, str):
        raise TypeError(f"reason: must be a str, not {reason!r:.60}")
    if not (1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999):
        raise ValueError(f"code: no close frame may have {int(code)!r:.60}, only 1000-1003, 1007-1014 or 3000-4999")


@dataclass(frozen=True, slots=True)
class Ending:
    """The way in which one connection is to end.

    :ivar cause: counted for the operator; the close code where it is left out.
    :ivar code: told to the client; ``None`` to cut it off without a goodbye.
    :ivar reason: told with it.
    :ivar at_once: forget what waits for the client, and read nothing more from it.
    """

    cause: str = ""
    code: CloseCode | None = None
    reason: str = ""
    at_once: bool = False


def close_reason(text: str) -> bytes:
    """``text`` in UTF-8, cut between characters to the 123 bytes a close frame has room for (RFC 6455 5.5)."""
    return text.encode("utf-8", "replace")[:123].decode("utf-8", "ignore").encode("utf-8")
