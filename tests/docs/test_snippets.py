"""The code of README and documentation, run as a reader would run it: each block by itself, against a live server."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from support.docs_blocks import Block, all_blocks
from support.preloaded import run_python
from support.serverprocess import CHECKOUT, RunningServer, clean_environ

#: What stands for the reader's own server and token in the pages.
URL, TOKEN = "ws://127.0.0.1:56891", "your-token"

JAVASCRIPT = """\
import {{ zBifrost }} from './zBifrost.js';
const client = new zBifrost('{URL}', '{TOKEN}');
await client.connect();
{{
{body}
}}
client.disconnect();
"""

PLAIN = """\
class Host:
    session = {{}}

host = Host()
if {makes_its_own}:
    comm = None
else:
    from zcomm.threaded import zComm
    comm = zComm(host)
{body}
"""

DEFERRED = """\
import os
from twisted.internet.task import react
from zcomm import zComm
from zcomm.host import Host

async def main(reactor):
    from zcomm import Config, WebSocketConfig
    from zcomm.config import data_directory
    config = Config(data_dir=data_directory(os.environ), websocket=WebSocketConfig(port=0))
    host = Host(config, reactor)
    if not {makes_its_own}:
        comm = zComm(host, config=config)
        bifrost = comm.create_websocket()
        await comm.start_websocket()
{body}
    if not {makes_its_own}:
        await comm.stopService()

react(main)
"""


def of_class(name: str) -> list[Block]:
    return [block for block in all_blocks() if name in block.classes]


def output_of(block: Block) -> str | None:
    """The block of output that follows directly, if there is one."""
    following = [other for other in all_blocks() if other.page == block.page and other.line > block.line]
    return following[0].text if following and "output" in following[0].classes else None


def run(command: list[str], program: Path, text: str, environ: dict[str, str], block: Block) -> None:
    program.write_text(text, "utf-8")
    words = [*command, str(program)]
    if command == [sys.executable]:
        done = run_python(words, cwd=program.parent, env=environ, timeout=120)
    else:
        done = subprocess.run(
            words,
            cwd=program.parent,
            env=environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}\n{text}"
    expected = output_of(block)
    if expected is not None:
        assert done.stdout == expected, str(block)
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr, f"{block}\n{done.stderr}"


def environ_in(place: Path) -> dict[str, str]:
    """The environment of a program whose data directory is ``place``, where the accounts of its services get to."""
    return clean_environ(place, {"ZCOMM_HOME": str(place)})


def addressed(block: Block, server: RunningServer) -> str:
    return block.text.replace(URL, server.url).replace(TOKEN, server.token)


@pytest.fixture(scope="module")
def node_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which a reader put zBifrost.js, with the packages it may need for Node."""
    directory = tmp_path_factory.mktemp("node")
    shutil.copy(CHECKOUT / "js" / "zBifrost.js", directory)
    (directory / "package.json").write_text('{"type": "module"}')
    if (CHECKOUT / "js" / "node_modules").exists():
        os.symlink(CHECKOUT / "js" / "node_modules", directory / "node_modules")
    return directory


@pytest.mark.parametrize("block", of_class("javascript-program"), ids=str)
def test_javascript_programs(block: Block, example_server: RunningServer, node_directory: Path):
    """Complete as it stands, but for the address and the token."""
    run(
        ["node"],
        node_directory / "program.mjs",
        addressed(block, example_server),
        clean_environ(node_directory),
        block,
    )


@pytest.mark.parametrize("block", of_class("javascript"), ids=str)
def test_javascript_with_a_connected_client(block: Block, example_server: RunningServer, node_directory: Path):
    """What is shown happens after ``client`` was connected, which the page has shown before."""
    text = JAVASCRIPT.format(URL=example_server.url, TOKEN=example_server.token, body=block.text)
    run(["node"], node_directory / "snippet.mjs", text, clean_environ(node_directory), block)


@pytest.mark.parametrize("block", of_class("python-program"), ids=str)
def test_python_programs(block: Block, example_server: RunningServer, tmp_path: Path):
    """Complete as it stands, but for the address and the token."""
    run(
        [sys.executable],
        tmp_path / "program.py",
        addressed(block, example_server),
        clean_environ(tmp_path),
        block,
    )


@pytest.mark.parametrize("block", of_class("python-plain"), ids=str)
def test_python_without_a_reactor(block: Block, place: Path):
    """``host`` is an object with a session; ``comm`` is there unless the block makes it."""
    text = PLAIN.format(makes_its_own="zComm(" in block.text, body=block.text)
    run([sys.executable], place / "snippet.py", text, environ_in(place), block)


@pytest.mark.parametrize("block", of_class("python-deferred"), ids=str)
def test_python_on_the_reactor(block: Block, place: Path):
    """In a coroutine on the reactor, with a ``comm`` and a ``bifrost`` that listens unless the block makes them."""
    text = DEFERRED.format(makes_its_own="zComm(" in block.text, body=textwrap.indent(block.text, "    "))
    run([sys.executable], place / "snippet.py", text, environ_in(place), block)
