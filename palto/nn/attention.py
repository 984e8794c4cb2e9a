"""Attention."""

from __future__ import annotations

import math

from palto.nn import init
from palto.nn.activations import softmax, softmax_gradient
from palto.nn.dropout import dropout
from palto.nn.linear import Linear, linear
from palto.nn.module import Module, Parameter
from palto.tensor import Tensor, dtypes
from palto.tensor import functions as F
from palto.tensor.functions import composite
from palto.tensor.random import Generator


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    *,
    enable_gqa: bool = False,
    generator: Generator | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(width)) V: to each query the values whose keys match it.

    A query that may not look at any key gets zeros.

    Args:
        query: shape (..., heads, L, width).
        key: shape (..., heads, S, width).
        value: shape (..., heads, S, width of the output).
        mask: bool, True where a query may look; or float, added to the scores. Broadcasts to
            (..., heads, L, S).
        dropout_p: with which probability a weight is dropped; 0 in inference.
        is_causal: query i may look at keys 0 to i only; a compiled program of fixed lengths leaves
            the others out.
        scale: instead of 1 / sqrt(width).
        enable_gqa: keys and values may have fewer heads, each for as many heads of queries, one
            after the other.
        generator: where dropout's choice comes from.

    Returns:
        Shape (..., heads, L, width of the output).

    Raises:
        ValueError: shapes that do not fit.

    Sources: Vaswani et al.: Attention is all you need (2017); grouped heads: Ainslie et al.: GQA:
    Training generalized multi-query transformer models from multi-head checkpoints (2023).
    """
    query, key, value = F.asarray(query), F.asarray(key), F.asarray(value)
    if (
        min(query.ndim, key.ndim, value.ndim) < 2
        or query.shape[-1] != key.shape[-1]
        or key.shape[-2] != value.shape[-2]
    ):
        raise ValueError(
            "attention wants queries (..., L, width), keys (..., S, width) and values (..., S, "
            f"any), got {query.shape}, {key.shape} and {value.shape}"
        )
    scale = 1 / math.sqrt(max(query.shape[-1], 1)) if scale is None else scale
    shape = query.shape
    if enable_gqa:
        query, key, value, mask = _grouped(query, key, value, mask)
    keep = None
    if dropout_p:
        batch = F.broadcast_shapes(query.shape[:-2], key.shape[:-2])
        weights = F.ones((*batch, query.shape[-2], key.shape[-2]), dtype=query.dtype)
        keep = dropout(weights, dropout_p, generator=generator)
    result = attention(query, key, value, mask, keep, is_causal, scale)
    return F.reshape(result, (*shape[:-1], value.shape[-1])) if enable_gqa else result


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Queries with their heads' axis as two, (groups, heads of each); the others fit them."""
    if min(query.ndim, key.ndim, value.ndim) < 3:
        raise ValueError(
            "attention in groups of heads wants queries, keys and values (..., heads, length, "
            f"width), got {query.shape}, {key.shape} and {value.shape}"
        )
    if not key.shape[-3] or query.shape[-3] % key.shape[-3]:
        raise ValueError(
            f"attention in groups: {key.shape[-3]} heads of keys do not divide {query.shape[-3]} "
            "heads of queries"
        )

    def split(x: Tensor, groups: int) -> Tensor:
        return F.reshape(x, (*x.shape[:-3], groups, x.shape[-3] // groups, *x.shape[-2:]))

    groups = key.shape[-3]
    if mask is not None and mask.ndim > 2:
        mask = split(mask, groups if mask.shape[-3] > 1 else 1)
    return split(query, groups), split(key, groups), split(value, groups), mask


@composite(gradient=softmax_gradient)
def _masked_softmax(scores: Tensor) -> Tensor:
    """Along the last axis; zeros where all scores are -infinity."""
    top = F.detach(F.max(scores, -1, keepdims=True))
    weights = F.exp(scores - F.where(top == -math.inf, 0.0, top))
    total = F.sum(weights, -1, keepdims=True)
    return weights / F.where(total == 0, 1.0, total)


@composite
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    keep: Tensor | None,
    is_causal: bool,
    scale: float,
) -> Tensor:
    """The arithmetic of :func:`scaled_dot_product_attention`.

    `keep` is what dropout multiplies the weights by: shape (..., heads, L, S), or None.
    """
    scores = F.matmul(query, key.mT) * scale
    if is_causal:
        rows, columns = scores.shape[-2:]
        place = F.iota((rows, columns), 1) - F.iota((rows, columns), 0)
        scores = F.where(place <= 0, scores, -math.inf)
    if mask is not None:
        mask = F.asarray(mask)
        is_bool = mask.dtype == dtypes.bool
        scores = F.where(mask, scores, -math.inf) if is_bool else scores + mask
    weights = softmax(scores) if mask is None else _masked_softmax(scores)
    if keep is not None:
        weights = weights * keep
    return F.matmul(weights, value)


class MultiheadAttention(Module):
    """Attention by several heads at once, between linear maps.

    Each head has its own share of the width. The maps' weights start by Glorot's rule, their
    biases at 0.

    Args:
        embed_dim: the width E of queries, keys, values and output.
        num_heads: how many heads share it.
        dropout: with which probability a weight is dropped, in training.
        bias: whether the maps have biases.

    Attributes:
        in_proj_weight: the maps of queries, keys and values, one below the other, shape (3 E, E).
        in_proj_bias: their biases, shape (3 E,), or None.
        out_proj: the Linear that joins the heads.

    Raises:
        ValueError: heads that do not divide the width.

    Source: Vaswani et al.: Attention is all you need (2017).
    """

    def __init__(
        self, embed_dim: int, num_heads: int, dropout: float = 0.0, bias: bool = True
    ) -> None:
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(
                f"MultiheadAttention: {num_heads} heads do not divide a width of {embed_dim}"
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj_weight = Parameter(F.zeros((3 * embed_dim, embed_dim)))
        init.xavier_uniform_(self.in_proj_weight)
        self.in_proj_bias = Parameter(F.zeros(3 * embed_dim)) if bias else None
        self.out_proj = Linear(embed_dim, embed_dim, bias)
        if self.out_proj.bias is not None:
            init.zeros_(self.out_proj.bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Attend.

        Args:
            query: shape (N, L, E).
            key: shape (N, S, E); by default `query`: self-attention.
            value: shape (N, S, E); by default `key`.
            mask: bool, True where a query may look; or float, added to the scores. Broadcasts to
                (N, heads, L, S).
            is_causal: query i may look at keys 0 to i only.

        Returns:
            Shape (N, L, E).
        """
        query = F.asarray(query)
        width, weight, bias = self.embed_dim, self.in_proj_weight.read(), self.in_proj_bias
        for x in (query, key, value):
            if x is not None and (x.ndim != 3 or x.shape[-1] != width):
                raise ValueError(
                    f"MultiheadAttention wants inputs of shape (N, length, {width}), got {x.shape}"
                )
        if key is None and value is None:
            q, k, v = F.split(linear(query, weight, bias), 3, axis=-1)
        else:
            key = query if key is None else key
            inputs = (query, key, key if value is None else value)
            maps = F.split(weight, 3)
            shifts = [None] * 3 if bias is None else F.split(bias.read(), 3)
            q, k, v = (linear(*parts) for parts in zip(inputs, maps, shifts, strict=True))
        result = scaled_dot_product_attention(
            self._heads(q),
            self._heads(k),
            self._heads(v),
            mask,
            self.dropout if self.training else 0.0,
            is_causal,
        )
        output: Tensor = self.out_proj(F.reshape(F.permute_dims(result, (0, 2, 1, 3)), query.shape))
        return output

    def _heads(self, x: Tensor) -> Tensor:
        """(N, length, E) -> (N, heads, length, E / heads)."""
        share = self.embed_dim // self.num_heads
        return F.permute_dims(F.reshape(x, (*x.shape[:-1], self.num_heads, share)), (0, 2, 1, 3))

    def extra_repr(self) -> str:
        """Sizes."""
        dropout = f", dropout={self.dropout}" if self.dropout else ""
        return f"{self.embed_dim}, {self.num_heads}{dropout}"
