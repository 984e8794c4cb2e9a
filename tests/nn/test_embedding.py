import pytest

import palto
from palto import nn


@pytest.mark.parametrize("padding", [None, 2, -1])
@pytest.mark.parametrize("shape", [(4, 6), (7,), (0, 3), ()])
def test_embedding_is_pytorchs(twins, torch, rng, shape, padding):
    ours, theirs = nn.Embedding(5, 3, padding), torch.nn.Embedding(5, 3, padding)
    twins.layers(ours, theirs, rng.integers(0, 5, shape))


def test_embedding_starts_normal_and_padding_at_zero():
    values = nn.Embedding(500, 40, padding_idx=-1).weight.numpy()
    assert not values[-1].any()
    assert abs(values[:-1].mean()) < 0.03
    assert abs(values[:-1].std() - 1) < 0.03


def test_errors():
    table = nn.Embedding(5, 3)
    with pytest.raises(
        IndexError, match="embedding index 5 is out of range: it must be from 0 to 4"
    ) as caught:
        table(palto.asarray([0, 5]))
    assert caught.value.__notes__ == ["in layer Embedding: Embedding(5, 3)"]
    with pytest.raises(IndexError, match="index -1 is out of range"):
        table(palto.asarray([-1]))
    with pytest.raises(TypeError, match="indices are integers, got float32"):
        table(palto.asarray([1.0]))
    with pytest.raises(IndexError, match="padding_idx 5 is no row of 5"):
        nn.Embedding(5, 3, padding_idx=5)


def test_looks():
    assert repr(nn.Embedding(5, 3)) == "Embedding(5, 3)"
    assert repr(nn.Embedding(5, 3, 0)) == "Embedding(5, 3, padding_idx=0)"
