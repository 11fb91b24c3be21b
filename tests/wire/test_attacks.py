"""One user's attacks, and the others, who notice nothing: their commands are counted, and the memory of the server is.

The attacks are those of ``benchmarks/isolation.py``, which measures how long everything takes.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from pathlib import Path

import pytest
from support.postgres import Cluster, cluster_template, postgresql, postgresql_url  # noqa: F401 (fixtures)
from support.rawclient import BlockingRawClient
from support.serverprocess import CHECKOUT
from support.waiting import DEADLINE

sys.path.insert(0, str(CHECKOUT / "benchmarks"))

from attacks.stage import Stage
from attacks.users import USER_ATTACKS
from isolation import launch

pytestmark = [
    pytest.mark.child,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc"),
]

#: What the others do meanwhile, over and over.
ORDINARY = (
    ("ping", "x"),
    ("read_Notes", {"where": {"id": 1}}),
    ("create_Notes", {"values": {"title": "a note"}}),
    ("zFunc", "zFunc(quick)"),
)
#: Seconds that an attack goes on, before the server is told to end in the middle of it.
SECONDS = 1.5
#: What the attack may cost for a moment, of what ``isolation.py`` allows it on a machine that does nothing else; and MB
#: that what the others do may add.
TIMES, ALLOWANCE = 2.0, 16.0
#: Lines that the log may have of an attack.
LINES = 60


@pytest.fixture(scope="module", autouse=True)
def cluster(postgresql: Cluster) -> Cluster:  # noqa: F811 (the fixture)
    """It is there before a test begins, and so is none of what a test leaves behind."""
    return postgresql


@pytest.fixture(autouse=True)
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is bounded here is a server as users have it. Where coverage looks at each line of ten threads that compute,
    the reactor gets so little that its end has taken ten seconds."""
    for name in [name for name in os.environ if name.startswith(("COVERAGE_", "COV_"))]:
        monkeypatch.delenv(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest) -> str:
    """Of an empty database of either kind; ``""`` for a file of the server's own."""
    return "" if request.param == "sqlite" else request.getfixturevalue("postgresql_url")


def others_are_served(name: str, directory: Path, url: str = "") -> None:
    """Others are answered while one attacks, by a server that stays small, logs little, and ends in order in the middle
    of the attack when it is told to."""
    attack = USER_ATTACKS[name]
    stage = Stage(directory, attack, url, core=None)
    server, attacking = stage.server, None
    try:
        with BlockingRawClient(server.port, token=stage.tokens["other"]) as other:
            for key, horizontal in ORDINARY * 20:
                assert "result" in other.call(key, horizontal)
            (Path("/proc") / str(server.process.pid) / "clear_refs").write_text("5")
            before, lines = server.usage()["rss"], stage.log_size()[0]
            attacking = launch(name, stage, 3600)
            begun = time.monotonic()
            while time.monotonic() < begun + SECONDS:
                for key, horizontal in ORDINARY:
                    reply = other.call(key, horizontal)
                    assert "result" in reply, reply
        grown = (server.usage()["peak"] - before) * 1024 / 1e6
        logged = stage.log_size()[0] - lines
        assert attacking.poll() is None, "the attack ended by itself"
        server.process.send_signal(signal.SIGTERM)
        # A command and the goodbyes have their time; no statement has more of it.
        assert server.process.wait(DEADLINE / 4) == 0, server.output.read_text(errors="replace")[-2000:]
        assert grown <= TIMES * attack.growth + ALLOWANCE
        assert logged <= LINES, server.output.read_text(errors="replace")[-2000:]
        assert "failing" in name or not server.complaints()
    finally:
        for process in filter(None, (attacking, server.process)):
            process.kill()
            process.wait()
        if attacking is not None:
            attacking.stdout.close()


@pytest.mark.parametrize(
    "case",
    [
        "B1-B2-patterns",
        "B1-B2-patterns-of-200",
        "B1-B2-conditions-200",
        "B3-json-reads",
        "B3-wide-reads",
        "B4-new-shapes",
        "B7-dear-updates",
        "B9-large-creates",
        "B13-results-never-read",
        "B15-idempotent-deletes",
    ],
)
def test_who_asks_much_of_the_database(case: str, url: str, tmp_path: Path):
    """On either database: others read, write and call functions as before."""
    others_are_served(named(case), tmp_path, url)


@pytest.mark.parametrize(
    "case",
    [
        "B8-waiting-functions",
        "B8-B31-questions",
        "B11-dear-messages",
        "B12-near-misses",
        "B12-descriptions",
        "B16-failing-commands",
        "B17-endless-carts",
        "B24-told-reads",
        "B29-compressed-messages",
        "B30-steps",
        "B13-large-echoes",
    ],
)
def test_who_asks_much_of_the_server(case: str, tmp_path: Path):
    """Threads, the reactor, the log."""
    others_are_served(named(case), tmp_path)


def named(case: str) -> str:
    """The attack of a case of docs/catalogue.rst: what stands behind its numbers."""
    return re.sub(r"^(?:B\d+-)+", "", case)
