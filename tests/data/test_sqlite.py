"""SQLite's file: what several connections do to a new one at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from zcomm.data.drivers import open_database
from zcomm.data.drivers.sqlite import SQLiteDatabase
from zcomm.errors import ConfigError


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("sqlite:////no/such/directory/x.db?password=hunter", "/x.db?password=***: the directory does not exist"),
        ("sqlite:////?pwd=hunter", "sqlite:////?pwd=***: it is a directory"),
        ("sqlite:////proc/x.db?pwd=hunter", "sqlite:////proc/x.db?pwd=***: the file cannot be opened"),
        ("sqlite://host/x.db?pwd=hunter", "sqlite://host/x.db?pwd=***: its parts or settings do not fit"),
        ("sqlite:///x.db?timeout=soon", "its parts or settings do not fit"),
        ("postgresql://host/data?pwd=hunter&port=hunt-er", "?pwd=***&port=hunt-er: its parts or settings do not fit"),
        ("mysql+pymysql://host/data?pwd=hunter", "mysql+pymysql://host/data?pwd=***: zComm speaks to"),
    ],
)
@pytest.mark.filterwarnings("ignore:Query string argument:sqlalchemy.exc.SAWarning")
def test_no_error_shows_a_secret_of_the_url(url: str, says: str):
    """What the query is wrong about is told without what it says; what is wrong with a file, too."""
    with pytest.raises(ConfigError) as caught:
        open_database(url, 1, 1)
    assert says in str(caught.value)
    assert "hunter" not in str(caught.value)


@pytest.mark.unmeasured
def test_a_new_file_is_opened_by_many_at_once(tmp_path: Path):
    """Each switches the file to its write-ahead log and writes to it, and none is told that the database is locked."""
    failures: list[BaseException] = []

    def connect(database: SQLiteDatabase, together: threading.Barrier) -> None:
        together.wait()
        try:
            connection = database.connect()
            connection.begin()
            connection.run("CREATE TABLE IF NOT EXISTS made (id INTEGER)", (), False)
            connection.commit()
            connection.close()
        except BaseException as error:
            failures.append(error)

    # One of about eighty would fail without another try.
    for number in range(80):
        together = threading.Barrier(8)
        databases = [SQLiteDatabase(sa.make_url(f"sqlite:///{tmp_path}/{number}.sqlite3")) for _ in range(8)]
        threads = [threading.Thread(target=connect, args=(database, together)) for database in databases]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert failures == []
