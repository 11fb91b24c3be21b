"""The memory that results on their way to clients take, shared out between users."""

from __future__ import annotations

from collections import deque
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, succeed

from zcomm.budget.account import Account

__all__ = ["Memory"]


class Memory:
    """The bytes of results in flight, from the database to the last byte that a client takes: of all users together.

    One user has half of them at most. When all are in use, whoever has less than an even part still gets that.

    :param total: bytes.
    """

    def __init__(self, total: int):
        self.total = total
        self.held = 0
        self._holders = 0
        #: Those who wait, by user, in the order of arrival; users in turn.
        self._lines: dict[Account, deque[tuple[int, Deferred[None]]]] = {}

    def hold(self, account: Account, size: int) -> bool:
        """Take ``size`` bytes for a result of ``account``; returns whether there is room."""
        if not self._fits(account, size):
            return False
        self._take(account, size)
        return True

    def when(self, account: Account, size: int) -> Deferred[None]:
        """Take ``size`` bytes as soon as there is room, behind what this user has asked for before.

        :returns: a Deferred that fires when they are taken. To cancel it is to wait no longer.
        """
        if account not in self._lines and self.hold(account, size):
            return succeed(None)
        deferred: Deferred[None] = Deferred(partial(self._leave, account))
        self._lines.setdefault(account, deque()).append((size, deferred))
        return deferred

    def release(self, account: Account, size: int) -> None:
        """Give ``size`` bytes back."""
        if not size:
            return
        account.held -= size
        self.held -= size
        if not account.held:
            self._holders -= 1
        self._go_on()

    def _fits(self, account: Account, size: int) -> bool:
        own = account.held + size
        if own > self.total // 2:
            return False
        return self.held + size <= self.total or own <= self.total // (self._holders + (not account.held))

    def _take(self, account: Account, size: int) -> None:
        if not account.held and size:
            self._holders += 1
        account.held += size
        self.held += size

    def _go_on(self) -> None:
        """Let those in whose turn it is, as far as there is room."""
        for account in list(self._lines):
            line = self._lines.get(account)
            if line and self._fits(account, line[0][0]):
                size, deferred = line.popleft()
                del self._lines[account]
                if line:
                    # The others have their turn first.
                    self._lines[account] = line
                self._take(account, size)
                deferred.callback(None)

    def _leave(self, account: Account, deferred: Deferred[Any]) -> None:
        line = self._lines.get(account, deque())
        for each in list(line):
            if each[1] is deferred:
                line.remove(each)
        if not line:
            self._lines.pop(account, None)
