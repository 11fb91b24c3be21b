"""Hosts on one cable, of which each is a network namespace: for cuts between any two of them.

It takes root's rights over networks, or a user namespace, in which everybody has them. The namespaces have no names:
they, the cable and all connections vanish with the processes in them, which end with the test process at the latest::

    with Network("a", "b", "c") as network:
        a, b, c = network.hosts.values()
        with RedisServer(place=a) as server:
            b.popen(twistd_command("--port", "0", "--engine", server.url))
            network.partition(a, b)
            ...
            network.heal()
"""

from __future__ import annotations

import functools
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support.guarded import Guarded
from support.resp import PATIENCE
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.threads import deferToThread
from zope.interface import implementer

__all__ = ["Host", "Network", "why_not"]

AGENT = Path(__file__).with_name("namespace_agent.py")

#: In this process's user namespace, and in one of its own.
ROOTED = ("unshare", "--net")
ROOTLESS = ("unshare", "--user", "--map-root-user", "--net")
#: What a network is made of.
PROBE = "ip link add name a0 type veth peer name b0 && ip link add name c0 type bridge"
#: No card has it: packets to it are on the cable, and nobody takes them.
NOWHERE = "02:00:00:00:ff:ff"


@functools.cache
def _why_not(way: tuple[str, ...]) -> str:
    try:
        done = subprocess.run([*way, "sh", "-c", PROBE], capture_output=True, timeout=PATIENCE, check=False)
    except FileNotFoundError:
        return "no unshare is installed"
    text = done.stderr.decode("utf-8", "replace").strip()
    return "" if done.returncode == 0 else text or f"{way[0]} ended with {done.returncode}"


def why_not(rootless: bool | None = None) -> str:
    """Why no network can be made here; empty if one can.

    :param rootless: only with a user namespace, or only without; in any way when it is ``None``.
    """
    ways = [way for way, is_rootless in ((ROOTED, False), (ROOTLESS, True)) if rootless in (None, is_rootless)]
    reasons = [_why_not(way) for way in ways]
    return "" if "" in reasons else f"no network namespaces here: {'; '.join(reasons)}"


class Host:
    """A namespace with one network card; made by :class:`Network`.

    :ivar address: of its card.
    """

    def __init__(self, name: str, number: int, agent: Agent):
        self.name = name
        self.address = f"10.77.0.{number}"
        self.card = f"02:00:00:00:00:{number:02x}"
        self.plug = f"h{number}"
        self.agent = agent
        self._started: list[Guarded] = []

    def words(self, command: Sequence[object]) -> list[str]:
        """The command line that runs ``command`` here; its process is the command's own."""
        return [*self.agent.entering, *(str(word) for word in command)]

    def run(self, *command: object, text: str = "") -> str:
        """Run a program here to its end; its output.

        :raises RuntimeError: when it fails, with what it said.
        """
        done = subprocess.run(
            self.words(command), input=text, capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr or done.stdout}")
        return done.stdout

    def popen(self, command: Sequence[object], **more: Any) -> Guarded:
        """Start a program here, which is killed with the network at the latest.

        :param more: as for :class:`subprocess.Popen`.
        """
        self._started.append(Guarded(self.words(command), **more))
        return self._started[-1]

    def socket(self) -> socket.socket:
        """A new TCP socket of this host, for this process: to connect, or to listen with."""
        return self.agent.socket()

    def connect(self, address: str, port: int, timeout: float = PATIENCE) -> socket.socket:
        """A connection from here; blocks."""
        made = self.socket()
        try:
            made.settimeout(timeout)
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def endpoint(self, address: str, port: int, timeout: float = PATIENCE) -> Endpoint:
        """For Twisted's clients: connects from here."""
        return Endpoint(self, address, port, timeout)

    def end(self) -> None:
        """End all that :meth:`popen` started."""
        for process in self._started:
            process.end()
        self._started.clear()


@implementer(IStreamClientEndpoint)
class Endpoint:
    """A server as one host reaches it."""

    def __init__(self, host: Host, address: str, port: int, timeout: float):
        self._host, self._address, self._port, self._timeout = host, address, port, timeout

    def connect(self, factory: Any) -> Deferred[Any]:
        """Connect in a thread; fires with the protocol."""
        from twisted.internet import reactor

        def adopt(made: socket.socket) -> Any:
            built: list[Any] = []
            adopted = Factory()
            adopted.noisy = False

            def build(address: Any) -> Any:
                built.append(factory.buildProtocol(address))
                return built[-1]

            adopted.buildProtocol = build
            with made:
                reactor.adoptStreamConnection(made.fileno(), socket.AF_INET, adopted)  # type: ignore[attr-defined]
            return built[0]

        return deferToThread(self._host.connect, self._address, self._port, self._timeout).addCallback(adopt)


class Agent:
    """The process that keeps a namespace.

    :param words: that make the namespace.
    :param rootless: whether it is within a user namespace.
    """

    def __init__(self, words: Sequence[str], rootless: bool):
        self._lock = threading.Lock()
        self._ours, theirs = socket.socketpair()
        self._ours.settimeout(PATIENCE)
        with theirs:
            self._process = Guarded([*words, sys.executable, "-S", "-E", AGENT], stdin=theirs)
        try:
            self._ours.recv(1)
        except BaseException:
            self.end()
            raise
        self.pid = self._process.pid
        of = f"/proc/{self.pid}/ns"
        user = [f"--user={of}/user", "--preserve-credentials"] if rootless else []
        #: What brings a command into the user namespace alone, to make another network, and into this network.
        self.beside = ["nsenter", *user, "--"] if rootless else []
        self.entering = ["nsenter", *user, f"--net={of}/net", "--"]

    def socket(self) -> socket.socket:
        with self._lock:
            self._ours.sendall(b"+")
            data, (descriptor,), _, _ = socket.recv_fds(self._ours, 1, 1)
        return socket.socket(fileno=descriptor)

    def end(self) -> None:
        self._ours.close()
        self._process.end()


class Network:
    """Hosts of these names, of which each reaches each; within a ``with`` block. The test is skipped where there can be
    none.

    :param rootless: as for :func:`why_not`.
    :ivar hosts: by name.
    """

    def __init__(self, *names: str, rootless: bool | None = None):
        reason = why_not(rootless)
        if reason:
            pytest.skip(reason)
        self._rootless = bool(why_not(False)) if rootless is None else rootless
        self.hosts: dict[str, Host] = {}
        self._names = names
        self._made = ExitStack()

    def __enter__(self) -> Network:
        with self._made as made:
            self._make(made)
            self._made = made.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def partition(self, one: Host, other: Host, *, one_way: bool = False) -> None:
        """Let no packet pass between two hosts; their connections stay, as if nobody answered.

        :param one_way: whether only those from ``one`` to ``other`` are lost.
        """
        self._route(one, other, NOWHERE)
        if not one_way:
            self._route(other, one, NOWHERE)

    def isolate(self, host: Host) -> None:
        """Let no packet pass between a host and any other."""
        for other in self.hosts.values():
            if other is not host:
                self.partition(host, other)

    def unplug(self, host: Host) -> None:
        """Pull the cable of a host, which it notices: its card has no carrier."""
        self._on_switch(f"link set {host.plug} down")

    def heal(self, one: Host | None = None, other: Host | None = None) -> None:
        """Undo what was done between two hosts, between a host and all, or everywhere, cables included."""
        hosts = self.hosts.values()
        for first in hosts:
            for second in hosts:
                pair = {first, second}
                if first is not second and (one is None or one in pair) and (other is None or other in pair):
                    self._route(first, second, second.card)
            if one in (None, first):
                self._on_switch(f"link set {first.plug} up")

    def _route(self, source: Host, target: Host, card: str) -> None:
        self._ip(source.agent, f"neigh replace {target.address} lladdr {card} dev eth0 nud permanent")

    def _on_switch(self, *lines: str) -> None:
        self._ip(self._switch, *lines)

    def _ip(self, agent: Agent, *lines: str) -> None:
        words = [*agent.entering, "ip", "-batch", "-"]
        done = subprocess.run(
            words, input="\n".join(lines) + "\n", capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{lines}: {done.stderr}")

    def _make(self, made: ExitStack) -> None:
        self._switch = Agent(ROOTLESS if self._rootless else ROOTED, self._rootless)
        made.callback(self._switch.end)
        self._on_switch("link add name switch type bridge", "link set switch up")
        for number, name in enumerate(self._names, 1):
            agent = Agent([*self._switch.beside, *ROOTED], self._rootless)
            made.callback(agent.end)
            self.hosts[name] = host = Host(name, number, agent)
            made.callback(host.end)
            self._on_switch(
                f"link add name {host.plug} type veth peer name eth0 address {host.card} netns {agent.pid}",
                f"link set {host.plug} master switch up",
            )
            self._ip(agent, "link set lo up", f"addr add {host.address}/24 dev eth0", "link set eth0 up")
        self.heal()
