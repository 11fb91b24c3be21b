"""Whether a host's users are still its users, asked again while they are connected."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field, replace
from hashlib import blake2b
from secrets import token_bytes
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from zcomm.auth.credentials import BearerToken, IBearerToken
from zcomm.interfaces import Identity
from zcomm.runtime.deferreds import awaited

__all__ = ["RECHECK", "RecheckingChecker"]

#: Seconds between two questions about one identity. With the second between two looks of the server, and the
#: host's time to answer, a token that is gone ends its connections within a minute.
RECHECK = 58.0
#: How many questions are with the host at the same time, so that those who log in find it free.
AT_ONCE = 2
#: Seconds after which a question that the host does not answer is given up: it keeps no others waiting.
PATIENCE = 10.0


@dataclass(slots=True, eq=False)
class _Session:
    """The state of an identity that has logged in."""

    identity: Identity
    token: str = field(repr=False)
    _: KW_ONLY
    #: When its token was last checked, and when the server last asked whether it holds.
    checked: float
    needed: float
    valid: bool = True
    #: Whether its token was somebody's, with whatever role.
    admitted: bool = True
    queued: bool = False


@implementer(ICredentialsChecker)
class RecheckingChecker:
    """A checker for a server whose clients stay: it asks a checker that only knows logins again and again.

    An identity without a ``token_id`` is given one, so that two tokens of one user are two identities.

    :param checker: a ``twisted.cred`` checker whose avatar ids are :class:`~zcomm.interfaces.Identity`.
    :param seconds: the clock.
    """

    credentialInterfaces = (IBearerToken,)
    _log = Logger()

    def __init__(self, checker: Any, seconds: Callable[[], float]):
        self._checker = checker
        self._seconds = seconds
        # Tokens are told apart by a keyed hash: it may be logged, and nobody can try tokens against it.
        self._key = token_bytes(16)
        self._sessions: dict[Identity, _Session] = {}
        self._due: deque[_Session] = deque()
        #: The questions that are with the host.
        self._asking: dict[_Session, Deferred[Any]] = {}
        self._is_going_on = False
        self._swept = seconds()
        self._complaint = ""

    # Twisted's own avatar ids are bytes.
    def requestAvatarId(self, credentials: Any) -> Deferred[Identity]:  # type: ignore[override]
        """A Deferred of the :class:`~zcomm.interfaces.Identity`, which fails as that of the checker does."""
        return self._identify(credentials).addCallback(self._logged_in, credentials.token)

    def _identify(self, credentials: Any) -> Deferred[Identity]:
        def named(identity: Any) -> Identity:
            if not isinstance(identity, Identity):
                raise TypeError(f"the avatar id of the host's checker is a {type(identity).__name__}, not an Identity")
            if identity.token_id:
                return identity
            token = credentials.token.encode("utf-8", "surrogatepass")
            return replace(identity, token_id=blake2b(token, digest_size=8, key=self._key).hexdigest())

        return maybeDeferred(lambda: awaited(self._checker.requestAvatarId(credentials))).addCallback(named)

    def _logged_in(self, identity: Identity, token: str) -> Identity:
        now = self._seconds()
        self._sweep(now)
        session = self._sessions.get(identity)
        if session is None:
            self._sessions[identity] = _Session(identity, token, checked=now, needed=now)
        else:
            session.token, session.checked, session.needed = token, now, now
            session.valid = session.admitted = True
        return identity

    def _sweep(self, now: float) -> None:
        """Forget those who have left: nobody asked for them any more."""
        if now - self._swept >= RECHECK:
            self._swept = now
            self._sessions = {
                identity: session for identity, session in self._sessions.items() if now - session.needed < 2 * RECHECK
            }

    def still_valid(self, identity: Identity) -> bool:
        """Whether the token that proved ``identity`` was good when last checked; begins a check where it is time.

        While the host cannot say, nobody new is let in, and those who are in may stay.
        """
        session = self._sessions.get(identity)
        if session is None:
            return False
        now = session.needed = self._seconds()
        if now - session.checked >= RECHECK and not session.queued:
            session.queued = True
            self._due.append(session)
        if self._due:
            self._ask()
        return session.valid

    def would_admit(self, identity: Identity) -> bool:
        """Whether the token that proved ``identity`` was anybody's when last checked, with another role as well."""
        session = self._sessions.get(identity)
        return session is not None and session.admitted

    def _ask(self) -> None:
        if self._is_going_on:
            # Whoever began it looks again: a host that answers at once is not asked from within its answer.
            return
        self._is_going_on = True
        try:
            self._go_on(self._seconds())
        finally:
            self._is_going_on = False

    def _go_on(self, now: float) -> None:
        for session, question in list(self._asking.items()):
            if now - session.checked >= PATIENCE:
                question.cancel()
        while self._due and len(self._asking) < AT_ONCE:
            session = self._due.popleft()
            session.checked = now
            question = self._asking[session] = self._identify(BearerToken(session.token))
            question.addBoth(self._answered, session)

    def _answered(self, answer: Identity | Failure, session: _Session) -> None:
        del self._asking[session]
        session.queued = False
        if not isinstance(answer, Failure):
            # Another role is another identity: its client logs in anew, and gets the new rights.
            session.valid, session.admitted = answer == session.identity, True
            self._complaint = ""
        elif answer.check(UnauthorizedLogin):
            session.valid = session.admitted = False
            self._complaint = ""
        elif (reason := answer.getErrorMessage()) != self._complaint:
            self._complaint = reason
            self._log.error("the host cannot say whether its users still are: {reason}", reason=reason)
        self._ask()
