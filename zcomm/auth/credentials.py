"""Bearer tokens as credentials: the operator's own credential file, the users' tokens, and the checker of both.

The checker is one of :mod:`twisted.cred`: any other that takes :class:`IBearerToken` and answers with an
:class:`~zcomm.interfaces.Identity` can stand in its place.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import ICredentials
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, fail, succeed
from twisted.logger import Logger
from zope.interface import Attribute, implementer

from zcomm.auth.private_files import FileSignature, file_signature, locked, read_private, write_private
from zcomm.auth.tokens import Token, TokenStore, is_made_here, new_token, wall_clock
from zcomm.errors import CredentialsError
from zcomm.interfaces import Identity
from zcomm.runtime.files import user_name

__all__ = [
    "MAX_TOKEN",
    "BearerToken",
    "IBearerToken",
    "OperatorCredentials",
    "TokenChecker",
    "fingerprint",
]

#: Bytes of the longest token that is looked up.
MAX_TOKEN = 512


def fingerprint(token: str) -> str:
    """The first four hexadecimal digits of the token's SHA-256: all of a token that a log may show."""
    return sha256(token.encode("utf-8", "surrogatepass")).hexdigest()[:4]


class IBearerToken(ICredentials):
    """Credentials that consist of a token alone; presenting it is the proof."""

    token = Attribute("The token as it was sent, a str.")


@implementer(IBearerToken)
@dataclass(frozen=True, slots=True)
class BearerToken:
    """The token of an opening handshake.

    :ivar address: the address that sent it, as far as limits count it; empty where a token is checked again.
    """

    token: str = field(repr=False)
    address: str = ""


class OperatorCredentials:
    """zAuth's credential file, ``~/.zolo/credentials``: the operator's own token, in clear.

    It is JSON: ``{"username", "role", "api_key", …}``; keys that zComm does not know are kept.

    :ivar path: the file.
    :ivar username: the operator's name.
    :ivar role: the operator's role.
    :ivar token: the token itself.
    """

    def __init__(self, path: Path, content: dict[str, Any], signature: FileSignature | None):
        self.path = path
        self._use(content, signature)

    def __repr__(self) -> str:
        return f"<OperatorCredentials of {self.username!r} in {self.path}>"

    @classmethod
    def load(cls, path: Path | str) -> OperatorCredentials:
        """Read the file.

        :raises CredentialsError: when it is missing, cannot be trusted or holds no token.
        """
        path = Path(path)
        found = read_private(path)
        if found is None:
            raise CredentialsError(str(path), "does not exist", "zcomm token rotate")
        return cls(path, _with_token(path, _content(path, found[0])), found[1])

    @classmethod
    def load_or_create(cls, path: Path | str, role: str = "admin") -> OperatorCredentials:
        """Read the file, and put a fresh token in it if it has none.

        :param role: the operator's, where the file does not say.
        :raises CredentialsError: when it cannot be trusted or written.
        """
        path = Path(path)
        with locked(path):
            found = read_private(path)
            content = _content(path, found[0]) if found else {}
            if found is None or not content.get("api_key"):
                return cls._written(path, content, role)
            return cls(path, _with_token(path, content), found[1])

    @classmethod
    def rotate(cls, path: Path | str) -> OperatorCredentials:
        """Put a fresh token in the file, whatever it held; the old one is refused from then on.

        :raises CredentialsError: when it cannot be trusted or written.
        """
        path = Path(path)
        with locked(path):
            found = read_private(path)
            return cls._written(path, _content(path, found[0]) if found else {}, "admin")

    @classmethod
    def _written(cls, path: Path, content: dict[str, Any], role: str) -> OperatorCredentials:
        """Write ``content`` with a fresh token; called with the lock held."""
        content["username"] = content.get("username") or user_name(os.geteuid())
        content["role"] = content.get("role") or role
        content["api_key"], _ = new_token("operator")
        write_private(path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
        return cls(path, content, file_signature(path))

    def reload(self) -> bool:
        """Read the file if it changed since. A file that is gone ends the operator's token.

        :return: whether it had changed.
        :raises CredentialsError: when it cannot be trusted or holds no token. What was read before still
            stands, and the next call tries again.
        """
        if file_signature(self.path) == self._signature:
            return False
        found = read_private(self.path)
        if found is None:
            self._use({"username": self.username, "role": self.role, "api_key": ""}, None)
        else:
            self._use(_with_token(self.path, _content(self.path, found[0])), found[1])
        return True

    def _use(self, content: dict[str, Any], signature: FileSignature | None) -> None:
        self.username: str = content.get("username") or user_name(os.geteuid())
        self.role: str = content.get("role") or "admin"
        self.token: str = content["api_key"]
        self._signature = signature
        self.digest = sha256(self.token.encode()).digest()
        # The id changes with the token, so that a rotated one ends its connections.
        self.identity = Identity(self.username, self.role, f"operator-{self.digest.hex()[:16]}")


def _content(path: Path, text: bytes) -> dict[str, Any]:
    """The credential file as an object, its token unseen."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    quoted = shlex.quote(str(path))
    if not isinstance(content, dict):
        raise CredentialsError(str(path), "is not a JSON object", f"mv {quoted} {quoted}.old")
    for key in ("username", "role"):
        if not isinstance(content.get(key, ""), str | None):
            raise CredentialsError(str(path), f"its {key} is not text", f"mv {quoted} {quoted}.old")
    return content


def _with_token(path: Path, content: dict[str, Any]) -> dict[str, Any]:
    """``content``, which holds a usable token."""
    token = content.get("api_key")
    if not token:
        raise CredentialsError(str(path), "holds no api_key", "zcomm token rotate")
    # A short one could be guessed, a longer one could never log in.
    if not isinstance(token, str) or not token.isprintable() or not 8 <= len(token.encode()) <= MAX_TOKEN:
        raise CredentialsError(
            str(path), f"its api_key is not 8 to {MAX_TOKEN} printable characters", "zcomm token rotate"
        )
    return content


@implementer(ICredentialsChecker)
class TokenChecker:
    """Proves bearer tokens against the operator's file and the users' tokens.

    Both files are looked at before each login, so that what was revoked is refused at once.

    :param operator: the operator's credentials, or ``None``.
    :param store: the users' tokens, or ``None``.
    :param now: the wall clock, by which tokens expire.
    :param monotonic: seconds, for how often :meth:`still_valid` looks at the files.
    """

    credentialInterfaces = (IBearerToken,)

    #: Seconds that :meth:`still_valid` may go by what it read last: it is asked for each of many clients.
    RECHECK = 1.0

    _log = Logger()
    #: Compared with where there is no such token, so that the answer takes as long.
    _NOBODY = bytes(32)

    def __init__(
        self,
        operator: OperatorCredentials | None,
        store: TokenStore | None,
        now: Callable[[], datetime] = wall_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ):
        self.operator = operator
        self.store = store
        self._now = now
        self._monotonic = monotonic
        self._checked = float("-inf")
        self._complaint = ""

    # Twisted's own avatar ids are bytes.
    def requestAvatarId(self, credentials: IBearerToken) -> Deferred[Identity]:  # type: ignore[override]
        """A Deferred of the :class:`~zcomm.interfaces.Identity` that the token proves.

        It fails with :exc:`twisted.cred.error.UnauthorizedLogin` when it proves none, and with
        :class:`~zcomm.errors.CredentialsError` when that cannot be found out.
        """
        token = credentials.token
        # Before anything is read or hashed: a token of ours is 58 bytes.
        if not token or len(token) > MAX_TOKEN:
            return fail(UnauthorizedLogin())
        try:
            raw = token.encode("utf-8")
        except UnicodeEncodeError:
            return fail(UnauthorizedLogin())
        if len(raw) > MAX_TOKEN:
            return fail(UnauthorizedLogin())
        try:
            self.refresh()
        except CredentialsError:
            return fail()
        identity = self._identify(token, sha256(raw).digest())
        return fail(UnauthorizedLogin()) if identity is None else succeed(identity)

    def is_beyond_guessing(self, token: str) -> bool:
        """Whether nobody who tries ``token`` could have guessed a right one: what is known has 256 random bits.

        An operator's token that zAuth made may be short; then only tokens of the form of zComm's own are beyond it.
        """
        operator = self.operator
        return operator is None or not operator.token or is_made_here(operator.token) or is_made_here(token)

    def _identify(self, token: str, digest: bytes) -> Identity | None:
        operator = self.operator
        if operator is not None and operator.token and compare_digest(digest, operator.digest):
            return operator.identity
        record = None
        if self.store is not None and token.startswith("zc_"):
            record = self.store.get(token[3:].partition("_")[0])
        # Digests are compared, and a digest cannot be chosen byte by byte.
        same = compare_digest(digest, bytes.fromhex(record.sha256) if record else self._NOBODY)
        if record is None or not same or record.expired(self._now()):
            return None
        return _identity(record)

    def refresh(self) -> bool:
        """Read what changed on disk.

        :return: whether anything had changed.
        :raises CredentialsError: when a file cannot be trusted or read.
        """
        changed = False
        for source in (self.operator, self.store):
            if source is not None and source.reload():
                changed = True
        self._checked = self._monotonic()
        return changed

    def still_valid(self, identity: Identity) -> bool:
        """Whether the token that proved ``identity`` would prove it again: not revoked, replaced or expired.

        While a file cannot be read nobody new is let in, and those who are in may stay.
        """
        if self._monotonic() - self._checked >= self.RECHECK:
            self._refresh_quietly()
        operator = self.operator
        if identity.token_id.startswith("operator-"):
            return operator is not None and bool(operator.token) and identity == operator.identity
        record = self.store.get(identity.token_id) if self.store is not None else None
        return record is not None and not record.expired(self._now()) and identity == _identity(record)

    def _refresh_quietly(self) -> None:
        try:
            self.refresh()
        except CredentialsError as error:
            self._checked = self._monotonic()
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._log.error("tokens cannot be checked, nobody new is let in: {reason}", reason=str(error))
        else:
            self._complaint = ""


def _identity(record: Token) -> Identity:
    return Identity(record.user, record.role, record.id)
