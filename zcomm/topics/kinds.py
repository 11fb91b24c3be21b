"""The kinds of topics that a program declares: what is kept of them, who may publish, who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import signature
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

from zcomm.errors import ConfigError
from zcomm.interfaces import RIGHTS, Identity, Kept
from zcomm.strictyaml import read_yaml
from zcomm.text import did_you_mean
from zcomm.topics.names import NamePattern, user_part

__all__ = [
    "AD_HOC",
    "Found",
    "Kind",
    "Kinds",
    "MAX_HISTORY",
    "MAX_KEEP",
    "check_callable",
    "kinds_from_yaml",
    "own_topic",
]

#: Messages and seconds that a topic keeps at most.
MAX_HISTORY, MAX_KEEP = 10_000, 24 * 3600.0
#: Who may publish: the program only, those who are subscribed, or anybody who is let in.
PUBLISHERS = ("nobody", "subscribers", "anybody")
#: Names that are remembered with the kinds that they belong to.
REMEMBERED = 4096
#: Changes of what is kept that are remembered, so that topics are numbered on which they do not concern.
MAX_PAST = 100
_SETTINGS = ("history", "keep", "presence", "publish", "personal")

F = TypeVar("F", bound=Callable[..., Any])


class Kind:
    """One kind of topic; made by ``comm.topic(…)``.

    :param pattern: the names of its topics, such as ``room:{id}``.
    :param history: how many messages of a topic are kept; 0 for none.
    :param keep: for how many seconds after the last of them.
    :param presence: whether it is told who is there.
    :param publish: ``nobody`` (the program only), ``subscribers`` or ``anybody``.
    :param personal: whether everybody is in their own by themselves; the pattern has the one parameter ``{name}`` then.
    :param where: what errors call it.
    :raises ConfigError: naming the setting that cannot be used.
    """

    def __init__(
        self,
        pattern: str,
        *,
        history: int = 0,
        keep: float = 3600.0,
        presence: bool = False,
        publish: str = "subscribers",
        personal: bool = False,
        where: str = "topic",
    ):
        self.pattern = NamePattern(pattern, where)

        def fault(name: str, reason: str) -> ConfigError:
            return ConfigError(where, f"{pattern}: {name}: {reason}")

        if type(history) is not int or not 0 <= history <= MAX_HISTORY:
            raise fault("history", f"{history!r:.60} is no number of messages from 0 to {MAX_HISTORY:,}")
        if type(keep) not in (int, float) or not 0 < keep <= MAX_KEEP:
            raise fault("keep", f"{keep!r:.60} is no number of seconds up to {MAX_KEEP:,.0f}, which is a day")
        for name, value in (("presence", presence), ("personal", personal)):
            if type(value) is not bool:
                raise fault(name, f"{value!r:.60} is neither true nor false")
        if publish not in PUBLISHERS:
            hint = did_you_mean(publish, PUBLISHERS)
            raise fault("publish", f"{publish!r:.60} is none of {', '.join(PUBLISHERS)}{hint}")
        if personal and self.pattern.parameters != ("name",):
            raise fault("personal", "the pattern of personal topics has the parameter {name}, and no other")
        self.history = history
        self.keep = float(keep)
        #: The same, as the engine takes it; ``None`` where nothing is kept.
        self.kept = Kept(history, self.keep) if history else None
        self.presence = presence
        self.publish = publish
        self.personal = personal
        #: The program's own questions, by action.
        self.allowing: dict[str, Callable[..., Any]] = {}
        self.checking: Callable[..., Any] | None = None

    def __repr__(self) -> str:
        return f"<kind {self.pattern.text}>"

    def offers(self, action: str) -> bool:
        """Whether anybody but the program can do that with its topics."""
        if action == "publish":
            return self.publish != "nobody"
        return {"presence": self.presence, "history": self.history > 0}.get(action, True)

    def allow(self, action: str) -> Callable[[F], F]:
        """Ask the program too whether somebody may; used as a decorator: ``@rooms.allow("subscribe")``.

        The function is called with the :class:`~zcomm.interfaces.Identity` and the parts of the name by their names,
        ``member(identity, id)``, after the policy has said yes. It returns whether the identity may: a value, a
        Deferred or a coroutine. It may raise :class:`~zcomm.errors.CommandError` for what the client shall be told.
        When rights or kinds are read anew it is asked again about each subscription, which ends where it says no,
        fails, or does not answer within the time of a command.

        :param action: ``subscribe``, ``publish``, ``presence`` or ``history``.
        :raises ConfigError: for another action, one that is asked already, and for a function that cannot be called so.
        """
        if action not in RIGHTS["topic"]:
            hint = '; write @kind.allow("subscribe")' if callable(action) else did_you_mean(action, RIGHTS["topic"])
            raise ConfigError("allow", f"{action!r:.60} is none of {', '.join(RIGHTS['topic'])}{hint}")
        if action in self.allowing:
            raise ConfigError("allow", f"{self.pattern.text}: {action} has a function already")

        def register(function: F) -> F:
            self._check("allow", function, 1, "(identity")
            self.allowing[action] = function
            return function

        return register

    def incoming(self, function: F) -> F:
        """Check or rewrite what clients publish; used as a decorator: ``@rooms.incoming``.

        The function is called with the identity, the data and the parts of the name by their names,
        ``clean(identity, data, id)``. It returns the data that is published: a value, a Deferred or a coroutine. It
        raises :class:`~zcomm.errors.Invalid` for what is not to be published. What the program publishes by itself is
        not shown to it.

        :raises ConfigError: where there is one already, and for a function that cannot be called so.
        """
        if self.checking is not None:
            raise ConfigError("incoming", f"{self.pattern.text} has a function already")
        self._check("incoming", function, 2, "(identity, data")
        self.checking = function
        return function

    def _check(self, what: str, function: Any, values: int, begin: str) -> None:
        check_callable(what, function, values, begin, self.pattern)


def check_callable(what: str, function: Any, values: int, begin: str, pattern: NamePattern) -> None:
    """Refuse a function that cannot be called with so many values and the parts of a name.

    :raises ConfigError: with the call that it has to take.
    """
    if not callable(function):
        raise ConfigError(what, f"{function!r:.60} cannot be called")
    try:
        signature(function).bind(*[None] * values, **dict.fromkeys(pattern.parameters, ""))
    except ValueError:
        # One of C's has none to look at.
        return
    except TypeError:
        call = ", ".join((begin, *pattern.parameters)) + ")"
        raise ConfigError(
            what, f"{getattr(function, '__name__', function)} is called as {call}; let it take that"
        ) from None


#: What every topic is as long as none is declared.
AD_HOC = Kind("any", history=100, keep=3600.0, presence=True, publish="anybody")


class Found(NamedTuple):
    """The kind of a topic, and the parts of its name.

    :ivar generation: how often it has changed whether the topic is kept.
    """

    kind: Kind
    parts: Mapping[str, str]
    generation: int = 0


#: Whether kinds are kept, by the shape of their pattern; ``None`` as long as none is declared.
_Rules = dict[Any, bool] | None


class Kinds:
    """The kinds of one program.

    What is published while a topic is not kept has no number, so that positions from before and after are not
    comparable: whether it is kept is part of the numbering of each topic, as its :attr:`~Found.generation`.

    :ivar personal: those that everybody has a topic of.
    :ivar have_changed: whether there may be topics of another generation than the first.
    """

    def __init__(self) -> None:
        self._declared: list[Kind] = []
        #: Those of the file, which may be read anew.
        self._of_file: list[Kind] = []
        self._sorted: list[Kind] = []
        self._has_file = False
        self.personal: list[Kind] = []
        self.have_changed = False
        self._rules: _Rules = None
        #: The rules that topics were found by before those of now, as far as others were kept then; the patterns of all
        #: of them and of those of now, in the order in which they are asked; and the generation that every topic had
        #: before the first of them.
        self._past: list[_Rules] = []
        self._patterns: list[NamePattern] = []
        self._base = 0
        self._found: dict[str, Found | None] = {}

    def __iter__(self) -> Iterator[Kind]:
        """The kinds, in the order in which they are asked."""
        return iter(self._sorted)

    @property
    def is_declared(self) -> bool:
        """Whether any is; otherwise every name is a topic."""
        return bool(self._declared) or self._has_file

    def add(self, kind: Kind) -> None:
        """Declare ``kind``.

        :raises ConfigError: where one with these names is declared already.
        """
        self._check([*self._declared, *self._of_file, kind], "topic")
        with self._changing():
            self._declared.append(kind)

    def replace_file(self, kinds: list[Kind], where: str) -> None:
        """Take the kinds of a file in the place of those that it had before.

        :raises ConfigError: where the program declares one with the same names.
        """
        self._check([*self._declared, *kinds], where)
        with self._changing():
            self._of_file, self._has_file = kinds, True

    @staticmethod
    def _check(kinds: list[Kind], where: str) -> None:
        seen: dict[Any, str] = {}
        for kind in kinds:
            other = seen.get(kind.pattern.shape)
            if other is not None:
                raise ConfigError(where, f"{kind.pattern.text} has the names of {other}, which is declared already")
            seen[kind.pattern.shape] = kind.pattern.text

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Lasts while kinds become others."""
        # By rules that no topic was found by, nothing was published.
        before, was_used = self._rules, bool(self._found)
        yield
        self._sorted = sorted([*self._declared, *self._of_file], key=lambda kind: kind.pattern.rank)
        self.personal = [kind for kind in self._sorted if kind.personal]
        self._rules = {kind.pattern.shape: kind.history > 0 for kind in self._sorted} if self.is_declared else None
        self._found.clear()
        if was_used and before != self._rules:
            self.have_changed = True
            self._past.append(before)
            if len(self._past) > MAX_PAST:
                # Every topic gets a number that it has not had.
                self._base += len(self._past) + 1
                self._past.clear()
        patterns = [*(self._patterns if self._past else ()), *(kind.pattern for kind in self._sorted)]
        self._patterns = sorted({each.shape: each for each in patterns}.values(), key=lambda each: each.rank)

    def _generation(self, name: str) -> int:
        # Matched once, as there may be a hundred rules with the same patterns.
        fitting = [pattern.shape for pattern in self._patterns if pattern.match(name) is not None]
        kept = [_keeps(rules, fitting) for rules in (*self._past, self._rules)]
        return self._base + sum([before is not after for before, after in pairwise(kept)])

    def has_presence(self, pattern: NamePattern) -> bool:
        """Whether there may be topics of such names that have presence."""
        if not self.is_declared:
            return AD_HOC.presence
        for kind in self._sorted:
            if kind.pattern.shape == pattern.shape:
                # What is of another kind all the same is of a narrower one, and those came before.
                return kind.presence
            if kind.presence and kind.pattern.meets(pattern):
                return True
        return False

    def find(self, name: str) -> Found | None:
        """The kind of the topic ``name``, the narrowest that fits; ``None`` where it has none."""
        try:
            return self._found[name]
        except KeyError:
            pass
        found = None
        if not self.is_declared:
            found = Found(AD_HOC, {})
        for kind in self._sorted:
            if (parts := kind.pattern.match(name)) is not None:
                found = Found(kind, parts)
                break
        if found is not None and self.have_changed:
            found = found._replace(generation=self._generation(name))
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        self._found[name] = found
        return found


def _keeps(rules: _Rules, fitting: list[Any]) -> bool:
    """Whether a topic is kept by ``rules``.

    :param fitting: the shapes of the patterns that its name fits, in the order in which they are asked.
    """
    if rules is None:
        return AD_HOC.history > 0
    return next((rules[shape] for shape in fitting if shape in rules), False)


def own_topic(kind: Kind, identity: Identity) -> str | None:
    """The topic of a personal kind that is the identity's own; ``None`` for who has none."""
    part = None if identity.name == "anonymous" else user_part(identity.name)
    if part is None:
        return None
    name = kind.pattern.name({"name": part})
    return name if len(name) <= 255 else None


def kinds_from_yaml(text: str, name: str) -> list[Kind]:
    """Read the text of a file of kinds (``--topics``).

    :param name: what errors call it.
    :raises ConfigError: naming the kind, the key and the nearest known one.
    """
    document = read_yaml(text, name)
    if not isinstance(document, dict) or not document:
        raise ConfigError(name, 'must map patterns to settings, like "room:{id}": {history: 1000, presence: true}')
    kinds = []
    for pattern, settings in document.items():
        if not isinstance(pattern, str):
            raise ConfigError(name, f"{pattern!r:.60} is not text; put it in quotes")
        settings = {} if settings is None else settings
        if not isinstance(settings, dict):
            raise ConfigError(name, f"{pattern}: must map {', '.join(_SETTINGS)} to values, not {settings!r:.60}")
        for key in settings:
            if key not in _SETTINGS:
                raise ConfigError(
                    name, f"{pattern}: unknown key {key!r:.60}{did_you_mean(str(key), _SETTINGS, or_list=True)}"
                )
        kinds.append(Kind(pattern, **settings, where=name))
    Kinds._check(kinds, name)
    return kinds
