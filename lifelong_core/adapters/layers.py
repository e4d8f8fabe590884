"""Finding the layers of a base model that an adapter changes, and standing in for their forward.

A layer is adapted by giving the module object a `forward` of its own; the module's weights, hooks
and class stay untouched, and removing that attribute restores it bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import StateError
from .spec import AdapterSpec

if TYPE_CHECKING:
    from ..backbone import Backbone

Forward = Callable[..., Tensor]
Layer = Any
"""An nn.Linear; for spectral adapters also an nn.Conv2d, nn.GroupNorm or nn.LayerNorm."""
TEXT_TARGETS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")


def target_layers(backbone: Backbone, spec: AdapterSpec) -> dict[str, Layer]:
    """The layers of `backbone` that `spec` names, in module order.

    Keys: "unet.<module path>" and "text.<encoder key>.<module path>".
    Raises StateError when nothing matches.
    """
    if spec.kind == "spectral":
        return spectral_layers(backbone.unet)
    layers = _matching(backbone.unet, "unet", spec.targets)
    if spec.text_encoder:
        for key, encoder in backbone.text.modules.items():
            layers |= _matching(encoder, f"text.{key}", TEXT_TARGETS)
    if not layers:
        raise StateError(f"The base model has no layer for {spec.describe()}.")
    return layers


def spectral_layers(unet: nn.Module) -> dict[str, Layer]:
    """All linear and convolution layers and all norms of a UNet, named as `target_layers` does."""
    kinds = (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)
    return {
        f"unet.{path}": module for path, module in unet.named_modules() if isinstance(module, kinds)
    }


def _matching(root: nn.Module, prefix: str, endings: tuple[str, ...]) -> dict[str, Layer]:
    dotted = tuple(f".{ending}" for ending in endings)
    return {
        f"{prefix}.{path}": module
        for path, module in root.named_modules()
        if dotted and path.endswith(dotted) and isinstance(module, nn.Linear)
    }


class Attachment:
    """Replaced forwards of some modules, from construction until `remove`.

    Raises StateError, changing nothing, when one of the modules is adapted already.
    """

    def __init__(self, layers: Mapping[str, nn.Module], forwards: Mapping[str, Forward]) -> None:
        for key, module in layers.items():
            if "forward" in module.__dict__:
                raise StateError(
                    f"Layer {key} already has an adapter attached; detach that one first."
                )
        self._modules = list(layers.values())
        for key, module in layers.items():
            module.forward = forwards[key]

    def remove(self) -> None:
        """Give every module its class's forward back."""
        for module in self._modules:
            del module.forward
        self._modules = []


def base_forward(module: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    """What `module` computes without any adapter."""
    return type(module).forward(module, *args, **kwargs)


def computes_in_fp32(x: Tensor) -> bool:
    """Whether a matrix product with `x` runs in fp32: neither a half input nor autocast."""
    return x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
