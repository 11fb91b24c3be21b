"""The options of a start: where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from zcomm.errors import (
    ConfigError,
    DataDirectoryError,
)
from zcomm.services.declaration import (
    ServiceDeclaration,
)
from zcomm.services.options import BIN_DIR, PASSWORD, Setting, read_options, variables

#: One of each sort, all with a variable.
SETTINGS = (
    BIN_DIR,
    PASSWORD,
    Setting("motto", variable="DB_MOTTO"),
    Setting("nest", Path, variable="DB_NEST"),
    Setting("loud", bool, variable="DB_LOUD"),
    Setting("mood", ("calm", "wild"), variable="DB_MOOD"),
)


def test_where_options_come_from():
    """Argument, then environment, then declaration; secrets are not printed."""
    declaration = ServiceDeclaration("my-db", port=1000)
    environ = {"MY_DB_PORT": "2000", "MY_DB_DATA_DIR": "/from/environ"}
    assert read_options(declaration, {}, {}).port == 1000
    assert (read_options(declaration, {}, environ).port, str(read_options(declaration, {}, environ).data_dir)) == (
        2000,
        "/from/environ",
    )
    given = read_options(declaration, {"port": 3000, "data_dir": "/given", "password": "hush"}, environ, (PASSWORD,))
    assert (given.port, str(given.data_dir)) == (3000, "/given") and "hush" not in repr(given)
    with pytest.raises(ConfigError, match="MY_DB_PORT"):
        read_options(declaration, {}, {"MY_DB_PORT": "many"})
    with pytest.raises(ConfigError, match="has none"):
        read_options(ServiceDeclaration("quiet"), {"port": 80}, {})
    with pytest.raises(DataDirectoryError):
        read_options(declaration, {"data_dir": "x"}, {})


@pytest.mark.parametrize(
    ("arguments", "environ", "expected"),
    [
        ({}, {}, {}),
        ({"motto": None, "loud": None}, {"DB_LOUD": " "}, {}),
        (
            {"motto": "a b", "nest": "/n", "loud": False, "mood": "wild"},
            {"DB_MOTTO": "x", "DB_NEST": "/x", "DB_LOUD": "true", "DB_MOOD": "calm"},
            {"motto": "a b", "nest": Path("/n"), "loud": False, "mood": "wild"},
        ),
        (
            {},
            {"DB_MOTTO": " x ", "DB_NEST": "/x", "DB_LOUD": "True", "DB_MOOD": "calm"},
            {"motto": "x", "nest": Path("/x"), "loud": True, "mood": "calm"},
        ),
        ({}, {"DB_LOUD": "false"}, {"loud": False}),
    ],
)
def test_the_settings_of_a_kind(arguments: dict[str, Any], environ: dict[str, str], expected: dict[str, Any]):
    """An argument wins over the variable; without both an option is not there, and the kind's own default holds."""
    options = read_options(ServiceDeclaration("db"), arguments, environ, SETTINGS)
    assert dict(options.more) == expected and (options.bin_dir, options.password) == (None, "")
    assert options.get("motto", "none") == expected.get("motto", "none")


def test_what_several_kinds_have():
    """The directory of programs and the password are options by name; the password is not printed."""
    given = {"bin_dir": "/programs", "password": "hush"}
    options = read_options(ServiceDeclaration("db"), given, {}, SETTINGS)
    assert (options.bin_dir, options.password, options.more) == (Path("/programs"), "hush", ())
    assert "hush" not in repr(options)


@pytest.mark.parametrize(
    ("arguments", "environ", "words"),
    [
        ({"motto": 7}, {}, "motto: is not a line of text"),
        ({"motto": "two\nlines"}, {}, "motto: is not a line of text"),
        ({"motto": "a\0b"}, {}, "motto: is not a line of text"),
        ({"motto": "x" * 1001}, {}, "motto: is not a line of text"),
        ({}, {"DB_MOTTO": "x" * 1001}, "DB_MOTTO: is not a line of text"),
        ({"password": 7}, {}, "password: is not a line of text"),
        ({"user": 7}, {}, "user: is not a line of text"),
        ({"loud": "yes"}, {}, "loud: is True or False"),
        ({"loud": 1}, {}, "loud: is True or False"),
        ({}, {"DB_LOUD": "yes"}, "DB_LOUD: is True or False"),
        ({"mood": "mad"}, {}, "mood: is calm or wild"),
        ({"mood": True}, {}, "mood: is calm or wild"),
        ({"mood": []}, {}, "mood: is calm or wild"),
        ({}, {"DB_MOOD": "mad"}, "DB_MOOD: is calm or wild"),
        ({"nest": "here"}, {}, "the nest must be an absolute path"),
        ({"nest": 7}, {}, "is not a path for a nest"),
        ({"bin_dir": "~/bin"}, {}, "the bin_dir must be an absolute path"),
        ({}, {"DB_NEST": "here"}, "the DB_NEST must be an absolute path"),
        ({"moto": "x"}, {}, 'db has no such setting; did you mean "motto"'),
    ],
)
def test_settings_that_cannot_be(arguments: dict[str, Any], environ: dict[str, str], words: str):
    """The error says which values there are, and names the argument or the variable that has another."""
    with pytest.raises((ConfigError, DataDirectoryError)) as caught:
        read_options(ServiceDeclaration("db"), arguments, environ, SETTINGS)
    assert words in str(caught.value)


def test_the_variables_of_a_service():
    """Port and directory by its name, those of its settings by their own; a service without a port has none for it."""
    assert variables(ServiceDeclaration("my-db", port=1000), SETTINGS) == [
        "MY_DB_PORT",
        "MY_DB_DATA_DIR",
        "DB_MOTTO",
        "DB_NEST",
        "DB_LOUD",
        "DB_MOOD",
    ]
    assert variables(ServiceDeclaration("quiet"), ()) == ["QUIET_DATA_DIR"]
