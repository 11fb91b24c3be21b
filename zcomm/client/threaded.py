"""The Python client for programs without a reactor: each method waits for its answer and returns it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from inspect import iscoroutine
from typing import Any, Generic, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure

from zcomm import client as deferred
from zcomm.client import History, LiveChange, Message, Position, Published, Subscribed
from zcomm.errors import CommandError
from zcomm.runtime.thread import blocking
from zcomm.runtime.workers import Workers

__all__ = ["Client", "Live", "Topic", "connect"]

T = TypeVar("T")

_THREAD = "zcomm-listener"


def connect(
    url: str, token: str | None = None, *, timeout: float = 30.0, reconnect: bool = True, trust_root: Any = None
) -> Client:
    """Connect, and wait until the server has let us in; see :func:`zcomm.client.connect`.

    :raises ConnectionLost: when it does not let us in.
    :raises twisted.internet.error.ConnectError: when nothing listens there.
    :raises ValueError: for a URL that is none.
    """
    return Client(blocking(deferred.connect, url, token, timeout=timeout, reconnect=reconnect, trust_root=trust_root))


class Client:
    """A connected client, for any thread; made by :func:`connect`. Use it in ``with``, or call :meth:`disconnect`.

    Listeners are called one after the other in a thread of their own; there they may block, and call this
    client. Every method that sends a command fails as the Deferred one does: with
    :class:`~zcomm.errors.CommandError` or :class:`~zcomm.errors.ConnectionLost`.
    """

    def __init__(self, client: deferred.Client):
        self._client = client
        self._listening: Workers = blocking(self._start_listening)
        self._heard: dict[Any, Callable[[], None]] = {}

    def _start_listening(self) -> Workers:
        from twisted.internet import reactor as installed

        reactor: Any = installed
        # Listeners do the program's own work, which stands behind nobody's.
        workers = Workers(threads=1, waiting=100_000, name=_THREAD, reactor=reactor, behind=0)
        workers.start()
        return workers

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()

    def __repr__(self) -> str:
        return repr(self._client)

    @property
    def state(self) -> str:
        """``connecting``, ``connected``, ``reconnecting`` or ``disconnected``."""
        return self._client.state

    def disconnect(self) -> None:
        """Close for good, and wait until the connection is gone. May be called again."""

        def stop_listening(_: object) -> None:
            # Not waited for: a listener may be the one that disconnects.
            self._listening.stop()

        def leave() -> Deferred[None]:
            return self._client.disconnect().addBoth(stop_listening)

        blocking(leave)

    # -- commands

    def create(self, model: str, values: dict[str, Any], **options: Any) -> dict[str, Any]:
        """Create a row; returns it as stored, its id included."""
        return blocking(self._client.create, model, values, **options)

    def read(
        self, model: str, filters: Any = None, options: dict[str, Any] | None = None, **call: Any
    ) -> list[dict[str, Any]]:
        """The rows that fit; see :meth:`zcomm.client.Client.read`."""
        return blocking(self._client.read, model, filters, options, **call)

    def update(self, model: str, filters: Any, values: dict[str, Any], **options: Any) -> dict[str, int]:
        """Change the rows that fit; returns ``{"updated": n}``."""
        return blocking(self._client.update, model, filters, values, **options)

    def delete(self, model: str, filters: Any, **options: Any) -> dict[str, int]:
        """Delete the rows that fit; returns ``{"deleted": n}``."""
        return blocking(self._client.delete, model, filters, **options)

    def upsert(
        self, model: str, values: dict[str, Any], conflict_fields: list[str] | str | None = None, **options: Any
    ) -> dict[str, Any]:
        """Create a row, or update the one that agrees in ``conflict_fields``; returns it."""
        return blocking(self._client.upsert, model, values, conflict_fields, **options)

    def zFunc(self, name: str, *args: Any, **options: Any) -> Any:
        """Call a function of the server; returns its result."""
        return self._heard_to_the_end(self._client.zFunc, name, *args, **options)

    def call(
        self, name: str, args: Sequence[Any] = (), *, kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> Any:
        """Call a function with a list of arguments by place and ``kwargs`` by name; returns its result."""
        return self._heard_to_the_end(self._client.call, name, args, kwargs=kwargs, **options)

    def zLink(self, path: str, **options: Any) -> dict[str, Any]:
        """Go to a page."""
        return blocking(self._client.zLink, path, **options)

    def zOpen(self, file: str, **options: Any) -> dict[str, Any]:
        """Read a file the server offers."""
        return blocking(self._client.zOpen, file, **options)

    def send(self, payload: dict[str, Any], timeout: float | None = None, **options: Any) -> Any:
        """Send any command; returns its result. See :meth:`zcomm.client.Client.send`."""
        return self._heard_to_the_end(self._client.send, payload, timeout, **options)

    def topic(
        self,
        name: str,
        *,
        presence: bool = False,
        last: int | None = None,
        state: Mapping[str, Any] | None = None,
        echo: bool = True,
    ) -> Topic:
        """The :class:`Topic` of that name; see :meth:`zcomm.client.Client.topic`."""
        topic = blocking(self._client.topic, name, presence=presence, last=last, state=state, echo=echo)
        return Topic(topic, self._in_thread)

    def live(
        self,
        model: str,
        filters: Any = None,
        *,
        fields: Sequence[str] | None = None,
        order_by: str | Sequence[str] | None = None,
        limit: int | None = None,
    ) -> Live:
        """The rows that :meth:`read` would bring, now and from now on; see :meth:`zcomm.client.Client.live`."""
        live = blocking(self._client.live, model, filters, fields=fields, order_by=order_by, limit=limit)
        return Live(live, self._in_thread)

    # -- what arrives

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``broadcast``, ``display``, ``service``, ``engine``, ``state``, ``close``, or
        ``error`` (of the server, where it answers no call); returns the function that ends it."""
        stop = blocking(self._client.on, event, self._in_thread(listener) if callable(listener) else listener)
        self._heard[event, listener] = stop
        return lambda: blocking(stop)

    def on_broadcast(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` with each broadcast; returns the function that ends it.

        One with ``many`` in the place of ``result`` tells of more than is told in full: read anew what is of interest.
        """
        return self.on("broadcast", listener)

    def remove_broadcast_listener(self, listener: Callable[[Any], Any]) -> None:
        """Call ``listener`` no more."""
        stop = self._heard.pop(("broadcast", listener), None)
        if stop is not None:
            blocking(stop)

    def on_display(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` with each ``{"display": …, "data": …}``; returns the function that ends it."""
        return self.on("display", listener)

    def on_ask(self, answer: Callable[[dict[str, Any]], Any] | None) -> None:
        """Answer the server's prompts: ``answer(prompt)`` returns the value, and may wait for a person; ``None``
        declines. A value that the server refuses is asked for again, with ``prompt["error"]``."""
        inner: Any = (
            answer
            if answer is None or not callable(answer)
            else lambda prompt: deferToThread(_answered, answer, prompt)
        )
        blocking(self._client.on_ask, inner)

    def _in_thread(self, listener: Callable[..., Any]) -> Callable[..., Any]:
        def forgotten(failure: Failure) -> Any:
            # What still waited for its turn when the client left.
            return None if self._client.state == "disconnected" else failure

        return lambda *values: self._listening.run(None, listener, *values).addErrback(forgotten)

    def _heard_to_the_end(self, method: Callable[..., Deferred[Any]], *args: Any, **options: Any) -> Any:
        """Make a call; it returns when ``on_progress`` has been told all there was."""
        listener = options.get("on_progress")
        if listener is None or threading.current_thread().name.startswith(_THREAD):
            # A listener that calls cannot wait for its own thread.
            return blocking(method, *args, **options)
        options["on_progress"] = self._in_thread(listener)

        def told(result: Any) -> Deferred[Any]:
            return self._listening.run(None, lambda: None).addBoth(lambda _: result)

        return blocking(lambda: method(*args, **options).addBoth(told))


class Topic:
    """One topic, as :class:`zcomm.client.Topic` is, for any thread; made by :meth:`Client.topic`.

    Listeners are called in the same thread as the client's. Iterated over (``for message in topic``), it subscribes
    and waits for each message; the iteration ends with the subscription, and raises
    :class:`~zcomm.errors.MessagesLost` where messages are missing.

    :ivar name: its name.
    :ivar presence: its members.
    """

    def __init__(self, topic: deferred.Topic, in_thread: Callable[[Callable[..., Any]], Callable[..., Any]]):
        self.name = topic.name
        self.presence = Presence(topic.presence)
        self._topic = topic
        self._in_thread = in_thread

    def __repr__(self) -> str:
        return repr(self._topic)

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``message``, ``continuity``, ``presence``, ``subscribed`` or ``unsubscribed``;
        returns the function that ends it."""
        stop = blocking(self._topic.on, event, self._in_thread(listener) if callable(listener) else listener)
        return lambda: blocking(stop)

    def subscribe(self, *, timeout: float | None = None) -> Subscribed:
        """Subscribe; returns where the subscription begins."""
        return blocking(self._topic.subscribe, timeout=timeout)

    def unsubscribe(self, *, timeout: float | None = None) -> None:
        """Unsubscribe; nothing comes any more."""
        blocking(self._topic.unsubscribe, timeout=timeout)

    @property
    def state(self) -> str:
        """``unsubscribed``, ``subscribing`` (on whichever connection) or ``subscribed``."""
        return self._topic.state

    @property
    def position(self) -> Position | None:
        """The place of the last message; ``None`` where none are kept."""
        return blocking(lambda: self._topic.position)

    def publish(self, data: Any, *, idempotency_key: str | None = None, timeout: float | None = None) -> Published:
        """Publish a message, once; returns its place. See :meth:`zcomm.client.Topic.publish`."""
        return blocking(self._topic.publish, data, idempotency_key=idempotency_key, timeout=timeout)

    def history(
        self,
        *,
        limit: int | None = None,
        reverse: bool = False,
        since: Mapping[str, Any] | None = None,
        before: Mapping[str, Any] | int | None = None,
        timeout: float | None = None,
    ) -> History:
        """The messages that the server has kept; see :meth:`zcomm.client.Topic.history`."""
        return blocking(self._topic.history, limit=limit, reverse=reverse, since=since, before=before, timeout=timeout)

    def __iter__(self) -> Waiting[Message]:
        return Waiting(self._topic)


class Presence:
    """The members of a topic, as :class:`zcomm.client.Presence` has them."""

    def __init__(self, presence: deferred.Presence):
        self._presence = presence

    @property
    def members(self) -> dict[str, dict[str, Any]] | None:
        """The connections of each user and the state of each; ``None`` where it is not known, as in large topics."""
        return blocking(lambda: self._presence.members)

    @property
    def connection(self) -> str | None:
        """The name of one's own connection among the members; ``None`` where it is not known."""
        return self._presence.connection

    @property
    def users(self) -> int:
        """The number of users."""
        return self._presence.users

    @property
    def connections(self) -> int:
        """The number of their connections."""
        return self._presence.connections

    def set_state(self, state: Mapping[str, Any], *, timeout: float | None = None) -> None:
        """Let the others see ``state``; see :meth:`zcomm.client.Presence.set_state`."""
        blocking(self._presence.set_state, state, timeout=timeout)


class Live:
    """The rows that match a query, now and from now on, as :class:`zcomm.client.Live` has them, for any thread; made by
    :meth:`Client.live`.

    Listeners are called in the same thread as the client's. Iterated over (``for rows in live``), it gives the rows
    now, and waits for each change; where several have come meanwhile, it gives them after the last.

    :ivar model: the model that is asked.
    """

    def __init__(self, live: deferred.Live, in_thread: Callable[[Callable[..., Any]], Callable[..., Any]]):
        self.model = live.model
        self._live = live
        self._in_thread = in_thread

    def __repr__(self) -> str:
        return repr(self._live)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows in their order: the same list until one of them has changed."""
        return self._live.rows

    @property
    def status(self) -> str:
        """``loading``, ``live``, ``stale`` or ``error``; see :attr:`zcomm.client.Live.status`."""
        return self._live.status

    @property
    def error(self) -> CommandError | None:
        """The reason why it has ended, or has to wait; ``None`` while all is well."""
        return self._live.error

    @property
    def sees(self) -> str | None:
        """``all``, or ``own``: writes that were not made through this server are not seen."""
        return self._live.sees

    @property
    def digest(self) -> str | None:
        """The name that the server has for these rows in this order."""
        return self._live.digest

    def get_snapshot(self) -> list[dict[str, Any]]:
        """The rows in their order: the same list until one of them has changed."""
        return self._live.get_snapshot()

    def subscribe(self, listener: Callable[[list[dict[str, Any]], LiveChange], Any]) -> Callable[[], None]:
        """Call ``listener(rows, change)`` soon, and whenever something has changed; returns the function that ends it.
        See :meth:`zcomm.client.Live.subscribe`."""
        stop = blocking(self._live.subscribe, self._in_thread(listener) if callable(listener) else listener)
        return lambda: blocking(stop)

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Call ``listener`` at each ``status`` or ``error``; returns the function that ends it."""
        stop = blocking(self._live.on, event, self._in_thread(listener) if callable(listener) else listener)
        return lambda: blocking(stop)

    def start(self, *, timeout: float | None = None) -> list[dict[str, Any]]:
        """Wait for the rows, which are kept live from then on until :meth:`stop`; returns them."""
        return blocking(self._live.start, timeout=timeout)

    def stop(self) -> None:
        """End it at once, for all who subscribe to it, iterate over it or wait for it."""
        blocking(self._live.stop)

    def __iter__(self) -> Waiting[list[dict[str, Any]]]:
        return Waiting(self._live)


class Waiting(Generic[T]):
    """An iteration over the messages of a topic, or the rows of a live query, which waits for each."""

    def __init__(self, of: deferred.Topic | deferred.Live):
        self._items: Any = blocking(of.__aiter__)

    def __iter__(self) -> Waiting[T]:
        return self

    def __next__(self) -> T:
        try:
            item: T = blocking(lambda: Deferred.fromCoroutine(self._items.__anext__()))
        except StopAsyncIteration:
            raise StopIteration from None
        return item

    def __del__(self) -> None:
        # In whichever thread it is dropped; what it has not read is for the next one.
        from twisted.internet import reactor as installed

        items = getattr(self, "_items", None)
        if items is not None:
            reactor: Any = installed
            reactor.callFromThread(items.close)


def _answered(answer: Callable[[dict[str, Any]], Any], prompt: dict[str, Any]) -> Any:
    value = answer(prompt)
    if iscoroutine(value):
        value.close()
        raise TypeError("a program without a reactor answers with a plain function")
    return value
