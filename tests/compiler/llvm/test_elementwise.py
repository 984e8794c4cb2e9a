"""Elementwise code, the mathematical functions and random words against their NumPy meaning."""

import ctypes
import itertools

import numpy as np
import pytest
from llvmlite import binding

import palto
from palto.compiler.llvm.builder import Function
from palto.compiler.llvm.elementwise import LLVM_TYPES, TABLE
from palto.compiler.llvm.mathematics import FLOAT32
from palto.compiler.llvm.random import philox_word
from palto.tensor import dtypes, special
from palto.tensor.graph import Operation, Primitive
from palto.tensor.primitives import elementwise
from palto.tensor.primitives.random import philox, random_bits

LANES = (1, 8, 16)
PRIMITIVES = {p.name: p for p in vars(elementwise).values() if isinstance(p, Primitive)}
#: Units in the last place by which float32 functions may miss the exact value.
ULPS = {
    "exp": 1.5, "expm1": 2, "log": 1.5, "log1p": 2, "sin": 2, "cos": 2, "tanh": 4.6, "erf": 4.6,
    "atan2": 2.5, "pow": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def build():
    """``build(texts, declarations)``: from a function's name to its address."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    engines = []

    def run(texts, declarations):
        module = binding.parse_assembly("\n".join([*sorted(declarations), *texts]))
        module.verify()
        machine = target.create_target_machine(
            cpu=binding.get_host_cpu_name(),
            features=binding.get_host_cpu_features().flatten(),
            opt=2,
        )
        engines.append(binding.create_mcjit_compiler(module, machine))
        engines[-1].finalize_object()
        return engines[-1].get_function_address

    yield run
    engines.clear()


def write(name, code, sources, target, lanes):
    """A function over arrays: addresses of inputs and output, and a count of elements.

    `code` gets the Function and elements of the dtypes `sources`; its result is of dtype `target`.
    """
    names = [f"x{i}" for i in range(len(sources))]
    pointers = [("ptr", pointer) for pointer in (*names, "result")]
    f = Function(name, [*pointers, ("i64", "count")])
    with f.loop(0, f.parameters["count"], lanes) as loop:

        def parts(place):
            even = f.lanes("i64", lanes)
            first = f.binary("mul", f.constant(2, "i64"), loop.counter)
            places = f.binary("add", f.binary("mul", even, f.constant(2, "i64")), first)
            return [f.binary("add", places, f.constant(i, "i64")) for i in range(2)]

        inputs = []
        for pointer, dtype in zip(names, sources, strict=True):
            pointer, kind = f.parameters[pointer], LLVM_TYPES[dtype]
            if dtype == dtypes.complex64:
                inputs.append(tuple(f.gather(pointer, x, kind) for x in parts(loop.counter)))
            else:
                inputs.append(f.load(pointer, loop.counter, kind, lanes))
        result = code(f, inputs)
        if target == dtypes.complex64:
            for value, place in zip(result, parts(loop.counter), strict=True):
                value = f.broadcast(value, lanes)
                for lane in range(lanes):
                    f.store(f.parameters["result"], f.extract(place, lane), f.extract(value, lane))
        else:
            assert result.type == LLVM_TYPES[target]
            f.store(f.parameters["result"], loop.counter, f.broadcast(result, lanes))
    return f.finish().replace("define internal", "define", 1), f.declarations


def call(address, target, *arrays):
    result = np.empty(arrays[0].shape, target)
    pointers = [x.ctypes.data for x in (*arrays, result)]
    ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * len(pointers), ctypes.c_int64)(address)(
        *pointers, result.size
    )
    return result


def edges(dtype):
    """Values of a dtype where something special happens."""
    if dtype.kind == "b":
        return np.array([False, True])
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        wanted = [0, 1, 2, 3, 5, 7, 8, 31, 32, 63, 64, 100, -1, -2, -3, -7, -8, -100]
        wanted += [info.min, info.min + 1, info.max, info.max - 1, info.max // 2, 2**24 + 1]
        wanted += [2**53 + 1, 2**31, 2**62 + 2**38 + 1]
        return np.array([x for x in wanted if info.min <= x <= info.max], dtype)
    if dtype == dtypes.complex64:
        parts = [0.0, -0.0, 1.0, -2.5, 3e-20, 40.0, 89.0, np.inf, -np.inf, np.nan]
        return np.array([complex(a, b) for a in parts for b in parts], dtype)
    wanted = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 0.1, 7.25, 127.5, 255.0, 1e5, 2.0**31, 2.0**32]
    wanted += [2.0**63, 1e30, 3e38, 1e-30, 2.0**-126, np.inf, 1 + 2.0**-8, 1 + 3 * 2.0**-8]
    wanted += [1 + 2.0**-7 + 2.0**-8 + 2.0**-20]
    with np.errstate(over="ignore"):
        return np.array([*wanted, *(-x for x in wanted), np.nan], dtype)


@np.errstate(over="ignore")
def samples(dtypes_of_inputs, count):
    """All combinations of edges, then random values: arrays of one length, a multiple of 16."""
    rng = np.random.default_rng(1)
    combinations = list(itertools.product(*map(edges, dtypes_of_inputs)))
    if len(combinations) > 8000:
        chosen = rng.choice(len(combinations), 8000, replace=False)
        combinations = [combinations[i] for i in chosen]
    arrays = []
    for place, dtype in enumerate(dtypes_of_inputs):
        special_values = np.array([c[place] for c in combinations], dtype)
        size = count + -len(combinations) % 16
        if dtype.kind in "biu":
            drawn = np.frombuffer(rng.bytes(size * dtype.itemsize), dtype.str.replace("b", "u"))
            drawn = (drawn & 1).astype(bool) if dtype.kind == "b" else drawn
            drawn = np.where(rng.random(size) < 0.5, drawn, drawn % np.array(9, dtype))
        elif dtype == dtypes.complex64:
            drawn = rng.normal(size=(2, size)) * 3
            drawn = drawn[0] + 1j * drawn[1]
        else:
            drawn = rng.normal(size=size) * np.exp(3 * rng.normal(size=size))
        arrays.append(np.concatenate([special_values, drawn.astype(dtype)]))
    return arrays


def cases(primitive):
    """The (input dtypes, parameters, output dtype) that a primitive accepts."""
    found = []
    targets = dtypes.SUPPORTED if primitive is elementwise.cast else (None,)
    for dtype, target in itertools.product(dtypes.SUPPORTED, targets):
        params = {} if target is None else {"dtype": target}
        for count in (1, 2, 3):
            sources = [dtype] * count
            if primitive is elementwise.where:
                sources[0] = dtypes.bool
            tensors = [palto.asarray(np.zeros(1, source)) for source in sources]
            try:
                spec = primitive.infer(*tensors, **params)
                with np.errstate(all="ignore"):
                    primitive.numpy(*(np.ones(1, source) for source in sources), **params)
            except (TypeError, ValueError):
                continue
            found.append((tensors, params, spec.dtype))
            break
    return found


@np.errstate(all="ignore")
def distance(values, exact):
    """Units in the last place of the values' dtype from `exact`; 0 for two NaN."""
    rounded = exact.astype(values.dtype)
    unit = np.spacing(np.maximum(np.abs(rounded), np.finfo(values.dtype).tiny))
    apart = np.abs(values.astype(exact.dtype) - exact) / unit
    same = (values == rounded) | (np.isnan(values) & np.isnan(exact))
    # What is smaller than normal may be taken for zero.
    tiny = np.finfo(values.dtype).tiny
    same |= (np.abs(exact) < tiny) & (np.abs(values) <= tiny)
    return np.where(same, 0, np.where(np.isnan(apart), np.inf, apart))


def float_to_integer(x, dtype):
    """What the code promises where C promises nothing: the lowest integer, cut to size."""
    x = x.astype(np.float64)
    wide = np.dtype(np.int64 if dtype == dtypes.int64 else np.int32)
    limit = -float(np.iinfo(wide).min)
    upper = (x >= limit) & (dtype == dtypes.uint32)
    x = np.where(upper, x - limit, x)
    fits = (x >= -limit) & (x < limit)
    result = np.where(fits, np.where(fits, x, 0).astype(wide), np.iinfo(wide).min)
    return np.where(upper, result ^ np.iinfo(wide).min, result).astype(dtype)


def check(primitive, params, arrays, result):
    name, first = primitive.name, arrays[0]
    keep = np.ones(first.shape, bool)
    if first.dtype.kind in "iu" and name in ("floor_divide", "remainder", "pow"):
        keep = arrays[1] >= 0 if name == "pow" else arrays[1] != 0
    if first.dtype == dtypes.float32 and name in FLOAT32:
        exact = primitive.numpy(*(x.astype(np.float64) for x in arrays))
        apart = distance(result, exact)
        worst = int(np.argmax(apart))
        if name in ("sin", "cos"):  # near a root what counts is the size of the argument
            apart = np.fmin(apart, np.abs(result - exact) / 2.0**-24)
        assert apart.max() <= ULPS[name], (
            f"{name}{tuple(x[worst] for x in arrays)} = {result[worst]}, wants {exact[worst]}"
        )
        assert (np.signbit(result) == np.signbit(exact))[~np.isnan(exact)].all()
        return
    with np.errstate(over="ignore"):
        expected = primitive.numpy(*(x[keep] for x in arrays), **params)
    result = result[keep]
    assert result.dtype == expected.dtype
    if first.dtype.kind in "fcV" and expected.dtype.kind in "iu":
        # ml_dtypes' name for a kind is V.
        source = first.real if first.dtype.kind == "c" else first
        expected = float_to_integer(source, expected.dtype)
    if expected.dtype.kind == "c" or name == "abs":
        parts = ("real", "imag") if expected.dtype.kind == "c" else ("real",)
        for part in parts:
            got, wanted = getattr(result, part), getattr(expected, part)
            np.testing.assert_allclose(got, wanted, rtol=2e-6, atol=1e-6 * (name != "cast"))
    elif expected.dtype.kind in "biu":
        np.testing.assert_array_equal(result, expected)
    elif name in FLOAT32:  # by the C library's function in float64
        assert distance(result, expected).max() <= 4
    else:
        wide_result, wide = (x.astype(np.float64) for x in (result, expected))
        np.testing.assert_array_equal(wide_result, wide)
        if name not in ("maximum", "minimum"):  # of 0 and -0 NumPy takes one or the other
            seen = ~np.isnan(wide)
            np.testing.assert_array_equal(np.signbit(wide_result)[seen], np.signbit(wide)[seen])


def test_every_primitive_has_a_row():
    assert set(TABLE) == set(PRIMITIVES)
    assert set(LLVM_TYPES) == set(dtypes.SUPPORTED)


@pytest.mark.parametrize("name", sorted(PRIMITIVES))
def test_a_row_means_what_numpy_means(name, build):
    primitive = PRIMITIVES[name]
    texts, declarations, runs = [], set(), []
    for number, (tensors, params, target) in enumerate(cases(primitive)):
        sources = [x.dtype for x in tensors]
        arrays = samples(sources, 512)
        operation = Operation(primitive, tuple(tensors), params)
        for lanes in LANES:
            function = f"f{number}_{lanes}"
            text, declared = write(
                function, lambda f, xs, op=operation: TABLE[name](f, op, xs), sources, target, lanes
            )
            texts.append(text)
            declarations |= declared
            runs.append((function, params, target, arrays))
    assert runs
    address = build(texts, declarations)
    with np.errstate(all="ignore"):
        for function, params, target, arrays in runs:
            check(primitive, params, arrays, call(address(function), target, *arrays))


@pytest.mark.parametrize(
    "name",
    [n for n, p in sorted(PRIMITIVES.items()) if len(cases(p)[0][0]) > 1],
)
def test_a_lane_may_stand_for_all(name, build):
    """The last input is one value for all lanes, or a constant if it is an integer."""
    primitive = PRIMITIVES[name]
    texts, declarations, runs = [], set(), []
    for number, (tensors, params, target) in enumerate(cases(primitive)):
        sources = [x.dtype for x in tensors]
        operation = Operation(primitive, tuple(tensors), params)
        arrays = samples(sources, 64)
        for place in (5, 1, 0):
            uniform = edges(sources[-1])[place % len(edges(sources[-1]))]

            def code(f, xs, op=operation, uniform=uniform):
                last = xs[-1]
                if uniform.dtype.kind in "iu":
                    last = f.constant(int(uniform), last.type)
                elif isinstance(last, tuple):
                    last = tuple(f.extract(part, 0) for part in last)
                else:
                    last = f.extract(last, 0)
                return TABLE[name](f, op, (*xs[:-1], last))

            function = f"f{number}_{place}"
            text, declared = write(function, code, sources, target, 8)
            texts.append(text)
            declarations |= declared
            runs.append(
                (function, params, target, [*arrays[:-1], np.full_like(arrays[-1], uniform)])
            )
    address = build(texts, declarations)
    with np.errstate(all="ignore"):
        for function, params, target, arrays in runs:
            check(primitive, params, arrays, call(address(function), target, *arrays))


def bit_patterns(step, first=0):
    patterns = np.arange(first, 2**32, step, dtype=np.int64).astype(np.uint32)
    return patterns[: len(patterns) // 8 * 8].view(np.float32)


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "erf", "sin", "cos"])
def test_a_function_is_right_over_the_whole_range(name, build):
    text, declared = write(name, lambda f, xs: FLOAT32[name](f, *xs), [dtypes.float32],
                           dtypes.float32, 8)  # fmt: skip
    x = np.concatenate([bit_patterns(4099), bit_patterns(257, 0xBF000000)])
    result = call(build([text], declared)(name), dtypes.float32, x)
    with np.errstate(all="ignore"):
        wide = x.astype(np.float64)
        exact = special.erf(wide) if name == "erf" else getattr(np, name)(wide)
    normal = (np.abs(x) >= np.finfo(np.float32).tiny) | (x == 0)
    x, result, exact = x[normal], result[normal], exact[normal]
    apart = distance(result, exact)
    if name in ("sin", "cos"):
        finite = np.isfinite(exact)
        assert np.abs(result[finite] - exact[finite]).max() <= 1e-7
        assert not np.isfinite(result[~finite]).any()
        # Near its roots too, as long as the argument is not astronomical.
        apart = apart[np.abs(x) < 2.0**60]
    if name in ("tanh", "erf"):
        assert np.nanmax(np.abs(result)) == 1
    assert apart.max() <= ULPS[name]


@np.errstate(all="ignore")
@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_a_function_of_two_is_right(name, build):
    sources = [dtypes.float32] * 2
    text, declared = write(name, lambda f, xs: FLOAT32[name](f, *xs), sources, dtypes.float32, 8)
    rng = np.random.default_rng(3)
    size = 2**17
    everything = rng.permutation(bit_patterns(2**14))[:size]
    other = rng.permutation(everything)
    moderate = np.exp(3 * rng.normal(size=size)) * rng.choice([-1, 1], size)
    exponents = rng.normal(size=size) * 8
    exponents[::2] = np.rint(exponents[::2])
    x = np.concatenate([everything, moderate, everything]).astype(np.float32)
    y = np.concatenate([other, exponents, np.rint(exponents)]).astype(np.float32)
    result = call(build([text], declared)(name), dtypes.float32, x, y)
    exact = PRIMITIVES[name].numpy(x.astype(np.float64), y.astype(np.float64))
    tiny = np.finfo(np.float32).tiny
    normal = ((np.abs(x) >= tiny) | (x == 0)) & ((np.abs(y) >= tiny) | (y == 0))
    assert distance(result, exact)[normal].max() <= ULPS[name]


@pytest.mark.parametrize("lanes", LANES)
def test_random_words_are_those_of_the_primitive(lanes, build):
    def code(f, inputs):
        seed, draw, index = inputs
        return philox_word(f, f.extract(seed, 0), f.extract(draw, 0), index)

    text, declared = write("words", code, [dtypes.int64] * 3, dtypes.uint32, lanes)
    address = build([text], declared)("words")

    def words(seed, draw, index):
        states = [np.full_like(index, part) for part in (seed, draw)]
        return call(address, dtypes.uint32, *states, index)

    index = np.arange(64)
    for seed, draw in ((0, 0), (1, 2), (-1, -1), (2**62 + 12345, 2**40 + 7), (-(2**63), 2**63 - 1)):
        wanted = random_bits.numpy(np.array([seed, draw]), shape=(64,))
        np.testing.assert_array_equal(words(seed, draw, index), wanted)
    shuffled = np.random.default_rng(0).permutation(index)
    np.testing.assert_array_equal(words(5, 6, shuffled), words(5, 6, index)[shuffled])
    far = 2**40 + index  # more than 2^32 blocks of four
    block = (far // 4).astype(np.uint64)
    low, high = block & np.uint64(0xFFFFFFFF), block >> np.uint64(32)
    state = np.full_like(low, 3), np.full_like(low, 0)
    wanted = np.choose(far % 4, philox((low, high, *state), (9, 0)))
    np.testing.assert_array_equal(words(9, 3, far), wanted.astype(np.uint32))
