"""Functions of functions: scan, checkpoint, composite."""

import gc
import weakref

import numpy as np
import pytest

import palto
from palto import nn
from palto.backprop import gradients
from palto.tensor.graph import Graph, Trace

_rng = np.random.default_rng(0)


def real(*shape):
    return _rng.normal(size=shape)


def unrolled(step, initial, sequences, length, reverse):
    """What scan means, in Python; of tensors and tuples of them."""
    several = isinstance(sequences, tuple)
    outputs = [None] * length
    state = initial
    for i in reversed(range(length)) if reverse else range(length):
        element = None
        if sequences is not None:
            element = tuple(x[i] for x in sequences) if several else sequences[i]
        state, outputs[i] = step(state, element)
    if isinstance(outputs[0], tuple):
        return state, tuple(palto.stack(list(part)) for part in zip(*outputs, strict=True))
    return state, None if outputs[0] is None else palto.stack(outputs)


def flat(result):
    parts = result if isinstance(result, tuple) else (result,)
    for part in parts:
        if isinstance(part, tuple):
            yield from flat(part)
        elif part is not None:
            yield part


# Each: the step, made from captured tensors; shapes of the state, the sequences, what is captured.
def lstm_like(w):
    def step(state, x):
        h, c = state
        c = c * palto.tanh(x) + palto.sin(h @ w)
        return (palto.tanh(c), c), c * x

    return step


def counting(w):
    def step(state, x):
        h, n = state
        h = h * w + x * n.astype("float64")
        return (h, n + 1), (h, n)

    return step


def whole_numbers_first(w):
    def step(state, x):
        n, h = state
        return (n * 2 + 1, h + x * w), None

    return step


def unchanged(w):
    def step(state, x):
        return state, state * x * w

    return step


def overwritten(w):
    def step(state, x):
        return x * w, state

    return step


def no_sequence(w):
    def step(state, _):
        return palto.cos(state) * w, state

    return step


def a_scan_inside(w):
    def step(state, x):
        inner, ys = palto.scan(lambda c, e: (palto.sin(c) * e + w, c * x.sum()), state, x)
        return inner, ys.sum(0) * w

    return step


def a_scan_of_what_is_cut_off(w):
    def step(state, x):
        twice, cut = palto.checkpoint(lambda s: (s * 2, palto.detach(s)), state)
        cut, _ = palto.scan(
            lambda c, e: (c * e, None), cut, palto.ones((3, 2), dtype=cut.dtype) * 2
        )
        with palto.no_grad():
            other, _ = palto.scan(lambda c, e: (c + e, None), state, x)
        return twice * w, cut + other * w

    return step


def a_scan_in_a_checkpoint(w):
    def step(state, x):
        inner = palto.checkpoint(
            lambda s, x: palto.scan(lambda c, e: (palto.sin(c) * e + w, None), s, x)[0], state, x
        )
        return inner, inner * w

    return step


def two_scans_inside(w):
    def step(state, x):
        def middle(c, e):
            d, sines = palto.scan(lambda d, f: (palto.sin(d) * f, d + w.sum()), c, e)
            return d * w, sines.sum(0)

        inner, ys = palto.scan(middle, state, x)
        return inner, ys.sum(0)

    return step


def two_sequences(w):
    def step(state, pair):
        a, b = pair
        return state * a + w, (state * b, a * b)

    return step


SCANS = {
    "tuple of states": (lstm_like, (real(2, 3), real(2, 3)), real(4, 2, 3), real(3, 3)),
    "whole numbers in the state": (counting, (real(3), np.array(2)), real(4, 3), real(3)),
    "whole numbers first": (whole_numbers_first, (np.array(1), real(3)), real(4, 3), real(3)),
    "state unchanged": (unchanged, real(3), real(4, 3), real(3)),
    "state overwritten": (overwritten, real(3), real(4, 3), real(3)),
    "no sequence": (no_sequence, real(3), None, real(3)),
    "a scan in a scan": (a_scan_inside, real(2), real(4, 3, 2), real(2)),
    "a scan in a checkpoint": (a_scan_in_a_checkpoint, real(2), real(4, 3, 2), real(2)),
    "a scan in a scan in a scan": (two_scans_inside, real(2), real(3, 2, 3, 2), real(2)),
    "two sequences": (two_sequences, real(3), (real(4, 3), real(4, 3)), real(3)),
    "one step": (lstm_like, (real(2, 3), real(2, 3)), real(1, 2, 3), real(3, 3)),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", SCANS)
def test_scan(check_gradients, name, reverse):
    make, initial, sequences, captured = SCANS[name]
    states = initial if isinstance(initial, tuple) else (initial,)
    elements = sequences if isinstance(sequences, tuple) else (sequences,)
    elements = () if sequences is None else elements
    length = 4 if sequences is None else len(elements[0])

    def taken_apart(tensors):
        first = tensors[: len(states)]
        rest = tensors[len(states) : -1]
        start = first if isinstance(initial, tuple) else first[0]
        if sequences is None:
            return start, None, tensors[-1]
        return start, rest if isinstance(sequences, tuple) else rest[0], tensors[-1]

    def scanned(*tensors):
        start, xs, w = taken_apart(tensors)
        result = palto.scan(
            make(w), start, xs, length=length if xs is None else None, reverse=reverse
        )
        return list(flat(result))

    def by_hand(*tensors):
        start, xs, w = taken_apart(tensors)
        return list(flat(unrolled(make(w), start, xs, length, reverse)))

    arrays = (*states, *elements, captured)
    tensors = [palto.asarray(x) for x in arrays]
    for got, wanted in zip(scanned(*tensors), by_hand(*tensors), strict=True):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype)
        np.testing.assert_allclose(got, wanted)
    check_gradients(scanned, *arrays)

    # And with the captured tensor in a cell, the others fixed.
    cell, leaf = (
        palto.Cell(captured, requires_grad=True),
        palto.asarray(captured, requires_grad=True),
    )
    for w, function in ((cell, scanned), (leaf, by_hand)):
        sum((y * y).sum() for y in function(*tensors[:-1], w) if y.dtype.kind == "f").backward()
    np.testing.assert_allclose(cell.grad, leaf.grad, rtol=1e-6)


def test_a_scan_of_what_is_cut_off_inside_a_scan():
    """Nothing is kept for its gradient, and none goes through it."""
    state, xs, w = real(2), real(4, 3, 2), real(2)
    slopes = []
    for run in (palto.scan, lambda *args: unrolled(*args, 4, False)):

        def loss(state, xs, w, run=run):
            last, ys = run(a_scan_of_what_is_cut_off(w), state, xs)
            return last.sum() + (palto.asarray(ys) * np.arange(8.0).reshape(4, 2)).sum()

        slopes.append(palto.grad(loss, argnums=(0, 1, 2))(state, xs, w))
    for got, wanted in zip(*slopes, strict=True):
        np.testing.assert_allclose(got, wanted)
    assert not slopes[0][1].numpy().any()


def test_scan_of_no_steps():
    w = palto.asarray(real(3), requires_grad=True)
    state, ys = palto.scan(lambda c, x: (c * w, c + x), palto.ones(3, dtype="float64"), real(0, 3))
    assert state.tolist() == [1, 1, 1]
    assert ys.shape == (0, 3)
    start = palto.asarray(real(3), requires_grad=True)
    state, ys = palto.scan(lambda c, x: (c * w, c), start, None, length=0)
    (state.sum() + ys.sum()).backward()
    assert start.grad.tolist() == [1, 1, 1]
    assert w.grad.tolist() == [0, 0, 0]


def test_scan_of_nested_structures():
    def step(state, x):
        a, rest = state["a"], state["rest"]
        return {"a": a * 2, "rest": [rest[0] + x["u"]]}, {"sum": a + rest[0], "none": None}

    state = {"a": 1.0, "rest": [palto.zeros(2)]}
    sequences = {"u": np.ones((3, 2), np.float32), "unused": None}
    last, ys = palto.scan(step, state, sequences)
    assert last["a"].item() == 8
    assert last["rest"][0].tolist() == [3, 3]
    assert ys["sum"].tolist() == [[1, 1], [3, 3], [6, 6]]
    assert ys["none"] is None


def test_scan_without_outputs_or_state():
    last, ys = palto.scan(lambda c, x: (c + x, None), 0.0, palto.asarray([1.0, 2.0]))
    assert last.item() == 3
    assert ys is None
    last, ys = palto.scan(lambda c, x: (c, x * 2), None, palto.asarray([1.0, 2.0]))
    assert last is None
    assert ys.tolist() == [2, 4]


def test_scan_in_third_derivatives():
    def power(x):  # x^4
        return palto.scan(lambda c, _: (c * x, None), x, length=3)[0]

    x, wanted = palto.asarray(2.0), [16, 32, 48, 48, 24]
    for value in wanted:
        assert power(x).item() == value
        power = palto.grad(power)


def test_grad_inside_a_step():
    """Descent by scan, through which the rate's gradient flows."""

    def loss(w):
        return ((w - 3) ** 2).sum()

    def trained(rate):
        w, losses = palto.scan(
            lambda w, _: (w - rate * palto.grad(loss)(w), loss(w)), palto.zeros(2), length=5
        )
        return loss(w), losses

    (final, losses), slope = palto.value_and_grad(lambda r: trained(r), has_aux=True)(0.1)
    assert np.isclose(final.item(), 18 * 0.8**10)
    assert np.isclose(losses[0].item(), 18)
    assert np.isclose(slope.item(), 18 * 10 * 0.8**9 * -2, rtol=1e-4)


def test_scan_frees_what_it_does_not_need():
    """Between steps only the state is kept, not the inside of a step."""
    x = palto.asarray(real(50, 8), requires_grad=True)
    sizes = []

    def step(state, e):
        for _ in range(20):
            e = palto.sin(e)
        return state + e, None

    last, _ = palto.scan(step, palto.zeros(8, dtype="float64"), x)
    stack, seen = [last], set()
    while stack:
        tensor = stack.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        sizes.append(tensor.size)
        if tensor.operation is not None:
            stack.extend(tensor.operation.inputs)
    assert sum(sizes) < 3 * x.size
    last.sum().backward()
    assert x.grad.shape == x.shape


def test_scan_does_not_compute_scans_inside_again():
    """But for single steps, which keep nothing: a product is computed twice, not three times."""
    width, steps = 16, 20
    w = nn.Parameter(real(width, width).astype(np.float32))
    x = palto.asarray(real(steps, steps, width, width).astype(np.float32))

    @palto.compile
    def slope(x):
        def follow(_, sequence):
            return None, palto.scan(
                lambda c, e: (palto.tanh(c @ w + e), None), sequence[0], sequence
            )

        _, (last, _) = palto.scan(follow, None, x)
        loss = last.sum()
        loss.backward()
        return loss, w.grad

    products = sum(row.flops for row in slope.explain(x).rows) / (2 * width**3 * steps**2)
    assert 4 < products < 4.5  # forward, again, and two backward; and what is no product


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: palto.scan(
                lambda c, x: (palto.concat([c, c]), x), palto.ones(2), palto.ones(3)
            ),
            ValueError,
            r"it starts as float32\(2,\) and a step makes it float32\(4,\)",
        ),
        (
            lambda: palto.scan(lambda c, x: (c.astype("float64"), x), 1.0, palto.ones(3)),
            ValueError,
            r"starts as float32\(\) and a step makes it float64\(\)",
        ),
        (
            lambda: palto.scan(lambda c, x: ((c, c), x), 1.0, palto.ones(3)),
            ValueError,
            "state of another structure",
        ),
        (
            lambda: palto.scan(lambda c, x: (None, x), 1.0, palto.ones(3)),
            ValueError,
            "state of another structure",
        ),
        (lambda: palto.scan(lambda c, x: c, 1.0, palto.ones(3)), ValueError, "a step returns"),
        (
            lambda: palto.scan(lambda c, x: (c, x), 1.0, (palto.ones(3), palto.ones(4))),
            ValueError,
            "scan over 3 steps got a sequence of 4",
        ),
        (
            lambda: palto.scan(lambda c, x: (c, x), 1.0, palto.ones(3), length=2),
            ValueError,
            "scan over 2 steps got a sequence of 3",
        ),
        (lambda: palto.scan(lambda c, x: (c, x), 1.0), ValueError, "wants length="),
        (lambda: palto.scan(lambda c, x: (c, x), 1.0, 3.0), ValueError, "no axis to go along"),
        (
            lambda: palto.scan(lambda c, x: (c + palto.random.uniform(()), x), 1.0, palto.ones(3)),
            ValueError,
            "may not assign 'random state'; carry the value.*draw random numbers before the scan",
        ),
        (
            lambda: palto.scan(lambda c, x: (c if c > 0 else -c, x), 1.0, palto.ones(3)),
            palto.TraceError,
            "palto.where instead of `if`",
        ),
        (
            lambda: palto.scan(lambda c, x: (c, "text"), 1.0, palto.ones(3)),
            TypeError,
            "asarray wants numbers",
        ),
    ],
)
def test_scan_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# --- checkpoint ----------------------------------------------------------------------------------


class Block(nn.Module):
    """Parameters, random numbers, a running mean."""

    def __init__(self):
        self.weight = nn.Parameter(real(4, 4).astype(np.float32))
        self.mean = nn.Buffer(palto.zeros(4))

    def forward(self, x):
        h = palto.tanh(x @ self.weight)
        self.mean.assign(self.mean * 0.5 + h.mean(0).detach())
        keep = palto.random.bernoulli(h.shape, 0.5)
        return palto.where(keep, h * 2, 0.0)


def test_checkpoint_is_the_plain_function():
    x = palto.asarray(real(5, 4).astype(np.float32), requires_grad=True)
    block, found = Block(), []
    for run in (lambda x: block(x), lambda x: palto.checkpoint(block, x)):
        palto.manual_seed(3)
        block.mean.assign(palto.zeros(4))
        loss = (run(run(x)) ** 2).sum()
        loss.backward()
        after = palto.random.uniform((3,))
        found.append([loss, x.grad, block.weight.grad, block.mean.read(), after])
        block.weight.set_grad(None, pending=False)
    for plain, kept in zip(*found, strict=True):
        np.testing.assert_allclose(plain, kept, rtol=1e-6)


def test_checkpoint_keeps_nothing():
    """Only the arguments and results of each piece are held until backward()."""
    x = palto.asarray(real(100), requires_grad=True)

    def many(x):
        for _ in range(30):
            x = palto.sin(x)
        return x

    made = []
    original = palto.Tensor.__init__

    def noting(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self._value is not None and self.size == 100:
            made.append(weakref.ref(self))

    gc.collect()
    gc.disable()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(palto.Tensor, "__init__", noting)
            y = palto.checkpoint(many, x)
            y = palto.checkpoint(many, y)
            loss = y.sum()
            assert len([r for r in made if r() is not None]) == 2
            loss.backward()
    finally:
        gc.enable()
    plain = palto.asarray(x, requires_grad=True)
    many(many(plain)).sum().backward()
    np.testing.assert_allclose(x.grad, plain.grad)


def test_checkpoint_of_structures(check_gradients):
    def function(pair, *, scale, name, other=None):
        a, (b,) = pair
        assert name == "f"
        return {"sum": (a + b["x"]) * scale, "parts": [a * b["x"], other]}

    def call(a, b, scale):
        result = palto.checkpoint(function, (a, [{"x": b}]), scale=scale, name="f", other=a)
        return [result["sum"], *result["parts"]]

    check_gradients(call, real(3), real(3), real())


def test_checkpoint_in_checkpoint(check_gradients):
    w = palto.Cell(real(3), requires_grad=True)

    def inner(x):
        return palto.sin(x) * w

    check_gradients(
        lambda x: palto.checkpoint(lambda y: palto.checkpoint(inner, y * y) + y, x), real(3)
    )


def test_checkpoint_around_scan_and_grad(check_gradients):
    def function(x):
        last, _ = palto.scan(lambda c, e: (palto.sin(c) * e, None), x[0], x)
        return last * palto.grad(lambda v: (v**3).sum())(x)

    check_gradients(lambda x: palto.checkpoint(function, x), real(3))


def test_what_a_checkpoint_cuts_off_stays_cut_off():
    x = palto.asarray([1.0, 2.0], requires_grad=True)
    y, z = palto.checkpoint(lambda x: (x * 2, palto.detach(x)), x)
    assert y.requires_grad
    assert not z.requires_grad


def test_checkpoint_under_no_grad():
    block = Block()
    with palto.no_grad():
        assert not palto.checkpoint(block, palto.ones((2, 4))).requires_grad


def test_checkpoint_without_parameters_that_train():
    block = Block()
    block.requires_grad_(False)
    assert not palto.checkpoint(block, palto.ones((2, 4))).requires_grad


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: x.sum().item(), palto.TraceError, "asked for the value of a tensor"),
        (lambda x: (x, 3), TypeError, "a function that returns tensors, got 3"),
        (lambda x: x @ palto.ones((5, 5)), ValueError, "do not fit"),
    ],
)
def test_checkpoint_errors(function, error, message):
    with pytest.raises(error, match=message):
        palto.checkpoint(function, palto.ones((2, 3)))
    assert (palto.ones(2) + 1).tolist() == [2, 2]  # and no trace is left behind


def test_a_tensor_that_leaves_a_body():
    kept = []
    palto.checkpoint(lambda x: (kept.append(x * 2), x)[1], palto.ones(2))
    for use in (lambda x: x + 1, lambda x: x.numpy(), lambda x: x.backward()):
        with pytest.raises(palto.TraceError, match=r"shape \(2,\) left a function"):
            use(kept[0])


# --- composite -----------------------------------------------------------------------------------


@palto.composite
def gauss(x, *, width=1.0):
    """A bell."""
    return palto.exp(-(x * x) / width), x + 1


def test_composite_runs_at_once_outside_a_trace():
    assert gauss.__name__ == "gauss"
    assert gauss.__doc__ == "A bell."
    x = palto.asarray([0.0, 1.0], requires_grad=True)
    y, z = gauss(x, width=2.0)
    assert y.operation.primitive.name == "exp"
    np.testing.assert_allclose(y, np.exp([0, -0.5]), rtol=1e-6)
    assert z.tolist() == [1, 2]


def test_a_gradient_of_ones_own_is_that_of_a_trace():
    """Of all arguments in order; where a tensor has a name, the body's is taken."""

    def formula(results, grads, x, count, y):
        return grads[0] * count * 10, None, None if grads[1] is None else grads[1]

    @palto.composite(gradient=formula)
    def function(x, count, y):
        return x * count, y * x

    def through(call):
        def gradient(x, y):
            def loss(x, y):
                first, second = call(x, y)
                return (first + second).sum()

            return palto.grad(loss, argnums=(0, 1))(x, y)

        return [g.tolist() for g in palto.compile(gradient)(np.ones(2, "f4"), np.ones(2, "f8"))]

    assert through(lambda x, y: function(x, 3, y)) == [[30, 30], [1, 1]]
    assert through(lambda x, y: function(x, 3, y=y)) == [[4, 4], [1, 1]]


def test_composite_is_one_operation_in_a_trace():
    w = palto.Cell([2.0, 3.0], requires_grad=True)
    trace = Trace()
    with trace.active():
        x = trace.placeholder((2,), palto.float32, requires_grad=True)
        y, _ = gauss(x * w, width=2.0)
        (g,) = gradients([y], [palto.ones_like(y)], [x], create_graph=True)
        (h,) = gradients([g], [palto.ones_like(g)], [x])
    composites = [
        o.params["name"]
        for o in Graph.reaching([x], [g], trace.tensors).operations
        if o.primitive.name == "composite"
    ]
    assert composites == ["gauss.gradient"]  # which computes what it needs itself
    assert y.operation.params["statics"]["leaves"][-1] == 2.0
    assert y.operation.output_count == 2

    cells = list(trace.reads)
    assert cells == [w]
    graph = Graph.reaching([x, trace.reads[w]], [y, g, h], trace.tensors)
    point = np.float32([0.3, -0.7])
    got = graph.evaluate(point, w.numpy())

    x = palto.asarray(point, requires_grad=True)
    y, _ = gauss(x * w, width=2.0)
    (g,) = gradients([y], [palto.ones_like(y)], [x], create_graph=True)
    (h,) = gradients([g], [palto.ones_like(g)], [x])
    for a, b in zip(got, (y, g, h), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
