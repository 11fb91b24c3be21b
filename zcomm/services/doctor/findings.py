"""What is wrong on this machine with PostgreSQL and Redis, with the evidence and a fix that can be undone.

The decisions are functions of a :class:`~zcomm.services.doctor.inventory.Survey`. No fix deletes anything; where
something is in the way, it is moved aside.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from twisted.internet.defer import Deferred

from zcomm.errors import DataDirectoryError, ServiceError
from zcomm.runtime.files import user_name
from zcomm.services.doctor.inventory import LookedAt, Place, RunningServer, Survey, survey
from zcomm.services.kinds.postgresql.lockfile import Claim
from zcomm.services.kinds.redis.rdb import read_rdb_headers
from zcomm.services.supervision.diagnosis import diagnose
from zcomm.services.supervision.directories import (
    SPACE_NEEDED,
    judge_postgresql_directory,
    judge_redis_directory,
    judge_space,
    postgresql_for,
    redis_for,
)
from zcomm.services.supervision.installations import describe
from zcomm.services.supervision.programs import install_hint, system_families

__all__ = ["Finding", "examine", "findings"]

_NAMES = {"postgresql": "PostgreSQL", "redis": "Redis"}
_LOOPBACK = ("127.", "::1", "::ffff:127.")
_COMPLAINED = re.compile(r"FATAL|PANIC|ERROR|# |No space left")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    :ivar service: the service or kind of server it is about.
    :ivar problem: what is wrong, in one sentence.
    :ivar evidence: what shows it: pid, start, owner, version, path, the line of a file.
    :ivar fix: the command or setting that mends it and can be undone.
    """

    service: str
    problem: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    fix: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self)


def examine(places: Sequence[Place], environ: Mapping[str, str], reactor: Any = None) -> Deferred[list[Finding]]:
    """Look at the machine and say what is wrong.

    :param places: the services as they are set up.
    :param environ: where programs are looked for.
    :return: fires with the findings, an empty list when nothing is wrong.
    """
    return survey(places, environ, reactor).addCallback(findings)


def findings(seen: Survey) -> list[Finding]:
    """What is wrong in *seen*."""
    return [
        *_missing_programs(seen),
        *_wrong_servers(seen.servers),
        *_clashes(seen.servers),
        *(finding for one in seen.places for finding in _wrong_place(one, seen)),
    ]


def _missing_programs(seen: Survey) -> Iterator[Finding]:
    for kind, found in seen.installations.items():
        if not found:
            yield Finding(
                kind,
                f"no {_NAMES[kind]} server is installed",
                {"found": describe(found)},
                install_hint(kind, families=system_families()),
            )


def _wrong_servers(servers: Sequence[RunningServer]) -> Iterator[Finding]:
    for one in servers:
        name, end = _NAMES[one.kind], f"kill -{'INT' if one.kind == 'postgresql' else 'TERM'} {one.pid}"
        evidence = _evidence(one)
        if one.status == psutil.STATUS_ZOMBIE:
            yield Finding(
                one.kind,
                f"a {name} has ended, and its parent has not taken notice",
                evidence,
                "end or restart its parent; until then its directory may count as used",
            )
            continue
        if one.status == psutil.STATUS_STOPPED:
            yield Finding(
                one.kind,
                f"a {name} is halted: it accepts connections and answers none",
                evidence,
                f"kill -CONT {one.pid}",
            )
        if one.backend:
            yield Finding(
                one.kind,
                "a process of a PostgreSQL whose server is gone still computes; "
                "no other server can start in its directory",
                evidence,
                f"kill -QUIT {one.pid}",
            )
            continue
        if one.vanished:
            yield Finding(
                one.kind,
                f"the data directory of a running {name} was deleted",
                evidence,
                "dump its data while it runs, then end it: " + end,
            )
        elif one.claimed is False:
            yield Finding(
                one.kind,
                "a running PostgreSQL is not the one its postmaster.pid names; it ends by itself within a minute",
                evidence,
                f"stop it in good order: {end}",
            )
        if one.uid == 0:
            yield Finding(
                one.kind,
                f"a {name} runs as root",
                evidence,
                "stop it and run it under an account of its own, as zcomm service start does",
            )
        outside = [f"{address}:{port}" for address, port in one.listens if not address.startswith(_LOOPBACK)]
        if outside:
            setting = "listen_addresses = 'localhost'" if one.kind == "postgresql" else "bind 127.0.0.1 -::1"
            yield Finding(
                one.kind,
                f"a {name} listens for other machines",
                {**evidence, "listens": outside},
                f"if that is not meant, set {setting} in its configuration and restart it",
            )


def _clashes(servers: Sequence[RunningServer]) -> Iterator[Finding]:
    for kind, port, group in _groups(servers, lambda one: sorted({port for _, port in one.listens})):
        yield Finding(
            kind,
            f"port {port} leads to different servers, depending on the address",
            {"servers": [_evidence(one) for one in group]},
            "give one of them another port",
        )
    redis = [one for one in servers if one.kind == "redis" and one.directory is not None]
    for kind, directory, group in _groups(redis, lambda one: [one.directory]):
        if str(directory) not in ("/", "/root") and all(one.uid == group[0].uid for one in group):
            yield Finding(
                kind,
                f"several servers work in {directory}: the last one to end overwrites the snapshots of the others",
                {"servers": [_evidence(one) for one in group]},
                "give each a directory of its own (dir …)",
            )


def _groups(
    servers: Sequence[RunningServer],
    keys: Callable[[RunningServer], Sequence[Any]],
) -> Iterator[tuple[str, Any, list[RunningServer]]]:
    by_key: dict[Any, list[RunningServer]] = {}
    for one in servers:
        for key in keys(one):
            by_key.setdefault(key, []).append(one)
    return ((group[0].kind, key, group) for key, group in by_key.items() if len(group) > 1)


def _wrong_place(one: LookedAt, seen: Survey) -> Iterator[Finding]:
    place, facts = one.place, one.facts
    service = place.service
    evidence: dict[str, Any] = {"path": str(facts.path), "kind": facts.kind}
    if facts.kind == "directory":
        evidence.update(owner=user_name(facts.uid), mode=f"{facts.mode:04o}", version=facts.version)
    yield from _complaint(service, lambda: _judge_directory(one), evidence)
    installed = seen.installations.get(place.kind, ())
    if installed and facts.kind == "directory":
        yield from _complaint(service, lambda: _judge_version(one, seen), {**evidence, "here": describe(installed)})
    yield from _complaint(
        service,
        lambda: judge_space(service, place.data_dir, one.free),
        {"path": str(place.data_dir), "free_mb": one.free // 2**20, "needed_mb": SPACE_NEEDED // 2**20},
    )
    runs = _own_server(one, seen.servers)
    if place.kind == "postgresql":
        yield from _wrong_claim(one)
    elif one.append_only is False and one.snapshot and _wants_append_only(one):
        yield Finding(
            service,
            "with appendonly yes the snapshot would be ignored and the server start empty",
            {"path": str(place.data_dir / "dump.rdb"), "size": one.snapshot},
            "start without it, then: redis-cli config set appendonly yes",
        )
    for path in one.unfinished:
        yield Finding(
            service, "an interrupted initialisation left a directory behind", {"path": str(path)}, _aside(path)
        )
    for number, line in one.trusting:
        yield Finding(
            service,
            "PostgreSQL lets in every local user without a password",
            {"path": str(place.data_dir / "pg_hba.conf"), "line": f"{number}: {line}"},
            "set passwords, write scram-sha-256 for trust, then: select pg_reload_conf()",
        )
    if one.readable:
        yield Finding(
            service,
            "every user of this machine may read its files",
            {"files": [str(path) for path in one.readable]},
            shlex.join(["chmod", "0700", str(place.data_dir)]),
        )
    if one.holder is not None and runs is None:
        yield Finding(
            service,
            f"its port {place.port} is taken by another program",
            {"holder": str(one.holder), "command": one.holder.command},
            f"zcomm service start {service} --port auto",
        )
    if runs is None:
        yield from _last_words(one)


def _judge_directory(one: LookedAt) -> None:
    judge = judge_postgresql_directory if one.place.kind == "postgresql" else judge_redis_directory
    judge(one.facts, one.place.account.uid, one.place.account.name, one.place.service)


def _judge_version(one: LookedAt, seen: Survey) -> None:
    found = seen.installations[one.place.kind]
    if one.place.kind == "postgresql":
        if one.facts.version is not None:
            postgresql_for(found, one.facts, one.place.service)
    else:
        redis_for(found, read_rdb_headers(one.place.service, one.place.data_dir), one.place.service)


def _complaint(service: str, judge: Callable[[], Any], evidence: Mapping[str, Any]) -> Iterator[Finding]:
    """What a check that raises has to say, as a finding."""
    try:
        judge()
    except DataDirectoryError as error:
        yield Finding(service, error.reason, {**evidence, "path": error.path}, error.fix)
    except ServiceError as error:
        yield Finding(service, error.reason, evidence, error.fix)


def _wrong_claim(one: LookedAt) -> Iterator[Finding]:
    claim, service = one.claim, one.place.service
    if claim is None:
        return
    file = one.place.data_dir / "postmaster.pid"
    evidence = {"path": str(file), "pid": claim.pid, "proof": claim.proof}
    if claim.claim is Claim.FALSE:
        yield Finding(service, "its postmaster.pid is false, and PostgreSQL would believe it", evidence, _aside(file))
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
            {"path": str(one.place.data_dir), "pid": process.pid, "proof": str(process)},
            f"kill -QUIT {process.pid}",
        )


def _wants_append_only(one: LookedAt) -> bool:
    try:
        text = (one.place.data_dir / "redis.conf").read_text("utf-8", "replace")
    except OSError:
        return False
    return re.search(r"(?mi)^\s*appendonly\s+yes\b", text) is not None


def _own_server(one: LookedAt, servers: Sequence[RunningServer]) -> RunningServer | None:
    for server in servers:
        if server.directory is not None and not server.vanished and not server.backend:
            if Path(server.directory) == one.place.data_dir and server.status != psutil.STATUS_ZOMBIE:
                return server
    return None


def _last_words(one: LookedAt) -> Iterator[Finding]:
    """The last complaint in the log of a service that does not run, if nothing came after it."""
    words = [line for line in one.log.splitlines() if line.strip()][-20:]
    cause = diagnose(one.place.kind, "\n".join(words))
    if cause.permanent and any(_COMPLAINED.search(line) for line in words):
        yield Finding(
            one.place.service,
            "its last start failed, and the next would fail the same way",
            {"log": str(one.place.log), "reason": cause.reason},
            cause.fix,
        )


def _aside(path: Path) -> str:
    return shlex.join(["mv", str(path), f"{path}.aside"])


def _evidence(one: RunningServer) -> dict[str, Any]:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(one.started))
    told: dict[str, Any] = {"pid": one.pid, "program": one.name, "user": one.user, "since": since}
    if one.directory is not None:
        told["directory"] = str(one.directory)
    if one.listens:
        told["listens"] = [f"{address}:{port}" for address, port in one.listens]
    return told
