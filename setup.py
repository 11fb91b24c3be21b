"""zComm's build. The metadata that is only data stands in pyproject.toml."""

import os
import re
import tempfile
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

# What is compiled has a twin in Python: a build without a C compiler goes on without it, and ZCOMM_PURE=1
# leaves it out on purpose.
extensions = [
    Extension("zcomm.wire._fast", ["zcomm/wire/_fast.c"], extra_compile_args=["-O2"], optional=True),
]

# What an overrun is caught by, or made hard to use: each for the compiler, or the linker, that knows it.
HARDENED = {
    "compile": (["-fstack-protector-strong"], ["-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2"]),
    "link": (["-Wl,-z,relro,-z,now"], ["-Wl,-z,noexecstack"]),
}


class HardenedBuild(build_ext):
    """Builds what is compiled with as many protections as there are here."""

    def build_extensions(self):
        for kind, choices in HARDENED.items():
            for flags in choices:
                if self._knows(kind, flags):
                    for extension in self.extensions:
                        getattr(extension, f"extra_{kind}_args").extend(flags)
        super().build_extensions()

    def _knows(self, kind, flags):
        """Whether a program can be made with these flags; what only warns of them does not know them."""
        with tempfile.TemporaryDirectory() as place:
            source = Path(place, "tried.c")
            source.write_text("int tried(void) { return 0; }\n", "ascii")
            strict = ["-O2", "-Werror"]
            try:
                made = self.compiler.compile(
                    [str(source)], place, extra_postargs=strict + (flags if kind == "compile" else [])
                )
                self.compiler.link_shared_object(
                    made, str(Path(place, "tried.so")), extra_postargs=flags if kind == "link" else []
                )
            except Exception:
                return False
        return True


# A package index shows the README without the files beside it: there it goes without its picture, and what
# links to a file is plain text.
readme = Path(__file__).with_name("README.rst").read_text("utf-8")
readme = re.sub(r"^\.\. image:: (?!https:).*\n(?: +.*\n)*\n", "", readme, flags=re.MULTILINE)
readme = re.sub(r"`([^`<]+)\s<(?!https:)[^>]+>`_", r"\1", readme)

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
    cmdclass={"build_ext": HardenedBuild},
    ext_modules=[] if os.environ.get("ZCOMM_PURE") else extensions,
)
