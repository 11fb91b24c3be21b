"""The accounts of all users of a program. What may be called from other threads says so."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from functools import partial
from heapq import nlargest
from operator import itemgetter
from typing import Any

from zcomm.budget.account import NOTHING, Account, Turns
from zcomm.budget.memory import Memory
from zcomm.config import Limits

__all__ = ["Budgets"]


class Budgets:
    """The accounts of all users of a program.

    :param limits: of a user.
    :param turns: those of the reactor.
    :ivar askers: the users who want what takes several of them.
    :ivar memory: the bytes of results in flight.
    :ivar outsiders: of all who are not let in, and have to be listened to for a moment all the same.
    """

    def __init__(self, limits: Limits, turns: Turns):
        self._limits = limits
        self._turns = turns
        self.askers = turns.askers
        self.memory = Memory(limits.results_size)
        self.outsiders = Account(None, limits, turns)
        self._accounts: dict[Hashable, Account] = {}
        #: How many of them have a connection.
        self._present = 0
        #: Those without a connection, which are forgotten when they are at rest. Each that leaves is looked for in it.
        self._left: OrderedDict[Account, None] = OrderedDict()

    @classmethod
    def on(cls, reactor: Any, limits: Limits) -> Budgets:
        """Budgets by the time and the turns of ``reactor``."""
        if reactor is None:
            # Of a program that is only looked at.
            return cls(limits, Turns(time.monotonic, lambda call: call(), lambda wait, call: call()))
        # Our own reactor has a cheaper way than a timer.
        at_end = getattr(reactor, "at_end_of_turn", None) or partial(reactor.callLater, 0)
        return cls(limits, Turns(reactor.seconds, at_end, reactor.callLater))

    def account(self, owner: Hashable) -> Account:
        """The account of ``owner``; made where there is none."""
        account = self._accounts.get(owner)
        if account is None:
            self._forget()
            account = self._accounts[owner] = Account(owner, self._limits, self._turns)
            self._left[account] = None
        return account

    def known(self, owner: Hashable) -> Account | None:
        """The account of ``owner``, where there is one. Called from any thread."""
        return self._accounts.get(owner)

    def join(self, owner: Hashable) -> Account:
        """The account of ``owner``, who has one connection more."""
        account = self.account(owner)
        self._present += not account.clients
        account.clients += 1
        return account

    def are_many(self) -> bool:
        """Whether several users are connected. Callable from any thread."""
        return self._present > 1

    def leave(self, account: Account) -> None:
        """Count a connection less."""
        account.clients -= 1
        self._present -= not account.clients
        if not account.clients and account not in self._left:
            self._left[account] = None
            self._forget()

    def stop(self) -> None:
        """Leave no timer behind: nobody is away any more. Another server may go on with the accounts."""
        for account in (self.outsiders, *self):
            account.end_absence()

    def dearest(self, count: int = 10) -> list[Account]:
        """The accounts that have cost most lately, the dearest first."""
        # There may be ten thousand: each is asked once.
        now = self._turns.seconds()
        costs = [(cost, account) for account in self._accounts.values() if (cost := account.cost(now)) >= NOTHING]
        return [account for _, account in nlargest(count, costs, key=itemgetter(0))]

    def __iter__(self) -> Iterator[Account]:
        return iter(list(self._accounts.values()))

    def __len__(self) -> int:
        return len(self._accounts)

    def _forget(self) -> None:
        """Forget some accounts that are at rest: more than come, so that few are kept that are."""
        for _ in range(min(4, len(self._left))):
            account, _ = self._left.popitem(last=False)
            if account.is_at_rest:
                del self._accounts[account.owner]
            elif not account.clients:
                self._left[account] = None
