"""The kit that the tests of the Redis engine stand on does to real servers what its names say."""

from __future__ import annotations

import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_twisted
from support.certificates import Authority
from support.chaosproxy import ChaosProxy
from support.namespaces import Network, why_not
from support.rediscluster import Cluster, slot_of
from support.redisreplication import Replication, Sentinels
from support.redisserver import FLAVOURS, RedisServer
from support.resp import Client, ReplyError
from support.serverprocess import CHECKOUT
from support.waiting import wait_until, wait_until_blocking
from twisted.internet import reactor
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.threads import deferToThread

pytestmark = pytest.mark.unmeasured

each_flavour = pytest.mark.parametrize("flavour", FLAVOURS)

#: Seconds in which a server of this machine would have answered a hundred times.
SHORT = 0.1


def connect(address: tuple[str, int]) -> Client:
    return Client(socket.create_connection(address, timeout=20))


def hears_nothing(connection: socket.socket) -> bool:
    connection.settimeout(SHORT)
    try:
        connection.recv(1)
    except TimeoutError:
        return True
    finally:
        connection.settimeout(20)
    return False


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """One that the tests of the proxy share."""
    with RedisServer() as server:
        yield server


# --- One server ------------------------------------------------------------------------------------------------------


@each_flavour
def test_a_server_comes_back_on_its_port(flavour: str):
    """It is ended in order and by force, and is another process on the same port; nothing of it stays."""
    with RedisServer(flavour) as server:
        address, pid = server.address, server.pid
        assert server.call("SET", "a", "é") == "OK" and server.call("GET", "a") == "é"
        assert server.calls(("INCR", "a"), ("GET", "b"))[1] is None
        with pytest.raises(ReplyError, match="not an integer") as caught:
            server.call("INCR", "a")
        assert caught.value.code == "ERR"
        server.kill()
        with pytest.raises(OSError):
            connect(address)
        with pytest.raises(OSError):
            server.call("PING")
        server.start()
        assert (server.address, server.call("GET", "a")) == (address, None) and server.pid != pid
        server.pause()
        server.stop()
        assert "bye bye" in server.log
        server.set(maxmemory="7mb")
        server.start()
        assert server.call("CONFIG", "GET", "maxmemory") == ["maxmemory", str(7 << 20)]
        pid = server.pid
    assert not psutil.pid_exists(pid) and not server.directory.exists()


def test_a_paused_server_accepts_and_does_not_answer(server: RedisServer):
    """It answers all that waited when it goes on; one that is paused can be killed."""
    server.pause()
    try:
        with socket.create_connection(server.address) as connection:
            connection.sendall(b"PING\r\n")
            assert hears_nothing(connection) and server.is_running
            server.go_on()
            assert connection.recv(100) == b"+PONG\r\n"
    finally:
        server.go_on()
    server.pause()
    server.restart()
    assert server.call("PING") == "PONG"


@each_flavour
def test_data_are_kept_and_lost(flavour: str):
    """All are there after a kill, those of a copy after a loss, none after a total one."""
    with RedisServer(flavour, appendonly="yes", appendfsync="always") as server:
        server.call("SET", "a", 1)
        old = server.copy_data()
        server.call("SET", "a", 2)
        before = server.info("replication")["master_replid"]
        server.restart()
        assert server.call("GET", "a") == "2"
        assert server.info("replication")["master_replid"] != before
        server.restart(data=old)
        assert server.call("GET", "a") == "1"
        server.restart(empty=True)
        assert server.call("GET", "a") is None


@each_flavour
def test_passwords_and_accounts_are_asked_for(flavour: str):
    """Clients need them and get no more than their rights; the kit itself is always let in."""
    with RedisServer(flavour, password="secret", users={"zcomm": "on >word ~zc:* &zc:* +@all"}) as server:
        assert server.call("SET", "other", 1) == "OK"
        with connect(server.address) as client:
            replies = client.calls(
                ("PING",), ("AUTH", "wrong"), ("AUTH", "zcomm", "word"), ("GET", "zc:a"), ("GET", "other")
            )
        codes = [reply.code if isinstance(reply, ReplyError) else reply for reply in replies]
        assert codes == ["NOAUTH", "WRONGPASS", "OK", None, "NOPERM"]


@each_flavour
def test_tls_has_the_certificate_of_the_test(flavour: str, tmp_path: Path):
    """A client that checks names gets through with the right one, and not to a port without TLS."""
    authority = Authority(tmp_path)
    with RedisServer(flavour, tls=authority, unix=False) as server:
        context = ssl.create_default_context(cadata=authority.pem.decode())
        with socket.create_connection(server.address) as plain:
            with Client(context.wrap_socket(plain, server_hostname="localhost")) as client:
                assert client.call("PING") == "PONG"
        with socket.create_connection(server.address) as plain, pytest.raises(ssl.SSLCertVerificationError):
            context.wrap_socket(plain, server_hostname="elsewhere.example")
        assert server.call("PING") == "PONG" and server.url.startswith("rediss://127.0.0.1:")


def test_a_full_server_refuses_writes():
    """Memory and policy are settings like all others."""
    with RedisServer(maxmemory="3mb", maxmemory_policy="noeviction") as server, server.client() as client:
        replies = client.calls(*(("SET", number, "x" * 100_000) for number in range(50)))
        assert {reply.code for reply in replies if isinstance(reply, ReplyError)} == {"OOM"}


def test_a_server_that_cannot_start_says_why():
    """Its log is in the error, and there is no process."""
    with RedisServer() as server:
        other = RedisServer()
        other.port = server.port
        try:
            with pytest.raises(RuntimeError, match="Address already in use"):
                other.start()
            assert not other.is_running
        finally:
            other.remove()


KILLED = """
import sys
sys.path[:0] = ["tests"]
from support.namespaces import Network, why_not
from support.redisserver import RedisServer
with RedisServer() as server, RedisServer() as paused:
    paused.pause()
    with Network("a", "b") if not why_not() else server as network:
        pids = [] if network is server else [network["a"].agent.pid, network["a"].popen(["cat"]).pid]
        print(server.pid, paused.pid, *pids, flush=True)
        sys.stdin.read()
"""


def test_nothing_outlives_the_test_process(tmp_path: Path):
    """A kill of the process that made them ends servers, paused ones too, and namespaces with what runs in them."""
    words = [sys.executable, "-c", KILLED]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=CHECKOUT, env={"TMPDIR": str(tmp_path)}
    ) as made:
        assert made.stdout is not None
        pids = [int(word) for word in made.stdout.readline().split()]
        made.send_signal(signal.SIGKILL)
    assert len(pids) == (2 if why_not() else 4)

    def ended(pid: int) -> bool:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        return True

    wait_until_blocking(lambda: all(map(ended, pids)), "an end of what it started")


# --- Several ---------------------------------------------------------------------------------------------------------


@each_flavour
def test_a_promotion_forks_history(flavour: str):
    """The promoted replica has another replication id, both write, and what one of them wrote is lost."""
    with Replication(2, flavour=flavour, password="secret") as replication:
        old, new, _ = replication.servers
        old.call("SET", "a", 1)
        replication.wait_until_in_sync()
        before = new.info("replication")["master_replid"]
        assert before == old.info("replication")["master_replid"] and replication.replicas[0] is new
        with pytest.raises(ReplyError, match="READONLY"):
            new.call("SET", "a", 2)
        replication.promote(1)
        assert new.info("replication")["master_replid"] != before == new.info("replication")["master_replid2"]
        assert [old.call("SET", "a", "old"), new.call("SET", "a", "new")] == ["OK", "OK"]
        replication.demote(2, of=1, wait=False)
        replication.demote(0, of=1)
        replication.wait_until_in_sync()
        assert [server.call("GET", "a") for server in replication.servers] == ["new"] * 3
        assert replication.master is new


def test_sentinels_replace_a_dead_master():
    """A replica takes its place, and it comes back as a replica."""
    with Replication(1, password="secret") as replication, Sentinels(replication, password="other") as sentinels:
        old, new = replication.servers
        assert sentinels.master() is old
        old.kill()
        assert sentinels.wait_for_another_master(old) is new
        assert new.role() == "master"
        old.start()
        wait_until_blocking(lambda: old.role() == "slave", "the old master as a replica")


def test_sentinels_fail_over_when_they_are_told_to():
    """The old master, which is well, is a replica in sync afterwards, and all of them know; on Valkey as well."""
    with Replication(1, flavour="valkey") as replication, Sentinels(replication, flavour="valkey") as sentinels:
        old, new = replication.servers
        assert sentinels.failover() is new
        sentinels.wait_until_settled()
        assert old.info("replication")["master_link_status"] == "up"


@pytest.fixture(scope="module", params=FLAVOURS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """One with a replica of each master, which the tests leave as well as it was."""
    with Cluster(replicas=1, flavour=request.param, password="secret") as cluster:
        yield cluster


@pytest.mark.parametrize("key", ["123456789", "{a}b", "a", "{}a", "a{b", "x{a}{b}", "{{a}}", "}{a}", "ü"])
def test_slots_are_those_of_redis(cluster: Cluster, key: str):
    """The checksum of the specification, of what is in the first braces if that is anything."""
    assert slot_of(key) == cluster.servers[0].call("CLUSTER", "KEYSLOT", key)


def test_a_slot_moves(cluster: Cluster):
    """While it does, a key is here or there, and afterwards all say where it is."""
    first, second, *_ = cluster.servers
    tag = cluster.tag_of(first)
    slot = slot_of(tag)
    keys = [f"a{{{tag}}}{number}" for number in range(120)]
    assert cluster.owner_of(slot) is first
    with first.client() as client:
        client.calls(*(("SET", key, 1) for key in keys))
    cluster.begin_move(slot, second)
    with pytest.raises(ReplyError, match=f"ASK {slot} {second.host}:{second.port}"):
        first.call("GET", f"{{{tag}}}none")
    assert first.call("GET", keys[0]) == "1"
    assert cluster.move_keys(slot, first, second) == 120
    cluster.finish_move(slot, second)
    with pytest.raises(ReplyError, match=f"MOVED {slot} {second.host}:{second.port}"):
        first.call("GET", keys[0])
    assert second.call("GET", keys[0]) == "1" and cluster.owner_of(slot) is second
    assert cluster.move_slot(slot, first) == 120


def test_a_cluster_fails_over(cluster: Cluster):
    """The replica has the slots afterwards and another replication id; back again, on connections that stay."""
    master = cluster.servers[0]
    (replica,) = cluster.replicas_of(master)
    tag = cluster.tag_of(master)
    with master.client() as client:
        assert client.call("SET", tag, 1) == "OK"
        before = master.info("replication")["master_replid"]
        cluster.failover(replica)
        assert cluster.owner_of(slot_of(tag)) is replica
        assert replica.info("replication")["master_replid"] != before
        with pytest.raises(ReplyError, match="MOVED"):
            client.call("SET", tag, 2)
        cluster.failover(master)
        assert client.call("GET", tag) == "1"
        assert master.info("replication")["master_replid"] != before


def test_a_cluster_without_a_master_is_down():
    """All of it, for as long as slots are nobody's."""
    with Cluster() as cluster:
        first, _, last = cluster.servers
        tag = cluster.tag_of(first)
        last.kill()
        cluster.wait_until_down(first)
        with pytest.raises(ReplyError, match="CLUSTERDOWN"):
            first.call("GET", tag)


# --- The proxy -------------------------------------------------------------------------------------------------------


@pytest_twisted.ensureDeferred
async def test_a_reply_is_lost_by_a_stall_and_a_cut(server: RedisServer):
    """The command ran, its reply never came; what is stalled on the way to the server never runs."""
    async with ChaosProxy(server.address) as proxy:
        client = await deferToThread(connect, proxy.address)
        assert await deferToThread(client.call, "SET", "n", 0) == "OK"
        proxy.stall("to_client")
        client.send("INCR", "n")
        await wait_until(lambda: server.call("GET", "n") == "1", "the command")
        assert (proxy.cut(), proxy.accepted) == (1, 1)
        with pytest.raises(ConnectionResetError):
            await deferToThread(client.reply)
        client.close()
        proxy.go_on()
        client = await deferToThread(connect, proxy.address)
        assert await deferToThread(client.call, "GET", "n") == "1"
        proxy.stall("to_server")
        client.send("INCR", "n")
        assert await deferToThread(hears_nothing, client.connection)
        assert server.call("GET", "n") == "1"
        proxy.go_on()
        assert await deferToThread(client.reply) == 2
        assert (proxy.accepted, proxy.open) == (2, 1)
        client.close()
        await wait_until(lambda: proxy.open == 0, "an end of the connection")


@pytest_twisted.ensureDeferred
async def test_a_proxy_refuses_and_comes_back_on_its_port(server: RedisServer):
    """Connections that are there stay; new ones are refused until it goes on, or accepted and not answered."""
    async with ChaosProxy(server.path) as proxy:
        client = await deferToThread(connect, proxy.address)
        port = proxy.port
        await proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await deferToThread(connect, proxy.address)
        assert await deferToThread(client.call, "PING") == "PONG"
        client.close()
        proxy.go_on()
        assert proxy.port == port
        proxy.stall()
        client = await deferToThread(connect, proxy.address)
        client.send("PING")
        assert await deferToThread(hears_nothing, client.connection)
        proxy.go_on()
        assert await deferToThread(client.reply) == "PONG"
        client.close()


@pytest_twisted.ensureDeferred
async def test_a_delay_keeps_the_order(server: RedisServer):
    """A reply takes as long as it is told; what comes after the delay does not overtake what came in it."""
    async with ChaosProxy(server.address) as proxy:
        client = await deferToThread(connect, proxy.address)
        proxy.delay(0.2, "to_server")
        began = reactor.seconds()
        client.send("ECHO", "slow")
        await wait_until(lambda: proxy.waiting == 1, "the first command")
        proxy.delay(0)
        assert await deferToThread(client.call, "ECHO", "quick") == "slow"
        assert await deferToThread(client.reply) == "quick"
        assert reactor.seconds() - began >= 0.2
        client.close()


@pytest_twisted.ensureDeferred
async def test_much_goes_through_as_it_is(server: RedisServer):
    """More than any buffer holds, in both directions, and the end of a connection after it."""
    value = "0123456789abcdef" * (1 << 20)
    async with ChaosProxy(server.address) as proxy:

        def run() -> tuple[Any, Any, bytes]:
            with connect(proxy.address) as client:
                replies = client.calls(("SET", "much", value), ("GET", "much"), ("QUIT",))
                return replies[0], replies[1], client.connection.recv(1)

        assert await deferToThread(run) == ("OK", value, b"")
        assert proxy.passed["to_server"] > len(value) < proxy.passed["to_client"]


@pytest_twisted.ensureDeferred
async def test_a_dead_server_is_a_reset_behind_a_proxy():
    """The proxy accepts, for it does not know yet, and cuts; what came before the server's end is passed on."""
    with RedisServer() as server:
        async with ChaosProxy(server.address) as proxy:
            client = await deferToThread(connect, proxy.address)
            assert await deferToThread(client.call, "PING") == "PONG"
            server.kill()
            with pytest.raises(ConnectionError):
                await deferToThread(client.call, "PING")
            client.close()

            def run() -> None:
                with connect(proxy.address) as late:
                    late.call("PING")

            with pytest.raises(ConnectionError):
                await deferToThread(run)
            await deferToThread(server.start)
            client = await deferToThread(connect, proxy.address)
            assert await deferToThread(client.call, "PING") == "PONG"
            client.close()


# --- Networks --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=[False, True], ids=["root", "anybody"])
def network_of(request: pytest.FixtureRequest) -> Callable[..., Network]:
    """Networks with and without a user namespace."""
    return lambda *names: Network(*names, rootless=request.param)


def test_hosts_are_cut_off_and_reached_again(network_of: Callable[..., Network]):
    """Between two of three nothing passes, or nothing in one direction; what was lost comes again when it is healed."""
    with network_of("a", "b", "c") as network:
        a, b, c = network.hosts.values()
        assert b.run("cat", text="read") == "read"
        with pytest.raises(RuntimeError, match="no such"):
            b.run("sh", "-c", "echo no such >&2; exit 3")
        with RedisServer(place=a, unix=False) as server, Client(b.connect(*server.address)) as client:
            assert client.call("PING") == "PONG"
            cuts: list[tuple[Callable[[], None], bool]] = [
                (lambda: network.partition(b, a, one_way=True), False),
                (lambda: network.partition(a, b, one_way=True), True),
                (lambda: network.partition(a, b), False),
                (lambda: network.unplug(b), False),
                (lambda: network.isolate(b), False),
            ]
            for number, (cut, arrives) in enumerate(cuts):
                cut()
                client.send("SET", "number", number)
                assert hears_nothing(client.connection)
                assert (server.call("GET", "number") == str(number)) is arrives
                with pytest.raises(TimeoutError):
                    b.connect(*server.address, timeout=SHORT)
                with Client(c.connect(*server.address)) as other:
                    assert other.call("PING") == "PONG"
                network.heal(b)
                assert client.reply() == "OK"


@pytest_twisted.ensureDeferred
async def test_clients_of_twisted_connect_from_a_host():
    """Its endpoint is one like any other; a failure comes as it does elsewhere."""
    got: list[bytes] = []

    class Pinging(Protocol):
        def connectionMade(self) -> None:
            self.transport.write(b"PING\r\n")

        def dataReceived(self, data: bytes) -> None:
            got.append(data)

    with Network("a", "b") as network, RedisServer(place=network["a"]) as server:
        made = await network["b"].endpoint(*server.address).connect(Factory.forProtocol(Pinging))
        await wait_until(lambda: b"".join(got) == b"+PONG\r\n", "an answer")
        made.transport.loseConnection()
        with pytest.raises(ConnectionRefusedError):
            await network["b"].endpoint(server.host, 1).connect(Factory.forProtocol(Pinging))


def test_a_master_that_is_cut_off_writes_on():
    """The sentinels on the other side choose another one meanwhile, and what the first was told is lost by healing."""
    with Network("a", "b", "c") as network:
        places = tuple(network.hosts.values())
        with Replication(places=places[:2]) as replication, Sentinels(replication, places=places) as sentinels:
            old, new = replication.servers
            network.isolate(network["a"])
            wait_until_blocking(lambda: sentinels.master(1) is sentinels.master(2) is new, "another master")
            wait_until_blocking(lambda: new.role() == "master", "the promotion")
            assert sentinels.master(0) is old
            assert [old.call("SET", "a", "old"), new.call("SET", "a", "new")] == ["OK", "OK"]
            network.heal()
            assert sentinels.wait_for_another_master(old) is new
            wait_until_blocking(lambda: old.call("GET", "a") == "new", "the old master as a replica")
