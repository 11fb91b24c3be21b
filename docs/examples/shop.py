"""Functions that clients may call: ``twistd zcomm --functions shop``."""

from decimal import Decimal

from zcomm import function
from zcomm.errors import Invalid

CARTS = {123: [Decimal("19.99"), Decimal("39.98")]}


@function
def calculateTotal(cart):
    """A plain function runs in a thread, so it may take its time."""
    prices = CARTS.get(cart.get("cart_id"))
    if prices is None:
        raise Invalid("There is no such cart", {"cart_id": "unknown"})
    return {"cart_id": cart["cart_id"], "total": sum(prices)}


@function(broadcast=True)
def importRows(count, *, progress):
    """Whoever called sees how far it is; the others hear of the result."""
    for row in range(1, count + 1):
        progress(row, count, f"row {row}")
    return count


@function
async def whoAmI(*, identity):
    """The server says who is calling; no client can claim to be somebody else."""
    return {"name": identity.name, "role": identity.role}
