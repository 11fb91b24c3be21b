"""Ports: what is free, who has it, and what no port is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator

import psutil
import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import Clock, deferLater

from zcomm.errors import ConfigError, PortNotReady
from zcomm.network import (
    Holder,
    _command_line,
    _own_listener,
    check_port,
    find_free_port,
    find_holder,
    is_free,
    port_holder,
    wait_for_port,
)

pytestmark = pytest.mark.filterwarnings("error")


def listener(address: str, *, only_v6: bool = True, backlog: int = 5) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(only_v6))
    listening.bind((address, 0))
    listening.listen(backlog)
    return listening


def as_nobody(look: Callable[[], str]) -> str:
    """What ``look`` returns in a child that has given root's privileges up."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.closerange(3, writing)  # the child must not be a holder itself
            os.closerange(writing + 1, 1024)
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            os.write(writing, look().encode())
        finally:
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as answer:
        return answer.read().decode()


@pytest.fixture
def taken() -> Iterator[int]:
    with listener("127.0.0.1") as listening:
        yield listening.getsockname()[1]


@pytest.mark.parametrize("port", [-1, 0, 65536, 10**30, "x", "80", "", b"80", 80.0, True, False, [80]])
@pytest.mark.parametrize(
    "ask",
    [check_port, wait_for_port, port_holder, lambda port: find_free_port(preferred=port)],
    ids=["check_port", "wait_for_port", "port_holder", "find_free_port"],
)
def test_what_is_no_port_is_refused_at_once(ask, port):
    """A bad port is a ValueError from the call itself, and names what was given (P20)."""
    with pytest.raises(ValueError, match="is not a port") as caught:
        ask(port)
    assert isinstance(caught.value, ConfigError)


@pytest.mark.parametrize("host", ["", " ", "a b", "a\0b", "x" * 300, None, 1, b"localhost", ["localhost"]])
def test_what_is_no_host_is_refused_at_once(host):
    """A bad host is a ValueError from the call itself."""
    for ask in (check_port, wait_for_port):
        with pytest.raises(ValueError, match="host"):
            ask(1, host)
    with pytest.raises(ValueError, match="host"):
        find_free_port(host)


@pytest.mark.parametrize("timeout", [-1, "3", None, True, float("nan"), float("inf")])
def test_what_is_no_time_is_refused_at_once(timeout):
    """A bad timeout is a ValueError from the call itself."""
    with pytest.raises(ValueError, match="timeout"):
        wait_for_port(1, timeout=timeout)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LOCALHOST", "::1", "0.0.0.0", "::"])
@pytest.mark.parametrize("listens_on", ["127.0.0.1", "0.0.0.0", "::1", "::"])
@pytest_twisted.ensureDeferred
async def test_a_listener_on_either_version_takes_the_port(listens_on, host):
    """Whoever listens on one half of localhost, the port is taken for all of it."""
    with listener(listens_on) as listening:
        port = listening.getsockname()[1]
        assert await check_port(port, host) is False
    assert await check_port(port, host) is True


@pytest_twisted.ensureDeferred
async def test_a_listener_for_both_versions_takes_the_port():
    """One socket on [::] that serves IPv4 too is noticed."""
    with listener("::", only_v6=False) as listening:
        assert await check_port(listening.getsockname()[1]) is False


@pytest_twisted.ensureDeferred
async def test_another_loopback_address_is_an_address_of_its_own(taken):
    """A port taken on 127.0.0.1 is free on 127.0.0.2."""
    assert await check_port(taken, "127.0.0.2") is True


@pytest_twisted.ensureDeferred
async def test_a_closed_connection_does_not_keep_the_port():
    """TIME_WAIT is not a listener."""
    with listener("127.0.0.1") as listening:
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            accepted, _ = listening.accept()
            accepted.close()  # the side that closes first keeps the port in TIME_WAIT
            client.recv(1)
    assert await check_port(port) is True


@pytest_twisted.ensureDeferred
async def test_asking_disturbs_nobody(taken):
    """The question binds; the server that has the port sees no connection."""
    with listener("127.0.0.1") as listening:
        listening.setblocking(False)
        await check_port(listening.getsockname()[1])
        with pytest.raises(BlockingIOError):
            listening.accept()


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "no-such-host.invalid"])
@pytest_twisted.ensureDeferred
async def test_an_address_of_another_machine_is_an_error(host):
    """A port of somebody else is neither free nor taken."""
    for asked in (check_port(1, host), find_free_port(host)):
        with pytest.raises(ConfigError, match="host"):
            await asked


@pytest_twisted.ensureDeferred
async def test_a_name_is_resolved_without_blocking():
    """The machine's own name is an address of it."""
    with listener("0.0.0.0") as listening:
        try:
            socket.gethostbyname(socket.gethostname())
        except OSError:
            pytest.skip("this machine does not resolve its own name")
        assert await check_port(listening.getsockname()[1], socket.gethostname()) is False


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its privileges up")
def test_a_port_without_the_privilege_is_not_free():
    """An ordinary user is told False for a port it may not bind."""
    with open("/proc/sys/net/ipv4/ip_unprivileged_port_start", encoding="ascii") as first:
        if int(first.read()) <= 1:
            pytest.skip("every port is open to everybody here")
    assert as_nobody(lambda: str(is_free(1, ["127.0.0.1"]))) == "False"


@pytest_twisted.ensureDeferred
async def test_the_preferred_port_is_given_when_it_is_free(free_port):
    """Nobody has it, so it is taken."""
    assert await find_free_port(preferred=free_port) == free_port


@pytest_twisted.ensureDeferred
async def test_the_next_port_is_given_when_the_preferred_is_taken(taken):
    """The answer is the first free one above it."""
    found = await find_free_port(preferred=taken)
    assert found != taken and is_free(found, ["127.0.0.1", "::1"])
    assert all(not is_free(port, ["127.0.0.1", "::1"]) for port in range(taken, found))


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0", "::1"])
@pytest_twisted.ensureDeferred
async def test_a_found_port_is_free(host):
    """What was found can be listened on, and two questions need not agree."""
    for port in await gatherResults([find_free_port(host) for _ in range(20)]):
        assert is_free(port, ["127.0.0.1", "::1"])


@pytest.mark.parametrize(
    "listens_on,host",
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("::1", "localhost"),
        ("::1", "::1"),
        ("::", "::"),
        ("0.0.0.0", "0.0.0.0"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_an_open_port_ends_the_waiting(listens_on, host):
    """Whoever listens already is found at once, by either name."""
    with listener(listens_on) as listening:
        assert await wait_for_port(listening.getsockname()[1], host) is None


@pytest_twisted.ensureDeferred
async def test_waiting_goes_on_until_somebody_listens(free_port):
    """A server that comes later is noticed when it comes."""
    waiting = wait_for_port(free_port)
    turns = []
    await wait_until(lambda: turns.append(1) or len(turns) > 5)
    assert not waiting.called
    with socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.bind(("127.0.0.1", free_port))
        late.listen()
        assert await waiting is None


@pytest_twisted.ensureDeferred
async def test_waiting_ends_with_an_error_that_says_what_was_waited_for(free_port):
    """Nobody came: the error is a TimeoutError and names the address."""
    with pytest.raises(PortNotReady, match=f"127.0.0.1:{free_port}.*refused") as caught:
        await wait_for_port(free_port, timeout=0.05)
    assert isinstance(caught.value, TimeoutError)


@pytest_twisted.ensureDeferred
async def test_waiting_can_be_given_up(free_port):
    """A cancelled wait leaves no timer and no connection behind."""
    waiting = wait_for_port(free_port)
    waiting.cancel()
    with pytest.raises(CancelledError):
        await waiting


@pytest_twisted.ensureDeferred
async def test_the_holder_is_named(taken):
    """Who listens is told with pid, program, command and user."""
    holder = await port_holder(taken)
    assert holder == find_holder(taken)
    assert holder.pid == os.getpid() and holder.name == psutil.Process().name()
    assert holder.user == psutil.Process().username() and "python" in holder.command
    assert str(holder) == f"{holder.name} (pid {holder.pid}) of user {holder.user}"


@pytest_twisted.ensureDeferred
async def test_nobody_holds_a_free_port(free_port):
    """A port without a listener has no holder."""
    assert await port_holder(free_port) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its privileges up")
def test_an_ordinary_user_learns_at_least_the_owner(taken):
    """Another user's process has no visible pid, but an owner."""
    assert as_nobody(lambda: str(find_holder(taken))) == "another user's process of user root"


@pytest.mark.parametrize(
    "argv,shown",
    [
        (["redis-server", "--requirepass", "hunter2", "--port", "1"], "redis-server --requirepass *** --port 1"),
        (["app", "--db-password=hunter2"], "app --db-password=***"),
        (["app", "TOKEN=hunter2", "run"], "app TOKEN=*** run"),
        (["app"] + ["x" * 300], "app " + "x" * 196),
    ],
)
def test_a_command_is_shown_without_its_secrets(argv, shown):
    """What looks like a password on a stranger's command line is not repeated."""
    assert _command_line(argv) == shown


def test_where_the_table_is_closed_ones_own_processes_are_looked_at(taken, free_port):
    """As on macOS: the pid of an own listener; of somebody else's only that there is one."""
    assert _own_listener(taken) == (True, os.getpid())
    assert _own_listener(free_port) == (False, None)


def test_a_holder_without_a_user_is_still_named():
    """The text has what is known and nothing else."""
    assert str(Holder(12, "nc", "nc -l")) == "nc (pid 12)"


@pytest_twisted.ensureDeferred
async def test_the_reactor_turns_while_the_process_table_is_read(taken):
    """Other work goes on between the question and its answer."""
    from twisted.internet import reactor

    answers = [port_holder(taken) for _ in range(10)]
    assert not any(answer.called for answer in answers)
    await deferLater(reactor, 0, lambda: None)
    assert all(await gatherResults(answers))


def test_waiting_needs_no_real_time():
    """The deadline is the given clock's."""

    class Refusing(Clock):
        """A reactor whose every connection is refused at once."""

        def connectTCP(self, host, port, factory, timeout=30, bindAddress=None):
            from twisted.internet.error import ConnectionRefusedError
            from twisted.python.failure import Failure

            factory.clientConnectionFailed(None, Failure(ConnectionRefusedError()))

    clock = Refusing()
    results: list[object] = []
    waiting: Deferred[None] = wait_for_port(1, "127.0.0.1", timeout=5.0, reactor=clock)
    waiting.addBoth(results.append)
    for _ in range(100):
        clock.advance(0.049)
    assert results == []
    for _ in range(5):
        clock.advance(0.1)
    assert results[0].check(PortNotReady) and not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_contact_r05_mapped_addresses_are_ipv4(free_port: int):
    """A port is free, or not, at the address that is wrapped; a link's address without its link is none."""
    assert await check_port(free_port, "::ffff:127.0.0.1") is True
    with socket.create_server(("127.0.0.1", free_port)):
        assert await check_port(free_port, "::ffff:127.0.0.1") is False
        await wait_for_port(free_port, "::ffff:127.0.0.1", timeout=5)
    with pytest.raises(ConfigError, match="not an address of this machine"):
        await check_port(free_port, "fe80::1%lo")
