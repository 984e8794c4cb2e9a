"""A small network, here and in PyTorch."""

import numpy as np
import pytest

import palto
from palto.nn.module import Module, Parameter

SHAPES = {"hidden.weight": (5, 4), "hidden.bias": (5,), "out.weight": (3, 5), "out.bias": (3,)}


class Affine(Module):
    def __init__(self, weight, bias):
        self.weight, self.bias = Parameter(weight), Parameter(bias)

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Network(Module):
    def __init__(self, values):
        self.hidden = Affine(values["hidden.weight"], values["hidden.bias"])
        self.out = Affine(values["out.weight"], values["out.bias"])

    def forward(self, x):
        return self.out(palto.tanh(self.hidden(x)))


class Case:
    """Start values, data, and the loss; everything the same for every optimiser."""

    def __init__(self, dtype=np.float64):
        rng = np.random.default_rng(0)
        self.values = {name: rng.normal(size=shape).astype(dtype) for name, shape in SHAPES.items()}
        self.x = rng.normal(size=(7, 4)).astype(dtype)
        self.y = rng.normal(size=(7, 3)).astype(dtype)

    def network(self):
        return Network(self.values)

    def loss(self, network):
        return ((network(palto.asarray(self.x)) - palto.asarray(self.y)) ** 2).mean()

    def train(self, network, optimizer, steps, between=lambda: None):
        losses = []
        for _ in range(steps):
            loss = self.loss(network)
            loss.backward()
            between()
            optimizer.step()
            losses.append(loss.item())
        return losses

    def torch_parameters(self, torch):
        return {n: torch.tensor(v, requires_grad=True) for n, v in self.values.items()}

    def torch_train(self, torch, parameters, optimizer, steps, between=lambda: None):
        x, y = torch.tensor(self.x), torch.tensor(self.y)
        for _ in range(steps):
            hidden = torch.tanh(x @ parameters["hidden.weight"].T + parameters["hidden.bias"])
            output = hidden @ parameters["out.weight"].T + parameters["out.bias"]
            optimizer.zero_grad()
            ((output - y) ** 2).mean().backward()
            between()
            optimizer.step()


@pytest.fixture
def case():
    return Case()


@pytest.fixture
def case32():
    return Case(np.float32)


def values(network):
    return {name: cell.numpy() for name, cell in network.named_parameters()}


def assert_same(network, other, rtol=0.0):
    """The parameters of two networks, or of one here and one in PyTorch."""
    theirs = values(other) if isinstance(other, Module) else other
    for name, cell in network.named_parameters():
        wanted = theirs[name]
        wanted = wanted.detach().numpy() if hasattr(wanted, "detach") else wanted
        if rtol:
            np.testing.assert_allclose(cell.numpy(), wanted, rtol=rtol, atol=rtol, err_msg=name)
        else:
            np.testing.assert_array_equal(cell.numpy(), wanted, err_msg=name)
