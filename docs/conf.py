"""The settings by which Sphinx builds the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from zope.interface.interface import InterfaceClass, Method

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from zcomm._version import __version__

project = "zComm"
author = "The zComm authors"
copyright = author
version = release = __version__

extensions = ["sphinx.ext.autodoc"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
# Sphinx lists these under the class that has them; the bases' own are documented by Twisted.
autodoc_inherit_docstrings = False
# As the code has them: the object that stands for "left out" has no other text that anybody could read.
autodoc_preserve_defaults = True

exclude_patterns = ["_build"]
root_doc = "index"
nitpicky = False

html_theme = "alabaster"
html_theme_options = {
    "description": "A live web front end and the local servers behind it, for a Python program.",
    "page_width": "1220px",
    "sidebar_width": "240px",
    "fixed_sidebar": True,
}
html_sidebars = {"**": ["about.html", "navigation.html", "searchbox.html"]}
html_static_path = ["_static"]
html_css_files = ["phone.css"]
html_show_sphinx = False
html_copy_source = False


class Interfaces(SphinxDirective):
    """The zope interfaces of a module, which autodoc takes for data: ``.. interfaces:: zcomm.interfaces``."""

    required_arguments = 1

    def run(self) -> list[Any]:
        """Write them down as classes."""
        module = import_module(self.arguments[0])
        found = [getattr(module, name) for name in module.__all__]
        lines = [line for each in found if isinstance(each, InterfaceClass) for line in described(each)]
        return self.parse_text_to_nodes("\n".join(lines))


def described(interface: InterfaceClass) -> Iterator[str]:
    """An interface in reStructuredText."""
    yield from object_lines("class", interface.__name__, interface.__doc__)
    for name in interface.names():
        element = interface[name]
        is_method = isinstance(element, Method)
        signature = element.getSignatureString() if is_method else ""
        lines = object_lines("method" if is_method else "attribute", name + signature, element.__doc__)
        yield from (f"   {line}" for line in lines)


def object_lines(kind: str, name: str, text: str | None) -> Iterator[str]:
    """One object of Sphinx's Python domain."""
    yield from (f".. py:{kind}:: {name}", "", *(f"   {line}" for line in inspect.cleandoc(text or "").split("\n")), "")


def plain_names(*event: Any) -> tuple[str | None, str | None]:
    """A signature in which zope interfaces have their names, as classes have."""
    *_, signature, returned = event
    signature, returned = (
        text and re.sub(r"<InterfaceClass (?:\w+\.)*(\w+)>", r"\1", text) for text in (signature, returned)
    )
    return signature, returned


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.add_directive("interfaces", Interfaces)
    app.connect("autodoc-process-signature", plain_names)
