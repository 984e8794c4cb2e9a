"""Chat models from files: their logits are those of PyTorch's formulas, and of transformers."""

import json
import math
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from palto.chat import models

from .tiny import Tiny, gguf_name

TOKENS = np.array([[5, 77, 300, 8, 8, 61, 2, 19, 255, 130, 131, 7]])


def logits(model):
    return model(TOKENS).numpy()[0]


@pytest.fixture
def formula(torch):
    """``formula(tiny, weights)``: the logits by PyTorch, written as in Llama's papers."""

    def linear(x, weights, name):
        return x @ torch.tensor(weights[f"model.{name}.weight"]).T

    def norm(x, weights, name, eps):
        scaled = x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)
        return scaled * torch.tensor(weights[f"model.{name}.weight"])

    def turned(x, base):  # (heads, time, head): pairs are the two halves
        half = x.shape[-1] // 2
        speed = base ** (-torch.arange(half) / half)
        angle = torch.arange(x.shape[1])[:, None] * speed
        first, second = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def formula(tiny, weights=None):
        w = tiny.weights if weights is None else weights
        table = torch.tensor(w["model.embed_tokens.weight"])
        x = table[torch.tensor(TOKENS[0])]
        time = len(x)
        for i in range(tiny.layers):
            at = f"layers.{i}"
            y = norm(x, w, f"{at}.input_layernorm", tiny.eps)
            q, k, v = (
                linear(y, w, f"{at}.self_attn.{n}_proj").view(time, -1, tiny.head).transpose(0, 1)
                for n in "qkv"
            )
            shared = tiny.heads // tiny.key_heads
            k, v = k.repeat_interleave(shared, 0), v.repeat_interleave(shared, 0)
            q, k = turned(q, tiny.base), turned(k, tiny.base)
            y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + linear(y.transpose(0, 1).reshape(time, -1), w, f"{at}.self_attn.o_proj")
            y = norm(x, w, f"{at}.post_attention_layernorm", tiny.eps)
            gate = torch.nn.functional.silu(linear(y, w, f"{at}.mlp.gate_proj"))
            x = x + linear(gate * linear(y, w, f"{at}.mlp.up_proj"), w, f"{at}.mlp.down_proj")
        return (norm(x, w, "norm", tiny.eps) @ table.T).numpy()

    return formula


def test_a_folder_computes_as_pytorch(tiny, folder, formula):
    np.testing.assert_allclose(logits(models.load(folder).model), formula(tiny), atol=2e-5)


def test_a_gguf_file_computes_as_pytorch(tiny, file, formula):
    found = models.load(file)
    assert found.name == "tiny"
    assert found.context == 256
    np.testing.assert_allclose(logits(found.model), formula(tiny), atol=2e-5)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_quantised_weights_stay_so(tiny, formula, tmp_path, kind):
    from palto.formats import gguf

    path = tiny.gguf(tmp_path / "x.gguf", kind)
    stored = gguf.read(path).tensors
    weights = {}
    for name, values in tiny.weights.items():
        short = gguf_name(name)
        tensor = stored[short]
        array = tensor.array()
        heads = {"attn_q": tiny.heads, "attn_k": tiny.key_heads}.get(short.split(".")[-2])
        if heads:  # back to the two halves of each head
            array = array.reshape(heads, tiny.head // 2, 2, -1).swapaxes(1, 2)
        weights[name] = array.reshape(values.shape)
        if values.ndim > 1:
            assert tensor.kind == kind
    model = models.load(path).model
    np.testing.assert_allclose(logits(model), formula(tiny, weights), atol=2e-4)
    held = sum(cell.array().nbytes for _, cell in model.named_cells())
    assert held < 1.1 * path.stat().st_size


@pytest.fixture
def transformers():
    return pytest.importorskip(
        "transformers",
        reason="transformers is not installed: checks against it are skipped "
        "(pip install transformers)",
    )


PLANS = {
    "as it is": {},
    "untied": {"tie_word_embeddings": False},
    "llama 3": {
        "rope_scaling": {
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "linear": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "long heads": {"head_dim": 32},
}  # fmt: skip


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_folder_of_transformers(torch, transformers, tmp_path, tiny, plan, dtype):
    torch.manual_seed(0)
    settings = {k: v for k, v in tiny.config().items() if k not in ("model_type", "torch_dtype")}
    config = transformers.LlamaConfig(**settings | PLANS[plan])
    theirs = transformers.LlamaForCausalLM(config).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "x", max_shard_size="60KB")
    tiny.tokenizer.save(str(tmp_path / "x" / "tokenizer.json"))
    assert len(list((tmp_path / "x").glob("*.safetensors"))) > 1
    with torch.no_grad():
        wanted = theirs.float()(torch.tensor(TOKENS)).logits[0].numpy()
    np.testing.assert_allclose(logits(models.load(tmp_path / "x").model), wanted, atol=3e-5)


# --- What is refused -----------------------------------------------------------------------------


def change(folder, place, **changed):
    """A copy of a folder with another config.json."""
    shutil.copytree(folder, place)
    settings = json.loads((place / "config.json").read_text())
    settings = {k: v for k, v in (settings | changed).items() if v is not ...}
    (place / "config.json").write_text(json.dumps(settings))
    return place


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model_type": "mamba"}, "type 'mamba'; those of 'llama'"),
        ({"hidden_size": ...}, "does not say what hidden_size is"),
        ({"hidden_size": -64}, "hidden_size should be a count"),
        ({"hidden_size": 1 << 40}, "hidden_size should be a count"),
        ({"hidden_size": True}, "hidden_size should be a count"),
        ({"hidden_size": "64"}, "hidden_size should be a count"),
        ({"hidden_size": 128}, "has the shape"),
        ({"num_hidden_layers": 10**9}, "layers, but its weights are missing"),
        ({"num_hidden_layers": 3}, "layers.2.input_layernorm is missing"),
        ({"num_hidden_layers": 1}, "layers.1.*, which a Llama has not"),
        ({"num_key_value_heads": 3}, "shape"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps should be a positive number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_a_folder_that_does_not_fit(folder, tmp_path, changed, message):
    with pytest.raises(ValueError, match=message):
        models.load(change(folder, tmp_path / "x", **changed))


def test_files_that_are_missing_or_damaged(folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        place = change(folder, tmp_path / name)
        (place / name).write_bytes(b"\0{")
        with pytest.raises(ValueError, match=name):
            models.load(place)
        (place / name).unlink()
        with pytest.raises(FileNotFoundError, match=name):
            models.load(place)
    with pytest.raises(FileNotFoundError, match="no file"):
        models.load(tmp_path / "nothing.gguf")
    (tmp_path / "x.gguf").write_bytes(b"no model")
    with pytest.raises(ValueError, match="GGUF"):
        models.load(tmp_path / "x.gguf")


def test_an_index_names_files_of_its_folder_alone(folder, tmp_path):
    place = change(folder, tmp_path / "x")
    index = place / "model.safetensors.index.json"
    for name in ("../x/model.safetensors", "/etc/passwd"):
        index.write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ValueError, match="no file of this folder"):
            models.load(place)
    index.write_text(json.dumps({"weight_map": 7}))
    with pytest.raises(ValueError, match="weight_map"):
        models.load(place)


def test_weights_of_other_numbers(folder, tmp_path):
    place = change(folder, tmp_path / "x")
    weights = load_file(place / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**weights, name: weights[name].astype(np.int32)}, place / "model.safetensors")
    with pytest.raises(ValueError, match="int32"):
        models.load(place)


def test_a_gguf_file_of_something_else(tiny, tmp_path):
    with pytest.raises(ValueError, match="architecture 'mamba'; those of 'llama'"):
        models.load(tiny.gguf(tmp_path / "a.gguf", architecture="mamba"))
    for number, (write, message) in enumerate(
        [
            (lambda x: x.add_expert_count(8), "expert_count"),
            (lambda x: x.add_tensor("blk.0.more.weight", np.ones(4, np.float32)), "has not"),
            (lambda x: x.add_rope_scaling_type(Yarn), "'yarn'"),
            (lambda x: x.add_tensor("rope_freqs.weight", np.zeros(8, np.float32)), "positive"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            models.load(tiny.gguf(tmp_path / f"{number}.gguf", write=write))


class Yarn:
    value = "yarn"


def test_factors_of_positions_in_a_gguf_file(tiny, formula, tmp_path):
    """Llama 3's files have them as a tensor; all the same, they are like another base."""
    half = tiny.head // 2
    other = Tiny()
    other.base = 500.0
    factors = ((other.base / tiny.base) ** (np.arange(half) / half)).astype(np.float32)
    path = tiny.gguf(
        tmp_path / "x.gguf", write=lambda x: x.add_tensor("rope_freqs.weight", factors)
    )
    np.testing.assert_allclose(logits(models.load(path).model), formula(other), atol=5e-5)
