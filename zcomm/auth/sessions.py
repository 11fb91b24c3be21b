"""Sessions: what a one-time code becomes, an ordinary token of twelve hours for the same user."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

from twisted.cred.error import UnauthorizedLogin

from zcomm.auth.codes import make_code, spend_code
from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.tokens import Issued, TokenStore
from zcomm.config import operator_path, tokens_path

__all__ = ["SESSION", "invite", "open_session"]

#: How long a session lasts.
SESSION = timedelta(hours=12)


def invite(data_dir: Path) -> str:
    """Make a code that lets the operator in, once.

    :raises CredentialsError: when the operator has no token, or the code cannot be written down.
    """
    return make_code(data_dir, OperatorCredentials.load(operator_path(data_dir)).identity.token_id)


def open_session(data_dir: Path, code: str) -> Issued:
    """Spend ``code`` and make a token for whoever it stands for; **blocks** until it is on the disk.

    :raises UnauthorizedLogin: for a code that is wrong, spent, too old, or of a token that is another one now.
    :raises CredentialsError: when a file cannot be trusted, read or written.
    """
    holder = spend_code(data_dir, code)
    if holder is None:
        raise UnauthorizedLogin
    operator = OperatorCredentials.load(operator_path(data_dir))
    if holder != operator.identity.token_id:
        raise UnauthorizedLogin
    return TokenStore(tokens_path(data_dir)).add_session(operator.username, operator.role, SESSION)
