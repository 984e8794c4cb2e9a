"""LoRA: what it changes, what it leaves alone, merging, and PEFT's names."""

import numpy as np
import pytest

import palto
from palto import nn, optim


def small():
    palto.manual_seed(0)
    return nn.models.llama(50, context=16, width=16, heads=2, layers=2, hidden=24)


@pytest.fixture
def tokens():
    return np.random.default_rng(0).integers(50, size=(2, 9))


def moved(model, seed=1):
    """Learned something, so that B is no longer zero."""
    palto.manual_seed(seed)
    for layer in nn.lora.adapters(model).values():
        nn.init.normal_(layer.lora_B.weight, std=0.1)
    return model


def test_at_first_nothing_changes(tokens):
    before = small()(tokens).numpy()
    model = nn.lora.adapt(small(), rank=3)
    assert len(nn.lora.adapters(model)) == 14
    np.testing.assert_array_equal(model(tokens).numpy(), before)


def test_the_correction_is_that_of_the_paper():
    base = nn.Linear(4, 3, bias=False)
    layer = nn.lora.LoRA(base, rank=2, alpha=6.0)
    nn.init.normal_(layer.lora_B.weight)
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    W, A, B = (m.weight.numpy() for m in (base, layer.lora_A, layer.lora_B))
    np.testing.assert_allclose(layer(x).numpy(), x @ (W + 3 * B @ A).T, rtol=1e-5, atol=1e-5)


def test_only_the_small_layers_learn(tokens):
    model = nn.lora.adapt(small(), rank=3)
    frozen = {name: x.numpy() for name, x in model.state_dict().items() if "lora" not in name}
    optimizer = optim.Adam(model, lr=0.01)

    @palto.compile
    def step(tokens):
        loss = nn.functional.cross_entropy(model(tokens[:, :-1]), tokens[:, 1:])
        loss.backward()
        optimizer.step()
        return loss

    losses = [float(step(tokens)) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.15  # the embedding, which is the head, stays small
    after = model.state_dict()
    for name, value in frozen.items():
        np.testing.assert_array_equal(after[name].numpy(), value)
    trained = sum(x.size for x in model.parameters() if x.requires_grad)
    assert trained == sum(x.size for x in nn.lora.Adapter(model).state_dict().values())


def test_merged_it_is_the_same_network(tokens):
    model = moved(nn.lora.adapt(small(), rank=3, alpha=5.0))
    before = model(tokens).numpy()
    nn.lora.merge(model)
    assert not nn.lora.adapters(model)
    assert set(model.state_dict()) == set(small().state_dict())
    np.testing.assert_allclose(model(tokens).numpy(), before, rtol=1e-4, atol=1e-5)
    assert np.abs(before - small()(tokens).numpy()).max() > 1e-3


class Held(nn.Module):
    """Layers in containers."""

    def __init__(self):
        self.parts = [nn.Linear(4, 4), {"a": (nn.Linear(4, 4), nn.Linear(4, 3))}]

    def forward(self, x):
        first, second = self.parts
        for layer in (first, *second["a"]):
            x = layer(x)
        return x


def test_a_layer_in_a_container_is_adapted_and_merged_with_its_bias():
    model = nn.lora.adapt(Held(), rank=2, alpha=4.0, targets=("0", "1"))
    names = ["parts.0", "parts.1.a.0", "parts.1.a.1"]
    assert [*nn.lora.adapters(model)] == names
    for layer in nn.lora.adapters(model).values():
        nn.init.normal_(layer.lora_B.weight)
    x = palto.asarray(np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32))
    before = model(x).numpy()
    nn.lora.merge(model)
    assert [name for name, x in model.named_modules() if isinstance(x, nn.Linear)] == names
    np.testing.assert_allclose(model(x).numpy(), before, rtol=1e-4, atol=1e-5)


def test_an_adapter_goes_beside_another_copy_of_its_model(tokens):
    model = moved(nn.lora.adapt(small(), rank=3, alpha=5.0, targets=("q_proj", "down_proj")))
    state, about = nn.lora.Adapter(model).state_dict(), nn.lora.config(model)
    assert "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight" in state
    assert (about["r"], about["target_modules"]) == (3, ["down_proj", "q_proj"])
    other = nn.lora.load_state_dict(small(), state, about)
    np.testing.assert_array_equal(other(tokens).numpy(), model(tokens).numpy())


def test_another_model_s_adapter_is_refused():
    model = nn.lora.adapt(small(), rank=3)
    state, about = nn.lora.Adapter(model).state_dict(), nn.lora.config(model)
    other = nn.models.llama(50, context=16, width=16, heads=2, layers=1, hidden=24)
    with pytest.raises(ValueError, match=r"another model.*unexpected.*layers\.1\.self_attn"):
        nn.lora.load_state_dict(other, state, about)
    with pytest.raises(ValueError, match=r"the model has \(4, 16\)"):
        nn.lora.load_state_dict(small(), state, {**about, "r": 4})
    with pytest.raises(ValueError, match="a LoRA"):
        nn.lora.load_state_dict(small(), state, {**about, "peft_type": "IA3"})


def test_beside_a_quantised_layer():
    rng = np.random.default_rng(0)
    blocks = rng.integers(256, size=(5, 2 * 34), dtype=np.uint8)
    blocks[:, :2] = blocks[:, 34:36] = np.array([0.01], np.float16).view(np.uint8)
    base = nn.QuantizedLinear.from_blocks("Q8_0", blocks, 64)
    layer = nn.lora.LoRA(base, rank=2, alpha=2.0)
    nn.init.normal_(layer.lora_B.weight)
    x = palto.asarray(rng.normal(size=(3, 64)).astype(np.float32))

    def loss(x):
        return palto.sum(layer(x) ** 2)

    W = base.dequantize() + layer.lora_B.weight.numpy() @ layer.lora_A.weight.numpy()
    y = x.numpy() @ W.T
    np.testing.assert_allclose(layer(x).numpy(), y, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(palto.grad(loss)(x).numpy(), 2 * y @ W, rtol=1e-3, atol=1e-3)
    with pytest.raises(TypeError, match="keeps its weight quantised"):
        nn.lora.merge(nn.Sequential(layer))


def test_what_cannot_be_adapted_is_said():
    with pytest.raises(ValueError, match="no layer named nothing"):
        nn.lora.adapt(small(), targets=("nothing",))
    with pytest.raises(ValueError, match="already"):
        nn.lora.adapt(nn.lora.adapt(small()))
    with pytest.raises(ValueError, match="rank"):
        nn.lora.adapt(small(), rank=0)
    with pytest.raises(TypeError, match="ReLU is none"):
        nn.lora.LoRA(nn.ReLU(), 2, 1.0)
