"""The metrics of a running server."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.served import Served, refusal, serving, statuses
from support.waiting import wait_until

pytestmark = pytest.mark.wire

guarded = serving("guarded", limits={"auth_failures": 4})


@pytest_twisted.ensureDeferred
async def test_contact_b26_every_drop_is_counted_in_the_metrics(served: Served):
    """With its reason, for those with a token."""
    client = await served.connect(path="/?token=wrong")
    assert (await refusal(client))[0] == 1008
    await wait_until(lambda: not served.bifrost.factory._alive, "the end of it")
    asking = await served.connect(
        f"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {served.admin}\r\n\r\n".encode()
    )
    assert await statuses(asking) == [200]
    # Once, although it got a close code as well.
    assert b'zcomm_drops_total{reason="refused: Invalid token"} 1.0' in asking.reader.rest
    assert asking.reader.rest.count(b"zcomm_drops_total{") == 1
    assert b"zcomm_clients 0.0" in asking.reader.rest
    # B26: whoever asks is not counted.
    assert b"zcomm_handshakes_pending 0.0" in asking.reader.rest
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_contact_a18_guesses_at_the_metrics_are_counted_like_any_other(guarded: Served):
    """With those on the WebSocket, in the log, in the metrics themselves; the right token is let in all the same."""

    async def answered(token: str | None, more: str = "") -> tuple[int, str | None]:
        header = "" if token is None else f"Authorization: Bearer {token}\r\n"
        asking = await guarded.connect(f"GET /metrics{more} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode())
        (status,) = await statuses(asking)
        if status == 200:
            assert b'reason="refused: Too many failed attempts"} 2.0' in asking.reader.rest
        return status, asking.reader.response.header("Retry-After")

    assert await answered(None) == (401, None)
    assert await refusal(await guarded.connect(path="/?token=wrong")) == (1008, "Invalid token")
    for token in ("wrong", guarded.admin[:-1]):
        assert await answered(token) == (401, None)
    assert await answered(guarded.admin, "?token=another") == (401, None)
    assert await answered("wrong") == (429, "60")
    assert await refusal(await guarded.connect(path="/?token=wrong")) == (1013, "Too many failed attempts")
    assert await answered(guarded.admin) == (200, None)
    assert "127.0.0.1 was not let in: Invalid token" in guarded.log_text
    await guarded.stands()
