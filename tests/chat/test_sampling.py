"""Sampling: the tokens that may come are those of transformers' formulas, drawn as often."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palto.chat.sampling import Sampler, Sampling, distribution


def reference(torch, logits, options, before):
    """The probabilities of all tokens, each limit written as transformers' processors are."""
    scores = torch.tensor(logits).double()[None]
    if options.repetition_penalty != 1 and before:
        seen = torch.tensor([list(before)])
        score = torch.gather(scores, 1, seen)
        penalty = options.repetition_penalty
        score = torch.where(score < 0, score * penalty, score / penalty)
        scores = scores.scatter(1, seen, score)
    scores = scores / options.temperature
    if options.top_k:
        k = min(options.top_k, scores.shape[-1])
        scores = scores.masked_fill(scores < torch.topk(scores, k)[0][..., -1, None], -torch.inf)
    if options.top_p < 1:
        ordered, indices = torch.sort(scores, descending=False)
        cumulative = ordered.softmax(dim=-1).cumsum(dim=-1)
        remove = cumulative <= 1 - options.top_p
        remove[..., -1:] = False
        scores = scores.masked_fill(remove.scatter(1, indices, remove), -torch.inf)
    if options.min_p:
        shares = scores.softmax(-1)
        low = shares < options.min_p * shares.amax(-1, keepdim=True)
        scores = scores.masked_fill(low, -torch.inf)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "limits",
    [
        {"top_k": 0, "top_p": 1.0},
        {"top_k": 5, "top_p": 1.0},
        {"top_k": 0, "top_p": 0.6},
        {"top_k": 1000, "top_p": 0.9, "temperature": 1.7},
        {"top_k": 0, "top_p": 1.0, "min_p": 0.2},
        {"top_k": 20, "top_p": 0.8, "min_p": 0.1, "temperature": 0.4},
        {"top_k": 7, "top_p": 0.9, "repetition_penalty": 1.8},
        {"top_k": 0, "top_p": 0.01},
    ],
)
def test_probabilities(torch, limits, seed):
    rng = np.random.default_rng(seed)
    logits = (2 * rng.normal(size=64)).astype(np.float32)
    before = rng.integers(0, 64, 10).tolist()
    options = Sampling(**limits)
    tokens, shares = distribution(logits, options, before)
    assert len(set(tokens.tolist())) == len(tokens)
    assert (np.diff(shares) <= 0).all()
    got = np.zeros(64)
    got[tokens] = shares
    np.testing.assert_allclose(got, reference(torch, logits, options, before), rtol=1e-6)


def test_draws_are_as_often_as_they_should():
    logits = np.log(np.array([0.5, 0.25, 0.15, 0.1], np.float32))
    sampler = Sampler(Sampling(temperature=1, top_k=0, top_p=1, seed=3))
    count = np.bincount([sampler(logits) for _ in range(20_000)], minlength=4)
    expected = 20_000 * np.exp(logits.astype(float))
    assert ((count - expected) ** 2 / expected).sum() < 16.3  # 0.1 % of chance at 3 degrees


def test_a_seed_makes_it_again():
    rng = np.random.default_rng(0)
    logits = [rng.normal(size=50).astype(np.float32) for _ in range(40)]

    def drawn(seed):
        sampler = Sampler(Sampling(temperature=1.5, seed=seed))
        return [sampler(x) for x in logits]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)


@given(seed=st.integers(0, 1000))
def test_without_temperature_it_is_the_likeliest(seed):
    logits = np.random.default_rng(seed).normal(size=30).astype(np.float32)
    best = int(logits.argmax())
    assert Sampler(Sampling(temperature=0))(logits) == best
    assert Sampler(Sampling(temperature=1, top_k=1))(logits) == best
    assert Sampler(Sampling(temperature=1e-4))(logits) == best
    worse = Sampler(Sampling(temperature=0, repetition_penalty=10.0))
    assert worse(np.abs(logits) + 1, [int(np.abs(logits).argmax())]) != np.abs(logits).argmax()


def test_tokens_that_cannot_be_stay_out():
    logits = np.full(9, -np.inf, np.float32)
    logits[[2, 7]] = 1.0
    sampler = Sampler(Sampling(temperature=1, top_k=0, top_p=1, seed=0))
    assert {sampler(logits) for _ in range(50)} == {2, 7}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 3])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_noticed(temperature, top_k, bad):
    logits = np.zeros(9, np.float32)
    logits[4] = bad
    if bad == -np.inf:
        logits[:] = bad
    with pytest.raises(ValueError, match="no number"):
        Sampler(Sampling(temperature=temperature, top_k=top_k))(logits)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", np.nan), ("top_k", -1), ("top_p", 0), ("top_p", 1.1),
        ("min_p", -0.1), ("min_p", 2), ("repetition_penalty", 0), ("seed", -1),
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense(name, value):
    with pytest.raises(ValueError, match=name):
        Sampler(Sampling(**{name: value}))
