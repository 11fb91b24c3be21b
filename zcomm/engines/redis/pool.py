"""The connections to the servers of an engine, and calls of scripts there.

A call is sent at once where its server is connected, and waits where it is not, for as long as :data:`PATIENCE`. What
may be done twice is done again where nobody knows whether it was done; what may not fails then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from secrets import token_hex
from typing import Any, NamedTuple, Protocol

from twisted.internet.defer import Deferred, fail, inlineCallbacks, succeed
from twisted.internet.interfaces import IDelayedCall
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.engines.redis.checks import check_server, refusal
from zcomm.engines.redis.layout import Layout
from zcomm.engines.redis.link import Address, Link, Words
from zcomm.engines.redis.protocol import LinkLost, RedisProtocol, ReplyError
from zcomm.engines.redis.scripts import Script, Scripts
from zcomm.engines.redis.servers import Found, Settings, find
from zcomm.errors import ConfigError, Unavailable

__all__ = ["FOREVER", "PATIENCE", "Call", "Pool", "error_of", "is_refused"]

#: Seconds that a call waits for a server that is away.
PATIENCE = 10.0
FOREVER = float("inf")
#: Seconds between two tries of a call, at first and at most.
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 0.5
#: Milliseconds that replicas have to say that they have what was written.
COPY = 100
#: Seconds before servers are looked for again at the earliest.
FIND_AGAIN = 0.3
#: The answers of a server that will take the same call later, perhaps at another place.
LATER = (
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "MOVED",
    "ASK",
    "READONLY",
    "NOSCRIPT",
    "BUSY",
    "UNBLOCKED",
)
#: Those that say that it is another place.
ELSEWHERE = ("MOVED", "READONLY", "CLUSTERDOWN", "MASTERDOWN")


class Call(NamedTuple):
    """A call that may have to be made again.

    :ivar may_repeat: whether it may be done twice.
    """

    partition: int
    script: Script
    keys: Sequence[bytes]
    words: Words
    may_repeat: bool = True


class Listener(Protocol):
    """The user of the connections, who is told of them."""

    def servers_up(self) -> None:
        """Note that all servers are there."""

    def hearing_up(self, link: Link) -> None:
        """Note a new connection for channels."""

    def hearing_down(self) -> None:
        """Note that a connection has ended."""

    def servers_moved(self) -> None:
        """Note that partitions have moved to other servers."""


class Pool:
    """Two connections to each master: for calls, and for channels.

    :param settings: where the servers are.
    :param reactor: the reactor.
    :param layout: the names of keys.
    :param name: what the servers list the connections as.
    :param listener: told of them.
    :param ack: what a message that is acknowledged is to have survived.
    :ivar scripts: as the servers allow them.
    :ivar down_since: when a connection went down; ``None`` while all are up.
    """

    _log = Logger()

    def __init__(
        self, settings: Settings, reactor: Any, layout: Layout, name: str, listener: Listener, ack: str = "memory"
    ):
        self._settings = settings
        self._reactor = reactor
        self._layout = layout
        self._at_end = getattr(reactor, "at_end_of_turn", None) or (lambda call: reactor.callLater(0, call))
        self._name = name
        self._listener = listener
        self._ack = ack
        self._is_cluster = settings.kind == "cluster"
        self.scripts = Scripts(True, self._is_cluster)
        self._by_info = True
        self._found: Found | None = None
        self._calls: dict[Address, Link] = {}
        self._hearing: dict[Address, Link] = {}
        self._owners: tuple[Link, ...] = ()
        self._checked: set[Address] = set()
        #: Connections that are ended only to be made anew.
        self._renewed: set[Link] = set()
        self._will_find: IDelayedCall | None = None
        self._is_finding = self._is_running = self._is_usable = False
        #: Those who wait until a server is there.
        self._waiting: set[Deferred[None]] = set()
        self._connected: list[Deferred[None]] = []
        self._failure: Failure | None = None
        #: The reason that was logged last.
        self._reason = ""
        self.down_since: float | None = None
        #: Of writes of this turn, whether the replicas have them, by connection.
        self._copying: dict[RedisProtocol, list[Deferred[None]]] = {}

    # -- the begin and the end

    def start(self) -> None:
        """Begin to look for the servers, where it is known who is to be asked."""
        self._is_running = True
        if self._settings.addresses:
            self._find()

    def use(self, settings: Settings) -> None:
        """Look for the servers by other settings."""
        self._settings = settings
        self._found = None
        if self._is_running:
            self._find()

    def stop(self) -> None:
        """End all connections; calls that wait fail."""
        self._is_running = False
        if self._will_find is not None:
            self._will_find.cancel()
            self._will_find = None
        for link in self._links:
            link.stop()
        self._wake()

    def usable(self) -> None:
        """Note that all is ready: whoever waits for that hears of it."""
        self._is_usable = True
        self._tell_connected(None)

    def connected(self) -> Deferred[None]:
        """A Deferred that fires once :meth:`usable` was called. It fails with :class:`~zcomm.errors.ConfigError` for
        servers that cannot be used as they are, and with :class:`~zcomm.errors.Unavailable` where none is there."""
        if self._is_usable:
            return succeed(None)
        if self._failure is not None:
            return fail(self._failure)
        waiting: Deferred[None] = Deferred()
        self._connected.append(waiting)
        return waiting

    def trouble(self, failure: Failure) -> None:
        """Note that a server cannot be used."""
        if self.down_since is None:
            self.down_since = self._reactor.seconds()
        if self._is_usable:
            return
        known, self._reason = self._reason, (reason := failure.getErrorMessage())
        if not self._connected and known != reason:
            # Who starts it by itself hears of it in no other way.
            self._log.error("the engine cannot be used, which is tried again and again: {reason}", reason=reason)
        self._tell_connected(failure)

    def _tell_connected(self, failure: Failure | None) -> None:
        self._failure = failure
        waiting, self._connected = self._connected, []
        for deferred in waiting:
            if failure is None:
                deferred.callback(None)
            else:
                deferred.errback(failure)

    # -- the servers

    def _find(self) -> None:
        self._will_find = None
        if self._is_finding or not self._is_running:
            return
        self._is_finding = True
        finding = deferToThreadPool(self._reactor, self._reactor.getThreadPool(), find, self._settings)
        finding.addCallbacks(self._use, self._not_found)

    def find_again(self) -> None:
        """Look for the servers anew, which may have changed."""
        if self._is_running and self._will_find is None:
            self._will_find = self._reactor.callLater(FIND_AGAIN, self._find)

    def _not_found(self, failure: Failure) -> None:
        self._is_finding = False
        if not failure.check(Unavailable):
            self._log.failure("the engine's servers could not be looked for", failure)
            failure = Failure(Unavailable(f"{self._settings}: {failure.getErrorMessage()}"))
        self.trouble(failure)
        self.find_again()

    def _use(self, found: Found) -> None:
        self._is_finding = False
        if not self._is_running:
            return
        if found != self._found:
            self._found = found
            for links in (self._calls, self._hearing):
                for address in [one for one in links if one not in found.masters]:
                    links.pop(address).stop()
                    self._checked.discard(address)
            for address in found.masters:
                if address not in self._calls:
                    self._calls[address] = self._link(address, self._up, self._first)
                    self._hearing[address] = self._link(address, self._hearing_up, list)
            self._owners = tuple(self._calls[found.masters[place]] for place in found.owners)
            self._listener.servers_moved()
            self._wake()

    def _link(self, address: Address, on_up: Callable[[Link], None], first: Callable[[], list[Words]]) -> Link:
        link = Link(self._reactor, address, self._settings.credentials, self._name, first, on_up, self._link_down)
        link.start()
        return link

    def _first(self) -> list[Words]:
        """What is said first on a connection for calls: the scripts, and of which history what is written is."""
        words: list[Words] = [("SCRIPT", "LOAD", script.text) for script in self.scripts.all]
        if not self._by_info:
            # In a cluster each is for one of the servers, and refused by all others.
            words += [("SET", self._layout.history(part), token_hex(4)) for part in range(self._layout.partitions)]
        return words

    def _link_down(self, link: Link, reason: BaseException) -> None:
        self._listener.hearing_down()
        where = str(link.address)
        if link in self._renewed:
            self._renewed.discard(link)
            return
        self.trouble(Failure(Unavailable(refusal(reason, where))))
        if self._settings.kind != "server":
            self.find_again()

    def _up(self, link: Link) -> None:
        if link.address in self._checked:
            self._all_up()
            return
        protocol = link.protocol
        if protocol is None:
            return
        checking = check_server(protocol, self._layout, self._settings.kind, str(link.address), self._ack)
        checking.addCallbacks(self._checks_out, self._does_not, (link,), errbackArgs=(link,))

    def _checks_out(self, by_info: bool, link: Link) -> None:
        if not by_info and self._by_info:
            self._log.warn(
                "the engine's server {where} does not tell its replication id (ACL: +info): positions of topics end "
                "with each of its connections",
                where=str(link.address),
            )
            self._by_info = False
            self.scripts = Scripts(False, self._is_cluster)
            # Each begins anew, with those scripts and a history of its own.
            self._renewed.update(self._calls.values())
            for other in self._calls.values():
                other.end()
            return
        self._checked.add(link.address)
        self._all_up()

    def _does_not(self, failure: Failure, link: Link) -> None:
        if failure.check(ConfigError):
            self.trouble(failure)
        else:
            self.trouble(Failure(Unavailable(refusal(error_of(failure), str(link.address)))))
        # It may be another one later.
        link.end()

    def _hearing_up(self, link: Link) -> None:
        self._listener.hearing_up(link)
        self._all_up()

    @property
    def _links(self) -> list[Link]:
        return [*self._calls.values(), *self._hearing.values()]

    @property
    def is_up(self) -> bool:
        """Whether all servers are there."""
        links = self._links
        return bool(links) and all(link.protocol is not None for link in links) and self._checked >= set(self._calls)

    def _all_up(self) -> None:
        """Go on with what waited, where all servers are there."""
        self._wake()
        if self.is_up:
            self.down_since = None
            self._listener.servers_up()

    def look(self) -> None:
        """End connections on which a server owes a word for too long; to be called each second."""
        for link in self._links:
            link.look()
        if self.is_up:
            self.down_since = None

    def why(self) -> str:
        """Name the servers that are away."""
        down = [link for link in self._links if link.protocol is None]
        return ", ".join(dict.fromkeys(str(link.address) for link in down)) or str(self._settings)

    def protocol(self, partition: int) -> RedisProtocol | None:
        """The connection to the server that has a partition, where it is up and was looked at."""
        if not self._owners:
            return None
        link = self._owners[partition]
        return link.protocol if link.address in self._checked else None

    def hearing(self, partition: int) -> Link | None:
        """The connection for the channels of a partition."""
        return self._hearing.get(self._owners[partition].address) if self._owners else None

    # -- calls

    def call(
        self,
        partition: int,
        script: Script,
        keys: Sequence[bytes],
        words: Words,
        may_repeat: bool = True,
        patience: float = PATIENCE,
    ) -> Deferred[Any]:
        """Run a script; a Deferred of what it returns. It fails with :class:`~zcomm.errors.Unavailable`, and with
        :class:`ReplyError` for what the script itself refuses."""
        call = Call(partition, script, keys, words, may_repeat)
        protocol = self.protocol(partition)
        if protocol is None:
            return self.patiently(call, self._reactor.seconds() + patience)
        reply = protocol.call("EVALSHA", script.sha, len(keys), *keys, *words)
        return reply.addErrback(self._again, call, patience)

    def _again(self, failure: Failure, call: Call, patience: float) -> Any:
        return self.patiently(call, self._reactor.seconds() + patience, error_of(failure))

    def copied(self, partition: int) -> Deferred[None]:
        """Fires when all that was written to a partition so far is in the memory of its replicas, as many as there are;
        it fails with :class:`~zcomm.errors.Unavailable` where that takes longer than :data:`COPY` milliseconds."""
        copied: Deferred[None] = Deferred()
        protocol = self.protocol(partition)
        if protocol is None:
            copied.errback(_not_copied())
            return copied
        waiting = self._copying.get(protocol)
        if waiting is None:
            waiting = self._copying[protocol] = []
            # One for all that is written in this turn.
            self._at_end(lambda: self._ask_for_copies(protocol))
        waiting.append(copied)
        return copied

    @inlineCallbacks
    def _ask_for_copies(self, protocol: RedisProtocol) -> Any:
        waiting = self._copying.pop(protocol)
        try:
            facts = yield protocol.call("INFO", "replication")
            count = int(facts.partition(b"connected_slaves:")[2].split(b"\r\n", 1)[0])
            have = yield protocol.call("WAIT", max(1, count), COPY)
            is_copied = have >= max(1, count)
        except (ReplyError, LinkLost, ValueError):
            is_copied = False
        for copied in waiting:
            if is_copied:
                copied.callback(None)
            else:
                copied.errback(_not_copied())

    @inlineCallbacks
    def patiently(self, call: Call, until: float, error: BaseException | None = None) -> Any:
        """Make a call as soon as that can be done, until then; ``error`` is what came of it before."""
        pause = FIRST_PAUSE
        while True:
            if error is not None:
                self.judge(error, call)
                is_unknown, error = "NOSCRIPT" in str(error), None
                protocol = self.protocol(call.partition)
                if is_unknown and protocol is not None:
                    protocol.call("SCRIPT", "LOAD", call.script.text).addErrback(lambda _: None)
                else:
                    yield self._soon(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
            protocol = self.protocol(call.partition)
            left = until - self._reactor.seconds()
            if left <= 0 or not self._is_running:
                raise Unavailable(f"The engine is away ({self.why()}); try again")
            if protocol is None:
                yield self._soon(min(LONGEST_PAUSE, left))
                continue
            try:
                reply = yield protocol.call("EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.words)
                return reply
            except (ReplyError, LinkLost) as failed:
                error = failed

    def judge(self, error: BaseException, call: Call) -> None:
        """Raise where a call cannot be made again after ``error``."""
        if isinstance(error, LinkLost):
            if not call.may_repeat:
                raise Unavailable(
                    "The engine's connection ended before it answered: whether that was published is not known; "
                    "with an _idempotencyKey it is safe to publish it again"
                )
            return
        if not isinstance(error, ReplyError):
            raise error
        text = str(error)
        if any(word in text for word in LATER):
            if any(word in text for word in ELSEWHERE):
                self.find_again()
            return
        if is_refused(error, "CONFLICT") or is_refused(error, "DEADNODE"):
            raise error
        if "OOM" in text:
            raise Unavailable("The engine's memory is full; try again later")
        self._log.error("the engine refused a call: {reason}", reason=text)
        raise Unavailable("The engine refused this; its log says why")

    def _soon(self, seconds: float) -> Deferred[None]:
        """Fires when a server is there again, or after so many seconds."""
        waiting: Deferred[None] = Deferred()
        timer = self._reactor.callLater(seconds, self._fire, waiting)
        self._waiting.add(waiting)

        def over(result: Any) -> Any:
            self._waiting.discard(waiting)
            if timer.active():
                timer.cancel()
            return result

        return waiting.addBoth(over)

    def _fire(self, waiting: Deferred[None]) -> None:
        if not waiting.called:
            waiting.callback(None)

    def _wake(self) -> None:
        for waiting in list(self._waiting):
            self._fire(waiting)


def _not_copied() -> Unavailable:
    return Unavailable(
        "The engine has the message, and its replicas may not: whether it survives a failover is not known; with an "
        "_idempotencyKey it is safe to publish it again"
    )


def is_refused(error: BaseException, word: str) -> bool:
    """Whether a script has refused a call with that word."""
    return isinstance(error, ReplyError) and word in str(error)


def error_of(failure: Failure) -> BaseException:
    """The exception of a failure."""
    return failure.value or Exception()
