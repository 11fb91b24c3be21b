"""The files that hold secrets: modes, owners, links, two writers at once, and writers that are killed."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.serverprocess import CHECKOUT, clean_environ
from support.waiting import wait_until_blocking

from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.private_files import file_signature, locked, read_private, write_private
from zcomm.auth.tokens import TokenStore
from zcomm.errors import ConfigError, CredentialsError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


#: The mode of a directory that zComm makes: root's can be passed by the accounts of services, never listed.
DIRECTORY = 0o711 if os.geteuid() == 0 else 0o700


@pytest.fixture
def no_umask() -> Iterator[None]:
    """No bits are taken away from what the code asks for."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "operator.json"


def test_the_first_start_makes_the_file(path, no_umask):
    """A directory that nobody else may list, file 0600, name, role and token in JSON, a token that is random."""
    made = OperatorCredentials.load_or_create(path)
    assert mode(path) == 0o600 and mode(path.parent) == DIRECTORY
    content = json.loads(path.read_text())
    assert content == {"name": made.username, "role": "admin", "token": made.token}
    assert made.token.startswith("zc_operator_") and len(made.token) == 12 + 43
    assert made.token not in repr(made)


def test_the_next_start_finds_it(path):
    """The token stays until it is rotated; nothing is written."""
    first = OperatorCredentials.load_or_create(path)
    before = file_signature(path)
    second = OperatorCredentials.load_or_create(path)
    assert (
        (second.token, second.identity)
        == (first.token, first.identity)
        == (OperatorCredentials.load(path).token, first.identity)
    )
    assert file_signature(path) == before


def test_directories_keep_their_mode(tmp_path, no_umask):
    """A directory that was there is left as it is; each one that is made is closed to others (B27)."""
    (tmp_path / "there").mkdir(mode=0o755)
    OperatorCredentials.load_or_create(tmp_path / "there" / "a" / "b" / "operator.json")
    assert [mode(tmp_path / part) for part in ("there", "there/a", "there/a/b")] == [0o755, DIRECTORY, DIRECTORY]


def test_what_stands_beside_is_kept(path):
    """Keys that zComm does not know survive a rotation, and so do a name and a role that somebody chose."""
    path.parent.mkdir()
    path.write_text(json.dumps({"name": "alice", "role": "chief", "token": "a-key-of-ones-own", "note": 7, "é": [1]}))
    path.chmod(0o600)
    found = OperatorCredentials.load_or_create(path)
    assert (found.username, found.role, found.token) == ("alice", "chief", "a-key-of-ones-own")
    rotated = OperatorCredentials.rotate(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content.pop("token") == rotated.token != "a-key-of-ones-own"
    assert content == {"name": "alice", "role": "chief", "note": 7, "é": [1]}
    assert mode(path) == 0o600


@pytest.mark.parametrize("content", ['{"name": "alice"}', '{"name": "alice", "token": null, "role": null}'])
def test_a_file_without_a_token_gets_one(content: str, path):
    """The start puts one in."""
    path.parent.mkdir()
    path.write_text(content)
    path.chmod(0o600)
    fix = f"zcomm token rotate --data-dir {path.parent}"
    with pytest.raises(CredentialsError, match=f"holds no token; fix it with: {fix}"):
        OperatorCredentials.load(path)
    assert OperatorCredentials.load_or_create(path).username == "alice"
    assert OperatorCredentials.load(path).role == "admin"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "is not a JSON object"),
        (b"{", "is not a JSON object"),
        (b"[]", "is not a JSON object"),
        (b"\xff", "is not a JSON object"),
        (b'"x"', "is not a JSON object"),
        (b"[" * 100_000, "is not a JSON object"),
        (b'{"token": 5}', "its token is not 8 to 512 printable characters"),
        (b'{"token": "short"}', "its token is not"),
        (b'{"token": "%s"}' % (b"x" * 513), "its token is not"),
        (b'{"token": "with\\nnewline"}', "its token is not"),
        (b'{"token": "\\ud800\\ud800\\ud800"}', "its token is not"),
        (b'{"token": ["12345678"]}', "its token is not"),
        (b'{"token": "12345678", "role": 5}', "its role is not text"),
        (b'{"token": "12345678", "name": []}', "its name is not text"),
        (b'{"token": "12345678", "name": "\\ud800"}', "its name is not text"),
    ],
)
def test_damaged_files_are_refused_and_left_alone(content: bytes, reason: str, path):
    """What cannot be understood is named and never overwritten."""
    path.parent.mkdir()
    path.write_bytes(content)
    path.chmod(0o600)
    for attempt in (OperatorCredentials.load, OperatorCredentials.load_or_create):
        with pytest.raises(CredentialsError) as caught:
            attempt(path)
        assert reason in str(caught.value) and "; fix it with: " in str(caught.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("bits", [0o604, 0o640, 0o644, 0o660, 0o666, 0o601, 0o620, 0o777])
def test_files_open_to_others_are_refused(bits: int, path):
    """Anything beyond the owner's own rights is refused, with the command that takes it away."""
    OperatorCredentials.load_or_create(path)
    path.chmod(bits)
    for attempt in (OperatorCredentials.load, OperatorCredentials.load_or_create, OperatorCredentials.rotate):
        with pytest.raises(CredentialsError) as caught:
            attempt(path)
        assert str(caught.value) == f"{path}: is open to others (mode {bits:04o}); fix it with: chmod 600 {path}"
    assert mode(path) == bits
    subprocess.run(["sh", "-c", caught.value.fix], check=True)
    assert OperatorCredentials.load(path)


@pytest.mark.parametrize("bits", [0o400, 0o600, 0o700])
def test_narrower_modes_are_welcome(bits: int, path):
    """A file that its owner alone can read is good; writing it again makes it 0600."""
    OperatorCredentials.load_or_create(path)
    path.chmod(bits)
    OperatorCredentials.rotate(path)
    assert mode(path) == 0o600


def test_links_are_refused(path, tmp_path):
    """A symbolic link is refused, to a good file as well; the fix puts the file itself there."""
    OperatorCredentials.load_or_create(tmp_path / "elsewhere" / "real file")
    path.parent.mkdir()
    path.symlink_to(tmp_path / "elsewhere" / "real file")
    for attempt in (OperatorCredentials.load, OperatorCredentials.load_or_create, OperatorCredentials.rotate):
        with pytest.raises(CredentialsError, match="is a symbolic link") as caught:
            attempt(path)
    subprocess.run(["sh", "-c", caught.value.fix], check=True)
    assert OperatorCredentials.load(path) and not path.is_symlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_others_are_refused(path):
    """A file that somebody else could have written is refused, with the command that takes it over."""
    OperatorCredentials.load_or_create(path)
    os.chown(path, 65534, -1)
    with pytest.raises(
        CredentialsError, match="belongs to nobody, not to root; fix it with: sudo chown root "
    ) as caught:
        OperatorCredentials.load(path)
    subprocess.run(["sh", "-c", caught.value.fix.removeprefix("sudo ")], check=True)
    assert OperatorCredentials.load(path)
    os.chown(path, 1_234_567_890, -1)
    with pytest.raises(CredentialsError, match="belongs to 1234567890, not to root"):
        OperatorCredentials.load(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_files_of_anothers_directory_stay_that_users(path):
    """Root is told to act as the account that the server runs as, not to take its file from it."""
    OperatorCredentials.load_or_create(path)
    for given in (path.parent, path):
        os.chown(given, 65534, -1)
    for attempt in (OperatorCredentials.load, OperatorCredentials.rotate):
        with pytest.raises(CredentialsError, match="belongs to nobody, not to root; fix it with: sudo -su nobody$"):
            attempt(path)


@pytest.mark.parametrize(
    "make",
    [lambda path: path.mkdir(), lambda path: os.mkfifo(path, 0o600)],
    ids=[
        "directory",
        "pipe",
    ],
)
def test_what_is_no_file_is_refused(make: Callable[[Path], None], path):
    """A directory or a pipe in its place is an error at once; nobody waits for a writer."""
    path.parent.mkdir()
    make(path)
    with pytest.raises(CredentialsError, match="; fix it with: "):
        OperatorCredentials.load(path)


def test_a_file_that_grew_beyond_reason_is_not_read(path):
    """What is far larger than any credential file is refused by its size."""
    path.parent.mkdir()
    with open(path, "wb") as stream:
        stream.truncate(2**40)
    path.chmod(0o600)
    with pytest.raises(CredentialsError, match="is far larger than it can be"):
        OperatorCredentials.load(path)


def test_a_directory_that_cannot_be_made(tmp_path):
    """The error names the file and where to look."""
    (tmp_path / "file").touch()
    with pytest.raises(CredentialsError, match="cannot be (read|written): Not a directory"):
        OperatorCredentials.load_or_create(tmp_path / "file" / "credentials")
    with pytest.raises(CredentialsError, match="cannot be read: Not a directory"):
        file_signature(tmp_path / "file" / "credentials")
    with pytest.raises(CredentialsError, match="cannot be read: Not a directory"):
        read_private(tmp_path / "file" / "credentials")


def test_a_missing_file_is_missing(path):
    """Loading without making says which command makes it."""
    with pytest.raises(CredentialsError, match="does not exist; fix it with: zcomm token rotate"):
        OperatorCredentials.load(path)


def test_a_full_disk_leaves_the_old_file(path):
    """D3: a write that fails half-way changes nothing and leaves nothing behind."""
    import resource

    first = OperatorCredentials.load_or_create(path)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
    try:
        with pytest.raises(CredentialsError, match="cannot be written: File too large"):
            OperatorCredentials.rotate(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert OperatorCredentials.load(path).token == first.token
    assert sorted(os.listdir(path.parent)) == [".operator.json.lock", "operator.json"]


WRITER = """
import sys
from pathlib import Path
from zcomm.auth.credentials import OperatorCredentials
from zcomm.auth.tokens import TokenStore
path = Path(sys.argv[1])
store = TokenStore(path.parent / "tokens.json")
print("ready", flush=True)
while True:
    OperatorCredentials.rotate(path)
    store.add("alice", "user")
    store.revoke("alice")
"""


def test_a_killed_writer_leaves_whole_files(path, tmp_path):
    """kill -9 at any moment: the files are whole and 0600, the lock is free, what was half written goes later."""
    OperatorCredentials.load_or_create(path)
    store = TokenStore(path.parent / "tokens.json")
    kept = store.add("bob", "user").record
    for _ in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path)], cwd=CHECKOUT, env=clean_environ(tmp_path), stdout=subprocess.PIPE
        )
        writer.stdout.readline()
        # Some writes, then the axe, wherever it falls.
        signatures = {file_signature(path)}

        def written(signatures: set[object] = signatures) -> bool:
            signatures.add(file_signature(path))
            return len(signatures) > 3

        wait_until_blocking(written, "some writes")
        writer.kill()
        writer.wait()
        writer.stdout.close()
        assert OperatorCredentials.load(path).token
        assert kept in store.list()
        for left in path.parent.iterdir():
            assert mode(left) == 0o600, left
    OperatorCredentials.rotate(path)
    store.add("carol", "user")
    assert sorted(os.listdir(path.parent)) == [
        ".operator.json.lock",
        ".tokens.json.lock",
        "operator.json",
        "tokens.json",
    ]


def test_leftovers_of_a_killed_writer_are_removed(path):
    """A half-written file with secrets in it does not stay for ever."""
    OperatorCredentials.load_or_create(path)
    left = path.parent / ".operator.json.0123456789abcdef.tmp"
    left.write_text("secret")
    OperatorCredentials.rotate(path)
    assert not left.exists()


ADDER = """
import sys
from zcomm.auth.tokens import TokenStore
store = TokenStore(sys.argv[1])
for number in range(25):
    store.add(f"{sys.argv[2]}-{number}", "user")
"""


def test_two_programs_write_at_once(tmp_path):
    """No token is lost when several programs add at the same time."""
    path = tmp_path / "tokens.json"
    writers = [
        subprocess.Popen([sys.executable, "-c", ADDER, str(path), name], cwd=CHECKOUT, env=clean_environ(tmp_path))
        for name in ("a", "b", "c")
    ]
    assert [writer.wait(120) for writer in writers] == [0, 0, 0]
    users = [token.user for token in TokenStore(path).list()]
    assert sorted(users) == sorted(f"{name}-{number}" for name in "abc" for number in range(25))
    assert mode(path) == 0o600


def test_two_first_starts_agree(path):
    """Servers that start at the same moment make one token, not two."""
    found: list[str] = []
    starting = threading.Barrier(8)

    def start() -> None:
        starting.wait()
        found.append(OperatorCredentials.load_or_create(path).token)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_the_lock_is_held(path):
    """While one writes another waits; the lock is the owner's alone."""
    entered = threading.Event()

    def other() -> None:
        with locked(path):
            write_private(path, b"second")
            entered.set()

    with locked(path):
        thread = threading.Thread(target=other)
        thread.start()
        write_private(path, b"first")
        assert not entered.wait(0.05)
        assert read_private(path)[0] == b"first"
    thread.join()
    assert read_private(path)[0] == b"second"
    assert mode(path.parent / ".operator.json.lock") == 0o600


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "data" / "tokens.json", lambda: datetime(2026, 11, 23, 8, 0, 0, 123456, tzinfo=UTC))


def test_a_token_is_shown_once(store, no_umask):
    """The file keeps its SHA-256 and nothing else that could be used."""
    issued = store.add("alice", "clerk", timedelta(days=30))
    text = store.path.read_text()
    assert issued.token not in text and issued.token.split("_", 2)[2] not in text and issued.token not in repr(issued)
    assert mode(store.path) == 0o600 and mode(store.path.parent) == DIRECTORY
    record = json.loads(text)["tokens"][0]
    assert record.pop("sha256") == issued.record.sha256 and re.fullmatch("[0-9a-f]{64}", issued.record.sha256)
    assert record == {
        "id": issued.record.id,
        "user": "alice",
        "role": "clerk",
        "created": "2026-11-23T08:00:00+00:00",
        "expires": "2026-12-23T08:00:00+00:00",
    }
    assert store.list() == (issued.record,)


def test_no_file_holds_no_tokens(store):
    """A data directory without tokens is none the worse; looking makes no file."""
    assert store.list() == () and store.reload() is False and store.get("x") is None
    assert not store.path.exists()


def test_revoking(store):
    """By id one token, by user all of theirs; what is left is left as it was."""
    first, second, other = store.add("alice", "clerk"), store.add("alice", "admin"), store.add("bob", "clerk")
    assert store.revoke(first.record.id) == (first.record,)
    assert store.list() == (second.record, other.record)
    third = store.add("alice", "user")
    assert store.revoke("alice") == (second.record, third.record)
    assert store.list() == (other.record,)
    with pytest.raises(ConfigError, match="there is no token and no user 'alicia'"):
        store.revoke("alicia")
    with pytest.raises(ConfigError, match='did you mean "bob"'):
        store.revoke("bobb")
    assert store.list() == (other.record,)


def test_rotating(store):
    """A new secret under a new id; user, role and lifetime stay, or get the lifetime asked for."""
    old, forever, other = (
        store.add("alice", "clerk", timedelta(days=7)),
        store.add("alice", "admin"),
        store.add("bob", "x"),
    )
    fresh = store.rotate("alice")
    assert [(new.record.user, new.record.role) for new in fresh] == [("alice", "clerk"), ("alice", "admin")]
    assert fresh[0].record.expires - fresh[0].record.created == timedelta(days=7) and fresh[1].record.expires is None
    assert store.list() == (fresh[0].record, fresh[1].record, other.record)
    assert len({old.record.id, forever.record.id, fresh[0].record.id, fresh[1].record.id}) == 4
    (shorter,) = store.rotate(fresh[1].record.id, timedelta(hours=1))
    assert shorter.record.expires == shorter.record.created + timedelta(hours=1)
    with pytest.raises(ConfigError):
        store.rotate("nobody")


def test_a_removed_file_revokes_everything(path):
    """A server that has read tokens forgets them with their file, five seconds later: an editor may be replacing it."""
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    store = TokenStore(path.parent / "tokens.json", lambda: now[0])
    issued = store.add("alice", "clerk")
    content = store.path.read_bytes()
    for _ in range(2):
        store.path.unlink()
        with pytest.raises(CredentialsError, match="was removed or moved a moment ago"):
            store.reload()
        assert store.get(issued.record.id)
        now[0] += timedelta(seconds=4)
        write_private(store.path, content)
        assert store.reload() is True and store.get(issued.record.id)
    store.path.unlink()
    with pytest.raises(CredentialsError, match="a moment ago"):
        store.reload()
    now[0] += timedelta(seconds=5)
    assert store.reload() is True and store.get(issued.record.id) is None and store.reload() is False


def test_unknown_keys_are_kept(store):
    """What a later version of zComm added, to the file or a token, survives a change."""
    first = store.add("alice", "clerk")
    document = json.loads(store.path.read_text())
    document["note"] = "kept"
    document["tokens"][0]["scope"] = ["a"]
    store.path.write_text(json.dumps(document))
    store.add("bob", "clerk")
    store.rotate(first.record.id)
    document = json.loads(store.path.read_text())
    assert document["note"] == "kept" and document["tokens"][0]["scope"] == ["a"]


@pytest.mark.parametrize(
    ("user", "role", "ttl", "reason"),
    [
        ("", "x", None, "^user: "),
        (" ", "x", None, "^user: "),
        ("a\nb", "x", None, "^user: "),
        ("x" * 129, "x", None, "^user: "),
        (None, "x", None, "^user: "),
        ("a", "", None, "^role: "),
        ("a", "\x1b[31m", None, "^role: "),
        ("a", 5, None, "^role: "),
        ("a", "b", timedelta(0), "^ttl: "),
        ("a", "b", timedelta(days=-1), "^ttl: "),
        ("a", "b", timedelta(days=9**8), "^ttl: ends after"),
    ],
)
def test_tokens_that_make_no_sense(user, role, ttl, reason, store):
    """Names that are empty, endless or would garble a log, and lifetimes that are over: nothing is written."""
    with pytest.raises(ConfigError, match=reason):
        store.add(user, role, ttl)
    assert not store.path.exists()


RECORD = {
    "id": "a",
    "user": "b",
    "role": "c",
    "sha256": "0" * 64,
    "created": "2026-11-23T08:00:00+00:00",
    "expires": None,
}


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        (b"", "is not JSON"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b"[" * 100_000, "is not JSON"),
        ({"version": 2}, "is of a later version"),
        ({"tokens": {}}, "its tokens are not a list"),
        ({"tokens": [5]}, "token number 1 is damaged"),
        ({"tokens": [RECORD, {}]}, "token number 2 is damaged"),
        *(
            ({"tokens": [{**RECORD, key: value}]}, "token number 1 is damaged")
            for key, value in [
                ("id", ""),
                ("id", 5),
                ("user", None),
                ("role", []),
                ("sha256", "0" * 63),
                ("sha256", "x" * 64),
                ("sha256", "00"),
                ("created", "yesterday"),
                ("created", "2026-11-23T08:00:00"),
                ("created", 5),
                ("expires", "never"),
                ("expires", 0),
            ]
        ),
    ],
)
def test_damaged_token_files_are_refused_and_left_alone(document, reason, store):
    """A file that cannot be understood is named, with what to do, and no change is written over it."""
    content = document if isinstance(document, bytes) else json.dumps(document).encode()
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    store.path.chmod(0o600)
    for attempt in (
        store.list,
        store.reload,
        lambda: store.add("a", "b"),
        lambda: store.revoke("b"),
        lambda: store.rotate("b"),
    ):
        with pytest.raises(CredentialsError, match=reason) as caught:
            attempt()
    assert caught.value.fix == f"mv {store.path} {store.path}.old"
    assert store.path.read_bytes() == content


def test_a_token_file_open_to_others_is_refused(store):
    """Hashes are no secret that opens a door, but who may write the file may open every one."""
    store.add("alice", "clerk")
    store.path.chmod(0o664)
    with pytest.raises(CredentialsError, match="chmod 600"):
        store.add("bob", "clerk")
    with pytest.raises(CredentialsError, match="chmod 600"):
        TokenStore(store.path).list()


def test_contact_a_directory_that_is_away_for_a_while_revokes_nothing(path, tmp_path):
    """It was moved, its volume is not there, or another one is in its place: nobody can say what is in it."""
    operator = OperatorCredentials.load_or_create(path)
    store = TokenStore(path.parent / "tokens.json")
    issued = store.add("alice", "clerk")
    store.reload()
    token = operator.token
    for other in (False, True):
        path.parent.rename(tmp_path / "elsewhere")
        if other:
            path.parent.mkdir(mode=0o700)
        for read in (operator.reload, store.reload):
            with pytest.raises(CredentialsError, match="is not the directory that was" if other else "is gone"):
                read()
        assert operator.token == token and store.get(issued.record.id)
        if other:
            path.parent.rmdir()
        (tmp_path / "elsewhere").rename(path.parent)
        assert (operator.reload(), store.reload()) == (False, False)
    path.unlink()
    assert operator.reload() is True and operator.token == "" and store.get(issued.record.id)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_contact_nobody_puts_a_file_among_those_of_another(path):
    """The server that those belong to could not read it, and would let nobody in."""
    OperatorCredentials.load_or_create(path)
    os.chown(path, 65534, -1)
    before = sorted(os.listdir(path.parent))
    store = TokenStore(path.parent / "tokens.json")
    with pytest.raises(CredentialsError, match="operator.json: belongs to nobody, not to root; .*: sudo -su nobody"):
        store.add("bob", "admin")
    assert sorted(os.listdir(path.parent)) == before
