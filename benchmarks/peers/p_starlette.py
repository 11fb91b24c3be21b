"""Starlette on uvicorn and uvloop. /rpc answers, /fan sends to the others. Argument: PORT."""

import sys

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocketDisconnect

peers = set()


async def rpc(ws):
    await ws.accept()
    try:
        while True:
            request = orjson.loads(await ws.receive_text())
            await ws.send_text(
                orjson.dumps({"result": request["zHorizontal"], "_requestId": request["_requestId"]}).decode()
            )
    except WebSocketDisconnect:
        pass


async def fan(ws):
    await ws.accept()
    peers.add(ws)
    try:
        while True:
            message = await ws.receive_text()
            for peer in peers:
                if peer is not ws:
                    await peer.send_text(message)
    except WebSocketDisconnect:
        pass
    finally:
        peers.discard(ws)


uvicorn.run(
    Starlette(routes=[WebSocketRoute("/rpc", rpc), WebSocketRoute("/fan", fan)]),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    log_level="error",
    ws="websockets-sansio",
    ws_per_message_deflate=False,
    backlog=4096,
    loop="uvloop",
)
