"""The user's own page (``--www``), asked for over the socket of a running server."""

from __future__ import annotations

import gzip
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.rawclient import RawClient
from support.rows import rows_of_a_test
from support.served import Served, statuses
from support.waiting import wait_until

from zcomm.config import Config, WebSocketConfig
from zcomm.errors import ConfigError
from zcomm.web import exchange, site
from zcomm.web.site import OWN_NAMES

pytestmark = pytest.mark.wire

HOST = "127.0.0.1"
PAGE = b"<!DOCTYPE html><title>Mine</title>" + b"<p>Here is my own page.</p>" * 40


@pytest.fixture(scope="module")
def www(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a page, with a secret beside it."""
    place = tmp_path_factory.mktemp("pages")
    (place / "secret.txt").write_text("hush")
    root = place / "www"
    for directory in (root, root / "docs" / "inner", root / ".git", root / "empty", root / "zähler"):
        directory.mkdir(parents=True)
    (root / "index.html").write_bytes(PAGE)
    (root / "docs" / "index.html").write_text("<p>docs</p>")
    (root / "docs" / "inner" / "a b.txt").write_text("grüße")
    (root / "zähler" / "ü.json").write_text("{}")
    (root / ".git" / "config").write_text("hush")
    (root / ".env").write_text("hush")
    (root / "app.js").write_text("export const one = 1;\n" * 100)
    (root / "logo.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (root / "data.unknown").write_bytes(bytes(range(256)))
    (root / "escape.txt").symlink_to(place / "secret.txt")
    (root / "outside").symlink_to(place)
    os.mkfifo(root / "pipe")
    return root


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of tests were all changed a moment ago."""
    monkeypatch.setattr(site, "RECENT", 0)


@pytest_twisted.async_yield_fixture(scope="module")
async def sited(tmp_path_factory: pytest.TempPathFactory, www: Path) -> AsyncIterator[Served]:
    """A server of that page."""
    server = await Served(tmp_path_factory.mktemp("served"), www=www, limits={"handshake_timeout": 2.0}).start()
    yield server
    await server.stop()


async def got(served: Served, path: str, headers: str = "", method: str = "GET") -> RawClient:
    """A client that has got its whole response."""
    client: RawClient = await served.connect(f"{method} {path} HTTP/1.1\r\nHost: {HOST}\r\n{headers}\r\n".encode())
    await client.when_ended()
    return client


def told(client: RawClient) -> tuple[int, bytes]:
    """The status and the body, which is as long as was said."""
    answer: Any = client.reader.response
    length = answer.header("Content-Length")
    if length is not None and answer.status != 304:
        assert int(length) == len(client.reader.rest)
    return answer.status, client.reader.rest


@pytest_twisted.ensureDeferred
async def test_the_page_of_the_user_is_the_first(sited: Served):
    """Its files by their names, with their types; the demo page is below /demo/, the client where it always is."""
    with rows_of_a_test() as row:
        for path, media_type, content in (
            ("/", "text/html; charset=utf-8", PAGE),
            ("/?a=b", "text/html; charset=utf-8", PAGE),
            ("/index.html", "text/html; charset=utf-8", PAGE),
            ("/app.js", "text/javascript; charset=utf-8", b"export const one = 1;\n" * 100),
            ("/logo.svg", "image/svg+xml", b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
            ("/data.unknown", "application/octet-stream", bytes(range(256))),
            ("/docs/", "text/html; charset=utf-8", b"<p>docs</p>"),
            ("/docs/inner/a%20b.txt", "text/plain; charset=utf-8", "grüße".encode()),
            ("/z%C3%A4hler/%c3%bc.json", "application/json", b"{}"),
        ):
            with row(path):
                client = await got(sited, path)
                assert told(client) == (200, content)
                answer: Any = client.reader.response
                assert answer.header("Content-Type") == media_type
                assert answer.header("X-Content-Type-Options") == "nosniff"
                # A page may run, load and frame what it likes; nobody else's frames it.
                assert answer.header("Content-Security-Policy") == "frame-ancestors 'self'"
    demo = await got(sited, "/demo/")
    assert told(demo)[0] == 200 and b"zBifrost" in demo.reader.rest and b'"demo/' not in demo.reader.rest
    assert "script-src 'self'" in demo.reader.response.header("Content-Security-Policy")
    for path in ("/demo/main.js", "/demo/demo.css", "/zBifrost.js", "/zBifrost.d.ts", "/health"):
        assert told(await got(sited, path))[0] == 200, path
    assert sited.bifrost.page == f"http://127.0.0.1:{sited.port}/"
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_nothing_else_is_to_be_had(sited: Served, www: Path):
    """No listing, no hidden file, nothing by a link, nothing outside, no pipe, however the name is written."""
    with rows_of_a_test() as row:
        for path in (
            "/empty/",
            "/empty",
            "/docs/inner/",
            "/docs/inner",
            "/missing",
            "/index.html/",
            "/index.html/x",
            "//index.html",
            "//",
            "/docs//index.html",
            "/.env",
            "/.git/config",
            "/%2eenv",
            "/docs/../.env",
            "/../secret.txt",
            "/docs/../../secret.txt",
            "/%2e%2e/secret.txt",
            "/..%2fsecret.txt",
            "/docs%2findex.html",
            "/..%5csecret.txt",
            "/..\\secret.txt",
            "/docs\\index.html",
            "/./index.html",
            "/escape.txt",
            "/outside/secret.txt",
            "/outside/",
            "/outside",
            "/pipe",
            "/index.html%00",
            "/index.html%00.txt",
            "/%00",
            "/index.html%0a",
            "/app.js%20",
            "/%ff%fe",
            "/%c0%ae%c0%ae/secret.txt",
            "/INDEX.HTML",
            "/" + "a" * 300,
            "/" + "a/" * 5000,
            "/%68ealth",
            "/live",
            "/ready",
            "/admin",
            "/admin/",
            "/admin/index.html",
            "/demo/index.html",
            "/demo/x",
            "/health/",
        ):
            with row(path[:60]):
                status, body = told(await got(sited, path))
                assert status == 404 and b"hush" not in body
    # One that came into being after the start.
    for name in OWN_NAMES:
        (www / name).write_text("hush")
        for path in (f"/{name}", f"/%{ord(name[0]):x}{name[1:]}"):
            assert b"hush" not in (await got(sited, path)).reader.rest
        (www / name).unlink()
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE"):
        assert (await got(sited, "/app.js", method=method)).reader.response.status in (405, 411), method
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_a_directory_without_its_slash(sited: Served):
    """Is sent on to that with it, by a relative address that leads nowhere else."""
    for path, place in (
        ("/docs", "./docs/"),
        ("/docs?to=//evil.example", "./docs/?to=//evil.example"),
        ("/z%C3%A4hler/../docs", None),
        ("/demo", "./demo/"),
        ("/demo?x", "./demo/?x"),
        ("//docs", None),
        ("/\\docs", None),
    ):
        answer: Any = (await got(sited, path)).reader.response
        assert (answer.status, answer.header("Location")) == ((308, place) if place else (404, None)), path
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_an_unchanged_file_is_not_sent_again(sited: Served, www: Path):
    """The tag of the content, in either form, weak or strong; and one that is changed is served anew."""
    path = www / "changes.txt"
    path.write_bytes(b"one " * 400)
    for coding in ("", "Accept-Encoding: gzip\r\n"):
        first: Any = (await got(sited, "/changes.txt", coding)).reader.response
        tag = first.header("ETag")
        assert first.header("Cache-Control") == "no-cache"
        for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            for method in ("GET", "HEAD"):
                again = await got(sited, "/changes.txt", f"{coding}If-None-Match: {known}\r\n", method)
                assert told(again) == (304, b"") and again.reader.response.header("ETag") == tag
        assert told(await got(sited, "/changes.txt", 'If-None-Match: "other"\r\n'))[0] == 200
    path.write_bytes(b"two " * 400)
    changed = await got(sited, "/changes.txt", f"If-None-Match: {tag}\r\n")
    assert told(changed) == (200, b"two " * 400)
    path.unlink()
    assert told(await got(sited, "/changes.txt"))[0] == 404
    path.mkdir()
    assert told(await got(sited, "/changes.txt"))[0] == 404
    path.rmdir()
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_what_was_changed_a_moment_ago_is_not_kept(sited: Served, www: Path, monkeypatch: pytest.MonkeyPatch):
    """A second change within the same tick of the clock, of the same length, is seen."""
    monkeypatch.setattr(site, "RECENT", 10**18)
    monkeypatch.setattr(site, "_signature", lambda facts: (facts.st_dev, facts.st_ino, facts.st_size, 0, 0))
    path = www / "quick.txt"
    for number in range(20):
        path.write_text(f"{number:04}" * 300)
        assert told(await got(sited, "/quick.txt")) == (200, (f"{number:04}" * 300).encode())
    path.unlink()
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_texts_are_compressed_once(sited: Served, www: Path, monkeypatch: pytest.MonkeyPatch):
    """For who takes it, zComm's own as well; not what becomes no smaller; to HEAD with that length."""
    packed = []
    compress = gzip.compress
    monkeypatch.setattr(gzip, "compress", lambda *args, **more: packed.append(1) or compress(*args, **more))
    with rows_of_a_test() as row:
        for accepted, is_packed in (
            ("gzip", True),
            ("br, gzip;q=0.5", True),
            ("*", True),
            ("GZIP", True),
            ("gzip;q=0", False),
            ("gzip; q=0.000", False),
            ("*, gzip;q=0", False),
            ("identity", False),
            ("x-gzip2", False),
            (None, False),
        ):
            with row(str(accepted)):
                client = await got(sited, "/app.js", f"Accept-Encoding: {accepted}\r\n" if accepted else "")
                answer: Any = client.reader.response
                assert answer.header("Content-Encoding") == ("gzip" if is_packed else None)
                assert answer.header("Vary") == "Accept-Encoding"
                body = told(client)[1]
                assert (gzip.decompress(body) if is_packed else body) == (www / "app.js").read_bytes()
                head = await got(sited, "/app.js", f"Accept-Encoding: {accepted}\r\n" if accepted else "", "HEAD")
                assert head.reader.rest == b"" and int(head.reader.response.header("Content-Length")) == len(body)
    assert len(packed) <= 1
    for path in ("/zBifrost.js", "/demo/demo.css"):
        client = await got(sited, path, "Accept-Encoding: gzip\r\n")
        assert client.reader.response.header("Content-Encoding") == "gzip"
        assert told(await got(sited, path))[1] == gzip.decompress(told(client)[1])
    for path in ("/logo.svg", "/data.unknown"):
        assert (await got(sited, path, "Accept-Encoding: gzip\r\n")).reader.response.header("Content-Encoding") is None
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_long_files_leave_piece_by_piece(sited: Served, www: Path, monkeypatch: pytest.MonkeyPatch):
    """From memory and from the disk; each byte comes, and nothing is held for it afterwards."""
    monkeypatch.setattr(site, "LARGEST_KEPT", 1_000_000)
    content = os.urandom(3_000_001)
    for size in (site.SMALL, site.SMALL + 1, 700_000, 1_000_000, 1_000_001, exchange.PIECE * 10, 3_000_001):
        (www / "long.bin").write_bytes(content[:size])
        for _ in range(2):
            client = await got(sited, "/long.bin")
            assert told(client) == (200, content[:size])
        tag = client.reader.response.header("ETag")
        assert told(await got(sited, "/long.bin", f"If-None-Match: {tag}\r\n")) == (304, b"")
        head: Any = await got(sited, "/long.bin", method="HEAD")
        assert head.reader.rest == b"" and head.reader.response.header("Content-Length") == str(size)
    own = sited.bifrost.factory.pages.func._site
    await wait_until(lambda: not own._downloads.total(), "nothing on its way")
    assert not any(content.users for _, content in own._shelf._contents.values())
    (www / "long.bin").unlink()
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_many_who_take_nothing_take_no_memory(sited: Served, www: Path, monkeypatch: pytest.MonkeyPatch):
    """So many at once of one address, then 503; files that have no room in memory come from the disk; a change while
    one is sent ends it short, which its client sees by the length; who hangs up leaves nothing."""
    monkeypatch.setattr(site, "ALL_KEPT", 3_000_000)
    monkeypatch.setattr(site, "DOWNLOADS_OF_ONE", 8)
    files = [www / f"big{number}.bin" for number in range(8)]
    for path in files:
        path.write_bytes(os.urandom(1_000_000))
    own = sited.bifrost.factory.pages.func._site
    slow = []
    for number in range(8):
        client = await sited.connect(f"GET /big{number}.bin HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        await client.next()
        client.transport.pauseProducing()
        slow.append(client)
    assert own._shelf._size <= 3_000_000
    refused: Any = (await got(sited, "/big0.bin")).reader.response
    assert (refused.status, refused.header("Retry-After")) == (503, "5")
    # What is short is answered all the same, and they have none of the places for handshakes.
    assert told(await got(sited, "/"))[0] == 200 and sited.bifrost.factory.pending.count == 0
    for path in files:
        path.write_bytes(b"changed" * 200_000)
    for client in slow[:4]:
        client.transport.resumeProducing()
        await client.when_ended()
    # Three were sent from memory, as they were; the others lack something.
    lengths = [len(client.reader.rest) for client in slow[:4]]
    assert lengths[:2] == [1_000_000, 1_000_000] and lengths[3] < 1_000_000
    for client in slow[4:]:
        client.transport.abortConnection()
    await wait_until(lambda: not own._downloads.total(), "nothing on its way")
    for path in files:
        path.unlink()
    await sited.stands()


@pytest_twisted.ensureDeferred
async def test_a_disk_that_hangs_holds_up_nobody_else(sited: Served, www: Path, monkeypatch: pytest.MonkeyPatch):
    """What waits for it is answered 503 in the time that a handshake has; commands and zComm's own pages go on."""
    release = threading.Event()
    monkeypatch.setattr(sited.bifrost.factory.pages.func._site, "_find", lambda path: release.wait(60))
    waiting = [await sited.connect(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()) for _ in range(6)]
    try:
        client = await sited.client()
        assert (await client.call("ping", 1))["result"] == 1
        assert told(await got(sited, "/demo/"))[0] == 200
        for each in waiting:
            assert await statuses(each) == [503]
    finally:
        release.set()
    monkeypatch.undo()
    await sited.stands()


@pytest.mark.parametrize("name", OWN_NAMES)
def test_a_name_of_zcomms_own_ends_the_start(tmp_path: Path, name: str):
    """A file, a directory or a link of it; in words that say which."""
    root = tmp_path / "www"
    root.mkdir()
    for make in (lambda path: path.mkdir(), lambda path: path.symlink_to("nowhere"), lambda path: path.write_text("")):
        make(root / name)
        with pytest.raises(ConfigError, match=f"^--www: .*/{name} is zComm's own; give it another name$"):
            site.Site(root, None, tmp_path / "data")
        (root / name).rmdir() if (root / name).is_dir() else (root / name).unlink()
    (root / f"{name}.html").write_text("")
    site.Site(root, None, tmp_path / "data")


def test_what_cannot_be_served(tmp_path: Path):
    """No directory, none at all, the one with the tokens, and a page where no pages are served."""
    (tmp_path / "file").write_text("")
    (tmp_path / "data").mkdir()
    with rows_of_a_test() as row:
        for root, reason in (
            (tmp_path / "file", "Not a directory"),
            (tmp_path / "missing", "No such file or directory"),
            (tmp_path, ".* holds the data directory .*data; name one with nothing but"),
            (tmp_path / "data", ".* holds the data directory .*data; name one with nothing but"),
        ):
            with row(str(root)), pytest.raises(ConfigError, match=f"^--www: .*{reason}"):
                site.Site(root, None, tmp_path / "data")
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="^--www: everybody may put files into .*open .*; run: chmod o-w "):
        site.Site(tmp_path / "open", None, tmp_path / "data")
    with pytest.raises(ConfigError, match="^--www: nothing is served with --no-web"):
        WebSocketConfig(www=tmp_path, web=False)
    assert (
        Config.from_environ({"ZCOMM_HOME": str(tmp_path), "ZCOMM_WWW": "pages"}).websocket.www == Path.cwd() / "pages"
    )
