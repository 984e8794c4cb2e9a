"""Theorems that run: what the theory promises, built and certified."""

from palto.theory.cells import certify
from palto.theory.superposition import Superposition
from palto.theory.target import NotCertifiedError
from palto.theory.universal import Approximation, approximate

__all__ = ["Approximation", "NotCertifiedError", "Superposition", "approximate", "certify"]
