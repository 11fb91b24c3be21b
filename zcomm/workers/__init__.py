"""Several processes of one server: a parent that listens and keeps them, and the workers that serve the clients."""
