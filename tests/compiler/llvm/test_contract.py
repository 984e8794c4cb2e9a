"""The contraction generator against NumPy in double precision, for all kinds of shapes."""

import ctypes
import dataclasses
import functools
import math

import llvmlite.binding as llvm
import numpy as np
import pytest
from numpy.lib.stride_tricks import as_strided

from palto.compiler.llvm import contract, tiling
from palto.compiler.llvm.builder import Function
from palto.compiler.llvm.tiling import Axis, Contraction, Machine

TYPES = {"float": np.float32, "double": np.float64}
ENGINES = []


@functools.cache
def host():
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    return Machine.host()


def compiled(plan, convert=None):
    """A function of the pointers of a, b, result and unfinished sums, and of two units.

    The result has the indices' order. `convert` is the type that a and b have in memory.
    """
    x = plan.contraction
    kind = convert or x.kind
    parameters = [("ptr", "a"), ("ptr", "b"), ("ptr", "c"), ("ptr", "p")]
    f = Function("run", [*parameters, ("i64", "first"), ("i64", "last")])
    a, b, c, p, first, last = f.parameters.values()
    lengths = [axis.length for axis in (*x.batch, *x.rows)]

    def load(pointer, index, lanes=1):
        value = f.load(pointer, index, kind, lanes)
        return f.convert("fpext", value, x.kind) if convert else value

    def finish(batch, rows, column, sums):
        place = f.constant(0, "i64")
        for length, index in zip(lengths, [*batch, *rows], strict=True):
            place = f.binary("add", f.binary("mul", place, f.constant(length, "i64")), index)
        place = f.binary("mul", place, f.constant(x.columns, "i64"))
        place = f.binary("add", place, column)
        # Added to what is there, so that a place handed over twice, or not at all, shows.
        before = f.load(c, place, x.kind, sums.lanes, changes=True)
        f.store(c, place, f.binary("fadd", before, sums))

    load_a, load_b = functools.partial(load, a), functools.partial(load, b)
    contract.emit(
        f, plan, load_a, load_b, p, first, last, finish,
        lambda index: f.prefetch(b, index, kind),
    )  # fmt: skip
    text = f.finish().replace("define internal", "define")
    module = llvm.parse_assembly("\n".join([*sorted(f.declarations), text]))
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2
    )
    engine = llvm.create_mcjit_compiler(module, target)
    engine.finalize_object()
    ENGINES.append(engine)
    pointers = [ctypes.c_void_p] * 4
    prototype = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64, ctypes.c_int64)
    return prototype(engine.get_function_address("run"))


def run(plan, function, a, b, bounds):
    """The result of the units between each two neighbouring bounds, in the order given."""
    x = plan.contraction
    shape = [axis.length for axis in (*x.batch, *x.rows)] + [x.columns]
    result = np.zeros(shape, TYPES[x.kind])
    # Whatever the buffer held before must not matter.
    partial = np.full(plan.partial + 1, np.nan, TYPES[x.kind])
    for first, last in bounds:
        function(*(y.ctypes.data for y in (a, b, result, partial)), first, last)
    assert plan.partial == 0 or np.isnan(partial[-1])
    return result


def expected(x, a, b):
    """The sums, and the sums of the absolute values of what they add up."""
    axes = [*x.batch, *x.rows, *x.summed]
    letters = "abcdefghijklm"[: len(axes)]
    cuts = len(x.batch), len(x.batch) + len(x.rows)
    batch, summed = letters[: cuts[0]], letters[cuts[1] :]

    def view(data, axes, strides, columns=()):
        shape = [axis.length for axis in axes] + [n for n, _ in columns]
        steps = [s * data.itemsize for s in strides] + [s * data.itemsize for _, s in columns]
        return as_strided(data, shape, steps).astype(np.float64)

    both = [*x.batch, *x.summed]
    wide_a = view(a, axes, [axis.a for axis in axes])
    wide_b = view(b, both, [axis.b for axis in both], [(x.columns, x.column_b)])
    formula = f"{letters},{batch + summed}z->{letters[: cuts[1]]}z"
    path = [
        np.einsum(formula, p, q, optimize=True)
        for p, q in ((wide_a, wide_b), (abs(wide_a), abs(wide_b)))
    ]
    return path[0], path[1]


def buffers(x, generator):
    """Random a and b of just the size that the strides reach; all strides are positive."""
    axes = [*x.batch, *x.rows, *x.summed]
    sizes = (
        1 + sum((axis.length - 1) * axis.a for axis in axes if axis.length),
        1
        + (x.columns - 1) * x.column_b
        + sum((axis.length - 1) * axis.b for axis in axes if axis.length),
    )
    return [generator.standard_normal(n).astype(TYPES[x.kind]) for n in sizes]


def check(x, generator, machine=None):
    plan = tiling.plan(x, machine or host())
    a, b = buffers(x, generator)
    function = compiled(plan)
    whole = run(plan, function, a, b, [(0, plan.units)])
    wanted, size = expected(x, a, b)
    tolerance = {"float": 3e-7, "double": 1e-15}[x.kind]
    length = math.prod(axis.length for axis in x.summed)
    np.testing.assert_array_less(
        abs(whole - wanted), size * tolerance * (2 + length**0.5) + 1e-30, err_msg=str(x)
    )
    places = np.sort(generator.integers(0, plan.units + 1, 5))
    bounds = list(zip([0, *places], [*places, plan.units], strict=True))
    parts = run(plan, function, a, b, [bounds[i] for i in generator.permutation(len(bounds))])
    np.testing.assert_array_equal(parts, whole, err_msg=str(x))
    return plan


def random_contraction(generator):
    """Axes of many lengths whose strides may overlap, leave gaps, or be 0."""

    def length(most):
        choices = (1, 2, 3, 5, 7, 8, 13, 16, 17, 27, 28, 31, 64, 97)
        return int(generator.choice([n for n in choices if n <= most]))

    def axes(count, most, b):
        lengths = [length(most) for _ in range(count)]
        strides = [(int(generator.integers(0, 40)), b and int(generator.integers(0, 40)))
                   for _ in lengths]  # fmt: skip
        return tuple(Axis(n, s, t) for n, (s, t) in zip(lengths, strides, strict=True))

    batch = axes(generator.integers(0, 3), 5, True)
    rows = axes(generator.integers(0, 4), 30, False)
    summed = axes(generator.integers(0, 4), 64, True)
    # Keep the reference's arrays small.
    while math.prod(y.length for y in (*batch, *rows, *summed)) > 300_000:
        rows = tuple(dataclasses.replace(y, length=(y.length + 1) // 2) for y in rows)
        summed = tuple(dataclasses.replace(y, length=(y.length + 1) // 2) for y in summed)
    columns = int(generator.choice([1, 2, 3, 4, 7, 8, 10, 15, 16, 17, 24, 33, 47, 64, 100]))
    kind = str(generator.choice(["float", "double"]))
    wide = generator.integers(0, 2) == 1
    if wide and rows:
        rows = (*rows[:-1], dataclasses.replace(rows[-1], a=1))
    column_b = int(generator.choice([1, 1, 3, 50]))
    if summed and column_b > 1 and generator.integers(0, 2):
        summed = (*summed[:-1], dataclasses.replace(summed[-1], b=1))
    return Contraction(kind, batch, rows, columns, summed, wide, column_b)


@pytest.mark.parametrize("seed", range(120))
def test_random(seed, monkeypatch):
    generator = np.random.default_rng(seed)
    if seed % 2:  # many units and blocks also where the work is small
        monkeypatch.setattr(tiling, "SUMMED_BLOCK", 20)
        monkeypatch.setattr(tiling, "SUMMED_WHOLE", 30)
        monkeypatch.setattr(tiling, "UNIT_FLOPS", 1 << 10)
    if seed % 4 > 1:  # copies
        for name in ("FAR_LENGTH", "COPY_A", "COPY_B"):
            monkeypatch.setattr(tiling, name, 0)
        for name in ("FAR_A", "FAR_B"):
            monkeypatch.setattr(tiling, name, 1)
    check(random_contraction(generator), generator)


def matmul(m, n, k, kind="float"):
    return Contraction(kind, (), (Axis(m, k),), n, (Axis(k, 1, n),))


def needless(x, where):
    """For each row, column and summed element whether nothing need be summed there."""
    m, n, k = np.ogrid[: x.rows[-1].length, : x.columns, : x.summed[0].length]
    return where.row * m + where.column * n + where.summed * k + where.constant > 0


@pytest.mark.parametrize("m, n, k", [(37, 45, 50), (64, 32, 1000), (14, 8, 7), (1, 16, 20)])
@pytest.mark.parametrize("signs", [
    (-1, 0, 1), (1, 0, -1), (0, -1, 1), (0, 1, -1), (-1, 1, 0), (1, -1, 0),
])  # fmt: skip
@pytest.mark.parametrize("constant", [-9, 0, 4, 2000])
def test_what_need_not_be_summed(m, n, k, signs, constant):
    where = tiling.Needless(*signs, constant)
    x = dataclasses.replace(matmul(m, n, k), needless=(where,))
    generator, hidden = np.random.default_rng(0), needless(x, where)
    a, b = buffers(x, generator)
    if signs[2]:  # what is left out are products with 0
        (a if signs[0] else b).reshape((m, k) if signs[0] else (k, n))[
            hidden[:, 0] if signs[0] else hidden[0].T
        ] = 0
    plan = tiling.plan(x, host())
    found = run(plan, compiled(plan), a, b, [(0, plan.units)])
    plain = tiling.plan(matmul(m, n, k), host())
    wanted = run(plain, compiled(plain), a, b, [(0, plain.units)])
    seen = np.ones((m, n), bool) if signs[2] else ~hidden[:, :, 0]
    np.testing.assert_array_equal(found.reshape(m, n)[seen], wanted.reshape(m, n)[seen])


@pytest.mark.parametrize("k", [50, 1000])
@pytest.mark.parametrize("sign", [1, -1])
def test_what_need_not_be_summed_is_not_read(k, sign):
    """Whichever the tile: here it depends neither on the row nor on the column."""
    where = tiling.Needless(0, 0, sign, sign * -20)
    x = dataclasses.replace(matmul(30, 40, k), needless=(where,))
    a, b = buffers(x, np.random.default_rng(0))
    hidden = needless(x, where)[0, 0]
    assert 0 < hidden.sum() < k
    a.reshape(30, k)[:, hidden] = np.nan
    plan = tiling.plan(x, host())
    found = run(plan, compiled(plan), a, b, [(0, plan.units)]).reshape(30, 40)
    wanted = a.reshape(30, k)[:, ~hidden] @ b.reshape(k, 40)[~hidden]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("m, n", [(70, 200), (200, 70)])
def test_tiles_without_wanted_results_are_left_out(m, n):
    where = tiling.Needless(-1, 1, 0, 0)
    x = dataclasses.replace(matmul(m, n, 30), needless=(where,))
    plan = tiling.plan(x, host())
    a, b = buffers(x, np.random.default_rng(0))
    found = run(plan, compiled(plan), a, b, [(0, plan.units)]).reshape(m, n)
    sizes = [max(int(tile.size) for tile in spans) for spans in (plan.tiles, plan.panels)]
    right = np.triu(found, sum(sizes))
    assert (found[:, 0] != 0).all()
    assert (right == 0).all()


@pytest.mark.parametrize("m, n, k", [
    (1, 1, 1), (1, 128, 784), (5, 1, 300), (64, 10, 128), (13, 31, 2000), (2, 700, 5), (300, 3, 3),
    (512, 192, 130), (7, 64, 4000), (0, 3, 3), (3, 0, 3), (3, 3, 0),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["float", "double"])
def test_matmul(m, n, k, kind):
    check(matmul(m, n, k, kind), np.random.default_rng(0))


@pytest.mark.parametrize(
    "m, n, k", [(1, 10, 20), (30, 64, 100), (5, 29, 1000), (3, 8, 7), (9, 5, 1)]
)
@pytest.mark.parametrize("kind", ["float", "double"])
def test_turned_weights(m, n, k, kind):
    """Weights (outputs, inputs)."""
    x = Contraction(kind, (), (Axis(m, k),), n, (Axis(k, 1, 1),), column_b=k)
    check(x, np.random.default_rng(0))


def matrix_vector(rows, length, kind, *, batch=1, outer=1, gap=0):
    """Rows whose summed elements are neighbours, `outer` times with a gap between."""
    across = length + gap
    return Contraction(
        kind,
        (Axis(batch, rows * outer * across, outer * length),),
        (Axis(rows, outer * across),),
        1,
        (Axis(outer, across, length), Axis(length, 1, 1)),
        wide_a=True,
    )


@pytest.mark.parametrize(
    "rows, length, form",
    [
        (1, 64, {}), (3, 37, {}), (4, 129, {}), (250, 400, {}), (7, 1000, {"batch": 3}),
        (5, 35, {"outer": 4, "gap": 2}), (13, 3001, {}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["float", "double"])
def test_a_matrix_times_a_vector(rows, length, form, kind):
    x = matrix_vector(rows, length, kind, **form)
    assert tiling.plan(x, host()).lengthwise
    check(x, np.random.default_rng(rows))


def test_rows_of_a_matrix_times_a_vector_do_not_depend_on_their_tile():
    generator = np.random.default_rng(0)
    x = matrix_vector(11, 1000, "float")
    a, b = buffers(x, generator)
    plan = tiling.plan(x, host())
    whole = run(plan, compiled(plan), a, b, [(0, plan.units)])
    single = tiling.plan(matrix_vector(1, 1000, "float"), host())
    function = compiled(single)
    for row in range(11):
        alone = run(single, function, a[1000 * row :].copy(), b, [(0, single.units)])
        np.testing.assert_array_equal(alone.ravel(), whole.ravel()[row : row + 1])


def convolution(images, size, channels, filters, kernel, stride):
    width = (size - 1) * stride + kernel
    line = width * channels
    inner = kernel * channels
    rows = (Axis(images, width * line), Axis(size, stride * line), Axis(size, stride * channels))
    summed = (Axis(kernel, line, inner * filters), Axis(inner, 1, filters))
    return Contraction("float", (), rows, filters, summed)


def convolution_weights(images, size, channels, filters, kernel, stride):
    width = (size - 1) * stride + kernel
    line = width * channels
    summed = (
        Axis(images, width * line, size * size * filters),
        Axis(size, stride * line, size * filters),
        Axis(size, stride * channels, filters),
    )
    rows = (Axis(kernel, line), Axis(kernel * channels, 1))
    return Contraction("float", (), rows, filters, summed)


@pytest.mark.parametrize("form", [convolution, convolution_weights])
@pytest.mark.parametrize(
    "shape",
    [(3, 13, 16, 24, 3, 1), (2, 27, 3, 33, 5, 1), (2, 11, 3, 16, 11, 4), (5, 7, 40, 64, 1, 1)],
)
def test_convolution(form, shape):
    check(form(*shape), np.random.default_rng(0))


def test_other_registers():
    """A tile for other registers is right too, whatever this computer has."""
    for machine in (
        Machine(16, 16),
        Machine(16, 32),
        Machine(64, 32),
        Machine(16, 16, fused=False),
    ):
        check(matmul(45, 83, 29), np.random.default_rng(0), machine)


def test_tiles_and_caches_do_not_change_a_bit():
    x = convolution_weights(7, 13, 16, 64, 3, 1)
    a, b = buffers(x, np.random.default_rng(0))
    machines = [
        Machine(32, 16), Machine(16, 16, 1 << 10, 1 << 12, threads=1), Machine(32, 32, threads=3),
    ]  # fmt: skip
    plans = [tiling.plan(x, machine) for machine in machines]
    results = [run(p, compiled(p), a, b, [(0, p.units)]) for p in plans]
    assert plans[0].blocks > 1
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


def test_threads_share_large_work():
    for x in (matmul(512, 512, 512), convolution(16, 28, 32, 64, 3, 1), matmul(64, 128, 784)):
        assert tiling.plan(x, Machine(32, 16)).units >= 16


def test_blocks_do_not_depend_on_caches():
    x = convolution_weights(64, 27, 64, 192, 5, 1)
    plans = [tiling.plan(x, Machine(32, 16, l1, l2)) for l1, l2 in ((1, 1), (1 << 20, 1 << 24))]
    assert plans[0].blocks == plans[1].blocks > 1


def test_tile_fits_registers():
    def tile(machine, m=1000, n=1000):
        plan = tiling.plan(matmul(m, n, 256), machine)
        return plan.tiles[0].size, len(plan.panels[0].pieces)

    assert tile(Machine(64, 32)) == (14, 2)
    assert tile(Machine(32, 16)) == (6, 2)
    assert tile(Machine(32, 16), m=1)[1] == 8
    for m in range(1, 40):
        height, width = tile(Machine(32, 16), m, 256)
        assert height == 1 or height * width + width + 1 <= 16


@pytest.mark.parametrize(
    ("rows", "columns", "l2", "wanted"),
    [
        (1024, 1024, 1 << 20, (4, 96)),
        (1024, 1024, 8 << 20, (14, 32)),  # a cache holds the result
        (1 << 16, 16, 1 << 20, (14, 16)),  # narrow: not even taller
    ],
)
def test_tiles_are_flat_where_a_large_result_sums_little(rows, columns, l2, wanted):
    x = Contraction("float", (), (Axis(rows, 1),), columns, (Axis(32, rows, columns),))
    found = tiling.plan(x, Machine(64, 32, l2=l2))
    assert (max(x.size for x in found.tiles), max(x.size for x in found.panels)) == wanted


def test_not_a_number_and_infinity():
    x = matmul(7, 19, 33)
    plan = tiling.plan(x, host())
    a, b = buffers(x, np.random.default_rng(0))
    a[2 * 33 + 5], b[7 * 19 + 18] = np.nan, np.inf
    result = run(plan, compiled(plan), a, b, [(0, plan.units)])
    with np.errstate(invalid="ignore"):
        wanted = a.reshape(7, 33).astype(np.float64) @ b.reshape(33, 19).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(result), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(result), np.isinf(wanted))


def test_converting_loads():
    x = matmul(20, 30, 40, "double")
    plan = tiling.plan(x, host())
    a, b = (y.astype(np.float32) for y in buffers(x, np.random.default_rng(0)))
    result = run(plan, compiled(plan, "float"), a, b, [(0, plan.units)])
    np.testing.assert_allclose(result, expected(x, a, b)[0], rtol=1e-12, atol=1e-12)
