"""Damaged and hostile files of models: each is loaded, or refused with a reason.

    python tests/formats/fuzz.py --minutes 10
    python tests/formats/fuzz.py --only onnx:4711

A case is a sound file of some kind in which something has been exchanged: bytes; or what the format
says, by what nobody should say: 2^40 axes, negative lengths, another file's name. It is loaded, and
what was loaded is used, in a process of its own with little memory. A *finding* is an error of
another kind than ValueError (or FileNotFoundError), or one that says nothing; more memory; more
time; a crash; a file that is opened outside of the case's folder, a process, a connection; numbers
that lie in no file there.
Cases are numbered, and the same number is the same case.
"""

from __future__ import annotations

import argparse
import collections
import functools
import json
import os
import random
import resource
import select
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
#: What the process may take beyond what it has at its beginning, and how long a case may last.
MEMORY, PATIENCE = 2 << 30, 120
#: The number that lies in a file outside of the case's folder, many times.
SECRET = np.float32(1234.5)
LONG = 1 << 12

WHOLE = [0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -(2**63)]
ODD: list[Any] = [*WHOLE, 2**64, 1.5, float("nan"), 1e300, None, "", "x" * 10**5, "../secret",
                  "\udcff", [], {}, True, [2**40] * 9]  # fmt: skip
PLACES = ["../secret", "/etc/passwd", "a/../../secret", "link", "folder/secret", "", ".", "data",
          "data\0", "/proc/self/mem", "x" * 5000, "model.onnx"]  # fmt: skip


def some(rng: random.Random, values: Any) -> Any:
    """One of them."""
    return values[rng.randrange(len(values))]


# --- Damage --------------------------------------------------------------------------------------


def damaged(rng: random.Random, contents: bytes) -> bytes:
    """Some bytes changed, taken away, put in, moved."""
    data = bytearray(contents)
    for _ in range(rng.randint(1, 4)):
        if not data:
            break
        # Half of the places are in the head, where it says what the rest is.
        place = rng.randrange(min(len(data), rng.choice([200, len(data)])))
        match rng.randrange(7):
            case 0:
                data[place] = rng.randrange(256)
            case 1:
                del data[place:]
            case 2:
                data[place:place] = rng.randbytes(rng.randint(1, 9))
            case 3:
                del data[place : place + rng.randint(1, 40)]
            case 4:
                number = some(rng, WHOLE) & (2**64 - 1)
                data[place : place + 8] = number.to_bytes(8, "little")
            case 5:
                data[place : place + 4] = (some(rng, WHOLE) & (2**32 - 1)).to_bytes(4, "little")
            case 6:
                other = rng.randrange(len(data))
                part = data[other : other + rng.randint(1, 60)]
                data[place:place] = part
    return bytes(data)


def exchanged(rng: random.Random, value: Any) -> Any:
    """JSON in which one value is another one, or is not there."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = some(rng, list(value))
        match rng.randrange(8):
            case 0:
                return {k: v for k, v in value.items() if k != key}
            case 1:
                return value | {some(rng, ["", "x", "__metadata__", "../secret"]): value[key]}
            case _:
                return value | {key: exchanged(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        place = rng.randrange(len(value))
        new = exchanged(rng, value[place])
        return [*value[:place], *([] if rng.random() < 0.1 else [new]), *value[place + 1 :]]
    return some(rng, ODD)


# --- safetensors ---------------------------------------------------------------------------------


@functools.cache
def _a_safetensors_file() -> bytes:
    from safetensors.numpy import save

    arrays = {
        "weight": np.ones((3, 4), np.float32), "half": np.ones((2, 2), np.float16),
        "count": np.arange(3), "empty": np.zeros((0, 4), np.float32), "one": np.float64(1)[None],
    }  # fmt: skip
    return save(arrays, {"format": "pt"})


def safetensors_file(rng: random.Random, folder: Path) -> Path:
    """A case of safetensors."""
    contents = _a_safetensors_file()
    if rng.random() < 0.6:
        length = int.from_bytes(contents[:8], "little")
        head, rest = json.loads(contents[8 : 8 + length]), contents[8 + length :]
        for _ in range(rng.randint(1, 3)):
            head = exchanged(rng, head) if isinstance(head, dict) else head
        text = json.dumps(head).encode("utf-8", "replace")
        if rng.random() < 0.1:
            text = text.replace(b'{"', b'{"weight": 1, "', 1)  # a name twice
        size = some(rng, WHOLE) & (2**64 - 1) if rng.random() < 0.1 else len(text)
        contents = size.to_bytes(8, "little") + text + rest
    if rng.random() < 0.5:
        contents = damaged(rng, contents)
    path = folder / "model.safetensors"
    path.write_bytes(contents)
    return path


def use_safetensors(rng: random.Random, path: Path) -> list[np.ndarray]:
    """Load it."""
    from palto.formats import safetensors

    if rng.random() < 0.3:
        reader = safetensors.Reader(path)
        found = [np.asarray(reader[name]) for name in reader if reader.shape(name) is not None]
    else:
        loaded = safetensors.load(path, widen=rng.random() < 0.5)
        found = [x.numpy() for x in loaded.values()]
    held = sum(x.nbytes for x in found)
    assert held <= 2 * path.stat().st_size, f"{held} bytes out of {path.stat().st_size}"
    return found


# --- GGUF ----------------------------------------------------------------------------------------

_FORMS = {4: "I", 6: "f", 7: "B", 10: "Q"}


def _texts(values: list[str]) -> tuple[int, Any]:
    return 9, (8, values)


def _a_llama(rng: random.Random) -> dict[str, Any]:
    """What a GGUF file of a small language model says, with one of two kinds of tokenizers."""
    tokens = [*"abcdefgh", "ab", "<s>", "</s>"]
    width, hidden = 32, 64
    shapes = {"token_embd": (len(tokens), width), "output_norm": (width,)}
    names = {"attn_q": (width, width), "attn_k": (16, width), "attn_v": (16, width),
             "attn_output": (width, width), "ffn_gate": (hidden, width), "ffn_up": (hidden, width),
             "ffn_down": (width, hidden), "attn_norm": (width,), "ffn_norm": (width,)}  # fmt: skip
    shapes |= {f"blk.{i}.{name}": shape for i in range(2) for name, shape in names.items()}
    tensors, place = [], 0
    for number, (name, shape) in enumerate(shapes.items()):
        kind = 0 if len(shape) == 1 else [0, 8, 2, 1][number % 4]  # F32, Q8_0, Q4_0, F16
        size = int(np.prod(shape)) * {0: 128, 8: 34, 2: 18, 1: 64}[kind] // 32
        tensors.append([f"{name}.weight", list(shape[::-1]), kind, place])
        place += -(-size // 32) * 32
    pieces: tuple[int, Any] = (9, (6, [-float(k) for k in range(len(tokens))]))
    return {
        "magic": "GGUF", "version": 3, "tensor_count": len(tensors), "entry_count": None,
        "entries": [
            ["general.architecture", 8, "llama"], ["general.alignment", 4, 32],
            ["llama.context_length", 4, 64], ["llama.embedding_length", 4, width],
            ["llama.block_count", 4, 2], ["llama.feed_forward_length", 4, hidden],
            ["llama.attention.head_count", 4, 4], ["llama.attention.head_count_kv", 4, 2],
            ["llama.attention.layer_norm_rms_epsilon", 6, 1e-5], ["llama.rope.freq_base", 6, 1e4],
            ["tokenizer.ggml.model", 8, rng.choice(["gpt2", "llama"])],
            ["tokenizer.ggml.scores", *pieces], ["tokenizer.ggml.tokens", *_texts(tokens)],
            ["tokenizer.ggml.merges", *_texts(["a b"])],
            ["tokenizer.ggml.token_type", 9, (4, [1] * 9 + [3] * 2)],
            ["tokenizer.ggml.eos_token_id", 4, 10],
            ["tokenizer.chat_template", 8, "{{ messages }}"],
            ["tokenizer.ggml.add_bos_token", 7, 1], ["llama.rope.scaling.type", 8, "linear"],
            ["llama.attention.key_length", 4, 8],
        ],
        "tensors": tensors, "data": place,
    }  # fmt: skip


def _form(kind: Any) -> str:
    return _FORMS.get(kind, "I") if _is_whole(kind) else "I"


def _packed(form: str, value: Any) -> bytes:
    """A number as it is written, whatever it is."""
    if form == "f":
        usable = isinstance(value, int | float) and abs(value) < 1e38
        return struct.pack("<f", value if usable else 0.0)
    bits = 8 * struct.calcsize(form)
    return struct.pack("<" + form, int(value) & (2**bits - 1) if _is_whole(value) else 0)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int)


def _text(value: Any) -> bytes:
    told = str(value).encode("utf-8", "replace")
    return struct.pack("<Q", len(told)) + told


def _gguf(said: dict[str, Any]) -> bytes:
    """A GGUF file that says this."""
    entries, tensors = said["entries"], said["tensors"]
    out = str(said["magic"]).encode("utf-8", "replace") + _packed("I", said["version"])
    count = len(entries) if said["entry_count"] is None else said["entry_count"]
    out += _packed("Q", said["tensor_count"]) + _packed("Q", count)
    for key, kind, value in entries:
        out += _text(key) + _packed("I", kind)
        if isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[1], list):
            inner, items = value
            out += _packed("I", inner) + struct.pack("<Q", len(items))
            write = _text if inner == 8 else functools.partial(_packed, _form(inner))
            out += b"".join(map(write, items))
        else:
            out += _text(value) if kind == 8 else _packed(_form(kind), value)
    for name, shape, kind, place in tensors:
        shape = shape if isinstance(shape, list) else [shape]
        out += _text(name) + struct.pack("<I", len(shape))
        out += b"".join(_packed("Q", n) for n in shape) + _packed("I", kind) + _packed("Q", place)
    out += bytes(-len(out) % 32)
    return out + bytes(said["data"] if isinstance(said["data"], int) else 0)


def gguf_file(rng: random.Random, folder: Path) -> Path:
    """A case of GGUF."""
    said = _a_llama(rng)
    if rng.random() < 0.75:
        for _ in range(rng.randint(1, 3)):
            part = rng.choice(["entries", "entries", "entries", "tensors", "version",
                               "tensor_count", "entry_count", "magic"])  # fmt: skip
            if not isinstance(said[part], list):
                said[part] = some(rng, WHOLE)
                continue
            line = said[part][rng.randrange(len(said[part]))]
            match rng.randrange(6):
                case 0:
                    said[part].append(list(line))
                case 1:
                    said[part].remove(line)
                    said[part] = said[part] or [list(line)]
                case 2:
                    line[0] = some(rng, said[part])[0]
                case 3:  # the same under a name, of another type
                    line[1:3] = some(rng, said["entries"])[1:3] if part == "entries" else line[1:3]
                case _:
                    place = rng.randrange(1, len(line))
                    line[place] = exchanged(rng, line[place])
    contents = _gguf(said)
    if rng.random() < 0.4:
        contents = damaged(rng, contents)
    path = folder / "model.gguf"
    path.write_bytes(contents)
    return path


def use_gguf(rng: random.Random, path: Path) -> list[np.ndarray]:
    """Read it; then make a chat model of it, and let that say what comes next."""
    import palto
    from palto.chat import models
    from palto.formats import gguf

    file = gguf.read(path)
    found = [blocks.array() for blocks in file.tensors.values()]
    chat = models.load(path)
    tokens = chat.tokenizer.encode("abc") or [0]
    chat.model(palto.asarray(np.array([tokens[:4]])))
    return found


# --- Folders in Hugging Face's form --------------------------------------------------------------


@functools.cache
def _a_folder() -> tuple[dict[str, Any], str, bytes]:
    """The settings, the tokenizer and the weights of a small language model."""
    import tokenizers
    from safetensors.numpy import save

    tokens = [*"abcdefgh", "ab", "<s>", "</s>"]
    numbers = {token: number for number, token in enumerate(tokens)}
    model = tokenizers.models.BPE(vocab=numbers, merges=[("a", "b")])
    width, hidden = 16, 32
    block = {"self_attn.q_proj": (width, width), "self_attn.k_proj": (8, width),
             "self_attn.v_proj": (8, width), "self_attn.o_proj": (width, width),
             "mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width),
             "mlp.down_proj": (width, hidden), "input_layernorm": (width,),
             "post_attention_layernorm": (width,)}  # fmt: skip
    shapes: dict[str, Any] = {"embed_tokens": (len(tokens), width), "norm": (width,)}
    shapes |= {f"layers.{i}.{name}": shape for i in range(2) for name, shape in block.items()}
    weights = {f"model.{k}.weight": np.ones(v, np.float32) for k, v in shapes.items()}
    settings = {
        "model_type": "llama", "hidden_size": width, "num_attention_heads": 4, "head_dim": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 64, "num_hidden_layers": 2,
        "intermediate_size": hidden, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "tie_word_embeddings": True, "eos_token_id": 10, "hidden_act": "silu",
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                         "high_freq_factor": 4.0, "original_max_position_embeddings": 32},
    }  # fmt: skip
    return settings, tokenizers.Tokenizer(model).to_str(), save(weights)


def model_folder(rng: random.Random, folder: Path) -> Path:
    """A case of such a folder."""
    settings, tokenizer, weights = _a_folder()
    about: Any = {"chat_template": "{{ messages }}", "eos_token": {"content": "</s>"}}
    if rng.random() < 0.2:
        settings = settings | {"rope_scaling": {"type": "linear", "factor": 2.0}}
    for _ in range(rng.randint(0, 3)):
        settings = exchanged(rng, settings) if isinstance(settings, dict) else settings
    if rng.random() < 0.3:
        about = exchanged(rng, about)
    texts = {"config.json": json.dumps(settings), "tokenizer.json": tokenizer,
             "tokenizer_config.json": json.dumps(about)}  # fmt: skip
    files = {name: text.encode("utf-8", "replace") for name, text in texts.items()}
    files["model.safetensors"] = weights
    if rng.random() < 0.3:
        names = some(rng, [*PLACES, "model.safetensors", 7, None])
        index: Any = {"weight_map": {"model.norm.weight": names}}
        index = exchanged(rng, index) if rng.random() < 0.5 else index
        files["model.safetensors.index.json"] = json.dumps(index).encode("utf-8", "replace")
    if rng.random() < 0.3:
        name = some(rng, sorted(files))
        files[name] = damaged(rng, files[name])
    for name, contents in files.items():
        (folder / name).write_bytes(contents)
    return folder


def use_folder(rng: random.Random, path: Path) -> list[np.ndarray]:
    """Make a chat model of it, and let that say what comes next."""
    import palto
    from palto.chat import models

    chat = models.load(path)
    tokens = chat.tokenizer.encode("abc") or [0]
    chat.model(palto.asarray(np.array([tokens[:4]])))
    return [np.asarray(x) for x in chat.model.state_dict().values()]


# --- ONNX ----------------------------------------------------------------------------------------


@functools.cache
def _some_models() -> list[bytes]:
    """Sound models with most of what a file can have."""
    from onnx import TensorProto, helper, numpy_helper

    import palto
    from palto import nn, signal
    from palto.formats.onnx.export import model_of

    palto.manual_seed(0)
    batch = palto.Dim("batch", max=8)
    images = np.zeros((2, 12, 12, 1), np.float32)
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(75, 4), nn.Softmax(),
    ).eval()  # fmt: skip
    gpt = nn.models.gpt(7, 6, width=8, heads=2, layers=1).eval()
    lstm = nn.LSTM(3, 4)

    def sound(x: palto.Tensor) -> Any:
        z = signal.stft(x, 16, 4, signal.hann_window(16))
        return palto.sort(palto.abs(z), axis=-1), palto.real(z)

    models = [
        model_of(net, images, dynamic_shapes={"x": {0: batch}}),
        model_of(gpt, np.zeros((2, 6), np.int64), dynamic_shapes={"tokens": {0: batch}}),
        model_of(lambda x: lstm(x)[0], np.zeros((5, 2, 3), np.float32)),
        model_of(sound, np.zeros((2, 40), np.float32)),
    ]

    def value(name: str, shape: Any, kind: int = TensorProto.FLOAT) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    body = helper.make_graph(
        [helper.make_node("Add", ["state", "weight"], ["next"]),
         helper.make_node("Identity", ["going"], ["goes"])],
        "body",
        [value("i", [], TensorProto.INT64), value("going", [], TensorProto.BOOL),
         value("state", [3])],
        [value("goes", [], TensorProto.BOOL), value("next", [3])],
    )  # fmt: skip
    branch = helper.make_graph(
        [helper.make_node("Relu", ["end"], ["y_"])], "branch", [], [value("y_", [3])]
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["count", "", "x"], ["end"], body=body),
         helper.make_node("If", ["yes"], ["y"], then_branch=branch, else_branch=branch),
         helper.make_node("Reshape", ["y", "shape"], ["z"]),
         helper.make_node("Tile", ["z", "often"], ["out"]),
         helper.make_node("Twice", ["out"], ["twice"], domain="own")],
        "loop", [value("x", [3])], [value("twice", None)],
        [numpy_helper.from_array(np.array(x), name) for name, x in
         {"count": 3, "yes": True, "shape": [1, 3], "often": [2, 2]}.items()]
        + [numpy_helper.from_array(np.ones(3, np.float32), "weight")],
    )  # fmt: skip
    twice = helper.make_function(
        "own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 20)],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("own", 1)]
    models.append(helper.make_model(graph, opset_imports=imports, ir_version=9, functions=[twice]))
    return [model.SerializeToString() for model in models]


_OPERATORS = ["Add", "Gemm", "Conv", "Loop", "If", "Scan", "Reshape", "Expand", "Tile", "Pad",
              "ConstantOfShape", "Range", "OneHot", "Resize", "Split", "Slice", "Gather", "TopK",
              "Constant", "DFT", "Einsum", "RandomNormal", "SequenceEmpty", "MaxPool", "Nope",
              "LSTM", "CumSum", "Unsqueeze", "Concat", "NonZero", "DequantizeLinear"]  # fmt: skip


def _messages(message: Any) -> Iterator[Any]:
    yield message
    for field, value in message.ListFields():
        if field.type == field.TYPE_MESSAGE:
            for part in value if hasattr(value, "add") else [value]:
                yield from _messages(part)


def _exchange_in(rng: random.Random, message: Any) -> None:
    """Exchange something that a message of protobuf's says."""
    fields = message.DESCRIPTOR.fields
    set_fields = [field for field, _ in message.ListFields()]
    field = some(rng, set_fields) if set_fields and rng.random() < 0.85 else some(rng, fields)
    value = getattr(message, field.name)
    is_list = hasattr(value, "extend")
    if field.type == field.TYPE_MESSAGE:
        if not is_list:
            message.ClearField(field.name)
        elif not value:
            value.add()
        elif rng.random() < 0.5:
            del value[rng.randrange(len(value))]
        else:
            value.append(some(rng, value))
        return
    if field.type == field.TYPE_STRING:
        new: Any = some(rng, [*PLACES, *_OPERATORS, "x", "count", "weight", "NOTSET", "1e9"])
    elif field.type == field.TYPE_BYTES:
        old = value[0] if is_list and value else b"" if is_list else value
        new = some(rng, [b"", old[:-1], old * 2, rng.randbytes(24), b"\xff\xfe", b"sum"])
    elif field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        new = some(rng, [float("nan"), float("inf"), -1.0, 0.0, 1e30])
    else:
        limits = (0, 2**64 - 1) if "UINT64" in str(field.type) else (-(2**63), 2**63 - 1)
        if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_ENUM):
            limits = (-(2**31), 2**31 - 1)
        if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
            limits = (0, limits[1])
        new = some(rng, [x for x in [*WHOLE, *range(24)] if limits[0] <= x <= limits[1]])
    try:
        if not is_list:
            setattr(message, field.name, new)
        elif value and rng.random() < 0.8:
            value[rng.randrange(len(value))] = new
        else:
            value.append(new)
    except (ValueError, TypeError):  # what protobuf itself does not write
        message.ClearField(field.name)


def onnx_file(rng: random.Random, folder: Path) -> Path:
    """A case of ONNX."""
    import onnx

    contents = some(rng, _some_models())
    (folder / "link").symlink_to(folder.parent / "secret")
    (folder / "folder").symlink_to(folder.parent)
    (folder / "data").write_bytes(np.arange(99, dtype=np.float32).tobytes())
    if rng.random() < 0.8:
        model = onnx.ModelProto.FromString(contents)
        if rng.random() < 0.3:
            tensor = some(rng, [x for x in model.graph.initializer if x.raw_data] or [None])
            if tensor is not None:
                tensor.ClearField("raw_data")
                tensor.data_location = onnx.TensorProto.EXTERNAL
                tensor.external_data.add(key="location", value=some(rng, PLACES))
                for key in ("offset", "length", "checksum"):
                    if rng.random() < 0.3:
                        told = some(rng, [*WHOLE, "many", "1e3", " 4"])
                        tensor.external_data.add(key=key, value=str(told))
        if rng.random() < 0.85:
            for _ in range(rng.randint(1, 3)):
                _exchange_in(rng, some(rng, [*_messages(model)]))
        contents = model.SerializeToString()
    else:
        contents = damaged(rng, contents)
    path = folder / "model.onnx"
    path.write_bytes(contents)
    return path


def use_onnx(rng: random.Random, path: Path) -> list[np.ndarray]:
    """Load it, and predict something."""
    from palto.formats import onnx

    loaded = onnx.load(path)
    inputs = [
        np.zeros(
            [n if isinstance(n, int) and 0 <= n < 99 else 2 for n in value.shape or ()],
            value.dtype or np.float32,
        )
        for value in loaded.graph.inputs
    ]
    loaded(*inputs)
    return [np.asarray(x) for x in loaded.state_dict().values()]


# --- A case --------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Callable[..., Path], Callable[..., list[np.ndarray]]]] = {
    "safetensors": (safetensors_file, use_safetensors),
    "onnx": (onnx_file, use_onnx),
    "gguf": (gguf_file, use_gguf),
    "folder": (model_folder, use_folder),
}

_watching: list[Path] = []
_deeds: list[str] = []
_ALLOWED = tuple(
    os.path.realpath(place)
    for place in (sys.prefix, sys.base_prefix, ROOT, "/sys", "/dev/null", "/proc", *sys.path)
)
_FORBIDDEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.remove", "os.rename", "os.mkdir", "os.chmod",
    "shutil.rmtree", "socket.connect", "pickle.find_class",
)  # fmt: skip


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Note what is done outside of the folder of a case."""
    if not _watching:
        return
    if event in _FORBIDDEN:
        _deeds.append(f"{event} {arguments[:1]}")
    if event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.endswith("/mem") or not path.startswith((str(_watching[0]), *_ALLOWED)):
            _deeds.append(f"opens {path}")


def run_case(kind: str, number: int) -> tuple[str, str]:
    """What became of a case: "loaded", "refused" or "finding", and why."""
    rng = random.Random(f"{kind} {number}")
    make, use = KINDS[kind]
    with tempfile.TemporaryDirectory() as outside:
        Path(outside, "secret").write_bytes(np.full(LONG, SECRET).tobytes())
        folder = Path(outside).resolve() / "model"
        folder.mkdir()
        path = make(rng, folder)
        _deeds.clear()
        _watching.append(folder)
        try:
            found = use(rng, path)
        except (ValueError, FileNotFoundError) as error:
            result = ("refused", "") if len(str(error)) > 9 else ("finding", f"says {error!r} only")
        except Exception as error:
            places = traceback.extract_tb(error.__traceback__)
            own = [x for x in places if f"{os.sep}palto{os.sep}" in x.filename] or places
            where = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
            result = "finding", f"{type(error).__name__} at {where}: {str(error)[:150]}"
        else:
            is_secret = any(x.dtype == np.float32 and (x == SECRET).any() for x in found)
            result = ("finding", "the secret is in it") if is_secret else ("loaded", "")
        finally:
            _watching.clear()
        if _deeds:
            result = "finding", _deeds[0]
    return result


def work(kinds: list[str], first: int, memory: int) -> None:
    """Run cases, one after the other, and say of each what became of it. Never ends by itself."""
    warnings.simplefilter("ignore")
    for kind in kinds:
        run_case(kind, 0)  # imports, before memory is counted
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(_audit)
    number = first
    while True:
        for kind in kinds:
            print(f"begin {kind} {number}", flush=True)
            result, why = run_case(kind, number)
            print(f"{result} {kind} {number} {why!r}", flush=True)
        number += 1


# --- All of them ---------------------------------------------------------------------------------


def fuzz(
    kinds: list[str], seconds: float, first: int, memory: int, most: int = 2**63
) -> tuple[dict[str, collections.Counter[str]], dict[str, str]]:
    """Run cases for some time, or some more than `most`; what became of them, and the findings.

    A process that crashes, or that a case keeps too long, is a finding, and another one goes on.
    """
    counts: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in kinds}
    findings: dict[str, str] = {}
    end, number = time.monotonic() + seconds, first

    def note(kind: str, number: int, why: str) -> None:
        counts[kind]["finding"] += 1
        if why not in findings:
            findings[why] = f"{kind}:{number}"
            print(f"{kind}:{number}: {why}", flush=True)

    def is_over() -> bool:
        return time.monotonic() > end or sum(x.total() for x in counts.values()) > most

    while not is_over():
        worker = subprocess.Popen(
            [sys.executable, __file__, "--work", str(number), "--kinds", *kinds,
             "--memory", str(memory)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(
                filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))},
        )  # fmt: skip
        assert worker.stdout is not None and worker.stderr is not None
        case, rest = ("", first), b""
        try:
            while not is_over():
                if not select.select([worker.stdout], [], [], PATIENCE)[0]:
                    note(*case, f"takes more than {PATIENCE} seconds")
                    break
                part = os.read(worker.stdout.fileno(), 1 << 16)
                if not part:
                    errors = worker.stderr.read().decode().strip().splitlines()
                    if not case[0]:
                        raise RuntimeError("\n".join(errors))
                    note(*case, f"the process ends: {(errors or [worker.wait()])[-1]}")
                    break
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    word, kind, place, *why = line.decode().split(maxsplit=3)
                    case, number = (kind, int(place)), int(place)
                    if word == "finding":
                        note(*case, why[0])
                    elif word != "begin":
                        counts[kind][word] += 1
        except KeyboardInterrupt:
            end = 0.0
        finally:
            worker.kill()
            worker.communicate()
        number += 1
    return counts, findings


def main() -> int:
    """The command line; the status is 1 if there are findings."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--first", type=int, default=1, help="the number of the first case")
    parser.add_argument("--memory", type=int, default=MEMORY, help="bytes that a process may take")
    parser.add_argument("--only", help="one case, as KIND:NUMBER")
    parser.add_argument("--work", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        kind, number = options.only.split(":")
        print(*run_case(kind, int(number)))
        return 0
    if options.work is not None:
        work(options.kinds, options.work, options.memory)
    seconds = 60 * options.minutes
    counts, findings = fuzz(options.kinds, seconds, options.first, options.memory)
    for kind, found in counts.items():
        print(f"{kind}: {found.total():,} cases, {found['loaded']:,} loaded, "
              f"{found['refused']:,} refused, {found['finding']:,} findings")  # fmt: skip
    print(f"{len(findings)} different findings")
    return bool(findings)


if __name__ == "__main__":
    raise SystemExit(main())
