"""Nested tuples, lists, dicts and dataclasses, taken apart into leaves and put together again.

None is no leaf: it is a part of the structure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

#: What a tree looks like without its leaves; comparable and hashable.
Tree = Any
#: The tree of a single leaf.
LEAF = "*"


def flatten(value: Any) -> tuple[list[Any], Tree]:
    """The leaves in order, and the structure around them."""
    leaves: list[Any] = []
    return leaves, _flatten(value, leaves)


# A function of its own: one that knew itself by its closure would hold the leaves in a cycle.
def _flatten(node: Any, leaves: list[Any]) -> Tree:
    if node is None:
        return None
    kind = type(node)
    if kind in (tuple, list) or (isinstance(node, tuple) and hasattr(node, "_fields")):
        return kind, tuple([_flatten(part, leaves) for part in node])
    if kind is dict:
        return dict, tuple(node), tuple([_flatten(part, leaves) for part in node.values()])
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = tuple([field.name for field in dataclasses.fields(node) if field.init])
        return kind, names, tuple([_flatten(getattr(node, name), leaves) for name in names])
    leaves.append(node)
    return LEAF


def rebuild(tree: Tree, leaves: Sequence[Any]) -> Any:
    """The structure with other leaves."""
    return _rebuild(tree, iter(leaves))


def _rebuild(tree: Tree, leaves: Iterator[Any]) -> Any:
    if tree is None:
        return None
    if tree == LEAF:
        return next(leaves)
    if len(tree) == 3:
        kind, names, parts = tree
        values = [_rebuild(part, leaves) for part in parts]
        fields = dict(zip(names, values, strict=True))
        return fields if kind is dict else kind(**fields)
    kind, parts = tree
    values = [_rebuild(part, leaves) for part in parts]
    return kind(*values) if hasattr(kind, "_fields") else kind(values)
