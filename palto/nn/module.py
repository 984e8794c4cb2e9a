"""Module: what has parameters, and how they are found, saved and loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol, Self

from palto.tensor import Cell, Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Watched, current_scope, scope

if TYPE_CHECKING:
    from palto.nn.summary import Summary


class Parameter(Cell):
    """A cell that training changes: an optimiser moves it against its gradient."""

    def __init__(
        self, value: Any, *, name: str | None = None, requires_grad: bool = True, dtype: Any = None
    ) -> None:
        super().__init__(value, name=name, requires_grad=requires_grad, dtype=dtype)


class Buffer(Cell):
    """A cell that belongs to a model but is not trained, such as a running mean.

    Args:
        value: the first value.
        name: what it is called in messages.
        persistent: whether it is saved with the model.
        dtype: the format to hold; by default that of `value`.
    """

    __slots__ = ("persistent",)

    def __init__(
        self, value: Any, *, name: str | None = None, persistent: bool = True, dtype: Any = None
    ) -> None:
        super().__init__(value, name=name, dtype=dtype)
        self.persistent = persistent


class Module(Watched):
    """The base of all layers and models.

    Write ``__init__``, which sets parameters, buffers and other modules as attributes (directly or
    in lists, tuples and dicts), and ``forward``, which computes. No call of ``super().__init__()``
    is needed.

    Attributes:
        training: whether layers behave as in training (dropout, batch statistics) or as in
            inference; set by :meth:`train` and :meth:`eval`.
    """

    training: bool
    # The name that the surrounding module knows this one by.
    _name: str | None = None

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """A module in training mode, before its ``__init__``."""
        module = super().__new__(cls)
        # Its own attribute from the start: compiled functions watch those for changes.
        object.__setattr__(module, "training", True)
        return module

    def __setattr__(self, name: str, value: Any) -> None:
        before = vars(self).get(name)
        if isinstance(before, Cell) and isinstance(value, Tensor) and not isinstance(value, Cell):
            raise TypeError(
                f"{type(self).__name__}.{name} is a {type(before).__name__}, which a plain tensor "
                f"would replace, so that it is no longer found; write .{name}.assign(value)"
            )
        if isinstance(value, set | frozenset) and any(
            isinstance(part, Module | Cell) for part in value
        ):
            raise TypeError(
                f"{type(self).__name__}.{name} holds modules in a set, which has no order; use a "
                "list, a tuple or a dict"
            )
        super().__setattr__(name, value)
        for path, part in _parts(name, value):
            if isinstance(part, Module):
                object.__setattr__(part, "_name", path)
                for inner, cell in part.named_cells():
                    cell.name = f"{path}.{inner}"
            elif part.name is None:
                part.name = path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the output. Every module defines its own."""
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute :meth:`forward`; an error says in which layer it came up."""
        before = current_scope()
        name = self._name if before and self._name else type(self).__name__
        for observer in observers:
            observer.enter(self)
        with scope((*before, name)):
            try:
                output = self.forward(*args, **kwargs)
            except Exception as error:
                _note_layer(error, (*before, name), self)
                raise
        for observer in observers:
            observer.leave(self, output)
        return output

    # What is inside

    def named_children(self) -> Iterator[tuple[str, Module]]:
        """The modules directly inside, with their names."""
        for name, value in vars(self).items():
            for path, part in _parts(name, value):
                if isinstance(part, Module):
                    yield path, part

    def named_modules(self, prefix: str = "") -> Iterator[tuple[str, Module]]:
        """This module (named "") and all modules inside, each once."""
        yield from self._named_modules(prefix, set())

    def _named_modules(self, prefix: str, seen: set[int]) -> Iterator[tuple[str, Module]]:
        if id(self) in seen:
            return
        seen.add(id(self))
        yield prefix, self
        for name, child in self.named_children():
            yield from child._named_modules(f"{prefix}.{name}" if prefix else name, seen)

    def modules(self) -> Iterator[Module]:
        """This module and all modules inside, each once."""
        return (module for _, module in self.named_modules())

    def own_cells(self) -> Iterator[tuple[str, Cell]]:
        """The parameters and buffers directly inside, with their names."""
        for name, value in vars(self).items():
            for path, part in _parts(name, value):
                if isinstance(part, Cell):
                    yield path, part

    def named_cells(self) -> Iterator[tuple[str, Cell]]:
        """All parameters and buffers with their full names; tied ones once, by the first name."""
        seen: set[int] = set()
        for prefix, module in self.named_modules():
            for name, cell in module.own_cells():
                if id(cell) not in seen:
                    seen.add(id(cell))
                    yield f"{prefix}.{name}" if prefix else name, cell

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        """All parameters with their full names; tied ones once, by the first name."""
        return ((name, cell) for name, cell in self.named_cells() if isinstance(cell, Parameter))

    def parameters(self) -> Iterator[Parameter]:
        """All parameters, tied ones once."""
        return (parameter for _, parameter in self.named_parameters())

    def named_buffers(self) -> Iterator[tuple[str, Buffer]]:
        """All buffers with their full names."""
        return ((name, cell) for name, cell in self.named_cells() if isinstance(cell, Buffer))

    def buffers(self) -> Iterator[Buffer]:
        """All buffers."""
        return (buffer for _, buffer in self.named_buffers())

    # Modes

    def train(self, mode: bool = True) -> Self:
        """Behave as in training: dropout drops, batch norm uses and records the batch."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Self:
        """Behave as in inference."""
        return self.train(False)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Freeze (False) or unfreeze all parameters."""
        for parameter in self.parameters():
            parameter.requires_grad_(requires_grad)
        return self

    def to(self, dtype: Any) -> Self:
        """Hold all floating-point parameters and buffers in another dtype.

        Call it before an optimiser is made, whose moments follow the parameters' dtype.
        """
        wanted = dtypes.as_dtype(dtype)
        for _, cell in self.named_cells():
            if cell.dtype in dtypes.DIFFERENTIABLE:
                cell.recast(wanted)
        return self

    # Saving and loading

    def state_dict(self) -> dict[str, Tensor]:
        """The values of all parameters and persistent buffers, by name. They do not change."""
        return {
            name: cell.read()
            for name, cell in self.named_cells()
            if getattr(cell, "persistent", True)
        }

    def load_state_dict(self, state: Mapping[str, Any], *, strict: bool = True) -> None:
        """Take the values of `state`: tensors or NumPy arrays by name.

        Everything is checked before the first value is written.

        Args:
            state: what another module's :meth:`state_dict` gave, or a file.
            strict: whether names that are missing or unexpected raise.

        Raises:
            ValueError: missing or unexpected names, or other shapes; all of them are listed.
        """
        own = {name: cell for name, cell in self.named_cells() if getattr(cell, "persistent", True)}
        problems = []
        if strict:
            missing = [name for name in own if name not in state]
            unexpected = [name for name in state if name not in own]
            if missing:
                problems.append(f"missing: {', '.join(missing)}")
            if unexpected:
                problems.append(f"unexpected: {', '.join(unexpected)}")
        values = {name: F.asarray(state[name]) for name in own if name in state}
        for name, value in values.items():
            if value.shape != own[name].shape:
                problems.append(f"{name}: the model has {own[name].shape}, given {value.shape}")
        if problems:
            raise ValueError(
                f"this state does not fit {type(self).__name__}: " + "; ".join(problems)
            )
        for name, value in values.items():
            own[name].assign(value.astype(own[name].dtype))

    # Looks

    def summary(self, *inputs: Any) -> Summary:
        """A table of all layers: output shapes, parameters, floating-point operations.

        Nothing is computed and nothing changes. Operations are counted as in inference.

        Args:
            inputs: for each argument of the model a shape, such as (1, 28, 28, 1), of a float32
                tensor; or (shape, dtype); or a tensor of that shape and dtype.

        Returns:
            A table that prints itself.
        """
        from palto.nn.summary import summarize

        return summarize(self, inputs)

    def extra_repr(self) -> str:
        """What ``repr`` shows in the brackets of a layer."""
        return ""

    def __repr__(self) -> str:
        own = self.extra_repr()
        children = [f"({name}): {child!r}" for name, child in self.named_children()]
        if not children:
            return f"{type(self).__name__}({own})"
        lines = [line.replace("\n", "\n  ") for line in (own, *children) if line]
        return f"{type(self).__name__}(\n  " + "\n  ".join(lines) + "\n)"


def _parts(name: str, value: Any) -> Iterator[tuple[str, Module | Cell]]:
    """The modules and cells in an attribute, with their names."""
    if isinstance(value, Module | Cell):
        yield name, value
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _parts(f"{name}.{index}", part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from _parts(f"{name}.{key}", part)


class Observer(Protocol):
    """What is told of every call of a module."""

    def enter(self, module: Module) -> None:
        """A call begins."""

    def leave(self, module: Module, output: Any) -> None:
        """A call has come to its end."""


#: Those who are told at the moment.
observers: list[Observer] = []


def _note_layer(error: Exception, path: tuple[str, ...], module: Module) -> None:
    """Say once, for the innermost layer, where an error comes from."""
    if not any(note.startswith("in layer ") for note in getattr(error, "__notes__", ())):
        error.add_note(f"in layer {'.'.join(path)}: {type(module).__name__}({module.extra_repr()})")


class Sequential(Module):
    """Modules applied one after the other.

    Args:
        layers: modules, or functions of a tensor.
    """

    def __init__(self, *layers: Any) -> None:
        for index, layer in enumerate(layers):
            if not callable(layer):
                raise TypeError(f"Sequential: layer {index} is {layer!r}, not a module or function")
        self.layers = list(layers)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers in order."""
        for layer in self.layers:
            x = layer(x)
        return x

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Sequential(*self.layers[index])
        return self.layers[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)
