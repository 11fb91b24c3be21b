"""Rate limits: failed logins by address, frames by connection.

A token that zComm made has 256 random bits; to look it up is no help to whoever guesses. What a host takes for a token
may be short, and finding out may be dear, so the checks of one address are made in turns: as many failures as the limit
says are free, after that they come a second apart, and nobody of another address waits with them. Neighbours who guess
without end cannot keep a right token out: every second turn is that of the token which was first shown the longest ago,
so that whoever comes back is before all that were made up since; the others are drawn by lot among those who wait
(docs/protocol.rst, "Token").
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from itertools import count
from math import ceil
from secrets import randbelow, token_bytes
from typing import Any

from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.python.failure import Failure

from zcomm.auth.codes import CodeInUse
from zcomm.errors import HandshakeRefused, TooBusy
from zcomm.wire.closecodes import CloseCode

__all__ = ["TOO_MANY_FAILURES", "AttemptWindow", "Logins", "TokenBucket", "too_many_failures"]

#: Why a client is to come back later.
TOO_MANY_FAILURES = "Too many failed attempts"

#: Seconds from a failure to the next check, once there were as many as are free.
APART = 1.0
#: The failures of a check that tell nothing about a token: it was not asked about, or not to the end, or is right.
_UNASKED = (CancelledError, CodeInUse, HandshakeRefused, TooBusy)
#: Tokens that are remembered as good, and as bad.
REMEMBERED = 10_000
#: Of those that were turned away unchecked: groups by a part of the hash, and how many tokens one has room for.
GROUPS, ROOM = 65_536, 8
#: Clients that may wait for their turn, of one address and in all.
WAITING, ALL_WAITING = 512, 4096


class AttemptWindow:
    """Failed attempts by peer over the last minute.

    :param limit: attempts allowed in ``span`` seconds.
    :param clock: seconds on the monotonic clock.
    :param span: seconds after the last failure until all are forgotten.
    :param peers: how many peers are remembered; the one quiet the longest is forgotten first.
    :ivar tell: called with each peer that fails here, where other processes count its failures as well.
    :ivar counting: how many processes do, this one included. What each lets somebody try before it has heard of the
        others is less by that.
    """

    def __init__(self, limit: int, clock: Callable[[], float], span: float = 60.0, peers: int = 10_000):
        self.tell: Callable[[str], None] | None = None
        self.counting = 1
        self.span = span
        self._limit = limit
        self._clock = clock
        self._peers = peers
        self._failures: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def left(self, peer: str) -> int:
        """Attempts that ``peer`` may still fail, until its minute has passed."""
        count, since = self._failures.get(peer, (0, 0.0))
        if count and self._clock() - since >= self.span:
            del self._failures[peer]
            count = 0
        return max(0, self._limit - count)

    def since(self, peer: str) -> float:
        """When ``peer`` failed last, on the clock; minus infinity where that is forgotten, or never was."""
        return self._failures.get(peer, (0, float("-inf")))[1]

    def exhausted(self, peer: str) -> bool:
        """Whether ``peer`` has used up its attempts and its minute has not passed."""
        return not self.left(peer)

    def failed(self, peer: str) -> None:
        """Count one failure of ``peer``; its minute starts anew with each."""
        self.heard(peer)
        if self.tell is not None:
            self.tell(peer)

    def heard(self, peer: str) -> None:
        """Count one failure of ``peer`` in another process."""
        count = self._limit - self.left(peer)
        self._failures.pop(peer, None)
        self._failures[peer] = count + 1, self._clock()
        if len(self._failures) > self._peers:
            self._failures.popitem(last=False)


def too_many_failures() -> HandshakeRefused:
    """The refusal of a client whose turn does not come in time; it passes."""
    return HandshakeRefused(CloseCode.TRY_AGAIN_LATER, TOO_MANY_FAILURES)


class _Turn:
    """A client that waits for its turn.

    :ivar since: the number of its token, in the order in which they were first shown.
    """

    __slots__ = ("come", "digest", "since")

    def __init__(self, digest: bytes, since: int, come: Deferred[None]):
        self.digest = digest
        self.since = since
        self.come = come


class _Places:
    """The places of tokens that were turned away unchecked, in the order in which they were first shown.

    A table of a fixed size, 12.6 MB, that is made when there is the first. A token is forgotten when eight others of
    its group were turned away since, and no client can choose a group: when 100,000 others were turned away, of
    whatever addresses, that has happened to one token in 5,000. It is more than a server hears of between two tries of
    a client.
    """

    __slots__ = ("_hashes", "_last", "_numbers", "_shown")

    def __init__(self) -> None:
        self._hashes = array("Q")
        self._numbers = array("Q")
        #: When each was turned away, in the order of that.
        self._last = array("Q")
        self._shown = 0

    def get(self, digest: bytes) -> int:
        """The number of a token; 0 for none."""
        slot = self._slot(digest)
        return 0 if slot is None else self._numbers[slot]

    def keep(self, digest: bytes, number: int) -> None:
        """Remember the number of a token, which has been shown now."""
        if not self._hashes:
            self._hashes, self._numbers, self._last = (array("Q", [0]) * (GROUPS * ROOM) for _ in range(3))
        slot = self._slot(digest)
        if slot is None:
            first = self._group(digest)
            last = self._last[first : first + ROOM]
            slot = first + last.index(min(last))
        self._shown += 1
        self._hashes[slot] = self._hash(digest)
        self._numbers[slot] = number
        self._last[slot] = self._shown

    def forget(self, digest: bytes) -> None:
        """Forget a token. Harmless when that is done."""
        slot = self._slot(digest)
        if slot is not None:
            self._hashes[slot] = self._numbers[slot] = self._last[slot] = 0

    def _slot(self, digest: bytes) -> int | None:
        if not self._hashes:
            return None
        first = self._group(digest)
        try:
            return self._hashes.index(self._hash(digest), first, first + ROOM)
        except ValueError:
            return None

    @staticmethod
    def _group(digest: bytes) -> int:
        return int.from_bytes(digest[8:]) % GROUPS * ROOM

    @staticmethod
    def _hash(digest: bytes) -> int:
        # 0 is that of nobody.
        return int.from_bytes(digest[:8]) or 1


class _Line:
    """The checks of one address."""

    __slots__ = ("asking", "is_going_on", "lots", "timer", "waiting")

    def __init__(self) -> None:
        #: How many are being made.
        self.asking = 0
        self.waiting: list[_Turn] = []
        self.timer: Any = None
        #: Whether the next turn is drawn by lot.
        self.lots = False
        self.is_going_on = False

    def next(self) -> _Turn:
        """The one whose turn it is: in turns the one known the longest, and one by lot."""
        if self.lots:
            place = randbelow(len(self.waiting))
        else:
            place = min(range(len(self.waiting)), key=lambda number: self.waiting[number].since)
        self.lots = not self.lots
        return self.waiting[place]

    @property
    def youngest(self) -> _Turn:
        """The one whose token was first shown last: of those, who came last."""
        return max(reversed(self.waiting), key=lambda turn: turn.since)


class Logins:
    """Decides when a token of an address is checked.

    A token that was good before is checked at once, whatever became of others since; one that was bad within the
    minute takes nobody's turn.

    :param failures: the failures of each address, which are counted here.
    :param clock: an ``IReactorTime``.
    """

    def __init__(self, failures: AttemptWindow, clock: Any):
        self._failures = failures
        self._clock = clock
        self._lines: dict[str, _Line] = {}
        self._waiting = 0
        # Tokens by a keyed hash: nobody can try others against what is remembered.
        self._key = token_bytes(16)
        self._good: OrderedDict[bytes, None] = OrderedDict()
        self._bad: OrderedDict[bytes, float] = OrderedDict()
        self._places = _Places()
        self._numbers = count(1)

    def check(
        self, address: str, token: str, ask: Callable[[], Deferred[Any]], waits: Callable[[], None] = lambda: None
    ) -> Deferred[Any]:
        """Call ``ask`` when it is the turn of ``token``; fires as its Deferred does, and counts its failures; of one
        that was good before an UnauthorizedLogin alone.

        It fails with :class:`~zcomm.errors.HandshakeRefused`, close code 1013, where there is no room to wait, and
        for a token that was wrong. Cancelling it gives the turn to the next.

        :param address: what shares its limits with the client.
        :param waits: called when the turn is not yet.
        """
        digest = blake2b(token.encode("utf-8", "surrogatepass"), digest_size=16, key=self._key).digest()
        if digest in self._good:
            return self._answer(address, digest, ask)
        if self._failures.exhausted(address) and self._was_bad(digest):
            return fail(too_many_failures())
        line = self._lines.setdefault(address, _Line())
        number = self._places.get(digest) or next(self._numbers)
        if not line.waiting and not self._wait(address, line):
            return self._ask(address, line, digest, number, ask)
        come: Deferred[None] = Deferred(lambda come: self._leave(address, line, turn))
        turn = _Turn(digest, number, come)
        answer = come.addCallback(lambda _: self._its_turn(address, line, digest, number, ask))
        line.waiting.append(turn)
        self._waiting += 1
        waits()
        if len(line.waiting) > WAITING:
            self._turn_away(line, line.youngest)
        elif self._waiting > ALL_WAITING:
            longest = max(self._lines.values(), key=lambda one: len(one.waiting))
            self._turn_away(longest, longest.youngest)
        self._go_on(address, line)
        return answer

    def _its_turn(
        self, address: str, line: _Line, digest: bytes, number: int, ask: Callable[[], Deferred[Any]]
    ) -> Deferred[Any]:
        if digest in self._good:
            # Known to be good since it began to wait, it keeps the turn from nobody.
            self._places.forget(digest)
            return self._answer(address, digest, ask)
        return self._ask(address, line, digest, number, ask)

    def _ask(
        self, address: str, line: _Line, digest: bytes, number: int, ask: Callable[[], Deferred[Any]]
    ) -> Deferred[Any]:
        line.asking += 1
        return self._answer(address, digest, ask).addBoth(self._asked, address, line, digest, number)

    def _answer(self, address: str, digest: bytes, ask: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        return maybeDeferred(ask).addCallbacks(
            self._known, self._told, callbackArgs=(digest,), errbackArgs=(address, digest)
        )

    def _asked(self, answer: Any, address: str, line: _Line, digest: bytes, number: int) -> Any:
        line.asking -= 1
        if isinstance(answer, Failure) and answer.check(UnauthorizedLogin):
            # What is known to be wrong takes no turn of its own.
            for turn in [turn for turn in line.waiting if turn.digest == digest]:
                self._turn_away(line, turn)
        if isinstance(answer, Failure) and not answer.check(UnauthorizedLogin):
            if not answer.check(*_UNASKED):
                # A host may say so of each wrong token, as libraries for signed ones do: that is no way to guess faster
                # than by others, nor to keep the first turn for ever.
                self._failures.failed(address)
                number = next(self._numbers)
                for turn in line.waiting:
                    if turn.digest == digest:
                        turn.since = number
            # Nobody could tell: it has a place still.
            self._places.keep(digest, number)
        else:
            self._places.forget(digest)
        self._go_on(address, line)
        return answer

    def _known(self, identity: Any, digest: bytes) -> Any:
        _remember(self._good, digest, None)
        return identity

    def _told(self, failure: Failure, address: str, digest: bytes) -> Failure:
        if failure.check(UnauthorizedLogin):
            self._good.pop(digest, None)
            _remember(self._bad, digest, self._clock.seconds())
            self._failures.failed(address)
        return failure

    def _was_bad(self, digest: bytes) -> bool:
        since = self._bad.get(digest)
        now: float = self._clock.seconds()
        return since is not None and now - since < self._failures.span

    def _wait(self, address: str, line: _Line) -> float:
        """Seconds until the next of the line may be asked about, unless what is being asked ends sooner; infinity where
        only that decides."""
        counting = self._failures.counting
        left = self._failures.left(address)
        # Other processes may be asking about as many; one of each they let through in any case.
        if left >= (line.asking + 1) * counting or (left and not line.asking):
            return 0.0
        if not line.asking:
            due = self._failures.since(address) + APART * counting
        elif self._failures.since(address) > float("-inf"):
            # When all failures are forgotten there may be room beside what is being asked.
            due = self._failures.since(address) + self._failures.span
        else:
            return float("inf")
        now: float = self._clock.seconds()
        return max(0.0, due - now)

    def _go_on(self, address: str, line: _Line) -> None:
        """Let those ask whose turn it is; see to it that the next turn comes."""
        if line.is_going_on:
            # Whoever began it looks again.
            return
        line.is_going_on = True
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        while line.waiting:
            # What is known to be good since it began to wait waits no longer.
            turn = next((turn for turn in line.waiting if turn.digest in self._good), None)
            if turn is None and (wait := self._wait(address, line)):
                if wait < float("inf"):
                    line.timer = self._clock.callLater(wait, self._turn_has_come, address, line)
                break
            turn = turn or line.next()
            self._take(line, turn)
            turn.come.callback(None)
        line.is_going_on = False
        if not line.waiting and not line.asking and self._lines.get(address) is line:
            del self._lines[address]

    def _turn_has_come(self, address: str, line: _Line) -> None:
        line.timer = None
        self._go_on(address, line)

    def _take(self, line: _Line, turn: _Turn) -> None:
        """Take ``turn`` out of the line."""
        line.waiting.remove(turn)
        self._waiting -= 1

    def _turn_away(self, line: _Line, turn: _Turn) -> None:
        """Tell a client that waits to come back; its token has the place in the line that it has now."""
        if turn in line.waiting:
            self._take(line, turn)
            self._places.keep(turn.digest, turn.since)
            turn.come.errback(too_many_failures())

    def _leave(self, address: str, line: _Line, turn: _Turn) -> None:
        """Take a client out of the line that waits no longer."""
        self._take(line, turn)
        self._places.keep(turn.digest, turn.since)
        turn.come.errback(too_many_failures() if self._failures.exhausted(address) else CancelledError())
        self._go_on(address, line)


def _remember(tokens: OrderedDict[bytes, Any], digest: bytes, value: Any) -> None:
    """Remember a token as the latest of so many."""
    tokens.pop(digest, None)
    tokens[digest] = value
    if len(tokens) > REMEMBERED:
        tokens.popitem(last=False)


class TokenBucket:
    """Frames a client may still send: ``burst`` at once, ``rate`` a second over time.

    The clock is asked only when the bucket is empty, so that a frame within the limits costs a subtraction.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_since", "_tokens")

    def __init__(self, rate: float, burst: float, clock: Callable[[], float]):
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._since = clock()

    def spend(self, count: int) -> bool:
        """Take ``count`` tokens; false when those are too many, see :meth:`take_back`."""
        self._tokens -= count
        if self._tokens >= 0:
            return True
        now = self._clock()
        self._tokens = min(self._burst - count, self._tokens + (now - self._since) * self._rate)
        self._since = now
        # A second as the sum of its parts may be a trifle short.
        return self._tokens >= -1e-6

    def take_back(self, count: int) -> int:
        """Say how many of the ``count`` that could not be spent were too many, and forget that those were."""
        over = min(count, ceil(-self._tokens))
        self._tokens += over
        return over

    def give_back(self, count: int) -> None:
        """Forget that ``count`` were spent."""
        self._tokens += count

    def wait(self, count: int) -> float:
        """Seconds until ``count`` may be spent, if nothing is meanwhile."""
        return max(0.0, (min(count, self._burst) - self._tokens) / self._rate - (self._clock() - self._since))
