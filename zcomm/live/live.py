"""Live queries for clients: the commands ``zLive`` and ``zUnsubscribe``, and who is told what."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Set
from time import perf_counter
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, inlineCallbacks, maybeDeferred, succeed
from twisted.logger import Logger

from zcomm.budget.budgets import Budgets
from zcomm.budget.memory import Hold
from zcomm.budget.written import Written, write_json
from zcomm.config import Limits
from zcomm.data.requests import Plan
from zcomm.data.store import Store
from zcomm.errors import CommandError, Invalid, PermissionDenied, TooBusy, Unavailable
from zcomm.interfaces import RIGHTS, Among, Client, LiveCounts, Permissions, Request, field_rights, owner_of
from zcomm.live.differences import Difference
from zcomm.live.feed import SLICE, Feed
from zcomm.live.log import ChangeLog
from zcomm.live.query import Query
from zcomm.live.requests import Live, Question, parse_live, parse_name, parse_unsubscribe, question_of
from zcomm.live.rows import Entry
from zcomm.live.subscriber import Rights, Subscriber, Subscription

__all__ = ["LiveQueries"]

#: Bytes of a reply for which no memory has to be held, and of an event in which queries have all their rows together.
SMALL, EVENT = 16 * 1024, 1024 * 1024


class LiveQueries:
    """The live queries of a program, at all of its servers.

    :param store: has the models.
    :param log: tells which rows have changed.
    :param reactor: the reactor.
    :param budgets: the accounts of the users.
    :param limits: how many queries one client may have, and the bytes that all of them may take.
    """

    _log = Logger()

    def __init__(self, store: Store, log: ChangeLog, reactor: Any, budgets: Budgets, limits: Limits):
        self._store = store
        self._reactor = reactor
        self._budgets = budgets
        self._limits = limits
        self.feed = Feed(store, log, reactor, self)
        #: How many events were sent.
        self.events = 0
        self._subscribers: dict[Subscriber, None] = {}
        self._by_owner: dict[Hashable, dict[Subscriber, None]] = {}
        #: Those who are to be told something when the step is done.
        self._noted: dict[Subscriber, None] = {}
        #: The models of which it has to be told whose changes are seen.
        self._unsaid: set[str] = set()

    def start(self) -> Deferred[None]:
        """Find out which tables can be watched. Fires when that is known; it does not fail."""
        return self.feed.start()

    def stop(self) -> Deferred[None]:
        """Let go of the database. Fires when nothing runs any more."""
        return self.feed.stop()

    def counts(self) -> LiveCounts:
        """Their numbers as they are now."""
        subscriptions = sum(len(subscriber.queries) for subscriber in self._subscribers)
        return LiveCounts(self.feed.queries, subscriptions, self.feed.size, self.feed.done, self.events)

    # -- commands

    def respond(self, request: Request, client: Client) -> Any:
        """Answer ``zLive``, a Deferred of the rows, of which the client hears from then on; or ``zUnsubscribe``."""
        if request.key == "zUnsubscribe":
            return self.unsubscribe(request, client)
        name = parse_name(request.horizontal)
        subscriber = self._of(client, "zLive")
        return self._in_order(subscriber, name, lambda: self._live(name, request.horizontal, subscriber))

    def unsubscribe(self, request: Request, client: Client) -> Any:
        """Answer ``zUnsubscribe`` of a query."""
        name = parse_unsubscribe(request.horizontal)
        subscriber = self._of(client, "zUnsubscribe")
        return self._in_order(subscriber, name, lambda: succeed(self._unsubscribe(name, subscriber)))

    def _unsubscribe(self, name: str, subscriber: Subscriber) -> dict[str, Any]:
        self._end(subscriber, name)
        return {"query": name}

    def _of(self, client: Any, key: str) -> Subscriber:
        if getattr(client, "is_lasting", False) is not True:
            raise Invalid(f"{key} needs a WebSocket connection: nothing is told over any other")
        subscriber: Subscriber | None = client.live
        if subscriber is None:
            subscriber = client.live = Subscriber(self, client)
            self._subscribers[subscriber] = None
            self._by_owner.setdefault(owner_of(client), {})[subscriber] = None
        return subscriber

    def _in_order(self, subscriber: Subscriber, name: str, run: Callable[[], Deferred[Any]]) -> Deferred[Any]:
        """Run a command on a query behind those on it that came before and are not done."""
        before = subscriber.lanes.get(name)
        over: Deferred[None] = Deferred()
        subscriber.lanes[name] = over
        running = maybeDeferred(run) if before is None else _after(before, run)
        outcome: Deferred[Any] = Deferred(lambda _: running.cancel())

        def done(result: Any) -> None:
            # Its reply is written before the next one begins.
            if not outcome.called:
                outcome.callback(result)
            if before is None or before.called:
                leave(None)
            else:
                # It was taken back; the next one does not overtake those before it.
                before.addCallback(leave)

        def leave(_: None) -> None:
            if subscriber.lanes.get(name) is over:
                del subscriber.lanes[name]
            over.callback(None)

        running.addBoth(done)
        return outcome

    @inlineCallbacks
    def _live(self, name: str, horizontal: dict[str, Any], subscriber: Subscriber) -> Generator[Any, Any, Any]:
        # The same name again replaces the query, whatever comes of it; until the reply nothing is told of it.
        self._end(subscriber, name)
        asked = parse_live(horizontal)
        if len(subscriber.queries) + subscriber.asking >= (most := self._limits.live_per_client):
            raise TooBusy(f"Too many live queries: at most {most}; end one with zUnsubscribe")
        subscriber.asking += 1
        try:
            return (yield self._ask(asked, subscriber))
        finally:
            subscriber.asking -= 1

    @inlineCallbacks
    def _ask(self, asked: Live, subscriber: Subscriber) -> Generator[Any, Any, Any]:
        name, client = asked.query, subscriber.client
        yield self._store.when_known()
        hold: Hold | None = None
        query: Query | None = None
        # What was changed by this program before it was asked is in the rows.
        fresh, begun = 0, self._reactor.seconds()
        keeper = Subscription(subscriber, asked, self._rights(client, asked))
        try:
            while True:
                if client.transport is None:
                    raise Unavailable("The connection has ended")
                keeper.rights = self._rights(client, asked)
                question, plan = self._question(client, asked, keeper.rights)
                if query is None or query.question != question or query.fault:
                    if query is not None:
                        self.feed.leave(query, keeper)
                    self._check_memory(client)
                    was_known = self.feed.knows(question)
                    query = yield self.feed.ask(question, plan, owner_of(client))
                    query.watchers[keeper] = owner_of(client)
                    fresh = self.feed.fresh if was_known else 0
                    continue
                if self.feed.is_coming(query):
                    # The others of its connection would be ahead of it.
                    is_between = bool(subscriber.queries) and self.feed.is_passed_by(query)
                else:
                    is_between = self.feed.is_running
                # One that is read beside the steps may be so all the time.
                is_old = query.is_stale and not (self.feed.is_read_beside(query) and query.read_at >= begun)
                if self.feed.done < fresh or is_between or is_old:
                    if self.feed.is_failing:
                        raise Unavailable("The rows cannot be read now; ask again later")
                    yield self.feed.when_ended()
                    continue
                if subscriber.is_blocked:
                    yield subscriber.when_free()
                    continue
                rows = query.rows
                size = 0 if asked.known == query.digest else sum(len(entry.row) + 1 for entry in rows)
                if size <= SMALL or (hold is not None and hold.size >= size):
                    break
                if hold is not None:
                    hold.release()
                size += size // 8 + SMALL
                waiting = self._budgets.memory.when(client.account, size)
                is_waiting = not waiting.called
                yield waiting
                hold = Hold(self._budgets.memory, client.account, size, lambda call: call())
                if not is_waiting:
                    break
            # From here to the reply nothing waits.
            keeper.query = query
            subscriber.queries[name] = keeper
            return self._reply(asked, keeper, query, rows, hold)
        except BaseException:
            if query is not None and keeper.query is None:
                self.feed.leave(query, keeper)
            if hold is not None:
                hold.release()
            raise

    def _reply(self, asked: Live, keeper: Subscription, query: Query, rows: list[Entry], hold: Hold | None) -> Any:
        model = query.question.model
        result: dict[str, Any] = {
            "query": asked.query,
            "key": list(self._store.schema.models[model].key),
            "digest": query.digest,
            "step": keeper.subscriber.step,
            "sees": "all" if self.feed.sees_all(model) else "own",
        }
        if asked.known == query.digest:
            if hold is not None:
                hold.release()
            return {**result, "same": True}
        if hold is None:
            result["rows"] = msgspec.Raw(_list(rows))
            return result
        written = Written()
        written.write(write_json(result)[:-1])
        written.write(b',"rows":[')
        for place, entry in enumerate(rows):
            written.write(b"," + entry.row if place else entry.row)
        written.write(b"]}")
        written.hold = hold
        return written

    def _check_memory(self, client: Any) -> None:
        """Refuse a query where those that there are take all the memory for them.

        :raises TooBusy: saying whose they are.
        """
        most, owner = self._limits.live_memory, owner_of(client)
        if self.feed.size >= most:
            raise TooBusy(f"The live queries of all clients take the {most >> 20} MiB that they may; try again later")
        if self.feed.size < most // 4:
            # Nobody's come to that.
            return
        mine = sum(
            subscription.query.size
            for subscriber in self._by_owner.get(owner, ())
            for subscription in subscriber.queries.values()
            if subscription.query is not None
        )
        if mine >= most // 4:
            raise TooBusy(f"Your live queries take the {most >> 22} MiB that they may; ask for fewer rows, or end some")

    # -- rights

    def _rights(self, client: Any, asked: Live) -> Rights:
        model, permissions, identity = asked.command.model, client.permissions, client.identity
        may = isinstance(model, str) and permissions.allows(identity, "read", "model", model)
        if not may:
            raise PermissionDenied()
        return True, dict(permissions.rows(identity, model) or {}), field_rights(permissions, identity, model)

    def _question(self, client: Any, asked: Live, rights: Rights) -> tuple[Question, Plan]:
        permissions: Permissions = client.permissions
        identity = client.identity

        def known(model: str) -> bool:
            return any(permissions.allows(identity, right, "model", model) for right in RIGHTS["model"])

        model = self._store.schema.find(asked.command.model, known).restricted(rights[2])
        for value in rights[1].values():
            if isinstance(value, Among) and not self.feed.sees_all(value.model):
                raise Invalid(
                    f"{model.name} cannot be asked for live: its rows are in reach by {value.model}, whose table is "
                    "not watched"
                )
        return question_of(asked.command, model, rights[1])

    def _is_as_before(self, subscription: Subscription) -> bool:
        """Whether the client has the rights that its query was judged by, and it is seen where they change."""
        rights = subscription.rights
        if any(isinstance(value, Among) and not self.feed.sees_all(value.model) for value in rights[1].values()):
            return False
        try:
            return self._rights(subscription.subscriber.client, subscription.asked) == rights
        except Exception:
            return False

    def judge(self) -> None:
        """Judge all queries by the rights of now: who has others hears of no others, beginning with this turn."""
        self._judge_on(iter(list(self._subscribers)))

    def _judge_on(self, waiting: Iterator[Subscriber]) -> None:
        until = perf_counter() + SLICE
        for subscriber in waiting:
            self._judge(subscriber, subscriber.queries.values())
            if perf_counter() > until:
                self._reactor.callLater(0, self._judge_on, waiting)
                return

    def _judge(self, subscriber: Subscriber, subscriptions: Iterable[Subscription]) -> None:
        """Judge those of a connection anew whose rights are others now; all of its queries go on together then."""
        changed = [subscription for subscription in subscriptions if not self._is_as_before(subscription)]
        if changed:
            subscriber.judging += 1
            for subscription in changed:
                self._judge_anew(subscription)
            self._is_judged(None, subscriber)

    def _judge_anew(self, subscription: Subscription) -> None:
        """Let a subscription be what it would be if it were asked for now."""
        query, subscription.query = subscription.query, None
        if query is None:
            # That is under way.
            return
        subscriber = subscription.subscriber
        subscriber.notes.pop(subscription.asked.query, None)
        self.feed.leave(query, subscription)
        subscriber.judging += 1
        self._judged(subscription).addErrback(self._not_judged, subscription).addBoth(self._is_judged, subscriber)

    def _is_judged(self, _: Any, subscriber: Subscriber) -> None:
        subscriber.judging -= 1
        subscriber.drained()

    @inlineCallbacks
    def _judged(self, subscription: Subscription) -> Generator[Any, Any, None]:
        subscriber, asked = subscription.subscriber, subscription.asked
        client = subscriber.client
        while subscriber.queries.get(asked.query) is subscription and client.transport is not None:
            subscription.rights = self._rights(client, asked)
            question, plan = self._question(client, asked, subscription.rights)
            query: Query = yield self.feed.ask(question, plan, owner_of(client))
            query.watchers[subscription] = owner_of(client)
            while self.feed.is_joining(query):
                # The others of its connection go on together with it.
                yield self.feed.step()
            if subscriber.queries.get(asked.query) is not subscription or not self._is_as_before(subscription):
                self.feed.leave(query, subscription)
                continue
            subscription.query = query
            subscription.is_behind = True
            return

    def _not_judged(self, failure: Any, subscription: Subscription) -> None:
        error = failure.value
        if not isinstance(error, CommandError):
            self._log.failure("a live query could not be judged anew", failure)
            error = PermissionDenied()
        subscriber, name = subscription.subscriber, subscription.asked.query
        if subscriber.queries.get(name) is subscription:
            self._end(subscriber, name)
            subscriber.send({name: _error(error)})

    # -- what steps find

    def differs(self, query: Query, made: Difference) -> None:
        """Note what has changed in the rows of ``query`` for those who are told of it."""
        note = _note(made, query.digest)
        for watcher in query.watchers:
            self._note(watcher, note)

    def _note(self, subscription: Subscription, note: bytes) -> None:
        subscriber, name = subscription.subscriber, subscription.asked.query
        if subscriber.queries.get(name) is not subscription or subscription.query is None:
            return
        if name in subscriber.notes or subscription.is_behind:
            # It has not been told of a step before this.
            subscriber.notes.pop(name, None)
            subscription.is_behind = True
        elif subscriber.notes and subscriber.noted + len(note) > EVENT:
            # To tell it of all in one event would take too long.
            subscription.is_behind = True
        else:
            subscriber.notes[name] = note
            subscriber.noted += len(note)
        self._noted[subscriber] = None

    def sees(self, models: Collection[str]) -> None:
        """Note that whose changes are seen of ``models`` may be another, from the next step on."""
        self._unsaid.update(models)

    def ended(self, query: Query, error: CommandError) -> None:
        """End the subscriptions to ``query``."""
        note = _error(error)
        for subscription in list(query.watchers):
            subscriber, name = subscription.subscriber, subscription.asked.query
            self.feed.leave(query, subscription)
            if subscriber.queries.get(name) is subscription:
                del subscriber.queries[name]
                subscriber.notes[name] = note
                self._noted[subscriber] = None

    def step(self) -> Iterator[None]:
        """Tell all that has been noted."""
        noted, self._noted = self._noted, {}
        for subscriber in noted:
            # Nothing is told by rights that are no more.
            self._judge(
                subscriber, [subscriber.queries[name] for name in subscriber.notes if name in subscriber.queries]
            )
            self._tell(subscriber)
            yield
        models, self._unsaid = self._unsaid, set()
        for subscriber in list(self._subscribers) if models else ():
            self._tell_sees(subscriber, models)
            yield

    def _tell_sees(self, subscriber: Subscriber, models: Set[str]) -> None:
        """Tell whose changes are seen of ``models``, and judge anew what goes by memberships in them."""
        concerned = [
            subscription
            for subscription in subscriber.queries.values()
            if (query := subscription.query) is not None
            and not models.isdisjoint((query.question.model, *query.depends))
        ]
        self._judge(subscriber, concerned)
        notes = {}
        for subscription in concerned:
            query, name = subscription.query, subscription.asked.query
            if query is None or subscriber.queries.get(name) is not subscription or query.question.model not in models:
                continue
            if subscriber.is_blocked or subscription.is_behind:
                # It is in what tells all rows.
                subscription.is_behind = True
            else:
                notes[name] = b'{"sees":"%s"}' % self._sees(query)
        subscriber.send(notes)

    def _sees(self, query: Query) -> bytes:
        return b"all" if self.feed.sees_all(query.question.model) else b"own"

    def failed(self) -> None:
        """Have everybody told all rows, once a step has gone well."""
        for subscriber in self._subscribers:
            # Of queries that have ended all is said.
            subscriber.notes = {name: each for name, each in subscriber.notes.items() if name not in subscriber.queries}
            for subscription in subscriber.queries.values():
                subscription.is_behind = True
            self._noted[subscriber] = None

    def catch_up(self, subscriber: Subscriber) -> None:
        """Tell a client all rows of the queries that it is behind in, once no step is under way."""
        if self.feed.is_running:
            self.feed.when_ended().addCallback(lambda _: self.catch_up(subscriber))
        elif subscriber not in self._noted:
            # Else the step has failed, and the next one tells it all.
            self._tell(subscriber)

    def _tell(self, subscriber: Subscriber) -> None:
        """Tell a client what it has not been told, in one event, or in several where all rows of queries are many."""
        self._judge(
            subscriber, [each for each in subscriber.queries.values() if each.is_behind and each.query is not None]
        )
        notes = subscriber.due()
        size = sum(map(len, notes.values()))
        for name, subscription in subscriber.queries.items():
            query = subscription.query
            if not subscription.is_behind or query is None or subscriber.is_blocked:
                continue
            parts = (_list(query.rows), query.digest.encode(), self._sees(query))
            note = b'{"reset":%s,"digest":"%s","sees":"%s"}' % parts
            if notes and size + len(note) > EVENT:
                subscriber.send(notes)
                # Each event has a turn of its own.
                self._reactor.callLater(0, self.catch_up, subscriber)
                return
            subscription.is_behind = False
            notes[name] = note
            size += len(note)
        subscriber.send(notes)

    # -- the end

    def _end(self, subscriber: Subscriber, name: str) -> None:
        subscription = subscriber.queries.pop(name, None)
        subscriber.notes.pop(name, None)
        if subscription is not None and subscription.query is not None:
            self.feed.leave(subscription.query, subscription)

    def lost(self, subscriber: Subscriber) -> None:
        """Forget a client that is gone."""
        for name in list(subscriber.queries):
            self._end(subscriber, name)
        self._subscribers.pop(subscriber, None)
        owner = owner_of(subscriber.client)
        mine = self._by_owner.get(owner, {})
        mine.pop(subscriber, None)
        if not mine:
            self._by_owner.pop(owner, None)
        self._noted.pop(subscriber, None)
        waiting, subscriber.waiting = subscriber.waiting, []
        for deferred in waiting:
            if not deferred.called:
                deferred.callback(None)


def _after(before: Deferred[None], run: Callable[[], Deferred[Any]]) -> Deferred[Any]:
    begun: list[Deferred[Any]] = []

    def cancel(_: Deferred[Any]) -> None:
        for each in begun:
            each.cancel()

    waiting: Deferred[Any] = Deferred(cancel)

    def begin(result: Any) -> Any:
        if not waiting.called:
            begun.append(maybeDeferred(run))
            begun[0].addBoth(lambda outcome: None if waiting.called else waiting.callback(outcome))
        return result

    before.addCallback(begin)
    return waiting


def _list(rows: list[Entry]) -> bytes:
    return b"[%s]" % b",".join([entry.row for entry in rows])


def _note(made: Difference, digest: str) -> bytes:
    parts = []
    if made.gone:
        parts.append(b'"gone":[%s]' % b",".join([entry.name for entry in made.gone]))
    if made.set:
        parts.append(b'"set":[%s]' % b",".join([b"[%d,%s]" % (place, entry.row) for place, entry in made.set]))
    parts.append(b'"digest":"%s"' % digest.encode())
    return b"{%s}" % b",".join(parts)


def _error(error: CommandError) -> bytes:
    return write_json({"error": str(error), "code": error.code, "final": True})
