"""Training: the loop, its measures, its checkpoints, its report, a study of the batch size."""

from palto.train.batches import BatchRow, BatchStudy, batch_study, gradient_noise_scale
from palto.train.checkpoint import Checkpoints
from palto.train.metrics import Classification, Evaluation, Regression
from palto.train.rounds import RoundTraining, Watch
from palto.train.trainer import Trainer, TrainingStopped
from palto.train.weights import load_weights, save_weights

__all__ = [
    "BatchRow", "BatchStudy", "Checkpoints", "Classification", "Evaluation", "Regression",
    "RoundTraining", "Trainer", "TrainingStopped", "Watch", "batch_study", "gradient_noise_scale",
    "load_weights", "save_weights",
]  # fmt: skip
