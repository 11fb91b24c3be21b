"""Somebody who sends commands, and threads to run them in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import fail

from zcomm.bifrost.given import Given
from zcomm.errors import Declined
from zcomm.interfaces import Identity, Request
from zcomm.runtime.workers import Workers


@dataclass
class Caller:
    """A client without a connection: provides :class:`zcomm.interfaces.Client`."""

    identity: Identity = Identity("alice", "admin", "a1")
    id: int = 1
    peer: str = "127.0.0.1"
    place: str = ""
    sent: list[Any] = field(default_factory=list)

    def visited(self, path: str) -> None:
        self.place = path

    def send(self, message: Any) -> None:
        self.sent.append(message)

    def send_payloads(self, payloads: list[bytes]) -> None:
        self.sent += payloads

    def close(self, code: int = 1000, reason: str = "") -> None:
        self.sent.append((code, reason))


@pytest.fixture
def caller() -> Caller:
    """An administrator."""
    return Caller()


@pytest.fixture
def guest() -> Caller:
    """Somebody whose role is granted little."""
    return Caller(Identity("anonymous", "guest"), id=2)


@pytest.fixture
def asking():
    """``asking("zFunc", "zFunc(f)")`` is that request."""
    return lambda key, horizontal: Request(key, horizontal, 7)


@pytest.fixture
def workers():
    """Two threads, ended with the test."""
    pool = Workers(threads=2, name="test", reactor=reactor)
    pool.start()
    yield pool
    pytest_twisted.blockon(pool.stop())


@pytest.fixture
def given() -> Given:
    """What functions may ask for; nobody answers questions."""
    return Given(reactor, lambda client, prompt, timeout: fail(Declined()))
