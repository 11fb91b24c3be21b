"""Prompts: asking the person at a client something, and checking the answer (docs/protocol.rst, "Prompts").

The server decides what an answer must look like and what is done with it. A client only ever sends a
value, never the name of something to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from math import isfinite
from secrets import token_hex
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from zcomm.bifrost.connection import ANSWER, Connection
from zcomm.bifrost.messages import encode_text
from zcomm.errors import CommandTimeout, ConfigError, Declined, Invalid, NotFound, Unavailable
from zcomm.interfaces import Client, Request

__all__ = ["KINDS", "OpenPrompts", "Prompt"]

KINDS = ("text", "password", "choice", "confirm", "form")
MAX_LENGTH = 10_000

_NOBODY = "This command asks the person at the client something, and over HTTP there is none: call it on a WebSocket"


@dataclass(frozen=True, slots=True)
class Prompt:
    """Something that the person at a client is asked.

    :ivar kind: ``text``, ``password``, ``choice``, ``confirm`` or ``form``.
    :ivar label: what the person reads.
    :ivar required: whether an empty text, or no choice, is no answer.
    :ivar max_length: characters a text may have.
    :ivar choices: what may be chosen.
    :ivar multiple: whether a list of choices is the answer.
    :ivar default: what stands there at first; never for a password.
    :ivar fields: the prompts of a form, by name.
    """

    kind: str
    label: str = ""
    _: KW_ONLY
    required: bool = True
    max_length: int = 1000
    choices: tuple[str | int | float, ...] = ()
    multiple: bool = False
    default: Any = None
    fields: Mapping[str, Prompt] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Any) -> Prompt:
        """A prompt from what a program wrote: a prompt, a label alone, or ``{"kind": …, "label": …}``.

        :raises ConfigError: for a prompt that cannot be shown.
        """
        if isinstance(prompt, Prompt):
            return prompt
        if isinstance(prompt, str):
            return cls("text", prompt)
        if not isinstance(prompt, Mapping):
            raise ConfigError("prompt", f"a prompt is a text or a mapping with a kind, not {prompt!r}")
        unknown = set(prompt) - set(cls.__slots__)
        if unknown:
            raise ConfigError("prompt", f"unknown key {sorted(unknown)[0]!r}; use {', '.join(cls.__slots__)}")
        values = dict(prompt)
        values.setdefault("kind", "text")
        choices, asked = values.get("choices", ()), values.get("fields", {})
        if not isinstance(choices, (list, tuple)):
            raise ConfigError("prompt", f"choices are a list, not {choices!r}")
        if not isinstance(asked, Mapping) or not all(isinstance(name, str) for name in asked):
            raise ConfigError("prompt", "fields are prompts by name")
        values["choices"] = tuple(choices)
        values["fields"] = {name: cls.of(inner) for name, inner in asked.items()}
        return cls(**values)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("prompt", f"{self.kind!r} is none of {', '.join(KINDS)}")
        if not isinstance(self.label, str):
            raise ConfigError("prompt", f"a label is a text, not {self.label!r}")
        # By type: to Python 1 is true, and what is chosen comes back from JSON.
        if any(type(choice) not in (str, int, float) for choice in self.choices):
            raise ConfigError("prompt", "choices are texts and numbers")
        if not all(isfinite(choice) for choice in self.choices if type(choice) is float):
            raise ConfigError("prompt", "choices are numbers that JSON has a form for, not NaN or an infinity")
        answers = self._answers()
        if any(type(answers.get((int, choice))) is int for choice in self.choices if type(choice) is float):
            raise ConfigError("prompt", "two choices are the same number: JavaScript could not tell which one is meant")
        if self.kind == "choice" and not self.choices:
            raise ConfigError("prompt", "a choice needs choices")
        if self.kind == "form" and not self.fields:
            raise ConfigError("prompt", "a form needs fields")
        if any(inner.kind == "form" for inner in self.fields.values()):
            raise ConfigError("prompt", "a form holds prompts, not forms")
        if self.kind == "password" and self.default is not None:
            raise ConfigError("prompt", "a password has no default")
        if not isinstance(self.max_length, int) or not 0 < self.max_length <= MAX_LENGTH:
            raise ConfigError("prompt", f"max_length is between 1 and {MAX_LENGTH}")

    def as_dict(self) -> dict[str, Any]:
        """The prompt as the client gets it."""
        told: dict[str, Any] = {"kind": self.kind, "label": self.label}
        if self.kind in ("text", "password"):
            told |= {"required": self.required, "max_length": self.max_length}
        if self.kind == "choice":
            told |= {"choices": list(self.choices), "multiple": self.multiple, "required": self.required}
        if self.kind == "form":
            told["fields"] = {name: inner.as_dict() for name, inner in self.fields.items()}
        if self.default is not None:
            told["default"] = self.default
        return told

    def check(self, value: Any) -> Any:
        """``value`` as an answer to this prompt.

        :raises Invalid: saying what is wrong with it, by field for a form.
        """
        if self.kind == "form":
            return self._check_form(value)
        if self.kind == "confirm":
            if not isinstance(value, bool):
                raise Invalid("Answer with true or false")
            return value
        if self.kind == "choice":
            return self._check_choice(value)
        if not isinstance(value, str):
            raise Invalid("Answer with a text")
        if self.required and not value.strip():
            raise Invalid("An answer is needed")
        if len(value) > self.max_length:
            raise Invalid(f"At most {self.max_length} characters")
        return value

    def _check_choice(self, value: Any) -> Any:
        if value is None and not self.multiple and not self.required:
            return None
        given = value if self.multiple else [value]
        if not isinstance(given, list):
            raise Invalid("Answer with a list of the choices")
        answers = self._answers()
        chosen = [answers.get(_told_apart(item)) for item in given]
        if None in chosen:
            raise Invalid("Answer with one of the choices")
        # Each once: no client can make the list longer than the choices are.
        if len(chosen) > len({*map(_told_apart, chosen)}):
            raise Invalid("Answer with a list of the choices")
        if self.required and not chosen:
            raise Invalid("An answer is needed")
        return chosen if self.multiple else chosen[0]

    def _answers(self) -> dict[tuple[type, Any], str | int | float]:
        """The choices by what names them. A float that is whole is one also by the integer: JavaScript has one kind of
        number, and writes 1 for 1.0."""
        answers = {_told_apart(choice): choice for choice in self.choices}
        for choice in self.choices:
            if type(choice) is float and choice.is_integer():
                answers.setdefault((int, int(choice)), choice)
        return answers

    def _check_form(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise Invalid("Answer with an object of the fields")
        wrong: dict[str, str] = {str(name)[:100]: "is not asked for" for name in value if name not in self.fields}
        answer = {}
        for name, prompt in self.fields.items():
            if name not in value and not prompt.required:
                continue
            try:
                answer[name] = prompt.check(value.get(name))
            except Invalid as error:
                wrong[name] = error.text
        if wrong:
            raise Invalid("The form is not complete", wrong)
        return answer


def _told_apart(item: Any) -> tuple[type, Any]:
    """1, 1.0 and true are equal to Python."""
    return type(item), item if isinstance(item, (str, int, float)) else None


class _OpenPrompt:
    __slots__ = ("answer", "client", "prompt", "timer")

    def __init__(self, client: Connection, prompt: Prompt, answer: Deferred[Any]):
        self.client = client
        self.prompt = prompt
        self.answer = answer
        self.timer: Any = None


class OpenPrompts:
    """The prompts of one server that are not answered yet.

    Each ends exactly once: with an answer that fits, by the client's declining, by its time, by the program's
    cancelling the Deferred, or because the client has left.

    :param clock: for their time limits.
    """

    #: The command that clients answer with.
    KEY = ANSWER

    def __init__(self, clock: IReactorTime):
        self._clock = clock
        self._open: dict[str, _OpenPrompt] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, client: Connection, prompt: Prompt, timeout: float) -> Deferred[Any]:
        """Ask ``client``; see :meth:`zcomm.bifrost.server.zBifrost.ask`."""
        number = token_hex(8)

        def cancelled(_: Deferred[Any]) -> None:
            self._close(number, "cancelled")

        answer: Deferred[Any] = Deferred(cancelled)
        if not client.is_lasting:
            left = client.transport is None
            answer.errback(Unavailable("The client has left") if left else Invalid(_NOBODY))
            return answer
        # First, as it fails for what JSON has no form for: a prompt that nobody sees would stay open.
        payload = encode_text({"event": "ask", "askId": number, "prompt": prompt.as_dict(), "timeout": timeout})
        opened = _OpenPrompt(client, prompt, answer)
        self._open[number] = opened
        opened.timer = self._clock.callLater(timeout, self._expire, number, timeout)
        client.prompts[number] = None
        if self._client_left not in client.on_lost:
            client.on_lost.append(self._client_left)
        client.send_payloads([payload])
        return answer

    def respond(self, request: Request, client: Client) -> bool:
        """Take a client's answer: the responder of ``zAnswer``.

        :raises Invalid: for a value that is no answer; the prompt stays open.
        :raises NotFound: for a prompt that is not open, or is somebody else's.
        """
        given = request.horizontal
        number = given.get("askId") if isinstance(given, dict) else None
        opened = self._open.get(number) if isinstance(number, str) else None
        if opened is None or not isinstance(number, str) or opened.client is not client:
            raise NotFound("That prompt is not open")
        if given.get("cancelled") is True:
            self._end(number).errback(Declined())
            return True
        if "value" not in given:
            raise Invalid('An answer has a value, or says "cancelled": true')
        value = opened.prompt.check(given["value"])
        self._end(number).callback(value)
        return True

    def _end(self, number: str) -> Deferred[Any]:
        opened = self._open.pop(number)
        opened.client.prompts.pop(number, None)
        if opened.timer.active():
            opened.timer.cancel()
        return opened.answer

    def _close(self, number: str, reason: str) -> Deferred[Any] | None:
        """End a prompt from this side and tell the client, who may have it on the screen."""
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
        for number in list(client.prompts):
            self._end(number).errback(Unavailable("The client has left"))
