"""Link types of this pack. ComfyUI matches them by their string."""

from __future__ import annotations

from comfy_api.latest import io

LIFELONG_STATE = "LIFELONG_STATE"

LifelongStateType = io.Custom(LIFELONG_STATE)

MEMORY_BANK = "MEMORY_BANK"

MemoryBankType = io.Custom(MEMORY_BANK)

REGIONS = "REGIONS"
"""A tuple of `PlacedRegion`."""

RegionsType = io.Custom(REGIONS)
