"""docs/architecture.rst and CONTRIBUTING.rst show the package as it is."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from support.serverprocess import CHECKOUT

PAGES = ("docs/architecture.rst", "CONTRIBUTING.rst")


def test_the_picture_is_made_from_the_imports_of_now():
    """A stale one fails; the message has the command that renews it."""
    code = "import draw_imports; print(draw_imports.draw(), end='')"
    drawn = subprocess.run(
        [sys.executable, "-c", code], cwd=CHECKOUT / "docs", capture_output=True, text=True, check=True
    )
    kept = (CHECKOUT / "docs" / "pictures" / "architecture.svg").read_text("utf-8")
    assert kept == drawn.stdout, "the imports have changed: python docs/draw_imports.py"


def test_each_folder_has_its_line():
    """Every folder of the package is explained on the page, in its list and by name."""
    text = (CHECKOUT / "docs" / "architecture.rst").read_text("utf-8")
    folders = {
        path.parent.relative_to(CHECKOUT / "zcomm").as_posix() + "/"
        for path in (CHECKOUT / "zcomm").glob("*/__init__.py")
    }
    assert folders - set(re.findall(r"``([\w/]+/)``", text)) == set()


@pytest.mark.parametrize("page", PAGES)
def test_what_is_named_is_there(page: str):
    """Files and folders of the repository that the text names, and what it names in them, exist."""
    text = (CHECKOUT / page).read_text("utf-8")
    named = set(re.findall(r"``((?:zcomm|tests|docs|benchmarks|js|twisted)/[^`:]*)(?:::([\w.]+))?``", text))
    assert len(named) > 10
    for path, names in named:
        assert (CHECKOUT / path).exists(), path
        for name in filter(None, names.split(".")):
            defined = rf"(?:def|class|const) {name}\b|^ *{name}(?:: | = )"
            assert re.search(defined, (CHECKOUT / path).read_text("utf-8"), re.MULTILINE), (path, name)
