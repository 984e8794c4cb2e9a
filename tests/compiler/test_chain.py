"""Chains: steps that run part by part give what they give one after the other."""

import numpy as np
import pytest

import palto
from palto.compiler import chain
from palto.compiler.lowering import chains
from palto.nn import functional as F

HEADS, LENGTH, WIDTH = (3, 8), 160, 32


@pytest.fixture(autouse=True)
def same_threads():
    before = palto.get_num_threads()
    yield
    palto.set_num_threads(before)


@pytest.fixture
def small_caches(monkeypatch):
    """Chains pay from the smallest arrays on."""
    monkeypatch.setattr(chain, "_pays", lambda steps: True)


def arrays(count, shape=(*HEADS, LENGTH, WIDTH)):
    rng = np.random.default_rng(3)
    return [rng.standard_normal(shape, dtype=np.float32) for _ in range(count)]


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def gradients(q, k, v):
    return palto.grad(lambda *x: palto.sum(palto.tanh(attention(*x))), argnums=(0, 1, 2))(q, k, v)


def across(q, k, v):
    """Heads that read what other heads have computed."""
    weights = F.softmax(q @ k.mT)
    other = weights[:, ::-1]
    return weights @ v + other @ v, palto.sum(weights, axis=(0, 1)), q @ k.mT


def found(compiled):
    """How many steps each chain of a function's one program has, and into how many parts."""
    steps = compiled._latest.program.native.steps
    return [(len(x), x[0].parts) for x in chains(steps) if len(x) > 1]


@pytest.mark.parametrize("function", [attention, gradients])
def test_chains_give_the_same(function, small_caches, monkeypatch):
    x = arrays(3)
    wanted = function(*map(palto.asarray, x))
    wanted = [wanted] if isinstance(wanted, palto.Tensor) else wanted
    results = []
    for threads in (1, 2, 3, 30):
        palto.set_num_threads(threads)
        compiled = palto.compile(function)
        got = compiled(*x)
        assert found(compiled)
        results.append([got] if isinstance(got, palto.Tensor) else got)
    monkeypatch.setattr(chain, "find", lambda steps, stored: None)
    compiled = palto.compile(lambda *x: function(*x))
    alone = compiled(*x)
    assert not found(compiled)
    results.append([alone] if isinstance(alone, palto.Tensor) else alone)
    for one, *others in zip(*results, strict=True):
        for other in others:
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    for got, exact in zip(results[0], wanted, strict=True):
        np.testing.assert_allclose(got.numpy(), exact.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(*HEADS, LENGTH, WIDTH), (2, 2, 64, 16), (17, 1, 31, 8)])
def test_parts_that_read_others_are_in_no_chain(shape, small_caches):
    x = arrays(3, shape)
    palto.set_num_threads(2)
    compiled = palto.compile(across)
    for got, wanted in zip(compiled(*x), across(*map(palto.asarray, x)), strict=True):
        np.testing.assert_allclose(got.numpy(), wanted.numpy(), rtol=1e-4, atol=1e-4)


def test_a_chain_shows_the_time_of_each_step(small_caches):
    palto.set_num_threads(1)
    compiled = palto.compile(attention)
    compiled(*arrays(3))
    assert found(compiled) == [(3, 24)]
    rows = compiled.explain().rows
    assert len(rows) == 3 and all(row.seconds > 0 for row in rows)
