"""The origin policy: the web pages that may talk to the server, and the host names under which it answers.

A browser names the page a WebSocket comes from in ``Origin`` (RFC 6454, RFC 6455 section 10.2). A
socket on the loopback interface is reachable from every page its user visits, so this check is what
keeps a stranger's page out. ``Host`` is checked too: a page whose own name was rebound to 127.0.0.1
has a matching origin, but not a host name of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address

from zcomm.errors import ConfigError

__all__ = ["OriginPolicy", "is_loopback", "parse_host", "parse_origin"]

_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SCHEME = re.compile(r"[a-z][a-z0-9+.\-]*\Z")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.\-]{0,251}[a-z0-9])?\.?\Z")

#: scheme, host, port: what two origins must have in common to be the same (RFC 6454 section 5).
Origin = tuple[str, str, int]


def parse_host(text: str, default_port: int = 0) -> tuple[str, int] | None:
    """The host and port of ``host``, ``host:port`` or ``[v6]:port``; ``None`` when it is none of these."""
    # Longer ones are not even remembered.
    return None if len(text) > 300 else _parse_host(text, default_port)


@lru_cache(256)
def _parse_host(text: str, default_port: int) -> tuple[str, int] | None:
    text = text.lower()
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            return None
        port_text = rest[1:] if rest else None
        try:
            host = _unwrapped(host).compressed
        except ValueError:
            return None
    else:
        host, colon, port_text = text.partition(":")
        port_text = port_text if colon else None
        if not _NAME.match(host):
            return None
    if port_text is None:
        return host, default_port
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5):
        return None
    port = int(port_text)
    return (host, port) if 0 < port < 65536 else None


def parse_origin(text: str) -> Origin | None:
    """Scheme, host and port of a serialised origin (RFC 6454 section 6.2); ``None`` for anything else."""
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator or not _SCHEME.match(scheme):
        return None
    place = parse_host(rest, _DEFAULT_PORTS.get(scheme, 0))
    return None if place is None or not place[1] else (scheme, *place)


@lru_cache(1024)
def is_loopback(host: str) -> bool:
    """Whether ``host`` is a name of this machine (``localhost`` and the names below it, with or without the last dot,
    RFC 6761 section 6.3) or a loopback address, also of IPv4 in IPv6; never true of another name."""
    name = host.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return _unwrapped(host).is_loopback
    except ValueError:
        return False


def _unwrapped(text: str) -> IPv4Address | IPv6Address:
    """An address; IPv4 where IPv6 wraps it, for that is what is connected to.

    :raises ValueError: for a text that is none.
    """
    address = ip_address(text)
    return getattr(address, "ipv4_mapped", None) or address


@dataclass(frozen=True, slots=True)
class OriginPolicy:
    """The origins that are let in.

    Without a list: loopback origins on any port. With one: exactly its entries, and the pages that the
    server itself serves (decided by :meth:`same_as_host`).

    :ivar listed: the parsed entries.
    :ivar literal: entries without a host, such as ``null`` or ``file://``, that must match letter by letter.
    :ivar hosts: host names the server answers under besides loopback ones.
    """

    listed: frozenset[Origin] = frozenset()
    literal: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()

    @classmethod
    def from_list(cls, entries: Iterable[str], hosts: Iterable[str] = ()) -> OriginPolicy:
        """Build a policy from the option's entries.

        :raises ConfigError: for an entry that is no origin, or a wildcard: a list that names every page is no list.
        """
        listed, literal = set(), set()
        for entry in (text.strip() for text in entries):
            if not entry:
                continue
            if "*" in entry:
                raise ConfigError(
                    "--allowed-origin", f"{entry!r} has a wildcard; name each origin, such as https://app.example.com"
                )
            origin = parse_origin(entry)
            if origin is not None:
                listed.add(origin)
            elif entry == "null" or re.match(r"[a-z][a-z0-9+.\-]*://\S*\Z", entry) and not entry.startswith("http"):
                literal.add(entry)
            else:
                raise ConfigError(
                    "--allowed-origin",
                    f"{entry!r} is not scheme://host or scheme://host:port, such as https://app.example.com",
                )
        names = {host.lower() for host in hosts if host} | {origin[1] for origin in listed}
        return cls(frozenset(listed), frozenset(literal), frozenset(names))

    @property
    def has_list(self) -> bool:
        """Whether the operator named origins, so that the loopback default no longer holds."""
        return bool(self.listed or self.literal)

    def allows(self, text: str, host: str, loopback_peer: bool, local_address: str = "") -> bool:
        """Whether a page of origin ``text``, reaching us as ``Host: host``, is let in."""
        if text in self.literal:
            return True
        origin = parse_origin(text)
        if origin is None:
            return False
        if origin in self.listed or self.same_as_host(origin, host, local_address):
            return True
        return not self.has_list and loopback_peer and is_loopback(origin[1]) and origin[0] in ("http", "https")

    def same_as_host(self, origin: Origin, host: str, local_address: str = "") -> bool:
        """Whether ``origin`` is the page that this very server serves under ``host``, a name that is ours."""
        place = parse_host(host, _DEFAULT_PORTS.get(origin[0], 0))
        return place == origin[1:] and origin[0] in ("http", "https") and self.knows_host(host, local_address)

    def knows_host(self, host: str, local_address: str = "") -> bool:
        """Whether ``Host: host`` is a name of this server: loopback, configured, a listed origin's, or the
        address the connection came in on."""
        place = parse_host(host, 80)
        if place is None:
            return False
        # With the dot at its end a name is the same name.
        name = place[0].removesuffix(".")
        return is_loopback(name) or name in self.hosts or (bool(local_address) and name == local_address)
