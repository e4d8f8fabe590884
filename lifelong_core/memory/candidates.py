"""Pictures of earlier concepts, drawn by the model as it was before the new lesson."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..backbone import Backbone
from ..concepts import Concept
from ..drawing import knowing
from ..files import content_hash
from ..finished import keep_latents, kept_latents
from ..localized_words import localized_concepts
from ..prompts import ConceptVectors
from ..sampling import generate
from ..seeding import derive_seed, generator
from ..state import LifelongState
from ..training.precision import autocast_dtype
from ..training.progress import Progress, ProgressCallback
from .bank import drawer_hash
from .long_term import LongTermMemory
from .settings import MemorySettings

DRAWN_AT_ONCE = 8
PHASE = "remembered pictures"


@dataclass(frozen=True)
class Anchor:
    """One remembered picture of a lesson, f_i and p_i of Eq 5.

    concept: index in `LifelongState.concepts`; number: which of the lesson's pictures.
    """

    concept: int
    token: str
    number: int
    feature: Tensor
    prompt: str


def anchors_of(
    state: LifelongState, memory: LongTermMemory, settings: MemorySettings
) -> list[Anchor]:
    """The remembered pictures to draw for, in the order of their lessons.

    With a limit, concepts are taken in an order that is drawn anew for every lesson, until
    `limit` pictures are reached; the last one may come with some of its pictures only.
    """
    anchors = [
        Anchor(index, concept.token, number, feature, prompt)
        for index, concept in enumerate(state.concepts)
        if concept.token in memory.concepts
        for number, (feature, prompt) in enumerate(
            zip(
                memory.concepts[concept.token].features,
                memory.concepts[concept.token].prompts,
                strict=True,
            )
        )
    ]
    most = settings.limit // settings.candidates if settings.limit else len(anchors)
    if len(anchors) <= most:
        return anchors
    draw = generator(settings.seed, "memory", "concepts", len(state.concepts))
    rank = torch.randperm(len(state.concepts), generator=draw).tolist()
    kept = sorted(anchors, key=lambda anchor: rank[anchor.concept])[:most]
    return sorted(kept, key=lambda anchor: (anchor.concept, anchor.number))


def draw_candidates(
    backbone: Backbone,
    state: LifelongState,
    anchors: Sequence[Anchor],
    settings: MemorySettings,
    *,
    size: int,
    folder: Path | None,
    on_progress: ProgressCallback | None,
) -> list[Tensor]:
    """For every anchor latents [η, 4, h, w], fp32 on the CPU, of pictures of its prompt.

    Every anchor's pictures are drawn together and, with `folder`, kept as soon as they are there:
    after a cancel only the rest is drawn, and none as long as the state draws as it does. What
    `on_progress` raises cancels.
    """
    known = content_hash(drawer_hash(state), backbone.content_hash)
    paths = [
        folder / f"{_key(backbone, known, anchor, settings, size)}.safetensors" if folder else None
        for anchor in anchors
    ]
    drawn: list[Tensor] = []
    localized = localized_concepts(state)
    with knowing(backbone, state) as vectors:
        for place, (anchor, path) in enumerate(zip(anchors, paths, strict=True)):
            latents = kept_latents(path, "remembered pictures")
            if latents is None:
                step = _step(on_progress, place, len(anchors))
                latents = _drawn(backbone, anchor, vectors, localized, settings, size, step)
                if path is not None:
                    keep_latents(path, latents)
            if on_progress is not None:
                on_progress(Progress(place + 1, len(anchors), {}, None, PHASE))
            drawn.append(latents)
    return drawn


def _drawn(
    backbone: Backbone,
    anchor: Anchor,
    vectors: dict[str, ConceptVectors],
    localized: Sequence[Concept],
    settings: MemorySettings,
    size: int,
    on_step: Callable[[], None] | None,
) -> Tensor:
    return generate(
        backbone,
        [anchor.prompt] * settings.candidates,
        seed=_seed(settings, anchor),
        steps=settings.steps,
        guidance=_guidance(backbone, settings),
        size=(size, size),
        vectors=vectors,
        localized=localized,
        batch_size=DRAWN_AT_ONCE,
        as_latents=True,
        autocast=autocast_dtype(settings.precision),
        on_progress=(lambda _done, _of: on_step()) if on_step else None,
    )


def _seed(settings: MemorySettings, anchor: Anchor) -> int:
    return derive_seed(settings.seed, "memory", anchor.token, anchor.number)


def _key(
    backbone: Backbone, known: str, anchor: Anchor, settings: MemorySettings, size: int
) -> str:
    """A name for everything that the pictures of an anchor depend on."""
    return content_hash(
        known,
        anchor.prompt,
        _seed(settings, anchor),
        settings.candidates,
        settings.steps,
        settings.precision,
        size,
        _guidance(backbone, settings),
    )


def _guidance(backbone: Backbone, settings: MemorySettings) -> float:
    """At least 1, which is none."""
    return max(1.0, settings.guidance * backbone.family.guidance)


def _step(on_progress: ProgressCallback | None, done: int, of: int) -> Callable[[], None] | None:
    """Tells `on_progress` between pictures that the drawing goes on, so that it can cancel."""
    if on_progress is None:
        return None
    beat = Progress(done, of, {}, None, PHASE)
    return lambda: on_progress(beat)
