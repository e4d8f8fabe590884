"""What an adapter changes in ComfyUI's UNet."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ..lifelong_core.adapters.factors import Factors, low_rank_factors
from ..lifelong_core.backbone.keys import unet_diffusers_to_ldm
from ..lifelong_core.sharing.naming import layers
from ..lifelong_core.state import LifelongState


def unet_changes(state: LifelongState, adapter: Mapping[str, Tensor]) -> dict[str, Factors]:
    """ComfyUI's name of a linear layer of the UNet -> what an adapter of the state changes in it.

    Raises StateError for an adapter that changes other layers than those of its family.
    """
    found = low_rank_factors(state.adapter_spec, adapter, layers(state.family))
    names = unet_diffusers_to_ldm(state.family)
    return {
        names[f"{layer.removeprefix('unet.')}.weight"].removesuffix(".weight"): factors
        for layer, factors in found.items()
        if layer.startswith("unet.")
    }
