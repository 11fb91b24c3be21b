"""zComm: a live web front end and the local servers behind it, for a Python program."""
from zcomm._version import __version__

__all__ = ["__version__"]
