"""Files that clients may read: real files, links, pipes and devices."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sqlite3
import subprocess
import sys
import threading
from base64 import b64decode
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet import reactor
from twisted.internet.defer import gatherResults

from zcomm.auth.policy import AllowAll, Policy
from zcomm.auth.private_files import read_private
from zcomm.budget.budgets import Budgets
from zcomm.budget.written import PIECE, Written
from zcomm.commands.files import MAX_SIZE, Files
from zcomm.config import Limits, read_file
from zcomm.data.schema import load_schema
from zcomm.data.store import Store
from zcomm.errors import ConfigError, CredentialsError, Invalid, NotFound, PermissionDenied, Unavailable

#: What is said of a file that is missing, outside, forbidden or no file.
REFUSED = "Access denied: there is no such file, or it may not be opened"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The directory that is served, beside one that is not."""
    root = tmp_path / "files"
    (root / "sub").mkdir(parents=True)
    (root / "config.yaml").write_text("port: 56891\n")
    (root / "sub" / "note.txt").write_text("grüße\n", encoding="utf-8")
    (tmp_path / "secret.txt").write_text("secret")
    return root


@pytest.fixture
def files(root: Path, workers) -> Files:
    return Files(root, AllowAll(), workers)


@pytest_twisted.inlineCallbacks
def test_a_text_file(files, root, caller, asking):
    """``zOpen(config.yaml)`` answers name, type, size, time of change and the text."""
    os.utime(root / "config.yaml", (1760000000, 1760000000))
    answer = yield files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)
    assert answer == {
        "name": "config.yaml",
        "type": "application/yaml",
        "size": 12,
        "modified": "2025-10-09T08:53:20Z",
        "text": "port: 56891\n",
    }
    assert datetime.fromisoformat(answer["modified"]).timestamp() == 1760000000


@pytest_twisted.inlineCallbacks
def test_a_file_in_a_subdirectory(files, caller, asking):
    """Names may lead downwards; sizes are bytes, not characters."""
    answer = yield files.respond(asking("zOpen", "zOpen(sub/note.txt)"), caller)
    assert (answer["name"], answer["text"], answer["size"]) == ("sub/note.txt", "grüße\n", 8)


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("image.png", b"\x89PNG\r\n\x1a\n\xff", "image/png"),
        ("nul.txt", b"a\0b", "text/plain"),
        ("latin.txt", "ü".encode("latin-1"), "text/plain"),
        ("README", b"\xff", "application/octet-stream"),
    ],
)
@pytest_twisted.inlineCallbacks
def test_what_is_no_text_comes_as_base64(name, content, kind, files, root, caller, asking):
    """Bytes that are not UTF-8, or that hold NUL, arrive unchanged as base64."""
    (root / name).write_bytes(content)
    answer = yield files.respond(asking("zOpen", f"zOpen({name})"), caller)
    assert b64decode(answer["base64"]) == content
    assert "text" not in answer and answer["type"] == kind and answer["size"] == len(content)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.json", "application/json"),
        ("a.YML", "application/yaml"),
        ("a.md", "text/markdown"),
        ("a.tar.gz", "application/gzip"),
        ("a", "application/octet-stream"),
        ("a.unknown", "application/octet-stream"),
        ("a.html", "text/html"),
        ("a.js", "text/javascript"),
    ],
)
@pytest_twisted.inlineCallbacks
def test_types_go_by_the_ending(name, kind, files, root, caller, asking):
    """The same type on every machine; an empty file is an empty text."""
    (root / name).touch()
    answer = yield files.respond(asking("zOpen", f"zOpen({name})"), caller)
    assert (answer["type"], answer["text"], answer["size"]) == (kind, "", 0)


@pytest.mark.parametrize(
    "name",
    [
        "../secret.txt",
        "../../etc/passwd",
        "/etc/shadow",
        "/etc/passwd",
        "~/.ssh/id_rsa",
        "~/.zolo/credentials",
        "/proc/self/environ",
        "..%2fsecret.txt",
        "..\\secret.txt",
        "sub/../../secret.txt",
        "sub/../config.yaml",
        "./config.yaml",
        "config.yaml/",
        "config.yaml/x",
        "sub//note.txt",
        "sub/.",
        "sub/..",
        ".",
        "..",
        "a\0.yaml",
        "config.yaml\0",
        "a\nb",
        "http://169.254.169.254/",
        "file:///etc/passwd",
        "www.x",
        "javascript:alert(1)",
        "-rf",
        "missing.txt",
        "sub/missing",
        "nowhere/at/all",
        ".env",
        ".git/config",
        "sub/.hidden",
        "\u202egnp.exe",
        "x" * 300,
        "é" * 255,
        "\ud800",
        "config.yaml!",
        "*",
        "config*",
        "^config.yaml",
        "@.config.yaml",
        "sub",
    ],
)
@pytest_twisted.inlineCallbacks
def test_what_is_not_below_the_root_does_not_exist(name, files, root, caller, asking):
    """I6, I7, I8: whatever leads outside, hides, is missing or is no file reads the same, at once."""
    (root / ".env").write_text("secret")
    (root / ".git").mkdir()
    (root / ".git" / "config").write_text("secret")
    (root / "sub" / ".hidden").write_text("secret")
    with pytest.raises(NotFound) as caught:
        yield files.respond(asking("zOpen", f"zOpen({name})"), caller)
    assert str(caught.value) == REFUSED


@pytest.mark.parametrize(
    "name",
    [
        "link",
        "inside",
        "linked/secret.txt",
        "linked/note.txt",
        "hard",
        "pipe",
        "socket",
        "device",
        "sub",
    ],
)
@pytest_twisted.inlineCallbacks
def test_links_and_things_that_are_no_files_are_refused(name, files, root, tmp_path, caller, asking):
    """I6: symbolic links, also harmless ones, hard links, pipes, sockets, devices, directories; none is waited for."""
    (root / "link").symlink_to(tmp_path / "secret.txt")
    (root / "inside").symlink_to("config.yaml")
    (root / "linked").symlink_to(tmp_path if "secret" in name else root / "sub")
    os.link(tmp_path / "secret.txt", root / "hard")
    os.mkfifo(root / "pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        before = os.getcwd()
        os.chdir(root)  # The path of a socket is at most 108 bytes long.
        try:
            listening.bind("socket")
        finally:
            os.chdir(before)
        if name == "device":
            try:
                os.mknod(root / "device", 0o20666, os.makedev(1, 5))
            except PermissionError:
                pytest.skip("only root can make a device")
        with pytest.raises(NotFound) as caught:
            yield files.respond(asking("zOpen", f"zOpen({name})"), caller)
        assert str(caught.value) == REFUSED


@pytest.mark.parametrize(("size", "allowed"), [(MAX_SIZE, True), (MAX_SIZE + 1, False), (2 * 1024**3, False)])
@pytest_twisted.inlineCallbacks
def test_size_is_bounded(size, allowed, files, root, caller, asking):
    """I6: 1 MiB is sent, a byte more is not, and two gigabytes are not read to find out."""
    with open(root / "big.bin", "wb") as stream:
        stream.truncate(size)
    if allowed:
        answer = yield files.respond(asking("zOpen", "zOpen(big.bin)"), caller)
        told = json.loads(answer.json())
        assert told["size"] == size and b64decode(told["base64"]) == bytes(size)
    else:
        with pytest.raises(Invalid, match="^The file is larger than 1024 KiB$"):
            yield files.respond(asking("zOpen", "zOpen(big.bin)"), caller)


@pytest.mark.parametrize("character", ["a", "ü", "\U0001f600", '"', "\\", "\n"])
@pytest_twisted.inlineCallbacks
def test_a_large_file_is_made_into_json_in_its_thread(character, files, root, caller, asking):
    """Beyond 64 KiB nothing of it is left to do for the reactor; what is told is the same as of a small one."""
    for size in (PIECE, PIECE + 1, MAX_SIZE):
        content = (character * size)[: size // len(character.encode())]
        (root / "text.txt").write_text(content, "utf-8", newline="")
        answer = yield files.respond(asking("zOpen", "zOpen(text.txt)"), caller)
        told = json.loads(answer.json()) if isinstance(answer, Written) else answer
        length = len(content.encode())
        assert isinstance(answer, Written) is (length > PIECE)
        assert list(told) == ["name", "type", "size", "modified", "text"]
        assert told["text"] == content and told["size"] == length


@pytest.mark.skipif(not os.path.exists("/proc/kallsyms"), reason="a file that is longer than it says is needed")
@pytest_twisted.inlineCallbacks
def test_size_is_what_was_read(workers, caller, asking):
    """A file that says it is empty and goes on for megabytes is not read beyond the limit."""
    files = Files(Path("/proc"), AllowAll(), workers)
    with pytest.raises(Invalid, match="larger than 1024 KiB"):
        yield files.respond(asking("zOpen", "zOpen(kallsyms)"), caller)


def locks_on(path: Path) -> list[str]:
    """The locks that this process has on a file, as the system lists them."""
    place = f":{path.stat().st_ino}"
    # Those who wait for a lock stand below it, behind an arrow.
    listed = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    lines = [line for line in listed if line[1] != "->"]
    return sorted(" ".join(line[3:4] + line[6:]) for line in lines if int(line[4]) == os.getpid() and place in line[5])


@pytest.mark.skipif(not os.path.exists("/proc/locks"), reason="the system does not list locks")
@pytest.mark.parametrize("journal", ["wal", "delete"])
@pytest_twisted.ensureDeferred
async def test_contact_a_database_in_use_is_not_opened(journal: str, tmp_path: Path, root, workers, caller, asking):
    """To close a descriptor takes the locks from the whole process: its files are refused, whatever they are called."""
    place = root / journal
    place.mkdir()
    path = place / "app.db"
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"PRAGMA journal_mode = {journal}")
        other.execute("CREATE TABLE Notes (id INTEGER PRIMARY KEY, text TEXT)")
    schema = load_schema("Notes: {id: {type: int, pk: true}, text: str}")
    store = Store(f"sqlite:///{path}", schema, workers, budgets=Budgets.on(reactor, Limits()))
    await store.start()
    files = Files(root, AllowAll(), workers)
    try:
        await store.create("test", "Notes", {"text": "one"})
        (place / "app.db-journal").touch()
        before = [locks_on(path), locks_on(place / "app.db-shm") if journal == "wal" else []]
        assert journal == "delete" or all(before)
        for end in ("", "-wal", "-shm", "-journal"):
            with pytest.raises(NotFound, match=f"^{REFUSED}$"):
                await files.respond(asking("zOpen", f"zOpen({journal}/app.db{end})"), caller)
        (tmp_path / "link").symlink_to(path)
        (tmp_path / "hard").hardlink_to(path)
        for option in (path, tmp_path / "link", tmp_path / "hard"):
            with pytest.raises(ConfigError, match="cannot be read: a database that is open has it"):
                read_file(option, "--policy")
        path.chmod(0o600)
        with pytest.raises(CredentialsError, match="cannot be read: a database that is open has it"):
            read_private(path)
        assert [locks_on(path), locks_on(place / "app.db-shm") if journal == "wal" else []] == before
        # Others see that it is in use, and leave its log where it is.
        leave = "import sqlite3, sys; x = sqlite3.connect(sys.argv[1]); x.execute('SELECT * FROM Notes'); x.close()"
        subprocess.run([sys.executable, "-c", leave, str(path)], check=True)
        assert (place / "app.db-wal").exists() == (journal == "wal")
        path.rename(place / "moved")
        (tmp_path / "hard").unlink()
        with pytest.raises(NotFound, match=f"^{REFUSED}$"):
            await files.respond(asking("zOpen", f"zOpen({journal}/moved)"), caller)
        assert locks_on(place / "moved") == before[0]
        (place / "moved").rename(path)
        (place / "app.db-journal").unlink()
        assert await store.update("test", "Notes", {"id": 1}, {"text": "two"}) == {"updated": 1}
    finally:
        await store.stop()


@pytest.mark.skipif(not hasattr(fcntl, "F_OFD_GETLK"), reason="the system does not tell of locks")
@pytest_twisted.ensureDeferred
async def test_contact_locks_of_others_in_this_process_stay(root, workers, caller, asking):
    """A database that a program's own functions use keeps its locks, and no descriptor is left when it is closed."""
    files = Files(root, AllowAll(), workers)
    names = ("own.db", "own.db-wal", "own.db-shm")
    with closing(sqlite3.connect(root / "own.db", isolation_level=None)) as own:
        own.execute("PRAGMA journal_mode = WAL")
        own.execute("CREATE TABLE t (x)")
        before = [locks_on(root / name) for name in names]
        assert before[0] and before[2]
        descriptors = len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            for name in names:
                assert (await files.respond(asking("zOpen", f"zOpen({name})"), caller))["size"]
        assert [locks_on(root / name) for name in names] == before
        assert len(os.listdir("/proc/self/fd")) == descriptors + 2
    await files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)
    # The connection had three.
    assert len(os.listdir("/proc/self/fd")) == descriptors - 3


@pytest_twisted.inlineCallbacks
def test_without_a_directory_nothing_is_opened(workers, caller, asking):
    """No ``--files``: every zOpen is refused, in words that say so."""
    files = Files(None, AllowAll(), workers)
    with pytest.raises(NotFound, match="this server opens no files"):
        yield files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)


@pytest_twisted.inlineCallbacks
def test_the_policy_is_asked_by_name(root, workers, caller, guest, asking):
    """A15: a role that may not open a name is denied, whether there is such a file or not."""
    policy = Policy.from_yaml('admin: {files: "*"}\nguest: {files: ["sub/*"]}', "policy")
    files = Files(root, policy, workers)
    answer = yield files.respond(asking("zOpen", "zOpen(sub/note.txt)"), guest)
    assert answer["name"] == "sub/note.txt"
    for name in ("config.yaml", "missing.yaml"):
        with pytest.raises(PermissionDenied, match="^Permission denied$"):
            yield files.respond(asking("zOpen", f"zOpen({name})"), guest)
    with pytest.raises(NotFound):
        yield files.respond(asking("zOpen", "zOpen(sub/../config.yaml)"), guest)
    answer = yield files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)
    assert answer["text"]


@pytest_twisted.inlineCallbacks
def test_names_that_the_form_cannot_write(files, root, caller, asking):
    """In JSON a name is taken as it is, comma, blanks and all; rights and directory are the same."""
    for name in ("a, b.txt", " leading.txt", "trailing.txt ", "zOpen(x)", "report (1).txt"):
        (root / name).write_text(name)
        answer = yield files.respond(asking("zOpen", {"name": name}), caller)
        assert (answer["name"], answer["text"]) == (name, name)
    for name in ("../secret", "/etc/passwd", "missing", ".hidden"):
        with pytest.raises(NotFound):
            yield files.respond(asking("zOpen", {"name": name}), caller)
    for horizontal in ({}, {"name": ""}, {"name": 5}, {"name": "x" * 513}, {"name": "a", "onSuccess": "zFunc(f)"}):
        with pytest.raises(Invalid):
            yield files.respond(asking("zOpen", horizontal), caller)


@pytest.mark.parametrize(
    "horizontal",
    [
        None,
        5,
        {"path": "config.yaml", "onSuccess": "zFunc(f)"},
        "zOpen(a, zFunc(b))",
        "config.yaml",
    ],
)
@pytest_twisted.inlineCallbacks
def test_other_forms_are_refused(horizontal, files, caller, asking):
    """I9: no hooks and no objects; the failure is in the Deferred."""
    with pytest.raises(Invalid):
        yield files.respond(asking("zOpen", horizontal), caller)


@pytest.mark.parametrize("path", ["missing", "config.yaml"])
def test_a_root_that_is_no_directory_ends_the_start(path: str, root, workers):
    """One clear error naming the option, before anything is served."""
    with pytest.raises(ConfigError, match="^--files: .*(No such file|Not a directory)"):
        Files(root / path, AllowAll(), workers)


@pytest_twisted.inlineCallbacks
def test_the_root_may_be_a_link_but_may_not_become_one(root, tmp_path, workers, caller, asking):
    """What the operator named is followed once; a link put in its place later is not."""
    (tmp_path / "alias").symlink_to(root)
    files = Files(tmp_path / "alias", AllowAll(), workers)
    answer = yield files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)
    assert answer["text"]
    root.rename(tmp_path / "moved")
    root.symlink_to(tmp_path)
    with pytest.raises(NotFound):
        yield files.respond(asking("zOpen", "zOpen(secret.txt)"), caller)


@pytest.fixture
def swapping(root: Path, tmp_path: Path) -> Iterator[None]:
    """A directory and a file below the root that turn into links to the outside and back, all the time."""
    ended = threading.Event()
    (root / "flip").mkdir()
    (root / "flip" / "secret.txt").write_text("inside")
    (root / "flop.txt").write_text("inside")

    def swap() -> None:
        while not ended.is_set():
            os.rename(root / "flip", root / "flip.real")
            os.symlink(tmp_path, root / "flip")
            os.unlink(root / "flip")
            os.rename(root / "flip.real", root / "flip")
            os.symlink(tmp_path / "secret.txt", root / "flop.new")
            os.rename(root / "flop.new", root / "flop.txt")
            (root / "flop.new").write_text("inside")
            os.rename(root / "flop.new", root / "flop.txt")

    thread = threading.Thread(target=swap)
    thread.start()
    yield
    ended.set()
    thread.join()


@pytest_twisted.inlineCallbacks
def test_no_race_leads_outside(swapping, files, caller, asking):
    """A link put in place between the check and the opening is not followed."""
    seen = set()
    for _ in range(100):
        answers = yield gatherResults(
            [
                files.respond(asking("zOpen", f"zOpen({name})"), caller).addErrback(
                    lambda why: {"text": why.type.__name__}
                )
                for name in ("flip/secret.txt", "flop.txt")
            ]
        )
        seen |= {answer["text"] for answer in answers}
    assert seen <= {"inside", "NotFound", ""}
    assert "inside" in seen


@pytest_twisted.inlineCallbacks
def test_running_out_of_descriptors_is_not_the_clients_fault(files, root, caller, asking):
    """A failure of the machine reads as one that may pass, not as a missing file."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open(root, os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(Unavailable) as caught:
            yield files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.retryable


@pytest_twisted.inlineCallbacks
def test_dates_beyond_the_calendar(files, root, caller, asking):
    """A time of change that no calendar has is left out; the file still comes."""
    os.utime(root / "config.yaml", (2**40, 2**40))
    if os.stat(root / "config.yaml").st_mtime < 2**39:
        pytest.skip("this file system cannot hold such a date")
    answer = yield files.respond(asking("zOpen", "zOpen(config.yaml)"), caller)
    assert answer["modified"] is None and answer["text"]


@pytest_twisted.inlineCallbacks
def test_a_client_that_leaves_costs_nothing(files, caller, asking):
    """Cancelling the answer leaves no descriptor open and no thread busy."""
    waiting = [files.respond(asking("zOpen", "zOpen(config.yaml)"), caller) for _ in range(20)]
    for answer in waiting:
        answer.addErrback(lambda why: why.trap(Exception) and None)
        answer.cancel()
    yield wait_until(
        lambda: files._workers.running == 0 and files._workers.waiting == 0, "idle threads", reactor=reactor
    )
