"""Pictures of networks at work; they need Matplotlib, which the extra `plot` brings."""

from palto.draw.boundary import decision_boundary
from palto.draw.curves import activations
from palto.draw.functions import approximation
