"""The metrics of a running server."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.served import Served, refusal, statuses
from support.waiting import wait_until

pytestmark = pytest.mark.wire


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
    assert b'zcomm_drops_total{reason="refused: Invalid token"}' in asking.reader.rest
    assert b"zcomm_clients 0.0" in asking.reader.rest
    # B26: whoever asks is not counted.
    assert b"zcomm_handshakes_pending 0.0" in asking.reader.rest
    await served.stands()
