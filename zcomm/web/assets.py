"""The client and the demo page, as files: which path of the port is which of them.

The table is fixed. A request's path is looked up in it and never becomes part of a file name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from zcomm.errors import ConfigError

__all__ = ["ASSETS", "asset", "client_directory"]

_SCRIPT = "text/javascript; charset=utf-8"
_DEMO_SCRIPTS = (
    "commands",
    "condition",
    "connection",
    "controls",
    "description",
    "dom",
    "feed",
    "fields",
    "health",
    "main",
    "prompts",
    "record",
    "rows",
    "table",
    "values",
    "visitor",
)

#: By path of the URL: the file below :func:`client_directory`, and its media type. The paths below /demo/ are
#: the files' own, so that a script imports its neighbours by the same names here and in a checkout.
ASSETS: dict[str, tuple[str, str]] = {
    "/": ("demo/index.html", "text/html; charset=utf-8"),
    "/zBifrost.js": ("zBifrost.js", _SCRIPT),
    "/zBifrost.d.ts": ("zBifrost.d.ts", "text/typescript; charset=utf-8"),
    "/demo/demo.css": ("demo/demo.css", "text/css; charset=utf-8"),
    **{f"/demo/{name}.js": (f"demo/{name}.js", _SCRIPT) for name in _DEMO_SCRIPTS},
}


def client_directory() -> Path:
    """The directory of the JavaScript client: inside an installed package, beside it in a checkout.

    :raises ConfigError: when it is in neither place.
    """
    package = Path(__file__).resolve().parent.parent
    for directory in (package / "js", package.parent / "js"):
        if (directory / "zBifrost.js").is_file():
            return directory
    raise ConfigError("zcomm/js", "the JavaScript client is not installed; reinstall zcomm, or start with --no-web")


def asset(path: str) -> tuple[bytes, str] | None:
    """The content and media type of one URL path; ``None`` for any path not in :data:`ASSETS`."""
    found = ASSETS.get(path)
    return None if found is None else (_content(found[0]), found[1])


@cache
def _content(name: str) -> bytes:
    return (client_directory() / name).read_bytes()
