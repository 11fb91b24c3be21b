"""The doctor's knowledge of Redis and its forks: what is looked at, and what of it is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zcomm.runtime.files import user_name
from zcomm.services.examination import Examiner, Finding, RunningServer, ServiceSite, SiteFacts, complaint, evidence_of
from zcomm.services.kinds.redis.config import FILES
from zcomm.services.kinds.redis.programs import redis_for
from zcomm.services.kinds.redis.rdb import read_rdb_headers
from zcomm.services.machine.directories import DirectoryFacts, judge_directory
from zcomm.services.machine.installations import Installation, describe

__all__ = ["RedisExaminer", "RedisSite"]


@dataclass(frozen=True)
class RedisSite:
    """The facts of a data directory that only Redis has.

    :ivar snapshot: size of ``dump.rdb`` in bytes, None when there is none.
    :ivar append_only: whether there is an append-only file, which Redis loads instead of the snapshot.
    :ivar wants_append_only: whether a configuration there asks for one.
    """

    snapshot: int | None = None
    append_only: bool = False
    wants_append_only: bool = False


class RedisExaminer(Examiner):
    """Finds what is wrong with Redis servers and their data."""

    title = "Redis"
    processes = ("redis-server", "valkey-server", "keydb-server")
    end = "TERM"
    loopback = "bind 127.0.0.1 -::1"

    def look_at_site(self, site: ServiceSite, facts: DirectoryFacts) -> RedisSite:
        """Snapshot, append-only file and a configuration."""
        if facts.kind != "directory":
            return RedisSite()
        return RedisSite(
            _size(site.data_dir / "dump.rdb"),
            (site.data_dir / "appendonlydir").is_dir(),
            _wants_append_only(site.data_dir / "redis.conf"),
        )

    def judge_site(self, seen: SiteFacts, found: Sequence[Installation]) -> Iterator[Finding]:
        """The directory, the format of the snapshots, a snapshot that would be ignored."""
        site, facts, service = seen.site, seen.facts, seen.site.service
        details: RedisSite = seen.details
        evidence: dict[str, Any] = {"path": str(facts.path), "kind": facts.kind}
        if facts.kind == "directory":
            evidence.update(owner=user_name(facts.uid), mode=f"{facts.mode:04o}")
        account = site.account
        yield from complaint(
            service, lambda: judge_directory(service, facts, account.uid, account.name, files=FILES), evidence
        )
        if found and facts.kind == "directory":
            yield from complaint(
                service,
                lambda: redis_for(found, read_rdb_headers(service, site.data_dir), service),
                {**evidence, "here": describe(found)},
            )
        if details.snapshot and details.wants_append_only and not details.append_only:
            yield Finding(
                service,
                "with appendonly yes the snapshot would be ignored and the server start empty",
                {"path": str(site.data_dir / "dump.rdb"), "size": details.snapshot},
                "start without it, then: redis-cli config set appendonly yes",
            )

    def judge_servers(self, servers: Sequence[RunningServer]) -> Iterator[Finding]:
        """Several servers that save into one directory, which nothing in Redis prevents."""
        by_directory: dict[Path, list[RunningServer]] = {}
        for one in servers:
            if one.directory is not None and str(one.directory) not in ("/", "/root"):
                by_directory.setdefault(one.directory, []).append(one)
        for directory, group in by_directory.items():
            if len(group) > 1 and all(one.uid == group[0].uid for one in group):
                yield Finding(
                    group[0].kind,
                    f"several servers work in {directory}: the last one to end overwrites the snapshots of the others",
                    {"servers": [evidence_of(one) for one in group]},
                    "give each a directory of its own (dir …)",
                )


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _wants_append_only(config: Path) -> bool:
    try:
        text = config.read_text("utf-8", "replace")
    except OSError:
        return False
    return re.search(r"(?mi)^\s*appendonly\s+yes\b", text) is not None
