"""Every JavaScript block of the guide, as it stands but for the port and the token, in Node and in Chromium."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.guide_blocks import guide_block
from support.rawclient import BlockingRawClient, Opcode
from support.serverprocess import CHECKOUT, RunningServer, clean_environ
from support.waiting import DEADLINE, wait_until_blocking

TOKENS = ("'your-token'", "'your-auth-token'", "'token'", "'abc123'")
IMPORT = "import { zBifrost, createClient } from './zBifrost.js';\n"
REPORT = "const report = (value) => console.log('REPORT ' + JSON.stringify(value));\n"
CONNECTED = IMPORT + "const client = await createClient('ws://127.0.0.1:56891', 'your-token');\n"
LEAVE = "client.disconnect();\n"
ALICE = "await client.create('Users', {id: 123, name: 'Alice', email: 'alice@example.com', inactive: true});\n"
ARGUMENTS = """\
const [model, values] = ['Users', {name: 'Alice', email: 'alice@example.com'}];
const [filters, options] = [{email: 'alice@example.com'}, {limit: 5}];
const [conflictFields, funcCallString] = ['email', 'zFunc(calculateTotal, {cart_id: 123})'];
const [path, command] = ['/admin/users', 'config.yaml'];
const [payload, timeoutMs] = [{zKey: 'ping', zHorizontal: 'Hello'}, 10000];
"""


@dataclass(frozen=True)
class Case:
    """The way a block is run.

    :ivar before: what the guide's reader has done before.
    :ivar after: what looks at the outcome.
    :ivar reports: what it finds, once for each of the programs that the block shows.
    :ivar marks: where each of them begins.
    :ivar auth: whether the block has a token.
    """

    name: str
    before: str
    after: str
    reports: tuple[Any, ...]
    marks: tuple[str, ...] = ()
    auth: bool = True


HEARD = (
    """\
client.onBroadcast(%s);
const heard = new Promise((resolve) => client.onBroadcast(resolve));
const other = await createClient('ws://127.0.0.1:56891', 'your-token');
await other.create('Messages', {text: 'news'});
report((await heard).zKey);
other.disconnect();
"""
    + LEAVE
)

CASES = (
    Case("JavaScript Client Quick Start", "", "", ()),
    Case("Create", CONNECTED, "report([user.name, typeof user.id]);" + LEAVE, (["Bob", "number"],)),
    Case(
        "Read",
        CONNECTED
        + "for (let i = 0; i < 25; i++) await client.create('Users', {name: `n${i}`, role: 'admin', age: i});\n",
        "report([users.length, activeUsers.length, results.length, Object.keys(results[0])]);" + LEAVE,
        ([25, 7, 5, ["id", "name", "email"]],),
    ),
    Case(
        "Update",
        CONNECTED + ALICE,
        "const [row] = await client.read('Users', 123); report([row.verified, row.last_login]);" + LEAVE,
        ([1, "2024-10-15"],),
    ),
    Case(
        "Delete",
        CONNECTED + ALICE + "await client.create('Users', {name: 'Old', inactive: true});",
        "report(await client.read('Users'));" + LEAVE,
        ([],),
    ),
    Case("Upsert", CONNECTED + ALICE, "report([user.id, user.role]);" + LEAVE, ([123, "user"],)),
    Case("Command Dispatch", CONNECTED, "report(result);" + LEAVE, ({"cart_id": 123, "total": 42},)),
    Case("Broadcast Listening", CONNECTED, HEARD % "onUpdate", ("create_Messages",)),
    Case("Raw Commands", CONNECTED, "report(result);" + LEAVE, ({"action": "ping", "data": {"message": "Hello"}},)),
    Case(
        "Authentication",
        IMPORT,
        "await client.connect(); report(client.state);" + LEAVE,
        ("connected", "connected"),
        marks=("// With token", "// Or with options"),
    ),
    Case("Connection", "", "report(client.state);", ("disconnected", "disconnected"), marks=("// Method",)),
    Case(
        "CRUD Methods",
        CONNECTED + ARGUMENTS,
        "report(typeof user !== 'undefined' ? user.name : typeof users !== 'undefined' ? users.length : result);"
        + LEAVE,
        ("Alice", 1, {"updated": 1}, {"deleted": 1}, "Alice"),
        marks=("// Create", "// Read", "// Update", "// Delete", "// Upsert"),
    ),
    Case(
        "Advanced Methods",
        CONNECTED + ARGUMENTS,
        "report(result.total ?? result.title ?? result.text ?? result);" + LEAVE,
        (42, "Users", "answer: 42\n", "Hello"),
        marks=("// Execute", "// Navigate", "// File", "// Raw"),
    ),
    Case("Broadcast Listening 2", CONNECTED, HEARD % "messageHandler", ("create_Messages",)),
    Case(
        "5. Message Not Reaching Server",
        IMPORT,
        "await client.connect(); report(client.state);" + LEAVE,
        ("connected",),
        auth=False,
    ),
    Case("JavaScript Client Extensions", IMPORT, "report(result);" + LEAVE, ({"action": "ping"},), auth=False),
    Case(
        "Connection Pooling (JavaScript)",
        "",
        "report([pool.clients.length, result]); await pool.closeAll();",
        ([5, []],),
        auth=False,
    ),
    Case(
        "Auto-Reconnection",
        IMPORT,
        "const back = new Promise((resolve) => client.on('open', resolve));\n"
        "client.send({zKey: 'drop_me'}).catch(() => {}); await back; report(client.state);" + LEAVE,
        ("connected",),
        auth=False,
    ),
    Case("JavaScript Client", "", "report(client.state);" + LEAVE, ("connected",), auth=False),
)


def addressed(text: str, server: RunningServer) -> str:
    """With the server's port, and its token where the block has one."""
    text = text.replace("56891", str(server.port))
    if (server.home / ".zolo" / "zcomm" / "operator.json").exists():
        text = re.sub("|".join(map(re.escape, TOKENS)), lambda _: repr(server.token), text)
    return text


def node(directory: Path, name: str, text: str) -> subprocess.Popen[str]:
    """Start a program; its sleeping times end with its standard input."""
    (directory / name).write_text(text)
    return subprocess.Popen(
        ["node", "--import", "./sleeps.mjs", name],
        cwd=directory,
        env=clean_environ(directory),
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finished(process: subprocess.Popen[str]) -> str:
    """What it printed, once it has ended well."""
    try:
        output, errors = process.communicate(timeout=DEADLINE * 2)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it goes on for ever: {process.communicate()}") from None
    assert (process.returncode, errors) == (0, ""), output + errors
    return output


def reports(output: str) -> list[Any]:
    return [json.loads(line.removeprefix("REPORT ")) for line in output.splitlines() if line.startswith("REPORT ")]


@pytest.fixture(autouse=True)
def no_rows(with_auth: Any, without_auth: Any) -> Iterator[None]:
    """Each block finds the tables empty."""
    yield
    for server in (with_auth, without_auth):
        with server.client() as client:
            for model in ("Users", "Messages"):
                assert "result" in client.call(f"delete_{model}", {"all": True})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_blocks(case: Case, with_auth: Any, without_auth: Any, node_directory: Path):
    """It ends without an error, and did what the guide says."""
    server = with_auth if case.auth else without_auth
    block = guide_block(case.name)
    texts = block.alternatives(*case.marks) if case.marks else [block.text]
    found = [
        report
        for text in texts
        for report in reports(
            finished(node(node_directory, "block.mjs", addressed(REPORT + case.before + text + case.after, server)))
        )
    ]
    assert tuple(found) == case.reports


def test_example_2(with_auth: Any, node_directory: Path):
    """It creates two users, finds them and hears of a third, until its minute is over."""
    process = node(
        node_directory,
        "example2.mjs",
        addressed(guide_block("Example 2: JavaScript Client (zBifrost.js)").text, with_auth),
    )
    lines = iter(process.stdout.readline, "")
    before = next(line for line in lines if "Found" in line)
    with with_auth.client() as other:
        other.call("create_Users", {"values": {"name": "Carol", "email": "carol@example.com"}})
    assert "create_Users" in "".join([next(lines), next(lines)])
    assert before == "📊 Found 2 active users\n"
    finished(process)


def test_example_5(without_auth: Any, node_directory: Path):
    """One program sends five messages, the other receives them all."""
    sender, receiver = guide_block("Example 5: Multi-Client Broadcasting (JavaScript)").alternatives(
        "// sender.js", "// receiver.js"
    )
    with without_auth.client() as witness:
        receiving = node(node_directory, "receiver.mjs", addressed(receiver + "receiver();", without_auth))
        wait_until_blocking(lambda: witness.call("who_is_here")["result"] == 2, "the receiver")
        finished(node(node_directory, "sender.mjs", addressed(sender + "sender();", without_auth)))
    received = []
    while len(received) < 5:
        if "📩 Received:" in (line := receiving.stdout.readline()):
            received.append(line)
        assert line
    assert "Total messages: 5\n" in finished(receiving)


PAGE = """\
import { createServer } from 'node:http';
import { readFile } from 'node:fs/promises';
import { chromium } from 'playwright-core';

const types = { html: 'text/html; charset=utf-8', js: 'text/javascript' };
const http = createServer(async (request, response) => {
  const name = request.url === '/' ? 'demo.html' : request.url.slice(1);
  const content = await readFile(name).catch(() => null);
  response.writeHead(content === null ? 404 : 200, { 'Content-Type': types[name.split('.').pop()] ?? 'text/plain' });
  response.end(content);
});
await new Promise((resolve) => http.listen(0, '127.0.0.1', resolve));
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox', '--disable-gpu'] });
try {
  const page = await browser.newPage();
  const wrong = [];
  page.on('pageerror', (error) => wrong.push(String(error)));
  await page.goto(`http://127.0.0.1:${http.address().port}/`);
  await page.fill('#authToken', process.argv[2]);
  await page.click('#connectBtn');
  await page.getByText('✅ Connected').waitFor();
  await page.fill('#userName', 'Alice');
  await page.fill('#userEmail', 'alice@example.com');
  await page.click('text=Create User >> nth=-1');
  await page.getByText('✅ Created').waitFor();
  const created = await page.textContent('#results');
  const second = await browser.newPage();
  await second.goto(page.url());
  await second.fill('#authToken', process.argv[2]);
  await second.click('#connectBtn');
  await second.getByText('✅ Connected').waitFor();
  await second.fill('#userName', 'Bob');
  await second.click('text=Create User >> nth=-1');
  await page.locator('#broadcasts >> text=create_Users').waitFor();
  await page.click('#disconnectBtn');
  await page.getByText('❌ Disconnected').waitFor();
  console.log('REPORT ' + JSON.stringify([created.includes('"email":"alice@example.com"'), wrong]));
} finally {
  await browser.close();
  http.close();
}
"""


def test_example_3(with_auth: Any, node_directory: Path):
    """The page connects, creates a user, hears of another page's, and leaves."""
    (node_directory / "demo.html").write_text(addressed(guide_block("Example 3: HTML Demo Page").text, with_auth))
    (node_directory / "page.mjs").write_text(PAGE)
    done = subprocess.run(
        ["node", "page.mjs", with_auth.token],
        cwd=node_directory,
        env=clean_environ(node_directory),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr
    assert reports(done.stdout) == [[True, []]]


def test_token_based_auth(with_auth: Any):
    """Not a program: two ways to pass the token, and each lets the client in."""
    address, _, header = guide_block("Token-Based Auth:").text.splitlines()
    name, _, value = header.partition(": ")
    query = "/" + address.partition("56891")[2]
    for opening in (
        {"path": query.replace("your-auth-token", with_auth.token)},
        {"headers": [(name, value.replace("your-auth-token", with_auth.token))]},
    ):
        with BlockingRawClient(with_auth.port, **opening) as client:
            assert client.call("ping", 1)["result"] == 1
    with BlockingRawClient(with_auth.port) as client:
        assert (client.next_close().close_code, Opcode.CLOSE) == (1008, 8)


def test_the_client_is_the_one_that_is_shipped(node_directory: Path):
    """What the blocks import is js/zBifrost.js."""
    assert (node_directory / "zBifrost.js").read_bytes() == (CHECKOUT / "js" / "zBifrost.js").read_bytes()
