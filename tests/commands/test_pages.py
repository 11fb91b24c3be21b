"""Pages that clients may go to."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, succeed

from zcomm.auth.policy import Policy
from zcomm.commands.pages import PageRegistry, Pages
from zcomm.errors import ConfigError, Invalid, NotFound, PermissionDenied, UnknownCommand

POLICY = Policy.from_yaml('admin: {pages: "*"}\nguest: {pages: ["/", "/shop/*"]}', "policy")


@pytest.fixture
def pages() -> Pages:
    registry = PageRegistry()
    registry.register("/", title="Home")
    registry.register("/shop/cart", data={"items": 3})
    registry.register("/admin/users", title="Users", data=lambda: {"model": "Users"})
    return Pages(registry, POLICY)


def test_a_page_is_visited_and_remembered(pages, caller, asking):
    """The answer has the path, the title and the page's data; the client is there from then on."""
    assert pages.respond(asking("zLink", "zLink(/admin/users)"), caller) == {
        "path": "/admin/users",
        "title": "Users",
        "model": "Users",
    }
    assert caller.place == "/admin/users"
    assert pages.respond(asking("zLink", "zLink(/shop/cart)"), caller) == {
        "path": "/shop/cart",
        "title": "",
        "items": 3,
    }
    assert caller.place == "/shop/cart"


@pytest.mark.parametrize(
    "path",
    [
        "/admin/users",
        "/admin/none",
        "/admin",
        "../..",
        "admin",
        "@.zCloud.users",
        "~",
    ],
)
def test_the_servers_table_decides(path: str, pages, guest, asking):
    """I10, A15: whoever may not go there hears the same whether the page exists or not, and stays where he was."""
    guest.visited("/")
    with pytest.raises(PermissionDenied, match="^Permission denied$"):
        pages.respond(asking("zLink", f"zLink({path})"), guest)
    assert guest.place == "/"


@pytest.mark.parametrize(
    "text",
    [
        'zLink(/admin/users, {role: "guest"})',
        'zLink(/admin/users, {"role": "admin"})',
        "zLink(/shop/cart, {})",
    ],
)
def test_rights_the_client_claims_are_refused(text: str, pages, guest, asking):
    """I11: permissions in the command are an error, for every page."""
    with pytest.raises(Invalid):
        pages.respond(asking("zLink", text), guest)
    assert guest.place == ""


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/admin/user", 'Unknown page; did you mean "/admin/users"?'),
        ("/nowhere-at-all", "Unknown page"),
        ("//", "Unknown page"),
        ("/admin/../admin/users", "Unknown page"),
    ],
)
def test_unknown_pages_are_unknown(path: str, text: str, pages, caller, asking):
    """Paths are looked up exactly as they are; nothing is resolved or guessed."""
    with pytest.raises(UnknownCommand) as caught:
        pages.respond(asking("zLink", f"zLink({path})"), caller)
    assert str(caught.value).startswith(text.split(";")[0])
    if "did you mean" in text:
        assert str(caught.value) == text


def test_a_suggestion_tells_nothing_forbidden(pages, guest, asking):
    """Only pages that the client may visit are suggested."""
    pages.registry.register("/shopping")
    with pytest.raises(UnknownCommand, match='^Unknown page; did you mean "/shop/cart"\\?$'):
        pages.respond(asking("zLink", "zLink(/shop/carts)"), guest)
    with pytest.raises(UnknownCommand, match="^Unknown page$"):
        pages.respond(asking("zLink", "zLink(/shop/xxxxxxxxxxxxxxxx)"), guest)


@pytest_twisted.inlineCallbacks
def test_data_may_take_its_time(pages, caller, asking):
    """A function may give a Deferred, a coroutine or nothing, and ask who comes."""

    async def later(*, identity):
        await succeed(None)
        return {"user": identity.name}

    pages.registry.register("/later", data=later)
    pages.registry.register("/deferred", data=lambda *, client: succeed({"id": client.id, "path": "forged"}))
    pages.registry.register("/nothing", data=lambda: None)
    answer = yield pages.respond(asking("zLink", "zLink(/later)"), caller)
    assert answer == {"user": "alice", "path": "/later", "title": ""}
    answer = yield pages.respond(asking("zLink", "zLink(/deferred)"), caller)
    assert answer == {"id": 1, "path": "/deferred", "title": ""}
    assert pages.respond(asking("zLink", "zLink(/nothing)"), caller) == {"path": "/nothing", "title": ""}


@pytest_twisted.inlineCallbacks
def test_a_page_that_fails_is_not_visited(pages, caller, asking):
    """The place changes only once the page's data is there."""
    waiting: Deferred[Any] = Deferred()
    pages.registry.register("/failing", data=lambda: waiting)
    answer = pages.respond(asking("zLink", "zLink(/failing)"), caller)
    assert caller.place == ""
    waiting.errback(NotFound("gone"))
    with pytest.raises(NotFound):
        yield answer
    assert caller.place == ""


@pytest.mark.parametrize(
    ("path", "data", "reason"),
    [
        ("", None, "is no path"),
        ("/a b", None, "is no path"),
        ("/a\n", None, "is no path"),
        (5, None, "is no path"),
        ("x" * 513, None, "is no path"),
        ("/", None, "registered already"),
        ("/x", {"path": 1}, "cannot redefine 'path'"),
        ("/x", {"title": 1}, "cannot redefine 'title'"),
        ("/x", [1], "neither a mapping nor a function"),
        ("/x", lambda request: {}, "nobody can fill the parameter 'request'"),
        ("/x", lambda *, user: {}, "nobody can fill the parameter 'user'"),
    ],
)
def test_pages_that_cannot_be_are_not_registered(path: Any, data: Any, reason: str, pages):
    """A page no client could reach, or no visit could fill, is an error where it is registered."""
    before = len(pages.registry)
    with pytest.raises(ConfigError, match=reason):
        pages.registry.register(path, data=data)
    assert len(pages.registry) == before
    assert "/admin/users" in pages.registry
