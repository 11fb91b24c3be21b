"""The console command ``zcomm``: everything that is not a daemon.

Each command of :data:`COMMANDS` is declared and run by a module of this package, which is imported for that
command alone: ``zcomm token list`` and ``zcomm --help`` do not wait for what starts services. Its
``declare_<command>(parser)`` adds subcommands and options with :mod:`argparse` and sets ``run``, a callable from
the parsed arguments to an exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from zcomm._version import __version__
from zcomm.errors import ZCommError

__all__ = ["main"]

#: The commands in the order of ``zcomm --help``: the module, and what it is for.
COMMANDS = {
    "token": ("token", "the tokens that clients log in with"),
    "service": ("service", "the local servers: PostgreSQL, Redis and others"),
    "doctor": ("doctor", "what is wrong with the local servers on this machine"),
    "url": ("client", "print the link to the running server's page, good for one sign-in within ten minutes"),
    "call": ("client", "send one command to a running server and print its result"),
    "publish": ("client", "send one message to the subscribers of a topic"),
    "live": ("live", "the log by which live queries see writes of other programs, in a database"),
}


def parser(declared: Iterable[str] = COMMANDS) -> argparse.ArgumentParser:
    """The command line.

    :param declared: the commands that can be parsed; of the others there is no more than the name and the help.
    """
    root = argparse.ArgumentParser(
        prog="zcomm",
        description="Tokens, local services and calls of zComm. The server itself is `twistd zcomm`.",
    )
    root.add_argument("--version", action="version", version=f"zcomm {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND")
    for name, (module, text) in COMMANDS.items():
        command = commands.add_parser(name, help=text)
        if name in declared:
            getattr(import_module(f"{__name__}.{module}"), f"declare_{name}")(command)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 it failed, 2 wrong usage."""
    given = sys.argv[1:] if argv is None else argv
    # Before the command only --help and --version can stand, which need none.
    root = parser(given[:1])
    args = root.parse_args(given)
    if args.command is None:
        root.print_help(sys.stderr)
        return 2
    try:
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # Whoever reads (head, a pager) has seen enough; what is left must not complain when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ZCommError as error:
        print(f"zcomm: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
