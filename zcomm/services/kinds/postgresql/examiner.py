"""The doctor's knowledge of PostgreSQL: what is looked at, and what of it is wrong."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from zcomm.runtime.files import user_name
from zcomm.services.examination import Examiner, Finding, RunningServer, ServiceSite, SiteFacts, complaint, evidence_of
from zcomm.services.kinds.postgresql.directory import ClusterFacts, judge_postgresql_directory, look_at_cluster
from zcomm.services.kinds.postgresql.lockfile import Claim, Verdict, look_at_claim, parse_pid_file
from zcomm.services.kinds.postgresql.programs import postgresql_for
from zcomm.services.machine.directories import DirectoryFacts
from zcomm.services.machine.installations import Installation, describe

__all__ = ["PostgreSQLExaminer", "PostgreSQLSite"]


@dataclass(frozen=True)
class PostgreSQLSite:
    """The facts of a data directory that only PostgreSQL has.

    :ivar claim: what its ``postmaster.pid`` is worth.
    :ivar trusting: lines of ``pg_hba.conf`` that ask for no password: (number, line).
    """

    cluster: ClusterFacts = ClusterFacts()
    claim: Verdict | None = None
    trusting: tuple[tuple[int, str], ...] = ()


class PostgreSQLExaminer(Examiner):
    """Finds what is wrong with PostgreSQL servers and clusters."""

    title = "PostgreSQL"
    processes = ("postgres", "postmaster")
    end = "INT"
    loopback = "listen_addresses = 'localhost'"

    def look_at_site(self, site: ServiceSite, facts: DirectoryFacts) -> PostgreSQLSite:
        """The cluster, its pid file and its rules of access."""
        if facts.kind != "directory":
            return PostgreSQLSite()
        cluster = look_at_cluster(site.data_dir)
        claim = look_at_claim(site.data_dir, site.account.uid) if cluster.version is not None else None
        return PostgreSQLSite(cluster, claim, _trusting(site.data_dir / "pg_hba.conf"))

    def judge_site(self, seen: SiteFacts, found: Sequence[Installation]) -> Iterator[Finding]:
        """The directory, the versions, the pid file, the rules of access."""
        site, facts, service = seen.site, seen.facts, seen.site.service
        details: PostgreSQLSite = seen.details
        evidence: dict[str, Any] = {"path": str(facts.path), "kind": facts.kind}
        if facts.kind == "directory":
            version = details.cluster.version
            evidence.update(owner=user_name(facts.uid), mode=f"{facts.mode:04o}", version=version)
        account = site.account
        yield from complaint(
            service,
            lambda: judge_postgresql_directory(facts, details.cluster, account.uid, account.name, service),
            evidence,
        )
        if found and details.cluster.version is not None:
            yield from complaint(
                service,
                lambda: postgresql_for(found, facts.path, details.cluster.version, service),
                {**evidence, "here": describe(found)},
            )
        yield from _wrong_claim(service, site.data_dir, details.claim)
        for number, line in details.trusting:
            yield Finding(
                service,
                "PostgreSQL lets in every local user without a password",
                {"path": str(site.data_dir / "pg_hba.conf"), "line": f"{number}: {line}"},
                "set passwords, write scram-sha-256 for trust, then: select pg_reload_conf()",
            )

    def is_orphan(self, title: str) -> bool:
        """A postmaster shows its command line; what shows "postgres: …" was forked by one."""
        return title.startswith("postgres:")

    def look_at_server(self, process: psutil.Process, directory: Path) -> bool | None:
        """Whether ``postmaster.pid`` of its directory names it; None when this user may not know."""
        try:
            parsed = parse_pid_file((directory / "postmaster.pid").read_text("utf-8", "replace"))
        except FileNotFoundError:
            return False
        except OSError:
            return None
        return parsed is not None and parsed.pid == process.pid

    def judge_server(self, server: RunningServer) -> Iterator[Finding]:
        """A server that its directory does not know."""
        if server.details is False:
            yield Finding(
                server.kind,
                "a running PostgreSQL is not the one its postmaster.pid names; it ends by itself within a minute",
                evidence_of(server),
                f"stop it in good order: kill -INT {server.pid}",
            )


def _wrong_claim(service: str, data_dir: Path, claim: Verdict | None) -> Iterator[Finding]:
    if claim is None:
        return
    file = data_dir / "postmaster.pid"
    evidence = {"path": str(file), "pid": claim.pid, "proof": claim.proof}
    if claim.claim is Claim.FALSE:
        yield Finding(
            service,
            "its postmaster.pid is false, and PostgreSQL would believe it",
            evidence,
            shlex.join(["mv", str(file), f"{file}.aside"]),
        )
    elif claim.claim is Claim.UNKNOWN:
        yield Finding(
            service,
            "its postmaster.pid can neither be proved nor disproved",
            evidence,
            "look again as root: sudo zcomm doctor",
        )
    for process in claim.left:
        yield Finding(
            service,
            "a process of its last server still uses the data directory",
            {"path": str(data_dir), "pid": process.pid, "proof": str(process)},
            f"kill -QUIT {process.pid}",
        )


def _trusting(path: Path) -> tuple[tuple[int, str], ...]:
    """The lines that let somebody in without a password; a peer's own account on a socket is a proof."""
    try:
        lines = path.read_text("utf-8", "replace").splitlines()
    except OSError:
        return ()
    return tuple(
        (number, " ".join(line.split()))
        for number, line in enumerate(lines, 1)
        if not line.lstrip().startswith("#") and "trust" in line.split("#")[0].split()[3:]
    )
