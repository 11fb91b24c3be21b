"""What a request was is forgotten with its answer, not when the garbage is collected some thousand requests later."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from zcomm.errors import Invalid
from zcomm.testing import MemoryServer, assert_error, assert_reply


@pytest.mark.parametrize("when", ["at once", "refused", "later"])
def test_b4_nothing_of_a_request_waits_for_the_garbage(when: str):
    """A client could have them collected at a pace of hundreds of megabytes."""
    made: list[Any] = []

    def answer(horizontal: Any) -> Deferred[Any]:
        waiting = {"at once": succeed(1), "refused": fail(Invalid("No")), "later": Deferred()}[when]
        made.append(waiting)
        return waiting

    server = MemoryServer(commands={"answer": answer})
    client = server.connect()
    gc.collect()
    gc.disable()
    try:
        reply = client.call("answer", [1])
        waiting = made.pop()
        if when == "later":
            waiting.callback(1)
        assert_error(reply, "invalid") if when == "refused" else assert_reply(reply, 1)
        seen = weakref.ref(waiting)
        del waiting
        assert seen() is None
    finally:
        gc.enable()
