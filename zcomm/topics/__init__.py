"""Topics: rooms that clients publish to and hear of; presence, history and resume (docs/protocol.rst, "Topics")."""
