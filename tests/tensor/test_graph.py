"""The graph: operations, traces, what a graph keeps and how it runs."""

import threading
import weakref

import numpy as np
import pytest

import palto
from palto import nn
from palto.tensor.graph import (
    Graph,
    Trace,
    apply,
    check,
    current_trace,
    note_mutation,
    scope,
    set_grad_enabled,
)
from palto.tensor.primitives import TABLE, elementwise


def traced(function, *shapes, requires_grad=False):
    trace = Trace()
    with trace.active():
        xs = [trace.placeholder(s, palto.float32, requires_grad=requires_grad) for s in shapes]
        results = function(*xs)
        results = results if isinstance(results, tuple) else (results,)
    return Graph.reaching(xs, results, trace.tensors)


def names(graph):
    return [operation.primitive.name for operation in graph.operations]


def test_a_trace_computes_nothing_and_a_graph_drops_what_nobody_needs():
    def function(x):
        palto.exp(x)  # for nothing
        return palto.sin(x) + 1.0

    graph = traced(function, (3,))
    assert names(graph) == ["sin", "expand", "add"]
    x = np.float32([1, 2, 3])
    np.testing.assert_array_equal(graph.evaluate(x)[0], np.sin(x) + 1)
    assert graph.outputs[0].shape == (3,)
    assert graph.operations[0].primitive.flops(graph.operations[0]) == 3


def test_constants_inputs_as_outputs_and_several_outputs():
    constant = palto.asarray([1.0, 2.0], requires_grad=False)

    def function(x):
        values, indices = palto.top_k(x, 2)
        return x, constant, values + constant, indices, indices

    graph = traced(function, (3,))
    x = np.float32([5, 7, 6])
    got = graph.evaluate(x)
    assert got[0] is x
    assert [a.tolist() for a in got[1:]] == [[1, 2], [8, 8], [1, 2], [1, 2]]
    assert [a.tolist() for a in graph.evaluate(x * 2)[1:3]] == [[1, 2], [15, 14]]


def test_what_was_computed_outside_is_a_constant():
    w = palto.asarray([2.0, 1.0], requires_grad=True)
    order = palto.argsort(w * 2)
    graph = traced(lambda x: x[order] * order.astype(float), (2,))
    assert "sort" not in names(graph)
    assert graph.evaluate(np.float32([5, 6]))[0].tolist() == [6, 0]


def test_values_die_as_soon_as_they_are_not_needed():
    alive, at_most = set(), []

    def noting(x):
        result = np.array(x)
        alive.add(id(result))
        weakref.finalize(result, alive.discard, id(result))
        at_most.append(len(alive))
        return result

    from palto.tensor.graph import Primitive

    row = Primitive("noting", elementwise.sin.infer, noting)

    def function(x):
        for _ in range(20):
            x = apply(row, x)
        return x

    graph = traced(function, (3,))
    graph.evaluate(np.zeros(3, np.float32))
    assert max(at_most) <= 3


def test_replay():
    graph = traced(lambda x, y: palto.sin(x * 2.0) + y, (3,), (3,))
    x, y = palto.asarray([1.0, 2, 3], requires_grad=True), palto.asarray([1.0, 1, 1])
    (result,) = graph.replay(x, y)
    np.testing.assert_allclose(result, np.sin(2 * x.numpy()) + 1, rtol=1e-6)
    result.sum().backward()
    np.testing.assert_allclose(x.grad, 2 * np.cos(2 * x.numpy()), rtol=1e-5)


def test_replay_keeps_what_was_cut():
    def function(x):
        with palto.no_grad():
            hidden = x * x
        return hidden * x + palto.detach(x) * x

    graph = traced(function, (2,), requires_grad=True)
    x = palto.asarray([2.0, 3.0], requires_grad=True)
    graph.replay(x)[0].sum().backward()
    assert x.grad.tolist() == [4 + 2, 9 + 3]


def test_the_layer_of_an_operation_and_its_mistake():
    def function(x, i):
        with scope(("Model", "first")):
            return x[i.astype(int)]

    graph = traced(function, (3,), (2,))
    assert graph.operations[-1].scope == ("Model", "first")
    with pytest.raises(IndexError) as caught:
        graph.evaluate(np.zeros(3, np.float32), np.float32([0, 9]))
    assert caught.value.__notes__ == ["in layer Model.first"]


def test_layers_of_a_module_are_noted():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    with pytest.raises(ValueError, match="wants an input") as caught:
        model(palto.ones((4, 5)))
    assert any("layers.0" in note for note in caught.value.__notes__)


def test_gradients_belong_to_the_layer():
    x = palto.asarray([1.0], requires_grad=True)
    with scope(("layer",)):
        y = palto.sin(x)
    scopes = []
    from palto.tensor import functions

    original = functions.cos

    def noting(value):
        from palto.tensor.graph import current_scope

        scopes.append(current_scope())
        return original(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(functions, "cos", noting)
        y.sum().backward()
    assert scopes == [("layer",)]


def test_values_in_a_trace():
    trace = Trace()
    with trace.active():
        assert current_trace() is trace
        x = trace.placeholder((), palto.float32)
        for use in (bool, float, int, lambda x: x.item(), lambda x: x.numpy(), np.asarray,
                    lambda x: x.tolist(), lambda x: np.mean(x), lambda x: f"{x:.2f}"):  # fmt: skip
            with pytest.raises(palto.TraceError, match=r"palto.where instead of `if`.*outside"):
                use(x)
        with pytest.raises(palto.TraceError, match="a shape depends on a tensor's value"):
            palto.zeros((x,))
        with pytest.raises(palto.TraceError, match="make modules, optimisers and cells before"):
            palto.Cell(1.0)
        with pytest.raises(palto.TraceError, match=r"use palto.grad there"):
            palto.asarray(1.0, requires_grad=True)
        assert repr(x) == "Tensor(traced, shape=(), dtype=float32)"
    assert current_trace() is None


def test_leaked_tensors():
    trace = Trace()
    with trace.active():
        x = trace.placeholder((2,), palto.float32)
        y = x * 2
    for use in (lambda: y + 1, lambda: palto.ones(2) + y, lambda: y.numpy(), lambda: y.sum()):
        with pytest.raises(palto.TraceError, match=r"shape \(2,\) left a function while"):
            use()
    other = Trace()
    with other.active(), pytest.raises(palto.TraceError, match="left a function"):
        palto.exp(x)


def test_outside_tensors_that_require_a_gradient():
    w = palto.asarray([1.0], requires_grad=True)
    trace = Trace()
    with (
        trace.active(),
        pytest.raises(palto.TraceError, match=r"nn.Parameter or palto.Cell, detach"),
    ):
        w * 2


def test_cells_in_a_trace():
    cell = palto.Cell([1.0, 2.0], name="state")
    trace = Trace()
    with trace.active():
        first = cell * 2
        cell.assign(cell + 1)
        second = cell * 2
        with pytest.raises(palto.TraceError, match="asked for the value"):
            cell.numpy()
        assert "traced" in repr(cell)
    assert list(trace.reads) == list(trace.assignments) == [cell]
    graph = Graph.reaching(
        [trace.reads[cell]], [first, second, trace.assignments[cell]], trace.tensors
    )
    got = graph.evaluate(np.float32([10, 20]))
    assert [a.tolist() for a in got] == [[20, 40], [22, 42], [11, 21]]
    assert cell.tolist() == [1, 2]


def test_checks():
    check(palto.asarray(True), "fine")
    with pytest.raises(FloatingPointError, match="not finite"):
        check(palto.asarray(False), "not finite")
    trace = Trace()
    with trace.active():
        x = trace.placeholder((), palto.float32)
        check(x > 0, "must be positive")
        with pytest.raises(palto.TraceError, match="cannot stand inside"):
            palto.checkpoint(lambda v: (check(v > 0, ""), v)[1], x)
    assert [message for _, message in trace.checks] == ["must be positive"]


def test_each_thread_has_its_own_state():
    seen = []
    trace = Trace()
    with trace.active(), palto.no_grad(), scope(("layer",)):
        thread = threading.Thread(
            target=lambda: seen.append(
                (current_trace(), palto.is_grad_enabled(), palto.ones(2).tolist())
            )
        )
        thread.start()
        thread.join()
    assert seen == [(None, True, [1, 1])]


def test_state_is_restored_after_errors():
    trace = Trace()
    with pytest.raises(ZeroDivisionError), trace.active(), set_grad_enabled(False), scope(("a",)):
        1 / 0  # noqa: B018
    assert current_trace() is None
    assert palto.is_grad_enabled()
    x = palto.asarray(1.0, requires_grad=True)
    assert (x * 1).operation.scope == ()


def test_mutations_are_counted():
    from palto.tensor import graph

    before = graph.mutation_count
    note_mutation()
    cell = palto.Cell(1.0)
    middle = graph.mutation_count
    assert middle > before
    cell.assign(2.0)  # a value is not Python state
    assert graph.mutation_count == middle
    cell.requires_grad_(True)
    assert graph.mutation_count > middle


def test_a_row_that_breaks_its_own_shape_rule():
    from palto.tensor.graph import Primitive

    bad = Primitive("bad", elementwise.sin.infer, lambda x: x[:1])
    with pytest.raises(RuntimeError, match=r"primitive 'bad': .* says float32\(2,\), NumPy gave"):
        apply(bad, palto.ones(2))


def test_names_of_rows():
    assert all(name == row.name == repr(row) for name, row in TABLE.items())
    x = palto.ones((2, 3))
    w = palto.asarray(np.ones((3, 4), np.float32), requires_grad=True)
    y = x @ w
    assert y.operation.primitive.flops(y.operation) == 2 * 2 * 3 * 4
