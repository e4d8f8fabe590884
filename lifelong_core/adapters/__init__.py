"""Small sets of trained weights that change a frozen base model without writing to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .layers import target_layers
from .lora import LoraAdapter
from .protocol import Adapter
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone

__all__ = ["Adapter", "AdapterSpec", "LoraAdapter", "build_adapter", "target_layers"]


def build_adapter(spec: AdapterSpec, backbone: Backbone, *, seed: int) -> Adapter:
    """A fresh adapter for `backbone`, on its device; it changes nothing until it is trained.

    Raises StateError when `spec` matches no layer of the model.
    """
    return LoraAdapter(spec, target_layers(backbone, spec), seed=seed)
