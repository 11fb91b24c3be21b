"""Servers that share an engine: what changes on one of them reaches the clients of the others."""

from __future__ import annotations

from typing import Any

import pytest
from zope.interface.verify import verifyObject

from zcomm import Audience, Identity, Outcome, Policy
from zcomm.interfaces import Broadcast, IEngine
from zcomm.testing import MemoryServer, assert_broadcast, assert_error, assert_reply, assert_silent

ANN, BOB = Identity("ann", "admin"), Identity("bob", "guest")
RIGHTS = 'admin: {commands: "*", functions: "*"}\nguest: {commands: [%s]}'


def pair(
    engine: IEngine, first: dict[str, Any] | None = None, second: dict[str, Any] | None = None
) -> list[MemoryServer]:
    """Two servers of one engine; the second one lets guests use another command than the first."""
    servers = []
    for options, granted in ((first or {}, "add"), (second or {}, "total")):
        permissions = Policy.from_yaml(RIGHTS % granted, "policy")
        server = MemoryServer(permissions=permissions, engine=engine, **options)
        server.bifrost.command("add", broadcast=True)(lambda horizontal: horizontal)
        server.bifrost.command("total")(
            lambda horizontal: Outcome(horizontal, changed=True, audience=Audience("command", "total"))
        )
        servers.append(server)
    return servers


def settle(servers: list[MemoryServer]) -> None:
    for server in servers:
        server.settle()


def test_it_is_an_engine(engine: IEngine):
    """It provides what a zBifrost asks for; it is a service."""
    verifyObject(IEngine, engine)
    engine.startService()
    assert engine.running and engine.clients == 0
    engine.stopService()
    assert not engine.running


def test_changes_reach_the_clients_of_the_other_server(engine: IEngine):
    """The sender has its reply and hears nothing; each server asks its own policy."""
    servers = one, other = pair(engine)
    ann, twin, bob = (one.connect(identity=who) for who in (ANN, ANN, BOB))
    ann_there, bob_there = (other.connect(identity=who) for who in (ANN, BOB))
    assert_reply(ann.call("add", 1), 1)
    settle(servers)
    assert_silent(ann, bob_there)
    for client in (twin, bob, ann_there):
        assert_broadcast(client, "add", 1)
    assert_reply(bob_there.call("total", 2), 2)
    settle(servers)
    assert_silent(bob, bob_there)
    for client in (ann, twin, ann_there):
        assert_broadcast(client, "total", 2)
    assert_error(bob.call("total", 3), "permission_denied")


def test_one_client_on_each_server(engine: IEngine):
    """The only client of a server is not alone."""
    servers = one, other = pair(engine)
    ann, bob = one.connect(identity=ANN), other.connect(identity=ANN)
    assert_reply(ann.call("add", 1), 1)
    settle(servers)
    assert_broadcast(bob, "add", 1)
    assert_silent(ann, bob)


def test_what_was_told_before_is_not_for_who_comes_later(engine: IEngine):
    """On the other server too, and within one turn."""
    one, other = pair(engine)
    ann, early = one.connect(identity=ANN), other.connect(identity=ANN)
    reply = ann.call("add", 1)
    late = other.connect(identity=ANN)
    settle([one, other])
    assert_reply(reply, 1)
    assert_broadcast(early, "add", 1)
    assert_silent(late)


def test_a_server_speaks_to_its_own_clients(engine: IEngine):
    """``broadcast`` and ``display`` are one server's, and so are their counts."""
    servers = one, other = pair(engine)
    ann, bob, there = one.connect(identity=ANN), one.connect(identity=BOB), other.connect(identity=ANN)
    (sender,) = (client for client in one.bifrost.clients if client.identity == ANN)
    assert one.bifrost.broadcast("hello") == 2 and one.bifrost.broadcast("psst", sender) == 1
    settle(servers)
    assert (ann.messages, bob.messages, there.messages) == (["hello"], ["hello", "psst"], [])


@pytest.mark.parametrize("quiet", [0, 1])
def test_a_server_that_tells_nobody_hears_of_nobody(engine: IEngine, quiet: int):
    """Mode ``none`` is of both directions."""
    options: list[dict[str, Any]] = [{}, {}]
    options[quiet] = {"broadcast": "none"}
    servers = pair(engine, *options)
    clients = [server.connect(identity=ANN) for server in servers]
    for client in clients:
        assert_reply(client.call("add", 1), 1)
    settle(servers)
    assert_silent(*clients)


def test_what_the_program_says_reaches_silent_servers_too(engine: IEngine):
    """Mode ``none`` is of results alone; the engine counts those it reaches."""
    loud, silent = (MemoryServer(engine=engine, broadcast=mode) for mode in ("changes", "none"))
    clients = [server.connect(identity=ANN) for server in (loud, silent)]
    assert engine.tell(Broadcast(b'"news"')) == 2
    assert engine.tell(Broadcast(b'"result"', is_result=True)) == 1
    settle([loud, silent])
    assert [client.messages for client in clients] == [["news", "result"], ["news"]]


def test_a_server_that_has_stopped_hears_nothing(engine: IEngine):
    """Until it listens again."""
    servers = one, other = pair(engine)
    other.stop()
    ann, twin = one.connect(identity=ANN), one.connect(identity=ANN)
    assert_reply(ann.call("add", 1), 1)
    settle(servers)
    assert_broadcast(twin, "add", 1)
    assert other.bifrost.broadcaster.told == 0
    other.bifrost.listen()
    there = other.connect(identity=ANN)
    assert_reply(ann.call("add", 2), 2)
    settle(servers)
    assert_broadcast(there, "add", 2)


def test_a_server_without_an_engine_has_one_of_its_own():
    """Two that were given none do not hear each other."""
    servers = [MemoryServer(), MemoryServer()]
    for server in servers:
        server.bifrost.command("add", broadcast=True)(lambda horizontal: horizontal)
    ann, bob = (server.connect() for server in servers)
    assert_reply(ann.call("add", 1), 1)
    settle(servers)
    assert_silent(ann, bob)


class Failing:
    """Permissions that cannot be asked once somebody is to hear of something."""

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        if kind == "model":
            raise RuntimeError("the rights are away")
        return True

    def rows(self, identity: Identity, model: str) -> dict[str, Any]:
        return {}


def test_permissions_that_fail_cost_others_nothing(engine: IEngine):
    """The server that has them tells nobody; the sender has its reply, the other server's clients hear."""
    failing, good = MemoryServer(permissions=Failing(), engine=engine), MemoryServer(engine=engine)
    ann, near, far = failing.connect(identity=ANN), failing.connect(identity=BOB), good.connect(identity=BOB)
    failing.bifrost.command("change")(lambda value: Outcome(value, changed=True, audience=Audience("model", "Notes")))
    assert_reply(ann.call("change", 1), 1)
    settle([failing, good])
    assert_broadcast(far, "change", 1)
    assert_silent(near)
