"""picows (Cython) on uvloop. /rpc answers, /fan sends to the others. Argument: PORT."""

import sys

import orjson
import uvloop
from picows import WSListener, WSMsgType, ws_create_server

peers = set()


class Listener(WSListener):
    def __init__(self, rpc):
        self.rpc = rpc

    def on_ws_connected(self, transport):
        if not self.rpc:
            peers.add(transport)

    def on_ws_frame(self, transport, frame):
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        elif frame.msg_type == WSMsgType.TEXT and self.rpc:
            request = orjson.loads(frame.get_payload_as_bytes())
            reply = orjson.dumps({"result": request["zHorizontal"], "_requestId": request["_requestId"]})
            transport.send(WSMsgType.TEXT, reply)
        elif frame.msg_type == WSMsgType.TEXT:
            message = frame.get_payload_as_bytes()
            for peer in peers:
                if peer is not transport:
                    peer.send(WSMsgType.TEXT, message)

    def on_ws_disconnected(self, transport):
        peers.discard(transport)


async def main():
    server = await ws_create_server(
        lambda request: Listener(request.path == b"/rpc"), "127.0.0.1", int(sys.argv[1]), backlog=4096
    )
    await server.serve_forever()


uvloop.run(main())
