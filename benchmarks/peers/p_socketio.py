"""python-socketio under uvicorn and uvloop, WebSocket transport.

"ping" answers, "publish" sends to the others. Argument: PORT.
"""

import sys

import orjson
import socketio
import uvicorn


class Json:
    """orjson, as the other peers have it, in the form that python-socketio asks for."""

    loads = staticmethod(orjson.loads)

    @staticmethod
    def dumps(value, **options):
        return orjson.dumps(value).decode()


server = socketio.AsyncServer(async_mode="asgi", json=Json, cors_allowed_origins="*", http_compression=False)


@server.event
async def ping(sid, request):
    return {"result": request["zHorizontal"], "_requestId": request["_requestId"]}


@server.event
async def publish(sid, message):
    await server.emit("published", message, skip_sid=sid)


uvicorn.run(
    socketio.ASGIApp(server),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    log_level="error",
    ws="websockets-sansio",
    ws_per_message_deflate=False,
    backlog=4096,
    loop="uvloop",
)
