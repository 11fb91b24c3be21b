"""Bearer tokens as credentials: the operator's own, those of users, that of zAuth's login, and the checker of all.

The checker is one of :mod:`twisted.cred`: any other that takes :class:`IBearerToken` and answers with an
:class:`~zcomm.interfaces.Identity` can stand in its place.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
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
from twisted.python.failure import Failure
from zope.interface import Attribute, implementer

from zcomm.auth.codes import CODE, Code, HeldCode, looks_like_code
from zcomm.auth.private_files import Directory, FileSignature, file_signature, locked, read_private, write_private
from zcomm.auth.tokens import Issued, Token, TokenStore, is_made_here, new_token, wall_clock
from zcomm.errors import CredentialsError, PermissionDenied
from zcomm.interfaces import Identity
from zcomm.runtime.files import user_name

__all__ = [
    "MAX_TOKEN",
    "BearerToken",
    "IBearerToken",
    "OperatorCredentials",
    "TokenChecker",
    "ZAuthCredentials",
    "fingerprint",
]

#: What is told to who has stayed with a code until its end.
_ENDED = "The code has ended; open another link"
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


class _Login:
    """Somebody and the one token that is theirs, in clear in a file."""

    def __init__(self, source: str, name: str, role: str, token: str):
        self.name = name
        self.role = role
        self.token = token
        self.digest = sha256(token.encode()).digest()
        # The id changes with the token, so that a rotated one ends its connections.
        self.identity = Identity(name, role, f"{source}-{self.digest.hex()[:16]}")

    def proves(self, digest: bytes) -> bool:
        """Whether the token is the one with that digest. Digests are compared, which cannot be chosen byte by byte."""
        return bool(self.token) and compare_digest(digest, self.digest)


class OperatorCredentials:
    """The operator's own token, in clear: ``operator.json`` in the data directory.

    It is JSON: ``{"name", "role", "token"}``; keys that zComm does not know are kept.

    :ivar path: the file.
    :ivar username: the operator's name.
    :ivar role: the operator's role.
    :ivar token: the token itself.
    """

    _KEYS = ("name", "role", "token")

    def __init__(self, path: Path, content: dict[str, Any], signature: FileSignature | None):
        self.path = path
        self._directory = Directory(path)
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
            raise CredentialsError(str(path), "does not exist", _rotate(path))
        return cls(path, _with_token(path, _content(path, found[0], cls._KEYS), "token", _rotate(path)), found[1])

    @classmethod
    def load_or_create(cls, path: Path | str, role: str = "admin") -> OperatorCredentials:
        """Read the file, and put a fresh token in it if it has none.

        :param role: the operator's, where the file does not say.
        :raises CredentialsError: when it cannot be trusted or written.
        """
        path = Path(path)
        with locked(path):
            found = read_private(path)
            content = _content(path, found[0], cls._KEYS) if found else {}
            if found is None or not content.get("token"):
                return cls._written(path, content, role)
            return cls(path, _with_token(path, content, "token", _rotate(path)), found[1])

    @classmethod
    def rotate(cls, path: Path | str) -> OperatorCredentials:
        """Put a fresh token in the file, whatever it held; the old one is refused from then on.

        :raises CredentialsError: when it cannot be trusted or written.
        """
        path = Path(path)
        with locked(path):
            found = read_private(path)
            return cls._written(path, _content(path, found[0], cls._KEYS) if found else {}, "admin")

    @classmethod
    def _written(cls, path: Path, content: dict[str, Any], role: str) -> OperatorCredentials:
        """Write ``content`` with a fresh token; called with the lock held."""
        content["name"] = content.get("name") or user_name(os.geteuid())
        content["role"] = content.get("role") or role
        content["token"], _ = new_token("operator")
        write_private(path, json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")
        return cls(path, content, file_signature(path))

    def reload(self) -> bool:
        """Read the file if it changed since. A file that is gone from its directory ends the operator's token.

        :return: whether it had changed.
        :raises CredentialsError: when it cannot be trusted or holds no token. What was read before still
            stands, and the next call tries again.
        """
        if file_signature(self.path) == self._signature:
            return False
        found = read_private(self.path)
        if found is None:
            self._directory.check()
            self._use({"name": self.username, "role": self.role, "token": ""}, None)
        else:
            content = _content(self.path, found[0], self._KEYS)
            self._use(_with_token(self.path, content, "token", _rotate(self.path)), found[1])
        return True

    def _use(self, content: dict[str, Any], signature: FileSignature | None) -> None:
        self.username: str = content.get("name") or user_name(os.geteuid())
        self.role: str = content.get("role") or "admin"
        self.token: str = content["token"]
        self._signature = signature
        self.login = _Login("operator", self.username, self.role, self.token)
        self.identity = self.login.identity


class ZAuthCredentials:
    """zAuth's login file, ``~/.zolo/credentials``: ``{"username", "role", "api_key", …}``.

    Whoever logged in there is let in here, for as long as the file is there and nobody else can read it. It is zAuth's:
    zComm does not make or change it, and what is wrong with it ends nothing but this.

    :ivar path: the file.
    :ivar login: who is logged in; ``None`` for nobody.
    """

    _log = Logger()

    def __init__(self, path: Path):
        self.path = path
        self.login: _Login | None = None
        self._signature: FileSignature | None = None
        self._complaint = ""

    def reload(self) -> bool:
        """Read the file if it changed since; say once in the log what is wrong with it.

        :return: whether somebody else is logged in than before.
        """
        before, complaint = self.login, ""
        try:
            if not self._read():
                return False
        except CredentialsError as error:
            self.login, complaint = None, str(error)
        if complaint and complaint != self._complaint:
            self._log.warn("the token of zAuth is not accepted: {reason}", reason=complaint)
        self._complaint = complaint
        return (before and before.identity) != (self.login and self.login.identity)

    def _read(self) -> bool:
        """Read the file, unless it is as it was.

        :raises CredentialsError: for what is wrong with it.
        """
        known, self._signature = self._signature, None
        signature = file_signature(self.path)
        self._signature = signature
        if signature is not None and signature == known:
            return False
        self.login = None
        found = read_private(self.path)
        if found is None:
            return True
        content = _content(self.path, found[0], ("username", "role", "api_key"))
        # Who has logged out of zAuth has a file and no key.
        if content.get("api_key"):
            _with_token(self.path, content, "api_key", "log in with zAuth again")
            name = content.get("username") or user_name(os.geteuid())
            self.login = _Login("zauth", name, content.get("role") or "admin", content["api_key"])
        return True


def _content(path: Path, text: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """A file of credentials as an object, its token unseen.

    :param keys: what it calls name, role and token.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        content = None
    quoted = shlex.quote(str(path))
    if not isinstance(content, dict):
        raise CredentialsError(str(path), "is not a JSON object", f"mv {quoted} {quoted}.old")
    for key in keys[:2]:
        if not isinstance(content.get(key, ""), str | None) or not _is_text(content.get(key) or ""):
            raise CredentialsError(str(path), f"its {key} is not text", f"mv {quoted} {quoted}.old")
    return content


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _rotate(path: Path) -> str:
    """The command that puts a token in the operator's file."""
    return f"zcomm token rotate --data-dir {shlex.quote(str(path.parent))}"


def _with_token(path: Path, content: dict[str, Any], key: str, fix: str) -> dict[str, Any]:
    """``content``, which holds a usable token under ``key``."""
    token = content.get(key)
    if not token:
        raise CredentialsError(str(path), f"holds no {key}", fix)
    # A short one could be guessed, a longer one could never log in.
    if not isinstance(token, str) or not token.isprintable() or not 8 <= len(token.encode()) <= MAX_TOKEN:
        raise CredentialsError(str(path), f"its {key} is not 8 to {MAX_TOKEN} printable characters", fix)
    return content


def _reloaded(source: OperatorCredentials | TokenStore | None) -> tuple[bool, CredentialsError | None]:
    """Whether a file had changed since it was read, and what is wrong with it now."""
    try:
        return source is not None and source.reload(), None
    except CredentialsError as error:
        return False, error


@dataclass(slots=True, eq=False)
class _Entry:
    """The code by which somebody is in.

    :ivar session: the id of the session that it became.
    """

    held: HeldCode
    is_taken: bool = False
    session: str | None = None


@implementer(ICredentialsChecker)
class TokenChecker:
    """Proves bearer tokens against the operator's file, the users' tokens and zAuth's login file.

    The files are looked at before each login, so that what was revoked is refused at once. One that cannot be trusted
    or read lets in nobody new by what it holds, and keeps out nobody whose token is in another.

    :param operator: the operator's credentials, or ``None``.
    :param store: the users' tokens, or ``None``.
    :param now: the wall clock, by which tokens expire.
    :param monotonic: seconds, for how often :meth:`still_valid` looks at the files.
    :param zauth: zAuth's login file, or ``None``.
    :param sign_in: holds a one-time code (:func:`zcomm.auth.sessions.redeem`); ``None`` where codes are no tokens.
    :param open_session: makes the session that the holder of a code gets (:func:`zcomm.auth.sessions.open_session`).
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
        *,
        zauth: ZAuthCredentials | None = None,
        sign_in: Callable[[str], Deferred[HeldCode]] | None = None,
        open_session: Callable[[Code], Deferred[Issued]] | None = None,
    ):
        self.operator = operator
        self.store = store
        self.zauth = zauth
        self._sign_in = sign_in
        self._open_session = open_session
        #: The codes by which somebody is in, by the ids of their identities.
        self._codes: dict[str, _Entry] = {}
        self._now = now
        self._monotonic = monotonic
        self._checked = float("-inf")
        self._complaint = ""
        #: What is wrong now with the operator's file, and with that of the users' tokens.
        self._operator_fault: CredentialsError | None = None
        self._store_fault: CredentialsError | None = None

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
        self._refresh_quietly()
        if self._sign_in is not None and looks_like_code(token):
            # A code is the operator's.
            if self._operator_fault is not None:
                return fail(self._operator_fault)
            return self._holding(self._sign_in(token[len(CODE) :]))
        identity = self._identify(token, sha256(raw).digest())
        if identity is not None:
            return succeed(identity)
        # It may be in a file that cannot be read.
        return fail(self._operator_fault or self._store_fault or UnauthorizedLogin())

    def is_beyond_guessing(self, token: str) -> bool:
        """Whether nobody who tries ``token`` could have guessed a right one: what is known has 128 random bits or more.

        A token that zAuth made, or an operator chose, may be short; then only what looks like zComm's own is beyond it.
        """
        known = [login.token for login in self._logins() if login.token]
        return all(map(is_made_here, known)) or is_made_here(token) or looks_like_code(token)

    def _holding(self, holding: Deferred[HeldCode]) -> Deferred[Identity]:
        """A Deferred of the identity that has the code; whoever does not wait for it any more gives it back."""
        decided: Deferred[Identity] = Deferred()

        def held(code: HeldCode) -> None:
            operator = self._operator()
            if decided.called or operator is None:
                code.give_back()
                if not decided.called:
                    decided.errback(UnauthorizedLogin())
                return
            identity = replace(operator.identity, token_id=code.code.id)
            self._codes[identity.token_id] = _Entry(code)
            decided.callback(identity)

        holding.addCallbacks(held, lambda failure: None if decided.called else decided.errback(failure))
        return decided

    def take_session(self, identity: Identity) -> Deferred[str] | None:
        """Open the session of ``identity``, which has come with a code, the first time that it is asked for: a Deferred
        of its token. The code is spent then. ``None`` where there is none to open.

        It fails with :class:`~zcomm.errors.CredentialsError` when the session cannot be kept; the code is not spent. It
        fails with :class:`~zcomm.errors.PermissionDenied` for a code that has ended, whose holder is hung up on.
        """
        code = self._codes.get(identity.token_id)
        if code is None or code.is_taken or self._open_session is None:
            return None
        self._refresh_quietly()
        if self._now_proved_by(identity) is None:
            return fail(PermissionDenied(_ENDED))
        code.is_taken = True

        def opened(issued: Issued) -> str:
            # It may have been given back meanwhile.
            if self._codes.get(identity.token_id) is code:
                code.held.spend()
            code.session = issued.record.id
            # The token is newer than what was read last.
            self._refresh_quietly()
            return issued.token

        def failed(failure: Failure) -> Failure:
            code.is_taken = False
            if failure.check(UnauthorizedLogin):
                raise PermissionDenied(_ENDED)
            return failure

        return self._open_session(code.held.code).addCallback(opened).addErrback(failed)

    def give_back(self, identity: Identity) -> None:
        """Forget ``identity``, which has left or was not let in: a code of its own that is not spent is good again."""
        code = self._codes.pop(identity.token_id, None)
        if code is not None:
            code.held.give_back()

    def _operator(self) -> _Login | None:
        """The operator, as the file has it; ``None`` for nobody."""
        login = None if self.operator is None else self.operator.login
        return login if login is not None and login.token else None

    def _identity_of(self, record: Token) -> Identity | None:
        """The identity that a token proves. A session is the operator's: it has the name and the role of today."""
        if not record.session:
            return Identity(record.user, record.role, record.id)
        operator = self._operator()
        return None if operator is None else replace(operator.identity, token_id=record.id)

    def _logins(self) -> list[_Login]:
        """Those whose tokens stand in files in clear."""
        sources = (self.operator, self.zauth)
        return [source.login for source in sources if source is not None and source.login is not None]

    def _identify(self, token: str, digest: bytes) -> Identity | None:
        """Whom a token proves by the files that can be read."""
        distrusted = None if self._operator_fault is None or self.operator is None else self.operator.login
        for login in self._logins():
            if login is not distrusted and login.proves(digest):
                return login.identity
        record = None
        if self.store is not None and self._store_fault is None and token.startswith("zc_"):
            record = self.store.get(token[3:].partition("_")[0])
        # Digests are compared, and a digest cannot be chosen byte by byte.
        same = compare_digest(digest, bytes.fromhex(record.sha256) if record else self._NOBODY)
        if record is None or not same or record.expired(self._now()):
            return None
        # A session has the name and the role that the operator's file says.
        return None if record.session and self._operator_fault is not None else self._identity_of(record)

    def refresh(self) -> bool:
        """Read what changed on disk.

        :return: whether anything had changed.
        :raises CredentialsError: when a file cannot be trusted or read.
        """
        # One that cannot be read keeps nobody in whose token another one has no more, and nobody out.
        of_operator, self._operator_fault = _reloaded(self.operator)
        of_store, self._store_fault = _reloaded(self.store)
        # What is wrong with that one ends nothing but its own.
        of_zauth = self.zauth is not None and self.zauth.reload()
        fault = self._operator_fault or self._store_fault
        if fault is not None:
            raise fault
        self._checked = self._monotonic()
        return of_operator or of_store or of_zauth

    def still_valid(self, identity: Identity) -> bool:
        """Whether the token that proved ``identity`` would prove it again: not revoked, replaced or expired.

        While a file cannot be read nobody new is let in by it, and those who are in may stay.
        """
        if self._monotonic() - self._checked >= self.RECHECK:
            self._refresh_quietly()
        return identity == self._now_proved_by(identity)

    def would_admit(self, identity: Identity) -> bool:
        """Whether the token that proved ``identity`` proves anybody, with another name or role as well."""
        return self._now_proved_by(identity) is not None

    def _now_proved_by(self, identity: Identity) -> Identity | None:
        """The identity that the token of ``identity`` proves now, by the files as they were read last."""
        number = identity.token_id
        if number.startswith(("operator-", "zauth-")):
            known = (login.identity for login in self._logins() if login.token)
            return next((each for each in known if each.token_id == number), None)
        code = self._codes.get(number)
        if code is not None and code.session is None:
            operator = self._operator()
            now = self._now().timestamp()
            if operator is None or not code.held.code.is_good(operator.identity.token_id, now):
                return None
            return replace(operator.identity, token_id=number)
        record = self.store.get(number if code is None else code.session or "") if self.store is not None else None
        found = None if record is None or record.expired(self._now()) else self._identity_of(record)
        return None if found is None else replace(found, token_id=number)

    def _refresh_quietly(self) -> None:
        try:
            self.refresh()
        except CredentialsError as error:
            self._checked = self._monotonic()
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._log.error("tokens cannot be checked, nobody new is let in by them: {reason}", reason=str(error))
        else:
            self._complaint = ""
