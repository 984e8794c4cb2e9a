"""Zeros: what a mask hides is found in the graph, left out of products, and changes no result."""

import numpy as np
import pytest

import palto
from palto.nn import functional as F
from palto.tensor import functions as f


def arrays(shape, count=3, columns=None):
    rng = np.random.default_rng(5)
    lengths = [shape[-2], columns or shape[-2], columns or shape[-2]][:count]
    return [rng.standard_normal((*shape[:-2], n, shape[-1]), dtype=np.float32) for n in lengths]


def attention(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def gradients(q, k, v):
    return palto.grad(lambda *x: palto.sum(palto.tanh(attention(*x))), argnums=(0, 1, 2))(q, k, v)


def both(function, x):
    """A function's results as they are and compiled, and the products of its one program."""
    compiled = palto.compile(function)
    results = []
    for way in (function, compiled):
        found = way(*map(palto.asarray, x))
        found = [found] if isinstance(found, palto.Tensor) else found
        results.append([y.numpy() for y in found])
    for wanted, found in zip(*results, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * abs(wanted).max())
    steps = compiled._latest.program.native.steps
    return [p for step in steps if (p := getattr(step.nest, "product", None)) is not None]


@pytest.mark.parametrize("length", [3, 16, 90, 160, 900])
def test_half_of_causal_attention_is_left_out(length):
    x = arrays((2, 2, length, 16))
    assert [len(p.needless) for p in both(attention, x)] == [1, 1]
    assert [len(p.needless) for p in both(gradients, x)] == [1] * 6


def test_explain_counts_what_is_computed():
    x = arrays((2, 2, 160, 16))
    rows = [row for row in palto.compile(attention).explain(*x).rows if row.kind == "matmul"]
    whole = 2 * 4 * 160 * 160 * 16
    assert whole // 2 < rows[1].flops < 0.51 * whole


@pytest.mark.parametrize("length, columns", [(40, 90), (90, 40)])
def test_more_keys_than_queries_or_fewer(length, columns):
    assert all(p.needless for p in both(gradients, arrays((2, 2, length, 16), columns=columns)))


def test_grouped_heads():
    q, k, v = arrays((2, 4, 50, 16))

    def grouped(*x):
        return F.scaled_dot_product_attention(*x, is_causal=True, enable_gqa=True)

    assert all(p.needless for p in both(grouped, [q, k[:, :2].copy(), v[:, :2].copy()]))


def test_a_mask_of_numbers_hides_nothing_that_is_known():
    def masked(q, k, v):
        seen = palto.asarray(np.tril(np.ones((50, 50), bool)))
        return F.scaled_dot_product_attention(q, k, v, seen)

    assert not any(p.needless for p in both(masked, arrays((2, 50, 16))))


def hidden(shape, shift=0, *, strictly=False):
    place = f.iota(shape, 1) - f.iota(shape, 0)
    return place < shift if strictly else place <= shift


@pytest.mark.parametrize("shift", [-7, 0, 3, 100])
@pytest.mark.parametrize("strictly", [True, False])
def test_bands(shift, strictly):
    """Masks that keep more or less than a triangle, in both operands and turned."""

    def products(a, b, _):
        kept = f.where(hidden((60, 60), shift, strictly=strictly), a @ b.mT, 0.0)
        return kept @ a, kept.mT @ a, a.mT @ kept, kept

    found = both(products, arrays((60, 24)))
    assert len(found) == 4
    assert all(p.needless for p in found)


def test_what_somebody_else_wants_is_computed():
    def products(a, b, _):
        scores = a @ b.mT
        kept = f.where(hidden((60, 60)), scores, 0.0)
        return scores, kept, f.sum(scores * 2.0)

    assert not any(p.needless for p in both(products, arrays((60, 24))))


def test_what_two_readers_hide_differently_is_computed():
    def products(a, b, _):
        scores = a @ b.mT
        return f.where(hidden((60, 60)), scores, 0.0), f.where(hidden((60, 60), 5), scores, 0.0)

    assert not any(p.needless for p in both(products, arrays((60, 24))))


def test_a_mask_of_other_numbers_than_zero():
    def products(a, b, _):
        kept = f.where(hidden((60, 60)), a @ b.mT, 1.0)
        return kept @ a

    scores, result = both(products, arrays((60, 24)))
    assert scores.needless
    assert not result.needless


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_which_nothing_is_seen(axis):
    """Their softmax is no number, as in NumPy."""

    def weighted(a, *_):
        scores = f.where(hidden((60, 60), -1), a @ a.mT, -np.inf)
        return F.softmax(scores, axis) @ a

    (a,) = arrays((60, 24), 1)
    compiled = palto.compile(weighted)
    with np.errstate(invalid="ignore"):
        wanted = weighted(palto.asarray(a)).numpy()
    assert np.isnan(wanted).any()
    np.testing.assert_allclose(compiled(a).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_a_band_whose_width_is_known_at_run_time():
    def products(a, width):
        return f.where(hidden((60, 60), width), a @ a.mT, 0.0) @ a

    compiled = palto.compile(products, dynamic_shapes={"width": palto.Dim("width", max=40)})
    (a,) = arrays((60, 24), 1)
    for width in (5, 2, 30, 40):
        wanted = products(palto.asarray(a), width).numpy()
        np.testing.assert_allclose(compiled(a, width).numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_causal_attention_of_run_time_lengths():
    compiled = palto.compile(
        attention, dynamic_shapes={name: {2: palto.Dim("length", max=90)} for name in "qkv"}
    )
    for length in (20, 5, 77, 90):
        x = arrays((2, 2, length, 16))
        wanted = attention(*map(palto.asarray, x)).numpy()
        np.testing.assert_allclose(compiled(*x).numpy(), wanted, rtol=1e-4, atol=1e-4)
    assert compiled.program_count == 1
