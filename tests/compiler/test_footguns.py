"""Compile-time footguns: what goes silently wrong with tracing compilers.

Each is either right (the compiled function does what the plain one does) or refused with an error
that says what to do. A third part, "silently wrong", stays empty.
"""

import collections
import copy
import dataclasses
import functools
import itertools
import queue
import random
import threading
import time
import types

import numpy as np
import pytest

import palto
from palto import TraceError, nn

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def refused(function, *args, match):
    with pytest.raises(TraceError, match=match):
        palto.compile(function)(*args)


def same(function, *calls):
    """The compiled function gives what the plain one gives, call after call."""
    compiled = palto.compile(function)
    for args in calls:
        expected = function(*[palto.asarray(a) if isinstance(a, np.ndarray) else a for a in args])
        # Exact but for the last bits of functions such as tanh, which NumPy computes otherwise.
        np.testing.assert_allclose(np.asarray(compiled(*args)), np.asarray(expected), rtol=1e-6)
    return compiled


class TestRight:
    """Would be silently wrong with a naive tracer; is right here."""

    def test_output_kept_over_the_next_call(self):
        double = palto.compile(lambda x: x * 2)
        first = double(X)
        second = double(X + 1)
        np.testing.assert_array_equal(first, X * 2)
        np.testing.assert_array_equal(second, (X + 1) * 2)

    def test_output_that_is_an_input(self):
        identity = palto.compile(lambda x: (x, x.T, x[0]))
        data = X.copy()
        outputs = identity(data)
        data[:] = -1
        np.testing.assert_array_equal(outputs[0], X)
        np.testing.assert_array_equal(outputs[1], X.T)
        np.testing.assert_array_equal(outputs[2], X[0])

    def test_cell_assigned_an_input(self):
        cell = palto.Cell(np.zeros((2, 3), np.float32))
        data = X.copy()
        palto.compile(cell.assign)(data)
        data[:] = -1
        np.testing.assert_array_equal(cell, X)

    def test_output_that_is_a_cell_keeps_its_value(self):
        cell = palto.Cell(0.0)

        @palto.compile
        def advance():
            before = cell + 0
            cell.assign(cell + 1)
            return before, cell.read()

        before, after = advance()
        advance()
        assert (float(before), float(after), float(cell)) == (0, 1, 2)

    def test_cells_swapped(self):
        a, b = palto.Cell(1.0), palto.Cell(2.0)

        def swap():
            old = a.read()
            a.assign(b)
            b.assign(old)

        palto.compile(swap)()
        assert (float(a), float(b)) == (2, 1)

    def test_read_after_write_sees_the_write(self):
        cell = palto.Cell(1.0)

        @palto.compile
        def step():
            cell.assign(cell * 3)
            return cell + 1

        assert [float(step()) for _ in range(3)] == [4, 10, 28]

    def test_same_cell_under_two_names(self):
        cell = palto.Cell(1.0)
        tied = {"first": cell, "second": cell}

        @palto.compile
        def step():
            tied["first"].assign(tied["first"] + 1)
            return tied["second"] * 10

        assert float(step()) == 20

    def test_several_programs_share_a_cell(self):
        cell = palto.Cell(0.0)
        up = palto.compile(lambda: cell.assign(cell + 1))
        down = palto.compile(lambda: cell.assign(cell - 10))
        up(), down(), up()
        assert float(cell) == -8
        cell.assign(100.0)
        up()
        assert float(cell) == 101

    def test_number_from_a_closure(self):
        scale = 2.0

        def scaled(x):
            return x * scale

        compiled = same(scaled, (X,))
        scale = 5.0
        np.testing.assert_array_equal(compiled(X), X * 5)
        scale = 2.0
        np.testing.assert_array_equal(compiled(X), X * 2)
        assert compiled.program_count == 2  # the first program is found again

    def test_number_from_a_global(self, monkeypatch):
        compiled = palto.compile(uses_a_global)
        np.testing.assert_array_equal(compiled(X), X * 3)
        monkeypatch.setitem(globals(), "FACTOR", 4)
        np.testing.assert_array_equal(compiled(X), X * 4)

    def test_number_from_a_global_of_a_function_called(self, monkeypatch):
        compiled = palto.compile(lambda x: uses_a_global(x) + 1)
        np.testing.assert_array_equal(compiled(X), X * 3 + 1)
        monkeypatch.setitem(globals(), "FACTOR", 4)
        np.testing.assert_array_equal(compiled(X), X * 4 + 1)

    def test_function_replaced(self):
        activation = palto.tanh

        def layer(x):
            return activation(x)

        compiled = same(layer, (X,))
        activation = palto.exp
        np.testing.assert_allclose(compiled(X), np.exp(X), rtol=1e-6)

    def test_attribute_of_an_object(self):
        config = types.SimpleNamespace(scale=2.0, inner=types.SimpleNamespace(shift=1))

        def layer(x):
            return x * config.scale + config.inner.shift

        compiled = same(layer, (X,))
        config.inner.shift = 7
        np.testing.assert_array_equal(compiled(X), X * 2 + 7)

    def test_attribute_of_a_class(self):
        class Config:
            scale = 2.0

        compiled = same(lambda x: x * Config.scale, (X,))
        Config.scale = 3.0
        np.testing.assert_array_equal(compiled(X), X * 3)

    def test_attribute_that_later_hides_the_class_default(self):
        class Scaler:
            scale = 2.0

        scaler = Scaler()
        compiled = same(lambda x: x * scaler.scale, (X,))
        scaler.scale = 3.0
        np.testing.assert_array_equal(compiled(X), X * 3)

    def test_attribute_deep_inside(self):
        class Link:
            def __init__(self, inner):
                self.inner = inner

            def scale(self):
                return self.inner.scale() if isinstance(self.inner, Link) else self.inner

        bottom = chain = Link(2.0)
        for _ in range(30):
            chain = Link(chain)
        compiled = same(lambda x: x * chain.scale(), (X,))
        bottom.inner = 3.0
        np.testing.assert_array_equal(compiled(X), X * 3)

    def test_mode_of_a_deeply_nested_module(self):
        inner = model = nn.Dropout(0.5)
        for _ in range(20):
            model = nn.Sequential(model)
        compiled = palto.compile(lambda x: model(x))
        compiled(X)
        inner.eval()
        np.testing.assert_array_equal(compiled(X), X)

    @pytest.mark.parametrize(
        ("make", "change"),
        [
            (set, lambda s: s.add("on")),
            (bytearray, lambda s: s.append(1)),
            (collections.deque, lambda s: s.append(1)),
            (dict, lambda s: s.update(on=1)),
        ],
    )
    def test_containers(self, make, change):
        flags = make()
        compiled = same(lambda x: x * (1 + len(flags)), (X,))
        change(flags)
        np.testing.assert_array_equal(compiled(X), X * 2)

    def test_order_of_a_dict(self):
        factors = {"a": 2.0, "b": 3.0}

        def last(x):
            for value in factors.values():
                x = x * 0 + value
            return x

        compiled = same(last, (X,))
        factors["a"] = factors.pop("a")
        np.testing.assert_array_equal(compiled(X), X * 0 + 2)

    def test_slots_properties_and_static_methods(self):
        outside = [2.0]

        class Scaler:
            __slots__ = ("scale",)

            @property
            def twice(self):
                return 2 * self.scale * outside[0]

            @staticmethod
            def shift():
                return outside[0]

        scaler = Scaler()
        scaler.scale = 1.0
        compiled = same(lambda x: x * scaler.twice + scaler.shift(), (X,))
        scaler.scale = 3.0
        np.testing.assert_array_equal(compiled(X), X * 12 + 2)
        outside[0] = 1.0
        np.testing.assert_array_equal(compiled(X), X * 6 + 1)

    def test_method_replaced(self):
        class Net(nn.Module):
            def forward(self, x):
                return x * 2

        net = Net()
        compiled = same(net, (X,))
        Net.forward = lambda self, x: x * 3
        np.testing.assert_array_equal(compiled(X), X * 3)
        net.forward = lambda x: x * 4
        np.testing.assert_array_equal(compiled(X), X * 4)

    def test_attribute_that_comes_later(self):
        class Net(nn.Module):
            def forward(self, x):
                return x + getattr(self, "shift", 0.0)

        net = Net()
        compiled = same(net, (X,))
        net.shift = 5.0
        np.testing.assert_array_equal(compiled(X), X + 5)

    def test_state_of_a_decorator(self):
        config = {"scale": 2.0}

        def scaled(function):
            @functools.wraps(function)
            def wrapper(x):
                return function(x) * config["scale"]

            return wrapper

        compiled = same(scaled(lambda x: x + 1), (X,))
        config["scale"] = 5.0
        np.testing.assert_array_equal(compiled(X), (X + 1) * 5)

    def test_class_attributes_of_any_kind(self):
        class Base:
            scales = (2.0,)
            table = {0: 1.0}  # noqa: RUF012

        class Scaler(Base):
            pass

        scaler = Scaler()
        compiled = same(lambda x: x * scaler.scales[0] * Scaler.table[0], (X,))
        Base.table[0] = 3.0
        np.testing.assert_array_equal(compiled(X), X * 6)
        Base.scales = (1.0,)
        np.testing.assert_array_equal(compiled(X), X * 3)

    def test_array_of_the_same_bytes(self):
        holder = types.SimpleNamespace(zeros=np.zeros(3, np.float32))
        compiled = palto.compile(lambda x: x * palto.asarray(holder.zeros).astype(palto.float32)
                                 + holder.zeros.dtype.itemsize)  # fmt: skip
        compiled(X)
        holder.zeros = np.zeros(3, np.int32)
        np.testing.assert_array_equal(compiled(X), X * 0 + 4)
        assert compiled.program_count == 2

    def test_sign_of_zero(self):
        holder = types.SimpleNamespace(zero=0.0)
        compiled = palto.compile(lambda x: x / holder.zero)
        assert compiled(np.float32(1)).item() == np.inf
        holder.zero = -0.0
        assert compiled(np.float32(1)).item() == -np.inf

    def test_gradient_of_a_gradient(self):
        def slope(x):
            return palto.grad(lambda y: (y**3).sum())(x).sum()

        np.testing.assert_allclose(palto.compile(palto.grad(slope))(X), 6 * X, rtol=1e-6)

    def test_closure_of_a_gradient_made_outside(self):
        power = 2.0
        gradient = palto.grad(lambda x: (x * x * power).sum())
        compiled = palto.compile(lambda x: gradient(x))
        np.testing.assert_array_equal(compiled(X), 4 * X)
        power = 3.0
        np.testing.assert_array_equal(compiled(X), 6 * X)

    def test_numpy_number_as_argument(self):
        assert palto.compile(lambda x, k: x * k)(X, np.float64(2)).dtype == palto.float32

    def test_a_trainer_that_keeps_count_of_itself(self):
        class Loop:
            def __init__(self):
                self.w, self.losses, self.steps = palto.Cell(1.0), [], 0

            @palto.compile
            def step(self, x):
                return (x * self.w).sum()

            def run(self):
                for _ in range(12):
                    self.losses.append(float(self.step(X)))
                    self.steps += 1

        Loop().run()
        assert Loop.step.program_count == 1

    def test_compiled_function_as_an_attribute(self):
        class Loop:
            def __init__(self):
                self.step = palto.compile(self._step)

            def _step(self, x):
                return x * 2

        loop = Loop()
        for _ in range(3):
            loop.step(X)
        assert loop.step.program_count == 1
        twin = copy.deepcopy(loop)
        np.testing.assert_array_equal(twin.step(X), X * 2)

    def test_attribute_of_a_python_module(self):
        settings = types.ModuleType("settings")
        settings.scale = 2.0

        def layer(x):
            return x * settings.scale

        compiled = palto.compile(layer)
        np.testing.assert_array_equal(compiled(X), X * 2)
        settings.scale = 3.0
        np.testing.assert_array_equal(compiled(X), X * 3)

    def test_list_and_dict_from_outside(self):
        scales, named = [1.0, 2.0], {"a": 3.0}

        def layer(x):
            for scale in scales:
                x = x * scale
            return x * named["a"]

        compiled = same(layer, (X,))
        scales.append(5.0)
        np.testing.assert_array_equal(compiled(X), X * 30)
        named["a"] = 1.0
        np.testing.assert_array_equal(compiled(X), X * 10)
        scales[1] = 1.0
        np.testing.assert_array_equal(compiled(X), X * 5)

    def test_default_argument_replaced(self):
        def layer(x, scale=2.0):
            return x * scale

        compiled = same(layer, (X,))
        layer.__defaults__ = (3.0,)
        np.testing.assert_array_equal(compiled(X), X * 3)

    def test_numpy_array_from_outside_written_to(self):
        weights = np.ones(3, np.float32)

        def layer(x):
            return x * weights

        compiled = same(layer, (X,))
        weights[:] = 5
        np.testing.assert_array_equal(compiled(X), X * 5)

    def test_numpy_array_of_a_module_written_to(self):
        class Scale(nn.Module):
            def __init__(self):
                self.table = np.ones(3)

            def forward(self, x):
                return x * float(self.table[1])

        scale = Scale()
        compiled = same(scale, (X,))
        scale.table[1] = 5
        np.testing.assert_array_equal(compiled(X), X * 5)
        count = compiled.program_count
        scale.table = scale.table.copy()  # another one, which says the same
        np.testing.assert_array_equal(compiled(X), X * 5)
        assert compiled.program_count == count

    def test_base_of_a_numpy_view_written_to(self):
        table = np.ones((4, 3), np.float32)
        holder = [table]

        def layer(x):
            return x * holder[0][1:3]

        compiled = same(layer, (X,))
        table[1] = 5
        np.testing.assert_array_equal(compiled(X), X * table[1:3])

    def test_tensor_from_outside_replaced(self):
        mask = palto.asarray([1.0, 0.0, 1.0])

        def layer(x):
            return x * mask

        compiled = same(layer, (X,))
        mask = palto.asarray([0.0, 1.0, 0.0])
        np.testing.assert_array_equal(compiled(X), X * [0, 1, 0])

    def test_bound_method_of_two_objects(self):
        class Scaler:
            def __init__(self, scale):
                self.scale = scale

            @palto.compile
            def apply(self, x):
                return x * self.scale

        two, three = Scaler(2.0), Scaler(3.0)
        np.testing.assert_array_equal(two.apply(X), X * 2)
        np.testing.assert_array_equal(three.apply(X), X * 3)
        two.scale = 7.0
        np.testing.assert_array_equal(two.apply(X), X * 7)

    def test_python_number_as_argument(self):
        same(lambda x, k: x * k, (X, 2), (X, 3), (X, 2.0))

    def test_keyword_order(self):
        compiled = palto.compile(lambda *, a, b: a - b)
        assert float(compiled(a=np.float32(3), b=np.float32(1))) == 2
        assert float(compiled(b=np.float32(1), a=np.float32(3))) == 2

    def test_shapes_and_dtypes(self):
        compiled = same(
            lambda x: x + x,
            (X,), (X[:1],), (X.astype(np.float64),), (X.astype(np.int64),), (X[:0],), (X[0, 0],),
        )  # fmt: skip
        assert compiled.program_count == 6

    def test_argument_that_is_not_contiguous(self):
        same(lambda x: x * 2, (X.T,), (X[:, ::-1],), (np.broadcast_to(X[0], (3, 3)),))

    def test_nested_arguments_and_results(self):
        @dataclasses.dataclass
        class Batch:
            images: object
            labels: object

        @palto.compile
        def step(batch, extra):
            return {"sum": batch.images + extra["x"], "batch": Batch(batch.labels, None)}

        result = step(Batch(X, np.arange(2)), {"x": X})
        np.testing.assert_array_equal(result["sum"], X * 2)
        np.testing.assert_array_equal(result["batch"].images, [0, 1])

    def test_random_numbers_continue(self):
        palto.manual_seed(3)
        expected = [palto.random.uniform((4,)).numpy() for _ in range(6)]
        palto.manual_seed(3)
        draw = palto.compile(lambda: (palto.random.uniform((4,)), palto.random.uniform((4,))))
        drawn = [part.numpy() for _ in range(2) for part in draw()]
        drawn += [palto.random.uniform((4,)).numpy(), palto.random.uniform((4,)).numpy()]
        np.testing.assert_array_equal(drawn, expected)

    def test_two_equal_draws_are_not_merged(self):
        a, b = palto.compile(lambda: (palto.random.uniform((9,)), palto.random.uniform((9,))))()
        assert not np.array_equal(a, b)

    def test_dead_assignments_and_dead_code(self):
        cell = palto.Cell(1.0)

        @palto.compile
        def step(x):
            palto.exp(x)  # not used
            cell.assign(cell + 5)
            cell.assign(cell * 2)

        assert step(X) is None
        assert float(cell) == 12

    def test_nan_is_not_simplified_away(self):
        x = np.array([np.nan, np.inf, 0], np.float32)
        same(lambda x: x - x, (x,))
        same(lambda x: x * 0, (x,))
        same(lambda x: x != x, (x,))

    def test_compiled_inside_compiled(self):
        inner = palto.compile(lambda x: x * 2)
        same(lambda x: inner(x) + 1, (X,))

    def test_compiled_inside_grad_inside_compiled(self):
        inner = palto.compile(lambda x: (x * x).sum())
        gradient = palto.compile(lambda x: palto.grad(inner)(x))
        np.testing.assert_array_equal(gradient(X), 2 * X)

    def test_no_grad_around_the_call(self):
        p = palto.Cell(X, requires_grad=True)
        compiled = palto.compile(lambda: p * 2)
        assert compiled().requires_grad
        with palto.no_grad():
            assert not compiled().requires_grad
        assert compiled().requires_grad

    def test_frozen_parameter(self):
        p, q = palto.Cell(1.0, requires_grad=True), palto.Cell(1.0, requires_grad=True)

        @palto.compile(keep_grad=True)
        def step():
            (p * 2 + q * 3).backward()

        step()
        assert float(p.grad) == 2 and float(q.grad) == 3
        for cell in (p, q):
            cell.set_grad(None, pending=False)
        p.requires_grad_(False)
        step()
        assert p.grad is None and float(q.grad) == 3

    def test_grad_only_when_asked_for(self):
        p = palto.Cell(1.0, requires_grad=True)
        (p * 5).backward()
        p.set_grad(p.grad, pending=False)  # as an optimiser's step does
        palto.compile(lambda: (p * 2).backward())()
        assert p.grad is None

    def test_failed_trace_leaves_everything(self):
        cell = palto.Cell(1.0)

        def step(x):
            cell.assign(cell + 1)
            return x @ x  # shapes do not fit

        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            palto.compile(step)(X)
        assert float(cell) == 1
        assert palto.tensor.graph.current_trace() is None
        cell.assign(5.0)
        assert float(cell) == 5

    def test_failed_run_leaves_every_cell(self):
        count, total = palto.Cell(0.0), palto.Cell(0.0)

        @palto.compile
        def step(x, index):
            count.assign(count + 1)
            total.assign(total + palto.take(x, index).sum())

        step(X, np.array([0]))
        with pytest.raises(IndexError, match="index 7 is out of range"):
            step(X, np.array([7]))
        assert float(count) == 1
        assert float(total) == X[0].sum()

    def test_deep_copy_of_cells_is_independent(self):
        cell = palto.Cell(1.0)
        twin = copy.deepcopy(cell)
        palto.compile(lambda: cell.assign(cell + 1))()
        assert (float(cell), float(twin)) == (2, 1)

    def test_two_threads(self):
        cell = palto.Cell(0.0)
        step = palto.compile(lambda: cell.assign(cell + 1))
        threads = [threading.Thread(target=lambda: [step() for _ in range(50)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert float(cell) == 200

    def test_trace_in_one_thread_only(self):
        inside, outside = queue.SimpleQueue(), queue.SimpleQueue()

        def slow(x):
            inside.put(None)
            outside.get(timeout=10)
            return x * 2

        thread = threading.Thread(target=lambda: palto.compile(slow)(X))
        thread.start()
        inside.get(timeout=10)
        assert float(palto.asarray(X).sum()) == 15.0  # eager work goes on beside the trace
        for _ in range(2):
            outside.put(None)
        thread.join()


FACTOR = 3


def uses_a_global(x):
    return x * FACTOR


class TestRefused:
    """Cannot be right in a program; says so."""

    def test_branch_on_a_value(self):
        refused(lambda x: x if x.sum() > 0 else -x, X, match=r"palto\.where")

    def test_while_on_a_value(self):
        def halve(x):
            while x.max() > 1:
                x = x / 2
            return x

        refused(halve, X, match="compiled function asked for the value")

    @pytest.mark.parametrize(
        "look",
        [float, int, bool, lambda x: f"{x:.3f}", np.asarray, lambda x: x.item(), np.sum,
         lambda x: x.numpy(), lambda x: x.tolist(), lambda x: range(x), lambda x: [1, 2][x],
         lambda x: max(x, x + 1), lambda x: 3 in x],
        ids=["float", "int", "bool", "format", "asarray", "item", "np.sum", "numpy", "tolist",
             "range", "index", "max", "in"],
    )  # fmt: skip
    def test_looking_at_a_value(self, look):
        def function(x):
            look(x)
            return x

        with pytest.raises((TraceError, TypeError), match=r"value|compiled"):
            palto.compile(function)(np.int64(1))

    def test_assert_on_a_value(self):
        def function(x):
            assert (x > 0).all()
            return x

        refused(function, X + 1, match="value")

    def test_cell_value(self):
        cell = palto.Cell(1.0)
        refused(lambda x: x * float(cell), X, match="value")

    def test_mask_index(self):
        refused(lambda x: x[x > 1], X, match=r"palto\.where|top_k")

    def test_nonzero(self):
        refused(lambda x: palto.nonzero(x), X, match="where")

    def test_slice_bound(self):
        refused(lambda x, n: x[:n], X, np.int64(1), match="dynamic_slice")

    def test_shape_from_a_value(self):
        refused(lambda x, n: palto.zeros((n, 2)) + x[0, 0], X, np.int64(1), match="shape")

    def test_leaked_tensor(self):
        leaked = {}

        def function(x):
            leaked["x"] = x
            return x

        refused(function, X, match="changes Python state")
        with pytest.raises(TraceError, match="left a function while it was compiled"):
            leaked["x"] + 1
        with pytest.raises(TraceError, match="left a function"):
            float(leaked["x"].sum() if leaked["x"].ndim == 0 else leaked["x"][0, 0])

    def test_appending_to_a_list(self):
        losses = []
        refused(lambda x: losses.append(x.sum()), X, match=r"len\(losses\)")

    def test_counter(self):
        state = types.SimpleNamespace(count=0)

        def function(x):
            state.count += 1
            return x

        refused(function, X, match=r"state\.count was 0 and became 1.*Cell")

    def test_python_random(self):
        refused(lambda x: x * random.random(), X, match="traced twice")

    def test_numpy_random(self):
        refused(lambda x: x * float(np.random.uniform()), X, match="traced twice")
        refused(lambda x: x + np.random.uniform(size=3).astype(np.float32), X, match="twice")

    @pytest.mark.parametrize("seed", range(4))
    def test_python_random_branch(self, seed):
        random.seed(seed)  # whether both flips agree or not
        refused(lambda x: x * 2 if random.random() < 0.5 else x + 1, X, match="twice")

    def test_numpy_generator_branch(self):
        rng = np.random.default_rng(0)
        refused(lambda x: x * 2 if rng.random() < 0.99 else x, X, match="state of rng")

    def test_freezing_inside(self):
        p = palto.Cell(1.0, requires_grad=True)
        refused(lambda x: p.requires_grad_(False) and x, X, match="frozen or unfrozen inside")
        assert p.requires_grad

    def test_a_gradient_that_waits_outside(self):
        p = palto.Cell(1.0, requires_grad=True)
        step = palto.compile(keep_grad=True)(lambda k: (p * k).backward())
        step(np.float32(2))
        with pytest.raises(palto.BackwardError, match="no optimiser has used yet"):
            step(np.float32(3))
        assert float(p.grad) == 2

    def test_half_a_gradient_through_two_programs(self):
        p, q = palto.Cell(1.0, requires_grad=True), palto.Cell(1.0, requires_grad=True)
        encode = palto.compile(lambda x: x * p)
        decode = palto.compile(lambda h: (h * q).backward())
        with pytest.raises(TraceError, match="requires a gradient"):
            decode(encode(np.float32(1)))

    def test_iterator(self):
        numbers = itertools.count()
        refused(lambda x: x * next(numbers), X, match="uses the iterator numbers")

    def test_numbers_returned_that_change(self):
        numbers = [3, 2, 1]
        refused(lambda x: (x, numbers.pop()), X, match="changes Python state")
        refused(lambda x: (x, time.perf_counter_ns()), X, match="it returned")

    def test_changed_argument(self):
        def function(x, log):
            log["x"] = x
            return x

        refused(function, X, {}, match="changes a list, dict or object that it was given")

    def test_objects_nested_too_deep_to_watch(self):
        chain = types.SimpleNamespace(inner=1.0)
        for _ in range(100):
            chain = types.SimpleNamespace(inner=chain)
        refused(lambda x: x * chain.inner.inner.inner is None, X, match="nested more than")

    def test_large_numpy_array_from_outside(self):
        table = np.zeros((1000, 1000), np.float32)
        refused(lambda x: table[:2, :3] + x, X, match=r"palto\.asarray")

    def test_cell_made_inside(self):
        refused(lambda x: palto.Cell(x) + 1, X, match="inside a compiled function")
        refused(lambda x: palto.Cell(0.0) + x, X, match="inside a compiled function")

    def test_argument_that_requires_a_gradient(self):
        x = palto.asarray(X, requires_grad=True)
        refused(lambda x: x * 2, x, match="detach")

    def test_tensor_from_outside_that_requires_a_gradient(self):
        w = palto.asarray(X, requires_grad=True)
        refused(lambda x: x * w, X, match="Parameter")

    def test_backward_through_a_compiled_function(self):
        p = palto.Cell(X, requires_grad=True)
        forward = palto.compile(lambda: (p * 2).sum())
        with pytest.raises(palto.BackwardError, match="inside the compiled function"):
            forward().backward()
        with pytest.raises(palto.BackwardError, match="inside the compiled function"):
            (forward() + p.sum()).backward()  # half a gradient would be silent

    def test_backward_twice(self):
        p = palto.Cell(X, requires_grad=True)

        def step():
            loss = (p * p).sum()
            loss.backward()
            loss.backward()

        with pytest.raises(palto.BackwardError, match="retain_graph"):
            palto.compile(step)()

    def test_accumulating_on_a_gradient_from_outside(self):
        p = palto.Cell(1.0, requires_grad=True)
        (p * 2).backward()
        with pytest.raises(palto.BackwardError, match="outside"):
            palto.compile(lambda: (p * 2).backward(accumulate=True))()

    def test_setting_items(self):
        def function(x):
            x[0] = 1
            return x

        with pytest.raises(TypeError, match=r"\.at\[index\]"):
            palto.compile(function)(X)

    def test_returning_an_object(self):
        refused(lambda x: types.SimpleNamespace(x=x), X, match="returns tensors")
        refused(lambda x: np.zeros(3), X, match="returns tensors")

    def test_generators_and_coroutines(self):
        def generator(x):
            yield x

        async def coroutine(x):
            return x

        for function in (generator, coroutine):
            with pytest.raises(TypeError, match="plain functions"):
                palto.compile(function)

    def test_random_numbers_in_a_scan(self):
        def function(x):
            return palto.scan(lambda s, e: (s + palto.random.uniform(()), s), x, None, length=3)

        with pytest.raises(ValueError, match="before the scan"):
            palto.compile(function)(np.float32(0))

    def test_numbers_that_change_at_every_call(self):
        compiled = palto.compile(lambda x, lr: x * lr)
        with pytest.warns(RuntimeWarning, match=r"Cell"):
            for i in range(9):
                compiled(X, 0.1 * i)

    def test_the_warning_names_what_changes(self):
        state = types.SimpleNamespace(rate=0.0)
        compiled = palto.compile(lambda x: x * state.rate)
        with pytest.warns(RuntimeWarning, match=r"state\.rate was"):
            for i in range(9):
                state.rate = 0.1 * i
                compiled(X)


class TestSilentlyWrong:
    """Known to differ from the plain function without a word: nothing."""
