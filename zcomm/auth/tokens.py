"""The tokens of many users: ``tokens.json`` in the data directory.

A token is shown once, when it is made; the file keeps its SHA-256. A token has 256 random bits, so a
plain hash says nothing about it: slow hashes are for passwords, which people choose.
"""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from zcomm.auth.private_files import Directory, FileSignature, file_signature, locked, read_private, write_private
from zcomm.errors import ConfigError, CredentialsError
from zcomm.text import did_you_mean

__all__ = ["Issued", "Token", "TokenStore", "is_made_here", "new_token", "wall_clock"]

_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
_FORMAT = 1
#: How long a file that was there may be gone before its tokens are.
REPLACING = timedelta(seconds=5)
_MADE = re.compile(r"zc_[a-z0-9]+_[A-Za-z0-9_-]{43}\Z")

# The entries of the file. Named here because TokenStore.list hides the type of that name.
Records = list[dict[str, Any]]


def wall_clock() -> datetime:
    """Now, in UTC. A token's expiry is a date, so for once the wall clock decides."""
    return datetime.now(UTC)


def new_token(number: str | None = None) -> tuple[str, str]:
    """A fresh token and its id: ``zc_<id>_<256 random bits>``."""
    number = number or "".join(secrets.choice(_ALPHABET) for _ in range(10))
    return f"zc_{number}_{secrets.token_urlsafe(32)}", number


def is_made_here(token: str) -> bool:
    """Whether ``token`` looks like one of :func:`new_token`, which nobody guesses."""
    return _MADE.match(token) is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """The record of one token, without the token itself.

    :ivar id: names it, in the file, in logs and within the token itself.
    :ivar sha256: of the token, in hexadecimal.
    :ivar expires: from when on it is refused, or ``None``.
    :ivar session: whether somebody got it for a code; it stands for the operator, whoever that is by then.
    """

    id: str
    user: str
    role: str
    sha256: str
    created: datetime
    expires: datetime | None = None
    session: bool = False

    def expired(self, now: datetime) -> bool:
        """Whether it is refused by its date."""
        return self.expires is not None and now >= self.expires


@dataclass(frozen=True, slots=True)
class Issued:
    """A token just made.

    :ivar token: what its user presents; nobody can show it again.
    :ivar record: what is kept of it.
    """

    token: str
    record: Token

    def __repr__(self) -> str:
        return f"Issued(token=…, record={self.record!r})"


class TokenStore:
    """The token file: changed by the ``zcomm token`` command, read by servers.

    Changes are made under a lock to what the file holds at that moment, so that none is lost when two
    programs make them at once. Keys that a later version added are kept.

    :param path: ``tokens.json``; a missing file holds no tokens.
    :param now: the wall clock.
    """

    def __init__(self, path: Path | str, now: Callable[[], datetime] = wall_clock):
        self.path = Path(path)
        self._now = now
        self._signature: FileSignature | None = None
        self._directory = Directory(self.path)
        self._tokens: dict[str, Token] = {}
        #: Since when a file that was there is not.
        self._missing: datetime | None = None

    def get(self, number: str) -> Token | None:
        """The token of that id as of the last :meth:`reload`, expired or not."""
        return self._tokens.get(number)

    def reload(self) -> bool:
        """Read the file if it changed since.

        :return: whether it had changed.
        :raises CredentialsError: when it cannot be trusted or read, or has been gone for less than five seconds, as it
            is while an editor replaces it. What was read before still stands, and the next call tries again.
        """
        if file_signature(self.path) == self._signature:
            return False
        found = read_private(self.path)
        if found is None:
            self._directory.check()
            if self._signature is None:
                return False
            now = self._now()
            self._missing = self._missing or now
            if abs(now - self._missing) < REPLACING:
                raise CredentialsError(str(self.path), "was removed or moved a moment ago")
            self._tokens, self._signature, self._missing = {}, None, None
            return True
        self._missing = None
        self._tokens = {token.id: token for token in self._parsed(self._records(self._document(found[0])))}
        self._signature = found[1]
        return True

    def list(self) -> tuple[Token, ...]:
        """Every token of the file, in the order they were made.

        :raises CredentialsError: as :meth:`reload` does.
        """
        self.reload()
        return tuple(self._tokens.values())

    def add(self, user: str, role: str, ttl: timedelta | None = None) -> Issued:
        """Make a token for ``user``.

        :param role: what the policy file grants rights to.
        :param ttl: how long it is good for; for ever when not given.
        :raises ConfigError: for a name that is empty, long or not printable, and for a lifetime that has
            ended already.
        :raises CredentialsError: when the file cannot be trusted or written.
        """
        for what, name in (("user", user), ("role", role)):
            if not isinstance(name, str) or not name.strip() or len(name) > 128 or not name.isprintable():
                raise ConfigError(what, f"{name!r:.60} must be 1 to 128 printable characters")
        if ttl is not None and ttl <= timedelta(0):
            raise ConfigError("ttl", "must be longer than nothing")
        issued = self._issue(user, role, ttl)
        self._change(lambda records: [*records, _as_json(issued.record)])
        return issued

    def add_session(self, user: str, role: str, ttl: timedelta) -> Issued:
        """Make a token that somebody got for a code; those of sessions that are over are forgotten.

        :raises CredentialsError: when the file cannot be trusted or written.
        """
        issued = self._issue(user, role, ttl)
        issued = replace(issued, record=replace(issued.record, session=True))

        def with_session(records: Records) -> Records:
            now = self._now()
            kept = [
                record
                for record, token in zip(records, self._parsed(records), strict=True)
                if not (token.session and token.expired(now))
            ]
            return [*kept, _as_json(issued.record)]

        self._change(with_session)
        return issued

    def revoke(self, name: str) -> tuple[Token, ...]:
        """Forget the token with the id ``name``, or all tokens of the user ``name``.

        :return: what was forgotten.
        :raises ConfigError: when there is none.
        :raises CredentialsError: when the file cannot be trusted or written.
        """
        gone: list[Token] = []

        def without(records: Records) -> Records:
            gone.extend(self._named(name, records))
            numbers = {token.id for token in gone}
            return [record for record in records if record["id"] not in numbers]

        self._change(without)
        return tuple(gone)

    def rotate(self, name: str, ttl: timedelta | None = None) -> tuple[Issued, ...]:
        """Replace the token with the id ``name``, or each token of the user ``name``, by a fresh one.

        The new ones have the same user and role, and are good for ``ttl`` or as long as the old ones were
        when they were made.

        :raises ConfigError: when there is none.
        :raises CredentialsError: when the file cannot be trusted or written.
        """
        issued: list[Issued] = []

        def renewed(records: Records) -> Records:
            replacements = {}
            for old in self._named(name, records):
                lifetime = ttl if ttl is not None or old.expires is None else old.expires - old.created
                fresh = self._issue(old.user, old.role, lifetime)
                issued.append(fresh)
                replacements[old.id] = fresh.record
            return [
                {**record, **_as_json(replacements[record["id"]])} if record["id"] in replacements else record
                for record in records
            ]

        self._change(renewed)
        return tuple(issued)

    def _issue(self, user: str, role: str, ttl: timedelta | None) -> Issued:
        token, number = new_token()
        created = self._now().replace(microsecond=0)
        try:
            expires = None if ttl is None else created + ttl
        except OverflowError:
            raise ConfigError("ttl", "ends after the last year of the calendar") from None
        return Issued(
            token,
            Token(
                id=number,
                user=user,
                role=role,
                sha256=sha256(token.encode()).hexdigest(),
                created=created,
                expires=expires,
            ),
        )

    def _named(self, name: str, records: Records) -> tuple[Token, ...]:
        tokens = self._parsed(records)
        found = tuple(token for token in tokens if token.id == name) or tuple(
            token for token in tokens if token.user == name
        )
        if not found:
            hint = did_you_mean(name, {known for token in tokens for known in (token.id, token.user)})
            raise ConfigError("token", f"there is no token and no user {name!r:.60}{hint}")
        return found

    def _change(self, change: Callable[[Records], Records]) -> None:
        with locked(self.path):
            found = read_private(self.path)
            document: dict[str, Any] = {"version": _FORMAT}
            if found:
                document = self._document(found[0])
            records = self._records(document)
            self._parsed(records)
            document["tokens"] = change(records)
            write_private(self.path, json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n")
        self.reload()

    def _document(self, content: bytes) -> dict[str, Any]:
        try:
            document = json.loads(content)
        except (ValueError, RecursionError):
            raise self._damaged("is not JSON") from None
        if not isinstance(document, dict):
            raise self._damaged("is not a JSON object")
        if document.get("version", _FORMAT) != _FORMAT:
            raise self._damaged("is of a later version of zComm")
        return document

    def _records(self, document: dict[str, Any]) -> Records:
        records = document.get("tokens", [])
        if not isinstance(records, list):
            raise self._damaged("its tokens are not a list")
        return records

    def _parsed(self, records: Iterable[Any]) -> tuple[Token, ...]:
        tokens = []
        for position, record in enumerate(records, 1):
            try:
                tokens.append(_from_json(record))
            except (KeyError, TypeError, ValueError):
                raise self._damaged(f"its token number {position} is damaged") from None
        return tuple(tokens)

    def _damaged(self, reason: str) -> CredentialsError:
        quoted = shlex.quote(str(self.path))
        return CredentialsError(str(self.path), reason, f"mv {quoted} {quoted}.old")


def _as_json(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": token.user,
        "role": token.role,
        "sha256": token.sha256,
        "created": token.created.isoformat(),
        "expires": token.expires.isoformat() if token.expires else None,
        **({"session": True} if token.session else {}),
    }


def _from_json(record: Any) -> Token:
    number, user, role, digest = (record[key] for key in ("id", "user", "role", "sha256"))
    if not all(isinstance(text, str) and text for text in (number, user, role, digest)):
        raise ValueError
    if len(bytes.fromhex(digest)) != 32:
        raise ValueError
    created, expires = record["created"], record.get("expires")
    return Token(
        id=number,
        user=user,
        role=role,
        sha256=digest,
        created=_date(created),
        expires=None if expires is None else _date(expires),
        session=bool(record.get("session")),
    )


def _date(text: str) -> datetime:
    date = datetime.fromisoformat(text)
    if date.tzinfo is None:
        raise ValueError
    return date
