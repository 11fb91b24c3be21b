"""Declarations of services, as values."""

from __future__ import annotations

from typing import Any

import pytest

from zcomm.errors import (
    ConfigError,
)
from zcomm.services.declaration import (
    Probe,
    ServiceDeclaration,
    Settings,
    StopStep,
    check_port_number,
    dependency_order,
    fill,
    signal_number,
)


@pytest.mark.parametrize("name", ["", "../x", "A", "1st", "a b", "a/b", "a" * 33, None, 7, "a\n", "é"])
def test_names_that_are_none(name: Any):
    """A name also names a directory."""
    with pytest.raises(ConfigError):
        ServiceDeclaration(name)


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "P1ng"},
        {"kind": ""},
        {"kind": None},
        {"kind": "log"},
        {"kind": "log", "pattern": "("},
        {"kind": "exec"},
        {"kind": "http", "path": "x"},
        {"every": 0},
        {"timeout": -1},
        {"every": 1e9},
    ],
)
def test_probes_that_are_none(arguments: dict[str, Any]):
    """Said when it is declared, not when it is needed."""
    with pytest.raises(ConfigError):
        Probe(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"stop": ()},
        {"argv": ("a", 7)},
        {"argv": ("a\0b",)},
        {"port": 70000},
        {"ready": Probe("tcp")},
        {"alive": Probe("http")},
    ],
)
def test_declarations_that_are_none(arguments: dict[str, Any]):
    """A bad part is named with the service."""
    with pytest.raises(ConfigError):
        ServiceDeclaration("x", **arguments)


@pytest.mark.parametrize(("value", "expected"), [("TERM", 15), ("SIGINT", 2), ("sigkill", 9), (15, 15)])
def test_signals(value: Any, expected: int):
    """By name, with or without SIG, or by number."""
    assert signal_number(value) == expected == int(StopStep(signal_number(value), 1).signal)


@pytest.mark.parametrize("value", ["STOPIT", 0, 999, True, None, ""])
def test_signals_that_are_none(value: Any):
    """Refused when declared."""
    with pytest.raises(ConfigError):
        signal_number(value)
    with pytest.raises(ConfigError):
        StopStep(15, 0)


@pytest.mark.parametrize("value", [0, -1, 65536, "abc", "", None, 1.5, True, "５４３２", [], "0"])
def test_ports_that_are_none(value: Any):
    """A ConfigError, which is a ValueError, names the argument (P19)."""
    with pytest.raises(ValueError, match="port"):
        check_port_number(value)
    assert [check_port_number(good) for good in (1, 65535, "5432", "auto")] == [1, 65535, 5432, "auto"]


def test_placeholders():
    """Only those four are filled in; with a second pair of braces it is the word itself."""
    settings = Settings("127.0.0.1", 80, "/d", "me")
    assert fill("{host}:{port} {data_dir} {user} {other} {port.__class__} {{port}}", settings) == (
        "127.0.0.1:80 /d me {other} {port.__class__} {port}"
    )
    declaration = ServiceDeclaration("x", argv=lambda given: ["run", str(given.port)])
    assert declaration.command(settings) == ["run", "80"]


def test_order():
    """Each after what it needs, otherwise as given."""

    def declare(name: str, *needs: str) -> ServiceDeclaration:
        return ServiceDeclaration(name, depends_on=needs)

    assert dependency_order([declare("c", "a", "b"), declare("a"), declare("b", "a")]) == ["a", "b", "c"]
    with pytest.raises(ConfigError, match="a -> b -> a"):
        dependency_order([declare("a", "b"), declare("b", "a")])
    with pytest.raises(ConfigError, match="not declared"):
        dependency_order([declare("a", "gone")])
