"""Functions that clients may call."""

from __future__ import annotations

import functools
import json
import sys
import threading
from collections.abc import Awaitable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from support.waiting import wait_until
from twisted.internet import reactor, task
from twisted.internet.defer import Deferred, gatherResults, inlineCallbacks, succeed

from zcomm.auth.policy import AllowAll, Policy
from zcomm.bifrost.given import LONG, Given, kind_of
from zcomm.budget.written import Written
from zcomm.commands.functions import FunctionRegistry, Functions, function, load_functions
from zcomm.errors import CommandError, ConfigError, Declined, Invalid, PermissionDenied, TooBusy, UnknownCommand
from zcomm.interfaces import ANONYMOUS, Identity, Outcome
from zcomm.runtime.workers import Workers
from zcomm.wire.pieces import LIGHT

POLICY = Policy.from_yaml("admin: {functions: '*'}\nguest: {functions: [greet]}", "policy")


@pytest.fixture
def registry() -> FunctionRegistry:
    return FunctionRegistry()


@pytest.fixture
def functions(registry, workers, given) -> Functions:
    return Functions(registry, POLICY, workers, given)


def here() -> str:
    return threading.current_thread().name


@pytest_twisted.inlineCallbacks
def test_the_guides_call(functions, registry, caller, asking):
    """``zFunc(calculateTotal, {cart_id: 123})`` passes the one object by position and answers its caller."""

    @registry.register
    def calculateTotal(cart):
        return {"cart": cart["cart_id"], "total": 42}

    outcome = yield functions.respond(asking("zFunc", "zFunc(calculateTotal, {cart_id: 123})"), caller)
    assert outcome.result == {"cart": 123, "total": 42}
    assert outcome.changed is False
    assert outcome.announcement == {"function": "calculateTotal"}


@pytest_twisted.inlineCallbacks
def test_plain_functions_run_in_a_thread(functions, registry, caller, asking):
    """What may block runs in a worker thread, unless it says that it is quick."""
    registry.register(lambda: here(), name="slow")
    registry.register(lambda: here(), name="quick", thread=False)
    slow = yield functions.respond(asking("zFunc", "zFunc(slow)"), caller)
    assert slow.result.startswith("test-")
    assert functions.respond(asking("zFunc", "zFunc(quick)"), caller).result == here()


@pytest_twisted.inlineCallbacks
def test_asynchronous_functions_run_on_the_reactor(functions, registry, caller, asking):
    """A coroutine function, inlineCallbacks, and what is annotated to return a Deferred, in each spelling."""

    @registry.register
    async def coroutine():
        await succeed(None)
        return here()

    @registry.register
    @inlineCallbacks
    def inline():
        yield succeed(None)
        return here()

    @registry.register
    def annotated() -> Deferred[str]:
        return succeed(here())

    def evaluated():
        return succeed(here())

    evaluated.__annotations__["return"] = Deferred[str]
    registry.register(evaluated)
    registry.register(functools.partial(coroutine), name="partial")
    for name in ("coroutine", "inline", "annotated", "evaluated", "partial"):
        outcome = yield functions.respond(asking("zFunc", f"zFunc({name})"), caller)
        assert outcome.result == here(), name


def wrapped(fn: Any) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


@pytest_twisted.inlineCallbacks
def test_contact_whatever_is_to_be_waited_for_is(registry, workers, given, caller, asking):
    """What comes out of a function decides, however the function is written, and whatever it comes to in the end."""
    pool = ThreadPoolExecutor(1)

    async def later(*, ask=None):
        if ask is not None:
            with pytest.raises(Declined):
                await ask("Name?")
        return here()

    async def twice():
        return later()

    async def deferred_in_the_end():
        await task.deferLater(reactor, 0)
        return task.deferLater(reactor, 0, here)

    class Called:
        async def __call__(self, *, ask):
            return await later(ask=ask)

    class Promise:
        def __await__(self):
            return later().__await__()

    class CalledPlainly:
        def __call__(self, *, ask):
            return later(ask=ask)

    forms = {
        "behind_a_decorator": wrapped(later),
        "behind_two": wrapped(wrapped(later)),
        "partial": functools.partial(wrapped(later)),
        "called": Called(),
        "partial_of_called": functools.partial(Called()),
        "called_plainly": CalledPlainly(),
        "returns_coroutine": lambda *, ask: later(ask=ask),
        "returns_awaitable": lambda: Promise(),
        "returns_deferred": lambda: task.deferLater(reactor, 0, here),
        "returns_future": lambda: pool.submit(lambda: "elsewhere"),
        "returns_what_returns_one": lambda: twice(),
        "twice": twice,
        "deferred_in_the_end": deferred_in_the_end,
    }
    functions = Functions(registry, AllowAll(), workers, Given(reactor, given._ask))
    for name, fn in forms.items():
        registry.register(fn, name=name)
        outcome = yield functions.respond(asking("zFunc", f"zFunc({name})"), caller)
        assert outcome.result == ("elsewhere" if name == "returns_future" else here()), name
    pool.shutdown()


def test_contact_annotations_of_every_kind_name_what_is_asynchronous():
    """As types and as texts; those of a plain result do not."""

    def plain(): ...

    kinds = {Awaitable[int]: "coroutine", Coroutine[Any, Any, int]: "coroutine", Deferred[int]: "deferred"}
    kinds |= {Deferred: "deferred", list[int]: "plain", "typing.Awaitable[int]": "coroutine", "int": "plain"}
    for annotation, kind in kinds.items():
        plain.__annotations__["return"] = annotation
        assert kind_of(plain) == kind, annotation


@pytest_twisted.inlineCallbacks
def test_errors_of_functions_come_through(functions, registry, caller, asking):
    """What a function raises is what its caller's command fails with, on either side."""

    @registry.register
    def blocking():
        raise Invalid("The cart is empty", {"cart": "empty"})

    @registry.register
    async def waiting():
        raise ZeroDivisionError

    with pytest.raises(Invalid, match="The cart is empty"):
        yield functions.respond(asking("zFunc", "zFunc(blocking)"), caller)
    with pytest.raises(ZeroDivisionError):
        yield functions.respond(asking("zFunc", "zFunc(waiting)"), caller)


@pytest.mark.parametrize(
    "text",
    [
        'zFunc(os.system, "id")',
        "zFunc(__builtins__.eval)",
        "zFunc(respond.__globals__)",
        "zFunc(/tmp/evil.run)",
        "zFunc(../x.f)",
        "zFunc(__class__)",
        "zFunc(_functions)",
        "zFunc(register)",
        "zFunc(exit)",
        "zFunc(eval)",
    ],
)
def test_only_registered_functions_can_be_called(text: str, functions, registry, caller, asking):
    """I3: the names of modules, builtins and attributes are unknown functions."""
    registry.register(here)
    with pytest.raises(UnknownCommand, match="^Unknown function$"):
        functions.respond(asking("zFunc", text), caller)


def test_contact_a28_a_near_miss_is_named_if_it_may_be_called(functions, registry, caller, guest, asking):
    """The nearest match helps whoever may call it, and tells nobody else that it exists."""
    registry.register(here, name="deleteAll")
    registry.register(here, name="greet")
    with pytest.raises(UnknownCommand, match='^Unknown function; did you mean "deleteAll"\\?$'):
        functions.respond(asking("zFunc", "zFunc(deleteAl)"), caller)
    for name in ("deleteAll", "deleteAl", "nothing"):
        with pytest.raises(PermissionDenied, match="^Permission denied$"):
            functions.respond(asking("zFunc", f"zFunc({name})"), guest)
    with pytest.raises(PermissionDenied, match="greet"):
        functions.respond(asking("zFunc", "zFunc(gret)"), guest)


def test_who_may_not_call_runs_nothing(functions, registry, guest, asking):
    """A15: a forbidden call is denied before its arguments are looked at; nothing runs."""
    ran = []
    registry.register(lambda: ran.append(1), name="deleteAll", thread=False)
    for text in ("zFunc(deleteAll)", "zFunc(deleteAll, 1, 2)"):
        with pytest.raises(PermissionDenied, match="^Permission denied$"):
            functions.respond(asking("zFunc", text), guest)
    assert ran == []


@pytest.mark.parametrize(
    ("text", "reason", "fields"),
    [
        ("zFunc(f)", "f needs a, b", {"a": "missing", "b": "missing"}),
        ("zFunc(f, 1)", "f needs b", {"b": "missing"}),
        ("zFunc(f, 1, 2, 3, 4)", "f takes a, b, c, but 4 were given", {}),
        ("zFunc(none, 1)", "none takes no arguments, but 1 were given", {}),
    ],
)
def test_arguments_that_do_not_fit_are_named(text, reason, fields, functions, registry, caller, asking):
    """Too few or too many arguments: the error says which the function takes, and it does not run."""
    registry.register(lambda a, b, c=0: 1 / 0, name="f", thread=False)
    registry.register(lambda: 1 / 0, name="none", thread=False)
    with pytest.raises(Invalid) as caught:
        functions.respond(asking("zFunc", text), caller)
    assert str(caught.value) == f"Invalid arguments: {reason}"
    assert caught.value.fields == fields


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ([1, 2], {}, [1, 2, 3, 4]),
        ([1], {"b": 5}, [1, 5, 3, 4]),
        ([], {"b": None, "a": [{"c": 1}]}, [[{"c": 1}], None, 3, 4]),
        ([1, 2], {"d": 0}, [1, 2, 3, 0]),
        (None, {"a": 1, "b": 2, "c": 5, "d": 6}, [1, 2, 5, 6]),
        ([1, 2], None, [1, 2, 3, 4]),
        ([1], {}, {"b": "missing"}),
        ([], {"b": 1}, {"a": "missing"}),
        ([], {"c": 1}, {"a": "missing", "b": "missing"}),
        ([1, 2], {"a": 3}, {"a": "is given twice"}),
        ([1, 2], {"e": 3}, {"e": "is unknown"}),
        ([1, 2], {"identity": "root"}, {"identity": "is unknown"}),
        ([1, 2], {"progress": 1, "c": 1}, {"progress": "is unknown"}),
        ([1, 2], {"client": 1, "ask": 2}, {"client": "is unknown", "ask": "is unknown"}),
        ([1, 2], {"rest": {}}, {"rest": "is unknown"}),
        ([1, 2], {"": 1}, {"": "is unknown"}),
        ([1, 2], {"__class__": 1}, {"__class__": "is unknown"}),
        ([1, 2, 3, 4, 5], {}, {}),
        ({"a": 1}, {}, {"args": "must be a list"}),
        ("ab", {}, {"args": "must be a list"}),
        ([1, 2], [1], {"kwargs": "must be an object"}),
    ],
)
def test_arguments_in_json(args, kwargs, expected, functions, registry, caller, asking):
    """By place and by name, whatever kind of parameter it is; a name reaches nothing that the server fills in."""

    def f(a, /, b, c=3, d=4, *, identity, **rest):
        assert identity is caller.identity and not rest
        return [a, b, c, d]

    registry.register(f, thread=False)
    request = asking("zFunc", {"name": "f", "args": args, "kwargs": kwargs})
    if isinstance(expected, list):
        assert functions.respond(request, caller).result == expected
    else:
        with pytest.raises(Invalid, match="^Invalid arguments") as caught:
            functions.respond(request, caller)
        assert caught.value.fields == expected


def test_a_call_in_json(functions, registry, guest, caller, asking):
    """The same rights and the same errors as for the text; nothing but its keys."""
    registry.register(lambda *given: list(given), name="echo", thread=False)
    assert functions.respond(asking("zFunc", {"name": "echo"}), caller).result == []
    assert functions.respond(asking("zFunc", {"name": "echo", "args": ["zFunc(f)", None]}), caller).result == [
        "zFunc(f)",
        None,
    ]
    with pytest.raises(PermissionDenied):
        functions.respond(asking("zFunc", {"name": "echo"}), guest)
    for horizontal, kind, words in (
        ({"name": "eccho"}, UnknownCommand, 'did you mean "echo"'),
        ({"name": "os.system", "args": ["id"]}, UnknownCommand, "Unknown function"),
        ({"name": "__import__"}, UnknownCommand, "Unknown function"),
        ({"name": ["echo"]}, Invalid, "needs a name"),
        ({"args": []}, Invalid, "needs a name"),
        ({}, Invalid, "needs a name"),
        ({"name": "echo", "arg": []}, Invalid, 'did you mean "args"'),
        ({"name": "echo", "_idempotencyKey": "k"}, Invalid, "unknown key"),
    ):
        with pytest.raises(kind, match=words):
            functions.respond(asking("zFunc", horizontal), caller)


def test_a_parameter_called_db_is_nobodys_to_name(functions, registry, caller, asking):
    """It stands for what the server gives, whatever a function calls its parameters."""
    registry.register(lambda db=1: db, name="f", thread=False)
    with pytest.raises(Invalid) as caught:
        functions.respond(asking("zFunc", {"name": "f", "kwargs": {"db": 2}}), caller)
    assert caught.value.fields == {"db": "is unknown"}


def test_any_number_of_arguments(functions, registry, caller, asking):
    """A function may take as many as come; its defaults stand for those that do not."""
    registry.register(lambda *numbers: sum(numbers), name="total", thread=False)
    registry.register(lambda a, b=2, **rest: [a, b, rest], name="some", thread=False)
    assert functions.respond(asking("zFunc", "zFunc(total, 1, 2, 3)"), caller).result == 6
    assert functions.respond(asking("zFunc", "zFunc(some, 1)"), caller).result == [1, 2, {}]
    assert functions.respond(asking("zFunc", "zFunc(some, {identity: 'root'})"), caller).result == [
        {"identity": "root"},
        2,
        {},
    ]


def test_the_server_says_who_calls(functions, registry, caller, asking):
    """``identity`` and ``client`` come from the connection; what the caller sends stays an argument."""

    @registry.register(thread=False)
    def whoami(claimed=None, *, identity, client):
        return claimed, identity.name, client

    result = functions.respond(
        asking("zFunc", "zFunc(whoami, {identity: {name: 'root', role: 'admin'}})"), caller
    ).result
    assert result == ({"identity": {"name": "root", "role": "admin"}}, "alice", caller)


@pytest_twisted.inlineCallbacks
def test_what_a_function_asks_for_is_made_for_its_place(registry, workers, given, caller, asking):
    """In a thread, on the reactor and in a program's loop; the last word of progress leaves before the result."""
    registry.register(lambda: 0, name="asks_for_nothing")

    @registry.register
    def plain(*, progress, identity, client, ask):
        progress(1, 2, "half")
        progress(2, 2, "all")
        with pytest.raises(Declined):
            ask("Name?")
        return identity.name, client.id, here()

    async def coroutine(*, progress, identity, client, ask):
        progress(1, 2, "half")
        progress(2, 2, "all")
        with pytest.raises(Declined):
            await ask("Name?", timeout=1)
        return identity.name, client.id, here()

    registry.register(coroutine)
    places: list[tuple[str, ...]] = []

    class Watched(Given):
        def __call__(self, wants, request, client, place):
            places.append((place, *sorted(wants)))
            return super().__call__(wants, request, client, place)

    watched = Watched(reactor, given._ask)
    functions = Functions(registry, AllowAll(), workers, watched)
    words = b'"done":1', b'"done":2'
    for name in ("plain", "coroutine"):
        outcome = yield functions.respond(asking("zFunc", f"zFunc({name})"), caller)
        assert outcome.result[:2] == ("alice", 1)
        assert (outcome.result[2] == here()) is (name == "coroutine")
        assert [word in payload for word, payload in zip(words, caller.sent, strict=True)] == [True, True]
        caller.sent.clear()
    assert functions.respond(asking("zFunc", "zFunc(asks_for_nothing)"), caller).called is False
    every = ("ask", "client", "identity", "progress")
    assert places == [("thread", *every), ("reactor", *every)]


@pytest_twisted.inlineCallbacks
def test_a_broadcast_reaches_those_who_may_call(functions, registry, caller, asking):
    """The result of a broadcasting function may be read by roles that may call it, and by no others."""
    registry.register(lambda: 1, name="greet", broadcast=True)
    registry.register(lambda: 1, name="secret", broadcast=True)
    for name, readers in (("greet", ["admin", "guest"]), ("secret", ["admin"])):
        outcome = yield functions.respond(asking("zFunc", f"zFunc({name})"), caller)
        assert isinstance(outcome, Outcome) and outcome.changed
        assert [
            role for role in ("admin", "guest", "nobody") if outcome.audience.admits(Identity("x", role), POLICY)
        ] == readers


@pytest_twisted.inlineCallbacks
def test_a_full_queue_fails_the_call(registry, given, caller, asking):
    """When no thread will be free soon the client hears so at once."""
    gate = threading.Event()
    registry.register(lambda: gate.wait(30), name="hold")
    pool = Workers(threads=1, waiting=0, reactor=reactor)
    pool.start()
    try:
        functions = Functions(registry, AllowAll(), pool, given)
        first = functions.respond(asking("zFunc", "zFunc(hold)"), caller)
        with pytest.raises(TooBusy):
            while True:  # The thread may not have taken the first yet; one of a few is one too many.
                yield functions.respond(asking("zFunc", "zFunc(hold)"), caller)
        gate.set()
        yield first
    finally:
        gate.set()
        yield pool.stop()


def generator():
    yield 1


async def asynchronous_generator():
    yield 1


@pytest.mark.parametrize(
    ("fn", "options", "reason"),
    [
        (lambda: 0, {}, "no name for zFunc"),
        (here, {"name": "a.b"}, "no name for zFunc"),
        (here, {"name": "__init__"}, "no name for zFunc"),
        (here, {"name": "_private"}, "no name for zFunc"),
        (here, {"name": ""}, "no name for zFunc"),
        (here, {"name": 5}, "no name for zFunc"),
        (here, {"name": "here\n"}, "no name for zFunc"),
        (5, {"name": "f"}, "cannot be called"),
        (generator, {}, "no single result"),
        (asynchronous_generator, {}, "no single result"),
        (functools.partial(generator), {"name": "f"}, "no single result"),
        (functools.partial(asynchronous_generator), {"name": "f"}, "no single result"),
        (type("C", (), {"__call__": lambda self: (yield)})(), {"name": "f"}, "no single result"),
        (functools.partial(type("C", (), {"__call__": lambda self: (yield)})()), {"name": "f"}, "no single result"),
        (wrapped(asynchronous_generator), {"name": "f"}, "no single result"),
        (lambda identity: 0, {"name": "f"}, "'identity' must be keyword-only"),
        (lambda a, client=None: 0, {"name": "f"}, "'client' must be keyword-only"),
        (lambda progress: 0, {"name": "f"}, "'progress' must be keyword-only"),
        (lambda *, user: 0, {"name": "f"}, "nobody can fill the keyword-only parameter 'user'"),
        (
            type("C", (), {"__signature__": "none", "__call__": lambda self: 0})(),
            {"name": "f"},
            "parameters are unknown",
        ),
    ],
)
def test_what_no_call_could_fit_is_not_registered(fn: Any, options: dict[str, Any], reason: str, registry):
    """A function that could be spoofed, never filled or never named is refused where it is registered."""
    with pytest.raises(ConfigError, match=reason):
        registry.register(fn, **options)
    with pytest.raises(ConfigError, match=reason):
        function(fn, **options)
    assert len(registry) == 0


def test_asynchronous_functions_cannot_be_put_in_a_thread(registry):
    """A contradiction is an error at registration."""

    async def coroutine(): ...

    with pytest.raises(ConfigError, match="cannot run in a thread"):
        registry.register(coroutine, thread=True)


def test_names_are_unique(registry):
    """Two functions of one name are an error; the same one twice is not."""
    registry.register(here)
    registry.register(here)
    with pytest.raises(ConfigError, match="two functions of that name"):
        registry.register(lambda: 0, name="here")
    other = FunctionRegistry()
    other.register(lambda: 0, name="here")
    with pytest.raises(ConfigError, match="two functions of that name"):
        registry.update(other)
    assert "here" in registry and [entry.name for entry in registry] == ["here"]


def test_registering_leaves_the_function_as_it_was(registry):
    """The program can go on calling it, however it was registered."""
    assert registry.register(here) is here

    @registry.register(name="twice", broadcast=True)
    def double(n):
        return 2 * n

    @function
    def marked(n):
        return n

    @function(name="other")
    def also(n):
        return n

    assert (double(2), marked(3), also(4)) == (4, 3, 4)


def test_what_cannot_be_marked_says_so():
    """A builtin cannot carry the mark; the error names the way out."""
    with pytest.raises(ConfigError, match="wrap it"):
        function(len, name="length")


@pytest.fixture
def module(tmp_path: Path, monkeypatch):
    """``module("name", "source")`` makes a module that can be imported for the length of the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    names = []

    def write(name: str, source: str) -> str:
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
        names.append(name)
        return name

    yield write
    for name in list(sys.modules):
        if name.split(".")[0] in {known.split(".")[0] for known in names}:
            del sys.modules[name]


def test_a_module_exposes_what_it_marked(module):
    """Of a module's names only the marked functions are exposed, under the names and options they were given."""
    name = module(
        "zc_shop",
        """
from zcomm.bifrost.given import Given
from zcomm.commands.functions import function
import os
from zc_other import borrowed

def helper(): ...

@function
def plain(a): return a

@function(name="total", broadcast=True)
async def _total(): ...
""",
    )
    module("zc_other", "from zcomm.commands.functions import function\n@function\ndef borrowed(): ...\n")
    found = {entry.name: entry for entry in load_functions(name)}
    assert set(found) == {"plain", "total"}
    assert found["plain"].thread and not found["plain"].broadcast
    assert found["total"].broadcast and not found["total"].thread


def test_a_package_exposes_its_submodules_functions(module):
    """A package may gather functions of its own modules in its __init__."""
    module("zc_pack.inner", "from zcomm.commands.functions import function\n@function\ndef deep(): ...\n")
    module("zc_pack.__init__", "from zc_pack.inner import deep\n")
    assert [entry.name for entry in load_functions("zc_pack")] == ["deep"]


def test_a_module_of_the_current_directory_is_found(tmp_path, monkeypatch):
    """A program's own module need not be installed; where Python looks by itself comes first."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    source = "from zcomm.commands.functions import function\n@function\ndef near(): ...\n"
    (tmp_path / "zc_near.py").write_text(source)
    (tmp_path / "json.py").write_text("raise SystemError")
    assert [entry.name for entry in load_functions("zc_near")] == ["near"]
    assert sys.path[-1] == str(tmp_path)
    with pytest.raises(ConfigError, match="has no function marked"):
        load_functions("json")
    del sys.modules["zc_near"]


def test_b26_code_that_anybody_may_write_is_not_run(tmp_path, monkeypatch):
    """A module, a package around it, or the directory that they are in; nothing of it is imported."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "zc_open"
    package.mkdir()
    for name in ("__init__", "inner"):
        (package / f"{name}.py").write_text("import zcomm\n@zcomm.function\ndef f(): pass\n")
    for opened, mode in ((package / "inner.py", 0o666), (package / "__init__.py", 0o666), (package, 0o777)):
        before = opened.stat().st_mode
        opened.chmod(mode)
        with pytest.raises(
            ConfigError, match=f"--functions zc_open.inner.* could be anybody's: .* {opened} .*chmod o-w"
        ):
            load_functions("zc_open.inner")
        assert "zc_open.inner" not in sys.modules
        sys.modules.pop("zc_open", None)
        opened.chmod(before)
    assert [entry.name for entry in load_functions("zc_open.inner")] == ["f"]
    sys.modules.pop("zc_open.inner")
    sys.modules.pop("zc_open")


def test_b26_a_current_directory_that_anybody_may_write_is_left_out(tmp_path, monkeypatch):
    """What lies there is not looked for, now or by any later import; the error says why."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "zc_here.py").write_text("import zcomm\n@zcomm.function\ndef f(): pass\n")
    tmp_path.chmod(0o1777)
    with pytest.raises(ConfigError, match=f"no such module; .* left out: everybody may put files into {tmp_path}"):
        load_functions("zc_here")
    assert str(tmp_path) not in sys.path


def test_an_interrupted_start_is_no_error_of_the_module(module):
    """Ctrl-C while a module is imported ends the program as it should."""
    with pytest.raises(KeyboardInterrupt):
        load_functions(module("zc_interrupted", "raise KeyboardInterrupt"))


@pytest.mark.parametrize(
    ("name", "source", "reason"),
    [
        ("zc_missing", None, "there is no such module"),
        ("zc_broken", "1 / 0", "ZeroDivisionError: division by zero"),
        ("zc_syntax", "def f(", "SyntaxError: "),
        ("zc_exit", "raise SystemExit(3)", "SystemExit: 3"),
        ("zc_plain", "def f(): ...", "has no function marked with @zcomm.function"),
        (
            "zc_bad",
            "from zcomm.commands.functions import function\n@function\ndef f(identity): ...",
            "must be keyword-only",
        ),
        ("shop.py", None, "it takes the name of a module, not of a file; try --functions shop"),
        ("./pages/shop.py", None, "try --functions pages.shop"),
        ("", None, "ValueError"),
        ("..up", None, "TypeError"),
    ],
)
def test_a_module_that_cannot_be_used_is_named_with_the_cause(name, source, reason, module):
    """One clear error at start, naming the option, the module and why."""
    if source is not None:
        module(name, source)
    with pytest.raises(ConfigError) as caught:
        load_functions(name)
    assert caught.value.name == f"--functions {name}"
    assert reason in caught.value.reason
    assert not isinstance(caught.value, CommandError)


@pytest_twisted.inlineCallbacks
def test_contact_n3_threads_are_shared_out_by_user(functions, registry, caller, asking):
    """However many connections one user has, half the threads are left to others. Without authentication each
    connection counts by itself."""
    gate = threading.Event()
    began: list[str] = []

    @registry.register
    def wait(name):
        began.append(name)
        return gate.wait(30)

    registry.register(lambda: "served", name="quick")

    def call(connection: int, identity: Identity, text: str) -> Any:
        return functions.respond(asking("zFunc", text), replace(caller, identity=identity, id=connection))

    alice = [call(number, Identity("alice", "admin", f"t{number}"), f"zFunc(wait, a{number})") for number in range(4)]
    outcome = yield call(9, Identity("bob", "admin"), "zFunc(quick)")
    assert outcome.result == "served"
    assert began == ["a0"]
    gate.set()
    yield gatherResults(alice)
    gate.clear()
    del began[:]
    functions.permissions = AllowAll()
    strangers = [call(number, ANONYMOUS, f"zFunc(wait, s{number})") for number in (1, 1, 2)]
    yield wait_until(lambda: sorted(began) == ["s1", "s2"], "one call of each connection to run")
    gate.set()
    yield gatherResults(strangers)


@pytest_twisted.inlineCallbacks
def test_large_results_are_json_when_they_leave_their_thread(functions, registry, caller, asking):
    """Of plain functions, in the thread of the call; of asynchronous ones what would keep the reactor for long."""
    few, many = list(range(1000)), [[number] for number in range(LONG)]
    for name, result in (("few", few), ("many", many), ("dear", [0] * 10 * LIGHT)):
        registry.register(lambda result=result: result, name=name)

        async def later(result=result):
            await succeed(None)
            return result

        registry.register(later, name=f"later_{name}")

    def ask(name):
        return functions.respond(asking("zFunc", f"zFunc({name})"), caller)

    for name, result in (("few", few), ("later_few", few)):
        assert (yield ask(name)).result is result
    for name in ("many", "later_many"):
        written = (yield ask(name)).result
        assert isinstance(written, Written) and json.loads(written.json()) == many
    assert isinstance((yield ask("dear")).result, Written)


@pytest_twisted.inlineCallbacks
def test_a_large_result_without_a_thread(registry, caller, asking, given):
    """The function has run, so its result is passed on as it is."""
    workers = Workers(threads=1, name="test", reactor=reactor)
    yield workers.stop()
    many = [[number] for number in range(LONG)]

    @registry.register
    async def later():
        await succeed(None)
        return many

    outcome = yield Functions(registry, POLICY, workers, given).respond(asking("zFunc", "zFunc(later)"), caller)
    assert outcome.result is many
