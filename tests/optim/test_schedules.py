import math

import numpy as np
import pytest

import palto
from palto import optim
from palto.nn.module import Parameter
from palto.optim import schedules


def theirs(torch, make, steps, lr):
    """PyTorch's rates in each step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr)
    scheduler = make(torch.optim.lr_scheduler, optimizer)
    rates = []
    for _ in range(steps):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        if len(rates) < steps:
            scheduler.step()
    return rates


def ours(schedule, steps):
    return [float(schedule(k)) for k in range(steps)]


def warmed_cosine(k):
    """200 steps after 20 of warm-up, as a factor."""
    if k < 20:
        return (k + 1) / 21
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (k - 20) / 180))


CASES = {
    "constant": (schedules.constant(0.3), lambda s, o: s.LambdaLR(o, lambda k: 1.0)),
    "warmup": (
        schedules.warmup(0.3, 10),
        lambda s, o: s.LambdaLR(o, lambda k: min((k + 1) / 11, 1.0)),
    ),
    "cosine": (schedules.cosine(0.3, 200), lambda s, o: s.CosineAnnealingLR(o, 200)),
    "cosine to a final rate": (
        schedules.cosine(0.3, 200, final=0.1),
        lambda s, o: s.CosineAnnealingLR(o, 200, eta_min=0.1),
    ),
    "cosine after a warm-up": (
        schedules.cosine(0.3, 200, warmup=20, final=0.015),
        lambda s, o: s.LambdaLR(o, warmed_cosine),
    ),
    "one cycle": (schedules.one_cycle(0.3, 200), lambda s, o: s.OneCycleLR(o, 0.3, 200)),
    "one cycle, all options": (
        schedules.one_cycle(0.3, 200, pct_start=0.15, div_factor=10, final_div_factor=100),
        lambda s, o: s.OneCycleLR(o, 0.3, 200, pct_start=0.15, div_factor=10, final_div_factor=100),
    ),
    "step": (schedules.step(0.3, 30, 0.5), lambda s, o: s.StepLR(o, 30, 0.5)),
    "exponential": (schedules.exponential(0.3, 0.97), lambda s, o: s.ExponentialLR(o, 0.97)),
    "scaled": (0.5 * schedules.exponential(0.6, 0.97), lambda s, o: s.ExponentialLR(o, 0.97)),
    "steps after a warm-up": (
        schedules.warmup(schedules.step(0.3, 30, 0.5), 10),
        lambda s, o: s.LambdaLR(o, lambda k: (k + 1) / 11 if k < 10 else 0.5 ** ((k - 10) // 30)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_every_step_as_pytorch(torch, name):
    schedule, make = CASES[name]
    wanted = theirs(torch, make, 200, 0.3)
    np.testing.assert_allclose(ours(schedule, 200), wanted, rtol=1e-12, atol=1e-16)
    # All steps at once, for a plot.
    np.testing.assert_allclose(schedule(palto.arange(200)).numpy(), wanted, rtol=1e-12, atol=1e-16)


@pytest.mark.parametrize(
    ("schedule", "last"),
    [
        (schedules.cosine(0.3, 20, warmup=5, final=0.1), 0.1),
        (schedules.one_cycle(0.3, 20), 0.3 / 25 / 1e4),
    ],
)
def test_the_last_rate_stays(schedule, last):
    assert float(schedule(20)) == pytest.approx(last, rel=1e-12)
    assert float(schedule(1000)) == pytest.approx(last, rel=1e-12)


def test_a_schedule_is_computed_from_the_step_cell():
    x = Parameter(np.zeros(1))
    optimizer = optim.SGD([x], schedules.exponential(1.0, 0.5))
    for _ in range(4):
        x.sum().backward()
        optimizer.step()
    assert x.item() == -(1 + 0.5 + 0.25 + 0.125)
    assert float(optimizer.lr) == 0.0625


def test_any_function_of_the_step_is_a_schedule():
    x = Parameter(np.zeros(1))
    optimizer = optim.SGD([x], lambda k: palto.where(k < 2, 1.0, 1 / (k + 1)))
    for _ in range(4):
        x.sum().backward()
        optimizer.step()
    assert x.item() == pytest.approx(-(1 + 1 + 1 / 3 + 1 / 4), rel=1e-12)


def test_a_rate_for_each_coordinate_by_a_schedule():
    x = Parameter(np.zeros(2))
    optimizer = optim.SGD(
        [x], lambda k: palto.asarray([1.0, 2.0]) / (palto.astype(k, "float32") + 1)
    )
    x.sum().backward()
    optimizer.step()
    np.testing.assert_array_equal(x.numpy(), [-1, -2])
    optimizer.lr = lambda k: palto.zeros((3,))
    x.sum().backward()
    with pytest.raises(ValueError, match=r"shape \(3,\) does not broadcast"):
        optimizer.step()
    np.testing.assert_array_equal(x.numpy(), [-1, -2])


def test_looks():
    assert repr(0.5 * schedules.step(0.1, 10)) == "0.5 * step(0.1, 10, 0.1)"
    assert repr(schedules.cosine(0.1, 10, warmup=2)) == "cosine(0.1, 10, warmup=2, final=0.0)"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.cosine(0.1, 10, warmup=10), "longer than its warm-up"),
        (lambda: schedules.one_cycle(0.1, 3), "must lie inside the run"),
        (lambda: schedules.step(0.1, 0), "every 1 steps or more"),
        (lambda: schedules.warmup(0.1, -1), "at least 0 steps"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises(ValueError, match=message):
        make()
