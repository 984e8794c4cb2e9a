"""Embedding: a table of vectors looked up by number."""

from __future__ import annotations

from typing import Any

from palto.nn import init
from palto.nn.linear import linear
from palto.nn.module import Module, Parameter
from palto.tensor import Tensor
from palto.tensor import functions as F


def embedding(indices: Any, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """The rows of `weight` at `indices`.

    Args:
        indices: whole numbers from 0 to n - 1, any shape.
        weight: shape (n, width).
        padding_idx: a row that gets no gradient.

    Returns:
        Shape (*indices.shape, width).

    Raises:
        IndexError: an index out of range; it is named.
        TypeError: indices that are not integers.
    """
    indices = F.asarray(indices)
    rows = F.take(weight, indices, axis=0, role="embedding index")
    if padding_idx is None:
        return rows
    is_padding = F.expand_dims(indices == padding_idx % weight.shape[0], -1)
    return F.where(is_padding, F.detach(rows), rows)


class Embedding(Module):
    """A table of `num_embeddings` vectors, looked up by number.

    The vectors start normally distributed, mean 0 and standard deviation 1.

    Args:
        num_embeddings: how many vectors there are.
        embedding_dim: their width.
        padding_idx: the number of a vector that starts at zero and is not trained.

    Attributes:
        weight: shape (num_embeddings, embedding_dim).

    Raises:
        IndexError: `padding_idx` is no row of the table.
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, padding_idx: int | None = None
    ) -> None:
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise IndexError(f"padding_idx {padding_idx} is no row of {num_embeddings}")
        self.num_embeddings = num_embeddings
        self.embedding_dim = embedding_dim
        self.padding_idx = padding_idx
        self.weight = Parameter(F.zeros((num_embeddings, embedding_dim)))
        init.normal_(self.weight)
        if padding_idx is not None:
            self.weight.assign(self.weight.read().detach().at[padding_idx].set(0.0))

    def forward(self, indices: Tensor) -> Tensor:
        """(...) -> (..., embedding_dim)."""
        return embedding(indices, self.weight, self.padding_idx)

    def attend(self, x: Tensor) -> Tensor:
        """How well each vector of the table fits, (..., embedding_dim) -> (..., num_embeddings)."""
        return linear(x, self.weight)

    def extra_repr(self) -> str:
        """Sizes."""
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}"
