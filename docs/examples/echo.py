"""Every message goes back to its sender, text as text and binary as binary: python echo.py [--compression]"""

import os
import sys

from zcomm.runtime.reactor import install_if_free

install_if_free()

from twisted.internet.defer import Deferred  # noqa: E402 (after the reactor)
from twisted.internet.task import react  # noqa: E402 (after the reactor)
from twisted.logger import globalLogBeginner, textFileLogObserver  # noqa: E402 (after the reactor)

from zcomm import Limits, WebSocketConfig, zBifrost  # noqa: E402 (after the reactor)
from zcomm.bifrost.connection import Connection  # noqa: E402 (after the reactor)

LIMITS = Limits(message_size=16 * 2**20, queue_size=64 * 2**20, frame_rate=1e9, frame_burst=1e9)


class Echo(Connection):
    __slots__ = ()

    def receive(self, payloads):
        return payloads

    def receive_binary(self, payload):
        self.transport.sendMessage(payload, isBinary=True)


async def main(reactor):
    globalLogBeginner.beginLoggingTo([textFileLogObserver(sys.stdout)])
    compression = "--compression" in sys.argv[1:]
    config = WebSocketConfig.from_environ(os.environ, require_auth=False, compression=compression, limits=LIMITS)
    bifrost = zBifrost(config, connection=Echo)
    bifrost.startService()
    reactor.addSystemEventTrigger("before", "shutdown", bifrost.stopService)
    await Deferred()


if __name__ == "__main__":
    react(main)
