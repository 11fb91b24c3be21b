"""Files that declare services."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from zcomm.errors import (
    ConfigError,
)
from zcomm.services.declaration import (
    Probe,
    ServiceDeclaration,
    StopStep,
)
from zcomm.services.manager import ServiceManager
from zcomm.services.servicefile import load_service_files, load_services


def test_a_file_of_services():
    """Every key, in the order of the file."""
    first, second = load_services("""
services:
  cache:
    argv: [memcached, -p, "{port}"]
    port: 11211
    ready: {tcp: true, timeout: 1}
    alive: {exec: [nc, -z, localhost, "{port}"], every: 5}
    stop: [[TERM, 10], [KILL, 5]]
    url: memcached://{host}:{port}
    depends_on: web
    environment: {LEVEL: 3}
    user: nobody
    start_timeout: 5
  web: {argv: "python3 -m http.server '{port}'", port: auto, ready: {http: /}, alive: http}
""")
    assert first == ServiceDeclaration(
        "cache",
        ("memcached", "-p", "{port}"),
        port=11211,
        host="127.0.0.1",
        ready=Probe("tcp", timeout=1.0),
        alive=Probe("exec", argv=("nc", "-z", "localhost", "{port}"), every=5.0),
        stop=(StopStep(signal.SIGTERM, 10.0), StopStep(signal.SIGKILL, 5.0)),
        url="memcached://{host}:{port}",
        depends_on=("web",),
        environment={"LEVEL": "3"},
        user="nobody",
        start_timeout=5.0,
    )
    assert second.argv == ("python3", "-m", "http.server", "{port}") and second.port == "auto"
    assert second.ready == Probe("http") and second.alive == Probe("http", every=2.0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "mapping"),
        ("[]", "mapping"),
        ("a: b", "mapping"),
        ("a: {}", "argv is missing"),
        ("{", "not YAML"),
        ("a: {argv: x, prot: 1}", 'did you mean "port"'),
        ("a: {argv: x, wings: 2}", "known are argv, port"),
        ("a: {argv: {x: 1}}", "words"),
        ("a: {argv: 'x \"'}", "split"),
        ("a: {argv: x, port: 99999}", "port"),
        ("A!: {argv: x}", "name"),
        ("a: {argv: x, ready: smoke}", "needs one of"),
        ("a: {argv: x, ready: 7}", "tcp, none"),
        ("a: {argv: x, ready: {log: 7}}", "text"),
        ("a: {argv: x, ready: {log: '(?=x)y'}}", "a: probe: the log pattern: "),
        ("a: {argv: x, ready: {log: '(?P<a>x)(?P=a)'}}", "a: probe: the log pattern: "),
        ("a: {argv: x, ready: {log: 'a{99999999999}'}}", "a: probe: the log pattern: a count goes to 1000"),
        (f"a: {{argv: x, ready: {{log: '{'(' * 5000}{')' * 5000}'}}}}", "at most 500 characters"),
        ("a: {argv: x, stop: TERM}", "list of"),
        ("a: {argv: x, stop: [[JUMP, 1]]}", "signal"),
        ("a: {argv: x, stop: [[TERM, soon]]}", "seconds"),
        ("a: {argv: x, environment: 7}", "mapping"),
        ("a: {argv: x, user: 7}", "text"),
        ("a: {argv: x, start_timeout: -1}", "seconds"),
        ("a: {argv: x, ready: tcp}", "port"),
        ("a: !!python/object/apply:os.system [id]", "not YAML"),
        ("a: {argv: x, depends_on: {b: 1}}", "words"),
        ("a: {argv: x, port: 1, ready: {http: x}}", "path"),
        ("a: [1]", "mapping"),
        ("a: {argv: x, environment: {1: x, '1': y}}", "a: environment: '1' is given twice"),
        ("a: {argv: x, environment: {true: x, 'True': y}}", "environment: 'True' is given twice"),
        ("1: {argv: x}\n'1': {argv: y}", "'1' is given twice"),
    ],
)
def test_files_of_services_that_are_none(text: str, words: str):
    """One clear error that names the file and the place; nothing in it is executed."""
    with pytest.raises(ConfigError, match=words) as caught:
        load_services(text, "my.yaml")
    assert caught.value.name.startswith("my.yaml")


def test_a_service_stands_in_one_of_several_files(tmp_path: Path):
    """All files count, in their order; the same service in two of them is an error that names both."""
    paths = [tmp_path / name for name in ("one.yaml", "two.yaml", "three.yaml")]
    for path, text in zip(
        paths, ("b: {argv: x}\nc: {argv: x}", "a: {argv: x}", "d: {argv: x}\nc: {argv: y}"), strict=True
    ):
        path.write_text(text)
    assert [one.name for one in load_service_files(paths[:2])] == ["b", "c", "a"]
    with pytest.raises(ConfigError) as caught:
        load_service_files(paths)
    assert str(caught.value) == f"{paths[2]}: c is declared in {paths[0]} as well; remove one of them"
    with pytest.raises(ConfigError, match="--services"):
        load_service_files([tmp_path / "none.yaml"])
    assert load_service_files([]) == []


def test_a_file_may_replace_a_service_of_zcomms_own(tmp_path: Path):
    """One called redis is the declared one from then on."""
    path = tmp_path / "own.yaml"
    path.write_text("redis: {argv: [redis-server, --port, '{port}'], port: auto}")
    manager = ServiceManager(tmp_path, {}, object())
    names = manager.names
    for declaration in load_service_files([path]):
        manager.add(declaration)
    assert manager.names == names and manager.get("redis").declaration.kind == ""
