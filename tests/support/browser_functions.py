"""Functions of a program that asks for everything a prompt can ask for, and shows something."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from zcomm import function
from zcomm.interfaces import Client

Ask = Callable[..., Awaitable[Any]]


@function
async def choose(*, ask: Ask) -> str:
    """One of three."""
    return await ask({"kind": "choice", "label": "Which bridge?", "choices": ["Bifrost", "Gjallarbru", "Oresund"]})


@function
async def choose_many(*, ask: Ask) -> list[int]:
    """Any of three, one chosen already."""
    prompt = {"kind": "choice", "label": "Which?", "choices": [1, 2, 3], "multiple": True, "default": [2]}
    return await ask(prompt)


@function
async def confirm(*, ask: Ask) -> bool:
    """Yes or no."""
    return await ask({"kind": "confirm", "label": "Cross the bridge?"})


@function
async def interview(*, ask: Ask) -> str:
    """A form of everything."""
    answer = await ask(
        {
            "kind": "form",
            "label": "Who are you?",
            "fields": {
                "name": {"kind": "text", "label": "Your name"},
                "secret": {"kind": "password", "label": "Secret"},
                "colour": {"kind": "choice", "label": "Colour", "choices": ["red", "blue"]},
                "agrees": {"kind": "confirm", "label": "I agree"},
            },
        }
    )
    agrees = "agrees" if answer["agrees"] else "disagrees"
    return f"{answer['name']} likes {answer['colour']}, {agrees}, has a secret of {len(answer['secret'])}"


@function
async def hurry(*, ask: Ask) -> str:
    """A prompt with hardly any time to answer."""
    return await ask("Quick!", 1.0)


@function
async def show(*, client: Client) -> None:
    """Something to look at, for the caller alone."""
    client.send({"event": "display", "display": "text", "data": {"text": "<b>Look here</b>"}})


@function
def constructor(size: int = 1) -> int:
    """A name that every JavaScript object has."""
    return size


@function
def toString() -> str:  # noqa: N802 (the name is the point)
    """Another one."""
    return "a text"


@function
async def sure(*, ask: Ask) -> bool:
    """A question whose answer is proposed."""
    return await ask({"kind": "confirm", "label": "Go on?", "default": True})


@function
async def letter(*, ask: Ask) -> str:
    """A text of several lines, proposed as it is to come back."""
    return await ask({"kind": "text", "label": "Your letter", "default": "Dear you,\r\n  hello.  "})


@function
async def three(*, ask: Ask) -> str:
    """A text of three characters at most."""
    return await ask({"kind": "text", "label": "Three", "max_length": 3})
