"""zComm's build. The metadata that is only data stands in pyproject.toml."""
from setuptools import Extension, find_packages, setup

setup(
    # twisted.plugins has no __init__.py (it extends Twisted's own package), so find_packages cannot see it.
    packages=[*find_packages(include=["zcomm", "zcomm.*"]), "twisted.plugins"],
    # An installed zComm serves its client and demo page: js/ travels inside the package.
    package_dir={"zcomm.js": "js"},
)
