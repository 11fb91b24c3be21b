"""``zcomm live``, on real databases of both kinds."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
from support.postgres import Cluster, cluster_template, postgresql  # noqa: F401 (fixtures)

from zcomm.cli import main

SCHEMA = """
Orders:
  _model: {live: true}
  id: {type: int, pk: true}
  owner: str
  note: str
Parts:
  id: {type: int, pk: true}
"""
TABLES = (
    'CREATE TABLE "Orders" (id INTEGER NOT NULL PRIMARY KEY, owner TEXT, note TEXT)',
    'CREATE TABLE "Parts" (id INTEGER NOT NULL PRIMARY KEY)',
)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, postgresql: Cluster, tmp_path: Path) -> Iterator[str]:  # noqa: F811 (a fixture)
    """A database with the tables."""
    if request.param == "sqlite":
        with sqlite3.connect(tmp_path / "test.sqlite3") as connection:
            for statement in TABLES:
                connection.execute(statement)
        connection.close()
        yield f"sqlite:///{tmp_path}/test.sqlite3"
        return
    name = postgresql.new_database()
    with psycopg.connect(postgresql.url(name), autocommit=True) as session:
        for statement in TABLES:
            session.execute(statement)
    yield postgresql.url(name)
    postgresql.drop_database(name)


@pytest.fixture
def run(tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("status")``: the exit status, what it printed, and what it complained of."""
    (tmp_path / "schema.yaml").write_text(SCHEMA)

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        given = ["--database", url, "--schema", str(tmp_path / "schema.yaml"), "--data-dir", str(tmp_path)]
        status = main(["live", command, *given, *arguments])
        told = capsys.readouterr()
        return status, told.out, told.err

    return run


def execute(url: str, script: str) -> None:
    """Run a script as its owner would."""
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            connection.executescript(script)
        connection.close()
    else:
        with psycopg.connect(url, autocommit=True) as session:
            session.execute(script)


def test_what_it_would_do_is_what_watches(run: Run, url: str):
    """The SQL alone changes nothing; run by the owner it has the table watched, and nothing is left to do."""
    assert run("status")[:2] == (0, run("status")[1]) and "no table is watched" in run("status")[1]
    status, script, _ = run("sql")
    assert status == 0 and "CREATE" in script and "Parts" not in script
    assert "no table is watched" in run("status")[1]
    execute(url, script)
    assert "Orders: watched" in run("status")[1].replace('"', "").replace("public.", "")
    assert run("on")[:2] == (0, "Orders: watched\n")


def test_what_was_installed_is_removed(run: Run, url: str):
    """Triggers, tables and functions are gone, whoever installed them; to remove nothing is no error."""
    assert run("off")[0] == 0
    assert run("on")[:2] == (0, "Orders: watched\n")
    assert run("off")[0] == 0
    assert "no table is watched" in run("status")[1]
    if url.startswith("sqlite"):
        with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
            left = connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'zcomm%'").fetchall()
        connection.close()
    else:
        with psycopg.connect(url) as session:
            left = session.execute("SELECT FROM pg_namespace WHERE nspname = 'zcomm'").fetchall()
    assert left == []


def test_how_a_query_is_kept_is_told(run: Run, url: str):
    """By which value a changed row finds it, what the database is asked, and when it is read anew."""
    where = '{"owner": "ann", "note__ilike": "x%"}'
    status, told, _ = run("explain", "Orders", "--where", where, "--order-by", "id DESC", "--limit", "5")
    assert status == 0
    assert "found by owner" in told and "note__ilike" in told and "5 rows" in told
    _, told, _ = run("explain", "Orders")
    assert "no condition asks for a value" in told and "without the database" in told


@pytest.mark.parametrize(
    ("command", "arguments", "reason"),
    [
        ("sql", ("Order",), "did you mean"),
        ("explain", ("Orders", "--where", "{"), "no JSON"),
        ("explain", ("Orders", "--where", '{"nope": 1}'), "no field"),
        ("explain", ("Orders", "--limit", "0"), "limit"),
    ],
)
def test_what_cannot_be_is_said(run: Run, command: str, arguments: tuple[str, ...], reason: str):
    """With what is wrong, and status 1."""
    status, _, told = run(command, *arguments)
    assert status == 1 and reason in told, told


def test_tables_that_are_missing_are_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """It is for a database that a server has made or found."""
    (tmp_path / "schema.yaml").write_text(SCHEMA)
    given = ["--database", f"sqlite:///{tmp_path}/new.sqlite3", "--schema", str(tmp_path / "schema.yaml")]
    assert main(["live", "status", *given, "--data-dir", str(tmp_path)]) == 1
    assert "are missing" in capsys.readouterr().err
