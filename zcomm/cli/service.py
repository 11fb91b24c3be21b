"""``zcomm service``: start, stop and look at the local servers.

What is started here outlives the command: the next one, or the next ``twistd zcomm``, takes it over as it
runs. A service that a running ``twistd zcomm`` has is shown, and stopped only there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from twisted.internet.defer import CancelledError, Deferred, DeferredList

from zcomm.cli.onreactor import run_on_reactor
from zcomm.cli.progress_notice import ProgressNotice
from zcomm.cli.token import table
from zcomm.config import data_directory
from zcomm.errors import ConfigError, ServiceError, ZCommError
from zcomm.services.declaration import check_port_number
from zcomm.services.kinds import KINDS
from zcomm.services.machine.logfile import LogFile
from zcomm.services.manager import ServiceManager
from zcomm.services.options import Setting
from zcomm.services.servicefile import load_service_files
from zcomm.services.supervision.kind import KnownKind
from zcomm.services.supervision.supervisor import Supervisor

__all__ = ["declare_service", "follow", "manager_for", "status_rows"]

#: Seconds between two looks at a log that is followed.
FOLLOW_EVERY = 0.2
#: Where a setting stands among the parsed arguments; no other argument does.
SETTING = "setting."


def declare_service(parser: argparse.ArgumentParser, kinds: Sequence[type[KnownKind]] = KINDS) -> None:
    """Declare ``zcomm service start|stop|restart|status|logs|list|url``.

    :param kinds: those whose settings a start takes.
    """
    parser.description = (
        "Start, stop and look at the local servers. What is started here goes on running after the command; the "
        "next command, or twistd zcomm, takes it over."
    )
    commands = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument(
        "--data-dir", metavar="DIR", help="where zComm keeps services, logs and locks [ZCOMM_HOME, else ~/.zolo/zcomm]"
    )
    common.add_argument(
        "--services",
        metavar="FILE",
        action="append",
        default=[],
        help="a YAML file with services of your own; repeatable",
    )
    common.add_argument("--json", action="store_true", help="print JSON, for programs")
    settings = argparse.ArgumentParser(add_help=False)
    settings.add_argument(
        "--port", type=_port, metavar="PORT|auto", dest=f"{SETTING}port", help="its port; auto takes a free one"
    )
    settings.add_argument(
        "--service-dir",
        metavar="DIR",
        dest=f"{SETTING}data_dir",
        help="its own data directory, an absolute path (below --data-dir)",
    )
    settings.add_argument("--user", metavar="NAME", dest=f"{SETTING}user", help="the account it runs as, for root")
    # A setting that several kinds have is declared once, and belongs to none of them.
    uses = Counter(setting for kind in kinds for setting in kind.settings if setting.help)
    for setting in uses:
        if uses[setting] > 1:
            _declare_setting(settings, setting)
    for kind in kinds:
        group = settings.add_argument_group(kind.examiner.title)
        for setting in kind.settings:
            if uses[setting] == 1:
                _declare_setting(group, setting)

    def add(name: str, run: Any, text: str, *more: argparse.ArgumentParser, names: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=[common, *more], help=text, description=text[0].upper() + text[1:])
        if names == "1":
            command.add_argument("name", metavar="NAME")
        else:
            command.add_argument("names", metavar="NAME", nargs=names)
        command.set_defaults(run=run)
        return command

    add("start", run_start, "start services and wait until they are ready", settings, names="+")
    stop = add("stop", run_stop, "stop services and wait until they have ended", names="+")
    stop.add_argument("--force", action="store_true", help="even if data that cannot be saved is lost")
    add("restart", run_restart, "stop services, start them with the settings they had", settings, names="+")
    add("status", run_status, "what services do; named ones: exit status 1 if one does not run", names="*")
    add("list", run_list, "the services there are, and where they keep their data", names="*")
    add("url", run_url, "the URL to connect to a service, password included", names="1")
    logs = add("logs", run_logs, "the end of a service's log", names="1")
    logs.add_argument("-n", "--lines", type=_count, default=40, metavar="N", help="how many lines (40)")
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is written")


def _declare_setting(group: argparse._ActionsContainer, setting: Setting) -> None:
    how: dict[str, Any]
    if setting.values is bool:
        how = {"action": argparse.BooleanOptionalAction}
    elif isinstance(setting.values, tuple):
        how = {"choices": setting.values}
    else:
        how = {"metavar": "DIR" if setting.values is Path else setting.name.upper()}
    option = "--" + setting.name.replace("_", "-")
    group.add_argument(option, dest=SETTING + setting.name, default=None, help=setting.help, **how)


def manager_for(args: argparse.Namespace, reactor: Any) -> ServiceManager:
    """The manager of the services that the command line speaks of; they outlive the command."""
    home = data_directory(os.environ, args.data_dir)
    manager = ServiceManager(home, os.environ, reactor, lifetime="persistent")
    for declaration in load_service_files(Path(path) for path in args.services):
        manager.add(declaration)
    return manager


# The commands.


def run_start(args: argparse.Namespace) -> int:
    """Start the named services."""

    def start(manager: ServiceManager, service: Supervisor) -> Deferred[Any]:
        return Deferred.fromCoroutine(_start(args, manager, service))

    return run_on_reactor(lambda reactor: _each(args, reactor, start))


def run_stop(args: argparse.Namespace) -> int:
    """Stop the named services."""

    def stop(manager: ServiceManager, service: Supervisor) -> Deferred[Any]:
        return Deferred.fromCoroutine(_stop(args, manager, service))

    return run_on_reactor(lambda reactor: _each(args, reactor, stop))


def run_restart(args: argparse.Namespace) -> int:
    """Restart services with the settings they had."""

    def restart(manager: ServiceManager, service: Supervisor) -> Deferred[Any]:
        return Deferred.fromCoroutine(_restart(args, manager, service))

    return run_on_reactor(lambda reactor: _each(args, reactor, restart))


def run_status(args: argparse.Namespace) -> int:
    """Show what services do."""
    return run_on_reactor(lambda reactor: _status(args, reactor))


def run_list(args: argparse.Namespace) -> int:
    """Show which services there are."""
    return run_on_reactor(lambda reactor: _list(args, reactor))


def run_url(args: argparse.Namespace) -> int:
    """Print the URL and nothing else."""
    return run_on_reactor(lambda reactor: _url(args, reactor))


def run_logs(args: argparse.Namespace) -> int:
    """Print the end of a log."""
    from twisted.internet import reactor

    manager = manager_for(args, reactor)
    log = manager.get(args.name).context.home.log
    if not log.path.exists():
        raise ServiceError(args.name, f"has no log yet ({log.path})", f"start it with: zcomm service start {args.name}")
    lines, end = _last_lines(log, args.lines)
    if args.json:
        _print_json({"name": args.name, "path": str(log.path), "lines": lines})
        return 0
    for line in lines:
        print(line)
    sys.stdout.flush()
    if args.follow:
        follow(log, sys.stdout, end)
    return 0


# What they do.


async def _each(args: argparse.Namespace, reactor: Any, act: Any) -> int:
    """Act on every named service at once, say what is slow, then show how they are."""
    manager = manager_for(args, reactor)
    try:
        services = {name: manager.get(name) for name in args.names}
        names = list(services)
        outcomes: list[Deferred[Any]] = [act(manager, service) for service in services.values()]
        notice = ProgressNotice(manager, names, reactor, sys.stderr)
        try:
            results = await DeferredList(outcomes, consumeErrors=True)
        finally:
            notice.stop()
        failures = {name: result for name, (fine, result) in zip(names, results, strict=True) if not fine}
        if any(failure.check(CancelledError) for failure in failures.values()):
            # Interrupted: what is ready stays, and the manager gives up what is not.
            raise CancelledError()
        status = {name: await manager.status_of(service) for name, service in services.items()}
    finally:
        await manager.stopService()
    for failure in failures.values():
        if not failure.check(ZCommError):
            failure.raiseException()
    if args.json:
        for name, failure in failures.items():
            error = failure.value
            status[name] = {**status[name], "error": str(error), "fix": getattr(error, "fix", "")}
        _print_json(status)
    else:
        shown = {name: one for name, one in status.items() if name not in failures}
        if shown:
            print(_status_table(shown))
        for failure in failures.values():
            print(f"zcomm: {failure.value}", file=sys.stderr)
    return 1 if failures else 0


async def _start(args: argparse.Namespace, manager: ServiceManager, service: Supervisor) -> Any:
    settings = _settings(args)
    options = service.kind.read_options(settings) if settings else None
    if any(key in settings for key in ("port", "data_dir")):
        now = await manager.status_of(service)
        moved = settings.get("port") not in (None, "auto", now["port"])
        moved = moved or settings.get("data_dir") not in (None, now["data_dir"])
        if now["running"] and now["managed"] and moved:
            where = f"on port {now['port']} with its data in {now['data_dir']}"
            raise ServiceError(
                service.name,
                f"it already runs, {where}",
                f"move it with: zcomm service restart {service.name} and the same options",
            )
    return await manager.start_service(service, options)


async def _stop(args: argparse.Namespace, manager: ServiceManager, service: Supervisor) -> None:
    await service.stop(args.force)
    now = await manager.status_of(service)
    if now["running"] and now["managed"]:
        raise ServiceError(service.name, f"it still runs (pid {now['pid']})", f"end it with: kill {now['pid']}")


async def _restart(args: argparse.Namespace, manager: ServiceManager, service: Supervisor) -> Any:
    settings = _settings(args)
    return await manager.restart_service(service, service.kind.read_options(settings) if settings else None)


async def _looked_at(args: argparse.Namespace, reactor: Any) -> dict[str, dict[str, Any]]:
    """The status of the named services, or of all."""
    manager = manager_for(args, reactor)
    try:
        services = [manager.get(name) for name in args.names or manager.names]
        return {service.name: await manager.status_of(service) for service in services}
    finally:
        await manager.stopService()


async def _status(args: argparse.Namespace, reactor: Any) -> int:
    status = await _looked_at(args, reactor)
    if args.json:
        _print_json(status)
    else:
        print(_status_table(status))
    return 1 if args.names and not all(one["running"] for one in status.values()) else 0


async def _list(args: argparse.Namespace, reactor: Any) -> int:
    status = await _looked_at(args, reactor)
    if args.json:
        shown = ("name", "state", "port", "data_dir", "log")
        _print_json([{key: one[key] for key in shown} for one in status.values()])
    else:
        rows = [(name, one["state"], _text(one["port"]), one["data_dir"], one["log"]) for name, one in status.items()]
        print(table(("NAME", "STATE", "PORT", "DATA", "LOG"), rows))
    return 0


async def _url(args: argparse.Namespace, reactor: Any) -> int:
    manager = manager_for(args, reactor)
    try:
        status = await manager.status(args.name)
        info = manager.connection_info(args.name)
    finally:
        await manager.stopService()
    if status["running"] and not status["managed"]:
        # A URL here would lead a program with our password to somebody else's server.
        raise ServiceError(
            args.name,
            f"the server on port {status['port']} is not one that zComm started",
            f"start ours beside it: zcomm service start {args.name} --port auto",
        )
    if args.json:
        _print_json(info)
    else:
        print(info["connection_string"])
    if not status["running"]:
        print(f"zcomm: {args.name} is not running; start it with: zcomm service start {args.name}", file=sys.stderr)
        return 1
    return 0


def follow(log: LogFile, out: TextIO, position: int, turns: int | None = None) -> None:
    """Print what is added to a log until interrupted, over rotations; **blocks**.

    :param position: where to go on, in bytes.
    :param turns: how often to look, for ever by default.
    """
    while turns is None or turns > 0:
        size = log.size()
        if size < position:
            position = 0
        if size > position:
            with open(log.path, "rb") as file:
                file.seek(position)
                added = file.read(size - position)
            position += len(added)
            out.write(added.decode("utf-8", "replace"))
            out.flush()
        else:
            time.sleep(FOLLOW_EVERY)
        turns = turns - 1 if turns is not None else None


def _last_lines(log: LogFile, count: int) -> tuple[list[str], int]:
    """The last lines of a log, and where its end was: what is written later is left to :func:`follow`."""
    with open(log.path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        start = max(0, end - max(16384, count * 400))
        file.seek(start)
        text = file.read(end - start).decode("utf-8", "replace")
    return text.splitlines()[-count:] if count else [], end


# Small things.


def status_rows(status: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The table of a status, without its headings."""
    return [
        (
            name,
            one["state"] + ("" if one["managed"] else " (not by zComm)"),
            one["health"] if one["running"] else "",
            _text(one["pid"]),
            _text(one["port"]),
            one["uptime"] or "",
            one["version"],
            one["user"],
        )
        for name, one in status.items()
    ]


def _status_table(status: Mapping[str, Mapping[str, Any]]) -> str:
    headings = ("NAME", "STATE", "HEALTH", "PID", "PORT", "UPTIME", "VERSION", "USER")
    lines = [table(headings, status_rows(status))]
    for name, one in status.items():
        if one["reason"]:
            lines.append(f"{name}: {one['reason']}" + (f"; {one['fix']}" if one["fix"] else ""))
    return "\n".join(lines)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    given = {name.removeprefix(SETTING): value for name, value in vars(args).items() if name.startswith(SETTING)}
    return {name: value for name, value in given.items() if value is not None}


def _port(text: str) -> int | str:
    try:
        return check_port_number(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(error.reason) from None


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or int(text) > 1_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of lines")
    return int(text)


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))
