"""One of several Django Channels servers on one Redis: groups, and who publishes to them.

Arguments: PORT, the URL of Redis. ``RedisChannelLayer`` of channels_redis and the smallest consumer, under uvicorn and
uvloop; a publisher is answered when ``group_send`` has returned.
"""

import sys

import django
import orjson
import uvicorn
from django.conf import settings

settings.configure(
    SECRET_KEY="of a benchmark",
    INSTALLED_APPS=["channels"],
    CHANNEL_LAYERS={
        "default": {
            "BACKEND": "channels_redis.core.RedisChannelLayer",
            # Where more than a hundred publish at once, redis-py has too few connections by itself, and fails.
            "CONFIG": {"hosts": [{"address": sys.argv[2], "max_connections": 10_000}]},
        }
    },
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer  # noqa: E402 (Django wants its settings first)
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402 (as above)
from django.urls import path  # noqa: E402 (as above)


class Consumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.joined = set()
        await self.accept()

    async def disconnect(self, code):
        for room in self.joined:
            await self.channel_layer.group_discard(room, self.channel_name)

    async def receive(self, text_data=None, bytes_data=None):
        asked = orjson.loads(text_data)
        if "join" in asked:
            self.joined.add(asked["join"])
            await self.channel_layer.group_add(asked["join"], self.channel_name)
        else:
            said = orjson.dumps(asked["data"]).decode()
            await self.channel_layer.group_send(asked["publish"], {"type": "told", "text": said})
        await self.send('{"done":1}')

    async def told(self, event):
        await self.send(event["text"])


uvicorn.run(
    ProtocolTypeRouter({"websocket": URLRouter([path("ws", Consumer.as_asgi())])}),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    log_level="error",
    lifespan="off",
    ws="websockets-sansio",
    ws_per_message_deflate=False,
    backlog=4096,
    loop="uvloop",
    timeout_graceful_shutdown=1,
)
