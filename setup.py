"""zComm's build. The metadata that is only data stands in pyproject.toml."""
from setuptools import find_packages, setup

setup(
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
        "zcomm.js": ["zBifrost.js", "zBifrost.d.ts"],
        "zcomm.js.demo": ["*.html", "*.css", "*.js"],
    },
    include_package_data=False,
    ext_modules=[],
)
