"""Plain HTTP on the WebSocket port: the demo page, the client, the health report, the metrics.

One request, one response, then the connection ends: there is no second request that another parser
could see differently. Nothing a request says becomes part of a response, but an origin that is allowed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.bifrost.handshake import Head, bearer_tokens, http_response
from zcomm.bifrost.server import zBifrost
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import ANONYMOUS
from zcomm.origin import is_loopback, parse_host
from zcomm.runtime.logthrottle import Throttle
from zcomm.web.assets import asset
from zcomm.web.metrics import metrics_of
from zcomm.wire.closecodes import CloseCode

__all__ = ["SECURITY_HEADERS", "WebPages"]

#: On every response. The page runs its own scripts only, connects to WebSockets only, and is framed by nobody.
SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        (
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
            "connect-src 'self' ws: wss:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)

#: What pages of allowed origins may read: the client and its types.
_SHARED = frozenset({"/zBifrost.js", "/zBifrost.d.ts"})

_PLAIN = "text/plain; charset=utf-8"
#: The answers to those who are not let in, by the close code that they would get on a WebSocket.
_REFUSED: dict[int, tuple[int, bytes, tuple[tuple[str, str], ...]]] = {
    CloseCode.POLICY_VIOLATION: (
        401,
        b"The metrics need a token: Authorization: Bearer ...\n",
        (("WWW-Authenticate", "Bearer"),),
    ),
    CloseCode.TRY_AGAIN_LATER: (429, b"Too many failed attempts from this address.\n", (("Retry-After", "60"),)),
    CloseCode.INTERNAL_ERROR: (503, b"Tokens cannot be checked now.\n", (("Retry-After", "5"),)),
}
_FORBIDDEN = (
    b"The metrics are for those to whom a policy grants them (admin: [metrics]); "
    b"without a policy for the operator's own token and the role admin. "
    b"Without authentication they are for this machine, with no proxy between.\n"
)


#: What proxies that nobody has named say of themselves, of their clients and of what was asked for.
_OF_PROXIES = (b"forwarded", b"via", b"x-forwarded-", b"x-real-ip", b"x-client-ip", b"x-original-", b"true-client-ip")


def _asks_itself(head: Head) -> bool:
    """Whether nothing in ``head`` tells of a proxy, so that whoever connects from this machine is on it.

    A proxy that adds nothing, as HAProxy and nginx do where nobody has told them better, looks like a program that runs
    here when its client asks for a name of this machine; nginx always does.
    """
    host = parse_host(head.text(b"host"))
    # Most clients of a proxy that passes the name on ask for its own.
    return host is not None and is_loopback(host[0]) and not any(name.startswith(_OF_PROXIES) for name in head.headers)


class WebPages:
    """Answers requests that are no WebSocket; given to a :class:`~zcomm.bifrost.server.zBifrost` as its ``pages``.

    :param health: reports the state of a server and what it needs, ``"status": "ok"`` when all is well.
    """

    _log = Logger()

    def __init__(self, health: Callable[[zBifrost], Deferred[dict[str, Any]]]):
        self._health = health
        self._failures = Throttle(time.monotonic)

    def __call__(self, bifrost: zBifrost, head: Head, peer: str, is_local: bool, local_address: str) -> Deferred[bytes]:
        """Fires with the whole response of ``bifrost`` to ``head``."""
        # The rule that keeps rebound names from the WebSocket. No browser leaves the name out.
        host = head.text(b"host")
        if host and not bifrost.factory.admission.knows_host(host, local_address):
            # 421: this server is not the one that name should lead to (RFC 9110 section 15.5.20).
            return succeed(self._response(head, 421, b"This server does not answer under that host name.\n", _PLAIN))
        if head.path == "/health":
            return self._report(bifrost, head)
        if head.path == "/metrics":
            return self._measure(bifrost, head, peer, is_local)
        found = asset(head.path)
        if found is None:
            return succeed(self._response(head, 404, b"There is no such page here.\n", _PLAIN))
        body, media_type = found
        further = self._sharing(bifrost, head, local_address) if head.path in _SHARED else ()
        return succeed(self._response(head, 200, body, media_type, "no-cache", further))

    @staticmethod
    def _sharing(bifrost: zBifrost, head: Head, local_address: str) -> tuple[tuple[str, str], ...]:
        """What lets a page of another origin import the client: it may when it may use the WebSocket."""
        origin = head.text(b"origin")
        # Wherever the browser runs: the file is no secret, and only a browser on this machine has a loopback origin.
        if origin and bifrost.factory.admission.allows_page(origin, head.text(b"host"), True, local_address):
            return (("Access-Control-Allow-Origin", origin), ("Vary", "Origin"))
        return (("Vary", "Origin"),)

    @inlineCallbacks
    def _report(self, bifrost: zBifrost, head: Head) -> Any:
        try:
            report = yield self._health(bifrost)
        except CancelledError:
            # Whoever asked has left, or what was asked is on its way to its end.
            report = {"status": "unavailable"}
        except Exception as error:
            self._failures.log_failure(
                self._log.failure, "the health report failed", Failure(), cause=repr(type(error))
            )
            report = {"status": "error"}
        status = 200 if report.get("status") == "ok" else 503
        return self._response(head, status, msgspec.json.encode(report) + b"\n", "application/json")

    @inlineCallbacks
    def _measure(self, bifrost: zBifrost, head: Head, peer: str, is_local: bool) -> Any:
        factory = bifrost.factory
        if factory.admission.checker is None:
            # Nobody can prove to be the operator. Who is on this machine, with no proxy between, is taken for it.
            identity, is_here = ANONYMOUS, is_local and _asks_itself(head)
        else:
            try:
                identity = yield factory.admission.identify(bearer_tokens(head), peer)
            except HandshakeRefused as refused:
                factory.refused(peer, refused.reason)
                status, body, further = _REFUSED[refused.close_code]
                return self._response(head, status, body, _PLAIN, further=further)
            # Nobody is in by that: a one-time code is not spent.
            factory.admission.give_back(identity)
            is_here = False
        if not is_here and not bifrost.dispatcher.permissions.allows(identity, "use", "admin", "metrics"):
            factory.refused(peer, "No right to the metrics")
            return self._response(head, 403, _FORBIDDEN, _PLAIN)
        return self._response(head, 200, metrics_of(bifrost), "text/plain; version=0.0.4; charset=utf-8")

    @staticmethod
    def _response(
        head: Head,
        status: int,
        body: bytes,
        media_type: str,
        caching: str = "no-store",
        further: tuple[tuple[str, str], ...] = (),
    ) -> bytes:
        headers = (("Content-Type", media_type), ("Cache-Control", caching), *SECURITY_HEADERS, *further)
        response = http_response(status, body, headers)
        return response[: len(response) - len(body)] if head.method == "HEAD" else response
