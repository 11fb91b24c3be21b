"""A standard output that nobody has to read.

A server that logs to a pipe stops when the pipe is full and whoever should read it has stopped: one write
then blocks the reactor for good. Here a thread does the writing. What waits for it is bounded; lines that
do not fit are lost, and how many is said as soon as there is room.

Nor is a line lost for a character that an encoding does not have. Twisted's own log to standard error, until another
one begins, can be kept quiet.
"""

from __future__ import annotations

import atexit
import io
import os
import stat
import sys
import threading
from collections import deque

from twisted.logger import ILogObserver, LogEvent, eventAsText, globalLogBeginner, globalLogPublisher
from zope.interface import provider

__all__ = ["NonBlockingOutput", "encodable", "keep_every_line", "set_emergency_log", "use_non_blocking_output"]

#: Bytes that may wait for a reader.
WAITING = 1024 * 1024
#: Seconds that the end of the process waits for a reader to take the last lines.
FAREWELL = 1.0


class NonBlockingOutput:
    """A text stream on a descriptor, whose writes return at once.

    :param fd: where a thread writes; never closed here.
    :param limit: bytes that may wait.
    """

    encoding = "utf-8"
    errors = "replace"

    def __init__(self, fd: int, limit: int = WAITING):
        self._fd = fd
        self._limit = limit
        self._lines: deque[bytes] = deque()
        self._size = 0
        self._closing = False
        self._news = threading.Condition()
        #: Writes that were lost so far because nobody read.
        self.lost = 0
        self._unsaid = 0
        self._thread = threading.Thread(target=self._work, name="zcomm-output", daemon=True)
        self._thread.start()

    def write(self, text: str) -> int:
        """Hand ``text`` to the thread, or lose it when too much waits already."""
        data = text.encode(self.encoding, self.errors)
        with self._news:
            if self._size + len(data) > self._limit or self._closing:
                self.lost += 1
                self._unsaid += 1
            else:
                self._lines.append(data)
                self._size += len(data)
                self._news.notify()
        return len(text)

    def flush(self) -> None:
        """Do nothing: a flush that waited would wait for the reader."""

    def isatty(self) -> bool:
        """Whether the output is a terminal."""
        return os.isatty(self._fd)

    def fileno(self) -> int:
        """The file descriptor written to."""
        return self._fd

    def close(self, timeout: float = FAREWELL) -> bool:
        """Write what waits, for at most ``timeout`` seconds; returns whether all of it was taken."""
        with self._news:
            self._closing = True
            self._news.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while True:
            with self._news:
                while not self._lines and not self._closing:
                    self._news.wait()
                if not self._lines:
                    return
                data = b"".join(self._lines)
                self._lines.clear()
                unsaid, self._unsaid = self._unsaid, 0
            if unsaid:
                data += b"[%d log lines were lost: nobody read the output]\n" % unsaid
            if not self._written(data):
                return
            with self._news:
                # What is being written still counts as waiting, or a stalled reader would cost twice the limit.
                self._size = sum(map(len, self._lines))

    def _written(self, data: bytes) -> bool:
        while data:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError:
                # The reader is gone; so is the point of writing.
                return False
        return True


def use_non_blocking_output() -> NonBlockingOutput | None:
    """Put a :class:`NonBlockingOutput` in the place of ``sys.stdout``, where that is anything but a file.

    :returns: it, or ``None`` where a write cannot block for long.
    """
    try:
        fd = sys.stdout.fileno()
        kind = os.fstat(fd).st_mode
    except (AttributeError, OSError, ValueError):
        return None
    if stat.S_ISREG(kind):
        return None
    sys.stdout.flush()
    output = NonBlockingOutput(fd)
    sys.stdout = output
    atexit.register(output.close)
    return output


def keep_every_line() -> None:
    """See to it, for the log that begins afterwards, that no line is lost because of a character in it.

    The text of an exception may have any, such as the half of a pair that stands in the name of a file. Whatever
    writes the log would fail, and Twisted would drop the line.
    """
    globalLogPublisher.addObserver(_make_encodable)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def encodable(text: str) -> str:
    """``text``, with what UTF-8 does not have escaped by backslashes."""
    return text.encode("utf-8", "backslashreplace").decode()


@provider(ILogObserver)
def _make_encodable(event: LogEvent) -> None:
    """Escape what UTF-8 does not have in the text of an event; the first of the observers, before those that write."""
    text = eventAsText(event, includeTimestamp=False, includeSystem=False)
    if not text.isascii() and (clean := encodable(text)) != text:
        event.pop("log_failure", None)
        event.update(log_format="{log_text}", log_text=clean)


def set_emergency_log(wanted: bool) -> None:
    """Let Twisted write critical events to standard error, as it does until a log of its own begins, or not, because
    somebody else writes the same. Nothing happens once such a log has begun."""
    observer = globalLogBeginner._temporaryObserver
    if observer is None:
        return
    if wanted:
        globalLogPublisher.addObserver(observer)
    else:
        globalLogPublisher.removeObserver(observer)
