"""What a browser gets from the same port: the page, its health and its numbers."""
