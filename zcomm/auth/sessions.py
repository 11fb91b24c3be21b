"""Sessions: what a one-time code becomes, a token of twelve hours that stands for the operator."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from twisted.cred.error import UnauthorizedLogin

from zcomm.auth.codes import HeldCode, hold_code, make_code
from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.tokens import Issued, TokenStore
from zcomm.config import operator_path, tokens_path

__all__ = ["SESSION", "invite", "open_session", "redeem"]

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
        if held.holder != OperatorCredentials.load(operator_path(data_dir)).identity.token_id:
            held.spend()
            raise UnauthorizedLogin
    except BaseException:
        held.give_back()
        raise
    return held


def open_session(data_dir: Path) -> Issued:
    """Make a session of the operator's; **blocks** until it is on the disk.

    :raises CredentialsError: when a file cannot be trusted, read or written.
    """
    operator = OperatorCredentials.load(operator_path(data_dir))
    return TokenStore(tokens_path(data_dir)).add_session(operator.username, operator.role, SESSION)
