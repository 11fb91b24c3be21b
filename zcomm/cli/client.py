"""``zcomm url``: the link that opens a running server's page, signed in."""
from __future__ import annotations

import argparse
import json
import os
import sys

from zcomm.config import data_directory
from zcomm.credentials import OperatorCredentials
from zcomm.program import credentials_path
from zcomm.runfile import read_run_file

__all__ = ["add_commands"]


def add_commands(commands: argparse._SubParsersAction) -> None:  # type: ignore[type-arg]
    """Declare ``url``."""
    url = commands.add_parser(
        "url", help="print the link to the running server's page, with your token in its fragment",
        description="Print the link that opens the page of the running server, signed in. The token stands in the "
                    "fragment, which a browser keeps to itself.",
    )
    url.add_argument("--data-dir", metavar="DIR", help="the server's data directory [ZCOMM_HOME, else ~/.zolo/zcomm]")
    url.add_argument("--websocket", action="store_true", help="print the WebSocket address instead, without a token")
    url.add_argument("--json", action="store_true", help="print an object for programs")
    url.set_defaults(run=print_url)


def print_url(args: argparse.Namespace) -> int:
    """Print where the server of this data directory listens."""
    running = read_run_file(data_directory(os.environ, args.data_dir))
    if running is None:
        print("zcomm: no server runs on this data directory; start one with: twistd -n zcomm", file=sys.stderr)
        return 1
    page = running["page"]
    if page and running["auth"]:
        token = OperatorCredentials.load(credentials_path(os.environ)).token
        page = f"{page}#token={token}"
    if args.json:
        print(json.dumps({"websocket": running["websocket"], "page": page, "pid": running["pid"]}))
    elif args.websocket or not page:
        print(running["websocket"])
    else:
        print(page)
    return 0
