import numpy as np
import pytest

import palto
from palto import nn

F = nn.functional


def images(rng, shape=(4, 5, 3, 6)):
    return 2 + 3 * rng.normal(size=shape)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"affine": False},
        {"momentum": 0.3, "eps": 1e-3},
        {"momentum": None},
        {"track_running_stats": False},
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("BatchNorm1d", (7, 3)),
        ("BatchNorm1d", (2, 5, 3)),
        ("BatchNorm2d", (2, 3, 5, 3)),
        ("BatchNorm2d", (1, 1, 2, 3)),
    ],
)
def test_batch_norm_is_pytorchs(twins, torch, rng, kind, shape, options):
    """Twice in training, then in inference: output, gradients and running statistics."""
    ours, theirs = getattr(nn, kind)(3, **options), getattr(torch.nn, kind)(3, **options)
    for name, parameter in theirs.named_parameters():
        torch.nn.init.normal_(parameter, mean=float(name == "weight"))
    twins.layers(ours, theirs, images(rng, shape), images=True)
    twins.layers(ours, theirs, images(rng, shape), images=True)
    ours.eval(), theirs.eval()
    twins.layers(ours, theirs, images(rng, shape), images=True)
    if len(shape) > 2 or ours.track_running_stats:
        twins.layers(ours, theirs, images(rng, (1, *shape[1:])), images=True)


def test_batch_norm_traced_updates_the_statistics_as_eager(traced, rng):
    x = images(rng).astype(np.float32)
    eager, recorded = nn.BatchNorm2d(6), nn.BatchNorm2d(6)
    eager(palto.asarray(x))

    def run(x):
        y = recorded(x)
        return [y, recorded.running_mean, recorded.running_var, recorded.num_batches_tracked]

    (_, mean, var, count), graph = traced(run, x)
    np.testing.assert_array_equal(mean, eager.running_mean.array())
    np.testing.assert_array_equal(var, eager.running_var.array())
    assert count == 1
    assert recorded.running_mean.tolist() == [0] * 6  # the trace was thrown away
    names = [operation.params.get("name") for operation in graph.operations]
    assert names.count("batch_norm_training") == 1


@pytest.mark.parametrize("parts", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("kinds", [("f4", "f4"), ("f8", "f8"), ("f4", "f8"), ("f8", "f4")], ids=str)
@pytest.mark.parametrize("shape", [(7, 3), (2, 5, 3), (2, 3, 4, 3), (2, 2, 3, 2, 3)], ids=str)
def test_batch_norms_own_gradient_is_that_of_its_steps(rng, shape, kinds, parts):
    """In a program, where a formula gives it; at once it is derived step by step. Twice, too."""
    x = palto.asarray(images(rng, shape).astype(kinds[0]))
    given = [palto.asarray(rng.normal(size=3).astype(kinds[1])) for _ in parts]

    def loss(x, *given):
        y, mean, var = nn.normalization.batch_norm_training(
            x,
            *(dict(zip(parts, given, strict=True)).get(name) for name in ("weight", "bias")),
            1e-3,
        )
        return (y**3).sum() + (mean * var).sum()

    numbers = tuple(range(1 + len(given)))

    def first(*arguments):
        return palto.grad(loss, argnums=numbers)(*arguments)

    def second(*arguments):
        return palto.grad(lambda *a: sum((g * g).sum() for g in first(*a)), argnums=numbers)(
            *arguments
        )

    for function in (first, second):
        wanted, got = function(x, *given), palto.compile(function)(x, *given)
        for one, other in zip(got, wanted, strict=True):
            assert one.dtype == other.dtype
            one, other = one.numpy(), other.numpy()
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4 * np.abs(other).max())


def test_batch_norm_of_arrays_has_a_gradient(rng):
    """Weight and bias that are no tensors have none themselves."""
    x, weight = images(rng).astype(np.float32), rng.normal(size=6).astype(np.float32)

    def gradient(x):
        def loss(x):
            return (F.batch_norm(x, weight=weight, bias=weight, training=True) ** 3).sum()

        return palto.grad(loss)(x)

    wanted = gradient(palto.asarray(x)).numpy()
    np.testing.assert_allclose(palto.compile(gradient)(x), wanted, rtol=1e-3, atol=1e-4)


def test_batch_norm_gives_mean_0_and_variance_1(rng):
    y = nn.BatchNorm2d(6)(palto.asarray(images(rng, (8, 9, 9, 6)).astype(np.float32))).numpy()
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.var((0, 1, 2)), 1, atol=1e-4)


def test_running_statistics_reach_the_datas(rng):
    layer = nn.BatchNorm1d(2)
    for _ in range(200):
        layer(palto.asarray((5 + 3 * rng.normal(size=(64, 2))).astype(np.float32)))
    np.testing.assert_allclose(layer.running_mean.numpy(), 5, atol=0.4)
    np.testing.assert_allclose(layer.running_var.numpy(), 9, rtol=0.1)
    layer.reset_running_stats()
    assert layer.running_mean.tolist() == [0, 0]
    assert layer.running_var.tolist() == [1, 1]
    assert layer.num_batches_tracked.item() == 0


def test_a_refused_batch_changes_nothing():
    layer = nn.BatchNorm1d(2)
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(palto.zeros((1, 2)))
    assert layer.num_batches_tracked.item() == 0


def test_batch_norm_remembers_no_gradient():
    layer = nn.BatchNorm1d(2)
    layer(palto.asarray([[1.0, 2.0], [3.0, 5.0]], requires_grad=True))
    assert not layer.running_mean.read().requires_grad


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("normalized_shape", "shape"),
    [(6, (4, 6)), (6, (2, 3, 6)), ((3, 6), (2, 3, 6)), (6, (0, 6)), (6, (6,))],
)
def test_layer_norm_is_pytorchs(twins, torch, rng, normalized_shape, shape, bias):
    ours = nn.LayerNorm(normalized_shape, bias=bias)
    theirs = torch.nn.LayerNorm(normalized_shape, bias=bias)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    twins.layers(ours, theirs, 5 + rng.normal(size=shape))
    plain = nn.LayerNorm(normalized_shape, elementwise_affine=False)
    twins.layers(
        plain,
        torch.nn.LayerNorm(normalized_shape, elementwise_affine=False),
        rng.normal(size=shape),
    )


@pytest.mark.parametrize("eps", [None, 1e-3])
@pytest.mark.parametrize("affine", [True, False])
def test_rms_norm_is_pytorchs(twins, torch, rng, eps, affine):
    ours = nn.RMSNorm(6, eps=eps, elementwise_affine=affine)
    theirs = torch.nn.RMSNorm(6, eps=eps, elementwise_affine=affine)
    twins.layers(ours, theirs, rng.normal(size=(2, 3, 6)))


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (1, 4, 6), (3, 6)])
def test_group_norm_is_pytorchs(twins, torch, rng, groups, affine, shape):
    ours, theirs = (n.GroupNorm(groups, 6, affine=affine) for n in (nn, torch.nn))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    twins.layers(ours, theirs, images(rng, shape), images=True)


@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_pytorchs(twins, torch, rng, affine):
    ours, theirs = (n.InstanceNorm2d(6, affine=affine) for n in (nn, torch.nn))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    twins.layers(ours, theirs, images(rng), images=True)
    twins.layers(ours, theirs, images(rng, (1, 1, 3, 6)), images=True)


def test_instance_norm_is_group_norm_of_one_channel(rng):
    x = palto.asarray(images(rng))
    np.testing.assert_allclose(
        F.instance_norm(x).numpy(), F.group_norm(x, 6).numpy(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("beta", [0.75, 0.6])
def test_local_response_norm_is_pytorchs(twins, torch, rng, size, beta):
    options = {"alpha": 0.1, "beta": beta, "k": 2.0}
    ours = nn.LocalResponseNorm(size, **options)
    theirs = torch.nn.LocalResponseNorm(size, **options)
    twins.layers(ours, theirs, images(rng), images=True)


def test_local_response_norm_is_its_formula(rng):
    x = rng.normal(size=(2, 3, 7))
    y = F.local_response_norm(palto.asarray(x), 5, alpha=0.5, beta=0.75, k=2.0).numpy()
    for c in range(7):
        neighbours = x[..., max(0, c - 2) : c + 3]
        expected = x[..., c] / (2 + 0.5 / 5 * (neighbours**2).sum(-1)) ** 0.75
        np.testing.assert_allclose(y[..., c], expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (6, 4)),
        (nn.LayerNorm(4), (6, 4)),
        (nn.GroupNorm(2, 4), (2, 3, 4)),
        (nn.InstanceNorm2d(4), (2, 3, 3, 4)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_normalisation_does_not_feel_shift_and_scale(rng, layer, shape):
    x = rng.normal(size=shape).astype(np.float32)
    y, z = layer(palto.asarray(x)), layer(palto.asarray(4 * x + 8))
    np.testing.assert_allclose(y.numpy(), z.numpy(), atol=1e-4)


@pytest.mark.parametrize("constant", [0.0, 1e-20, 1e15])
def test_constant_input(constant):
    """The variance is 0; so is the output, and gradients are finite."""
    for layer, shape in ((nn.BatchNorm1d(4), (8, 4)), (nn.LayerNorm(4), (8, 4))):
        x = palto.full(shape, constant).detach().requires_grad_()
        y = layer(x)
        y.sum().backward()
        assert np.isfinite(y.numpy()).all()
        assert np.isfinite(x.grad.numpy()).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nn.BatchNorm1d(3)(palto.zeros((1, 3))),
            r"more than 1 value .* got shape \(1, 3\)",
        ),
        (lambda: nn.BatchNorm2d(3)(palto.zeros((1, 1, 1, 3))), r"or call model.eval\(\)"),
        (
            lambda: nn.BatchNorm2d(3)(palto.zeros((2, 3, 4, 4))),
            r"\(N, ..., 3\), got \(2, 3, 4, 4\)",
        ),
        (lambda: nn.BatchNorm2d(3)(palto.zeros((4, 3))), r"\(N, H, W, C\), got \(4, 3\)"),
        (lambda: nn.BatchNorm1d(3)(palto.zeros((2, 4, 4, 3))), r"\(N, C\) or \(N, L, C\), got"),
        (lambda: F.batch_norm(palto.zeros((4, 3))), "wants running_mean and running_var"),
        (lambda: nn.LayerNorm(3)(palto.zeros((3, 4))), r"\(..., 3\), got \(3, 4\)"),
        (lambda: nn.RMSNorm((2, 3))(palto.zeros((3, 3))), r"\(..., 2, 3\), got \(3, 3\)"),
        (lambda: nn.GroupNorm(2, 3), "2 groups do not divide 3 channels"),
        (lambda: nn.GroupNorm(2, 4)(palto.zeros((2, 6))), r"\(N, ..., 4\), got \(2, 6\)"),
        (lambda: F.group_norm(palto.zeros((2, 5)), 2), "a multiple of 2 channels"),
        (lambda: nn.InstanceNorm2d(3)(palto.zeros((2, 1, 1, 3))), "more than 1 pixel"),
        (lambda: nn.LocalResponseNorm(0)(palto.zeros((2, 3))), "got size 0"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_looks():
    assert repr(nn.BatchNorm2d(8)) == "BatchNorm2d(8)"
    assert repr(nn.BatchNorm1d(8, eps=0.1, momentum=None, affine=False)) == (
        "BatchNorm1d(8, eps=0.1, momentum=None, affine=False)"
    )
    assert repr(nn.LayerNorm(8)) == "LayerNorm(8)"
    assert repr(nn.LayerNorm((2, 3))) == "LayerNorm((2, 3))"
    assert repr(nn.RMSNorm(8)) == "RMSNorm(8)"
    assert repr(nn.GroupNorm(2, 8)) == "GroupNorm(2, 8)"
    assert repr(nn.InstanceNorm2d(8, affine=True)) == "InstanceNorm2d(8, affine=True)"
    assert repr(nn.LocalResponseNorm(5)) == "LocalResponseNorm(5, alpha=0.0001, beta=0.75, k=1.0)"
