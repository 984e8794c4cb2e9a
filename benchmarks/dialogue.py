"""The training of `palto train chat` beside the same network in PyTorch, step by step in turn.

    python benchmarks/dialogue.py

Both take the same rows of tokens, which are made up, from the same weights: forward, backward,
clipping, AdamW. PyTorch is measured eager and compiled (which wants a C++ compiler; --eager leaves
it out), with its fused optimiser; its best counts. The median of the steps, on all threads.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import palto
from palto.recipes import dialogue

functional = torch.nn.functional


# --- In PyTorch ----------------------------------------------------------------------------------


class Attention(torch.nn.Module):
    """That of `palto.nn.models.Llama`."""

    def __init__(self, plan: dialogue.Plan) -> None:
        super().__init__()
        self.heads = plan.heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            torch.nn.Linear(plan.width, plan.width, bias=False) for _ in range(4)
        )

    def forward(self, x: Any, cosines: Any, sines: Any) -> Any:
        """(N, L, width), kept."""
        count, length, width = x.shape
        query, key, value = (
            layer(x).view(count, length, self.heads, -1).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )

        def rotate(y: Any) -> Any:
            first, second = y.chunk(2, -1)
            return torch.cat(
                [first * cosines - second * sines, second * cosines + first * sines], -1
            )

        result = functional.scaled_dot_product_attention(
            rotate(query), rotate(key), value, is_causal=True
        )
        return self.o_proj(result.transpose(1, 2).reshape(count, length, width))


class MLP(torch.nn.Module):
    """SwiGLU."""

    def __init__(self, plan: dialogue.Plan) -> None:
        super().__init__()
        self.gate_proj = torch.nn.Linear(plan.width, plan.hidden, bias=False)
        self.up_proj = torch.nn.Linear(plan.width, plan.hidden, bias=False)
        self.down_proj = torch.nn.Linear(plan.hidden, plan.width, bias=False)

    def forward(self, x: Any) -> Any:
        """(..., width), kept."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(torch.nn.Module):
    """Attention and MLP, each after a normalisation."""

    def __init__(self, plan: dialogue.Plan) -> None:
        super().__init__()
        self.input_layernorm = torch.nn.RMSNorm(plan.width, 1e-5)
        self.self_attn = Attention(plan)
        self.post_attention_layernorm = torch.nn.RMSNorm(plan.width, 1e-5)
        self.mlp = MLP(plan)

    def forward(self, x: Any, cosines: Any, sines: Any) -> Any:
        """(N, L, width), kept."""
        x = x + self.self_attn(self.input_layernorm(x), cosines, sines)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(torch.nn.Module):
    """`palto.nn.models.Llama`, by the same names."""

    def __init__(self, plan: dialogue.Plan) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(plan.vocabulary, plan.width)
        self.layers = torch.nn.ModuleList([Block(plan) for _ in range(plan.layers)])
        self.norm = torch.nn.RMSNorm(plan.width, 1e-5)
        half = plan.width // plan.heads // 2
        turns = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        angles = torch.arange(plan.context)[:, None] * turns
        self.register_buffer("cosines", angles.cos().float(), persistent=False)
        self.register_buffer("sines", angles.sin().float(), persistent=False)

    def forward(self, tokens: Any) -> Any:
        """Tokens (N, L) to logits (N, L, vocabulary)."""
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, self.cosines, self.sines)
        return functional.linear(self.norm(x), self.embed_tokens.weight)


def torch_step(
    model: palto.nn.Module, plan: dialogue.Plan, *, compiled: bool
) -> Callable[[np.ndarray, np.ndarray], float]:
    """The step of `palto.recipes.dialogue`, from the weights of a model of its own."""
    network = Llama(plan)
    network.load_state_dict(
        {name: torch.tensor(x.numpy()) for name, x in model.state_dict().items()}
    )
    parameters = list(network.parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [x for x in parameters if x.ndim > 1]},
            {"params": [x for x in parameters if x.ndim < 2], "weight_decay": 0.0},
        ],
        lr=plan.lr, betas=(0.9, 0.99), weight_decay=plan.weight_decay, fused=True,
    )  # fmt: skip

    def loss_of(tokens: Any, following: Any) -> Any:
        return functional.cross_entropy(network(tokens).flatten(0, 1), following.flatten())

    forward = torch.compile(loss_of) if compiled else loss_of

    def step(tokens: np.ndarray, following: np.ndarray) -> float:
        loss = forward(torch.from_numpy(tokens), torch.from_numpy(following))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return float(loss.item())

    return step


# --- Side by side --------------------------------------------------------------------------------


def palto_step(
    model: palto.nn.Module, plan: dialogue.Plan
) -> Callable[[np.ndarray, np.ndarray], float]:
    """The step of `palto.recipes.dialogue`."""
    optimizer = dialogue.new_optimizer(model, plan)
    step = dialogue.compiled_step(model, model, optimizer)
    return lambda tokens, following: float(step(tokens, following))


def measure(plan: dialogue.Plan, steps: int, *, compiles: bool) -> dict[str, tuple[float, float]]:
    """The median seconds of a step, and the first loss, by who computes it."""
    palto.manual_seed(0)
    model = dialogue.LanguageModel(plan, plan.vocabulary).model
    sides = {
        "PyTorch eager": torch_step(model, plan, compiled=False),
        **({"PyTorch compiled": torch_step(model, plan, compiled=True)} if compiles else {}),
        "Palto": palto_step(model, plan),
    }
    rng = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in sides}
    losses: dict[str, float] = {}
    for _ in range(steps + 2):  # the first two compile and warm up
        rows = rng.integers(plan.vocabulary, size=(plan.batch_size, plan.context + 1))
        tokens, following = (np.ascontiguousarray(x) for x in (rows[:, :-1], rows[:, 1:]))
        for name, step in sides.items():
            begun = time.perf_counter()
            loss = step(tokens, following)
            times[name].append(time.perf_counter() - begun)
            losses.setdefault(name, loss)
    return {name: (statistics.median(x[2:]), losses[name]) for name, x in times.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--eager", action="store_true", help="PyTorch without its compiler")
    options = parser.parse_args()
    if options.threads is not None:
        palto.set_num_threads(options.threads)
    torch.set_num_threads(palto.get_num_threads())
    plan = dialogue.Plan()
    found = measure(plan, options.steps, compiles=not options.eager)
    for name, (seconds, loss) in found.items():
        speed = plan.batch_size * plan.context / seconds
        print(f"{name:18} {1000 * seconds:7.1f} ms {speed:8,.0f} tokens/s   first loss {loss:.4f}")
    ours = found.pop("Palto")[0]
    print(f"Palto is {min(x for x, _ in found.values()) / ours:.2f}x PyTorch's best")


if __name__ == "__main__":
    main()
