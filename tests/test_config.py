"""Configuration as values: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import os
import socket
import stat
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import make_url
from support.rows import rows_of_a_test

from zcomm.config import (
    Config,
    Limits,
    WebSocketConfig,
    data_directory,
    home_directory,
    make_data_directory,
    port_number,
    read_text,
    split_endpoint,
    threads_from,
)
from zcomm.data.drivers import open_database
from zcomm.errors import ConfigError


@pytest.mark.parametrize(("value", "port"), [(0, 0), ("0", 0), (" 8080 ", 8080), ("65535", 65535)])
def test_ports(value, port: int):
    """Numbers as numbers or text."""
    assert port_number("--port", value) == port


@pytest.mark.parametrize(
    "value",
    [-1, "-1", 65536, "99999", "x", "", " ", "8080x", "0x10", "1e3", "8_0", "\u0663", True, None, 1.5],
)
def test_what_is_no_port(value):
    """The error names where it came from and what a port is."""
    with pytest.raises(ConfigError, match="WEBSOCKET_PORT: .*0 .*65535"):
        port_number("WEBSOCKET_PORT", value)
    with pytest.raises(ConfigError, match="port: .* from 1 to 65535"):
        port_number("port", value, 1)


def test_a_port_that_must_be_known():
    """A 0 that does not stand for any free one is no port."""
    assert port_number("port", "1", 1) == 1
    with pytest.raises(ConfigError, match="port: '0' is not a port; use a number from 1 to 65535"):
        port_number("port", "0", 1)


@pytest.mark.parametrize(
    ("description", "by_place", "by_name"),
    [
        ("tcp:80", ["tcp", "80"], {}),
        ("tcp:80:interface=127.0.0.1", ["tcp", "80"], {"interface": "127.0.0.1"}),
        (
            r"ssl:443:privateKey=/a\:b.pem:interface=\:\:1",
            ["ssl", "443"],
            {"privateKey": "/a:b.pem", "interface": "::1"},
        ),
        (r"unix:/tmp/a\:b", ["unix", "/tmp/a:b"], {}),
        ("", [""], {}),
    ],
)
def test_endpoint_descriptions_are_split(description: str, by_place: list[str], by_name: dict[str, str]):
    """As Twisted does it: at colons, but for those that are escaped."""
    assert split_endpoint(description) == (by_place, by_name)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("message_size", 0),
        ("message_size", 124),
        ("message_size", 1.5),
        ("message_size", "1"),
        ("message_size", True),
        ("frame_rate", 0),
        ("frame_rate", float("nan")),
        ("frame_rate", float("inf")),
        ("frame_rate", 2**41),
        ("handshake_timeout", 0),
        ("handshake_timeout", -1),
        ("in_flight", 0),
        ("stall_timeout", None),
        ("shutdown_timeout", -0.1),
        ("connections", 0),
    ],
)
def test_limits_that_are_none(name: str, value):
    """Named as the option is."""
    with pytest.raises(ConfigError) as caught:
        Limits(**{name: value})
    assert caught.value.name == "--" + name.replace("_", "-")


@pytest.mark.parametrize("value", [0, 2**40, float("inf")])
def test_the_range_of_a_limit_is_told_at_both_ends(value):
    """Of what is too much nobody learns that it should be at least so much."""
    with pytest.raises(ConfigError, match=rf"{value} is out of range; it is at least 0.001, and below {2**40}"):
        Limits(database_time=value)


def test_the_defaults_are_those_of_the_documentation():
    """What docs/protocol.rst promises."""
    limits = Limits()
    assert (limits.message_size, limits.head_size, limits.head_count, limits.handshake_timeout) == (
        1048576,
        16384,
        100,
        5.0,
    )
    assert (limits.pending, limits.pending_per_peer, limits.auth_failures) == (256, 32, 10)
    assert limits.connections_per_user == 0
    assert (limits.frame_rate, limits.frame_burst, limits.json_depth, limits.in_flight) == (
        10000,
        20000,
        64,
        64,
    )
    assert (limits.command_timeout, limits.queue_size, limits.stall_timeout, limits.ping_interval) == (
        30,
        1048576,
        10,
        20,
    )
    assert (limits.read_rows, limits.shutdown_timeout) == (10000, 5)
    assert 16 <= limits.connections <= 10000


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"port": 70000}, "--port"),
        ({"host": ""}, "--host"),
        ({"host": "a b"}, "--host"),
        ({"broadcast": "some"}, "--broadcast"),
        ({"allowed_origins": ("*",)}, "--allowed-origin"),
        ({"allowed_origins": ("example.com",)}, "--allowed-origin"),
        ({"require_auth": False, "host": "0.0.0.0"}, "--no-auth"),
        ({"require_auth": False, "host": "::"}, "--no-auth"),
        ({"require_auth": False, "host": "192.0.2.1"}, "--no-auth"),
        ({"require_auth": False, "listen": ("tcp:80",)}, "--no-auth"),
        ({"require_auth": False, "listen": ("tcp:80:interface=127.0.0.1", "tcp:81")}, "--no-auth"),
    ],
)
def test_settings_that_cannot_be_used(options: dict, name: str):
    """Found when the value is made, before anything runs."""
    with pytest.raises(ConfigError) as caught:
        WebSocketConfig(**options)
    assert caught.value.name == name


@pytest.mark.parametrize(
    "options",
    [
        {"host": "localhost"},
        {"host": "::1"},
        {"host": "127.1.2.3"},
        {"host": "0.0.0.0", "insecure": True},
        {"listen": ("unix:/tmp/x",)},
        {"listen": ("tcp:80:interface=127.0.0.1",)},
        {"listen": ("tcp6:80:interface=\\:\\:1",)},
    ],
)
def test_without_authentication_only_this_machine(options: dict):
    """Or by asking for it twice."""
    assert WebSocketConfig(require_auth=False, **options).require_auth is False


def test_what_is_given_wins_over_the_environment():
    """And the environment over the default."""
    environ = {
        "WEBSOCKET_PORT": "1",
        "WEBSOCKET_HOST": "::1",
        "WEBSOCKET_REQUIRE_AUTH": "no",
        "ZCOMM_BROADCAST": "all",
        "WEBSOCKET_ALLOWED_ORIGINS": "http://a.example",
    }
    config = WebSocketConfig.from_environ(environ)
    assert (config.port, config.host, config.require_auth, config.broadcast) == (1, "::1", False, "all")
    assert config.allowed_origins == ("http://a.example",)
    config = WebSocketConfig.from_environ(
        environ, port=2, host="127.0.0.1", require_auth=True, broadcast="none", allowed_origins=()
    )
    assert (config.port, config.host, config.require_auth, config.broadcast) == (2, "127.0.0.1", True, "none")
    config = WebSocketConfig.from_environ(dict.fromkeys(environ, "  "))
    assert (config.port, config.host, config.require_auth) == (56891, "127.0.0.1", True)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("WEBSOCKET_PORT", "x"),
        ("ZCOMM_BROADCAST", "ALL"),
        ("WEBSOCKET_ALLOWED_ORIGINS", "*"),
    ],
)
def test_a_bad_variable_is_named(variable: str, value: str):
    """So that the one to change is known."""
    with pytest.raises(ConfigError) as caught:
        WebSocketConfig.from_environ({variable: value})
    assert caught.value.name == variable


def test_contact_a_directory_of_any_name_has_its_own_database(tmp_path: Path):
    """Characters that mean something in a URL name no other file."""
    for name in ("%41 x", "p?a", "feature%2Fx", "x?mode=ro", 'a b%20?#"\u00fc', "%", "a#b"):
        url = Config(tmp_path / name).database_url
        assert make_url(url).database == str(tmp_path / name / "zcomm.sqlite3") and not make_url(url).query


def test_worker_threads(tmp_path: Path):
    """Option, variable, 10; a number that makes no sense is named with its source."""
    assert [threads_from(environ, option) for environ, option in [({}, None), ({"ZCOMM_THREADS": " 3 "}, None)]] == [
        10,
        3,
    ]
    assert threads_from({"ZCOMM_THREADS": "x"}, "1000") == 1000
    assert Config.from_environ({"ZCOMM_HOME": str(tmp_path), "ZCOMM_THREADS": "4"}).threads == 4
    for text in ("0", "-1", "1001", "x", "1.5", "\u0663", ""):
        with pytest.raises(ConfigError, match="threads"):
            threads_from({}, text)
        with pytest.raises(ConfigError, match="threads"):
            Config(tmp_path, threads=text)  # type: ignore[arg-type]
    with pytest.raises(ConfigError) as caught:
        threads_from({"ZCOMM_THREADS": "many"})
    assert caught.value.name == "ZCOMM_THREADS"


@pytest.mark.parametrize(
    ("environ", "option", "path"),
    [
        ({"HOME": "/home/a"}, None, "/home/a/.zolo/zcomm"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "/srv/z"}, None, "/srv/z"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "/srv/z"}, "/opt/z", "/opt/z"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "~/z"}, None, "/home/a/z"),
        ({"ZCOMM_HOME": "/srv/z"}, None, "/srv/z"),
        ({"HOME": "/home/a", "ZCOMM_HOME": " "}, None, "/home/a/.zolo/zcomm"),
        ({"HOME": "/home/a"}, "~", "/home/a"),
        ({"HOME": "/home/a"}, "~//z", "/home/a/z"),
        ({}, "z", str(Path.cwd() / "z")),
    ],
)
def test_where_the_data_is(environ: dict, option: str | None, path: str):
    """Option, variable, home."""
    assert data_directory(environ, option) == Path(path)


@pytest.mark.parametrize(
    ("environ", "option", "name"),
    [
        ({}, None, "HOME"),
        ({"HOME": ""}, None, "HOME"),
        ({"HOME": "relative"}, None, "HOME"),
        ({"ZCOMM_HOME": "relative"}, None, "ZCOMM_HOME"),
        ({"ZCOMM_HOME": "/a\0b"}, None, "ZCOMM_HOME"),
        ({"ZCOMM_HOME": "~/z"}, None, "HOME"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "~root/z"}, None, "ZCOMM_HOME"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "/srv/z"}, "~root/z", "--data-dir"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "/srv/z"}, "~~", "--data-dir"),
        ({"HOME": "/home/a", "ZCOMM_HOME": "/srv/z"}, "", "--data-dir"),
        ({"HOME": "/home/a"}, " ", "--data-dir"),
        ({"HOME": "/home/a"}, "/a\0b", "--data-dir"),
    ],
)
def test_no_place_for_data(environ: dict, option: str | None, name: str):
    """Whoever runs without a home has to say where."""
    with pytest.raises(ConfigError) as caught:
        data_directory(environ, option)
    assert caught.value.name == name
    if name == "HOME" and "ZCOMM_HOME" not in environ:
        with pytest.raises(ConfigError):
            home_directory(environ)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o777])
def test_the_data_directory_is_closed_to_others(tmp_path: Path, umask: int):
    """With all that is made above it: mode 0700, root's 0711 for its services, whatever the umask."""
    (tmp_path / "there").mkdir()
    (tmp_path / "there").chmod(0o750)
    before = os.umask(umask)
    try:
        make_data_directory(tmp_path / "there" / "a" / "b")
        make_data_directory(tmp_path / "there")
    finally:
        os.umask(before)
    closed = 0o711 if os.geteuid() == 0 else 0o700
    modes = [(tmp_path / part).stat().st_mode & 0o777 for part in ("there", "there/a", "there/a/b")]
    assert modes == [0o750, closed, closed]


def test_what_is_no_directory_is_refused(tmp_path: Path):
    """A file, a link that leads nowhere and what is below a file, by those who read the setting and who make it."""
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_text("")
    link.symlink_to(tmp_path / "nowhere")
    for path, reason in (
        (file, f"{file} is not a directory"),
        (link, f"{link} is not a directory"),
        (file / "b", f"{file / 'b'} cannot be made: {file} is not a directory"),
    ):
        for name, refuse in (
            ("--data-dir", partial(make_data_directory, path)),
            ("--data-dir", partial(data_directory, {}, str(path))),
            ("ZCOMM_HOME", partial(data_directory, {"ZCOMM_HOME": str(path)})),
        ):
            with pytest.raises(ConfigError) as caught:
                refuse()
            assert (caught.value.name, caught.value.reason) == (name, reason)


@pytest.mark.parametrize(
    ("options", "service", "url"),
    [
        ({}, None, "sqlite:////data/zcomm.sqlite3"),
        ({"database": "service:postgresql"}, "postgresql", "service:postgresql"),
        ({"database": "postgresql://u@h/d"}, None, "postgresql://u@h/d"),
    ],
)
def test_which_database(options: dict, service: str | None, url: str):
    """Its own file, a service, or whatever URL was given."""
    config = Config(Path("/data"), **options)
    assert (config.database_service, config.database_url) == (service, url)


def test_contact_a26_a_data_directory_that_others_fill_is_refused(tmp_path: Path):
    """With the command that closes it; what is missing is made so that its owner alone may list it (B26)."""
    opened = tmp_path / "opened dir"
    opened.mkdir()
    for mode in (0o777, 0o1777, 0o702, 0o703):
        opened.chmod(mode)
        with pytest.raises(ConfigError, match="everybody may put files into") as caught:
            make_data_directory(opened)
        assert f"chmod o-w '{opened}'" in str(caught.value)
    for mode in (0o700, 0o711, 0o755, 0o775, 0o770):
        opened.chmod(mode)
        make_data_directory(opened)
        assert stat.S_IMODE(opened.stat().st_mode) == mode
    # Who may rename a directory on the way could put another in its place; in one as /tmp nobody but its owner may.
    opened.chmod(0o777)
    with pytest.raises(ConfigError, match=f"everybody may put files into {opened} .*chmod o-w '{opened}'"):
        make_data_directory(opened / ".zolo" / "zcomm")
    assert list(opened.iterdir()) == [], "nothing was made there"
    opened.chmod(0o1777)
    make_data_directory(opened / ".zolo" / "zcomm")
    mode = 0o711 if os.geteuid() == 0 else 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in (opened / ".zolo").rglob("")} == {mode}


def test_contact_names_that_are_no_text_are_refused(tmp_path: Path):
    """Bytes that are not UTF-8, which no log, no URL and no answer could have, and what would end a line of a server's
    settings; any letters are a name."""
    with rows_of_a_test() as row:
        for environ, option, name in [
            ({}, "/srv/na\udcffme", "--data-dir"),
            ({"ZCOMM_HOME": "/srv/\udcc3(", "HOME": "/"}, None, "ZCOMM_HOME"),
            ({"HOME": "/home/\udcff"}, None, "ZCOMM_HOME"),
        ]:
            with row(str(environ)), pytest.raises(ConfigError, match="is not text in UTF-8; rename it") as caught:
                data_directory(environ, option)
            assert caught.value.name == name and str(caught.value).isprintable()
        with row("a URL"), pytest.raises(ConfigError, match="is not text in UTF-8"):
            open_database("sqlite:///na\udcffme", 1, 1)
        for character in "\n\r\t\x1b\x7f\x85\0":
            for environ, option in (({}, f"/srv/a{character}b"), ({"ZCOMM_HOME": f"/srv/a{character}b"}, None)):
                with row(repr(character)), pytest.raises(ConfigError, match="has a control character in it") as caught:
                    data_directory(environ, option)
                assert str(caught.value).isprintable()
        with row("behind a link"), pytest.raises(ConfigError, match="has a control character in it"):
            (tmp_path / "new\nline").mkdir()
            (tmp_path / "link").symlink_to("new\nline")
            data_directory({}, str(tmp_path / "link"))
    assert data_directory({}, "/srv/Zähler ☃ 数据 '\"&?#%") == Path("/srv/Zähler ☃ 数据 '\"&?#%")


def test_contact_what_is_above_the_target_of_a_link(tmp_path: Path):
    """Where the system goes, goes everybody: the lock, the tokens and the database have one directory."""
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("there/deep")
    assert data_directory({}, str(tmp_path / "link" / ".." / "data")) == tmp_path / "there" / "data"
    assert data_directory({}, str(tmp_path / "link")) == tmp_path / "link"
    (tmp_path / "there" / "origins").write_text("https://a.example")
    (tmp_path / "origins").write_text("https://b.example")
    assert WebSocketConfig(allowed_origins=(f"@{tmp_path}/link/../origins",)).listed_origins() == ["https://a.example"]


def test_contact_a_file_of_an_option_is_a_regular_one(tmp_path: Path):
    """No pipe is waited for, nothing without an end is read; the option, the file and the reason are named."""
    fifo, socket_, huge, good = (tmp_path / name for name in ("fifo", "socket", "huge", "good"))
    os.mkfifo(fifo)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.fspath(socket_))  # and stays there
    with open(huge, "wb") as file:
        file.truncate(1 << 40)
    good.write_bytes(b"a\r\nb\n")
    (tmp_path / "link").symlink_to(good)
    with rows_of_a_test() as row:
        for path, reason in [
            (fifo, "is no regular file"),
            (socket_, "is no regular file"),
            (tmp_path, "is no regular file"),
            (Path("/dev/zero"), "is no regular file"),
            (Path("/dev/null"), "is no regular file"),
            (huge, "has more than 4 MB"),
            (tmp_path / "none", "cannot be read: No such file"),
            (good / "below", "cannot be read: Not a directory"),
        ]:
            with row(path), pytest.raises(ConfigError, match=f"^--x: {path} {reason}"):
                read_text(path, "--x")
    assert read_text(tmp_path / "link", "--x") == "a\nb\n"
