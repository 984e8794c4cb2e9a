"""Tensor: an immutable value in a graph. Cell: the one kind of Tensor that changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn, Self

import numpy as np

from palto.tensor import dtypes
from palto.tensor.dtypes import Array, DType
from palto.tensor.tree import flatten, rebuild

if TYPE_CHECKING:
    from palto.tensor.graph import Operation, Trace

Shape = tuple[int, ...]
Axes = int | Sequence[int] | None


class TraceError(RuntimeError):
    """A function being compiled does what a compiled program cannot repeat."""


class Tensor:
    """A multi-dimensional array of one dtype whose value never changes.

    Make one with :func:`palto.asarray` or any other creation function. With NumPy's, PyTorch's
    and the Python array API's operators and names, it behaves as a user of those expects, except
    that nothing writes into it: use ``x.at[index].set(value)`` to get a changed copy.

    Attributes:
        shape: the size of each axis.
        dtype: one of Palto's dtypes, a NumPy dtype object.
        requires_grad: whether backprop computes a gradient towards this tensor.
    """

    __slots__ = (
        "__weakref__", "_cell", "_grad", "_value", "dtype", "index", "operation",
        "requires_grad", "severed", "shape", "trace",
    )  # fmt: skip

    # NumPy arrays and scalars on the left of an operator leave the work to Tensor.
    __array_ufunc__ = None

    shape: Shape
    dtype: DType
    requires_grad: bool

    def __init__(
        self,
        shape: Shape,
        dtype: DType,
        value: Array | None = None,
        *,
        requires_grad: bool = False,
        operation: Operation | None = None,
        index: int = 0,
        trace: Trace | None = None,
    ) -> None:
        self.shape = shape
        self.dtype = dtype
        self.requires_grad = requires_grad
        self._value = value
        self._grad: Tensor | None = None
        #: The operation that computed this tensor, where backprop or a trace needs to know.
        self.operation = operation
        #: Which of the operation's outputs this is.
        self.index = index
        #: The trace that this valueless tensor belongs to; None for a tensor with a value.
        self.trace = trace
        # Weakly, so that the memory of a cell that nobody holds is free at once.
        self._cell: weakref.ref[Cell] | None = None
        #: Why backprop can no longer pass through here, if it cannot.
        self.severed: str | None = None

    # What it is

    @property
    def cell(self) -> Cell | None:
        """The cell of which this is a read, if it is one."""
        return None if self._cell is None else self._cell()

    @cell.setter
    def cell(self, cell: Cell) -> None:
        self._cell = weakref.ref(cell)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        size = 1
        for length in self.shape:
            size *= length
        return size

    @property
    def grad(self) -> Tensor | None:
        """The gradient that the last ``backward()`` left here, or None."""
        return self._grad

    @property
    def T(self) -> Tensor:
        """The transpose of a matrix. Raises ValueError unless there are two axes."""
        if self.ndim != 2:
            raise ValueError(
                f".T is for a matrix; this tensor has shape {self.shape}. "
                "Use .mT to transpose the last two axes or permute_dims for any order."
            )
        return self.mT

    @property
    def mT(self) -> Tensor:
        """The tensor with its last two axes swapped."""
        return functions.matrix_transpose(self)

    @property
    def real(self) -> Tensor:
        """The real part."""
        return functions.real(self)

    @property
    def imag(self) -> Tensor:
        """The imaginary part."""
        return functions.imag(self)

    # Its value, outside

    def array(self) -> Array:
        """The value as NumPy sees it, not to be written to; `numpy()` gives a copy of your own.

        Raises:
            TraceError: while a function is being traced there is no value.
        """
        if self._value is None:
            raise TraceError(self._no_value())
        return self._value

    def _no_value(self) -> str:
        if self.trace is not None and self.trace.closed:
            return (
                f"this tensor of shape {self.shape} left a function while it was compiled and has "
                "no value; return it from the function instead of storing it outside"
            )
        return (
            f"a compiled function asked for the value of a tensor of shape {self.shape}, which is "
            "known only when the program runs. Use palto.where instead of `if`, a fixed number of "
            "steps instead of `while`, and do float(), print() and NumPy work outside the function"
        )

    def numpy(self) -> Array:
        """A NumPy array of your own with this value."""
        return np.array(self.array())

    def item(self) -> Any:
        """The Python number in a tensor of one element.

        Raises:
            ValueError: the tensor has more or fewer elements than one.
        """
        if self.size != 1:
            raise ValueError(f"item() wants a tensor of one element, this one has {self.shape}")
        return self.array().item()

    def tolist(self) -> Any:
        """The value as nested Python lists."""
        return self.array().tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        if copy is False:
            raise ValueError("a Tensor hands NumPy a copy; ask without copy=False")
        return np.array(self.array(), dtype=dtype)

    def __array_function__(
        self, function: Callable[..., Any], types: Any, args: Any, kwargs: Any
    ) -> Any:
        """NumPy's functions see the tensor's value and give NumPy arrays."""
        leaves, tree = flatten((args, kwargs))
        values = [leaf.array() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = rebuild(tree, values)
        return function(*args, **kwargs)

    def __bool__(self) -> bool:
        if self.size != 1:
            raise ValueError(
                f"the truth of a tensor of shape {self.shape} is ambiguous; use .any() or .all()"
            )
        return bool(self.array())

    def __float__(self) -> float:
        return float(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __complex__(self) -> complex:
        return complex(self.item())

    def __index__(self) -> int:
        if self.dtype not in dtypes.INTEGER:
            raise TypeError(f"only an integer tensor serves as an index, not {self.dtype.name}")
        return int(self.item())

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("a tensor without axes has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator[Tensor]:
        if not self.shape:
            raise TypeError("a tensor without axes cannot be iterated over")
        return (self[i] for i in range(self.shape[0]))

    def __contains__(self, item: Any) -> bool:
        return bool((self == item).any())

    def __format__(self, form: str) -> str:
        return format(self.item(), form) if form and self.size == 1 else repr(self)

    def __repr__(self) -> str:
        grad = ", requires_grad=True" if self.requires_grad else ""
        if self._value is None:
            return f"Tensor(traced, shape={self.shape}, dtype={self.dtype.name}{grad})"
        body = np.array2string(self.array(), separator=", ", prefix="Tensor(", threshold=1000)
        return f"Tensor({body}, dtype={self.dtype.name}{grad})"

    def __copy__(self) -> Self:
        return self  # a value that cannot change needs no second one

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("tensors are not pickled; save them with palto.formats.safetensors")

    # Backprop

    def backward(
        self,
        gradient: Tensor | None = None,
        *,
        inputs: Iterable[Tensor] | None = None,
        accumulate: bool = False,
        retain_graph: bool = False,
        create_graph: bool = False,
    ) -> None:
        """Set ``.grad`` of every parameter that this tensor depends on; see palto.backprop."""
        from palto import backprop

        backprop.backward(
            self,
            gradient,
            inputs=inputs,
            accumulate=accumulate,
            retain_graph=retain_graph,
            create_graph=create_graph,
        )

    def detach(self) -> Tensor:
        """The same value, cut off from backprop."""
        return functions.detach(self)

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Ask for (or decline) a gradient towards this tensor; returns the tensor.

        Raises:
            TypeError: the dtype has no derivative.
            ValueError: the tensor was computed from others.
        """
        if requires_grad and self.dtype not in dtypes.DIFFERENTIABLE:
            raise TypeError(
                f"a tensor of {self.dtype.name} has no gradient; cast it to float32 first"
            )
        if self.operation is not None:
            raise ValueError(
                "this tensor was computed from others; call detach() first, or requires_grad_() "
                "on the tensors it came from"
            )
        self.requires_grad = requires_grad
        return self

    # Shape and contents

    def astype(self, dtype: Any) -> Tensor:
        """The same numbers in another dtype."""
        return functions.astype(self, dtype)

    def reshape(self, *shape: int | Sequence[int]) -> Tensor:
        """The same elements in another shape; one length may be -1."""
        return functions.reshape(self, _variadic(shape))

    def flatten(self, start_axis: int = 0, end_axis: int = -1) -> Tensor:
        """The axes from `start_axis` to `end_axis` joined into one."""
        return functions.flatten(self, start_axis, end_axis)

    def permute(self, *axes: int | Sequence[int]) -> Tensor:
        """The axes in another order."""
        return functions.permute_dims(self, _variadic(axes))

    def squeeze(self, axis: int | Sequence[int]) -> Tensor:
        """The tensor without the named axes of length 1."""
        return functions.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Tensor:
        """The tensor with a new axis of length 1."""
        return functions.expand_dims(self, axis)

    def __getitem__(self, index: Any) -> Tensor:
        return functions.getitem(self, index)

    def __setitem__(self, index: Any, value: Any) -> NoReturn:
        raise TypeError(
            "a Tensor's value never changes; write x = x.at[index].set(value), or .add(value)"
        )

    @property
    def at(self) -> functions.At:
        """``x.at[index].set(value)`` and ``x.at[index].add(value)``: a changed copy."""
        return functions.At(self)

    # Reductions

    def sum(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """The sum over `axis`, or over everything."""
        return functions.sum(self, axis, keepdims=keepdims)

    def mean(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """The mean over `axis`, or over everything."""
        return functions.mean(self, axis, keepdims=keepdims)

    def var(self, axis: Axes = None, *, correction: float = 0, keepdims: bool = False) -> Tensor:
        """The variance over `axis`, or over everything."""
        return functions.var(self, axis, correction=correction, keepdims=keepdims)

    def std(self, axis: Axes = None, *, correction: float = 0, keepdims: bool = False) -> Tensor:
        """The standard deviation over `axis`, or over everything."""
        return functions.std(self, axis, correction=correction, keepdims=keepdims)

    def max(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """The largest element along `axis`, or of all."""
        return functions.max(self, axis, keepdims=keepdims)

    def min(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """The smallest element along `axis`, or of all."""
        return functions.min(self, axis, keepdims=keepdims)

    def argmax(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """Where the largest element is along `axis`."""
        return functions.argmax(self, axis, keepdims=keepdims)

    def argmin(self, axis: int | None = None, *, keepdims: bool = False) -> Tensor:
        """Where the smallest element is along `axis`."""
        return functions.argmin(self, axis, keepdims=keepdims)

    def any(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """Whether any element along `axis` is true."""
        return functions.any(self, axis, keepdims=keepdims)

    def all(self, axis: Axes = None, *, keepdims: bool = False) -> Tensor:
        """Whether all elements along `axis` are true."""
        return functions.all(self, axis, keepdims=keepdims)

    # Operators

    def __add__(self, other: Any) -> Tensor:
        return functions.add(self, other)

    def __radd__(self, other: Any) -> Tensor:
        return functions.add(other, self)

    def __sub__(self, other: Any) -> Tensor:
        return functions.subtract(self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return functions.subtract(other, self)

    def __mul__(self, other: Any) -> Tensor:
        return functions.multiply(self, other)

    def __rmul__(self, other: Any) -> Tensor:
        return functions.multiply(other, self)

    def __truediv__(self, other: Any) -> Tensor:
        return functions.divide(self, other)

    def __rtruediv__(self, other: Any) -> Tensor:
        return functions.divide(other, self)

    def __floordiv__(self, other: Any) -> Tensor:
        return functions.floor_divide(self, other)

    def __rfloordiv__(self, other: Any) -> Tensor:
        return functions.floor_divide(other, self)

    def __mod__(self, other: Any) -> Tensor:
        return functions.remainder(self, other)

    def __rmod__(self, other: Any) -> Tensor:
        return functions.remainder(other, self)

    def __pow__(self, other: Any) -> Tensor:
        return functions.pow(self, other)

    def __rpow__(self, other: Any) -> Tensor:
        return functions.pow(other, self)

    def __matmul__(self, other: Any) -> Tensor:
        return functions.matmul(self, other)

    def __rmatmul__(self, other: Any) -> Tensor:
        return functions.matmul(other, self)

    def __neg__(self) -> Tensor:
        return functions.negative(self)

    def __pos__(self) -> Tensor:
        return functions.positive(self)

    def __abs__(self) -> Tensor:
        return functions.abs(self)

    def __invert__(self) -> Tensor:
        return functions.bitwise_invert(self)

    def __and__(self, other: Any) -> Tensor:
        return functions.bitwise_and(self, other)

    def __rand__(self, other: Any) -> Tensor:
        return functions.bitwise_and(other, self)

    def __or__(self, other: Any) -> Tensor:
        return functions.bitwise_or(self, other)

    def __ror__(self, other: Any) -> Tensor:
        return functions.bitwise_or(other, self)

    def __xor__(self, other: Any) -> Tensor:
        return functions.bitwise_xor(self, other)

    def __rxor__(self, other: Any) -> Tensor:
        return functions.bitwise_xor(other, self)

    def __lshift__(self, other: Any) -> Tensor:
        return functions.bitwise_left_shift(self, other)

    def __rlshift__(self, other: Any) -> Tensor:
        return functions.bitwise_left_shift(other, self)

    def __rshift__(self, other: Any) -> Tensor:
        return functions.bitwise_right_shift(self, other)

    def __rrshift__(self, other: Any) -> Tensor:
        return functions.bitwise_right_shift(other, self)

    def __eq__(self, other: object) -> Tensor:  # type: ignore[override]
        return functions.equal(self, other)

    def __ne__(self, other: object) -> Tensor:  # type: ignore[override]
        return functions.not_equal(self, other)

    def __lt__(self, other: Any) -> Tensor:
        return functions.less(self, other)

    def __le__(self, other: Any) -> Tensor:
        return functions.less_equal(self, other)

    def __gt__(self, other: Any) -> Tensor:
        return functions.greater(self, other)

    def __ge__(self, other: Any) -> Tensor:
        return functions.greater_equal(self, other)

    __hash__ = object.__hash__


class Cell(Tensor):
    """A named buffer that can change: a parameter, a moment, a step count, a random state.

    Used like a Tensor, it stands for its value at that moment. :meth:`assign` gives it a new
    value; tensors computed before keep the old one. Inside a compiled function reads and the last
    assignment are recorded, and the program updates the cell at every call.

    Args:
        value: anything that `palto.asarray` takes.
        name: for messages and files; a module or an optimiser gives the full path.
        requires_grad: whether ``backward()`` leaves a gradient here.
        dtype: the format to hold; by default that of `value`.
    """

    __slots__ = ("_leaf", "grad_is_pending", "is_watched", "name")

    def __init__(
        self,
        value: Any,
        *,
        name: str | None = None,
        requires_grad: bool = False,
        dtype: Any = None,
    ) -> None:
        if graph.current_trace() is not None:
            raise TraceError(
                f"a {type(self).__name__} was made inside a compiled function; make modules, "
                "optimisers and cells before it, so that they outlive a step"
            )
        tensor = functions.asarray(value, dtype=dtype)
        self.name = name
        #: Whether the gradient here has not been used by an optimiser's step yet.
        self.grad_is_pending = False
        #: Whether a program keeps what it has computed of the value.
        self.is_watched = False
        # Tensor.__init__ would set _value, which a cell has only through its leaf.
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.operation, self.index, self.trace = None, 0, None
        self.cell, self.severed = self, None
        self._grad = None
        self._bind(tensor.array(), requires_grad=False)
        self.requires_grad_(requires_grad)

    @property
    def _value(self) -> Array | None:  # type: ignore[override]
        return None if graph.current_trace() is not None else self._leaf._value

    @property
    def requires_grad(self) -> bool:
        """Whether ``backward()`` leaves a gradient here; False while the cell is frozen."""
        return self._leaf.requires_grad

    @requires_grad.setter
    def requires_grad(self, requires_grad: bool) -> None:
        if requires_grad != self._leaf.requires_grad:
            if graph.current_trace() is not None:
                raise TraceError(
                    f"{self.name or 'a cell'} cannot be frozen or unfrozen inside a compiled "
                    "function; do it before, or limit backprop by backward(inputs=...)"
                )
            self._bind(self._leaf.array(), requires_grad)
            graph.note_mutation()

    @property
    def grad(self) -> Tensor | None:
        """The gradient that the last ``backward()`` left here, or None."""
        trace = graph.current_trace()
        return self._grad if trace is None else trace.root.grads.get(self)

    def set_grad(self, grad: Tensor | None, *, pending: bool) -> None:
        """Leave a gradient here; `pending` until an optimiser's step has used it."""
        trace = graph.current_trace()
        if trace is None:
            self._grad, self.grad_is_pending = grad, pending
            return
        root = trace.root
        if grad is None:
            root.grads.pop(self, None)
        else:
            root.grads[self] = grad
        (root.pending.add if pending else root.pending.discard)(self)

    def has_pending_grad(self) -> bool:
        """Whether a gradient waits here for an optimiser's step."""
        trace = graph.current_trace()
        return self.grad_is_pending if trace is None else self in trace.root.pending

    def recast(self, dtype: DType) -> None:
        """Hold the same numbers in another dtype from now on."""
        self.dtype = dtype
        self._bind(self._leaf.array().astype(dtype), self.requires_grad)
        graph.note_mutation()

    def read(self) -> Tensor:
        """The cell's value now, as a Tensor that stays what it is."""
        trace = graph.current_trace()
        return self._leaf if trace is None else trace.read(self)

    def assign(self, value: Any) -> None:
        """Give the cell a new value of the same shape and dtype.

        Raises:
            ValueError: another shape.
            TypeError: another dtype.
        """
        if isinstance(value, int | float | complex):
            dtype = dtypes.scalar_dtype(value, self.dtype)
            tensor = functions.full(self.shape, value, dtype=dtype)
        else:
            tensor = functions.asarray(value)
        self._accepts(tensor.shape, tensor.dtype)
        trace = graph.current_trace()
        if trace is None:
            self.store(tensor.array())
        else:
            trace.assign(self, tensor)

    def store(self, array: Array) -> None:
        """Hold `array`, which has the cell's shape and dtype and which nobody writes to again."""
        self._bind(array, self.requires_grad)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copy = type(self).__new__(type(self))
        memo[id(self)] = copy
        slots = {name for kind in type(self).__mro__ for name in getattr(kind, "__slots__", ())}
        for name in slots - {"_leaf", "_value", "_grad", "requires_grad", "__weakref__"}:
            setattr(copy, name, getattr(self, name))
        if hasattr(self, "__dict__"):
            vars(copy).update(vars(self))
        copy.cell, copy._grad, copy.grad_is_pending = copy, None, False
        copy.is_watched = False
        copy._bind(self._leaf.array(), self.requires_grad)
        return copy

    def _accepts(self, shape: Shape, dtype: DType) -> None:
        name = self.name or "this cell"
        if shape != self.shape:
            raise ValueError(f"{name} has shape {self.shape} and cannot take a value of {shape}")
        if dtype != self.dtype:
            raise TypeError(
                f"{name} holds {self.dtype.name} and cannot take {dtype.name}; "
                f"cast the value with .astype(palto.{self.dtype.name})"
            )

    def _bind(self, array: Array, requires_grad: bool) -> None:
        # A new leaf, never a write into the old buffer: earlier reads keep their value.
        if array.shape != self.shape or not array.flags.c_contiguous:
            array = np.ascontiguousarray(array).reshape(self.shape)
        self.hold(Tensor(self.shape, self.dtype, array, requires_grad=requires_grad))

    def hold(self, leaf: Tensor) -> None:
        """Hold `leaf` as the value: a tensor of the cell's shape and dtype made for it alone."""
        leaf.cell = self
        self._leaf = leaf
        if self.is_watched:
            graph.note_change()

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        if self._value is None:
            return f"{type(self).__name__}({name}traced, shape={self.shape})"
        return f"{type(self).__name__}({name}{self._leaf!r})"


def _variadic(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """``f(2, 3)`` and ``f((2, 3))`` mean the same."""
    if len(arguments) == 1 and isinstance(arguments[0], Sequence):
        return tuple(arguments[0])
    return arguments


# Operators are functions and functions make Tensors: this circle closes here, once.
from palto.tensor import functions, graph  # noqa: E402
