"""The place at which the original has its WebSocket server."""
