import copy

import numpy as np
import pytest

import palto
from palto import nn


class Block(nn.Module):
    def __init__(self, width):
        self.inner = nn.Linear(width, width)
        self.scale = nn.Parameter(np.float32(1))

    def forward(self, x):
        return self.inner(x) * self.scale


class Net(nn.Module):
    def __init__(self):
        self.blocks = [Block(3), Block(3)]
        self.heads = {"a": nn.Linear(3, 2), "b": (nn.Linear(3, 4), nn.ReLU())}
        self.norm = nn.BatchNorm1d(3)
        self.scratch = nn.Buffer(np.zeros(2, np.float32), persistent=False)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["a"](self.norm(x))


NAMES = [
    "blocks.0.scale", "blocks.0.inner.weight", "blocks.0.inner.bias",
    "blocks.1.scale", "blocks.1.inner.weight", "blocks.1.inner.bias",
    "heads.a.weight", "heads.a.bias", "heads.b.0.weight", "heads.b.0.bias",
    "norm.weight", "norm.bias",
]  # fmt: skip
BUFFERS = ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"]


def values(model):
    return {name: cell.numpy() for name, cell in model.named_cells()}


def same(left, right):
    return left.keys() == right.keys() and all((left[k] == right[k]).all() for k in left)


def test_what_is_inside_is_found_in_lists_tuples_and_dicts():
    model = Net()
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert [name for name, _ in model.named_buffers()] == ["scratch", *BUFFERS]
    assert [name for name, _ in model.named_children()] == [
        "blocks.0", "blocks.1", "heads.a", "heads.b.0", "heads.b.1", "norm",
    ]  # fmt: skip
    assert len(list(model.modules())) == 9
    assert [name for name, _ in model.blocks[0].own_cells()] == ["scale"]


def test_cells_know_their_full_names():
    model = nn.Sequential(Net(), nn.Linear(2, 2))
    for name, cell in model.named_cells():
        assert cell.name == name
    with pytest.raises(ValueError, match=r"layers\.1\.bias has shape \(2,\) and cannot take"):
        model[1].bias.assign(palto.zeros(3))


def test_modes_reach_everything():
    model = Net()
    assert all(m.training for m in model.modules())
    assert model.eval() is model
    assert not any(m.training for m in model.modules())
    assert all(m.training for m in model.train().modules())
    model.requires_grad_(False)
    assert not any(p.requires_grad for p in model.parameters())
    model.to(palto.float64)
    assert {c.dtype for _, c in model.named_cells()} == {palto.float64, palto.int64}


def test_a_state_dict_goes_round(rng):
    first, second = Net(), Net()
    first(palto.asarray(rng.normal(size=(8, 3)).astype(np.float32)))  # statistics move
    state = first.state_dict()
    assert set(state) == {*NAMES, *BUFFERS}
    assert not same(values(first), values(second))
    second.load_state_dict(state)
    assert same(values(first), values(second))
    before = state["norm.running_mean"].tolist()
    first.norm.reset_running_stats()
    assert state["norm.running_mean"].tolist() == before  # a state does not change any more
    second.load_state_dict({name: value.numpy() for name, value in state.items()})
    wide = {name: value.numpy().astype(np.float64) for name, value in state.items()}
    second.load_state_dict(wide)
    assert second.norm.weight.dtype == palto.float32


def test_a_state_that_does_not_fit_changes_nothing():
    model, before = Net(), None
    before = values(model)
    state = {
        name: palto.ones(cell.shape) for name, cell in model.named_cells() if name != "scratch"
    }
    del state["norm.bias"], state["heads.a.bias"]
    state["surplus"] = palto.ones(1)
    state["heads.a.weight"] = palto.ones((5, 3))
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(state)
    assert str(caught.value) == (
        "this state does not fit Net: missing: heads.a.bias, norm.bias; unexpected: surplus; "
        "heads.a.weight: the model has (2, 3), given (5, 3)"
    )
    assert same(values(model), before)
    del state["heads.a.weight"]
    model.load_state_dict(state, strict=False)
    assert model.norm.weight.tolist() == [1, 1, 1]
    assert model.norm.bias.tolist() == [0, 0, 0]


def test_tied_parameters_are_one():
    class Tied(nn.Module):
        def __init__(self):
            self.embed = nn.Embedding(5, 3)
            self.out = nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            return self.out(self.embed(tokens))

    model = Tied()
    assert [name for name, _ in model.named_parameters()] == ["embed.weight"]
    assert list(model.state_dict()) == ["embed.weight"]
    tokens = palto.asarray([1, 2])
    model(tokens).sum().backward()
    weight = model.embed.weight.numpy()
    expected = np.tile(weight[[1, 2]].sum(0), (5, 1))  # through the output ...
    expected[[1, 2]] += weight.sum(0)  # ... and through the input
    np.testing.assert_allclose(model.out.weight.grad.numpy(), expected, rtol=1e-5)
    assert model.summary(((2,), palto.int64)).parameters == 15

    shared = nn.Linear(3, 3)
    twice = nn.Sequential(shared, nn.ReLU(), shared)
    assert [name for name, _ in twice.named_parameters()] == ["layers.0.weight", "layers.0.bias"]


def test_a_copy_shares_nothing():
    model = Net()
    model.heads["a"].weight = model.blocks[0].inner.weight  # tied
    twin = copy.deepcopy(model)
    assert twin.heads["a"].weight is twin.blocks[0].inner.weight
    assert same(values(model), values(twin))
    nn.init.ones_(twin.blocks[0].inner.weight)
    assert not same(values(model), values(twin))
    assert not ({id(c) for c in model.parameters()} & {id(c) for c in twin.parameters()})


def test_errors_name_the_innermost_layer():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no")

    model = nn.Sequential(nn.Identity(), nn.Sequential(Broken()))
    with pytest.raises(RuntimeError) as caught:
        model(palto.zeros(1))
    assert caught.value.__notes__ == ["in layer Sequential.layers.1.layers.0: Broken()"]
    with pytest.raises(NotImplementedError, match="Module defines no forward"):
        nn.Module()(1)


def test_sequential():
    model = nn.Sequential(nn.Linear(3, 4), palto.tanh, nn.Linear(4, 2))
    assert model(palto.zeros((5, 3))).shape == (5, 2)
    assert len(model) == 3
    assert model[2] is list(model)[2]
    assert model[:2](palto.zeros((5, 3))).shape == (5, 4)
    assert model[0].weight is model[:1][0].weight
    with pytest.raises(TypeError, match="layer 1 is 3, not a module or function"):
        nn.Sequential(nn.ReLU(), 3)


def test_looks():
    assert repr(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU()))) == (
        "Sequential(\n"
        "  (layers.0): Linear(3, 4)\n"
        "  (layers.1): Sequential(\n"
        "    (layers.0): ReLU()\n"
        "  )\n"
        ")"
    )


def test_a_compiled_model_sees_its_mode_change():
    model = nn.Sequential(nn.Sequential(nn.Dropout(0.5)))
    forward = palto.compile(lambda x: model(x))
    x = palto.ones(64)
    assert forward(x).tolist() != x.tolist()
    model.eval()
    assert forward(x).tolist() == x.tolist()
    model[0][0].train()
    assert forward(x).tolist() != x.tolist()


def test_the_whole_net_compiles_to_what_it_computes(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    labels = palto.asarray(rng.integers(0, 2, 8))
    results = []
    for wrap in (lambda f: f, palto.compile):
        palto.manual_seed(1)
        model = Net()

        def step(x, labels, model=model):
            loss = nn.functional.cross_entropy(model(x), labels)
            loss.backward()
            return loss, model.heads["a"].weight.grad

        loss, gradient = wrap(step)(palto.asarray(x), labels)
        results.append((loss.item(), gradient.numpy(), model.norm.running_mean.numpy()))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(results[0][2], results[1][2], rtol=1e-6)
