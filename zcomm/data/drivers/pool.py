"""Open connections, for as many threads at a time as have one."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Container, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from zcomm.data.drivers.driver import Backend, Connection, Database, Fault
from zcomm.data.drivers.effort import Effort
from zcomm.runtime.workers import current_call

__all__ = ["QUICK", "Pool", "Use"]

#: Connections that are kept for what a program does for all, where there are more: to look whether the database
#: answers, and to tidy up.
SPARE = 2
#: Seconds that the statements of one command may take before anybody is told.
QUICK = 0.02
#: How many times as long as the quickest command another one may be on its way to the database and back: it begins and
#: commits, and may have more statements. Seconds of that way before any is known: longer than to any database.
WAYS, FAR = 5, 10.0
#: Seconds that a connection may wait for a session of a pooler's before there are too few of them.
PATIENCE = 0.25
#: Seconds after which it is forgotten that there were too few, where none was refused or waited for since: one user
#: alone, who has half of them, never finds out that there are more.
FORGOTTEN = 60.0


class Use:
    """The use of a connection by one call.

    :param owner: whose call it is; ``None`` for the program itself.
    :param is_own: whether the database does its work in the thread that asks for it.
    :param way: the seconds of the quickest use of its kind so far.
    :ivar charged: seconds of it that have been charged to its owner.
    :ivar tells_the_way: whether it takes as long as the way at least: one that changed nothing had nothing to commit.
    :ivar given_up: whether nobody waits for its end any more.
    :ivar is_cut: whether its statement was told to end, because it kept others waiting.
    """

    __slots__ = (
        "_begun",
        "_cost",
        "_effort",
        "_ended",
        "_excused",
        "_paused",
        "call",
        "charged",
        "given_up",
        "is_cut",
        "owner",
        "tells_the_way",
        "way",
    )

    def __init__(self, owner: Hashable, is_own: bool = False, way: float = 0.0):
        self.owner = owner
        self.call = current_call()
        self.charged = 0.0
        self.way = way
        self._excused = 0.0
        self.tells_the_way = owner is not None
        self.given_up = self.is_cut = False
        self._begun = time.monotonic()
        self._paused: float | None = None
        self._ended: float | None = None
        self._effort = Effort() if is_own else None
        self._cost: float | None = None
        if self.call is not None and not is_own:
            self.call.elsewhere = self

    @property
    def has_ended(self) -> bool:
        """Whether the connection is another one's by now."""
        return self._ended is not None

    @property
    def seconds(self) -> float:
        """The time for which it has had the database do something."""
        ended = self._ended
        if ended is None:
            ended = self._paused
        return (time.monotonic() if ended is None else ended) - self._begun

    @property
    def waits(self) -> float:
        """The seconds for which it has waited for others now."""
        paused = self._paused
        return 0.0 if paused is None or self.has_ended else time.monotonic() - paused

    @property
    def cost(self) -> float:
        """The time that it has taken of the database: of one in this process, what its thread has computed or waited
        for the disk, the latter once it has ended."""
        if self._cost is not None:
            return self._cost
        return self.seconds if self._effort is None else self._effort.so_far(self.seconds)

    @property
    def at_work(self) -> float:
        """The seconds for which the database has been at work, beyond what the way there and back takes."""
        return max(0.0, self.seconds - self._excused - WAYS * self.way)

    def excuse(self, seconds: float) -> None:
        """Take all so far for such as it waited in for what others had locked, and as many seconds to come: it is asked
        about so often only, and would keep the next of its owner's in between."""
        self._excused = max(self._excused, self.seconds + seconds)

    def pause(self) -> None:
        """Count no time from here on, in which it waits for others."""
        if self._paused is None:
            self._paused = time.monotonic()

    def go_on(self) -> None:
        """Count time again."""
        paused = self._paused
        if paused is not None:
            self._begun += time.monotonic() - paused
            self._paused = None

    def spare(self, since: float, computed: float) -> None:
        """Count of the time since then only what this thread has computed: it is the server that waited.

        :param since: its seconds then.
        :param computed: the processor's time of this thread then.
        """
        self._begun += max(0.0, self.seconds - since - (time.thread_time() - computed))

    @contextmanager
    def holding(self, lock: threading.Lock) -> Iterator[None]:
        """Hold ``lock``, and count no time for which others have it."""
        if not lock.acquire(blocking=False):
            self.pause()
            try:
                lock.acquire()
            finally:
                self.go_on()
        try:
            yield
        finally:
            lock.release()

    def end(self) -> None:
        """Count no further time. Called in its thread."""
        self.go_on()
        self._ended = time.monotonic()
        seconds = self.seconds
        self._cost = self._effort.all(seconds) if self._effort is not None and seconds > QUICK else seconds


class _Left:
    """The place of a connection that was given up.

    :ivar backend: what the database may still be at work with.
    """

    __slots__ = ("backend", "gone", "places")

    def __init__(self, backend: Backend, places: threading.Semaphore):
        self.backend = backend
        self.places = places
        self.gone = threading.Event()


class Pool:
    """Connections that are open and unused, the last used one first. Safe to use from any thread.

    :param database: makes them.
    :param max_connections: how many there may be at a time.
    :param timeout: seconds to wait for one when all are in use.
    :param used: told of each use that has ended and cost more than :data:`QUICK`, in the thread of it.
    """

    def __init__(
        self,
        database: Database,
        max_connections: int,
        timeout: float,
        used: Callable[[Use], object] = lambda use: None,
    ):
        self._database = database
        self._timeout = timeout
        self._tell = used
        places = min(max_connections, database.capacity or max_connections)
        spare = SPARE if places > 2 * SPARE else 0
        self._places = threading.BoundedSemaphore(places - spare)
        self._spare = threading.BoundedSemaphore(spare) if spare else self._places
        self._idle: deque[Connection] = deque()
        #: The seconds of the quickest use by a user, of those that read and of those that write: of the way to the
        #: database, and little more.
        self._quickest = [FAR, FAR]
        self._used: dict[Connection, Use] = {}
        #: How often all connections were given up for new ones.
        self._renewals = 0
        self._returned = threading.Condition()
        #: How many wait for a connection that is in use, and those that are theirs: whoever comes later would take
        #: an unused one before they are awake.
        self._waiting = 0
        self._kept: deque[Connection] = deque()
        self._open = True
        self._left: list[_Left] = []
        self._all = places
        #: How many the database lets us have, once it has refused one, when that was, and whether one more is tried;
        #: and those that users have or are about to.
        self._most: int | None = None
        self._learned = 0.0
        self._tries_more = False
        self._shares: Counter[Hashable] = Counter()

    def open(self) -> None:
        """Serve again after :meth:`close`."""
        self._open = True

    @property
    def is_open(self) -> bool:
        """Whether there is something to be had."""
        return self._open

    @contextmanager
    def connection(
        self, owner: Hashable = None, writes: bool = False, spare: bool = False, long: bool = False
    ) -> Iterator[Connection]:
        """A connection for the length of a ``with`` block.

        :param owner: whose work it is for.
        :param writes: whether it changes something, which the database may be longer in promising to keep.
        :param spare: whether it is one of those that are kept for the program itself.
        :param long: whether a turn at the only one may be long.
        :raises Fault: ``down`` or ``refused`` when none can be had, ``busy`` when all stay in use, ``overdrawn`` where
            the owner had too many long turns.
        """
        left: _Left | None = None
        places = self._spare if spare else self._places
        line = self._database.line
        if line is not None:
            line.take(owner, long, self._timeout)
        # Who has its turn at the only connection waits for no other place.
        if line is None and not places.acquire(timeout=self._timeout):
            raise Fault("busy", (), "all connections are in use")
        renewals = self._renewals
        has_share = False
        try:
            if owner is not None:
                self._take_share(owner)
                has_share = True
            connection = self._take()
            use = self._used[connection] = Use(owner, self._database.embedded, self._quickest[writes])
            try:
                yield connection
                if use.tells_the_way:
                    self._quickest[writes] = min(self._quickest[writes], use.seconds)
            finally:
                del self._used[connection]
                use.end()
                if use.cost > QUICK:
                    self._tell(use)
                # What tells a statement to end may come too late, and would end another one.
                is_told = use.is_cut or (use.given_up and connection.backend is not None)
                if is_told or not connection.alive() or not self._keep(connection, renewals):
                    connection.close()
                if self._waiting:
                    with self._returned:
                        self._share()
                if use.given_up and not spare:
                    left = self._leave(connection, places)
        finally:
            if has_share:
                self._give_share_back(owner)
            if line is not None:
                line.give_back()
            elif left is None:
                places.release()
            elif use.call is not None:
                # What runs counts as its owner's, and so does the thread of the call.
                left.gone.wait()

    def _keep(self, connection: Connection, renewals: int) -> bool:
        """Have ``connection`` for others, unless all were closed since it was taken; says whether it is kept."""
        # Whoever closes them all does so either before or after: none is put back in between, which nobody would close.
        with self._returned:
            is_kept = self._open and renewals == self._renewals
            if is_kept:
                self._idle.append(connection)
        return is_kept

    def _take_share(self, owner: Hashable) -> None:
        """Wait until ``owner`` may have one more of the few connections that there are: half of what the others leave,
        and one is for the program itself.

        :raises Fault: ``busy`` when that takes too long.
        """
        with self._returned:
            if self._most is not None and not self._returned.wait_for(lambda: self._may_have(owner), self._timeout):
                raise Fault("busy", (), "the database gives too few connections")
            self._shares[owner] += 1

    def _may_have(self, owner: Hashable) -> bool:
        most = self._for_users
        if most is None:
            return True
        own, taken = self._shares[owner], self._shares.total()
        return taken < most + self._tries_more and own < max(1, (most - taken + own + 1) // 2)

    def _give_share_back(self, owner: Hashable) -> None:
        with self._returned:
            self._shares[owner] -= 1
            if not self._shares[owner]:
                del self._shares[owner]
            if self._most is not None:
                self._returned.notify_all()

    @property
    def _for_users(self) -> int | None:
        return self._most if self._most is None or self._most <= SPARE else self._most - 1

    def _learn(self, most: int) -> None:
        """Take into account that there are no more connections than ``most``. Called with the lock held."""
        self._most = max(1, most)
        self._learned = time.monotonic()
        self._tries_more = False

    def _review(self, uses: list[tuple[Connection, Use]], now: float) -> None:
        """Look whether there are sessions for all connections, and try one more where there were too few."""
        waiting = sum(now - connection.waits_since > PATIENCE for connection, _ in uses)
        if not waiting and self._most is None:
            return
        with self._returned:
            most = self._for_users
            if waiting:
                if waiting < len(uses):
                    self._learn(len(uses) - waiting)
            elif most is not None and self._most is not None:
                self._most += sum(use.owner is not None for _, use in uses) > most
                self._tries_more = True
                if self._most >= self._all or now - self._learned > FORGOTTEN:
                    self._most = None
                self._returned.notify_all()

    def _leave(self, connection: Connection, places: threading.Semaphore) -> _Left | None:
        """Keep the place of a connection that is given up, where the database may still be at work for it."""
        backend = connection.backend
        if backend is None:
            return None
        left = _Left(backend, places)
        with self._returned:
            if not self._open:
                return None
            self._left.append(left)
        return left

    @property
    def left(self) -> list[Backend]:
        """The parts of the server that may still be at work, though they were given up."""
        return [left.backend for left in list(self._left)]

    def forget(self, ended: Container[Backend]) -> None:
        """Give free the places of what the database is no longer at work with."""
        with self._returned:
            gone = [left for left in self._left if left.backend in ended]
            self._left = [left for left in self._left if left not in gone]
        for left in gone:
            left.places.release()
            left.gone.set()

    def at_work(self) -> dict[Use, int]:
        """The uses of users that take more than is quick, with the processes of the server that work for them."""
        return {
            use: process
            for connection, use in list(self._used.items())
            if use.owner is not None and use.seconds > QUICK and (process := connection.process) is not None
        }

    def cut(self, use: Use) -> None:
        """Tell the statement of a use to end, if it still runs, and no later one."""
        # In this order: who ends it asks in the other one.
        use.is_cut = True
        for connection, each in list(self._used.items()):
            if each is use and not use.has_ended:
                connection.cancel()

    def use_of(self, connection: Connection) -> Use:
        """The use that ``connection`` is in."""
        return self._used[connection]

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
                self._learn(len(self._used) + len(self._idle) + len(self._kept))
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
            connection = self._kept.pop()
            if self._open:
                self._idle.append(connection)
            else:
                connection.close()
        while len(self._kept) < self._waiting and self._idle:
            try:
                self._kept.append(self._idle.pop())
            except IndexError:
                break  # somebody took it
        self._returned.notify_all()

    def expire(self, hung: float) -> tuple[list[Use], list[Use]]:
        """End what is past its time, and give up what has been in use for longer than ``hung`` seconds.

        :return: all uses that go on, and those of them that are given up now.
        """
        late = []
        uses = list(self._used.items())
        self._review(uses, time.monotonic())
        for connection, use in uses:
            if use.seconds < hung:
                connection.expire()
                continue
            if use.given_up:
                connection.interrupt()
                continue
            use.given_up = True
            late.append(use)
            connection.cancel()
        return [use for _, use in uses], late

    def held_up(self, seconds: float) -> list[Use]:
        """The uses that have waited for others longer than that."""
        return [use for use in list(self._used.values()) if use.waits > seconds]

    def interrupt(self) -> None:
        """End all that is in use."""
        for connection in list(self._used):
            connection.interrupt()

    def renew(self) -> None:
        """Close all connections, those in use when they come back: from here on others are made."""
        with self._returned:
            self._renewals += 1
        self._quickest = [FAR, FAR]
        self._close_idle()

    def close(self) -> None:
        """Close the unused connections, and the others when they come back."""
        with self._returned:
            self._open = False
        self.forget(self.left)
        self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            self._idle.pop().close()
