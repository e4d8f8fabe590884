"""Small sets of trained weights that change a frozen base model without writing to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .factors import Factors, low_rank_factors
from .key_value import KeyValueAdapter
from .layers import target_layers
from .lora import LoraAdapter
from .protocol import Adapter
from .spec import AdapterSpec
from .spectral import SpectralAdapter
from .spectrum import spectrum_of
from .vera import VeraAdapter

if TYPE_CHECKING:
    from ..backbone import Backbone

__all__ = [
    "Adapter",
    "AdapterSpec",
    "Factors",
    "KeyValueAdapter",
    "LoraAdapter",
    "SpectralAdapter",
    "VeraAdapter",
    "build_adapter",
    "low_rank_factors",
    "target_layers",
]


def build_adapter(spec: AdapterSpec, backbone: Backbone, *, seed: int) -> Adapter:
    """A fresh adapter of `spec.kind` for `backbone`, on its device; it changes nothing until it is
    trained. `seed` is for kinds that start at random (lora).

    Raises StateError when `spec` matches no layer of the model.
    """
    layers = target_layers(backbone, spec)
    if spec.kind == "vera":
        return VeraAdapter(spec, layers)
    if spec.kind == "key_value":
        return KeyValueAdapter(spec, layers)
    if spec.kind == "spectral":
        return SpectralAdapter(spec, layers, spectrum_of(backbone))
    return LoraAdapter(spec, layers, seed=seed)
