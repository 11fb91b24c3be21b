"""Redis servers that copy one another, and the sentinels that choose among them."""

from __future__ import annotations

import secrets
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from support.redisserver import HERE, Place, RedisServer
from support.resp import PATIENCE, ReplyError
from support.waiting import wait_until_blocking

__all__ = ["Replication", "Sentinels", "start_all"]


def start_all(servers: list[RedisServer]) -> None:
    """Start servers at once; each is ready afterwards."""
    with ThreadPoolExecutor(len(servers)) as pool:
        list(pool.map(RedisServer.start, servers))


class Replication:
    """A master, which is ``servers[0]`` at first, and its replicas, all in sync; within a ``with`` block.

    :param places: the networks of the servers, of the master first.
    :param more: as for each :class:`~support.redisserver.RedisServer`.
    """

    def __init__(self, replicas: int = 1, *, places: tuple[Place, ...] = (), **more: Any):
        wheres = places or (HERE,) * (replicas + 1)
        self.servers: list[RedisServer] = []
        with ExitStack() as made:
            for where in wheres:
                self.servers.append(RedisServer(place=where, **more))
                made.callback(self.servers[-1].remove)
            self._made = made.pop_all()

    def __enter__(self) -> Replication:
        try:
            start_all(self.servers)
            for server in self.servers[1:]:
                server.call("REPLICAOF", *self.servers[0].address)
            self.wait_until_in_sync()
        except BaseException:
            self._made.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def master(self) -> RedisServer:
        """The first server that runs and says it is one."""
        return next(server for server in self.servers if server.role() == "master")

    @property
    def replicas(self) -> list[RedisServer]:
        """All others, also those that do not run."""
        master = self.master
        return [server for server in self.servers if server is not master]

    def promote(self, number: int) -> RedisServer:
        """Make a server a master, which no other hears of; the server. Two masters are what a split brain is."""
        server = self.servers[number]
        server.call("REPLICAOF", "NO", "ONE")
        return server

    def demote(self, number: int, of: int | None = None, *, wait: bool = True) -> RedisServer:
        """Make a server the replica of another, which is the first other master if none is named; the server.

        :param wait: until it has all that its master has.
        """
        server = self.servers[number]
        others = [other for other in self.servers if other is not server and other.role() == "master"]
        master = others[0] if of is None else self.servers[of]
        server.call("REPLICAOF", *master.address)
        if wait:
            wait_until_blocking(lambda: follows(server, master), "a replica in sync", PATIENCE)
        return server

    def wait_until_in_sync(self) -> None:
        """Wait until each replica that runs has all that its master has."""
        master = self.master
        running = [server for server in self.servers if server is not master and server.is_running]
        wait_until_blocking(
            lambda: all(server.role() == "master" or follows(server, master) for server in running),
            "replicas in sync",
            PATIENCE,
        )


def follows(replica: RedisServer, master: RedisServer) -> bool:
    """Whether ``replica`` has all that ``master`` has."""
    try:
        own, theirs = (server.info("replication") for server in (replica, master))
    except OSError:
        # A sentinel ends all connections of a server that it gives another role.
        return False
    return (
        own["role"] == "slave"
        and own["master_link_status"] == "up"
        and own["master_replid"] == theirs["master_replid"]
        and own["slave_repl_offset"] == theirs["master_repl_offset"]
    )


class Sentinels:
    """Three sentinels that watch a replication and know one another; within a ``with`` block.

    :param name: of the master, as clients ask for it.
    :param down_after: seconds without an answer until a sentinel takes a server for dead; twice as many for the last.
    :param failover_timeout: seconds that a failover may take; the next begins twice so many seconds after the last one.
    :param quorum: sentinels that have to think so.
    :param password: of the sentinels themselves.
    :param places: the networks of the sentinels.
    :param more: as for each of them, such as ``users``.
    """

    def __init__(
        self,
        replication: Replication,
        *,
        name: str = "zcomm",
        down_after: float = 0.75,
        failover_timeout: float = 1.5,
        quorum: int = 2,
        password: str = "",
        places: tuple[Place, ...] = (HERE,) * 3,
        **more: Any,
    ):
        self.name = name
        self.replication = replication
        self.password = password
        self._down_after, self._timeout, self._quorum = down_after, failover_timeout, quorum
        self.servers: list[RedisServer] = []
        with ExitStack() as made:
            for place in places:
                self.servers.append(RedisServer(place=place, mode="sentinel", password=password, **more))
                made.callback(self.servers[-1].remove)
            self._made = made.pop_all()

    def __enter__(self) -> Sentinels:
        try:
            self._start()
        except BaseException:
            self._made.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._made.close()

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """The address of each sentinel."""
        return [server.address for server in self.servers]

    def master(self, number: int = 0) -> RedisServer:
        """The server that a sentinel says is the master."""
        told = self.servers[number].call("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.name)
        return self._server(told)

    def wait_for_another_master(self, old: RedisServer, timeout: float = PATIENCE) -> RedisServer:
        """Wait until all sentinels that run name another master than ``old``, and it says so itself; the server."""

        def another() -> RedisServer | None:
            asked = [number for number, one in enumerate(self.servers) if one.is_running and not one.is_paused]
            named = {self.master(number) for number in asked}
            return (
                next(iter(named))
                if len(named) == 1 and old not in named and all(one.role() == "master" for one in named)
                else None
            )

        found = wait_until_blocking(another, f"another master than {old.address}", timeout)
        assert found is not None
        return found

    def failover(self) -> RedisServer:
        """Have the sentinels make a replica the master while the old one is well; the new master, as all name it."""
        old = self.master()

        def begin() -> bool:
            try:
                return bool(self.servers[0].call("SENTINEL", "FAILOVER", self.name) == "OK")
            except ReplyError as error:
                # One is under way, or it has not asked the replicas since they answered first.
                if error.code not in ("INPROG", "NOGOODSLAVE"):
                    raise
                return False

        wait_until_blocking(begin, "a failover", PATIENCE)
        return self.wait_for_another_master(old)

    def wait_until_settled(self) -> None:
        """Wait until each sentinel knows all others and all replicas, and every server is well in its eyes.

        After a failover that includes the old master, if it runs.
        """
        running = [server for server in self.servers if server.is_running]
        replicas = sum(server.is_running for server in self.replication.servers) - 1

        def settled(server: RedisServer) -> bool:
            master, others, copies = (
                dict_of(server.call("SENTINEL", "MASTER", self.name)),
                [dict_of(one) for one in server.call("SENTINEL", "SENTINELS", self.name)],
                [dict_of(one) for one in server.call("SENTINEL", "REPLICAS", self.name)],
            )
            good = [one for one in copies if is_well(one) and one["master-link-status"] == "ok"]
            return (
                is_well(master)
                and master["role-reported"] == "master"
                and sum(map(is_well, others)) >= len(running) - 1
                and len(good) >= replicas
            )

        wait_until_blocking(lambda: all(map(settled, running)), "sentinels that know everybody", PATIENCE)

    def _server(self, address: list[str]) -> RedisServer:
        return next(server for server in self.replication.servers if [server.host, str(server.port)] == address)

    def _start(self) -> None:
        master, replicas = self.replication.master, self.replication.replicas
        own = {server: secrets.token_hex(20) for server in self.servers}
        for server in self.servers:
            server.reserve()
        for number, server in enumerate(self.servers):
            # If all took it for dead at once, each would vote for itself, and nobody win before the next round.
            patience = self._down_after * (2 if number == len(self.servers) - 1 else 1)
            lines = [
                f"myid {own[server]}",
                f"monitor {self.name} {master.host} {master.port} {self._quorum}",
                f"down-after-milliseconds {self.name} {round(patience * 1000)}",
                f"failover-timeout {self.name} {round(self._timeout * 1000)}",
                # They would find one another in 2 s, and the replicas in 10.
                *(f"known-replica {self.name} {one.host} {one.port}" for one in replicas),
                *(
                    f"known-sentinel {self.name} {one.host} {one.port} {own[one]}"
                    for one in self.servers
                    if one is not server
                ),
            ]
            if master.password:
                lines.append(f"auth-pass {self.name} {master.password}")
            if self.password:
                lines.append(f"sentinel-pass {self.password}")
            server.set(sentinel=lines)
        start_all(self.servers)
        for server in self.servers:
            # The period of PING is that of new connections, too: shorter than the patience with a server that has just
            # ended all connections. And a fifth of the time in which a replica must have been heard of to be promoted,
            # which is asked each second when its master is dead: no shorter either.
            server.call(
                *(
                    "SENTINEL",
                    "DEBUG",
                    "PING-PERIOD",
                    300,
                    "INFO-PERIOD",
                    300,
                    "PUBLISH-PERIOD",
                    200,
                    "ASK-PERIOD",
                    200,
                ),
                *("TILT-PERIOD", 1000, "ELECTION-TIMEOUT", 2000, "MIN-LINK-RECONNECT-PERIOD", 1000),
            )
        self.wait_until_settled()


def is_well(told: dict[Any, Any]) -> bool:
    """Whether a sentinel thinks well of a server; what that one thought of the master once is no matter."""
    return not {"s_down", "o_down", "disconnected", "failover_in_progress"} & set(told["flags"].split(","))


def dict_of(pairs: list[Any]) -> dict[Any, Any]:
    return dict(zip(pairs[::2], pairs[1::2], strict=True))
