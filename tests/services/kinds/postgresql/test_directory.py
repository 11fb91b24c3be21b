"""Data directories that PostgreSQL takes and refuses."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zcomm.errors import DataDirectoryError
from zcomm.services.kinds.postgresql.directory import ClusterFacts, judge_postgresql_directory, look_at_cluster
from zcomm.services.kinds.postgresql.programs import postgresql_for
from zcomm.services.kinds.postgresql.service import PostgreSQLService
from zcomm.services.machine.directories import (
    DirectoryFacts,
    look_at_directory,
)
from zcomm.services.machine.installations import Installation
from zcomm.services.machine.programs import find_all

ME = os.geteuid()


GOOD = DirectoryFacts(Path("/srv/data"), "directory", uid=26, mode=0o700)


CLUSTER = replace(GOOD, names=("PG_VERSION", "base", "global", "pg_wal", "postgresql.conf"))


NONE, WHOLE = ClusterFacts(), ClusterFacts("15", 3)


@pytest.mark.parametrize(
    "facts,reason,fix",
    [
        (DirectoryFacts(Path("/srv/data"), "other"), "is not a directory", "give another data directory"),
        (
            DirectoryFacts(Path("/srv/data"), "hidden"),
            "may not be read",
            "run: sudo chown -R postgres /srv/data",
        ),
        (
            replace(GOOD, blocked=Path("/srv")),
            "may not enter /srv",
            "give a data directory outside private homes",
        ),
        (
            replace(GOOD, uid=12345678),
            "belongs to 12345678, the server runs as postgres",
            "run: sudo chown -R postgres /srv/data",
        ),
        (replace(GOOD, read_only=True), "mounted read-only", "mount it for writing"),
        (replace(GOOD, mode=0o755), "has the mode 0755", "run: chmod 0700 /srv/data"),
        (replace(GOOD, mode=0o770), "has the mode 0770", "run: chmod 0700 /srv/data"),
        (replace(GOOD, mode=0o500), "has the mode 0500", "run: chmod 0700 /srv/data"),
        (
            replace(GOOD, foreign=Path("/srv/data/base/1/112")),
            "/srv/data/base/1/112: does not belong to postgres",
            "run: sudo chown -R postgres /srv/data",
        ),
        # What is right for a data directory would ruin one like /etc.
        (replace(GOOD, uid=0, names=("passwd",)), "belongs to root", "give a directory of its own"),
        (replace(GOOD, mode=0o755, names=("passwd",)), "has the mode 0755", "give a directory of its own"),
        (replace(GOOD, path=Path("/srv/a b"), mode=0o755), "has the mode 0755", "run: chmod 0700 '/srv/a b'"),
        (
            replace(GOOD, names=("notes.txt",)),
            "is no PostgreSQL data directory and not empty (notes.txt)",
            "give an empty or a new data directory",
        ),
        (
            (CLUSTER, replace(WHOLE, databases=1)),
            "never finished",
            "move it aside: mv /srv/data /srv/data.incomplete",
        ),
        # F39: as Debian lays it out.
        (
            (replace(CLUSTER, names=("PG_VERSION", "base", "global")), WHOLE),
            "has no postgresql.conf: its configuration is elsewhere, as in Debian's layout",
            "copy postgresql.conf, pg_hba.conf and pg_ident.conf into it",
        ),
        ((replace(CLUSTER, names=("PG_VERSION", "base")), WHOLE), "never finished", "move it aside: mv /srv/data"),
    ],
)
def test_a_directory_that_postgresql_would_refuse(facts, reason, fix):
    """Each reason has its own text, and the line that mends it."""
    with pytest.raises(DataDirectoryError) as caught:
        judge_postgresql_directory(*(facts if isinstance(facts, tuple) else (facts, NONE)), 26, "postgres")
    assert reason in str(caught.value) and caught.value.fix.startswith(fix)


@pytest.mark.parametrize(
    "facts,holds",
    [
        (DirectoryFacts(Path("/srv/data")), False),
        (GOOD, False),
        (replace(GOOD, mode=0o750), False),
        (replace(GOOD, names=("lost+found",)), False),
        ((CLUSTER, WHOLE), True),
        ((replace(CLUSTER, mode=0o750), WHOLE), True),
        ((CLUSTER, replace(WHOLE, databases=12)), True),
    ],
)
def test_a_directory_that_postgresql_takes(facts, holds):
    """Missing, empty, or a whole cluster."""
    both = facts if isinstance(facts, tuple) else (facts, NONE)
    assert judge_postgresql_directory(*both, 26, "postgres") is holds


def test_the_version_of_the_directory_is_never_opened_by_another_server():
    """Both versions are in the error, and nothing is deleted."""
    found = [Installation("postgresql", (15, 20), Path("/x/postgres"), "PATH")]
    assert postgresql_for(found, CLUSTER.path, "15") is found[0]
    with pytest.raises(DataDirectoryError, match="made by PostgreSQL 14, here is only postgresql 15.20") as caught:
        postgresql_for(found, CLUSTER.path, "14")
    assert "nothing was changed" in caught.value.fix
    with pytest.raises(DataDirectoryError, match="made by PostgreSQL , here"):
        postgresql_for(found, CLUSTER.path, "")


@pytest.fixture(scope="module")
def killed_initdb(tmp_path_factory) -> Iterator[list[Path]]:
    """Directories an initdb left when it was killed at several moments."""
    found = find_all(PostgreSQLService.programs, os.environ)
    if not found:
        pytest.skip("no PostgreSQL on this machine")
    account = {"user": 65534, "group": 65534, "extra_groups": []} if ME == 0 else {}
    if ME == 0:
        from zcomm.services.machine.account import blocked_by

        found = [one for one in found if blocked_by(one.server, 65534, ()) is None]
        if not found:
            pytest.skip("no PostgreSQL that an ordinary user may run")
    import shutil
    import tempfile

    root = Path(tempfile.mkdtemp(prefix="zcomm-test-", dir="/tmp"))
    root.chmod(0o755)
    left = []
    for number, mark in enumerate(("PG_VERSION", "global/pg_control", "base/1/PG_VERSION")):
        directory = root / str(number)
        directory.mkdir(mode=0o700)
        if ME == 0:
            os.chown(directory, 65534, 65534)
        command = [
            str(found[0].tool("initdb")),
            "-D",
            str(directory),
            "-N",
            "-A",
            "trust",
            "--locale=C.UTF-8",
        ]
        running = subprocess.Popen(
            command,
            env={"PATH": os.defpath},
            cwd="/",
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **account,
        )
        while not (directory / mark).exists() and running.poll() is None:
            pass
        os.killpg(running.pid, 9)
        running.wait()
        left.append(directory)
    yield left
    shutil.rmtree(root)


def test_what_a_killed_initdb_leaves_is_not_taken_for_a_cluster(killed_initdb):
    """However far it came, the directory is refused and can be moved aside."""
    for directory in killed_initdb:
        facts = look_at_directory(directory, 65534 if ME == 0 else ME)
        cluster = look_at_cluster(directory)
        assert cluster.version is not None
        with pytest.raises(DataDirectoryError, match="never finished"):
            judge_postgresql_directory(facts, cluster, facts.uid, "nobody")
