"""Words between the processes that share an engine: what each of them has to do, and what it knows."""

from __future__ import annotations

from collections.abc import Callable
from secrets import token_hex
from typing import Any

import msgspec
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from zcomm.interfaces import IEngine

__all__ = ["ANSWER", "Nodes"]

#: Seconds that others have for an answer.
ANSWER = 2.0


class _Word(msgspec.Struct, omit_defaults=True):
    """Something said.

    :ivar kind: what it is about; empty for an answer.
    :ivar question: the id of the question that it asks or answers.
    """

    kind: str = ""
    body: Any = None
    question: str = ""


_read = msgspec.json.Decoder(_Word).decode
_write = msgspec.json.encode


class _Question:
    """A question to all others.

    :ivar left: those who have not answered.
    """

    def __init__(self, left: set[str]):
        self.left = left
        self.answers: list[Any] = []
        self.told: Deferred[list[Any]] = Deferred()
        self.timer: IDelayedCall | None = None


class Nodes:
    """The other processes.

    :param engine: carries what is said.
    :param clock: for answers that do not come.
    :param missed: called when something that others said was lost.
    """

    _log = Logger()

    def __init__(self, engine: IEngine, clock: IReactorTime, missed: Callable[[], None]):
        self._engine = engine
        self._clock = clock
        self._missed = missed
        self._handlers: dict[str, Callable[[Any], Any]] = {}
        self._questions: dict[str, _Question] = {}
        engine.listen_to_nodes(self)

    def on(self, kind: str, handler: Callable[[Any], Any]) -> None:
        """Call ``handler`` with what others say of that kind; what it returns, or its Deferred, is the answer to those
        who ask."""
        self._handlers[kind] = handler

    def tell(self, kind: str, body: Any = None) -> None:
        """Say something to all others."""
        self._engine.cast(_write(_Word(kind, body)))

    def ask(self, kind: str, body: Any = None) -> Deferred[list[Any]]:
        """Ask all others; a Deferred of the answers of those who have given one within :data:`ANSWER` seconds."""
        others = set(self._engine.nodes())
        if not others:
            self.tell(kind, body)
            return succeed([])
        number = token_hex(8)
        question = self._questions[number] = _Question(others)
        question.timer = self._clock.callLater(ANSWER, self._close, number)
        self._engine.cast(_write(_Word(kind, body, number)))
        return question.told

    def _close(self, number: str) -> None:
        question = self._questions.pop(number)
        if question.timer is not None and question.timer.active():
            question.timer.cancel()
        question.told.callback(question.answers)

    def heard(self, node: str, message: bytes) -> None:
        """Take what another process has said."""
        word = _read(message)
        if not word.kind:
            question = self._questions.get(word.question)
            if question is not None and node in question.left:
                question.left.discard(node)
                question.answers.append(word.body)
                if not question.left:
                    self._close(word.question)
            return
        handler = self._handlers.get(word.kind)
        if handler is None:
            # Of a version of zComm that has more to say.
            return
        try:
            answer = handler(word.body)
        except Exception:
            self._log.failure("what node {node} said of {kind} could not be done", node=node, kind=word.kind)
            return
        if not word.question:
            return
        if isinstance(answer, Deferred):
            answer.addCallbacks(
                self._answer,
                lambda failure: self._log.failure("a question of node {node} has no answer", failure, node=node),
                (node, word.question),
            )
        else:
            self._answer(answer, node, word.question)

    def _answer(self, answer: Any, node: str, question: str) -> None:
        self._engine.cast(_write(_Word("", answer, question)), node)

    def missed(self) -> None:
        """Note that something others said was lost."""
        self._missed()
