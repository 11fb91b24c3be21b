"""Topics beside rooms of others, in one run: ``python benchmarks/topics.py [--seconds 3] [--rounds 3] [server …]``

Deliveries to a thousand subscribers of one topic; messages published with history; clients that come back and get what
they missed. zComm runs as its users run it: authentication, a policy and limits in place, a hundred messages kept.
Beside it: its own broadcasts, without a policy; socket.io on Node (rooms, nothing kept); and Nchan in nginx (a hundred
messages kept). Then, for zComm alone: 2,000 users who come into one topic within a second, and the presence events that
each of them gets.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cache
import load
import run
import servers
from autobahn.asyncio.websocket import WebSocketClientFactory, WebSocketClientProtocol
from servers import FAN_OPTIONS, Running, Server, zcomm

#: What is published: the news that broadcasts are measured with.
DATA = f'{{"type":"update","data":{{"model":"Users","id":%d,"values":{servers.VALUES}}}}}'
SUBSCRIBE = '{"zKey":"zSubscribe","zHorizontal":{"topic":"room:1"},"_requestId":1}'
PUBLISH = f'{{"zKey":"zPublish","zHorizontal":{{"topic":"room:1","data":{DATA}}}}}'
#: Users who come at once, and within how many seconds.
CROWD, WITHIN = 2000, 1.0


def nchan(module: Path, place: Path) -> Server:
    """Nchan as a server of these benchmarks: one worker, a channel that keeps a hundred messages."""
    template, config = place / "nginx.conf.in", place / "nginx.conf"
    template.write_text(
        f"load_module {module};\n"
        "daemon off; master_process off; worker_processes 1; pid nginx.pid; error_log stderr crit;\n"
        "worker_rlimit_nofile 60000;\n"
        "events { worker_connections 20000; }\n"
        "http {\n"
        "  access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;\n"
        "  uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n"
        "  server { listen 127.0.0.1:PORT backlog=4096;\n"
        "    location = /room { nchan_pubsub websocket; nchan_channel_id room; nchan_message_buffer_length 100;\n"
        "      nchan_message_timeout 1h; nchan_subscriber_first_message newest; }\n"
        "  }\n"
        "}\n"
    )
    script = f'sed "s/127.0.0.1:PORT/127.0.0.1:$0/" {template} > {config}; exec nginx -p {place} -c {config}'
    return Server("nchan", ("sh", "-c", script, "PORT"), fan="/room", news=DATA)


def known(place: Path) -> dict[str, Server]:
    """Every server that can be measured here, by name."""
    kinds, policy = place / "kinds.yaml", place / "policy.yaml"
    kinds.write_text(servers.KINDS)
    policy.write_text(servers.POLICY)
    plain = zcomm("zcomm-broadcast")
    topics = zcomm("zcomm", "--topics", str(kinds), "--policy", str(policy), *servers.PUBLISHES)
    of_topics: dict[str, Any] = {"opening": {"WSLOAD_HELLO": SUBSCRIBE, "WSLOAD_READY": "1"}, "news": PUBLISH}
    found = [
        Server("zcomm", topics.command, rpc=topics.rpc, fan=topics.fan, ours=True, **of_topics),
        Server(
            "zcomm-broadcast",
            (*plain.command, *FAN_OPTIONS),
            rpc=plain.rpc,
            fan=plain.fan,
            news=servers.COMMAND,
            ours=True,
        ),
    ]
    script = cache.node_script("p_socketio.mjs", "socket.io")
    if script is not None:
        found.append(
            Server(
                "socket.io",
                ("node", str(script), "PORT"),
                fan="/socket.io/?EIO=4&transport=websocket",
                news=f'42["publish",{{"room":"room:1","data":{DATA}}}]',
                # The opening of the session and of the namespace; joining has no answer.
                opening={"WSLOAD_HELLO": "40", "WSLOAD_READY": "2", "WSLOAD_THEN": '42["join","room:1"]'},
            )
        )
    module = cache.nchan_module()
    if module is not None:
        found.append(nchan(module, place))
    return {server.name: server for server in found}


def fanout(target: Running, seconds: float) -> dict[str, load.Numbers]:
    """Deliveries a second to a thousand subscribers, one publisher with four messages out."""
    server = target.server
    return {"1000 subscribers": load.wsload(target, "fanout", server.fan, 1000, 4, seconds, server.news)}


def publish(target: Running, seconds: float) -> dict[str, load.Numbers]:
    """Messages a second that are kept and answered, of ten connections with eight out each; nobody hears them."""
    data = DATA.replace("%d", "%1$d")
    said = f'{{"zKey":"zPublish","zHorizontal":{{"topic":"long:%1$d","data":{data}}},"_requestId":1}}'
    return {"10x8": load.wsload(target, "rpc", target.server.rpc, 10, 8, seconds, said, WSLOAD_RANGE="100", **_PLAIN)}


#: No opening: these connections ask and are answered.
_PLAIN = {"WSLOAD_HELLO": "", "WSLOAD_READY": "0"}


def resume(target: Running, seconds: float) -> dict[str, load.Numbers]:
    """Replies a second with all that was missed: ten messages, and a thousand."""
    results = {}
    for topic, missed, depth in (("room:r", 10, 8), ("long:r", 1000, 1)):
        position = asyncio.run(_filled(target, topic, missed))
        since = {"epoch": position["epoch"], "offset": position["offset"] - missed}
        asked = {"zKey": "zSubscribe", "zHorizontal": {"topic": topic, "since": since}, "_requestId": 1}
        said = json.dumps(asked)
        results[f"of {missed}"] = load.wsload(target, "rpc", target.server.rpc, 10, depth, seconds, said, **_PLAIN)
    return results


class _Client(WebSocketClientProtocol):  # type: ignore[misc]  # Autobahn has no types
    def onConnect(self, response: Any) -> None:
        self.messages: asyncio.Queue[Any] = asyncio.Queue()

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        self.messages.put_nowait(json.loads(payload))

    async def call(self, key: str, horizontal: Any) -> Any:
        self.sendMessage(json.dumps({"zKey": key, "zHorizontal": horizontal, "_requestId": 1}).encode())
        while True:
            message = await self.messages.get()
            if "_requestId" in message:
                if "error" in message:
                    raise RuntimeError(message["error"])
                return message["result"]


async def _connected(target: Running) -> _Client:
    factory = WebSocketClientFactory(f"ws://127.0.0.1:{target.port}/?token={target.token}")
    factory.protocol = _Client
    _, client = await asyncio.get_running_loop().create_connection(factory, "127.0.0.1", target.port)
    await client.is_open
    return client  # type: ignore[no-any-return]


async def _filled(target: Running, topic: str, count: int) -> Any:
    client = await _connected(target)
    for number in range(count):
        position = await client.call("zPublish", {"topic": topic, "data": json.loads(DATA % number)})
    client.sendClose()
    return position


async def _crowd(target: Running) -> load.Numbers:
    """Presence events for each of those who come into one topic within a second."""
    clients = []
    for _ in range(0, CROWD, 50):
        clients += await asyncio.gather(*[_connected(target) for _ in range(50)])
    subscribe = {"topic": "crowd:1", "presence": True}
    begun = time.monotonic()
    for number, client in enumerate(clients):
        asked = {"zKey": "zSubscribe", "zHorizontal": subscribe, "_requestId": 1}
        client.sendMessage(json.dumps(asked).encode())
        if number % 20 == 0:
            await asyncio.sleep(max(0.0, begun + number * WITHIN / CROWD - time.monotonic()))
    took = time.monotonic() - begun
    await asyncio.sleep(2)
    counts = []
    for client in clients:
        events = 0
        while not client.messages.empty():
            events += client.messages.get_nowait().get("event") == "presence"
        counts.append(events)
    for client in clients:
        client.sendClose()
    return {"most": max(counts), "mean": sum(counts) / len(counts), "seconds": took}


MEASURES = (
    ("fanout", fanout, ("zcomm", "zcomm-broadcast", "socket.io", "nchan")),
    ("publish", publish, ("zcomm",)),
    ("resume", resume, ("zcomm",)),
)


@contextmanager
def _place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zcomm-bench-") as directory:
        yield Path(directory)


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("server", nargs="*", help="those to measure; all when left out")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with _place() as place:
        everyone = known(place)
        names = chosen.server or list(everyone)
        for mode, measure, able in MEASURES:
            samples: run.Samples = {}
            for _ in range(chosen.rounds):
                for name in names:
                    if name not in able or name not in everyone:
                        continue
                    try:
                        with servers.running(everyone[name]) as target:
                            results = measure(target, chosen.seconds)
                    except (RuntimeError, OSError) as error:
                        print(f"{name} is left out: {error}", file=sys.stderr)
                        continue
                    for case, numbers in results.items():
                        samples.setdefault(case, {}).setdefault(name, []).append(numbers)
            print(run.table(mode if mode == "fanout" else "rpc", samples).replace("rpc,", f"{mode},"))
        if "zcomm" in names:
            with servers.running(everyone["zcomm"]) as target:
                told = asyncio.run(_crowd(target))
            print(
                f"presence, {CROWD} users within {told['seconds']:.2f} s: each gets {told['mean']:.1f} events on "
                f"average, {told['most']} at most"
            )


if __name__ == "__main__":
    main()
