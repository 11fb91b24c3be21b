"""Looking at a server before it is used, and saying in one line why it cannot be."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.internet.error import ConnectError, DNSLookupError

from zcomm.engines.redis.layout import Layout
from zcomm.engines.redis.protocol import LinkLost, RedisProtocol, ReplyError
from zcomm.errors import ConfigError

__all__ = ["check_server", "refusal"]

#: The oldest server that has all commands which scripts use.
OLDEST = (6, 2)
#: The mark of a key space that is zComm's, and of its form.
MARK = b"zcomm 1"
OPTION = "--engine"
#: Those whose errors are of TLS.
TLS = ("OpenSSL", "service_identity")


@inlineCallbacks
def check_server(
    protocol: RedisProtocol, layout: Layout, kind: str, where: str, ack: str
) -> Generator[Deferred[Any], Any, bool]:
    """Look whether a server can carry topics.

    :param kind: ``server``, ``sentinel`` or ``cluster``.
    :param where: what an error calls it.
    :param ack: what a message that is acknowledged is to have survived: ``memory``, ``fsync`` or ``replica``.
    :returns: a Deferred of whether scripts may ask it for its replication history. It fails with
        :class:`~zcomm.errors.ConfigError` where it cannot be used as it is.
    """
    facts = yield _facts(protocol)
    mode = facts.get("redis_mode", "")
    if mode == "sentinel":
        raise ConfigError(OPTION, f"{where} is a Sentinel; name it as redis+sentinel://host/NAME-OF-THE-MASTER")
    if mode == "cluster" and kind != "cluster":
        raise ConfigError(OPTION, f"{where} is part of a cluster; name it as redis+cluster://")
    if kind == "cluster" and mode not in ("cluster", ""):
        raise ConfigError(OPTION, f"{where} is no cluster; name it as redis://")
    version = facts.get("redis_version", "")
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST:
        raise ConfigError(OPTION, f"{where} is Redis {version}; it takes 6.2 or newer, or Valkey")
    if numbers and kind == "cluster" and numbers < (7, 0):
        raise ConfigError(OPTION, f"{where} is Redis {version}; of a cluster it takes 7.0 or newer, or Valkey")
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy != "noeviction":
        raise ConfigError(
            OPTION,
            f"{where} throws data away when its memory is full (maxmemory-policy {policy}); set it to noeviction",
        )
    if ack == "fsync":
        yield _check_fsync(protocol, where)
    if ack == "replica" and facts.get("connected_slaves", "1") == "0":
        raise ConfigError("--ack", f"{where} has no replica that could have a message; connect one, or leave --ack out")
    if kind != "cluster":
        yield _take_mark(protocol, layout, where)
    try:
        yield protocol.call("EVAL", "return string.match(redis.call('INFO', 'replication'), 'master_replid:%x+')", 0)
    except ReplyError as error:
        if "replica" in str(error).lower() and "READONLY" in str(error):
            raise
        return False
    return True


@inlineCallbacks
def _facts(protocol: RedisProtocol) -> Generator[Deferred[Any], Any, dict[str, str]]:
    try:
        text = yield protocol.call("INFO")
    except ReplyError:
        # An account may do without that right.
        return {}
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)


@inlineCallbacks
def _check_fsync(protocol: RedisProtocol, where: str) -> Generator[Deferred[Any], Any, None]:
    fix = "set appendonly yes and appendfsync always there (REDIS_APPENDFSYNC=always for a managed one)"
    try:
        found = []
        for name in ("appendonly", "appendfsync"):
            reply = yield protocol.call("CONFIG", "GET", name)
            found.append(reply[1] if len(reply) == 2 else b"")
    except ReplyError as error:
        raise ConfigError("--ack", f"{where} does not say whether it waits for its disk ({error}); {fix}") from None
    if found != [b"yes", b"always"]:
        raise ConfigError("--ack", f"{where} answers before a message is on its disk; {fix}")


@inlineCallbacks
def _take_mark(protocol: RedisProtocol, layout: Layout, where: str) -> Generator[Deferred[Any], Any, None]:
    fix = "give it a prefix of its own: ?prefix=NAME behind its URL"
    try:
        yield protocol.call("SET", layout.mark, MARK, "NX")
        found = yield protocol.call("GET", layout.mark)
        kind = yield protocol.call("TYPE", layout.nodes)
    except ReplyError as error:
        if str(error).startswith("WRONGTYPE"):
            found, kind = b"of another type", b"hash"
        else:
            raise
    if kind not in ("hash", "none", b"hash", b"none"):
        raise ConfigError(OPTION, f"the key {layout.nodes.decode()} of {where} is somebody else's; {fix}")
    if found is not None and found != MARK:
        raise ConfigError(
            OPTION, f"the key {layout.mark.decode()} of {where} is somebody else's ({found!r:.40}); {fix}"
        )


def refusal(error: BaseException, where: str) -> str:
    """Say in one line why a server cannot be used."""
    if isinstance(error, ConfigError):
        return str(error)
    text = str(error)
    if isinstance(error, ReplyError):
        code = text.partition(" ")[0]
        if code == "WRONGPASS" or "invalid password" in text:
            text = "it refuses the password"
        elif code == "NOAUTH":
            text = "it asks for a password: redis://:PASSWORD@host"
        elif code == "NOPERM":
            text = f"the account lacks a right: {text.partition(' ')[2]}"
        elif "READONLY" in text:
            text = "it is a read-only replica; name its master, or use redis+sentinel://"
        elif "CLUSTERDOWN" in text:
            text = "the cluster is down: a slot has no server"
        elif "OOM" in text:
            text = "its memory is full"
        elif "LOADING" in text:
            text = "it is loading its data"
        elif "unknown command" in text:
            text = "it lacks a command; a Sentinel is named as redis+sentinel://host/NAME-OF-THE-MASTER"
        elif "WRONGTYPE" in text:
            text = "one of its keys is somebody else's; give it a prefix of its own: ?prefix=NAME behind its URL"
    elif isinstance(error, DNSLookupError):
        text = "there is no such host"
    elif isinstance(error, ConnectError):
        text = f"cannot connect: {_reason(error)}"
    elif isinstance(error, LinkLost) and type(error.__cause__).__module__.startswith(TLS):
        text = f"TLS failed: {_certificate(error.__cause__)}"
    elif isinstance(error, LinkLost):
        text = "the connection ended; is that a Redis, and does it want TLS (rediss://)?"
    elif type(error).__module__.startswith(TLS) or "certificate" in text.lower():
        text = f"TLS failed: {_certificate(error)}"
    elif not text:
        text = type(error).__name__
    return f"{where}: {text}"


def _certificate(error: BaseException | None) -> str:
    if type(error).__name__ == "VerificationError":
        return "its certificate is for another name"
    # An error of OpenSSL is a list of what several layers say.
    return str(error).replace("\n", " ") or type(error).__name__


def _reason(error: ConnectError) -> str:
    import os

    number = error.osError
    return os.strerror(number).lower() if isinstance(number, int) else str(error)
