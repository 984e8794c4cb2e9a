"""Optimizer, the base of all optimisers: groups of parameters, their state, and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from palto.optim import averaging
from palto.tensor import Cell, Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.graph import Watched, no_grad

#: From (parameter, gradient, *moments) to (new parameter, *new moments).
Update = Callable[..., tuple[Tensor, ...]]


class Slot(NamedTuple):
    """A parameter and what an optimiser remembers of it.

    Attributes:
        name: the parameter's name in this optimiser.
        parameter: the cell that the optimiser moves.
        moments: running quantities of the parameter's shape, such as a momentum; None if the
            parameter was frozen when the optimiser was made.
        average: the average of the iterates, if asked for.
    """

    name: str
    parameter: Cell
    moments: tuple[Cell, ...] | None
    average: Cell | None

    @property
    def label(self) -> str:
        """What to call the parameter in messages."""
        return self.parameter.name or f"parameter {self.name}"


class Group(Watched):
    """Parameters that share options: ``lr`` and the optimiser's own, each an attribute.

    Attributes:
        prefix: what the names of the group's state begin with.
        slots: its parameters with their state.
    """

    prefix: str
    slots: tuple[Slot, ...]

    def __init__(
        self, prefix: str, named: list[tuple[str, Cell]], count: Cell, options: dict[str, Any]
    ) -> None:
        self.prefix = prefix
        self.slots = tuple(Slot(f"{prefix}{name}", cell, None, None) for name, cell in named)
        self._count = count
        self._rate: Cell | None = None
        self._schedule: Callable[[Tensor], Tensor] | None = None
        for name, value in options.items():
            setattr(self, name, value)
        self._complete = True

    def __getattr__(self, name: str) -> Any:
        known = ", ".join(["lr", *self.options()])
        raise AttributeError(f"this group of parameters has no {name!r}; it has {known}")

    def __setattr__(self, name: str, value: Any) -> None:
        if vars(self).get("_complete") and name != "lr" and name not in vars(self):
            self.__getattr__(name)  # says what there is
        _set_attribute(self, name, value)

    def options(self) -> dict[str, Any]:
        """The options but for the learning rate."""
        parts = ("prefix", "slots")
        return {k: v for k, v in vars(self).items() if k not in parts and not k.startswith("_")}

    @property
    def lr(self) -> Any:
        """The learning rate of the next step: a number, as a float64 tensor, or a tensor.

        Set it to a number, to a tensor that broadcasts to every parameter of the group (a rate for
        each coordinate), or to a function from the number of finished steps (float64) to the rate,
        such as those of `palto.optim.schedules`. Setting another number writes a cell: compiled
        steps go on with it as they are.
        """
        if self._rate is not None:
            return self._rate.read()
        assert self._schedule is not None
        rate = F.asarray(self._schedule(F.astype(self._count, dtypes.float64)))
        for slot in self.slots if rate.ndim else ():
            self._fits(rate, slot)
        return rate

    @lr.setter
    def lr(self, value: Any) -> None:
        if callable(value):
            self._schedule, self._rate = value, None
            return
        if isinstance(value, int | float) and not 0 <= value < math.inf:
            raise ValueError(f"a learning rate is a finite number from 0 up, got {value}")
        axes = value.ndim if isinstance(value, Tensor) else np.ndim(value)
        rate = F.asarray(value, dtype=None if axes else dtypes.float64)
        for slot in self.slots if rate.ndim else ():
            self._fits(rate, slot)
        if self._rate is not None and self._rate.shape == rate.shape:
            self._rate.assign(F.astype(rate, self._rate.dtype))
        else:
            self._rate, self._schedule = Cell(rate, name=f"optimizer.{self.prefix}lr"), None

    def _fits(self, rate: Tensor, slot: Slot) -> None:
        shape = slot.parameter.shape
        padded = (1,) * (len(shape) - rate.ndim) + rate.shape
        if len(padded) != len(shape) or any(
            n not in (1, m) for n, m in zip(padded, shape, strict=True)
        ):
            raise ValueError(
                f"a learning rate of shape {rate.shape} does not broadcast to {slot.label} of "
                f"shape {shape}; put parameters with rates of their own into groups of their own"
            )

    def cells(self) -> Iterator[tuple[str, Cell]]:
        """The group's state, with names."""
        if self._rate is not None:
            yield f"{self.prefix}lr", self._rate
        for slot in self.slots:
            for cell in slot.moments or ():
                yield str(cell.name).removeprefix("optimizer."), cell
            if slot.average is not None:
                yield f"{slot.name}.average", slot.average


class Optimizer(Watched):
    """The base of all optimisers.

    All state is in cells, and a step is made of tensor functions alone, so that a compiled function
    can take it. A subclass says what it remembers of a parameter (`moments`) and how one moves
    (`rule`).

    Args:
        params: a module; or its parameters, alone or with names; or groups: a list of dicts, each
            with such "params" and the options in which it differs, such as "lr".
        options: every option of a group, with its default.
        average: None; "uniform" for the mean of all iterates x^1 ... x^K; "tail" for their average
            with weights that grow, so that the last part counts. See `averaged`.
        tail: for "tail": the part of the run that counts, in (0, 1]. The weights grow like
            k^(2/tail - 2); their mean distance from the end, in steps, is that of a plain mean over
            the last `tail` of the run. K need not be known.

    Raises:
        TypeError: something that is not a parameter.
        ValueError: no parameters, one twice, only frozen ones, or an unknown option.
    """

    groups: tuple[Group, ...]

    def __init__(
        self,
        params: Any,
        options: dict[str, Any],
        *,
        average: str | None = None,
        tail: float = 0.2,
    ) -> None:
        if average not in (None, "uniform", "tail"):
            raise ValueError(f"average is None, 'uniform' or 'tail', got {average!r}")
        if not 0 < tail <= 1:
            raise ValueError(f"tail is a part of the run, above 0 and at most 1, got {tail}")
        #: How fast the weights of the averaged iterates grow; None without averaging.
        self.average_growth = None if average is None else 2 / tail - 2 if average == "tail" else 0
        #: The number of finished steps, a cell.
        self.count = Cell(0, name="optimizer.step", dtype=dtypes.int64)
        groups = []
        for prefix, given, overrides in _groups(params):
            unknown = [name for name in overrides if name not in options]
            if unknown:
                raise ValueError(
                    f"{type(self).__name__}: a group has no option {', '.join(unknown)}; "
                    f"it has {', '.join(options)}"
                )
            named = named_parameters(given)
            groups.append(Group(prefix, named, self.count, {**options, **overrides}))
        self._refuse_twice(groups)
        for group in groups:
            self.validate(group)
            names = self.moments(group)
            group.slots = tuple(self._with_state(slot, names) for slot in group.slots)
        self.groups = tuple(groups)
        if all(slot.moments is None for slot in self.slots()):
            raise ValueError(
                f"{type(self).__name__}: there is nothing to train, every parameter is frozen; "
                "call requires_grad_() on those to train first"
            )

    def _refuse_twice(self, groups: list[Group]) -> None:
        seen: dict[int, Slot] = {}
        for group in groups:
            for slot in group.slots:
                first = seen.setdefault(id(slot.parameter), slot)
                if first is not slot:
                    raise ValueError(
                        f"{type(self).__name__} was given one parameter twice, as {first.name!r} "
                        f"and {slot.name!r}; each belongs to one group, once"
                    )

    def _with_state(self, slot: Slot, names: tuple[str, ...]) -> Slot:
        parameter = slot.parameter
        if not parameter.requires_grad:
            return slot
        prefix = f"optimizer.{slot.name}"
        zeros = np.zeros(parameter.shape, parameter.dtype)
        moments = tuple(Cell(zeros, name=f"{prefix}.{name}") for name in names)
        average = None
        if self.average_growth is not None:
            average = Cell(parameter, name=f"{prefix}.average")
        return slot._replace(moments=moments, average=average)

    def __setattr__(self, name: str, value: Any) -> None:
        groups = vars(self).get("groups")
        if groups and name != "lr" and name in groups[0].options():
            raise AttributeError(
                f"{name} belongs to the groups of parameters; set optimizer.groups[0].{name}"
            )
        _set_attribute(self, name, value)

    # What a subclass says

    def validate(self, group: Group) -> None:
        """Raise ValueError for options that make no sense."""

    def moments(self, group: Group) -> tuple[str, ...]:
        """The names of what is remembered of each parameter: cells of its shape, zeros at first."""
        raise NotImplementedError(f"{type(self).__name__} defines no moments()")

    def rule(self, group: Group, k: Tensor, lr: Tensor) -> Update:
        """How the parameters of a group move in step `k` (1 in the first; float64).

        Returns:
            A function from (parameter, gradient, *moments) to (new parameter, *new moments).
        """
        raise NotImplementedError(f"{type(self).__name__} defines no rule()")

    # A step

    def step(self) -> None:
        """Move every parameter by its gradient, and mark the gradients as used.

        Frozen parameters stay. Everything is checked before the first parameter moves.

        Raises:
            RuntimeError: a parameter that is to be trained has no gradient of this step.
        """
        with no_grad():
            k = F.astype(self.count, dtypes.float64) + 1
            active = [(group, self._active(group)) for group in self.groups]
            self._refuse_missing([slot for _, slots in active for slot in slots])
            rules = [(self.rule(group, k, group.lr), slots) for group, slots in active if slots]
            for update, slots in rules:
                for slot in slots:
                    self._move(slot, update, k)
            self.count.assign(self.count + 1)

    def _active(self, group: Group) -> list[Slot]:
        slots = [slot for slot in group.slots if slot.parameter.requires_grad]
        self.validate(group)
        count = len(self.moments(group))
        for slot in slots:
            if slot.moments is None:
                raise RuntimeError(
                    f"{slot.label} was frozen when the optimiser was made, so there is no state "
                    f"for it; make a new {type(self).__name__} after requires_grad_()"
                )
            dtype = slot.parameter.dtype
            if len(slot.moments) != count or any(cell.dtype != dtype for cell in slot.moments):
                raise RuntimeError(
                    f"the state that {type(self).__name__} made for {slot.label} no longer fits; "
                    "model.to(dtype), and options that need state of their own, come before the "
                    "optimiser is made"
                )
        return slots

    def _refuse_missing(self, slots: list[Slot]) -> None:
        missing = [slot.label for slot in slots if not slot.parameter.has_pending_grad()]
        if missing or not slots:
            shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" * (len(missing) > 5))
            problem = (
                "every parameter is frozen"
                if not slots
                else f"no gradient has been computed since the last step for {shown}"
            )
            raise RuntimeError(
                f"{type(self).__name__}.step(): {problem}. Call loss.backward() before each step, "
                "with a loss that depends on every parameter; freeze those it does not depend on "
                "with requires_grad_(False), or give the optimiser only the others"
            )

    def _move(self, slot: Slot, update: Update, k: Tensor) -> None:
        parameter, moments = slot.parameter, slot.moments or ()
        gradient = parameter.grad
        assert gradient is not None
        moved, *changed = update(parameter.read(), gradient, *(cell.read() for cell in moments))
        parameter.assign(moved)
        for cell, value in zip(moments, changed, strict=True):
            cell.assign(value)
        if slot.average is not None and self.average_growth is not None:
            averaging.update(slot.average, moved, k, self.average_growth)
        parameter.set_grad(gradient, pending=False)

    def zero_grad(self) -> None:
        """Drop the gradients that wait for a step. Only needed to leave a step out."""
        for slot in self.slots():
            slot.parameter.set_grad(None, pending=False)

    # Learning rate and average

    @property
    def lr(self) -> Any:
        """The learning rate of the only group; see `Group.lr`.

        Raises:
            ValueError: there are several groups.
        """
        return self._only_group().lr

    @lr.setter
    def lr(self, value: Any) -> None:
        self._only_group().lr = value

    def _only_group(self) -> Group:
        if len(self.groups) > 1:
            raise ValueError(
                f"this optimiser has {len(self.groups)} groups, each with a learning rate of its "
                "own; use optimizer.groups[0].lr, and so on"
            )
        return self.groups[0]

    def averaged(
        self, model: Any, batches: Iterable[Any] | None = None
    ) -> AbstractContextManager[None]:
        """``with optimizer.averaged(model, batches):`` the parameters are their average.

        Inside the block the average of the iterates stands in the parameters; on leaving it, also
        by an exception, the training values are put back. Batch normalisation's running statistics
        belong to the training values, so they are computed anew from `batches` (and put back, too).
        Without averaging asked for, or before the first step, there is nothing to swap in.

        Args:
            model: the module that the parameters belong to.
            batches: inputs of the model, such as some hundred training images in a few batches; of
                a tuple or list the first element is taken. Needed only with batch normalisation.

        Raises:
            ValueError: the optimiser keeps no average, or `batches` is missing or empty.
        """
        return averaging.averaged(self, model, batches)

    # State

    def slots(self) -> Iterator[Slot]:
        """All parameters with their state."""
        return (slot for group in self.groups for slot in group.slots)

    def named_cells(self) -> Iterator[tuple[str, Cell]]:
        """All state: the step count, learning rates that are no schedules, moments, averages."""
        yield "step", self.count
        for group in self.groups:
            yield from group.cells()

    def state_dict(self) -> dict[str, Tensor]:
        """The values of all state by name, for a run to continue exactly. They do not change."""
        return {name: cell.read() for name, cell in self.named_cells()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the values of `state`. Everything is checked before the first value is written.

        Raises:
            ValueError: names that are missing or unexpected, or another shape or dtype; all of
                them are listed.
        """
        own = dict(self.named_cells())
        problems = []
        missing = [name for name in own if name not in state]
        unexpected = [name for name in state if name not in own]
        if missing:
            problems.append(f"missing: {', '.join(missing)}")
        if unexpected:
            problems.append(f"unexpected: {', '.join(unexpected)}")
        values = {name: F.asarray(state[name]) for name in own if name in state}
        for name, value in values.items():
            wanted, given = own[name], f"{value.dtype.name}{value.shape}"
            if given != f"{wanted.dtype.name}{wanted.shape}":
                problems.append(f"{name} is {wanted.dtype.name}{wanted.shape}, given {given}")
        if problems:
            raise ValueError(
                f"this state does not fit {type(self).__name__}: {'; '.join(problems)}. Make the "
                "optimiser with the options and for the model that the state was saved with"
            )
        for name, value in values.items():
            own[name].assign(value)

    def __repr__(self) -> str:
        lines = []
        for group in self.groups:
            shown = {"lr": _number(group._rate) if group._rate is not None else group._schedule}
            options = ", ".join(
                f"{name}={value}" for name, value in (shown | group.options()).items()
            )
            lines.append(f"{len(group.slots)} parameters, {options}")
        return f"{type(self).__name__}({'; '.join(lines)})"


def _set_attribute(target: Any, name: str, value: Any) -> None:
    if name == "lr":  # writes a cell; where it does more, it says so
        object.__setattr__(target, name, value)
    else:
        Watched.__setattr__(target, name, value)


def _number(rate: Cell) -> Any:
    return rate.item() if rate.ndim == 0 else f"a tensor of shape {rate.shape}"


def _groups(params: Any) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The prefix of names, the parameters and the options of each group."""
    one = isinstance(params, Tensor | Mapping) or hasattr(params, "named_parameters")
    if not one and not callable(params):
        params = list(params)
        if any(isinstance(part, Mapping) for part in params):
            for index, part in enumerate(params):
                if not isinstance(part, Mapping) or "params" not in part:
                    raise TypeError(
                        "groups are a list of dicts, each with 'params' and options; group "
                        f"{index} is {type(part).__name__}"
                    )
                yield f"{index}.", part["params"], {k: v for k, v in part.items() if k != "params"}
            return
    yield "", params, {}


def named_parameters(params: Any) -> list[tuple[str, Cell]]:
    """The parameters in a module, an optimiser, an iterable (with or without names), or alone.

    A module's parameters and buffers get their full names; those of an iterable without names are
    called by their number, as their own names need not differ.

    Raises:
        TypeError: something that is not a parameter.
        ValueError: no parameters.
    """
    if isinstance(params, Optimizer):
        return [(slot.name, slot.parameter) for slot in params.slots()]
    if hasattr(params, "named_parameters"):
        for name, cell in params.named_cells():
            # A part of a model knows its parameters by shorter names than the model does.
            if cell.name is None or not f".{cell.name}".endswith(f".{name}"):
                cell.name = name
        found = list(params.named_parameters())
    else:
        if callable(params) and not isinstance(params, Tensor):
            raise TypeError("a function was given for parameters; call it: model.parameters()")
        given = [params] if isinstance(params, Tensor) else list(params)
        found = [
            part if isinstance(part, tuple) and len(part) == 2 else (str(index), part)
            for index, part in enumerate(given)
        ]
    for _, cell in found:
        if not isinstance(cell, Cell):
            what = "a Tensor, whose value never changes" if isinstance(cell, Tensor) else repr(cell)
            raise TypeError(
                f"a parameter is wanted here, this is {what}; give a module, its parameters(), "
                "nn.Parameter objects, or a list of dicts with 'params'"
            )
    if not found:
        raise ValueError(
            "there are no parameters here: a model finds those that are nn.Parameter (a plain "
            "tensor is none), and a generator gives its elements only once"
        )
    return found
