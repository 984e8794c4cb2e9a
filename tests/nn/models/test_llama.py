import math

import numpy as np
import pytest

import palto
from palto import nn
from palto.nn import models
from palto.nn.models.llama import rotary_angles, rotate

from .conftest import compare, count

VOCABULARY, CONTEXT = 23, 16
FACTORS = (1.0, 2.0)


@pytest.fixture
def model():
    return new_model()


def new_model(**options):
    return models.llama(
        VOCABULARY, CONTEXT, width=16, heads=4, key_value_heads=2, layers=2, **options
    )


def tokens(*shape, seed=0):
    return palto.asarray(np.random.default_rng(seed).integers(VOCABULARY, size=shape))


def test_shapes_and_parameters(model):
    width, hidden = 16, 64
    block = width * (16 + 8 + 8 + 16) + 3 * width * hidden + 2 * width
    assert count(model) == VOCABULARY * width + 2 * block + width
    assert count(new_model(tied=False)) == count(model) + VOCABULARY * width
    for time in (1, 5, CONTEXT):
        assert model(tokens(3, time)).shape == (3, time, VOCABULARY)


def llama_in(torch, heads, groups, layers, factors=None, tied=True):
    """Hugging Face's LlamaForCausalLM, as far as it is used here."""
    f = torch.nn.functional

    def forward(w, z):
        x = w["embed_tokens.weight"][z]
        batch, time, width = x.shape
        head = width // heads
        turns = 10_000.0 ** (-torch.arange(0, head, 2) / head)
        turns = turns if factors is None else turns / torch.tensor(factors)
        angles = torch.outer(torch.arange(time).float(), turns.float())
        cos, sin = (torch.cat([y, y], -1).to(x.dtype) for y in (angles.cos(), angles.sin()))

        def turn(y):
            first, second = y.chunk(2, -1)
            return y * cos + torch.cat([-second, first], -1) * sin

        def norm(at, x):
            return f.rms_norm(x, (width,), w[f"{at}.weight"], 1e-5)

        def split(x, count):
            return x.view(batch, time, count, head).transpose(1, 2)

        for number in range(layers):
            at = f"layers.{number}"
            y = norm(f"{at}.input_layernorm", x)
            q, k, v = (y @ w[f"{at}.self_attn.{p}_proj.weight"].T for p in "qkv")
            y = f.scaled_dot_product_attention(
                turn(split(q, heads)), turn(split(k, groups)), split(v, groups),
                is_causal=True, enable_gqa=True,
            )  # fmt: skip
            y = y.transpose(1, 2).reshape(batch, time, width)
            x = x + y @ w[f"{at}.self_attn.o_proj.weight"].T
            y = norm(f"{at}.post_attention_layernorm", x)
            gate, up = (y @ w[f"{at}.mlp.{p}_proj.weight"].T for p in ("gate", "up"))
            x = x + (f.silu(gate) * up) @ w[f"{at}.mlp.down_proj.weight"].T
        return norm("norm", x) @ w["embed_tokens.weight" if tied else "lm_head.weight"].T

    return forward


@pytest.mark.parametrize("options", [{}, {"tied": False}, {"rope_factors": FACTORS}], ids=str)
def test_as_pytorch(torch, options):
    model = new_model(**options)
    model.to("float64")
    rng = np.random.default_rng(4)
    for parameter in model.parameters():
        parameter.assign(rng.normal(size=parameter.shape) * 0.3)
    theirs = llama_in(torch, 4, 2, 2, options.get("rope_factors"), options.get("tied", True))
    compare(torch, model, theirs, tokens(3, 9), rtol=1e-6)


def test_turned_vectors_match_by_distance():
    rng = np.random.default_rng(0)
    x, y = (palto.asarray(rng.normal(size=(1, 8)).astype(np.float32)) for _ in range(2))

    def product(at, other):
        turned = [
            rotate(z, *rotary_angles(palto.asarray([place]), 8))
            for z, place in ((x, at), (y, other))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), rel=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 5), rel=1e-2)
    assert product(0, 0) == pytest.approx(float((x * y).sum()), rel=1e-6)


def test_starts_as_if_it_knew_nothing(model):
    logits = model(tokens(4, CONTEXT))
    loss = nn.functional.cross_entropy(logits, tokens(4, CONTEXT, seed=1))
    assert loss.item() == pytest.approx(math.log(VOCABULARY), rel=0.05)


@pytest.mark.parametrize("compiled", [False, True])
def test_token_by_token_with_a_cache(model, compiled):
    model.eval()
    text = tokens(2, CONTEXT).numpy()
    cache = model.new_cache(batch=2)

    def read(tokens, position, length):
        return model(tokens, cache, position, length)

    prefill = decode = read
    if compiled:
        chunk, length = palto.Dim("chunk", max=8), palto.Dim("length", max=CONTEXT)
        prefill = palto.compile(dynamic_shapes={"tokens": {1: chunk}, "length": length})(read)
        decode = palto.compile(dynamic_shapes={"length": length})(read)
    found = [prefill(text[:, start:end], np.asarray(start), end) for start, end in ((0, 5), (5, 9))]
    for place in range(9, CONTEXT):
        found.append(decode(text[:, place : place + 1], np.asarray(place), place + 1))
    wanted = model(palto.asarray(text)).numpy()
    together = np.concatenate([part.numpy() for part in found], 1)
    np.testing.assert_allclose(together, wanted, atol=1e-5 * np.abs(wanted).max())
    if compiled:
        assert (prefill.program_count, decode.program_count) == (1, 1)


def test_no_step_copies_a_cache(model):
    cache = model.new_cache()
    length = palto.Dim("length", max=CONTEXT)

    @palto.compile(dynamic_shapes={"length": length})
    def decode(tokens, length):
        return model(tokens, cache, length - 1, length)

    for place in range(1, 4):
        decode(tokens(1, 1), place)
    updates = [row for row in decode.explain().rows if "dynamic_update_slice" in row.primitives]
    assert len(updates) == 4  # keys and values of two layers
    one_token = 2 * 4 * 4  # two heads of four numbers of four bytes
    assert all(row.written == one_token for row in updates)


def test_layers_may_come_from_elsewhere():
    asked = []

    def linear(name, inputs, outputs):
        asked.append((name, inputs, outputs))
        return nn.Linear(inputs, outputs, bias=False)

    new_model(linear=linear, tied=False)
    assert asked[0] == ("layers.0.self_attn.q_proj", 16, 16)
    assert asked[1] == ("layers.0.self_attn.k_proj", 16, 8)
    assert asked[-1] == ("lm_head", 16, VOCABULARY)
    assert len(asked) == 2 * 7 + 1


def test_mistakes(model):
    with pytest.raises(ValueError, match="16 in 5 heads of equal numbers"):
        models.llama(VOCABULARY, width=16, heads=5)
    with pytest.raises(ValueError, match=r"at most 16 with those before, got shape \(1, 17\)"):
        model(tokens(1, CONTEXT + 1))
    with pytest.raises(ValueError, match="length of 17"):
        model(tokens(1, 1), model.new_cache(), 16, 17)
    with pytest.raises(IndexError, match="embedding index"):
        model(palto.asarray([[VOCABULARY]]))
