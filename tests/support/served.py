"""A whole zComm in this process, on loopback TCP, and what must hold after every case of the catalogue.

:class:`Served` is a server with SQLite, functions, pages, files and tokens of its own, and keeps every
client it made, so that :meth:`Served.stands` can look at all they were sent.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import Frame, Opcode, RawClient, Response, connect
from support.waiting import wait_until
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import LogEvent, eventAsText, globalLogPublisher

from zcomm import Config, FunctionRegistry, Limits, WebSocketConfig, zBifrost, zComm
from zcomm.auth.tokens import TokenStore
from zcomm.client import Client
from zcomm.client import connect as join_server
from zcomm.errors import Invalid
from zcomm.host import Host

__all__ = [
    "POLICY",
    "RUNNING",
    "Served",
    "code_of",
    "errors_of",
    "forgotten",
    "join",
    "refusal",
    "served",
    "serving",
    "statuses",
]

#: What no peer may ever read.
INTERNALS = re.compile(r"Traceback|File \"|\.py\b|SELECT |INSERT |sqlite3?\.|psycopg|/tmp/|/root|twisted\.")

POLICY = """
admin: {models: "*", functions: "*", pages: "*", files: "*", commands: "*"}
guest:
  models: {Users: [read]}
blind: {}
member:
  models:
    Users: {actions: "*", rows: {name: $name}}
"""

functions = FunctionRegistry()


@functions.register
def calculateTotal(cart: Any) -> Any:
    """What it was given, so that a test sees which values arguments became."""
    return {"given": cart}


@functions.register
def echo(*arguments: Any, **named: Any) -> Any:
    """All arguments as they came."""
    return [list(arguments), named]


@functions.register
def wrong() -> Any:
    """A declared error."""
    raise Invalid("Wrong on purpose", {"field": "reason"})


#: Those that run.
RUNNING: list[Served] = []


class Served:
    """One server. ``options`` are fields of ``WebSocketConfig``; ``limits`` those of ``Limits``; ``policy`` is the text
    of a policy file, or whether there is the one above.

    :ivar admin: the operator's token.
    :ivar tokens: a token for each role of :data:`POLICY`, by role.
    """

    def __init__(
        self,
        directory: Path,
        limits: dict[str, Any] | None = None,
        policy: bool | str = False,
        config: dict[str, Any] | None = None,
        reactor: Any = None,
        **options: Any,
    ):
        if reactor is None:
            from twisted.internet import reactor
        self.directory = directory
        self.reactor = reactor
        home, data, self.files = directory / "home", directory / "data", directory / "files"
        for path in (home, data, self.files):
            path.mkdir(mode=0o700, exist_ok=True)
        (self.files / "config.yaml").write_text("answer: 42\n")
        if policy:
            (directory / "policy.yaml").write_text(POLICY if policy is True else policy)
        # A ping of the server's own comes between frames only where a test is about it.
        limits = {"ping_interval": 3600.0, **(limits or {})}
        websocket = WebSocketConfig(port=0, limits=Limits(**limits), **options)
        self.config = Config(
            data_dir=data,
            websocket=websocket,
            files=self.files,
            policy=directory / "policy.yaml" if policy else None,
            **(config or {}),
        )
        self.store = TokenStore(data / "tokens.json")
        self.tokens = {role: self.store.add(f"{role}-user", role).token for role in ("admin", "guest", "blind")}
        self.comm = zComm(Host(self.config, reactor), config=self.config, environ={"HOME": str(home)}, reactor=reactor)
        self.comm.program.functions.update(functions)
        self.comm.program.pages.register("/", title="Home")
        self.comm.program.pages.register("/admin/users", title="Users")
        self.bifrost: zBifrost = self.comm.create_websocket()
        self.admin = self.comm.program.operator_token
        self.port = 0
        self.clients: list[RawClient] = []
        self.log: list[LogEvent] = []

    async def start(self) -> Served:
        """Listen, and connect the database."""
        globalLogPublisher.addObserver(self.log.append)
        await self.comm.start_websocket()
        await self.comm.start_below()
        # Its first sweep of old keys runs in a thread; from then on the timer is there for good.
        sweeper = self.comm.zcli.data._sweeper
        await wait_until(lambda: sweeper.call is not None, "the store at rest")
        self.port = self.bifrost.port
        RUNNING.append(self)
        return self

    async def stop(self) -> None:
        """Everything ends; the log is no longer kept."""
        RUNNING.remove(self)
        await self.comm.stopService()
        globalLogPublisher.removeObserver(self.log.append)

    # -- clients

    @inlineCallbacks
    def connect(self, opening: bytes | None = b"", **options: Any) -> Any:
        """A Deferred of a :class:`RawClient`; see :func:`rawclient.connect`. ``Host`` and port are the server's."""
        client = yield connect(self.port, opening, reactor=self.reactor, **options)
        self.clients.append(client)
        return client

    def client(self, **options: Any) -> Deferred[RawClient]:
        """A Deferred of an admitted client: the operator, unless ``token`` says who."""
        options.setdefault("token", self.admin)
        return self.connect(**options)

    @property
    def count(self) -> int:
        """The number of clients in the registry."""
        return len(self.bifrost.registry)

    @property
    def log_text(self) -> str:
        """The log since the last :meth:`stands`, as a file would have it."""
        return "\n".join(eventAsText(event) for event in self.log)

    # -- what must hold

    async def stands(self, failures: int = 0, echoed: str = "") -> None:
        """The standing assertions: alive, another client answered, nobody left over, nothing told or logged that is
        secret, and exactly ``failures`` tracebacks in the log. ``echoed`` is what clients said themselves."""
        listed = self.config.websocket.allowed_origins
        witness = await self.client(origin=listed[0] if listed else None)
        assert (await witness.call("ping", "still here"))["result"] == "still here"
        for client in self.clients:
            if not client.ended:
                client.transport.abortConnection()
        ended = [client.when_ended() for client in self.clients]
        for waiting in ended:
            await waiting
        factory = self.bifrost.factory
        await wait_until(lambda: not factory._alive and not self.count, "an empty registry")
        assert factory.pending.count == 0
        for client in self.clients:
            told = "\n".join(told_text(item) for item in client.received)
            if echoed:
                told = told.replace(echoed, "")
            found = INTERNALS.search(told)
            assert found is None, f"told a client {found and told[max(0, found.start() - 80) : found.end() + 80]!r}"
        text = self.log_text
        for token in filter(None, (self.admin, *self.tokens.values())):
            assert token not in text, "a token is in the log"
        tracebacks = [eventAsText(event) for event in self.log if "log_failure" in event]
        self.forget()
        assert len(tracebacks) == failures, "\n".join(tracebacks)

    def forget(self) -> None:
        """Let go of what a test did here, however it ended."""
        for client in self.clients:
            if not client.ended:
                client.transport.abortConnection()
        self.clients.clear()
        self.log.clear()


def told_text(item: Response | Frame) -> str:
    """What a peer can read in ``item``."""
    if isinstance(item, Response):
        return f"{item.status} {item.phrase} {item.headers!r}"
    return item.payload.decode("utf-8", "replace")


async def refusal(client: RawClient) -> tuple[int | None, str]:
    """The code and reason of the close frame of a client that was let down gently: 101, one frame, the end."""
    assert client.reader.response is not None and client.reader.response.status == 101, client.received
    frame = await client.next_close()
    assert [type(item) for item in client.received] == [Response, Frame], client.received
    client.send_close(1000)
    await client.when_ended()
    return frame.close_code, frame.close_reason


async def statuses(client: RawClient) -> list[int]:
    """The HTTP statuses a client got before its connection ended."""
    await client.when_ended()
    return [item.status for item in client.received if isinstance(item, Response)]


async def code_of(client: RawClient) -> int | None:
    """The close code the server sends; it is answered, and the connection's end awaited."""
    frame = await client.next_close()
    if not client.ended:
        client.send_close(1000)
    await client.when_ended()
    return frame.close_code


def errors_of(client: RawClient) -> list[dict[str, Any]]:
    """Every error a client was told so far."""
    texts = [
        json.loads(item.payload) for item in client.received if isinstance(item, Frame) and item.opcode == Opcode.TEXT
    ]
    return [message for message in texts if isinstance(message, dict) and "error" in message]


def serving(name: str = "served", **options: Any) -> Callable[..., Any]:
    """A module-wide fixture of a :class:`Served` with ``options``."""

    @pytest_twisted.async_yield_fixture(scope="module", name=name)
    async def fixture(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
        server = await Served(tmp_path_factory.mktemp("served"), **options).start()
        yield server
        await server.stop()

    return fixture


served = serving()


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """What one test did is nothing that the next one trips over, however it ended."""
    for server in RUNNING:
        server.forget()
    yield
    for server in RUNNING:
        server.forget()


@pytest_twisted.async_yield_fixture
async def join(served: Served) -> AsyncIterator[Callable[..., Any]]:
    """``await join()`` is a connected client: the operator's, unless ``token`` says whose."""
    clients: list[Client] = []

    async def join(**options: Any) -> Client:
        options.setdefault("token", served.admin)
        client = await join_server(served.bifrost.url, **options)
        clients.append(client)
        return client

    yield join
    for client in clients:
        await client.disconnect()
