"""The console command ``zcomm``: everything that is not a daemon.

Each module of this package is one group of subcommands. It has ``add_commands(subparsers)``, which
declares them with :mod:`argparse` and sets ``run`` (a callable from the parsed arguments to an
exit status) on each.
"""
from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import Sequence

from zcomm._version import __version__
from zcomm.errors import ZCommError

__all__ = ["main"]

#: The groups, in the order in which ``zcomm --help`` lists them.
GROUPS = ("token", "service", "doctor", "client")


def parser() -> argparse.ArgumentParser:
    """The whole command line, for :func:`main` and for the documentation."""
    root = argparse.ArgumentParser(
        prog="zcomm",
        description="Tokens, local services and calls of zComm. The server itself is `twistd zcomm`.",
    )
    root.add_argument("--version", action="version", version=f"zcomm {__version__}")
    commands = root.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for group in GROUPS:
        import_module(f"{__name__}.{group}").add_commands(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status: 0 done, 1 it failed, 2 wrong usage."""
    args = parser().parse_args(argv)
    try:
        status = args.run(args)
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
