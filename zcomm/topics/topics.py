"""The topics of a program: what it declares, publishes, asks and hears of them, whatever engine carries them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred, fail, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.budget.budgets import Budgets
from zcomm.budget.written import write_json
from zcomm.config import Limits, read_text
from zcomm.errors import CommandError, ConfigError, Invalid, NotFound, PermissionDenied
from zcomm.interfaces import RIGHTS, Identity, IEngine, Permissions, Position, Slice
from zcomm.runtime.deferreds import awaited
from zcomm.text import did_you_mean, quoted, some
from zcomm.topics.hub import Hub
from zcomm.topics.keys import digest_of
from zcomm.topics.kinds import Found, Kind, Kinds, check_callable, kinds_from_yaml, own_topic
from zcomm.topics.names import NamePattern, is_topic_name
from zcomm.topics.presence import MAX_MEMBERS
from zcomm.topics.requests import MAX_MESSAGES, MESSAGES, Subscribe, check_key, encode_data
from zcomm.topics.subscriber import Subscriber
from zcomm.topics.subscriptions import Subscription, encode_messages
from zcomm.wire.fanout import fan_out as fan_out_to_sockets
from zcomm.wire.writebatch import WriteBatch

__all__ = ["Topics", "answer_of"]

F = TypeVar("F", bound=Callable[..., Any])


class Topics:
    """The topics of one program, at all of its servers.

    :param engine: carries them.
    :param reactor: the reactor.
    :param limits: of a client.
    :param budgets: the accounts of users.
    :param fan_out: sends the same to many.
    :ivar kinds: the kinds that are declared.
    :ivar hub: who is subscribed here.
    """

    _log = Logger()

    def __init__(
        self,
        engine: IEngine,
        reactor: Any,
        limits: Limits,
        budgets: Budgets,
        fan_out: Callable[..., None] = fan_out_to_sockets,
    ):
        self.engine = engine
        self.kinds = Kinds()
        at_end_of_turn = getattr(reactor, "at_end_of_turn", None) or partial(reactor.callLater, 0)
        self._batch = batch = WriteBatch(at_end_of_turn)
        self._clock = reactor
        self._seconds = limits.command_timeout
        self.hub = Hub(
            engine, self.kinds, reactor, limits, budgets, batch, fan_out, self._is_heard, self._came_and_went
        )
        #: The connections of each server.
        self._registries: list[Iterable[Any]] = []
        self._hooks: list[tuple[NamePattern, Callable[..., Any]]] = []
        self._will_check = False
        self._file: Any = None

    # -- what a program declares

    def topic(
        self,
        pattern: str,
        *,
        history: int = 0,
        keep: float = 3600.0,
        presence: bool = False,
        publish: str = "subscribers",
        personal: bool = False,
    ) -> Kind:
        """Declare a kind of topics. As long as none is declared, every name is a topic.

        :param pattern: the names, such as ``room:{id}``; ``{id}`` is one or more characters other than ``:``.
        :param history: how many messages of a topic are kept, up to 10,000; 0 for none.
        :param keep: for how many seconds after the last of them, up to a day.
        :param presence: whether subscribers are told who is there.
        :param publish: ``subscribers``, ``anybody`` who is let in, or ``nobody`` but the program.
        :param personal: whether everybody is in the topic with their own ``{name}`` by themselves, and nobody else.
        :returns: the kind, for what the program has to say of it: :meth:`~zcomm.topics.kinds.Kind.allow` and
            :meth:`~zcomm.topics.kinds.Kind.incoming`.
        :raises ConfigError: for a setting that cannot be used, and for names that are declared already.
        """
        kind = Kind(pattern, history=history, keep=keep, presence=presence, publish=publish, personal=personal)
        self.kinds.add(kind)
        if len(self.hub) or (personal and self._clients()):
            self.hub.judging.judge(self._goes_on, self._welcoming())
        self._check_hooks_later()
        return kind

    def on_presence(self, pattern: str) -> Callable[[F], F]:
        """Hear of those who come into topics and go; used as a decorator: ``@comm.on_presence("room:{id}")``.

        The function is called with the names of users whose first connection has come, those whose last one has left,
        and the parts of the name by their names: ``seen(arrived, gone, id)``. What happens within a fifth of a second
        is told together, and who came and left within it not at all. It may return a Deferred or a coroutine.

        It has to be the pattern of topics that have presence, at the latest when the first server listens, which fails
        otherwise; later the log says so.

        :raises ConfigError: for a pattern that is none, and for a function that cannot be called so.
        """
        found = NamePattern(pattern, "on_presence")

        def register(function: F) -> F:
            check_callable("on_presence", function, 2, "(arrived, gone", found)
            self._hooks.append((found, function))
            self._check_hooks_later()
            return function

        return register

    def check_hooks(self) -> None:
        """Look whether all functions that are to hear of presence can hear of any.

        :raises ConfigError: naming the patterns that no kind with presence has.
        """
        silent = [pattern.text for pattern, _ in self._hooks if not self.kinds.has_presence(pattern)]
        if silent:
            known = [kind.pattern.text for kind in self.kinds if kind.presence]
            hint = f"those are {some(known)}" if known else "declare one with presence=True"
            raise ConfigError("on_presence", f"{some(silent)}: no kind of topics with presence has such names; {hint}")

    def _check_hooks_later(self) -> None:
        """Let the log say what :meth:`check_hooks` finds once the program has said all it says in this turn."""
        if self._hooks and self._registries and not self._will_check:
            self._will_check = True
            self._batch.next_turn(self._tell_of_hooks)

    def _tell_of_hooks(self) -> None:
        self._will_check = False
        try:
            self.check_hooks()
        except ConfigError as error:
            self._log.warn("WARNING: {reason}", reason=str(error))

    def read_file(self, path: Any) -> None:
        """Take the kinds of a file (``--topics``), in the place of those that it had before.

        :raises ConfigError: naming what is wrong in it; the kinds stay as they are.
        """
        self.kinds.replace_file(kinds_from_yaml(read_text(path, "--topics"), str(path)), str(path))
        self._file = path

    def reload(self) -> None:
        """Read the file of kinds anew, judge every subscription by the kinds and rights of now, and subscribe
        connections to those of their users' own topics that are theirs only now.

        :raises ConfigError: for a file that cannot be used: its kinds stay as they are.
        """
        try:
            if self._file is not None:
                self.read_file(self._file)
        finally:
            self.hub.judging.judge(self._goes_on, self._welcoming())
            self._check_hooks_later()

    def _goes_on(self, subscriber: Subscriber, subscription: Subscription, found: Found) -> bool:
        try:
            client = subscriber.client
            for action in ("subscribe", "presence") if subscription.watches else ("subscribe",):
                self.check(client.identity, client.permissions, action, subscription.topic.name)
        except CommandError:
            return False
        except Exception:
            self._log.failure("the permissions failed; {name!r} is unsubscribed", name=subscriber.user)
            return False
        if found.kind.allowing:
            self._ask_again(subscriber, subscription, found)
        return True

    def _ask_again(self, subscriber: Subscriber, subscription: Subscription, found: Found) -> None:
        def ended(failure: Failure) -> None:
            now = subscriber.topics.get(subscription.topic.name)
            if now is None or now.number != subscription.number:
                # It is over, or one that was begun since has been allowed since.
                return
            if not failure.check(CommandError):
                self._log.failure("allow failed; {name!r} is unsubscribed", failure, name=subscriber.user)
            self.hub.end(now, "permission_denied")

        actions = ("subscribe", "presence") if subscription.watches else ("subscribe",)
        asking = maybeDeferred(self.ask, found, subscriber.client.identity, *actions)
        self._bound(asking, subscriber.client)
        asking.addErrback(ended)

    # -- rights

    def check(self, identity: Identity, permissions: Permissions, action: str, name: str) -> Found:
        """The kind of the topic ``name``, where the identity may do that by the policy.

        :raises NotFound: where there is no such kind, and no policy either.
        :raises PermissionDenied: where it may not, or there is no such kind.
        """
        found = self.kinds.find(name)
        is_allowed = permissions.allows(identity, action, "topic", name)
        if found is None:
            # Where somebody may not know of everything, what is not there is answered as what is not granted.
            if getattr(permissions, "is_open", False) and is_allowed:
                patterns = [kind.pattern.text for kind in self.kinds]
                raise NotFound(f"There is no topic {quoted(name)}{did_you_mean(name, patterns)}")
            raise PermissionDenied()
        if not is_allowed:
            raise PermissionDenied()
        kind = found.kind
        if kind.personal and action != "publish" and own_topic(kind, identity) != name:
            raise PermissionDenied()
        return found

    def granted(self, permissions: Permissions, identity: Identity) -> dict[str, list[str]]:
        """The actions on topics that the identity may do, by the patterns of their names, in which ``*`` is any number
        of characters; the program may grant less of some."""
        told = {}
        by_policy = getattr(permissions, "topics", None)
        if by_policy is not None:
            patterns = dict(by_policy(identity))
        elif self.kinds.is_declared:
            patterns = {}
            for kind in self.kinds:
                name = own_topic(kind, identity) if kind.personal else kind.pattern.glob
                if name is not None:
                    patterns[name] = [
                        action
                        for action in RIGHTS["topic"]
                        if permissions.allows(identity, action, "topic", name) and kind.offers(action)
                    ]
        else:
            patterns = {"*": list(RIGHTS["topic"])}
        for pattern, actions in patterns.items():
            if actions:
                told[pattern] = [action for action in RIGHTS["topic"] if action in actions]
        return told

    def ask(self, found: Found, identity: Identity, *actions: str) -> Deferred[None] | None:
        """Ask the program too whether the identity may do all of that; ``None``, or a Deferred of it.

        :raises PermissionDenied: where it says no; its Deferred fails so.
        """
        for place, action in enumerate(actions):
            question = found.kind.allowing.get(action)
            if question is None:
                continue
            answer = answer_of(question(identity, **found.parts))
            if isinstance(answer, Deferred):
                answer.addCallback(_require)
                return answer.addCallback(self._ask_on, found, identity, actions[place + 1 :])
            _require(answer)
        return None

    def _ask_on(self, _: None, found: Found, identity: Identity, actions: tuple[str, ...]) -> Deferred[None] | None:
        return self.ask(found, identity, *actions)

    # -- what a program asks

    def publish(self, topic: str, data: Any, key: str | None = None) -> Deferred[Position | None]:
        """Publish a message in the program's name.

        :param data: anything that JSON has a form for, up to 64 KiB of it.
        :param key: makes it safe to publish the same again within five minutes.
        :returns: a Deferred of its :class:`~zcomm.interfaces.Position`; of ``None`` for a topic that keeps none, and
            for one that has been numbered anew since the same was published under this key. It fails with
            :class:`~zcomm.errors.Invalid`, :class:`~zcomm.errors.NotFound` for a topic of no kind,
            :class:`~zcomm.errors.Conflict` for a key that was used for something else, and
            :class:`~zcomm.errors.Unavailable` where the engine is away.
        """
        try:
            found = self._known(topic)
            check_key(key)
            text = encode_data(data)
        except CommandError:
            return fail()
        return self.send(topic, found, text, b"", None, "", key, text, None)

    def send(
        self,
        topic: str,
        found: Found,
        data: bytes,
        sender: bytes,
        author: str | None,
        origin: str,
        key: str | None,
        asked: bytes,
        teller: Any,
    ) -> Deferred[Position | None]:
        """Publish what is checked already.

        :param data: its JSON.
        :param sender: the member of the message that tells who has sent it.
        :param asked: the JSON that was to be published, by which a repetition is known.
        """
        fragment = b'"data":' + data + sender
        digest = b""
        if key is not None:
            fragment = b'"key":' + write_json(key) + b"," + fragment
            digest = digest_of(topic, asked, 0 if self.engine.is_shared else found.generation)
        if self.kinds.have_changed:
            self.hub.judging.renew(topic)
        sent = self.engine.publish(topic, found.kind.kept, fragment, author, origin, key, digest, teller)
        return sent.addCallback(self._position, topic) if found.generation else sent

    def _position(self, position: Position | None, topic: str) -> Position | None:
        return None if position is None else self.hub.told(topic, position)

    def _known(self, topic: str) -> Found:
        if not is_topic_name(topic):
            raise Invalid(f"topic: {quoted(topic)} is no name of a topic", {"topic": "is no name of a topic"})
        found = self.kinds.find(topic)
        if found is None:
            patterns = [kind.pattern.text for kind in self.kinds]
            raise NotFound(f"There is no topic {quoted(topic)}{did_you_mean(topic, patterns)}")
        return found

    def history(
        self,
        topic: str,
        *,
        since: Position | None = None,
        before: Position | None = None,
        limit: int = MESSAGES,
        reverse: bool = False,
    ) -> Deferred[dict[str, Any]]:
        """Read messages that a topic keeps.

        :param since: those after this position only.
        :param before: those before this one only.
        :param limit: how many at most, up to 1,000.
        :param reverse: whether the newest are wanted, newest first.
        :returns: a Deferred of ``{"topic", "epoch", "offset", "messages", "more"}``, where each message is
            ``{"offset", "data", "from", "key"}`` as far as it has them; with ``recovered`` and ``reason`` in the place
            of messages where the positions are no more. It fails with :class:`~zcomm.errors.Invalid` and
            :class:`~zcomm.errors.NotFound`.
        """
        try:
            found = self._known(topic)
            if not found.kind.history:
                raise Invalid("topic: it keeps no history", {"topic": "keeps no history"})
            if type(limit) is not int or not 1 <= limit <= MAX_MESSAGES:
                raise Invalid(
                    f"limit: must be from 1 to {MAX_MESSAGES}", {"limit": f"must be from 1 to {MAX_MESSAGES}"}
                )
        except CommandError:
            return fail()

        def shown(part: Slice) -> dict[str, Any]:
            result: dict[str, Any] = {"topic": topic, "epoch": part.position.epoch, "offset": part.position.offset}
            if part.reason:
                return result | {"recovered": False, "reason": part.reason}
            messages = [json.loads(message) for message in encode_messages(part.messages)]
            return result | {"messages": messages, "more": part.more}

        return self.hub.read(topic, since, before, limit, reverse).addCallback(shown)

    def members(self, topic: str) -> Deferred[dict[str, Any]]:
        """Look who is in a topic.

        :returns: a Deferred of ``{"version", "users", "connections", "members"}``, where ``members`` are the states of
            all connections by user and connection, up to 10,000 of them. It fails with :class:`~zcomm.errors.Invalid`
            for a topic without presence, and with :class:`~zcomm.errors.NotFound`.
        """
        try:
            if not self._known(topic).kind.presence:
                raise Invalid("topic: it has no presence", {"topic": "has no presence"})
        except CommandError:
            return fail()

        def shown(now: Any) -> dict[str, Any]:
            members = {
                user: {connection: json.loads(state) for connection, state in connections.items()}
                for user, connections in (now.members or {}).items()
            }
            return {"version": now.version, "users": now.users, "connections": now.connections, "members": members}

        return self.engine.members(topic, MAX_MEMBERS).addCallback(shown)

    def subscribe(self, topic: str, to: str) -> Deferred[int]:
        """Subscribe the connections that a user has now; each is told (``event: subscribed``).

        :param to: the name of the user.
        :returns: a Deferred of how many connections that are not in it yet come in: those that the policy lets. It
            fails with :class:`~zcomm.errors.Invalid` and :class:`~zcomm.errors.NotFound`.
        """
        try:
            self._known(topic)
        except CommandError:
            return fail()
        clients = [client for client in self._clients() if client.identity.name == to]
        count = Deferred[int]()
        left = len(clients)
        put = 0

        def done(is_in: Any) -> None:
            nonlocal left, put
            left -= 1
            put += is_in is True
            if not left:
                count.callback(put)

        def put_in(client: Any) -> None:
            maybeDeferred(self._put, client, topic).addBoth(done)

        if not clients:
            count.callback(0)
        self.hub.judging.begin(partial(put_in, client) for client in clients)
        return count

    def unsubscribe(self, topic: str, to: str | None = None) -> int:
        """End subscriptions: none of them hears of what is published from now on. Each client is told (``event:
        unsubscribed``, ``ended``), in as many turns as that takes.

        :param to: the name of the user; everybody when it is left out.
        :returns: how many of them.
        """
        found = self.hub.topic(topic)
        return 0 if found is None else self.hub.judging.end_all(found, to, "ended")

    def _clients(self) -> list[Any]:
        return [client for registry in self._registries for client in registry]

    # -- connections

    def serve(self, registry: Iterable[Any]) -> None:
        """Count the connections of a server among those that are subscribed by user."""
        if not any(registry is known for known in self._registries):
            self._registries.append(registry)

    def leave(self, registry: Iterable[Any]) -> None:
        """Count them no more; undoes :meth:`serve`."""
        self._registries = [known for known in self._registries if known is not registry]
        if not self._registries:
            self.hub.watching.stop()

    def welcome(self, client: Any) -> None:
        """Subscribe a connection to its user's own topics, as far as it is not in them."""
        for kind in self.kinds.personal:
            name = own_topic(kind, client.identity)
            found = None if name is None else self.kinds.find(name)
            if name is None or found is None or found.kind is not kind:
                # It has none, or that is of a narrower kind.
                continue
            if client.subscriber is None or not client.subscriber.is_in(name):
                self._put(client, name, is_own=True)

    def _welcoming(self) -> Iterator[Callable[[], None]]:
        """The steps in which the connections that there are come into their users' own topics."""
        clients = self._clients() if self.kinds.personal else []
        return (partial(self.welcome, client) for client in clients if client.transport is not None)

    def _put(self, client: Any, name: str, is_own: bool = False) -> Deferred[bool]:
        """Subscribe a connection by itself; a Deferred of whether it came in."""
        asked = Subscribe(topic=name, is_own=is_own)
        subscriber = self.hub.subscriber(client)

        def run() -> Any:
            judge = partial(self.check, client.identity, client.permissions, "subscribe", name)
            if subscriber.is_in(name):
                return False
            found = judge()
            answer = self.ask(found, client.identity, "subscribe")
            if isinstance(answer, Deferred):
                return answer.addCallback(lambda _: self.hub.subscribe(subscriber, asked, found, judge))
            return self.hub.subscribe(subscriber, asked, found, judge)

        def told(result: Any) -> bool:
            if result is False:
                return False
            client.send({"event": "subscribed", **result})
            return True

        def failed(failure: Failure) -> bool:
            if not failure.check(CommandError) and client.transport is not None:
                self._log.failure("{client} could not be subscribed to {topic!r}", failure, client=client, topic=name)
            return False

        putting = maybeDeferred(subscriber.in_order, name, run)
        # Commands on the same topic wait for it.
        self._bound(putting, client)
        return putting.addCallbacks(told, failed)

    def _bound(self, running: Deferred[Any], client: Any) -> None:
        """Let what the program is asked for a client take no longer than a command, and end with the client."""
        if not running.called:
            running.addTimeout(self._seconds, self._clock)
            _end_with(client, running)

    # -- those who come and go

    def _is_heard(self, topic: str) -> bool:
        return any(pattern.match(topic) is not None for pattern, _ in self._hooks)

    def _came_and_went(self, topic: str, arrived: list[str], gone: list[str]) -> None:
        for pattern, hook in self._hooks:
            parts = pattern.match(topic)
            if parts is not None:
                heard = maybeDeferred(lambda: awaited(hook(arrived, gone, **parts)))  # noqa: B023 (called at once)
                heard.addErrback(lambda failure: self._log.failure("on_presence failed", failure))


def answer_of(result: Any) -> Any:
    """The answer of a function of the program, or a Deferred of it. To cancel that is its end, whatever the function
    makes of being cancelled: a command that has timed out has no effect any more."""
    answer = awaited(result)
    if not isinstance(answer, Deferred):
        return answer

    def cancel(outcome: Deferred[Any]) -> None:
        outcome.errback(CancelledError())
        answer.cancel()

    outcome: Deferred[Any] = Deferred(cancel)
    answer.addBoth(lambda found: None if outcome.called else outcome.callback(found))
    return outcome


def _end_with(client: Any, running: Deferred[Any]) -> None:
    """Cancel what runs for a client when that is gone."""

    def lost(_: Any) -> None:
        running.cancel()

    def over(result: Any) -> Any:
        with suppress(ValueError):
            client.on_lost.remove(lost)
        return result

    client.on_lost.append(lost)
    running.addBoth(over)


def _require(answer: Any) -> None:
    if not answer:
        raise PermissionDenied()
