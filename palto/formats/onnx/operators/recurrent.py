"""Recurrent layers: RNN, GRU, LSTM. A direction is a scan over the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from palto.formats.onnx.operators.elementwise import activation
from palto.formats.onnx.table import Call, operator
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F

Step = Callable[[tuple[Tensor, ...], Tensor, Tensor], tuple[Tensor, ...]]
Activations = list[Callable[[Tensor], Tensor]]


def _activations(call: Call, defaults: Sequence[str], directions: int) -> list[Activations]:
    names = call.attribute("activations", tuple(defaults) * directions)
    alphas = iter(call.attribute("activation_alpha", ()))
    betas = iter(call.attribute("activation_beta", ()))
    takes_beta = {"affine", "scaledtanh", "hardsigmoid"}
    takes_alpha = takes_beta | {"leakyrelu", "thresholdedrelu", "elu"}
    clip = call.attribute("clip")

    def made(name: str) -> Callable[[Tensor], Tensor]:
        alpha = next(alphas, None) if name.lower() in takes_alpha else None
        beta = next(betas, None) if name.lower() in takes_beta else None
        function = activation(name, alpha, beta)
        if clip is None:
            return function
        return lambda x: function(F.clip(x, -clip, clip))

    found = [made(name) for name in names]
    each = len(defaults)
    return [found[i : i + each] for i in range(0, len(found), each)]


def _directions(
    call: Call,
    x: Tensor,
    lengths: Tensor | None,
    states: Sequence[Tensor | None],
    gates: int,
    defaults: Sequence[str],
    step: Callable[..., tuple[Tensor, ...]],
    parameters: Sequence[Tensor | None],
) -> list[Tensor]:
    """All outputs: of every step, then the last state or states.

    `parameters` are one row for each direction: weights, recurrent weights, biases, peepholes.
    """
    assert parameters[1] is not None
    width = parameters[1].shape[-1]
    if call.attribute("layout", 0):
        x = F.permute_dims(x, (1, 0, 2))
        states = [None if s is None else F.permute_dims(s, (1, 0, 2)) for s in states]
    steps, batch, _ = x.shape
    if not steps:
        raise call.error("a sequence of no steps")
    direction = call.attribute("direction", "forward")
    count = 2 if direction == "bidirectional" else 1
    made = []
    for place, functions in enumerate(_activations(call, defaults, count)):
        is_back = direction == "reverse" or place == 1
        w, r, b, p = (None if q is None else q[place] for q in parameters)
        assert w is not None and r is not None
        b = F.zeros((2 * gates * width,), dtype=x.dtype) if b is None else b
        first = tuple(
            F.zeros((batch, width), dtype=x.dtype) if s is None else s[place] for s in states
        )
        numbers = F.iota((steps, 1), 0)
        shared = F.matmul(x, F.matrix_transpose(w)) + b[: gates * width]

        def one(
            state: tuple[Tensor, ...], now: tuple[Tensor, Tensor],
            r: Tensor = r, b: Tensor = b, p: Tensor | None = p, functions: Activations = functions,
        ) -> tuple[tuple[Tensor, ...], Tensor]:  # fmt: skip
            given, number = now
            new = step(functions, state, given, r, b[gates * width :], p)
            output = new[0]
            if lengths is not None:  # a sequence that has ended keeps its state
                goes_on = F.reshape(number < F.astype(lengths, dtypes.int64), (-1, 1))
                output = F.where(goes_on, output, F.zeros_like(output))
                new = tuple(F.where(goes_on, a, c) for a, c in zip(new, state, strict=True))
            return new, output

        last, outputs = F.scan(one, first, (shared, numbers), reverse=is_back)
        made.append((outputs, *last))
    everything = F.stack([outputs for outputs, *_ in made], axis=1)
    ends = [F.stack([last[i] for last in made]) for i in range(1, 1 + len(states))]
    if call.attribute("layout", 0):
        everything = F.permute_dims(everything, (2, 0, 1, 3))
        ends = [F.permute_dims(end, (1, 0, 2)) for end in ends]
    return [everything, *ends]


@operator("RNN")
def rnn(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
    lengths: Tensor | None = None, h: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """H = f(x W + h R + b)."""

    def step(
        f: Activations, state: tuple[Tensor, ...], given: Tensor, r: Tensor, b: Tensor, _: object
    ) -> tuple[Tensor, ...]:
        return (f[0](given + F.matmul(state[0], F.matrix_transpose(r)) + b),)

    return _directions(call, x, lengths, [h], 1, ["Tanh"], step, [w, r, b, None])


@operator("GRU")
def gru(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
    lengths: Tensor | None = None, h: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """A state that gates mix with a new one. Gates in the order update, reset, new."""
    is_after = call.attribute("linear_before_reset", 0)

    def step(
        f: Activations, state: tuple[Tensor, ...], given: Tensor, r: Tensor, b: Tensor, _: object
    ) -> tuple[Tensor, ...]:
        (h,) = state
        rz, rr, rh = F.split(r, 3)
        bz, br, bh = F.split(b, 3)
        xz, xr, xh = F.split(given, 3, axis=-1)
        z = f[0](xz + F.matmul(h, rz.mT) + bz)
        reset = f[0](xr + F.matmul(h, rr.mT) + br)
        if is_after:
            new = f[1](xh + reset * (F.matmul(h, rh.mT) + bh))
        else:
            new = f[1](xh + F.matmul(reset * h, rh.mT) + bh)
        return ((1 - z) * new + z * h,)

    return _directions(call, x, lengths, [h], 3, ["Sigmoid", "Tanh"], step, [w, r, b, None])


@operator("LSTM")
def lstm(
    call: Call, x: Tensor, w: Tensor, r: Tensor, b: Tensor | None = None,
    lengths: Tensor | None = None, h: Tensor | None = None, c: Tensor | None = None,
    p: Tensor | None = None,
) -> list[Tensor]:  # fmt: skip
    """A cell beside the state. Gates in the order input, output, forget, new."""
    is_coupled = call.attribute("input_forget", 0)

    def step(
        f: Activations, state: tuple[Tensor, ...], given: Tensor, r: Tensor, b: Tensor,
        p: Tensor | None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        h, c = state
        gi, go, gf, gc = F.split(given + F.matmul(h, F.matrix_transpose(r)) + b, 4, axis=-1)
        if p is not None:
            pi, po, pf = F.split(p, 3)
            gi, gf = gi + pi * c, gf + pf * c
        i = f[0](gi)
        forget = 1 - i if is_coupled else f[0](gf)
        new = forget * c + i * f[1](gc)
        o = f[0](go if p is None else go + po * new)
        return o * f[2](new), new

    names = ["Sigmoid", "Tanh", "Tanh"]
    return _directions(call, x, lengths, [h, c], 4, names, step, [w, r, b, p])
