"""A loaded model learns and compiles, and no file makes Palto crash, hang or read elsewhere."""

import functools
import math
import resource
import sys
import time

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import palto
from palto import nn, optim
from palto.extras import MissingExtraError
from palto.formats.onnx import OnnxError, UnsupportedError, load, module, table
from palto.formats.onnx.export import model_of
from palto.formats.onnx.operators import control
from palto.nn import functional as F

rng = np.random.default_rng(0)


def real(*shape):
    return rng.normal(size=shape).astype(np.float32)


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model_with(nodes, inputs, outputs, initializers=(), version=20, **options):
    """A model of nodes; initializers are arrays by name."""
    tensors = [numpy_helper.from_array(array, name) for name, array in dict(initializers).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    imports = [helper.make_opsetid("", version), *options.pop("imports", ())]
    return helper.make_model(graph, opset_imports=imports, ir_version=9, **options)


# --- Use -----------------------------------------------------------------------------------------


def network():
    """A small convolutional network that is written as ONNX, and its inputs' Dim."""
    palto.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64, 3),
    ).eval()  # fmt: skip
    shapes = {"x": {0: palto.Dim("batch", max=64)}}
    return model, model_of(model, real(2, 8, 8, 1), dynamic_shapes=shapes)


def test_a_loaded_model_predicts_compiles_and_keeps_its_names(tmp_path):
    model, written = network()
    path = tmp_path / "model.onnx"
    onnx.save(written, path)
    images = real(5, 8, 8, 1)
    for source in (path, str(path), path.read_bytes(), written):
        loaded = load(source)
        np.testing.assert_allclose(loaded(images), model(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(loaded(x=images), loaded(images))
    learned = {name for name, _ in loaded.named_parameters()}
    assert learned == {name for name, _ in model.named_parameters()}
    assert {name for name, _ in loaded.named_buffers()} == {
        "layers.1.running_mean", "layers.1.running_var"
    }  # fmt: skip
    compiled = palto.compile(loaded, dynamic_shapes={"args": [{0: palto.Dim("batch", max=9)}]})
    for size in (2, 5, 9):
        images = real(size, 8, 8, 1)
        np.testing.assert_allclose(compiled(images), model(images), rtol=1e-4, atol=1e-5)
    assert compiled.program_count == 1
    assert "layers" not in repr(loaded) and "x: float32 (batch, 8, 8, 1)" in repr(loaded)


def test_a_loaded_model_learns_as_the_original_does():
    original, written = network()
    loaded = load(written)
    images, labels = real(16, 8, 8, 1), rng.integers(0, 3, 16)
    losses = []
    for model in (original, loaded):
        optimizer = optim.SGD(model, 0.05)

        @palto.compile
        def step(images, labels, model=model, optimizer=optimizer):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss

        losses.append([float(step(images, labels)) for _ in range(20)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)
    assert losses[1][-1] < 0.8 * losses[1][0]
    state = loaded.state_dict()
    again = load(written)
    assert np.abs(np.asarray(again(images)) - np.asarray(loaded(images))).max() > 0.01
    again.load_state_dict(state)
    np.testing.assert_array_equal(again(images), loaded(images))


def test_numbers_that_shape_results_are_constants_and_others_are_cells():
    model = model_with(
        [
            helper.make_node("Reshape", ["x", "shape"], ["y"]),
            helper.make_node("Gather", ["y", "places"], ["z"]),
            helper.make_node("Mul", ["z", "weight"], ["out"]),
        ],
        [value("x", ["n", 6])],
        [value("out", None)],
        {"shape": np.array([-1, 3]), "places": np.array([1, 0]), "weight": real(3)},
    )
    loaded = load(model)
    assert [name for name, _ in loaded.named_parameters()] == ["weight"]
    assert [name for name, _ in loaded.named_buffers()] == ["places"]
    x = real(4, 6)
    np.testing.assert_allclose(
        palto.compile(loaded)(x), x.reshape(8, 3)[[1, 0]] * loaded.state_dict()["weight"].numpy()
    )


def test_what_is_as_large_as_a_run_time_size_is_made_by_the_program():
    model = model_with(
        [
            helper.make_node("Shape", ["x"], ["n"]),
            helper.make_node("ConstantOfShape", ["n"], ["zeros"]),
            helper.make_node("Add", ["zeros", "one"], ["ones"]),
            helper.make_node("Concat", ["x", "ones"], ["out"], axis=1),
        ],
        [value("x", ["n", 5])],
        [value("out", None)],
        {"one": np.float32(1)},
    )
    loaded = load(model)
    assert [name for name, _ in loaded.named_buffers()] == ["one"]
    compiled = palto.compile(loaded, dynamic_shapes={"args": [{0: palto.Dim("n", max=40)}]})
    for size in (3, 40, 17):
        x = real(size, 5)
        np.testing.assert_array_equal(compiled(x), np.concatenate([x, np.ones_like(x)], 1))
    assert compiled.program_count == 1


def test_a_program_draws_anew_at_every_run():
    shape = helper.make_node("ConstantOfShape", ["shape"], ["zeros"])
    nodes = [
        shape,
        helper.make_node("RandomNormalLike", ["zeros"], ["a"]),
        helper.make_node("Bernoulli", ["half"], ["b"]),
        helper.make_node("Dropout", ["half", "ratio", "on"], ["c"]),
        helper.make_node("Sum", ["x", "a", "b", "c"], ["out"]),
    ]
    constants = {
        "shape": np.array([100]), "half": np.full(100, 0.5, np.float32), "ratio": np.float32(0.5),
        "on": np.array(True),
    }  # fmt: skip
    loaded = load(model_with(nodes, [value("x", [100])], [value("out", None)], constants))
    x = np.zeros(100, np.float32)
    for function in (loaded, palto.compile(loaded)):
        first, second = np.asarray(function(x)), np.asarray(function(x))
        assert np.unique(first - second).size > 90


def test_long_loops_hold_no_more_than_short_ones(monkeypatch):
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "s"], ["t"]), helper.make_node("Neg", ["t"], ["u"])],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", None)],
        [value("c", [], TensorProto.BOOL), value("u", None)],
    )
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    inputs = [value("n", [], TensorProto.INT64), value("x", ["k"])]
    loaded = load(model_with([loop], inputs, [value("y", None)]))
    monkeypatch.setattr(module, "_memory", lambda: 2 * 3 * 4000)
    np.testing.assert_array_equal(loaded(100, np.zeros(900, np.float32)), np.zeros(900))
    with pytest.raises(OnnxError, match="half of this machine's memory"):
        loaded(1, np.zeros(9000, np.float32))


def test_inputs_are_checked():
    _, written = network()
    loaded = load(written)
    with pytest.raises(ValueError, match=r"input is x: float32 \(batch, 8, 8, 1\), got float32"):
        loaded(real(2, 1, 8, 8))
    with pytest.raises(ValueError, match="got float64"):
        loaded(np.zeros((2, 8, 8, 1)))
    with pytest.raises(TypeError, match="takes 1 inputs"):
        loaded()
    with pytest.raises(TypeError, match="got 1 in order and x by name"):
        loaded(real(2, 8, 8, 1), x=real(2, 8, 8, 1))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'palto\[onnx\]'"):
        load(b"")


def test_what_is_missing_is_named_at_once():
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("TfIdfVectorizer", ["y"], ["z"], name="vectors", mode="TF"),
        helper.make_node("Fancy", ["z"], ["out"], domain="com.example"),
    ]
    imports = [helper.make_opsetid("com.example", 1)]
    model = model_with(nodes, [value("x", [3])], [value("out", [3])], imports=imports)
    with pytest.raises(UnsupportedError) as caught:
        load(model)
    assert caught.value.operator == "TfIdfVectorizer, com.example.Fancy"
    assert "'vectors'" in str(caught.value) and "another runtime" in str(caught.value)
    half = model_with(
        [helper.make_node("Relu", ["x"], ["y"])],
        [value("x", [3], TensorProto.UINT16)],
        [value("y", [3], TensorProto.UINT16)],
    )
    with pytest.raises(UnsupportedError, match="UINT16, which Palto has not"):
        load(half)


def test_a_shape_that_is_computed_from_values_is_refused_by_name_in_a_program():
    model = model_with(
        [
            helper.make_node("NonZero", ["x"], ["y"], name="count"),
            helper.make_node("Shape", ["y"], ["n"]),
            helper.make_node("ConstantOfShape", ["n"], ["out"]),
        ],
        [value("x", [4])],
        [value("out", None)],
    )
    loaded = load(model)
    x = np.float32([0, 1, 2, 0])
    assert loaded(x).shape == (1, 2)
    with pytest.raises(UnsupportedError, match=r"'count' of operator NonZero .*known only when"):
        palto.compile(loaded)(x)


def test_functions_of_the_model_are_laid_open():
    twice = helper.make_function(
        "com.example", "Twice", ["x"], ["y"], [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    nodes = [
        helper.make_node("Twice", ["x"], ["y"], domain="com.example"),
        helper.make_node("Twice", ["y"], ["z"], domain="com.example"),
    ]
    model = model_with(
        nodes, [value("x", [3])], [value("z", [3])], functions=[twice],
        imports=[helper.make_opsetid("com.example", 1)],
    )  # fmt: skip
    np.testing.assert_array_equal(load(model)(np.float32([1, 2, 3])), [4, 8, 12])


# --- Files that mean harm ------------------------------------------------------------------------


@functools.cache
def a_file():
    """The bytes of a whole model."""
    return network()[1].SerializeToString()


def relu(**initializers):
    return model_with(
        [helper.make_node("Relu", ["x"], ["y"])], [value("x", [3])], [value("y", [3])], initializers
    )


@pytest.mark.parametrize(
    "location", ["../secret", "/etc/passwd", "a/../../secret", "link", "folder/secret", "", "."]
)
def test_external_data_outside_of_the_folder_is_not_read(tmp_path, location):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\0" * 12)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "link").symlink_to(secret)
    (folder / "folder").symlink_to(tmp_path)
    model = relu(w=np.zeros(3, np.float32))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxError, match="nothing outside of it is read"):
        load(folder / "model.onnx")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"offset": "8"}, "wants 12 bytes at 8"),
        ({"offset": "-4"}, "wants 12 bytes at -4"),
        ({"length": "13"}, "13 are stated"),
        ({"offset": "many"}, "cannot be"),
        ({"location": "absent"}, "no file here"),
    ],
)
def test_external_data_is_checked(tmp_path, entries, message):
    model = relu(w=np.float32([1, 2, 3]))
    path = tmp_path / "model.onnx"
    tensor = model.graph.initializer[0]
    (tmp_path / "data").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="data")
    path.write_bytes(model.SerializeToString())
    np.testing.assert_array_equal(load(path).state_dict()["w"], [1, 2, 3])
    with pytest.raises(OnnxError, match="load by the path"):
        load(path.read_bytes())
    del tensor.external_data[:]
    for key, text in {"location": "data", **entries}.items():
        tensor.external_data.add(key=key, value=text)
    path.write_bytes(model.SerializeToString())
    with pytest.raises(OnnxError, match=message):
        load(path)


def nested(depth):
    last = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [value("y", [3])])
    graph = last
    for _ in range(depth):
        node = helper.make_node("If", ["c"], ["y"], then_branch=graph, else_branch=last)
        graph = helper.make_graph([node], "g", [], [value("y", [3])])
    return graph.node


def test_absurd_files():
    model = relu(w=np.zeros(3, np.float32))
    whole = model.SerializeToString()
    for part in (
        b"",
        b"\0",
        whole[: len(whole) // 2],
        whole[:-1],
        b"PK\x03\x04" + whole,
        whole * 2,
    ):
        with pytest.raises(OnnxError):
            load(part)
            raise OnnxError  # a part may happen to be whole
    with pytest.raises(FileNotFoundError):
        load("absent.onnx")

    tensor = model.graph.initializer[0]
    for dims in ([2**40], [2**62, 2**62], [-3], [3, 0], [2**40, 0]):
        del tensor.dims[:]
        tensor.dims.extend(dims)
        with pytest.raises(OnnxError, match=r"w\b"):
            load(model)

    inputs = [value("x", [3]), value("c", [], TensorProto.BOOL)]
    with pytest.raises(OnnxError, match=r"nested more than 16 deep|no whole ONNX model"):
        load(model_with(nested(20), inputs, [value("y", [3])]))
    assert load(model_with(nested(5), inputs, [value("y", [3])]))(real(3), True).shape == (3,)


def test_functions_that_call_themselves_or_explode():
    def function(name, *calls):
        nodes = [
            helper.make_node(call, ["x"], [f"y{i}"], domain="f") for i, call in enumerate(calls)
        ]
        imports = [helper.make_opsetid("f", 1), helper.make_opsetid("", 20)]
        return helper.make_function("f", name, ["x"], ["y0"], nodes, imports)

    def model(functions):
        return model_with(
            [helper.make_node("f0", ["x"], ["y"], domain="f")], [value("x", [3])],
            [value("y", [3])], functions=functions, imports=[helper.make_opsetid("f", 1)],
        )  # fmt: skip

    with pytest.raises(OnnxError, match="calls itself"):
        load(model([function("f0", "f1"), function("f1", "f0")]))
    bombs = [function(f"f{i}", *[f"f{i + 1}"] * 10) for i in range(10)]
    with pytest.raises(OnnxError, match="more than 1,000,000 nodes"):
        load(model(bombs))


def run_one(operator, *arrays, version=20, outputs=1, **attributes):
    names = [f"x{i}" for i in range(len(arrays))]
    inputs = [
        value(name, array.shape, helper.np_dtype_to_tensor_dtype(array.dtype))
        for name, array in zip(names, arrays, strict=True)
    ]
    results = [f"y{i}" for i in range(outputs)]
    node = helper.make_node(operator, names, results, **attributes)
    model = model_with([node], inputs, [value(name, None) for name in results], version=version)
    return load(model)(*arrays)


HUGE = 2**40
IMAGE = np.zeros((1, 1, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("operator", "arrays", "attributes"),
    [
        ("ConstantOfShape", [np.array([HUGE])], {}),
        ("ConstantOfShape", [np.array([-1])], {}),
        ("Expand", [np.zeros(1, np.float32), np.array([HUGE, 2])], {}),
        ("Tile", [np.zeros(2, np.float32), np.array([HUGE])], {}),
        ("Range", [np.array(0), np.array(HUGE), np.array(1)], {}),
        ("Range", [np.array(0), np.array(3), np.array(0)], {}),
        ("Range", [np.float32(0), np.float32(math.nan), np.float32(1)], {}),
        ("OneHot", [np.zeros(2, np.int64), np.array(HUGE), np.zeros(2)], {}),
        ("Pad", [IMAGE, np.array([0, 0, HUGE, 0, 0, 0, 0, 0])], {}),
        ("Resize", [IMAGE, np.zeros(0, "f"), np.float32([1, 1, 1e9, 1e9])], {}),
        ("Resize", [IMAGE, np.zeros(0, "f"), np.float32([1, 1, math.nan, 1])], {}),
        ("Conv", [IMAGE, IMAGE], {"pads": [HUGE, 0, 0, 0]}),
        ("Conv", [IMAGE, IMAGE], {"strides": [0, 1]}),
        ("Conv", [IMAGE, IMAGE], {"dilations": [HUGE, HUGE]}),
        ("ConvTranspose", [IMAGE, IMAGE], {"strides": [HUGE, 1]}),
        ("MaxPool", [IMAGE], {"kernel_shape": [HUGE, HUGE]}),
        ("AveragePool", [IMAGE], {"kernel_shape": [2, 2], "pads": [HUGE, 0, 0, 0]}),
        ("Add", [np.zeros((2**15, 1)), np.zeros((1, 2**15))], {}),
        ("MatMul", [np.zeros((2**15, 1)), np.zeros((1, 2**15))], {}),
        ("Einsum", [np.zeros(2**15), np.zeros(2**15)], {"equation": "a,b->ab"}),
        ("Gather", [IMAGE, np.array([7])], {}),
        ("DepthToSpace", [IMAGE], {"blocksize": 0}),
        ("Transpose", [IMAGE], {"perm": [0, 0, 1, 2]}),
        ("Softmax", [IMAGE], {"axis": HUGE}),
        ("Reshape", [IMAGE, np.array([-1, -1])], {}),
        ("Slice", [IMAGE, np.array([0]), np.array([1]), np.array([0]), np.array([0])], {}),
        ("TopK", [IMAGE, np.array([HUGE])], {"outputs": 2}),
        ("LSTM", [np.zeros((0, 1, 1), "f"), np.zeros((1, 4, 1), "f"), np.zeros((1, 4, 1), "f")],
         {"hidden_size": HUGE}),
    ],
)  # fmt: skip
def test_absurd_operators_are_refused_at_once(operator, arrays, attributes):
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(OnnxError, match=f"of operator {operator} "):
        run_one(operator, *map(np.asarray, arrays), **attributes)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB
    assert time.perf_counter() - started < 60


def test_loops_and_growth_come_to_an_end(monkeypatch):
    monkeypatch.setattr(control, "MOST_STEPS", 100)
    monkeypatch.setattr(table, "MOST_ELEMENTS", 2**16)
    body = helper.make_graph(
        [helper.make_node("Identity", ["c"], ["d"]), helper.make_node("Concat", ["s", "s"], ["t"],
                                                                     axis=0)],
        "body",
        [value("i", [], TensorProto.INT64), value("c", [], TensorProto.BOOL), value("s", None)],
        [value("d", [], TensorProto.BOOL), value("t", None)],
    )  # fmt: skip
    loop = helper.make_node("Loop", ["n", "", "x"], ["y"], body=body)
    inputs = [value("n", [], TensorProto.INT64), value("x", ["k"], TensorProto.BOOL)]
    loaded = load(model_with([loop], inputs, [value("y", None)]))
    assert loaded(3, np.zeros(2, bool)).shape == (16,)
    with pytest.raises(OnnxError, match="more than the 65,536 elements"):
        loaded(2**62, np.zeros(2, bool))
    with pytest.raises(OnnxError, match="loop of more than 100 steps"):
        loaded(2**62, np.zeros(0, bool))


def test_what_a_call_may_spend(monkeypatch):
    nodes = [helper.make_node("Add", [f"x{i}", "x0"], [f"x{i + 1}"]) for i in range(20)]
    model = model_with(nodes, [value("x0", ["n"])], [value("x20", ["n"]), value("x3", ["n"])])
    loaded = load(model)
    loaded(real(1000))
    monkeypatch.setattr(module, "MOST_RUN", 19)
    with pytest.raises(OnnxError, match="more than 19 nodes in all"):
        loaded(real(1000))
    monkeypatch.undo()
    monkeypatch.setattr(module, "_memory", lambda: 2 * 3 * 4000)
    loaded(real(900))  # at most three are held at once
    with pytest.raises(OnnxError, match="more than half of this machine's memory"):
        loaded(real(1200))


@settings(max_examples=150)
@given(st.data())
def test_damaged_files_give_an_error_that_says_so(data):
    """Bytes changed, taken away or put in: an OnnxError, or a model that runs or refuses."""
    contents = bytearray(a_file())
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(contents) - 1))
        kind = data.draw(st.sampled_from(["change", "cut", "insert", "remove"]))
        if kind == "change":
            contents[place] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del contents[max(place, 1) :]
        elif kind == "insert":
            contents[place:place] = data.draw(st.binary(max_size=9))
        else:
            del contents[place : place + data.draw(st.integers(1, 9))]
        if not contents:
            return
    try:
        loaded = load(bytes(contents))
        loaded(*[np.zeros([n if isinstance(n, int) and 0 <= n < 99 else 2 for n in v.shape or ()],
                          v.dtype or np.float32) for v in loaded.graph.inputs])  # fmt: skip
    except (OnnxError, ValueError):
        pass
