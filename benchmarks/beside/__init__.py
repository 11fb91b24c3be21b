"""What ``cluster.py`` needs: the servers that share a Redis, and clients of each."""
