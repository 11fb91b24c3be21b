"""The string forms of commands, ``zFunc(…)``, ``zLink(…)`` and ``zOpen(…)``, each with its responder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from zcomm.bifrost.dispatch import Dispatcher
from zcomm.commands.files import Files
from zcomm.commands.functions import FunctionRegistry, Functions
from zcomm.commands.grammar import parse_call
from zcomm.commands.pages import PageRegistry, Pages
from zcomm.interfaces import Audience, Client, Request

if TYPE_CHECKING:
    from zcomm.runtime.workers import Workers

__all__ = ["serve_forms"]


def serve_forms(
    dispatcher: Dispatcher,
    workers: Workers,
    *,
    functions: FunctionRegistry | None = None,
    pages: PageRegistry | None = None,
    files: Files | None = None,
    context: Callable[[Request, Client], Mapping[str, Any]] | None = None,
) -> None:
    """Register the forms of what is given; the others stay unknown commands.

    :param dispatcher: its permissions are asked before each call and visit.
    :param workers: where plain functions run.
    :param functions: what ``zFunc`` calls.
    :param pages: where ``zLink`` leads.
    :param files: what ``zOpen`` reads.
    :param context: gives functions what they ask for beyond their arguments, such as ``progress``.
    """
    if functions is not None:
        dispatcher.form("zFunc", Functions(functions, dispatcher.permissions, workers, context).respond, as_json=True)
    if pages is not None:
        dispatcher.form(
            "zLink",
            Pages(pages, dispatcher.permissions).respond,
            lambda text: Audience("page", parse_call(text, "zLink").name),
        )
    if files is not None:
        dispatcher.form(
            "zOpen", files.respond, lambda text: Audience("file", parse_call(text, "zOpen").name), as_json=True
        )
