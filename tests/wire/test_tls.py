"""Catalogue group T: the server holds the certificate itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from cryptography.hazmat.primitives import serialization
from support.certificates import Authority
from support.rawclient import BlockingRawClient, ConnectionEnded, build_frame
from support.rows import rows_of_a_test
from support.serverprocess import CHECKOUT, RunningServer, clean_environ, start_server, twistd_command
from support.waiting import DEADLINE, wait_until_blocking

pytestmark = pytest.mark.child


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, ssl.SSLContext]]:
    """A server on a TLS endpoint, and what a client needs to trust it."""
    directory = tmp_path_factory.mktemp("secure")
    authority = Authority(directory)
    key, certificate = authority.issue("localhost", "127.0.0.1")
    server = start_server(
        "--listen",
        f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
        "--handshake-timeout",
        "0.6",
        home=directory / "home",
    )
    context = ssl.create_default_context(cadata=authority.pem.decode())
    yield server, context
    assert server.stop() == 0, server.log
    assert "Traceback" not in server.log and server.token not in server.log


def served(server: RunningServer, context: ssl.SSLContext) -> bool:
    with BlockingRawClient(server.port, token=server.token, tls=context) as client:
        return client.call("ping", "x" * 100_000)["result"] == "x" * 100_000


def test_a_client_that_trusts_it_is_served(secure):
    """Commands, large ones too, and an URL that says wss."""
    server, context = secure
    assert server.url.startswith("wss://") and served(server, context)


def test_commands_over_https(secure):
    """Posted, small and large, and answered whole."""
    server, context = secure
    for size in (1, 900_000):
        body = json.dumps({"zKey": "ping", "zHorizontal": "x" * size}).encode()
        headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}
        posted = urllib.request.Request(f"https://127.0.0.1:{server.port}/call", body, headers)
        with urllib.request.urlopen(posted, timeout=DEADLINE, context=context) as response:
            assert json.load(response) == {"result": "x" * size}
        posted.add_header("Authorization", "Bearer wrong")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(posted, timeout=DEADLINE, context=context)


@pytest.mark.parametrize("offered", [["http/1.1"], ["h2", "http/1.1"]])
def test_contact_clients_that_offer_protocols_are_served(secure, offered: list[str]):
    """As browsers, curl and Node's fetch do."""
    server, context = secure
    context.set_alpn_protocols(offered)
    try:
        assert served(server, context)
        with socket.create_connection(("127.0.0.1", server.port)) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as client:
                assert client.selected_alpn_protocol() == "http/1.1"
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 200 ")
    finally:
        context.set_alpn_protocols([])


def said(*command: str | int) -> str:
    """What a program prints, on its error output as well."""
    arguments = [str(part) for part in command]
    request = b"GET /health HTTP/1.0\r\n\r\n"
    done = subprocess.run(arguments, input=request, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30)
    return done.stdout.decode()


def test_contact_a_client_gets_the_protocol_that_it_offers_or_is_told_that_there_is_none(secure):
    """curl and OpenSSL's own client: HTTP of either kind, the newer first; others are refused by the alert for that."""
    server, _ = secure
    curl = ("curl", "--silent", "--show-error", "--insecure", "--output", os.devnull, "--write-out", "%{http_code} ")
    client = ("openssl", "s_client", "-ign_eof", "-connect", f"localhost:{server.port}")
    refused = "alert no application protocol"
    with rows_of_a_test() as row:
        for options in ((), ("--http1.1",), ("--http1.0",), ("--no-alpn",), ("--http1.0", "--tls-max", "1.2")):
            with row(f"curl {options}"):
                assert said(*curl, *options, f"https://localhost:{server.port}/health") == "200 "
        for offered, chosen in (
            ("http/1.0", "http/1.0"),
            ("http/1.0,http/1.1", "http/1.1"),
            ("h2,http/1.0", "http/1.0"),
            ("spdy/3,http/1.0,h2", "http/1.0"),
            ("h2", ""),
            ("acme-tls/1", ""),
            ("http/1", ""),
            ("HTTP/1.1", ""),
        ):
            for version in ("-tls1_2", "-tls1_3"):
                with row(f"openssl {offered} {version}"):
                    text = said(*client, version, "-alpn", offered)
                    assert (f"ALPN protocol: {chosen}\n" in text and "HTTP/1.1 200 OK" in text) is bool(chosen)
                    assert (refused in text) is not bool(chosen), text
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="T1-silent"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100), id="T1-half-a-hello"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", id="T2-plain-text"),
        pytest.param(bytes(range(256)) * 8, id="T2-noise"),
    ],
)
def test_what_is_no_tls_ends(secure, data: bytes):
    """Within the handshake's time, without a word in the log."""
    server, context = secure
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as peer:
        peer.sendall(data)
        try:
            while peer.recv(4096):
                pass
        except ConnectionResetError:
            pass
    assert served(server, context)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["T3-1.0", "T3-1.1"])
def test_t3_old_versions_are_refused(secure, version: ssl.TLSVersion):
    """A client that speaks nothing newer gets an alert."""
    server, _ = secure
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.set_ciphers("ALL:@SECLEVEL=0")
    old.minimum_version = old.maximum_version = version
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        BlockingRawClient(server.port, None, tls=old)


@pytest.mark.parametrize("ciphers", ["NULL", "3DES", "RC4"])
def test_t3_weak_ciphers_are_refused(secure, ciphers: str):
    """Even when a client insists."""
    server, _ = secure
    weak = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    weak.check_hostname, weak.verify_mode = False, ssl.CERT_NONE
    weak.maximum_version = ssl.TLSVersion.TLSv1_2
    try:
        weak.set_ciphers(f"{ciphers}:@SECLEVEL=0")
    except ssl.SSLError:
        # This OpenSSL cannot even ask for it: then the server, which has the same one, has none to give.
        return
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        BlockingRawClient(server.port, None, tls=weak)


def test_t6_a_cut_in_the_middle_of_a_message(secure):
    """FIN without a goodbye of TLS: the half message is nobody's, the registry is exact."""
    server, context = secure
    client = BlockingRawClient(server.port, token=server.token, tls=context)
    client.send(build_frame(1, b'{"zKey":"ping"}')[:10])
    client.socket.shutdown(socket.SHUT_RDWR)
    client.socket.close()

    def alone() -> bool:
        with BlockingRawClient(server.port, b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n", tls=context) as asking:
            asking.wait_ended()
            return b'"clients":0' in asking.reader.rest

    wait_until_blocking(alone, "the end of the cut connection")


def shown(port: int, context: ssl.SSLContext) -> int:
    """The serial number of the certificate that a new connection is shown."""
    with (
        socket.create_connection(("127.0.0.1", port), DEADLINE) as peer,
        context.wrap_socket(peer, server_hostname="localhost") as secured,
    ):
        return int(secured.getpeercert()["serialNumber"], 16)


def renew(authority: Authority, files: tuple[Path, Path], *names: str) -> int:
    """Put another key and certificate in the place of ``files``; the serial number."""
    renewed = authority.issue(*names)
    serial = int(renewed[1].stem, 16)
    for new, old in zip(renewed, files, strict=True):
        new.replace(old)
    return serial


def test_contact_r30_a_renewed_certificate_is_taken_on_sighup(running_server, tmp_path: Path):
    """For new connections; who is connected stays, and what cannot be used is not taken."""
    authority = Authority(tmp_path)
    context = ssl.create_default_context(cadata=authority.pem.decode())
    pairs = [authority.issue("localhost", "127.0.0.1") for _ in range(2)]
    serials = [int(certificate.stem, 16) for _, certificate in pairs]
    listen = [
        option
        for key, certificate in pairs
        for option in ("--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}")
    ]
    server = running_server(*listen)
    listeners = psutil.Process(server.process.pid).net_connections("tcp")
    (other,) = {each.laddr.port for each in listeners if each.status == "LISTEN"} - {server.port}

    def reloaded(line: str) -> None:
        before = server.log.count(line)
        server.signal(signal.SIGHUP)
        wait_until_blocking(lambda: server.log.count(line) > before, line)

    well, badly = "the TLS certificates were read anew", "not reloaded, what was read before still holds: --listen: "
    with BlockingRawClient(server.port, token=server.token, tls=context) as client:
        assert shown(server.port, context) == serials[0]
        # Without a word of ours nothing changes.
        serials[0] = renew(authority, pairs[0], "localhost", "127.0.0.1")
        assert shown(server.port, context) != serials[0]
        reloaded(well)
        assert shown(server.port, context) == serials[0] and client.call("ping", 1)["result"] == 1
        # Each of these is wrong, and the one before goes on; that of the other endpoint is taken all the same.
        key, certificate = pairs[0]
        good = key.read_bytes(), certificate.read_bytes()
        for spoil, reason in (
            (lambda: key.unlink(), "cannot be read: No such file"),
            (lambda: key.chmod(0o644), "can be read by others"),
            (lambda: key.write_text("?"), "is no private key"),
            (lambda: certificate.write_bytes(b""), "is no certificate"),
            (lambda: authority.issue("localhost")[1].replace(certificate), "do not belong together"),
        ):
            spoil()
            serials[1] = renew(authority, pairs[1], "localhost")
            reloaded(badly)
            assert reason in server.log.rpartition(badly)[2]
            assert shown(server.port, context) == serials[0] and served(server, context)
            assert shown(other, context) == serials[1]
            key.write_bytes(good[0])
            key.chmod(0o600)
            certificate.write_bytes(good[1])
        # Twice over, with connections that resume a session of before.
        for _ in range(2):
            serials[0] = renew(authority, pairs[0], "localhost", "127.0.0.1")
            reloaded(well)
            assert shown(server.port, context) == serials[0] and served(server, context)
        assert client.call("ping", 2)["result"] == 2
    assert "Traceback" not in server.log


def with_a_password(key: Path) -> None:
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    secret = serialization.BestAvailableEncryption(b"secret")
    key.write_bytes(loaded.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret))


def lent_to_a_group(key: Path) -> None:
    # Nobody else's: what root may do with its own key, another user may not.
    os.chown(key, 65534, 65534) if os.getuid() == 0 else None
    key.chmod(0o640)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        pytest.param(
            lambda key, cert, other: key.unlink(), "the TLS key {key} cannot be read: No such file", id="key-missing"
        ),
        pytest.param(
            lambda key, cert, other: key.write_text("nonsense"), "{key} is no private key in PEM", id="key-nonsense"
        ),
        pytest.param(
            lambda key, cert, other: key.write_bytes(cert.read_bytes()), "{key} is no private key", id="key-is-none"
        ),
        pytest.param(lambda key, cert, other: with_a_password(key), "{key} is encrypted", id="key-password"),
        pytest.param(
            lambda key, cert, other: key.chmod(0o644),
            r"{key} can be read by others \(mode 0644\); chmod 600 {key}",
            id="key-for-everybody",
        ),
        pytest.param(
            lambda key, cert, other: lent_to_a_group(key), r"read by others \(mode 0640\)", id="key-for-a-group"
        ),
        pytest.param(
            lambda key, cert, other: other.replace(key),
            "the TLS key {key} and the certificate {cert} do not belong together",
            id="key-of-another",
        ),
        pytest.param(
            lambda key, cert, other: cert.unlink(), "the TLS certificate {cert} cannot be read", id="cert-missing"
        ),
        pytest.param(
            lambda key, cert, other: cert.write_text("?"), "{cert} is no certificate in PEM", id="cert-nonsense"
        ),
    ],
)
def test_t4_without_a_usable_key_nothing_starts(tmp_path: Path, spoil, reason: str):
    """One line that names the file and the fault, exit status 1, before anything listens."""
    authority = Authority(tmp_path)
    key, certificate = authority.issue("localhost")
    spoil(key, certificate, authority.issue("localhost")[0])
    home = tmp_path / "home"
    home.mkdir()
    server = RunningServer(
        twistd_command("--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"),
        home,
        clean_environ(home),
    )
    status = server.wait()
    server.process.stdout.close()
    server.wait_for_log("zcomm: --listen: .*" + reason.format(key=key, cert=certificate))
    assert status == 1 and "zBifrost listening" not in server.log, server.log
    assert "Traceback" not in server.log


def test_t4_a_certificate_that_has_expired_is_warned_of(running_server, tmp_path: Path):
    """Its clients will not connect; the server starts, because whoever renews it may need it."""
    key, certificate = Authority(tmp_path).issue("localhost", days=(-2, -1))
    server = running_server("--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}")
    server.wait_for_log(f"WARNING: the TLS certificate {certificate} has expired")


@pytest.mark.parametrize("endpoint", ["nonsense:1", "tcp:", "ssl", "tcp:no-port"])
def test_what_is_no_endpoint_ends_the_start(tmp_path: Path, endpoint: str):
    """One line that quotes it, exit status 1."""
    home = tmp_path / "home"
    home.mkdir()
    server = RunningServer(twistd_command("--listen", endpoint), home, clean_environ(home))
    status = server.wait()
    server.process.stdout.close()
    server.wait_for_log("zcomm: --listen: ")
    assert status == 1 and "Traceback" not in server.log, server.log


MUTUAL = """
from pathlib import Path

from twisted.internet import ssl
from twisted.internet.endpoints import SSL4ServerEndpoint
from twisted.internet.interfaces import IStreamServerEndpointStringParser
from twisted.plugin import IPlugin
from zope.interface import implementer


@implementer(IPlugin, IStreamServerEndpointStringParser)
class Mutual:
    prefix = "mutual"

    def parseStreamServer(self, reactor, port, interface, key, certificate, authority):
        own = ssl.PrivateCertificate.loadPEM(Path(certificate).read_bytes() + Path(key).read_bytes())
        trusted = ssl.Certificate.loadPEM(Path(authority).read_bytes())
        return SSL4ServerEndpoint(reactor, int(port), own.options(trusted), interface=interface)


mutual = Mutual()
"""


def test_t5_client_certificates_by_an_endpoint_that_asks_for_them(running_server, tmp_path: Path):
    """Twisted's ``ssl:`` asks for none; one that does is an endpoint like any other: only its own clients get in."""
    plugins = tmp_path / "site" / "twisted" / "plugins"
    plugins.mkdir(parents=True)
    (plugins / "mutual_plugin.py").write_text(MUTUAL)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    ours, others = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    (tmp_path / "authority.pem").write_bytes(ours.pem)
    key, certificate = ours.issue("localhost", "127.0.0.1")
    server = running_server(
        "--listen",
        f"mutual:0:127.0.0.1:{key}:{certificate}:{tmp_path / 'authority.pem'}",
        environ={"PYTHONPATH": f"{tmp_path / 'site'}:{CHECKOUT}"},
    )

    def client_of(authority: Authority | None) -> BlockingRawClient:
        context = ssl.create_default_context(cadata=ours.pem.decode())
        if authority is not None:
            files = authority.issue("somebody", client=True)
            context.load_cert_chain(files[1], files[0])
        return BlockingRawClient(server.port, token=server.token, tls=context)

    for stranger in (None, others):
        with pytest.raises((ssl.SSLError, ConnectionResetError, ConnectionEnded)):
            client_of(stranger)
    with client_of(ours) as client:
        assert client.call("ping", 1)["result"] == 1
    assert "Traceback" not in server.log


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--host", "0.0.0.0"], id="H22-T9-all-interfaces"),
    ],
)
def test_t9_an_open_interface_is_warned_of(running_server, options: list[str]):
    """At each start, with what is on and what is allowed."""
    server = running_server(*options)
    server.wait_for_log(r"WARNING: .*0\.0\.0\.0")
    assert "authentication on" in server.log and "allowed origins" in server.log


def test_h22_an_open_interface_without_tokens_does_not_start(tmp_path: Path):
    """Unless it is asked for twice."""
    home = tmp_path / "home"
    home.mkdir()
    server = RunningServer(twistd_command("--host", "0.0.0.0", "--no-auth", "--port", "0"), home, clean_environ(home))
    assert server.wait() == 1
    server.process.stdout.close()
    assert "--insecure" in server.log and "Traceback" not in server.log
