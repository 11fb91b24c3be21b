"""Catalogue O and G4: origins in a file, which a running server reads again."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import pytest_twisted
from support.rawclient import BlockingRawClient, RawClient, connect, handshake
from support.served import Served, refusal
from support.serverprocess import RunningServer, clean_environ, twistd_command
from support.waiting import wait_until
from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred
from zope.interface import implementer

from zcomm import WebSocketConfig, zBifrost
from zcomm.auth.credentials import IBearerToken
from zcomm.errors import ConfigError
from zcomm.interfaces import Identity

APP, SHOP = "https://app.example.com", "https://shop.example.com"
BAD = (1008, "Invalid origin")


@pytest_twisted.async_yield_fixture()
async def filed(tmp_path: Path):
    """A server whose list is a file with two origins, and one more that is in the list itself."""
    (tmp_path / "origins").write_text(f"# who may come\n\n{APP}  # the app\r\n{SHOP}\n")
    server = Served(tmp_path, allowed_origins=("http://localhost:3000", f"@{tmp_path / 'origins'}"))
    await server.start()
    yield server
    await server.stop()


async def answered(client: RawClient) -> bool:
    return (await client.call("ping", 1))["result"] == 1


@pytest_twisted.ensureDeferred
async def test_a_file_is_a_part_of_the_list(filed: Served):
    """Its origins are let in, beside those of the list; comments and blank lines are none."""
    for origin in (APP, SHOP, "http://localhost:3000"):
        assert await answered(await filed.client(origin=origin))
    assert await refusal(await filed.client(origin="https://other.example.com")) == BAD
    assert await refusal(await filed.client(origin="http://localhost")) == BAD
    await filed.stands()


@pytest_twisted.ensureDeferred
async def test_who_may_no_longer_come_goes_and_the_rest_notices_nothing(filed: Served):
    """A page that is gone from the file, and a client that calls the server by its name; new pages come in."""
    staying = [await filed.client(origin=APP), await filed.client(origin=None)]
    by_name = await filed.connect(handshake("shop.example.com", token=filed.admin))
    assert (await by_name.next()).status == 101
    leaving = [await filed.client(origin=SHOP), by_name]
    (filed.directory / "origins").write_text(f"{APP}\nhttps://new.example.com\n")
    assert filed.bifrost.reload_origins() == 2
    for client in leaving:
        frame = await client.next_close()
        assert (frame.close_code, frame.close_reason) == BAD
        client.send_close(1008)
        await client.when_ended()
    for client in staying:
        assert await answered(client) and len(client.received) == 2
    assert await refusal(await filed.client(origin=SHOP)) == BAD
    assert await answered(await filed.client(origin="https://new.example.com"))
    await filed.stands()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        pytest.param(f"{APP}\nexample.com\n", "origins, line 2: 'example.com' is not scheme://host", id="no-scheme"),
        pytest.param(f"\n\n{APP}, {SHOP}\n", "origins, line 3", id="two-on-a-line"),
        pytest.param("https://*.example.com\n", "line 1: 'https://*.example.com' has a wildcard", id="O11-wildcard"),
        pytest.param("*", "line 1: '*' has a wildcard", id="O11-star"),
        pytest.param("@other\n", "line 1: '@other' is not", id="a-file-in-a-file"),
        pytest.param("# nobody\n", "names no origin", id="empty"),
        pytest.param(b"\xff\xfe", "is not text in UTF-8", id="no-text"),
        pytest.param(None, "cannot be read: No such file", id="missing"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_file_that_cannot_be_used_is_not_taken(filed: Served, content: str | bytes | None, reason: str):
    """The error names option, file and line, at the start and later; the old list holds and nobody leaves."""
    client = await filed.client(origin=SHOP)
    path = filed.directory / "origins"
    path.unlink()
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        filed.bifrost.reload_origins()
    assert (
        caught.value.name == "--allowed-origin" and str(path) in caught.value.reason and reason in caught.value.reason
    )
    assert await answered(client)
    assert await answered(await filed.client(origin=APP))
    with pytest.raises(ConfigError, match="WEBSOCKET_ALLOWED_ORIGINS") as caught:
        WebSocketConfig.from_environ({"WEBSOCKET_ALLOWED_ORIGINS": f"{APP},@{path}"})
    assert reason in caught.value.reason
    await filed.stands()


def test_a_path_is_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Relative to the directory of the start, which a daemon leaves."""
    (tmp_path / "origins").write_text(APP)
    monkeypatch.chdir(tmp_path)
    config = WebSocketConfig.from_environ({"WEBSOCKET_ALLOWED_ORIGINS": "@origins"})
    monkeypatch.chdir("/")
    assert config.listed_origins() == [APP] and config.allowed_origins == (f"@{tmp_path / 'origins'}",)


@implementer(ICredentialsChecker)
class Late:
    """A checker that answers when the test says so."""

    credentialInterfaces = (IBearerToken,)

    def __init__(self):
        self.asked: list[Deferred] = []

    def requestAvatarId(self, credentials):
        self.asked.append(Deferred())
        return self.asked[-1]


@pytest_twisted.ensureDeferred
async def test_a_page_that_is_struck_off_during_its_token_check_is_not_let_in(tmp_path: Path):
    """The list counts as it is when the client is let in."""
    from twisted.internet import reactor

    (tmp_path / "origins").write_text(f"{APP}\n{SHOP}\n")
    checker = Late()
    bifrost = zBifrost(
        WebSocketConfig(port=0, allowed_origins=(f"@{tmp_path / 'origins'}",)), checker=checker, reactor=reactor
    )
    await bifrost.listen()
    try:
        coming = [connect(bifrost.port, token="any", origin=origin) for origin in (SHOP, APP)]
        await wait_until(lambda: len(checker.asked) == 2, "both questions")
        (tmp_path / "origins").write_text(f"{APP}\n")
        assert bifrost.reload_origins() == 0
        for asked in checker.asked:
            asked.callback(Identity("somebody", "guest"))
        clients = [await client for client in coming]
        assert await refusal(clients[0]) == BAD
        assert await answered(clients[1])
        clients[1].abort()
        await clients[1].when_ended()
    finally:
        await bifrost.stopService()


def test_g4_a_hang_up_takes_the_new_origins(running_server, tmp_path: Path):
    """The whole way, by SIGHUP; what cannot be used is said in the log and changes nothing."""
    origins = tmp_path / "origins"
    origins.write_text(f"{APP}\n{SHOP}\n")
    server = running_server("--allowed-origin", f"@{origins}")
    assert f"allowed origins: {APP}, {SHOP}" in server.log
    with (
        BlockingRawClient(server.port, token=server.token, origin=APP) as staying,
        BlockingRawClient(server.port, token=server.token, origin=SHOP) as leaving,
    ):
        origins.write_text("*\n")
        server.signal(signal.SIGHUP)
        server.wait_for_log(r"not reloaded, .*--allowed-origin: .*origins, line 1: '\*' has a wildcard")
        assert leaving.call("ping", 1)["result"] == 1
        origins.write_text(f"{APP}\n")
        server.signal(signal.SIGHUP)
        frame = leaving.next_close()
        assert (frame.close_code, frame.close_reason) == BAD
        server.wait_for_log("the allowed origins were read anew")
        assert staying.call("ping", 1)["result"] == 1
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    ("options", "environ", "reason"),
    [
        pytest.param(["--allowed-origin", "*"], {}, r"--allowed-origin: '\*' has a wildcard", id="O11-star"),
        pytest.param(
            [],
            {"WEBSOCKET_ALLOWED_ORIGINS": "https://*.example.com"},
            r"WEBSOCKET_ALLOWED_ORIGINS: 'https://\*\.example\.com' has a wildcard; name each origin",
            id="O11-one-label",
        ),
        pytest.param(["--allowed-origin", "@nowhere"], {}, "--allowed-origin: .*nowhere cannot be read", id="file"),
    ],
)
def test_a_list_that_is_none_ends_the_start(tmp_path: Path, options: list[str], environ: dict[str, str], reason: str):
    """One line that names the entry and the fix, exit status 1, before anything listens."""
    home = tmp_path / "home"
    home.mkdir()
    server = RunningServer(twistd_command("--port", "0", *options), home, clean_environ(home, environ))
    status = server.wait()
    server.process.stdout.close()
    server.wait_for_log(reason)
    assert status == 1 and "zBifrost listening" not in server.log and "Traceback" not in server.log
