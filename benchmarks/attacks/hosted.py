"""A program whose host knows its users by itself, and takes a moment to look each up.

It takes of the options of ``twistd zcomm`` those that a stage gives.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from zcomm.runtime.reactor import install_if_free

install_if_free()

from twisted.internet.defer import Deferred  # noqa: E402 (after the reactor)
from twisted.internet.task import react  # noqa: E402 (after the reactor)
from twisted.logger import globalLogBeginner, textFileLogObserver  # noqa: E402 (after the reactor)

from zcomm import zComm  # noqa: E402 (after the reactor)
from zcomm.host import Host  # noqa: E402 (after the reactor)
from zcomm.tap import Options  # noqa: E402 (after the reactor)


class Auth:
    """Whose token ``attacker-secret`` is: its first word's."""

    def validate(self, token: str) -> dict[str, str] | None:
        """Ask, as if over a network."""
        time.sleep(0.01)
        name, _, secret = token.partition("-")
        return {"username": name, "role": name} if secret == "secret" else None


class UsersOfItsOwn(Host):
    """A host with users."""

    auth = Auth()


async def main(reactor: Any, *words: str) -> None:
    """Serve until the end."""
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
    options = Options()
    options.parseOptions(words)
    comm = zComm(UsersOfItsOwn(options["config"], reactor), config=options["config"], environ=os.environ)
    await comm.start_websocket()
    await comm.start_below()
    print("[-] ready", flush=True)
    await Deferred()


if __name__ == "__main__":
    react(main, sys.argv[1:])
