"""The reading of Redis's log: the causes of a failed start and what mends them."""

from __future__ import annotations

from zcomm.services.supervision.diagnosis import OTHER_PORT, LogReading

__all__ = ["LOG"]

#: Gathered by provoking each of them on Redis 7.
_CAUSES: tuple[tuple[str, bool, str], ...] = (
    (r"No space left on device", False, "free some space, then start it again"),
    (r"TCP listening socket .*Permission denied", True, "choose a port above 1023"),
    (r"Address already in use", True, OTHER_PORT),
    (r"Could not create server TCP listening socket|Failed listening on port", True, OTHER_PORT),
    (
        r"Can't handle RDB format version|Wrong signature|Bad file format(?! reading the append)",
        True,
        "use the server that wrote the file (bin_dir=…), or move the file aside",
    ),
    (
        r"append only file|append-only file|AOF manifest|AOF loading|AOF file|appendonlydir",
        True,
        "copy the directory first, then redis-check-aof --fix; it drops what it cannot read",
    ),
    (
        r"Fatal error loading the DB|Short read or OOM loading DB|Internal error in RDB|RDB CRC error|"
        r"Unexpected EOF reading RDB|Error reading the RDB|Terminating server after rdb file reading failure",
        True,
        "the snapshot is damaged: move dump.rdb aside or restore a copy; nothing was changed",
    ),
    (r"FATAL CONFIG FILE ERROR|Bad directive", True, "correct the setting named in the log"),
    (r"Permission denied|Can't chdir", True, "give the files to the account that runs the server"),
)

LOG = LogReading(
    causes=_CAUSES,
    port_taken=r"TCP listening socket|[Aa]ddress already in use",
    # What it says on every start (levels . - and *).
    ignored=r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [*.-] ",
    message=r"^\d+:\w \d+ \w+ \d+ [\d:.]+ [#*.-] (.*)",
    noise=r"Redis is now ready to exit|bye bye|User requested shutdown|# WARNING |^\s*$|^Check https?:",
)
