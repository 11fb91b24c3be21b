"""A whole program around zBifrost: python server.py"""

import os
import sys
from pathlib import Path

from twisted.internet.defer import Deferred
from twisted.internet.task import react
from twisted.logger import globalLogBeginner, textFileLogObserver

from zcomm import Config, WebSocketConfig, zComm
from zcomm.config import data_directory
from zcomm.host import Host

HERE = Path(__file__).parent


async def main(reactor):
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
    config = Config(
        data_dir=data_directory(os.environ),
        websocket=WebSocketConfig.from_environ(os.environ),
        schemas=(HERE / "schema.yaml",),
        functions=("shop",),
        files=HERE / "files",
    )
    comm = zComm(Host(config, reactor), config=config)
    comm.program.pages.register("/admin/users", title="Users")
    bifrost = comm.create_websocket()

    @bifrost.command("custom_command")
    def custom_command(horizontal):
        return horizontal

    @bifrost.command("greet")
    async def greet(horizontal, client):
        name = await bifrost.ask(client, {"kind": "text", "label": "Your name"})
        return f"Hello, {name}"

    await comm.start_websocket()
    await comm.start_below()
    # Ctrl-C or SIGTERM stops the reactor, which tells all clients goodbye and stops everything in order.
    await Deferred()


if __name__ == "__main__":
    react(main)
