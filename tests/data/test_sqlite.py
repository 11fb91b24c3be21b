"""SQLite's file: what several connections do to a new one at the same moment."""

from __future__ import annotations

import threading
from pathlib import Path

import sqlalchemy as sa

from zcomm.data.drivers.sqlite import SQLiteDatabase


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
