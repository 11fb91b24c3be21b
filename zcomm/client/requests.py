"""The requests of the client's methods, as values (docs/protocol.rst, "Commands")."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Any

__all__ = ["call", "form", "model_command", "where"]


def where(filters: Any) -> Any:
    """``filters`` as the server takes them: an id becomes ``{"id": id}``, a list of ids ``{"id": [...]}``."""
    if filters is None or isinstance(filters, Mapping):
        return filters
    if isinstance(filters, (str, int, list, tuple)) and not isinstance(filters, bool):
        return {"id": list(filters) if isinstance(filters, (list, tuple)) else filters}
    raise TypeError(f"filters are an id, a list of ids or a dict, not {type(filters).__name__}")


def model_command(action: str, model: str, **parts: Any) -> tuple[str, dict[str, Any]]:
    """The key and horizontal of a CRUD command; parts that are ``None`` are left out."""
    if not isinstance(model, str) or not model:
        raise TypeError("a model is named by a non-empty string")
    given = {name: value for name, value in parts.items() if value is not None}
    _reject_missing_values(given, model)
    return f"{action}_{model}", {"action": action, "model": model, **given}


def _reject_missing_values(value: Any, place: str) -> None:
    """Refuse NaN and the infinities: JSON makes them null, and a filter would then match rows that nobody meant."""
    if isinstance(value, float) and not isfinite(value):
        raise ValueError(f"{place} is {value}, which JSON has no form for")
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _reject_missing_values(inner, f"{place}.{name}")
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _reject_missing_values(inner, place)


def form(name: str, argument: str) -> tuple[str, str]:
    """The key and horizontal of a string form: ``zLink(/admin/users)`` from the path alone or the whole."""
    text = argument.strip()
    return name, text if text.startswith(f"{name}(") else f"{name}({text})"


def call(name: str, args: Sequence[Any]) -> tuple[str, str]:
    """The key and horizontal of a function call, its arguments in JSON."""
    if not args and name.strip().startswith("zFunc("):
        return "zFunc", name.strip()
    parts = [name, *(json.dumps(argument, ensure_ascii=False, allow_nan=False) for argument in args)]
    return "zFunc", f"zFunc({', '.join(parts)})"
