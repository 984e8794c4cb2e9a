"""Palto's layers beside PyTorch's, beside themselves in a trace, and beside finite differences."""

import numpy as np
import pytest

import palto
from palto import nn
from palto.backprop import gradients
from palto.tensor.graph import Graph, Trace, resolve
from palto.tensor.tree import flatten


def channels_first(array):
    return np.moveaxis(array, -1, 1)


def channels_last(array):
    return np.moveaxis(array, 1, -1)


def from_torch_kernel(array):
    """(out, in, ...kernel) as (...kernel, in, out)."""
    return np.moveaxis(array, (0, 1), (-1, -2))


def from_torch_transposed_kernel(array, groups):
    """(in, out / groups, ...kernel) as (...kernel, in / groups, out)."""
    inputs, outputs, *kernel = array.shape
    parts = array.reshape(groups, inputs // groups, outputs, *kernel)
    parts = np.moveaxis(parts, (0, 1, 2), (-2, -3, -1))
    return parts.reshape(*kernel, inputs // groups, groups * outputs)


def as_ours(module, array):
    """A weight of PyTorch's in the layout of `module`."""
    if array.ndim < 3:
        return array
    if type(module).__name__.startswith("ConvTranspose"):
        return from_torch_transposed_kernel(array, module.groups)
    return from_torch_kernel(array)


def run_traced(function, *arrays, requires_grad=False):
    """What `function` returns, from its graph evaluated by NumPy, and the graph."""
    trace = Trace()
    with trace.active():
        inputs = [
            trace.placeholder(a.shape, a.dtype, requires_grad=requires_grad and a.dtype.kind == "f")
            for a in arrays
        ]
        outputs = [resolve(y) for y in flatten(function(*inputs))[0]]
    graph = Graph.reaching([*inputs, *trace.reads.values()], outputs, trace.tensors)
    return graph.evaluate(*arrays, *(cell.array() for cell in trace.reads)), graph


class Twins:
    """Checks that ours computes what theirs does, forward and backward, eager and traced."""

    def __init__(self, torch):
        self.torch = torch

    def copy(self, ours, theirs):
        """PyTorch's weights, in float64, into ours."""
        theirs.double()
        ours.to(palto.float64)
        modules = dict(ours.named_modules())
        state = {}
        for name, tensor in theirs.state_dict().items():
            owner = modules[name.rpartition(".")[0]]
            state[name] = as_ours(owner, tensor.numpy())
        ours.load_state_dict(state)

    def layers(self, ours, theirs, *arrays, images=False, tolerance=1e-9):
        """Compare two modules; `images` are channels-last in `arrays`."""
        self.copy(ours, theirs)
        parameters = [p for _, p in ours.named_parameters()]
        owners = dict(ours.named_modules())
        names = [name for name, _ in ours.named_parameters()]
        wanted, grads = self._theirs(theirs, arrays, images, list(theirs.parameters()))
        by_name = dict(zip((n for n, _ in theirs.named_parameters()), grads[-1], strict=True))
        expected = [*grads[:-1]] + [
            as_ours(owners[n.rpartition(".")[0]], by_name[n]) for n in names
        ]
        self._ours(ours, arrays, parameters, wanted, expected, tolerance)
        for name, buffer in theirs.named_buffers():
            mine = dict(ours.named_buffers())[name].array()
            np.testing.assert_allclose(mine, buffer.numpy(), rtol=tolerance, atol=tolerance)

    def functions(self, ours, theirs, *arrays, images=False, tolerance=1e-9):
        """Compare two functions of tensors."""
        wanted, grads = self._theirs(theirs, arrays, images, [])
        self._ours(ours, arrays, [], wanted, grads[:-1], tolerance)

    def _theirs(self, function, arrays, images, parameters):
        torch = self.torch
        moved = images and [a.ndim > 2 and a.dtype.kind == "f" for a in arrays]
        inputs = []
        for i, a in enumerate(arrays):
            a = np.array(channels_first(a), order="C") if moved and moved[i] else a
            inputs.append(torch.tensor(a, requires_grad=a.dtype.kind == "f"))
        y = function(*inputs)
        value = y.detach().numpy()
        value = channels_last(value) if images and value.ndim > 2 else value
        weights = self._weights(value)
        v = channels_first(weights) if images and value.ndim > 2 else weights
        floats = [x for x in inputs if x.requires_grad]
        found = torch.autograd.grad(
            y, [*floats, *parameters], torch.tensor(np.array(v, order="C")), allow_unused=True
        )
        found = [
            np.zeros(x.shape) if g is None else g.numpy()
            for x, g in zip([*floats, *parameters], found, strict=True)
        ]
        into_inputs = [
            channels_last(g) if images and g.ndim > 2 else g for g in found[: len(floats)]
        ]
        return value, [*into_inputs, found[len(floats) :]]

    @staticmethod
    def _weights(value):
        """What the output is summed with, so that every element's gradient is checked."""
        return np.random.default_rng(7).normal(size=value.shape)

    def _ours(self, function, arrays, parameters, wanted, expected, tolerance):
        def compute(*inputs):
            y = function(*inputs)
            weights = palto.asarray(self._weights(wanted), dtype=y.dtype)
            floats = [x for x in inputs if x.dtype in (palto.float32, palto.float64)]
            cells = [p.read() for p in parameters]
            found = gradients([y], [weights], [*floats, *cells])
            return [y, *(palto.zeros_like(x) if g is None else g for x, g in
                         zip([*floats, *cells], found, strict=True))]  # fmt: skip

        cells = [(c, c.array()) for c in self._cells(function)]
        traced, _ = run_traced(compute, *arrays, requires_grad=True)
        for cell, before in cells:
            np.testing.assert_array_equal(cell.array(), before)  # a trace changes nothing
        inputs = [palto.asarray(a, requires_grad=a.dtype.kind == "f") for a in arrays]
        eager = [x.array() for x in compute(*inputs)]
        assert len(eager) == 1 + len(expected)
        for mine, again, other in zip(eager, traced, [wanted, *expected], strict=True):
            assert mine.dtype == again.dtype
            np.testing.assert_allclose(again, mine, rtol=1e-12, atol=1e-12)
            assert mine.shape == other.shape
            np.testing.assert_allclose(mine, other, rtol=tolerance, atol=tolerance)

    @staticmethod
    def _cells(function):
        return [c for _, c in function.named_cells()] if isinstance(function, nn.Module) else []


@pytest.fixture
def twins(torch):
    return Twins(torch)


@pytest.fixture
def traced():
    return run_traced


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def gradcheck():
    """Compares the gradients of a function, in float64, with central differences."""

    def check(function, *arrays, step=1e-6):
        inputs = [palto.asarray(a, requires_grad=True) for a in arrays]
        y = function(*inputs)
        weights = np.random.default_rng(3).normal(size=y.shape)
        found = gradients([y], [palto.asarray(weights)], inputs)
        for i, (array, gradient) in enumerate(zip(arrays, found, strict=True)):
            direction = np.random.default_rng(i).normal(size=array.shape)
            ends = []
            for sign in (1, -1):
                moved = [palto.asarray(a) for a in arrays]
                moved[i] = palto.asarray(array + sign * step * direction)
                ends.append((function(*moved).array() * weights).sum())
            slope = (ends[0] - ends[1]) / (2 * step)
            np.testing.assert_allclose(
                (gradient.array() * direction).sum(), slope, rtol=1e-6, atol=1e-8
            )

    return check
