"""A node that does not beat any more is taken for dead by the others, and notices that when it goes on."""

from __future__ import annotations

import pytest
import pytest_twisted
from support.nodes import Node
from support.waiting import wait_until

ROOM = "room:1"


@pytest.mark.timeout(120)
@pytest_twisted.ensureDeferred
async def test_its_members_are_gone_and_come_again(nodes: tuple[Node, Node]):
    """Each once, told by the one that took them out; under another name they are in again, and a place is as well."""
    a, b = nodes
    await b.engine.listen(ROOM, None)
    await a.engine.enter(ROOM, "a-1", "ann", b"{}")
    await b.engine.enter(ROOM, "b-1", "ann", b"{}")
    for number in range(3):
        await a.engine.enter(ROOM, f"a-bob{number}", "bob", b"{}")
    assert await a.engine.claim("connections ann", "a-c1", 1) and not await b.engine.claim("connections ann", "b-c1", 1)
    a.engine._beating.stop()
    await wait_until(lambda: len([1 for _, change in b.crossings if change.state is None]) == 4)
    gone = [change for _, change in b.crossings if change.state is None]
    assert {change.connection for change in gone} == {"a-1", "a-bob0", "a-bob1", "a-bob2"}
    assert [change.after for change in gone if change.user == "ann"] == [1]
    assert sorted(change.after for change in gone if change.user == "bob") == [0, 1, 2]
    assert await b.engine.claim("connections ann", "b-c1", 1)
    b.engine.release("connections ann", "b-c1")
    # The next word that it says is refused.
    await a.engine.enter(ROOM, "a-2", "eve", b"{}")
    await wait_until(lambda: any(change.connection == "a-1" and change.state for _, change in a.crossings[-6:]))
    found = await b.engine.members(ROOM)
    assert found.members is not None
    assert {user: sorted(mine) for user, mine in found.members.items()} == {
        "ann": ["a-1", "b-1"],
        "bob": ["a-bob0", "a-bob1", "a-bob2"],
        "eve": ["a-2"],
    }
    a.engine._beating.start(3.0, now=True)
    await wait_until(lambda: b.engine.nodes() == [a.engine.node])
