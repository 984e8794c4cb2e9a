import math

import numpy as np
import pytest

import palto
from palto import nn, optim
from palto.nn import models

from .conftest import compare, count

VOCABULARY, CONTEXT = 23, 12


@pytest.fixture
def model():
    return models.gpt(VOCABULARY, CONTEXT, width=16, heads=4, layers=2)


def tokens(*shape, seed=0):
    return palto.asarray(np.random.default_rng(seed).integers(VOCABULARY, size=shape))


def test_shapes_and_parameters(model):
    width, layers = 16, 2
    attention = 3 * width * width + 3 * width + width * width + width
    mlp = 2 * 4 * width * width + 5 * width
    norms = 4 * width
    wanted = (VOCABULARY + CONTEXT) * width + layers * (attention + mlp + norms) + 2 * width
    assert count(model) == wanted
    assert wanted == (VOCABULARY + CONTEXT) * width + layers * (12 * width**2 + 13 * width) + 32
    for time in (1, 5, CONTEXT):
        assert model(tokens(3, time)).shape == (3, time, VOCABULARY)
    assert count(models.gpt(256)) == 1_853_568


def test_summary(model):
    assert f"{count(model):,}" in str(model.summary(tokens(2, 5)))


def gpt_in(torch, heads, layers):
    f = torch.nn.functional

    def forward(w, z):
        width = w["tokens.weight"].shape[1]

        def linear(at, x):
            return f.linear(x, w[f"{at}.weight"], w[f"{at}.bias"])

        def norm(at, x):
            return f.layer_norm(x, (width,), w[f"{at}.weight"], w[f"{at}.bias"])

        x = w["tokens.weight"][z] + w["positions.weight"][: z.shape[1]]
        for number in range(layers):
            at = f"blocks.{number}"
            y = norm(f"{at}.norm1", x).transpose(0, 1)
            mask = torch.full((len(y), len(y)), -torch.inf, dtype=y.dtype).triu(1)
            y, _ = f.multi_head_attention_forward(
                y, y, y, width, heads, w[f"{at}.attention.in_proj_weight"],
                w[f"{at}.attention.in_proj_bias"], None, None, False, 0.0,
                w[f"{at}.attention.out_proj.weight"], w[f"{at}.attention.out_proj.bias"],
                attn_mask=mask,
            )  # fmt: skip
            x = x + y.transpose(0, 1)
            y = f.gelu(linear(f"{at}.expand", norm(f"{at}.norm2", x)), approximate="tanh")
            x = x + linear(f"{at}.contract", y)
        return norm("norm", x) @ w["tokens.weight"].T

    return forward


def test_as_pytorch(torch, model):
    model.to("float64")
    rng = np.random.default_rng(4)
    for parameter in model.parameters():  # biases, too, shall matter
        parameter.assign(rng.normal(size=parameter.shape) * 0.3)
    compare(torch, model, gpt_in(torch, 4, 2), tokens(3, 9))


def test_as_gpt2_starts(model):
    model = models.gpt(200, 50, width=64, heads=4, layers=8)
    for name, parameter in model.named_parameters():
        value = parameter.numpy()
        if name.endswith("bias"):
            assert not value.any(), name
        elif "norm" in name:
            assert (value == 1).all(), name
        else:
            branch_end = "out_proj" in name or "contract" in name
            wanted = 0.02 / 4 if branch_end else 0.02
            assert value.std() == pytest.approx(wanted, rel=0.05), name
    logits = model(palto.asarray(np.random.default_rng(0).integers(200, size=(4, 50))))
    loss = nn.functional.cross_entropy(logits, palto.arange(200).reshape(4, 50))
    assert loss.item() == pytest.approx(math.log(200), rel=0.02)


def test_no_token_sees_the_next_ones(model):
    x = tokens(1, CONTEXT).numpy()
    base = model(palto.asarray(x)).numpy()
    for place in (3, CONTEXT - 1):
        changed = x.copy()
        changed[0, place] = (changed[0, place] + 1) % VOCABULARY
        other = model(palto.asarray(changed)).numpy()
        np.testing.assert_allclose(other[0, :place], base[0, :place], rtol=1e-5, atol=1e-7)
        assert not np.allclose(other[0, place], base[0, place])
    np.testing.assert_allclose(
        model(palto.asarray(x[:, :5])).numpy(), base[:, :5], rtol=1e-5, atol=1e-7
    )


def test_the_head_is_the_embedding(model):
    assert sum(parameter.shape[0] == VOCABULARY for parameter in model.parameters()) == 1
    # A token that does not stand in the text is still a possible answer, so it has a gradient.
    x = palto.asarray(np.zeros((1, 4), np.int64))
    model(x)[:, :, 7].sum().backward()
    assert np.abs(model.tokens.weight.grad.numpy()[7]).sum() > 0


def test_training_and_inference():
    model = models.gpt(VOCABULARY, CONTEXT, width=16, heads=2, layers=1, dropout=0.2)
    x = tokens(2, 6)
    assert not np.array_equal(model(x).numpy(), model(x).numpy())
    model.eval()
    np.testing.assert_array_equal(model(x).numpy(), model(x).numpy())


@pytest.mark.parametrize("compiled", [False, True])
def test_a_text_is_learnt(model, compiled):
    text = tokens(4, CONTEXT + 1).numpy()
    optimizer = optim.AdamW(model, 1e-2)

    def step(x, y):
        logits = model(x)
        loss = nn.functional.cross_entropy(logits, y)
        loss.backward()
        optim.clip_grad_norm_(optimizer, 1.0)
        optimizer.step()
        return loss

    run = palto.compile(step) if compiled else step
    losses = [
        run(palto.asarray(text[:, :-1]), palto.asarray(text[:, 1:])).item() for _ in range(15)
    ]
    assert losses[0] == pytest.approx(math.log(VOCABULARY), rel=0.05)
    assert losses[-1] < 0.7 * losses[0]


def test_mistakes(model):
    with pytest.raises(ValueError, match="does not split into 5 heads"):
        models.gpt(VOCABULARY, width=16, heads=5)
    with pytest.raises(ValueError, match=r"time at most 12, got shape \(1, 13\); cut the text"):
        model(tokens(1, CONTEXT + 1))
    with pytest.raises(ValueError, match=r"\(batch, time\)"):
        model(tokens(5))
    with pytest.raises(IndexError, match="embedding index"):
        model(palto.asarray([[VOCABULARY]]))
