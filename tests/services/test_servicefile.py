"""Files that declare services."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
from support.rows import rows_of_a_test

from zcomm.errors import ConfigError
from zcomm.services.declaration import Probe, ServiceDeclaration, Settings, StopStep
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


def test_contact_what_a_declaration_cannot_mean():
    """A word that stands for nothing, a command without a program, what YAML takes for something else: by its name."""
    with rows_of_a_test() as row:
        for text, words in [
            ("argv: [x, '{prt}'], port: 1", '{prt} in .* stands for nothing; did you mean "port"'),
            ("argv: [x, 'a{dir}b']", "{dir} in .*; there are {host}, {port}, {data_dir}, {user}, and {{dir}} is"),
            ("argv: [x, '{Port}'], port: 1", "{Port} in"),
            ("argv: x, url: 'x://{hots}'", "{hots} in"),
            ("argv: x, environment: {A: '{data-dir} {datadir}'}", "{datadir} in"),
            ("argv: x, ready: {exec: [y, '{prt}']}", "{prt} in"),
            ("argv: x, alive: {exec: [y, '{prt}']}", "{prt} in"),
            ("argv: [x, '{port}']", "'{port}' has a port, and the service has none"),
            ("argv: x, url: 'x://{host}:{port}'", "has a port"),
            ("argv: []", "argv: has no program"),
            ("argv: ''", "argv: has no program"),
            ("argv: ['', x]", "the command has no program"),
            ("argv: [2020-01-01]", "argv: must be a list of words; put quotes"),
            ("argv: x, ready: {exec: ['']}", "the command has no program"),
            ('argv: x, ready: {exec: [y, "a\\0b"]}', "cannot be part of a command"),
            ("argv: x, port: false", "port: False is not a port"),
            ("argv: x, port: 0.0", "port: 0.0 is not a port"),
            ("argv: x, port: 1, ready: {tcp: 5}", "ready: tcp takes nothing but true"),
            ("argv: x, port: 1, ready: {tcp: false}", "ready: tcp takes nothing but true"),
            ("argv: x, port: 1, alive: {none: 1}", "alive: none takes nothing but true"),
            ("argv: x, port: 1, ready: {http: '/a b'}", "visible ASCII"),
            ('argv: x, port: 1, ready: {http: "/a\\r\\nX: y"}', "visible ASCII"),
            ("argv: x, environment: {'A=B': c}", "'A=B' cannot be a variable"),
            ("argv: x, environment: {'': c}", "'' cannot be a variable"),
            ('argv: x, environment: {A: "b\\0"}', "'A' cannot be a variable"),
            ("argv: x, environment: {A: yes}", "environment: must be a mapping of names to texts; put quotes"),
            ("argv: x, environment: {A: }", "environment: must be a mapping of names to texts; put quotes"),
            ("argv: x, host: ''", "'' is no host"),
            ("argv: x, host: 'a b'", "'a b' is no host"),
            ('argv: x, url: "a\\nb"', "is no URL"),
        ]:
            with row(text), pytest.raises(ConfigError, match=words) as caught:
                load_services(f"a: {{{text}}}", "my.yaml")
            with row(f"the place of {text}"):
                assert caught.value.name.startswith("my.yaml: a")
    scripts = ["awk '{{print}}' ${file} {a,b} {{.ID}} { x; } a{3} {\"a\": 1} {}"]
    (declared,) = load_services(json.dumps({"a": {"argv": scripts}}))
    filled = declared.command(Settings("::1", 1, "/d", "me"))
    assert filled == ["awk '{print}' ${file} {a,b} {{.ID}} { x; } a{3} {\"a\": 1} {}"]


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
