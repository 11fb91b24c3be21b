"""The URLs of engines: what they mean, and what is said of those that mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.certificates import Authority
from twisted.python.failure import Failure

from zcomm.engines.redis.checks import refusal
from zcomm.engines.redis.layout import PARTITIONS, slot_of
from zcomm.engines.redis.link import Address
from zcomm.engines.redis.protocol import LinkLost, ReplyError
from zcomm.engines.redis.servers import settings_from
from zcomm.errors import ConfigError


def test_what_they_mean(tmp_path: Path):
    """Hosts, ports, names, passwords with their escapes, prefixes and certificates."""
    found = settings_from("redis://ann:p%40ss@h:7000/3?prefix=app")
    assert found.addresses == (Address("h", 7000),) and found.prefix == "app" and found.kind == "server"
    assert found.credentials[:4] == ("ann", "p@ss", 3, False)
    assert settings_from("redis://:secret@[::1]").addresses == (Address("::1", 6379),)
    assert str(settings_from("redis://[::1]")) == "[::1]:6379"
    found = settings_from("unix://:pw@/run/my%20redis.sock")
    assert found.addresses == (Address("", 0, "/run/my redis.sock"),) and str(found) == "/run/my redis.sock"
    found = settings_from("redis+sentinel://a,b:1/main/2?sentinel_password=x")
    assert (found.service, found.credentials.database, found.asking) == ("main", 2, (None, "x"))
    assert found.addresses == (Address("a", 26379), Address("b", 1))
    assert str(found) == "main of the Sentinels a:26379, b:1"
    found = settings_from("redis+cluster://a,b")
    layout = found.layout
    assert layout.partitions == PARTITIONS == len(set(layout.slots)) and str(found) == "the cluster of a:6379, b:6379"
    keys = layout.topic("room:1")
    tag = keys.stream[keys.stream.index(b"{") + 1 : keys.stream.index(b"}")]
    assert slot_of(tag) == layout.slots[keys.partition] and layout.topic_of(keys.channel) == "room:1"
    key, certificate = Authority(tmp_path).issue("localhost")
    found = settings_from(f"rediss://h?ssl_ca_certs={certificate}&ssl_certfile={certificate}&ssl_keyfile={key}")
    assert found.credentials.tls and len(found.credentials.authorities) >= 1 and found.credentials.own


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://h", "begin of no engine"),
        ("redis", "names no host"),
        ("redis://", "names no host"),
        ("redis://[::1", "no URL"),
        ("redis://h:port", "is no host"),
        ("redis://h,", "is no host"),
        ("redis://h,i", "several hosts"),
        ("redis://h/x", "no number of a database"),
        ("redis://h/1/2", "no number of a database"),
        ("redis://h?prefx=a", 'did you mean "prefix"'),
        ("redis://h?prefix=", "prefix"),
        ("redis://h?prefix=a{b", "prefix"),
        ("unix://", "unix:///path"),
        ("unix://host/path", "unix:///path"),
        ("redis+sentinel://h", "name of the master"),
        ("redis+cluster://h/1", "one database"),
        ("redis://h?ssl_ca_certs=/x", "rediss://"),
        ("rediss://h?ssl_ca_certs=/nowhere/ca.pem", "/nowhere/ca.pem"),
    ],
)
def test_what_is_said_of_others(url: str, said: str):
    """The option, what is wrong, and what is right."""
    with pytest.raises(ConfigError) as caught:
        settings_from(url)
    assert caught.value.name == "--engine" and said in caught.value.reason


def test_a_file_without_certificates(tmp_path: Path):
    """It is named."""
    (tmp_path / "ca.pem").write_text("nothing")
    (tmp_path / "ca.pem").chmod(0o600)
    with pytest.raises(ConfigError, match="no certificate"):
        settings_from(f"rediss://h?ssl_ca_certs={tmp_path / 'ca.pem'}")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ReplyError("WRONGPASS invalid username-password pair"), "refuses the password"),
        (ReplyError("NOAUTH Authentication required."), "asks for a password"),
        (ReplyError("NOPERM this user has no permissions to run 'info'"), "lacks a right"),
        (ReplyError("READONLY You can't write against a read only replica."), "read-only replica"),
        (ReplyError("CLUSTERDOWN Hash slot not served"), "the cluster is down"),
        (ReplyError("OOM command not allowed"), "memory is full"),
        (ReplyError("LOADING Redis is loading the dataset in memory"), "loading its data"),
        (ReplyError("WRONGTYPE Operation against a key"), "?prefix=NAME"),
        (ReplyError("ERR something else"), "something else"),
        (LinkLost(), "h:1: "),
        (ValueError(), "ValueError"),
        (ConfigError("--ack", "too little"), "too little"),
    ],
)
def test_each_refusal_is_one_line(error: Exception, said: str):
    """That names the server."""
    line = refusal(error, "h:1")
    assert said in line and "\n" not in line and Failure(error).value is error
