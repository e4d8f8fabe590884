"""Lessons that each learn a LoRA of their own, in subspaces that suit those of earlier lessons."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..adapters.orthogonal_rows import lessons_apart, orthogonal_rows
from ..consolidation.merge import kept_adapters
from ..errors import InputError, StateError
from ..lesson import LessonSettings
from ..objectives import Term
from ..objectives.subspace import (
    Factors,
    LiteralOverlap,
    PullToOne,
    orthogonal_subspace,
    shared_subspace,
)
from ..training.lesson import Lesson

logger = logging.getLogger(__name__)


def lora_only(settings: LessonSettings) -> LessonSettings:
    """For methods that look at the two factors of a LoRA. Raises InputError for other kinds."""
    kind = settings.adapter.kind
    if kind != "lora":
        raise InputError(
            f"This method works on the two factors of a LoRA, which an adapter of kind {kind} does "
            "not have. Choose kind lora; or method 'lora_merge', which also keeps an adapter per "
            "lesson, of any kind."
        )
    return settings


def keep_apart(lesson: Lesson) -> Term | None:
    """γ1 R1: outputs of the lesson's LoRA are orthogonal to those of all earlier ones."""
    earlier, weight = _earlier(lesson, "up"), lesson.settings.orthogonality_weight
    if earlier is None or not weight:
        return None
    return orthogonal_subspace(own_factors(lesson, "up"), earlier, weight)


def share_inputs(lesson: Lesson) -> Term | None:
    """γ2 R2: the lesson's LoRA reads prompts along directions that all lessons share."""
    earlier, settings = _earlier(lesson, "down"), lesson.settings
    if earlier is None or not settings.shared_weight:
        return None
    own = own_factors(lesson, "down")
    return shared_subspace(own, earlier, settings.shared_rank, settings.shared_weight)


def keep_apart_as_printed(lesson: Lesson) -> Term | None:
    """R1 of the released code, without its counterweight: see `pull_to_one`."""
    earlier, weight = _earlier(lesson, "up"), lesson.settings.orthogonality_weight
    if earlier is None or not weight:
        return None
    return LiteralOverlap(own_factors(lesson, "up"), earlier, weight)


def pull_to_one(lesson: Lesson) -> Term | None:
    """What holds the released code's R1 off zero."""
    weight = lesson.settings.orthogonality_weight
    if _earlier(lesson, "up") is None or not weight:
        return None
    return PullToOne(own_factors(lesson, "up"), weight)


def start_in_own_rows(lesson: Lesson) -> None:
    """`down` is frozen to rows of the shared orthogonal basis that no earlier lesson has.

    When all rows are dealt out they are dealt again, and the log says so.
    """
    rank, state = lesson.settings.adapter.rank, lesson.state
    number = len(state.records) if state is not None else 0
    widths = {layer: down.shape[1] for layer, down in own_factors(lesson, "down").items()}
    rows = orthogonal_rows(widths, rank, number)
    if number == lessons_apart(widths, rank):
        logger.warning(
            "Rank %d leaves room for %d orthogonal lessons; from this one on, lessons share rows "
            "with earlier ones. A smaller rank leaves room for more.",
            rank,
            number,
        )
    with torch.no_grad():
        for layer, down in own_factors(lesson, "down").items():
            down.copy_(rows[layer])
            down.requires_grad_(False)


def own_factors(lesson: Lesson, part: str) -> Factors:
    """Layer -> that factor of the lesson's LoRA."""
    ending = f".{part}"
    return {
        name.removesuffix(ending): value
        for name, value in lesson.adapter.named_parameters().items()
        if name.endswith(ending)
    }


def _earlier(lesson: Lesson, part: str) -> dict[str, Tensor] | None:
    """Layer -> that factor of all earlier lessons [n, …], fp32; None in a first lesson.

    Raises StateError when one was not kept, or has other layers or sizes than the lesson's LoRA.
    """
    if lesson.state is None or not lesson.state.records:
        return None
    kept = kept_adapters(lesson.state)
    expected = _shapes(lesson.adapter.named_parameters())
    for record, weights in zip(lesson.state.records, kept, strict=True):
        found = _shapes(weights)
        different = sorted(name for name, _ in found.items() ^ expected.items())
        if different:
            name = different[0]
            raise StateError(
                f"The adapter of the lesson on {record.concept.token!r} has "
                f"{found.get(name, 'nothing')} as {name}, where this lesson has "
                f"{expected.get(name, 'nothing')}. Go on with the base model and the adapter "
                "settings that the state was learned with."
            )
    return {
        layer: torch.stack([weights[f"{layer}.{part}"].to(value) for weights in kept])
        for layer, value in own_factors(lesson, part).items()
    }


def _shapes(weights: Mapping[str, Tensor]) -> dict[str, str]:
    return {name: " x ".join(map(str, value.shape)) for name, value in weights.items()}
