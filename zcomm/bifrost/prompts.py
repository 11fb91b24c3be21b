"""Questions to a client as values: what is asked, and whether an answer is one (docs/protocol.rst, "Questions").

The server decides what an answer must look like and what is done with it. A client only ever sends a
value, never the name of something to run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zcomm.errors import ConfigError, Invalid

__all__ = ["KINDS", "Prompt"]

KINDS = ("text", "password", "choice", "confirm", "form")
MAX_LENGTH = 10_000


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question.

    :ivar kind: ``text``, ``password``, ``choice``, ``confirm`` or ``form``.
    :ivar label: what the person reads.
    :ivar required: whether an empty text, or no choice, is no answer.
    :ivar max_length: characters a text may have.
    :ivar choices: what may be chosen.
    :ivar multiple: whether a list of choices is the answer.
    :ivar default: what stands there at first; never for a password.
    :ivar fields: the questions of a form, by name.
    """

    kind: str
    label: str = ""
    required: bool = True
    max_length: int = 1000
    choices: tuple[str | int | float, ...] = ()
    multiple: bool = False
    default: Any = None
    fields: Mapping[str, Prompt] = field(default_factory=dict)

    @classmethod
    def of(cls, prompt: Any) -> Prompt:
        """A question from what a program wrote: a prompt, a label alone, or ``{"kind": …, "label": …}``.

        :raises ConfigError: for a question that cannot be asked.
        """
        if isinstance(prompt, Prompt):
            return prompt
        if isinstance(prompt, str):
            return cls("text", prompt)
        if not isinstance(prompt, Mapping):
            raise ConfigError("prompt", f"a question is a text or a mapping with a kind, not {prompt!r}")
        unknown = set(prompt) - set(cls.__slots__)
        if unknown:
            raise ConfigError("prompt", f"unknown key {sorted(unknown)[0]!r}; use {', '.join(cls.__slots__)}")
        values = dict(prompt)
        values.setdefault("kind", "text")
        choices, asked = values.get("choices", ()), values.get("fields", {})
        if not isinstance(choices, (list, tuple)):
            raise ConfigError("prompt", f"choices are a list, not {choices!r}")
        if not isinstance(asked, Mapping) or not all(isinstance(name, str) for name in asked):
            raise ConfigError("prompt", "fields are questions by name")
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
        if self.kind == "choice" and not self.choices:
            raise ConfigError("prompt", "a choice needs choices")
        if self.kind == "form" and not self.fields:
            raise ConfigError("prompt", "a form needs fields")
        if any(inner.kind == "form" for inner in self.fields.values()):
            raise ConfigError("prompt", "a form holds questions, not forms")
        if self.kind == "password" and self.default is not None:
            raise ConfigError("prompt", "a password has no default")
        if not isinstance(self.max_length, int) or not 0 < self.max_length <= MAX_LENGTH:
            raise ConfigError("prompt", f"max_length is between 1 and {MAX_LENGTH}")

    def as_dict(self) -> dict[str, Any]:
        """The question as the client gets it."""
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
        """``value`` as an answer to this question.

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
        chosen = value if self.multiple else [value]
        # Each once: no client can make the list longer than the choices are.
        if not isinstance(chosen, list) or len(chosen) > len({*map(_told_apart, chosen)}):
            raise Invalid("Answer with a list of the choices")
        offered = {*map(_told_apart, self.choices)}
        if not all(_told_apart(item) in offered for item in chosen):
            raise Invalid("Answer with one of the choices")
        if self.required and not chosen:
            raise Invalid("An answer is needed")
        return value

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
    """1, 1.0 and true are equal to Python; a choice is what was offered, type and all."""
    return type(item), item if isinstance(item, (str, int, float)) else None
