"""``zDescribe``: the commands that a client may use, so that a page or a program can offer just those."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from inspect import getdoc
from typing import Any

from twisted.internet.defer import Deferred

from zcomm.commands.files import Files
from zcomm.commands.functions import Function, FunctionRegistry
from zcomm.commands.pages import PageRegistry
from zcomm.config import Limits
from zcomm.data.models import Field, Model, Reference, Schema
from zcomm.errors import Invalid
from zcomm.interfaces import RIGHTS, Client, FieldRights, Identity, Permissions, Request, field_rights
from zcomm.text import did_you_mean, quoted

__all__ = ["Description"]


#: How many models' facts are remembered, by the rights to their fields.
_MAX_FACTS = 1000
#: The limits that a client can keep by itself.
_LIMITS = (
    "message_size",
    "json_depth",
    "in_flight",
    "command_timeout",
    "read_rows",
    "topics_per_client",
    "publish_rate",
)


class Description:
    """The responder of ``zDescribe``.

    :param schema: tells the models as they are known now; ``None`` where a host keeps its own.
    :param permissions: what is not for the client is left out.
    :param limits: those of the server; the defaults where they are left out.
    :param session: opens the session of an identity that has come with a code, once: a Deferred of its token, which
        goes with the answer that tells the identity.
    :param topics: tells what an identity may do with topics, by pattern.
    """

    KEY = "zDescribe"

    def __init__(
        self,
        schema: Callable[[], Schema | None],
        functions: FunctionRegistry,
        pages: PageRegistry,
        files: Files,
        permissions: Permissions,
        limits: Limits | None = None,
        session: Callable[[Identity], Deferred[str] | None] = lambda identity: None,
        topics: Callable[[Identity], Mapping[str, Iterable[str]]] = lambda identity: {},
    ):
        self._schema = schema
        self._functions = functions
        self._pages = pages
        self._files = files
        self._permissions = permissions
        self._limits = {name: getattr(Limits() if limits is None else limits, name) for name in _LIMITS}
        self._parts: dict[str, Callable[[Identity], Any]] = {
            "identity": lambda identity: {"name": identity.name, "role": identity.role},
            "models": self._of_models,
            "functions": self._of_functions,
            "pages": self._of_pages,
            "files": lambda _: self._files.root is not None,
            "topics": lambda identity: {pattern: list(actions) for pattern, actions in topics(identity).items()},
            "limits": lambda _: self._limits,
        }
        self._session = session
        # What is the same for everybody is found out once; what the client may know of, each time.
        self._told_of: Schema | None = None
        self._models: dict[tuple[str, FieldRights], _Facts] = {}
        self._calls: dict[str, tuple[Function, dict[str, Any]]] = {}

    def respond(self, request: Request, client: Client) -> dict[str, Any] | Deferred[dict[str, Any]]:
        """The identity of the client; the models, functions, pages, files and topics that it may use; the limits.

        :param request: a list of these as its ``zHorizontal`` asks for some of them.
        :raises Invalid: for a part that there is not.
        """
        asked = request.horizontal if type(request.horizontal) is list else list(self._parts)
        if len(asked) > len(self._parts):
            raise Invalid(f"zDescribe has {len(self._parts)} parts, each of which may be asked for once")
        for name in asked:
            if type(name) is not str or name not in self._parts:
                raise Invalid(f"zDescribe has no part {quoted(name)}{did_you_mean(name, self._parts)}")
        told = {name: self._parts[name](client.identity) for name in dict.fromkeys(asked)}
        if "identity" in asked and (opening := self._session(client.identity)) is not None:
            return opening.addCallback(lambda token: {**told, "session": token})
        return told

    def _of_models(self, identity: Identity) -> dict[str, Any]:
        allows = self._permissions.allows
        granted = {}
        schema = self._schema()
        for model in () if schema is None else schema.models.values():
            actions = [
                action
                for action in (("read",) if model.read_only else RIGHTS["model"])
                if action not in model.capabilities.lacks and allows(identity, action, "model", model.name)
            ]
            if actions:
                granted[model.name] = model, actions
        if schema is not self._told_of:
            self._told_of, self._models = schema, {}
        told = {}

        def known(reference: Reference) -> bool:
            target = reference.model
            return target in granted and reference.field not in self._fields(identity, target).hide

        for name, (model, actions) in granted.items():
            rights = self._fields(identity, name)
            facts = self._models.get((name, rights))
            if facts is None:
                if len(self._models) >= _MAX_FACTS:
                    self._models.clear()
                facts = self._models[name, rights] = _Facts(model.restricted(rights))
            told[name] = {"actions": actions, **facts.groups, "fields": facts.fields_for(known)}
        return told

    def _fields(self, identity: Identity, model: str) -> FieldRights:
        return field_rights(self._permissions, identity, model)

    def _of_functions(self, identity: Identity) -> dict[str, Any]:
        told = {}
        for each in self._functions:
            if self._permissions.allows(identity, "call", "function", each.name):
                entry, facts = self._calls.get(each.name, (None, {}))
                if entry is not each:
                    about = (getdoc(each.call) or "").partition("\n")[0]
                    facts = {"parameters": list(each.parameters), "about": about}
                    self._calls[each.name] = each, facts
                told[each.name] = facts
        return told

    def _of_pages(self, identity: Identity) -> dict[str, str]:
        return {
            page.path: page.title
            for page in self._pages
            if self._permissions.allows(identity, "visit", "page", page.path)
        }


def _groups(model: Model) -> dict[str, Any]:
    """The unique groups of which a client may see all fields; nothing where there are none."""
    groups = [list(group) for group in model.unique if all(name in model.visible for name in group)]
    return {"unique": groups} if groups else {}


class _Facts:
    """The facts about a model that are the same for all with the same rights to its fields, found out once.

    :ivar groups: its unique groups.
    """

    def __init__(self, model: Model):
        self.groups = _groups(model)
        self._fields = {name: _field(model.fields[name], model) for name in model.visible}
        self._pointing = {name: reference for name in model.visible if (reference := model.fields[name].fk) is not None}

    def fields_for(self, known: Callable[[Reference], bool]) -> dict[str, dict[str, Any]]:
        """The facts about its fields.

        :param known: whether the client may know of what a field points to.
        """
        hidden = [name for name, reference in self._pointing.items() if not known(reference)]
        if not hidden:
            return self._fields
        return self._fields | {
            name: {fact: value for fact, value in self._fields[name].items() if fact != "references"} for name in hidden
        }


def _field(field: Field, model: Model) -> dict[str, Any]:
    """The facts about ``field`` that hold; those that do not are left out."""
    default = field.default
    made = field.name in model.made or default is not None and default.source != "value"
    facts: dict[str, Any] = {"type": field.kind.name}
    flags = {
        "pk": field.pk,
        "required": field.name in model.needed,
        "unique": field.unique,
        "readonly": field.readonly,
        "made": made,
    }
    facts |= {name: True for name, value in flags.items() if value}
    if default is not None and default.source == "value":
        facts["default"] = field.kind.show(default.value)
    if field.fk is not None:
        facts["references"] = f"{field.fk.model}.{field.fk.field}"
    return facts
