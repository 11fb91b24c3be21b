"""Who hears of a result that names no audience: those who may ask for the same."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import Frame, Opcode, RawClient
from support.served import Served

from zcomm import Outcome
from zcomm.interfaces import EVERYBODY, Audience
from zcomm.testing import MemoryServer

ROLES = ("admin", "guest", "blind")


@pytest_twisted.async_yield_fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """``await start(broadcast=…)`` is a server with a policy and commands of its own."""
    servers: list[Served] = []

    async def start(**options: Any) -> Served:
        server = Served(tmp_path, policy=True, **options)
        servers.append(server)
        command = server.bifrost.command
        command("plain")(lambda horizontal: horizontal)
        command("odd")(lambda: (1, 2))

        @command("later")
        async def later() -> dict[str, int]:
            return {"later": 1}

        @command("asking")
        async def asking(horizontal: Any, client: Any) -> Any:
            return await server.bifrost.ask(client, "Name")

        command("unnamed")(lambda: Outcome("unnamed", changed=True))
        command("shouted", broadcast=True)(lambda: Outcome("shouted", changed=True))
        command("quiet")(lambda: Outcome("quiet"))
        command("public")(lambda: Outcome("public", changed=True, audience=EVERYBODY))
        command("read")(lambda: Outcome("read", changed=True, audience=Audience("model", "Users")))
        return await server.start()

    yield start
    for server in servers:
        server.forget()
        await server.stop()


async def ask_everything(client: RawClient) -> None:
    """One command of every kind, each of which is answered."""
    for key, horizontal in (
        ("plain", {"secret": 1}),
        ("odd", None),
        ("later", None),
        ("unnamed", None),
        ("shouted", None),
        ("quiet", None),
        ("public", None),
        ("read", None),
        ("zOpen", "zOpen(config.yaml)"),
        ("zOpen(config.yaml)", None),
        ("zLink", "zLink(/admin/users)"),
        ("zFunc", "zFunc(echo, 1)"),
        ("read_Users", {}),
        ("zDescribe", None),
    ):
        assert "result" in await client.call(key, horizontal), key
    client.send_json({"zKey": "asking", "_requestId": "asking"})
    asked = await client.next_json()
    assert (await client.call("zAnswer", {"askId": asked["askId"], "value": "Ann"}))["result"] is True


async def heard(client: RawClient) -> list[str]:
    """The keys of the broadcasts that have come."""
    assert (await client.call("ping", "the end"))["result"] == "the end"
    texts = [
        json.loads(item.payload) for item in client.received if isinstance(item, Frame) and item.opcode == Opcode.TEXT
    ]
    return [text["zKey"] for text in texts if "zKey" in text and text["zKey"] != "ping"]


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        (
            "all",
            {
                "admin": [
                    "plain",
                    "odd",
                    "later",
                    "unnamed",
                    "shouted",
                    "quiet",
                    "public",
                    "read",
                    "zOpen",
                    "zOpen(config.yaml)",
                    "zLink",
                    "zFunc",
                    "read_Users",
                    "asking",
                ],
                "guest": ["public", "read", "read_Users"],
                "blind": ["public"],
            },
        ),
        (
            "changes",
            {"admin": ["unnamed", "shouted", "public", "read"], "guest": ["public", "read"], "blind": ["public"]},
        ),
        ("none", {"admin": [], "guest": [], "blind": []}),
    ],
)
@pytest_twisted.ensureDeferred
async def test_contact_a06_who_may_not_ask_hears_none(start: Callable[..., Any], mode: str, keys: dict[str, list[str]]):
    """Files, pages, functions and commands by their own rights, in every mode; the server's own commands never."""
    server = await start(broadcast=mode)
    others = {role: await server.client(token=server.tokens[role]) for role in ROLES}
    await ask_everything(await server.client())
    assert {role: await heard(client) for role, client in others.items()} == keys


def test_everybody_may_ping():
    """So everybody hears of it where all is told, as of everything where all may ask for all."""
    server = MemoryServer({"plain": lambda: 1}, broadcast="all")
    one, other = server.connect(), server.connect()
    one.call("ping", 5)
    one.call("plain")
    assert other.messages == [{"zKey": "ping", "result": 5}, {"zKey": "plain", "result": 1}]
