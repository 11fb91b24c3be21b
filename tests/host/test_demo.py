"""The demo's functions and pages, and what the console command says where no server runs."""

from __future__ import annotations

import pytest

from zcomm.cli import main
from zcomm.commands.pages import PageRegistry
from zcomm.errors import Invalid
from zcomm.host import demo

calculate = demo.functions.get("calculateTotal").call


@pytest.mark.parametrize(
    "cart, total",
    [
        ({"cart_id": 123}, 49.0),
        ({"cart_id": 5}, 0),
        ({"items": [{"price": 2, "count": 3}, {"price": 1}]}, 7),
    ],
)
def test_a_cart_is_added_up(cart: dict, total: float):
    """The demo cart, one that is not there, and one that is sent."""
    assert calculate(cart)["total"] == total


@pytest.mark.parametrize(
    "cart",
    [
        *(5, "x", [], None, {"items": [{}]}, {"items": [5]}, {"items": [{"price": None}]}, {"items": [[]]}),
        *({"items": 5}, {"items": None}, {"items": "abc"}, {"items": {"price": 1}}),
    ],
)
def test_what_is_no_cart(cart: object):
    """It is refused in words."""
    with pytest.raises(Invalid):
        calculate(cart)


@pytest.mark.parametrize(
    "item",
    [
        {"price": "A", "count": 2_000_000_000},
        {"price": ["A"], "count": 2_000_000_000},
        {"price": 2, "count": "A" * 9},
        {"price": 2, "count": [1]},
        {"price": True, "count": 2},
        {"price": 10**4000, "count": 10**4000},
        {"price": float("nan")},
        {"price": 1, "count": float("inf")},
    ],
)
def test_b17_a_small_cart_becomes_no_memory(item: dict):
    """What is no number of an ordinary size is refused before it is multiplied."""
    with pytest.raises(Invalid):
        calculate({"items": [item]})


def test_b17_a_large_cart_is_none():
    """There are only so many items; what nobody can look up is no cart that is there."""
    with pytest.raises(Invalid):
        calculate({"items": [{"price": 1}] * 1001})
    with pytest.raises(Invalid, match="cart_id"):
        calculate({"cart_id": [123]})


def test_the_pages():
    """The guide's page is one of them."""
    pages = PageRegistry()
    demo.add_pages(pages)
    assert "/admin/users" in pages and "/" in pages


@pytest.mark.parametrize("command", [["url"], ["url", "--json"], ["call", "ping"], ["call", "zLink(/)"]])
def test_no_server_runs(command: list[str], tmp_path, capsys):
    """It says how to start one, and ends with 1."""
    assert main([*command, "--data-dir", str(tmp_path)]) == 1
    assert "twistd -n zcomm" in capsys.readouterr().err


def test_without_a_command_it_says_what_there_is(capsys):
    """All of it, where errors go, with the status of a wrong usage."""
    assert main([]) == 2
    assert "the tokens that clients log in with" in capsys.readouterr().err


def test_a_horizontal_that_is_no_json(tmp_path, capsys):
    """It is named, and nothing is sent."""
    assert main(["call", "ping", "{", "--data-dir", str(tmp_path)]) == 1
    assert "is not JSON" in capsys.readouterr().err
