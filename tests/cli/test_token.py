"""``zcomm token``, as a person and as a program call it."""

from __future__ import annotations

import argparse
import json
import os
import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from zcomm.auth.codes import hold_code
from zcomm.auth.credentials import BearerToken, OperatorCredentials, TokenChecker, fingerprint
from zcomm.auth.sessions import invite
from zcomm.auth.tokens import TokenStore
from zcomm.cli.token import declare_token, duration, table
from zcomm.errors import ConfigError, CredentialsError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and no variable of ours."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("ZCOMM_HOME", raising=False)
    return tmp_path


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """``run("add", "alice")`` is what it printed, on both streams."""

    def run(*argv: str) -> tuple[str, str]:
        parser = argparse.ArgumentParser(prog="zcomm token")
        declare_token(parser)
        args = parser.parse_args(argv)
        assert args.run(args) == 0
        printed = capsys.readouterr()
        return printed.out, printed.err

    return run


def proves(home: Path, token: str) -> str:
    """Who ``token`` proves to a server of this home."""
    found: list[Any] = []
    checker = TokenChecker(None, TokenStore(home / ".zolo/zcomm/tokens.json"))
    checker.requestAvatarId(BearerToken(token)).addBoth(found.append)
    return getattr(found[0], "name", "nobody")


def test_a_token_is_added(run, home):
    """The token stands alone on standard output, what there is to say on the other stream; it logs in."""
    out, err = run("add", "alice", "--role", "clerk", "--ttl", "30d")
    token = out.removesuffix("\n")
    assert token.startswith("zc_") and "\n" not in token
    assert "of alice, role clerk" in err and "cannot be shown again" in err and token not in err
    assert proves(home, token) == "alice"
    path = home / ".zolo/zcomm/tokens.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == (0o711 if os.geteuid() == 0 else 0o700)
    assert token not in path.read_text()


def test_contact_c_a_role_that_the_policy_does_not_name_is_refused(run, home):
    """Where the policy is named; the nearest role is told, and no token is made."""
    policy = home / "policy.yaml"
    policy.write_text("editor: {models: {Users: [read]}}\nclerk: {models: {Users: [read]}}\n")
    for role, told in (
        ("edittor", 'did you mean "editor"'),
        ("Editor", 'did you mean "editor"'),
        ("clark", 'did you mean "clerk"'),
        ("boss", "editor"),
        ("user", "clerk"),
    ):
        with pytest.raises(ConfigError, match=f"--role: {policy} names no role '{role}'.*{told}"):
            run("add", "ann", "--role", role, "--policy", str(policy))
    assert json.loads(run("list", "--json")[0]) == []
    run("add", "ann", "--role", "editor", "--policy", str(policy))
    assert [token["role"] for token in json.loads(run("list", "--json")[0])] == ["editor"]
    with pytest.raises(ConfigError, match="--policy: .*nowhere.yaml cannot be read"):
        run("add", "ann", "--role", "editor", "--policy", str(home / "nowhere.yaml"))


def test_tokens_are_listed(run):
    """A table for people, JSON for programs, neither with a token in it."""
    out, _ = run("list")
    assert out == "no tokens; make one with: zcomm token add USER\n"
    assert json.loads(run("list", "--json")[0]) == []
    made = json.loads(run("add", "alice", "--json")[0])
    run("add", "bob", "--role", "a much longer role", "--ttl", "8w")
    out, err = run("list")
    lines = out.splitlines()
    assert lines[0].split() == ["ID", "USER", "ROLE", "CREATED", "EXPIRES"] and err == ""
    assert lines[1].split()[:3] == [made["id"], "alice", "user"] and lines[1].endswith("never")
    assert lines[2].index("a much longer role") == lines[0].index("ROLE") == lines[1].index("user")
    listed = json.loads(run("list", "--json")[0])
    token = made.pop("token")
    assert listed[0] == made == {**made, "user": "alice", "role": "user", "expires": None, "expired": False}
    assert token not in out and token not in json.dumps(listed) and "sha256" not in listed[0]


def test_an_expired_token_is_marked(run, home):
    """Who looks for the reason of a refusal finds it."""
    run("add", "alice", "--ttl", "1h")
    path = home / ".zolo/zcomm/tokens.json"
    document = json.loads(path.read_text())
    document["tokens"][0]["expires"] = "2020-01-01T00:00:00+00:00"
    path.write_text(json.dumps(document))
    assert "2020-01-01 00:00 (expired)" in run("list")[0]
    assert json.loads(run("list", "--json")[0])[0]["expired"] is True


def test_the_data_directory_is_the_servers(run, home, monkeypatch):
    """A relative ZCOMM_HOME is refused as the server refuses it; an absolute one and --data-dir are used."""
    monkeypatch.setenv("ZCOMM_HOME", "relative")
    with pytest.raises(ConfigError, match="ZCOMM_HOME: 'relative' is not an absolute path"):
        run("add", "alice")
    monkeypatch.setenv("ZCOMM_HOME", str(home / "data"))
    run("add", "alice")
    run("add", "bob", "--data-dir", str(home / "other"))
    assert (home / "data/tokens.json").exists() and (home / "other/tokens.json").exists()


def test_tokens_are_revoked(run, home):
    """By user or id; who does not exist is an error that names the nearest."""
    token = run("add", "alice")[0].strip()
    other = json.loads(run("add", "bob", "--json")[0])
    assert run("revoke", "alice")[0].endswith(" of alice\n")
    assert (proves(home, token), proves(home, other["token"])) == ("nobody", "bob")
    assert [gone["id"] for gone in json.loads(run("revoke", other["id"], "--json")[0])] == [other["id"]]
    run("add", "carol")
    with pytest.raises(ConfigError, match="there is no token and no user 'carl'; did you mean \"carol\""):
        run("revoke", "carl")


def test_contact_codes_are_listed_and_revoked_like_tokens(run, home):
    """While somebody may come in, or is in, with one: by its id and by the operator's name, with tokens or without."""
    data = home / ".zolo/zcomm"
    operator = OperatorCredentials.load_or_create(data / "operator.json")
    first, second, third = invite(data), invite(data), invite(data)
    held = hold_code(data, first)
    listed = json.loads(run("list", "--json")[0])
    assert [(each["user"], each["role"]) for each in listed] == [(operator.username, "admin")] * 3
    assert held.code.id == listed[0]["id"] in run("list")[0] and first not in json.dumps(listed)
    assert run("revoke", held.code.id)[0] == f"revoked {held.code.id} of {operator.username}\n"
    held.give_back()
    assert hold_code(data, first) is None and len(json.loads(run("list", "--json")[0])) == 2
    run("add", operator.username)
    assert len(json.loads(run("revoke", operator.username, "--json")[0])) == 3
    assert hold_code(data, second) is None and hold_code(data, third) is None
    with pytest.raises(ConfigError, match="there is no token"):
        run("revoke", operator.username)
    # What cannot be found out about codes keeps no token.
    invite(data)
    run("add", "alice")
    (data / "operator.json").write_text("{")
    with pytest.raises(CredentialsError, match="not a JSON object"):
        run("revoke", "alice")
    assert TokenStore(data / "tokens.json").list() == ()
    # Without the operator's token they are nobody's.
    (data / "operator.json").unlink()
    assert run("list", "--json")[0].endswith("[]\n")
    OperatorCredentials.load_or_create(data / "operator.json")
    run("add", operator.username)
    code = invite(data)
    run("rotate", operator.username)
    assert hold_code(data, code) is None


def test_tokens_are_rotated(run, home):
    """The old one is refused, the new one printed as when it was added."""
    old = run("add", "alice", "--role", "clerk")[0].strip()
    new = run("rotate", "alice")[0].strip()
    assert (proves(home, old), proves(home, new)) == ("nobody", "alice")
    fresh = json.loads(run("rotate", "alice", "--json", "--ttl", "1h")[0])
    assert [made["user"] for made in fresh] == ["alice"] and proves(home, fresh[0]["token"]) == "alice"
    assert fresh[0]["role"] == "clerk" and fresh[0]["expires"]


def test_the_operators_token_is_rotated(run, home):
    """Without a name it is the one in operator.json, which is made if it is missing and never printed."""
    path = home / ".zolo/zcomm/operator.json"
    out, err = run("rotate")
    first = OperatorCredentials.load(path)
    assert str(path) in out and first.token not in out + err
    described = json.loads(run("rotate", "--json")[0])
    second = OperatorCredentials.load(path)
    assert second.token != first.token
    assert described == {
        "path": str(path),
        "username": second.username,
        "role": "admin",
        "fingerprint": fingerprint(second.token),
    }
    with pytest.raises(ConfigError, match="^--ttl: the operator's own token does not expire"):
        run("rotate", "--ttl", "1h")
    path.chmod(0o644)
    with pytest.raises(CredentialsError, match="chmod 600"):
        run("rotate")


def test_contact_h4_the_operators_token_is_shown_to_who_asks(run, home, tmp_path, monkeypatch):
    """Alone on its line, of the data directory that is named, where there is no home as well; none is made for it."""
    monkeypatch.delenv("HOME")
    where = str(tmp_path / "data")
    with pytest.raises(CredentialsError, match=f"does not exist; fix it with: zcomm token rotate --data-dir {where}"):
        run("show", "--data-dir", where)
    assert not (tmp_path / "data").exists()
    run("rotate", "--data-dir", where)
    operator = OperatorCredentials.load(tmp_path / "data" / "operator.json")
    assert run("show", "--data-dir", where) == (f"{operator.token}\n", "")
    assert json.loads(run("show", "--data-dir", where, "--json")[0]) == {
        "path": str(operator.path),
        "username": operator.username,
        "role": "admin",
        "token": operator.token,
    }
    assert sorted(os.listdir(home)) == ["data"]


@pytest.mark.parametrize("way", ["option", "variable", "both"])
def test_the_data_directory(way: str, run, home, monkeypatch):
    """The option comes before the variable, and that before the default."""
    wanted, unwanted = home / "wanted", home / "unwanted"
    argv = []
    if way != "variable":
        argv = ["--data-dir", str(wanted)]
    if way != "option":
        monkeypatch.setenv("ZCOMM_HOME", str(unwanted if argv else wanted))
    run("add", "alice", *argv)
    assert (wanted / "tokens.json").exists() and not unwanted.exists() and not (home / ".zolo").exists()


def test_an_empty_variable_counts_as_none(run, home, monkeypatch):
    """``ZCOMM_HOME=`` is the default, and a tilde is the home."""
    monkeypatch.setenv("ZCOMM_HOME", "")
    run("add", "alice")
    monkeypatch.setenv("ZCOMM_HOME", "~/other")
    run("add", "alice")
    assert sorted(os.listdir(home)) == [".zolo", "other"]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("8w", timedelta(weeks=8)),
        ("1s", timedelta(seconds=1)),
        (None, None),
    ],
)
def test_times(text: str | None, span: timedelta | None):
    """A number and a unit."""
    assert duration("--ttl", text) == span


@pytest.mark.parametrize(
    "text",
    [
        "",
        "30",
        "d",
        "0d",
        "-1d",
        "1.5h",
        "30 d",
        "30D",
        "30days",
        "1d12h",
        "٣d",
        "30d\n",
        "9" * 20 + "d",
        "1e3s",
    ],
)
def test_what_is_no_time(text: str):
    """Anything else is an error that names the option and shows how."""
    with pytest.raises(ConfigError, match="^--ttl: .* such as 30d$"):
        duration("--ttl", text)


@pytest.mark.parametrize("text", ["999999w", "999999999w"])
def test_times_beyond_the_calendar(text: str, run, home):
    """A lifetime that no calendar holds is an error, not a crash."""
    with pytest.raises(ConfigError, match="ttl: "):
        run("add", "alice", "--ttl", text)


def test_a_table_is_as_wide_as_it_must_be():
    """Columns line up, and no line ends in blanks."""
    assert table(("A", "LONG"), [("x" * 3, "y"), ("", "z")]) == "A    LONG\nxxx  y\n     z"


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["add"],
        ["revoke"],
        ["list", "x"],
        ["add", "a", "--role"],
        ["forget", "a"],
    ],
)
def test_wrong_usage(argv: list[str], run):
    """argparse says what is missing, and the status is 2."""
    with pytest.raises(SystemExit) as caught:
        run(*argv)
    assert caught.value.code == 2
