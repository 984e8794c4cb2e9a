"""What every test shares."""

import os
import signal

import numpy as np
import pytest
from hypothesis import settings

settings.register_profile(
    "palto", max_examples=30, deadline=None, derandomize="CI" in os.environ, print_blob=True
)
settings.load_profile("palto")

# A shell's background job ignores Ctrl-C, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def torch():
    """PyTorch on one thread; without it, the tests that ask for it are skipped."""
    module = pytest.importorskip(
        "torch",
        reason="PyTorch is not installed: checks against PyTorch are skipped "
        "(pip install torch==2.13.0)",
    )
    module.set_num_threads(1)
    return module


@pytest.fixture(params=["native", "xla"])
def executor(request, monkeypatch):
    """The test runs once by each executor; without JAX, by the native one alone."""
    if request.param == "xla":
        pytest.importorskip(
            "jax",
            reason="JAX is not installed: programs by XLA are skipped (pip install palto[xla])",
        )
    monkeypatch.setenv("PALTO_EXECUTOR", request.param)
    return request.param


@pytest.fixture(autouse=True)
def same_start():
    """The same random numbers and NumPy's own error state for every test, whatever ran before."""
    import palto
    from palto.compiler import team

    palto.manual_seed(0)
    team._demanded.cache_clear()  # a test may set PALTO_THREADS
    with np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"):
        yield


@pytest.fixture(scope="session")
def check_gradients():
    """``check(function, *arrays)``: derivatives against central differences; see below."""
    return _check_gradients


@pytest.fixture(scope="session")
def check_as_torch(torch):
    """``check(ours, theirs, *arrays)``: values and derivatives against PyTorch; see below."""

    def check(ours, theirs, *arrays, **options):
        _check_as_torch(torch, ours, theirs, *arrays, **options)

    return check


def _check_gradients(function, *arrays, order=2, step=1e-5, rtol=1e-6, seed=0):
    """Compare derivatives along random directions with central differences, in float64.

    The first derivative is the vector-Jacobian product <v, J^T u> for random v and u; the second
    is that of the first with respect to both the inputs and u.

    Args:
        function: from tensors to a tensor or a sequence of them.
        arrays: the point; those of float64 are moved, the others stay.
        order: 1 or 2.
        step: how far the point is moved.
        rtol: the error allowed, relative to the derivative's size (or to 1).
        seed: of the random directions.
    """
    import palto
    from palto.backprop import gradients

    rng = np.random.default_rng(seed)
    moving = [i for i, x in enumerate(arrays) if getattr(x, "dtype", None) == np.float64]
    count = len(moving)

    def run(tensors):
        given = [palto.asarray(x) if isinstance(x, np.ndarray) else x for x in arrays]
        for i, tensor in zip(moving, tensors, strict=True):
            given[i] = tensor
        results = function(*given)
        results = list(results) if isinstance(results, tuple | list) else [results]
        return [y for y in results if y.dtype == np.float64]

    def pull(points, weights, create_graph=False):
        found = gradients(run(points), weights, points, create_graph=create_graph)
        return [palto.zeros_like(x) if g is None else g for x, g in zip(points, found, strict=True)]

    def leaves(values):
        return [palto.asarray(x, requires_grad=True) for x in values]

    def dot(xs, ys):
        pairs = zip(xs, ys, strict=True)
        return sum(float(np.sum(np.asarray(x) * np.asarray(y))) for x, y in pairs)

    def like(xs):
        return [rng.normal(size=x.shape) for x in xs]

    def compare(name, value, point, gradient):
        direction = like(point)
        ahead, behind = (
            value([x + sign * step * v for x, v in zip(point, direction, strict=True)])
            for sign in (1, -1)
        )
        wanted = (ahead - behind) / (2 * step)
        got = dot(gradient, direction)
        assert abs(got - wanted) <= rtol * max(1, abs(wanted)), (
            f"the {name} derivative of {function} at\n{arrays}\n"
            f"got    {got}\nwanted {wanted} (central difference)"
        )

    point = [np.asarray(arrays[i]) for i in moving]
    outputs = run([palto.asarray(x) for x in point])
    weights = like(outputs)

    def projected(values):
        return dot(run([palto.asarray(x) for x in values]), weights)

    def projected_gradient(values):
        return dot(pull(leaves(values[:count]), leaves(values[count:])), directions)

    first = pull(leaves(point), [palto.asarray(u) for u in weights])
    assert [(g.shape, g.dtype) for g in first] == [(x.shape, x.dtype) for x in point]
    compare("first", projected, point, first)
    if order > 1:
        directions = like(point)
        both = leaves([*point, *weights])
        found = pull(both[:count], both[count:], create_graph=True)
        total = sum((g * palto.asarray(w)).sum() for g, w in zip(found, directions, strict=True))
        second = gradients([total], [palto.ones_like(total)], both)
        second = [np.zeros(x.shape) if g is None else g for x, g in zip(both, second, strict=True)]
        assert [g.shape for g in second] == [x.shape for x in both]
        compare("second", projected_gradient, [*point, *weights], second)


def _check_as_torch(torch, ours, theirs, *arrays, order=1, rtol=1e-5, atol=1e-6, dtype=True):
    """Compare values, gradients and (`order` 2) gradients of gradients with PyTorch's.

    Args:
        torch: the module.
        ours: from Palto's tensors to a tensor or a sequence of them.
        theirs: the same in PyTorch.
        arrays: the inputs; gradients are taken towards those of floating point or complex.
        order: how often to differentiate, 0 to 2.
        rtol: the relative error allowed.
        atol: the absolute error allowed.
        dtype: whether dtypes must be equal, too.
    """
    import palto
    from palto.backprop import gradients

    rng = np.random.default_rng(0)
    moving = [i for i, x in enumerate(arrays) if np.asarray(x).dtype.kind in "fc"]

    def weights(values):
        parts = [rng.normal(size=(2, *y.shape)) for y in values]
        return [
            (a + 1j * b if y.dtype.kind == "c" else a).astype(y.dtype)
            for y, (a, b) in zip(values, parts, strict=True)
        ]

    def listed(result):
        return list(result) if isinstance(result, tuple | list) else [result]

    def compare(what, got, wanted):
        assert len(got) == len(wanted), f"{what} of {ours}: {len(got)} results, not {len(wanted)}"
        for a, b in zip(got, wanted, strict=True):
            a, b = np.asarray(a), np.asarray(b)
            same = a.shape == b.shape and (a.dtype == b.dtype or not dtype)
            if not same or not np.allclose(a, b, rtol=rtol, atol=atol, equal_nan=True):
                raise AssertionError(
                    f"{what} of {ours} at\n{arrays}\ngot    {a!r} {a.shape}\nwanted {b!r} {b.shape}"
                )

    xs = [palto.asarray(x, requires_grad=i in moving and order > 0) for i, x in enumerate(arrays)]
    ts = [
        torch.tensor(np.asarray(x), requires_grad=i in moving and order > 0)
        for i, x in enumerate(arrays)
    ]
    ys, zs = listed(ours(*xs)), listed(theirs(*ts))
    compare("value", ys, [z.numpy(force=True) for z in zs])

    xs, ts = [xs[i] for i in moving], [ts[i] for i in moving]
    for time in range(1, order + 1):
        if time == 1:
            assert [y.requires_grad for y in ys] == [z.requires_grad for z in zs]
        us = weights([y.array() for y in ys])
        gs = gradients(ys, [palto.asarray(u) for u in us], xs, create_graph=time < order)
        live = [(z, torch.tensor(u)) for z, u in zip(zs, us, strict=True) if z.requires_grad]
        hs = [None] * len(ts)
        if live:
            ends, starts = zip(*live, strict=True)
            hs = torch.autograd.grad(ends, ts, starts, create_graph=time < order, allow_unused=True)
        ys = [palto.zeros_like(x) if g is None else g for x, g in zip(xs, gs, strict=True)]
        zs = [torch.zeros_like(t) if h is None else h for t, h in zip(ts, hs, strict=True)]
        compare(f"gradient {time}", ys, [z.numpy(force=True) for z in zs])
