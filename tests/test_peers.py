"""Addresses of clients as sockets and proxies tell them."""

from __future__ import annotations

import pytest
from support.rows import rows_of_a_test

from zcomm import WebSocketConfig
from zcomm.errors import ConfigError
from zcomm.peers import TrustedProxies, block_of, socket_address

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "::ffff:192.0.2.0/120", "2001:db8:aa::/48")

#: X-Forwarded-For of the trusted 127.0.0.1, and whose address that is.
FORWARDED = [
    ("203.0.113.9", "203.0.113.9"),
    ("203.0.113.9, 10.1.1.1", "203.0.113.9"),
    ("198.51.100.1, 203.0.113.9", "203.0.113.9"),
    ("127.0.0.1, 203.0.113.9,10.0.0.1", "203.0.113.9"),
    ("203.0.113.9:4711", "203.0.113.9"),
    ("2001:db8::9", "2001:db8::9"),
    ("2001:DB8:0:0::9", "2001:db8::9"),
    ("[2001:db8::9]", "2001:db8::9"),
    ("[2001:db8::9]:443, 2001:db8:aa::1", "2001:db8::9"),
    ("fe80::1%eth0", "fe80::1"),
    ("::ffff:203.0.113.9", "203.0.113.9"),
    ("203.0.113.9, 192.0.2.7", "203.0.113.9"),
    ("203.0.113.9, 192.0.3.7", "192.0.3.7"),
    ("203.0.113.9, ", "203.0.113.9"),
    (" , ,203.0.113.9 ,, 10.0.0.1", "203.0.113.9"),
    ("", "127.0.0.1"),
    (" , ", "127.0.0.1"),
    ("10.0.0.7, 10.0.0.8", "10.0.0.7"),
    ("203.0.113.9, nonsense", "unknown"),
    ("203.0.113.9, unknown", "unknown"),
    ("203.0.113.9, 999.1.1.1, 10.0.0.1", "unknown"),
    ("203.0.113.9, " + "9" * 5000, "unknown"),
    ("203.0.113.9, " + ", ".join(["10.0.0.1"] * 200), "10.0.0.1"),
    ("for=203.0.113.9", "unknown"),
]


def test_whose_address_counts():
    """The rightmost that no trusted proxy has; what is no address is nobody's; hundreds of proxies are not followed."""
    proxies = TrustedProxies.from_list(TRUSTED)
    with rows_of_a_test() as row:
        for header, client in FORWARDED:
            with row(header[:60]):
                assert proxies.client_of("127.0.0.1", header) == client


def test_blocks_of_addresses():
    """A site of IPv6 is one client; a trusted proxy has no limits of its own, unless everybody is trusted."""
    assert block_of("2001:db8:1:2:3::4") == block_of("2001:db8:1:2::") != block_of("2001:db8:1:3::")
    assert [block_of(one) for one in ("127.0.0.1", "::1", "unix", "unknown", "")] == [
        "127.0.0.1",
        "::1",
        "unix",
        "unknown",
        "",
    ]
    proxies = TrustedProxies.from_list(TRUSTED)
    assert proxies.limited_as("10.9.9.9") == "" and proxies.limited_as("192.0.2.9") == ""
    assert proxies.limited_as("unix") == "unix" and TrustedProxies.from_list(["unix"]).limited_as("unix") == ""
    everybody = TrustedProxies.from_list(["0.0.0.0/0", "10.0.0.0/8"])
    assert everybody.limited_as("203.0.113.9") == "203.0.113.9" and everybody.limited_as("10.1.1.1") == ""


def test_contact_r05_addresses_of_sockets_are_unwrapped():
    """Those of IPv4 in IPv6, and zones; a name stays a name."""
    assert socket_address("::ffff:10.99.0.1") == "10.99.0.1" and socket_address("fe80::1%eth0") == "fe80::1"
    assert socket_address("10.0.0.1") == "10.0.0.1" and socket_address("2001:db8::1") == "2001:db8::1"
    assert socket_address("unix") == "unix" and socket_address("") == ""


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ("10.0.0.1/8", "did you mean 10.0.0.0/8"),
        ("localhost", "such as 127.0.0.1"),
        ("proxy.example", "such as"),
        ("", "such as"),
        ("Unix", "such as"),
        ("127.0.0.1:80", "such as"),
        ("10.0.0.0/33", "such as"),
    ],
)
def test_what_is_no_proxy(entry: str, reason: str):
    """The option, or the variable, and the entry are named."""
    with pytest.raises(ConfigError, match="--trusted-proxy") as caught:
        WebSocketConfig(trusted_proxies=("127.0.0.1", entry))
    assert reason in str(caught.value) and repr(entry) in str(caught.value)
    if entry:
        with pytest.raises(ConfigError, match="ZCOMM_TRUSTED_PROXY"):
            WebSocketConfig.from_environ({"ZCOMM_TRUSTED_PROXY": f"unix,{entry}"})


def test_the_option_wins_over_the_environment():
    """Both take several."""
    environ = {"ZCOMM_TRUSTED_PROXY": "10.0.0.0/8, unix"}
    assert WebSocketConfig.from_environ(environ).trusted_proxies == ("10.0.0.0/8", "unix")
    assert WebSocketConfig.from_environ(environ, trusted_proxies=("::1",)).trusted_proxies == ("::1",)
