"""PostgreSQL's data directory: what it looks like, and whether a server can start in it."""

from __future__ import annotations

import errno
import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from zcomm.errors import DataDirectoryError
from zcomm.services.machine.directories import DirectoryFacts, judge_directory

__all__ = ["ClusterFacts", "judge_postgresql_directory", "look_at_cluster"]


@dataclass(frozen=True)
class ClusterFacts:
    """The facts that tell a complete cluster from an unfinished one.

    :ivar version: the content of ``PG_VERSION``, None when there is none.
    :ivar databases: how many databases the directory has.
    """

    version: str | None = None
    databases: int = 0


def look_at_cluster(path: Path) -> ClusterFacts:
    """The facts about the cluster in a directory; **blocks**."""
    return ClusterFacts(_read_version(path), _count_databases(path))


def judge_postgresql_directory(
    facts: DirectoryFacts, cluster: ClusterFacts, uid: int, account: str, service: str = "postgresql"
) -> bool:
    """Whether PostgreSQL can start in the directory.

    :return: True when it holds a cluster, False when one has to be made there.
    :raises DataDirectoryError: for one that must not be touched, or is only half a cluster.
    """
    judge_directory(service, facts, uid, account, private=0o027, files=("PG_VERSION",))
    if cluster.version is not None:
        # An initdb that was killed leaves PG_VERSION from its first moments on, and fewer than the three
        # databases every complete cluster has.
        if "global" not in facts.names or cluster.databases < 3:
            aside = shlex.join(["mv", str(facts.path), f"{facts.path}.incomplete"])
            raise DataDirectoryError(
                service, str(facts.path), "holds an initialisation that was never finished", f"move it aside: {aside}"
            )
        if "postgresql.conf" not in facts.names:
            raise DataDirectoryError(
                service,
                str(facts.path),
                "has no postgresql.conf: its configuration is elsewhere, as in Debian's layout (/etc/postgresql)",
                "copy postgresql.conf, pg_hba.conf and pg_ident.conf into it, or give a new data directory",
            )
        return True
    if not facts.empty and facts.kind == "directory":
        raise DataDirectoryError(
            service,
            str(facts.path),
            f"is no PostgreSQL data directory and not empty ({facts.names[0]})",
            "give an empty or a new data directory",
        )
    return False


def _read_version(path: Path) -> str | None:
    try:
        with open(path / "PG_VERSION", encoding="ascii", errors="replace") as file:
            return file.read(16).strip()
    except OSError as error:
        return None if error.errno in (errno.ENOENT, errno.ENOTDIR) else ""


def _count_databases(path: Path) -> int:
    try:
        return sum(name.isdigit() for name in os.listdir(path / "base"))
    except OSError:
        return 0
