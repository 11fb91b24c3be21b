"""An account: how much one user may take of what all share, and has taken (docs/protocol.rst, "Limits").

Each user has one, however many connections it has; without authentication each connection has one. Who does work for a
user asks its account before and charges it afterwards. What is over a budget waits or is refused for that user alone.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Protocol

from zcomm.budget.askers import Askers
from zcomm.config import Limits
from zcomm.errors import TooBusy

if TYPE_CHECKING:
    from twisted.internet.interfaces import IDelayedCall

__all__ = ["Account", "Bucket", "DATABASE_BURST", "HALF_LIFE", "Meter", "NOTHING", "PUBLISH_BURST", "SLICE", "Turns"]

#: Seconds that one user's messages keep the reactor in one turn; the rest of them waits for the next one.
SLICE = 0.002
#: Seconds of a turn that are long, because something of them could not be cut; and for how many a user is away after
#: those, at the most.
LONG, AWAY = 0.003, 0.1
#: Seconds that statements of one user may run at once, before their rate counts.
DATABASE_BURST = 30.0
#: Bytes of a user's messages that may have begun to arrive, or wait, on all its connections: so many, or so many of the
#: largest ones.
ARRIVING, LARGEST_ARRIVING = 16 * 1024 * 1024, 4
#: Bytes that one read may bring.
READ = 64 * 1024
#: Commands that may run for a user, as many times those of one connection.
CONNECTIONS_IN_FLIGHT = 32
#: Seconds of what one user's commands tell others that may leave at once, at its rate.
BROADCAST_BURST = 1.0
#: Seconds of what is published without a connection that may come at once, at its rate.
PUBLISH_BURST = 2.0
#: Seconds after which half of what a user has cost is forgotten.
HALF_LIFE = 60.0
#: Seconds after which what the reactor has spent on a user begins to fade, at the latest.
FADING = 10.0
#: A cost below this, in seconds, is none worth remembering when its user has left.
NOTHING = 0.001


class Arriving(Protocol):
    """A connection with a message that is not whole."""

    def go_on(self) -> bool:
        """Read the rest of it, unless something else keeps it from that; returns whether it does."""


class Bucket:
    """An allowance that fills over time, and may be overdrawn by what is known only afterwards.

    :param rate: what comes in, a second.
    :param burst: the most that it holds, which it begins with; and the most that it may be overdrawn by.
    :param seconds: the monotonic clock.
    """

    __slots__ = ("_burst", "_left", "_rate", "_seconds", "_since")

    def __init__(self, rate: float, burst: float, seconds: Callable[[], float]):
        self._rate = rate
        self._burst = burst
        self._seconds = seconds
        self._left = burst
        self._since = seconds()

    @property
    def left(self) -> float:
        """The amount that is left; below zero where it is overdrawn."""
        now = self._seconds()
        if self._left < self._burst:
            self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        return self._left

    @property
    def is_full(self) -> bool:
        """Whether nothing of it is in use."""
        return self.left >= self._burst

    def charge(self, amount: float) -> None:
        """Take ``amount``, whether it is there or not."""
        self._left = max(-self._burst, self.left - amount)

    def give_back(self, amount: float) -> None:
        """Put back ``amount`` of what was charged."""
        self._left = min(self._burst, self.left + amount)

    def take(self, amount: float) -> bool:
        """Take ``amount`` where that much is left; returns whether it was."""
        if amount > self.left:
            return False
        self._left -= amount
        return True

    def wait(self) -> float:
        """Seconds until something is left, if nothing is taken meanwhile. It changes nothing: any thread may ask."""
        return max(0.0, self._since - self._seconds() - self._left / self._rate)


class Meter:
    """A sum that fades: half of it is forgotten within :data:`HALF_LIFE`.

    :param seconds: the monotonic clock.
    """

    __slots__ = ("_seconds", "_since", "_sum")

    def __init__(self, seconds: Callable[[], float]):
        self._seconds = seconds
        self._sum = 0.0
        self._since = seconds()

    def add(self, amount: float) -> None:
        """Count ``amount`` in full."""
        self._sum = self.value + amount

    def at(self, now: float) -> float:
        """The sum as it will have faded at ``now``."""
        return self._sum and self._sum * 0.5 ** ((now - self._since) / HALF_LIFE)

    @property
    def value(self) -> float:
        """The sum as it has faded by now."""
        now = self._seconds()
        self._sum = self.at(now)
        self._since = now
        return self._sum


class Turns:
    """The turns of the reactor.

    :ivar seconds: the monotonic clock.
    :ivar at_end: calls its argument once the reactor is done with what it is doing now.
    :ivar after: calls its second argument after as many seconds as the first says, unless what it returns is cancelled.
    :ivar askers: who wants what takes several turns.
    """

    __slots__ = ("after", "askers", "at_end", "seconds")

    def __init__(
        self,
        seconds: Callable[[], float],
        at_end: Callable[[Callable[[], None]], object],
        after: Callable[[float, Callable[[], None]], IDelayedCall | None],
    ):
        self.seconds = seconds
        self.at_end = at_end
        self.after = after
        self.askers = Askers(seconds)


class Account:
    """The things that one user has taken, and may still take.

    :param owner: the user (:func:`zcomm.interfaces.owner_of`).
    :param turns: those of the reactor.
    :ivar clients: its connections.
    :ivar is_spent: whether it has had its time of this turn of the reactor: nothing more of it is read until the next.
        A plain attribute, because each read asks for it.
    :ivar is_away: whether it has nothing for more than a turn.
    :ivar database: seconds that its statements may run.
    :ivar broadcast: bytes that its commands may tell others in full.
    :ivar arriving: bytes of its messages that are not whole yet, or wait for their turn.
    :ivar may_arrive: how many of them there may be.
    :ivar finishing: the connection whose message is read to its end although too many bytes have arrived, if any.
    :ivar running: its commands that are not answered yet.
    :ivar may_run: how many of them there may be.
    :ivar held: bytes of its results in flight; :class:`Memory` counts them.
    :ivar kept: bytes of answers of its commands that have run, and that wait for room.
    :ivar refused: how often something of it was refused because a budget was used up.
    :ivar busy: seconds that the reactor has spent on it in all. A plain attribute, because each read adds to it.
    :ivar due: at how many of those it has had its slice of a turn; whoever adds that much then calls :meth:`over`.
    :ivar in_database: seconds that its statements have run, fading.
    :ivar in_threads: seconds that its calls have run in worker threads, fading.
    """

    __slots__ = (
        "_absence",
        "_counted",
        "_crowd",
        "_faded",
        "_on_reactor",
        "_publish_rate",
        "_publishing",
        "_seconds",
        "_turns",
        "_waiting",
        "arriving",
        "broadcast",
        "busy",
        "clients",
        "database",
        "due",
        "finishing",
        "held",
        "in_database",
        "in_threads",
        "is_away",
        "is_spent",
        "kept",
        "may_arrive",
        "may_run",
        "owner",
        "refused",
        "running",
    )

    def __init__(self, owner: Hashable, limits: Limits, turns: Turns):
        self.owner = owner
        self._turns = turns
        self._seconds = seconds = turns.seconds
        self._faded = float("-inf")
        self._waiting: deque[Callable[[], object]] = deque()
        self._absence: IDelayedCall | None = None
        #: The connections whose messages wait to be read to their end, in the order of arrival.
        self._crowd: dict[Arriving, None] = {}
        self.finishing: Arriving | None = None
        self.clients = 0
        self.is_spent = self.is_away = False
        self.held = self.kept = self.arriving = self.running = 0
        self.may_arrive = max(ARRIVING, LARGEST_ARRIVING * limits.message_size)
        self.may_run = CONNECTIONS_IN_FLIGHT * limits.in_flight
        self.refused = 0
        self.database = Bucket(limits.database_time, DATABASE_BURST, seconds)
        self.broadcast = Bucket(limits.broadcast_rate, limits.broadcast_rate * BROADCAST_BURST, seconds)
        # Most users never publish so.
        self._publish_rate = limits.publish_rate
        self._publishing: Bucket | None = None
        self.busy = self._counted = 0.0
        self.due = SLICE
        self._on_reactor = Meter(seconds)
        self.in_database = Meter(seconds)
        self.in_threads = Meter(seconds)

    @property
    def on_reactor(self) -> float:
        """Seconds that the reactor has spent on it lately, fading."""
        # Each read counts them; here they become a sum that fades.
        counted, self._counted = self._counted, self.busy
        self._on_reactor.add(self.busy - counted)
        return self._on_reactor.value

    def cost(self, now: float) -> float:
        """Seconds that it has cost until ``now``, of all kinds together; little work, for many are asked at once."""
        faded = self._on_reactor.at(now) + self.in_database.at(now) + self.in_threads.at(now)
        return faded + self.busy - self._counted

    @property
    def is_at_rest(self) -> bool:
        """Whether nothing is lost by forgetting it."""
        # What the reactor has spent on it fades from when somebody asks.
        _ = self.on_reactor
        return (
            not self.clients
            and not self.held
            and not self.running
            and not self.is_spent
            and self.database.is_full
            and self.broadcast.is_full
            and (self._publishing is None or self._publishing.is_full)
            and self.cost(self._seconds()) < NOTHING
        )

    @property
    def publishing(self) -> Bucket:
        """The messages that it may publish without a connection."""
        if self._publishing is None:
            rate = self._publish_rate
            self._publishing = Bucket(rate, rate * PUBLISH_BURST, self._seconds)
        return self._publishing

    def may_finish(self, client: Arriving) -> bool:
        """Whether the rest of a message is read though too much has arrived: of one connection at a time it is, since
        none would ever be whole otherwise. The others are told when it is their turn, or there is room."""
        if self.finishing is None:
            self.finishing = client
        if self.finishing is client:
            return True
        self._crowd[client] = None
        return False

    def make_way(self, client: Arriving | None) -> None:
        """Let those who wait go on, as far as there is room; and one whether there is or not, where none does yet.

        :param client: one that needs to be read no further.
        """
        crowd = self._crowd
        if client is not None:
            crowd.pop(client, None)
            if self.finishing is client:
                self.finishing = None
        room = self.may_arrive - self.arriving
        while crowd and (self.finishing is None or room > 0):
            first = next(iter(crowd))
            del crowd[first]
            self.finishing = self.finishing or first
            room -= READ
            if not first.go_on() and self.finishing is first:
                self.finishing = None

    def spend(self, begun: float, ended: float) -> None:
        """Charge time of the reactor thread, from ``begun`` to ``ended`` on any one clock."""
        self.busy += ended - begun
        if self.busy >= self.due:
            self.over()
        if begun - self._faded > FADING:
            # What was long ago is not lately, whether anybody has asked meanwhile or not.
            self._faded = begun
            _ = self.on_reactor

    def over(self) -> None:
        """Let it wait for the end of the turn: it has had its slice.

        What it had beyond is paid with the slices of further turns. To wait costs nothing where nobody else has
        anything to do, so it does not matter over how many turns a slice was used up. But what took longer than a slice
        in one piece, as one large message does, would meet each of the turns that a command of others needs: where
        others have such commands, its user is away for twice as long as that took, :data:`AWAY` at the most.
        """
        if not self.is_spent:
            self.is_spent = True
            self._turns.at_end(self._turn_over)

    def later(self, call: Callable[[], object]) -> None:
        """Call ``call`` in the next turn that it has time in, behind what waits already."""
        self._waiting.append(call)
        self.over()

    def _turn_over(self) -> None:
        took = self.busy - self.due + SLICE
        if took > LONG and self._turns.askers.others(self.owner):
            self.due = self.busy + SLICE
            self.is_away = True
            self._absence = self._turns.after(min(AWAY, 2 * took), self._go_on)
            return
        if took >= SLICE:
            self.due += SLICE
        if self.busy >= self.due:
            self._turns.at_end(self._turn_over)
            return
        self._go_on()

    def end_absence(self) -> None:
        """Let it have its next turn now, where it is away."""
        if self._absence is not None:
            self._absence.cancel()
            self._go_on()

    def _go_on(self) -> None:
        self._absence = None
        self.is_spent = self.is_away = False
        waiting, seconds = self._waiting, self._seconds
        try:
            while waiting and not self.is_spent:
                charged, begun = self.busy, seconds()
                waiting.popleft()()
                # Hundreds of connections take long to be read from again, be there nothing to answer; what was
                # answered is charged already.
                self.spend(begun, max(begun, seconds() - (self.busy - charged)))
        finally:
            if waiting:
                self.over()

    def refuse(self, reason: str, wait: float = 0.0) -> TooBusy:
        """The error for what is over a budget, which is counted.

        :param reason: what was used up, as a sentence without its end.
        :param wait: seconds after which it may be tried again; 0 where nobody knows.
        """
        self.refused += 1
        when = f"try again in {max(1, round(wait))} s" if wait else "try again"
        return TooBusy(f"{reason}; {when}")
