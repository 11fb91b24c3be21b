"""Reads the YAML of files that people write, strictly and with errors that name the place. No I/O."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from zcomm.errors import ConfigError

__all__ = ["read_yaml"]

_MERGE = "tag:yaml.org,2002:merge"
_LISTS_OF_PAIRS = ("tag:yaml.org,2002:omap", "tag:yaml.org,2002:pairs")
#: Levels of values within each other, the first counted. PyYAML's time for a text grows with the square of its depth.
_DEPTH = 100


class _StrictLoader(yaml.SafeLoader):
    """The safe loader, refusing a key that is given twice: YAML would keep the last without a word.

    Keys are the same when Python finds them equal, such as ``1``, ``01`` and ``true``; ``<<`` is one of them. The tree
    is looked at before anything is made of it, since merging changes it, and each node once, however many aliases
    it has.
    """

    def __init__(self, text: str):
        super().__init__(text)
        self._merged: set[yaml.Node] = set()
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node with all that it holds, which is refused at the first one that is too deep."""
        if self._depth == _DEPTH:
            raise ComposerError(None, None, f"nested too deeply, beyond level {_DEPTH}", self.peek_event().start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_document(self, node: yaml.Node) -> Any:
        """The data of a tree in which no key is given twice."""
        seen: set[yaml.Node] = set()
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            if isinstance(one, yaml.MappingNode):
                self._check_keys(key for key, _ in one.value)
                waiting += [value for _, value in one.value]
            elif isinstance(one, yaml.SequenceNode):
                if one.tag in _LISTS_OF_PAIRS:
                    entries = [entry for entry in one.value if isinstance(entry, yaml.MappingNode)]
                    self._check_keys(key for entry in entries for key, _ in entry.value[:1])
                waiting += one.value
        return super().construct_document(node)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put what ``<<`` brings in among the node's own keys, which win; of two that it brings in, the earlier wins.

        Releases of PyYAML differ in which one wins, and in some the work grows exponentially with the aliases.
        """
        if node in self._merged:
            return
        self._merged.add(node)  # before its sources are: one that merges itself gains nothing
        own = [pair for pair in node.value if pair[0].tag != _MERGE]
        brought: dict[Hashable, tuple[yaml.Node, yaml.Node]] = {}
        for merge, value in node.value:
            if merge.tag != _MERGE:
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise ConstructorError(None, None, "<< needs a mapping or a list of mappings", source.start_mark)
                self.flatten_mapping(source)
                for pair in source.value:
                    if pair[0].tag != _MERGE:
                        brought.setdefault(self._key(pair[0]), pair)
        node.value = list({**brought, **{self._key(pair[0]): pair for pair in own}}.values())

    def construct_sign(self, node: yaml.ScalarNode) -> Any:
        """The text of ``=`` or ``<<``."""
        return self.construct_scalar(node)

    def _check_keys(self, nodes: Iterable[yaml.Node]) -> None:
        seen: set[Hashable] = set()
        for node in nodes:
            key = self._key(node)
            if key in seen:
                shown = key if key is None or isinstance(key, (str, int, float)) else node.value
                raise ConstructorError(None, None, f"{shown!r} is given twice", node.start_mark)
            seen.add(key)

    def _key(self, node: yaml.Node) -> Hashable:
        """Equal for two nodes that give the same key."""
        if not isinstance(node, yaml.ScalarNode):
            raise ConstructorError(
                None, None, "unhashable key: neither a list nor a mapping can be one", node.start_mark
            )
        if node.tag == _MERGE:
            return (_MERGE,)  # a tuple, which no scalar is
        key: Hashable = self.construct_object(node, deep=True)
        return math.nan if key != key else key  # the one NaN, found by its identity


# YAML 1.1 has types for these two: elsewhere than as a key of a mapping, PyYAML has nothing to make of them.
for _sign in ("tag:yaml.org,2002:value", _MERGE):
    _StrictLoader.add_constructor(_sign, _StrictLoader.construct_sign)


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
