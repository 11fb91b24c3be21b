"""Sessions: what a one-time code becomes, a token of twelve hours that stands for the operator.

A session is opened, and codes are ended, with the operator's file locked: what became of a code before it was ended is
a session that stands among the tokens by then, and nothing becomes of it after.
"""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

from twisted.cred.error import UnauthorizedLogin

from zcomm.auth.codes import LIFETIME, Code, HeldCode, end_code, hold_code, list_codes, make_code
from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.private_files import locked
from zcomm.auth.tokens import Issued, Token, TokenStore, wall_clock
from zcomm.config import operator_path, tokens_path

__all__ = ["SESSION", "end_codes", "invite", "open_codes", "open_session", "redeem"]

#: How long a session lasts.
SESSION = timedelta(hours=12)


def invite(data_dir: Path) -> str:
    """Make a code that lets the operator in, once.

    :raises CredentialsError: when the operator has no token, or the code cannot be written down.
    """
    return make_code(data_dir, OperatorCredentials.load(operator_path(data_dir)).identity.token_id)


def redeem(data_dir: Path, code: str) -> HeldCode:
    """Hold ``code`` for whoever shows it; **blocks**.

    :raises UnauthorizedLogin: for a code that is wrong, spent, too old, or of a token that is another one now.
    :raises CodeInUse: for one that somebody else shows at the same time.
    :raises CredentialsError: when a file cannot be trusted or read.
    """
    held = hold_code(data_dir, code)
    if held is None:
        raise UnauthorizedLogin
    try:
        if held.code.holder != OperatorCredentials.load(operator_path(data_dir)).identity.token_id:
            held.spend()
            raise UnauthorizedLogin
    except BaseException:
        held.give_back()
        raise
    return held


def open_session(data_dir: Path, code: Code) -> Issued:
    """Make a session of the operator's for ``code``; **blocks** until it is on the disk.

    :raises UnauthorizedLogin: for a code that has ended.
    :raises CredentialsError: when a file cannot be trusted, read or written.
    """
    path = operator_path(data_dir)
    with locked(path):
        operator = OperatorCredentials.load(path)
        if not code.is_good(operator.identity.token_id, wall_clock().timestamp()):
            raise UnauthorizedLogin
        return TokenStore(tokens_path(data_dir)).add_session(operator.username, operator.role, SESSION)


def open_codes(data_dir: Path) -> dict[Code, Token]:
    """The codes with which somebody may be in or come in, each with what a list of tokens says of it.

    :raises CredentialsError: when a file cannot be trusted or read.
    """
    codes, path = list_codes(data_dir), operator_path(data_dir)
    # Without its token the operator's codes are nobody's.
    if not codes or not os.path.lexists(path):
        return {}
    operator = OperatorCredentials.load(path)
    lifetime = timedelta(seconds=LIFETIME)
    return {
        code: Token(
            id=code.id,
            user=operator.username,
            role=operator.role,
            sha256=code.path.name,
            created=(until := datetime.fromtimestamp(code.until, UTC)) - lifetime,
            expires=until,
        )
        for code in codes
        if code.holder == operator.identity.token_id
    }


def end_codes(data_dir: Path, name: str) -> tuple[Token, ...]:
    """End the code with the id ``name``, or all of the operator where ``name`` is the operator's; those who are in with
    one are hung up on. Sessions that codes became are not ended by this.

    :return: what was ended.
    :raises CredentialsError: when a file cannot be trusted or read, or one of a code cannot be removed.
    """
    with locked(operator_path(data_dir)):
        ended = {code: token for code, token in open_codes(data_dir).items() if name in (token.id, token.user)}
        for code in ended:
            end_code(code)
    return tuple(ended.values())
