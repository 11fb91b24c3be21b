"""``zcomm doctor``: what is wrong on this machine with the servers that zComm runs, with evidence and a fix."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

from zcomm.cli.onreactor import run_on_reactor
from zcomm.cli.service import manager_for
from zcomm.errors import ZCommError
from zcomm.services.doctor.findings import findings
from zcomm.services.doctor.inventory import Inventory, take_inventory
from zcomm.services.examination import Finding, ServiceSite
from zcomm.services.manager import ServiceManager

__all__ = ["declare_doctor", "sites_of", "report"]


def declare_doctor(doctor: argparse.ArgumentParser) -> None:
    """Declare ``zcomm doctor``."""
    doctor.description = (
        "Look at the server programs, the running servers and the data directories, and say what is wrong, with the "
        "evidence and a fix that can be undone. Nothing is changed. Status 1 when something was found."
    )
    doctor.add_argument(
        "--data-dir", metavar="DIR", help="where zComm keeps services, logs and locks [ZCOMM_HOME, else ~/.zolo/zcomm]"
    )
    doctor.add_argument(
        "--services",
        metavar="FILE",
        action="append",
        default=[],
        help="a YAML file with services of your own; repeatable",
    )
    doctor.add_argument("--json", action="store_true", help="print JSON, for programs")
    doctor.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Look, and print what was found."""
    return run_on_reactor(lambda reactor: _examine(args, reactor))


async def _examine(args: argparse.Namespace, reactor: Any) -> int:
    manager = manager_for(args, reactor)
    try:
        sites, refused = sites_of(manager)
        seen = await take_inventory(sites, os.environ, manager.kinds, reactor=reactor)
    finally:
        await manager.stopService()
    found = [*refused, *findings(seen)]
    if args.json:
        print(json.dumps(_as_json(seen, found), indent=2, ensure_ascii=False, default=str))
    else:
        print(report(seen, found))
    return 1 if found else 0


def sites_of(manager: ServiceManager) -> tuple[list[ServiceSite], list[Finding]]:
    """The data directories of the manager's services of known kinds, and the findings of those set up wrongly."""
    sites, refused = [], []
    known = [kind.declaration for kind in manager.kinds]
    for name in manager.names:
        service = manager.get(name)
        if not service.declaration.kind:
            continue
        try:
            options = service.kind.read_options({})
            data_dir = service.context.data_dir()
            sites.append(
                ServiceSite(
                    service=name,
                    kind=service.declaration.kind,
                    data_dir=data_dir,
                    account=service.context.account_for(data_dir, options.user),
                    port=service.context.port(),
                    log=service.context.home.log.path,
                    host=service.declaration.host,
                    used=service.declaration not in known or service.context.home.directory.exists(),
                )
            )
        except ZCommError as error:
            refused.append(
                Finding(name, str(error), {"setting": getattr(error, "name", "")}, getattr(error, "fix", ""))
            )
    return sites, refused


def report(seen: Inventory, found: Sequence[Finding]) -> str:
    """The report for people: the inventory, then the findings."""
    lines = ["Looked at"]
    for kind, several in seen.installations.items():
        lines += [f"  {one}" for one in several] or [f"  no {seen.kind(kind).examiner.title} server is installed"]
    for server in seen.servers:
        ports = ", ".join(str(port) for port in sorted({port for _, port in server.listens})) or "none"
        lines.append(
            f"  running: {server.name}, pid {server.pid}, user {server.user}, port {ports}, "
            f"in {server.directory or 'a directory this user may not see'}"
        )
    lines += [
        f"  {one.site.service}: {one.site.data_dir}" + ("" if one.facts.kind == "directory" else f" ({one.facts.kind})")
        for one in seen.sites
    ]
    if not found:
        return "\n".join([*lines, "", "Nothing is wrong."])
    lines += ["", "One problem" if len(found) == 1 else f"{len(found)} problems"]
    for number, one in enumerate(found, 1):
        lines.append(f"{number:3}. {one.service}: {one.problem}")
        lines += [f"       {name}: {text}" for name, text in _flat(one.evidence)]
        if one.fix:
            lines.append(f"     fix: {one.fix}")
    return "\n".join(lines)


def _flat(evidence: Mapping[str, Any]) -> list[tuple[str, str]]:
    flat = []
    for name, value in evidence.items():
        if value is None or value == "":
            continue
        if isinstance(value, list) and value and isinstance(value[0], Mapping):
            flat += [(name, ", ".join(f"{key} {text}" for key, text in _flat(one))) for one in value]
        else:
            flat.append((name, ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return flat


def _as_json(seen: Inventory, found: Sequence[Finding]) -> dict[str, Any]:
    return {
        "findings": [one.as_dict() for one in found],
        "installations": [
            {"flavour": one.flavour, "version": one.version_text, "server": str(one.server), "source": one.source}
            for several in seen.installations.values()
            for one in several
        ],
        "servers": [
            {
                "kind": one.kind,
                "pid": one.pid,
                "program": one.name,
                "user": one.user,
                "status": one.status,
                "started": one.started,
                "directory": str(one.directory) if one.directory else None,
                "listens": [f"{address}:{port}" for address, port in one.listens],
            }
            for one in seen.servers
        ],
        "services": [
            {"name": one.site.service, "data_dir": str(one.site.data_dir), "port": one.site.port} for one in seen.sites
        ],
    }
