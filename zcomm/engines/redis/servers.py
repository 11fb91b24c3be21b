"""The servers behind an engine's URL: one, the master that Sentinels name, or those of a cluster. redis-py finds them,
in a thread."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from zcomm.config import read_file
from zcomm.engines.redis.layout import PARTITIONS, Layout
from zcomm.engines.redis.link import Address, Credentials
from zcomm.errors import ConfigError, Unavailable
from zcomm.text import did_you_mean

__all__ = ["SCHEMES", "Found", "Settings", "find", "settings_from"]

#: The beginnings of URLs, and the ports of those who are asked.
SCHEMES = {
    "redis": 6379,
    "rediss": 6379,
    "unix": 0,
    "redis+sentinel": 26379,
    "rediss+sentinel": 26379,
    "redis+cluster": 6379,
    "rediss+cluster": 6379,
}
#: Seconds that one server has for an answer when it is asked where others are.
ASKING = 2.0
#: The settings that a URL may have behind its question mark.
PARAMETERS = (
    "prefix",
    "ssl_ca_certs",
    "ssl_certfile",
    "ssl_keyfile",
    "sentinel_username",
    "sentinel_password",
)
OPTION = "--engine"


class Settings(NamedTuple):
    """The meaning of an engine's URL.

    :ivar kind: ``server``, ``sentinel`` or ``cluster``.
    :ivar addresses: of those who are asked; none yet, where a service is to say it.
    :ivar service: the name that Sentinels know the master by.
    :ivar asking: user and password of Sentinels.
    """

    kind: str = "server"
    addresses: tuple[Address, ...] = ()
    credentials: Credentials = Credentials()
    prefix: str = "zc"
    service: str = ""
    asking: tuple[str | None, str | None] = (None, None)
    files: tuple[str, str, str] = ("", "", "")

    @property
    def layout(self) -> Layout:
        """The names of its keys."""
        return Layout(self.prefix, PARTITIONS if self.kind == "cluster" else 1)

    def __str__(self) -> str:
        shown = ", ".join(map(str, self.addresses))
        if self.kind == "sentinel":
            return f"{self.service} of the Sentinels {shown}"
        return f"the cluster of {shown}" if self.kind == "cluster" else shown


class Found(NamedTuple):
    """The masters of now.

    :ivar owners: of each partition, the place of its master among ``masters``.
    """

    masters: tuple[Address, ...]
    owners: tuple[int, ...]


def settings_from(url: str) -> Settings:
    """Read an engine's URL.

    :raises ConfigError: naming what is wrong in it, without its password.
    """
    scheme, _, _ = url.partition("://")
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(OPTION, f"{scheme!r} is the begin of no engine's URL; use one of {known}")
    try:
        parts = urlsplit(url)
        netloc = parts.netloc
    except ValueError as error:
        raise ConfigError(OPTION, f"this is no URL: {error}") from None
    given, _, hosts = netloc.rpartition("@")
    username, has_password, password = given.partition(":")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in query:
        if name not in PARAMETERS:
            raise ConfigError(OPTION, f"{name!r} is no parameter of its URL{did_you_mean(name, PARAMETERS)}")
    prefix = query.get("prefix", "zc")
    if not prefix or len(prefix) > 64 or not all(one.isascii() and (one.isalnum() or one in "_.-:") for one in prefix):
        raise ConfigError(OPTION, "prefix: 1 to 64 of letters, digits and _.-: it is")
    words = [unquote(word) for word in parts.path.split("/")[1:] if word]
    kind = scheme.partition("+")[2] or "server"
    service = ""
    if scheme == "unix":
        addresses: tuple[Address, ...] = (Address("", 0, unquote(parts.path)),)
        words = []
        if not parts.path or hosts:
            raise ConfigError(OPTION, "of a Unix socket it is unix:///path/of/socket")
    else:
        addresses = tuple(_address(host, SCHEMES[scheme]) for host in hosts.split(",")) if hosts else ()
        if not addresses:
            raise ConfigError(OPTION, f"it names no host; {scheme}://localhost is one")
    if kind == "server" and len(addresses) > 1:
        raise ConfigError(OPTION, "several hosts are those of redis+sentinel:// or redis+cluster://")
    if kind == "sentinel":
        if not words:
            raise ConfigError(
                OPTION, "of Sentinels it ends with the name of the master: redis+sentinel://host/mymaster"
            )
        service, words = words[0], words[1:]
    database = 0
    if words:
        if len(words) > 1 or not words[0].isdecimal() or len(words[0]) > 4:
            raise ConfigError(OPTION, f"{words[0]!r} is no number of a database")
        database = int(words[0])
        if database and kind == "cluster":
            raise ConfigError(OPTION, "a cluster has one database, 0; use ?prefix= to tell several apart")
    files = tuple(query.get(name, "") for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"))
    credentials = Credentials(
        unquote(username) or None,
        unquote(password) if has_password else None,
        database,
        scheme.startswith("rediss"),
        *_certificates(files, scheme),
    )
    asking = query.get("sentinel_username"), query.get("sentinel_password")
    return Settings(kind, addresses, credentials, prefix, service, asking, files)  # type: ignore[arg-type]


def _address(text: str, port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        host, given = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(OPTION, f"{text!r} is no host: {error}") from None
    if not host:
        raise ConfigError(OPTION, f"{text!r} is no host")
    return Address(host, port if given is None else given)


def _certificates(files: tuple[str, ...], scheme: str) -> tuple[tuple[bytes, ...], bytes | None]:
    authorities, certificate, key = files
    if any(files) and not scheme.startswith("rediss"):
        raise ConfigError(OPTION, "certificates are for encrypted connections: rediss://")
    trusted: tuple[bytes, ...] = ()
    if authorities:
        pem, end = read_file(Path(authorities), OPTION, "ssl_ca_certs"), b"-----END CERTIFICATE-----"
        trusted = tuple(part + end for part in pem.split(end) if b"-----BEGIN CERTIFICATE-----" in part)
        if not trusted:
            raise ConfigError(OPTION, f"ssl_ca_certs {authorities} has no certificate in PEM")
    own = None
    if certificate or key:
        own = b"\n".join(read_file(Path(file), OPTION, "certificate") for file in (certificate, key) if file)
    return trusted, own


def find(settings: Settings) -> Found:
    """Ask where the masters are; **blocks**.

    :raises Unavailable: where nobody who was asked knows.
    """
    if settings.kind == "server":
        return Found(settings.addresses, (0,))
    import redis
    from redis.exceptions import RedisClusterException

    try:
        if settings.kind == "sentinel":
            return Found((_master(settings),), (0,))
        return _cluster(settings)
    # The latter is none of the former.
    except (redis.RedisError, RedisClusterException) as error:
        raise Unavailable(f"{settings}: {error}") from None


def _tls(settings: Settings) -> dict[str, Any]:
    if not settings.credentials.tls:
        return {}
    authorities, certificate, key = settings.files
    return {
        "ssl": True,
        "ssl_check_hostname": True,
        "ssl_ca_certs": authorities or None,
        "ssl_certfile": certificate or None,
        "ssl_keyfile": key or None,
    }


def _master(settings: Settings) -> Address:
    from redis.sentinel import Sentinel

    username, password = settings.asking
    timeouts = {"socket_timeout": ASKING, "socket_connect_timeout": ASKING}
    asking = {"username": username, "password": password, **timeouts, **_tls(settings)}
    hosts = [(address.host, address.port) for address in settings.addresses]
    sentinel = Sentinel(hosts, sentinel_kwargs=asking)
    try:
        host, port = sentinel.discover_master(settings.service)
    finally:
        for one in sentinel.sentinels:
            one.close()
    return Address(host, port)


def _cluster(settings: Settings) -> Found:
    from redis.backoff import NoBackoff
    from redis.cluster import ClusterNode, RedisCluster
    from redis.retry import Retry

    credentials = settings.credentials
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(address.host, address.port) for address in settings.addresses],
        username=credentials.username,
        password=credentials.password,
        socket_timeout=ASKING,
        socket_connect_timeout=ASKING,
        require_full_coverage=False,
        retry=Retry(NoBackoff(), 0),
        **_tls(settings),
    )
    try:
        slots = cluster.nodes_manager.slots_cache
        wanted = [(slot, slots.get(slot)) for slot in settings.layout.slots]
        missing = [slot for slot, nodes in wanted if not nodes]
        if missing:
            raise Unavailable(f"{settings}: nobody has the slot {missing[0]}")
        owners = [Address(nodes[0].host, nodes[0].port) for _, nodes in wanted if nodes]
    finally:
        cluster.close()
    return _found(owners)


def _found(owners: Iterable[Address]) -> Found:
    places: dict[Address, int] = {}
    numbers = tuple(places.setdefault(owner, len(places)) for owner in owners)
    return Found(tuple(places), numbers)
