import math

import numpy as np
import pytest

import palto
from palto import nn

SPACE = {1: (11,), 2: (9, 7), 3: (5, 6, 4)}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2, "padding": 1},
        {"padding": "same"},
        {"padding": "valid", "dilation": 2},
        {"padding": "same", "dilation": 2},
        {"groups": 2, "padding": 2},
        {"stride": 3, "groups": 4, "dilation": 2, "padding": 3},
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolution_is_pytorchs(twins, torch, rng, dims, options):
    if dims == 3 and options.get("dilation") == 2:
        options = {**options, "padding": options.get("padding", 0)}
    name, kernel = f"Conv{dims}d", 2 if options.get("dilation") == 2 else 3
    ours = getattr(nn, name)(4, 8, kernel, **options)
    theirs = getattr(torch.nn, name)(4, 8, kernel, **options)
    twins.layers(ours, theirs, rng.normal(size=(2, *SPACE[dims], 4)), images=True)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize(
    ("kernel", "padding", "space"),
    [((3, 2), (1, 0), (5, 4)), ((1, 1), 0, (1, 1)), (4, "same", (5, 6))],
)
def test_convolution_of_small_and_odd_sizes(twins, torch, rng, batch, kernel, padding, space):
    ours = nn.Conv2d(3, 5, kernel, padding=padding)
    theirs = torch.nn.Conv2d(3, 5, kernel, padding=padding)
    twins.layers(ours, theirs, rng.normal(size=(batch, *space, 3)), images=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bias": False},
        {"stride": 2},
        {"stride": 2, "padding": 1, "output_padding": 1},
        {"stride": 3, "padding": 2, "dilation": 2},
        {"groups": 2, "stride": 2},
        {"groups": 4, "dilation": 2, "output_padding": 1},
    ],
    ids=str,
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_transposed_convolution_is_pytorchs(twins, torch, rng, dims, options):
    name = f"ConvTranspose{dims}d"
    ours = getattr(nn, name)(4, 8, 3, **options)
    theirs = getattr(torch.nn, name)(4, 8, 3, **options)
    space = (4, 3, 2)[:dims]
    twins.layers(ours, theirs, rng.normal(size=(2, *space, 4)), images=True)


def test_transposed_convolution_is_the_transpose(rng):
    """<conv(x, w), y> = <x, conv_transpose(y, w')>, w' with its channels swapped."""
    x, y = rng.normal(size=(2, 9, 8, 3)), rng.normal(size=(2, 5, 4, 6))
    w = rng.normal(size=(3, 3, 3, 6))
    forward = nn.functional.conv2d(palto.asarray(x), palto.asarray(w), stride=2, padding=1)
    back = nn.functional.conv_transpose2d(
        palto.asarray(y), palto.asarray(w.swapaxes(2, 3)), stride=2, padding=1,
        output_padding=(0, 1),
    )  # fmt: skip
    np.testing.assert_allclose((forward.numpy() * y).sum(), (back.numpy() * x).sum(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("groups", [1, 4])
def test_convolutions_start_as_pytorchs_do(torch, kind, groups):
    ours = getattr(nn, kind)(16, 64, 3, groups=groups)
    theirs = getattr(torch.nn, kind)(16, 64, 3, groups=groups)
    for mine, other in ((ours.weight, theirs.weight), (ours.bias, theirs.bias)):
        mine, other = mine.numpy(), other.detach().numpy()
        assert mine.size == other.size
        bound = 1 / math.sqrt(9 * (16 if kind == "Conv2d" else 64) // groups)
        assert 0.9 * bound < abs(mine).max() <= bound
        assert 0.9 * bound < abs(other).max() <= bound * (1 + 1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8, 8), r"wants an input of shape \(N, H, W, 3\), got \(2, 3, 8, 8\); images are "
                       r"channels-last: x.permute\(0, 2, 3, 1\) makes them so"),
        ((8, 8, 3), r"got \(8, 8, 3\); a single image becomes a batch by x\[None\]"),
        ((2, 8, 8, 4), r"got \(2, 8, 8, 4\)\n"),
        ((2, 3), r"got \(2, 3\)\n"),
        ((2, 2, 8, 3), "does not fit into"),
    ],
)  # fmt: skip
def test_wrong_inputs(shape, message):
    with pytest.raises(ValueError, match=message) as caught:
        nn.Conv2d(3, 5, 3)(palto.zeros(shape))
    assert caught.value.__notes__ == ["in layer Conv2d: Conv2d(3, 5, kernel_size=3)"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.Conv2d(3, 4, 3, groups=2), ValueError, "groups=2 must divide in_channels=3"),
        (lambda: nn.Conv2d(3, 4, 3, groups=0), ValueError, "groups=0"),
        (lambda: nn.Conv2d(3, 4, 3, padding="full"), ValueError, "'same' or 'valid', got 'full'"),
        (lambda: nn.Conv2d(3, 4, 3, stride=2, padding="same"), ValueError, "wants stride 1"),
        (lambda: nn.Conv2d(3, 4, (3, 3, 3)), ValueError, "kernel_size is 2 numbers of at least 1"),
        (lambda: nn.Conv2d(3, 4, 0), ValueError, "at least 1, got 0"),
        (lambda: nn.Conv2d(3, 4, 3, padding=-1), ValueError, "at least 0, got -1"),
        (lambda: nn.Conv2d(3, 4, 2.5), TypeError, "got 2.5"),
        (lambda: nn.ConvTranspose2d(3, 4, 3, padding="same"), TypeError, "got 'same'"),
        (
            lambda: nn.ConvTranspose2d(3, 4, 3, output_padding=1)(palto.zeros((1, 4, 4, 3))),
            ValueError,
            "must be smaller than the stride",
        ),
    ],
)
def test_wrong_options(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_looks():
    assert repr(nn.Conv2d(1, 8, 3)) == "Conv2d(1, 8, kernel_size=3)"
    layer = nn.Conv2d(2, 8, (3, 5), stride=2, padding=(1, 2), groups=2, bias=False)
    assert repr(layer) == (
        "Conv2d(2, 8, kernel_size=(3, 5), stride=2, padding=(1, 2), groups=2, bias=False)"
    )
    assert repr(nn.Conv1d(1, 2, 3, padding="same")) == "Conv1d(1, 2, kernel_size=3, padding='same')"
    assert repr(nn.ConvTranspose2d(1, 2, 3, stride=2, output_padding=1)) == (
        "ConvTranspose2d(1, 2, kernel_size=3, stride=2, output_padding=1)"
    )
