"""Convolution and pooling against PyTorch, with images channels-last here."""

import numpy as np
import pytest

import palto
from palto.tensor import functions as F

_rng = np.random.default_rng(0)


def first(torch, x):
    """Channels first."""
    return x.movedim(-1, 1)


# space, C, kernel, O, and options
CONVOLUTIONS = [
    ((7,), 3, (3,), 4, {}),
    ((8,), 2, (3,), 4, {"stride": (2,), "padding": (1,)}),
    ((9,), 2, (3,), 4, {"kernel_dilation": (2,), "padding": (3,)}),
    ((6,), 4, (2,), 6, {"groups": 2}),
    ((6,), 4, (3,), 8, {"groups": 4, "padding": (1,)}),
    ((6, 7), 3, (3, 2), 4, {"stride": (2, 1), "padding": (1, 0)}),
    ((6, 7), 2, (3, 3), 2, {"kernel_dilation": (1, 2), "stride": (3, 2), "padding": (2, 2)}),
    ((5, 5), 4, (3, 3), 4, {"groups": 4, "padding": (1, 1)}),
    ((5, 5), 3, (5, 5), 2, {"padding": (2, 2)}),
    ((3, 4, 5), 2, (2, 3, 2), 3, {"padding": (1, 1, 0), "stride": (1, 2, 2)}),
]


@pytest.mark.parametrize(("space", "c", "kernel", "o", "options"), CONVOLUTIONS)
def test_convolution(torch, check_as_torch, space, c, kernel, o, options):
    dims = len(space)
    groups = options.get("groups", 1)
    x = _rng.normal(size=(2, *space, c))
    w = _rng.normal(size=(*kernel, c // groups, o))
    padding = options.get("padding", (0,) * dims)

    def ours(x, w):
        given = {**options, "padding": tuple((n, n) for n in padding)}
        return palto.conv(x, w, **given)

    def theirs(x, w):
        convolve = getattr(torch.nn.functional, f"conv{dims}d")
        y = convolve(
            first(torch, x),
            w.movedim((-1, -2), (0, 1)),
            stride=options.get("stride", 1),
            padding=padding,
            dilation=options.get("kernel_dilation", 1),
            groups=groups,
        )
        return y.movedim(1, -1)

    check_as_torch(ours, theirs, x, w, order=2, rtol=1e-9, atol=1e-9)


def test_transposed_convolution(check_as_torch, torch):
    """The gradient of a convolution, which is one with a dilated input."""
    x, w = _rng.normal(size=(2, 4, 3)), _rng.normal(size=(3, 3, 5))

    def ours(x, w):
        return palto.conv(x, palto.flip(w, axis=0), padding=((1, 1),), input_dilation=(2,))

    def theirs(x, w):
        y = torch.nn.functional.conv_transpose1d(
            first(torch, x), w.movedim((1, 2), (0, 1)), stride=2, padding=1
        )
        return y.movedim(1, -1)

    check_as_torch(ours, theirs, x, w, order=2, rtol=1e-9, atol=1e-9)


def test_float32_and_mixed():
    x, w = np.ones((1, 4, 1), np.float32), np.ones((2, 1, 1), np.float32)
    assert palto.conv(x, w).dtype == palto.float32
    assert palto.conv(x, w.astype(np.float64)).dtype == palto.float64


@pytest.mark.parametrize(
    ("x", "w", "options", "error", "message"),
    [
        ((1, 4), (2, 1, 1), {}, ValueError, r"wants an input .*got \(1, 4\) and \(2, 1, 1\)"),
        ((1, 4, 4, 3), (2, 3, 1), {}, ValueError, r"got \(1, 4, 4, 3\) and \(2, 3, 1\)"),
        ((1, 4, 3), (2, 2, 1), {}, ValueError, r"3 channels, the kernel \(2, 2, 1\) takes 2 x 1"),
        ((1, 4, 4), (2, 2, 3), {"groups": 2}, ValueError, "takes 2 x 2 and gives 3"),
        (
            (1, 3, 1),
            (5, 1, 1),
            {},
            ValueError,
            r"kernel of \(5,\) reaching over 5 does not fit into an input of \(3,\) padded to 3",
        ),
        ((1, 0, 1), (1, 1, 1), {"padding": ((2, 2),)}, ValueError, "does not fit"),
        ((1, 4, 1), (2, 1, 1), {"stride": (1, 1)}, ValueError, r"stride.*\(1, 1\)"),
        ((1, 4, 1), (2, 1, 1), {"stride": (0,)}, ValueError, r"stride.*\(0,\)"),
        ((1, 4, 1), (2, 1, 1), {"padding": (1,)}, ValueError, r"padding.*\(1,\)"),
        ((1, 4, 1), (2, 1, 1), {"kernel_dilation": (-1,)}, ValueError, "kernel_dilation"),
    ],
)
def test_convolution_errors(x, w, options, error, message):
    with pytest.raises(error, match=message):
        palto.conv(palto.zeros(x), palto.zeros(w), **options)


def test_integers_are_no_images():
    with pytest.raises(TypeError, match="wants one float dtype, got int64 and int64"):
        palto.conv(palto.zeros((1, 4, 1), dtype=int), palto.zeros((2, 1, 1), dtype=int))
    with pytest.raises(TypeError, match="max pooling wants float32 or float64, got uint8"):
        F.window_max(
            palto.zeros((1, 4, 1), dtype="uint8"), window=(2,), stride=(2,), padding=((0, 0),)
        )


POOLS = [
    ((8,), (2,), (2,), (0,)),
    ((9,), (3,), (2,), (1,)),
    ((7,), (3,), (3,), (0,)),
    ((6, 7), (2, 3), (2, 1), (1, 1)),
    ((5, 5), (3, 3), (1, 2), (0, 1)),
    ((4, 5, 4), (2, 2, 2), (2, 1, 2), (1, 0, 1)),
]


@pytest.mark.parametrize(("space", "window", "stride", "padding"), POOLS)
def test_max_pooling(torch, check_as_torch, space, window, stride, padding):
    x = _rng.permutation(2 * int(np.prod(space)) * 3).reshape(2, *space, 3).astype(float)
    pairs = tuple((n, n) for n in padding)
    pool = getattr(torch.nn.functional, f"max_pool{len(space)}d")
    check_as_torch(
        lambda x: F.window_max(x, window=window, stride=stride, padding=pairs)[0],
        lambda x: pool(first(torch, x), window, stride, padding).movedim(1, -1),
        x,
        order=2,
    )


@pytest.mark.parametrize("fill", [1.0, -np.inf, np.inf])
def test_max_pooling_of_equals_takes_the_first(torch, check_as_torch, fill):
    check_as_torch(
        lambda x: F.window_max(x, window=(2, 2), stride=(1, 1), padding=((1, 1), (1, 1)))[0],
        lambda x: torch.nn.functional.max_pool2d(first(torch, x), 2, 1, 1).movedim(1, -1),
        np.full((1, 4, 3, 2), fill),
    )


def test_max_pooling_of_nan():
    x = np.array([1.0, np.nan, 3.0, 4.0]).reshape(1, 4, 1)
    values, _ = F.window_max(x, window=(2,), stride=(2,), padding=((0, 0),))
    np.testing.assert_array_equal(values.reshape(2), [np.nan, 4])


@pytest.mark.parametrize(("space", "window", "stride", "padding"), POOLS)
def test_sum_pooling(torch, check_as_torch, space, window, stride, padding):
    pairs = tuple((n, n) for n in padding)
    pool = getattr(torch.nn.functional, f"avg_pool{len(space)}d")
    check_as_torch(
        lambda x: F.window_sum(x, window=window, stride=stride, padding=pairs),
        lambda x: pool(first(torch, x), window, stride, padding).movedim(1, -1) * np.prod(window),
        _rng.normal(size=(2, *space, 3)),
        order=2,
    )


def test_an_empty_batch():
    x = palto.asarray(np.zeros((0, 4, 4, 2)), requires_grad=True)
    options = {"window": (2, 2), "stride": (2, 2), "padding": ((0, 0), (0, 0))}
    for y in (F.window_max(x, **options)[0], F.window_sum(x, **options)):
        assert y.shape == (0, 2, 2, 2)
        y.sum().backward()
        assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"window": (2, 2)},
            r"a window of \(2, 2\) wants \(N, ...space, C\) with 2 axes.*\(1, 4, 1\)",
        ),
        ({"window": (5,)}, r"window of \(5,\) does not fit into an image of \(4,\) with padding"),
        ({"padding": ((2, 0),)}, "more than half"),
        ({"stride": (0,)}, "stride"),
        ({"stride": (1, 1)}, "stride"),
    ],
)
def test_pooling_errors(options, message):
    given = {"window": (2,), "stride": (2,), "padding": ((0, 0),), **options}
    with pytest.raises(ValueError, match=message):
        F.window_max(palto.zeros((1, 4, 1)), **given)
    if "half" not in message:
        with pytest.raises(ValueError, match=message):
            F.window_sum(palto.zeros((1, 4, 1)), **given)
