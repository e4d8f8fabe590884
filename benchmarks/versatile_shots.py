"""Drawing from photos in several ways, from the same noise, and judging what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from benchmarks.versatile_cases import Case, EditCase, StyleCase
from lifelong_core.attention.regions import Region
from lifelong_core.backbone import Backbone
from lifelong_core.drawing import knowing
from lifelong_core.methods import drawing_state
from lifelong_core.picture_start import PictureStart
from lifelong_core.regional_sampling import generate_regions
from lifelong_core.sampling import generate
from lifelong_core.seeding import derive_seed
from lifelong_core.state import LifelongState
from lifelong_core.training.precision import autocast_dtype
from lifelong_core.word_routing import Known, prompted
from lifelong_core.world.judge import Judge

OURS, SAME_ADAPTER, PLAIN = "ours", "same_adapter", "plain"
WHOLE_PROMPT, CONCEPT_ALONE = "whole_prompt", "concept_alone"
OUTSIDE = "edit_outside_change"


@dataclass(frozen=True)
class Studio:
    """What all pictures share. pictures: made of every photo. seed: of the stream."""

    backbone: Backbone
    judge: Judge
    state: LifelongState
    pictures: int
    steps: int
    precision: str
    seed: int


@dataclass(frozen=True)
class Shot:
    """One way's pictures [P, 3, H, W] of one case, and the share of yes to every question."""

    way: str
    case: Case
    pictures: Tensor
    values: Mapping[str, float]


def style_shots(studio: Studio, case: StyleCase, strength: float) -> list[Shot]:
    """One photo drawn with the style's word, with its adapter but without the word, and by the
    base model. Without the word the adapter is heard everywhere, for no word is its own."""
    start = PictureStart(case.photo[None], strength)
    with prompted(studio.backbone, studio.state, case.prompt) as known:
        ours = _shot(studio, OURS, case, known, case.prompt, start)
    styled = drawing_state(studio.state, case.prompt, studio.backbone.text)
    with knowing(studio.backbone, styled) as vectors:
        unnamed = _shot(studio, SAME_ADAPTER, case, Known(vectors), case.plain, start)
    return [ours, unnamed, _shot(studio, PLAIN, case, Known(), case.plain, start)]


def edit_shots(studio: Studio, case: EditCase, strength: float) -> list[Shot]:
    """One photo with the concept painted into the mask: with its adapter and a prompt of both
    objects in the mask's region only, around it the base model and the plain nouns; with that
    prompt everywhere; with a prompt of the concept alone; and drawn anew as a whole."""
    everywhere = PictureStart(case.photo[None], strength)
    masked = replace(everywhere, mask=case.mask)
    ways = {
        WHOLE_PROMPT: (case.whole, masked),
        CONCEPT_ALONE: (case.prompt, masked),
        PLAIN: (case.whole, everywhere),
    }
    with prompted(studio.backbone, studio.state, case.prompt) as known:
        shots = [_shot(studio, way, case, known, *given) for way, given in ways.items()]
    latents = generate_regions(
        studio.backbone,
        studio.state,
        case.around,
        [Region(case.whole, case.mask)],
        seed=_noise(studio, case),
        count=studio.pictures,
        steps=studio.steps,
        start=masked,
        as_latents=True,
        autocast=autocast_dtype(studio.precision),
    )
    return [_judged(studio, OURS, case, latents), *shots]


def _shot(
    studio: Studio,
    way: str,
    case: Case,
    known: Known,
    prompt: str,
    start: PictureStart,
) -> Shot:
    latents = generate(
        studio.backbone,
        [prompt] * studio.pictures,
        seed=_noise(studio, case),
        steps=studio.steps,
        vectors=known.vectors,
        localized=known.localized,
        adapters=known.adapters,
        start=start,
        as_latents=True,
        autocast=autocast_dtype(studio.precision),
    )
    return _judged(studio, way, case, latents)


def _noise(studio: Studio, case: Case) -> int:
    """The seed of a case's pictures: the same in every way."""
    return derive_seed(studio.seed, "versatile", case.prompt)


def _judged(studio: Studio, way: str, case: Case, latents: Tensor) -> Shot:
    pictures = studio.backbone.codec.decode(latents.to(studio.backbone.device)).cpu()
    answers = case.answers(studio.judge, pictures)
    values = {name: sum(one[name] for one in answers) / len(answers) for name in answers[0]}
    if isinstance(case, EditCase):
        values[OUTSIDE] = outside_change(studio.backbone, case, latents)
    return Shot(way, case, pictures, values)


def outside_change(backbone: Backbone, case: EditCase, latents: Tensor) -> float:
    """The largest difference to the photo's latents where the mask covers nothing of a latent."""
    origin = PictureStart(case.photo[None], 1.0, case.mask).encode(backbone, len(latents))
    assert origin.mask is not None
    change = (latents - origin.latents.cpu()).abs()
    return float(change.masked_fill(origin.mask.cpu() > 0, 0).max())
