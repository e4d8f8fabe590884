"""What `benchmarks.routing_speed` times of prompts whose concepts are heard by words, and the
ratios it records."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

from benchmarks.made_state import taught_with
from lifelong_core.backbone import Backbone
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from lifelong_core.word_routing import prompted

ACTIVE = (1, 2, 4, 8)
"""Concepts that a prompt names."""


def word_works(
    backbone: Backbone, state: LifelongState, steps: int
) -> dict[str, Callable[[], object]]:
    """One picture's latents of a prompt that names some of the state's concepts, each adapter heard
    in its own concept's words; what is prepared for a prompt counts too."""
    known = taught_with(state, method="cidm", localized_words=True)
    return {f"by_words_{count}": _named(backbone, known, steps, count) for count in ACTIVE}


def _named(
    backbone: Backbone, state: LifelongState, steps: int, count: int
) -> Callable[[], object]:
    prompt = f"a photo of {' and '.join(one.phrase for one in state.concepts[:count])}"

    def draw() -> None:
        with prompted(backbone, state, prompt) as known:
            generate(
                backbone, [prompt], seed=0, steps=steps, vectors=known.vectors,
                localized=known.localized, as_latents=True,
            )  # fmt: skip

    return draw


def word_ratios(drawing: Mapping[str, Sequence[float]], plain: str) -> dict[str, dict[int, float]]:
    """`by_words_over_plain`, by the number of concepts that are named."""
    base = median(drawing[plain])
    found = {count: median(drawing[f"by_words_{count}"]) for count in ACTIVE}
    return {"by_words_over_plain": {count: round(took / base, 4) for count, took in found.items()}}
