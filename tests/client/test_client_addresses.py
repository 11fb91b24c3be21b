"""The Python client at every kind of address that a server may have."""

from __future__ import annotations

import json
import unicodedata
from ipaddress import IPv6Address
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_twisted
from support.rawclient import connect as connect_raw
from support.rawclient import handshake
from support.rows import rows_of_a_test
from support.served import Served, refusal
from support.waiting import wait_until
from twisted.internet.error import ConnectError

from zcomm.client import connect
from zcomm.errors import ConnectionLost


@pytest_twisted.ensureDeferred
async def test_contact_r04_ipv6_addresses(tmp_path: Path):
    """The server's own URL, other spellings of it, and a name."""
    served = await Served(tmp_path, host="::1").start()
    try:
        port = served.port
        with rows_of_a_test() as row:
            for url in (served.bifrost.url, f"ws://[::1]:{port}/", f"ws://[0:0:0:0:0:0:0:1]:{port}/some/path"):
                with row(url):
                    client = await connect(url, served.admin)
                    assert await client.send({"zKey": "ping"}) == "ping"
                    assert [one.peer for one in served.bifrost.clients] == ["::1"]
                    await client.disconnect()
                    await wait_until(lambda: not served.count, "its end")
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_contact_r05_ipv4_visitors_of_an_ipv6_socket(tmp_path: Path):
    """The address they come from, and come in on, is the IPv4 one: their page, their local pages, their host name."""
    served = await Served(tmp_path, host="::").start()
    try:
        port = served.port
        with rows_of_a_test() as row:
            for host, name in (
                ("127.0.0.1", f"127.0.0.1:{port}"),
                ("127.0.0.9", f"127.0.0.9:{port}"),
                ("::1", f"[::1]:{port}"),
            ):
                for origin in (None, f"http://{name}", "http://localhost:5173", "http://app.localhost:1"):
                    with row(f"{host} {origin}"):
                        opening = handshake(name, token=served.admin, origin=origin)
                        client = await connect_raw(port, opening, host=host, reactor=served.reactor)
                        assert (await client.next()).status == 101
                        assert (await client.call("ping", 1))["result"] == 1
                        peer = "127.0.0.1" if host == "127.0.0.9" else host
                        assert [one.peer for one in served.bifrost.clients] == [peer]
                        client.abort()
                        await client.when_ended()
                        await wait_until(lambda: not served.count, "its end")
            for name in ("[::ffff:127.0.0.1]", "[::ffff:7f00:1]"):
                with row(name):
                    opening = handshake(f"{name}:{port}", token=served.admin, origin=f"http://{name}:{port}")
                    client = await connect_raw(port, opening, reactor=served.reactor)
                    assert (await client.next()).status == 101
                    assert (await client.call("ping", 1))["result"] == 1
                    client.abort()
                    await client.when_ended()
            with row("the address of another"):
                opening = handshake(f"[::ffff:192.0.2.1]:{port}", token=served.admin)
                client = await connect_raw(port, opening, reactor=served.reactor)
                await client.next()
                assert await refusal(client) == (1008, "Invalid origin")
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_contact_ipv4_in_ipv6_is_ipv4_to_listen_on_and_to_connect_to(tmp_path: Path):
    """The interface is that of this machine, in any notation, and the address that is told is the short one."""
    with rows_of_a_test() as row:
        for number, host in enumerate(("::ffff:127.0.0.1", "::ffff:7f00:1", "::ffff:0.0.0.0")):
            with row(host):
                directory = tmp_path / str(number)
                directory.mkdir()
                served = await Served(directory, host=host).start()
                try:
                    assert served.bifrost.url == f"ws://127.0.0.1:{served.port}"
                    assert served.config.websocket.on_loopback is (host != "::ffff:0.0.0.0")
                    for name in ("127.0.0.1", "[::ffff:127.0.0.1]"):
                        client = await connect(f"ws://{name}:{served.port}", served.admin)
                        assert await client.send({"zKey": "ping"}) == "ping"
                        await client.disconnect()
                finally:
                    await served.stop()


@pytest_twisted.ensureDeferred
async def test_contact_b22_a_unix_socket(tmp_path: Path):
    """By the address that the server says it has; a page it has none there."""
    path = tmp_path / "z w.sock"
    served = await Served(tmp_path, listen=(f"unix:{path}:mode=600",)).start()
    try:
        assert served.bifrost.url == f"unix:{path}"
        client = await connect(served.bifrost.url, served.admin)
        assert await client.send({"zKey": "ping"}) == "ping" and str(path) in repr(client)
        assert [(one.peer, one.host) for one in served.bifrost.clients] == [("unix", "localhost:80")]
        await client.disconnect()
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_contact_a_token_beyond_ascii(tmp_path: Path):
    """It is the same in a header and in a URL, percent-encoded or not; one that is not UTF-8 is another."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    token = "Schlüssel & 日本 🔑 of mine"
    (data / "operator.json").write_text(json.dumps({"name": "Zoë", "role": "admin", "token": token}))
    (data / "operator.json").chmod(0o600)
    served = await Served(tmp_path).start()
    try:
        url = served.bifrost.url
        with rows_of_a_test() as row:
            for name, address, given in (
                ("a header", url, token),
                ("a query", f"{url}/?token={quote(token)}", None),
                ("a query as people write it", f"{url}/wo ä/?token=" + token.replace("&", "%26"), None),
                ("both", f"{url}/?api_key={quote(token)}", token),
            ):
                with row(name):
                    client = await connect(address, given)
                    assert (await client.send({"zKey": "zDescribe"}))["identity"]["name"] == "Zoë"
                    await client.disconnect()
            for name, address, given in (
                ("latin-1", f"{url}/?token={quote(token, encoding='latin-1', errors='replace')}", None),
                ("another form of it", url, unicodedata.normalize("NFD", token)),
                ("two", f"{url}/?token={quote(token)}", f"{token}!"),
            ):
                with row(name):
                    with pytest.raises(ConnectionLost) as refused:
                        await connect(address, given)
                    assert (refused.value.close_code, refused.value.reason) == (1008, "Invalid token")
    finally:
        await served.stop()


@pytest_twisted.ensureDeferred
async def test_contact_the_zone_of_an_address(tmp_path: Path):
    """It is written as RFC 6874 says, or as everywhere else, and stands in no ``Host``."""
    links = [line.split() for line in Path("/proc/net/if_inet6").read_text().splitlines() if line.startswith("fe80")]
    served = await Served(tmp_path, host="::").start()
    try:
        with rows_of_a_test() as row:
            for digits, _, _, _, _, interface in links:
                for sign in ("%25", "%"):
                    with row(f"{sign}{interface}"):
                        name = f"{IPv6Address(bytes.fromhex(digits))}{sign}{interface}"
                        client = await connect(f"ws://[{name}]:{served.port}", served.admin)
                        assert await client.send({"zKey": "ping"}) == "ping"
                        await client.disconnect()
            for zone in ("%25lo", "%lo", "%251"):
                with row(f"nobody at {zone}"):
                    # The address is understood; nobody is there.
                    with pytest.raises(ConnectError):
                        await connect(f"ws://[fe80::dead{zone}]:{served.port}", served.admin, timeout=1.0)
    finally:
        await served.stop()


@pytest.mark.parametrize(
    "url", ["unix:relative", "unix:", "unix://host/path", "http://127.0.0.1:1", "ws://", "ws://[::1", "ws://h/\ud800"]
)
def test_what_is_no_address(url: str):
    """The error shows what one looks like, and not the text, in which a token may stand."""
    with pytest.raises(ValueError, match="such as ws://127.0.0.1:56891 or unix:/"):
        connect(url)


@pytest.mark.parametrize(
    "token",
    ["a\r\nX-Evil: 1", "a\n", "\x00", " a", "a ", "tab\there", "\ud800", "a\ud83d", "a\x85", "\xa0a", "a\u2028"],
)
def test_contact_a_token_that_no_header_carries_is_refused_by_name(token: str):
    """Nothing of it stands in the error, and no second header comes of it."""
    with pytest.raises(ValueError, match="^token: ") as refused:
        connect("ws://127.0.0.1:1", token)
    assert token.strip() not in str(refused.value) or len(token.strip()) < 2
