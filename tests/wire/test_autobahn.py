"""Autobahn's insides: those that are touched exist, what connections share of them is what Autobahn gives each."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.compress import PerMessageDeflate
from autobahn.websocket.protocol import WebSocketProtocol
from support.rawclient import Opcode, build_frame
from twisted.internet.task import Clock

from zcomm import Limits, WebSocketConfig, zBifrost
from zcomm.bifrost.connection import Connection
from zcomm.bifrost.factory import BifrostFactory
from zcomm.bifrost.protocol import BifrostProtocol
from zcomm.testing import MemoryServer
from zcomm.wire.autobahn import OnFirstUse, template_of


class Bare(WebSocketServerProtocol):
    """A protocol as zComm's: it begins with nothing of its own."""

    def __init__(self) -> None:
        pass


@pytest.fixture
def factory() -> WebSocketServerFactory:
    """A factory without timers, as zComm sets it up."""
    factory = WebSocketServerFactory()
    factory.setProtocolOptions(openHandshakeTimeout=0, maxMessagePayloadSize=77)
    return factory


@pytest.fixture
def connection(factory) -> type[Bare]:
    """The class that connections are made of."""
    return type("Made", (Bare,), template_of(Bare, factory))


def test_each_attribute_is_what_autobahn_sets(factory, connection):
    """Name by name: the same plain value, or one of the same type."""
    usual = WebSocketServerProtocol()
    usual.factory, usual.peer = factory, ""
    WebSocketProtocol._connectionMade(usual)
    ours = connection()
    for name, value in vars(usual).items():
        if name in ("factory", "peer"):
            continue
        mine = getattr(ours, name)
        assert type(mine) is type(value), name
        if isinstance(value, (bool, bytes, int, str, type(None), list, dict)):
            assert mine == value, name


def test_a_new_connection_carries_nothing(connection):
    """No attribute is its own before it is used or set."""
    assert vars(connection()) == {}


def test_no_two_connections_share_what_changes(connection):
    """What is no plain value is each connection's own, and stays the same one."""
    first, second = connection(), connection()
    made = [name for name in vars(connection) if isinstance(vars(connection)[name], OnFirstUse)]
    assert {"send_queue", "trafficStats", "utf8validator", "is_closed"} <= set(made)
    for name in made:
        assert getattr(first, name) is getattr(first, name)
        assert getattr(first, name) is not getattr(second, name), name


def test_a_value_set_on_one_is_not_seen_on_another(connection):
    """A connection that changes its state changes its own alone."""
    first, second = connection(), connection()
    first.state = WebSocketProtocol.STATE_OPEN
    first.data += b"x"
    assert (second.state, second.data) == (WebSocketProtocol.STATE_CONNECTING, b"")


#: On the class, or on a connection once it has begun.
INSIDES = (
    "_connectionLost",
    "_connectionMade",
    "_dataReceived",
    "_perMessageCompress",
    "current_frame",
    "data",
    "failedByMe",
    "inside_message",
    "log",
    "remoteCloseCode",
    "remoteCloseReason",
    "unregisterProducer",
    "wasClean",
    "wasNotCleanReason",
    "websocket_version",
)


@pytest.mark.parametrize("name", INSIDES)
def test_each_inside_that_is_touched_exists(name: str, factory):
    """The installed Autobahn has every name that wire/autobahn.py gives one of our own."""
    protocol = WebSocketServerProtocol()
    protocol.factory, protocol.peer = factory, ""
    WebSocketProtocol._connectionMade(protocol)
    if name in ("inside_message", "current_frame", "websocket_version"):
        # Set in the course of a handshake of Autobahn's.
        assert f"self.{name} = " in inspect.getsource(inspect.getmodule(WebSocketProtocol))
    else:
        assert hasattr(protocol, name)


def test_a_frame_in_progress_tells_how_much_it_lacks(factory):
    """The masker counts what it has unmasked, and the frame knows its length."""
    protocol = WebSocketServerProtocol()
    protocol.factory, protocol.peer = factory, ""
    WebSocketProtocol._connectionMade(protocol)
    protocol.state, protocol.inside_message, protocol.current_frame = protocol.STATE_OPEN, False, None
    protocol.websocket_version = 13
    protocol._dataReceived(build_frame(Opcode.TEXT, b"twelve bytes")[:-5])
    assert protocol.current_frame.length == 12 and protocol.current_frame_masker.pointer() == 7


def test_the_decompressor_is_where_it_was():
    """What ends with a last block is begun anew in ``_decompressor``."""
    inbound = PerMessageDeflate(True, True, True, 12, 0, 5)
    inbound.start_decompress_message()
    assert inbound._decompressor.eof is False and inbound._decompressor.unused_data == b""


def _hook(self: object, *args: object) -> None:
    """Stand for one of Autobahn's hooks."""


@pytest.mark.parametrize("base", [BifrostFactory, BifrostProtocol, Connection, zBifrost])
@pytest.mark.parametrize(
    "hook", ["onConnect", "onOpen", "onMessage", "onMessageFrame", "onAutoPong", "onOpenHandshakeTimeout"]
)
def test_a_hook_that_is_never_called_is_refused(hook: str, base: type):
    """Who subclasses as one does with Autobahn is told of the way that there is, whether directly or by a mixin."""
    with pytest.raises(TypeError, match=rf"Mine\.{hook} would never be called.*Connection\.receive.*zBifrost\("):
        type("Mine", (base,), {hook: _hook})
    with pytest.raises(TypeError, match=hook):
        type("Mine", (type("Mixin", (), {hook: _hook}), base), {})
    with pytest.raises(TypeError, match=hook):
        type("Mine", (base, type("Mixin", (), {hook: _hook})), {})


@pytest.mark.parametrize("base", [BifrostFactory, BifrostProtocol, Connection, zBifrost])
@pytest.mark.parametrize("hook", ["onPing", "onMessageBegin", "onMessageFrameData", "onMessageEnd"])
def test_a_hook_of_the_long_way_is_refused(hook: str, base: type):
    """The short way does not come to it, so what it counts or changes would be some of the messages."""
    with pytest.raises(TypeError, match=rf"Mine\.{hook} would not always be called.*Connection\.receive.*zBifrost\("):
        type("Mine", (base,), {hook: _hook})


@pytest.mark.parametrize("base", [BifrostFactory, Connection, zBifrost])
def test_only_a_protocol_has_the_other_hooks(base: type):
    """A connection or a server with ``onClose`` is told where the end is told of."""
    with pytest.raises(TypeError, match=r"Mine\.onClose would never be called.*Connection\.on_lost"):
        type("Mine", (base,), {"onClose": _hook})
    type("Mine", (BifrostProtocol,), {"onClose": _hook})
    type("Mine", (base,), {})


@pytest.mark.parametrize("hook", ["onMessage", "onPing", "onMessageEnd"])
def test_a_hook_that_is_set_later_is_refused(hook: str):
    """On the class that everybody's derives from, on one of the program's, and on the one that a server made."""
    made = zBifrost(WebSocketConfig(), reactor=Clock()).factory.protocol
    bases = (BifrostFactory, BifrostProtocol, Connection, zBifrost)
    for kind in (*bases, *(type("Mine", (base,), {}) for base in bases), made):
        with pytest.raises(TypeError, match=rf"{kind.__name__}\.{hook} would n"):
            setattr(kind, hook, _hook)


@pytest.mark.parametrize("hook", ["onMessage", "onOpen", "onConnect"])
def test_a_hook_on_an_instance_is_refused(hook: str):
    """On a server, its factory, a connection, with room for attributes or without, and what carries it."""
    for connection in (Connection, type("Mine", (Connection,), {})):
        server = MemoryServer(connection=connection)
        server.connect()
        (client,) = server.bifrost.clients
        built = server.bifrost.factory.buildProtocol(None)
        for carrier in (server.bifrost, server.bifrost.factory, client, client.transport, built):
            with pytest.raises(TypeError, match=rf"\.{hook} would never be called.*Connection\.receive"):
                setattr(carrier, hook, _hook)
            assert carrier is built or not hasattr(carrier, hook)


@pytest.mark.parametrize("base", [BifrostFactory, BifrostProtocol, Connection, zBifrost])
def test_a_base_that_keeps_to_itself_hides_no_hook(base: type):
    """Neither one that does not let its bases know of subclasses, nor one that gets a hook after they were made."""

    class Silent:
        def __init_subclass__(cls, **options: object) -> None:
            """Tell nobody."""

    with pytest.raises(TypeError, match=r"Mine\.onMessage would never be called"):
        type("Mine", (type("Middle", (Silent, base), {}),), {"onMessage": _hook})

    late = type("Late", (), {})
    mine = type("Mine", (late, base), {})
    late.onMessage = _hook
    made = zBifrost(WebSocketConfig(), reactor=Clock())
    with pytest.raises(TypeError, match=r"Mine\.onMessage would never be called"):
        if base is BifrostFactory:
            factory = made.factory
            mine(factory.limits, factory.admission, factory.state, made.broadcaster, Clock(), factory.batch)
        elif base is BifrostProtocol:
            made.factory.protocol = mine
        elif base is Connection:
            zBifrost(WebSocketConfig(), reactor=Clock(), connection=mine)
        else:
            mine(WebSocketConfig(), reactor=Clock())


def test_a_hook_of_the_long_way_is_found_where_the_class_is_given():
    """A base between it and zComm's may have kept it from being refused when it was made."""

    class Silent:
        def __init_subclass__(cls, **options: object) -> None:
            """Tell nobody."""

    mine = type("Mine", (Silent, BifrostProtocol), {"onPing": _hook})
    with pytest.raises(TypeError, match=r"Mine\.onPing would not always be called"):
        zBifrost(WebSocketConfig(), reactor=Clock()).factory.protocol = mine


class _Abstract(ABC):
    """A program's abstract class."""

    @abstractmethod
    def act(self) -> None:
        """Do something."""


class _Acting(Protocol):
    """A program's protocol."""

    def act(self) -> None:
        """Do something."""


@pytest.mark.parametrize("base", [BifrostFactory, BifrostProtocol, Connection, zBifrost])
@pytest.mark.parametrize("other", [_Abstract, _Acting, Generic[TypeVar("T")]])
def test_abstract_generic_and_protocol_classes_combine_with_these(base: type, other: Any):
    """Their metaclasses do not conflict, and say what they say of any class."""

    class Mine(base, other):
        """Has no method ``act`` of its own."""

    class Made(Mine):
        def act(self) -> None:
            """Do it."""

    assert issubclass(Made, base) and isinstance(object.__new__(Made), base)
    assert not isinstance(5, Mine) and not issubclass(base, Mine)
    assert Mine.__abstractmethods__ == ({"act"} if other is _Abstract else set())


def test_autobahns_own_protocol_is_refused():
    """A factory carries zComm's connections and no others, whether the class says so or an instance."""

    class Usual(WebSocketServerProtocol):
        pass

    with pytest.raises(TypeError, match=r"Usual cannot carry.*Connection, override receive.*zBifrost\("):
        type("Mine", (BifrostFactory,), {"protocol": Usual})
    factory = zBifrost(WebSocketConfig(), reactor=Clock()).factory
    with pytest.raises(TypeError, match="Usual cannot carry"):
        factory.protocol = Usual
    with pytest.raises(TypeError, match="cannot carry"):
        factory.protocol = lambda: BifrostProtocol()
    factory.protocol = type("Ours", (factory.protocol,), {})


@pytest.mark.parametrize("way", ["set", "class", "mixin"])
def test_a_subclass_gets_the_options_of_its_server(way: str):
    """A class of the program's is what connections are made of, with the limits that are configured on it."""
    bifrost = zBifrost(WebSocketConfig(limits=Limits(message_size=1000)), reactor=Clock())
    mine = type("Mine", (BifrostProtocol,), {})
    made = bifrost.factory
    if way == "set":
        made.protocol = mine
    else:
        bases = (BifrostFactory,) if way == "class" else (type("Mixin", (), {"protocol": mine}), BifrostFactory)
        kind = type("Factory", bases, {"protocol": mine} if way == "class" else {})
        made = kind(made.limits, made.admission, made.state, bifrost.broadcaster, Clock(), made.batch)
    built, usual = made.buildProtocol(None), zBifrost(WebSocketConfig(), reactor=Clock()).factory.buildProtocol(None)
    assert isinstance(built, mine) and built.largest_message == 1000
    assert set(dir(usual)) <= set(dir(built)) and built.failedByMe is False
    assert BifrostFactory.protocol.fget is not None and not isinstance(usual, mine)


class Old(WebSocketServerProtocol):
    """What a program of Autobahn's alone has."""

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """Send it back."""


@pytest.mark.parametrize(
    "given", [Old, None, 5, object, lambda *args: None], ids=["class", "None", "5", "object", "function"]
)
def test_what_cannot_answer_is_refused(given: object):
    """The server is not made with a class that is no Connection, so no client meets it."""
    with pytest.raises(TypeError, match=r"cannot answer zComm's clients.*Connection, override receive.*zBifrost\("):
        zBifrost(WebSocketConfig(), reactor=Clock(), connection=given)
    with pytest.raises(TypeError, match="cannot answer"):
        MemoryServer(connection=given)


def test_what_the_factory_does_not_take_is_refused():
    """A connection is given to the server, and the limits to its configuration."""
    factory = zBifrost(WebSocketConfig(), reactor=Clock()).factory
    mine = type("Mine", (Connection,), {})
    with pytest.raises(TypeError, match=r"Mine is not taken from the factory.*zBifrost\(connection="):
        factory.connection = mine
    with pytest.raises(TypeError, match=r"Mine is not taken from the factory.*zBifrost\(connection="):
        type("Factory", (BifrostFactory,), {"connection": mine})
    with pytest.raises(TypeError, match=r"no effect.*Limits"):
        factory.setProtocolOptions(maxMessagePayloadSize=5)
    with pytest.raises(TypeError, match=r"no effect.*Limits"):
        factory.resetProtocolOptions()
    for option in BifrostProtocol.CONFIG_ATTRS:
        before = getattr(factory, option)
        with pytest.raises(TypeError, match=r"no effect.*Limits"):
            setattr(factory, option, 5)
        assert getattr(factory, option) is before
    assert factory.connection is Connection
