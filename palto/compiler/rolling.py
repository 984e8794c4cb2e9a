"""Rolling: which repeats stay loops in a native program.

One layer's code then stands for all of them, and making the program takes the time of one. The
others are laid open, as if each time had been written out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

from palto.compiler.checks import checks_of
from palto.compiler.fuse import LIBRARY, Fuser
from palto.compiler.kept import lasting_operations
from palto.compiler.nests import Check
from palto.compiler.prepare import RULES
from palto.compiler.simplify import simplify
from palto.tensor.graph import Graph, Operation
from palto.tensor.primitives.control import divided


def rolled(graph: Graph, writes: Mapping[int, int | None]) -> dict[int, Graph]:
    """The repeats that may stay, by sequence number, with their bodies, simplified.

    What each time has of its own must be inputs that nobody else uses, and what these become must
    be nothing but their new values, so that a time may overwrite them.

    Args:
        graph: a program's.
        writes: see `Lowering`.
    """
    repeats = [o for o in graph.operations if o.primitive.name == "repeat"]
    if not repeats:
        return {}
    inputs = {id(x): number for number, x in enumerate(graph.inputs)}
    taken = {id(graph.outputs[number]): source for number, source in writes.items()}
    uses = Counter(id(x) for o in graph.operations for x in o.inputs)
    uses.update(id(x) for x in graph.outputs)
    found = {}
    for operation in repeats:
        params = operation.params
        _, _, times = divided(operation.inputs, **params)
        own = [x for time in times for x in time]
        updated = [time[number] for time in times for number in params["updates"]]
        alone = all(id(x) in inputs and uses[id(x)] == 1 for x in own) and all(
            uses[id(new)] == 1 and taken.get(id(new)) == inputs[id(old)]
            for new, old in zip(operation.outputs[params["carries"] :], updated, strict=True)
        )
        body = simplify(params["body"], inline=True, rules=RULES) if alone else None
        if body is not None and _is_for_a_loop(body, operation):
            found[operation.sequence] = body
    return found


def checks_before(graph: Graph) -> list[Check]:
    """What the loops of a graph demand: of inputs that stay the same, so it is looked at before."""
    found = []
    for operation in graph.operations:
        if operation.primitive.name == "repeat":
            body = operation.params["body"]
            outside = {id(x): y for x, y in zip(body.inputs, operation.inputs, strict=False)}
            found += [replace(c, tensor=outside[id(c.tensor)]) for c in checks_of(body)]
    return found


def _is_for_a_loop(body: Graph, operation: Operation) -> bool:
    """Whether all is native, can be checked before, and is not better kept from call to call."""
    carries, shared = operation.params["carries"], operation.params["shared"]
    same = {id(x) for x in body.inputs[carries : carries + shared]}
    checks = checks_of(body)
    own = [*range(carries + shared, len(body.inputs))]
    updates = {own[number] for number in operation.params["updates"]}
    lasting = lasting_operations(body, [n for n in own if n not in updates], body.outputs)
    return (
        not any(o.primitive.name in (*LIBRARY, "scan") for o in body.operations)
        and all(id(check.tensor) in same for check in checks)
        and not Fuser(body, [], [], set(), kept=lasting).kept
    )
