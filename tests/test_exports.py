"""What is public is said, exists, and can be had without a reactor."""

from __future__ import annotations

import ast
import importlib
import pickle
import pkgutil
import subprocess
import sys

import pytest
from support.rows import for_each
from support.serverprocess import CHECKOUT, clean_environ

import zcomm
from zcomm import errors

pytestmark = pytest.mark.unmeasured


def module_names() -> list[str]:
    """Every module of the package but the compiled one, which is optional."""
    found = ["zcomm"]
    for info in pkgutil.walk_packages(zcomm.__path__, "zcomm."):
        if info.name.rpartition(".")[2] not in ("_fast", "__main__") and not info.name.startswith("zcomm.js"):
            found.append(info.name)
    return found


def public_names() -> list[str]:
    return [name for name in module_names() if not any(part.startswith("_") for part in name.split("."))]


for_each_public_module = for_each([(name,) for name in public_names()])


@for_each_public_module
def test_all_names_exist(name: str):
    """Each public module says what is public in it; each name is there, once. Child programs export nothing."""
    module = importlib.import_module(name)
    source = ast.parse(open(module.__file__, encoding="utf-8").read())
    defines = any(
        isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.ImportFrom))
        for node in source.body
    )
    is_program = any(isinstance(node, ast.If) and "__main__" in ast.unparse(node.test) for node in source.body)
    if is_program or not defines:
        return
    assert hasattr(module, "__all__"), f"{name} has no __all__"
    assert [missing for missing in module.__all__ if not hasattr(module, missing)] == []
    assert len(set(module.__all__)) == len(module.__all__)


@for_each_public_module
def test_public_things_are_documented(name: str):
    """Each public module, class and function has a docstring of its own."""
    module = importlib.import_module(name)
    assert module.__doc__ or not getattr(module, "__all__", ()), f"{name} has no docstring"
    without = [
        public
        for public in getattr(module, "__all__", ())
        if callable(thing := getattr(module, public))
        and (getattr(thing, "__module__", None) or "").startswith("zcomm")
        and not thing.__doc__
    ]
    assert without == []


def test_the_root_exports_the_union_of_what_it_takes():
    """``zcomm.__all__`` is exactly what its __init__ imports from the modules."""
    source = ast.parse(open(zcomm.__file__, encoding="utf-8").read())
    taken = {
        alias.asname or alias.name
        for node in ast.walk(source)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zcomm")
        for alias in node.names
    }
    assert set(zcomm.__all__) >= {name for name in taken if name != "*" and not name.startswith("_")}
    assert {"zComm", "zBifrost", "__version__"} <= set(zcomm.__all__)
    assert [missing for missing in zcomm.__all__ if not hasattr(zcomm, missing)] == []


def test_each_name_comes_from_where_type_checkers_look():
    """What is imported when it is asked for is what the imports for type checkers say, and no name is left out."""
    source = ast.parse(open(zcomm.__file__, encoding="utf-8").read())
    typed = {
        alias.name: node.module
        for block in source.body
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in block.body
        for alias in node.names
    }
    assert zcomm._HOMES == typed
    for name, home in typed.items():
        assert getattr(zcomm, name) is getattr(importlib.import_module(home), name)
    assert set(zcomm.__all__) == {*typed, *errors.__all__, "__version__"}
    assert set(zcomm.__all__) <= set(dir(zcomm))
    assert pickle.loads(pickle.dumps(zcomm.Identity("ann", "user"))) == zcomm.Identity("ann", "user")
    with pytest.raises(AttributeError, match="module 'zcomm' has no attribute 'nonsense'"):
        _ = zcomm.nonsense


HEAVY = ("autobahn", "sqlalchemy", "twisted", "zope", "msgspec", "yaml", "psutil")


@pytest.mark.parametrize(
    "what",
    [
        "import zcomm",
        "from zcomm.cli import main; main(['--help'])",
        "from zcomm.cli import main; main(['--version'])",
        "from zcomm.cli import main; main(['nonsense'])",
        "from zcomm.cli import main; main(['token', 'list'])",
        "from zcomm.cli import main; main(['token', 'add', 'ann', '--ttl', '1h'])",
    ],
)
def test_what_is_fast_loads_little(what: str, tmp_path):
    """Importing zComm, looking at its help and working on tokens load none of what the servers need."""
    code = (
        f"import sys\ntry:\n    {what}\nexcept SystemExit:\n    pass\n"
        f"sys.exit([name for name in {HEAVY!r} if name in sys.modules] or None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env=clean_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_importing_installs_no_reactor(tmp_path):
    """A program may import every module and still choose its own reactor."""
    code = (
        "import importlib, sys\n"
        f"for name in {module_names()!r}:\n"
        "    importlib.import_module(name)\n"
        "    if 'twisted.internet.reactor' in sys.modules:\n"
        "        sys.exit(f'{name} installed a reactor')\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", code],
        cwd=CHECKOUT,
        env=clean_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
