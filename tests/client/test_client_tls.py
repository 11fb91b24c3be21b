"""``wss://``: a server with a certificate, and a client that looks at it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from support.certificates import Authority
from support.rows import rows_of_a_test
from support.serverprocess import RunningServer, clean_environ
from support.waiting import wait_until
from twisted.internet.defer import Deferred
from twisted.internet.ssl import Certificate, trustRootFromCertificates

from zcomm import WebSocketConfig, zBifrost
from zcomm.client import connect
from zcomm.errors import ConnectionLost

UNTRUSTED = "the certificate cannot be trusted: it has expired, or no known authority has signed it"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The one that the clients of this module trust, where they are told to."""
    return Authority(tmp_path_factory.mktemp("authority"))


def endpoint(files: tuple[Path, Path]) -> str:
    return f"ssl:0:privateKey={files[0]}:certKey={files[1]}:interface=127.0.0.1"


@pytest_twisted.async_yield_fixture
async def serve() -> AsyncIterator[Callable[[str], Deferred[zBifrost]]]:
    """``await serve(endpoint)`` is a server that lets everybody in."""
    servers: list[zBifrost] = []

    async def start(listen: str) -> zBifrost:
        bifrost = zBifrost(WebSocketConfig(require_auth=False, listen=(listen,)))
        servers.append(bifrost)
        await bifrost.listen()
        return bifrost

    yield start
    for server in servers:
        await server.stopService()


def trusting(authority: Authority) -> Any:
    return trustRootFromCertificates([Certificate.loadPEM(authority.pem)])


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest_twisted.ensureDeferred
async def test_a_good_certificate(authority: Authority, serve: Callable[..., Any], host: str):
    """Signed by who is trusted, for the name that was asked for: commands go through."""
    server = await serve(endpoint(authority.issue("localhost", "127.0.0.1")))
    assert server.url.startswith("wss://")
    client = await connect(f"wss://{host}:{server.port}", trust_root=trusting(authority))
    assert await client.send({"zKey": "ping", "zHorizontal": "x" * 100_000}) == "x" * 100_000
    await client.disconnect()


@pytest.mark.parametrize(
    ("certificate", "trusted", "reason"),
    [
        ({"names": ["other.example"]}, True, "the certificate is not for localhost"),
        ({"names": ["127.0.0.1"]}, True, "the certificate is not for localhost"),
        ({"days": (-3, -1)}, True, UNTRUSTED),
        ({"days": (1, 3)}, True, UNTRUSTED),
        ({"self_signed": True}, True, UNTRUSTED),
        ({"self_signed": True}, False, UNTRUSTED),
        ({}, False, UNTRUSTED),
    ],
    ids=["other-name", "address-only", "expired", "not-yet", "self-signed", "self-signed-system", "unknown-authority"],
)
@pytest_twisted.ensureDeferred
async def test_a_bad_certificate(
    authority: Authority, serve: Callable[..., Any], certificate: dict[str, Any], trusted: bool, reason: str
):
    """No command is sent, the error says what is wrong, and the client does not come back by itself."""
    given = dict(certificate)
    server = await serve(endpoint(authority.issue(*given.pop("names", ["localhost"]), **given)))
    root = trusting(authority) if trusted else None
    with pytest.raises(ConnectionLost) as raised:
        await connect(f"wss://localhost:{server.port}", "secret-token", trust_root=root)
    error = raised.value
    assert (error.close_code, error.reason, error.retryable) == (1015, reason, False)
    await wait_until(lambda: not server.factory._alive, "the end of the connection")
    assert server.clients == [] and server.factory.opened_count == 0


@pytest_twisted.ensureDeferred
async def test_contact_a_certificate_is_that_of_the_names_in_it_alone(
    authority: Authority, serve: Callable[..., Any], capfd: pytest.CaptureFixture[str]
):
    """Its names are those of its subjectAltName. One that has none, or holds what nobody can read, is nobody's."""
    other = "the certificate is not for {}"
    none = "the certificate is for no host, {} or other: it has no subjectAltName"
    unreadable = "the names in the certificate cannot be read"
    device = x509.UniformResourceIdentifier("urn:uuid:9e1cfc4e-6c9a-4b4b-a1a6-5d2e3f6f2c11")
    rows: list[tuple[tuple[Any, ...], str, bool, str]] = [
        ((), "mallory", False, none),
        ((), "mallory", True, none),
        ((), "localhost", False, none),
        ((), "127.0.0.1", False, none),
        ((device,), "localhost", False, other),
        ((x509.RFC822Name("root@localhost"),), "localhost", False, other),
        ((x509.DNSName("*"),), "localhost", False, other),
        ((x509.DNSName("127.0.0.1"),), "127.0.0.1", False, other),
        ((x509.DNSName("bücher.example".encode("idna").decode()),), "localhost", False, other),
        ((x509.DNSName("localhost.example"), x509.DNSName("")), "localhost", False, other),
        ((b"0\x04\x87\x02\x7f\x01",), "127.0.0.1", False, unreadable),
        ((b"\x30\x80",), "localhost", False, unreadable),
        ((b"",), "localhost", False, unreadable),
        # What is no name of a host takes nothing from those that are.
        ((device, "localhost", "127.0.0.1"), "mallory", False, ""),
        ((x509.DNSName("*"), x509.DNSName("10.0.0.1"), "LOCALHOST", "127.0.0.1"), "mallory", False, ""),
    ]
    files = authority.issue("localhost")
    server = await serve(endpoint(files))
    with rows_of_a_test() as row:
        for names, subject, client, reason in rows:
            for path, made in zip(files, authority.issue(*names, subject=subject, client=client), strict=True):
                path.write_bytes(made.read_bytes())
            server.reload_certificates()
            for host in ("localhost", "127.0.0.1"):
                with row(f"{names} {subject} {host}"):
                    went = ""
                    try:
                        joined = await connect(
                            f"wss://{host}:{server.port}", "secret-token", trust_root=trusting(authority)
                        )
                        await joined.disconnect()
                    except ConnectionLost as error:
                        went = error.reason
                    assert went == reason.format(host)
    assert capfd.readouterr().err == ""


@pytest_twisted.ensureDeferred
async def test_contact_a_certificate_that_is_wrong_for_a_while_is_no_end(
    authority: Authority, serve: Callable[..., Any]
):
    """A client that was in before comes back as soon as the certificate is good again."""
    files = authority.issue("localhost")
    good = [path.read_bytes() for path in files]
    server = await serve(endpoint(files))
    client = await connect(f"wss://localhost:{server.port}", trust_root=trusting(authority))
    ends: list[ConnectionLost] = []
    client.on("close", ends.append)
    for path, other in zip(files, authority.issue("localhost", self_signed=True), strict=True):
        path.write_bytes(other.read_bytes())
    server.reload_certificates()
    server.factory.abort_all()
    await wait_until(lambda: [error.close_code for error in ends][-1:] == [1015], "an attempt that fails")
    assert client.state == "reconnecting" and ends[-1].retryable
    for path, content in zip(files, good, strict=True):
        path.write_bytes(content)
    server.reload_certificates()
    await wait_until(lambda: client.state == "connected", "the client again")
    assert await client.send({"zKey": "ping", "zHorizontal": 1}) == 1
    await client.disconnect()


@pytest_twisted.ensureDeferred
async def test_no_tls_there(serve: Callable[..., Any]):
    """A server without TLS is told from one with a bad certificate."""
    server = await serve("tcp:0:interface=127.0.0.1")
    with pytest.raises(ConnectionLost) as raised:
        await connect(f"wss://localhost:{server.port}")
    assert raised.value.close_code in (1006, 1015) and "certificate" not in raised.value.reason


PLAIN = """\
import sys
from pathlib import Path
from twisted.internet.ssl import Certificate, trustRootFromCertificates
from zcomm.client.threaded import connect
from zcomm.errors import ConnectionLost

root = trustRootFromCertificates([Certificate.loadPEM(Path(sys.argv[2]).read_bytes())])
with connect(sys.argv[1], sys.argv[3], trust_root=root) as client:
    print(client.send({"zKey": "ping", "zHorizontal": "through TLS"}))
try:
    connect(sys.argv[1], sys.argv[3])
except ConnectionLost as error:
    print(error.close_code)
"""


def test_twistd_over_tls(authority: Authority, running_server: Callable[..., RunningServer], tmp_path: Path):
    """``--listen ssl:…``: the plain client trusts the authority it is given, and not without."""
    server = running_server("--listen", endpoint(authority.issue("127.0.0.1")))
    assert server.url.startswith("wss://127.0.0.1")
    (tmp_path / "ca.pem").write_bytes(authority.pem)
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, server.url, str(tmp_path / "ca.pem"), server.token],
        env=clean_environ(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stdout) == (0, "through TLS\n1015\n"), done.stderr
