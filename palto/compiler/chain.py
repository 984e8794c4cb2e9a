"""Chains: steps that run part by part, each part while the caches hold what it is about.

The scores of attention, their softmax and what is made of it are large arrays, but each head is a
part by itself, in every one of these steps. So a thread takes its heads one after the other through
all steps of the chain, with no barrier between the steps.

A part of a step is some neighbouring units. Whatever a step of the chain writes and another one
reads or writes must be divided into the same parts, each one block of memory. What nobody else
reads takes only one block for each thread, the same for all of its parts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from palto.compiler import index as ix
from palto.compiler import nests
from palto.compiler.index import Index, Variable
from palto.compiler.llvm.tiling import Machine
from palto.compiler.lowering import Step
from palto.compiler.memory import Buffer
from palto.compiler.nests import Group
from palto.compiler.sizes import Size
from palto.tensor.tensor import Tensor

#: The fewest parts of a chain, so that all threads have about as many.
_FEWEST = 16

Stored = Callable[[Tensor], Buffer | None]


@dataclass(slots=True)
class _Parts:
    """How a step can be divided.

    Attributes:
        step: the step.
        leading: the variables that its units count, the slowest first.
        places: where in which buffers it reads (False) and writes (True).
    """

    step: Step
    leading: list[Variable]
    places: list[tuple[Buffer, Index, bool]]

    def counts(self) -> Iterator[int]:
        """Into how many parts, the most first."""
        assert self.step.kernel is not None
        for end in range(len(self.leading), 0, -1):
            count = math.prod(v.length for v in self.leading[:end])
            if count >= _FEWEST and self.step.kernel.units % count == 0:
                yield count

    def is_block(self, buffer: Buffer, place: Index, count: int) -> bool:
        """Whether each of so many parts has a block of a buffer for itself."""
        block, rest = divmod(buffer.length, count)
        if rest or buffer.start or buffer.length != math.prod(buffer.shape):
            return False
        inside, step, number = dict(place.terms), buffer.length, 1
        for variable in self.leading:
            if number == count:
                break
            number, step = number * variable.length, step // variable.length
            if variable.length != 1 and inside.pop(variable.key, (None, 0))[1] != step:
                return False
        within = Index(place.constant, inside)
        known = {v.key for v in self.leading if v.key not in inside}
        return number == count and within.within(block) and not known & ix.counters(within)


def find(steps: Sequence[Step], stored: Stored) -> None:
    """Note in steps of a program which of them make chains, and let their memory live as long."""
    divided = [_parts(step, stored) for step in steps]
    place = 0
    while place < len(steps):
        best: list[Step] = []
        first = divided[place]
        for count in first.counts() if first else ():
            chain = _chain(divided[place:], count)
            if len(chain) > max(len(best), 1) and _pays([x.step for x in chain]):
                best = [x.step for x in chain]
                for x in chain:
                    x.step.parts, x.step.follows = count, x is not chain[0]
                    x.step.passing = _passing(chain)
        for step in best:
            for buffer in (*step.reads, *step.writes):
                buffer.used(best[0].nest.position)
                buffer.used(best[-1].nest.position)
        place += max(len(best), 1)


def _passing(chain: Sequence[_Parts]) -> list[Buffer]:
    """What is written and read inside a chain only, each part by itself."""
    first, last = (x.step.nest.position for x in (chain[0], chain[-1]))
    touched = [(x, *place) for x in chain for place in x.places]
    found = {b: None for _, b, _, writes in touched if writes and b.role == "arena"}
    return [
        buffer
        for buffer in found
        if first <= buffer.first
        and buffer.last <= last
        and all(x.is_block(b, at, x.step.parts) for x, b, at, _ in touched if b is buffer)
    ]


def _chain(following: Sequence[_Parts | None], count: int) -> list[_Parts]:
    """The first of some steps that can be run together in so many parts."""
    chain: list[_Parts] = []
    for parts in following:
        if parts is None or count not in parts.counts():
            break
        places = [(x, *place) for x in (*chain, parts) for place in x.places]
        written = {b for _, b, _, writes in places if writes}
        users = Counter(b for x in (*chain, parts) for b in {b for b, _, _ in x.places})
        if any(
            b in written and users[b] > 1 and not x.is_block(b, at, count) for x, b, at, _ in places
        ):
            break
        chain.append(parts)
    return chain


def _pays(chain: Sequence[Step]) -> bool:
    """Whether one step hands over to another more than the second cache holds."""
    written = {b for step in chain for b in step.writes}
    return any(
        b in written and b.bytes > Machine.host().l2 // 2 for step in chain for b in step.reads
    )


def _parts(step: Step, stored: Stored) -> _Parts | None:
    """How a step can be divided, if it can be."""
    nest, kernel = step.nest, step.kernel
    if not isinstance(nest, Group) or kernel is None or step.is_serial or step.writes_cells:
        return None
    if any(isinstance(n, Size) for n in (kernel.units, *nest.shape)):
        return None
    product, values = nest.product, dict[str, Index]()
    row = nest.row() if nest.rows else nest.place()
    leading = [*nest.variables[: nest.rows or 0]]
    reads = [(x, at) for x, at in nest.reads if at is not None]
    targets = [(m.tensor, nests.target_indices(m, nest.place(), row)) for m in nest.members]
    if product is not None:
        b = stored(product.b.tensor)
        steps = {} if b is None else b.place_of(product.b.indices).terms
        leading = [v for v in product.batch if v.length != 1 and v.key in steps]
        is_matmul = product.operation.primitive.name == "matmul"
        if not is_matmul or kernel.units != math.prod(v.length for v in leading):
            return None
        long = [i for i, n in zip(product.indices, product.result.shape, strict=True) if n != 1]
        values = {v.key: i for v, i in zip(nest.variables, long, strict=True)}
        targets.append((product.result, [*product.indices]))
        reads += [(x.tensor, x.indices) for x in (product.a, product.b)]
    if len(nest.reads) > len(reads):
        return None  # something is read anywhere
    places = [
        (buffer, ix.replace(buffer.place_of(indices), values), writes)
        for found, writes in ((reads, False), (targets, True))
        for x, indices in found
        if (buffer := stored(x)) is not None
    ]
    return _Parts(step, leading, places) if leading else None
