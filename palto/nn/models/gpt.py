"""A small GPT: a transformer that predicts the next token."""

from __future__ import annotations

import math

from palto import nn
from palto.tensor import Tensor
from palto.tensor import functions as F


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); each token looks at itself and those before.

    Args:
        width: the length of a token's vector.
        heads: how many attentions run side by side, each over width / heads numbers.
        dropout: the share dropped of attention's weights and of each branch's output in training.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) to the same shape."""
        x = x + self.dropout(self.attention(self.norm1(x), is_causal=True))
        hidden = nn.functional.gelu(self.expand(self.norm2(x)), approximate="tanh")
        result: Tensor = x + self.dropout(self.contract(hidden))
        return result


class GPT(nn.Module):
    """See `gpt`."""

    def __init__(
        self, vocabulary: int, context: int, width: int, heads: int, layers: int, dropout: float
    ) -> None:
        self.context = context
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = tuple(Block(width, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                branch_end = name.endswith(("out_proj.weight", "contract.weight"))
                std = 0.02 / math.sqrt(2 * layers) if branch_end else 0.02
                nn.init.normal_(parameter, std=std)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, time), int64, to logits of each next token (batch, time, vocabulary)."""
        time = tokens.shape[-1]
        if tokens.ndim != 2 or time > self.context:
            raise ValueError(
                f"GPT takes tokens (batch, time) with time at most {self.context}, got shape "
                f"{tokens.shape}; cut the text, or make the model with a longer context"
            )
        x = self.tokens(tokens) + self.positions(F.arange(time))
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        return self.tokens.attend(self.norm(x))


def gpt(
    vocabulary: int,
    context: int = 128,
    width: int = 192,
    heads: int = 4,
    layers: int = 4,
    *,
    dropout: float = 0.0,
) -> GPT:
    """A GPT in GPT-2's form: learned positions, normalisation before each branch, GELU, tied head.

    Tokens (batch, time), int64, output (batch, time, vocabulary): logits of the token after each.
    (vocabulary + context) width + layers (12 width^2 + 13 width) + 2 width parameters: 1,853,568
    for 256 tokens with the defaults, 124,439,808 for GPT-2 (50257, 1024, 768, 12, 12).

    Weights start from N(0, 0.02^2), at the ends of the 2 * layers branches divided by
    sqrt(2 layers), and biases from 0.

    Args:
        vocabulary: how many tokens there are.
        context: the longest text, in tokens.
        width: the length of a token's vector.
        heads: how many attentions run side by side.
        layers: how many blocks follow each other.
        dropout: the share dropped in training, of embeddings, attention's weights and each branch's
            output.

    Raises:
        ValueError: a width that does not split into `heads`.

    Radford et al., "Language models are unsupervised multitask learners", 2019; Vaswani et al.,
    "Attention is all you need", 2017.
    """
    if width % heads:
        raise ValueError(f"gpt: a width of {width} does not split into {heads} heads")
    return GPT(vocabulary, context, width, heads, layers, dropout)
