"""Functions that are to hear of presence, and never would."""

from __future__ import annotations

from pathlib import Path

import pytest
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, eventAsText

from zcomm.bifrost.server import zBifrost
from zcomm.budget.budgets import Budgets
from zcomm.config import Limits, WebSocketConfig
from zcomm.engines.memory import MemoryEngine
from zcomm.errors import ConfigError
from zcomm.testing import MemoryServer
from zcomm.topics.topics import Topics


@pytest.mark.parametrize(
    ("kinds", "pattern", "error"),
    [
        ({}, "room:{id}", None),
        ({"room:{id}": True}, "room:{name}", None),
        ({"room:{id}": True, "hall": False}, "{kind}:{id}", None),
        ({"room:{id}": False, "room:1": True}, "room:{id}", None),
        ({"room:{id}": True, "hall": True}, "rooms:{id}", "those are hall, room:{id}"),
        ({"room:{id}": False, "{kind}:{id}": True}, "room:{name}", "those are {kind}:{id}"),
        ({"room:{id}": False}, "room:{id}", "declare one with presence=True"),
        (
            {f"kind{number}:{{id}}": True for number in range(7)},
            "room:{id}",
            "those are " + ", ".join(f"kind{number}:{{id}}" for number in range(5)) + " and 2 more",
        ),
    ],
)
def test_who_would_never_hear_of_presence(kinds: dict[str, bool], pattern: str, error: str | None):
    """A server does not listen where a function would never be called; kinds may come before it or behind it, and
    where none is declared all topics have presence."""
    comm = Topics(MemoryEngine(), Clock(), Limits(), Budgets.on(Clock(), Limits()))
    comm.on_presence(pattern)(lambda arrived, gone, **parts: None)
    for kind, presence in kinds.items():
        comm.topic(kind, presence=presence)
    config = WebSocketConfig(port=0, require_auth=False)
    bifrost = zBifrost(config, reactor=Clock(), engine=comm.engine, topics=comm)
    if error is None:
        comm.check_hooks()
        return
    failed = bifrost.listen().result
    assert failed.check(ConfigError)
    assert str(failed.value) == f"on_presence: {pattern}: no kind of topics with presence has such names; {error}"


def test_who_hears_of_no_presence_any_more(tmp_path: Path, log: list[LogEvent]):
    """While clients are served the log says so, when the program has said all of its turn: where the function comes,
    where a kind does, and where the file is read anew."""

    def told() -> list[str]:
        server.settle()
        lines = [str(eventAsText(event)) for event in log if event.get("log_level") == LogLevel.warn]
        log.clear()
        return [line.partition("WARNING: ")[2].partition(": no kind")[0] for line in lines if "on_presence" in line]

    def heard(arrived: list[str], gone: list[str], **parts: str) -> None:
        """It is never called."""

    server = MemoryServer()
    topics = server.topics
    topics.on_presence("{kind}:{id}")(heard)
    assert told() == []
    topics.topic("hall")
    assert told() == ["on_presence: {kind}:{id}"]
    topics.on_presence("room:{id}")(heard)
    topics.topic("room:{id}", presence=True)
    assert told() == []
    topics.on_presence("rom:{id}")(heard)
    assert told() == ["on_presence: rom:{id}"]
    path = tmp_path / "topics.yaml"
    path.write_text('"rom:{id}": {presence: true}\n')
    topics.read_file(path)
    topics.reload()
    assert told() == []
    path.write_text('"rom:{id}": {}\n')
    topics.reload()
    assert told() == ["on_presence: rom:{id}"]
