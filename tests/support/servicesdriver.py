"""A zComm that only manages services, for tests that kill it: ``servicesdriver.py '{"home": …, "start": {…}}'``.

Prints one JSON line when all is started (or the error), then runs until its standard input ends, stops in
good order and exits with 0.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from twisted.internet import reactor, stdio
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol

from zcomm.errors import ServiceError
from zcomm.services.declaration import Probe, ServiceDeclaration
from zcomm.services.manager import ServiceManager
from zcomm.services.supervision.launch import Tools


class Input(Protocol):
    """Ends the program in good order at the end of the input."""

    def __init__(self, manager: ServiceManager):
        self.manager = manager

    def connectionLost(self, reason: Any = None) -> None:
        self.manager.stopService().addBoth(lambda _: reactor.stop())


async def run(wanted: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"space": (0, 0), "reserve_after": None}
    if wanted.get("bare"):
        settings["tools"] = Tools(None, None)
    manager = ServiceManager(
        wanted["home"], {"PATH": os.environ["PATH"]}, reactor, wanted.get("lifetime", "session"), **settings
    )
    for name, declared in wanted.get("declare", {}).items():
        manager.add(ServiceDeclaration(name, ready=Probe("tcp"), **declared))
    manager.startService()
    stdio.StandardIO(Input(manager))
    told: dict[str, Any] = {}
    try:
        for name, arguments in wanted["start"].items():
            await manager.start(name, **arguments)
            told[name] = {**await manager.status(name), "info": manager.connection_info(name)}
    except ServiceError as error:
        told["error"] = [type(error).__name__, str(error)]
    print(json.dumps(told), flush=True)


def main() -> None:
    reactor.callWhenRunning(
        lambda: Deferred.fromCoroutine(run(json.loads(sys.argv[1]))).addErrback(
            lambda failure: failure.printTraceback()
        )
    )
    reactor.run()


if __name__ == "__main__":
    main()
