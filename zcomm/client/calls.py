"""The calls that have no answer yet: each settles exactly once, and none is ever sent twice."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from zcomm.client.requests import could_double, written
from zcomm.errors import CommandError, CommandTimeout, ConnectionLost, command_error

__all__ = ["Calls"]

#: Seconds, and how many times in a row nothing must be heard for so long, to prove that nothing more has arrived.
STEP, STEPS = 0.05, 10


class _Call:
    __slots__ = (
        "answer",
        "asked",
        "due",
        "number",
        "on_progress",
        "payload",
        "sent",
        "timeout",
        "timer",
        "transmit",
        "urgent",
    )

    def __init__(
        self,
        number: int,
        payload: bytes,
        answer: Deferred[Any],
        timeout: float,
        transmit: Callable[[int, bytes], Any],
        *,
        on_progress: Callable[..., Any] | None,
        urgent: bool,
    ):
        self.number = number
        self.payload = payload
        self.answer = answer
        self.timeout = timeout
        self.transmit = transmit
        self.on_progress = on_progress
        self.urgent = urgent
        self.sent = False
        self.timer: Any = None
        self.due = 0.0
        #: The question whose answer comes behind all that has been sent before.
        self.asked: Deferred[Any] | None = None


class Calls:
    """Calls by number. Those above ``most`` wait here for their turn: the server would refuse them.

    :param clock: for their time limits.
    :param most: see there.
    :param paused: while it says so no call runs out of time: a person is being asked something.
    :param ask: asks the server anything; a Deferred of its answer, which comes behind all that it has said before.
    :ivar heard: how many messages have come.
    :ivar most: how many may be under way, of those that are not urgent.
    """

    def __init__(
        self,
        clock: IReactorTime,
        paused: Callable[[], bool],
        most: int,
        ask: Callable[[], Deferred[Any] | None] = lambda: None,
    ):
        self.heard = 0
        self._paused = paused
        self._ask = ask
        self._clock = clock
        self.most = most
        self._numbers = count(1)
        self._calls: dict[int, _Call] = {}
        self._waiting: deque[_Call] = deque()
        self._under_way = 0

    def __len__(self) -> int:
        return len(self._calls)

    def __contains__(self, number: object) -> bool:
        return number in self._calls

    def start(
        self,
        key: Any,
        horizontal: Any,
        timeout: float,
        transmit: Callable[[int, bytes], Any],
        *,
        on_progress: Callable[..., Any] | None = None,
        urgent: bool = False,
    ) -> Deferred[Any]:
        """Send a command, now or in its turn; a Deferred of its result.

        :param transmit: called with its number and its message.
        :raises TypeError: for what JSON has no form for.
        """
        number = next(self._numbers)
        # The number first: where the rest cannot be read, the answer still finds its call.
        payload = written({"_requestId": number, "zKey": key, "zHorizontal": horizontal})
        answer: Deferred[Any] = Deferred(lambda _: self._finish(call))
        call = _Call(number, payload, answer, timeout, transmit, on_progress=on_progress, urgent=urgent)
        self._calls[number] = call
        self._arm(call)
        if urgent or self._under_way < self.most:
            self._send(call)
        else:
            self._waiting.append(call)
        return answer

    def _send(self, call: _Call) -> None:
        call.sent = True
        self._under_way += not call.urgent
        call.transmit(call.number, call.payload)

    def _arm(self, call: _Call) -> None:
        self._disarm(call)
        call.due = self._clock.seconds() + call.timeout
        call.timer = self._clock.callLater(call.timeout, self._overdue, call)

    @staticmethod
    def _disarm(call: _Call) -> None:
        if call.timer is not None and call.timer.active():
            call.timer.cancel()
        asked, call.asked = call.asked, None
        if asked is not None:
            asked.cancel()

    def _overdue(self, call: _Call) -> None:
        """Let what has arrived by now be read first: timers fire before sockets are looked at, and an answer may stand
        behind many other messages."""
        is_late = self._clock.seconds() - call.due >= STEP
        if call.sent and not call.urgent:
            call.asked = self._ask()
        if call.asked is not None:
            # An error is an answer: with many calls under way the question is one too many.
            call.asked.addCallbacks(
                lambda _: self._answered_behind(call),
                lambda failure: self._answered_behind(call) if failure.check(CommandError) else None,
            )
        if is_late or call.asked is not None:
            self._listen(call, STEPS)
        else:
            call.timer = self._clock.callLater(0, self._read, call, self.heard)

    def _read(self, call: _Call, heard: int) -> None:
        if self.heard == heard:
            self._expire(call)
        else:
            self._listen(call, STEPS)

    def _listen(self, call: _Call, left: int) -> None:
        """Give ``call`` up when nothing is heard for a while in which this process ran."""
        if self._calls.get(call.number) is not call:
            return
        if left == 0:
            self._expire(call)
            return
        due, heard = self._clock.seconds() + STEP, self.heard

        def look() -> None:
            is_silent = self._clock.seconds() - due < STEP and self.heard == heard
            self._listen(call, left - 1 if is_silent else STEPS)

        call.timer = self._clock.callLater(STEP, look)

    def _answered_behind(self, call: _Call) -> None:
        call.asked = None
        if self._calls.get(call.number) is call:
            self._expire(call)

    def _expire(self, call: _Call) -> None:
        if not call.urgent and self._paused():
            self._arm(call)
        else:
            self._finish(call)
            late = CommandTimeout(f"No answer within {call.timeout:g} s")
            late.retryable = not (call.sent and could_double(call.payload))
            call.answer.errback(late)

    def _finish(self, call: _Call) -> None:
        if self._calls.pop(call.number, None) is None:
            # What it failed with, or what failed beside it, has settled it meanwhile.
            return
        self._disarm(call)
        if not call.sent:
            self._waiting.remove(call)
        elif not call.urgent:
            self._under_way -= 1
        while self._waiting and self._under_way < self.most:
            self._send(self._waiting.popleft())

    def settle(self, message: dict[str, Any]) -> None:
        """Settle the call that a reply answers. A late one, after its call gave up, is nobody's."""
        number = message["_requestId"]
        call = self._calls.get(number) if type(number) is int else None
        if call is None:
            return
        self._finish(call)
        if "error" in message:
            call.answer.errback(command_error(message))
        else:
            call.answer.callback(message["result"])

    def fail(self, number: int, error: CommandError) -> None:
        """Settle one call with an error of the client's own."""
        call = self._calls[number]
        self._finish(call)
        call.answer.errback(error)

    def progress(self, message: dict[str, Any]) -> Callable[[], Any] | None:
        """News of a running call: it is alive, so its time starts again. Returns the listener to be called, if any."""
        number = message.get("progressOf")
        call = self._calls.get(number) if type(number) is int else None
        if call is None:
            return None
        self._arm(call)
        listener = call.on_progress
        if listener is None:
            return None
        return lambda: listener(message.get("done"), message.get("total"), message.get("text", ""))

    def fail_all(self, error: ConnectionLost) -> None:
        """The connection is gone. Those that were not sent yet say so; a change that may have been made says that it is
        not to be sent again."""
        # Whoever hears of one may cancel others, begin new ones, or close the client.
        calls, self._calls = list(self._calls.values()), {}
        unsent, self._waiting = set(self._waiting), deque()
        self._under_way = 0
        for call in calls:
            self._disarm(call)
        for call in calls:
            if call.answer.called:
                continue
            lost = error
            if call in unsent:
                lost = ConnectionLost(error.close_code, "the command was not sent")
            elif could_double(call.payload):
                lost = ConnectionLost(error.close_code, error.reason)
                lost.retryable = False
            call.answer.errback(lost)
