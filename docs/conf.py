"""The settings by which Sphinx builds the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

from __future__ import annotations

import sys
from pathlib import Path

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
html_show_sphinx = False
html_copy_source = False
