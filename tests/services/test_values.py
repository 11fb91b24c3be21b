"""The parts of the services that only decide: values in, values out."""

from __future__ import annotations

import signal
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import given, strategies

from zcomm.errors import (
    ConfigError,
    DataDirectoryError,
    PortInUse,
    ServiceError,
    ServiceStartFailed,
    ServiceStartTimeout,
    UnknownService,
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
from zcomm.services.options import read_options
from zcomm.services.restart_policy import RestartPolicy
from zcomm.services.servicefile import load_services
from zcomm.services.status import ConnectionInfo, Health, ServiceState, ServiceStatus, uptime_text

# -- policy ------------------------------------------------------------------------------------------------


def test_the_waits_between_attempts():
    """At once, then 0.1 s doubled each time, up to half a minute (P2)."""
    policy = RestartPolicy(attempts=100, jitter=0.0)
    waits = [policy.delay([0.0] * count, lambda: 0.5) for count in range(1, 14)]
    assert waits == [0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_five_failures_in_a_minute_end_it():
    """Older ones do not count; good health forgets them all."""
    policy = RestartPolicy()
    assert policy.delay([0, 1, 2, 3], lambda: 0.0) == pytest.approx(0.4)
    assert policy.delay([0, 1, 2, 3, 60], lambda: 0.0) is None
    assert policy.delay([0, 1, 2, 3, 60.1], lambda: 0.0) is not None
    assert policy.remembered((1.0, 2.0), ready_at=3.0, now=62.9) == (1.0, 2.0, 62.9)
    assert policy.remembered((1.0, 2.0), ready_at=3.0, now=63.0) == (63.0,)
    assert policy.remembered((1.0,), ready_at=None, now=900.0) == (1.0, 900.0)


@given(count=strategies.integers(1, 200), chance=strategies.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_longer_than_the_cap_nor_negative(count: int, chance: float):
    """Whatever the number of failures and the luck."""
    delay = RestartPolicy(attempts=1000).delay([0.0] * count, lambda: chance)
    assert delay is not None and 0 <= delay <= 30


# -- status ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (-5, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (8100, "2h 15m"),
        (8101, "2h 15m"),
        (86400, "1d"),
        (90000, "1d 1h"),
        (86460, "1d"),
        (10**7, "115d 17h"),
    ],
)
def test_uptimes(seconds: float, text: str):
    """As the guide writes them."""
    assert uptime_text(seconds) == text


def test_a_status_as_the_guide_has_it():
    """The guide's four keys, and nothing that is not running has an uptime."""
    running = ServiceStatus(
        name="postgresql", state=ServiceState.RUNNING, pid=12345, port=5432, started=1000.0, health=Health.HEALTHY
    )
    seen = running.as_dict(now=9100.0)
    assert {key: seen[key] for key in ("running", "pid", "port", "uptime")} == {
        "running": True,
        "pid": 12345,
        "port": 5432,
        "uptime": "2h 15m",
    }
    assert seen["state"] == "running" and type(seen["state"]) is str and type(seen["health"]) is str
    assert ServiceStatus(name="x").as_dict(0.0)["uptime"] is None
    assert not any(
        ServiceStatus(name="x", state=state).as_dict(0)["running"]
        for state in ServiceState
        if state is not ServiceState.RUNNING
    )
    with pytest.raises(FrozenInstanceError):
        running.pid = 1


def test_a_connection_info_shows_its_secret_only_when_asked():
    """Not when it is printed or logged; exports are safe for a shell."""
    info = ConnectionInfo(
        host="127.0.0.1",
        port=5432,
        connection_string="postgresql://u:pa$$@h/d",
        database="d",
        user="u",
        password="pa$$",
        environment={"PGPASSWORD": "pa$$ '\""},
    )
    assert "pa$$" not in repr(info) and info.as_dict()["password"] == "pa$$"
    assert info.exports() == "export PGPASSWORD='pa$$ '\"'\"'\"'\n"


# -- declarations --------------------------------------------------------------------------------------------


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
    """Only those four; nothing else in braces is looked at."""
    settings = Settings("127.0.0.1", 80, "/d", "me")
    assert fill("{host}:{port} {data_dir} {user} {other} {port.__class__} {{port}}", settings) == (
        "127.0.0.1:80 /d me {other} {port.__class__} {80}"
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
    ],
)
def test_files_of_services_that_are_none(text: str, words: str):
    """One clear error that names the file and the place; nothing in it is executed."""
    with pytest.raises(ConfigError, match=words) as caught:
        load_services(text, "my.yaml")
    assert caught.value.name.startswith("my.yaml")


def test_where_options_come_from():
    """Argument, then environment, then declaration; secrets are not printed."""
    declaration = ServiceDeclaration("my-db", port=1000)
    environ = {"MY_DB_PORT": "2000", "MY_DB_DATA_DIR": "/from/environ"}
    assert read_options(declaration, {}, {}).port == 1000
    assert (read_options(declaration, {}, environ).port, str(read_options(declaration, {}, environ).data_dir)) == (
        2000,
        "/from/environ",
    )
    given = read_options(declaration, {"port": 3000, "data_dir": "/given", "password": "hush"}, environ, ("password",))
    assert (given.port, str(given.data_dir)) == (3000, "/given") and "hush" not in repr(given)
    with pytest.raises(ConfigError, match="MY_DB_PORT"):
        read_options(declaration, {}, {"MY_DB_PORT": "many"})
    with pytest.raises(ConfigError, match="has none"):
        read_options(ServiceDeclaration("quiet"), {"port": 80}, {})
    with pytest.raises(DataDirectoryError):
        read_options(declaration, {"data_dir": "x"}, {})


# -- what servers say ------------------------------------------------------------------------------------------


# -- Redis' configuration ----------------------------------------------------------------------------------------


# -- errors ----------------------------------------------------------------------------------------------------


def test_errors_say_what_and_how_to_mend_it():
    """The service, the reason, the repair."""
    assert (
        str(PortInUse("redis", 6379, "pid 7 (x)", "choose another"))
        == "redis: port 6379 is in use by pid 7 (x); choose another"
    )
    assert (
        "postgresql, redis" in str(UnknownService("x", ["redis", "postgresql"]))
        and len(str(UnknownService("x" * 999))) < 200
    )
    assert str(ServiceStartTimeout("x", 30.0)) == "x: not ready after 30 s"
    error = ServiceStartFailed("x", "why", exit_code=3, output_tail="last", permanent=True)
    assert isinstance(error, ServiceError) and (error.exit_code, error.output_tail, error.permanent) == (
        3,
        "last",
        True,
    )
