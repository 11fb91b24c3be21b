"""aiohttp on uvloop. /rpc answers, /fan sends to the others. Argument: PORT."""

import sys

import orjson
import uvloop
from aiohttp import web

peers = set()


async def serve_one(request):
    ws = web.WebSocketResponse(compress=False)
    await ws.prepare(request)
    if request.path == "/rpc":
        async for message in ws:
            asked = orjson.loads(message.data)
            await ws.send_str(
                orjson.dumps({"result": asked["zHorizontal"], "_requestId": asked["_requestId"]}).decode()
            )
        return ws
    peers.add(ws)
    try:
        async for message in ws:
            for peer in peers:
                if peer is not ws:
                    await peer.send_str(message.data)
    finally:
        peers.discard(ws)
    return ws


app = web.Application()
app.router.add_get("/rpc", serve_one)
app.router.add_get("/fan", serve_one)
web.run_app(
    app,
    host="127.0.0.1",
    port=int(sys.argv[1]),
    print=None,
    access_log=None,
    loop=uvloop.new_event_loop(),
    backlog=4096,
)
