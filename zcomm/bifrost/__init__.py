"""The WebSocket server: from the opening handshake to the reply."""
