"""The functions of a program that are told what happens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import maybeDeferred
from twisted.logger import Logger

from zcomm.runtime.deferreds import awaited
from zcomm.text import did_you_mean

__all__ = ["Listeners"]


class Listeners:
    """Listeners by event. One that raises keeps none of the others from hearing; the log tells of it.

    :param events: the names of what may be listened to.
    :param of: what they listen to, for the log.
    """

    _log = Logger()

    def __init__(self, events: tuple[str, ...], of: Any):
        self._events = events
        self._of = of
        self._listeners: dict[str, list[Callable[[Any], Any]]] = {}

    def __contains__(self, event: str) -> bool:
        return bool(self._listeners.get(event))

    def __bool__(self) -> bool:
        return any(self._listeners.values())

    def on(self, event: str, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Tell ``listener`` of each ``event``; returns the function that ends it."""
        if event not in self._events:
            raise ValueError(f"there is no event of that name{did_you_mean(event, self._events, or_list=True)}")
        if not callable(listener):
            raise TypeError(f"a listener is a function, not {type(listener).__name__}")
        self._listeners.setdefault(event, []).append(listener)
        return lambda: self.remove(event, listener)

    def remove(self, event: str, listener: Callable[[Any], Any]) -> None:
        """Tell ``listener`` no more."""
        listeners = self._listeners.get(event, [])
        if listener in listeners:
            listeners.remove(listener)

    def emit(self, event: str, value: Any) -> None:
        """Tell all that listen to ``event``."""
        for listener in list(self._listeners.get(event, ())):
            self.tell(listener, value)

    def tell(self, listener: Callable[..., Any], *values: Any) -> None:
        """Call one function of the program."""
        maybeDeferred(lambda: awaited(listener(*values))).addErrback(
            lambda failure: self._log.failure("a listener of {client} failed", failure, client=self._of)
        )
