"""The users that a host knows by itself: its ``checker`` or its ``auth.validate``, for ``twisted.cred``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, fail
from zope.interface import implementer

from zcomm.auth.credentials import IBearerToken
from zcomm.auth.recheck import RecheckingChecker
from zcomm.errors import CommandError, HandshakeRefused
from zcomm.interfaces import Identity
from zcomm.runtime.workers import Workers

__all__ = ["HostUsers", "checker_of", "identity_of"]

#: Of users whose host names no role.
DEFAULT_ROLE = "user"


def checker_of(host: Any, workers: Callable[[], Workers], seconds: Callable[[], float]) -> Any:
    """The checker of a host that has users of its own; ``None`` for one that has not.

    :param workers: makes the threads in which a host that blocks is asked.
    :param seconds: the clock by which it is asked again while its users are connected.
    """
    checker = getattr(host, "checker", None)
    validate = getattr(getattr(host, "auth", None), "validate", None)
    if checker is None and callable(validate):
        checker = HostUsers(validate, workers())
    if checker is None or hasattr(checker, "still_valid"):
        return checker
    return RecheckingChecker(checker, seconds)


@implementer(ICredentialsChecker)
class HostUsers:
    """Asks the host whose token it is, in a worker thread, for a host blocks.

    :param validate: takes the token; returns the user as a mapping, or ``None`` for nobody's
        (:meth:`zcomm.interfaces.IHostUsers.validate`).
    """

    credentialInterfaces = (IBearerToken,)

    def __init__(self, validate: Callable[[str], Any], workers: Workers):
        self._validate = validate
        self._workers = workers

    # Twisted's own avatar ids are bytes.
    def requestAvatarId(self, credentials: IBearerToken) -> Deferred[Identity]:  # type: ignore[override]
        """A Deferred of the :class:`~zcomm.interfaces.Identity`; ``UnauthorizedLogin`` for nobody's token."""
        # How long one may be is the host's affair; the head of a handshake has room for 16 KiB.
        if not credentials.token:
            return fail(UnauthorizedLogin())
        # By address: however often one knocks, others find a thread.
        address = getattr(credentials, "address", "")
        return self._workers.run(address, self._ask, credentials.token).addCallback(identity_of)

    def _ask(self, token: str) -> Any:
        try:
            return self._validate(token)
        except (CancelledError, CommandError, HandshakeRefused) as error:
            # Of ours, they would say that the host was not asked.
            raise RuntimeError(f"auth.validate raised {type(error).__name__}") from error


def identity_of(user: Any) -> Identity:
    """The identity of a host's user: ``{"username": …, "role": …, "id": …}``, of which only the name is needed.

    :raises UnauthorizedLogin: for ``None``, ``False`` or an empty mapping.
    :raises TypeError: for what is no user.
    """
    if user is None or user is False or user == {}:
        raise UnauthorizedLogin
    if not isinstance(user, Mapping):
        raise TypeError(f"auth.validate returned a {type(user).__name__}; it returns a dict, or None for nobody")
    name, role = user.get("username") or user.get("name"), user.get("role") or DEFAULT_ROLE
    if not isinstance(name, str) or not isinstance(role, str):
        raise TypeError("auth.validate returned a user without a username, or with a role that is no string")
    try:
        (name + role).encode()
    except UnicodeEncodeError:
        # Nobody could be told of it.
        raise TypeError("auth.validate returned a name or role with half a character, which has no UTF-8") from None
    return Identity(name, role)
