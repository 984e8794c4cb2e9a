"""The steps in Palto and in PyTorch, from the same weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from workloads import Workload

import palto
from palto import nn, optim


class PaltoStep:
    """Palto's side: the step compiled."""

    def __init__(self, workload: Workload) -> None:
        self._batch: tuple[np.ndarray, ...] = workload.batch()
        self._trains = workload.trains
        model = palto_model(workload)
        if workload.trains:
            optimizer = optim.Adam(model, lr=1e-3, variant="pytorch")

            @palto.compile
            def step(inputs: Any, labels: Any) -> Any:
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()
                return loss

            self._step = step
        else:
            self._batch = self._batch[:1]
            model.eval()
            self._step = palto.compile(model)

    def __call__(self) -> float:
        """One step; the loss before it, or the first number that a forward pass gives."""
        found = self._step(*self._batch)
        return float(found if self._trains else found.numpy()[0, 0])

    def explain(self) -> Any:
        """What the step does, and how long each part of it takes."""
        return self._step.explain(*self._batch)


class TorchStep:
    """PyTorch's side in one of its ways, with the weights of Palto's model.

    Args:
        workload: what to compute.
        channels_last: hold images and kernels with their channels last.
        fused: Adam in one kernel.
        compiled: through torch.compile.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        channels_last: bool = False,
        fused: bool = False,
        compiled: bool = False,
    ) -> None:
        import torch

        model = (workload.torch_model or (lambda: workload.model(torch.nn)))()
        copy_weights(workload, model)
        inputs, labels = (torch.from_numpy(part) for part in workload.batch())
        if workload.images:
            inputs = inputs.permute(0, 3, 1, 2).contiguous()
        else:
            labels = labels.flatten()
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
            inputs = inputs.to(memory_format=torch.channels_last)
        forward = torch.compile(model) if compiled else model
        cross_entropy = torch.nn.functional.cross_entropy
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=fused)

        def train() -> float:
            optimizer.zero_grad()
            loss = cross_entropy(forward(inputs), labels)
            loss.backward()
            optimizer.step()
            return loss.item()

        @torch.inference_mode()
        def infer() -> float:
            return float(forward(inputs).numpy()[0, 0])

        model.train(workload.trains)
        self._step = train if workload.trains else infer

    def __call__(self) -> float:
        """One step; what `PaltoStep` tells of it."""
        return self._step()


def palto_model(workload: Workload) -> Any:
    """Palto's model with the weights that every side starts from."""
    palto.manual_seed(0)
    return workload.model(nn)


def copy_weights(workload: Workload, model: Any) -> None:
    """Palto's weights into PyTorch's model, whose parameters come in the same order."""
    import torch

    ours = [
        (layer, name, cell.numpy())
        for _, layer in palto_model(workload).named_modules()
        for name, cell in layer.own_cells()
        if isinstance(cell, nn.Parameter)
    ]
    flattened = workload.flattened
    for (layer, name, value), parameter in zip(ours, model.parameters(), strict=True):
        if isinstance(layer, nn.ConvTranspose2d) and name == "weight":
            value = value.transpose(2, 3, 0, 1)  # from (height, width, in, out)
        elif isinstance(layer, nn.Conv2d) and name == "weight":
            value = value.transpose(3, 2, 0, 1)
        elif isinstance(layer, nn.Linear) and name == "weight" and flattened is not None:
            height, width, channels = flattened
            assert value.shape[1] == math.prod(flattened)
            value = value.reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
            value, flattened = value.reshape(value.shape[0], -1), None
        if tuple(parameter.shape) != value.shape:
            raise ValueError(f"{workload.name}: {tuple(parameter.shape)} and {value.shape}")
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(np.array(value, order="C")))
