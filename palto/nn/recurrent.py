"""Recurrent layers: an Elman network, LSTM and GRU, as cells and over whole sequences."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from palto.nn import init
from palto.nn.activations import relu, sigmoid
from palto.nn.dropout import dropout as drop
from palto.nn.linear import linear
from palto.nn.module import Module, Parameter
from palto.tensor import Tensor
from palto.tensor import functions as F

#: What is carried from step to step: (h,), or (h, c) of an LSTM.
State = tuple[Tensor, ...]


class _Recurrent(Module):
    """What cells and layers of one kind have in common."""

    #: How many linear maps a step has, one below the other in the weights, and its states.
    gates: ClassVar[int] = 1
    states: ClassVar[int] = 1
    input_size: int
    hidden_size: int
    bias: bool

    def _add_weights(self, inputs: int, suffix: str) -> None:
        bound = 1 / math.sqrt(self.hidden_size) if self.hidden_size else 0.0
        rows = self.gates * self.hidden_size
        shapes = {"weight_ih": (rows, inputs), "weight_hh": (rows, self.hidden_size)}
        biases = {"bias_ih": (rows,), "bias_hh": (rows,)}
        for name, shape in {**shapes, **biases}.items():
            parameter = None
            if name in shapes or self.bias:
                parameter = Parameter(F.zeros(shape))
                init.uniform_(parameter, -bound, bound)
            setattr(self, name + suffix, parameter)

    def _weights(self, suffix: str) -> list[Any]:
        return [
            getattr(self, f"{x}{suffix}") for x in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]

    def advance(self, given: Tensor, maps: Tensor, state: State) -> State:
        """The next state, of the maps of the input and of h, each (N, gates * hidden_size)."""
        raise NotImplementedError

    def _state(self, given: Any, shape: tuple[int, ...], like: Tensor) -> State:
        """The state to begin with; zeros by default.

        Raises:
            ValueError: it has another shape.
        """
        if given is None:
            return tuple(F.zeros(shape, dtype=like.dtype) for _ in range(self.states))
        state = tuple(F.asarray(x) for x in given) if self.states > 1 else (F.asarray(given),)
        found = tuple(x.shape for x in state)
        if found != (shape,) * self.states:
            wanted = "(h, c), each" if self.states > 1 else "h,"
            raise ValueError(f"the state wanted is {wanted} of shape {shape}, got {found}")
        return state


class _Cell(_Recurrent):
    """One step."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True) -> None:
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self._add_weights(input_size, "")

    def forward(self, x: Tensor, state: Any = None) -> Any:
        """Of x (..., input_size) and the state, h or (h, c), (..., hidden_size), the next state."""
        x = F.asarray(x)
        before = self._state(state, (*x.shape[:-1], self.hidden_size), x)
        weight_ih, weight_hh, bias_ih, bias_hh = self._weights("")
        given = linear(x, weight_ih, bias_ih)
        after = self.advance(given, linear(before[0], weight_hh, bias_hh), before)
        return after if self.states > 1 else after[0]

    def extra_repr(self) -> str:
        """Sizes."""
        return f"{self.input_size}, {self.hidden_size}" + ("" if self.bias else ", bias=False")


class _Layers(_Recurrent):
    """Whole sequences, in one or more layers, in one or both directions."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        if num_layers < 1:
            raise ValueError(f"num_layers must be at least 1, got {num_layers}")
        self.input_size, self.hidden_size, self.bias = input_size, hidden_size, bias
        self.num_layers, self.batch_first, self.dropout = num_layers, batch_first, dropout
        self.bidirectional = bidirectional
        self._directions = ("", "_reverse") if bidirectional else ("",)
        for layer in range(num_layers):
            inputs = hidden_size * len(self._directions) if layer else input_size
            for direction in self._directions:
                self._add_weights(inputs, f"_l{layer}{direction}")

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """A sequence to the last layer's h at each step, and the last state of all layers.

        Args:
            x: (time, N, input_size); (N, time, input_size) if batch_first; or (time, input_size).
            state: to begin with, h or (h, c), each (layers * directions, N, hidden_size), without N
                where `x` is; zeros by default.

        Returns:
            As `x`, but (..., directions * hidden_size); and the state, as `state`.

        Raises:
            ValueError: another shape.
        """
        x = F.asarray(x)
        if x.ndim not in (2, 3) or x.shape[-1] != self.input_size:
            order = "N, time" if self.batch_first else "time, N"
            raise ValueError(
                f"wanted is ({order}, {self.input_size}), or (time, {self.input_size}) of one "
                f"sequence, got {x.shape}"
            )
        is_single, swaps = x.ndim == 2, self.batch_first and x.ndim == 3
        x = F.permute_dims(x, (1, 0, 2)) if swaps else x
        parts = self.num_layers * len(self._directions)
        batch = () if is_single else (x.shape[1],)
        first = self._state(state, (parts, *batch, self.hidden_size), x)
        last: list[State] = []
        for layer in range(self.num_layers):
            if layer and self.dropout:
                x = drop(x, self.dropout, self.training)
            outputs = []
            for direction in self._directions:
                start = tuple(part[len(last)] for part in first)
                output, end = self._run(x, start, f"_l{layer}{direction}", direction != "")
                outputs.append(output)
                last.append(end)
            x = F.concat(outputs, axis=-1) if len(outputs) > 1 else outputs[0]
        ends = tuple(F.stack(list(found)) for found in zip(*last, strict=True))
        x = F.permute_dims(x, (1, 0, 2)) if swaps else x
        return x, ends if self.states > 1 else ends[0]

    def _run(self, x: Tensor, start: State, suffix: str, is_reverse: bool) -> tuple[Tensor, State]:
        weight_ih, weight_hh, bias_ih, bias_hh = self._weights(suffix)

        def step(state: State, given: Tensor) -> tuple[State, Tensor]:
            after = self.advance(given, linear(state[0], weight_hh, bias_hh), state)
            return after, after[0]

        # What does not wait for the step before is one product for all steps.
        given = linear(x, weight_ih, bias_ih)
        end, outputs = F.scan(step, start, given, reverse=is_reverse)
        return outputs, end

    def extra_repr(self) -> str:
        """Sizes, and what is not as usual."""
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0,
                 "bidirectional": False}  # fmt: skip
        others = [f"{x}={getattr(self, x)}" for x, y in usual.items() if getattr(self, x) != y]
        return ", ".join([str(self.input_size), str(self.hidden_size), *others])


class _Elman(_Recurrent):
    nonlinearity: str

    def _choose(self, nonlinearity: str) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity is 'tanh' or 'relu', got {nonlinearity!r}")
        self.nonlinearity = nonlinearity

    def advance(self, given: Tensor, maps: Tensor, state: State) -> State:
        total = given + maps
        return (F.tanh(total) if self.nonlinearity == "tanh" else relu(total),)


class _LSTM(_Recurrent):
    gates, states = 4, 2

    def advance(self, given: Tensor, maps: Tensor, state: State) -> State:
        inputs, forget, new, output = F.split(given + maps, 4, axis=-1)
        c = sigmoid(forget) * state[1] + sigmoid(inputs) * F.tanh(new)
        return sigmoid(output) * F.tanh(c), c


class _GRU(_Recurrent):
    gates = 3

    def advance(self, given: Tensor, maps: Tensor, state: State) -> State:
        (reset, update, new), (of_reset, of_update, of_new) = (
            F.split(x, 3, axis=-1) for x in (given, maps)
        )
        new = F.tanh(new + sigmoid(reset + of_reset) * of_new)
        return (new + sigmoid(update + of_update) * (state[0] - new),)


class RNNCell(_Elman, _Cell):
    """One step of an Elman network: h' = tanh(W_ih x + b_ih + W_hh h + b_hh).

    All weights start uniform in +-1 / sqrt(hidden_size).

    Args:
        input_size: the length of x.
        hidden_size: the length of h.
        bias: whether there are b_ih and b_hh.
        nonlinearity: "tanh" or "relu".

    Attributes:
        weight_ih: shape (hidden_size, input_size).
        weight_hh: shape (hidden_size, hidden_size).
        bias_ih: shape (hidden_size,), or None.
        bias_hh: the same.

    Raises:
        ValueError: another nonlinearity.
    """

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, nonlinearity: str = "tanh"
    ) -> None:
        super().__init__(input_size, hidden_size, bias)
        self._choose(nonlinearity)


class LSTMCell(_LSTM, _Cell):
    """One step of long short-term memory; the state is (h, c).

    With the gates i, f, o (sigmoid) and g (tanh), each W_i. x + b_i. + W_h. h + b_h.:
    c' = f c + i g, h' = o tanh(c'). The weights' rows are those of i, f, g and o, in this order;
    see `RNNCell` for arguments and attributes.

    Source: Hochreiter, Schmidhuber: Long short-term memory (1997).
    """


class GRUCell(_GRU, _Cell):
    """One step of a gated recurrent unit.

    r = sigmoid(W_ir x + b_ir + W_hr h + b_hr), z likewise,
    n = tanh(W_in x + b_in + r (W_hn h + b_hn)), h' = (1 - z) n + z h. The weights' rows are those
    of r, z and n, in this order; see `RNNCell` for arguments and attributes.

    Source: Cho et al.: Learning phrase representations using RNN encoder-decoder (2014).
    """


class RNN(_Elman, _Layers):
    """An Elman network over sequences; see `RNNCell` for its step.

    All weights start uniform in +-1 / sqrt(hidden_size).

    Args:
        input_size: the length of x.
        hidden_size: the length of h.
        num_layers: how many; each reads what the one before gives out.
        nonlinearity: "tanh" or "relu".
        bias: whether there are biases.
        batch_first: whether sequences are (N, time, features) rather than (time, N, features).
        dropout: with which probability an input of the second and later layers is dropped.
        bidirectional: whether each layer also goes from the end to the beginning; its outputs are
            both directions', side by side.

    Attributes:
        weight_ih_l0: shape (gates * hidden_size, input_size); `weight_hh_l0`, `bias_ih_l0`,
            `bias_hh_l0`, `weight_ih_l0_reverse`, `weight_ih_l1` and so on go with it.

    Raises:
        ValueError: another nonlinearity, no layer.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
    ) -> None:
        super().__init__(
            input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        )
        self._choose(nonlinearity)


class LSTM(_LSTM, _Layers):
    """Long short-term memory over sequences.

    See `LSTMCell` for its step, `RNN` for arguments (without a nonlinearity) and attributes.
    """


class GRU(_GRU, _Layers):
    """Gated recurrent units over sequences.

    See `GRUCell` for its step, `RNN` for arguments (without a nonlinearity) and attributes.
    """
