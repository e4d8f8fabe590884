"""Small sets of trained weights that change a frozen base model without writing to it."""

from .spec import AdapterSpec

__all__ = ["AdapterSpec"]
