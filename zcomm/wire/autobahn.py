"""What Autobahn sets up anew for every connection, set up once for all of them.

Autobahn gives each connection some sixty attributes when it begins: a copy of every option, and of every
default. They are taken from one connection that is never used, and stand on the protocol's class; what is
no plain value is made when a connection first asks for it. That is a third of the time of a handshake and of
the memory of an idle connection.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from types import FunctionType
from typing import Any

from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol

__all__ = ["OnFirstUse", "Silence", "template_of"]

_PLAIN = (bool, bytes, float, int, str, tuple, type(None))


class OnFirstUse:
    """An attribute that every instance gets its own of, when it first asks for it.

    :param make: makes the value.
    """

    __slots__ = ("_make", "_name")

    def __init__(self, make: Callable[[], Any]):
        self._make = make

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        # Found on the instance from now on: this descriptor has no __set__, so the instance comes first.
        value = instance.__dict__[self._name] = self._make()
        return value


def template_of(protocol: type[WebSocketServerProtocol], factory: WebSocketServerFactory) -> dict[str, Any]:
    """The attributes of a subclass of ``protocol`` that needs neither Autobahn's ``__init__`` nor ``_connectionMade``.

    :param factory: with its options set.
    """
    pattern = object.__new__(protocol)
    pattern.factory = factory
    pattern.peer = ""
    given = set(vars(pattern))
    WebSocketServerProtocol.__init__(pattern)
    WebSocketProtocol._connectionMade(pattern)
    return {name: _shared(value) for name, value in vars(pattern).items() if name not in given}


def _shared(value: Any) -> Any:
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, FunctionType):
        # An option that Autobahn calls as a plain function.
        return staticmethod(value)
    if isinstance(value, (dict, list)):
        return OnFirstUse(lambda: copy(value))
    return OnFirstUse(type(value))


class Silence:
    """Autobahn logs each frame it refuses, which a hostile peer can make as many as it likes; our server
    counts them instead."""

    def debug(self, *args: Any, **kwargs: Any) -> None:
        """Say nothing."""

    trace = info = warn = error = failure = critical = debug
