"""Admission: host, origin, then token, in that order, before any frame is read (docs/protocol.rst, "Handshake")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred, succeed
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.auth.codes import CodeInUse
from zcomm.auth.credentials import BearerToken
from zcomm.bifrost.handshake import Upgrade
from zcomm.bifrost.ratelimit import AttemptWindow, Logins, too_many_failures
from zcomm.errors import CredentialsError, HandshakeRefused
from zcomm.interfaces import ANONYMOUS, Identity
from zcomm.origin import OriginPolicy
from zcomm.peers import block_of
from zcomm.runtime.deferreds import awaited
from zcomm.runtime.logthrottle import Throttle
from zcomm.wire.closecodes import CloseCode

__all__ = ["INVALID_ORIGIN", "Admission"]

#: Why a page that is not allowed, or no longer, is hung up on.
INVALID_ORIGIN = "Invalid origin"


class Admission:
    """Decides about one opening handshake at a time.

    :param origins: which pages and host names are ours, until :meth:`replace_origins`.
    :param checker: a ``twisted.cred`` checker for bearer tokens whose avatar id is an
        :class:`~zcomm.interfaces.Identity`; ``None`` when authentication is off. One with ``is_beyond_guessing`` says
        of which tokens that is so: those are looked up at once, others in their turn. One with ``would_admit`` says of
        an identity whether its token proves anybody now, be it with another role; one with ``give_back`` is told of
        identities that have left.
    :param failures: failed tokens by address.
    :param clock: an ``IReactorTime``.
    :ivar would_admit: whether the token of an identity would be let in again, as far as the checker knows.
    """

    _log = Logger()

    def __init__(
        self,
        origins: OriginPolicy,
        checker: ICredentialsChecker | None,
        failures: AttemptWindow,
        clock: Any,
    ):
        self._origins = origins
        self.checker = checker
        self._failures = failures
        self._complaints = Throttle(clock.seconds)
        self._logins = Logins(failures, clock)
        self._give_back: Callable[[Identity], None] = getattr(checker, "give_back", lambda identity: None)
        # Who does not know sends the client to find out: a token that proves nobody ends the next handshake for good.
        self.would_admit: Callable[[Identity], bool] = getattr(checker, "would_admit", lambda identity: True)
        self._is_beyond_guessing: Callable[[str], bool] = getattr(checker, "is_beyond_guessing", lambda token: False)

    def admit(
        self,
        upgrade: Upgrade,
        peer: str,
        is_local: bool,
        local_address: str,
        waits: Callable[[], None] = lambda: None,
    ) -> Deferred[Identity]:
        """Fires with the client's identity, or fails with :class:`~zcomm.errors.HandshakeRefused`.

        :param peer: the address the client has.
        :param is_local: whether it is on this machine, with no proxy between.
        :param local_address: the address it came in on.
        :param waits: called when its token has to wait for those of its neighbours.
        """
        try:
            self._check_page(upgrade, is_local, local_address)
        except HandshakeRefused as refused:
            return fail(refused)
        if self.checker is None:
            return succeed(ANONYMOUS)
        decided = self.identify(upgrade.tokens, peer, waits)
        if not decided.called:
            # The list of origins may be another one by then.
            decided = decided.addCallback(self._of_an_allowed_page, upgrade, is_local, local_address)
        return decided

    def identify(
        self, tokens: tuple[str, ...], peer: str, waits: Callable[[], None] = lambda: None
    ) -> Deferred[Identity]:
        """Find out whose ``tokens`` are, which are one in all; every place that takes a token asks here.

        :param peer: the address of the client, whose failures are counted.
        :param waits: called when the token has to wait for those of its neighbours.
        :returns: a Deferred of the identity. It fails with :class:`~zcomm.errors.HandshakeRefused`: close code 1008 for
            no token and a wrong one, 1013 where the address has failed too often, 1011 where nobody can tell.
        """
        if not tokens:
            return fail(HandshakeRefused(CloseCode.POLICY_VIOLATION, "Authentication required"))
        address = block_of(peer)
        if len(tokens) > 1:
            # Two different tokens: whoever put the second one there hopes we read the other.
            return fail(self._failed(address))
        (token,) = tokens
        if self._is_beyond_guessing(token):
            return self._look_up(token, address).addErrback(self._not_found, address, peer)
        answer = self._logins.check(address, token, lambda: self._look_up(token, address), waits)
        return answer.addErrback(self._unproven, peer)

    def give_back(self, identity: Identity) -> None:
        """Forget an identity that was found out, and is not let in or has left: what proved it once is good again."""
        self._give_back(identity)

    def _look_up(self, token: str, address: str) -> Deferred[Identity]:
        checker: Any = self.checker
        return maybeDeferred(lambda: awaited(checker.requestAvatarId(BearerToken(token, address))))

    def replace_origins(self, origins: OriginPolicy) -> None:
        """Decide by ``origins`` from now on, about handshakes under way too. Connections that are open stay so."""
        self._origins = origins

    def knows_host(self, host: str, local_address: str) -> bool:
        """Whether ``Host: host`` is a name of this server, by the list as it is now."""
        return self._origins.knows_host(host, local_address)

    def allows_page(self, origin: str | None, host: str, is_local: bool, local_address: str) -> bool:
        """Whether a page of ``origin``, or a program that names none, may talk to us under ``host``.

        :param is_local: whether it is on this machine, with no proxy between.
        """
        if not self._origins.knows_host(host, local_address):
            return False
        if origin is None:
            # No browser: a token decides. Where there is none to ask for, only programs on this machine.
            return self.checker is not None or (is_local and not self._origins.has_list)
        return self._origins.allows(origin, host, is_local, local_address)

    def _check_page(self, upgrade: Upgrade, is_local: bool, local_address: str) -> None:
        if not self.allows_page(upgrade.origin, upgrade.host, is_local, local_address):
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, INVALID_ORIGIN)

    def _of_an_allowed_page(self, identity: Any, upgrade: Upgrade, is_local: bool, local_address: str) -> Any:
        try:
            self._check_page(upgrade, is_local, local_address)
        except HandshakeRefused:
            self.give_back(identity)
            raise
        return identity

    def _failed(self, address: str) -> HandshakeRefused:
        """Count a failure that was no guess; the refusal of whoever made it."""
        if self._failures.exhausted(address):
            return too_many_failures()
        self._failures.failed(address)
        return HandshakeRefused(CloseCode.POLICY_VIOLATION, "Invalid token")

    def _not_found(self, failure: Failure, address: str, peer: str) -> Any:
        if failure.check(UnauthorizedLogin):
            raise self._failed(address)
        return self._unproven(failure, peer)

    def _unproven(self, failure: Failure, peer: str) -> Any:
        if failure.check(HandshakeRefused):
            return failure
        if failure.check(UnauthorizedLogin):
            raise HandshakeRefused(CloseCode.POLICY_VIOLATION, "Invalid token")
        if failure.check(CodeInUse):
            raise HandshakeRefused(CloseCode.TRY_AGAIN_LATER, "Code in use")
        if failure.check(CredentialsError):
            # It says all there is to say: the file, and the fix.
            self._complaints.log(
                self._log.error,
                str(failure.value),
                "the token of {peer} could not be checked: {reason}",
                peer=peer,
                reason=str(failure.value),
            )
        elif not failure.check(CancelledError):
            self._complaints.log_failure(
                self._log.failure, "the token of {peer} could not be checked", failure, peer=peer
            )
        raise HandshakeRefused(CloseCode.INTERNAL_ERROR, "Authentication error")
