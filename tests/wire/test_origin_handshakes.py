"""Catalogue group O: which web pages are let in, over real handshakes."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.rawclient import handshake
from support.served import Served, refusal, serving, statuses

from zcomm import WebSocketConfig
from zcomm.errors import ConfigError

listed = serving("listed", allowed_origins=("http://localhost:3000", "https://app.example.com", "null"))
unguarded = serving("unguarded", require_auth=False)
unguarded_listed = serving("unguarded_listed", require_auth=False, allowed_origins=("http://localhost:3000",))

BAD = (1008, "Invalid origin")


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param("http://evil.example", id="O1"),
        pytest.param("http://127.0.0.1.nip.io", id="O5-nip-io"),
        pytest.param("http://localhost.evil.com", id="O5-longer-name"),
        pytest.param("http://127.evil.com", id="O5-127-prefix"),
        pytest.param("http://0.0.0.0", id="O5-any-address"),
        pytest.param("http://[::ffff:127.0.0.1.evil.com]", id="O5-mapped-name"),
        pytest.param("http://[::ffff:10.0.0.1]", id="O5-mapped"),
        pytest.param("http://2130706433", id="O5-decimal-address"),
        pytest.param("http://0x7f.1", id="O5-hexadecimal-address"),
        pytest.param("null", id="O6-null"),
        pytest.param("file://", id="O6-file"),
        pytest.param("chrome-extension://abcdefgh", id="O6-extension"),
        pytest.param("ws://localhost:3000", id="O6-other-scheme"),
        pytest.param("", id="O9-empty"),
        pytest.param("http://", id="O9-no-host"),
        pytest.param("http://[::1", id="O9-half-bracket"),
        pytest.param("http://localhost:99999", id="O9-port"),
        pytest.param("http://localhost:", id="O9-empty-port"),
        pytest.param("http://localhost:\u0663", id="O9-port-other-digits"),
        pytest.param("http://" + "a" * 8000, id="O9-8-KB"),
        pytest.param("http://\u00ff", id="O9-byte-255"),
        pytest.param("http://localhost:3000/", id="O9-trailing-slash"),
        pytest.param("http://localhost:3000/path", id="O9-path"),
        pytest.param("http://localhost :3000", id="O9-blank"),
        pytest.param("http://user@localhost", id="O9-user"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_without_a_list_other_pages_are_refused(served: Served, origin: str):
    """With a valid token, from this machine: the page decides."""
    client = await served.client(
        origin=origin.encode("utf-8").decode("latin-1") if origin.endswith("\u0663") else origin
    )
    assert await refusal(client) == BAD
    await served.stands()


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param("http://localhost", id="O4-localhost"),
        pytest.param("http://localhost:5173", id="O4-any-port"),
        pytest.param("https://localhost:8443", id="O4-https"),
        pytest.param("http://127.0.0.1:1", id="O4-127"),
        pytest.param("http://127.1.2.3:80", id="O4-127-net"),
        pytest.param("http://[::1]:65535", id="O4-v6"),
        pytest.param("http://[::ffff:127.0.0.1]", id="O4-mapped"),
        pytest.param("HTTP://LocalHost:3000", id="O4-upper-case"),
        pytest.param(None, id="O7-no-origin"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_without_a_list_loopback_pages_are_let_in(served: Served, origin: str | None):
    """Any port, exact names; no origin at all means no browser."""
    client = await served.client(origin=origin)
    assert (await client.call("ping", 1))["result"] == 1
    await served.stands()


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param("http://localhost:3000.evil.com", id="O2-suffix"),
        pytest.param("http://localhost:30001", id="O2-longer-port"),
        pytest.param("http://localhost", id="O2-no-port"),
        pytest.param("https://localhost:3000", id="O2-scheme"),
        pytest.param("http://localhost:3000@evil.com", id="O2-user-part"),
        pytest.param("http://localhost:3000\\@evil.com", id="O2-backslash"),
        pytest.param("http://evil.com/http://localhost:3000", id="O2-in-path"),
        pytest.param("http://127.0.0.1:3000", id="O2-not-the-same-name"),
        pytest.param("http://app.example.com", id="O2-http-for-https"),
        pytest.param("https://www.app.example.com", id="O2-subdomain"),
        pytest.param("file://", id="O6-file-is-not-null"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_with_a_list_nothing_else_is_let_in(listed: Served, origin: str):
    """Scheme, host and port are compared, not characters."""
    assert await refusal(await listed.client(origin=origin)) == BAD
    await listed.stands()


@pytest.mark.parametrize(
    "origin",
    [
        pytest.param("http://localhost:3000", id="O3-as-listed"),
        pytest.param("https://app.example.com", id="O3-default-port"),
        pytest.param("https://app.example.com:443", id="O3-port-443"),
        pytest.param("HTTPS://APP.EXAMPLE.COM", id="O3-upper-case"),
        pytest.param("null", id="O6-listed-literally"),
        pytest.param(None, id="O8-no-origin-but-a-token"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_with_a_list_its_entries_are_let_in(listed: Served, origin: str | None):
    """Default ports and case make no difference."""
    client = await listed.client(origin=origin)
    assert (await client.call("ping", 1))["result"] == 1
    await listed.stands()


@pytest_twisted.ensureDeferred
async def test_with_a_list_the_servers_own_page_is_let_in(listed: Served):
    """The page that this very server serves needs no entry."""
    client = await listed.client(origin=f"http://127.0.0.1:{listed.port}")
    assert (await client.call("ping", 1))["result"] == 1
    await listed.stands()


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        pytest.param("attacker.example:{port}", "http://attacker.example:{port}", id="O10-same-name"),
        pytest.param("attacker.example:{port}", None, id="O10-host-only"),
        pytest.param("127.0.0.1.nip.io:{port}", "http://127.0.0.1:{port}", id="O10-nip-io"),
        pytest.param("localhost.:99999", None, id="O10-port"),
        pytest.param("a:b:c", None, id="H2-host-colons"),
        pytest.param("[::1", None, id="H2-host-bracket"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_rebound_name_is_refused(served: Served, host: str, origin: str | None):
    """A page whose own name was pointed at 127.0.0.1 has a matching origin, but no host name of ours."""
    opening = handshake(
        host.format(port=served.port), token=served.admin, origin=origin and origin.format(port=served.port)
    )
    client = await served.connect(opening)
    await client.next()
    assert await refusal(client) == BAD
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_o9_two_origins_are_none(served: Served):
    """A second Origin header makes the request mean two things: 400."""
    opening = handshake(
        "127.0.0.1", token=served.admin, headers=[("Origin", "http://localhost"), ("Origin", "http://evil")]
    )
    assert await statuses(await served.connect(opening)) == [400]
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_o12_an_allowed_page_still_needs_a_token(listed: Served):
    """A right origin replaces nothing."""
    assert await refusal(await listed.connect(origin="http://localhost:3000")) == (
        1008,
        "Authentication required",
    )
    await listed.stands()


@pytest_twisted.ensureDeferred
async def test_o13_the_drafts_origin_header_is_nobody(served: Served):
    """Sec-WebSocket-Origin neither helps nor harms: it is not looked at."""
    client = await served.client(headers=[("Sec-WebSocket-Origin", "http://evil.example")])
    assert (await client.call("ping", 1))["result"] == 1
    await served.stands()


@pytest_twisted.ensureDeferred
async def test_o7_without_authentication_programs_of_this_machine_are_let_in(unguarded: Served):
    """No list, no origin, a loopback peer: role guest."""
    client = await unguarded.connect()
    assert (await client.call("ping", 1))["result"] == 1
    assert [(who.name, who.role) for who in unguarded.bifrost.registry.identities] == [("anonymous", "guest")]
    await unguarded.stands()


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        pytest.param(None, False, id="O8-none"),
        pytest.param("http://localhost:3000", True, id="O8-listed"),
        pytest.param("http://evil.example", False, id="O8-other"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_o8_without_authentication_a_list_is_a_list(unguarded_listed: Served, origin: str | None, allowed: bool):
    """A client must name a listed page if nothing else proves who asks."""
    client = await unguarded_listed.connect(origin=origin)
    if allowed:
        assert (await client.call("ping", 1))["result"] == 1
    else:
        assert await refusal(client) == BAD
    await unguarded_listed.stands()


@pytest.mark.parametrize(
    "entry",
    [
        pytest.param("*", id="O11-star"),
        pytest.param("https://*.example.com", id="O11-wildcard"),
        pytest.param("example.com", id="O11-no-scheme"),
        pytest.param("https://example.com/path", id="O11-path"),
        pytest.param("http://", id="O11-no-host"),
    ],
)
def test_a_list_that_is_none_is_refused_at_the_start(entry: str):
    """A wildcard names every page, which is no list; the error names the entry."""
    with pytest.raises(ConfigError) as caught:
        WebSocketConfig.from_environ({"WEBSOCKET_ALLOWED_ORIGINS": f"http://localhost:3000, {entry}"})
    assert caught.value.name == "WEBSOCKET_ALLOWED_ORIGINS" and entry in caught.value.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", (), id="O11-empty"),
        pytest.param("  ", (), id="O11-blank"),
        pytest.param(
            " http://a.example , http://b.example,", ("http://a.example", "http://b.example"), id="O11-blanks"
        ),
    ],
)
def test_blanks_in_the_list_are_trimmed(text: str, expected: tuple[str, ...]):
    """An empty value is no list."""
    assert WebSocketConfig.from_environ({"WEBSOCKET_ALLOWED_ORIGINS": text}).allowed_origins == expected


def test_o14_the_environment_is_read_when_a_server_is_made():
    """Not when something is imported."""
    environ = {"WEBSOCKET_ALLOWED_ORIGINS": "http://a.example"}
    first = WebSocketConfig.from_environ(environ)
    environ["WEBSOCKET_ALLOWED_ORIGINS"] = "http://b.example"
    assert first.allowed_origins == ("http://a.example",)
    assert WebSocketConfig.from_environ(environ).allowed_origins == ("http://b.example",)
