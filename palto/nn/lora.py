"""LoRA: a large network learns something new through small layers beside its own.

    nn.lora.adapt(model, rank=8)     # all else is frozen
    nn.lora.Adapter(model)           # the small layers alone: train and save these
    nn.lora.merge(model)             # the same network without the small layers

Hu et al.: LoRA: Low-rank adaptation of large language models (2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from palto.nn import init
from palto.nn.linear import Linear
from palto.nn.module import Module
from palto.tensor import Tensor
from palto.tensor import functions as F

#: The linear layers of a Llama's blocks.
LLAMA = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class LoRA(Module):
    """base(x) + (alpha / rank) B A x: a frozen layer, and beside it one of low rank.

    B starts at zero, so at first nothing changes.

    Args:
        base: a linear layer, quantised or not; it is frozen.
        rank: rows of A and columns of B.
        alpha: how much of the correction counts, in units of `rank`.

    Attributes:
        base: the frozen layer.
        lora_A: A, a Linear from the layer's inputs to `rank`.
        lora_B: B, a Linear from `rank` to its outputs.

    Raises:
        ValueError: a rank below 1.
    """

    def __init__(self, base: Module, rank: int, alpha: float) -> None:
        if rank < 1:
            raise ValueError(f"LoRA: the rank is 1 or more, got {rank}")
        self.base = base.requires_grad_(False)
        self.rank = rank
        self.alpha = alpha
        outputs, inputs = _shape(base)
        self.lora_A = Linear(inputs, rank, bias=False)
        self.lora_B = Linear(rank, outputs, bias=False)
        init.zeros_(self.lora_B.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        result: Tensor = self.base(x) + self.lora_B(self.lora_A(x)) * (self.alpha / self.rank)
        return result

    def merged(self) -> Tensor:
        """The weight (outputs, inputs) of one linear layer that does the same.

        Raises:
            TypeError: the base is quantised: its weight holds no other numbers.
        """
        weight = vars(self.base).get("weight")
        if isinstance(weight, Module):
            raise TypeError(
                f"{type(self.base).__name__} keeps its weight quantised, so nothing can be merged "
                "into it; keep the adapter beside the model"
            )
        change = F.matmul(self.lora_B.weight.read(), self.lora_A.weight.read())
        return F.astype(weight, change.dtype) + change * (self.alpha / self.rank)

    def extra_repr(self) -> str:
        """Options."""
        return f"rank={self.rank}, alpha={self.alpha}"


def _shape(layer: Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer of any kind."""
    weight: Any = vars(layer).get("weight")
    if isinstance(weight, Module):  # quantised
        return vars(weight)["out_features"], vars(weight)["in_features"]
    if getattr(weight, "ndim", 0) != 2:
        raise TypeError(f"LoRA goes beside linear layers, {type(layer).__name__} is none")
    outputs, inputs = weight.shape
    return outputs, inputs


def adapt(
    model: Module, rank: int = 8, alpha: float = 16.0, targets: Sequence[str] = LLAMA
) -> Module:
    """Put a LoRA beside linear layers of a model, and freeze all else.

    Args:
        model: is changed.
        rank: see `LoRA`.
        alpha: see `LoRA`.
        targets: the last part of the names of the layers.

    Returns:
        The model.

    Raises:
        ValueError: no layer has such a name, or the model is adapted already.
    """
    if adapters(model):
        raise ValueError("this model has LoRAs already; merge them, or load the model again")
    found = [
        (parent, name, child)
        for parent in list(model.modules())
        for name, child in parent.named_children()
        if name.rpartition(".")[2] in targets
    ]
    if not found:
        raise ValueError(f"the model has no layer named {', '.join(targets)}")
    model.requires_grad_(False)
    for parent, name, child in found:
        _put(parent, name, LoRA(child, rank, alpha))
    return model


def adapters(model: Module) -> dict[str, LoRA]:
    """The LoRAs of a model, by name."""
    return {name: x for name, x in model.named_modules() if isinstance(x, LoRA)}


def merge(model: Module) -> Module:
    """Replace each LoRA by one linear layer that does the same.

    Args:
        model: is changed.

    Returns:
        The model.

    Raises:
        TypeError: a layer is quantised; nothing is changed then.
    """
    weights = {id(x): x.merged() for x in adapters(model).values()}
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoRA):
                outputs, inputs = _shape(child.base)
                bias: Any = vars(child.base).get("bias")
                layer = Linear(inputs, outputs, bias=bias is not None)
                layer.weight.assign(weights[id(child)])
                if layer.bias is not None:
                    layer.bias.assign(bias.read())
                layer.train(child.training)
                _put(parent, name, layer)
    return model


def _put(parent: Module, path: str, child: Module) -> None:
    """Put a child where there is one, by the name that `named_children` gives it."""
    name, _, rest = path.partition(".")

    def replaced(value: Any, path: str) -> Any:
        if not path:
            return child
        if isinstance(value, dict):
            key = next(x for x in value if path == str(x) or path.startswith(f"{x}."))
            return value | {key: replaced(value[key], path[len(str(key)) + 1 :])}
        place, _, rest = path.partition(".")
        parts = [replaced(x, rest) if number == int(place) else x for number, x in enumerate(value)]
        return tuple(parts) if isinstance(value, tuple) else parts

    setattr(parent, name, replaced(getattr(parent, name), rest))


# The names in PEFT's files: what it wraps, twice, then the model's own.
_PREFIX = "base_model.model.model."


class Adapter(Module):
    """The small layers of an adapted model alone: what there is to train and to keep.

    Its parts have the names of PEFT's files.

    Args:
        model: an adapted model.
    """

    def __init__(self, model: Module) -> None:
        prefix = _PREFIX.partition(".")[2]
        self.base_model = {
            f"{prefix}{name}.{part}": getattr(layer, part)
            for name, layer in adapters(model).items()
            for part in ("lora_A", "lora_B")
        }


def config(model: Module) -> dict[str, Any]:
    """What PEFT's adapter_config.json says of the model's LoRAs."""
    found = adapters(model)
    first = next(iter(found.values()))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": first.rank,
        "lora_alpha": first.alpha,
        "target_modules": sorted({name.rpartition(".")[2] for name in found}),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }


def load_state_dict(model: Module, state: Mapping[str, Any], about: Mapping[str, Any]) -> Module:
    """Adapt a model as an adapter's files say.

    Args:
        model: is changed.
        state: tensors by PEFT's names.
        about: what its adapter_config.json says.

    Returns:
        The model.

    Raises:
        ValueError: the adapter is of another kind, or of another model; the message says how.
    """
    kind, rank, alpha, targets = (
        about.get(name) for name in ("peft_type", "r", "lora_alpha", "target_modules")
    )
    if (
        kind != "LORA"
        or not isinstance(rank, int)
        or not isinstance(alpha, int | float)
        or not isinstance(targets, list)
    ):
        raise ValueError(
            f"wanted is a LoRA with its r, lora_alpha and target_modules, got {dict(about)}"
        )
    adapt(model, rank, float(alpha), targets)
    try:
        Adapter(model).load_state_dict(state)
    except ValueError as error:
        raise ValueError(f"this adapter is of another model: {error}") from None
    return model
