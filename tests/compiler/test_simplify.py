"""Simplify: less work, the same numbers."""

import numpy as np

import palto
from palto.compiler.simplify import simplify
from palto.compiler.trace import record
from palto.tensor.graph import Spec
from palto.tensor.tree import flatten

X = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)


def graph_of(function, *arrays):
    leaves, tree = flatten((arrays, {}))
    return record(function, leaves, tree, [Spec(a.shape, a.dtype) for a in arrays]).graph


def names(graph):
    return [operation.primitive.name for operation in graph.operations]


def test_repetition_is_computed_once():
    graph = graph_of(lambda x: palto.exp(x) + palto.exp(x) * 2.0, X)
    assert names(graph).count("exp") == 2
    small = simplify(graph, inline=False)
    assert names(small).count("exp") == 1
    np.testing.assert_array_equal(small.evaluate(X)[0], graph.evaluate(X)[0])


def test_dead_code_goes():
    def function(x):
        palto.exp(x)
        return palto.sin(x)

    assert names(graph_of(function, X)) == ["sin"]


def test_random_draws_stay_apart():
    graph = graph_of(lambda: palto.random.uniform((3,)) + palto.random.uniform((3,)))
    assert names(simplify(graph, inline=True)).count("random_bits") == 2


def test_composites_stay_named_or_are_laid_open():
    graph = graph_of(lambda x: palto.logsumexp(x, -1), X)
    assert names(graph) == ["composite"]
    assert graph.operations[0].params["name"] == "logsumexp"
    open_graph = simplify(graph, inline=True)
    assert "exp" in names(open_graph) and "composite" not in names(open_graph)
    np.testing.assert_array_equal(open_graph.evaluate(X)[0], graph.evaluate(X)[0])


def test_a_gradient_shares_what_the_forward_computed():
    def both(x):
        return palto.value_and_grad(lambda x: palto.logsumexp(x))(x)

    graph = simplify(graph_of(both, X), inline=True)
    assert names(graph).count("exp") == 1
    for a, b in zip(graph.evaluate(X), both(palto.asarray(X)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_checkpoint_computes_again():
    def both(x):
        return palto.value_and_grad(lambda x: palto.checkpoint(lambda x: palto.exp(x).sum(), x))(x)

    # Laid open like any other, but the second time shares nothing with the first.
    graph = simplify(graph_of(both, X), inline=True)
    assert names(graph).count("exp") == 2
    assert "composite" not in names(graph)


def test_constants_that_only_look_equal_stay_apart():
    graph = simplify(graph_of(lambda x: (x * 0.0, x * -0.0), X), inline=True)
    positive, negative = graph.evaluate(np.ones((2, 3), np.float32))
    assert not np.signbit(positive).any() and np.signbit(negative).all()
