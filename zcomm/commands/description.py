"""``zDescribe``: the commands that a client may use, so that a page or a program can offer just those."""

from __future__ import annotations

from collections.abc import Container
from inspect import getdoc
from typing import Any

from zcomm.commands.files import Files
from zcomm.commands.functions import FunctionRegistry
from zcomm.commands.pages import PageRegistry
from zcomm.data.models import Field, Model, Schema
from zcomm.interfaces import RIGHTS, Client, Permissions, Request

__all__ = ["Description"]


class Description:
    """The responder of ``zDescribe``.

    :param schema: the models; ``None`` where a host keeps its own.
    :param permissions: what is not for the client is left out.
    """

    KEY = "zDescribe"

    def __init__(
        self,
        schema: Schema | None,
        functions: FunctionRegistry,
        pages: PageRegistry,
        files: Files,
        permissions: Permissions,
    ):
        self._schema = schema
        self._functions = functions
        self._pages = pages
        self._files = files
        self._permissions = permissions

    def respond(self, request: Request, client: Client) -> dict[str, Any]:
        """The identity of the client, and the models, functions, pages and files that it may use."""
        identity, allows = client.identity, self._permissions.allows
        granted = {}
        for model in () if self._schema is None else self._schema.models.values():
            offered = ("read",) if model.read_only else RIGHTS["model"]
            actions = [action for action in offered if allows(identity, action, "model", model.name)]
            if actions:
                granted[model.name] = model, actions
        models = {
            name: {"actions": actions, **_groups(model), "fields": _fields(model, granted)}
            for name, (model, actions) in granted.items()
        }
        return {
            "identity": {"name": identity.name, "role": identity.role},
            "models": models,
            "functions": {
                each.name: {"parameters": list(each.parameters), "about": (getdoc(each.call) or "").partition("\n")[0]}
                for each in self._functions
                if allows(identity, "call", "function", each.name)
            },
            "pages": {page.path: page.title for page in self._pages if allows(identity, "visit", "page", page.path)},
            "files": self._files.root is not None,
        }


def _groups(model: Model) -> dict[str, Any]:
    """The unique groups of which a client may see all fields; nothing where there are none."""
    groups = [list(group) for group in model.unique if all(name in model.visible for name in group)]
    return {"unique": groups} if groups else {}


def _fields(model: Model, known: Container[str]) -> dict[str, dict[str, Any]]:
    return {name: _field(model.fields[name], model, known) for name in model.visible}


def _field(field: Field, model: Model, known: Container[str]) -> dict[str, Any]:
    """The facts about ``field`` that hold; those that do not are left out.

    :param known: the models that the client may know of.
    """
    default = field.default
    made = field.name == model.generated or default is not None and default.source != "value"
    facts: dict[str, Any] = {"type": field.kind.name}
    flags = {
        "pk": field.pk,
        "required": (field.required or field.pk) and default is None and not made,
        "unique": field.unique,
        "readonly": field.readonly,
        "made": made,
    }
    facts |= {name: True for name, value in flags.items() if value}
    if default is not None and default.source == "value":
        facts["default"] = field.kind.show(default.value)
    if field.fk is not None and field.fk.model in known:
        facts["references"] = f"{field.fk.model}.{field.fk.field}"
    return facts
