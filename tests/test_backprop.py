"""Backprop: what ``backward()`` and ``palto.grad`` promise, errors, memory, kinks."""

import gc
import math
import weakref
from collections import namedtuple

import numpy as np
import pytest

import palto
from palto import nn
from palto.backprop import gradients


def leaf(value):
    return palto.asarray(value, requires_grad=True)


def parameter(value, name=None):
    return nn.Parameter(palto.asarray(value), name=name)


# --- backward() ----------------------------------------------------------------------------------


def test_gradients_of_all_leaves():
    x, w, b = leaf([1.0, 2.0]), parameter([[3.0, 4.0], [5.0, 6.0]]), parameter([0.5, 0.5])
    y = x @ w + b
    (y * y).sum().backward()
    np.testing.assert_allclose(x.grad, 2 * y.numpy() @ w.numpy().T)
    np.testing.assert_allclose(w.grad, np.outer(x, 2 * y.numpy()))
    np.testing.assert_allclose(b.grad, 2 * y.numpy())
    assert not x.grad.requires_grad
    assert y.grad is None  # computed from others


def test_a_tensor_used_many_times():
    x = leaf(3.0)
    y = x * x
    z = y * x + y + x  # x^3 + x^2 + x
    z.backward()
    assert x.grad.item() == 3 * 9 + 2 * 3 + 1


def test_the_loss_may_be_the_parameter_itself():
    p = parameter(2.0)
    p.backward()
    assert p.grad.item() == 1
    x = leaf([1.0, 2.0])
    x.backward(palto.asarray([3.0, 4.0]))
    assert x.grad.tolist() == [3, 4]


def test_gradients_are_fresh():
    x = leaf(3.0)
    (x * 2).backward()
    (x * 5).backward()
    assert x.grad.item() == 5
    p = parameter(3.0)
    (p * 2).backward()
    p.set_grad(p.grad, pending=False)  # as an optimiser's step does
    (p * 5).backward()
    assert p.grad.item() == 5


def test_a_second_backward_before_a_step_raises():
    p = parameter(3.0, "layer.weight")
    (p * 2).backward()
    with pytest.raises(
        palto.BackwardError,
        match=r"reached layer.weight.*optimizer.step\(\) between.*accumulate=True.*inputs=",
    ):
        (p * 5).backward()
    assert p.grad.item() == 2  # as it was
    (p * 5).backward(accumulate=True)
    assert p.grad.item() == 7
    (p * p).backward(accumulate=True)
    assert p.grad.item() == 13


def test_accumulation_is_the_gradient_of_the_sum():
    rng = np.random.default_rng(0)
    w, batches = parameter(rng.normal(size=(3, 2))), rng.normal(size=(4, 5, 3))
    for batch in batches:
        palto.tanh(palto.asarray(batch) @ w).sum().backward(accumulate=True)
    together = parameter(w.numpy())
    palto.tanh(palto.asarray(batches.reshape(20, 3)) @ together).sum().backward()
    np.testing.assert_allclose(w.grad, together.grad)


def test_inputs_limit_where_gradients_are_left():
    generator, critic = parameter(2.0), parameter(3.0)
    made = generator * 5
    (made * critic).backward(inputs=[generator])
    assert generator.grad.item() == 15
    assert critic.grad is None
    (made.detach() * critic).backward(inputs=[critic])  # though the generator's waits
    assert critic.grad.item() == 10
    x = leaf(1.0)
    (x * generator).backward(inputs=iter([x]))
    assert x.grad.item() == 2


def test_inputs_free_only_what_was_passed():
    a, b = parameter(2.0), parameter(3.0)
    left, right = a * a, b * b
    (left * right).backward(inputs=[a])
    right.backward()  # its graph was not needed
    assert (a.grad.item(), b.grad.item()) == (36, 6)
    with pytest.raises(palto.BackwardError, match="already passed here"):
        left.backward()


def test_inputs_must_be_leaves():
    x = leaf(1.0)
    y = x * 2
    with pytest.raises(ValueError, match="was computed from others; name parameters"):
        (y * y).backward(inputs=[y])
    with pytest.raises(ValueError, match="does not require a gradient"):
        (y * y).backward(inputs=[palto.asarray(1.0)])
    (y * y).backward(inputs=[x])
    assert x.grad.item() == 8


def test_the_graph_is_freed():
    x = leaf(3.0)
    y = x * x
    z = y * 2
    z.backward()
    with pytest.raises(palto.BackwardError, match=r"already passed.*retain_graph=True"):
        z.backward()
    with pytest.raises(palto.BackwardError, match="already passed"):
        (y + 1).backward()  # through a tensor of the freed graph
    with pytest.raises(palto.BackwardError, match="already passed"):
        (y * leaf(1.0)).backward()
    (y.detach() * x).backward()  # its value is still good
    assert x.grad.item() == 9


def test_retain_graph():
    x = leaf(3.0)
    y = x * x
    y.backward(retain_graph=True)
    y.backward(retain_graph=True)
    assert x.grad.item() == 6
    y.backward()
    with pytest.raises(palto.BackwardError, match="already passed"):
        y.backward()


def test_integers_of_a_freed_graph_are_still_good():
    """Which were the largest is no part of the graph."""
    x, w = leaf([1.0, 3.0, 2.0]), leaf([5.0, 6.0, 7.0])
    values, places = palto.top_k(x, 2)
    values.sum().backward()
    w[places].sum().backward()
    assert w.grad.tolist() == [0, 1, 1]


def test_a_gradient_to_start_from():
    x = leaf([1.0, 2.0, 3.0])
    (x * x).backward(palto.asarray([1.0, 0.0, -1.0]))
    assert x.grad.tolist() == [2, 0, -6]
    (x * x).backward(np.float32([1, 1, 1]))
    assert x.grad.tolist() == [2, 4, 6]
    (x[:1] * 3).backward()  # one number in an axis
    assert x.grad.tolist() == [3, 0, 0]


def test_complex_losses():
    z = leaf(np.complex64([1 + 2j]))
    with pytest.raises(ValueError, match="this one is complex; take its real part"):
        (z * z).backward()
    (z * z).backward(np.complex64([1]))
    np.testing.assert_allclose(z.grad, [2 - 4j])  # the conjugate of 2 z


def test_several_outputs_of_which_one_is_used():
    x = leaf([3.0, 1.0, 2.0])
    values, places = palto.top_k(x, 2)
    values[0].backward()
    assert x.grad.tolist() == [1, 0, 0]
    assert places.tolist() == [0, 2]
    carry, _ = palto.scan(lambda c, e: (c * e, c), palto.asarray(1.0), x)
    carry.backward()
    assert x.grad.tolist() == [2, 6, 3]


def test_frozen_cells():
    a, b = parameter(2.0), parameter(3.0)
    a.requires_grad_(False)
    (a * b).backward()
    assert a.grad is None
    assert b.grad.item() == 2
    b.requires_grad = False  # PyTorch's way of writing it
    assert not (a * b).requires_grad
    a.requires_grad = True
    assert (a * b).requires_grad
    with pytest.raises(palto.BackwardError):
        b.read().backward()


def test_freezing_afterwards_changes_nothing_before():
    a = parameter(2.0)
    y = a * a
    a.requires_grad_(False)
    y.backward()
    assert a.grad.item() == 4


def test_assigning_afterwards_changes_nothing_before():
    a = parameter(2.0)
    y = a * a * a
    a.assign(100.0)
    y.backward()
    assert a.grad.item() == 12


def test_detach():
    x = leaf(3.0)
    y = x * 2
    (y.detach() * x).backward()
    assert x.grad.item() == 6
    assert palto.detach(y).item() == 6
    assert not y.detach().requires_grad


def test_no_grad():
    x = leaf(3.0)
    with palto.no_grad():
        assert not palto.is_grad_enabled()
        assert not (x * 2).requires_grad
        with palto.set_grad_enabled(True):
            assert (x * 2).requires_grad
        assert not palto.is_grad_enabled()
    assert palto.is_grad_enabled()
    assert (x * 2).requires_grad

    @palto.no_grad()
    def called():
        """Says so."""
        return x * 2

    @palto.no_grad
    def bare():
        return x * 2

    for function in (called, bare):
        for _ in range(2):
            assert not function().requires_grad
        assert palto.is_grad_enabled()
    assert called.__doc__ == "Says so."
    with pytest.raises(ZeroDivisionError), palto.no_grad():
        1 / 0  # noqa: B018
    assert palto.is_grad_enabled()
    with pytest.raises(palto.BackwardError, match=r"computed under no_grad\(\)"), palto.no_grad():
        (x * 2).backward()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda x: x * 2, ValueError, r"starts from one number, this tensor has shape \(2,\)"),
        (lambda x: palto.asarray(1.0), palto.BackwardError, "does not depend on any tensor"),
        (lambda x: x.sum().detach(), palto.BackwardError, r"detach\(\), no_grad\(\), argmax"),
        (lambda x: palto.argmax(x), palto.BackwardError, "int64, which has no derivative"),
        (lambda x: (x > 0).all(), palto.BackwardError, "bool, which has no derivative"),
    ],
)
def test_errors(make, error, message):
    with pytest.raises(error, match=message):
        make(leaf([1.0, 2.0])).backward()


def test_a_gradient_that_does_not_fit():
    y = leaf([1.0, 2.0]) * 2
    with pytest.raises(ValueError, match=r"gradient is float32\(3,\), the tensor float32\(2,\)"):
        y.backward(palto.ones(3))
    with pytest.raises(ValueError, match=r"gradient is float64\(2,\), the tensor float32\(2,\)"):
        y.backward(np.ones(2))


def test_requires_grad_of_what_has_none():
    with pytest.raises(TypeError, match="tensor of int64 has no gradient; cast it to float32"):
        palto.asarray([1, 2], requires_grad=True)
    with pytest.raises(TypeError, match="tensor of bool has no gradient"):
        palto.Cell([True], requires_grad=True)
    with pytest.raises(ValueError, match=r"computed from others; call detach\(\) first"):
        (leaf(1.0) * 2).requires_grad_()


# --- Derivatives of derivatives ------------------------------------------------------------------


def test_gradient_penalty_as_pytorch(torch):
    """The critic of a WGAN-GP: a loss on the size of a gradient."""
    rng = np.random.default_rng(0)
    images, w1, w2 = (rng.normal(size=s) for s in [(5, 4), (4, 6), (6, 1)])
    x, a, b = leaf(images), parameter(w1), parameter(w2)
    (score,) = gradients(
        [palto.tanh(x @ a) @ b], [palto.ones((5, 1), dtype="float64")], [x], create_graph=True
    )
    ((palto.vector_norm(score, axis=1) - 1) ** 2).mean().backward()

    t, ta, tb = (torch.tensor(v, requires_grad=True) for v in (images, w1, w2))
    (theirs,) = torch.autograd.grad((torch.tanh(t @ ta) @ tb).sum(), t, create_graph=True)
    ((theirs.norm(dim=1) - 1) ** 2).mean().backward()
    np.testing.assert_allclose(a.grad, ta.grad)
    np.testing.assert_allclose(b.grad, tb.grad)


def test_create_graph_makes_grad_differentiable():
    x = leaf(2.0)
    (x**4).backward(create_graph=True)
    first = x.grad
    assert first.item() == 32
    first.backward(create_graph=True)
    second = x.grad
    assert second.item() == 48
    second.backward()
    assert x.grad.item() == 48


def test_grads_of_grads_of_grads():
    derivative = palto.grad
    f = palto.exp
    x = palto.asarray(0.7)
    for _ in range(4):
        f = derivative(f)
        assert math.isclose(f(x).item(), math.exp(0.7), rel_tol=1e-6)
    sine = palto.sin
    for wanted in (math.cos, lambda v: -math.sin(v), lambda v: -math.cos(v), math.sin):
        sine = derivative(sine)
        assert math.isclose(sine(x).item(), wanted(0.7), rel_tol=1e-5)


def test_a_hessian_by_rows():
    rng = np.random.default_rng(0)
    m = rng.normal(size=(3, 3))
    x = palto.asarray(rng.normal(size=3))

    def f(x):
        return (x @ palto.asarray(m)) @ x + (x**3).sum()

    rows = [palto.grad(lambda x, i=i: palto.grad(f)(x)[i])(x).numpy() for i in range(3)]
    np.testing.assert_allclose(rows, m + m.T + np.diag(6 * x.numpy()))


def test_grad_inside_grad_with_parameters_from_outside():
    """A meta-learner's step: the loss after a step of descent, differentiated."""
    w, rate = parameter(2.0), parameter(0.1)

    def loss(value, target):
        return (value - target) ** 2

    def after_step(target):
        return loss(w - rate * palto.grad(loss)(w, target), target)

    target = palto.asarray(5.0)
    after_step(target).backward()
    # (w - t)(1 - 2 r) squared
    assert math.isclose(w.grad.item(), 2 * (2 - 5) * (1 - 0.2) ** 2, rel_tol=1e-6)
    assert math.isclose(rate.grad.item(), 2 * (2 - 5) ** 2 * (1 - 0.2) * -2, rel_tol=1e-6)


def test_grad_inside_a_graph_to_its_argument():
    x = leaf(3.0)
    y = palto.grad(lambda v: v**3)(x * 2)  # 3 (2 x)^2
    y.backward()
    assert x.grad.item() == 3 * 2 * (2 * 3) * 2


# --- grad and value_and_grad ---------------------------------------------------------------------

Point = namedtuple("Point", "x y")


def test_grad_of_nested_structures():
    def f(tree):
        return (tree["a"][0] * tree["a"][1]).sum() + tree["p"].x ** 2 * tree["p"].y

    tree = {"a": [palto.asarray([1.0, 2.0]), palto.asarray([3.0, 4.0])], "p": Point(3.0, 5.0)}
    value, found = palto.value_and_grad(f)(tree)
    assert value.item() == 11 + 45
    assert found["a"][0].tolist() == [3, 4]
    assert found["a"][1].tolist() == [1, 2]
    assert isinstance(found["p"], Point)
    assert (found["p"].x.item(), found["p"].y.item()) == (30, 9)


def test_argnums():
    def f(x, y, scale=1.0):
        return x * x * y * scale

    x, y = palto.asarray(3.0), palto.asarray(4.0)
    assert palto.grad(f)(x, y).item() == 24
    assert palto.grad(f, 1)(x, y, scale=2.0).item() == 18
    both = palto.grad(f, (1, 0))(x, y)
    assert isinstance(both, tuple)
    assert [g.item() for g in both] == [9, 24]
    assert [g.item() for g in palto.grad(f, argnums=[0])(x, y)] == [24]
    assert palto.grad(f)(3.0, 4.0).item() == 24


def test_has_aux():
    def f(x):
        return (x * x).sum(), {"twice": x * 2, "name": "f"}

    x = palto.asarray([1.0, 2.0])
    (value, aux), g = palto.value_and_grad(f, has_aux=True)(x)
    assert value.item() == 5
    assert aux["twice"].tolist() == [2, 4]
    assert aux["name"] == "f"
    assert g.tolist() == [2, 4]
    g, aux = palto.grad(f, has_aux=True)(x)
    assert g.tolist() == [2, 4]
    assert not aux["twice"].requires_grad
    with pytest.raises(ValueError, match=r"has_aux wants a function that returns \(number, any"):
        palto.grad(lambda x: x.sum(), has_aux=True)(x)


def test_the_arguments_stay_as_they_were():
    x = palto.asarray([1.0, 2.0])
    value, g = palto.value_and_grad(lambda x: (x * x).sum())(x)
    assert not x.requires_grad
    assert x.grad is None
    assert not value.requires_grad
    assert not g.requires_grad
    w = leaf(2.0)
    palto.grad(lambda w: w * w)(w)
    assert w.grad is None


def test_parameters_are_arguments_too():
    w = parameter([1.0, 2.0])
    g = palto.grad(lambda w: (w * w).sum())(w)
    assert g.tolist() == [2, 4]
    assert w.grad is None


def test_under_no_grad_and_connected_to_the_outside():
    w = parameter(3.0)
    with palto.no_grad():
        value, g = palto.value_and_grad(lambda x: x * x * w)(palto.asarray(2.0))
    assert (value.item(), g.item()) == (12, 12)
    assert not value.requires_grad
    value, g = palto.value_and_grad(lambda x: x * x * w)(palto.asarray(2.0))
    assert g.requires_grad  # towards w
    g.backward()
    assert w.grad.item() == 4


def test_an_argument_that_does_not_matter():
    x = palto.asarray([1.0, 2.0])
    assert palto.grad(lambda x: palto.asarray(1.0))(x).tolist() == [0, 0]
    g = palto.grad(lambda x, y: x.sum(), 1)(x, palto.ones((2, 3)))
    np.testing.assert_array_equal(g, np.zeros((2, 3)))


@pytest.mark.parametrize(
    ("function", "argument", "error", "message"),
    [
        (lambda x: x, [1.0, 2.0], ValueError, r"returns one floating-point number.*float32\(2,\)"),
        (lambda x: palto.argmax(x), [1.0], ValueError, r"floating-point number.*int64\(\)"),
        (lambda x: x.sum(), [1, 2], TypeError, "no gradient with respect to an argument of int64"),
    ],
)
def test_grad_errors(function, argument, error, message):
    with pytest.raises(error, match=message):
        palto.grad(function)(palto.asarray(argument))


def test_grad_keeps_the_name():
    def loss(x):
        """What it costs."""
        return x

    assert palto.grad(loss).__name__ == "loss"
    assert palto.value_and_grad(loss).__doc__ == "What it costs."


# --- Memory --------------------------------------------------------------------------------------


@pytest.fixture
def no_collector():
    """Memory must come free by itself."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watch(tensors):
    return [weakref.ref(x) for x in tensors]


def alive(references):
    return [r for r in references if r() is not None]


def chain(x):
    """Tensors of one graph, of which each depends on the one before; the loss is the last."""
    steps = [x * 2]
    steps.append(palto.exp(steps[-1]))
    steps.append(palto.sort(steps[-1]))
    steps.append(palto.logsumexp(steps[-1], 0, keepdims=True))
    steps.append(palto.top_k(palto.concat([steps[-1], steps[0]]), 2)[0])
    steps.append(steps[-1].sum())
    return steps


@pytest.mark.usefixtures("no_collector")
def test_backward_frees_the_graph():
    x = leaf(np.arange(4.0))
    steps = chain(x)
    loss, references = steps[-1], watch(steps[:-1])
    del steps
    assert len(alive(references)) == 5
    loss.backward()
    assert not alive(references)
    assert x.grad is not None


@pytest.mark.usefixtures("no_collector")
def test_dropping_a_loss_frees_the_graph():
    x = leaf(np.arange(4.0))
    references = watch(chain(x))
    assert not alive(references)


@pytest.mark.usefixtures("no_collector")
def test_what_needs_no_gradient_keeps_nothing():
    x = palto.asarray(np.arange(4.0))
    steps = chain(x)
    loss, references = steps[-1], watch(steps[:-1])
    del steps
    assert not alive(references)
    w = leaf(np.arange(4.0))
    order = palto.argsort(w * 2)
    whole = (w * 3).astype(int)
    assert order.requires_grad is whole.requires_grad is False
    assert whole.operation is None
    del loss


@pytest.mark.usefixtures("no_collector")
def test_bodies_are_freed():
    """Checkpoint and scan trace a body, which must not hold what it captures."""
    w = parameter(np.ones(3))
    for run in (
        lambda h: palto.checkpoint(lambda x: palto.sin(x) * w * h, h).sum(),
        lambda h: palto.scan(lambda c, e: (c * e + h.sum(), c * w), np.array(1.0), h)[0],
        lambda h: palto.grad(lambda x: (x * x * h).sum())(h).sum(),
    ):
        h = w * 2
        loss, references = run(h), watch([h])
        del h
        loss.backward(accumulate=True)
        del loss
        assert not alive(references)


@pytest.mark.usefixtures("no_collector")
def test_cells_are_freed():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    references = watch(network.parameters())
    loss = network(palto.ones((5, 3))).sum()
    loss.backward()
    del network, loss
    assert not alive(references)


@pytest.mark.usefixtures("no_collector")
def test_gradients_on_the_way_are_freed():
    """Backprop holds the gradients of a few tensors at a time, not of all."""
    x = leaf(np.ones(1000))
    y = x
    for _ in range(50):
        y = palto.sin(y)
    loss = y.sum()
    count = [0, 0]  # gradients now, at most

    original = palto.Tensor.__init__

    def counting(self, shape, *args, **kwargs):
        original(self, shape, *args, **kwargs)
        if shape == (1000,):
            count[0] += 1
            count[1] = max(count)
            weakref.finalize(self, lambda: count.__setitem__(0, count[0] - 1))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(palto.Tensor, "__init__", counting)
        loss.backward()
    assert count[1] < 10


def test_long_graphs():
    """Neither backprop nor freeing recurses."""
    x = leaf(1.0)
    for keep in (True, False):
        y = x
        for _ in range(20_000):
            y = y + 1
        if keep:
            y.backward()
            assert x.grad.item() == 1
        del y


def test_only_what_is_asked_for_is_computed():
    """A gradient towards one argument does not pass through the rest of the graph."""
    applied = []
    w = parameter(np.ones((3, 3)))
    x = palto.asarray(np.ones((2, 3)), requires_grad=True)
    hidden = palto.tanh(palto.tanh(palto.asarray(np.ones((2, 3))) @ w) @ w)
    loss = (hidden * x).sum()
    from palto import backprop

    original = backprop.scope

    def noting(names):
        applied.append(names)
        return original(names)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backprop, "scope", noting)
        loss.backward(inputs=[x])
    assert len(applied) == 2  # sum, multiply


# --- Kinks ---------------------------------------------------------------------------------------

ZEROS = np.array([0.0, -0.0, 0.0])


@pytest.mark.parametrize(
    ("ours", "theirs", "arrays"),
    [
        (palto.abs, "abs", [np.array([0.0, -0.0, 2.0])]),
        (palto.abs, "abs", [np.complex64([0, 1j])]),
        (palto.sqrt, "sqrt", [np.array([0.0, 4.0])]),
        (palto.sign, "sign", [ZEROS]),
        (palto.log, "log", [np.array([0.0, 1.0])]),
        (palto.reciprocal, "reciprocal", [np.array([0.0, 2.0])]),
        (palto.rsqrt, "rsqrt", [np.array([0.0, 4.0])]),
        (palto.maximum, "maximum", [np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])]),
        (palto.minimum, "minimum", [np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])]),
        (
            lambda x: palto.maximum(x, 0.0),
            lambda t, x: t.maximum(x, t.zeros(3, dtype=x.dtype)),
            [ZEROS],
        ),
        (lambda x: palto.where(x > 0, x, 0.0), "relu", [np.array([0.0, -0.0, 2.0, -3.0])]),
        (palto.max, "amax", [np.array([2.0, 1.0, 2.0, 2.0])]),
        (palto.min, "amin", [np.array([1.0, 1.0, 2.0])]),
        (
            lambda x: palto.max(x, (0, 2)),
            lambda t, x: t.amax(x, (0, 2)),
            [np.array([[[1.0, 1], [0, 3]], [[1, 0], [3, 3]]])],
        ),
        (
            lambda x: palto.clip(x, 0.0, 1.0),
            lambda t, x: t.clamp(x, 0.0, 1.0),
            [np.array([0.0, 1.0, -1.0, 2.0, 0.5])],
        ),
        (palto.clip, "clamp", [np.array([0.0, 1.0, 5.0]), ZEROS, np.ones(3)]),
        (palto.clip, "clamp", [np.array([0.5, 0.5]), np.array([2.0, 0.5]), np.array([1.0, 0.5])]),
        (lambda x: palto.pow(x, 0.0), lambda t, x: x**0.0, [np.array([0.0, 2.0])]),
        (lambda x: palto.pow(x, 1.0), lambda t, x: x**1.0, [np.array([0.0, 2.0])]),
        (lambda x: palto.pow(x, 0.5), lambda t, x: x**0.5, [np.array([0.0, 4.0])]),
        (lambda x: palto.pow(x, 1.5), lambda t, x: x**1.5, [np.array([0.0, 4.0])]),
        (lambda x: palto.pow(x, 2), lambda t, x: x**2, [ZEROS]),
        (lambda x: palto.pow(x, -1), lambda t, x: x**-1, [np.array([0.0, 2.0])]),
        (
            palto.pow,
            "pow",
            [np.array([0.0, 0.0, 0.0, 0.0, -2.0]), np.array([0.0, 2.0, -1.0, 0.5, 2.0])],
        ),
        (palto.vector_norm, lambda t, x: t.linalg.vector_norm(x), [np.zeros(3)]),
        *(
            (
                lambda x, p=p: palto.vector_norm(x, axis=1, ord=p),
                lambda t, x, p=p: t.linalg.vector_norm(x, p, 1),
                [np.array([[0.0, 0.0], [0.0, 2.0], [2.0, -2.0]])],
            )
            for p in (1, 2, 3, 0.5, 1.5, math.inf)
        ),
        (palto.prod, "prod", [np.array([0.0, 2.0, 3.0])]),
        (palto.prod, "prod", [np.array([0.0, 2.0, 0.0])]),
        (palto.std, lambda t, x: t.std(x, correction=0), [np.ones(3)]),
        (palto.logsumexp, lambda t, x: t.logsumexp(x, 0), [np.array([-np.inf, 1.0])]),
        (palto.atan2, "atan2", [np.array([0.0, 0.0]), np.array([0.0, -1.0])]),
        (palto.asin, "asin", [np.array([1.0, -1.0, 0.0])]),
        (palto.acos, "acos", [np.array([1.0, -1.0, 0.0])]),
        (palto.acosh, "acosh", [np.array([1.0, 2.0])]),
        (palto.atanh, "atanh", [np.array([1.0, -1.0])]),
        (palto.asinh, "asinh", [np.array([0.0, 1e30, -2.0])]),
        (palto.floor, "floor", [np.array([1.0])]),
        (palto.sort, lambda t, x: t.sort(x, stable=True).values, [np.array([2.0, 1.0, 2.0, 1.0])]),
        (palto.erf, "erf", [np.array([0.0, 30.0])]),
    ],
)
def test_kinks_as_pytorch(torch, ours, theirs, arrays):
    """The gradient of the sum, where one-sided derivatives differ or are infinite."""
    xs = [leaf(x) for x in arrays]
    ts = [torch.tensor(x, requires_grad=True) for x in arrays]
    y = ours(*xs)
    z = getattr(torch, theirs)(*ts) if isinstance(theirs, str) else theirs(torch, *ts)
    np.testing.assert_allclose(y.numpy(), z.detach().numpy(), rtol=1e-12)
    found = gradients([y], [palto.ones_like(y)], xs)
    z.backward(torch.ones_like(z))
    for x, g, t in zip(arrays, found, ts, strict=True):
        wanted = np.zeros_like(x) if t.grad is None else t.grad.numpy(force=True)
        np.testing.assert_allclose(g, wanted, rtol=1e-9, err_msg=f"{arrays}")


def test_no_nan_leaks_through_where():
    x = leaf([0.0, 4.0])
    safe = palto.where(x > 0, x, 1.0)
    palto.where(x > 0, palto.sqrt(safe), 0.0).sum().backward()
    assert x.grad.tolist() == [0, 0.25]
