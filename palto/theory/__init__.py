"""Theorems that run: what the theory promises, built and certified."""

from palto.theory.approximate import Approximation, approximate
from palto.theory.cells import certify
from palto.theory.superposition import Superposition
from palto.theory.target import NotCertifiedError

__all__ = ["Approximation", "NotCertifiedError", "Superposition", "approximate", "certify"]
