"""websockets on uvloop. /rpc answers, /fan sends to the others. Argument: PORT."""

import asyncio
import sys

import orjson
import uvloop
from websockets.asyncio.server import broadcast, serve

peers = set()


async def serve_one(ws):
    if ws.request.path == "/rpc":
        async for message in ws:
            request = orjson.loads(message)
            await ws.send(
                orjson.dumps({"result": request["zHorizontal"], "_requestId": request["_requestId"]}).decode()
            )
        return
    peers.add(ws)
    try:
        async for message in ws:
            broadcast(peers - {ws}, message)
    finally:
        peers.discard(ws)


async def main():
    async with serve(serve_one, "127.0.0.1", int(sys.argv[1]), compression=None, backlog=4096):
        await asyncio.Future()


uvloop.run(main())
