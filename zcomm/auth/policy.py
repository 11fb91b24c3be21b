"""The rights of roles: everything, or exactly what a policy file grants.

A policy file is YAML, one section for each role; whatever it does not grant is denied::

    admin:
      models: {"*": "*"}
      functions: "*"
      pages: "*"
      files: "*"
      commands: "*"
      topics: "*"
      admin: "*"
    clerk:
      models:
        "*": [read]
        Orders: [create, read, update]
        Notes: {actions: "*", rows: {owner: $name}}
        Salaries: []
      functions: [calculateTotal]
      pages: ["/orders", "/orders/*"]
      files: ["*.yaml"]
      topics: {"room:*": [subscribe, publish, presence, history], "user:$name": [subscribe]}

A model that is named is granted what stands there and nothing of ``"*"``, so that a narrow line narrows. With ``rows``
its actions reach only the rows whose fields have these values, where ``$name`` and ``$role`` are the user's own. With
``fields`` some fields are not there for the role, and others cannot be written::

        Employees: {actions: [read, update], fields: {hide: [salary], readonly: [role]}}

The rows in reach may be those of a membership: of the values that another model has in a field, in rows of the user's::

        Tasks: {actions: "*", rows: {board_id: {in: {model: Members, field: board_id, where: {user: $name}}}}}

A topic is granted what all patterns that fit it grant together; but one whose name stands there by itself, with or
without ``$name`` and ``$role``, is granted what stands there, and nothing of the patterns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from zcomm.errors import ConfigError
from zcomm.interfaces import ACTIONS, NO_FIELD_RIGHTS, RIGHTS, Among, FieldRights, Identity
from zcomm.strictyaml import read_yaml
from zcomm.text import did_you_mean
from zcomm.topics.names import MAX_NAME, is_topic_name, user_part

__all__ = ["AllowAll", "Grant", "Policy", "is_operator"]

#: Values in ``rows`` that stand for the user's own name and role.
_OWN = ("$name", "$role")
_SECTIONS = ("models", "functions", "pages", "files", "commands", "topics", "admin")
#: Users whose topics are remembered.
REMEMBERED = 4096
#: Topics of which the newer and the older answers are remembered: so many of each.
GRANTED = 4096
#: Characters of the names in one answer that is remembered; what is longer is no topic's, or no user's who has some.
LONGEST = 2 * MAX_NAME
#: What is for those who run the server.
_ADMIN = ("metrics",)
#: What a model may have beside its actions, and what ``fields`` may say.
_MODEL_KEYS = ("actions", "rows", "fields")
_FIELD_KEYS = ("hide", "readonly")
#: The parts of a membership.
_AMONG = ("model", "field", "where")


def is_operator(identity: Identity) -> bool:
    """Whether it is who runs the server, as far as nobody says otherwise: the operator's own token, the role admin."""
    return identity.role == "admin" or identity.token_id.startswith("operator-")


class AllowAll:
    """Everybody who is let in may do everything, but for what is the operator's.

    :cvar is_open: that nobody is kept from knowing what there is.
    """

    is_open = True

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        """Allow every action to every user; of what is for those who run the server, to these."""
        return kind != "admin" or is_operator(identity)

    def rows(self, identity: Identity, model: str) -> Mapping[str, Any]:
        """All of them."""
        return {}

    def goes_by_membership(self, model: str) -> bool:
        """No: all rows are in reach of everybody."""
        return False

    def row_fields(self, model: str) -> frozenset[str]:
        """None: no rows are told apart."""
        return frozenset()

    def fields(self, identity: Identity, model: str) -> FieldRights:
        """All of them."""
        return NO_FIELD_RIGHTS


@dataclass(frozen=True, slots=True)
class _Names:
    """Names of one kind: all, some, or those that fit a pattern.

    :ivar every: whether it is all names.
    :ivar exact: names that stand in the file, also beside ``"*"``.
    """

    every: bool = False
    exact: frozenset[str] = frozenset()
    patterns: tuple[str, ...] = ()

    def __contains__(self, name: object) -> bool:
        return (
            self.every
            or name in self.exact
            or (isinstance(name, str) and any(fnmatchcase(name, pattern) for pattern in self.patterns))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grants:
    """The rights of one role.

    :ivar has_own_topics: whether the user's own name or role stands in some pattern of a topic.
    """

    models: Mapping[str, frozenset[str]]
    other_models: frozenset[str]
    rows: Mapping[str, Mapping[str, Any]]
    fields: Mapping[str, FieldRights]
    names: Mapping[str, _Names]
    topics: Mapping[str, frozenset[str]]
    has_own_topics: bool


class Grant(NamedTuple):
    """The rights of a role to a model of which it reaches some rows or fields only.

    :ivar rows: an example of the rows: the values of fields; empty for all rows.
    """

    role: str
    model: str
    actions: frozenset[str]
    rows: Mapping[str, Any]
    fields: FieldRights


class Policy:
    """The rights of each role, as a policy file grants them. A role it does not name has none."""

    def __init__(self, roles: Mapping[str, _Grants]):
        self._roles = dict(roles)
        #: The topics by name and role of users, where these are in the patterns.
        self._own_topics: dict[tuple[str, str], Mapping[str, frozenset[str]]] = {}
        #: The actions granted, by role, name of the user where the patterns have it, and topic. When the newer ones are
        #: many they take the place of the older ones; so what is in use stays, whatever else is asked for.
        self._granted: dict[tuple[str, str, str], frozenset[str]] = {}
        self._granted_before: dict[tuple[str, str, str], frozenset[str]] = {}

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that it names."""
        return tuple(self._roles)

    def become(self, other: Policy) -> None:
        """Grant what ``other`` grants from now on: every part that holds this policy goes by the new rights."""
        self._roles = dict(other._roles)
        self._own_topics.clear()
        self._granted, self._granted_before = {}, {}

    @classmethod
    def from_yaml(cls, text: str, name: str) -> Policy:
        """Read the text of a policy file.

        :param name: what errors call it.
        :raises ConfigError: naming the role, the key and the nearest known one, for anything that would
            otherwise grant or deny something unmeant.
        """
        document = read_yaml(text, name)
        if not isinstance(document, dict) or not document:
            raise ConfigError(name, "must map each role to what it may do; as it is, nobody may do anything")
        return cls({_role(name, role): _grants(name, role, grants) for role, grants in document.items()})

    def allows(self, identity: Identity, action: str, kind: str, name: str) -> bool:
        """Whether the identity's role grants ``action`` to the ``name`` of that ``kind``."""
        grants = self._roles.get(identity.role)
        if grants is None:
            return False
        if kind == "model":
            return action in grants.models.get(name, grants.other_models)
        if kind == "topic":
            key = identity.role, identity.name if grants.has_own_topics else "", name
            granted = self._granted.get(key)
            if granted is None:
                granted = self._find_granted(key, identity)
            return action in granted
        return action in RIGHTS.get(kind, ()) and name in grants.names[kind]

    def rows(self, identity: Identity, model: str) -> Mapping[str, Any]:
        """The rows of ``model`` that its rights reach: those with these values in these fields; all when empty."""
        grants = self._roles.get(identity.role)
        rows = None if grants is None else grants.rows.get(model)
        if not rows:
            return {}
        own = {"$name": identity.name, "$role": identity.role}
        return {field: _resolved(value, own) for field, value in rows.items()}

    def goes_by_membership(self, model: str) -> bool:
        """Whether some role reaches rows of ``model`` by a membership."""
        return any(
            isinstance(value, Among) for grants in self._roles.values() for value in grants.rows.get(model, {}).values()
        )

    def row_fields(self, model: str) -> frozenset[str]:
        """The fields of ``model`` that :meth:`rows` may name."""
        return frozenset(name for grants in self._roles.values() for name in grants.rows.get(model, ()))

    def fields(self, identity: Identity, model: str) -> FieldRights:
        """The fields of ``model`` that are hidden from the identity's role, or read-only for it."""
        grants = self._roles.get(identity.role)
        return NO_FIELD_RIGHTS if grants is None else grants.fields.get(model, NO_FIELD_RIGHTS)

    def hidden_fields(self, model: str) -> frozenset[str]:
        """The fields of ``model`` that are hidden from some role."""
        rights = [grants.fields[model] for grants in self._roles.values() if model in grants.fields]
        return frozenset(name for each in rights for name in each.hide)

    def topics(self, identity: Identity) -> Mapping[str, frozenset[str]]:
        """The actions on topics that the identity's role grants, by pattern; its own name and role in the place of
        ``$name`` and ``$role``."""
        grants = self._roles.get(identity.role)
        if grants is None:
            return {}
        granted = grants.topics
        if not grants.has_own_topics:
            return granted
        user = identity.name, identity.role
        known = self._own_topics.get(user)
        if known is not None:
            return known
        own = {name: user_part(value) for name, value in (("$name", identity.name), ("$role", identity.role))}
        found: dict[str, frozenset[str]] = {}
        for pattern, actions in granted.items():
            for name in _OWN:
                # Only a name that stands for this user alone is one.
                pattern = pattern.replace(name, own[name] or "$")
            if "$" not in pattern:
                found[pattern] = found.get(pattern, frozenset()) | actions
        if len(self._own_topics) >= REMEMBERED:
            self._own_topics.clear()
        self._own_topics[user] = found
        return found

    def _find_granted(self, key: tuple[str, str, str], identity: Identity) -> frozenset[str]:
        """The actions that are granted to the identity on the topic that ``key`` ends with, which are remembered."""
        granted = self._granted_before.get(key)
        if granted is None:
            granted = _granted(self.topics(identity), key[2])
        if len(key[1]) + len(key[2]) <= LONGEST:
            if len(self._granted) >= GRANTED:
                self._granted_before, self._granted = self._granted, {}
            self._granted[key] = granted
        return granted

    def names_command(self, key: str, identity: Identity | None = None) -> bool:
        """Whether a role is granted the command ``key`` by that very name, which ``"*"`` is not.

        :param identity: whose role is meant; any role when it is left out.
        """
        roles = self._roles.values() if identity is None else filter(None, [self._roles.get(identity.role)])
        return any(key in grants.names["command"].exact for grants in roles)

    def names_alike(self, model: str, identity: Identity) -> bool:
        """Whether the identity's role has a line for a model that is called ``model`` but for its case, and none for
        ``model`` itself: to a host's database the two may be one, and the line is the narrower grant."""
        grants = self._roles.get(identity.role)
        if grants is None or model in grants.models:
            return False
        folded = model.casefold()
        return any(name.casefold() == folded for name in grants.models)

    def narrow_grants(self) -> Iterator[Grant]:
        """The grants that speak of the rows and fields of a model, which has to have these fields."""
        for role, grants in self._roles.items():
            for model, actions in grants.models.items():
                identity = Identity(role, role)
                rows, fields = self.rows(identity, model), self.fields(identity, model)
                if rows or fields is not NO_FIELD_RIGHTS:
                    yield Grant(role, model, actions, rows, fields)


def _resolved(value: Any, own: Mapping[str, str]) -> Any:
    """A granted value, with the user's own name and role in their places."""
    if isinstance(value, Among):
        return Among(value.model, value.field, tuple((name, _resolved(each, own)) for name, each in value.where))
    return own.get(value, value) if isinstance(value, str) else value


def _role(name: str, role: Any) -> str:
    if not isinstance(role, str) or not role.strip():
        raise ConfigError(name, f"the role {role!r} is not text; put it in quotes")
    return role


def _grants(name: str, role: str, grants: Any) -> _Grants:
    if grants is None:
        grants = {}
    if not isinstance(grants, dict):
        raise ConfigError(name, f"role {role}: must map {', '.join(_SECTIONS)} to what it may use")
    for key in grants:
        if key not in _SECTIONS:
            raise ConfigError(name, f"role {role}: unknown key {key!r}{did_you_mean(key, _SECTIONS, or_list=True)}")
    models, other_models, rows, fields = _models(name, role, grants.get("models"))
    topics = _topics(name, f"role {role}: topics", grants.get("topics"))

    def names(section: str, patterns: bool, known: tuple[str, ...] = ()) -> _Names:
        return _names(name, f"role {role}: {section}", grants.get(section), patterns, known)

    return _Grants(
        models=models,
        other_models=other_models,
        rows=rows,
        fields=fields,
        names={
            "function": names("functions", False),
            "page": names("pages", True),
            "file": names("files", True),
            "command": names("commands", False),
            "admin": names("admin", False, _ADMIN),
        },
        topics=topics,
        has_own_topics=any("$" in pattern for pattern in topics),
    )


def _models(
    name: str, role: str, models: Any
) -> tuple[dict[str, frozenset[str]], frozenset[str], dict[str, dict[str, Any]], dict[str, FieldRights]]:
    """The actions by model, those for models that are not named, and by model the rows and the rights to fields."""
    if models is None:
        return {}, frozenset(), {}, {}
    if models == "*":
        return {}, frozenset(ACTIONS), {}, {}
    if not isinstance(models, dict):
        raise ConfigError(name, f'role {role}: models must map each model, or "*", to a list of actions')
    granted = {}
    rows = {}
    fields = {}
    for model, actions in models.items():
        if not isinstance(model, str):
            raise ConfigError(name, f"role {role}: models: {model!r} is not text; put it in quotes")
        where = f"role {role}: models: {model}"
        if isinstance(actions, dict):
            for key in actions:
                if key not in _MODEL_KEYS:
                    raise ConfigError(
                        name, f"{where}: unknown key {key!r}{did_you_mean(key, _MODEL_KEYS, or_list=True)}"
                    )
            if "rows" in actions:
                rows[model] = _rows(name, f"{where}: rows", model, actions["rows"])
            if "fields" in actions:
                if "actions" not in actions:
                    # It would look like a grant of the rest and be none.
                    raise ConfigError(name, f"{where}: fields grant nothing by themselves; say the actions as well")
                fields[model] = _fields(name, f"{where}: fields", model, actions["fields"])
            actions = actions.get("actions", [])
        granted[model] = frozenset(_actions(name, where, actions))
    return granted, granted.pop("*", frozenset()), rows, fields


def _rows(name: str, where: str, model: str, rows: Any) -> dict[str, Any]:
    if model == "*":
        raise ConfigError(name, f"{where}: only a model that is named has rows; name each")
    if not isinstance(rows, dict) or not rows:
        raise ConfigError(name, f"{where}: must map fields to values, like {{owner: $name}}")
    for field in rows:
        if not isinstance(field, str):
            raise ConfigError(name, f"{where}: {field!r} is not text; put it in quotes")
    return {field: _granted_value(name, f"{where}: {field}", value) for field, value in rows.items()}


def _granted_value(name: str, where: str, value: Any, nested: bool = False) -> Any:
    if isinstance(value, dict) and not nested:
        return _among(name, where, value)
    if not isinstance(value, (str, int)):
        raise ConfigError(name, f"{where}: must be a text, a whole number, true or false, not {value!r:.60}")
    if isinstance(value, str) and value.startswith("$") and value not in _OWN:
        raise ConfigError(name, f"{where}: unknown value {value!r}{did_you_mean(value, _OWN, or_list=True)}")
    return value


def _among(name: str, where: str, value: dict[Any, Any]) -> Among:
    """A membership."""
    inner = value.get("in")
    if value.keys() != {"in"} or not isinstance(inner, dict):
        raise ConfigError(
            name, f"{where}: must be a value, or {{in: {{model: …, field: …, where: …}}}}, not {value!r:.60}"
        )
    for key in inner:
        if key not in _AMONG:
            raise ConfigError(name, f"{where}: in: unknown key {key!r}{did_you_mean(key, _AMONG, or_list=True)}")
    for key in _AMONG[:2]:
        if not isinstance(inner.get(key), str):
            raise ConfigError(name, f"{where}: in: {key} must be a name")
    rows = inner.get("where")
    if not isinstance(rows, dict) or not rows or not all(isinstance(field, str) for field in rows):
        raise ConfigError(name, f"{where}: in: where must map fields to values, like {{user: $name}}")
    values = [(field, _granted_value(name, f"{where}: in: where: {field}", each, True)) for field, each in rows.items()]
    return Among(inner["model"], inner["field"], tuple(values))


def _fields(name: str, where: str, model: str, fields: Any) -> FieldRights:
    if model == "*":
        raise ConfigError(name, f"{where}: only a model that is named has fields; name each")
    if not isinstance(fields, dict) or not fields:
        raise ConfigError(name, f"{where}: must be what is hidden or read-only, like {{hide: [salary]}}")
    for key in fields:
        if key not in _FIELD_KEYS:
            raise ConfigError(name, f"{where}: unknown key {key!r}{did_you_mean(key, _FIELD_KEYS, or_list=True)}")
    found: dict[str, str] = {}
    for key, names in fields.items():
        if not isinstance(names, list) or not names:
            raise ConfigError(name, f"{where}: {key}: must be a list of fields, like [salary], not {names!r:.60}")
        for each in names:
            if not isinstance(each, str) or not each:
                raise ConfigError(name, f"{where}: {key}: {each!r:.60} is not text; put it in quotes")
            if each in found:
                reason = (
                    f"stands in {key} twice" if found[each] == key else "stands in hide and in readonly; hide is both"
                )
                raise ConfigError(name, f"{where}: {each} {reason}")
            found[each] = key
    return FieldRights(*(frozenset(name for name, key in found.items() if key == each) for each in _FIELD_KEYS))


def _topics(name: str, where: str, topics: Any) -> dict[str, frozenset[str]]:
    """The rights to topics, by pattern."""
    known = RIGHTS["topic"]
    if topics is None:
        return {}
    if topics == "*":
        return {"*": frozenset(known)}
    if not isinstance(topics, dict):
        raise ConfigError(
            name, f'{where}: must be "*", or map patterns such as "room:*" to lists of {", ".join(known)}'
        )
    granted = {}
    for pattern, actions in topics.items():
        if not isinstance(pattern, str):
            raise ConfigError(name, f"{where}: {pattern!r:.60} is not text; put it in quotes")
        plain = pattern.replace("*", "")
        for own in _OWN:
            plain = plain.replace(own, "")
        if not pattern or (plain and not is_topic_name(plain)):
            raise ConfigError(
                name, f"{where}: {pattern!r:.60}: names have letters, digits and _.:@/%-, and * for any number of them"
            )
        if actions == "*" or actions == ["*"]:
            granted[pattern] = frozenset(known)
            continue

        def fault(action: str) -> str:
            return "" if action in known else f"unknown action {action!r}{did_you_mean(action, known, or_list=True)}"

        granted[pattern] = frozenset(_texts(name, f"{where}: {pattern}", actions, "actions", fault))
    return granted


def _granted(topics: Mapping[str, frozenset[str]], name: str) -> frozenset[str]:
    """What is granted of the topic ``name``."""
    if name in topics:
        return topics[name]
    granted: frozenset[str] = frozenset()
    for pattern, actions in topics.items():
        star = pattern.find("*")
        if star >= 0 and name.startswith(pattern[:star]) and (star == len(pattern) - 1 or _fits(name, pattern)):
            granted = granted | actions if granted else actions
    return granted


def _fits(name: str, pattern: str) -> bool:
    """Whether ``name`` fits a pattern in which each star is any number of characters."""
    before, *between, after = pattern.split("*")
    at, end = len(before), len(name) - len(after)
    if at > end or not (name.startswith(before) and name.endswith(after)):
        return False
    for part in between:
        at = name.find(part, at, end) + len(part)
        if at < len(part):
            return False
    return True


def _actions(name: str, where: str, actions: Any) -> Iterable[str]:
    if actions == "*" or actions == ["*"]:
        return ACTIONS
    granted = _texts(
        name,
        where,
        actions,
        "actions",
        lambda action: (
            "" if action in ACTIONS else f"unknown action {action!r}{did_you_mean(action, ACTIONS, or_list=True)}"
        ),
    )
    if "upsert" in granted and not {"create", "update"}.issubset(granted):
        # It would look like a grant and be none.
        raise ConfigError(name, f"{where}: an upsert takes the rights to create and to update; grant both")
    return granted


def _names(name: str, where: str, value: Any, patterns: bool, known: tuple[str, ...]) -> _Names:
    """The names that ``value`` grants.

    :param known: all that there are; empty where that is not known.
    """
    if value is None:
        return _Names()
    if value == "*":
        return _Names(every=True)

    def fault(item: str) -> str:
        if known and item not in (*known, "*"):
            return f"there is no {item!r}{did_you_mean(item, known, or_list=True)}"
        # In a list of plain names a star would look like a grant and be none.
        plain = patterns or item == "*" or "*" not in item
        return "" if plain else f'{item!r}: no patterns here; name each, or "*"'

    found = _texts(name, where, value, "names", fault)
    return _Names(
        every="*" in found,
        exact=frozenset(item for item in found if not patterns or not _is_pattern(item)),
        patterns=tuple(item for item in found if patterns and _is_pattern(item)),
    )


def _texts(name: str, where: str, value: Any, what: str, fault: Callable[[str], str]) -> list[str]:
    """``value`` as a list of texts in which ``fault`` finds nothing."""
    if not isinstance(value, list):
        raise ConfigError(name, f'{where}: must be "*" or a list of {what}, not {value!r:.60}')
    for item in value:
        if not isinstance(item, str) or not item:
            raise ConfigError(name, f"{where}: {item!r:.60} is not text; put it in quotes")
        if reason := fault(item):
            raise ConfigError(name, f"{where}: {reason}")
    return value


def _is_pattern(item: str) -> bool:
    return any(mark in item for mark in "*?[")
