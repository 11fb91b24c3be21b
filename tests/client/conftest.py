"""A whole zComm in this process, and the clients of a test, which all leave at its end."""

from support.served import join, served

__all__ = ["join", "served"]
