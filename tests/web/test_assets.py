"""The files that a browser gets: all of the page, the client, and no other."""

from __future__ import annotations

from support.serverprocess import CHECKOUT

from zcomm.web.assets import ASSETS, asset, client_directory


def test_the_whole_page_is_served():
    """No file of the page is left out of the table of what is served, nor of the wheel by its name."""
    served = {file for file, _ in ASSETS.values()}
    demo = {f"demo/{path.name}" for path in (CHECKOUT / "js" / "demo").iterdir()}
    assert served == demo | {"zBifrost.js", "zBifrost.d.ts"}


def test_no_path_becomes_a_file_name():
    """Only the fixed paths are served, whatever else is asked for."""
    assert [
        path
        for path in (
            "/../setup.py",
            "/demo/index.html",
            "//zBifrost.js",
            "/zBifrost.js/",
            "",
            "/%7Ezbifrost.js",
        )
        if asset(path)
    ] == []
    assert client_directory() == CHECKOUT / "js"
