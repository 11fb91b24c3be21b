"""Where the original has its WebSocket server."""
