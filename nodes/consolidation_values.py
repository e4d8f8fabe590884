"""From what ConsolidateEWC-DC's widgets hold to the library's phases and settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from ..lifelong_core.concepts import ConceptTask
from ..lifelong_core.consolidation import ConsolidationSettings, Phase
from ..lifelong_core.consolidation.distill import DistillPhase
from ..lifelong_core.consolidation.fisher import UpdateFisher
from ..lifelong_core.errors import StateError
from ..lifelong_core.state import LifelongState
from .lesson_values import lesson_task

PHASES: dict[str, tuple[type[DistillPhase] | type[UpdateFisher], ...]] = {
    "DSC, then Fisher": (DistillPhase, UpdateFisher),
    "Fisher only": (UpdateFisher,),
    "DSC only": (DistillPhase,),
}
"""The Fisher comes last: it is that of the weights that are kept."""


def chosen_phases(name: str, classifier_terms: bool) -> list[Phase]:
    """The phases of a choice of `PHASES`, with or without the diffusion classifier."""
    return [make(dc=classifier_terms) for make in PHASES[name]]


def newest_task(
    state: LifelongState, images: Sequence[Tensor], captions: Sequence[str] | None, *, size: int
) -> ConceptTask:
    """The input of the state's newest lesson, from its pictures and captions given again.

    size: for states of lessons that have not noted theirs. Raises StateError without a lesson and
    InputError for unusable pictures or captions.
    """
    if not state.records:
        raise StateError("This state has no lesson to consolidate; learn a concept first.")
    newest = state.records[-1]
    return lesson_task(
        newest.concept.token,
        newest.concept.noun,
        images,
        captions,
        size=int(newest.settings.get("size", size)),
    )


def consolidation_settings(
    defaults: ConsolidationSettings,
    *,
    seed: int = 0,
    subset: int = 5,
    delta: float = 0.5,
    gamma: float = 0.1,
    distillation_weight: float = 1.5,
    temperature: float = 1.0,
    distillation_iterations: int = 0,
    fisher_iterations: int = 0,
    teacher_temperature: float = 0.05,
    student_temperature: float = 1.0,
    learning_rate: float = 0.0,
    batch_size: int = 0,
    accumulation: int = 0,
    precision: str = "default",
    gradient_checkpointing: bool = False,
) -> ConsolidationSettings:
    """The widgets' values; `defaults` where a widget is at 0, off or "default".

    Workflows in API form may leave out widgets; then their defaults count.
    """
    chosen: dict[str, Any] = {
        "distillation_iterations": distillation_iterations,
        "fisher_iterations": fisher_iterations,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "accumulation": accumulation,
        "precision": precision,
        "gradient_checkpointing": gradient_checkpointing,
    }
    changed = {name: value for name, value in chosen.items() if value and value != "default"}
    return replace(
        defaults,
        seed=seed,
        subset=subset,
        delta=delta,
        gamma=gamma,
        distillation_weight=distillation_weight,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        student_temperature=student_temperature,
        **changed,
    )
