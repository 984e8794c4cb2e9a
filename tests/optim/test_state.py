"""State, options, learning rates, and what is refused."""

import numpy as np
import pytest

import palto
from palto import optim
from palto.nn.module import Module, Parameter

from .conftest import Case, assert_same, values

OPTIMIZERS = {
    "sgd": lambda p, **options: optim.SGD(p, 0.1, momentum=0.9, **options),
    "adam": lambda p, **options: optim.Adam(p, 0.05, **options),
    "adamw": lambda p, **options: optim.AdamW(p, 0.05, **options),
}


@pytest.fixture(params=OPTIMIZERS)
def make(request):
    return OPTIMIZERS[request.param]


# --- Names ---------------------------------------------------------------------------------------


def test_cells_get_their_full_names(case):
    network = case.network()
    optimizer = optim.Adam(network, average="tail")
    assert network.hidden.weight.name == "hidden.weight"
    assert list(dict(optimizer.named_cells())) == ["step", "lr"] + [
        f"{name}.{part}" for name, _ in network.named_parameters() for part in ("v", "G", "average")
    ]
    for name, cell in optimizer.named_cells():
        assert cell.name == f"optimizer.{name}"


def test_a_part_of_a_model_does_not_shorten_names(case):
    network = case.network()
    optim.SGD(network)
    optim.SGD(network.out)
    assert network.out.weight.name == "out.weight"
    case = Case()
    network = case.network()
    optim.SGD(network.out)
    optim.SGD(network)
    assert network.out.weight.name == "out.weight"


def test_names_of_parameters_given_in_other_ways(case):
    def names(params):
        return [n for n, _ in optim.SGD(params, momentum=0.9).named_cells()]

    network = case.network()
    assert names(network.out.parameters()) == ["step", "lr", "0.v", "1.v"]
    assert names(network.out.weight) == ["step", "lr", "0.v"]
    assert names(network.out.named_parameters()) == ["step", "lr", "weight.v", "bias.v"]
    assert names([{"params": network.out}, {"params": [network.hidden.bias]}]) == [
        "step", "0.lr", "0.weight.v", "0.bias.v", "1.lr", "1.0.v",
    ]  # fmt: skip


def test_tied_parameters_are_one(case):
    network = case.network()
    network.again = network.out
    assert len(list(optim.SGD(network).slots())) == 4


# --- Exact resumption ----------------------------------------------------------------------------


@pytest.mark.parametrize("average", [None, "uniform", "tail"])
def test_a_run_continues_to_the_bit(case32, make, average):
    network = case32.network()
    optimizer = make(network, average=average)
    case32.train(network, optimizer, 5)
    optimizer.lr = 0.03
    saved = network.state_dict(), optimizer.state_dict()
    case32.train(network, optimizer, 5)

    other = case32.network()
    resumed = make(other, average=average)
    other.load_state_dict(saved[0])
    resumed.load_state_dict({name: value.numpy() for name, value in saved[1].items()})
    case32.train(other, resumed, 5)
    assert_same(other, network)
    for (name, cell), (_, wanted) in zip(
        resumed.named_cells(), optimizer.named_cells(), strict=True
    ):
        np.testing.assert_array_equal(cell.numpy(), wanted.numpy(), err_msg=name)
    assert resumed.count.item() == 10


def test_saved_state_does_not_change(case, make):
    network = case.network()
    optimizer = make(network)
    state = optimizer.state_dict()
    before = {name: value.numpy() for name, value in state.items()}
    case.train(network, optimizer, 2)
    for name, value in state.items():
        np.testing.assert_array_equal(value.numpy(), before[name])


def test_state_that_does_not_fit(case):
    optimizer = optim.Adam(case.network())
    case.train(network := case.network(), optim.Adam(network), 1)
    state = dict(optim.Adam(network).state_dict())
    del state["out.bias.G"]
    state |= {
        "extra": np.zeros(3),
        "out.bias.v": np.zeros(4),
        "step": np.array(7),
        "hidden.bias.v": np.zeros(5, np.float32),
    }
    with pytest.raises(ValueError) as error:
        optimizer.load_state_dict(state)
    for part in (
        "does not fit Adam",
        "missing: out.bias.G",
        "unexpected: extra",
        "out.bias.v is float64(3,), given float64(4,)",
        "hidden.bias.v is float64(5,), given float32(5,)",
    ):
        assert part in str(error.value)
    assert optimizer.count.item() == 0


# --- Learning rate -------------------------------------------------------------------------------


def test_lr_reads_and_writes(case):
    network = case.network()
    optimizer = optim.SGD(network, lr=0.1)
    assert float(optimizer.lr) == 0.1
    before = palto.tensor.graph.mutation_count
    optimizer.lr *= 0.5
    optimizer.lr = palto.asarray(0.25)
    optimizer.lr = 0.125
    assert palto.tensor.graph.mutation_count == before
    assert float(optimizer.lr) == 0.125
    start = values(network)
    case.loss(network).backward()
    gradient = network.out.bias.grad.numpy()
    optimizer.step()
    np.testing.assert_array_equal(network.out.bias.numpy(), start["out.bias"] - 0.125 * gradient)


def test_lr_from_number_to_schedule_and_back(case):
    optimizer = optim.SGD(case.network(), lr=0.1)
    before = palto.tensor.graph.mutation_count
    optimizer.lr = optim.schedules.cosine(0.2, 10)
    assert palto.tensor.graph.mutation_count > before
    assert float(optimizer.lr) == 0.2
    assert "lr" not in optimizer.state_dict()
    assert "lr=cosine(0.2, 10, warmup=0, final=0.0)" in repr(optimizer)
    optimizer.lr = 0.3
    assert float(optimizer.lr) == 0.3
    assert "lr=0.3" in repr(optimizer)
    assert "lr" in optimizer.state_dict()


def test_lr_of_groups(case):
    network = case.network()
    optimizer = optim.SGD(
        [{"params": network.hidden, "lr": 0.5}, {"params": network.out}], 0.1, weight_decay=0.2
    )
    assert [float(group.lr) for group in optimizer.groups] == [0.5, 0.1]
    optimizer.groups[1].lr = 0.3
    optimizer.groups[0].weight_decay = 0.0
    start = values(network)
    case.loss(network).backward()
    gradient = {name: cell.grad.numpy() for name, cell in network.named_parameters()}
    optimizer.step()
    for name, cell in network.named_parameters():
        lr, decay = (0.5, 0.0) if "hidden" in name else (0.3, 0.2)
        wanted = start[name] - lr * (gradient[name] + decay * start[name])
        np.testing.assert_allclose(cell.numpy(), wanted, rtol=1e-14)
    with pytest.raises(ValueError, match=r"2 groups, each with a learning rate of its own"):
        optimizer.lr = 1.0
    with pytest.raises(ValueError, match=r"use optimizer.groups\[0\].lr"):
        print(optimizer.lr)


def test_a_rate_for_each_coordinate_must_fit(case):
    network = case.network()
    optimizer = optim.Adam(network.out.bias, palto.asarray([0.1, 0.2, 0.3]))
    assert optimizer.lr.shape == (3,)
    with pytest.raises(ValueError, match=r"shape \(4,\) does not broadcast to .*bias of shape \(3"):
        optim.Adam(network.out.bias, palto.zeros((4,)))
    with pytest.raises(ValueError, match="groups of their own"):
        optim.Adam(network, palto.zeros((3, 5)))


def test_changed_options_are_noted(case):
    optimizer = optim.Adam(case.network())
    for change in (
        lambda: setattr(optimizer.groups[0], "betas", (0.5, 0.5)),
        lambda: setattr(optimizer, "variant", "pytorch"),
    ):
        before = palto.tensor.graph.mutation_count
        change()
        assert palto.tensor.graph.mutation_count > before


# --- Steps ---------------------------------------------------------------------------------------


def test_frozen_parameters_stay(case, make):
    network = case.network()
    network.hidden.requires_grad_(False)
    start = values(network)
    optimizer = make(network)
    assert not [name for name, _ in optimizer.named_cells() if "hidden" in name]
    case.train(network, optimizer, 3)
    for name, cell in network.named_parameters():
        assert np.array_equal(cell.numpy(), start[name]) == ("hidden" in name)


def test_freezing_later_and_unfreezing(case, make):
    network = case.network()
    optimizer = make(network)
    case.train(network, optimizer, 2)
    network.hidden.requires_grad_(False)
    middle = values(network)
    case.train(network, optimizer, 2)
    np.testing.assert_array_equal(network.hidden.weight.numpy(), middle["hidden.weight"])
    network.hidden.requires_grad_(True)
    case.train(network, optimizer, 2)
    assert not np.array_equal(network.hidden.weight.numpy(), middle["hidden.weight"])


def test_gradients_are_used_once(case, make):
    network = case.network()
    optimizer = make(network)
    case.train(network, optimizer, 1)
    assert network.out.bias.grad is not None
    before, count = values(network), optimizer.count.item()
    with pytest.raises(RuntimeError, match="no gradient has been computed since the last step for"):
        optimizer.step()
    assert_same(network, before)
    assert optimizer.count.item() == count


def test_a_parameter_without_a_gradient_is_named_before_anything_moves(case, make):
    network = case.network()
    network.extra = Parameter(np.zeros(3))
    optimizer = make(network)
    before = values(network)
    state = {name: value.numpy() for name, value in optimizer.state_dict().items()}
    case.loss(network).backward()
    with pytest.raises(RuntimeError, match=r"since the last step for extra\. .*requires_grad_\(F"):
        optimizer.step()
    assert_same(network, before)
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name])
    network.extra.requires_grad_(False)
    optimizer.step()


def test_many_missing_gradients_are_counted():
    optimizer = optim.SGD([Parameter(np.zeros(1)) for _ in range(9)])
    with pytest.raises(RuntimeError, match=r"parameter 0, .*parameter 4 and 4 more"):
        optimizer.step()


def test_zero_grad_leaves_a_step_out(case):
    network = case.network()
    optimizer = optim.SGD(network)
    case.loss(network).backward()
    with pytest.raises(palto.BackwardError, match="no optimiser has used yet"):
        case.loss(network).backward()
    optimizer.zero_grad()
    case.loss(network).backward()
    optimizer.step()


def test_accumulated_gradients_make_one_step(case):
    network, other = case.network(), case.network()
    optimizer = optim.SGD(network, 0.1)
    case.loss(network).backward()
    (2 * case.loss(network)).backward(accumulate=True)
    optimizer.step()
    optimizer = optim.SGD(other, 0.1)
    (3 * case.loss(other)).backward()
    optimizer.step()
    assert_same(network, other, 1e-14)


def test_two_losses_and_two_optimisers_in_one_step():
    """The generator's and the discriminator's step, both from gradients at the old values."""

    class Pair(Module):
        def __init__(self):
            self.generator = Parameter(np.array([1.0, 2.0]))
            self.judge = Parameter(np.array([0.5, -1.0]))

        def forward(self):
            return (self.generator * self.judge).sum()

    pair = Pair()
    first, second = optim.SGD([pair.generator], 0.1), optim.SGD([pair.judge], 0.1, momentum=0.9)
    for _ in range(3):
        g, j = pair.generator.numpy(), pair.judge.numpy()
        score = pair()
        score.backward(inputs=[pair.generator], retain_graph=True)
        (-score).backward(inputs=[pair.judge])
        first.step()
        np.testing.assert_allclose(pair.generator.numpy(), g - 0.1 * j)
        np.testing.assert_array_equal(pair.judge.numpy(), j)
        second.step()
    with pytest.raises(RuntimeError, match="no gradient"):
        pair().backward(inputs=[pair.generator])
        second.step()


def test_complex_parameters(torch):
    start = np.array([1 + 2j, -0.5j], np.complex64)
    x, y = Parameter(start), torch.tensor(start, requires_grad=True)
    ours = optim.SGD([x], 0.1, momentum=0.9, weight_decay=0.1)
    theirs = torch.optim.SGD([y], 0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(5):
        (palto.abs(x - 1.0) ** 2).sum().backward()
        ours.step()
        theirs.zero_grad()
        (abs(y - 1.0) ** 2).sum().backward()
        theirs.step()
    np.testing.assert_allclose(x.numpy(), y.detach().numpy(), rtol=1e-5)
    with pytest.raises(TypeError, match="is complex; keep its real and imaginary part"):
        optim.Adam([x])


# --- Mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: optim.SGD([], 0.1), ValueError, "there are no parameters here"),
        (lambda p: optim.SGD([3.0]), TypeError, "a parameter is wanted here, this is 3.0"),
        (lambda p: optim.SGD([p + 1]), TypeError, "whose value never changes"),
        (lambda p: optim.SGD([p, p]), ValueError, "given one parameter twice, as '0' and '1'"),
        (
            lambda p: optim.SGD([{"params": [p]}, {"params": p}]),
            ValueError,
            "twice, as '0.0' and '1.0'",
        ),
        (lambda p: optim.SGD([{"lr": 1.0}]), TypeError, "a list of dicts, each with 'params'"),
        (lambda p: optim.SGD([{"params": p}, p]), TypeError, "group 1 is Parameter"),
        (
            lambda p: optim.SGD([{"params": p, "momentun": 0.9}]),
            ValueError,
            "no option momentun; it has lr, momentum",
        ),
        (lambda p: optim.SGD(p, -0.1), ValueError, "finite number from 0 up, got -0.1"),
        (lambda p: optim.SGD(p, float("nan")), ValueError, "finite number from 0 up, got nan"),
        (lambda p: optim.SGD(p, momentum=-1), ValueError, "from 0 up, got -1 and 0.0"),
        (lambda p: optim.SGD(p, nesterov=True), ValueError, "nesterov=True wants a momentum"),
        (lambda p: optim.Adam(p, betas=(0.9, 1.0)), ValueError, r"two numbers in \[0, 1\)"),
        (lambda p: optim.Adam(p, eps=-1), ValueError, "eps and weight_decay"),
        (lambda p: optim.Adam(p, variant="keras"), ValueError, "'lecture' or 'pytorch', got 'k"),
        (lambda p: optim.Adam(p, average="mean"), ValueError, "None, 'uniform' or 'tail'"),
        (lambda p: optim.Adam(p, average="tail", tail=0), ValueError, "above 0 and at most 1"),
        (
            lambda p: optim.Adam(p.requires_grad_(False)),
            ValueError,
            "nothing to train, every parameter is frozen",
        ),
    ],
)
def test_mistakes_when_made(make, error, message):
    with pytest.raises(error, match=message):
        make(Parameter(np.zeros(2)))


def test_mistakes_after_it_was_made(case):
    network = case.network()
    network.hidden.requires_grad_(False)
    optimizer = optim.SGD(network)
    network.hidden.requires_grad_(True)
    case.loss(network).backward()
    with pytest.raises(RuntimeError, match=r"hidden\.weight was frozen when the optimiser was ma"):
        optimizer.step()
    network.requires_grad_(False)
    with pytest.raises(RuntimeError, match="every parameter is frozen"):
        optimizer.step()

    network = case.network()
    optimizer = optim.SGD(network)
    optimizer.groups[0].momentum = 0.9
    case.loss(network).backward()
    with pytest.raises(RuntimeError, match="options that need state of their own, come before"):
        optimizer.step()

    network = case.network()
    optimizer = optim.Adam(network)
    network.to("float32")
    network.out.bias.sum().backward()
    with pytest.raises(RuntimeError, match=r"model\.to\(dtype\)"):
        optimizer.step()
    with pytest.raises(AttributeError, match="no 'momentum'; it has lr, betas, eps, weight_decay"):
        print(optimizer.groups[0].momentum)


def test_an_optimiser_of_ones_own(case):
    class Sign(optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def moments(self, group):
            return ()

        def rule(self, group, k, lr):
            return lambda x, g: (x - palto.astype(lr, x.dtype) * palto.sign(g),)

    network = case.network()
    losses = case.train(network, Sign(network, 0.01), 20)
    assert losses[-1] < losses[0]
    with pytest.raises(NotImplementedError, match="Optimizer defines no moments"):
        optim.Optimizer(network, {"lr": 0.1})
