"""Pages that clients may go to: ``zLink(/admin/users)``.

A page is a path that the program registered, with data for whoever arrives. What a client claims about
its own rights is not even parsed: the server's permissions decide.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.commands.grammar import PAGE_PATH, parse_call
from zcomm.errors import ConfigError, PermissionDenied, UnknownCommand
from zcomm.interfaces import Client, Permissions, Request
from zcomm.runtime.deferreds import awaited
from zcomm.text import did_you_mean

__all__ = ["Page", "PageRegistry", "Pages"]

#: Keys of the answer that a page's data cannot redefine.
RESERVED = ("path", "title")


@dataclass(frozen=True, slots=True)
class Page:
    """One registered page.

    :ivar path: as clients write it.
    :ivar title: for people.
    :ivar data: further keys of the answer, or a function that gives them.
    :ivar wants: which of ``identity`` and ``client`` the function asks for.
    """

    path: str
    title: str
    data: Mapping[str, Any] | Callable[..., Any]
    wants: tuple[str, ...] = ()


class PageRegistry:
    """The pages that clients may go to, by path."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}

    def __iter__(self) -> Iterator[Page]:
        return iter(self._pages.values())

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, path: object) -> bool:
        return path in self._pages

    def get(self, path: str) -> Page | None:
        """The page registered under exactly ``path``, or ``None``."""
        return self._pages.get(path)

    def register(
        self, path: str, *, title: str = "", data: Mapping[str, Any] | Callable[..., Any] | None = None
    ) -> None:
        """Let clients go to ``path``.

        :param path: 1 to 512 letters, digits or any of ``_ . - / @ ~``.
        :param data: further keys of the answer. A function is called for each visit, on the reactor
            thread, and gives a mapping, a Deferred or a coroutine of one, or ``None``; it may have the
            keyword-only parameters ``identity`` and ``client``.
        :raises ConfigError: for a path that is taken or that no client could write, for data that
            redefines ``path`` or ``title``, or for a function that needs anything else.
        """
        if not isinstance(path, str) or not PAGE_PATH.match(path):
            raise ConfigError("page", f"{path!r:.80} is no path: 1 to 512 letters, digits or _ . - / @ ~")
        if path in self._pages:
            raise ConfigError("page", f"{path} is registered already")
        wants: tuple[str, ...] = ()
        if data is None:
            data = {}
        elif isinstance(data, Mapping):
            taken = [key for key in RESERVED if key in data]
            if taken:
                raise ConfigError("page", f"the data of {path} cannot redefine {taken[0]!r}")
        elif callable(data):
            wants = _wants(path, data)
        else:
            raise ConfigError("page", f"the data of {path} is neither a mapping nor a function")
        self._pages[path] = Page(path, title, data, wants)


def _wants(path: str, data: Callable[..., Any]) -> tuple[str, ...]:
    found = []
    for parameter in inspect.signature(data).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and parameter.name in ("identity", "client"):
            found.append(parameter.name)
        elif parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        ):
            raise ConfigError("page", f"{path}: nobody can fill the parameter {parameter.name!r} of its data")
    return tuple(found)


class Pages:
    """Answers ``zLink(…)`` with ``{"path", "title", …}``, and remembers where the client is."""

    def __init__(self, registry: PageRegistry, permissions: Permissions):
        self.registry = registry
        self.permissions = permissions

    def respond(self, request: Request, client: Client) -> Any:
        """Take the client to the page that ``request`` names.

        The permission goes by the path alone and is asked first: a client cannot find out which of the
        pages it may not visit exist.

        :return: what the page holds, or a Deferred of it.
        :raises CommandError: when the client may not go there or there is no such page.
        """
        path = parse_call(request.horizontal, "zLink").name
        if not self.permissions.allows(client.identity, "visit", "page", path):
            raise PermissionDenied
        page = self.registry.get(path)
        if page is None:
            # Of a page that the client may not visit it is not told.
            hint = did_you_mean(
                path,
                (each.path for each in self.registry),
                allowed=lambda path: self.permissions.allows(client.identity, "visit", "page", path),
            )
            raise UnknownCommand(f"Unknown page{hint}")
        if isinstance(page.data, Mapping):
            return _arrive(page.data, page, client)
        offered = {"identity": client.identity, "client": client}
        data = awaited(page.data(**{name: offered[name] for name in page.wants}))
        if isinstance(data, Deferred):
            return data.addCallback(_arrive, page, client)
        return _arrive(data, page, client)


def _arrive(data: Mapping[str, Any] | None, page: Page, client: Client) -> dict[str, Any]:
    """The answer; the place counts only once there is one."""
    answer = {**(data or {}), "path": page.path, "title": page.title}
    client.visited(page.path)
    return answer
