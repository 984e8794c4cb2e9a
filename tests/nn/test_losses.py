import numpy as np
import pytest

import palto
from palto import nn

F = nn.functional
REDUCTIONS = ["mean", "sum", "none"]


def distributions(rng, shape):
    values = rng.random(shape)
    return values / values.sum(-1, keepdims=True)


def classes_second(x):
    """PyTorch wants the classes on axis 1."""
    return x.movedim(-1, 1) if x.ndim > 1 else x


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore", [None, 2, -100])
def test_cross_entropy_of_labels_is_pytorchs(
    twins, torch, rng, reduction, smoothing, weighted, ignore
):
    weight = rng.random(5) if weighted else None
    ours = nn.CrossEntropyLoss(
        weight=weight, ignore_index=ignore, label_smoothing=smoothing, reduction=reduction
    )
    theirs = torch.nn.CrossEntropyLoss(
        None if weight is None else torch.tensor(weight),
        ignore_index=-7 if ignore is None else ignore,
        label_smoothing=smoothing,
        reduction=reduction,
    )
    for shape in [(8,), (1,), (2, 3, 4), ()]:
        labels = rng.integers(0, 5, shape)
        if shape and ignore is not None:
            labels.ravel()[1:3] = ignore
        twins.functions(
            ours,
            lambda x, t: theirs(classes_second(x), t),
            3 * rng.normal(size=(*shape, 5)),
            labels,
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_of_probabilities_is_pytorchs(
    twins, torch, rng, reduction, smoothing, weighted
):
    weight = rng.random(5) if weighted else None
    ours = nn.CrossEntropyLoss(weight=weight, label_smoothing=smoothing, reduction=reduction)
    theirs = torch.nn.CrossEntropyLoss(
        None if weight is None else torch.tensor(weight),
        label_smoothing=smoothing,
        reduction=reduction,
    )
    for shape in [(8, 5), (1, 5), (2, 3, 5), (5,)]:
        twins.functions(
            ours,
            lambda x, t: theirs(classes_second(x), classes_second(t)),
            3 * rng.normal(size=shape),
            distributions(rng, shape),
        )


def test_cross_entropy_is_the_lectures_formula(rng):
    """-sum of c_k log a_k with a = softmax."""
    x, c = rng.normal(size=(4, 5)), distributions(rng, (4, 5))
    a = np.exp(x) / np.exp(x).sum(-1, keepdims=True)
    loss = F.cross_entropy(palto.asarray(x), palto.asarray(c)).item()
    assert loss == pytest.approx(-(c * np.log(a)).sum(-1).mean(), rel=1e-12)


def test_cross_entropy_does_not_feel_a_shift_and_its_gradient_is_a_minus_c(rng):
    x, labels = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    leaf = palto.asarray(x, requires_grad=True)
    loss = F.cross_entropy(leaf, palto.asarray(labels), reduction="sum")
    moved = F.cross_entropy(
        palto.asarray(x + 1e3 * rng.normal(size=(6, 1))), palto.asarray(labels), reduction="sum"
    )
    assert loss.item() == pytest.approx(moved.item(), rel=1e-10)
    loss.backward()
    expected = F.softmax(leaf).numpy() - np.eye(5)[labels]
    np.testing.assert_allclose(leaf.grad.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1e3, 1e4, 1e30, 3e38])
def test_large_logits(scale):
    x = palto.asarray(np.array([[scale, -scale, 0], [-scale, scale, 0]], np.float32))
    leaf = x.detach().requires_grad_()
    right = F.cross_entropy(leaf, palto.asarray([0, 1]))
    right.backward()
    assert right.item() == 0
    assert not leaf.grad.numpy().any()
    soft = palto.asarray([[1.0, 0, 0], [0, 1.0, 0]])
    assert F.cross_entropy(x, soft).item() == 0
    if scale < 1e38:
        assert F.cross_entropy(x, palto.asarray([2, 2])).item() == pytest.approx(scale, rel=1e-6)


@pytest.mark.parametrize("soft", [False, True])
def test_masked_classes(soft):
    """Logits of -inf: probability 0, no NaN in the loss or the gradient."""
    x = palto.asarray([[1.0, -np.inf, 2.0], [-np.inf, -np.inf, 0.0]], requires_grad=True)
    labels = palto.asarray([0, 2])
    target = palto.one_hot(labels, 3) if soft else labels
    loss = F.cross_entropy(x, target)
    loss.backward()
    assert loss.item() == pytest.approx(np.log(1 + np.e) / 2, rel=1e-6)
    assert np.isfinite(x.grad.numpy()).all()
    assert F.cross_entropy(x, palto.asarray([1, 2])).item() == np.inf
    assert F.cross_entropy(x, target, label_smoothing=0.1).item() == np.inf


def test_targets_may_have_gradients(gradcheck, rng):
    gradcheck(F.cross_entropy, rng.normal(size=(3, 4)), distributions(rng, (3, 4)))
    gradcheck(F.binary_cross_entropy_with_logits, rng.normal(size=(3, 4)), rng.random((3, 4)))
    gradcheck(F.mse_loss, rng.normal(size=(3, 4)), rng.normal(size=(3, 4)))


@pytest.mark.parametrize("dtype", ["int64", "int32", "uint8"])
def test_labels_of_any_integer_dtype(dtype):
    labels = palto.asarray([0, 2], dtype=dtype)
    loss = F.cross_entropy(palto.zeros((2, 3)), labels, ignore_index=-1)
    assert loss.item() == pytest.approx(np.log(3))


def test_empty_batches():
    empty = F.cross_entropy(palto.zeros((0, 3)), palto.zeros(0, dtype=palto.int64), reduction="sum")
    assert empty.item() == 0
    assert np.isnan(F.mse_loss(palto.zeros((0, 3)), palto.zeros((0, 3))).item())
    all_ignored = F.cross_entropy(palto.zeros((2, 3)), palto.asarray([9, 9]), ignore_index=9)
    assert np.isnan(all_ignored.item())  # the mean of nothing, as in PyTorch


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", [(8,), (1, 1), (2, 3, 4), ()])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("MSELoss", {}), ("L1Loss", {}), ("HuberLoss", {}), ("HuberLoss", {"delta": 0.3}),
        ("BCEWithLogitsLoss", {}),
    ],
)  # fmt: skip
def test_elementwise_losses_are_pytorchs(twins, torch, rng, name, options, shape, reduction):
    ours = getattr(nn, name)(**options, reduction=reduction)
    theirs = getattr(torch.nn, name)(**options, reduction=reduction)
    twins.layers(ours, theirs, 2 * rng.normal(size=shape), rng.random(shape))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_binary_cross_entropy_is_pytorchs(twins, torch, rng, reduction):
    weight, pos_weight = rng.random((3, 4)), rng.random(4)
    p, t = rng.random((3, 4)), rng.random((3, 4))
    twins.layers(nn.BCELoss(reduction=reduction), torch.nn.BCELoss(reduction=reduction), p, t)
    twins.functions(
        nn.BCELoss(weight=weight, reduction=reduction),
        torch.nn.BCELoss(weight=torch.tensor(weight), reduction=reduction),
        p, t,
    )  # fmt: skip
    options = {"weight": weight, "pos_weight": pos_weight}
    twins.functions(
        nn.BCEWithLogitsLoss(**options, reduction=reduction),
        torch.nn.BCEWithLogitsLoss(
            **{k: torch.tensor(v) for k, v in options.items()}, reduction=reduction
        ),
        2 * rng.normal(size=(3, 4)), t,
    )  # fmt: skip


def test_binary_cross_entropy_at_the_ends(torch):
    p = palto.asarray([0.0, 1.0, 0.0, 1.0], requires_grad=True)
    t = palto.asarray([0.0, 1.0, 1.0, 0.0])
    losses = F.binary_cross_entropy(p, t, reduction="none")
    assert losses.tolist() == [0, 0, 100, 100]
    theirs = torch.nn.functional.binary_cross_entropy(
        torch.tensor(p.numpy()), torch.tensor(t.numpy()), reduction="none"
    )
    assert theirs.tolist() == losses.tolist()
    losses.sum().backward()
    assert np.isfinite(p.grad.numpy()).all()


def test_binary_cross_entropy_of_large_logits():
    x = palto.asarray([1e4, -1e4, 3e38, -3e38, np.inf, -np.inf, -20.0], requires_grad=True)
    t = palto.asarray([1.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    losses = F.binary_cross_entropy_with_logits(x, t, reduction="none")
    np.testing.assert_allclose(losses.numpy(), [0, 0, 0, 0, 0, 0, np.log1p(np.exp(-20))], rtol=1e-6)
    losses.sum().backward()
    assert np.isfinite(x.grad.numpy()).all()
    wrong = F.binary_cross_entropy_with_logits(x, 1 - t, reduction="none").numpy()
    np.testing.assert_allclose(wrong, abs(x.numpy()), rtol=1e-6)


def test_extreme_errors_have_finite_gradients():
    e = palto.asarray([1e20, -1e20, 0.0], requires_grad=True)
    zero = palto.zeros(3)
    for loss in (F.huber_loss, F.l1_loss):
        value = loss(e, zero)
        value.backward()
        assert np.isfinite(value.item())
        assert np.isfinite(e.grad.numpy()).all()


@pytest.mark.parametrize(
    "function",
    [
        lambda x, t: F.cross_entropy(x, t.astype(palto.int64)),
        F.cross_entropy,
        F.mse_loss, F.l1_loss, F.huber_loss, F.binary_cross_entropy_with_logits,
    ],
)  # fmt: skip
def test_composites_keep_their_name_in_a_trace(traced, function):
    names = {
        "cross_entropy_of_labels", "cross_entropy_of_probabilities", "mse_loss", "l1_loss",
        "huber_loss", "binary_cross_entropy_with_logits",
    }  # fmt: skip
    shape = (3,) if function.__name__ == "<lambda>" else (3, 4)
    _, graph = traced(function, np.zeros((3, 4)), np.zeros(shape))
    found = [o.params["name"] for o in graph.operations if "name" in o.params]
    assert len(found) == 1
    assert found[0] in names


LOGITS = palto.zeros((8, 10))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: F.cross_entropy(palto.zeros((2, 10)), palto.asarray([3, 10])),
            IndexError,
            "label 10 is out of range: it must be from 0 to 9",
        ),
        (
            lambda: F.cross_entropy(palto.zeros((2, 10)), palto.asarray([3, -1])),
            IndexError,
            "label -1 is out of range",
        ),
        (
            lambda: F.cross_entropy(LOGITS, palto.zeros((8, 1), dtype=palto.int64)),
            ValueError,
            r"of logits \(8, 10\) wants labels of shape \(8,\), got \(8, 1\)",
        ),
        (
            lambda: F.cross_entropy(LOGITS, palto.zeros((8, 9))),
            ValueError,
            r"of logits \(8, 10\) wants probabilities of shape \(8, 10\), got \(8, 9\)",
        ),
        (lambda: F.cross_entropy(LOGITS, palto.zeros(8)), ValueError, "cast them with .astype"),
        (
            lambda: F.cross_entropy(palto.zeros(8, dtype=palto.int64), LOGITS),
            TypeError,
            "the logits come first, then the labels",
        ),
        (lambda: F.cross_entropy(LOGITS, LOGITS > 0), TypeError, "got bool"),
        (
            lambda: F.cross_entropy(LOGITS, palto.asarray([0] * 8), weight=palto.ones(9)),
            ValueError,
            r"a weight of shape \(10,\), got \(9,\)",
        ),
        (
            lambda: F.cross_entropy(LOGITS, palto.asarray([0] * 8), label_smoothing=1.5),
            ValueError,
            "from 0 to 1, got 1.5",
        ),
        (lambda: F.cross_entropy(LOGITS, LOGITS, ignore_index=0), ValueError, "for labels"),
        (lambda: F.mse_loss(LOGITS, LOGITS, reduction="avg"), ValueError, "mean, sum, none, got"),
        (lambda: nn.L1Loss(reduction="avg"), ValueError, "mean, sum, none, got 'avg'"),
        (
            lambda: F.mse_loss(palto.zeros((8, 1)), palto.zeros(8)),
            ValueError,
            r"mse_loss wants predictions and targets of one shape, got \(8, 1\) and \(8,\)",
        ),
        (
            lambda: F.mse_loss(palto.zeros(8), palto.zeros(8, dtype=palto.int64)),
            TypeError,
            "got float32 and int64; cast with",
        ),
        (lambda: F.huber_loss(LOGITS, LOGITS, delta=0), ValueError, "a delta above 0, got 0"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_wrong_label_is_found_in_a_trace_too(traced):
    with pytest.raises(IndexError, match="label 7 is out of range: it must be from 0 to 2"):
        traced(F.cross_entropy, np.zeros((2, 3), np.float32), np.array([0, 7]))


def test_looks():
    assert repr(nn.CrossEntropyLoss()) == "CrossEntropyLoss()"
    assert repr(nn.MSELoss(reduction="sum")) == "MSELoss(reduction='sum')"
