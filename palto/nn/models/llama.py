"""Llama: the transformer of today's open language models, with a cache for generating text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from palto import nn
from palto.nn.attention import scaled_dot_product_attention
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F

#: Makes a layer of some name and sizes: a map (name, inputs, outputs) -> Module.
Maker = Callable[[str, int, int], Any]


def rotary_angles(
    positions: Tensor,
    width: int,
    base: float = 10_000.0,
    factors: Sequence[float] | None = None,
    dtype: Any = None,
) -> tuple[Tensor, Tensor]:
    """The cosines and sines by which :func:`rotate` turns the vectors at some positions.

    Args:
        positions: shape (L,), whole numbers.
        width: the length of a head's vector, even.
        base: pair i turns by position / base^(2 i / width).
        factors: width / 2 numbers by which pairs turn more slowly (long contexts), or None.
        dtype: of the result; angles are computed in float32, which is the default.

    Returns:
        Cosines and sines, each (L, width / 2).

    Source: Su et al.: RoFormer: Enhanced transformer with rotary position embedding (2021).
    """
    turns = [base ** (-2 * pair / width) for pair in range(width // 2)]
    if factors is not None:
        turns = [turn / factor for turn, factor in zip(turns, factors, strict=True)]
    speeds = F.asarray(turns, dtype=dtypes.float32)
    angles = F.expand_dims(F.astype(positions, dtypes.float32), 1) * speeds
    dtype = dtypes.float32 if dtype is None else dtype
    return F.astype(F.cos(angles), dtype), F.astype(F.sin(angles), dtype)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Vectors (..., L, width) turned; the numbers i and i + width / 2 are a pair."""
    first, second = F.split(x, 2, axis=-1)
    return F.concat([first * cosines - second * sines, second * cosines + first * sines], axis=-1)


class Cache(nn.Module):
    """Keys and values of the tokens read so far, for :class:`Llama` to go on from.

    Attributes:
        context: how many tokens have room.
        keys: for each layer (batch, heads of keys, context, width of a head).
        values: the same.
    """

    def __init__(self, layers: int, batch: int, heads: int, context: int, width: int) -> None:
        shape = (batch, heads, context, width)
        self.context = context
        self.keys = tuple([_room(shape) for _ in range(layers)])
        self.values = tuple([_room(shape) for _ in range(layers)])


def _room(shape: tuple[int, ...]) -> nn.Buffer:
    """Zeros, of which the system gives memory only to what has been written to."""
    return nn.Buffer(F.asarray(np.zeros(shape, np.float32), copy=False), persistent=False)


class Attention(nn.Module):
    """Causal self-attention with rotary positions; groups of heads share keys and values."""

    def __init__(
        self, name: str, width: int, heads: int, key_value_heads: int, head: int, make: Maker
    ) -> None:
        self.heads = heads
        self.key_value_heads = key_value_heads
        self.q_proj = make(f"{name}.q_proj", width, heads * head)
        self.k_proj = make(f"{name}.k_proj", width, key_value_heads * head)
        self.v_proj = make(f"{name}.v_proj", width, key_value_heads * head)
        self.o_proj = make(f"{name}.o_proj", heads * head, width)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        kept: tuple[nn.Buffer, nn.Buffer] | None = None,
        start: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """(N, L, width), kept; with a cache it goes there at `start`, and the mask is (L, S)."""
        query = rotate(_heads(self.q_proj(x), self.heads), *angles)
        key = rotate(_heads(self.k_proj(x), self.key_value_heads), *angles)
        value = _heads(self.v_proj(x), self.key_value_heads)
        if kept is not None and start is not None and mask is not None:
            for cell, new in zip(kept, (key, value), strict=True):
                cell.assign(F.dynamic_update_slice(cell.read(), new, start))
            key, value = (cell.read()[:, :, : mask.shape[-1]] for cell in kept)
        result = scaled_dot_product_attention(
            query, key, value, mask, is_causal=kept is None, enable_gqa=True
        )
        joined = F.permute_dims(result, (0, 2, 1, 3))
        output: Tensor = self.o_proj(F.reshape(joined, (*x.shape[:2], -1)))
        return output


def _heads(x: Tensor, heads: int) -> Tensor:
    """(N, L, heads * width) -> (N, heads, L, width)."""
    split = F.reshape(x, (*x.shape[:2], heads, x.shape[2] // heads))
    return F.permute_dims(split, (0, 2, 1, 3))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) up(x)). Shazeer: GLU variants improve transformer (2020)."""

    def __init__(self, name: str, width: int, hidden: int, make: Maker) -> None:
        self.gate_proj = make(f"{name}.gate_proj", width, hidden)
        self.up_proj = make(f"{name}.up_proj", width, hidden)
        self.down_proj = make(f"{name}.down_proj", hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width), kept."""
        output: Tensor = self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        return output


class Block(nn.Module):
    """x + self_attn(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, eps: float, self_attn: Attention, mlp: MLP) -> None:
        self.input_layernorm = nn.RMSNorm(width, eps)
        self.self_attn = self_attn
        self.post_attention_layernorm = nn.RMSNorm(width, eps)
        self.mlp = mlp

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        """(N, L, width), kept; the rest is for the attention."""
        x = x + self.self_attn(self.input_layernorm(x), *rest)
        result: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return result


class Llama(nn.Module):
    """See `llama`. Parts have the names of Hugging Face's state dicts, without "model."."""

    def __init__(
        self,
        vocabulary: int,
        context: int,
        width: int,
        heads: int,
        key_value_heads: int,
        layers: int,
        hidden: int,
        head: int,
        rope_base: float,
        rope_factors: Sequence[float] | None,
        eps: float,
        tied: bool,
        linear: Maker,
        embedding: Maker,
    ) -> None:
        self.context = context
        self.head = head
        self.key_value_heads = key_value_heads
        self.rope_base = rope_base
        self.rope_factors = None if rope_factors is None else tuple(rope_factors)
        self.embed_tokens = embedding("embed_tokens", vocabulary, width)
        self.layers = tuple(
            Block(
                width,
                eps,
                Attention(f"layers.{i}.self_attn", width, heads, key_value_heads, head, linear),
                MLP(f"layers.{i}.mlp", width, hidden, linear),
            )
            for i in range(layers)
        )
        self.norm = nn.RMSNorm(width, eps)
        self.lm_head = None if tied else linear("lm_head", width, vocabulary)

    def new_cache(self, context: int | None = None, batch: int = 1) -> Cache:
        """An empty cache for `batch` texts of up to `context` tokens, the model's by default."""
        context = self.context if context is None else context
        return Cache(len(self.layers), batch, self.key_value_heads, context, self.head)

    def forward(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        position: Any = 0,
        length: int | None = None,
    ) -> Tensor:
        """Logits of each next token.

        Args:
            tokens: shape (N, L), int64.
            cache: keys and values of the tokens before these; those of these are added.
            position: with a cache: how many tokens stand before these, an int or an int64 scalar.
            length: with a cache: how much of it is looked at, at least position + L; all of it by
                default. In a compiled function it may be an argument that is a `palto.Dim`, so
                that a step costs by the text's length.

        Returns:
            Shape (N, L, vocabulary).

        Raises:
            ValueError: more tokens than have room.
        """
        return self.logits(self.hidden(tokens, cache, position, length))

    def logits(self, hidden: Tensor) -> Tensor:
        """What :meth:`hidden` found, (..., width), as logits (..., vocabulary)."""
        head = self.embed_tokens.attend if self.lm_head is None else self.lm_head
        logits: Tensor = head(hidden)
        return logits

    def hidden(
        self,
        tokens: Tensor,
        cache: Cache | None = None,
        position: Any = 0,
        length: int | None = None,
    ) -> Tensor:
        """The normalised vectors (N, L, width) that logits are made of; see :meth:`forward`.

        Apart from them, because of a prompt only the last token needs logits.
        """
        time = tokens.shape[-1]
        room = self.context if cache is None else cache.context
        if tokens.ndim != 2 or time > room or (length is not None and length > room):
            raise ValueError(
                f"Llama takes tokens (batch, time), here at most {room} with those before, got "
                f"shape {tokens.shape}{'' if length is None else f' and a length of {length}'}"
            )
        positions = F.arange(time) + position
        start = mask = None
        if cache is not None:
            zero = F.asarray(0)
            start = F.stack([zero, zero, F.asarray(position), zero])
            places = F.arange(cache.context if length is None else length)
            mask = F.expand_dims(places, 0) <= F.expand_dims(positions, 1)
        x: Tensor = self.embed_tokens(tokens)
        angles = rotary_angles(positions, self.head, self.rope_base, self.rope_factors, x.dtype)
        kept: list[Any] = [None] * len(self.layers)
        if cache is not None:
            kept = list(zip(cache.keys, cache.values, strict=True))
        arguments = [(angles, cells, start, mask) for cells in kept]
        result: Tensor = self.norm(nn.repeated(self.layers, x, arguments))
        return result


def llama(
    vocabulary: int,
    context: int = 256,
    width: int = 256,
    heads: int = 4,
    key_value_heads: int | None = None,
    layers: int = 8,
    hidden: int | None = None,
    *,
    head: int | None = None,
    rope_base: float = 10_000.0,
    rope_factors: Sequence[float] | None = None,
    eps: float = 1e-5,
    tied: bool = True,
    linear: Maker | None = None,
    embedding: Maker | None = None,
) -> Llama:
    """A transformer in Llama's form: rotary positions, RMSNorm before each branch, SwiGLU.

    Tokens (batch, time), int64, output (batch, time, vocabulary): logits of the token after each.
    Weights start from N(0, 0.02^2), at the ends of the 2 * layers branches divided by
    sqrt(2 layers).

    Args:
        vocabulary: how many tokens there are.
        context: the longest text, in tokens.
        width: the length of a token's vector.
        heads: how many attentions run side by side.
        key_value_heads: how many heads of keys and values they share; by default `heads`.
        layers: how many blocks follow each other.
        hidden: the width inside a block's MLP; by default 8/3 of `width`, in whole 32s.
        head: the length of a head's vector, even; by default width / heads.
        rope_base: see :func:`rotary_angles`.
        rope_factors: see :func:`rotary_angles`.
        eps: of the normalisations.
        tied: whether the embedding is the head, too.
        linear: makes the linear layers (name, inputs, outputs), such as quantised ones of a file.
        embedding: makes the embedding (name, vocabulary, width), which has a method `attend`.

    Raises:
        ValueError: heads that do not fit.

    Source: Touvron et al.: LLaMA: Open and efficient foundation language models (2023).
    """
    key_value_heads = heads if key_value_heads is None else key_value_heads
    if head is None and width % heads == 0:
        head = width // heads
    if head is None or head % 2 or heads % key_value_heads:
        raise ValueError(
            f"llama: a width of {width} in {heads} heads of {head or 'equal'} numbers, an even "
            f"count, with {key_value_heads} heads of keys and values, does not come out even"
        )

    def new_linear(name: str, inputs: int, outputs: int) -> nn.Linear:
        layer = nn.Linear(inputs, outputs, bias=False)
        is_end = name.endswith(("o_proj", "down_proj"))
        nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * layers) if is_end else 0.02)
        return layer

    def new_embedding(name: str, vocabulary: int, width: int) -> nn.Embedding:
        layer = nn.Embedding(vocabulary, width)
        nn.init.normal_(layer.weight, std=0.02)
        return layer

    return Llama(
        vocabulary,
        context,
        width,
        heads,
        key_value_heads,
        layers,
        math.ceil(width * 8 / 3 / 32) * 32 if hidden is None else hidden,
        head,
        rope_base,
        rope_factors,
        eps,
        tied,
        linear or new_linear,
        embedding or new_embedding,
    )
