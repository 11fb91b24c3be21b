"""The reading of PostgreSQL's log: the causes of a failed start and what mends them."""

from __future__ import annotations

from zcomm.services.supervision.diagnosis import OTHER_PORT, LogReading

__all__ = ["LOG"]

_SAFE_MODE = "start it with safe_mode=True and undo the setting"

#: Gathered by provoking each of them on PostgreSQL 15.
_CAUSES: tuple[tuple[str, bool, str], ...] = (
    (
        r"could not access the server configuration file|cannot access the server configuration file",
        True,
        "put postgresql.conf, pg_hba.conf and pg_ident.conf into the data directory, or give a new one",
    ),
    (
        r"shared memory segment .*No space left on device|/dev/shm/.*No space left on device",
        False,
        "make /dev/shm larger (docker run --shm-size=256m, or mount -o remount,size=256m /dev/shm)",
    ),
    (
        r"insufficient file descriptors|Bad file descriptor|Too many open files",
        True,
        "allow it more open files: ulimit -n 1024, or LimitNOFILE= of its unit",
    ),
    (r"No space left on device|wrote only \d+ of \d+ bytes", False, "free some space, then start it again"),
    (r"could not bind|could not create any TCP/IP sockets", True, OTHER_PORT),
    (r"lock file \"postmaster\.pid\" already exists", False, "see the process it names, and zcomm doctor"),
    (r"bogus data in lock file|lock file .* is empty", True, "zcomm doctor tells if it can be moved aside"),
    (r"pre-existing shared memory block", False, "end the process that still uses the data directory"),
    (
        r"incompatible with server|was initialized by PostgreSQL version",
        True,
        "use the version that made the directory (bin_dir=…)",
    ),
    (
        r"data directory .* has (invalid permissions|wrong ownership)",
        True,
        "chmod 0700 the directory and chown it to the account of the server",
    ),
    (r"could not (map anonymous shared memory|create shared memory|resize shared memory)", True, _SAFE_MODE),
    (
        r"max_stack_depth",
        True,
        "allow it a larger stack (ulimit -s 8192, or LimitSTACK= of its unit), or undo the setting",
    ),
    # The line that names the setting before the one that only says there is such a line.
    (r"unrecognized configuration parameter|syntax error in file|invalid value for parameter", True, _SAFE_MODE),
    (r"could not access file|could not load library|configuration file .* contains errors", True, _SAFE_MODE),
    (r"could not load .*pg_hba\.conf|pg_hba\.conf", True, "repair pg_hba.conf; the log names the line"),
    (
        r"could not locate (a valid|required) checkpoint|invalid (primary )?checkpoint",
        True,
        "the write-ahead log is damaged: restore a backup; nothing was changed",
    ),
    (r"could not look up effective user", True, "the system must list the account; name another: user=…"),
    (r"cannot be run as root|not permitted", True, "name another account: user=…"),
    (
        r"could not open file \".*global/pg_control\"|is not a valid data directory",
        True,
        "this is no complete data directory; name another one",
    ),
    (r"Permission denied", True, "give the files to the account that runs the server"),
)

LOG = LogReading(
    causes=_CAUSES,
    port_taken=r"could not bind|could not create any TCP/IP sockets|[Aa]ddress already in use",
    ignored="database system was",
    message=r"(?:FATAL|PANIC|ERROR|LOG|WARNING):\s+(.*)",
    hint=r"HINT:\s+(.*)",
    # Before it has read its configuration it names itself in place of a level.
    complaint=r"(?:FATAL|PANIC|ERROR):\s+|^postgres: (?!\S+ \S+ \[)",
    # What its own processes say because the postmaster is gone.
    noise=r"terminating connection (due to|because of)|the database system is (starting|shutting)",
)
