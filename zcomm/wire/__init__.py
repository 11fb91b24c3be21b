"""Bytes: frames, sockets, what waits to be sent, and every private name of Autobahn."""
