"""One of several python-socketio servers on one Redis: rooms, and who publishes to them.

Arguments: PORT, the URL of Redis. ``AsyncRedisManager`` under uvicorn and uvloop; a publisher is answered when the
manager has handed the message to Redis.
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


# Where more than a hundred publish at once, redis-py has too few connections by itself, and they are turned away.
manager = socketio.AsyncRedisManager(sys.argv[2], json=Json, redis_options={"max_connections": 10_000})
server = socketio.AsyncServer(
    async_mode="asgi", client_manager=manager, json=Json, cors_allowed_origins="*", http_compression=False
)


@server.event
async def join(sid, room):
    await server.enter_room(sid, room)
    return 1


@server.event
async def publish(sid, room, data):
    await server.emit("message", data, room=room)
    return 1


uvicorn.run(
    socketio.ASGIApp(server),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    log_level="error",
    ws="websockets-sansio",
    ws_per_message_deflate=False,
    backlog=4096,
    loop="uvloop",
    timeout_graceful_shutdown=1,
)
