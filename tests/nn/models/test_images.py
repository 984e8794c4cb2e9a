"""Models of images: shapes, parameters, PyTorch's numbers, modes, and that they learn."""

from itertools import pairwise

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.nn import models

from .conftest import compare, count, images

SMALL = {
    "logistic_regression": (lambda: models.logistic_regression(784, 10), (28, 28, 1)),
    "fully_connected": (lambda: models.fully_connected(784, (128,), 10), (28, 28, 1)),
    "lenet": (lambda: models.lenet(10), (28, 28, 1)),
    "alexnet": (lambda: models.alexnet(10, (28, 28, 1)), (28, 28, 1)),
    "resnet": (lambda: models.resnet(8, 10, (16, 16, 3)), (16, 16, 3)),
    "fast_resnet": (lambda: models.fast_resnet(10, (16, 16, 3)), (16, 16, 3)),
}

# --- Parameters and shapes -----------------------------------------------------------------------


def linear(*widths):
    return sum(n * m + m for n, m in pairwise(widths))


def conv(kernel, channels, out, *, groups=1, bias=True):
    return kernel**2 * (channels // groups) * out + out * bias


def small_alexnet(channels, pixels, classes):
    return (
        conv(5, channels, 32)
        + conv(5, 32, 64, groups=2)
        + conv(3, 64, 96)
        + conv(3, 96, 96, groups=2)
        + conv(3, 96, 64, groups=2)
        + linear(pixels * 64, 256, 256, classes)
    )


def residual(stem, channels, widths, blocks, classes, *, projection):
    total = conv(stem, channels, widths[0], bias=False) + 2 * widths[0]
    before = widths[0]
    for width, number in zip(widths, blocks, strict=True):
        for _ in range(number):
            total += conv(3, before, width, bias=False) + conv(3, width, width, bias=False)
            total += 4 * width
            if projection and before != width:
                total += conv(1, before, width, bias=False) + 2 * width
            before = width
    return total + linear(before, classes)


@pytest.mark.parametrize(
    ("make", "image", "classes", "wanted", "known"),
    [
        (lambda: models.logistic_regression(784, 10), (28, 28, 1), 10, linear(784, 10), 7_850),
        (lambda: models.fully_connected(784), (28, 28, 1), 10, linear(784, 128, 10), 101_770),
        (
            lambda: models.fully_connected(12, (7, 5), 3, activation=nn.Tanh),
            (12,), 3, linear(12, 7, 5, 3), 149,
        ),
        (
            models.lenet, (28, 28, 1), 10,
            conv(5, 1, 6) + conv(5, 6, 16) + linear(400, 120, 84, 10), 61_706,
        ),
        (
            lambda: models.lenet(7, (32, 32, 3)), (32, 32, 3), 7,
            conv(5, 3, 6) + conv(5, 6, 16) + linear(400, 120, 84, 7), 61_751,
        ),
        (
            lambda: models.alexnet(10, (28, 28, 1)), (28, 28, 1), 10,
            small_alexnet(1, 2 * 2, 10), 285_322,
        ),
        (
            lambda: models.alexnet(10, (32, 32, 3)), (32, 32, 3), 10,
            small_alexnet(3, 3 * 3, 10), 368_842,
        ),
        (
            lambda: models.alexnet(5, (64, 48, 3)), (64, 48, 3), 5,
            small_alexnet(3, 7 * 5, 5), 793_541,
        ),
        (
            models.resnet, (32, 32, 3), 10,
            residual(3, 3, [16, 32, 64], [3, 3, 3], 10, projection=False), 269_722,
        ),
        (
            lambda: models.resnet(32, 10, (28, 28, 3)), (28, 28, 3), 10,
            residual(3, 3, [16, 32, 64], [5, 5, 5], 10, projection=False), 464_154,
        ),
        (
            lambda: models.resnet(18, 1000, (96, 80, 3)), (96, 80, 3), 1000,
            residual(7, 3, [64, 128, 256, 512], [2, 2, 2, 2], 1000, projection=True), 11_689_512,
        ),
        (
            models.fast_resnet, (28, 28, 1), 10,
            sum(conv(3, n, m, bias=False) + 2 * m for n, m in pairwise([1, 32, 32, 64, 128, 128]))
            + linear(128, 10), 251_178,
        ),
        (
            lambda: models.fast_resnet(5, (64, 48, 3)), (64, 48, 3), 5,
            sum(conv(3, n, m, bias=False) + 2 * m
                for n, m in pairwise([3, 32, 32, 32, 64, 128, 128])) + linear(128, 5), 260_389,
        ),
    ],
    ids=[
        "logistic_regression", "fully_connected", "fully_connected-deep", "lenet-28", "lenet-32",
        "alexnet-28", "alexnet-32", "alexnet-64x48", "resnet20", "resnet32", "resnet18",
        "fast_resnet", "fast_resnet-64x48",
    ],
)  # fmt: skip
def test_shapes_and_parameters(make, image, classes, wanted, known):
    model = make().eval()
    assert count(model) == wanted == known
    with palto.no_grad():
        assert model(images(2, *image)).shape == (2, classes)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: models.lenet(10, (30, 30, 1)), "28 x 28 or 32 x 32 pixels, got 30 x 30"),
        (lambda: models.alexnet(10, (100, 100, 3)), "28 to 64 pixels a side, got 100 x 100"),
        (lambda: models.alexnet(10, (224, 64, 3)), "got 224 x 64; resize them"),
        (lambda: models.alexnet(10, (27, 32, 3)), "got 27 x 32"),
        (lambda: models.resnet(18, 10, (32, 32, 3)), "another 6n \\+ 2, got 18; 18 and 34 are for"),
        (lambda: models.resnet(20, 10, (224, 224, 3)), "has depth 18 or 34, got 20"),
        (lambda: models.fast_resnet(10, (7, 32, 3)), "from 8 x 8 pixels up, got 7 x 32"),
        (lambda: models.resnet(20, 10, (4, 32, 3)), "from 8 x 8 pixels up, got 4 x 32"),
    ],
)
def test_sizes_that_do_not_exist(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", SMALL)
def test_summary(name):
    make, image = SMALL[name]
    model = make()
    text = str(model.summary((2, *image)))
    assert f"{count(model):,}" in text
    assert "(2, 10)" in text


def test_resnet_halves_the_image_twice_or_five_times():
    strides = [block.stride for block in models.resnet(20).blocks]
    assert strides == [1, 1, 1, 2, 1, 1, 2, 1, 1]
    model = models.resnet(18, 10, (96, 96, 3))
    assert [block.stride for block in model.blocks] == [1, 1, 2, 1, 2, 1, 2, 1]
    assert (model.conv.stride, model.pool.stride) == ((2, 2), (2, 2))


def test_channels_first_images_are_refused():
    with pytest.raises(ValueError, match="channels-last"):
        models.resnet(8, 10, (32, 32, 3))(images(2, 3, 32, 32))


# --- PyTorch's numbers ---------------------------------------------------------------------------


def flat(z):
    """Rows of channels-last images, as the models here see them."""
    return z.permute(0, 2, 3, 1).flatten(1)


def lenet_in(torch):
    f = torch.nn.functional

    def forward(w, z):
        padding = 2 if z.shape[-1] == 28 else 0
        z = torch.tanh(f.conv2d(z, w["conv1.weight"], w["conv1.bias"], padding=padding))
        z = f.avg_pool2d(z, 2)
        z = f.avg_pool2d(torch.tanh(f.conv2d(z, w["conv2.weight"], w["conv2.bias"])), 2)
        z = torch.tanh(f.linear(flat(z), w["fc1.weight"], w["fc1.bias"]))
        z = torch.tanh(f.linear(z, w["fc2.weight"], w["fc2.bias"]))
        return f.linear(z, w["fc3.weight"], w["fc3.bias"])

    return forward


def alexnet_in(torch, *, stride, padding):
    f = torch.nn.functional

    def forward(w, z):
        def convolution(number, z, **options):
            at = f"conv{number}"
            return f.relu(f.conv2d(z, w[f"{at}.weight"], w[f"{at}.bias"], **options))

        def normalised(z):
            return f.max_pool2d(f.local_response_norm(z, 5, alpha=5e-4, beta=0.75, k=2.0), 3, 2)

        def dense(number, z):
            return f.linear(z, w[f"fc{number}.weight"], w[f"fc{number}.bias"])

        z = normalised(convolution(1, z, stride=stride, padding=padding))
        z = normalised(convolution(2, z, padding=2, groups=2))
        z = convolution(3, z, padding=1)
        z = convolution(4, z, padding=1, groups=2)
        z = f.max_pool2d(convolution(5, z, padding=1, groups=2), 3, 2)
        z = f.relu(dense(2, f.relu(dense(1, flat(z)))))
        return dense(3, z)

    return forward


def norm_in(torch, model, w):
    def norm(at, z):
        return torch.nn.functional.batch_norm(
            z, w[f"{at}.running_mean"], w[f"{at}.running_var"], w[f"{at}.weight"],
            w[f"{at}.bias"], training=model.training,
        )  # fmt: skip

    return norm


def fast_resnet_in(torch, model):
    f = torch.nn.functional

    def forward(w, z):
        norm = norm_in(torch, model, w)
        for number in range(len(model.features.layers)):
            at = f"features.layers.{number}"
            y = f.conv2d(z, w[f"{at}.conv.weight"], padding=1)
            if number in (1, 2):
                y = f.max_pool2d(y, 2)
            y = f.relu(norm(f"{at}.norm", y))
            z = z + y if number == 4 else y
        return f.linear(z.amax((2, 3)), w["fc.weight"], w["fc.bias"])

    return forward


def resnet_in(torch, model):
    f = torch.nn.functional

    def forward(w, z):
        norm = norm_in(torch, model, w)
        stride, padding = (2, 3) if model.pool else (1, 1)
        z = f.relu(norm("norm", f.conv2d(z, w["conv.weight"], stride=stride, padding=padding)))
        if model.pool:
            z = f.max_pool2d(z, 3, 2, 1)
        for number, block in enumerate(model.blocks):
            at, stride = f"blocks.{number}", block.stride
            kernel = w[f"{at}.conv1.weight"]
            y = f.relu(norm(f"{at}.norm1", f.conv2d(z, kernel, stride=stride, padding=1)))
            y = norm(f"{at}.norm2", f.conv2d(y, w[f"{at}.conv2.weight"], padding=1))
            if f"{at}.shortcut.layers.0.weight" in w:
                kernel = w[f"{at}.shortcut.layers.0.weight"]
                z = norm(f"{at}.shortcut.layers.1", f.conv2d(z, kernel, stride=stride))
            elif stride == 2:
                z = z[:, :, ::2, ::2]
                z = torch.cat([z, torch.zeros_like(z)], dim=1)
            z = f.relu(y + z)
        return f.linear(z.mean((2, 3)), w["fc.weight"], w["fc.bias"])

    return forward


@pytest.mark.parametrize("image", [(28, 28, 1), (32, 32, 2)])
def test_lenet_as_pytorch(torch, image):
    model = models.lenet(10, image).to("float64")
    compare(torch, model, lenet_in(torch), images(3, *image, dtype=np.float64))


@pytest.mark.parametrize("image", [(28, 28, 1), (45, 33, 3)])
def test_small_alexnet_as_pytorch(torch, image):
    model = models.alexnet(7, image).to("float64").eval()
    forward = alexnet_in(torch, stride=1, padding=2)
    compare(torch, model, forward, images(2, *image, dtype=np.float64))


def test_the_original_alexnet_as_pytorch(torch, monkeypatch):
    # 61 million numbers of the same kind, sooner.
    rng = np.random.default_rng(2)
    monkeypatch.setattr(nn.init, "uniform_", lambda cell, *_: cell)
    monkeypatch.setattr(
        nn.init,
        "normal_",
        lambda cell, mean, std, **_: cell.assign(rng.standard_normal(cell.shape, np.float32) * std),
    )
    model = models.alexnet(1000).eval()
    assert count(model) == 60_965_224
    assert count(model) == (
        conv(11, 3, 96) + conv(5, 96, 256, groups=2) + conv(3, 256, 384)
        + conv(3, 384, 384, groups=2) + conv(3, 384, 256, groups=2)
        + linear(6 * 6 * 256, 4096, 4096, 1000)
    )  # fmt: skip
    x = images(1, 224, 224, 3)
    assert model.conv1(x).shape == (1, 55, 55, 96)
    compare(torch, model, alexnet_in(torch, stride=4, padding=2), x, rtol=1e-4)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("depth", "image"), [(14, (16, 16, 3)), (18, (72, 66, 3))])
def test_resnet_as_pytorch(torch, depth, image, training):
    model = models.resnet(depth, 6, image).to("float64").train(training)
    x = images(3, *image, dtype=np.float64)
    weights = compare(torch, model, resnet_in(torch, model), x)
    for name, buffer in model.named_buffers():
        if "num_batches" not in name:
            np.testing.assert_allclose(buffer.numpy(), weights[name].numpy(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("training", [True, False])
def test_fast_resnet_as_pytorch(torch, training):
    model = models.fast_resnet(6, (12, 16, 2)).to("float64").train(training)
    compare(torch, model, fast_resnet_in(torch, model), images(3, 12, 16, 2, dtype=np.float64))


def test_resnet_starts_as_the_paper_says():
    model = models.resnet(20)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            kh, kw, _, out = module.weight.shape
            assert module.weight.numpy().std() == pytest.approx(
                (2 / (kh * kw * out)) ** 0.5, rel=0.15
            ), name
            assert module.bias is None


# --- Modes, learning, programs -------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_training_and_inference(name):
    make, image = SMALL[name]
    model, x = make(), images(4, *image)
    statistics = {n: b.numpy() for n, b in model.named_buffers()}
    with palto.no_grad():
        first, second = model(x).numpy(), model(x).numpy()
        model.eval()
        third, fourth = model(x).numpy(), model(x).numpy()
    np.testing.assert_array_equal(third, fourth)
    assert np.array_equal(first, second) == (name != "alexnet")  # dropout
    assert np.array_equal(first, third) == (name not in ("alexnet", "resnet", "fast_resnet"))
    changed = [n for n, b in model.named_buffers() if not np.array_equal(b.numpy(), statistics[n])]
    assert len(changed) == len(statistics)


def squares(height, width, channels):
    """Ten black images, each with a white field at another place."""
    x = np.zeros((10, height, width, channels), np.float32)
    for i in range(10):
        row, column = divmod(i, 4)
        rows = slice(row * height // 3, (row + 1) * height // 3)
        x[i, rows, column * width // 4 : (column + 1) * width // 4] = 1
    return palto.asarray(x)


@pytest.mark.parametrize("name", SMALL)
def test_a_few_images_are_learnt(name):
    make, image = SMALL[name]
    model, x, labels = make(), squares(*image), palto.arange(10)
    optimizer = optim.Adam(model, 1e-3 if name == "alexnet" else 3e-3)

    def loss():
        return nn.functional.cross_entropy(model(x), labels)

    for _ in range(15):
        loss().backward()
        optimizer.step()
    # Fifteen steps are too few for running statistics to follow, so the batch's own are used.
    model.train(name in ("resnet", "fast_resnet"))
    assert loss().item() < 0.6 * np.log(10)


@pytest.mark.parametrize("name", SMALL)
def test_a_compiled_step_is_the_eager_one(name):
    make, image = SMALL[name]
    results = []
    for compiled in (False, True):
        palto.manual_seed(5)
        model = make()
        # A large eps: else Adam makes steps of rounding errors where gradients should be zero.
        optimizer = optim.Adam(model, 1e-3, eps=1e-4)

        def step(x, labels, model=model, optimizer=optimizer):
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            return loss

        run = palto.compile(step) if compiled else step
        losses = [run(images(4, *image, seed=i), palto.arange(4)).item() for i in range(3)]
        results.append((losses, {n: v.numpy() for n, v in model.state_dict().items()}))
    np.testing.assert_allclose(results[0][0], results[1][0], rtol=1e-4)
    for key, value in results[0][1].items():
        np.testing.assert_allclose(results[1][1][key], value, rtol=1e-3, atol=2e-5, err_msg=key)
