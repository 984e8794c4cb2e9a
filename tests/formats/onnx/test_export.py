"""What is exported computes in ONNX Runtime what it computes in Palto."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

import palto
from palto import nn
from palto.formats.onnx import UnsupportedError, export, load
from palto.formats.onnx.export import model_of
from palto.formats.onnx.lowering import LOWERINGS
from palto.tensor.graph import apply
from palto.tensor.primitives import TABLE
from palto.tensor.tree import flatten, rebuild
from tests.compiler.test_native import EXAMPLES, LAYERS, MODELS

onnxruntime.set_default_logger_severity(4)

#: What ONNX Runtime has kernels for throughout.
DTYPES = {"float32", "int32", "int64", "bool"}
#: Primitives that ONNX has no way to say, and what the refusal names.
REFUSED = {"random_bits": "random", "window_take": "gradient", "window_put": "gradient"}


def is_least(x):
    return x == np.iinfo(x.dtype).min if x.dtype.kind == "i" else np.zeros(1, bool)


#: ONNX Runtime leaves NaN out of extrema, and crashes at the least integer over -1.
AVOIDED = {
    "max": np.isnan, "min": np.isnan, "window_max": np.isnan, "argmax": np.isnan, "sort": np.isnan,
    "floor_divide": is_least, "remainder": is_least,
}  # fmt: skip


def session(model):
    contents = model if isinstance(model, bytes) else model.SerializeToString()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])


def run(model, *arrays):
    ready = session(model)
    names = [value.name for value in ready.get_inputs()]
    return ready.run(None, dict(zip(names, map(np.asarray, arrays), strict=True)))


def assert_same(function, *arrays, dynamic_shapes=None, others=(), rtol=3e-5, atol=1e-5):
    """Compare a function with its export, at these arrays and at others; the model."""
    model = model_of(function, *arrays, dynamic_shapes=dynamic_shapes or {})
    for given in (arrays, *others):
        found = flatten(function(*map(palto.asarray, given)))[0]
        wanted = [np.asarray(x.array()) for x in found]
        for got, value in zip(run(model, *given), wanted, strict=True):
            assert (got.dtype, got.shape) == (value.dtype, value.shape)
            largest = np.abs(value[np.isfinite(value)]).max(initial=1) if value.size else 1
            np.testing.assert_allclose(got, value, rtol=rtol, atol=atol * largest)
    return model


def as_real(array):
    """A complex array as its parts, which an ONNX file takes and gives."""
    if array.dtype.kind == "c":
        return (array.real.copy(), array.imag.copy())
    return array


def of_groups(row, parameters):
    def function(groups):
        results = []
        for group, params in zip(groups, parameters, strict=True):
            group = [palto.complex(*x) if isinstance(x, tuple) else x for x in group]
            result = apply(row, *group, **params)
            result = result[0] if row.name == "window_max" else result
            if getattr(result, "dtype", None) == palto.complex64:
                result = (palto.real(result), palto.imag(result))
            results.append(result)
        return results

    return function


def test_the_table_has_every_primitive():
    assert set(LOWERINGS) == set(TABLE)
    with_bodies = {"composite", "scan", "repeat"}
    assert {name for name, examples in EXAMPLES.items() if examples} | with_bodies == set(TABLE)


@pytest.mark.parametrize("name", [n for n, examples in EXAMPLES.items() if examples])
def test_primitive(name):
    examples = [
        (arrays, params)
        for arrays, params in EXAMPLES[name]()
        if {x.dtype.name for x in arrays} <= {*DTYPES, "complex64"}
        and params.get("dtype", np.dtype("float32")).name in {*DTYPES, "complex64"}
        and not any(AVOIDED[name](x).any() for x in arrays if name in AVOIDED)
    ]
    if name in REFUSED:
        arrays, params = next(iter(EXAMPLES[name]()))
        with pytest.raises(UnsupportedError, match=f"(?s){name}.*{REFUSED[name]}"):
            model_of(lambda *xs: apply(TABLE[name], *xs, **params), *arrays)
        return
    assert len(examples) >= 3
    for start in range(0, len(examples), 40):  # so many in one model
        part = examples[start : start + 40]
        function = of_groups(TABLE[name], [params for _, params in part])
        groups = [[*map(as_real, arrays)] for arrays, _ in part]
        model = model_of(function, groups)
        given = flatten(groups)[0]
        wanted = flatten(function(rebuild(flatten(groups)[1], [*map(palto.asarray, given)])))[0]
        for got, value in zip(run(model, *given), wanted, strict=True):
            value = np.asarray(value.array())
            assert (got.dtype, got.shape) == (value.dtype, value.shape)
            largest = np.abs(value[np.isfinite(value)]).max(initial=0) if value.size else 0
            atol = (4e-5 if name == "fft" else 1e-5) * float(largest)
            np.testing.assert_allclose(got, value, rtol=3e-5, atol=atol)


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name):
    make, inputs = LAYERS[name]
    assert_same(make().eval(), *inputs())


def batches(arrays, size):
    """Arrays with another number of rows."""
    return [np.concatenate([array] * size)[:size] for array in arrays]


@pytest.mark.parametrize("name", MODELS)
def test_model_of_any_batch_size(name, tmp_path):
    """One file for all batch sizes, which loads again with the names of the state dict."""
    make, inputs = MODELS[name]
    model, arrays = make().eval(), inputs()
    argument = model.forward.__code__.co_varnames[1]
    shapes = {argument: {0: palto.Dim("batch", max=16)}}
    others = [batches(arrays, size) for size in (1, 2, 7)]
    assert_same(model, *arrays, dynamic_shapes=shapes, others=others)

    path = tmp_path / "model.onnx"
    export(model, path, *arrays, dynamic_shapes=shapes)
    again = load(path)
    ours, theirs = model.state_dict(), again.state_dict()
    assert set(theirs) == {key for key in ours if not key.endswith("num_batches_tracked")}
    for key, value in theirs.items():
        assert sorted(value.shape) == sorted(ours[key].shape)
    assert {n for n, _ in again.named_parameters()} == {n for n, _ in model.named_parameters()}
    np.testing.assert_allclose(again(*arrays), model(*arrays), rtol=1e-4, atol=1e-5)


def test_whole_numbers_divide_downwards():
    x, y = (g.reshape(-1) for g in np.meshgrid(np.arange(-7, 8), [-3, -2, -1, 1, 2, 3]))
    for dtype in (np.int32, np.int64):
        assert_same(lambda a, b: (a // b, a % b), x.astype(dtype), y.astype(dtype))


rng = np.random.default_rng(0)


def real(*shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, y: x.reshape((x.shape[0] * 3, -1)) @ y.T,
        lambda x, y: (palto.mean(x), palto.sum(y, 0) / (2 * y.shape[0])),
        lambda x, y: x + palto.arange(x.shape[0], dtype=palto.float32)[:, None, None],
        lambda x, y: palto.concat([x[1:], x[:1] * 2]) + palto.ones(x.shape),
        lambda x, y: palto.pad(x, [(1, 0), (0, 0), (0, x.shape[0])])[:, :, 1:-2],
        lambda x, y: palto.flip(palto.sort(y, axis=0), axis=0) * palto.ones((1, 4)),
        lambda x, y: palto.broadcast_to(y[:, None], (y.shape[0], x.shape[0], 4)),
        lambda x, y: palto.zeros((x.shape[0], y.shape[0])).T,
        lambda x, y: palto.einsum("nij,mj->nmi", x, y),
        lambda x, y: palto.repeat(y, 2, axis=0).reshape((y.shape[0], 8)),
    ],
)
def test_sizes_that_are_known_only_when_it_runs(function):
    n, m = palto.Dim("n", max=16), palto.Dim("m", max=32)
    others = [(real(a, 3, 4), real(b, 4)) for a, b in [(2, 3), (11, 2), (3, 31), (16, 5)]]
    model = assert_same(
        function, real(4, 3, 4), real(7, 4), others=others,
        dynamic_shapes={"x": {0: n}, "y": {0: m}},
    )  # fmt: skip
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: x[: 2 * y.shape[0]] + palto.sum(y), r"else where n = \d+, m = \d+"),
        (lambda x, y: x[: y.shape[0] - 3] * 2 + palto.sum(y), "'m' to be at least 3"),
        (lambda x, y: x * 2 + palto.sum(y) if x.shape[0] > 4 else x, "'n' to be at least 5"),
        (lambda x, y: (x if x.shape[0] != 6 else -x) + palto.sum(y), r"else where n = 6, m = "),
    ],
)
def test_sizes_for_which_a_function_does_something_else(function, message, tmp_path):
    n, m = palto.Dim("n", max=16), palto.Dim("m", max=24)
    with pytest.raises(UnsupportedError, match=message):
        export(
            function, tmp_path / "model.onnx", real(8), real(12),
            dynamic_shapes={"x": {0: n}, "y": {0: m}},
        )  # fmt: skip
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("reverse", [False, True])
def test_scan(reverse):
    weight = palto.asarray(real(4, 4))

    def function(first, xs):
        def step(state, x):
            h, count = state
            h = palto.tanh(h @ weight + x)
            return (h, count + 1), (h * 2, palto.sum(h))

        return palto.scan(step, (first, palto.asarray(0)), xs, reverse=reverse)

    assert_same(function, real(2, 4), real(5, 2, 4))
    assert_same(lambda x: palto.scan(lambda s, _: (s * 2, s), x, length=3), real(2))


@pytest.mark.parametrize("name", ["lenet", "resnet", "gpt"])
def test_a_loaded_model_is_written_again(name):
    """With the same operators, weights and names."""
    make, inputs = MODELS[name]
    model, arrays = make().eval(), inputs()
    first = model_of(model, *arrays)
    loaded = load(first)
    second = model_of(loaded, *arrays)
    np.testing.assert_allclose(
        run(second, *arrays)[0], np.asarray(model(*arrays)), rtol=1e-4, atol=1e-5
    )

    def of(written, kind):
        return sorted(node.op_type for node in written.graph.node if kind in node.op_type)

    for kind in ("Conv", "BatchNormalization", "LayerNormalization", "Gemm", "Transpose"):
        assert of(first, kind) == of(second, kind)
    tensors = [
        {tensor.name: numpy_helper.to_array(tensor) for tensor in written.graph.initializer}
        for written in (first, second)
    ]
    assert tensors[0].keys() == tensors[1].keys()
    for key, array in tensors[0].items():
        np.testing.assert_array_equal(array, tensors[1][key])


def test_axes_stay_channels_first_between_convolutions():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AvgPool2d(2),
    ).eval()  # fmt: skip
    written = assert_same(model, real(2, 12, 12, 3))
    operators = [node.op_type for node in written.graph.node]
    assert operators.count("Transpose") == 2  # of the input and of the output
    assert operators.count("Relu") == 2 and operators.count("BatchNormalization") == 1
    shapes = {tensor.name: list(tensor.dims) for tensor in written.graph.initializer}
    assert shapes["layers.0.weight"] == [4, 3, 3, 3] and shapes["layers.4.weight"] == [5, 4, 3, 3]


def small_llama():
    palto.manual_seed(0)
    options = {"heads": 4, "key_value_heads": 2, "layers": 2}
    return nn.models.llama(23, 32, width=16, **options).eval()


def test_llama_of_any_number_of_texts_of_any_length():
    model = small_llama()
    shapes = {"tokens": {0: palto.Dim("batch", max=8), 1: palto.Dim("time", max=32)}}
    others = [[rng.integers(0, 23, shape)] for shape in [(1, 1), (3, 2), (2, 32), (7, 5)]]
    assert_same(model, rng.integers(0, 23, (2, 9)), dynamic_shapes=shapes, others=others)


def test_layers_of_one_kind_are_written_out():
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.LayerNorm(6)) for _ in range(4)]
    for block in blocks:
        block.eval().requires_grad_(False)
    x = rng.normal(size=(3, 6)).astype(np.float32)
    assert_same(lambda x: nn.repeated(blocks, x, [()] * 4), x)


def test_llama_goes_on_from_its_cache():
    """A prompt, then one token after the other, the cache handed from call to call."""
    model = small_llama()
    cache = model.new_cache()
    written = model_of(
        lambda tokens, position: model(tokens, cache, position), np.zeros((1, 4), np.int64),
        np.array(0), dynamic_shapes={"tokens": {1: palto.Dim("time", max=32)}}, state=cache,
    )  # fmt: skip
    names = [value.name for value in written.graph.input]
    assert names[:2] == ["tokens", "position"]
    assert {"keys.0", "keys.1", "values.0", "values.1"} == set(names[2:])
    assert [value.name for value in written.graph.output][1:] == [f"next_{x}" for x in names[2:]]
    assert {tensor.name for tensor in written.graph.initializer} == set(model.state_dict())

    ready, tokens = session(written), rng.integers(0, 23, (1, 12))
    wanted = np.asarray(model(tokens))
    state = {x.name: np.zeros(x.shape, np.float32) for x in ready.get_inputs()[2:]}
    place = 0
    for size in (7, 1, 1, 3):
        given = {"tokens": tokens[:, place : place + size], "position": np.array(place)}
        logits, *after = ready.run(None, given | state)
        state = dict(zip(state, after, strict=True))
        np.testing.assert_allclose(logits, wanted[:, place : place + size], rtol=1e-4, atol=1e-5)
        place += size
    with pytest.raises(UnsupportedError, match="name the module that holds it as `state`"):
        model_of(lambda tokens: model(tokens, cache), np.zeros((1, 4), np.int64))


def test_names():
    def function(Add, pair):  # named like operators
        return {"Relu": Add + pair[0], "x": palto.maximum(pair[1], 0), "same": Add}

    model = model_of(function, real(3), (real(3), real(3)))
    x, y, z = real(3), real(3), real(3)
    for got, wanted in zip(run(model, x, y, z), [x + y, np.maximum(z, 0), x], strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert [value.name for value in model.graph.input] == ["Add", "pair.0", "pair.1"]
    assert [value.name for value in model.graph.output] == ["Relu", "x", "same"]

    layer = nn.Linear(3, 2)
    model = model_of(layer, real(4, 3), input_names=["add_1"], output_names=["Gemm"])
    assert [value.name for value in model.graph.input] == ["add_1"]
    assert {tensor.name for tensor in model.graph.initializer} == {"weight", "bias"}
    np.testing.assert_allclose(run(model, real(4, 3) * 0)[0][0], layer.bias, rtol=1e-6)
    with pytest.raises(ValueError, match="'weight'"):
        model_of(layer, real(4, 3), output_names=["weight"])
    with pytest.raises(ValueError, match="1 outputs, got 2 output_names"):
        model_of(layer, real(4, 3), output_names=["a", "b"])


def test_what_is_no_function_of_its_inputs_is_refused(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")
    batch_norm = nn.BatchNorm1d(3)
    with pytest.raises(UnsupportedError, match=r"(?s)changes 'running_mean'.*model\.eval\(\)"):
        export(batch_norm, path, real(4, 3))
    with pytest.raises(UnsupportedError, match=r"changes .*model\.eval\(\)"):
        export(nn.Dropout(0.5), path, real(4, 3))
    with pytest.raises(TypeError, match="got 2; fix other values"):
        export(lambda x, n: x * n, path, real(3), 2)
    with pytest.raises(palto.TraceError):
        export(lambda x: x if float(x) > 0 else -x, path, real())
    with pytest.raises(UnsupportedError, match="no tensor"):
        export(lambda x: (x, 3), path, real(3))
    assert path.read_bytes() == b"before" and [*tmp_path.iterdir()] == [path]


def test_the_file_says_where_it_is_from(tmp_path):
    path = tmp_path / "model.onnx"
    export(nn.Linear(3, 2), path, real(1, 3), notes={"classes": '["a", "b"]'})
    model = onnx.load(path)
    assert model.producer_name == "palto"
    assert {p.key: p.value for p in model.metadata_props} == {"classes": '["a", "b"]'}
    assert model.graph.node[0].name.startswith("Linear/")
