"""What `benchmarks.routing_speed` times of pictures with regions, and the ratios it records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.made_state import taught_with
from lifelong_core.attention.regions import Region, box_mask
from lifelong_core.automatic_sampling import generate_automatic
from lifelong_core.backbone import Backbone
from lifelong_core.regional_sampling import generate_regions
from lifelong_core.state import LifelongState

REGIONS = (1, 2, 3)
AUTOMATIC, PLACED = "automatic", 2
SIDE = 64


def regional_works(
    backbone: Backbone, state: LifelongState, steps: int
) -> dict[str, Callable[[], object]]:
    """One picture's latents with 1, 2 and 3 regions, each with a concept of its own by hard
    routing, and with automatic regions for two concepts; what is prepared for a prompt counts too.
    """
    known = taught_with(state, method="hard_routing")
    works = {f"regions_{count}": in_regions(backbone, known, steps, count) for count in REGIONS}
    prompt = f"a photo of {' and '.join(one.phrase for one in known.concepts[:PLACED])}"
    return works | {
        AUTOMATIC: lambda: generate_automatic(
            backbone, known, prompt, seed=0, steps=steps, as_latents=True
        )
    }


def in_regions(
    backbone: Backbone, state: LifelongState, steps: int, count: int
) -> Callable[[], object]:
    """`count` strips side by side, with the state's first concepts."""
    regions = [
        Region(
            f"a photo of {concept.phrase}", box_mask(k / count, 0, (k + 1) / count, 1, (SIDE,) * 2)
        )
        for k, concept in enumerate(state.concepts[:count])
    ]
    return lambda: generate_regions(
        backbone, state, "a photo", regions, seed=0, steps=steps, as_latents=True
    )


def regional_ratios(
    seconds: Mapping[str, Sequence[float]], plain: str
) -> dict[str, float | dict[int, float]]:
    """Medians over that of the case named `plain`, by the number of regions and for automatic."""
    base = median(seconds[plain])
    by_count = {count: round(median(seconds[f"regions_{count}"]) / base, 4) for count in REGIONS}
    return {
        "regions_over_plain": by_count,
        "automatic_over_plain": round(median(seconds[AUTOMATIC]) / base, 4),
    }
