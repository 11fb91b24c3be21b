"""zComm's build. The metadata that is only data stands in pyproject.toml."""

import os
import re
from pathlib import Path

from setuptools import Extension, find_packages, setup

# What is compiled has a twin in Python: a build without a C compiler goes on without it, and ZCOMM_PURE=1
# leaves it out on purpose.
extensions = [
    Extension("zcomm.wire._fast", ["zcomm/wire/_fast.c"], extra_compile_args=["-O2"], optional=True),
]

# A package index shows the README without the files beside it: there it goes without its picture, and what
# links to a file is plain text.
readme = Path(__file__).with_name("README.rst").read_text("utf-8")
readme = re.sub(r"^\.\. image:: (?!https:).*\n(?: +.*\n)*\n", "", readme, flags=re.MULTILINE)
readme = re.sub(r"`([^`<]+) <(?!https:)[^>]+>`_", r"\1", readme)

setup(
    long_description=readme,
    long_description_content_type="text/x-rst",
    packages=[
        *find_packages(include=["zcomm", "zcomm.*"]),
        # An installed zComm serves its client and demo page: js/ travels inside the package.
        "zcomm.js",
        "zcomm.js.demo",
        # twisted.plugins has no __init__.py (it extends Twisted's own package), so find_packages cannot see it.
        "twisted.plugins",
    ],
    package_dir={"zcomm.js": "js", "zcomm.js.demo": "js/demo"},
    package_data={
        "zcomm": ["py.typed"],
        # With its manifest, so that npm installs the client from there: the version that fits the server.
        "zcomm.js": ["zBifrost.*", "package.json", "README.md", "LICENSE"],
        "zcomm.js.demo": ["*.html", "*.css", "*.js"],
    },
    include_package_data=False,
    ext_modules=[] if os.environ.get("ZCOMM_PURE") else extensions,
)
