import numpy as np
import pytest

import palto
from palto import optim
from palto.nn.module import Parameter

from .conftest import assert_same, values


@pytest.mark.parametrize("max_norm", [0.01, 100.0])
@pytest.mark.parametrize("order", [2.0, 1.0, np.inf])
def test_the_norm_as_pytorch(torch, case, max_norm, order):
    network, parameters = case.network(), case.torch_parameters(torch)
    norms = [], []
    case.train(
        network,
        optim.SGD(network, 0.1),
        5,
        lambda: norms[0].append(float(optim.clip_grad_norm_(network, max_norm, order))),
    )
    case.torch_train(
        torch,
        parameters,
        torch.optim.SGD(list(parameters.values()), 0.1),
        5,
        lambda: norms[1].append(
            float(torch.nn.utils.clip_grad_norm_(parameters.values(), max_norm, order))
        ),
    )
    np.testing.assert_allclose(norms[0], norms[1], rtol=1e-12)
    assert_same(network, parameters, 1e-12)


def test_values_as_pytorch(torch, case):
    network, parameters = case.network(), case.torch_parameters(torch)
    case.train(network, optim.SGD(network, 0.1), 5, lambda: optim.clip_grad_value_(network, 0.05))
    case.torch_train(
        torch,
        parameters,
        torch.optim.SGD(list(parameters.values()), 0.1),
        5,
        lambda: torch.nn.utils.clip_grad_value_(parameters.values(), 0.05),
    )
    assert_same(network, parameters, 1e-12)


def test_whose_gradients(case):
    network = case.network()
    optimizer = optim.SGD(network)
    case.loss(network).backward()
    gradients = [p.grad.numpy().ravel() for p in network.parameters()]
    whole = np.linalg.norm(np.concatenate(gradients))
    for given in (network, optimizer, network.parameters(), network.named_parameters()):
        assert float(optim.clip_grad_norm_(given, 1e9)) == pytest.approx(whole, rel=1e-12)
    assert float(optim.clip_grad_norm_(network.out.bias, 1e9)) == pytest.approx(
        np.linalg.norm(gradients[3]), rel=1e-12
    )


def test_used_gradients_are_left_alone(case):
    network = case.network()
    case.train(network, optim.SGD(network), 1)
    for clip in (
        lambda: optim.clip_grad_norm_(network, 1.0),
        lambda: optim.clip_grad_value_(network, 1.0),
        lambda: optim.check_gradients(network),
    ):
        with pytest.raises(RuntimeError, match="no gradient waits for a step; call it after"):
            clip()
    network.extra = Parameter(np.zeros(2))
    network.extra.sum().backward()
    stale = network.out.weight.grad
    assert float(optim.clip_grad_norm_(network, 1.0)) == pytest.approx(2**0.5)
    assert network.out.weight.grad is stale


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("check", [lambda n: optim.clip_grad_norm_(n, 1.0), optim.check_gradients])
def test_gradients_that_are_not_finite_are_named(case, bad, check):
    network = case.network()
    optimizer = optim.Adam(network)
    before = values(network)
    (case.loss(network) + (bad * network.hidden.bias).sum()).backward()
    gradient = network.out.weight.grad
    with pytest.raises(FloatingPointError, match=r"the gradient of hidden\.bias is not finite; lo"):
        check(network)
    assert network.out.weight.grad is gradient
    assert_same(network, before)
    assert optimizer.count.item() == 0
    optimizer.zero_grad()
    case.train(network, optimizer, 1, lambda: check(network))


def test_many_bad_gradients_are_counted():
    parameters = [Parameter(np.ones(1), name=f"p{i}") for i in range(6)]
    sum((p * np.nan).sum() for p in parameters).backward()
    with pytest.raises(FloatingPointError, match=r"gradient of p0, p1, p2 and 3 more is not"):
        optim.check_gradients(parameters)


def test_a_norm_too_large_for_the_format():
    x = Parameter(np.ones(2, np.float32))
    (x * 1e30).sum().backward()
    optim.check_gradients(x)
    with pytest.raises(FloatingPointError, match="the norm of the gradients is not finite"):
        optim.clip_grad_norm_(x, 1.0)


def test_nothing_is_checked_where_that_is_asked_for():
    x = Parameter(np.ones(2))
    (x * np.inf).sum().backward()
    assert float(optim.clip_grad_norm_(x, 1.0, error_if_nonfinite=False)) == np.inf


def test_formats_mix():
    x, y = Parameter(np.ones(2)), Parameter(np.ones(2, np.float32))
    (palto.astype(x.sum(), "float32") * 3 + y.sum() * 4).backward()
    assert float(optim.clip_grad_norm_([x, y], 1.0)) == pytest.approx(50**0.5)
    assert (x.grad.dtype, y.grad.dtype) == (np.float64, np.float32)
    np.testing.assert_allclose(x.grad.numpy(), 3 / 50**0.5, rtol=1e-6)


def test_mistakes():
    x = Parameter(np.ones(2))
    x.sum().backward()
    with pytest.raises(ValueError, match="max_norm is a number from 0 up, got -1"):
        optim.clip_grad_norm_(x, -1)
    with pytest.raises(ValueError, match="clip_value is a number from 0 up, got -1"):
        optim.clip_grad_value_(x, -1)
