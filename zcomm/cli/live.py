"""``zcomm live``: the log by which live queries see what other programs write, for whoever looks after the database."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from zcomm.config import Config, data_directory
from zcomm.data.drivers import open_database
from zcomm.data.drivers.driver import Fault
from zcomm.data.execution import Execution
from zcomm.data.models import Model
from zcomm.errors import CommandError, ConfigError
from zcomm.host.host import schema_of
from zcomm.live.administration import Administration, administration, explain
from zcomm.live.requests import parse_live
from zcomm.text import did_you_mean, quoted

__all__ = ["declare_live"]

#: Seconds that a statement may take.
TIMEOUT = 30.0


def declare_live(live: argparse.ArgumentParser) -> None:
    """Declare ``zcomm live`` and its subcommands."""
    live.description = (
        "Live queries see what psql or another program writes by a log that triggers keep while somebody watches. A "
        "server makes it by itself where it may; here is what it would do, and what there is."
    )
    commands = live.add_subparsers(dest="subcommand", metavar="COMMAND", required=True)
    for name, run, text in (
        ("sql", print_sql, "print the SQL that has tables watched, for their owner to run; nothing is changed"),
        ("on", install, "have tables watched"),
        ("off", remove, "remove the log and its triggers"),
        ("status", print_status, "print what is watched, by whom, and how large the log is"),
        ("explain", print_explanation, "print how a live query would be kept up to date"),
    ):
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        command.add_argument(
            "--database",
            metavar="URL",
            help="the database [ZCOMM_DATABASE, else SQLite in the data directory]",
        )
        command.add_argument(
            "--schema", metavar="FILE", action="append", default=[], help="a zSchema file; repeatable [the demo's]"
        )
        command.add_argument("--data-dir", metavar="DIR", help="the data directory [ZCOMM_HOME, else ~/.zolo/zcomm]")
        if name in ("sql", "on"):
            command.add_argument(
                "models", metavar="MODEL", nargs="*", help="those that are meant [all that the schema says are live]"
            )
        if name == "explain":
            command.add_argument("model", metavar="MODEL")
            command.add_argument("--where", metavar="JSON", help="the filter, as of a read")
            command.add_argument("--order-by", metavar="TEXT", help='such as "created_at DESC"')
            command.add_argument("--limit", metavar="N", type=int, help="how many rows")
        command.set_defaults(run=run)


def _with_database(args: argparse.Namespace, work: Callable[[Execution, str], int]) -> int:
    """Do ``work`` on the database that is meant, with its URL as it may be shown; returns the exit status."""
    database = args.database or os.environ.get("ZCOMM_DATABASE", "").strip()
    schemas = tuple(Path(each) for each in args.schema)
    config = Config(data_directory(os.environ, args.data_dir), database=database, schemas=schemas)
    if config.database_service is not None:
        raise ConfigError("--database", "give the URL of the database itself; `zcomm service status` tells it")
    found, url = open_database(config.database_url, TIMEOUT, TIMEOUT)
    execution = Execution(found, url, schema_of(config), 3, TIMEOUT, time.time)
    try:
        execution.look()
        return work(execution, url)
    except Fault as fault:
        raise ConfigError(url, f"the database cannot be used: {fault.detail or fault.kind}") from None
    finally:
        execution.pool.close()


def _administered(args: argparse.Namespace, work: Callable[[Execution, Administration], int]) -> int:
    def run(execution: Execution, url: str) -> int:
        log = administration(execution, url, time.time)
        try:
            return work(execution, log)
        finally:
            log.close()

    return _with_database(args, run)


def _models(execution: Execution, names: list[str]) -> list[Model]:
    """The models that are meant.

    :raises ConfigError: for a name that is none, and where none is meant.
    """
    models = execution.schema.models
    for name in names:
        if name not in models:
            raise ConfigError("MODEL", f"there is no model {quoted(name)}{did_you_mean(name, models)}")
    found = [models[name] for name in names] or [model for model in models.values() if model.live]
    if not found:
        raise ConfigError("MODEL", "no model of the schema says live: true; name those that are meant")
    return found


def print_sql(args: argparse.Namespace) -> int:
    """Print SQL; nothing is changed."""

    def work(execution: Execution, log: Administration) -> int:
        for model in _models(execution, args.models):
            print(log.sql(model), end="")
        return 0

    return _administered(args, work)


def install(args: argparse.Namespace) -> int:
    """Have tables watched. Status 1 where one is not."""

    def work(execution: Execution, log: Administration) -> int:
        reasons = log.install(_models(execution, args.models))
        for name, reason in reasons.items():
            print(f"{name}: not watched: {reason}" if reason else f"{name}: watched")
        return 1 if any(reasons.values()) else 0

    return _administered(args, work)


def remove(args: argparse.Namespace) -> int:
    """Remove the log and its triggers. Status 1 where some stay."""

    def work(execution: Execution, log: Administration) -> int:
        left = log.remove()
        for table in left:
            print(f"{table}: watched still, as it belongs to another role")
        if left:
            return 1
        print(
            "the log and its triggers are removed; a server makes them again where its schema says live, when it "
            "starts, and within a minute while it runs"
        )
        return 0

    return _administered(args, work)


def print_status(args: argparse.Namespace) -> int:
    """Print what there is."""

    def work(execution: Execution, log: Administration) -> int:
        print("\n".join(log.state()))
        return 0

    return _administered(args, work)


def print_explanation(args: argparse.Namespace) -> int:
    """Print how a query would be kept."""
    try:
        where = None if args.where is None else json.loads(args.where)
    except ValueError as error:
        raise ConfigError("--where", f"is no JSON: {error}") from None

    def work(execution: Execution, url: str) -> int:
        (model,) = _models(execution, [args.model])
        asked = {"where": where, "order_by": args.order_by, "limit": args.limit}
        try:
            live = parse_live({"query": "explained", "model": model.name, **asked})
            lines = explain(model, live.command, execution.database.name == "sqlite")
        except CommandError as error:
            print(f"zcomm: {error}", file=sys.stderr)
            return 1
        print("\n".join(lines))
        return 0

    return _with_database(args, work)
