"""Inference in Palto, PyTorch and ONNX Runtime, in the same run.

    python benchmarks/inference.py --workload resnet20_1 alexnet_64 --threads 1 2 --seconds 10

A forward pass of a trained model (batch normalisation with statistics of its own) for one image,
whose latency counts, and for 64, in float32. Everything is measured as training is (`training.py`):
sides in processes of their own that take turns, each framework the fastest of its ways, the same
weights and the same outputs. PyTorch goes eager, channels last, through torch.compile, or as frozen
TorchScript; ONNX Runtime takes PyTorch's model with all of its optimisations.
"""

from __future__ import annotations

import training
from workloads import INFERENCE, INFERENCE_PEERS

if __name__ == "__main__":
    training.main("Inference in Palto and in its peers.", INFERENCE, (), INFERENCE_PEERS)
