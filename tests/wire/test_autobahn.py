"""What every connection shares of Autobahn's state is what Autobahn would have given it."""

from __future__ import annotations

import pytest
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from autobahn.websocket.protocol import WebSocketProtocol

from zcomm.wire.autobahn import OnFirstUse, template_of


class Connection(WebSocketServerProtocol):
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
def connection(factory) -> type[Connection]:
    """The class that connections are made of."""
    return type("Made", (Connection,), template_of(Connection, factory))


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
