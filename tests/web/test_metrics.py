"""The metrics of a running server."""

from __future__ import annotations

import threading
import time

import pytest
import pytest_twisted
from prometheus_client.parser import text_string_to_metric_families
from support.served import Served, refusal, serving, statuses
from support.waiting import wait_until

from zcomm.interfaces import Anybody
from zcomm.web.metrics import metrics_of

pytestmark = pytest.mark.wire

guarded = serving("guarded", limits={"auth_failures": 4})
policed = serving("policed", policy=True)
granting = serving("granting", policy="guest: {admin: [metrics]}\n")
open_to_all = serving("open_to_all", require_auth=False)
listed = serving("listed", require_auth=False, allowed_origins=("https://app.example.com",))
proxied = serving("proxied", require_auth=False, insecure=True, trusted_proxies=("127.0.0.1",))


async def asked(
    served: Served, token: str | None = None, headers: str = "", host: str = "127.0.0.1"
) -> tuple[int, bytes]:
    """The status and the body of what somebody gets who asks for the metrics."""
    header = "" if token is None else f"Authorization: Bearer {token}\r\n"
    asking = await served.connect(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n{header}{headers}\r\n".encode())
    (status,) = await statuses(asking)
    return status, asking.reader.rest


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


@pytest_twisted.ensureDeferred
async def test_b18_the_metrics_take_a_right(served: Served, policed: Served, granting: Served):
    """Without a policy the operator's own token or the role admin, with one what it grants; others are told which."""
    for server, tokens in (
        (served, {served.admin: 200, served.tokens["admin"]: 200, served.tokens["guest"]: 403}),
        (policed, {policed.admin: 403, policed.tokens["admin"]: 403, policed.tokens["guest"]: 403}),
        (granting, {granting.admin: 403, granting.tokens["guest"]: 200, granting.tokens["blind"]: 403}),
    ):
        for token, expected in tokens.items():
            status, body = await asked(server, token)
            assert status == expected
            assert (b"zcomm_clients" in body) is (expected == 200)
            assert (b"admin: [metrics]" in body) is (expected == 403)
        assert (await asked(server))[0] == 401
        if 403 in tokens.values():
            assert "127.0.0.1 was not let in: No right to the metrics" in server.log_text
        await server.stands()


@pytest_twisted.ensureDeferred
async def test_b18_without_authentication_the_metrics_are_for_this_machine(
    open_to_all: Served, listed: Served, proxied: Served
):
    """Nobody can prove to be the operator, so who comes through a proxy gets none: one that says so, one that passes on
    the name that it was asked for, one that is named."""
    for host in ("127.0.0.1", f"localhost:{open_to_all.port}", "[::1]", "app.localhost"):
        assert (await asked(open_to_all, headers="User-Agent: curl\r\n", host=host))[0] == 200, host
    for header in (
        "X-Forwarded-For: 192.0.2.1",
        "x-forwarded-for: 127.0.0.1",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: localhost",
        "Forwarded: for=127.0.0.1",
        "Via: 1.1 varnish",
        "X-Real-IP: 127.0.0.1",
        "X-Forwarded-For:",
    ):
        assert (await asked(open_to_all, headers=f"{header}\r\n"))[0] == 403, header
    assert (await asked(listed, host="app.example.com"))[0] == 403
    assert (await asked(listed))[0] == 200
    for headers in ("", "X-Forwarded-For: 127.0.0.1\r\n", "X-Forwarded-For: ::1\r\n"):
        assert (await asked(proxied, headers=headers))[0] == 403, headers
    await open_to_all.stands()


@pytest_twisted.ensureDeferred
async def test_the_ten_dearest_users(served: Served):
    """Each with what it costs, whatever it is called: no two names are one, none breaks the format."""
    budgets = served.bifrost.factory.state.budgets
    names = [
        "ann",
        'qu"ote',
        "back\\slash",
        "new\nline",
        "new\rline",
        "nul\0",
        "x" * 300,
        "x" * 301,
        "\ud800",
        Anybody(7, "::1"),
    ]
    for number, name in enumerate(["cheap", *names]):
        account = budgets.account(name)
        account.in_database.add(number + 1.0)
        account.in_threads.add(0.5)
        account.refuse("for a test")
    budgets.memory.hold(budgets.account("ann"), 1000)
    families = {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples}
        for family in text_string_to_metric_families(metrics_of(served.bifrost).decode())
    }
    cost = families["zcomm_user_cost_seconds"]
    users = list(dict.fromkeys(user for _, user in cost))
    assert users == [
        "client 7 at ::1",
        "?",
        "x" * 80,
        "x" * 80 + "'",
        "nul?",
        "new?line",
        "new?line'",
        "back\\slash",
        'qu"ote',
        "ann",
    ]
    assert cost["database", "ann"] == pytest.approx(2, rel=0.1)
    assert cost["threads", "ann"] == pytest.approx(0.5, rel=0.1)
    assert cost["reactor", "ann"] == 0
    assert families["zcomm_user_held_bytes"]["ann",] == 1000 == families["zcomm_results_held_bytes"][()]
    assert families["zcomm_user_refusals"]["ann",] == 1
    budgets.memory.release(budgets.account("ann"), 1000)
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_what_a_call_takes_of_the_threads_is_its_users(served: Served):
    """For as long as it runs, also beyond the connection that asked for it, but not while a person thinks."""
    gate = threading.Event()

    @served.comm.program.functions.register
    def computes() -> None:
        until = time.monotonic() + 0.05
        while time.monotonic() < until:
            pass

    @served.comm.program.functions.register
    def waits() -> None:
        gate.wait(60)

    @served.comm.program.functions.register
    def asks(*, ask) -> str:
        return ask("Name")

    budgets = served.bifrost.factory.state.budgets

    def taken(user: str) -> float:
        return budgets.account(user).in_threads.value

    token = served.store.add("computing", "guest").token
    client = await served.client(token=token)
    await client.call("zFunc", "zFunc(computes)")
    assert taken("computing") > 0.045

    client = await served.client(token=served.store.add("thinking", "guest").token)
    begun = time.monotonic()
    client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(asks)", "_requestId": "asks"})
    asked = await client.next_json()
    thinking = time.monotonic()
    for number in range(100):
        await client.call("ping", number)
    thought = time.monotonic() - thinking
    client.send_json({"zKey": "zAnswer", "zHorizontal": {"askId": asked["askId"], "value": "Ann"}, "_requestId": "x"})
    while (await client.next_json()).get("_requestId") != "asks":
        pass
    assert 0 < taken("thinking") <= time.monotonic() - begun - thought

    client = await served.client(token=served.store.add("leaving", "guest").token)
    client.send_json({"zKey": "zFunc", "zHorizontal": "zFunc(waits)"})
    await wait_until(lambda: served.comm.program.workers.running, "the call in its thread")
    client.abort()
    await client.when_ended()
    gate.set()
    await wait_until(lambda: taken("leaving") > 0, "what the call has cost")
    await served.stands()
