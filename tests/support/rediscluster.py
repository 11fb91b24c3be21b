"""A Redis Cluster of three masters, or more, with replicas where they are wanted."""

from __future__ import annotations

import binascii
from contextlib import ExitStack, suppress
from itertools import count
from typing import Any

from support.ports import unused_port
from support.redisreplication import start_all
from support.redisserver import HERE, Place, RedisServer
from support.resp import PATIENCE, ReplyError
from support.waiting import wait_until_blocking

__all__ = ["SLOTS", "Cluster", "slot_of"]

SLOTS = 16384


def slot_of(key: str | bytes) -> int:
    """The slot of a key; of what is between its first braces, if that is anything."""
    name = key if isinstance(key, bytes) else key.encode()
    start = name.find(b"{")
    end = name.find(b"}", start + 1) if start >= 0 else -1
    return binascii.crc_hqx(name[start + 1 : end] if end > start + 1 else name, 0) % SLOTS


class Cluster:
    """Masters that share the slots evenly, and replicas of them; within a ``with`` block, in which all agree at first.

    ``servers[0]`` to ``servers[masters - 1]`` are the masters, then comes the first replica of each, and so on.

    :param replicas: of each master.
    :param node_timeout: seconds without an answer until the others take a server for dead.
    :param places: the network of each server.
    :param more: as for each :class:`~support.redisserver.RedisServer`.
    """

    def __init__(
        self,
        masters: int = 3,
        replicas: int = 0,
        *,
        node_timeout: float = 1.0,
        places: tuple[Place, ...] = (),
        **more: Any,
    ):
        self._masters = masters
        self.servers: list[RedisServer] = []
        with ExitStack() as made:
            for place in places or (HERE,) * (masters * (replicas + 1)):
                settings = {
                    "cluster_enabled": "yes",
                    "cluster_config_file": "nodes.conf",
                    # Of its own: 10,000 above the other it would be among those that the system gives.
                    "cluster_port": unused_port(),
                    "cluster_node_timeout": round(node_timeout * 1000),
                    "cluster_replica_validity_factor": 0,
                    # None leaves its master for one that has lost all of its own.
                    "cluster_allow_replica_migration": "no",
                }
                self.servers.append(RedisServer(place=place, **{**settings, **more}))
                made.callback(self.servers[-1].remove)
            self._made = made.pop_all()

    def __enter__(self) -> Cluster:
        try:
            self._form()
        except BaseException:
            self._made.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The address of each server."""
        return [server.address for server in self.servers]

    def id_of(self, server: RedisServer) -> str:
        """The name of a server within the cluster."""
        return str(server.call("CLUSTER", "MYID"))

    def view(self, server: RedisServer) -> dict[str, tuple[set[str], str, list[tuple[int, int]]]]:
        """The nodes as a server sees them, by id: flags, the master's id or ``-``, slots from and to."""
        found = {}
        for line in server.call("CLUSTER", "NODES").splitlines():
            name, _address, flags, master, _sent, _got, _epoch, _link, *slots = line.split()
            ranges = [one.split("-") for one in slots if not one.startswith("[")]
            found[name] = (set(flags.split(",")), master, [(int(one[0]), int(one[-1])) for one in ranges])
        return found

    def owner_of(self, slot: int) -> RedisServer:
        """The master that has a slot, in its own eyes."""
        for server in self.servers:
            if not server.is_running or server.is_paused:
                continue
            flags, _, slots = self.view(server)[self.id_of(server)]
            if "master" in flags and any(first <= slot <= last for first, last in slots):
                return server
        raise LookupError(f"no server that runs has the slot {slot}")

    def tag_of(self, server: RedisServer) -> str:
        """A short text whose slot is this master's: ``{text}`` in a key brings the key there."""
        _, _, slots = self.view(server)[self.id_of(server)]
        return next(text for text in map(str, count()) if any(first <= slot_of(text) <= last for first, last in slots))

    def begin_move(self, slot: int, to: RedisServer) -> RedisServer:
        """Open a slot for its move: what is not there any more is asked of ``to`` (``ASK``); the owner until then."""
        source = self.owner_of(slot)
        to.call("CLUSTER", "SETSLOT", slot, "IMPORTING", self.id_of(source))
        source.call("CLUSTER", "SETSLOT", slot, "MIGRATING", self.id_of(to))
        return source

    def move_keys(self, slot: int, source: RedisServer, to: RedisServer) -> int:
        """Move the keys of a slot that is open; the number of keys."""
        moved = 0
        login = ["AUTH", source.password] if source.password else []
        while keys := source.call("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.call("MIGRATE", *to.address, "", 0, round(PATIENCE * 1000), *login, "KEYS", *keys)
            moved += len(keys)
        return moved

    def finish_move(self, slot: int, to: RedisServer) -> None:
        """Give an open slot to its new owner, and wait until all servers that run know."""
        name = self.id_of(to)
        others = [server for server in self._awake() if server is not to]
        for server in [to, *others]:
            # A replica hears of it from its master.
            with suppress(ReplyError):
                server.call("CLUSTER", "SETSLOT", slot, "NODE", name)

        def known() -> bool:
            return all(
                any(first <= slot <= last for first, last in self.view(server)[name][2]) for server in self._awake()
            )

        wait_until_blocking(known, f"a move of slot {slot}", PATIENCE)

    def move_slot(self, slot: int, to: RedisServer) -> int:
        """Move a slot with its keys to another master, as a reshard does; the number of keys."""
        source = self.begin_move(slot, to)
        moved = self.move_keys(slot, source, to)
        self.finish_move(slot, to)
        return moved

    def replicas_of(self, master: RedisServer) -> list[RedisServer]:
        """The servers that say they are its replicas."""
        name = self.id_of(master)
        return [server for server in self._awake() if self.view(server)[self.id_of(server)][1] == name]

    def failover(self, replica: RedisServer, how: str = "") -> None:
        """Make a replica the master of its slots, and wait until all know; nothing is lost but with a ``how``.

        :param how: ``FORCE`` without the old master's help, ``TAKEOVER`` without anybody's.
        """
        replica.call("CLUSTER", "FAILOVER", *([how] if how else []))
        name = self.id_of(replica)
        wait_until_blocking(
            lambda: all("master" in self.view(server)[name][0] for server in self._awake()), "a failover", PATIENCE
        )
        self.wait_until_ok()

    def wait_until_ok(self) -> None:
        """Wait until each server that runs says ``cluster_state:ok``, all agree who is whose replica and has which
        slots, and each replica is in sync."""
        wait_until_blocking(
            lambda: all(map(is_ok, self._awake())) and self._agreed(), "a cluster that is well", PATIENCE
        )

    def wait_until_down(self, server: RedisServer) -> None:
        """Wait until this one says ``cluster_state:fail``, as it does when slots have no master."""
        wait_until_blocking(lambda: state(server) == "fail", "a cluster that is down", PATIENCE)

    def _awake(self) -> list[RedisServer]:
        return [server for server in self.servers if server.is_running and not server.is_paused]

    def _form(self) -> None:
        start_all(self.servers)
        names = [self.id_of(server) for server in self.servers]
        for number, server in enumerate(self.servers):
            # Otherwise they would all have the same one, and settle that first.
            server.call("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            for other in self.servers[:number]:
                server.call("CLUSTER", "MEET", *other.address, other.setting("cluster-port"))
        bounds = [SLOTS * number // self._masters for number in range(self._masters + 1)]
        for number in range(self._masters):
            self.servers[number].call("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)

        def met() -> bool:
            views = [self.view(server) for server in self.servers]
            return all(
                set(view) == set(names) and not any("handshake" in one[0] for one in view.values()) for view in views
            )

        wait_until_blocking(met, "servers that know one another", PATIENCE)
        for number, server in enumerate(self.servers[self._masters :]):
            server.call("CLUSTER", "REPLICATE", names[number % self._masters])
        self.wait_until_ok()

    def _agreed(self) -> bool:
        views = [
            {name: (master, slots) for name, (_, master, slots) in self.view(server).items()}
            for server in self._awake()
        ]
        return all(view == views[0] for view in views)


def state(server: RedisServer) -> str:
    text = str(server.call("CLUSTER", "INFO"))
    return text.partition("cluster_state:")[2].split()[0]


def is_ok(server: RedisServer) -> bool:
    """Whether a server says the cluster is well and, being a replica, has its master's data."""
    if state(server) != "ok":
        return False
    own = server.info("replication")
    return own["role"] == "master" or own["master_link_status"] == "up"
