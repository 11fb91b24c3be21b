"""The page on live queries says what is so."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

from support.docs_blocks import block, runs
from support.serverprocess import CHECKOUT, LISTENING, RunningServer, clean_environ

from zcomm.config import Limits
from zcomm.live.feed import LATE, LOOK, PACE
from zcomm.live.reading import QUERY_SECONDS
from zcomm.live.requests import MAX_BYTES, MAX_ROWS

PAGE = (CHECKOUT / "docs" / "live.rst").read_text("utf-8")


@runs("live-schema", "live-run", "live-write", "live-program")
def test_a_program_hears_what_another_one_writes(tmp_path: Path):
    """With the schema, the command and the statements of the page, in SQLite."""
    (tmp_path / "schema.yaml").write_text(block("live-schema").text, "utf-8")
    (tmp_path / "pages").mkdir()
    environ = clean_environ(tmp_path, {"WEBSOCKET_PORT": "0"})
    server = RunningServer(["bash", "-c", f"exec {block('live-run').text}"], tmp_path, environ, cwd=tmp_path)
    try:
        match = server.wait_for_log(LISTENING)
        text = block("live-program").text.replace("ws://127.0.0.1:56891", match[1])
        (tmp_path / "program.py").write_text(text.replace("your-token", server.token), "utf-8")
        command = [sys.executable, tmp_path / "program.py"]
        with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as program:
            assert program.stdout is not None
            try:
                shown = [program.stdout.readline()]
                connection = sqlite3.connect(tmp_path / "shop.db", isolation_level=None)
                for statement in block("live-write").text.splitlines():
                    connection.execute(statement)
                    shown.append(program.stdout.readline())
                connection.close()
            finally:
                program.kill()
        assert shown == [
            "all []\n",
            "all [(2, 7), (1, 5)]\n",
            "all [(1, 8), (2, 7)]\n",
            "all [(3, 9), (1, 8), (2, 7)]\n",
            "all [(3, 9), (1, 8)]\n",
        ]
    finally:
        server.stop()


def test_the_figures_are_those_of_the_code():
    """How many rows and bytes, how long and how often."""
    assert f"At most {MAX_ROWS:,} rows, of {MAX_BYTES >> 20} MiB" in PAGE
    assert (2 * QUERY_SECONDS, LATE) == (1, 3) and "longer than a second" in PAGE and "three times in a row" in PAGE
    assert (
        PACE == 1 / 150
        and "150 times a second" in PAGE
        and 19 < 1 / LOOK < 20
        and "nearly twenty times a second" in PAGE
    )
    named = set(re.findall(r"``--(live-[a-z-]+)``", PAGE))
    assert named == {name.replace("_", "-") for name in Limits.__dataclass_fields__ if name.startswith("live_")}
