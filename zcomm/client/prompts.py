"""The server's prompts to this client, each answered or declined once, unless it is taken back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from zcomm.errors import CommandError, ConnectionLost, Invalid
from zcomm.runtime.deferreds import awaited

__all__ = ["Prompts"]


class Prompts:
    """The prompts that wait for an answer.

    :param say: sends a ``zAnswer``; returns a Deferred that fails with what the server has against it.
    :param answer: has a prompt answered: a value, or a Deferred or coroutine of one; ``None`` declines.
    """

    _log = Logger()

    def __init__(self, say: Callable[[dict[str, Any]], Deferred[Any]], answer: Callable[[dict[str, Any]], Any]):
        self._say = say
        self._answer = answer
        self._open: dict[Any, Deferred[None]] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, message: dict[str, Any]) -> None:
        """Take a prompt that the server sent, and have the program answer it."""
        number = message.get("askId")
        if not isinstance(number, str) or number in self._open:
            return
        answering = Deferred.fromCoroutine(self._converse(number, message.get("prompt") or {}))
        if not answering.called:
            self._open[number] = answering
        answering.addBoth(self._ended, number)

    def taken_back(self, message: dict[str, Any]) -> None:
        """Cancel the answering of a prompt that the server takes back."""
        answering = self._open.get(message.get("askId"))
        if answering is not None:
            answering.cancel()

    def drop_all(self) -> None:
        """Cancel the answering of all prompts, as the connection is gone."""
        for answering in list(self._open.values()):
            answering.cancel()

    async def _converse(self, number: str, prompt: dict[str, Any]) -> None:
        refused: list[Any] = []
        while True:
            value = await self._value(prompt)
            # The same answer again would be refused again, and so on for ever.
            if value is None or value in refused:
                await self._say({"askId": number, "cancelled": True})
                return
            try:
                await self._say({"askId": number, "value": value})
                return
            except TypeError:
                self._log.failure("the program's answer to a prompt cannot be sent; it is declined")
                await self._say({"askId": number, "cancelled": True})
                return
            except Invalid as error:
                refused.append(value)
                prompt = {**prompt, "error": {"text": error.text, "fields": error.fields}}

    async def _value(self, prompt: dict[str, Any]) -> Any:
        try:
            return await maybeDeferred(lambda: awaited(self._answer(prompt)))
        except CancelledError:
            raise
        except Exception:
            self._log.failure("the program's answer to a prompt failed; it is declined")
            return None

    def _ended(self, result: Any, number: str) -> None:
        self._open.pop(number, None)
        if not isinstance(result, Failure) or result.check(CancelledError):
            return
        if result.check(CommandError, ConnectionLost):
            self._log.warn("an answer came to nothing: {reason}", reason=result.getErrorMessage())
        else:
            self._log.failure("a prompt was not answered", result)
