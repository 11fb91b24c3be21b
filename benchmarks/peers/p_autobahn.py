"""Autobahn on Twisted as its own examples write it. /rpc answers, /fan sends to the others.

Arguments: PORT, epoll|uvloop.
"""

import sys

import orjson

if sys.argv[2] == "uvloop":
    import uvloop
    from twisted.internet import asyncioreactor

    asyncioreactor.install(uvloop.new_event_loop())
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet import reactor

peers = set()


class Server(WebSocketServerProtocol):
    def onConnect(self, request):
        self.rpc = request.path == "/rpc"

    def onOpen(self):
        if not self.rpc:
            peers.add(self)

    def onMessage(self, message, binary):
        if self.rpc:
            request = orjson.loads(message)
            self.sendMessage(orjson.dumps({"result": request["zHorizontal"], "_requestId": request["_requestId"]}))
            return
        prepared = self.factory.prepareMessage(message)
        for peer in peers:
            if peer is not self:
                peer.sendPreparedMessage(prepared)

    def onClose(self, *reason):
        peers.discard(self)


factory = WebSocketServerFactory()
factory.protocol = Server
reactor.listenTCP(int(sys.argv[1]), factory, interface="127.0.0.1", backlog=4096)
reactor.run()
