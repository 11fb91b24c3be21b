"""The client and the demo page, as files: which path of the port is which of them.

The table is fixed. A request's path is looked up in it and never becomes part of a file name.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from zcomm.errors import ConfigError
from zcomm.web.content import Content

__all__ = ["ASSETS", "asset", "client_directory"]

_SCRIPT = "text/javascript"
_DEMO_SCRIPTS = (
    "body",
    "chat",
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
    "people",
    "prompts",
    "record",
    "rows",
    "said",
    "table",
    "values",
    "visitor",
)

#: By path of the URL: the file below :func:`client_directory`, and its media type. The paths below /demo/ are
#: the files' own, so that a script imports its neighbours by the same names here and in a checkout.
ASSETS: dict[str, tuple[str, str]] = {
    "/": ("demo/index.html", "text/html"),
    "/zBifrost.js": ("zBifrost.js", _SCRIPT),
    "/zBifrost.d.ts": ("zBifrost.d.ts", "text/typescript"),
    "/demo/": ("demo/index.html", "text/html"),
    "/demo/demo.css": ("demo/demo.css", "text/css"),
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


def asset(path: str) -> Content | None:
    """The content of one URL path; ``None`` for any path not in :data:`ASSETS`."""
    return _content(path) if path in ASSETS else None


@cache
def _content(path: str) -> Content:
    name, media_type = ASSETS[path]
    body = (client_directory() / name).read_bytes()
    if path == "/demo/":
        # Beside its style sheet and its scripts, not above them. A proxy may have put all of it below another path.
        body = body.replace(b'="demo/', b'="')
    return Content(body, media_type)
