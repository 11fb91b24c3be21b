"""The memory that results on their way to clients take, shared out between users."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from twisted.internet.defer import Deferred, succeed

__all__ = ["Hold", "Holder", "Memory"]


class Holder(Protocol):
    """A user, as far as its memory is counted."""

    #: Its bytes.
    held: int

    def __hash__(self) -> int: ...


class Memory:
    """The bytes of results in flight, from the database to the last byte that a client takes: of all users together.

    One user has half of them at most, and an eighth more for small answers. When all are in use, whoever has less than
    an even part still gets that.

    :param total: bytes.
    :ivar most: bytes of one user from which on nothing more is answered it.
    """

    def __init__(self, total: int):
        self.total = total
        self.most = total // 2 + total // 8
        self.held = 0
        self._holders = 0
        #: Those who wait, and for how much, by user, in the order of arrival; users in turn. Many may be given up at
        #: once, when their connections end.
        self._lines: dict[Holder, OrderedDict[Deferred[None], int]] = {}
        #: Whether some are let in now, and whether one has to look again for whom there is room.
        self._goes_on = self._is_new = False

    def hold(self, account: Holder, size: int) -> bool:
        """Take ``size`` bytes for a result of ``account``; returns whether there is room."""
        if not self.fits(account, size):
            return False
        self.take(account, size)
        return True

    def when(self, account: Holder, size: int) -> Deferred[None]:
        """Take ``size`` bytes as soon as there is room, behind what this user has asked for before.

        :returns: a Deferred that fires when they are taken. To cancel it is to wait no longer.
        """
        if account not in self._lines and self.hold(account, size):
            return succeed(None)
        deferred: Deferred[None] = Deferred(partial(self._leave, account))
        self._lines.setdefault(account, OrderedDict())[deferred] = size
        return deferred

    def release(self, account: Holder, size: int) -> None:
        """Give ``size`` bytes back."""
        if size:
            self._drop(account, size)
            self._go_on()

    def _drop(self, account: Holder, size: int) -> None:
        account.held -= size
        self.held -= size
        if not account.held:
            self._holders -= 1

    def fits(self, account: Holder, size: int, is_small: bool = False) -> bool:
        """Whether there is room for ``size`` bytes more of ``account``.

        :param is_small: whether they most likely need none: then they may take of the eighth beyond the half.
        """
        own = account.held + size
        if is_small:
            return own <= self.most
        if own > self.total // 2:
            return False
        return self.held + size <= self.total or own <= self.total // (self._holders + (not account.held))

    def take(self, account: Holder, size: int) -> None:
        """Take ``size`` bytes, whether there is room or not: they are there already."""
        if not account.held and size:
            self._holders += 1
        account.held += size
        self.held += size

    def _go_on(self) -> None:
        """Let those in whose turn it is, as far as there is room."""
        self._is_new = True
        if self._goes_on:
            # Somebody who was let in has given back at once.
            return
        self._goes_on = True
        try:
            while self._is_new:
                self._is_new = False
                self._let_in()
        finally:
            self._goes_on = False

    def _let_in(self) -> None:
        """Let in one of each user for whom there is room."""
        for account in list(self._lines):
            line = self._lines.get(account)
            if line and self.fits(account, next(iter(line.values()))):
                deferred, size = line.popitem(last=False)
                del self._lines[account]
                if line:
                    # The others have their turn first.
                    self._lines[account] = line
                self.take(account, size)
                # There may be room for another one of the same user.
                self._is_new = True
                deferred.callback(None)

    def _leave(self, account: Holder, deferred: Deferred[Any]) -> None:
        line = self._lines.get(account)
        if line is not None:
            line.pop(deferred, None)
            if not line:
                del self._lines[account]


class Hold:
    """Bytes of a :class:`Memory` that are held for one result, and given back once.

    A thread that makes the result may go on after nobody waits for it any more: then the bytes are given back by
    whoever of the two is last. Each first says what it does, and then looks at the other.

    :param size: bytes, which are taken already.
    :param later: calls its argument on the reactor thread; callable from any.
    :ivar is_abandoned: whether nobody waits for the result any more.
    """

    __slots__ = ("_account", "_later", "_memory", "_runs", "is_abandoned", "size")

    def __init__(self, memory: Memory, account: Holder, size: int, later: Callable[[Callable[[], None]], object]):
        self._memory = memory
        self._account = account
        self._later = later
        self._runs = False
        self.size = size
        self.is_abandoned = False

    def shrink(self, size: int) -> None:
        """Hold no more than ``size`` bytes from now on."""
        rest = self.size - size
        if rest > 0:
            self.size = size
            self._memory.release(self._account, rest)

    def release(self) -> None:
        """Hold nothing any more."""
        self.shrink(0)

    @contextmanager
    def handed_over(self) -> Iterator[None]:
        """Held around what takes the result over, and may hold memory for it in its turn, before anybody who waits."""
        size, self.size = self.size, 0
        if size:
            self._memory._drop(self._account, size)
        try:
            yield
        finally:
            if size:
                self._memory._go_on()

    def abandon(self) -> None:
        """Hold nothing any more once no thread is at it."""
        self.is_abandoned = True
        if not self._runs:
            self.release()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Held around what a thread does with the memory."""
        self._runs = True
        try:
            yield
        finally:
            self._runs = False
            if self.is_abandoned:
                self._later(self.release)
