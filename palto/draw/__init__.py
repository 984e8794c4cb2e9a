"""Pictures of networks at work, by Matplotlib, which the extra `plot` brings; and videos."""

from palto.draw.batches import batch_study
from palto.draw.boundary import decision_boundary
from palto.draw.curves import activations
from palto.draw.driving import driving
from palto.draw.figure import new_figure, save
from palto.draw.functions import approximation
from palto.draw.graph import backprop, backprop_graph
from palto.draw.learning import learning_curves, learning_gain, time_against_accuracy
from palto.draw.sound import sound_page
from palto.draw.video import Video

__all__ = [
    "Video", "activations", "approximation", "backprop", "backprop_graph", "batch_study",
    "decision_boundary", "driving", "learning_curves", "learning_gain", "new_figure", "save",
    "sound_page", "time_against_accuracy",
]  # fmt: skip
