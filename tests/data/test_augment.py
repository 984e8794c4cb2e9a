"""Augmentation against NumPy's plain words, PyTorch, theory, and what may be asked wrongly."""

import colorsys
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import palto
from palto import nn, optim
from palto.data import augment

Generator = palto.random.Generator
DOCS = Path(__file__).resolve().parents[2] / "docs"


def picture(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).random(shape).astype(dtype)


def mixed_images(x, **options):
    return augment.mixup(x, np.arange(len(x)), 1.0, max(len(x), 1), **options)[0]


def cut_images(x, **options):
    return augment.cutmix(x, np.arange(len(x)), 1.0, max(len(x), 1), **options)[0]


#: Everything that draws, as it is used on images of colour.
AUGMENTATIONS = {
    "crop": lambda x, **o: augment.random_crop(x, 3, **o),
    "crop_reflect": lambda x, **o: augment.random_crop(x, 2, mode="reflect", **o),
    "horizontal_flip": augment.random_horizontal_flip,
    "vertical_flip": augment.random_vertical_flip,
    "rotation": lambda x, **o: augment.random_rotation(x, 40, **o),
    "affine": lambda x, **o: augment.random_affine(
        x, 20, (0.3, 0.2), (0.7, 1.3), (-10, 10, -5, 5), fill=0.25, **o
    ),
    "jitter": lambda x, **o: augment.color_jitter(x, 0.4, 0.5, 0.6, 0.2, **o),
    "erasing": augment.random_erasing,
    "erasing_random": lambda x, **o: augment.random_erasing(x, 0.8, value="random", **o),
    "noise": augment.gaussian_noise,
    "mixup": mixed_images,
    "cutmix": cut_images,
}

every_augmentation = pytest.mark.parametrize("name", AUGMENTATIONS)
every_single_image = pytest.mark.parametrize(
    "name", [name for name in AUGMENTATIONS if name not in ("mixup", "cutmix")]
)

# --- Crops and flips -----------------------------------------------------------------------------


@given(
    count=st.integers(0, 4),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 7),
    mode=st.sampled_from(["constant", "edge", "reflect", "symmetric"]),
    data=st.data(),
)
def test_crop_is_a_slice_of_the_padded_image(count, height, width, channels, padding, mode, data):
    size = (
        data.draw(st.integers(1, height + 2 * padding)),
        data.draw(st.integers(1, width + 2 * padding)),
    )
    x = picture(count, height, width, channels)
    got = augment.random_crop(x, padding, size=size, mode=mode, generator=Generator(1)).numpy()

    generator = Generator(1)
    tops, lefts = (
        palto.random.integers((count,), 0, n + 2 * padding - m + 1, generator=generator).numpy()
        for n, m in zip((height, width), size, strict=True)
    )
    assert got.shape == (count, *size, channels) and got.dtype == np.float32
    for image, crop, top, left in zip(x, got, tops, lefts, strict=True):
        padded = np.pad(image, [(padding, padding)] * 2 + [(0, 0)], mode=mode)
        np.testing.assert_array_equal(crop, padded[top : top + size[0], left : left + size[1]])


def test_crop_places_are_equally_likely():
    x = np.broadcast_to(np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1), (6000, 3, 4, 1))
    corners = augment.random_crop(x, size=(2, 2)).numpy()[:, 0, 0, 0]
    values, counts = np.unique(corners, return_counts=True)
    np.testing.assert_array_equal(values, [0, 1, 2, 4, 5, 6])
    assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # chi-squared, 5 degrees of freedom, 0.1 %


def test_crop_fills():
    crops = augment.random_crop(np.zeros((50, 2, 2, 1), np.float32), 2, fill=0.5).numpy()
    assert set(np.unique(crops)) == {0.0, 0.5}


@pytest.mark.parametrize(
    ("flip", "axis"), [(augment.random_horizontal_flip, 2), (augment.random_vertical_flip, 1)]
)
def test_flips(flip, axis):
    x = picture(200, 3, 5, 2)
    np.testing.assert_array_equal(flip(x, 1.0), np.flip(x, axis))
    np.testing.assert_array_equal(flip(x, 0.0), x)
    got = flip(x, 0.3, generator=Generator(2)).numpy()
    chosen = palto.random.bernoulli((200,), 0.3, generator=Generator(2)).numpy()
    np.testing.assert_array_equal(got, np.where(chosen[:, None, None, None], np.flip(x, axis), x))


def test_flips_happen_with_their_probability():
    x = np.broadcast_to(np.array([0, 1], np.float32).reshape(1, 1, 2, 1), (10_000, 1, 2, 1))
    for probability in (0.1, 0.5, 0.8):
        flipped = augment.random_horizontal_flip(x, probability).numpy()[:, 0, 0, 0].mean()
        assert abs(flipped - probability) < 4 * math.sqrt(0.25 / 10_000)


# --- Rotations and affine maps -------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 4, 7])
@pytest.mark.parametrize("quarters", range(-5, 6))
def test_quarter_turns_are_exact(size, quarters):
    x = picture(3, size, size, 2)
    angle = 90 * quarters
    wanted = np.rot90(x, quarters, axes=(1, 2))
    np.testing.assert_array_equal(augment.random_rotation(x, (angle, angle)), wanted)
    np.testing.assert_array_equal(augment.random_affine(x, (angle, angle)), wanted)


def test_a_half_turn_of_any_shape_is_exact():
    x = picture(2, 3, 6, 1)
    np.testing.assert_array_equal(augment.random_rotation(x, (180, 180)), x[:, ::-1, ::-1])


def source_matrices(angle, factor, shear_x, shear_y, shift):
    """From a place in the result to one in the image, as (2, 3) in pixels, in float64."""
    a, sx, sy = np.radians([angle, shear_x, shear_y])
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    lean = np.array([[1, 0], [-np.tan(sy), 1]]) @ np.array([[1, -np.tan(sx)], [0, 1]])
    inverse = np.linalg.inv(factor * turn @ lean)
    return np.concatenate([inverse, -inverse @ np.reshape(shift, (2, 1))], axis=1)


@pytest.mark.parametrize("shape", [(4, 9, 9, 1), (3, 8, 13, 3), (2, 1, 5, 2)])
@pytest.mark.parametrize(
    "options",
    [
        {"degrees": 30},
        {"degrees": (100, 170), "fill": 0.7},
        {"scale": (0.4, 2.5)},
        {"shear": 30},
        {"shear": (10, 40, -30, 5), "fill": -1.0},
        {"translate": (0.4, 1.0), "fill": 0.5},
        {"degrees": 180, "translate": (0.2, 0.3), "scale": (0.5, 1.5), "shear": (-20, 20, 10, 20)},
    ],
)
def test_affine_is_as_grid_sample(torch, shape, options):
    x = picture(*shape)
    count, height, width, _ = shape
    u = palto.random.uniform((6, count), generator=Generator(5)).numpy().astype(np.float64)

    def between(name, default):
        value = options.get(name, default)
        low, high = value if isinstance(value, tuple) else (-value, value)
        return lambda t: low + (high - low) * t

    shear = options.get("shear", 0.0)
    shears = shear if isinstance(shear, tuple) else (-shear, shear, 0.0, 0.0)
    moves = options.get("translate", (0.0, 0.0))
    theta = []
    for n in range(count):
        shift = [
            np.round((2 * u[4 + i, n] - 1) * moves[i] * length)
            for i, length in enumerate((width, height))
        ]
        source = source_matrices(
            between("degrees", 0.0)(u[0, n]),
            between("scale", (1.0, 1.0))(u[3, n]),
            shears[0] + (shears[1] - shears[0]) * u[1, n],
            shears[2] + (shears[3] - shears[2]) * u[2, n],
            shift,
        )
        # PyTorch counts from -1 at the left edge to 1 at the right one.
        unit = np.diag([width / 2, height / 2, 1])
        theta.append(np.linalg.inv(unit[:2, :2]) @ source @ unit)

    fill = options.get("fill", 0.0)
    images = torch.tensor(x).permute(0, 3, 1, 2).double() - fill
    grid = torch.nn.functional.affine_grid(
        torch.tensor(np.stack(theta)), images.shape, align_corners=False
    )
    wanted = torch.nn.functional.grid_sample(images, grid, align_corners=False) + fill
    got = augment.random_affine(x, **{"degrees": 0, **options}, generator=Generator(5))
    np.testing.assert_allclose(got, wanted.permute(0, 2, 3, 1).numpy(), atol=2e-5)


def test_rotation_is_an_affine_map():
    x = picture(5, 6, 9, 2)
    turned = augment.random_rotation(x, (33, 33), fill=0.3)
    np.testing.assert_allclose(augment.random_affine(x, (33, 33), fill=0.3), turned, atol=1e-6)


def test_moves_are_whole_pixels():
    x = picture(100, 5, 8, 1)
    got = augment.random_affine(x, translate=(0.25, 0.4)).numpy()
    padded = np.pad(x, [(0, 0), (2, 2), (2, 2), (0, 0)])
    found = set()
    for image, moved in zip(padded, got, strict=True):
        places = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if np.array_equal(image[2 - down : 7 - down, 2 - right : 10 - right], moved)
        ]
        assert len(places) == 1
        found.update(places)
    assert len(found) > 20


def slopes(images):
    """How much the values around the centre change per pixel to the right and down."""
    return images[:, 2, 3, 0] - images[:, 2, 1, 0], images[:, 3, 2, 0] - images[:, 1, 2, 0]


def test_angles_and_factors_are_uniform():
    ramp = np.arange(5, dtype=np.float32) / 4
    x = np.broadcast_to(ramp[None, None, :, None], (5000, 5, 5, 1))
    right, down = slopes(augment.random_rotation(x, 30).numpy())
    # The ramp rises to the right; turned counter-clockwise, it rises upwards.
    angles = np.degrees(np.arctan2(-down, right))
    assert abs(angles).max() <= 30.001
    assert abs(angles.mean()) < 4 * 30 / math.sqrt(3 * 5000)
    assert abs(angles.std() - 30 / math.sqrt(3)) < 0.5
    assert abs((angles > 15).mean() - 0.25) < 0.025
    factors = 0.5 / slopes(augment.random_affine(x, scale=(1.0, 3.0)).numpy())[0]
    assert factors.min() >= 0.999 and factors.max() <= 3.001
    assert abs(factors.mean() - 2) < 0.04 and abs((factors < 1.5).mean() - 0.25) < 0.025


# --- Colours, boxes, noise -----------------------------------------------------------------------


def test_jitter_is_as_written():
    x = picture(6, 4, 5, 3)
    got = augment.color_jitter(x, 0.4, (0.2, 1.9), 1.5, generator=Generator(3)).numpy()
    u = palto.random.uniform((4, 6), generator=Generator(3)).numpy()
    for image, result, (a, b, c, _) in zip(x, got, u.T, strict=True):
        wanted = np.clip(image * (0.6 + 0.8 * a), 0, 1)
        factor = 0.2 + 1.7 * b
        mean = (wanted @ augment.pixels.LUMA).mean()
        wanted = np.clip(factor * wanted + (1 - factor) * mean, 0, 1)
        factor = 2.5 * c  # never below 0
        grey = (wanted @ augment.pixels.LUMA)[..., None]
        wanted = np.clip(factor * wanted + (1 - factor) * grey, 0, 1)
        np.testing.assert_allclose(result, wanted, atol=2e-6)


def test_jitter_of_grey_images():
    x = picture(6, 4, 5, 1)
    got = augment.color_jitter(x, contrast=(0.5, 0.5)).numpy()
    np.testing.assert_allclose(got, 0.5 * x + 0.5 * x.mean((1, 2, 3), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("turn", [-0.5, -0.3, 0.1, 1 / 3, 0.5])
def test_hue_is_as_colorsys(turn):
    x = picture(2, 8, 8, 3)
    x[0, 0, :3] = [[0, 0, 0], [1, 1, 1], [0.5, 0.5, 0.5]]  # no hue at all
    x[0, 0, 3:6] = np.eye(3)
    got = augment.color_jitter(x, hue=(turn, turn)).numpy()
    for pixel, moved in zip(x.reshape(-1, 3), got.reshape(-1, 3), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*map(float, pixel))
        wanted = colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value)
        np.testing.assert_allclose(moved, wanted, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 0.5, "random"])
def test_erasing_is_as_written(value):
    x = 2 + picture(60, 9, 14, 3)
    options = {"probability": 0.7, "scale": (0.1, 0.9), "ratio": (0.2, 4.0), "value": value}
    got = augment.random_erasing(x, **options, generator=Generator(4)).numpy()
    generator = Generator(4)
    u = palto.random.uniform((5, 60), generator=generator).numpy().astype(np.float64)
    noise = palto.random.uniform(x.shape, generator=generator).numpy()
    wanted = x.copy()
    for n, (a, r, i, j, p) in enumerate(u.T):
        area = (0.1 + 0.8 * a) * 9 * 14
        ratio = math.exp(math.log(0.2) + (math.log(4) - math.log(0.2)) * r)
        height = min(round(math.sqrt(area * ratio)), 9)
        width = min(round(math.sqrt(area / ratio)), 14)
        if p < 0.7:
            top, left = math.floor(i * (9 - height + 1)), math.floor(j * (14 - width + 1))
            box = n, slice(top, top + height), slice(left, left + width)
            wanted[box] = noise[box] if value == "random" else value
    np.testing.assert_array_equal(got, wanted)


def test_erased_areas():
    x = np.ones((2000, 40, 40, 1), np.float32)
    erased = 1 - augment.random_erasing(x, 0.25, (0.1, 0.3), (0.5, 2)).numpy().mean((1, 2, 3))
    assert abs((erased > 0).mean() - 0.25) < 0.04
    areas = erased[erased > 0]
    assert areas.min() > 0.09 and areas.max() < 0.32 and abs(areas.mean() - 0.2) < 0.01


def test_noise_is_normal():
    x = np.full((50, 20, 20, 2), 0.5, np.float32)
    noise = augment.gaussian_noise(x, 0.3, mean=0.2, clip=False).numpy() - x
    assert abs(noise.mean() - 0.2) < 0.01 and abs(noise.std() - 0.3) < 0.01
    assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.03
    clipped = augment.gaussian_noise(x, 0.3).numpy()
    assert clipped.min() == 0 and clipped.max() == 1
    np.testing.assert_array_equal(augment.gaussian_noise(x, 0.0), x)


def test_normalize():
    x = picture(2, 3, 4, 3)
    mean, std = [0.4, 0.5, 0.6], (0.1, 0.2, 0.3)
    got = augment.normalize(x, mean, std)
    np.testing.assert_allclose(got, (x - np.float32(mean)) / np.float32(std), rtol=1e-6)
    np.testing.assert_array_equal(augment.normalize(x, 0.5, 0.25), (x - 0.5) * 4)
    assert got.dtype == palto.float32


# --- Mixing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_mixup_treats_labels_as_images(alpha):
    # Image n is the n-th row of the identity, and so is its label's row.
    x = np.eye(32, dtype=np.float32).reshape(32, 1, 32, 1)
    images, labels = augment.mixup(x, np.arange(32), alpha, 32)
    assert labels.shape == (32, 32) and labels.dtype == palto.float32
    labels = labels.numpy()
    np.testing.assert_array_equal(images.numpy().reshape(32, 32), labels)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    assert ((labels > 0).sum(1) <= 2).all() and labels.min() >= 0
    # Everyone is somebody's partner.
    others = labels - np.diag(np.diag(labels))
    assert ((others > 0).sum(0) <= 1).all() and (others > 0).sum() > 20


def test_mixup_of_soft_labels():
    x = picture(8, 2, 2, 1)
    once = augment.mixup(x, np.arange(8) % 3, 1.0, 3)
    _, labels = augment.cutmix(*once, 1.0)
    assert labels.shape == (8, 3)
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.5, 1.0, 3.0, 1000.0])
def test_mixing_weights_follow_the_beta_distribution(alpha):
    weights = augment.mixing._symmetric_beta("mixup", 20_000, alpha, Generator(7)).numpy()
    wanted = np.random.default_rng(0).beta(alpha, alpha, size=20_000)
    assert weights.min() >= 0 and weights.max() <= 1
    assert abs(weights.std() / math.sqrt(1 / (4 * (2 * alpha + 1))) - 1) < 0.02
    # The distance of Kolmogorov and Smirnov: by chance above 0.0195 once in a thousand times. The
    # ends are left out: weights are precise to 1e-7 of 1, not of themselves.
    points = np.linspace(1e-6, 1 - 1e-6, 10_001)
    below = [np.searchsorted(np.sort(part), points) / 20_000 for part in (weights, wanted)]
    assert abs(below[0] - below[1]).max() < 0.0195


def test_cutmix_pastes_a_box_and_counts_it():
    values = np.arange(64, dtype=np.float32)
    x = np.broadcast_to(values[:, None, None, None], (64, 7, 10, 2))
    images, labels = (part.numpy() for part in augment.cutmix(x, np.arange(64), 1.0, 64))
    np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
    for n, (image, label) in enumerate(zip(images, labels, strict=True)):
        own = image[..., 0] == n
        np.testing.assert_array_equal(image[..., 0], image[..., 1])
        assert abs(label[n] - own.mean()) < 1e-6
        rows, columns = np.nonzero(~own)
        if rows.size:
            box = image[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
            assert len(np.unique(box)) == 1 and not own[rows, columns].any()
            assert box.size // 2 == rows.size  # the box is full
            assert label[int(box.flat[0])] == pytest.approx(1 - own.mean(), abs=1e-6)


def test_cutmix_areas():
    values = np.arange(3000, dtype=np.float32)
    x = np.broadcast_to(values[:, None, None, None], (3000, 40, 40, 1))
    # A large alpha makes all weights about a half: sides of sqrt(0.5), before the edges cut them.
    images = augment.cutmix(x, np.zeros(3000, np.int64), 1e4, 1)[0].numpy()
    pasted = (images != x).mean((1, 2, 3))
    side = math.sqrt(0.5)
    assert 0.4 < pasted.max() <= 0.5
    assert abs(pasted.mean() - (side - side**2 / 4) ** 2) < 0.02


# --- What holds for all --------------------------------------------------------------------------


@every_augmentation
def test_compiled_is_eager(name, executor):
    function, x = AUGMENTATIONS[name], palto.asarray(picture(7, 6, 9, 3))
    palto.manual_seed(11)
    eager = [function(x).numpy() for _ in range(3)]
    assert not np.array_equal(eager[0], eager[1])
    palto.manual_seed(11)
    compiled = palto.compile(function)
    for wanted in eager:
        np.testing.assert_allclose(compiled(x), wanted, rtol=1e-5, atol=1e-5)
    # And on from there.
    palto.manual_seed(11)
    compiled(x)
    np.testing.assert_array_equal(function(x), eager[1])


@every_augmentation
def test_own_generator(name):
    function, x = AUGMENTATIONS[name], picture(9, 6, 5, 3)
    before = palto.random.default_generator.state.numpy()
    first, second, other = (function(x, generator=Generator(s)).numpy() for s in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(palto.random.default_generator.state, before)


@every_augmentation
@pytest.mark.parametrize("shape", [(0, 5, 4, 3), (1, 1, 1, 3), (1, 7, 3, 3), (3, 1, 6, 3)])
def test_odd_sizes(name, shape):
    got = AUGMENTATIONS[name](picture(*shape))
    assert got.shape == shape and got.dtype == palto.float32


@every_augmentation
@given(
    values=st.lists(
        st.sampled_from([0.0, 1.0, 0.5, 1e-7, 1 - 2**-24, 0.1, 1 / 3]), min_size=24, max_size=24
    ),
    seed=st.integers(0, 2**31),
)
def test_images_stay_between_0_and_1(name, values, seed):
    x = np.reshape(np.array(values, np.float32), (2, 2, 2, 3))
    got = AUGMENTATIONS[name](x, generator=Generator(seed)).numpy()
    assert got.dtype == np.float32 and got.min() >= 0 and got.max() <= 1


@every_single_image
def test_images_do_not_touch_each_other(name):
    function, x = AUGMENTATIONS[name], picture(6, 5, 6, 3)
    changed = x.copy()
    changed[2] = 0.25
    first, second = (function(part, generator=Generator(6)).numpy() for part in (x, changed))
    others = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(first[others], second[others])


@every_single_image
def test_each_image_has_its_own_draw(name):
    x = np.repeat(picture(1, 5, 6, 3), 40, axis=0)
    results = AUGMENTATIONS[name](x).numpy().reshape(40, -1)
    distinct = len(np.unique(results, axis=0))
    assert distinct == 2 if "flip" in name else distinct > 15


def test_draws_of_neighbours_are_independent():
    x = np.broadcast_to(np.float32([0, 1]).reshape(1, 1, 2, 1), (10_000, 1, 2, 1))
    chosen = augment.random_horizontal_flip(x).numpy()[:, 0, 0, 0]
    for distance in (1, 2, 4):
        correlation = np.corrcoef(chosen[:-distance], chosen[distance:])[0, 1]
        assert abs(correlation) < 4 / math.sqrt(10_000)


IDENTITIES = {
    "crop": lambda x: augment.random_crop(x),
    "horizontal_flip": lambda x: augment.random_horizontal_flip(x, 0),
    "vertical_flip": lambda x: augment.random_vertical_flip(x, 0),
    "rotation": lambda x: augment.random_rotation(x, 0),
    "full_turn": lambda x: augment.random_rotation(x, (360, 360)),
    "affine": lambda x: augment.random_affine(x, 0, (0, 0), (1, 1), 0),
    "jitter": lambda x: augment.color_jitter(x),
    "jitter_of_ones": lambda x: augment.color_jitter(x, (1, 1), (1, 1), (1, 1)),
    "erasing": lambda x: augment.random_erasing(x, 0),
    "noise": lambda x: augment.gaussian_noise(x, 0),
    "mixup": lambda x: augment.mixup(x[:1], [0], 1.0, 1)[0],
    "cutmix": lambda x: augment.cutmix(x[:1], [0], 1.0, 1)[0],
    "normalize": lambda x: augment.normalize(x, 0, 1),
    "convert": augment.convert_image_dtype,
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_identities(name):
    x = picture(4, 5, 8, 3)
    got = IDENTITIES[name](x)
    np.testing.assert_array_equal(got, x[: len(got)])


@every_augmentation
def test_gradients_pass(name, check_gradients):
    x = 0.2 + 0.6 * picture(3, 3, 4, 3, dtype=np.float64)
    check_gradients(lambda x: AUGMENTATIONS[name](x, generator=Generator(8)), x, rtol=1e-5)


def test_gradients_pass_where_colours_are_grey():
    x = palto.asarray(np.full((1, 2, 2, 3), 0.5, np.float32), requires_grad=True)
    augment.color_jitter(x, 0.1, 0.1, 0.1, 0.1).sum().backward()
    assert np.isfinite(x.grad.numpy()).all()


def test_float64_stays(check_gradients):
    x = picture(3, 4, 5, 3, dtype=np.float64)
    for name, function in AUGMENTATIONS.items():
        assert function(x).dtype == palto.float64, name
    assert augment.normalize(x, 0.5, 0.5).dtype == palto.float64


def test_a_compiled_training_step():
    images, labels = picture(16, 8, 8, 1), np.arange(16) % 4

    def train(compiled):
        palto.manual_seed(0)
        model = nn.models.fully_connected(64, (8,), 4)
        optimizer = optim.SGD(model, lr=0.1)

        def step(images, labels):
            images = augment.random_crop(images, 2)
            images = augment.random_horizontal_flip(images)
            images = augment.random_rotation(images, 15)
            images = augment.random_erasing(images)
            images, labels = augment.mixup(images, labels, 0.2, 4)
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        step = palto.compile(step) if compiled else step
        return [float(step(images, labels)) for _ in range(4)]

    eager = train(compiled=False)
    assert len(set(eager)) == 4
    np.testing.assert_allclose(train(compiled=True), eager, rtol=1e-5)


def test_labels_are_checked_in_a_program():
    @palto.compile
    def step(images, labels):
        return augment.mixup(images, labels, 1.0, 3)[1]

    x = picture(2, 2, 2, 1)
    step(x, np.array([0, 2]))
    with pytest.raises(IndexError, match="label 3 is out of range: it must be from 0 to 2"):
        step(x, np.array([0, 3]))


# --- What is refused -----------------------------------------------------------------------------

X = picture(2, 4, 6, 3)
GREY = X[..., :1]
Y = np.arange(2)
REFUSED = {
    "bytes": (
        lambda: augment.random_crop((255 * X).astype(np.uint8), 1),
        TypeError,
        r"random_crop wants float32 images in \[0, 1\], got uint8\(2, 4, 6, 3\); make them "
        r"floats first: images = augment.convert_image_dtype\(images\)",
    ),
    "integers to convert": (
        lambda: augment.convert_image_dtype(np.ones((2, 4, 6, 3), np.int64)),
        TypeError,
        r"convert_image_dtype wants .* got int64\(2, 4, 6, 3\); cast them",
    ),
    "integers": (
        lambda: augment.random_rotation(np.ones((2, 4, 6, 3), np.int64), 1),
        TypeError,
        r"got int64\(2, 4, 6, 3\); cast them",
    ),
    "one image": (
        lambda: augment.random_horizontal_flip(X[0]),
        ValueError,
        r"got shape \(4, 6, 3\); add an axis: images\[None\]",
    ),
    "a vector": (lambda: augment.random_erasing(X[0, 0, 0]), ValueError, r"got shape \(3,\)"),
    "no pixels": (lambda: augment.random_crop(X[:, :0], 4), ValueError, "images with pixels"),
    "a tensor as parameter": (
        lambda: augment.random_rotation(X, palto.asarray(3.0)),
        TypeError,
        r"degrees as a pair \(lowest, highest\)",
    ),
    "a string": (lambda: augment.gaussian_noise(X, "0.1"), TypeError, "std as a Python number"),
    "nan": (lambda: augment.gaussian_noise(X, math.nan), ValueError, "of at least 0, got nan"),
    "negative padding": (lambda: augment.random_crop(X, -1), ValueError, "padding of at least 0"),
    "fractional padding": (lambda: augment.random_crop(X, 1.5), TypeError, "a whole number"),
    "a large crop": (
        lambda: augment.random_crop(X, 1, size=7),
        ValueError,
        r"cannot cut \(7, 7\) from images of \(4, 6\) with a border of 1; ask for",
    ),
    "three sizes": (lambda: augment.random_crop(X, size=(1, 2, 3)), ValueError, "size as"),
    "a crop of nothing": (lambda: augment.random_crop(X, size=0), ValueError, "size of at least 1"),
    "a mode": (
        lambda: augment.random_crop(X, 1, mode="wrap"),
        ValueError,
        "one of constant, edge, reflect, symmetric, got 'wrap'",
    ),
    "a probability": (
        lambda: augment.random_vertical_flip(X, 1.5),
        ValueError,
        "random_vertical_flip wants probability from 0 to 1, got 1.5",
    ),
    "a truth value": (lambda: augment.random_vertical_flip(X, True), TypeError, "got True"),
    "a negative angle": (lambda: augment.random_rotation(X, -3), ValueError, "degrees of at least"),
    "swapped": (lambda: augment.random_rotation(X, (3, 1)), ValueError, "swap the two"),
    "translate": (lambda: augment.random_affine(X, 0, (2, 0)), ValueError, "translate from 0 to 1"),
    "one translate": (lambda: augment.random_affine(X, 0, 0.1), TypeError, "two fractions"),
    "scale": (lambda: augment.random_affine(X, 0, None, (0, 1)), ValueError, "scale above 0"),
    "one scale": (lambda: augment.random_affine(X, 0, None, 0.5), TypeError, "scale as a pair"),
    "shear": (lambda: augment.random_affine(X, 0, shear=90), ValueError, "between -90 and 90"),
    "three shears": (lambda: augment.random_affine(X, shear=(1, 2, 3)), TypeError, "shear as a"),
    "grey hue": (
        lambda: augment.color_jitter(GREY, hue=0.1),
        ValueError,
        r"grey images, shape \(2, 4, 6, 1\), have no saturation or hue",
    ),
    "two channels": (lambda: augment.color_jitter(X[..., :2], 0.1), ValueError, "3 channels"),
    "hue": (lambda: augment.color_jitter(X, hue=0.6), ValueError, "hue from -0.5 to 0.5"),
    "brightness": (lambda: augment.color_jitter(X, -0.1), ValueError, "brightness of at least 0"),
    "erased areas": (lambda: augment.random_erasing(X, 1, (0, 2)), ValueError, "scale from 0 to 1"),
    "ratio": (lambda: augment.random_erasing(X, ratio=(0, 1)), ValueError, "ratio above 0"),
    "value": (lambda: augment.random_erasing(X, value="noise"), TypeError, "random"),
    "std": (lambda: augment.normalize(X, 0, 0), ValueError, "must be above 0, got 0"),
    "channels": (lambda: augment.normalize(X, [0, 0], 1), ValueError, "each of the 3 channels"),
    "no classes": (lambda: augment.mixup(X, Y), ValueError, "say how many classes"),
    "other classes": (
        lambda: augment.mixup(X, np.ones((2, 3), np.float32), 1.0, 4),
        ValueError,
        r"labels of shape \(2, 3\) and classes=4; leave classes out",
    ),
    "labels": (
        lambda: augment.cutmix(X, np.arange(3), 1.0, 3),
        ValueError,
        r"labels of whole numbers \(2,\), or soft labels \(2, classes\).*got int64\(3,\)",
    ),
    "a large label": (lambda: augment.cutmix(X, Y, 1.0, 1), IndexError, "label 1 is out of range"),
    "alpha": (lambda: augment.mixup(X, Y, 0, 2), ValueError, "alpha above 0, got 0; leave mixup"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        call()


# --- The picture ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 6, 9, 3), (1, 5, 5, 1)])
def test_picture_sheet(tmp_path, shape):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed: no pictures")
    before = palto.random.default_generator.state.numpy()
    paths = [tmp_path / name for name in ("a.png", "b.png")]
    for path in paths:
        augment.picture_sheet(picture(*shape), path, seed=3)
    content = paths[0].read_bytes()
    assert content.startswith(b"\x89PNG") and content == paths[1].read_bytes()
    np.testing.assert_array_equal(palto.random.default_generator.state, before)


def test_picture_sheet_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'palto\[plot\]'"):
        augment.picture_sheet(picture(2, 4, 4, 1), tmp_path / "sheet.png")


def test_picture_sheet_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="at least one image"):
        augment.picture_sheet(picture(0, 4, 4, 1), tmp_path / "sheet.png")


def test_the_documents_picture_is_small():
    assert 0 < (DOCS / "augmentation.png").stat().st_size < 150_000
