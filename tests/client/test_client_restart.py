"""The Python client and a server that dies and comes back: ``twistd zcomm`` as a process of its own."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted
from support.serverprocess import RunningServer
from support.waiting import DEADLINE, wait_until
from twisted.internet.threads import deferToThread

from zcomm.client import connect, threaded
from zcomm.errors import ConnectionLost


@pytest_twisted.ensureDeferred
async def test_killed_and_started_again(running_server: Callable[..., RunningServer], free_port: int):
    """The client is back by itself, with what was stored; the call under way was told, and not sent again."""
    server = await deferToThread(running_server, "--port", str(free_port))
    client = await connect(server.url, server.token)
    states: list[str] = []
    client.on("state", states.append)
    user = await client.create("Users", {"name": "Alice", "email": "alice@example.com"})
    failures: list[Any] = []
    client.on_ask(lambda prompt: "nobody")
    client.zFunc("greet", on_progress=lambda *told: server.kill()).addErrback(failures.append)
    await wait_until(lambda: "reconnecting" in states, "the loss")
    assert failures[0].check(ConnectionLost) and failures[0].value.close_code == 1006
    await deferToThread(running_server, "--port", str(free_port))
    await wait_until(lambda: states[-1] == "connected", "the client back")
    assert await client.read("Users", user["id"]) == [user]
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_the_plain_client(running_server: Callable[..., RunningServer], free_port: int):
    """The same without a reactor of the program's own: every call waits, listeners may block."""
    server = await deferToThread(running_server, "--port", str(free_port))

    def use() -> None:
        heard, news = threading.Event(), []
        back = threading.Event()
        with threaded.connect(server.url, server.token) as client, threaded.connect(server.url, server.token) as other:

            def listen(message: Any) -> None:
                # In a thread of its own, where a call may wait.
                news.append((message["zKey"], client.send({"zKey": "ping", "zHorizontal": 7})))
                heard.set()

            stop = client.on_broadcast(listen)
            user = other.create("Users", {"name": "Alice", "email": "alice@example.com"})
            assert heard.wait(DEADLINE) and news == [("create_Users", 7)]
            stop()
            client.remove_broadcast_listener(listen)
            client.remove_broadcast_listener(listen)
            assert other.update("Users", user["id"], {"age": 20}) == {"updated": 1}
            assert client.read("Users", {"age__gte": 18}, {"fields": ["name"]}) == [{"name": "Alice"}]
            assert client.upsert("Users", {"email": "alice@example.com", "name": "Al"}, "email")["name"] == "Al"
            assert client.zLink("/admin/users")["title"] == "Users"
            told: list[Any] = []
            prompts: list[Any] = []

            def answer(prompt: dict[str, Any]) -> str:
                prompts.append(prompt)
                return "Bob" if len(prompts) > 1 else ""

            client.on_ask(answer)
            assert (
                client.zFunc("greet", on_progress=lambda *step: told.append(step[0]))
                == "Welcome to the other side, Bob!"
            )
            assert told == [1, 2, 3, 4, 5]
            assert prompts[1]["error"]["text"] == "An answer is needed"
            client.on("state", lambda state: state == "connected" and back.set())
            assert client.delete("Users", user["id"]) == {"deleted": 1}
            server.kill()
            running_server("--port", str(free_port))
            assert back.wait(DEADLINE) and client.state == "connected"
            assert "connected" in repr(client)
        assert client.state == "disconnected"
        client.disconnect()

    await deferToThread(use)


@pytest_twisted.ensureDeferred
async def test_a_plain_client_that_does_not_answer(running_server: Callable[..., RunningServer]):
    """A function that fails, or that is a coroutine function, declines; zOpen is refused by a server without files."""
    server = await deferToThread(running_server)

    def use() -> list[str]:
        codes = []

        async def coroutine(prompt: Any) -> str:
            return "never"

        with threaded.connect(server.url, server.token, reconnect=False) as client:
            for answer in (None, coroutine, lambda prompt: 1 / 0):
                client.on_ask(answer)
                try:
                    client.zFunc("greet")
                except Exception as error:
                    codes.append(f"{error.code} {error}")
            try:
                client.zOpen("config.yaml")
            except Exception as error:
                codes.append(error.code)
            client.on_display(print)
        return codes

    *declined, opened = await deferToThread(use)
    assert declined == ["invalid The prompt was declined"] * 3
    assert opened in ("not_found", "permission_denied", "unavailable")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
@pytest_twisted.ensureDeferred
async def test_a_listener_has_the_processor_as_its_program_does(running_server: Callable[..., RunningServer]):
    """What it computes is the program's own work, and what it starts would never have more of the processor again."""
    server = await deferToThread(running_server)

    def use() -> list[int]:
        found: list[int] = []
        heard = threading.Event()
        with threaded.connect(server.url, server.token) as client, threaded.connect(server.url, server.token) as other:

            def listen(message: Any) -> None:
                found.append(os.getpriority(os.PRIO_PROCESS, 0))
                heard.set()

            client.on_broadcast(listen)
            other.create("Users", {"name": "Alice", "email": "alice@example.com"})
            assert heard.wait(DEADLINE)
        return found

    assert await deferToThread(use) == [os.getpriority(os.PRIO_PROCESS, 0)]
