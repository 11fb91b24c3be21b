"""Progress of running functions, told to the caller at a pace that a person can follow."""

from __future__ import annotations

from threading import Lock
from typing import Any

from twisted.internet.interfaces import IDelayedCall
from twisted.python.threadable import isInIOThread

from zcomm.bifrost.connection import Connection
from zcomm.bifrost.messages import encode_text
from zcomm.interfaces import Request

__all__ = ["INTERVAL", "Progress"]

#: Seconds between two messages of one command: twenty a second are more than an eye can tell apart, and a
#: function with a million steps would fill its client's queue until the client is dropped for being slow.
INTERVAL = 0.05


class Progress:
    """``progress(done, total, text)`` of one running function; may be called from any thread.

    The first word leaves at once. Of those that follow within :data:`INTERVAL` only the newest is sent, when
    the interval is over or when the function ends.

    :param reactor: its clock, and the way back from other threads.
    :param request: the request that started the function. Where it has no id, its caller could not tell whose progress
        it is, and nothing is sent.
    """

    def __init__(self, reactor: Any, client: Connection, request: Request):
        self._reactor = reactor
        self._client = client
        self._request_id = request.request_id
        # Guards the fields below: what is due is taken in the reactor's thread, and added in any.
        self._lock = Lock()
        self._due: list[bytes] = []
        self._held: bytes | None = None
        self._next = float("-inf")
        self._over = request.request_id is None
        self._timer: IDelayedCall | None = None

    def __call__(self, done: float, total: float | None = None, text: str = "") -> None:
        """Tell how far it is.

        :param total: how much it will be; ``None`` when that is not known.
        :raises TypeError: for what is no number, or a text that is none.
        """
        for number in (done, total):
            # At once and where it was written, not later in the reactor's thread.
            if type(number) not in (int, float) and (number is done or number is not None):
                raise TypeError(f"progress is told in numbers, not {number!r}")
        if not isinstance(text, str):
            raise TypeError(f"the text of progress is a string, not {text!r}")
        if self._over:
            return
        message = {"event": "progress", "progressOf": self._request_id, "done": done, "total": total, "text": text}
        payload = encode_text(message)
        with self._lock:
            now = self._reactor.seconds()
            if now >= self._next:
                self._next = now + INTERVAL
                self._due.append(payload)
                self._held = None
                carry_on = self._send
            else:
                already_waiting = self._held is not None
                self._held = payload
                if already_waiting:
                    return
                carry_on = self._wait
        if isInIOThread():
            carry_on()
        else:
            self._reactor.callFromThread(carry_on)

    def finish(self) -> None:
        """The function has ended: send its last word now, before the reply, and nothing after it.

        Called in the reactor's thread.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._lock:
            self._over = True
            if self._held is not None:
                self._due.append(self._held)
                self._held = None
        self._send()

    def _wait(self) -> None:
        if self._timer is None and not self._over:
            self._timer = self._reactor.callLater(max(0.0, self._next - self._reactor.seconds()), self._release)

    def _release(self) -> None:
        """The interval is over: what was held is due, unless a newer word has left meanwhile."""
        self._timer = None
        with self._lock:
            if self._held is None:
                return
            now = self._reactor.seconds()
            if is_due := now >= self._next:
                self._next = now + INTERVAL
                self._due.append(self._held)
                self._held = None
        if is_due:
            self._send()
        else:
            self._wait()

    def _send(self) -> None:
        with self._lock:
            due, self._due = self._due, []
        if due:
            self._client.send_payloads(due)
