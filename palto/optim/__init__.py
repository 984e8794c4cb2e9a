"""Optimisers: how gradients move parameters."""

from palto.optim import schedules
from palto.optim.adam import Adam, AdamW
from palto.optim.clipping import check_gradients, clip_grad_norm_, clip_grad_value_
from palto.optim.optimizer import Group, Optimizer
from palto.optim.sgd import SGD

__all__ = [
    "Adam",
    "AdamW",
    "Group",
    "Optimizer",
    "SGD",
    "check_gradients",
    "clip_grad_norm_",
    "clip_grad_value_",
    "schedules",
]
