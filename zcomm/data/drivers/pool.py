"""Open connections, for as many threads at a time as have one."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from zcomm.data.drivers.driver import Connection, Database, Fault

__all__ = ["Pool"]


class Pool:
    """Connections that are open and unused, the last used one first. Safe to use from any thread.

    :param database: makes them.
    :param max_connections: how many there may be at a time.
    :param timeout: seconds to wait for one when all are in use.
    """

    def __init__(self, database: Database, max_connections: int, timeout: float):
        self._database = database
        self._timeout = timeout
        self._places = threading.BoundedSemaphore(min(max_connections, database.capacity or max_connections))
        self._idle: deque[Connection] = deque()
        self._used: dict[Connection, float] = {}
        self._returned = threading.Condition()
        #: How many wait for a connection that is in use, and those that are theirs: whoever comes later would take
        #: an unused one before they are awake.
        self._waiting = 0
        self._kept: deque[Connection] = deque()
        self._open = True

    def open(self) -> None:
        """Serve again after :meth:`close`."""
        self._open = True

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection for the length of a ``with`` block.

        :raises Fault: ``down`` or ``refused`` when none can be had, ``busy`` when all stay in use.
        """
        if not self._places.acquire(timeout=self._timeout):
            raise Fault("busy", (), "all connections are in use")
        try:
            connection = self._take()
            self._used[connection] = time.monotonic()
            try:
                yield connection
            finally:
                del self._used[connection]
                if self._open and connection.alive():
                    self._idle.append(connection)
                else:
                    connection.close()
                if self._waiting:
                    with self._returned:
                        self._share()
        finally:
            self._places.release()

    def _take(self) -> Connection:
        if not self._open:
            raise Fault("down", (), "the store is stopped")
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._connect()
            if connection.alive():
                return connection
            connection.close()

    def _connect(self) -> Connection:
        waits = False

        def offered() -> bool:
            nonlocal waits
            if not waits:
                with self._returned:
                    waits = True
                    self._waiting += 1
                    self._share()
            return bool(self._kept)

        try:
            try:
                return self._database.connect(offered)
            except Fault as fault:
                if fault.kind != "crowded":
                    raise
                down = replace(fault, kind="down")
            # The database gives fewer than we may have: one that is in use will do.
            offered()
            with self._returned:
                if not self._returned.wait_for(lambda: self._kept or not self._used, self._timeout):
                    raise Fault("busy", (), down.detail)
                if not self._kept:
                    raise down
                return self._kept.popleft()
        finally:
            if waits:
                with self._returned:
                    self._waiting -= 1
                    self._share()

    def _share(self) -> None:
        """Keep unused connections for as many as wait, and no more."""
        while len(self._kept) > self._waiting:
            self._idle.append(self._kept.pop())
        while len(self._kept) < self._waiting and self._idle:
            try:
                self._kept.append(self._idle.pop())
            except IndexError:
                break  # somebody took it
        self._returned.notify_all()

    def interrupt(self, older: float) -> int:
        """End what has been in use for longer than ``older`` seconds.

        :return: how many that were.
        """
        since = time.monotonic() - older
        late = [connection for connection, begun in list(self._used.items()) if begun < since]
        for connection in late:
            connection.interrupt()
        return len(late)

    def close(self) -> None:
        """Close the unused connections, and the others when they come back."""
        self._open = False
        while self._idle:
            self._idle.pop().close()
