"""Plain HTTP on the WebSocket port: the user's page, the demo page, the client, the health report, the metrics.

One request, one response, then the connection ends: there is no second request that another parser
could see differently. Nothing a request says becomes part of a response, but the name of a directory and the query,
where it is sent on to the slash at its end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec
from twisted.internet.defer import CancelledError, Deferred, inlineCallbacks, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.bifrost.handshake import Head, bearer_tokens, http_head, http_response
from zcomm.bifrost.pending import Exchange
from zcomm.bifrost.server import zBifrost
from zcomm.errors import HandshakeRefused, TooBusy, Unavailable
from zcomm.interfaces import ANONYMOUS
from zcomm.origin import is_loopback, parse_host
from zcomm.runtime.logthrottle import Throttle
from zcomm.web.assets import asset
from zcomm.web.calls import Calls
from zcomm.web.content import Content, has_it, type_header
from zcomm.web.exchange import Download
from zcomm.web.metrics import metrics_of
from zcomm.web.site import MOVED, OWN_NAMES, SMALL, Large, Missing, Site
from zcomm.wire.closecodes import CloseCode

__all__ = ["SECURITY_HEADERS", "SITE_HEADERS", "WebPages"]

#: On every response of zComm's own. The page runs its own scripts only, connects to WebSockets only, and is framed by
#: nobody.
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

#: On what is the user's: a page may do what it likes, but nobody else's frames it, and a file is what its type says.
SITE_HEADERS = (
    ("Content-Security-Policy", "frame-ancestors 'self'"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "SAMEORIGIN"),
    ("Accept-Ranges", "none"),
)

#: What every page may read: the client and its types, which are no secret, and nothing that anybody has.
_SHARED = frozenset({"/zBifrost.js", "/zBifrost.d.ts"})
_SHARING = (("Access-Control-Allow-Origin", "*"), ("Cross-Origin-Resource-Policy", "cross-origin"))
_SHARED_HEADERS = (*(each for each in SECURITY_HEADERS if each[0] != "Cross-Origin-Resource-Policy"), *_SHARING)

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
_NO_PAGE = b"There is no such page here.\n"
_NOT_NOW = b"This page cannot be sent now.\n"
_SOON = (("Retry-After", "5"),)
#: Whoever keeps a copy asks each time whether it is still the same.
_REVALIDATED = ("Cache-Control", "no-cache")
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
    :param site: the user's own files, which come before the demo page.
    :param metrics: makes the text of the metrics of a server, or a Deferred of it.
    """

    _log = Logger()

    def __init__(
        self,
        health: Callable[[zBifrost], Deferred[dict[str, Any]]],
        site: Site | None = None,
        metrics: Callable[[zBifrost], bytes | Deferred[bytes]] = metrics_of,
    ):
        self._metrics = metrics
        self._health = health
        self._site = site
        self._calls = Calls()
        self._failures = Throttle(time.monotonic)

    def __call__(
        self, bifrost: zBifrost, head: Head, peer: str, is_local: bool, local_address: str
    ) -> Deferred[bytes | Exchange]:
        """Fires with the whole response of ``bifrost`` to ``head``, or with what sends it."""
        if head.method == "POST":
            return self._calls(bifrost, head, peer, is_local, local_address)
        # The rule that keeps rebound names from the WebSocket. No browser leaves the name out.
        host = head.text(b"host")
        if host and not bifrost.factory.admission.knows_host(host, local_address):
            # 421: this server is not the one that name should lead to (RFC 9110 section 15.5.20).
            return succeed(self._response(head, 421, b"This server does not answer under that host name.\n", _PLAIN))
        if head.path == "/health":
            return self._report(bifrost, head)
        if head.path == "/metrics":
            return self._measure(bifrost, head, peer, is_local)
        if self._site is not None and head.path.split("/")[1] not in OWN_NAMES:
            return self._own_page(self._site, head, peer)
        if head.path == "/demo":
            return succeed(_moved(head, SECURITY_HEADERS))
        found = asset(head.path)
        if found is None:
            return succeed(self._response(head, 404, _NO_PAGE, _PLAIN))
        return succeed(_sent(head, found, _SHARED_HEADERS if head.path in _SHARED else SECURITY_HEADERS))

    @inlineCallbacks
    def _own_page(self, site: Site, head: Head, peer: str) -> Any:
        try:
            found = yield site.find(head.path, peer)
        except Missing:
            return self._response(head, 404, _NO_PAGE, _PLAIN)
        except (CancelledError, OSError, TooBusy, Unavailable) as error:
            if isinstance(error, OSError):
                self._failures.log(self._log.error, error.errno, "a page could not be read: {why}", why=error.strerror)
            return self._response(head, 503, _NOT_NOW, _PLAIN, further=_SOON)
        if found == MOVED:
            return _moved(head, SITE_HEADERS)
        if isinstance(found, Large):
            return self._sent_from_disk(site, head, peer, found)
        status, body, headers = found.chosen(head)
        if len(body) <= SMALL or head.method == "HEAD":
            return _whole(head, status, body, (*headers, _REVALIDATED, *SITE_HEADERS))
        if not site.enters(peer):
            return self._response(head, 503, _NOT_NOW, _PLAIN, further=_SOON)
        site.use(found)

        def over() -> None:
            site.give_back(found)
            site.leaves(peer)

        begin = http_head(status, len(body), (*headers, _REVALIDATED, *SITE_HEADERS))
        return Download(begin, len(body), lambda offset, size: body[offset : offset + size], over)

    def _sent_from_disk(self, site: Site, head: Head, peer: str, file: Large) -> bytes | Download:
        tag = f'"{file.tag}"'
        headers = (("ETag", tag), _REVALIDATED, *SITE_HEADERS)
        if has_it(head, tag):
            return http_response(304, b"", headers)
        begin = http_head(200, file.size, (("Content-Type", type_header(file.media_type)), *headers))
        if head.method == "HEAD":
            return begin
        if not site.enters(peer):
            return self._response(head, 503, _NOT_NOW, _PLAIN, further=_SOON)
        return Download(begin, file.size, partial(site.read, file, peer), partial(site.leaves, peer))

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
        text = yield self._metrics(bifrost)
        return self._response(head, 200, text, "text/plain; version=0.0.4; charset=utf-8")

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
        return _whole(head, status, body, headers)


def _whole(head: Head, status: int, body: bytes, headers: tuple[tuple[str, str], ...]) -> bytes:
    """A response in one piece; to HEAD without its body."""
    if head.method == "HEAD":
        return http_head(status, len(body), headers)
    return http_response(status, body, headers)


def _sent(head: Head, content: Content, security: tuple[tuple[str, str], ...]) -> bytes:
    """A response with a content, or with the news that it is the same."""
    status, body, headers = content.chosen(head)
    return _whole(head, status, body, (*headers, _REVALIDATED, *security))


def _moved(head: Head, security: tuple[tuple[str, str], ...]) -> bytes:
    """The response to who has left out the slash at the end; relative, for a proxy may have put it below a path."""
    query = f"?{head.query}" if head.query else ""
    place = ("Location", f"./{head.path.rpartition('/')[2]}/{query}")
    return _whole(head, 308, b"", (place, ("Cache-Control", "no-store"), *security))
