"""The documentation builds without a warning, and the README is good on its own."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from pathlib import Path

import docutils.core
import docutils.utils
from support.serverprocess import CHECKOUT, clean_environ


def test_the_documentation_builds_without_warnings(tmp_path: Path):
    """Sphinx with warnings as errors; every page is reachable from the first one, and the API page has all."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-W",
            "--keep-going",
            "-q",
            "-E",
            "-b",
            "html",
            "-d",
            tmp_path / "doctrees",
            CHECKOUT / "docs",
            tmp_path / "html",
        ],
        env=clean_environ(tmp_path),
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert (done.returncode, done.stderr) == (0, "")
    index = (tmp_path / "html" / "index.html").read_text("utf-8")
    for page in (CHECKOUT / "docs").glob("*.rst"):
        assert page.stem == "index" or f'href="{page.stem}.html"' in index
    contact_c_the_api_page_has_the_interfaces_and_readable_signatures(
        (tmp_path / "html" / "api.html").read_text("utf-8")
    )
    # What people search for is somewhere.
    found = (tmp_path / "html" / "searchindex.js").read_text("utf-8")
    for word in "upload restor react vite typescript docker django fastapi jwt cooki".split():
        assert f'"{word}":' in found, word


def contact_c_the_api_page_has_the_interfaces_and_readable_signatures(api: str) -> None:
    """Each once, nothing as ``repr()`` has it."""
    names = re.findall(r'<dt class="sig sig-object py" id="([^"]+)"', api)
    assert len(names) == len(set(names)) > 100
    for name in (
        "IHost",
        "IHost.session",
        "IHostData.handle_request",
        "IHostUsers.validate",
        "IWalker",
        "IEngine.tell",
    ):
        assert f"zcomm.interfaces.{name}" in names
    text = html.unescape(re.sub(r"<[^>]+>", "", api))
    assert re.findall(r"<(?:InterfaceClass|object|function|class)\b[^>]*>?", text) == []
    assert text.count("class zcomm.testing") == 4


def test_the_readme_is_plain_restructuredtext(tmp_path: Path):
    """Package indexes render it with docutils alone, without Sphinx's roles."""
    settings = {"report_level": 2, "halt_level": 2, "raw_enabled": False, "file_insertion_enabled": False}
    html = docutils.core.publish_string(
        (CHECKOUT / "README.rst").read_text("utf-8"), writer="html5", settings_overrides=settings
    ).decode("utf-8")
    assert "<h1" in html


def test_links_to_files_of_the_project_lead_somewhere():
    """Relative links of the README name files that exist."""
    text = (CHECKOUT / "README.rst").read_text("utf-8")
    targets = re.findall(r"<((?!https?:|#)[^<>\s]+\.(?:rst|py|js|ts|md|yaml)|LICENSE)>`_", text)
    assert targets
    assert [target for target in targets if not (CHECKOUT / target).is_file()] == []
