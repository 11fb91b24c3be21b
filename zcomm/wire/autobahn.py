"""Autobahn's state machine, and every name of its insides that zComm touches, each with a name of its own.

No other module says ``_dataReceived`` or ``current_frame``: what a release of Autobahn changes inside is mended here,
and tests/wire/test_autobahn.py says whether it did.

Autobahn gives each connection some sixty attributes when it begins: a copy of every option, and of every default. Here
they are taken from one connection that is never used, and stand on the protocol's class; what is no plain value is made
when a connection first asks for it. That is a third of the time of a handshake and of the memory of an idle connection.
"""

from __future__ import annotations

from abc import ABCMeta
from collections.abc import Callable, Iterable
from copy import copy
from types import FunctionType
from typing import Any, Protocol

from autobahn.exception import PayloadCorruptError
from autobahn.twisted.websocket import WebSocketClientProtocol, WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflate
from autobahn.websocket.protocol import WebSocketProtocol
from twisted.python.failure import Failure

__all__ = [
    "CLOSED",
    "CLOSING",
    "OPEN",
    "FrameProtocol",
    "HookRefusing",
    "Inflate",
    "OnFirstUse",
    "Silence",
    "how_it_ended",
    "refuse_hooks",
    "template_of",
]

OPEN = WebSocketProtocol.STATE_OPEN
CLOSING = WebSocketProtocol.STATE_CLOSING
CLOSED = WebSocketProtocol.STATE_CLOSED

#: All that Autobahn calls on a protocol, and on nothing else.
HOOKS = tuple(name for name in dir(WebSocketServerProtocol) if name.startswith("on") and name[2:3].isupper())
#: Those that come for messages and pings on the long way, and for none on the short one.
SOME_HOOKS = (
    "onMessageBegin",
    "onMessageEnd",
    "onMessageFrameBegin",
    "onMessageFrameData",
    "onMessageFrameEnd",
    "onPing",
)
#: Those that no connection of the server comes to: it shakes hands, joins messages and keeps time in its own way.
UNUSED_HOOKS = (
    "onAutoPingTimeout",
    "onAutoPong",
    "onCloseHandshakeTimeout",
    "onConnect",
    "onMessage",
    "onMessageFrame",
    "onOpen",
    "onOpenHandshakeTimeout",
    "onServerConnectionDropTimeout",
)

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
        """Drop a debug message."""

    trace = info = warn = error = failure = critical = debug


def refuse_hooks(kind: type, names: Iterable[str] = HOOKS, base: type = WebSocketServerProtocol) -> None:
    """Refuse a class that waits to be called where nothing is called, or not each time.

    :param names: the hooks that it cannot count on.
    :param base: has those that may stay.
    :raises TypeError: naming the way that there is.
    """
    own = [vars(each) for each in kind.__mro__ if each not in base.__mro__]
    for name in names:
        usual = getattr(base, name)
        found = (each[name] for each in own if name in each and not isinstance(each[name], _NoHook))
        if next(found, None) not in (None, usual):
            raise _not_called(kind, name)


def _not_called(kind: type, name: str) -> TypeError:
    how = "not always" if name in SOME_HOOKS else "never"
    return TypeError(
        f"{kind.__name__}.{name} would {how} be called: zComm shakes hands and answers pings by itself, messages come "
        "to Connection.receive, and Connection.on_lost tells of the end. Subclass zcomm.bifrost.connection.Connection, "
        "override receive, and name it as zBifrost(connection=…)"
    )


class _NoHook:
    """Stands on a class where a hook would, so that no instance gets one; other attributes cost what they did.

    :param usual: Autobahn's own, where it has one for these instances.
    """

    __slots__ = ("_name", "_usual")

    def __init__(self, name: str, usual: Callable[..., Any] | None):
        self._name = name
        self._usual = usual

    def __get__(self, instance: Any, owner: type) -> Any:
        if self._usual is None:
            raise AttributeError(self._name)
        return self._usual if instance is None else self._usual.__get__(instance)

    def __set__(self, instance: Any, value: Any) -> None:
        raise _not_called(type(instance), self._name)


# So that such a class may also be a typing.Protocol, whose metaclass comes first here, or an ABC.
class HookRefusing(type(Protocol), ABCMeta):  # type: ignore[misc]  # mypy does not know the former
    """The metaclass of those classes on which programs look for Autobahn's hooks, and nothing calls them.

    A TypeError says so wherever one is put: into a subclass, on a class, on an instance.
    """

    #: The hooks that a class of this kind may not bring.
    _refused: Iterable[str] = HOOKS

    def __init__(cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **options: Any):
        super().__init__(name, bases, namespace, **options)
        refused = type(cls)._refused
        refuse_hooks(cls, refused)
        if not any(isinstance(base, HookRefusing) for base in bases):
            for hook in refused:
                type.__setattr__(cls, hook, _NoHook(hook, getattr(cls, hook, None)))

    def __instancecheck__(cls, instance: Any) -> bool:
        # None of these says what typing asks its own classes for.
        return ABCMeta.__instancecheck__(cls, instance)

    def __setattr__(cls, name: str, value: Any) -> None:
        if name in HOOKS and name in (*type(cls)._refused, *SOME_HOOKS):
            raise _not_called(cls, name)
        super().__setattr__(name, value)


class _ProtocolClass(HookRefusing):
    """Of protocols: the hooks for parts of messages, which they have, are refused to programs where they are known."""

    _refused = UNUSED_HOOKS


class FrameProtocol(WebSocketServerProtocol, metaclass=_ProtocolClass):
    """Autobahn's protocol of a server, less its handshake: frames go in by :meth:`feed`, parts of messages come out.

    The parts come by Autobahn's own hooks, ``onMessageBegin``, ``onMessageFrameData`` and ``onMessageEnd``; its other
    public names that a subclass uses are ``state``, ``sendPing``, ``sendCloseFrame``, ``dropConnection`` and
    ``sendData``.

    :raises TypeError: for a subclass with one of the hooks that are never called.
    """

    log = Silence()
    websocket_version = 13
    inside_message = False
    current_frame: Any = None

    #: Sets nothing: what Autobahn sets up for each connection stands on the subclass that the factory makes.
    __init__ = object.__init__

    # -- in

    def feed(self, data: bytes) -> None:
        """Give ``data`` to the state machine."""
        self._dataReceived(data)

    @property
    def at_message_boundary(self) -> bool:
        """Whether the next byte begins a message, or a control frame between two."""
        return not self.inside_message and self.current_frame is None and not self.data

    def missing(self) -> int | None:
        """Bytes that the frame in progress still lacks; ``None`` between frames, also where a header is half there."""
        frame = self.current_frame
        if frame is None:
            return None
        missing: int = frame.length - self.current_frame_masker.pointer()
        if missing > 0:
            return missing
        # A frame that was refused at its last byte; what follows is a frame of its own.
        self.current_frame = None
        return None

    def take_back(self) -> bytes:
        """The beginning of a frame header that waits for its end; it is no longer here."""
        waiting, self.data = self.data, b""
        return waiting

    # -- messages that come out

    @property
    def takes_messages(self) -> bool:
        """Whether a part that comes belongs to a message that is answered: not after a goodbye, nor a fault."""
        return self.state == OPEN and not self.failedByMe

    def onMessageFrameEnd(self) -> None:
        """Do nothing: the parts are joined where they come."""

    # -- the beginning and the end

    def begin_frames(self, inflate: Inflate | None) -> None:
        """Expect frames from now on: the handshake is over.

        :param inflate: the agreed decompression.
        """
        self.state = OPEN
        if inflate is not None:
            self._perMessageCompress = inflate  # type: ignore[assignment]  # None is only where Autobahn begins

    def end_frames(self, reason: Failure) -> None:
        """Let Autobahn know that the transport is gone, and call ``onClose``."""
        WebSocketProtocol._connectionLost(self, reason)  # type: ignore[arg-type]  # Autobahn says str, and means a Failure
        # It keeps this object, and with it all that was under way, until the garbage is collected.
        self.is_closed.addCallback(lambda _: None)


class Inflate(PerMessageDeflate):
    """Autobahn's decompressor, which stays silent about what follows the last block of a stream."""

    def end_decompress_message(self) -> None:
        """End one message.

        :raises PayloadCorruptError: where more than RFC 7692 allows follows the last block.
        """
        super().end_decompress_message()
        decompressor = self._decompressor
        if decompressor is not None and decompressor.eof:
            # A client may end each message with a last block (RFC 7692 section 7.2.3.4): the next one is a new stream.
            # Behind it come the empty block that is not sent and at most the byte that stands for it.
            if decompressor.unused_data not in (b"\0\0\xff\xff", b"\0\0\0\xff\xff"):
                raise PayloadCorruptError("data behind the last block")
            self._decompressor = None


def how_it_ended(client: WebSocketClientProtocol, code: int | None) -> tuple[int, str]:
    """The close code and the reason of a client's connection that has ended.

    :param code: the one that Autobahn told ``onClose``.
    """
    reason = client.remoteCloseReason or ("" if client.wasClean else client.wasNotCleanReason) or ""
    return client.remoteCloseCode or code or 1006, reason
