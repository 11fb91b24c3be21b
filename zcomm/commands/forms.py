"""The string forms of commands, ``zFunc(…)``, ``zLink(…)`` and ``zOpen(…)``, each with its responder."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zcomm.bifrost.dispatch import Dispatcher
from zcomm.bifrost.given import Given
from zcomm.commands.files import Files
from zcomm.commands.functions import FunctionRegistry, Functions, InLoop
from zcomm.commands.grammar import parse_call
from zcomm.commands.pages import PageRegistry, Pages
from zcomm.interfaces import Audience

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
    given: Given | None = None,
    in_loop: InLoop | None = None,
) -> None:
    """Register the forms of what is given; the others stay unknown commands.

    :param dispatcher: its permissions are asked before each call and visit.
    :param workers: where plain functions run.
    :param functions: what ``zFunc`` calls.
    :param pages: where ``zLink`` leads.
    :param files: what ``zOpen`` reads.
    :param given: makes what functions ask for beside their arguments; the dispatcher's own when left out.
    :param in_loop: runs the coroutines of functions in a program's asyncio loop.
    """
    if functions is not None:
        served = Functions(functions, dispatcher.permissions, workers, given or dispatcher.given, in_loop)
        dispatcher.form("zFunc", served.respond, as_json=True)
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
