"""Addresses of clients, as sockets and proxies tell them, and the blocks of addresses that limits go by."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from zcomm.errors import ConfigError

__all__ = ["UNIX", "UNKNOWN", "TrustedProxies", "block_of", "read_proxy_header", "socket_address"]

#: Stands for the address of a client on a Unix socket, which has none.
UNIX = "unix"
#: Stands for the address of a client whose proxy tells one that is none.
UNKNOWN = "unknown"

#: Bits of an IPv6 address that a site gives away: what is behind them is the same client's (RFC 6177).
SITE = 64
#: Entries of X-Forwarded-For that are looked at, from the right: more proxies stand in no row.
MOST_PROXIES = 32
#: The first bytes of a PROXY header of version 2, and how many there are before its addresses; the most of version 1.
_V2, _FIXED_V2, _LONGEST_V1 = b"\r\n\r\n\x00\r\nQUIT\n", 16, 107
_MAPPED = IPv6Network("::ffff:0:0/96")
#: Prefixes before an IPv4 address: of translators (RFC 6052, RFC 2765), and of old notation (RFC 4291 section 2.5.5.1).
_TRANSLATED = (IPv6Network("64:ff9b::/96"), IPv6Network("::ffff:0:0:0/96"), IPv6Network("::/96"))
#: For translators of one's own (RFC 8215).
_TRANSLATED_HERE = IPv6Network("64:ff9b:1::/48")


def socket_address(host: str) -> str:
    """The address of a socket as the rest of zComm knows it: an IPv4 address that IPv6 wraps is unwrapped (RFC 4291
    section 2.5.5.2), and the zone of a link is left out. Any other text stays as it is."""
    if ":" not in host:
        return host
    address = _parse(host)
    return host if address is None else str(address)


@lru_cache(1024)
def block_of(address: str) -> str:
    """The addresses that share their limits with ``address``, as a text: of IPv6 its /64, otherwise itself alone.

    An IPv4 address that IPv6 translates or tunnels is that address.

    :param address: as :func:`socket_address` has it.
    """
    parsed = _parse(address) if ":" in address else None
    if not isinstance(parsed, IPv6Address) or parsed.is_loopback:
        return address if parsed is None else str(parsed)
    if parsed in _TRANSLATED_HERE:
        # Its prefix may have any length; one address is one client of IPv4.
        return str(parsed)
    if (within := _ipv4_within(parsed)) is not None:
        return str(within)
    return str(IPv6Network((int(parsed) >> SITE << SITE, SITE)))


def _ipv4_within(address: IPv6Address) -> IPv4Address | None:
    """The address of a client of IPv4 that a translator or a tunnel writes so: a /64 would be half the internet's."""
    if any(address in network for network in _TRANSLATED):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return address.sixtofour or (address.teredo and address.teredo[1])


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address without its zone; IPv4 where it is that in IPv6's clothes."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


@lru_cache(1024)
def _told(entry: str) -> str:
    """The address of an entry of X-Forwarded-For: ``a.b.c.d``, IPv6 with or without brackets, either with a port."""
    host = entry
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    address = _parse(host)
    return UNKNOWN if address is None else str(address)


#: An address and a port.
Place = tuple[str, int]


def read_proxy_header(data: bytes) -> tuple[int, Place | None, Place | None] | None:
    """Read the header of the PROXY protocol, version 1 or 2, that ``data`` begins with.

    :returns: its length, the place of the client and the place that it has connected to: ``None`` for both where the
        proxy speaks for itself or knows none, an address ``unix`` for a Unix socket. ``None`` where it is not whole.
    :raises ValueError: for what is no such header.
    """
    if data.startswith(_V2):
        end = _FIXED_V2 + int.from_bytes(data[14:16], "big")
        if len(data) < _FIXED_V2 or len(data) < end:
            return None
        return end, *_places(data[12], data[13], data[_FIXED_V2:end])
    if data.startswith(b"PROXY "):
        end = data.find(b"\r\n", 0, _LONGEST_V1)
        if end < 0 and len(data) < _LONGEST_V1:
            return None
        words = data[:end].decode("ascii").split(" ")
        if end >= 0 and words[1] == "UNKNOWN":
            return end + 2, None, None
        if end >= 0 and words[1] in ("TCP4", "TCP6") and len(words) == 6:
            source, destination = str(ip_address(words[2])), str(ip_address(words[3]))
            return end + 2, (source, int(words[4])), (destination, int(words[5]))
    elif _V2.startswith(data) or b"PROXY ".startswith(data):
        return None
    raise ValueError("no PROXY header")


def _places(command: int, family: int, addresses: bytes) -> tuple[Place | None, Place | None]:
    if command == 0x20 or (command == 0x21 and not family & 0xF0):
        return None, None
    if command == 0x21 and family >> 4 == 3:
        return (UNIX, 0), (UNIX, 0)
    size = {1: 4, 2: 16}.get(family >> 4, 0)
    if command != 0x21 or not size or len(addresses) < 2 * size + 4:
        raise ValueError("no PROXY header")
    first, second = (int.from_bytes(addresses[place : place + 2], "big") for place in (2 * size, 2 * size + 2))
    return (str(ip_address(addresses[:size])), first), (str(ip_address(addresses[size : 2 * size])), second)


@dataclass(frozen=True, slots=True)
class TrustedProxies:
    """The proxies that are believed when they say where a client is.

    :ivar networks: their addresses.
    :ivar unix: whether those that come in on a Unix socket are.
    """

    networks: tuple[IPv4Network | IPv6Network, ...] = ()
    unix: bool = False

    @classmethod
    def from_list(cls, entries: Iterable[str], option: str = "--trusted-proxy") -> TrustedProxies:
        """The proxies of an option's entries: addresses, networks and ``unix``.

        :raises ConfigError: naming ``option``, for an entry that is none of these.
        """
        networks: list[IPv4Network | IPv6Network] = []
        unix = False
        for entry in (text.strip() for text in entries):
            if entry == UNIX:
                unix = True
            else:
                networks.append(_network(entry, option))
        return cls(tuple(networks), unix)

    def __bool__(self) -> bool:
        return self.unix or bool(self.networks)

    def trusts(self, address: str) -> bool:
        """Whether what comes from ``address`` comes from one of these proxies."""
        return bool(self) and _is_trusted_by(self, address)

    def client_of(self, proxy: str, forwarded: str) -> str:
        """The address of a client: the rightmost that no trusted proxy has.

        :param proxy: the trusted proxy that is connected.
        :param forwarded: its ``X-Forwarded-For``; several headers are joined by commas (RFC 9110 section 5.3).
        :returns: the first of all where each is trusted; ``proxy`` where it tells none; ``unknown`` for one that is no
            address.
        """
        client = proxy
        for entry in reversed(forwarded.rsplit(",", MOST_PROXIES)[-MOST_PROXIES:]):
            text = entry.strip(" \t")
            if not text:
                continue
            client = _told(text) if len(text) <= 64 else UNKNOWN
            if not self.trusts(client):
                break
        return client


@lru_cache(4096)
def _is_trusted_by(proxies: TrustedProxies, address: str) -> bool:
    if address == UNIX:
        return proxies.unix
    parsed = _parse(address)
    return parsed is not None and any(parsed in network for network in proxies.networks)


def _network(entry: str, option: str) -> IPv4Network | IPv6Network:
    try:
        network = ip_network(entry)
    except ValueError:
        try:
            fix = f"; did you mean {ip_network(entry, strict=False)}?"
        except ValueError:
            fix = ", such as 127.0.0.1, 10.0.0.0/8 or 2001:db8::/32"
        raise ConfigError(option, f"{entry!r} is no address, no network and not {UNIX!r}{fix}") from None
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        # Addresses of sockets are unwrapped, so it is those that must be in it.
        start = network.network_address.ipv4_mapped
        return IPv4Network((int(start or 0), network.prefixlen - _MAPPED.prefixlen))
    return network
