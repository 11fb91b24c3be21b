"""``zcomm token``: make, list, revoke and rotate the tokens that clients log in with, and show the operator's."""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zcomm.auth.codes import list_codes
from zcomm.auth.tokens import Issued, Token, TokenStore, wall_clock
from zcomm.config import data_directory, operator_path, read_text, tokens_path
from zcomm.errors import ConfigError, CredentialsError
from zcomm.text import did_you_mean

if TYPE_CHECKING:
    from zcomm.auth.credentials import OperatorCredentials

__all__ = ["declare_token", "duration", "table"]

_DURATION = re.compile(r"([1-9][0-9]{0,5})([smhdw])\Z")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def declare_token(parser: argparse.ArgumentParser) -> None:
    """Declare ``zcomm token add|list|show|revoke|rotate``."""
    parser.description = (
        "Make, list, revoke and rotate the tokens that clients log in with, and show the operator's own. A running "
        "server notices at once, and closes the connections of a token that is gone."
    )
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir", metavar="DIR", help="where tokens.json and operator.json are [ZCOMM_HOME, else ~/.zolo/zcomm]"
    )
    common.add_argument("--json", action="store_true", help="print JSON, for programs")

    add = commands.add_parser("add", parents=[common], help="make a token, which is shown this once")
    add.add_argument("user", metavar="USER", help="whose token it is")
    add.add_argument("--role", default="user", help="what the policy file grants rights to (user)")
    add.add_argument(
        "--policy", metavar="FILE", help="the server's policy file: a role that it does not name is refused"
    )
    add.add_argument("--ttl", metavar="TIME", help="how long it is good for: 15m, 12h, 30d, 8w (for ever)")
    add.set_defaults(run=run_add)

    listing = commands.add_parser(
        "list", parents=[common], help="list the tokens, which are not shown again, and the codes of links that sign in"
    )
    listing.set_defaults(run=run_list)

    show = commands.add_parser("show", parents=[common], help="print the operator's own token, alone on its line")
    show.set_defaults(run=run_show)

    revoke = commands.add_parser("revoke", parents=[common], help="end a token or a code, or all of a user")
    revoke.add_argument("name", metavar="ID|USER", help="its id, or the user's name")
    revoke.set_defaults(run=run_revoke)

    rotate = commands.add_parser(
        "rotate", parents=[common], help="replace a token, all tokens of a user, or the operator's own"
    )
    rotate.add_argument(
        "name",
        metavar="ID|USER",
        nargs="?",
        help="the token's id, or the user's name; without it the operator's own token, in operator.json",
    )
    rotate.add_argument("--ttl", metavar="TIME", help="how long the new one is good for (as the old one)")
    rotate.set_defaults(run=run_rotate)


def run_add(args: argparse.Namespace) -> int:
    """Make a token and print it, alone on its line."""
    if args.policy is not None:
        # What reads policies takes a while to load.
        from zcomm.auth.policy import Policy

        roles = Policy.from_yaml(read_text(Path(args.policy), "--policy"), args.policy).roles
        if args.role not in roles:
            raise ConfigError(
                "--role", f"{args.policy} names no role {args.role!r}{did_you_mean(args.role, roles, or_list=True)}"
            )
    issued = _store(args).add(args.user, args.role, duration("--ttl", args.ttl))
    _show_issued(args, (issued,), one=True)
    return 0


def run_list(args: argparse.Namespace) -> int:
    """Print what is known of each token, and of the codes of links that sign in."""
    tokens = _store(args).list()
    data_dir = data_directory(os.environ, args.data_dir)
    if list_codes(data_dir):
        # Whose they are needs more than files.
        from zcomm.auth.sessions import open_codes

        tokens += tuple(open_codes(data_dir).values())
    if args.json:
        _print_json([_described(token) for token in tokens])
    elif not tokens:
        print("no tokens; make one with: zcomm token add USER")
    else:
        now = wall_clock()
        rows = [
            (token.id, token.user, token.role, _date(token.created), _expiry(token, token.expired(now)))
            for token in tokens
        ]
        print(table(("ID", "USER", "ROLE", "CREATED", "EXPIRES"), rows))
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print the operator's own token."""
    from zcomm.auth.credentials import OperatorCredentials

    operator = OperatorCredentials.load(operator_path(data_directory(os.environ, args.data_dir)))
    if args.json:
        _print_json({**_operator(operator), "token": operator.token})
    else:
        print(operator.token)
    return 0


def run_revoke(args: argparse.Namespace) -> int:
    """End tokens and codes and say which."""
    codes: tuple[Token, ...] = ()
    fault = None
    # Codes first: what became of one until then is a token.
    try:
        codes = _end_codes(args)
    except CredentialsError as error:
        # Nothing that is wrong with them keeps a token.
        fault = error
    try:
        gone = (*_store(args).revoke(args.name), *codes)
    except ConfigError as error:
        if not codes:
            raise fault or error from None
        gone = codes
    if args.json:
        _print_json([_described(token) for token in gone])
    else:
        for token in gone:
            print(f"revoked {token.id} of {token.user}")
    if fault is not None:
        raise fault
    return 0


def run_rotate(args: argparse.Namespace) -> int:
    """Replace tokens, or the operator's own."""
    if args.name is not None:
        # Whoever has one of that user's would come to a session with it.
        _end_codes(args)
        _show_issued(args, _store(args).rotate(args.name, duration("--ttl", args.ttl)), one=False)
        return 0
    if args.ttl is not None:
        raise ConfigError("--ttl", "the operator's own token does not expire; name a token or a user")
    # It and show need more than the file of tokens.
    from zcomm.auth.credentials import OperatorCredentials, fingerprint

    operator = OperatorCredentials.rotate(operator_path(data_directory(os.environ, args.data_dir)))
    if args.json:
        _print_json({**_operator(operator), "fingerprint": fingerprint(operator.token)})
    else:
        print(f"{operator.path} holds a new token of {operator.username}; the old one is refused from now on")
    return 0


def _end_codes(args: argparse.Namespace) -> tuple[Token, ...]:
    data_dir = data_directory(os.environ, args.data_dir)
    if not list_codes(data_dir):
        return ()
    from zcomm.auth.sessions import end_codes

    return end_codes(data_dir, args.name)


def _operator(operator: OperatorCredentials) -> dict[str, str]:
    return {"path": str(operator.path), "username": operator.username, "role": operator.role}


def duration(option: str, text: str | None) -> timedelta | None:
    """``30d`` as a time span; ``None`` for ``None``.

    :raises ConfigError: naming ``option``, for anything else.
    """
    if text is None:
        return None
    found = _DURATION.match(text)
    if found is None:
        raise ConfigError(option, f"{text!r} is no time; write a number and s, m, h, d or w, such as 30d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns for people, as wide as they need to be."""
    lines = [tuple(headings), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _store(args: argparse.Namespace) -> TokenStore:
    return TokenStore(tokens_path(data_directory(os.environ, args.data_dir)))


def _show_issued(args: argparse.Namespace, issued: Sequence[Issued], *, one: bool) -> None:
    if args.json:
        described = [{**_described(each.record), "token": each.token} for each in issued]
        _print_json(described[0] if one else described)
        return
    for each in issued:
        print(each.token)
        # On the other stream, so that token=$(zcomm token add …) gets the token alone.
        print(
            f"token {each.record.id} of {each.record.user}, role {each.record.role}, expires "
            f"{_expiry(each.record, False)}; keep it now, it cannot be shown again",
            file=sys.stderr,
        )


def _described(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "user": token.user,
        "role": token.role,
        "created": token.created.isoformat(),
        "expires": token.expires.isoformat() if token.expires else None,
        "expired": token.expired(wall_clock()),
    }


def _date(date: datetime) -> str:
    return date.strftime("%Y-%m-%d %H:%M")


def _expiry(token: Token, expired: bool) -> str:
    if token.expires is None:
        return "never"
    return _date(token.expires) + (" (expired)" if expired else "")


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
