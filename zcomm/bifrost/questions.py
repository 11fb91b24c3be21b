"""The questions that are open: asked of a client, not answered yet.

Each ends exactly once: with an answer that is one, by the client's declining, by its time, by the
program's cancelling the Deferred, or because the client has left.
"""

from __future__ import annotations

from secrets import token_hex
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from zcomm.bifrost.connection import Connection
from zcomm.bifrost.prompts import Prompt
from zcomm.errors import CommandTimeout, Declined, Invalid, NotFound, Unavailable
from zcomm.interfaces import Client, Request

__all__ = ["Questions"]


class _Question:
    __slots__ = ("answer", "client", "prompt", "timer")

    def __init__(self, client: Connection, prompt: Prompt, answer: Deferred[Any]):
        self.client = client
        self.prompt = prompt
        self.answer = answer
        self.timer: Any = None


class Questions:
    """The open questions of one server.

    :param clock: for their time limits.
    """

    #: The command that clients answer with.
    KEY = "zAnswer"

    def __init__(self, clock: IReactorTime):
        self._clock = clock
        self._open: dict[str, _Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, client: Connection, prompt: Prompt, timeout: float) -> Deferred[Any]:
        """Ask ``client``; see :meth:`zcomm.bifrost.server.zBifrost.ask`."""
        number = token_hex(8)

        def cancelled(_: Deferred[Any]) -> None:
            self._close(number, "cancelled")

        answer: Deferred[Any] = Deferred(cancelled)
        if client.transport is None:
            answer.errback(Unavailable("The client has left"))
            return answer
        question = _Question(client, prompt, answer)
        self._open[number] = question
        question.timer = self._clock.callLater(timeout, self._expire, number, timeout)
        client.questions.add(number)
        if self._client_left not in client.on_lost:
            client.on_lost.append(self._client_left)
        client.send({"event": "ask", "askId": number, "prompt": prompt.as_dict(), "timeout": timeout})
        return answer

    def respond(self, request: Request, client: Client) -> bool:
        """Take a client's answer: the responder of ``zAnswer``.

        :raises Invalid: for a value that is no answer; the question stays open.
        :raises NotFound: for a question that is not open, or is somebody else's.
        """
        given = request.horizontal
        number = given.get("askId") if isinstance(given, dict) else None
        question = self._open.get(number) if isinstance(number, str) else None
        if question is None or not isinstance(number, str) or question.client is not client:
            raise NotFound("That question is not open")
        if given.get("cancelled") is True:
            self._end(number).errback(Declined())
            return True
        if "value" not in given:
            raise Invalid('An answer has a value, or says "cancelled": true')
        value = question.prompt.check(given["value"])
        self._end(number).callback(value)
        return True

    def _end(self, number: str) -> Deferred[Any]:
        question = self._open.pop(number)
        question.client.questions.discard(number)
        if question.timer.active():
            question.timer.cancel()
        return question.answer

    def _close(self, number: str, reason: str) -> Deferred[Any] | None:
        """End a question from this side and tell the client, who may have it on the screen."""
        if number not in self._open:
            return None
        client = self._open[number].client
        answer = self._end(number)
        client.send({"event": "ask_closed", "askId": number, "reason": reason})
        return answer

    def _expire(self, number: str, timeout: float) -> None:
        answer = self._close(number, "timeout")
        if answer is not None:
            answer.errback(CommandTimeout(f"No answer within {timeout:g} s"))

    def _client_left(self, client: Connection) -> None:
        for number in list(client.questions):
            self._end(number).errback(Unavailable("The client has left"))
