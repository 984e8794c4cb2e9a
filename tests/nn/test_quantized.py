"""Quantised layers against the package gguf: every kind, at once and compiled."""

import numpy as np
import pytest

import palto
from palto import nn
from palto.nn.quantized import KINDS

gguf = pytest.importorskip("gguf")

TYPES = gguf.GGMLQuantizationType
SHAPES = [(70, 512), (32, 256), (1, 768), (33, 1024)]


def blocks_of(kind, shape, seed=0):
    """A random matrix as a file has it: quantised by gguf if it can, else random bytes."""
    random = np.random.default_rng(seed)
    try:
        values = random.standard_normal(shape).astype(np.float32)
        return gguf.quants.quantize(values, TYPES[kind])
    except NotImplementedError:
        found = KINDS[kind]
        raw = random.integers(0, 256, (shape[0] * shape[1] // found.weights, found.bytes))
        raw = raw.astype(np.uint8)
        half = random.uniform(-0.1, 0.1, (len(raw), 2)).astype(np.float16).view(np.uint8)
        if kind == "Q6_K":
            raw[:, 208:] = half[:, :2]
        else:
            raw[:, :4] = half
        return raw.reshape(shape[0], -1)


def assert_product(got, x, matrix):
    """A product within the rounding of float32 sums."""
    wanted = x.astype(np.float64) @ matrix.T.astype(np.float64)
    bound = 2e-6 * (np.abs(x) @ np.abs(matrix).T + 1e-3)
    assert got.shape == wanted.shape and got.dtype == np.float32
    assert (np.abs(got - wanted) <= bound).all()


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_those_of_gguf(kind):
    for shape in SHAPES:
        raw = blocks_of(kind, shape)
        wanted = gguf.quants.dequantize(raw, TYPES[kind])
        layer = nn.QuantizedLinear.from_blocks(kind, raw, shape[1])
        np.testing.assert_array_equal(layer.dequantize(), wanted)
        assert layer.dequantize().dtype == np.float32


@pytest.mark.parametrize("kind", KINDS)
def test_linear(kind):
    """One row, which is multiplied with codes, and several, with weights."""
    for shape in SHAPES:
        raw = blocks_of(kind, shape)
        layer = nn.QuantizedLinear.from_blocks(kind, raw, shape[1])
        matrix = gguf.quants.dequantize(raw, TYPES[kind])
        compiled = palto.compile(layer)
        for lead in [(), (1,), (1, 1), (3,), (2, 4), (0,)]:
            x = np.random.default_rng(1).standard_normal((*lead, shape[1])).astype(np.float32)
            assert_product(layer(x).numpy(), x, matrix)
            results = []
            for threads in (1, 2):
                palto.set_num_threads(threads)
                results.append(compiled(x).numpy())
            np.testing.assert_array_equal(*results)
            assert_product(results[0], x, matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_and_its_tied_head(kind):
    raw = blocks_of(kind, (70, 512))
    matrix = gguf.quants.dequantize(raw, TYPES[kind])
    embedding = nn.QuantizedEmbedding.from_blocks(kind, raw, 512)
    indices = np.array([[0, 69, 3], [31, 32, 33]])
    for layer in (embedding, palto.compile(embedding)):
        np.testing.assert_array_equal(layer(indices), matrix[indices])
        for wrong in (70, -1):
            with pytest.raises(IndexError, match=f"embedding index {wrong} is out of range"):
                layer(np.array([0, wrong]))
        with pytest.raises(TypeError, match="integers"):
            layer(np.array([1.0], np.float32))
    model = nn.Sequential(embedding, nn.QuantizedLinear(embedding.weight))
    assert len(list(model.named_cells())) == len(list(embedding.named_cells()))
    assert_product(model(indices[0]).numpy(), matrix[indices[0]], matrix)
    assert not list(model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_memory_is_that_of_the_file(kind):
    raw = blocks_of(kind, (64, 1024))
    layer = nn.QuantizedLinear.from_blocks(kind, raw, 1024)
    held = sum(cell.numpy().nbytes for _, cell in layer.named_cells())
    assert raw.nbytes <= held <= 1.03 * raw.nbytes


def test_gradients_reach_the_input():
    raw = blocks_of("Q4_1", (64, 256))
    layer = nn.QuantizedLinear.from_blocks("Q4_1", raw, 256)
    matrix = layer.dequantize()
    for rows in (1, 3):
        x = palto.asarray(np.ones((rows, 256), np.float32), requires_grad=True)
        layer(x).sum().backward()
        np.testing.assert_allclose(x.grad, np.tile(matrix.sum(0), (rows, 1)), rtol=1e-4, atol=1e-4)


def test_saved_and_loaded(tmp_path):
    from palto.formats import safetensors

    one = nn.QuantizedLinear.from_blocks("Q5_K", blocks_of("Q5_K", (64, 256)), 256)
    other = nn.QuantizedLinear.from_blocks("Q5_K", blocks_of("Q5_K", (64, 256), seed=1), 256)
    safetensors.save(tmp_path / "x.safetensors", one.state_dict())
    other.load_state_dict(safetensors.load(tmp_path / "x.safetensors"))
    np.testing.assert_array_equal(other.dequantize(), one.dequantize())


@pytest.mark.parametrize(
    ("kind", "shape", "features", "said"),
    [
        ("IQ2_XS", (4, 20), 32, "kind 'IQ2_XS' are not read; those of kind Q4_0"),
        ("Q4_1", (4, 20), 33, "in_features=33 is no multiple"),
        ("Q4_1", (4, 20), 0, "in_features=0 is no multiple"),
        ("Q4_1", (4, 20), 64, r"blocks of shape \(out_features, 40\)"),
        ("Q4_1", (80,), 32, r"got uint8\(80,\)"),
        ("Q4_1", (0, 20), 32, r"got uint8\(0, 20\)"),
    ],
)
def test_what_is_no_weight_is_refused(kind, shape, features, said):
    with pytest.raises(ValueError, match=said):
        nn.QuantizedLinear.from_blocks(kind, np.zeros(shape, np.uint8), features)
    with pytest.raises(ValueError, match="got float32"):
        nn.QuantizedLinear.from_blocks("Q4_1", np.zeros((4, 20), np.float32), 32)


def test_an_input_of_another_width_is_refused():
    layer = nn.QuantizedLinear.from_blocks("Q8_0", blocks_of("Q8_0", (8, 64)), 64)
    for shape in [(63,), (2, 32), ()]:
        with pytest.raises(ValueError, match=r"wants an input of shape \(\.\.\., 64\)"):
            layer(np.zeros(shape, np.float32))
