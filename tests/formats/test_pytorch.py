"""Weights from PyTorch and back: the same outputs, the same bits."""

import numpy as np
import pytest

import palto
from palto import nn
from palto.formats import pytorch, safetensors

rng = np.random.default_rng(0)


def images(*shape):
    return rng.normal(size=shape).astype(np.float32)


def assert_twins(torch, ours, theirs, image, tmp_path, **options):
    """Ours gives what theirs does once it has its weights, and theirs once it has ours."""
    from safetensors.torch import load_file, save_file

    theirs.eval()
    ours.eval()
    for parameter in (*theirs.parameters(), *theirs.buffers()):
        if parameter.is_floating_point():
            parameter.data = torch.rand_like(parameter) * 0.4 + (
                0.3 if parameter.ndim < 2 else -0.2
            )
    x = images(2, *image)
    order = (0, len(image), *range(1, len(image)))

    def assert_equal():
        with torch.no_grad():
            wanted = theirs(torch.tensor(x.transpose(order))).numpy()
        got = np.asarray(ours(x))
        if got.ndim > 2:
            got = got.transpose(order)
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4 * np.abs(wanted).max())

    path = tmp_path / "theirs.safetensors"
    save_file(theirs.state_dict(), path)
    report = pytorch.load(ours, path, image=image, **options)
    assert report.is_complete and len(report.loaded) == len(theirs.state_dict())
    assert_equal()

    back = tmp_path / "back.safetensors"
    pytorch.save(back, ours, image=image, **options)
    again, before = load_file(back), theirs.state_dict()
    assert set(again) == set(before)
    for name, tensor in before.items():
        assert again[name].dtype == tensor.dtype and torch.equal(again[name], tensor), name

    for _, cell in ours.named_parameters():
        cell.assign(images(*cell.shape) * 0.1)
    pytorch.save(back, ours, image=image, **options)
    theirs.load_state_dict(load_file(back))
    assert_equal()


def test_sequential(torch, tmp_path):
    t = torch.nn
    theirs = t.Sequential(
        t.Conv2d(3, 8, 3, groups=1), t.BatchNorm2d(8), t.ReLU(), t.Conv2d(8, 12, 3, groups=4),
        t.MaxPool2d(2), t.Flatten(), t.ELU(), t.Linear(12 * 9, 7), t.Tanh(),
        t.Sequential(t.Linear(7, 5), t.LayerNorm(5), t.Linear(5, 2)),
    )  # fmt: skip
    ours = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=4),
        nn.MaxPool2d(2), nn.Flatten(), nn.ELU(), nn.Linear(12 * 9, 7), nn.Tanh(),
        nn.Sequential(nn.Linear(7, 5), nn.LayerNorm(5), nn.Linear(5, 2)),
    )  # fmt: skip
    assert_twins(torch, ours, theirs, (11, 10, 3), tmp_path)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_convolutions(torch, tmp_path, dims, groups):
    def made(library):
        conv = getattr(library, f"Conv{dims}d")(4, 6, 3, padding=1, groups=groups)
        back = getattr(library, f"ConvTranspose{dims}d")(6, 2, 3, stride=2, groups=groups)
        return library.Sequential(conv, back)

    assert_twins(torch, made(nn), made(torch.nn), (*(5, 4, 3)[:dims], 4), tmp_path)


def test_a_flattened_colour_image(torch, tmp_path):
    ours = nn.models.fully_connected(48, (9,), 3)
    t = torch.nn
    theirs = t.Sequential(t.Flatten(), t.Linear(48, 9), t.ReLU(), t.Linear(9, 3))
    assert_twins(torch, ours, theirs, (4, 4, 3), tmp_path)


def torchvision_resnet(torch, counts, classes):
    """The network that torchvision calls resnet18 or resnet34, under its names."""
    t = torch.nn

    class Block(t.Module):
        def __init__(self, channels, width, stride):
            super().__init__()
            self.conv1 = t.Conv2d(channels, width, 3, stride, 1, bias=False)
            self.bn1 = t.BatchNorm2d(width)
            self.conv2 = t.Conv2d(width, width, 3, 1, 1, bias=False)
            self.bn2 = t.BatchNorm2d(width)
            self.downsample = None
            if stride != 1 or channels != width:
                self.downsample = t.Sequential(
                    t.Conv2d(channels, width, 1, stride, bias=False), t.BatchNorm2d(width)
                )

        def forward(self, x):
            straight = x if self.downsample is None else self.downsample(x)
            y = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(y)) + straight)

    class ResNet(t.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = t.Conv2d(3, 64, 7, 2, 3, bias=False)
            self.bn1 = t.BatchNorm2d(64)
            self.maxpool = t.MaxPool2d(3, 2, 1)
            channels = 64
            for stage, (width, count) in enumerate(zip([64, 128, 256, 512], counts, strict=True)):
                blocks = [
                    Block(channels if not i else width, width, 2 if stage and not i else 1)
                    for i in range(count)
                ]
                setattr(self, f"layer{stage + 1}", t.Sequential(*blocks))
                channels = width
            self.fc = t.Linear(512, classes)

        def forward(self, x):
            x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return self.fc(x.mean((2, 3)))

    return ResNet()


def test_resnet18_is_torchvisions(torch, tmp_path):
    ours = nn.models.resnet(18, 5, (72, 72, 3))
    assert_twins(torch, ours, torchvision_resnet(torch, [2, 2, 2, 2], 5), (72, 72, 3), tmp_path)


def test_torchvisions_alexnet_of_the_same_parts(torch, tmp_path):
    """One column, no normalisation: another network than the paper's; here with fewer channels."""

    def parts(layers, last):
        conv, relu, pool = layers.Conv2d, layers.ReLU, layers.MaxPool2d
        features = layers.Sequential(
            conv(3, 6, 11, stride=4, padding=2), relu(), pool(3, 2),
            conv(6, 9, 5, padding=2), relu(), pool(3, 2),
            conv(9, 8, 3, padding=1), relu(), conv(8, 7, 3, padding=1), relu(),
            conv(7, 5, 3, padding=1), relu(), pool(3, 2),
        )  # fmt: skip
        classifier = layers.Sequential(
            layers.Dropout(), layers.Linear(5 * 6 * 6, 16), relu(),
            layers.Dropout(), layers.Linear(16, 12), relu(), layers.Linear(12, last),
        )  # fmt: skip
        return features, layers.AdaptiveAvgPool2d((6, 6)), classifier

    def network(layers, flatten):
        class AlexNet(layers.Module):
            def __init__(self):
                super().__init__()
                self.features, self.avgpool, self.classifier = parts(layers, 10)

            def forward(self, x):
                return self.classifier(flatten(self.avgpool(self.features(x))))

        return AlexNet()

    ours = network(nn, nn.Flatten())
    theirs = network(torch.nn, lambda x: torch.flatten(x, 1))
    assert "features.10.weight" in theirs.state_dict()
    assert_twins(torch, ours, theirs, (224, 224, 3), tmp_path)
    with pytest.raises(ValueError, match=r"do not fit AlexNet: .*missing: conv1\.weight.*features"):
        pytorch.load(nn.models.alexnet(10, (28, 28, 1)), theirs.state_dict())


def test_resnet34_has_torchvisions_names(torch):
    ours = nn.models.resnet(34, 4, (72, 72, 3))
    theirs = torchvision_resnet(torch, [3, 4, 6, 3], 4).state_dict()
    state = pytorch.state_dict(ours)
    assert {name: tuple(x.shape) for name, x in theirs.items()} == {
        name: x.shape for name, x in state.items()
    }


@pytest.mark.parametrize("name", ["lenet", "alexnet", "gpt", "fast_resnet"])
def test_every_model_comes_back_to_the_bit(name, tmp_path):
    image = (28, 28, 1)
    made = {
        "lenet": lambda: nn.models.lenet(10),
        "alexnet": lambda: nn.models.alexnet(10, image),
        "gpt": lambda: nn.models.gpt(32, 8, width=16, heads=2, layers=2),
        "fast_resnet": lambda: nn.models.fast_resnet(10, image=image),
    }[name]
    palto.manual_seed(1)
    first, second = made().train(), made()
    options = {} if name == "gpt" else {"image": image}
    pytorch.save(tmp_path / "w.safetensors", first, **options)
    assert first.training and all(module.training for module in first.modules())
    pytorch.load(second, tmp_path / "w.safetensors", **options)
    for key, value in first.state_dict().items():
        np.testing.assert_array_equal(second.state_dict()[key], value)
    if name == "alexnet":
        written = safetensors.load(tmp_path / "w.safetensors")
        assert written["conv1.weight"].shape == (32, 1, 5, 5)
        assert not np.array_equal(written["fc1.weight"], first.state_dict()["fc1.weight"])
        np.testing.assert_array_equal(written["fc2.weight"], first.state_dict()["fc2.weight"])


def test_what_does_not_match_is_reported():
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = model.state_dict()
    state = pytorch.state_dict(model)
    assert set(state) == {
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
        "1.num_batches_tracked",
    }  # fmt: skip
    del state["1.num_batches_tracked"]  # old files have none
    assert pytorch.load(model, state).is_complete
    changed = {**state, "extra": np.zeros(3), "0.bias": np.ones(5, np.float32)}
    changed["1.bias"] = np.full(2, 7, np.float32)
    del changed["0.weight"]
    message = (
        r"do not fit Sequential: 4 tensors loaded; missing: 0\.weight; unexpected: extra; "
        r"0\.bias: the model wants \(2,\), the file has \(5,\)"
    )
    with pytest.raises(ValueError, match=message):
        pytorch.load(model, changed)
    for key, value in before.items():
        np.testing.assert_array_equal(model.state_dict()[key], value)
    report = pytorch.load(model, changed, strict=False)
    assert report.missing == ("0.weight",) and report.unexpected == ("extra",)
    assert report.mismatched == (("0.bias", (2,), (5,)),)
    np.testing.assert_array_equal(model.state_dict()["layers.1.bias"], [7, 7])

    other = {f"net.{name}": value for name, value in state.items()}
    names = {name: f"net.{name.removeprefix('layers.')}" for name in before}
    assert pytorch.load(model, other, names=names).is_complete
    assert pytorch.load(model, other, names=names.__getitem__).is_complete
