"""Functions that clients may call: ``zFunc(calculateTotal, {cart_id: 123})``.

Only what a program registered can be called, by the name it was registered under: no module, attribute
or path ever comes from the wire. A plain function runs in a worker thread, a coroutine function or one
that says it returns a Deferred on the reactor thread; with :mod:`zcomm.threaded` a coroutine function runs in
the program's asyncio loop. What a plain function returns may be a coroutine, another awaitable, a future or a
Deferred as well: it is waited for there, and holds no worker.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, TypeVar, overload

from twisted.internet.defer import Deferred

from zcomm.bifrost.given import (
    PARAMETERS,
    Given,
    InLoop,
    Kind,
    Place,
    as_json,
    ending,
    in_the_loop,
    in_worker,
    kind_of,
)
from zcomm.commands.grammar import FUNCTION_NAME, parse_call
from zcomm.errors import ConfigError, Invalid, PermissionDenied, UnknownCommand
from zcomm.interfaces import Audience, Client, Outcome, Permissions, Request
from zcomm.reading import open_to_everybody
from zcomm.runtime.deferreds import then
from zcomm.text import did_you_mean, quoted

if TYPE_CHECKING:
    from zcomm.runtime.workers import Workers

__all__ = ["Function", "FunctionRegistry", "Functions", "InLoop", "function", "load_functions"]

F = TypeVar("F", bound=Callable[..., Any])

#: Wrong arguments that an error names; more are told of by these.
MANY = 20
#: No caller may name these, whatever a function calls its parameters.
NEVER_GIVEN = (*PARAMETERS, "db")

_MARK = "__zcomm_function__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """One registered function.

    :ivar name: what clients call it.
    :ivar call: the function itself.
    :ivar broadcast: whether other clients who may call it get its results too.
    :ivar audience: those clients.
    :ivar thread: whether it runs in a worker thread.
    :ivar kind: what it is known to return.
    :ivar parameters: the names of what the caller passes, in order.
    :ivar defaults: what the others of those are, where the caller leaves them out.
    :ivar required: how many of those have no default.
    :ivar unbounded: whether it takes any number of further arguments.
    :ivar wants: which of ``identity``, ``client``, ``progress`` and ``ask`` it wants.
    """

    name: str
    call: Callable[..., Any]
    broadcast: bool
    audience: Audience
    thread: bool
    kind: Kind
    parameters: tuple[str, ...]
    defaults: tuple[Any, ...]
    required: int
    unbounded: bool
    wants: tuple[str, ...]

    @classmethod
    def of(cls, fn: Callable[..., Any], name: str | None, broadcast: bool, thread: bool | None) -> Function:
        """Look at ``fn`` once, so that a call needs no more than a count.

        :raises ConfigError: for a name no client could write, and for a function that no call could fit.
        """
        if not callable(fn):
            raise ConfigError("function", f"{fn!r} cannot be called")
        if name is None:
            name = getattr(fn, "__name__", "")
        if not isinstance(name, str) or not FUNCTION_NAME.match(name):
            raise ConfigError("function", f"{name!r} is no name for zFunc: a letter, then letters, digits, _")
        # It may be a member of an enumeration of texts; an audience is plain.
        name = str.__str__(name)
        kind = kind_of(fn)
        if kind == "generator":
            raise ConfigError(name, "a generator has no single result; return a list")
        try:
            signature = inspect.signature(fn)
        except (TypeError, ValueError):
            raise ConfigError(name, "its parameters are unknown; wrap it in a function of yours") from None
        positional, defaults, unbounded, wants = [], [], False, []
        for parameter in signature.parameters.values():
            needed = parameter.default is parameter.empty
            if parameter.kind is parameter.VAR_POSITIONAL:
                unbounded = True
            elif parameter.kind is parameter.KEYWORD_ONLY:
                if parameter.name in PARAMETERS:
                    wants.append(parameter.name)
                elif needed:
                    raise ConfigError(name, f"nobody can fill the keyword-only parameter {parameter.name!r}")
            elif parameter.kind is not parameter.VAR_KEYWORD:
                if parameter.name in PARAMETERS:
                    # A caller could otherwise say who it is.
                    raise ConfigError(name, f"{parameter.name!r} must be keyword-only: put it after a *")
                positional.append(parameter.name)
                if not needed:
                    defaults.append(parameter.default)
        if thread and kind in ("coroutine", "deferred"):
            raise ConfigError(name, "is asynchronous and cannot run in a thread; leave thread=True out")
        in_thread = kind == "plain" if thread is None else thread
        return cls(
            name=name,
            call=fn,
            broadcast=broadcast,
            audience=Audience("function", name),
            thread=in_thread,
            kind=kind,
            parameters=tuple(positional),
            defaults=tuple(defaults),
            required=len(positional) - len(defaults),
            unbounded=unbounded,
            wants=tuple(wants),
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """All arguments by place: ``args``, and those of ``kwargs`` at the place of their parameter.

        A name is looked up among :attr:`parameters`, so none reaches what the server fills in.

        :raises Invalid: naming what is missing, too much, unknown or given twice.
        """
        if not kwargs:
            self.check(args)
            return args
        unknown = [name for name in kwargs if name not in self.parameters or name in NEVER_GIVEN]
        if unknown:
            near = did_you_mean(unknown[0], [name for name in self.parameters if name not in NEVER_GIVEN])
            raise Invalid(
                f"Invalid arguments: {self.name} takes no {quoted(unknown[0])}{near}",
                dict.fromkeys(unknown[:MANY], "is unknown"),
            )
        by_place = self.parameters[: len(args)]
        if twice := [name for name in kwargs if name in by_place]:
            raise Invalid(f"Invalid arguments: {twice[0]} is given twice", dict.fromkeys(twice, "is given twice"))
        needed = self.parameters[len(args) : self.required]
        if missing := [name for name in needed if name not in kwargs]:
            raise self._missing(missing)
        last = max(self.parameters.index(name) for name in kwargs)
        left_out = dict(zip(self.parameters[self.required :], self.defaults, strict=True))
        rest = self.parameters[len(args) : last + 1]
        return args + tuple(kwargs[name] if name in kwargs else left_out[name] for name in rest)

    def _missing(self, names: Sequence[str]) -> Invalid:
        return Invalid(f"Invalid arguments: {self.name} needs {', '.join(names)}", dict.fromkeys(names, "missing"))

    def check(self, args: tuple[Any, ...]) -> None:
        """:raises Invalid: naming what is missing, when ``args`` are too few or too many."""
        given, known = len(args), len(self.parameters)
        if given < self.required:
            raise self._missing(self.parameters[given : self.required])
        if given > known and not self.unbounded:
            takes = ", ".join(self.parameters) if known else "no arguments"
            raise Invalid(f"Invalid arguments: {self.name} takes {takes}, but {given} were given")


class FunctionRegistry:
    """The functions that clients may call, by name."""

    def __init__(self) -> None:
        self._functions: dict[str, Function] = {}

    def __iter__(self) -> Iterator[Function]:
        return iter(self._functions.values())

    def __len__(self) -> int:
        return len(self._functions)

    def __contains__(self, name: object) -> bool:
        return name in self._functions

    def get(self, name: str) -> Function | None:
        """The function registered under exactly ``name``, or ``None``."""
        return self._functions.get(name)

    @overload
    def register(self, fn: F, *, name: str | None = ..., broadcast: bool = ..., thread: bool | None = ...) -> F: ...

    @overload
    def register(
        self, fn: None = ..., *, name: str | None = ..., broadcast: bool = ..., thread: bool | None = ...
    ) -> Callable[[F], F]: ...

    def register(
        self,
        fn: Callable[..., Any] | None = None,
        *,
        name: str | None = None,
        broadcast: bool = False,
        thread: bool | None = None,
    ) -> Any:
        """Let clients call ``fn``; called plainly, or as a decorator with or without options.

        The function gets the caller's arguments by position. Keyword-only parameters named ``identity``, ``client``,
        ``progress`` and ``ask`` are filled by the server (:mod:`zcomm.bifrost.given`). It raises
        :class:`~zcomm.errors.CommandError` for what the client shall be told.

        :param name: what clients call it; its own name when not given.
        :param broadcast: whether other clients who may call it get its results too.
        :param thread: ``False`` runs a plain function on the reactor thread, which it must not hold up.
        :return: ``fn`` itself.
        :raises ConfigError: for a name that is taken or no client could write, or for parameters that no
            call could fill.
        """
        if fn is None:
            return lambda fn: self.register(fn, name=name, broadcast=broadcast, thread=thread)
        self._add(Function.of(fn, name, broadcast, thread))
        return fn

    def update(self, other: FunctionRegistry) -> None:
        """Take over the functions of ``other``.

        :raises ConfigError: for a name that is taken by another function.
        """
        for entry in other:
            self._add(entry)

    def _add(self, entry: Function) -> None:
        known = self._functions.get(entry.name)
        if known is not None and known.call is not entry.call:
            raise ConfigError(entry.name, "two functions of that name; give one another with name=")
        self._functions[entry.name] = entry


@overload
def function(fn: F, *, name: str | None = ..., broadcast: bool = ..., thread: bool | None = ...) -> F: ...


@overload
def function(
    fn: None = ..., *, name: str | None = ..., broadcast: bool = ..., thread: bool | None = ...
) -> Callable[[F], F]: ...


def function(fn: Any = None, *, name: str | None = None, broadcast: bool = False, thread: bool | None = None) -> Any:
    """Mark a function of a module for ``twistd zcomm --functions MODULE``::

        from zcomm import function

        @function
        def calculateTotal(cart):
            return {"total": sum(item["price"] for item in prices_of(cart["cart_id"]))}

    The parameters are those of :meth:`FunctionRegistry.register`.

    :return: the function itself, which the module may go on calling.
    :raises ConfigError: at once, where :meth:`FunctionRegistry.register` would.
    """
    if fn is None:
        return lambda fn: function(fn, name=name, broadcast=broadcast, thread=thread)
    entry = Function.of(fn, name, broadcast, thread)
    try:
        setattr(fn, _MARK, entry)
    except AttributeError:
        raise ConfigError(entry.name, "cannot be marked; wrap it in a function of yours") from None
    return fn


class _Untrusted(ConfigError):
    """A module that anybody could have written."""


def _require_trusted(module_name: str, setting: str) -> None:
    """:raises _Untrusted: where anybody may change the code of a module, or of a package that it is in."""
    parts = module_name.split(".")
    for end in range(1, len(parts) + 1) if all(parts) else ():
        name = ".".join(parts[:end])
        spec = None if name in sys.modules else find_spec(name)
        places = (
            [] if spec is None else [*(spec.submodule_search_locations or ()), *([spec.origin] * spec.has_location)]
        )
        for place in filter(None, places):
            if reason := open_to_everybody(place):
                raise _Untrusted(setting, f"its code could be anybody's: {reason}")


def load_functions(module_name: str) -> FunctionRegistry:
    """Import a module and collect what it marked with :func:`function`.

    It is looked for where Python looks, and then in the current directory, where programs are tried out.
    Functions that it imported from elsewhere are not exposed, even if marked there; those of its own
    submodules are.

    :param module_name: dotted, as on the command line; never from the wire.
    :raises ConfigError: naming the module and the cause, when it cannot be imported or marks nothing.
    """
    setting, unseen = f"--functions {module_name}", ""
    if module_name.endswith(".py") or "/" in module_name:
        dotted = module_name.removesuffix(".py").removeprefix("./").replace("/", ".")
        raise ConfigError(setting, f"it takes the name of a module, not of a file; try --functions {dotted}")
    try:
        # Last, so that a file lying there takes no other module's place.
        if (here := os.getcwd()) not in sys.path:
            if reason := open_to_everybody(here):
                unseen = f"; the current directory is left out: {reason}"
            else:
                sys.path.append(here)
        _require_trusted(module_name, setting)
        module = import_module(module_name)
    except (KeyboardInterrupt, _Untrusted):
        raise
    except ModuleNotFoundError as error:
        if error.name != module_name.partition(".")[0]:
            raise ConfigError(setting, f"cannot be imported: it needs {error.name!r}, which is not there") from error
        raise ConfigError(
            setting,
            f"there is no such module; it must be installed, on PYTHONPATH or in the current directory{unseen}",
        ) from None
    except BaseException as error:
        # A module may fail in any way at import, SystemExit included.
        raise ConfigError(setting, f"cannot be imported: {type(error).__name__}: {error}") from error
    registry = FunctionRegistry()
    for value in list(vars(module).values()):
        entry = getattr(value, _MARK, None) if callable(value) else None
        if isinstance(entry, Function):
            home = getattr(value, "__module__", "") or ""
            if home == module_name or home.startswith(module_name + "."):
                registry._add(Function.of(value, entry.name, entry.broadcast, entry.thread))
    if not registry:
        raise ConfigError(setting, "has no function marked with @zcomm.function")
    return registry


class Functions:
    """The responder of ``zFunc(…)``.

    :param registry: what may be called.
    :param permissions: asked before each call, and for each other client before a result is broadcast.
    :param workers: where plain functions run, each client's in turn.
    :param given: makes what functions ask for beside their arguments.
    :param in_loop: runs a coroutine in a program's asyncio loop; Twisted's own way when left out.
    """

    def __init__(
        self,
        registry: FunctionRegistry,
        permissions: Permissions,
        workers: Workers,
        given: Given,
        in_loop: InLoop | None = None,
    ):
        self.registry = registry
        self.permissions = permissions
        self._workers = workers
        self._given = given
        self._in_loop = in_loop

    def respond(self, request: Request, client: Client) -> Any:
        """Run the function that ``request`` names.

        :return: its :class:`~zcomm.interfaces.Outcome`, or a Deferred of it.
        :raises CommandError: when there is no such function, the client may not call it, or the
            arguments do not fit.
        """
        call = parse_call(request.horizontal, "zFunc")
        allows = self.permissions.allows
        entry = self.registry.get(call.name)
        # By the name alone: of a function that the client may not call it is not told whether it is there.
        is_permitted = allows(client.identity, "call", "function", call.name)
        if entry is None or not is_permitted:
            hint = did_you_mean(
                call.name,
                (each.name for each in self.registry),
                allowed=lambda name: allows(client.identity, "call", "function", name),
            )
            raise (
                UnknownCommand(f"Unknown function{hint}")
                if is_permitted
                else PermissionDenied(f"Permission denied{hint}")
            )
        args = entry.bind(call.args, call.kwargs)
        place: Place = "thread" if entry.thread else "reactor"
        if self._in_loop is not None and entry.kind in ("coroutine", "wrapped"):
            # A wrapper may do anything, and block: its own code is a plain function's.
            place = "loop" if entry.kind == "coroutine" else "thread"
        given = self._given(entry.wants, request, client, place) if entry.wants else {}
        result = ending(lambda: self._call(entry, args, given, place, client), given, self._in_loop)
        if isinstance(result, Deferred):
            return then(then(result, as_json, self._workers, client), self._outcome, entry)
        return self._outcome(result, entry)

    def _call(self, entry: Function, args: tuple[Any, ...], given: dict[str, Any], place: Place, client: Client) -> Any:
        call = partial(entry.call, *args, **given)
        if place == "thread":
            return in_worker(self._workers, client, call, kind=entry.name, in_loop=self._in_loop)
        return in_the_loop(call) if place == "loop" else call()

    def _outcome(self, result: Any, entry: Function) -> Outcome:
        return Outcome(
            result,
            changed=entry.broadcast,
            audience=entry.audience,
            announcement={"function": entry.name},
        )
