"""zComm: a live web front end and the local servers behind it, for a Python program.

:class:`zComm` is the whole of it as one Twisted service; :mod:`zcomm.threaded` has the same for programs
without a reactor, and ``twistd zcomm`` needs no program at all.
"""
from importlib import import_module

from zcomm._version import __version__
from zcomm.bifrost.codes import CloseCode
from zcomm.bifrost.prompts import Prompt
from zcomm.bifrost.server import zBifrost
from zcomm.comm import zComm
from zcomm.commands.functions import FunctionRegistry, function
from zcomm.commands.pages import PageRegistry
from zcomm.config import Config, Limits, WebSocketConfig
from zcomm.errors import *  # noqa: F403
from zcomm.errors import __all__ as _errors
from zcomm.interfaces import Client, Identity, Outcome, Request
from zcomm.permissions import AllowAll, Policy

__all__ = [
    "AllowAll", "Client", "CloseCode", "Config", "FunctionRegistry", "Identity", "Limits", "Outcome", "PageRegistry",
    "Policy", "Prompt", "Request", "WebSocketConfig", "__version__", "function", "zBifrost", "zComm", *_errors,
]


def __getattr__(name: str) -> object:
    """The original's names, in the original's plain form; see :mod:`zcomm.legacy`."""
    if name in ("ZComm", "ZSocket"):
        return getattr(import_module("zcomm.legacy"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
