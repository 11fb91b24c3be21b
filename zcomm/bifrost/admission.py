"""Admission: host, origin, then token, in that order, before any frame is read (docs/protocol.rst, "Handshake")."""

from __future__ import annotations

from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.auth.credentials import BearerToken
from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.ratelimit import AttemptWindow
from zcomm.errors import HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.origin import OriginPolicy, is_loopback
from zcomm.wire.closecodes import CloseCode

__all__ = ["ANONYMOUS", "INVALID_ORIGIN", "Admission"]

#: Why a page that is not allowed, or no longer, is hung up on.
INVALID_ORIGIN = "Invalid origin"

#: Everybody, when authentication is off.
ANONYMOUS = Identity(name="anonymous", role="guest")


class Admission:
    """Decides about one opening handshake at a time.

    :param origins: which pages and host names are ours, until :meth:`replace_origins`.
    :param checker: a ``twisted.cred`` checker for bearer tokens whose avatar id is an
        :class:`~zcomm.interfaces.Identity`; ``None`` when authentication is off.
    :param failures: failed tokens by peer.
    """

    _log = Logger()

    def __init__(self, origins: OriginPolicy, checker: ICredentialsChecker | None, failures: AttemptWindow):
        self._origins = origins
        self.checker = checker
        self._failures = failures

    def admit(self, upgrade: Upgrade, peer: str, local_address: str) -> Deferred[Identity]:
        """Fires with the client's identity, or fails with :class:`~zcomm.errors.HandshakeRefused`.

        :param peer: the address the connection came from.
        :param local_address: the address it came in on.
        """
        try:
            self._check_page(upgrade, peer, local_address)
            token = self._token(upgrade, peer)
        except HandshakeRefused as refused:
            return fail(refused)
        if token is None or self.checker is None:
            return succeed(ANONYMOUS)
        try:
            answer = self.checker.requestAvatarId(BearerToken(token))
        except Exception:
            answer = fail()
        decided = answer.addErrback(self._unproven, peer)
        if not answer.called:
            # The list of origins may be another one by then.
            decided = decided.addCallback(self._of_an_allowed_page, upgrade, peer, local_address)
        return decided

    def replace_origins(self, origins: OriginPolicy) -> None:
        """Decide by ``origins`` from now on, about handshakes under way too. Connections that are open stay so."""
        self._origins = origins

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether ``Host: host`` is a name of this server, by the list as it is now."""
        return self._origins.knows_host(host, local_address)

    def allows_page(self, origin: str | None, host: str, peer: str, local_address: str) -> bool:
        """Whether a page of ``origin``, or a program that names none, may talk to us under ``host``."""
        if not self._origins.knows_host(host, local_address):
            return False
        loopback = is_loopback(peer)
        if origin is None:
            # No browser: a token decides. Where there is none to ask for, only programs on this machine.
            return self.checker is not None or (loopback and not self._origins.has_list)
        return self._origins.allows(origin, host, loopback, local_address)

    def _check_page(self, upgrade: Upgrade, peer: str, local_address: str) -> None:
        if not self.allows_page(upgrade.origin, upgrade.host, peer, local_address):
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, INVALID_ORIGIN)

    def _of_an_allowed_page(self, identity: Any, upgrade: Upgrade, peer: str, local_address: str) -> Any:
        self._check_page(upgrade, peer, local_address)
        return identity

    def _token(self, upgrade: Upgrade, peer: str) -> str | None:
        if self.checker is None:
            return None
        if self._failures.exhausted(peer):
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, "Too many failed attempts")
        if not upgrade.tokens:
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, "Authentication required")
        if len(upgrade.tokens) > 1:
            # Two different tokens: whoever put the second one there hopes we read the other.
            self._failures.failed(peer)
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, "Invalid token")
        return upgrade.tokens[0]

    def _unproven(self, failure: Failure, peer: str) -> Any:
        if failure.check(UnauthorizedLogin):
            self._failures.failed(peer)
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, "Invalid token")
        if not failure.check(CancelledError):
            self._log.failure("the token of {peer} could not be checked", failure, peer=peer)
        raise HandshakeRefused(CloseCode.INTERNAL_ERROR, "Authentication error")
