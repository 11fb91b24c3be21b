"""A write by another process is looked for when it happens, not only when it is time to look."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import pytest_twisted
from support.liverows import Rows, serve, writing
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from zcomm.live import feed
from zcomm.live.nudge import Nudge

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of writes (inotify)")


def turn() -> Deferred[None]:
    """Fires when the reactor has looked at its files twice."""
    done: Deferred[None] = Deferred()
    reactor.callLater(0, reactor.callLater, 0, done.callback, None)
    return done


@pytest_twisted.ensureDeferred
async def test_each_time_it_is_asked_to_it_tells_once(tmp_path: Path):
    """What was written in between is told of when it is asked to tell again, and nothing once it is closed."""
    path, told = tmp_path / "file", [0]

    def tell() -> None:
        told[0] += 1

    path.write_bytes(b"")
    nudge = Nudge(reactor, tell)
    nudge.arm(str(path))
    with path.open("ab", buffering=0) as file:
        for count in (1, 2, 3):
            file.write(b"a")
            await wait_until(lambda count=count: told[0] == count)
            # This and more is told of when it is armed.
            for _ in range(5):
                file.write(b"a")
            await turn()
            assert told[0] == count
            nudge.arm(str(path))
            await wait_until(lambda count=count: told[0] == count + 1)
            told[0] = count
            nudge.arm(str(path))
        nudge.close()
        file.write(b"a")
        await turn()
        assert told[0] == 3
    nudge.close()


@pytest_twisted.ensureDeferred
async def test_another_file_and_none(tmp_path: Path):
    """It goes by the path that it is given; where nothing is there, nothing is told, and nothing fails."""
    told: list[str] = []
    nudge = Nudge(reactor, lambda: told.append("told"))
    for path in ("", str(tmp_path / "missing")):
        nudge.arm(path)
    first, second = tmp_path / "first", tmp_path / "second"
    for each in (first, second):
        each.write_bytes(b"")
        nudge.arm(str(each))
    first.write_bytes(b"a")
    await turn()
    assert not told
    second.write_bytes(b"a")
    await wait_until(lambda: told)
    second.unlink()
    nudge.arm(str(second))
    await turn()
    # What is gone is watched again when it is back.
    second.write_bytes(b"")
    nudge.arm(str(second))
    told.clear()
    second.write_bytes(b"a")
    await wait_until(lambda: told)
    nudge.close()
    none = Nudge(Clock(), lambda: told.append("never"))
    none.arm(str(first))
    none.close()


@pytest_twisted.ensureDeferred
async def test_live_queries_go_by_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What another program writes comes without the looks from time to time, again and again."""
    monkeypatch.setattr(feed, "LOOK", 3600.0)
    url = f"sqlite:///{tmp_path}/test.sqlite3"
    schema = "Notes: {_model: {live: true}, id: {type: int, pk: true}, text: str}"
    server = await serve(tmp_path, schema, url)
    try:
        client = await server.client()
        rows = await Rows(client, "q").ask("Notes", order_by="id")
        for number in range(5):
            await writing(url, f"INSERT INTO Notes (text) VALUES ('{number}')")
            await rows.until(lambda found, number=number: len(found) == number + 1)
            # The looks that follow on a write have ended.
            await wait_until(lambda: server.comm.zcli.live.feed._found_at is None)
    finally:
        await server.stop()
