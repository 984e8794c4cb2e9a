import numpy as np
import pytest

import palto
from palto import nn

F = nn.functional


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 3, "stride": 1, "padding": 1},
        {"kernel_size": 4, "stride": 3, "padding": 2},
        {"kernel_size": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["MaxPool", "AvgPool"])
@pytest.mark.parametrize("dims", [1, 2])
def test_pooling_is_pytorchs(twins, torch, rng, kind, dims, options):
    name = f"{kind}{dims}d"
    ours, theirs = getattr(nn, name)(**options), getattr(torch.nn, name)(**options)
    for shape in [(2, 9, 7, 3), (1, 5, 4, 1)]:
        x = rng.normal(size=(shape[0], *shape[1 : dims + 1], shape[-1]))
        twins.layers(ours, theirs, x, images=True)


@pytest.mark.parametrize("kind", ["MaxPool2d", "AvgPool2d"])
def test_windows_that_are_not_square(twins, torch, rng, kind):
    options = {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)}
    ours, theirs = getattr(nn, kind)(**options), getattr(torch.nn, kind)(**options)
    twins.layers(ours, theirs, rng.normal(size=(2, 6, 7, 2)), images=True)


@pytest.mark.parametrize("padding", [0, 1, (0, 1)])
def test_padding_that_does_not_count(twins, torch, rng, padding):
    options = {"kernel_size": 3, "stride": 2, "padding": padding, "count_include_pad": False}
    ours, theirs = nn.AvgPool2d(**options), torch.nn.AvgPool2d(**options)
    twins.layers(ours, theirs, rng.normal(size=(2, 6, 7, 2)), images=True)


def test_the_first_of_equal_pixels_gets_the_gradient(twins, torch):
    twins.layers(nn.MaxPool2d(2), torch.nn.MaxPool2d(2), np.ones((1, 4, 4, 2)), images=True)


def test_an_empty_batch(twins, torch):
    twins.layers(nn.MaxPool2d(2), torch.nn.MaxPool2d(2), np.ones((0, 4, 4, 2)), images=True)


def test_a_border_is_never_the_largest():
    assert (
        F.max_pool2d(-palto.ones((1, 2, 2, 1)), 2, padding=1).tolist()
        == (-np.ones((1, 2, 2, 1))).tolist()
    )


def test_nan_and_infinity_show():
    x = np.zeros((1, 2, 4, 1), np.float32)
    x[0, 0, 0, 0], x[0, 1, 3, 0] = np.nan, -np.inf
    for pool in (nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d((1, 2))):
        first, second = pool(palto.asarray(x)).numpy().ravel()
        assert np.isnan(first)
        assert second == (0 if isinstance(pool, nn.MaxPool2d) else -np.inf)


@pytest.mark.parametrize("size", [1, 3, (6, 2), (2, None), (5, 7), (10, 9)], ids=str)
def test_adaptive_pooling_is_pytorchs(twins, torch, rng, size):
    ours, theirs = nn.AdaptiveAvgPool2d(size), torch.nn.AdaptiveAvgPool2d(size)
    twins.layers(ours, theirs, rng.normal(size=(2, 6, 7, 3)), images=True)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_adaptive_pooling_of_sequences(twins, torch, rng, size):
    ours, theirs = nn.AdaptiveAvgPool1d(size), torch.nn.AdaptiveAvgPool1d(size)
    twins.layers(ours, theirs, rng.normal(size=(2, 6, 3)), images=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nn.MaxPool2d(2)(palto.zeros((4, 4, 3))),
            r"\(N, H, W, C\), got \(4, 4, 3\); a sin",
        ),
        (lambda: nn.AvgPool1d(2)(palto.zeros((2, 4, 4, 3))), r"\(N, L, C\), got \(2, 4, 4, 3\)"),
        (lambda: F.max_pool2d(palto.zeros((2, 4, 4, 3)), 2, padding=2), "more than half"),
        (lambda: F.avg_pool2d(palto.zeros((2, 4, 4, 3)), 2, padding=2), "more than half"),
        (lambda: F.max_pool2d(palto.zeros((2, 4, 4, 3)), 5), "does not fit"),
        (
            lambda: F.max_pool2d(palto.zeros((2, 4, 4, 3)), 2, 0),
            "stride is 2 numbers of at least 1",
        ),
        (lambda: nn.AdaptiveAvgPool2d((1, 2, 3))(palto.zeros((2, 4, 4, 3))), "output_size is 2"),
        (lambda: nn.AdaptiveAvgPool2d(0)(palto.zeros((2, 4, 4, 3))), "at least 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_looks():
    assert repr(nn.MaxPool2d(3, stride=2, padding=(1, 0))) == (
        "MaxPool2d(3, stride=2, padding=(1, 0))"
    )
    assert repr(nn.AvgPool1d(2)) == "AvgPool1d(2)"
    assert repr(nn.AdaptiveAvgPool2d((6, 6))) == "AdaptiveAvgPool2d((6, 6))"
