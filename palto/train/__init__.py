"""Training: the loop, its measures, its checkpoints, its report."""

from palto.train.checkpoint import Checkpoints
from palto.train.metrics import Classification, Evaluation, Regression
from palto.train.trainer import Trainer, TrainingStopped

__all__ = [
    "Checkpoints", "Classification", "Evaluation", "Regression", "Trainer", "TrainingStopped",
]  # fmt: skip
