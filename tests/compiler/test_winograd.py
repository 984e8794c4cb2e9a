"""Winograd convolutions: what they mean, where they are chosen, and that native code does it."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

import palto
from palto import nn
from palto.compiler import winograd
from palto.compiler.llvm.tiling import Machine
from palto.compiler.llvm.winograd import GradientLayout
from palto.tensor.graph import Spec

SHAPES = [  # images, height, width, channels, outputs, groups, side of the kernel
    (2, 8, 8, 32, 32, 1, 3),
    (3, 7, 9, 32, 64, 1, 3),
    (4, 4, 4, 64, 32, 1, 3),
    (2, 9, 8, 16, 48, 1, 3),
    (2, 13, 13, 64, 64, 2, 3),
    (9, 14, 15, 32, 96, 1, 3),
    (1, 6, 7, 160, 32, 1, 3),
    (2, 8, 8, 32, 64, 1, 4),
    (3, 9, 12, 64, 64, 2, 4),
    (2, 8, 8, 16, 16, 1, 5),
    (3, 7, 10, 64, 192, 2, 5),
    (5, 13, 14, 160, 32, 1, 5),
]


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    monkeypatch.delenv("PALTO_THREADS", raising=False)
    before = palto.get_num_threads()
    yield
    palto.set_num_threads(before)


def inputs(n, h, w, c, o, groups, side):
    rng = np.random.default_rng(n + h + c)
    x = rng.normal(size=(n, h, w, c)).astype(np.float32)
    kernel = rng.normal(size=(side, side, c // groups, o)).astype(np.float32) / 20
    bias = rng.normal(size=o).astype(np.float32)
    return x, kernel, bias


def used(function, *arguments):
    """The kinds of the program's steps."""
    return [row.kind for row in function.explain(*arguments).rows]


def border(side):
    """Zeros around an image, for results as large as it; of an even side, a row fewer."""
    return (side - 1) // 2


def of_results(shape):
    """Some gradient of the results."""
    n, height, width, _, outputs, _, side = shape
    lost = side - 1 - 2 * border(side)
    return np.random.default_rng(3).normal(size=(n, height - lost, width - lost, outputs))


def layer(groups, side):
    def function(x, kernel, bias):
        x = nn.functional.conv2d(x, kernel, bias, padding=border(side), groups=groups)
        return nn.functional.relu(x)

    return function


@pytest.mark.parametrize("shape", SHAPES)
def test_native_code_is_the_convolution(shape):
    arguments, (groups, side) = inputs(*shape), shape[-2:]
    expected = layer(groups, side)(*map(palto.asarray, arguments)).numpy()
    compiled = palto.compile(layer(groups, side))
    found = []
    for count in (1, 2, 3):
        palto.set_num_threads(count)
        found.append(compiled(*arguments).numpy())
        np.testing.assert_allclose(found[-1], expected, rtol=1e-4, atol=1e-5 * expected.max())
        assert found[-1].tobytes() == found[0].tobytes()
    assert "winograd" in used(compiled, *arguments)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_primitive_means_the_convolution(shape):
    (x, kernel, _), (groups, side) = inputs(*shape), shape[-2:]
    (c, o), wide = shape[3:5], (border(side),) * 2
    panel, images = 16, x.astype(np.float64)  # any that divides the outputs
    turned = kernel.reshape(side**2, c // groups, o // panel, panel).transpose(0, 2, 1, 3)
    u = winograd._kernel_matrix(side).numpy().astype(np.float64) @ turned.reshape(side**2, -1)
    u = u.reshape(36, o // panel, c // groups, panel)
    params = {"groups": groups, "kernel": side, "padding": (wide, wide)}
    found = winograd.winograd.numpy(images, u, **params)
    expected = nn.functional.conv2d(
        palto.asarray(images), palto.asarray(kernel.astype(np.float64)),
        padding=border(side), groups=groups,
    ).numpy()  # fmt: skip
    spec = winograd.winograd.infer(palto.asarray(images), palto.asarray(u), **params)
    assert spec == Spec(found.shape, found.dtype) and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("side", [3, 5])
def test_a_layer_learns_as_the_direct_one(monkeypatch, side):
    """Both gradients, through a whole step."""
    (x, kernel, bias), found = inputs(4, 12, 12, 32, 32, 1, side), []
    for choice in ("1", "0"):
        monkeypatch.setenv("PALTO_WINOGRAD", choice)
        w, b = palto.Cell(kernel, requires_grad=True), palto.Cell(bias, requires_grad=True)

        @palto.compile(keep_grad=True)
        def step(images, w=w, b=b):
            images = palto.tanh(nn.functional.conv2d(images, w, b, padding=side // 2))
            images = nn.functional.conv2d(images, w, b, padding=side // 2)
            loss = (images**2).mean()
            loss.backward()
            return loss

        loss = step(x)
        assert ("winograd" in used(step, x)) == (choice == "1")
        found.append([loss.numpy(), w.grad.numpy(), b.grad.numpy()])
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize(
    "change",
    [
        {"x": (2, 8, 8, 8), "w": (3, 3, 8, 32)},  # few channels
        {"x": (1, 4, 4, 32)},  # few tiles
        {"x": (2, 5, 5, 32), "w": (3, 3, 32, 32)},  # most of a tile would be wasted
        {"stride": 2},
        {"dilation": 2},
        {"w": (2, 2, 32, 32)},
        {"w": (6, 6, 32, 32)},
        {"w": (3, 5, 32, 32)},
        {"w": (3, 3, 32, 34)},  # no whole vectors
        {"dtype": np.float64},
    ],
)
def test_where_the_direct_way_is_taken(change):
    rng = np.random.default_rng(0)
    dtype = change.pop("dtype", np.float32)
    x = rng.normal(size=change.pop("x", (2, 8, 8, 32))).astype(dtype)
    w = rng.normal(size=change.pop("w", (3, 3, 32, 32))).astype(dtype)

    def function(x, w):
        return nn.functional.conv2d(x, w, padding=1, **change)

    compiled = palto.compile(function)
    expected = function(palto.asarray(x), palto.asarray(w)).numpy()
    np.testing.assert_allclose(compiled(x, w).numpy(), expected, rtol=1e-4, atol=1e-4)
    assert "winograd" not in used(compiled, x, w)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_gradients_primitive_means_the_gradient(shape):
    (x, kernel, _), (groups, side) = inputs(*shape), shape[-2:]
    g, wide = of_results(shape), (border(side),) * 2
    params = {"groups": groups, "kernel": side, "padding": (wide, wide)}
    images = x.astype(np.float64)
    sums = winograd.winograd_gradient.numpy(images, g, **params)
    spec = winograd.winograd_gradient.infer(palto.asarray(images), palto.asarray(g), **params)
    assert spec == Spec(sums.shape, sums.dtype)
    matrix = winograd._kernel_matrix(side, backwards=True).numpy().astype(np.float64)
    found = (matrix @ sums.reshape(36, -1)).reshape(kernel.shape)

    def loss(w):
        y = nn.functional.conv2d(
            palto.asarray(x.astype(np.float64)), w, padding=border(side), groups=groups
        )  # fmt: skip
        return (y * palto.asarray(g)).sum()

    expected = palto.grad(loss)(palto.asarray(kernel.astype(np.float64))).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_native_code_is_the_gradient(shape):
    """Of kernel and image, equal for any number of threads."""
    (x, kernel, _), (groups, side) = inputs(*shape), shape[-2:]
    g = of_results(shape).astype(np.float32)

    def gradients(x, w, g):
        def loss(x, w):
            return (nn.functional.conv2d(x, w, padding=border(side), groups=groups) * g).sum()

        return palto.grad(loss, argnums=(0, 1))(x, w)

    arguments = [palto.asarray(a) for a in (x, kernel, g)]
    expected = [y.numpy() for y in gradients(*arguments)]
    compiled = palto.compile(gradients)
    before = None
    for count in (1, 2, 3):
        palto.set_num_threads(count)
        found = [y.numpy() for y in compiled(*arguments)]
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
        assert before is None or [y.tobytes() for y in found] == before
        before = [y.tobytes() for y in found]
    assert used(compiled, *arguments).count("winograd") == 2


def test_images_with_channels_in_front():
    """Permuted on their way in and out, as PyTorch's images are."""
    x = np.random.default_rng(0).normal(size=(2, 32, 8, 8)).astype(np.float32)
    kernel = np.random.default_rng(1).normal(size=(3, 3, 32, 32)).astype(np.float32) / 20

    def gradients(x, w):
        def loss(x, w):
            x = palto.permute_dims(x, (0, 2, 3, 1))
            y = nn.functional.conv2d(x, w, padding=1)
            return (palto.permute_dims(y, (0, 3, 1, 2)) ** 2).sum()

        return palto.grad(loss, argnums=(0, 1))(x, w)

    arguments = palto.asarray(x), palto.asarray(kernel)
    compiled = palto.compile(gradients)
    for one, other in zip(compiled(*arguments), gradients(*arguments), strict=True):
        one, other = one.numpy(), other.numpy()
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    assert "winograd" in used(compiled, *arguments)


def test_no_images():
    x, kernel = np.zeros((0, 8, 8, 32), np.float32), np.ones((3, 3, 32, 32), np.float32)

    def gradient(w):
        return palto.grad(lambda w: nn.functional.conv2d(x, w, padding=1).sum())(w)

    found = palto.compile(gradient)(palto.asarray(kernel))
    assert found.shape == kernel.shape and not found.numpy().any()


def test_a_grouped_layer_is_padded_once():
    x = np.ones((2, 8, 8, 8), np.float32)
    w = np.ones((3, 3, 4, 6), np.float32)

    def gradient(x, w):
        return palto.grad(
            lambda w: (nn.functional.conv2d(x, w, padding=1, groups=2) ** 2).sum()
        )(w)  # fmt: skip

    rows = palto.compile(gradient).explain(x, w).rows
    assert sum(row.primitives.count("pad") for row in rows) == 1


def test_kernels_are_shared_only_by_equal_paddings():
    """Both directions of one layer, alike but for where their zeros are."""
    x, kernel, _ = inputs(1, 7, 16, 48, 48, 1, 3)

    def gradient(x, w):
        def loss(x):
            rows = palto.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0)])
            y = palto.conv(rows, w, padding=((1, 1), (0, 2)))
            y = y + palto.flip(y, axis=(1,))
            return (y * palto.sin(y)).sum()

        return palto.grad(loss)(x)

    expected = gradient(palto.asarray(x), palto.asarray(kernel)).numpy()
    found = palto.compile(gradient)(x, kernel).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("vector_bytes", [16, 32])
def test_layouts_of_other_processors(vector_bytes):
    """Any number of whole vectors of channels can be cut into units."""
    machine = dataclasses.replace(Machine.host(), vector_bytes=vector_bytes)
    for channels in range(vector_bytes // 4, 300, vector_bytes // 4):
        size, place = (8, 8), ((1, 1, 1), 0)
        layout = GradientLayout(
            2, size, size, 3, (1, 1), 1, channels, channels, place, place, machine
        )
        assert layout.plan.units and layout.units * layout.scratch


BEYOND = """
import ctypes, mmap
import numpy as np
import palto
from palto import nn

PAGE, SHAPE = mmap.PAGESIZE, (1, 5, 16, 32)
count = int(np.prod(SHAPE))
whole = -(-count // PAGE) * PAGE
memory = np.frombuffer(mmap.mmap(-1, whole + PAGE), np.uint8)
last = memory.ctypes.data + whole
assert not ctypes.CDLL(None).mprotect(ctypes.c_void_p(last), PAGE, 0)
mask = memory[whole - count : whole].view(np.bool_).reshape(SHAPE)
mask[:] = True
x, w = np.ones(SHAPE, np.float32), np.ones((3, 3, 32, 32), np.float32)


def function(x, w, mask):
    return palto.where(mask, nn.functional.conv2d(x, w, padding=1), 0)


compiled = palto.compile(function)
assert "winograd" in [row.kind for row in compiled.explain(x, w, mask).rows]
assert compiled(x, w, mask).numpy()[0, 2, 2, 0] == 288
"""


def test_nothing_is_read_beyond_the_last_row():
    """Where a tile reaches beyond the results, of what these are chosen by: a page is forbidden."""
    subprocess.run([sys.executable, "-c", BEYOND], check=True)
