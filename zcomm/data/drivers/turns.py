"""Turns where a database lets one command in at a time: users in turn, none for long while others wait.

Where it lets all of them in, those have the same bound that lock what others wait for.
"""

from __future__ import annotations

import fcntl
import os
import struct
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Hashable, Iterator, Mapping
from contextlib import contextmanager, suppress

from zcomm.budget.account import Bucket
from zcomm.data.drivers.driver import Fault
from zcomm.data.drivers.pool import Use

__all__ = ["HOLD", "LONG_HOLD", "FileTurn", "Locks", "OneAtATime", "Turns"]

#: Seconds that a write of one user may keep those of others waiting, its commit left aside.
HOLD = 0.01
#: The same for writes in other processes alone.
HOLD_ELSEWHERE = 0.25
#: The same for a write that cannot be cut short, which its user may do with for a few seconds a minute.
LONG_HOLD = 2.5
#: Seconds of such writes that come in for each user, a second, and that may be had at once.
LONG_RATE, LONG_BURST = 0.1, 3.0
#: Seconds for which it is remembered that somebody else wrote, and whose writes stood in the way.
LATELY = 10.0
#: Users whose long turns are remembered before those are forgotten that matter no more.
_MANY = 1000
#: Seconds for which a statement may have stood in the way before a look finds it there.
_UNSEEN = 0.5

#: Whether there are locks of a part of an open file (Linux). The process that is the next one has that of the first
#: byte: the one that has just had its turn would be quicker than all that have to wake.
_HAS_LINE = hasattr(fcntl, "F_OFD_SETLKW")


def _first_byte(kind: int) -> bytes:
    # struct flock: kind, whence, start, length, and the process, of which there is none.
    return struct.pack("hhqqi", kind, os.SEEK_SET, 0, 1, 0)


_ENTER, _LEAVE = _first_byte(fcntl.F_WRLCK), _first_byte(fcntl.F_UNLCK)
#: What an answer begins with where nobody has such a lock.
_FREE = _LEAVE[:2]

_Key = tuple[Hashable, bool]


class _Allowances(dict[Hashable, Bucket]):
    """The seconds for which writes of each user may keep others waiting for long."""

    def of(self, owner: Hashable) -> Bucket:
        """Those of ``owner``."""
        bucket = self.get(owner)
        if bucket is None:
            if len(self) > _MANY:
                for each in [each for each, kept in self.items() if kept.is_full]:
                    del self[each]
            bucket = self[owner] = Bucket(LONG_RATE, LONG_BURST, time.monotonic)
        return bucket


class _Waiter:
    """A thread that waits for its turn."""

    __slots__ = ("has_turn", "is_awake", "line")

    def __init__(self) -> None:
        self.has_turn = self.is_awake = False
        self.line = threading.Lock()
        self.line.acquire()

    def wake(self) -> None:
        if not self.is_awake:
            self.is_awake = True
            self.line.release()


class Turns:
    """Turns at writing, or at all that is done on the one connection that there is. Safe to use from any thread.

    Writes of one user go in their order, those of several users in turn. Who asks for a *long* turn has it by itself,
    as far as its allowance goes, and never twice in a row while others wait.

    :param hold: seconds that a turn of one user may keep others waiting.
    """

    def __init__(self, hold: float = HOLD) -> None:
        self._hold = hold
        # Guards all below; held for a few instructions only.
        self._lock = threading.Lock()
        self._lines: OrderedDict[_Key, deque[_Waiter]] = OrderedDict()
        self._holder: _Key | None = None
        self._since = 0.0
        #: When a long turn may follow on others again.
        self._long_again = 0.0
        #: The user that wrote last, and when somebody else did.
        self._last: Hashable = None
        self._others_at = float("-inf")
        self._long = _Allowances()
        self._slow: dict[Hashable, float] = {}
        #: Tells of those that wait in other processes, while a turn lasts.
        self.elsewhere: FileTurn | None = None

    def take(self, owner: Hashable, long: bool, timeout: float) -> None:
        """Wait for a turn of ``owner``.

        :raises Fault: ``busy`` when none came in time; ``overdrawn`` when it has had too many long ones.
        """
        key = (owner, long)
        with self._lock:
            if long and (bucket := self._long.of(owner)).left < 0:
                raise Fault("overdrawn", (), f"{bucket.wait():.1f}")
            if self._holder is None:
                self._begin(key)
                return
            waiter = _Waiter()
            self._lines.setdefault(key, deque()).append(waiter)
        until = time.monotonic() + timeout
        while True:
            is_late = not waiter.line.acquire(timeout=max(0.0, until - time.monotonic()))
            with self._lock:
                waiter.is_awake = False
                if waiter.has_turn:
                    return
                if self._holder is None or is_late:
                    line = self._lines[key]
                    line.remove(waiter)
                    if not line:
                        del self._lines[key]
                if self._holder is None:
                    self._begin(key)
                    return
            if is_late:
                raise Fault("busy", (), "another thread has its turn")

    @property
    def is_waited_for(self) -> bool:
        """Whether another thread waits for its turn."""
        return bool(self._lines)

    def give_back(self) -> bool:
        """End the turn of this thread; returns whether another one has it now or will."""
        with self._lock:
            if self._holder is None:
                return False
            owner, long = self._holder
            now = time.monotonic()
            if long:
                held = now - self._since
                self._long.of(owner).charge(held)
                self._long_again = now + held
            self._holder = None
            key = self._next(now)
            if key is None:
                return False
            if len(self._lines) == 1 and key == (owner, False):
                # Its own turns are whoever's is first there: a thread that runs need not wait for one to wake.
                self._lines[key][0].wake()
                return True
            line = self._lines.pop(key)
            waiter = line.popleft()
            if line:
                # The others have their turn first.
                self._lines[key] = line
            self._begin(key)
            waiter.has_turn = True
            waiter.wake()
            return True

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Count nothing of what the turn of this thread waits for meanwhile: other programs."""
        since, begun = self._since, time.monotonic()
        self._since = float("inf")
        try:
            yield
        finally:
            self._since = since + time.monotonic() - begun

    def in_the_way(self, now: float) -> bool:
        """Whether the write whose turn it is has kept others waiting for too long."""
        holder = self._holder
        if holder is None or now - self._since < self._hold:
            return False
        owner, long = holder
        if not any(each[0] != owner for each in list(self._lines)):
            # Whose writes wait there is not known, and they may be of the same user.
            if self.elsewhere is None or now - self._since < HOLD_ELSEWHERE or not self.elsewhere.is_waited_for:
                return False
            self._others_at = now
        if long:
            return now - self._since > LONG_HOLD
        if len(self._slow) > _MANY:
            self._slow = {each: until for each, until in self._slow.items() if until > now}
        self._slow[owner] = now + LATELY
        return True

    def expects_long(self, owner: Hashable) -> bool:
        """Whether writes of ``owner`` stood in the way lately, and somebody else writes."""
        if not self._slow:
            return False
        now = time.monotonic()
        return self._slow.get(owner, 0.0) > now and self._others_at > now - LATELY

    def _begin(self, key: _Key) -> None:
        self._holder = key
        self._since = time.monotonic()
        if key[0] != self._last:
            self._last = key[0]
            self._others_at = self._since

    def _next(self, now: float) -> _Key | None:
        for key in self._lines:
            if not key[1] or now >= self._long_again:
                return key
        return next(iter(self._lines), None)


class FileTurn:
    """The turn of this process at writing to a file, among the processes of zComm that have it open. For one thread at
    a time.

    SQLite lets one write at a time as well, and has the others sleep and look again, each longer than the time before:
    who came first may come last. Here the system wakes who waits, in order. A lock on SQLite's write-ahead log says
    whose turn it is, as SQLite itself has none on that; the system takes it from a process that ends, in whatever way.
    Programs that do not know of it wait as SQLite has them wait.

    :param descriptor: of the log, for reading and writing; closed with this.
    """

    __slots__ = ("descriptor",)

    def __init__(self, descriptor: int):
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)

    def take_at_once(self) -> bool:
        """Take the turn where nobody has it or waits for it; returns whether that was so."""
        if self.is_waited_for:
            return False
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # The file system has no such locks; SQLite keeps writers apart in any case.
            pass
        return True

    def take(self, timeout: float) -> bool:
        """Wait for the turn; returns whether it came within so many seconds.

        It may wait for longer where a process was stopped in its turn: the system knows no time for this.
        """
        begun = time.monotonic()
        has_line = False
        try:
            if _HAS_LINE:
                fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLKW, _ENTER)
                has_line = True
            fcntl.flock(self.descriptor, fcntl.LOCK_EX)
        except OSError:
            return True
        finally:
            if has_line:
                fcntl.fcntl(self.descriptor, fcntl.F_OFD_SETLK, _LEAVE)
        if time.monotonic() - begun > timeout:
            self.give_back()
            return False
        return True

    def give_back(self) -> None:
        """End the turn."""
        with suppress(OSError):
            fcntl.flock(self.descriptor, fcntl.LOCK_UN)

    @property
    def is_waited_for(self) -> bool:
        """Whether another process waits, as far as the system tells."""
        if not _HAS_LINE:
            return False
        try:
            found = fcntl.fcntl(self.descriptor, fcntl.F_OFD_GETLK, _ENTER)
        except OSError:
            return False
        return found[:2] != _FREE


class Locks:
    """The statements that have locked what those of other users wait for, where the database lets all of them in.

    Those of one user may keep another one waiting for as long as a long turn, and have the same allowance. Those of the
    program itself and of other programs are in nobody's way here. Asked from one thread at a time.
    """

    def __init__(self) -> None:
        self._allowances = _Allowances()
        #: Which statements wait because of which users, each with when that was seen first, and when the last look was.
        self._since: dict[tuple[Use, Hashable], float] = {}
        self._looked = 0.0

    def too_long(self, waiting: Mapping[Use, Collection[Use | None]], now: float) -> set[Use]:
        """Those that have to end, as one more look finds them: all of a user's that have kept another one waiting for
        too long, or would do so next.

        :param waiting: the statements that wait, each with those that it waits for; ``None`` for other programs'.
        """
        before = {waiter: _before(waiter, waiting) for waiter in waiting}
        found: dict[tuple[Use, Hashable], set[Use | None]] = {}
        for waiter, ahead in before.items():
            for use in ahead:
                # What waits for others in its turn is not why others wait.
                if use is not None and use.owner not in (None, waiter.owner) and _is_alone(use, before):
                    found[waiter, use.owner] = {each for each in ahead if each is not None and each.owner == use.owner}
        # What keeps others waiting for no longer than a moment is seen once.
        self._since = {each: self._since.get(each, now) for each in found}
        looked, self._looked = self._looked, now
        for owner in {owner for (_, owner), since in self._since.items() if since < now}:
            self._allowances.of(owner).charge(now - looked)
        late: set[Use] = set()
        for (waiter, owner), since in self._since.items():
            if now - since > LONG_HOLD - _UNSEEN or (since < now and self._allowances.of(owner).left < 0):
                theirs = found[waiter, owner]
                next_ones = {use for use, ahead in before.items() if use.owner == owner and ahead & theirs}
                late |= {use for use in theirs | next_ones if use is not None}
        return late

    def wait(self, owner: Hashable) -> float:
        """Seconds until statements of ``owner`` may keep others waiting again. Called from any thread."""
        bucket = self._allowances.get(owner)
        return 0.0 if bucket is None else bucket.wait()


def _before(waiter: Use, waiting: Mapping[Use, Collection[Use | None]]) -> set[Use | None]:
    """All that ``waiter`` waits for, by way of others too."""
    found: set[Use | None] = set()
    ahead: list[Use | None] = [waiter]
    while ahead:
        use = ahead.pop()
        for each in () if use is None else waiting.get(use, ()):
            if each not in found:
                found.add(each)
                ahead.append(each)
    return found


def _is_alone(use: Use, before: Mapping[Use, Collection[Use | None]]) -> bool:
    """Whether it waits for nothing, or for statements of its own user alone."""
    return all(each is not None and each.owner == use.owner for each in before.get(use, ()))


class OneAtATime:
    """A place that one thread has at a time, and hands on to the one that has waited longest."""

    def __init__(self) -> None:
        # Guards both below; held for a few instructions only.
        self._lock = threading.Lock()
        self._is_taken = False
        self._line: deque[threading.Lock] = deque()

    @property
    def is_waited_for(self) -> bool:
        """Whether another thread waits for it."""
        return bool(self._line)

    def take(self, timeout: float) -> bool:
        """Wait for it; returns whether it was had in time."""
        with self._lock:
            if not self._is_taken:
                self._is_taken = True
                return True
            turn = threading.Lock()
            turn.acquire()
            self._line.append(turn)
        if turn.acquire(timeout=timeout):
            return True
        with self._lock:
            if turn in self._line:
                self._line.remove(turn)
                return False
        # It was handed on at the last moment.
        return True

    def give_back(self) -> None:
        """Hand it on."""
        with self._lock:
            if self._line:
                self._line.popleft().release()
            else:
                self._is_taken = False
