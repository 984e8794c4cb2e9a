"""File formats."""

from palto.formats import safetensors

__all__ = ["safetensors"]
