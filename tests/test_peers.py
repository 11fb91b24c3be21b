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


#: Addresses, and what their limits go by.
BLOCKS = [
    ("127.0.0.1", "127.0.0.1"),
    ("10.9.9.9", "10.9.9.9"),
    ("::1", "::1"),
    ("unix", "unix"),
    ("unknown", "unknown"),
    ("", ""),
    ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
    ("2001:db8:1:2::", "2001:db8:1:2::/64"),
    ("2001:db8:1:3::", "2001:db8:1:3::/64"),
    ("fe80::1", "fe80::/64"),
    ("::ffff:203.0.113.9", "203.0.113.9"),
    ("64:ff9b::203.0.113.9", "203.0.113.9"),
    ("64:ff9b::cb00:710a", "203.0.113.10"),
    ("64:ff9b:0:0:1::9", "64:ff9b::/64"),
    ("64:ff9b:1:abcd::203.0.113.9", "64:ff9b:1:abcd::cb00:7109"),
    ("64:ff9b:1:abcd::203.0.113.10", "64:ff9b:1:abcd::cb00:710a"),
    ("::ffff:0:203.0.113.9", "203.0.113.9"),
    ("::203.0.113.9", "203.0.113.9"),
    ("2002:cb00:7109::1", "203.0.113.9"),
    ("2002:cb00:7109:ffff::1", "203.0.113.9"),
    ("2001:0:4136:e378:8000:63bf:34ff:8ef6", "203.0.113.9"),
]


def test_contact_what_shares_limits_is_one_client():
    """A site of IPv6 is one, and so is an IPv4 address, however IPv6 writes it: never all those behind a translator."""
    with rows_of_a_test() as row:
        for address, block in BLOCKS:
            with row(address):
                assert block_of(address) == block


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
