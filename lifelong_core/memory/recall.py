"""From what is remembered of past lessons to the pictures that the next one replays (Alg 1)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from ..adapters.spectrum import keep_spectrum
from ..backbone import Backbone
from ..errors import StateError
from ..files import check_writable
from ..state import LifelongState
from ..training.precision import check_precision
from ..training.progress import ProgressCallback
from .bank import ShortTermMemory, drawer_hash
from .candidates import DRAWN_AT_ONCE, Anchor, anchors_of, draw_candidates
from .features import FeatureModel, directions
from .long_term import LongTermMemory
from .selection import RANDOM, choose_best, choose_random, rainbow_scores
from .settings import MemorySettings

THUMBNAIL = 96

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recollection:
    """A lesson's memory, and what it was chosen from.

    anchors: the A remembered pictures; candidates of anchor i are numbers i·η … (i + 1)·η - 1.
    thumbnails: [K, 3, 96, 96] uint8 of all candidates; scores: [A, K] of Eq 5, of every candidate
    for every anchor, across concepts too; chosen: [A], the candidate kept for every anchor, in the
    order of `memory`.
    """

    memory: ShortTermMemory
    anchors: tuple[Anchor, ...]
    thumbnails: Tensor
    scores: Tensor
    chosen: Tensor


def recall(
    backbone: Backbone,
    state: LifelongState,
    features: FeatureModel,
    *,
    settings: MemorySettings | None = None,
    size: int,
    on_progress: ProgressCallback | None = None,
    workspace: Path | None = None,
) -> Recollection:
    """Draw candidates of every concept that `state` remembers, and choose what is replayed.

    size: side of the pictures, that of the next lesson's. workspace: folder that keeps what was
    drawn; cancelled drawing goes on there, and an unchanged state draws nothing twice.

    Raises StateError for another base model or feature model, and for a state that remembers
    nothing; InputError for settings that do not fit the base model, all before any work.
    """
    settings = settings or MemorySettings()
    memory = _memory_of(state, features)
    state.require_backbone(backbone)
    check_precision(backbone, settings.precision)
    if workspace is not None:
        check_writable(workspace)
    keep_spectrum(backbone, state.adapter_spec, workspace)
    anchors = anchors_of(state, memory, settings)
    latents = draw_candidates(
        backbone,
        state,
        anchors,
        settings,
        size=size,
        folder=workspace / "memories" if workspace else None,
        on_progress=on_progress,
    )
    seen = [_looked_at(backbone, features, part) for part in latents]
    scores, chosen = _choose(anchors, torch.cat([found for found, _ in seen]), settings)
    kept = torch.cat(latents)[chosen]
    drawn_for = [anchors[place] for place in (chosen // settings.candidates).tolist()]
    bank = ShortTermMemory(
        torch.cat([_decoded(backbone, part) for part in kept.split(DRAWN_AT_ONCE)]),
        tuple(anchor.prompt for anchor in drawn_for),
        tuple(anchor.concept for anchor in drawn_for),
        drawer_hash(state),
    )
    return Recollection(
        bank, tuple(anchors), torch.cat([small for _, small in seen]), scores, chosen
    )


def _memory_of(state: LifelongState, features: FeatureModel) -> LongTermMemory:
    memory = LongTermMemory.of(state)
    if memory is None:
        raise StateError(
            "This state remembers no lesson: its memory bank is empty. Learn with a method that "
            "replays, such as 'l2dm_lora', or with a feature model, so that lessons are remembered."
        )
    memory.require_model(features)
    lost = [known.token for known in state.concepts if known.token not in memory.concepts]
    if lost:
        logger.warning("Not remembered, so not replayed: %s.", ", ".join(lost))
    return memory


def _choose(
    anchors: Sequence[Anchor], candidates: Tensor, settings: MemorySettings
) -> tuple[Tensor, Tensor]:
    """Scores [A, K] and the chosen candidate of every anchor [A]."""
    remembered = torch.stack([anchor.feature for anchor in anchors])
    scores = rainbow_scores(candidates, remembered, settings.beta)
    concepts = torch.tensor([anchor.concept for anchor in anchors])
    of_candidates = concepts.repeat_interleave(settings.candidates)
    if settings.selection == RANDOM:
        return scores, choose_random(concepts, of_candidates, settings.seed)
    return scores, choose_best(scores, concepts, of_candidates)


def _looked_at(
    backbone: Backbone, features: FeatureModel, latents: Tensor
) -> tuple[Tensor, Tensor]:
    """Features [B, D] and thumbnails of latents; the pictures themselves are not kept."""
    found, small = [], []
    for part in latents.split(DRAWN_AT_ONCE):
        images = _decoded(backbone, part)
        found.append(directions(features, images))
        shrunk = F.interpolate(images, (THUMBNAIL, THUMBNAIL), mode="bilinear", antialias=True)
        small.append(shrunk.mul(255.0).round().clamp(0, 255).to(torch.uint8))
    return torch.cat(found), torch.cat(small)


@torch.no_grad()
def _decoded(backbone: Backbone, latents: Tensor) -> Tensor:
    return backbone.codec.decode(latents.to(backbone.device)).float().cpu()
