"""zComm's log, passed on to the host's own logger: programs without a reactor have no Twisted log."""

from __future__ import annotations

import logging
from typing import Any

from twisted.logger import ILogObserver, LogEvent, LogLevel, eventAsText, globalLogPublisher
from zope.interface import implementer

from zcomm.runtime.stdio import encodable, set_emergency_log

__all__ = ["HostLog"]

_METHODS = {
    LogLevel.debug: "debug",
    LogLevel.info: "info",
    LogLevel.warn: "warning",
    LogLevel.error: "error",
    LogLevel.critical: "critical",
}
#: The observers of each logger, so that two zComms of one host do not say everything twice.
_speaking: dict[int, list[HostLog]] = {}


@implementer(ILogObserver)
class HostLog:
    """Tells a logger of :mod:`logging`'s kind every event of zComm's, and every error of the libraries below it.

    :param logger: anything with ``debug``, ``info``, ``warning``, ``error`` and ``critical``.
    """

    def __init__(self, logger: Any):
        self._logger = logger

    @classmethod
    def of(cls, host: Any) -> HostLog:
        """The log of ``host.logger``, or of the logger ``zcomm`` for a host without one."""
        own = getattr(host, "logger", None)
        return cls(logging.getLogger("zcomm") if own is None else own)

    def start(self) -> None:
        """Begin to tell. Twisted's emergency log, which would tell failures a second time, is quiet meanwhile."""
        set_emergency_log(False)
        speaking = _speaking.setdefault(id(self._logger), [])
        if not speaking:
            globalLogPublisher.addObserver(self)
        speaking.append(self)

    def stop(self) -> None:
        """Tell no more; another one for the same logger goes on in its place. Does nothing the second time."""
        speaking = _speaking.get(id(self._logger), [])
        if self not in speaking:
            return
        was_first = speaking[0] is self
        speaking.remove(self)
        if was_first:
            globalLogPublisher.removeObserver(self)
            if speaking:
                globalLogPublisher.addObserver(speaking[0])
        if not speaking:
            del _speaking[id(self._logger)]
        if not _speaking:
            set_emergency_log(True)

    def __call__(self, event: LogEvent) -> None:
        """Write one event."""
        level = event.get("log_level", LogLevel.info)
        ours = event.get("log_namespace", "").startswith("zcomm")
        if ours or level in (LogLevel.error, LogLevel.critical):
            text = eventAsText(event, includeTimestamp=False, includeSystem=False)
            getattr(self._logger, _METHODS[level])(encodable(text))
