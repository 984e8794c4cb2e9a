"""What each optimiser computes: against PyTorch, the lecture's algorithm, and known minima."""

import numpy as np
import pytest

import palto
from palto import optim
from palto.nn.module import Module, Parameter

from .conftest import Case, assert_same

RULES = {
    "sgd": (lambda p: optim.SGD(p, 0.1), lambda o, p: o.SGD(p, 0.1)),
    "momentum": (
        lambda p: optim.SGD(p, 0.1, momentum=0.9),
        lambda o, p: o.SGD(p, 0.1, momentum=0.9),
    ),
    "dampening": (
        lambda p: optim.SGD(p, 0.1, momentum=0.9, dampening=0.3),
        lambda o, p: o.SGD(p, 0.1, momentum=0.9, dampening=0.3),
    ),
    "nesterov": (
        lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
        lambda o, p: o.SGD(p, 0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    ),
    "adam": (lambda p: optim.Adam(p, 0.01, variant="pytorch"), lambda o, p: o.Adam(p, 0.01)),
    "adam, all options": (
        lambda p: optim.Adam(p, 0.01, (0.8, 0.95), 1e-3, 0.1, variant="pytorch"),
        lambda o, p: o.Adam(p, 0.01, (0.8, 0.95), 1e-3, 0.1),
    ),
    "adamw": (lambda p: optim.AdamW(p, 0.01), lambda o, p: o.AdamW(p, 0.01)),
    "adamw, all options": (
        lambda p: optim.AdamW(p, 0.01, (0.8, 0.95), 1e-3, 0.2),
        lambda o, p: o.AdamW(p, 0.01, (0.8, 0.95), 1e-3, 0.2),
    ),
}


@pytest.mark.parametrize(("dtype", "rtol"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("name", RULES)
def test_ten_steps_as_pytorch(torch, name, dtype, rtol):
    case = Case(dtype)
    ours, theirs = RULES[name]
    network, parameters = case.network(), case.torch_parameters(torch)
    case.train(network, ours(network), 10)
    case.torch_train(torch, parameters, theirs(torch.optim, list(parameters.values())), 10)
    assert_same(network, parameters, rtol)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_groups_as_pytorch(torch, case, name):
    options = {"variant": "pytorch"} if name == "Adam" else {}
    network, parameters = case.network(), case.torch_parameters(torch)
    optimizer = getattr(optim, name)(
        [
            {"params": network.hidden, "lr": 0.02, "weight_decay": 0.3},
            {"params": network.out.parameters()},
        ],
        0.05,
        **options,
    )
    hidden, out = (
        [p for n, p in parameters.items() if "hidden" in n],
        [p for n, p in parameters.items() if "out" in n],
    )
    other = getattr(torch.optim, name)(
        [{"params": hidden, "lr": 0.02, "weight_decay": 0.3}, {"params": out}], 0.05
    )
    case.train(network, optimizer, 10)
    case.torch_train(torch, parameters, other, 10)
    assert_same(network, parameters, 1e-12)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_a_schedule_as_pytorch(torch, case, name):
    options = {"variant": "pytorch"} if name == "Adam" else {}
    network, parameters = case.network(), case.torch_parameters(torch)
    schedule = optim.schedules.cosine(0.1, 8, final=0.01)
    other = getattr(torch.optim, name)(list(parameters.values()), 0.1)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(other, 8, eta_min=0.01)
    optimizer = getattr(optim, name)(network, schedule, **options)
    for _ in range(8):
        assert float(optimizer.lr) == pytest.approx(scheduler.get_last_lr()[0], rel=1e-12)
        case.train(network, optimizer, 1)
        case.torch_train(torch, parameters, other, 1)
        scheduler.step()
    assert_same(network, parameters, 1e-12)


# --- The lecture's algorithm ---------------------------------------------------------------------


def lecture_adam(gradient, x, steps, D, *, b1=0.9, b2=0.99, eps=1e-8, decay=0.0):
    """The slide, line by line. Returns all iterates x^1 ... x^K."""
    v, G = np.zeros_like(x), np.zeros_like(x)
    iterates = []
    for k in range(steps):
        g = gradient(x)
        v = b1 * v + (1 - b1) * g
        v_hat = v / (1 - b1 ** (k + 1))
        G = b2 * G + (1 - b2) * g**2
        G_hat = G / (1 - b2 ** (k + 1))
        x = x * (1 - decay * np.asarray(D)) - D * v_hat / np.sqrt(G_hat + eps)
        iterates.append(x)
    return iterates


TARGET = np.array([1.0, -2.0, 0.5, 3.0])
CURVATURE = np.array([1.0, 10.0, 0.1, 5.0])


class Bowl(Module):
    """sum of c (x - t)^2 / 2, whose gradient is c (x - t)."""

    def __init__(self):
        self.x = Parameter(np.zeros(4))

    def forward(self):
        return 0.5 * (palto.asarray(CURVATURE) * (self.x - palto.asarray(TARGET)) ** 2).sum()


def run(optimizer, bowl, steps):
    for _ in range(steps):
        bowl().backward()
        optimizer.step()


@pytest.mark.parametrize("rate", [0.1, np.array([0.1, 0.02, 0.3, 0.05])], ids=["number", "tensor"])
def test_adam_is_the_lecture(rate):
    bowl = Bowl()
    run(optim.Adam(bowl, palto.asarray(rate)), bowl, 25)
    wanted = lecture_adam(lambda x: CURVATURE * (x - TARGET), np.zeros(4), 25, rate)
    np.testing.assert_allclose(
        bowl.x.numpy(), wanted[-1], rtol=1e-6 if np.ndim(rate) == 0 else 1e-12
    )


def test_adam_keeps_the_lecture_defaults():
    bowl = Bowl()
    optimizer = optim.Adam(bowl, lr=0.1, average="uniform")
    run(optimizer, bowl, 12)
    iterates = lecture_adam(lambda x: CURVATURE * (x - TARGET), np.zeros(4), 12, 0.1)
    np.testing.assert_allclose(bowl.x.numpy(), iterates[-1], rtol=1e-12)
    with optimizer.averaged(bowl):
        np.testing.assert_allclose(bowl.x.numpy(), np.mean(iterates, axis=0), rtol=1e-12)
    np.testing.assert_allclose(bowl.x.numpy(), iterates[-1], rtol=1e-12)


def test_adamw_in_the_lecture_form():
    bowl = Bowl()
    run(optim.AdamW(bowl, 0.1, weight_decay=0.2, variant="lecture"), bowl, 12)
    wanted = lecture_adam(lambda x: CURVATURE * (x - TARGET), np.zeros(4), 12, 0.1, decay=0.2)
    np.testing.assert_allclose(bowl.x.numpy(), wanted[-1], rtol=1e-12)


# --- Minima --------------------------------------------------------------------------------------


class Rosenbrock(Module):
    """(1 - x)^2 + 100 (y - x^2)^2, whose minimum 0 lies at (1, 1), in a curved valley."""

    def __init__(self):
        self.x = Parameter(np.array([-1.0, 1.0]))

    def forward(self):
        x, y = self.x[0], self.x[1]
        return (1 - x) ** 2 + 100 * (y - x**2) ** 2


@pytest.mark.parametrize(
    ("make", "parabola", "rosenbrock", "left"),
    [
        (lambda p, lr: optim.SGD(p, lr), 0.1, 1e-3, 0.5),
        (lambda p, lr: optim.SGD(p, lr, momentum=0.9), 0.05, 5e-4, 0.02),
        (lambda p, lr: optim.SGD(p, lr, momentum=0.9, nesterov=True), 0.05, 5e-4, 0.02),
        (lambda p, lr: optim.Adam(p, lr), 0.3, 0.05, 0.02),
        (lambda p, lr: optim.Adam(p, lr, variant="pytorch"), 0.3, 0.05, 0.02),
        (lambda p, lr: optim.AdamW(p, lr, weight_decay=0), 0.3, 0.05, 0.02),
    ],
    ids=["sgd", "momentum", "nesterov", "adam", "adam-pytorch", "adamw"],
)
def test_minima(make, parabola, rosenbrock, left):
    bowl = Bowl()
    run(make(bowl, parabola), bowl, 400)
    # The flattest direction has curvature 0.1, so gradient descent is still on its way there.
    assert bowl().item() < 1e-4
    valley = Rosenbrock()
    start = valley().item()
    run(make(valley, rosenbrock), valley, 600)
    assert valley().item() < left * start


def test_averaging_helps_where_gradients_are_noisy():
    """Gradient descent at a fixed rate ends in a cloud around the minimum; its mean is closer."""
    rng = np.random.default_rng(1)
    errors = {"last": [], "tail": [], "uniform": []}
    for _ in range(5):
        for average in ("tail", "uniform"):
            x = Parameter(np.full(8, 2.0))
            optimizer = optim.SGD([x], 0.3, average=average)
            for _ in range(200):
                ((x - palto.asarray(rng.normal(size=8))) ** 2).sum().backward()
                optimizer.step()
            errors["last"].append(float((x**2).sum()))
            ((_, mean),) = [(n, c) for n, c in optimizer.named_cells() if n.endswith("average")]
            errors[average].append(float((mean**2).sum()))
    mean = {name: np.mean(found) for name, found in errors.items()}
    assert mean["tail"] < 0.2 * mean["last"]
    assert mean["uniform"] < 0.2 * mean["last"]
