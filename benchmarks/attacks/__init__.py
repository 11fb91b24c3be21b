"""The attacks of ``isolation.py``: what hostile sockets send, and what an admitted user may ask for."""
