"""The shape of the code, held by its syntax trees: which part may use which, and what none may do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

import pytest
from support.rows import for_each
from support.serverprocess import CHECKOUT

pytestmark = pytest.mark.unmeasured

#: From the bottom up: a module imports from its own layer and those below it, under ``TYPE_CHECKING`` too.
#: A folder stands for all that is in it; the longest name that fits a module counts; a module that fits none fails.
LAYERS: tuple[tuple[str, ...], ...] = (
    (
        "_version",
        "errors",
        "interfaces",
        "origin",
        "patterns",
        "peers",
        "reading",
        "strictyaml",
        "text",
        "wire.closecodes",
    ),
    ("config",),
    ("budget", "runtime"),
    (
        "auth",
        "engines",
        "network",
        "topics",
        "wire",
        "services.declaration",
        "services.restart_policy",
        "services.scripts",
        "services.status",
    ),
    ("bifrost", "data", "services.machine", "services.options", "services.resources"),
    ("live", "services.examination", "services.supervision"),
    ("services.kinds",),
    ("services",),
    ("client", "commands"),
    ("host", "web", "testing"),
    ("comm",),
    ("threaded", "workers"),
    ("legacy", "tap", "cli", ""),
)

#: Values in, values out: none of these imports anything that waits, reads or writes.
WITHOUT_IO = (
    "errors",
    "origin",
    "patterns",
    "peers",
    "strictyaml",
    "text",
    "wire.closecodes",
    "wire.frames_pure",
    "bifrost.messages",
    "bifrost.handshake",
    "client.members",
    "client.rows",
    "client.subscription",
    "commands.grammar",
    "data.filters",
    "data.requests",
    "data.rules",
    "host.contract",
    "services.restart_policy",
    "services.supervision.diagnosis",
    "services.supervision.states",
)
IO = (
    "autobahn",
    "socket",
    "ssl",
    "subprocess",
    "threading",
    "time",
    "os",
    "io",
    "pathlib",
    "asyncio",
    "twisted.internet",
    "sqlalchemy.engine",
    "psycopg",
    "urllib.request",
    "http.client",
)

#: Modules that one folder holds at most: beyond this nobody finds the room for a change by its name.
MOST_MODULES = 16

#: The only places that look at the environment; all others are told.
READS_ENVIRONMENT = ("zcomm.tap", "zcomm.comm", "zcomm.cli", "zcomm.cli.*")


def name_of(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {name_of(path): path for path in sorted((CHECKOUT / "zcomm").rglob("*.py"))}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@cache
def nodes(path: Path) -> tuple[ast.AST, ...]:
    """All of a file's tree."""
    return tuple(ast.walk(tree(path)))


@cache
def files_of_tests() -> tuple[Path, ...]:
    return tuple(path for path in sorted((CHECKOUT / "tests").rglob("*.py")) if "node_modules" not in path.parts)


def layer(name: str) -> int | None:
    """The rank of a module in :data:`LAYERS`, by the longest name there that it is or lies in."""
    parts = name.split(".")[1:]
    for length in range(len(parts), -1, -1):
        # The empty name is the package itself, and stands for nothing in it.
        if length == 0 and parts:
            return None
        for rank, rooms in enumerate(LAYERS):
            if ".".join(parts[:length]) in rooms:
                return rank
    return None


@cache
def imports(path: Path) -> tuple[tuple[str, int], ...]:
    """Every module that ``path`` imports, anywhere in it, with the line; under ``if TYPE_CHECKING`` as well."""
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            for alias in node.names:
                deeper = f"{base}.{alias.name}"
                compiled = (CHECKOUT / Path(*deeper.split("."))).with_suffix(".c").exists()
                found.append((deeper if deeper in modules() or compiled else base, node.lineno))
    return tuple(found)


@cache
def calls(path: Path) -> tuple[tuple[str, ast.Call], ...]:
    """Every call in ``path``, with the text of what is called."""
    return tuple((dotted(node.func), node) for node in nodes(path) if isinstance(node, ast.Call))


def dotted(node: ast.expr) -> str:
    """The text of an expression; that of a name with dots in a tenth of the time that others take."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return ast.unparse(node)


def places(path: Path, lines: list[int]) -> str:
    return ", ".join(f"{path.relative_to(CHECKOUT)}:{line}" for line in lines)


for_each_module = for_each(modules().items())
for_each_test = for_each([(path,) for path in files_of_tests()])


@for_each_module
def test_imports_go_one_way(name: str, path: Path):
    """A module uses its own layer and those below; nothing reaches up."""
    own = layer(name)
    assert own is not None, f"{name} has no layer; add it to LAYERS"
    upwards = [
        f"line {line}: {target}" for target, line in imports(path) if target in modules() and (layer(target) or 0) > own
    ]
    assert upwards == []


def test_imports_are_absolute():
    """A module's name says where it lies, in its imports too."""
    relative = [
        f"{name} line {node.lineno}"
        for name, path in modules().items()
        for node in nodes(path)
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


@pytest.mark.parametrize("folder", sorted({path.parent for path in modules().values()}), ids=lambda path: path.name)
def test_folders_have_one_purpose(folder: Path):
    """Each says in its first line what it is for, and holds no more than a reader can survey."""
    assert len(list(folder.glob("*.py"))) <= MOST_MODULES
    (first, *_) = (ast.get_docstring(tree(folder / "__init__.py")) or "").splitlines()
    assert first.endswith(".")


def test_imports_have_no_cycle():
    """No two modules need each other, however many stand between them."""
    graph = {
        name: {target for target, _ in imports(path) if target in modules() and target != name}
        for name, path in modules().items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, "cycle: " + " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, (*trail, name))
        done.add(name)

    for name in graph:
        visit(name, ())


@for_each_module
def test_the_socket_and_the_services_do_not_know_each_other(name: str, path: Path):
    """Only the composition knows both bifrost/ and services/."""
    for one, other in (("zcomm.bifrost", "zcomm.services"), ("zcomm.services", "zcomm.bifrost")):
        if name.startswith(one):
            assert [line for target, line in imports(path) if target.startswith(other)] == []


@pytest.mark.parametrize("name", WITHOUT_IO)
def test_logic_does_no_io(name: str):
    """What can be tested with values alone imports nothing that waits, reads or writes."""
    path = modules().get(f"zcomm.{name}")
    assert path is not None, f"{name} is gone; take it from WITHOUT_IO"
    found = [target for target, _ in imports(path) if any(target == io or target.startswith(io + ".") for io in IO)]
    assert found == []


@for_each_module
def test_no_module_needs_a_reactor_to_be_imported(name: str, path: Path):
    """Importing the global reactor installs one; only a function that was given none may do it."""

    def at_module_level(nodes: list[ast.stmt]) -> Iterator[ast.stmt]:
        for node in nodes:
            yield node
            if isinstance(node, (ast.If, ast.Try, ast.With, ast.ClassDef)):
                if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                    continue
                yield from at_module_level([*node.body, *getattr(node, "orelse", []), *getattr(node, "finalbody", [])])

    lines = [
        node.lineno
        for node in at_module_level(tree(path).body)
        if re.search(
            r"from twisted\.internet import .*\breactor\b|import twisted\.internet\.reactor",
            ast.unparse(node),
        )
        and isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert lines == [], places(path, lines)


@for_each_module
def test_the_environment_is_read_at_the_edge(name: str, path: Path):
    """Configuration is an argument everywhere else."""
    if any(fnmatchcase(name, pattern) for pattern in READS_ENVIRONMENT):
        return
    lines = [
        node.lineno
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "environb", "getenv", "putenv")
        and ast.unparse(node.value) == "os"
    ]
    lines += [line for target, line in imports(path) if target in ("os.environ", "os.getenv")]
    assert lines == [], places(path, lines)


#: Insides of Autobahn, of Twisted and of Python, and the only modules that may name them.
INSIDES = {
    "zcomm.wire.autobahn": (
        "_connectionLost",
        "_connectionMade",
        "_dataReceived",
        "_decompressor",
        "_perMessageCompress",
        "current_frame",
        "current_frame_masker",
        "failedByMe",
        "inside_message",
        "remoteCloseCode",
        "remoteCloseReason",
        "wasClean",
        "wasNotCleanReason",
        "websocket_version",
    ),
    "zcomm.runtime.acceptor": (
        "_buildAddr",
        "_fromListeningDescriptor",
        "_preexistingSocket",
        "_shouldShutdown",
        "numberAccepts",
    ),
    "zcomm.runtime.process": ("_run_exitfuncs", "get_objects"),
    "zcomm.runtime.reactor": ("_SIGCHLDWaker", "_asyncioEventloop", "_disconnectSelectable", "_internalReaders"),
    "zcomm.runtime.transports": ("_tempDataBuffer", "_tempDataLen", "dataBuffer"),
}


@for_each_module
def test_insides_of_others_are_touched_in_one_place(name: str, path: Path):
    """One module changes when Autobahn or Twisted does within; no other imports their private names."""
    elsewhere = {inside for home, insides in INSIDES.items() if home != name for inside in insides}
    found = []
    for node in nodes(path):
        if isinstance(node, ast.Attribute) and node.attr in elsewhere:
            found.append(f"line {node.lineno}: {node.attr}")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("autobahn", "twisted", "txaio"):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            found += [
                f"line {node.lineno}: {item}" for item in names if item[0] == "_" and item not in INSIDES.get(name, ())
            ]
    if name == "zcomm.runtime.reactor":
        found = [item for item in found if not item.endswith(" _signals")]
    assert found == []


#: The modules that open files by name, none of which an option or a client gave; all others read with
#: :mod:`zcomm.reading`, for to close what SQLite has open would take its locks away.
OPENS_FILES = (
    "zcomm.auth.codes",
    "zcomm.auth.private_files",
    "zcomm.budget.allocator",
    "zcomm.cli",
    "zcomm.cli.service",
    "zcomm.commands.files",
    "zcomm.data.drivers.sqlite_watch",
    "zcomm.network",
    "zcomm.reading",
    "zcomm.runtime.files",
    "zcomm.runtime.process",
    "zcomm.runtime.runfile",
    "zcomm.runtime.signals",
    "zcomm.services.*",
    "zcomm.web.assets",
)
OPENING = re.compile(
    r"open|io\.open(_code)?|os\.(open|truncate)|mmap\.mmap|shutil\.copy\w*|.*\.(read_text|read_bytes|write_text|write_bytes|touch)"
)


@for_each_module
def test_contact_files_are_opened_in_few_places(name: str, path: Path):
    """Whatever a user may name is opened where a database that is in use is told from other files."""
    if any(fnmatchcase(name, pattern) for pattern in OPENS_FILES):
        return
    lines = [node.lineno for called, node in calls(path) if OPENING.fullmatch(called)]
    assert lines == [], places(path, lines)


#: Fields that a dataclass takes by position at most; with more, nobody reads a call without the class beside it.
MOST_POSITIONAL = 5

#: Words by which a docstring asks its reader instead of telling: it begins with its subject, or with its effect.
RIDDLES = re.compile(r"(What|Who|Which|How|Where|Whoever|Whatever|Nobody|One more|It has)\b")


def classes(path: Path) -> Iterator[ast.ClassDef]:
    for node in nodes(path):
        if isinstance(node, ast.ClassDef):
            yield node


def documented(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the docstring of the module, and of each public class and function that has one."""

    def visit(node: ast.Module | ast.ClassDef) -> Iterator[tuple[int, str]]:
        text = ast.get_docstring(node)
        if text is not None:
            yield getattr(node, "lineno", 1), text
        for inner in node.body:
            name = getattr(inner, "name", "_")
            if name.startswith("_"):
                continue
            if isinstance(inner, ast.ClassDef):
                yield from visit(inner)
            elif isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)):
                text = ast.get_docstring(inner)
                if text is not None:
                    yield inner.lineno, text

    return visit(tree(path))


@for_each_module
def test_docstrings_tell(name: str, path: Path):
    """They begin with a subject or an effect, and say it in three words at least."""
    lines = [line for line, text in documented(path) if RIDDLES.match(text) or len(text.split()) < 3]
    assert lines == [], places(path, lines)


def positional_fields(node: ast.ClassDef) -> int:
    """The number of values that a dataclass takes by position; 0 for any other class."""
    marks = [ast.unparse(mark) for mark in node.decorator_list]
    if not any(
        mark.startswith(("dataclass", "dataclasses.dataclass")) and "kw_only=True" not in mark for mark in marks
    ):
        return 0
    count = 0
    for item in node.body:
        if not isinstance(item, ast.AnnAssign):
            continue
        kind, value = ast.unparse(item.annotation), ast.unparse(item.value) if item.value else ""
        if "KW_ONLY" in kind:
            break
        count += not ("ClassVar" in kind or "init=False" in value or "kw_only=True" in value)
    return count


@for_each_module
def test_long_dataclasses_are_made_by_name(name: str, path: Path):
    """A call with more values than anybody keeps in order names them."""
    lines = [node.lineno for node in classes(path) if positional_fields(node) > MOST_POSITIONAL]
    assert lines == [], places(path, lines)


@cache
def own_bases() -> dict[tuple[str, str], list[tuple[str, str]]]:
    """The classes of the package, by module and name, each with its bases that are of the package too."""
    defined = {(name, node.name): node for name, path in modules().items() for node in classes(path)}
    found = {}
    for (module, name), node in defined.items():
        # Where each name of the module that may be a base is defined.
        home = {
            alias.asname or alias.name: (item.module or "", alias.name)
            for item in ast.walk(tree(modules()[module]))
            if isinstance(item, ast.ImportFrom)
            for alias in item.names
        }
        bases = [ast.unparse(base).split("[")[0] for base in node.bases]
        found[module, name] = [base for base in (home.get(text, (module, text)) for text in bases) if base in defined]
    return found


@for_each_module
def test_inheritance_is_shallow(name: str, path: Path):
    """A class is read with two others at most above it; errors are excepted, which programs catch by their kinds."""
    if name == "zcomm.errors":
        return

    def levels(one: tuple[str, str]) -> int:
        return max((1 + levels(base) for base in own_bases()[one]), default=0)

    assert [node.name for node in classes(path) if levels((name, node.name)) > 2] == []


@for_each_module
def test_no_class_declares_callables_that_only_subclasses_set(name: str, path: Path):
    """A function that a class calls is its own method, or is given to it."""
    found = []
    for node in classes(path):
        marks = " ".join(ast.unparse(item) for item in (*node.decorator_list, *node.bases))
        if re.search("dataclass|NamedTuple|Protocol|TypedDict", marks):
            continue
        set_here = {
            item.attr for item in ast.walk(node) if isinstance(item, ast.Attribute) and isinstance(item.ctx, ast.Store)
        }
        found += [
            f"line {item.lineno}: {ast.unparse(item.target)}"
            for item in node.body
            if isinstance(item, ast.AnnAssign)
            and item.value is None
            and "Callable[" in ast.unparse(item.annotation)
            and ast.unparse(item.target) not in set_here
        ]
    assert found == []


FORBIDDEN_CALLS = {
    "eval": "evaluates text",
    "exec": "evaluates text",
    "compile": "evaluates text",
    "__import__": "imports by text",
    "yaml.load": "constructs what the text names",
    "yaml.unsafe_load": "constructs what the text names",
    "yaml.full_load": "constructs what the text names",
    "os.system": "is a shell",
    "os.popen": "is a shell",
    "time.time": "is the wall clock, which jumps",
}


def loads_safely(path: Path, call: ast.Call) -> bool:
    """Whether a ``yaml.load`` names a loader that this module derives from the safe one."""
    loaders = {
        node.name
        for node in nodes(path)
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.SafeLoader"]
    }
    return any(word.arg == "Loader" and ast.unparse(word.value) in loaders for word in call.keywords)


@for_each_module
def test_nothing_dangerous_is_called(name: str, path: Path):
    """No text is evaluated, no shell is started, no timer runs on a clock that jumps."""
    found = [
        f"line {call.lineno}: {called} {FORBIDDEN_CALLS[called]}"
        for called, call in calls(path)
        if called in FORBIDDEN_CALLS and not (called == "yaml.load" and loads_safely(path, call))
    ]
    found += [
        f"line {call.lineno}: shell=True"
        for _, call in calls(path)
        if any(word.arg == "shell" and getattr(word.value, "value", None) is not False for word in call.keywords)
    ]
    found += [
        f"line {line}: {target}"
        for target, line in imports(path)
        if target.split(".")[0] in ("pickle", "marshal", "shelve")
    ]
    assert found == []


def test_every_exception_from_a_rule_has_its_reason():
    """A ``noqa`` names the rule and says, in parentheses, why it does not hold there."""
    # In two parts, so that this line is none itself.
    mark = "#" + " noqa"
    found = [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()}"
        for folder in ("zcomm", "tests", "benchmarks", "docs", "examples")
        for path in sorted((CHECKOUT / folder).rglob("*.py"))
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if mark in line and not re.search(mark + r": [A-Z]+[0-9]+(, [A-Z]+[0-9]+)* \([^)]+\)$", line)
    ]
    assert found == []


@for_each_module
def test_input_never_meets_an_assert(name: str, path: Path):
    """Asserts vanish under -O; what can be wrong is checked for good."""
    lines = [node.lineno for node in nodes(path) if isinstance(node, ast.Assert)]
    assert lines == [], places(path, lines)


@for_each_module
def test_log_calls_keep_format_and_fields_apart(name: str, path: Path):
    """What a peer sent is a field, never part of a format string; nothing is printed by a daemon's modules."""
    lines = [
        call.lineno
        for called, call in calls(path)
        if re.search(r"\blog\.(debug|info|warn|error|critical|failure)$", called)
        and call.args
        and isinstance(call.args[0], (ast.JoinedStr, ast.BinOp))
    ]
    lines += [
        call.lineno
        for called, call in calls(path)
        if called == "print" and not fnmatchcase(name, "zcomm.cli*") and name != "zcomm.tap"
    ]
    assert lines == [], places(path, lines)


@for_each_test
def test_tests_use_the_real_thing(path: Path):
    """No mocks, no sleeping: conditions are waited for and the parts are real."""
    mocks = [line for target, line in imports(path) if target.startswith(("unittest.mock", "mock", "pytest_mock"))]
    sleeps = [call.lineno for called, call in calls(path) if called.split(".")[-1] == "sleep"]
    assert mocks + sleeps == [], places(path, mocks + sleeps)


def test_helpers_are_modules_of_support():
    """A conftest has fixtures, which are asked for by name and never imported."""
    found = [
        f"{path.relative_to(CHECKOUT)}:{line}"
        for path in files_of_tests()
        for target, line in imports(path)
        if "conftest" in target.split(".")
    ]
    assert found == []


@for_each_test
def test_tests_bind_no_fixed_port(path: Path):
    """Another program may have any port: listening asks for port 0."""
    found = []
    for called, call in calls(path):
        last = called.split(".")[-1]
        numbers = [word.value for word in call.keywords if word.arg == "port"]
        if last in ("listenTCP", "connectTCP", "TCP4ServerEndpoint", "TCP6ServerEndpoint", "bind"):
            numbers += [inner for argument in call.args[:2] for inner in ast.walk(argument)]
            found += [
                call.lineno
                for number in numbers
                if isinstance(number, ast.Constant) and type(number.value) is int and number.value > 1023
            ]
    assert found == [], places(path, found)


@for_each_test
def test_each_test_says_what_it_shows(path: Path):
    """One sentence in front of each test."""
    without = [
        f"{node.name} (line {node.lineno})"
        for node in nodes(path)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and path.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    # Functions nested in a test or returned by one are no tests; pytest collects from modules and classes only.
    collected = {
        f"{node.name} (line {node.lineno})"
        for parent in nodes(path)
        if isinstance(parent, (ast.Module, ast.ClassDef))
        for node in parent.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    if path != Path(__file__):
        assert [test for test in without if test in collected] == []


def test_the_checks_can_fail(tmp_path: Path):
    """The patterns above recognise what they forbid; one file that breaks a rule is named beside those that keep it."""
    bad = tmp_path / "bad.py"
    bad.write_text(
        "import pickle\neval('1')\nimport subprocess\nsubprocess.run('x', shell=True)\nassert 1\ntime.time()\n"
    )
    assert {called for called, _ in calls(bad)} >= {"eval", "subprocess.run", "time.time"}
    assert layer("zcomm.nowhere") is None and layer("zcomm") == len(LAYERS) - 1 and layer("zcomm.errors") == 0
    assert layer("zcomm.bifrost") == layer("zcomm.bifrost.server") == layer("zcomm.data.drivers.sqlite") == 4

    @for_each([("good", 1), ("bad", 2), ("worse", 3)])
    def check(name: str, number: int) -> None:
        assert number < 2

    with pytest.raises(pytest.fail.Exception, match=r"^bad: assert 2 < 2\nworse: assert 3 < 2$"):
        check()
