"""From a request to the responder that answers it: a lookup, not a ladder (docs/protocol.rst, "Commands").

In this order: a command registered under exactly this ``zKey``; a host's own dispatcher, for the keys that
it is asked; the string forms ``zFunc(…)``, ``zLink(…)`` and ``zOpen(…)``, the first and the last of them in JSON too;
CRUD on a model.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.defer import Deferred

from zcomm.bifrost.given import LONG, PARAMETERS, Given, as_json, ending, kind_of
from zcomm.errors import ConfigError, PermissionDenied, UnknownCommand
from zcomm.interfaces import EVERYBODY, Audience, Client, Outcome, Permissions, Request
from zcomm.runtime.deferreds import awaited
from zcomm.text import did_you_mean
from zcomm.wire.frames import is_light

if TYPE_CHECKING:
    from zcomm.runtime.workers import Workers

__all__ = ["Dispatcher", "Responder", "adapted"]

#: Answers a request: with a value, an :class:`~zcomm.interfaces.Outcome`, a Deferred or a coroutine.
Responder = Callable[[Request, Client], Any]


#: Results that are never large, or are one text.
_PLAIN = frozenset({bool, float, int, str, type(None)})


class KeyedResponder(Protocol):
    """A part that answers some keys: ``create_Users`` and its like, or those that a host's dispatcher is asked."""

    def matches(self, key: str) -> bool: ...

    def respond(self, request: Request, client: Client) -> Any: ...


def ping(request: Request, client: Client) -> Any:
    """Answer with the request's own ``zHorizontal``: a client's proof that commands get through."""
    return request.horizontal


class Dispatcher:
    """The commands of one server.

    :param permissions: asked before each registered command runs.
    :param given: makes what commands ask for beside what the client sends.
    :raises ConfigError: for permissions that lack a method.
    """

    def __init__(self, permissions: Permissions, given: Given):
        for question in ("allows", "rows"):
            if not callable(getattr(permissions, question, None)):
                raise ConfigError("permissions", f"{permissions!r:.100} has no method {question}; see zcomm.interfaces")
        fields = getattr(permissions, "fields", None)
        if fields is not None and not callable(fields):
            raise ConfigError(
                "permissions", f"{permissions!r:.100} has fields that are no method; see zcomm.interfaces"
            )
        self.permissions = permissions
        self.given = given
        #: The registered commands, by their exact zKey.
        self.commands: dict[str, Responder] = {"ping": ping}
        #: Where very large results of commands become JSON; on the reactor's thread where it is ``None``.
        self.workers: Workers | None = None
        self._audiences = {"ping": EVERYBODY}
        self._forms: dict[str, tuple[Responder, Callable[[Any], Audience] | None]] = {}
        self._in_json: set[str] = set()
        self._reads: set[str] = set()
        self._crud: KeyedResponder | None = None
        self._host: KeyedResponder | None = None

    def command(self, key: str, *, broadcast: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Register a custom command; used as a decorator: ``@bifrost.command("custom_command")``.

        The function gets as much as it declares: nothing, ``zHorizontal``, or ``zHorizontal`` and the
        :class:`~zcomm.interfaces.Client`; and what its keyword-only parameters name (:mod:`zcomm.bifrost.given`). It
        returns a value, a Deferred or a coroutine, and raises :class:`~zcomm.errors.CommandError` for what the client
        shall be told.

        :param key: the exact ``zKey``.
        :param broadcast: whether other clients who may use the command get its results too.
        :raises ConfigError: for a key that is taken or not a non-empty string, and for parameters that nobody could
            fill.
        """

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            answer, wants = adapted(key, function)

            def respond(request: Request, client: Client) -> Any:
                given = self.given(wants, request, client, "reactor")
                return ending(lambda: answer(request, client, given), given)

            self.add(key, respond if wants else answer, broadcast=broadcast)
            return function

        return register

    def add(self, key: str, responder: Responder, *, broadcast: bool = False) -> None:
        """Register ``responder`` for ``key``; see :meth:`command`.

        :raises ConfigError: for a key that is taken or not a non-empty string.
        """
        if not isinstance(key, str) or not key:
            raise ConfigError("command", f"a zKey is a non-empty string, not {key!r}")
        if key in self.commands:
            raise ConfigError("command", f"{key!r} is registered already")
        try:
            # The key may be a member of an enumeration of texts; an audience is plain.
            audience = Audience("command", str.__str__(key))
        except ValueError:
            raise ConfigError("command", f"no message can have the zKey {key!r:.80}") from None
        self._audiences[key] = audience
        self.commands[key] = self._permitted(key, responder, audience if broadcast else None)

    def _permitted(self, key: str, answer: Responder, audience: Audience | None) -> Responder:
        permissions = self.permissions

        def respond(request: Request, client: Client) -> Any:
            if not permissions.allows(client.identity, "use", "command", key):
                return self.refuse(request, client)
            result = answer(request, client)
            kind, workers = type(result), self.workers
            if kind in _PLAIN or workers is None:
                pass
            elif kind is dict or kind is list:
                if not is_light(result, LONG):
                    result = as_json(result, workers, client)
            elif isinstance(result := awaited(result), Deferred):
                result.addCallback(as_json, workers, client)
            if audience is None:
                return result
            return _announced(result, audience)

        return respond

    def reserve(self, key: str, responder: Responder, *, reads: bool = False) -> None:
        """Register a command of the server's own, which needs no permission. Only the caller hears of its results.

        :param reads: whether nothing happens by it, so that it may be repeated.
        """
        self.commands[key] = responder
        self._audiences.pop(key, None)
        if reads:
            self._reads.add(key)

    def form(
        self,
        name: str,
        responder: Responder,
        audience: Callable[[Any], Audience] | None = None,
        *,
        as_json: bool = False,
    ) -> None:
        """Register the responder of the string form ``name(…)``.

        :param audience: from the ``zHorizontal`` of a form that was answered to those who may ask the same; see
            :meth:`audience_of`. Nobody hears of results that name no audience when it is left out.
        :param as_json: whether an object under the key ``name`` is the same call in JSON.
        """
        self._forms[name] = responder, audience
        if as_json:
            self._in_json.add(name)

    def serve_data(self, crud: KeyedResponder | None, host: KeyedResponder | None = None) -> None:
        """Set what answers the commands that are not registered, in place of what did before.

        :param crud: answers CRUD commands; ``None`` where there are no models.
        :param host: a host's own dispatcher, which is asked before forms and models.
        """
        self._crud, self._host = crud, host

    def find(self, request: Request) -> Responder:
        """The responder for ``request``; one that refuses where nothing answers it.

        :raises UnknownCommand: for the name of a string form without the form, and for a form with something else
            beside it.
        """
        key = request.key
        responder = self.commands.get(key)
        if responder is not None:
            return responder
        if self._host is not None and self._host.matches(key):
            return self._host.respond
        horizontal = request.horizontal
        if type(horizontal) is str:
            # The form decides, but only under its own name: a result announced as "create_Users"
            # must have been a create.
            name, parenthesis, _ = horizontal.partition("(")
            if parenthesis and name in self._forms and (key == name or key == horizontal):
                return self._forms[name][0]
        if type(horizontal) is dict and key in self._in_json:
            return self._forms[key][0]
        if key in self._forms:
            raise UnknownCommand(f'{key} needs a zHorizontal of the form "{key}(…)"')
        name, parenthesis, _ = key.partition("(")
        if parenthesis and name in self._forms:
            raise UnknownCommand(f"{name}(…) as zKey says all: leave zHorizontal out, or send the same text as both")
        if self._crud is not None and self._crud.matches(key):
            return self._crud.respond
        return self.refuse

    def refuse(self, request: Request, client: Client, permissions: Permissions | None = None) -> Any:
        """Say that there is no such command, to who could use it; to others the same as of one that is not for them.

        :param permissions: say who could use it; the server's when they are left out.
        """
        key, identity = request.key, client.identity

        def may_know(name: str) -> bool:
            audience = self._audiences.get(name)
            return audience is None or audience.admits(identity, self.permissions)

        hint = did_you_mean(key, self.commands, allowed=may_know)
        permissions = self.permissions if permissions is None else permissions
        if permissions.allows(identity, "use", "command", key):
            raise UnknownCommand(f"Unknown command{hint}")
        raise PermissionDenied(f"Permission denied{hint}")

    def only_reads(self, request: Request) -> bool:
        """Whether nothing happens by ``request`` but that something is read, so that it may be repeated."""
        key = request.key
        if key in self._reads:
            return True
        if key in self.commands or (self._host is not None and self._host.matches(key)):
            return False
        return key.startswith("read_") or key.partition("(")[0] == "zOpen"

    def audience_of(self, request: Request) -> Audience | None:
        """The audience of a result that names none: those who have the right that ``request`` took.

        :returns: ``None`` for nobody, as for commands of the server's own, whose results concern their caller alone.
        """
        key = request.key
        if key in self.commands:
            return self._audiences.get(key)
        if self._host is not None and self._host.matches(key):
            return Audience("command", key)
        horizontal = request.horizontal
        if type(horizontal) is dict:
            name = key
        elif type(horizontal) is str:
            name = horizontal.partition("(")[0]
        else:
            return None
        _, audience = self._forms.get(name, (None, None))
        return None if audience is None or key not in (name, horizontal) else audience(horizontal)


def adapted(key: str, function: Callable[..., Any]) -> tuple[Callable[..., Any], tuple[str, ...]]:
    """A program's function as a responder that also takes what it asks for, and the names of that.

    :raises ConfigError: for what cannot be called so.
    """
    where = f"command {key!r:.80}"
    if not callable(function):
        raise ConfigError(where, f"{function!r:.100} cannot be called")
    if kind_of(function) == "generator":
        raise ConfigError(where, "a generator has no single result; return a list")
    try:
        parameters = signature(function).parameters.values()
    except (TypeError, ValueError):
        return lambda request, client, given=None: function(request.horizontal), ()
    by_place = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    wants = []
    for each in parameters:
        if each.kind is each.KEYWORD_ONLY:
            if each.name in PARAMETERS:
                wants.append(each.name)
            elif each.default is each.empty:
                raise ConfigError(where, f"nobody can fill the keyword-only parameter {each.name!r}")
        elif each in by_place and each.name in PARAMETERS and (each.name != "client" or by_place.index(each) != 1):
            # It would get what the client sent.
            raise ConfigError(where, f"{each.name!r} must be keyword-only: put it after a *")
    if any(each.default is each.empty for each in by_place[2:]):
        names = ", ".join(each.name for each in by_place)
        raise ConfigError(where, f"it is called with zHorizontal and the client at most, but takes {names}")
    takes = 2 if any(each.kind is each.VAR_POSITIONAL for each in parameters) else min(len(by_place), 2)
    if wants:
        return lambda request, client, given: function(*(request.horizontal, client)[:takes], **given), tuple(wants)
    if takes == 0:
        return lambda request, client, given=None: function(), ()
    if takes == 1:
        return lambda request, client, given=None: function(request.horizontal), ()
    return lambda request, client, given=None: function(request.horizontal, client), ()


def _announced(result: Any, audience: Audience) -> Any:
    """``result``, once it is there, as something that others hear of."""
    result = awaited(result)
    if isinstance(result, Deferred):
        return result.addCallback(lambda value: _announced(value, audience))
    return result if isinstance(result, Outcome) else Outcome(result, changed=True, audience=audience)
