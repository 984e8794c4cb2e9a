"""Nested tuples, lists, dicts and dataclasses, taken apart into leaves and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

#: What a tree looks like without its leaves; comparable and hashable.
Tree = Any
_LEAF = "*"


def flatten(value: Any) -> tuple[list[Any], Tree]:
    """The leaves in order, and the structure around them."""
    leaves: list[Any] = []

    def visit(node: Any) -> Tree:
        kind = type(node)
        if kind in (tuple, list) or (isinstance(node, tuple) and hasattr(node, "_fields")):
            return kind, tuple(visit(part) for part in node)
        if kind is dict:
            return dict, tuple(node), tuple(visit(part) for part in node.values())
        if dataclasses.is_dataclass(node) and not isinstance(node, type):
            names = tuple(field.name for field in dataclasses.fields(node) if field.init)
            return kind, names, tuple(visit(getattr(node, name)) for name in names)
        leaves.append(node)
        return _LEAF

    return leaves, visit(value)


def rebuild(tree: Tree, leaves: Sequence[Any]) -> Any:
    """The structure with other leaves."""
    return _rebuild(tree, iter(leaves))


def _rebuild(tree: Tree, leaves: Iterator[Any]) -> Any:
    if tree == _LEAF:
        return next(leaves)
    if len(tree) == 3:
        kind, names, parts = tree
        values = [_rebuild(part, leaves) for part in parts]
        fields = dict(zip(names, values, strict=True))
        return fields if kind is dict else kind(**fields)
    kind, parts = tree
    values = [_rebuild(part, leaves) for part in parts]
    return kind(*values) if hasattr(kind, "_fields") else kind(values)
