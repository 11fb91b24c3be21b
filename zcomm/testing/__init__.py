"""A zBifrost and its clients in memory, on a clock that the test moves: for tests of your own commands.

The server is the real one: its admission, dispatch, permissions, limits, broadcasts and shutdown. Only
the sockets and the frames are missing, so that nothing waits, nothing is flaky, and a minute takes no time::

    from zcomm.testing import MemoryServer, assert_broadcast, assert_reply

    server = MemoryServer(commands={"greet": lambda name: f"Hello, {name}"})
    alice = server.connect()
    assert_reply(alice.call("greet", "Alice"), "Hello, Alice")

What zComm's own tests of the wire demand of TCP they demand of this module too.
"""

from zcomm.testing.assertions import assert_broadcast, assert_closed, assert_error, assert_reply, assert_silent
from zcomm.testing.client import MemoryClient
from zcomm.testing.link import Closed, Link
from zcomm.testing.server import MemoryServer

__all__ = [
    "Closed",
    "Link",
    "MemoryClient",
    "MemoryServer",
    "assert_broadcast",
    "assert_closed",
    "assert_error",
    "assert_reply",
    "assert_silent",
]
