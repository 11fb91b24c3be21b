"""The lock by which PostgreSQL's writers know that somebody watches, and what whoever holds it sees to."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable

from twisted.logger import Logger

from zcomm.data.drivers.driver import Connection, Fault
from zcomm.live.postgresql.tables import LOCK

__all__ = ["STALE", "Holder", "clean"]

#: Seconds between two looks at whether the lock can be had, and between two of whether there is something to clean.
LOOK_EVERY = 1.0
#: Seconds between two of the latter when there was nothing.
REST_EVERY = 10.0
#: Seconds after which a feed that was not seen is taken for gone.
STALE = 60
#: How long the lock is waited for at a time. Whoever waits holds a snapshot, which keeps the server from cleaning up
#: in all of its tables.
_WAIT = "10s"
#: How many rows of the log are removed at a time.
_BATCH = 10_000
#: Seconds that the thread has to end by itself.
_PATIENCE = 2.0

#: A session that says nothing ends: nobody would read, nor remove, what is logged for a server that is stopped.
_SETTINGS = f"""
SELECT pg_catalog.set_config(s.name, CASE s.name WHEN 'lock_timeout' THEN %s WHEN 'enable_seqscan' THEN 'off'
    WHEN 'idle_session_timeout' THEN '{STALE}s'
    WHEN 'jit' THEN 'off' WHEN 'default_transaction_isolation' THEN 'read committed' ELSE '0' END, false)
FROM pg_catalog.pg_settings AS s WHERE s.name IN (
    'lock_timeout', 'enable_seqscan', 'jit', 'default_transaction_isolation', 'statement_timeout',
    'idle_session_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout'
)
UNION ALL SELECT pg_catalog.set_config('search_path', 'pg_catalog, pg_temp', false)
"""  # noqa: S608 (constants and quoted names)
#: Whether nobody holds the lock of whoever wrote this life.
_FREE = """
SELECT coalesce((
    SELECT pg_catalog.pg_try_advisory_xact_lock_shared(l.id) FROM (SELECT id FROM zcomm.life LIMIT 1) AS l
), true)
"""
_GONE = f"""
DELETE FROM zcomm.feeds WHERE seen NOT BETWEEN pg_catalog.clock_timestamp() - interval '{STALE} seconds'
    AND pg_catalog.clock_timestamp() + interval '{STALE} seconds'
"""  # noqa: S608 (constants and quoted names)
#: What all feeds have read: a transaction before all that their snapshots did not see is over, and seen by each. Where
#: there is none, what is over now: whoever comes reads everything.
_READ = """
SELECT coalesce(
    (SELECT read FROM zcomm.feeds ORDER BY read LIMIT 1),
    pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())
)::pg_catalog.text
"""
_REMOVE = f"""
DELETE FROM zcomm.changes WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM zcomm.changes WHERE xid >= %s::pg_catalog.xid8 AND xid < %s::pg_catalog.xid8
    ORDER BY xid LIMIT {_BATCH}
))
"""  # noqa: S608 (constants and quoted names)


def clean(connection: Connection, since: str = "0", most: int = 5) -> tuple[int, str]:
    """Remove the feeds that are gone, and then what all others have read.

    The feeds first, by a transaction of its own: a feed whose rows are gone must find that it is gone itself.

    :param since: the transaction up to which nothing is left. What was removed stays in the index for as long as
        somebody may see it, and is not gone through again.
    :param most: how many times some rows are removed.
    :return: how many rows were removed, and the next ``since``.
    """
    connection.run(_GONE, (), False)
    read: str = connection.run(_READ, (), True)[0][0][0]
    removed = 0
    for _ in range(most):
        _, count = connection.run(_REMOVE, (since, read), False)
        removed += max(count, 0)
        if count < _BATCH:
            return removed, read
    return removed, since


class Holder:
    """Takes the lock in a session of its own and keeps it, with the log in order, until it is stopped.

    The session has a second lock, of a random number that stands in the table ``life``: as long as it cannot be had,
    the log lacks nothing since that number was written. A session that ends for whatever reason lets go of both.

    :param connect: opens the session.
    """

    _log = Logger()

    def __init__(self, connect: Callable[[], Connection]):
        self._connect = connect
        self._connection: Connection | None = None
        self._awake = threading.Event()
        self._stopping = False
        self._complained = ""
        #: Whether the lock is held, and the log has begun.
        self.holds = False
        self._thread = threading.Thread(target=self._work, name="zcomm-live-lock", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wake(self) -> None:
        """Look at once whether the lock is held, and can be had."""
        self._awake.set()

    def stop(self) -> None:
        """Let go of the lock, and of the log where nobody else reads it. Never raises."""
        self._stopping = True
        self._awake.set()
        for end in ("cancel", "interrupt"):
            connection = self._connection
            if connection is not None and not self.holds:
                getattr(connection, end)()
            self._thread.join(_PATIENCE)
            if not self._thread.is_alive():
                return
        connection = self._connection
        if connection is not None:
            connection.interrupt()
            self._thread.join(_PATIENCE)

    def _work(self) -> None:
        while not self._stopping:
            try:
                self._connection = self._connect()
                self._hold(self._connection)
            except Fault as fault:
                if not self._stopping and fault.kind != self._complained:
                    self._complained = fault.kind
                    self._log.warn("The changes of tables cannot be logged for now: {fault}", fault=fault)
            finally:
                self.holds = False
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            self._pause(LOOK_EVERY)

    def _pause(self, seconds: float) -> None:
        if not self._stopping:
            self._awake.wait(seconds)
            self._awake.clear()

    def _hold(self, connection: Connection) -> None:
        connection.run(_SETTINGS, (_WAIT,), True)
        # Who waits for a lock that another server holds for days would hold a snapshot for days.
        while not self._stopping and not connection.run(_FREE, (), True)[0][0][0]:
            self._pause(LOOK_EVERY)
        while not self._stopping:
            try:
                connection.run(f"SELECT pg_catalog.pg_advisory_lock({LOCK})", (), True)
                break
            except Fault as fault:
                if fault.kind != "busy":
                    raise
        if self._stopping:
            return
        life = self._take_over(connection)
        self.holds, self._complained = True, ""
        wait, since = LOOK_EVERY, "0"
        while not self._stopping:
            self._pause(wait)
            if not self._stopping:
                removed, since = clean(connection, since)
                wait = LOOK_EVERY if removed else REST_EVERY
                if connection.run("SELECT id FROM zcomm.life", (), True)[0] != [(life,)]:
                    # Somebody has emptied the table, or made it anew.
                    return
        connection.run("SELECT pg_catalog.set_config('lock_timeout', '1s', false)", (), True)
        if not connection.run("SELECT FROM zcomm.feeds LIMIT 1", (), True)[0]:
            # While the lock is held: nobody else has a log to lose then.
            self._empty(connection)
        # The server takes its time to notice that a session is over.
        connection.run("SELECT pg_catalog.pg_advisory_unlock_all()", (), True)

    def _take_over(self, connection: Connection) -> int:
        """Begin a life: what others have read of the log before is worth nothing, and nor are its rows."""
        life = secrets.randbits(62)
        connection.run("SELECT pg_catalog.pg_advisory_lock(%s::pg_catalog.int8)", (life,), True)
        self._empty(connection)
        connection.begin()
        connection.run("DELETE FROM zcomm.life", (), False)
        connection.run("INSERT INTO zcomm.life (id) VALUES (%s::pg_catalog.int8)", (life,), False)
        connection.commit()
        return life

    def _empty(self, connection: Connection) -> None:
        """Empty the log, at once where nobody writes it."""
        connection.begin()
        try:
            connection.run("LOCK TABLE zcomm.changes IN ACCESS EXCLUSIVE MODE NOWAIT", (), False)
            connection.run("TRUNCATE zcomm.changes", (), False)
            connection.commit()
        except Fault as fault:
            connection.rollback()
            if fault.kind not in ("busy", "forbidden"):
                raise
            connection.run("DELETE FROM zcomm.changes", (), False)
