"""Findings: what is wrong with this machine's local servers, with the evidence and a fix that can be undone.

The decisions are functions of an :class:`~zcomm.services.doctor.inventory.Inventory`; each kind adds its own by its
:class:`~zcomm.services.examination.Examiner`. No fix deletes anything; where something is in the way, it is moved
aside.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from zcomm.services.doctor.inventory import Inventory
from zcomm.services.examination import Finding, RunningServer, SiteFacts, complaint, evidence_of
from zcomm.services.machine.directories import SPACE_NEEDED, judge_space
from zcomm.services.machine.installations import describe
from zcomm.services.machine.programs import describe_unrecognised, install_hint, system_families
from zcomm.services.supervision.diagnosis import LogReading, diagnose

__all__ = ["findings"]

_LOOPBACK = ("127.", "::1", "::ffff:127.")
_COMPLAINED = re.compile(r"FATAL|PANIC|ERROR|# |No space left|could not|cannot access")


def findings(seen: Inventory) -> list[Finding]:
    """The findings about *seen*; empty when nothing is wrong."""
    return [
        *_missing_programs(seen),
        *(finding for one in seen.servers for finding in _wrong_server(one, seen)),
        *_clashes(seen),
        *(finding for one in seen.sites for finding in _wrong_site(one, seen)),
    ]


def _missing_programs(seen: Inventory) -> Iterator[Finding]:
    for name, found in seen.installations.items():
        if found or not _is_used(name, seen):
            continue
        kind = seen.kind(name)
        strangers = seen.unrecognised.get(name)
        yield Finding(
            name,
            f"no {kind.examiner.title} server is installed",
            {"found": describe_unrecognised(strangers) if strangers else describe(found)},
            install_hint(kind.programs, families=system_families()),
        )


def _is_used(kind: str, seen: Inventory) -> bool:
    """Whether a service of that kind is used here; taken for granted where no service of it was looked at."""
    places = [one for one in seen.sites if one.site.kind == kind]
    return not places or any(one.site.used or one.facts.kind != "missing" for one in places)


def _wrong_server(one: RunningServer, seen: Inventory) -> Iterator[Finding]:
    examiner = seen.kind(one.kind).examiner
    name, end, evidence = examiner.title, f"kill -{examiner.end} {one.pid}", evidence_of(one)
    if one.status == psutil.STATUS_ZOMBIE:
        yield Finding(
            one.kind,
            f"a {name} has ended, and its parent has not taken notice",
            evidence,
            "end or restart its parent; until then its directory may count as used",
        )
        return
    if one.status == psutil.STATUS_STOPPED:
        yield Finding(
            one.kind,
            f"a {name} is halted: it accepts connections and answers none",
            evidence,
            f"kill -CONT {one.pid}",
        )
    if one.orphan:
        yield Finding(
            one.kind,
            f"a process of a {name} whose server is gone still computes; no other server can start in its directory",
            evidence,
            f"kill -QUIT {one.pid}",
        )
        return
    if one.vanished:
        yield Finding(
            one.kind,
            f"the data directory of a running {name} was deleted",
            evidence,
            "dump its data while it runs, then end it: " + end,
        )
    else:
        yield from examiner.judge_server(one)
    if one.uid == 0:
        yield Finding(
            one.kind,
            f"a {name} runs as root",
            evidence,
            "stop it and run it under an account of its own, as zcomm service start does",
        )
    outside = [f"{address}:{port}" for address, port in one.listens if not address.startswith(_LOOPBACK)]
    if outside:
        yield Finding(
            one.kind,
            f"a {name} listens for other machines",
            {**evidence, "listens": outside},
            f"if that is not meant, set {examiner.loopback} in its configuration and restart it",
        )


def _clashes(seen: Inventory) -> Iterator[Finding]:
    by_port: dict[int, list[RunningServer]] = {}
    for one in seen.servers:
        for port in sorted({port for _, port in one.listens}):
            by_port.setdefault(port, []).append(one)
    for port, group in by_port.items():
        if len(group) > 1:
            yield Finding(
                group[0].kind,
                f"port {port} leads to different servers, depending on the address",
                {"servers": [evidence_of(one) for one in group]},
                "give one of them another port",
            )
    for kind in seen.kinds:
        yield from kind.examiner.judge_servers([one for one in seen.servers if one.kind == kind.name])


def _wrong_site(one: SiteFacts, seen: Inventory) -> Iterator[Finding]:
    site, service = one.site, one.site.service
    kind = seen.kind(site.kind)
    yield from kind.examiner.judge_site(one, seen.installations.get(site.kind, ()))
    yield from complaint(
        service,
        lambda: judge_space(service, site.data_dir, one.free),
        {"path": str(site.data_dir), "free_mb": one.free // 2**20, "needed_mb": SPACE_NEEDED // 2**20},
    )
    for path in one.unfinished:
        yield Finding(
            service,
            "an interrupted initialisation left a directory behind",
            {"path": str(path)},
            shlex.join(["mv", str(path), f"{path}.aside"]),
        )
    if one.readable:
        yield Finding(
            service,
            "every user of this machine may read its files",
            {"files": [str(path) for path in one.readable]},
            shlex.join(["chmod", "0700", str(site.data_dir)]),
        )
    if _own_server(one, seen.servers) is None:
        if one.holder is not None:
            yield Finding(
                service,
                f"its port {site.port} is taken by another program",
                {"holder": str(one.holder), "command": one.holder.command},
                f"zcomm service start {service} --port auto",
            )
        yield from _last_words(one, kind.log)


def _own_server(one: SiteFacts, servers: Sequence[RunningServer]) -> RunningServer | None:
    for server in servers:
        if server.directory is not None and not server.vanished and not server.orphan:
            if Path(server.directory) == one.site.data_dir and server.status != psutil.STATUS_ZOMBIE:
                return server
    return None


def _last_words(one: SiteFacts, reading: LogReading) -> Iterator[Finding]:
    """The last complaint in the log of a service that does not run, if nothing came after it."""
    words = [line for line in one.log.splitlines() if line.strip()][-20:]
    cause = diagnose(reading, "\n".join(words))
    if cause.permanent and any(_COMPLAINED.search(line) for line in words):
        yield Finding(
            one.site.service,
            "its last start failed, and the next would fail the same way",
            {"log": str(one.site.log), "reason": cause.reason},
            cause.fix,
        )
