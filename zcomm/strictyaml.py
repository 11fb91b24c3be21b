"""Reads the YAML of files that people write, strictly and with errors that name the place. No I/O."""

from __future__ import annotations

from typing import Any

import yaml

from zcomm.errors import ConfigError

__all__ = ["read_yaml"]


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, refusing a key that is given twice: YAML would keep the last without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int, float, bool)) or key is None:
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"{key!r} is given twice", key_node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, name: str) -> Any:
    """The plain data in a YAML text; nothing that it names is constructed or run.

    :param name: what errors call the text, usually the file as the user named it.
    :raises ConfigError: with line and column, for text that is not YAML and for a key that is given twice.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 (a SafeLoader: plain data only)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        said = [part for part in (getattr(error, "context", None), getattr(error, "problem", None)) if part]
        raise ConfigError(name, f"not YAML: {place}{', '.join(said) or 'it cannot be parsed'}") from None
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        # PyYAML's way to say that a date, a number or a tag's value is none.
        raise ConfigError(name, "not YAML: a value cannot be read, or is nested too deeply") from None
