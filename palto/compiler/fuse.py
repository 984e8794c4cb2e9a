"""Fuse: which tensors get memory, and which are computed together.

A tensor that has memory is a *root*; every other is computed where it is read. Roots come in the
graph's order, each into the first nest that can take it: a nest over the same places, after
everything that it reads, where it reads what the nest itself computes at the very place being
computed. So an optimiser's update is one loop, a softmax is one nest of three passes over a row
that stays in the cache, and a bias and an activation are added to a product while it is in
registers. A sum that a larger one is made of is a loop inside it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence, Set

from palto.compiler import index as ix
from palto.compiler import nests, views, zeros
from palto.compiler.index import Index, Variable
from palto.compiler.llvm import elementwise
from palto.compiler.llvm.tiling import Machine
from palto.compiler.nests import Check, Group, Member, Nest, Product, Reads, Single
from palto.compiler.prepare import read_through
from palto.compiler.sizes import Size
from palto.compiler.views import Read
from palto.tensor import dtypes
from palto.tensor.graph import Graph, Operation
from palto.tensor.tensor import Shape, Tensor

#: The most operations that are computed where they are read.
_LARGEST_EXPRESSION = 48
#: How often what is read again and again is read, so that it costs nothing beside the rest.
_MANY_TIMES = 8
#: The most tensors that one nest computes, and reads besides.
_MOST_MEMBERS, _MOST_READS = 16, 40
_INLINE = (*views.TABLE, "iota", "dynamic_update_slice")
#: So many elements are large for a core's cache.
_LARGE = 2**14
#: Results of a sum that are enough to share out, even if each has much to do.
_WIDE = 128
LIBRARY = ("sort", "fft")
_CHEAP = (
    "add", "subtract", "multiply", "negative", "abs", "maximum", "minimum", "where", "cast",
    "expand", "reshape", "less", "less_equal", "equal", "detach",
)  # fmt: skip
_REDUCTIONS = ("sum", "max", "min", "argmax", "window_max", "window_sum", "window_put")


#: A tensor, what is computed at a place, where a part begins, and how many rows are reduced.
Item = tuple[Tensor, Tensor, tuple[int, int] | None, int | None]


def is_disjoint(operation: Operation) -> bool:
    """Whether it puts values back under windows that do not overlap: each pixel has one."""
    params = operation.params
    return operation.primitive.name == "window_put" and all(
        k <= step for k, step in zip(params["window"], params["stride"], strict=True)
    )


class Fuser:
    """Turns a prepared graph into nests in the order in which they run.

    Args:
        graph: its outputs are copies (`detach`) or computed by operations of their own.
        checks: how many nests of checks there must be before the first cell is written.
        early: other tensors that must be there before the first cell is written.
        late: the outputs that may be written straight into cells.
        updates: results of `dynamic_update_slice` that are written into what they update.
        kept: the operations, by sequence number, whose nests come first and are skipped by calls
            that know their results.

    Attributes:
        kept: how many nests these are.
    """

    def __init__(
        self,
        graph: Graph,
        checks: Sequence[Check],
        early: Sequence[Tensor],
        late: set[int],
        updates: Sequence[Tensor] = (),
        kept: Set[int] = frozenset(),
    ) -> None:
        self.graph = graph
        self.nests: list[Nest] = []
        #: Where each root is computed, by identity.
        self.home: dict[int, Nest] = {}
        self.products: dict[int, Product] = {}
        self._late = late
        self._updates = {id(x) for x in updates}
        self._inputs = {id(x) for x in graph.inputs}
        self._roots: set[int] = {id(x) for x in graph.outputs} - self._inputs
        self._roots |= {id(check.tensor) for check in checks} - self._inputs
        for x in graph.outputs:  # the update is the cell's new value already
            copied = x.operation.inputs if x.operation is not None else ()
            if id(x) in late and any(id(y) in self._updates for y in copied):
                self._roots.discard(id(x))
        self._roots |= self._updates
        self._choose_roots()
        #: What some nest reads, by identity.
        self._read_somewhere: set[int] = set()
        #: What waits for somebody who reads it, to be computed there, by identity.
        self._waiting: dict[int, Tensor] = {}
        self.kept = 0
        for operation in graph.operations:
            if operation.sequence in kept:
                self._place(operation, early=True)
        self.kept = len(self.nests)
        early_ones = self._closure([*early, *(check.tensor for check in checks)]) - kept
        for operation in graph.operations:
            if operation.sequence in early_ones:
                self._place(operation, early=True)
        for check in checks:
            self._settle([check.tensor], early=True)
            self._append(check, early=True)
            self._note(check, self._reads(check.tensor, self._whole(check.tensor)))
        placed = early_ones | kept
        for operation in graph.operations:
            if operation.sequence not in placed:
                self._place(operation, early=False)

    def is_stored(self, tensor: Tensor) -> bool:
        """Whether a tensor has memory of its own, or lies in a register of the nest around."""
        return id(tensor) in self._roots or id(tensor) in self._inputs or tensor._value is not None

    def append_copy(self, copy: Tensor) -> None:
        """Compute a tensor, a copy of a root, after everything else."""
        self._roots.add(id(copy))
        shape, variables = self._range(copy.shape)
        group = Group(shape, variables)
        self._append(group, early=False)
        if not self._try(group, copy, copy, None, None):
            raise AssertionError("defect: a copy fits no nest")

    # Roots

    def _choose_roots(self) -> None:
        uses: dict[int, int] = {}
        weight: dict[int, int] = {}
        readers: dict[int, list[Operation]] = {}
        wanted = frozenset(self._roots)
        for operation in reversed(self.graph.operations):
            name = operation.primitive.name
            own = sum(uses.get(id(x), 0) for x in operation.outputs)
            for x in {id(x): x for x in operation.inputs}.values():
                # A view that is used twice makes what is behind it used twice.
                uses[id(x)] = uses.get(id(x), 0) + (own if name in views.PLAIN else 1)
                readers.setdefault(id(x), []).append(operation)
        for operation in self.graph.operations:
            name, outputs = operation.primitive.name, operation.outputs
            is_inline = (
                name in elementwise.TABLE
                or name in _INLINE
                or is_disjoint(operation)
                or (name == "sum" and self._is_inner(operation, readers))
            )
            if not is_inline or len(outputs) > 1:
                self._roots |= {id(x) for x in outputs}
            if name in ("matmul", "conv"):
                self._product(operation, readers, wanted)
            elif name == "winograd":
                self.products[id(outputs[0])] = self._winograd(operation)
            elif name == "winograd_gradient":
                for x in operation.inputs:
                    at = nests.variables("m", x.shape)
                    self._neighbours(x, [ix.of(v) for v in at], at[-1])
            for x in self._repeated(operation):
                self._force(x)
            if name in (*LIBRARY, *nests.LOOPS):  # these see memory, not views of it
                self._roots |= {id(x) for x in operation.inputs if not self.is_stored(x)}
            (first, *_) = outputs
            total = (name not in _INLINE) + sum(
                0 if self.is_stored(x) else weight.get(id(x), 0) for x in operation.inputs
            )
            shared = name in elementwise.TABLE and uses.get(id(first), 0) > 1
            again = self._is_constant(first) or (shared and self._is_cheap(first, readers))
            if (shared and not again) or total > _LARGEST_EXPRESSION:
                self._roots.add(id(first))
            weight[id(first)] = total

    def _is_inner(self, operation: Operation, readers: dict[int, list[Operation]]) -> bool:
        """Whether a sum is but a term of another sum, as in a row of blocks with a scale each.

        In both, neighbouring results fill vectors: neither is along the last axis.
        """
        if operation.inputs[0].size == 0 or self._reduces_rows(operation):
            return False
        is_changed = False
        while True:
            outputs = operation.outputs
            following = readers.get(id(outputs[0]), [])
            if len(outputs) > 1 or len(following) != 1 or id(outputs[0]) in self._roots:
                return False
            (operation,) = following
            name = operation.primitive.name
            if name == "sum":  # of a mere view, it is the second stage of one sum
                is_wide = int(operation.output().size) >= _WIDE
                return is_changed and is_wide and not self._reduces_rows(operation)
            is_changed |= name in elementwise.TABLE
            if name not in elementwise.TABLE and (name not in views.PLAIN or name == "expand"):
                return False

    def _is_cheap(self, tensor: Tensor, readers: dict[int, list[Operation]]) -> bool:
        """Whether it is better computed again than kept: a few operations on one or two tensors.

        Much smaller ones beside them do not count. A product, or the sum of a row, is in a register
        at first; what is made of it is kept instead of it, unless it is also summed up itself, from
        memory.
        """
        if tensor.dtype == dtypes.bool:
            return False  # a byte: what it is computed from takes more
        leaves: set[int] = set()
        stack, count = [tensor], 0
        while stack:
            x = stack.pop()
            if x is not tensor and (self.is_stored(x) or x._value is not None):
                if x.size > 1 or x._value is None:
                    operation = x.operation if x._value is None else None
                    kept = operation is None or operation.primitive.name in elementwise.TABLE
                    kept = kept and id(x) not in self.products
                    if not kept and not _is_summed(x, readers):
                        return False
                    if int(x.size) * _MANY_TIMES > int(tensor.size):
                        leaves.add(id(x))
                continue
            operation = x.operation
            assert operation is not None
            name = operation.primitive.name
            count += name in elementwise.TABLE
            if name not in _CHEAP or count > 6:
                return False
            stack += operation.inputs
        return len(leaves) <= 2

    def _is_constant(self, tensor: Tensor) -> bool:
        """Whether a tensor is computed from numbers that are known."""
        operation = tensor.operation
        if tensor._value is not None:
            return tensor.size == 1
        if operation is None or id(tensor) in self._roots:
            return False
        if operation.primitive.name not in (*elementwise.TABLE, "expand", "reshape", "iota"):
            return False
        return all(self._is_constant(x) for x in operation.inputs)

    def _repeated(self, operation: Operation) -> Iterable[Tensor]:
        """Inputs of which an element is read more than once, or by somebody else than a nest."""
        name, inputs = operation.primitive.name, operation.inputs
        if name == "gather" or (name == "expand" and not self._is_converted(inputs[0])):
            return [x for x in inputs if int(x.size) < int(operation.output().size)]
        if name == "dynamic_update_slice" or name in views.TABLE:
            return inputs[1:]  # indices
        if name in ("window_max", "window_sum", "window_put", "matmul", "conv", "winograd"):
            return inputs
        if name in ("scatter_add", "random_bits"):
            return inputs
        return ()

    def _is_converted(self, tensor: Tensor) -> bool:
        """Whether it lies in memory in another dtype, which is converted as soon as read."""
        x = read_through(tensor, self._whole(tensor), self.is_stored).tensor
        operation = x.operation if not self.is_stored(x) else None
        if operation is None or operation.primitive.name != "cast":
            return False
        (source,) = operation.inputs
        return self.is_stored(read_through(source, self._whole(source), self.is_stored).tensor)

    def _force(self, tensor: Tensor) -> None:
        """Give memory to what is computed behind plain views."""
        read = read_through(tensor, self._whole(tensor), self.is_stored)
        if read.tensor._value is None and id(read.tensor) not in self._inputs:
            operation = read.tensor.operation
            assert operation is not None
            if operation.primitive.name != "iota" and not self._is_constant(read.tensor):
                self._roots.add(id(read.tensor))

    # Products

    def _product(
        self, operation: Operation, readers: dict[int, list[Operation]], wanted: Set[int]
    ) -> None:
        """Note a matrix product or convolution that the contraction's kernel can compute."""
        rows: tuple[Variable, ...]
        sums: tuple[Variable, ...]
        indices: tuple[Index, ...]
        x, w, out = *operation.inputs, operation.output()
        if out.dtype not in dtypes.FLOATING or 0 in (*x.shape, *w.shape, *out.shape):
            return
        name = operation.primitive.name
        result, order = out, tuple(range(out.ndim))
        needless: list[Index | None] = []
        following = readers.get(id(out), [])
        if len(following) == 1 and following[0].primitive.name == "permute":
            # Nobody wants it the way it is: compute it the way it is wanted.
            result, order = following[0].output(), following[0].params["axes"]
            self._roots = self._roots - {id(out)} | {id(result)}
        if name == "matmul":
            axes = nests.variables("m", (*out.shape, x.shape[-1]))
            *batch, row, column, summed = axes
            b, m, n, k = [ix.of(v) for v in batch], ix.of(row), ix.of(column), ix.of(summed)
            batches, rows, sums = tuple(batch), (row,), (summed,)
            at_a, at_b, indices = (*b, m, k), (*b, k, n), (*b, m, n)
            if not any(isinstance(n, Size) for n in (*out.shape, x.shape[-1])):
                needless = [
                    zeros.where_zero(x, at_a), zeros.where_zero(w, at_b),
                    zeros.where_unread(out, indices, readers, wanted),
                ]  # fmt: skip
        else:
            groups, share = operation.params["groups"], nests.out_share(operation)
            if w.shape[-2] * share == 1:
                self._roots.add(id(out))
                return  # each channel by itself: no reuse for a kernel to find
            outer = nests.variables("m", out.shape[:-1])
            over = nests.variables("k", w.shape[:-1])
            group, column = Variable("g", groups), Variable("c", share)
            o, place, g = [ix.of(v) for v in outer], [ix.of(v) for v in over], ix.of(group)
            space = nests.under(
                o[1:], place[:-1], operation.params["stride"], operation.params["kernel_dilation"]
            )
            channel = ix.total([(g, w.shape[-2]), (place[-1], 1)])
            last = ix.total([(g, share), (ix.of(column), 1)])
            batches, rows, sums = (group,), outer, over
            at_a, at_b, indices = (o[0], *space, channel), (*place, last), (*o, last)
        read_a = self._affine(x, at_a)
        indices = tuple(indices[axis] for axis in order)
        if name == "matmul":
            read_b, row = self._affine(w, at_b), rows[0]
            # Columns are neighbours in b, if it can be, and in the result, if there is a choice.
            either = self._step(read_a, row) == 1, self._step(read_b, column) == 1
            if either[0] and (not either[1] or indices[-1] == ix.of(row)):
                read_a, read_b, rows, column = read_b, read_a, (column,), row
        elif self._is_narrow(read_a, column, rows[-1]):
            # Pixels side by side fill vectors, where a few channels do not.
            read_a, read_b = Read(w, at_b), read_a
            self._roots.add(id(w))
            batches, rows, column = (*batches, *rows[:-1]), (column,), rows[-1]
        else:
            read_b = self._neighbours(w, at_b, column)
        self.products[id(result)] = Product(
            operation, result, batches, rows, column, sums, read_a, read_b, indices,
            tuple(i for i in needless if i is not None),
        )  # fmt: skip

    def _is_narrow(self, image: Read, channel: Variable, pixel: Variable) -> bool:
        """Whether a convolution has fewer channels than a vector, and its pixels are neighbours."""
        lanes = Machine.host().vector_bytes // image.tensor.dtype.itemsize
        if isinstance(channel.length, Size) or isinstance(pixel.length, Size):
            return False
        return channel.length < lanes <= pixel.length and self._step(image, pixel) == 1

    def _winograd(self, operation: Operation) -> Product:
        """A Winograd convolution, of what a tile reads for its first result."""
        (x, u), out = operation.inputs, operation.output()
        groups = operation.params["groups"]
        share = out.shape[-1] // groups
        rows = nests.variables("m", out.shape[:-1])
        group, column = Variable("g", groups), Variable("c", share)
        channel = Variable("k0", u.shape[2])
        g, k, o = ix.of(group), ix.of(channel), [ix.of(v) for v in rows]
        read = self._neighbours(x, (*o, ix.total([(g, u.shape[2]), (k, 1)])), channel)
        self._roots.add(id(u))
        kernels = Read(u, (Index(), Index(), k, Index()))
        last = ix.total([(g, share), (ix.of(column), 1)])
        return Product(
            operation, out, (group,), rows, column, (channel,), read, kernels, (*o, last)
        )

    def _neighbours(self, tensor: Tensor, indices: Sequence[Index], along: Variable) -> Read:
        """An affine read whose neighbours along a variable are neighbours in memory."""
        read = self._affine(tensor, indices)
        if self._step(read, along) == 1:
            return read
        self._roots.add(id(tensor))
        return Read(tensor, tuple(indices))

    def _affine(self, tensor: Tensor, indices: Sequence[Index]) -> Read:
        """What a product reads, as loops with fixed steps over a tensor that has memory."""
        read = best = Read(tensor, tuple(indices))
        while not self.is_stored(read.tensor) and read.tensor.operation is not None:
            operation = read.tensor.operation
            if operation.primitive.name not in views.PLAIN:
                break
            read = views.TABLE[operation.primitive.name](operation, read.indices)
            place = ix.linear(read.indices, read.tensor.shape)
            if all(v.kind == "loop" for v, _ in place.terms.values()):
                best = read
        read = best
        if read.tensor._value is None and id(read.tensor) not in self._inputs:
            self._roots.add(id(read.tensor))
        return read

    @staticmethod
    def _step(read: Read, variable: Variable) -> int:
        if variable.length == 1:
            return 1
        place = ix.linear(read.indices, read.tensor.shape)
        return place.terms[variable.key][1] if variable.key in place.terms else 0

    # Order

    def _closure(self, tensors: Sequence[Tensor]) -> set[int]:
        """The operations that some tensors need."""
        found: set[int] = set()
        stack = list(tensors)
        while stack:
            tensor = stack.pop()
            operation = tensor.operation if tensor._value is None else None
            if operation is not None and operation.sequence not in found:
                found.add(operation.sequence)
                stack.extend(operation.inputs)
        return found

    def _append(self, nest: Nest, *, early: bool) -> None:
        nest.position, nest.early = len(self.nests), early
        self.nests.append(nest)

    @staticmethod
    def _whole(tensor: Tensor) -> list[Index]:
        return [ix.of(v) for v in nests.variables("w", tensor.shape)]

    # What is read

    def _reads(self, tensor: Tensor, indices: Sequence[Index], *, inside: bool = False) -> Reads:
        walk = nests.Walk(self.is_stored)
        walk.visit(tensor, indices, inside=inside)
        return walk.reads

    def _note(self, nest: Nest, reads: Reads) -> None:
        self._read_somewhere |= {id(t) for t, _ in reads}
        known = {(id(t), i) for t, i in nest.reads}
        nest.reads += [(t, i) for t, i in reads if (id(t), i) not in known]

    # Places

    def _place(self, operation: Operation, *, early: bool) -> None:
        name, outputs = operation.primitive.name, operation.outputs
        if not any(id(x) in self._roots for x in outputs):
            return
        if id(outputs[0]) in self.products:
            self._place_product(self.products[id(outputs[0])], early)
        elif id(outputs[0]) in self._updates:
            self._place_single(operation, "update", early)
        elif name == "concat":
            self._place_concat(operation, early)
        elif name in ("sum", "max", "min") and self._reduces_rows(operation):
            self._place_row_reduction(operation, early)
        elif name in _REDUCTIONS or name in ("matmul", "conv"):
            self._place_single(operation, "reduce", early)
        elif name == "cumulative_sum":
            self._place_single(operation, "running", early)
        elif name == "scatter_add":
            self._place_single(operation, "scatter", early)
        elif name == "winograd_gradient":
            self._place_single(operation, "winograd", early)
        elif name in LIBRARY:
            self._place_single(operation, "library", early)
        elif name in nests.LOOPS:
            self._place_single(operation, name, early)
        elif operation.is_recomputed and id(outputs[0]) not in self._late:
            self._waiting[id(outputs[0])] = outputs[0]
        else:
            self._place_map(operation.output(), early)

    def _place_product(self, product: Product, early: bool) -> None:
        out = product.result
        self._settle([product.a.tensor, product.b.tensor], early=early)
        shape, variables = self._range(out.shape)
        group = Group(shape, variables, product=product)
        self._append(group, early=early)
        self._note(group, [(product.a.tensor, None), (product.b.tensor, None)])
        self.home[id(out)] = group

    @staticmethod
    def _range(shape: Shape) -> tuple[Shape, tuple[Variable, ...]]:
        long = tuple(n for n in shape if n != 1)
        return long, nests.variables("i", long)

    def _place_single(self, operation: Operation, kind: str, early: bool) -> None:
        out = operation.output()
        variables = nests.variables("i", out.shape)
        reduced: tuple[Variable, ...] = ()
        walk = nests.Walk(self.is_stored)
        if kind == "reduce":
            reduced = nests.variables("r", nests.reduced_shape(operation))
            at, over = [ix.of(v) for v in variables], [ix.of(v) for v in reduced]
            for read in nests.terms(operation, at, over):
                walk.follow(read)
        else:
            for x in operation.inputs[1:] if kind == "update" else operation.inputs:
                walk.visit(x, self._whole(x))
        self._settle([tensor for tensor, _ in walk.reads], early=early)
        single = Single(operation, kind, variables, reduced)
        self._append(single, early=early)
        # What a loop of its own reads may lie anywhere.
        self._note(single, [(tensor, None) for tensor, _ in walk.reads])
        for x in operation.outputs:
            self.home[id(x)] = single

    def _place_concat(self, operation: Operation, early: bool) -> None:
        axis, start, out = operation.params["axis"], 0, operation.output()
        for x in operation.inputs:
            if x.size:
                self._join(out, x, early, offset=(axis, start))
            start += x.shape[axis]
        if id(out) not in self.home:  # nothing to copy
            self._join(out, out, early)

    def _place_map(self, tensor: Tensor, early: bool) -> None:
        self._join(tensor, tensor, early)

    @staticmethod
    def _reduces_rows(operation: Operation) -> bool:
        x, axes = operation.inputs[0], operation.params["axes"]
        long = [axis for axis, n in enumerate(x.shape) if n != 1]
        reduced = [axis for axis in long if axis in axes]
        return bool(reduced) and x.size > 0 and reduced == long[len(long) - len(reduced) :]

    def _place_row_reduction(self, operation: Operation, early: bool) -> None:
        self._join(operation.output(), operation.inputs[0], early, reduce=True)

    def _join(
        self,
        tensor: Tensor,
        source: Tensor,
        early: bool,
        *,
        offset: tuple[int, int] | None = None,
        reduce: bool = False,
    ) -> None:
        """Put a tensor, computed from `source` at the same place, into a nest."""
        rows = tensor.size if reduce else None
        one: Item = tensor, source, offset, rows
        awaited = self._awaited(source, inside=source is tensor)
        if awaited:
            for x in awaited:
                del self._waiting[id(x)]
            if self._join_all([*((x, x, None, None) for x in awaited), one], early):
                return
            for x in awaited:
                self._join_all([(x, x, None, None)], early)
        if not self._join_all([one], early):
            raise AssertionError(f"defect: {tensor.operation} fits no nest")

    def _settle(self, tensors: Sequence[Tensor], *, early: bool) -> None:
        """Compute what waits, as somebody needs it who cannot compute it on the way."""
        for tensor in tensors if self._waiting else ():
            for x, _ in self._reads(tensor, self._whole(tensor)):
                if self._waiting.pop(id(x), None) is not None:
                    self._join(x, x, early)

    def _awaited(self, tensor: Tensor, *, inside: bool) -> list[Tensor]:
        """What waits of all that a tensor needs, in the order of computation."""
        found: dict[int, Tensor] = {}

        def visit(x: Tensor, *, inside: bool) -> None:
            for read, _ in self._reads(x, self._whole(x), inside=inside):
                if id(read) in self._waiting and id(read) not in found:
                    found[id(read)] = read
                    visit(read, inside=True)

        if self._waiting:
            visit(tensor, inside=inside)
        return sorted(found.values(), key=lambda x: x.operation.sequence if x.operation else 0)

    def _join_all(self, items: Sequence[Item], early: bool) -> bool:
        """Put tensors into the first nest that takes them all."""
        last, reads = -1, set()
        for tensor, source, *_ in items:
            for x, _ in self._reads(source, self._whole(source), inside=source is tensor):
                home = self.home.get(id(x))  # none yet for what is among the items
                if home is not None:
                    last = max(last, home.position)
                if x._value is None:
                    reads.add(id(x))
        is_late = any(id(tensor) in self._late for tensor, *_ in items)
        _, source, *_ = items[-1]
        is_large = not is_late and int(source.size) >= _LARGE
        first = max(last, self.kept)
        if is_large and last < 0 and not reads & self._read_somewhere:
            first = len(self.nests)
        for nest in self.nests[first:]:
            if not isinstance(nest, Group) or source.size == 0 or (is_late and nest.early):
                continue
            if is_large and not self._is_akin(nest, reads):
                continue
            if self._try_all(nest, items):
                return True
        shape, variables = self._range(source.shape)
        group = Group(shape, variables)
        self._append(group, early=early)
        if self._try_all(group, items):
            return True
        self.nests.pop()
        return False

    @staticmethod
    def _is_akin(group: Group, reads: Set[int]) -> bool:
        """Whether a group computes or reads any of some tensors.

        If not, there is nothing to share, and large results would only lie in memory for longer.
        """
        return any(id(x) in reads for x in group.outputs) or any(
            id(x) in reads for x, _ in group.reads
        )

    def _try_all(self, group: Group, items: Sequence[Item]) -> bool:
        """Put all of them into a group, or none."""
        if len(items) == 1:
            return self._try(group, *items[0])
        before = [*group.members], [*group.reads], group.rows, dict(self.home)
        if all(self._try(group, *item) for item in items):
            return True
        group.members, group.reads, group.rows, self.home = before
        return False

    def _try(
        self,
        group: Group,
        tensor: Tensor,
        source: Tensor,
        offset: tuple[int, int] | None,
        rows: int | None,
    ) -> bool:
        before = group.rows
        kind = self._kind(group, source, rows)
        if kind is None:
            return False
        member = Member(tensor, kind, 0, source, offset)
        row = group.place() if group.rows is None else group.row()
        at = nests.source_indices(member, group.place(), row)
        reads = self._reads(source, at, inside=source is tensor)
        phase = self._phase(group, kind, reads)
        crowded = bool(group.members) and (
            len(group.members) >= _MOST_MEMBERS or len(group.reads) + len(reads) > _MOST_READS
        )
        if phase is None or crowded:
            group.rows = before
            return False
        member.phase = phase
        group.members.append(member)
        self._note(group, reads)
        if id(tensor) not in self.home or self.home[id(tensor)].position < group.position:
            self.home[id(tensor)] = group
        return True

    @staticmethod
    def _kind(group: Group, source: Tensor, rows: int | None) -> str | None:
        """What a tensor would be in a group; None if it covers other places."""
        size = source.size
        if rows is None:
            if size == group.size:
                return "map"
            return "row" if group.rows is not None and size == group.row_count else None
        if size != group.size or group.product is not None:
            return None
        if group.rows is None:
            for count in range(len(group.shape) + 1):
                if math.prod(group.shape[:count]) == rows:
                    group.rows = count
                    return "reduce"
            return None
        return "reduce" if group.row_count == rows else None

    def _phase(self, group: Group, kind: str, reads: Reads) -> int | None:
        """The pass in which a tensor can be computed; None if it cannot be in this group."""
        phase = 0
        mine = {id(m.tensor): m for m in group.members}
        for x, indices in reads:
            home = self.home.get(id(x))
            if home is None or home.position < group.position:
                continue
            if home is not group or indices is None:
                return None
            place = ix.linear(indices, x.shape)
            member = mine.get(id(x))
            if member is None:  # the product itself
                if kind != "map" or place != group.place():
                    return None
            elif member.source.size != x.size and member.kind != "reduce":
                return None  # a piece of something larger
            elif member.kind == "map":
                if kind == "row" or place != group.place():
                    return None
                phase = max(phase, member.phase)
            else:
                if place != group.row():
                    return None
                phase = max(phase, member.phase + (kind != "row"))
        return phase


def _is_summed(x: Tensor, readers: dict[int, list[Operation]]) -> bool:
    """Whether a tensor, or a mere view of it, is summed up."""
    return any(
        operation.primitive.name == "sum"
        or (operation.primitive.name in views.PLAIN and _is_summed(operation.output(), readers))
        for operation in readers.get(id(x), ())
    )
