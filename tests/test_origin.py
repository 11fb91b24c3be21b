"""Origins and host names as values."""

from __future__ import annotations

import pytest

from zcomm.errors import ConfigError
from zcomm.origin import OriginPolicy, is_loopback, parse_host, parse_origin


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("localhost", ("localhost", 80)),
        ("LOCALHOST:8080", ("localhost", 8080)),
        ("[::1]:9", ("::1", 9)),
        ("[0:0::1]", ("::1", 80)),
        ("[::ffff:127.0.0.1]:9", ("127.0.0.1", 9)),
        ("[::FFFF:7f00:1]", ("127.0.0.1", 80)),
        ("[::ffff:192.0.2.1]", ("192.0.2.1", 80)),
        ("a.example.", ("a.example.", 80)),
        ("a_b.example:1", ("a_b.example", 1)),
        ("", None),
        (":80", None),
        ("a:b:c", None),
        ("[::1", None),
        ("[::1]x", None),
        ("[x]", None),
        ("a:0", None),
        ("a:65536", None),
        ("a:", None),
        ("a:\u00b2", None),
        ("a b", None),
        ("-a", None),
        ("a/", None),
        ("user@a", None),
        ("a" * 301, None),
        ("\u00e9", None),
        ("a\n", None),
    ],
)
def test_hosts(text: str, expected):
    """A name or an address, perhaps with a port; nothing else is one."""
    assert parse_host(text, 80) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://a", ("http", "a", 80)),
        ("https://A:443", ("https", "a", 443)),
        ("HTTP://a:81", ("http", "a", 81)),
        ("app://x", None),
        ("http:/a", None),
        ("//a", None),
        ("null", None),
        ("http://", None),
        ("1http://a", None),
        ("http://a/", None),
    ],
)
def test_origins(text: str, expected):
    """Scheme, host, port, with the default ports filled in."""
    assert parse_origin(text) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", True),
        ("127.0.0.1", True),
        ("127.255.0.1", True),
        ("::1", True),
        ("localhost.", True),
        ("app.localhost", True),
        ("a.b.localhost.", True),
        (".", False),
        ("localhost..", False),
        ("notlocalhost", False),
        ("app.localhost.example", False),
        ("localhost.localdomain", False),
        ("127.0.0.1.", False),
        ("::ffff:127.0.0.1", True),
        ("::ffff:7f01:203", True),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::127.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost.example", False),
        ("127.0.0.1.example", False),
        ("", False),
        ("10.0.0.1", False),
    ],
)
def test_loopback(host: str, expected: bool):
    """Exact names and addresses."""
    assert is_loopback(host) is expected


def test_the_servers_own_page():
    """Under the name in Host, if that is a name of ours, at the very port."""
    policy = OriginPolicy.from_list(["https://app.example.com"], ["192.0.2.1"])
    assert policy.allows("http://192.0.2.1:80", "192.0.2.1", False)
    assert policy.allows("https://app.example.com", "app.example.com", False)
    assert policy.allows("http://10.0.0.5:7", "10.0.0.5:7", False, "10.0.0.5")
    assert not policy.allows("http://10.0.0.5:8", "10.0.0.5:7", False, "10.0.0.5")
    assert not policy.allows("http://evil.example", "evil.example", True)
    assert not policy.allows("ws://192.0.2.1:80", "192.0.2.1", True)


def test_loopback_pages_need_a_loopback_peer():
    """Somebody else's localhost is not ours."""
    policy = OriginPolicy.from_list([])
    assert policy.allows("http://localhost:5173", "127.0.0.1:1", True)
    assert not policy.allows("http://localhost:5173", "192.0.2.1:1", False)


def test_literal_entries():
    """Letter by letter."""
    policy = OriginPolicy.from_list(["null", "file://", "chrome-extension://abc"])
    assert policy.has_list and policy.allows("null", "x", False) and policy.allows("file://", "x", False)
    assert not policy.allows("NULL", "x", False) and not policy.allows("file:///x", "x", False)


@pytest.mark.parametrize(
    "entry", ["*", "http://*", "https://*.a.example", "a.example", "http://", "http://a/b", "httpx", "x y"]
)
def test_entries_that_are_no_origin(entry: str):
    """Refused with the entry in the words."""
    with pytest.raises(ConfigError) as caught:
        OriginPolicy.from_list([entry])
    assert entry in caught.value.reason


def test_contact_names_of_this_machine_and_dots_at_the_end():
    """The page that the server serves under them, and local pages; another name is no better with a dot."""
    policy = OriginPolicy.from_list([])
    for name in ("app.localhost:7", "localhost.:7", "APP.localhost.:7"):
        assert policy.knows_host(name) and policy.allows(f"http://{name}", name, False)
        assert policy.allows(f"http://{name}", "127.0.0.1:1", True)
        assert not policy.allows(f"http://{name}", "127.0.0.1:1", False)
    listed = OriginPolicy.from_list(["https://app.example.com"])
    assert listed.knows_host("app.example.com.") and not listed.knows_host("evil.example.")
    assert not listed.allows("https://evil.example.", "app.example.com", True)
