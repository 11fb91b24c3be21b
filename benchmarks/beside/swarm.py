"""Many clients in one process, and the measurements that need them: coming back, and presence."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine
from typing import Any

import herd
from living.clients import spent

from beside import subjects
from beside.talks import Talk

__all__ = ["gone", "presence", "storm"]

#: Connections that are being opened at once.
AT_ONCE = 400
#: Rooms of those who come back, and messages that each has missed.
ROOMS, MISSED = 20, 10
#: Seconds that anything may take.
PATIENCE = 60.0

Numbers = dict[str, Any]


def _run(doing: Coroutine[Any, Any, Any]) -> Any:
    """Run it, on uvloop where that is: clients shall be no dearer than servers."""
    try:
        from uvloop import new_event_loop
    except ImportError:
        return asyncio.run(doing)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        return runner.run(doing)


class Client(asyncio.Protocol):
    """One connection.

    :param heard: called with each text and with how to say something.
    """

    def __init__(self, port: int, path: str, headers: str, opened: Callable[..., None], heard: Callable[..., None]):
        self._request = (
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n{headers}\r\n"
        ).encode()
        self._opened, self._heard = opened, heard
        self._rest = b""
        self.is_open = False
        loop = asyncio.get_running_loop()
        #: When the handshake is over, and when the connection is.
        self.ready, self.lost = loop.create_future(), loop.create_future()
        self._transport: Any = None

    def connection_made(self, transport: Any) -> None:
        """Ask for the WebSocket."""
        self._transport = transport
        transport.write(self._request)

    def connection_lost(self, reason: BaseException | None) -> None:
        """It is over."""
        if not self.ready.done():
            self.ready.set_exception(ConnectionError("the server hung up"))
        if not self.lost.done():
            self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take what there is of whole frames."""
        data = self._rest + data
        offset = 0
        if not self.is_open:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._rest = data
                return
            if b" 101 " not in data[:20]:
                self.ready.set_exception(ConnectionError(data[:200].decode(errors="replace")))
                self._transport.abort()
                return
            offset, self.is_open = end + 4, True
            self.ready.set_result(None)
            self._opened(self.say)
        size = len(data)
        while size - offset >= 2:
            length, start = data[offset + 1], offset + 2
            if length == 126:
                start += 2
                length = int.from_bytes(data[offset + 2 : start], "big")
            elif length == 127:
                start += 8
                length = int.from_bytes(data[offset + 2 : start], "big")
            if start > size or start + length > size:
                break
            opcode, payload = data[offset] & 15, data[start : start + length]
            offset = start + length
            if opcode in (herd.TEXT, 2):
                self._heard(payload.decode(), self.say)
            elif opcode == herd.PING:
                self._transport.write(herd.masked(herd.PONG, payload))
            elif opcode == herd.CLOSE:
                self._transport.close()
        self._rest = data[offset:]

    def say(self, text: str) -> None:
        """Send a text."""
        self._transport.write(herd.masked(herd.TEXT, text.encode()))

    def close(self) -> None:
        """End it without a word."""
        self._transport.abort()


async def _connect(port: int, path: str, headers: str, opened: Any, heard: Any) -> Client:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: Client(port, path, headers, opened, heard), "127.0.0.1", port)
    await client.ready
    return client


async def _until(condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
    """Wait until something holds; whether it does."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        await asyncio.sleep(0.005)
    return True


async def _needs(condition: Callable[[], bool], what: str) -> None:
    if not await _until(condition):
        raise RuntimeError(f"not within {PATIENCE:.0f} s: {what}")


def _filled(template: str, room: int, number: int) -> str:
    return template.replace("%T", "0").replace("%N", str(number)).replace("%R", str(room))


async def _publish(pair: subjects.Pair, node: int, said: list[tuple[int, int]]) -> None:
    """Publish what rooms are to hear, each when the one before is answered."""
    subject, port = pair.subject, pair.nodes[node].port
    if subject.posts:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for room, number in said:
            body = _filled(subject.say, room, number)
            place = _filled(subject.posts, room, number)
            head = f"POST {place} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
            writer.write((head + body).encode())
            answer = (await reader.readuntil(b"\r\n\r\n")).decode()
            if " 20" not in answer[:14]:
                raise RuntimeError(answer)
            length = answer.lower().partition("content-length: ")[2].partition("\r")[0]
            await reader.readexactly(int(length or 0))
        writer.close()
        return
    answers: asyncio.Queue[str] = asyncio.Queue()
    client = await _connect(
        port, pair.path(node), "", lambda say: None, lambda text, say: None if text == "2" else answers.put_nowait(text)
    )
    for place, step in enumerate(subject.opening):
        if place % 2:
            client.say(step)
        else:
            for _ in range(int(step)):
                await answers.get()
    for room, number in said:
        client.say(_filled(subject.say, room, number))
        answer = await asyncio.wait_for(answers.get(), PATIENCE)
        if '"error"' in answer:
            raise RuntimeError(answer)
    client.close()


class _Crowd:
    """Clients that come back."""

    def __init__(self, pair: subjects.Pair, count: int):
        self.pair = pair
        self.talks: list[Talk] = [pair.subject.talk(number % ROOMS) for number in range(count)]
        self.clients: list[Client] = []
        self._gate = asyncio.Semaphore(AT_ONCE)

    async def connect(self, node: int) -> None:
        """Connect all to a node; returns when all are connected."""
        self.clients = await asyncio.gather(*[self._one(node, talk) for talk in self.talks])

    async def _one(self, node: int, talk: Talk) -> Client:
        port, path = self.pair.nodes[node].port, self.pair.path(node).replace("%R", str(talk.room))
        async with self._gate:
            while True:
                talk.begin()
                try:
                    return await _connect(port, path, talk.headers, talk.opened, talk.heard)
                except OSError:
                    await asyncio.sleep(0.1)


async def _storm(pair: subjects.Pair, count: int, is_killed: bool) -> Numbers:
    crowd = _Crowd(pair, count)
    talks = crowd.talks
    await crowd.connect(0)
    await _needs(lambda: all(talk.is_in for talk in talks), "all are in")
    await asyncio.sleep(0.5)
    # Some products know where they are by a message only.
    await _publish(pair, 1, [(room, 0) for room in range(ROOMS)])
    if not await _until(lambda: all(talk.got for talk in talks), 10):
        raise RuntimeError(f"{sum(not talk.got for talk in talks)} of {count} have not heard the first message")
    subjects.end(pair.nodes[0], is_killed)
    await _until(lambda: all(client.lost.done() for client in crowd.clients), 5)
    for client in crowd.clients:
        client.close()
    for talk in talks:
        talk.is_again = True
        talk.got.clear()
    numbers = range(1, MISSED + 1)
    await _publish(pair, 1, [(room, number) for number in numbers for room in range(ROOMS)])
    wanted = set(numbers)
    before, begun = [spent(pid) for pid in pair.pids[1:]], time.monotonic()
    running = asyncio.ensure_future(crowd.connect(1))
    took: list[float] = []
    left = talks
    for talk in talks:
        talk.is_in = False
    while left and time.monotonic() - begun < PATIENCE:
        await asyncio.sleep(0.005)
        still = []
        for talk in left:
            waits = talk.resumes and talk.is_back is not False
            if talk.is_in and (not waits or wanted <= talk.got):
                took.append(time.monotonic() - begun)
            else:
                still.append(talk)
        if len(still) == len(left) and running.done() and time.monotonic() - begun > max(10, *took[-1:], 0) + 5:
            # Nothing more comes.
            break
        left = still
    after = [spent(pid) for pid in pair.pids[1:]]
    running.cancel()
    await asyncio.sleep(1)
    for client in crowd.clients:
        client.close()
    place = int(count * 0.99) - 1
    return {
        "seconds": took[place] if len(took) > place else PATIENCE,
        "back": len(took),
        "not_recovered": sum(not wanted <= talk.got for talk in talks),
        "lost": sum(len(wanted - talk.got) for talk in talks),
        "node_ms": (after[0] - before[0]) * 1e3 / count,
        "redis_ms": (after[1] - before[1]) * 1e3 / count,
    }


def storm(pair: subjects.Pair, count: int, is_killed: bool) -> Numbers:
    """Clients of a node that is killed, or stopped, come back at the other one, each having missed ten messages.

    ``seconds`` until 99 % are in and have all they missed, or are in without; ``not_recovered`` clients; messages that
    were ``lost``; milliseconds of the processor for each client.
    """
    return _run(_storm(pair, count, is_killed))


class _Members:
    """Members of one topic of zComm, who are told of each other.

    :ivar seen: the newest count of connections that each was told.
    """

    def __init__(self, pair: subjects.Pair, nodes: list[int]):
        self.pair = pair
        self.nodes = nodes
        self.seen = [0] * len(nodes)
        self.replies = self.events = 0
        self.clients: list[Client] = []

    async def connect(self) -> None:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(number: int, node: int) -> Client:
            async with gate:
                return await _connect(
                    self.pair.nodes[node].port,
                    self.pair.path(node),
                    "",
                    lambda say: None,
                    lambda text, say: self._heard(number, text),
                )

        self.clients = await asyncio.gather(*[one(number, node) for number, node in enumerate(self.nodes)])

    def _heard(self, number: int, text: str) -> None:
        said = json.loads(text)
        if "error" in said:
            raise RuntimeError(text)
        if "_requestId" in said:
            self.replies += 1
            said = said["result"].get("presence", said)
        elif said["event"] == "presence":
            self.events += 1
        if "connections" in said:
            self.seen[number] = said["connections"]

    def ask(self, key: str, **more: Any) -> None:
        asked = json.dumps({"zKey": key, "zHorizontal": {"topic": "crowd:1", **more}, "_requestId": 1})
        for client in self.clients:
            client.say(asked)

    def close(self) -> None:
        for client in self.clients:
            client.close()


async def _presence(pair: subjects.Pair, count: int) -> dict[str, Numbers]:
    watching, members = _Members(pair, [0, 1]), _Members(pair, [number % 2 for number in range(count)])
    await watching.connect()
    await members.connect()
    watching.ask("zSubscribe", presence=True)
    await _needs(lambda: watching.seen == [2, 2], "both watchers see each other")
    found = {}
    for case, key, more, wanted in (
        (f"{count:,} enter", "zSubscribe", {"presence": True}, count + 2),
        (f"{count:,} leave", "zUnsubscribe", {}, 2),
    ):
        members.events = members.replies = watching.events = 0
        before, begun = [spent(pid) for pid in pair.pids], time.monotonic()
        members.ask(key, **more)
        await _needs(lambda wanted=wanted: watching.seen == [wanted, wanted], case)  # type: ignore[misc]
        took = time.monotonic() - begun
        await _needs(lambda: members.replies == count, "all are answered")
        await asyncio.sleep(0.5)
        used = [(spent(pid) - was) * 1e6 / count for pid, was in zip(pair.pids, before, strict=True)]
        found[case] = {
            "seconds": took,
            "events": members.events / count,
            "watched": watching.events / 2,
            "node_us": used[0] + used[1],
            "redis_us": used[2],
        }
    members.close()
    watching.close()
    return found


def presence(pair: subjects.Pair, count: int) -> dict[str, Numbers]:
    """Members enter a topic with presence at both nodes at once, and leave it.

    ``seconds`` until both nodes tell of all of them; ``events`` of presence that each of them has got, and those who
    only watch (``watched``); microseconds of the
    processor for each member, of both nodes together and of Redis.
    """
    return _run(_presence(pair, count))


async def _gone(pair: subjects.Pair, count: int) -> Numbers:
    watching, members = _Members(pair, [1]), _Members(pair, [0] * count)
    await watching.connect()
    await members.connect()
    watching.ask("zSubscribe", presence=True)
    members.ask("zSubscribe")
    await _needs(lambda: watching.seen == [count + 1], "the watcher sees all")
    before, begun = [spent(pid) for pid in pair.pids[1:]], time.monotonic()
    subjects.end(pair.nodes[0], True)
    await _needs(lambda: watching.seen == [1], "the watcher sees nobody")
    took = time.monotonic() - begun
    after = [spent(pid) for pid in pair.pids[1:]]
    watching.close()
    members.close()
    return {"seconds": took, "node_ms": (after[0] - before[0]) * 1e3, "redis_ms": (after[1] - before[1]) * 1e3}


def gone(pair: subjects.Pair, count: int) -> Numbers:
    """Seconds from the ``kill -9`` of a node until the other tells that its members are gone."""
    return _run(_gone(pair, count))
