"""The demo page in Chromium, driven by the ``*.test.mjs`` beside this file with Node's test runner."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import tempfile
from pathlib import Path

import pytest
from support.docs_blocks import block, runs
from support.serverprocess import CHECKOUT, clean_environ, scripts, twistd_command

#: Seconds for the whole run; it takes less than one minute on an idle machine.
DEADLINE = 480


def run_in_chromium(file: str, tmp_path: Path, **more: object) -> None:
    """Run one file of tests to its end; ``more`` is told to it beside how to start a server."""
    chromium = shutil.which("chromium")
    assert chromium, "Chromium is missing: apt-get install chromium"
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    files = tmp_path / "files"
    files.mkdir()
    (files / "config.yaml").write_text("theme: dark\n")
    here = Path(__file__).parent
    environ = clean_environ(home, {"PYTHONPATH": os.pathsep.join((str(CHECKOUT), str(here.parent)))})
    server = {
        "twistd": twistd_command(),
        "zcomm": str(scripts() / "zcomm"),
        "environ": environ,
        "files": str(files),
        **more,
    }
    # Chromium has a socket in its profile, whose path may have 107 bytes.
    profiles = tempfile.mkdtemp(prefix="zcomm-")
    process = subprocess.Popen(
        ["node", "--test", "--test-reporter=tap", file],
        cwd=here,
        env={**environ, "CHROMIUM": chromium, "ZCOMM_TEST_SERVER": json.dumps(server), "TMPDIR": profiles},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=DEADLINE)
    finally:
        if process.poll() is None:
            # Browser and server are in its group: none of them outlives a test that hangs.
            os.killpg(process.pid, signal.SIGKILL)
            # Up to which step it came.
            print(process.communicate()[0])
        shutil.rmtree(profiles, ignore_errors=True)
    assert process.returncode == 0, output
    assert "# fail 0" in output and "# pass 0" not in output, output


def test_a_server_that_does_not_start_ends_the_run_with_what_it_said(tmp_path: Path) -> None:
    """No browser is left that keeps it until its deadline, and no file starts one so that it could."""
    with pytest.raises(AssertionError, match="the server ended:"):
        run_in_chromium("live.test.mjs", tmp_path, twistd=["false"])
    for file in Path(__file__).parent.glob("*.test.mjs"):
        assert not re.search(r"all\(\[\s*launch", file.read_text("utf-8")), file.name


def test_demo_page(tmp_path: Path) -> None:
    """A person in two tabs creates, edits, filters, deletes, calls, is asked, and sees the server come back."""
    run_in_chromium("page.test.mjs", tmp_path)


def test_example_chat(tmp_path: Path) -> None:
    """examples/chat: two people, a guest, one who comes late, a lost connection, a restart of the server."""
    run_in_chromium("example-chat.test.mjs", tmp_path)


def test_example_kanban(tmp_path: Path) -> None:
    """examples/kanban: two people and a program, a guest, one who comes late, a lost connection, much at once."""
    run_in_chromium("example-kanban.test.mjs", tmp_path)


def test_example_dashboard(tmp_path: Path) -> None:
    """examples/dashboard: a hundred values a second, two hundred viewers of some each, late ones, a lost connection."""
    run_in_chromium("example-dashboard.test.mjs", tmp_path)


def test_accessibility(tmp_path: Path) -> None:
    """axe finds nothing on the demo page and the examples' pages: light, dark, narrow, signed out, in use, away."""
    run_in_chromium("accessibility.test.mjs", tmp_path)


def test_foreign_pages(tmp_path: Path) -> None:
    """What a stranger's page can send runs no command over HTTP, without authentication too; the server's own does."""
    run_in_chromium("foreign.test.mjs", tmp_path)


def test_contact_demo_page(tmp_path: Path, free_port: int) -> None:
    """Data as others have it: the page keeps every character and digit, shows it in place, and to its owner only; names
    that every object has are names (B41)."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert nginx, "nginx is missing: ./test installs it"
    database = tmp_path / "data.db"
    with sqlite3.connect(database) as connection:
        connection.execute('CREATE TABLE "Snow" (id INTEGER PRIMARY KEY, name TEXT NOT NULL)')
        rows = [(2**53, "even"), (2**53 + 1, "odd"), (2**63 - 1, "last")]
        connection.executemany('INSERT INTO "Snow" VALUES (?, ?)', rows)
    connection.close()
    run_in_chromium("contact.test.mjs", tmp_path, nginx=nginx, port=free_port, database=str(database))


def test_live_rows_of_the_demo_page(tmp_path: Path) -> None:
    """Rows that another program writes enter, move and leave, a thousand at once, and over a restart of the server."""
    run_in_chromium("live.test.mjs", tmp_path)


def test_chat_of_the_demo_page(tmp_path: Path) -> None:
    """Who is there, who types, what was missed, what is gone after a restart, and what the server refuses."""
    run_in_chromium("chat.test.mjs", tmp_path)


@runs("readme-chat", "readme-chat-run", "quickstart-chat", "quickstart-chat-run", "quickstart-rooms")
@runs("readme-live", "readme-live-write")
def test_chat_of_the_docs(tmp_path: Path) -> None:
    """Served as the pages say, two tabs that came by links see each other's messages, before and after a restart."""
    pages = []
    for name in ("readme-chat", "quickstart-chat"):
        command = block(f"{name}-run").text.removeprefix(".venv/bin/").split()
        assert command == ["twistd", "-n", "zcomm", "--www", "pages"]
        directory = tmp_path / name / "pages"
        directory.mkdir(parents=True)
        (directory / "index.html").write_text(block(name).text, "utf-8")
        (directory / "rooms.html").write_text(block("quickstart-rooms").text, "utf-8")
        (directory / "live.html").write_text(block("readme-live").text, "utf-8")
        pages.append({"name": name, "options": ["--www", str(directory)]})
    # What Python has of SQLite does it as well; the shell need not be there.
    path, statement = shlex.split(block("readme-live-write").text)[1:]
    assert '"Users"' in statement, "PostgreSQL finds no other"
    run_in_chromium("docs-chat.test.mjs", tmp_path, pages=pages, write=[path.removeprefix("~/"), statement])


@runs("live-page")
def test_live_page_of_the_docs(tmp_path: Path) -> None:
    """It follows what another program writes, before and after a restart."""
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.html").write_text(block("live-page").text, "utf-8")
    (tmp_path / "schema.yaml").write_text(block("live-schema").text, "utf-8")
    database = tmp_path / "shop.db"
    options = ["--schema", str(tmp_path / "schema.yaml"), "--www", str(tmp_path / "pages")]
    options += ["--database", f"sqlite:///{database}"]
    statements = block("live-write").text.splitlines()
    run_in_chromium("docs-live.test.mjs", tmp_path, options=options, database=str(database), statements=statements)
