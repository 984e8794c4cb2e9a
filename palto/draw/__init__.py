"""Pictures of networks at work; they need Matplotlib, which the extra `plot` brings."""

from palto.draw.activations import activations
from palto.draw.approximation import approximation
from palto.draw.boundary import decision_boundary
