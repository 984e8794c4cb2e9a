import numpy as np
import pytest

import palto
from palto import nn

attend = nn.functional.scaled_dot_product_attention


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"scale": 0.3}], ids=str)
@pytest.mark.parametrize("lengths", [(5, 5), (3, 7), (7, 3), (1, 1)])
def test_attention_is_pytorchs(twins, torch, rng, lengths, options):
    queries, keys = lengths
    theirs = torch.nn.functional.scaled_dot_product_attention
    for batch in [(2, 3), (4,), ()]:
        if not batch and options.get("is_causal"):
            continue  # PyTorch wants a batch there
        twins.functions(
            lambda q, k, v: attend(q, k, v, **options),
            lambda q, k, v: theirs(q, k, v, **options),
            rng.normal(size=(*batch, queries, 4)),
            rng.normal(size=(*batch, keys, 4)),
            rng.normal(size=(*batch, keys, 6)),
        )


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_masks_are_pytorchs(twins, torch, rng, kind):
    mask = rng.random((2, 1, 4, 5)) < 0.6
    mask[..., 0] = True
    if kind == "float":
        mask = np.where(mask, rng.normal(size=mask.shape), -np.inf)
    theirs = torch.nn.functional.scaled_dot_product_attention
    twins.functions(
        lambda q, k, v: attend(q, k, v, palto.asarray(mask)),
        lambda q, k, v: theirs(q, k, v, torch.tensor(mask)),
        *(rng.normal(size=(2, 3, n, 4)) for n in (4, 5, 5)),
    )


@pytest.mark.parametrize("heads", [2, 1, 6])
@pytest.mark.parametrize("mask", [None, (4, 5), (6, 4, 5), (2, 1, 4, 5)], ids=str)
def test_groups_of_heads_are_pytorchs(twins, torch, rng, heads, mask):
    mask = None if mask is None else rng.normal(size=mask)
    theirs = torch.nn.functional.scaled_dot_product_attention
    their_mask = None if mask is None else torch.tensor(mask)
    our_mask = None if mask is None else palto.asarray(mask)
    twins.functions(
        lambda q, k, v: attend(q, k, v, our_mask, enable_gqa=True),
        lambda q, k, v: theirs(q, k, v, their_mask, enable_gqa=True),
        rng.normal(size=(2, 6, 4, 8)),
        *(rng.normal(size=(2, heads, 5, 8)) for _ in range(2)),
    )


def test_a_query_without_keys_gets_zeros(rng):
    mask = np.ones((4, 5), np.bool_)
    mask[2] = False
    x = [palto.asarray(rng.normal(size=(n, 3)), requires_grad=True) for n in (4, 5, 5)]
    y = attend(*x, palto.asarray(mask))
    y.sum().backward()
    assert not y.numpy()[2].any()
    assert all(np.isfinite(part.grad.numpy()).all() for part in x)


def test_causal_attention_does_not_see_the_future(rng):
    x = rng.normal(size=(6, 4))
    changed = x.copy()
    changed[4:] = 9
    before, after = (attend(*[palto.asarray(a)] * 3, is_causal=True).numpy() for a in (x, changed))
    np.testing.assert_array_equal(before[:4], after[:4])
    assert not np.allclose(before[4:], after[4:])


def test_large_scores_do_not_overflow():
    x = palto.full((3, 4), 1e15).detach()
    np.testing.assert_allclose(attend(x, x, palto.ones((3, 2))).numpy(), 1, rtol=1e-6)


def test_dropout_of_weights(rng):
    q, k = (palto.asarray(rng.normal(size=(8, 4)).astype(np.float32)) for _ in range(2))
    results = np.stack(
        [attend(q, k, palto.ones((8, 1)), dropout_p=0.5).numpy() for _ in range(400)]
    )
    assert results.std() > 0.1
    np.testing.assert_allclose(results.mean(0), 1, atol=0.1)


def test_attention_is_one_operation_in_a_trace(traced, rng):
    arrays = [rng.normal(size=(2, 4, 3)) for _ in range(3)]
    (y,), graph = traced(lambda q, k, v: attend(q, k, v, is_causal=True), *arrays)
    assert [operation.params["name"] for operation in graph.operations] == ["attention"]
    expected = attend(*map(palto.asarray, arrays), is_causal=True).numpy()
    np.testing.assert_allclose(y, expected, rtol=1e-14)


def called_alike(torch, **options):
    """PyTorch's module, for self-attention by default and without the weights it also gives."""

    class Attention(torch.nn.MultiheadAttention):
        def forward(self, query, key=None, value=None):
            key = query if key is None else key
            value = key if value is None else value
            return super().forward(query, key, value, need_weights=False, **options)[0]

    return Attention


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("inputs", [1, 2, 3])
def test_multihead_attention_is_pytorchs(twins, torch, rng, inputs, bias):
    ours = nn.MultiheadAttention(6, 3, bias=bias)
    theirs = called_alike(torch)(6, 3, bias=bias, batch_first=True)
    twins.layers(ours, theirs, *(rng.normal(size=(2, n, 6)) for n in (4, 5, 5)[:inputs]))


def test_masks_of_multihead_attention(twins, torch, rng):
    future = torch.ones(5, 5, dtype=torch.bool).triu(1)  # True: must not look
    theirs = called_alike(torch, attn_mask=future)(6, 3, batch_first=True)
    x = rng.normal(size=(2, 5, 6))

    class Causal(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, is_causal=True)

    class Masked(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, mask=palto.asarray(~future.numpy()))

    for kind in (Causal, Masked):
        twins.layers(kind(6, 3), theirs, x)


def test_multihead_attention_starts_as_pytorchs_does():
    layer = nn.MultiheadAttention(64, 4)
    bound = np.sqrt(6 / (64 + 3 * 64))
    assert 0.99 * bound < abs(layer.in_proj_weight.numpy()).max() <= bound
    assert not layer.in_proj_bias.numpy().any()
    assert not layer.out_proj.bias.numpy().any()


def test_dropout_only_in_training(rng):
    layer = nn.MultiheadAttention(6, 3, dropout=0.5)
    x = palto.asarray(rng.normal(size=(2, 5, 6)).astype(np.float32))
    assert layer(x).tolist() != layer(x).tolist()
    layer.eval()
    assert layer(x).tolist() == layer(x).tolist()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nn.MultiheadAttention(6, 4), "4 heads do not divide a width of 6"),
        (
            lambda: nn.MultiheadAttention(6, 3)(palto.zeros((4, 6))),
            r"\(N, length, 6\), got \(4, 6\)",
        ),
        (
            lambda: attend(palto.zeros((2, 3)), palto.zeros((2, 4)), palto.zeros((2, 4))),
            r"got \(2, 3\), \(2, 4\) and \(2, 4\)",
        ),
        (
            lambda: attend(palto.zeros((2, 3)), palto.zeros((2, 3)), palto.zeros((4, 3))),
            r"got \(2, 3\), \(2, 3\) and \(4, 3\)",
        ),
        (
            lambda: attend(*(palto.zeros((n, 3, 4)) for n in (6, 4, 4)), enable_gqa=True),
            "4 heads of keys do not divide 6 heads of queries",
        ),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_looks():
    assert repr(nn.MultiheadAttention(6, 3, 0.1)) == (
        "MultiheadAttention(\n  6, 3, dropout=0.1\n  (out_proj): Linear(6, 6)\n)"
    )
