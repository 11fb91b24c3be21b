"""The host: a session, a logger, data and comm."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from zCLI.data import Data
from zcomm import Config, WebSocketConfig
from zcomm.config import data_directory
from zcomm.threaded import zComm

__all__ = ["zCLI"]

logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")


class zCLI:
    """A zCLI, made as the guide does: ``zCLI({'zSpark': {}, 'plugins': []})``.

    Its files for zOpen lie in ``FILES``, if that is set.
    """

    def __init__(self, spec: dict[str, Any]):
        self.session: dict[str, Any] = {"zSpark": spec.get("zSpark", {})}
        self.logger = logging.getLogger("zCLI")
        self.data = Data(Path(os.environ["HOME"]) / "zcli.sqlite3")
        config = None
        if "FILES" in os.environ:
            config = Config(
                data_directory(os.environ), WebSocketConfig.from_environ(os.environ), files=Path(os.environ["FILES"])
            )
        self.comm = zComm(self, config=config)
        self.comm.program.functions.register(calculateTotal)
        self.comm.program.pages.register("/admin/users", title="Users")
        self.comm.program.pages.register("/path/to/location", title="Somewhere")


def calculateTotal(cart: dict[str, Any]) -> dict[str, Any]:
    """What zFunc calls."""
    return {"cart_id": cart["cart_id"], "total": 42}
