"""Functions of an ordinary program, for ``--functions``: quick ones, slow ones, and one that fails."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from zcomm import function
from zcomm.host import demo

#: As many as make it dear to find the nearest name.
NAMES = [f"function_for_report_number_{number:02}" for number in range(60)]


@function
def quick() -> int:
    """In a thread, and done at once."""
    return 1


@function
def wait(seconds: float = 5.0) -> float:
    """Hold a thread, as a call of some other service does."""
    time.sleep(seconds)
    return seconds


@function
def question(*, ask: Callable[..., Any]) -> Any:
    """A thread whose person thinks."""
    return ask({"kind": "text", "label": "Well?"}, 30.0)


@function
async def questions(*, ask: Callable[..., Any]) -> Any:
    """The same without a thread."""
    return await ask({"kind": "text", "label": "Well?"}, 30.0)


@function
def steps(count: int, *, progress: Callable[..., Any]) -> int:
    """Tell of each step."""
    for step in range(min(count, 100_000)):
        progress(step, count, "x" * 1000)
    return count


@function(broadcast=True)
def news(text: str) -> str:
    """Tell the others."""
    return text


@function
def fails(thing: Any = None) -> Any:
    """A bug."""
    return {}[f"no such key: {thing}"]


@function
def calculateTotal(cart: Any) -> Any:
    """That of the demo."""
    return demo.calculateTotal(cart)


def _report(name: str) -> Callable[[], int]:
    @function(name=name)
    def report() -> int:
        return 1

    return report


globals().update({name: _report(name) for name in NAMES})
