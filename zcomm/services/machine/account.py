"""Accounts: which one a server runs as, and what it may reach.

An ordinary user's servers run as that user. Root's never run as root (PostgreSQL refuses, Redis would
own its files as root): an account that exists is chosen. No account is created. Root's own directories above
a service's are opened for that one account, which may pass them and no more (:func:`let_pass`).
"""

from __future__ import annotations

import errno
import os
import pwd
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from pathlib import Path

from zcomm.errors import ConfigError

__all__ = ["Account", "account_of", "blocked_by", "choose_account", "current_account", "let_pass", "may"]


#: The extended attribute that holds an access control list, and the kinds of its entries (acl(5), Linux).
_LIST = "system.posix_acl_access"
_LIST_VERSION = 2
_OWNER, _USER, _GROUP, _NAMED_GROUP, _MASK, _OTHERS = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NOBODY = 0xFFFFFFFF


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
        if not may(look(ancestor), uid, gids, 1) and not _listed(ancestor, uid) & 1:
            return ancestor
    return None if may(look(real), uid, gids, wanted) or _listed(real, uid) & wanted == wanted else real


def let_pass(path: Path, account: Account) -> list[Path]:
    """Let an account pass the directories on the way to *path*, *path* among them, that belong to this user.

    It gets an entry in their access control lists, by which it may neither list nor change them; nobody else gets
    anything. What belongs to others, or is on a file system without such lists, stays closed (see :func:`blocked_by`).

    :return: the directories that were changed.
    """
    changed = []
    real = Path(os.path.realpath(path))
    for directory in (*reversed(real.parents), real):
        status = os.stat(directory)
        if may(status, account.uid, account.groups | {account.gid}, 1) or _listed(directory, account.uid) & 1:
            continue
        if status.st_uid != os.geteuid() or not hasattr(os, "setxattr"):
            break
        try:
            _enlist(directory, account.uid)
        except OSError:
            break
        changed.append(directory)
    return changed


def _access_list(directory: Path) -> dict[tuple[int, int], int]:
    """The permissions of a directory by (kind, id) of who has them; those of the mode where it has no list."""
    try:
        raw = os.getxattr(directory, _LIST)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        mode = os.stat(directory).st_mode
        return {(kind, _NOBODY): mode >> shift & 7 for kind, shift in ((_OWNER, 6), (_GROUP, 3), (_OTHERS, 0))}
    return {(kind, number): granted for kind, granted, number in struct.iter_unpack("<HHI", raw[4:])}


def _listed(path: Path, uid: int) -> int:
    """The permissions that an access control list has for the user by name; 0 without one."""
    if not hasattr(os, "getxattr"):
        return 0
    try:
        entries = _access_list(path)
    except OSError:
        return 0
    return entries.get((_USER, uid), 0) & entries.get((_MASK, _NOBODY), 7)


def _enlist(directory: Path, uid: int) -> None:
    """Add an entry by which the user may pass. :raises OSError: where there are no lists, or it may not be changed."""
    entries = _access_list(directory)
    # The mask gets wider; nobody else may have more by that.
    mask = entries.pop((_MASK, _NOBODY), 7)
    for kind, number in entries:
        if kind in (_USER, _GROUP, _NAMED_GROUP):
            entries[kind, number] &= mask
    entries[_USER, uid] = entries.get((_USER, uid), 0) | 1
    entries[_MASK, _NOBODY] = 0
    for kind, number in entries:
        if kind in (_USER, _GROUP, _NAMED_GROUP):
            entries[_MASK, _NOBODY] |= entries[kind, number]
    packed = (struct.pack("<HHI", kind, granted, number) for (kind, number), granted in sorted(entries.items()))
    os.setxattr(directory, _LIST, struct.pack("<I", _LIST_VERSION) + b"".join(packed))
