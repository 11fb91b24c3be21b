"""zComm: a live web front end and the local servers behind it, for a Python program.

:class:`zComm` is the whole of it as one Twisted service; :mod:`zcomm.threaded` has the same for programs
without a reactor, and ``twistd zcomm`` needs no program at all.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from zcomm._version import __version__
from zcomm.errors import *  # noqa: F403 (its __all__ is the list)
from zcomm.errors import __all__ as _errors

if TYPE_CHECKING:
    from zcomm.auth.policy import AllowAll, Policy
    from zcomm.bifrost.prompts import Prompt
    from zcomm.bifrost.server import zBifrost
    from zcomm.comm import zComm
    from zcomm.commands.functions import FunctionRegistry, function
    from zcomm.commands.pages import PageRegistry
    from zcomm.config import Config, Limits, WebSocketConfig
    from zcomm.interfaces import Audience, Client, Identity, Outcome, Request
    from zcomm.wire.closecodes import CloseCode

__all__ = [  # noqa: PLE0604 (all of them are)
    "AllowAll",
    "Audience",
    "Client",
    "CloseCode",
    "Config",
    "FunctionRegistry",
    "Identity",
    "Limits",
    "Outcome",
    "PageRegistry",
    "Policy",
    "Prompt",
    "Request",
    "WebSocketConfig",
    "__version__",
    "function",
    "zBifrost",
    "zComm",
    *_errors,
]

# Imported when first asked for: the console command, and programs that use a part, do not wait for the whole.
_HOMES = {
    "AllowAll": "zcomm.auth.policy",
    "Audience": "zcomm.interfaces",
    "Client": "zcomm.interfaces",
    "CloseCode": "zcomm.wire.closecodes",
    "Config": "zcomm.config",
    "FunctionRegistry": "zcomm.commands.functions",
    "Identity": "zcomm.interfaces",
    "Limits": "zcomm.config",
    "Outcome": "zcomm.interfaces",
    "PageRegistry": "zcomm.commands.pages",
    "Policy": "zcomm.auth.policy",
    "Prompt": "zcomm.bifrost.prompts",
    "Request": "zcomm.interfaces",
    "WebSocketConfig": "zcomm.config",
    "function": "zcomm.commands.functions",
    "zBifrost": "zcomm.bifrost.server",
    "zComm": "zcomm.comm",
}
# The original's names, in the original's plain form.
_OLD = ("ZComm", "ZSocket")


if not TYPE_CHECKING:
    # A type checker would take any name for granted.
    def __getattr__(name: str) -> object:
        home = "zcomm.legacy" if name in _OLD else _HOMES.get(name)
        if home is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
