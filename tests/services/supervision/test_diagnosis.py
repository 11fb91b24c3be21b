"""What the last words of a server mean."""

from __future__ import annotations

import pytest

from zcomm.services.kinds import KINDS
from zcomm.services.supervision.diagnosis import ANY_LOG, diagnose

LOGS = {kind.name: kind.log for kind in KINDS}


@pytest.mark.parametrize(
    ("kind", "output", "words", "permanent"),
    [
        (
            "postgresql",
            'LOG:  starting\nFATAL:  could not write to file "x": No space left on device',
            "No space",
            False,
        ),
        (
            "postgresql",
            "LOG:  could not bind IPv4 address: Address already in use\nFATAL:  could not create any TCP/IP sockets",
            "TCP",
            True,
        ),
        ("postgresql", "FATAL:  database files are incompatible with server\nDETAIL:  x", "incompatible", True),
        ("postgresql", "PANIC:  could not locate a valid checkpoint record", "checkpoint", True),
        ("postgresql", "FATAL:  something new", "something new", False),
        ("postgresql", "LOG:  all is well", "", False),
        (
            "postgresql",
            'postgres: could not access the server configuration file "/x/postgresql.conf": No such file or directory',
            "/x/postgresql.conf",
            True,
        ),
        ("postgresql", "postgres: could not think of anything: Never mind", "could not think", False),
        (
            "postgresql",
            'FATAL:  could not resize shared memory segment "/PostgreSQL.1" to 1 bytes: No space left on device',
            "shared memory",
            False,
        ),
        (
            "postgresql",
            "FATAL:  insufficient file descriptors available to start server process\nDETAIL:  System allows 64",
            "file descriptors",
            True,
        ),
        (
            "postgresql",
            "FATAL:  pre-existing shared memory block is still in use\nHINT:  Terminate any old server",
            "Terminate any old",
            False,
        ),
        ("redis", "1:M 01 Jan 2026 10:00:00.000 # Can't handle RDB format version 99", "RDB format", True),
        ("redis", "1:M 01 Jan 2026 10:00:00.000 * Opening AOF incr file x\n", "", False),
        (
            "redis",
            "*** FATAL CONFIG FILE ERROR (Redis 7) ***\nReading the configuration file, at line 3\n"
            ">>> 'nonsense 1'\nBad directive",
            "Bad directive|FATAL",
            True,
        ),
        (
            "redis",
            "1:M 01 Jan 2026 10:00:00.000 # Warning: Could not create server TCP listening socket 127.0.0.1:1: bind",
            "socket",
            True,
        ),
        ("", "Traceback\nValueError: no", "ValueError: no", False),
        ("", "bind: Address already in use", "in use", True),
        ("", "", "", False),
    ],
)
def test_last_words(kind: str, output: str, words: str, permanent: bool):
    """The cause in the server's words, and whether it would help to try again."""
    cause = diagnose(LOGS.get(kind, ANY_LOG), output)
    assert cause.permanent is permanent
    if words:
        assert any(word in cause.reason for word in words.split("|")) and len(cause.reason) <= 420
    else:
        assert cause.reason == ""


def test_contact_friction_4_the_fix_is_that_of_the_cause():
    """Shared memory is no disk, and a limit of open files is no damage."""
    for said, fix in (
        ('could not resize shared memory segment "/x" to 1 bytes: No space left on device', "/dev/shm"),
        ("insufficient file descriptors available to start server process", "ulimit -n"),
        ("could not dup(0) after 1 successes: Bad file descriptor", "ulimit -n"),
        ("failed to initialize max_stack_depth to 100", "ulimit -s"),
        ('invalid value for parameter "max_stack_depth": 100', "ulimit -s"),
        ('could not write to file "base/1": No space left on device', "free some space"),
    ):
        assert fix in diagnose(LOGS["postgresql"], f"FATAL:  {said}").fix


def test_nothing_secret_in_reasons():
    """What follows a telling word is left out (P14)."""
    assert (
        "x1"
        not in diagnose(LOGS["redis"], ">>> 'requirepass \"x1\"'\nBad directive or wrong number of arguments").reason
    )
