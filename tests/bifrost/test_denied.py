"""A command that is denied leaves a line in the log: who, from where, what, and nothing that may be a secret."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rows import rows_of_a_test
from support.served import Served, statuses
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import deferLater
from twisted.logger import LogLevel, eventAsText, formatEvent

from zcomm import Outcome
from zcomm.errors import InternalError, Invalid
from zcomm.runtime.logthrottle import Throttle


@pytest_twisted.async_yield_fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Served]:
    """A server with a policy that lets guests read users, and nothing else."""
    server = await Served(tmp_path, policy=True).start()
    yield server
    await server.stop()


@pytest.mark.parametrize(
    ("key", "horizontal", "named"),
    [
        ("create_Users", {"values": {"name": "hunter2"}}, "create_Users"),
        ("zFunc", 'zFunc(echo, "hunter2")', "zFunc(echo)"),
        ('zFunc(echo, "hunter2")', None, "zFunc(echo)"),
        ("zFunc", {"name": "echo", "args": ["hunter2"]}, "zFunc(echo)"),
        ("zOpen", {"name": "config.yaml"}, "zOpen(config.yaml)"),
        ("zLink", "zLink(/admin/users)", "zLink(/admin/users)"),
        ("zOpen", "zOpen(config.yaml)", "zOpen(config.yaml)"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_the_line(guarded: Served, key: str, horizontal: object, named: str):
    """It names the user and the command, once a second at most."""
    client = await guarded.client(token=guarded.tokens["guest"])
    for _ in range(3):
        assert (await client.call(key, horizontal))["code"] in ("permission_denied", "not_found")
    lines = [formatEvent(event) for event in guarded.log if event["log_level"] is LogLevel.warn]
    assert len(lines) == 1 and lines[0].startswith(f"'guest-user' (guest) at 127.0.0.1 may not '{named}'"), lines
    assert "hunter2" not in guarded.log_text
    await client.leave()


class Odd(Invalid):
    code: Any = object()


class Unwritable(InternalError):
    def __init__(self) -> None:
        super().__init__("own words \ud800")


@pytest_twisted.ensureDeferred
async def test_contact_each_internal_error_is_in_the_log(guarded: Served):
    """Whatever the text of the error says: which command of whom, and the cause."""
    database = sqlite3.connect(":memory:")
    made: dict[str, Any] = {
        "object": (object, "Encoding objects of type object"),
        "half": (lambda: "\ud800", "UnicodeEncodeError"),
        "row": (lambda: sqlite3.Row(database.cursor(), (1,)), "Encoding objects of type sqlite3.Row"),
        "cursor": (lambda: database.cursor(), "Encoding objects of type sqlite3.Cursor"),
        "deferred": (lambda: succeed(object()), "Encoding objects of type object"),
        "later": (lambda: deferLater(reactor, 0, object), "Encoding objects of type object"),
        "large": (lambda: "x" * 17_000_000, "Result too large"),
        "outcome": (lambda: Outcome({1: object()}), "Encoding objects of type object"),
        "own_words": (lambda: fail(Unwritable()), "own words"),
        "own_error": (lambda: fail(Invalid("x" * 17_000_000)), "Error too large"),
        "code": (lambda: fail(Odd("an odd code")), "an odd code"),
        "raises": (lambda: 1 / 0, "ZeroDivisionError"),
    }
    for name, (answer, _) in made.items():
        guarded.bifrost.command(name)(answer)

    @guarded.bifrost.command("sends")
    def sends(horizontal: Any, client: Any) -> None:
        client.send({"x": object()})

    made["sends"] = sends, "Encoding objects of type object"
    client = await guarded.client(token=guarded.tokens["admin"])
    with rows_of_a_test() as row:
        for name, (_, cause) in made.items():
            with row(name):
                before = len(guarded.log)
                # There are more of them than lines a second for one user.
                guarded.bifrost.factory.state._failures = Throttle(reactor.seconds)
                assert (await client.call(name))["code"] == "internal"
                lines = [event for event in guarded.log[before:] if event["log_level"] >= LogLevel.error]
                texts = "".join(eventAsText(event, includeTimestamp=False, includeSystem=False) for event in lines)
                assert len(lines) == 1 and cause in texts and f"'{name}'" in texts and "127.0.0.1" in texts, texts
    database.close()
    await client.leave()


@pytest_twisted.ensureDeferred
async def test_contact_what_nobody_is_told_is_not_counted(guarded: Served):
    """Commands whose client has left: nothing has timed out, and nothing was answered."""
    waiting: dict[str, Deferred[Any]] = {name: Deferred() for name in ("cancelled", "failing", "refusing")}
    done = Deferred(lambda _: None)
    for name, answer in waiting.items():
        guarded.bifrost.command(name)(partial(lambda deferred: deferred, answer))
    guarded.bifrost.command("deaf")(lambda: done)
    client = await guarded.client(token=guarded.tokens["admin"])
    for name in (*waiting, "deaf"):
        client.send_json({"zKey": name, "_requestId": name})
    await client.call("ping")
    waiting["failing"]._canceller = lambda deferred: deferred.errback(RuntimeError("too late"))
    waiting["refusing"]._canceller = lambda deferred: deferred.errback(Invalid("too late"))
    await client.leave()
    await wait_until(lambda: not guarded.bifrost.clients and waiting["refusing"].called, "the end of its commands")
    assert guarded.bifrost.factory.state.errors == {}


@pytest_twisted.ensureDeferred
async def test_contact_a_proxy_that_lets_nobody_through_is_named(guarded: Served):
    """With what it lacks, as nginx sends it where its configuration does not say otherwise; and counted once."""
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    with rows_of_a_test() as row:
        for status, version, headers, cure in (
            (505, "1.0", f"Upgrade: websocket\r\nConnection: upgrade\r\n{key}", "proxy_http_version 1.1"),
            (505, "1.0", f"Connection: close\r\n{key}", "proxy_http_version 1.1"),
            (426, "1.1", f"Connection: close\r\n{key}", "proxy_set_header Upgrade $http_upgrade"),
            (400, "1.1", f"Upgrade: websocket\r\nConnection: close\r\n{key}", "proxy_set_header Connection"),
            (400, "1.1", f"Upgrade: websocket\r\n{key}", "proxy_set_header Connection"),
            (400, "1.1", "Upgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Version: 13\r\n", ""),
        ):
            with row(f"{version} {headers}"):
                drops = guarded.bifrost.factory.drops
                drops.clear()
                del guarded.log[:]
                guarded.bifrost.factory._refusals = Throttle(reactor.seconds)
                client = await guarded.connect(f"GET / HTTP/{version}\r\nHost: localhost\r\n{headers}\r\n".encode())
                assert await statuses(client) == [status]
                await wait_until(lambda: not guarded.bifrost.factory._alive, "the end of it")
                lines = [line for line in map(formatEvent, guarded.log) if "was not let in" in line]
                assert len(lines) == bool(cure) and all(cure in line and "127.0.0.1" in line for line in lines), lines
                assert drops == {f"http_{status}": 1}
