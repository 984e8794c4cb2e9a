"""The steps in Palto, PyTorch and ONNX Runtime, from the same weights.

    python benchmarks/steps.py resnet20_1 resnet20.onnx

writes PyTorch's model of a workload as a file for ONNX Runtime.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from workloads import WORKLOADS, Workload

import palto
from palto import nn, optim
from palto.compiler.executor import Executor


class PaltoStep:
    """Palto's side: the step compiled.

    Args:
        workload: what to compute.
        executor: who runs it; by default what `PALTO_EXECUTOR` says.
        examples: how many of a batch; of several processes that share one, in each.
    """

    def __init__(
        self, workload: Workload, executor: Executor | None = None, examples: int | None = None
    ) -> None:
        self._batch: tuple[Any, ...] = tuple(x[:examples] for x in workload.batch())
        if executor is not None:
            self._batch = tuple(executor.whole(palto.asarray(x)) for x in self._batch)
        self._trains = workload.trains
        model = palto_model(workload)
        if workload.trains:
            optimizer = optim.Adam(model, lr=1e-3, variant="pytorch")

            def step(inputs: Any, labels: Any) -> Any:
                loss = nn.functional.cross_entropy(model(inputs), labels)
                loss.backward()
                optimizer.step()
                return loss

            self._step = palto.compile(step, executor=executor)
        else:
            self._batch = self._batch[:1]
            model.eval()
            self._step = palto.compile(model, executor=executor)

    def __call__(self) -> float:
        """One step; the loss before it, or the first number that a forward pass gives."""
        found = self._step(*self._batch)
        return float(found if self._trains else found.numpy()[0, 0])

    def outputs(self) -> np.ndarray:
        """All that a forward pass gives."""
        return self._step(*self._batch).numpy()

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
        frozen: as TorchScript, frozen and optimised for inference.
    """

    def __init__(
        self,
        workload: Workload,
        *,
        channels_last: bool = False,
        fused: bool = False,
        compiled: bool = False,
        frozen: bool = False,
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
        model.train(workload.trains)
        forward = torch.compile(model) if compiled else model
        if frozen:
            with torch.inference_mode():
                forward = torch.jit.freeze(torch.jit.trace(model, inputs))
                forward = torch.jit.optimize_for_inference(forward)
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

        self._step = train if workload.trains else infer
        self._forward = torch.inference_mode()(lambda: forward(inputs).numpy())

    def __call__(self) -> float:
        """One step; what `PaltoStep` tells of it."""
        return self._step()

    def outputs(self) -> np.ndarray:
        """All that a forward pass gives."""
        return self._forward()


class OnnxStep:
    """ONNX Runtime's side: PyTorch's model, exported and optimised."""

    def __init__(self, workload: Workload, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            # In a process of its own, whose memory is not this side's.
            subprocess.run([sys.executable, __file__, workload.name, str(path)], check=True)
            session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        inputs = workload.batch()[0]
        if workload.images:
            inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2))
        given = {session.get_inputs()[0].name: inputs}
        self.outputs = lambda: session.run(None, given)[0]

    def __call__(self) -> float:
        """One step; what `PaltoStep` tells of it."""
        return float(self.outputs()[0, 0])


def export(workload: Workload, path: Path) -> None:
    """Write PyTorch's model for ONNX Runtime."""
    import torch

    model = (workload.torch_model or (lambda: workload.model(torch.nn)))()
    copy_weights(workload, model)
    inputs = torch.from_numpy(workload.batch()[0])
    if workload.images:
        inputs = inputs.permute(0, 3, 1, 2).contiguous()
    torch.onnx.export(model.eval(), (inputs,), str(path), dynamo=True, external_data=False)


def palto_model(workload: Workload) -> Any:
    """Palto's model with the weights that every side starts from."""
    palto.manual_seed(0)
    model = workload.model(nn)
    if not workload.trains:  # as if it had been trained
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                for cell, low in ((layer.running_mean, -0.5), (layer.running_var, 0.5),
                                  (layer.weight, 0.5), (layer.bias, -0.5)):  # fmt: skip
                    cell.assign(palto.random.uniform(cell.shape, low, low + 1))
    return model


def copy_weights(workload: Workload, model: Any) -> None:
    """Palto's weights into PyTorch's model, whose parameters and buffers come in the same order."""
    import torch

    cells = [
        (layer, name, cell)
        for _, layer in palto_model(workload).named_modules()
        for name, cell in layer.own_cells()
    ]
    ours = [x for x in cells if isinstance(x[2], nn.Parameter)]
    others = [x for x in cells if isinstance(x[2], nn.Buffer)]
    flattened = workload.flattened
    for (layer, name, cell), parameter in zip(
        [*ours, *others], [*model.parameters(), *model.buffers()], strict=True
    ):
        value = cell.numpy()
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


if __name__ == "__main__":
    export(WORKLOADS[sys.argv[1]], Path(sys.argv[2]))
