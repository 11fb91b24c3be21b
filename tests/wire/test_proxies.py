"""Clients behind proxies, by the header of a trusted one: whose limits they have, and what they are not taken for."""

from __future__ import annotations

import pytest_twisted
from support.rawclient import handshake
from support.rows import rows_of_a_test
from support.served import Served, refusal, serving

TRUSTED = ("127.0.0.1", "10.0.0.0/8")

proxied = serving("proxied", limits={"auth_failures": 2, "pending_per_peer": 2}, trusted_proxies=TRUSTED)
direct = serving("direct", limits={"auth_failures": 2})
open_to_all = serving("open_to_all", trusted_proxies=TRUSTED, require_auth=False, insecure=True)

WRONG, LATER = (1008, "Invalid token"), (1013, "Too many failed attempts")


def via(*forwarded: str) -> list[tuple[str, str]]:
    return [("X-Forwarded-For", entry) for entry in forwarded]


async def guessed(served: Served, *forwarded: str) -> tuple[int | None, str]:
    return await refusal(await served.connect(path="/?token=wrong", headers=via(*forwarded)))


@pytest_twisted.ensureDeferred
async def test_contact_r03_failures_are_the_clients_own(proxied: Served):
    """Of each address behind the proxy, however it is written; what it claims of itself does not count."""
    for claim in ("203.0.113.1", "198.51.100.7, 203.0.113.1"):
        assert await guessed(proxied, claim) == WRONG
    for claim in ("203.0.113.1", "203.0.113.1:4711, 10.0.0.2", "::ffff:203.0.113.1", "127.0.0.1, 203.0.113.1"):
        assert await guessed(proxied, claim) == LATER
    assert await guessed(proxied, "198.51.100.7", "203.0.113.1") == LATER, "two headers are one list"
    assert await guessed(proxied, "203.0.113.2") == WRONG
    assert await guessed(proxied, "2001:db8:1:1::1") == WRONG
    assert await guessed(proxied, "[2001:db8:1:1::2]:443") == WRONG
    assert await guessed(proxied, "2001:db8:1:1:ffff::3") == LATER
    assert await guessed(proxied, "2001:db8:1:2::1") == WRONG
    client = await proxied.client(headers=via("203.0.113.1"))
    assert (await client.call("ping", 1))["result"] == 1
    assert [one.peer for one in proxied.bifrost.clients] == ["203.0.113.1"]
    assert "203.0.113.1 was not let in" in proxied.log_text
    await proxied.stands()


@pytest_twisted.ensureDeferred
async def test_contact_no_address_is_without_limits(proxied: Served):
    """Neither that of a proxy which tells no client, nor one within its network that it tells; one that is no address
    is an address of its own. A right token is let in from each."""
    told = (
        [],
        ["10.20.30.40"],
        ["10.20.30.41, 127.0.0.1"],
        ["[::ffff:10.20.30.42]:4711"],
        ["203.0.113.5, nonsense"],
        ["64:ff9b::198.51.100.9"],
        [", ".join(["10.9.9.9"] * 200)],
    )
    with rows_of_a_test() as row:
        for forwarded in told:
            with row(repr(forwarded)[:60]):
                assert [await guessed(proxied, *forwarded) for _ in range(4)] == [WRONG, WRONG, LATER, LATER]
                client = await proxied.client(headers=via(*forwarded))
                assert (await client.call("ping", 1))["result"] == 1
    assert await guessed(proxied, "unknown") == LATER
    assert await guessed(proxied, "64:ff9b::198.51.100.10") == WRONG
    await proxied.stands()


@pytest_twisted.ensureDeferred
async def test_a_proxy_has_places_for_all_its_clients(proxied: Served):
    """More than one address may hold; of what the clients send, the share of each holds."""
    silent = [await proxied.connect(None) for _ in range(5)]
    assert (await (await proxied.client(headers=via("203.0.113.8"))).call("ping", 1))["result"] == 1
    assert proxied.bifrost.factory.pending.waiting == 0 and proxied.bifrost.factory.pending.count == 5
    for client in silent:
        client.abort()
    await proxied.stands()


@pytest_twisted.ensureDeferred
async def test_the_header_of_anybody_else_is_ignored(direct: Served):
    """It is the address of the socket that is counted, and that is shown."""
    for claim in ("203.0.113.1", "203.0.113.2"):
        assert await guessed(direct, claim) == WRONG
    assert await guessed(direct, "203.0.113.3") == LATER
    client = await direct.client(headers=via("203.0.113.1"))
    assert (await client.call("ping", 1))["result"] == 1
    assert [one.peer for one in direct.bifrost.clients] == ["127.0.0.1"]
    await direct.stands()


@pytest_twisted.ensureDeferred
async def test_nobody_behind_a_proxy_is_on_this_machine(open_to_all: Served):
    """Whatever address is claimed: neither a program without a token nor a page of another local port is let in."""
    for claim in ("127.0.0.1", "::1", "203.0.113.1", "localhost", ""):
        for origin in (None, "http://localhost:5173"):
            client = await open_to_all.connect(headers=via(claim), origin=origin)
            assert await refusal(client) == (1008, "Invalid origin"), (claim, origin)
    own = f"http://127.0.0.1:{open_to_all.port}"
    client = await open_to_all.connect(headers=via("203.0.113.1"), origin=own)
    assert (await client.call("ping", 1))["result"] == 1
    assert open_to_all.bifrost.reload_origins() == 0
    client.abort()


@pytest_twisted.ensureDeferred
async def test_a_header_that_lists_thousands_is_soon_read(proxied: Served):
    """The rightmost counts; what does not fit into a head is no head."""
    listed = ", ".join(f"10.1.{number // 250}.{number % 250}" for number in range(1100))
    client = await proxied.client(headers=via(listed))
    assert (await client.call("ping", 1))["result"] == 1
    many = handshake("127.0.0.1", token=proxied.admin, headers=via(*["203.0.113.1"] * 80))
    client = await proxied.connect(many)
    assert (await client.next()).status == 101
    await proxied.stands()
