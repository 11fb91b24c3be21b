"""The bytes of a WebSocket: frames, sockets, output queues, and every private name of Autobahn."""
