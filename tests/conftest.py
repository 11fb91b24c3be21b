"""What every test may use. The things themselves are in the modules beside this one:
``rawclient``, ``serverprocess``, ``waiting``, ``leaks``."""

from __future__ import annotations

import functools
import gc
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import pytest_twisted
from support.leaks import Snapshot, left_behind
from support.measuring import import_what_is_measured, not_measured, return_in_a_turn_of_its_own
from support.ports import unused_port
from support.serverprocess import RunningServer, start_server
from support.waiting import wait_until
from twisted.internet.defer import Deferred, ensureDeferred

#: Seconds that a closing connection or an ending thread gets before it counts as left behind.
GRACE = 10.0
#: Seconds for a test on the reactor; less than the ``timeout`` of pyproject.toml, which bounds all others.
LIMIT = 290.0


# How long one example takes says more of the machine, and of what else it does, than of the code.
hypothesis.settings.register_profile("zcomm", deadline=None)
hypothesis.settings.load_profile("zcomm")

import_what_is_measured()
return_in_a_turn_of_its_own()


def take_signals() -> None:
    """Let Ctrl-C and its like reach the programs that tests start, which ignore what this process ignores: a suite
    that was started in the background of a script ignores Ctrl-C."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGQUIT, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


take_signals()


#: What takes longest, in this order: a process that began such a module last would be alone at the end.
LONG = (
    "test_wheel.py",
    "browser/test_browser.py",
    "services/kinds/postgresql/test_postgresql_faults.py",
    "live/test_differential.py",
    "wire/test_process.py",
    "wire/test_memory.py",
    "services/supervision/test_record.py",
    "wire/test_exhaustion.py",
    "docs/test_sphinx.py",
    "fuzz/test_fuzz.py",
    "test_types.py",
    "wire/test_start_failures.py",
    "wire/test_memory_of_clients.py",
    "services/kinds/redis/test_redis.py",
    "services/kinds/postgresql/test_postgresql.py",
    "services/test_manager.py",
)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """To find the tests is not measured: nothing of zComm is in it but imports."""
    with not_measured():
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long modules go first. What is about the WebSocket itself is marked to run again on the other reactor, unless its
    server is a child, which has the same reactor both times. What tells coverage nothing is not measured."""
    here = Path(__file__).parent
    places = {here / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))
    for item in items:
        is_child = item.get_closest_marker("child") is not None
        is_random = hasattr(getattr(item, "obj", None), "hypothesis")
        if item.path.relative_to(here).parts[0] == "wire" and not is_child:
            item.add_marker(pytest.mark.wire)
        # A child is measured by itself; what is covered is no matter of luck.
        if is_child or is_random:
            item.add_marker(pytest.mark.unmeasured)
        if isinstance(item, pytest.Function) and not is_random:
            mark = pytest_twisted._get_mark(item.obj)
            if mark is not None:
                item.obj = ending_in_time(item.obj, mark)


def pytest_collection_finish() -> None:
    """Have the collector of garbage pass over the thousands of tests, which stay to the end."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that runs what others have measured, again and again, does so without coverage's trace."""
    with not_measured() if item.get_closest_marker("unmeasured") else nullcontext():
        return (yield)


def ending_in_time(test: Callable[..., Any], mark: str) -> Callable[..., Deferred[Any]]:
    """``test``, failed when its Deferred does not fire in time.

    The signal that ends blocking tests is no good here: it would be raised in the reactor's loop, which
    logs it and goes on waiting.
    """

    @functools.wraps(test)
    def limited(**kwargs: Any) -> Deferred[Any]:
        from twisted.internet import reactor

        running = test(**kwargs)
        return (ensureDeferred(running) if mark == "async_test" else running).addTimeout(LIMIT, reactor)

    del limited._pytest_twisted_mark
    return limited


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A data directory as zComm makes it: the owner's alone, empty."""
    path = tmp_path / "zcomm-data"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def free_port() -> int:
    """A TCP port of the loopback that nobody has. Prefer port 0 where it can be asked for."""
    return unused_port()


@pytest.fixture
def running_server(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """``running_server(*options, home=…, environ=…)`` starts ``twistd zcomm`` and returns it listening.

    The servers are stopped at the end of the test; a second one with the same ``home`` is a restart.
    """
    servers: list[RunningServer] = []

    def start(*options: str, home: Path | None = None, environ: dict[str, str] | None = None) -> RunningServer:
        server = start_server(*options, home=home or tmp_path / "home", environ=environ)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session", autouse=True)
def reactor_is_warm() -> None:
    """Have the reactor open what it opens once, on first use: its own sockets are nobody's leak."""
    from twisted.internet import reactor

    turned: Deferred[None] = Deferred()
    reactor.callLater(0, reactor.callFromThread, turned.callback, None)
    pytest_twisted.blockon(turned)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest, reactor_is_warm: None) -> Iterator[None]:
    """Fail a test that leaves a timer, a thread, a child process or a socket behind."""
    from twisted.internet import reactor

    before = Snapshot.take(reactor)
    yield
    if request.node.get_closest_marker("leaves") is not None:
        return

    def leftovers() -> list[str]:
        return left_behind(before, Snapshot.take(reactor))

    if not leftovers():
        return
    deadline = time.monotonic() + GRACE

    def settled() -> bool:
        return not leftovers() or time.monotonic() > deadline

    def wait() -> Deferred[bool]:
        return wait_until(settled, "an end of what the test left behind", timeout=GRACE * 2)

    pytest_twisted.blockon(wait())
    # The poll of wait_until is over here, so what is left is the test's own.
    if remains := leftovers():
        pytest.fail("the test left behind: " + "; ".join(remains), pytrace=False)
