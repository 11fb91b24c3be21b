"""Accounts: which one a server runs as, and what it may reach.

An ordinary user's servers run as that user. Root's never run as root (PostgreSQL refuses, Redis would
own its files as root): an account that exists is chosen. No account is created and no directory above
the service's own is ever changed.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from zcomm.errors import ConfigError

__all__ = ["Account", "account_of", "blocked_by", "choose_account", "current_account", "may"]


@dataclass(frozen=True, slots=True)
class Account:
    """A user id to run as.

    :ivar name: its name, or ``uid 4711`` for one the system has no name for.
    :ivar groups: every group it belongs to.
    :ivar listed: whether the system knows it (``initdb`` insists on that, ``postgres`` does not).
    """

    name: str
    uid: int
    gid: int
    _: KW_ONLY
    home: str = "/"
    groups: frozenset[int] = frozenset()
    listed: bool = True


def account_of(user: str | int, gid: int | None = None) -> Account:
    """The account with this name or number.

    :param gid: the group for a number the system does not list.
    :raises ConfigError: for a name the system does not know.
    """
    try:
        row = pwd.getpwnam(user) if isinstance(user, str) else pwd.getpwuid(user)
    except KeyError:
        if isinstance(user, str):
            raise ConfigError("user", f"there is no account {user!r} on this system") from None
        return Account(f"uid {user}", user, user if gid is None else gid, listed=False)
    groups = frozenset(os.getgrouplist(row.pw_name, row.pw_gid))
    return Account(row.pw_name, row.pw_uid, row.pw_gid, home=row.pw_dir, groups=groups)


def current_account() -> Account:
    """The account that this process runs as."""
    return account_of(os.geteuid(), os.getegid())


def choose_account(data_dir: Path | None, wanted: str, usual: Iterable[str], environ: Mapping[str, str]) -> Account:
    """The account that the server of ``data_dir`` runs as.

    As root: the owner of an existing data directory, then the account asked for, then the first of
    the usual ones that exists, then who called ``sudo``, then ``nobody``.

    :param data_dir: its data directory, ``None`` where that does not matter.
    :param wanted: the account asked for, or an empty string.
    :param usual: the accounts the system's own packages use.
    :raises ConfigError: for an account that does not exist, is root, or may not be taken.
    """
    me = current_account()
    asked = account_of(wanted) if wanted else None
    if me.uid != 0:
        if asked is not None and asked.uid != me.uid:
            raise ConfigError("user", f"only root can run a server as {wanted}")
        return me
    if asked is not None and asked.uid == 0:
        raise ConfigError("user", "a server does not run as root; name another account")
    try:
        found = os.stat(data_dir) if data_dir is not None else None
    except OSError:
        found = None
    if asked is None and found is not None and found.st_uid != 0:
        return account_of(found.st_uid, found.st_gid)
    if asked is not None:
        return asked
    for name in usual:
        try:
            return account_of(name)
        except ConfigError:
            continue
    sudo = environ.get("SUDO_UID", "")
    if sudo.isdigit() and int(sudo) != 0:
        return account_of(int(sudo), int(sudo))
    return account_of("nobody")


def may(status: os.stat_result, uid: int, gids: Collection[int], wanted: int) -> bool:
    """Whether the mode bits grant a user *wanted* (a sum of 4 read, 2 write, 1 execute or search)."""
    if uid == 0:
        return True
    if status.st_uid == uid:
        granted = status.st_mode >> 6
    elif status.st_gid in gids:
        granted = status.st_mode >> 3
    else:
        granted = status.st_mode
    return granted & wanted == wanted


def blocked_by(
    path: Path, uid: int, gids: Collection[int], wanted: int = 5, look: Callable[[Path], os.stat_result] = os.stat
) -> Path | None:
    """The first directory, or *path* itself, that keeps a user from reaching *path*; None when nothing does.

    :param wanted: what is needed on *path* itself: a sum of 4 read, 2 write, 1 execute or search.
    """
    real = Path(os.path.realpath(path))
    for ancestor in reversed(real.parents):
        if not may(look(ancestor), uid, gids, 1):
            return ancestor
    return None if may(look(real), uid, gids, wanted) else real
