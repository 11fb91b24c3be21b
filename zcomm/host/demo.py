"""The demo: two functions and two pages beside the demo schema, for as long as the user names none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.task import deferLater

from zcomm.commands.functions import FunctionRegistry
from zcomm.commands.pages import PageRegistry
from zcomm.errors import Invalid
from zcomm.host.program import Program

__all__ = ["add_pages", "add_to", "functions"]

functions = FunctionRegistry()

#: Items of a cart, and what its prices and counts may be.
MOST_ITEMS, MOST = 1000, 1_000_000_000

_CARTS: dict[Any, Any] = {
    123: ({"item": "Bridge", "price": 42.0, "count": 1}, {"item": "Rainbow", "price": 3.5, "count": 2})
}


@functions.register
def calculateTotal(cart: dict[str, Any]) -> dict[str, Any]:
    """Add up a cart: the demo cart, or items that are sent.

    That is ``{cart_id: 123}``, or ``{items: [{price, count}]}``.
    """
    if not isinstance(cart, dict):
        raise Invalid("A cart is an object such as {cart_id: 123}")
    number = cart.get("cart_id")
    if not isinstance(number, (int, str, type(None))):
        raise Invalid("cart_id is a number or a text", {"cart_id": "must be a number or a text"})
    items = cart.get("items", _CARTS.get(number, ()))
    if not isinstance(items, (list, tuple)) or len(items) > MOST_ITEMS:
        raise _no_items()
    return {"cart_id": number, "items": len(items), "total": sum(map(_price_of, items))}


def _price_of(item: Any) -> float:
    """The price of an item, as often as it is there. Numbers only: a text or a list times a number is memory."""
    if not isinstance(item, dict):
        raise _no_items()
    return _number(item.get("price")) * _number(item.get("count", 1))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= MOST:
        raise _no_items()
    return value


def _no_items() -> Invalid:
    return Invalid(
        "Each item of a cart needs a price",
        {"items": f"a list of up to {MOST_ITEMS} {{price, count}}, numbers up to {MOST}"},
    )


@functions.register
async def greet(*, ask: Callable[[Any], Any], progress: Callable[[int, int, str], None]) -> str:
    """Ask the visitor's name, then count the steps over the bridge."""
    from twisted.internet import reactor

    name = await ask({"kind": "text", "label": "What is your name?", "max_length": 80})
    steps = 5
    for step in range(1, steps + 1):
        await deferLater(reactor, 0.2)
        progress(step, steps, f"step {step} of {steps} over the bridge")
    return f"Welcome to the other side, {name.strip()}!"


def add_to(program: Program) -> None:
    """Let a program have the functions and the pages of the demo."""
    program.functions.update(functions)
    add_pages(program.pages)


def add_pages(pages: PageRegistry) -> None:
    """Register the demo pages."""
    pages.register("/", title="Home", data={"links": ["/admin/users"]})
    pages.register("/admin/users", title="Users", data={"model": "Users"})
