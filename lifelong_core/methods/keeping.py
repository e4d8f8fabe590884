"""What methods are put together from that looks back at earlier lessons while a new one goes on."""

from __future__ import annotations

from ..adapters.frozen import settled_adapter, standing_in
from ..consolidation.context import concept_prompt
from ..consolidation.distill import check_teachers
from ..consolidation.stacking import stacked_state, summed_changes
from ..localized_words import earlier_prompts
from ..objectives import Term
from ..objectives.overlap import Overlap
from ..objectives.replay import Replay
from ..objectives.retention import Retention
from ..prompts import PromptCache, TextStack
from ..state import LifelongState
from ..training.lesson import Lesson
from ..training.priors import prior_prompt
from .parts import continue_adapter


def continue_to_distil(lesson: Lesson) -> None:
    """As `continue_adapter`, for methods that distil after the lesson.

    What would keep them from it is refused here, before the lesson.
    """
    check_teachers(lesson.settings.adapter, lesson.state.records if lesson.state else ())
    continue_adapter(lesson)


def retain_earlier(lesson: Lesson) -> Term | None:
    """L_LwF: under the prompts known before, answer on the new pictures as before."""
    state, backbone, settings = lesson.state, lesson.backbone, lesson.settings
    if state is None or not state.records:
        return None
    teacher = settled_adapter(state.adapter_spec, backbone, state.adapter)
    return Retention(
        teacher=lambda: standing_in(teacher, lesson.adapter, backbone),
        earlier=[concept_prompt(concept) for concept in state.concepts],
        noun=prior_prompt(lesson.task.noun),
        vectors=lesson.all_vectors,
        prompts=earlier_prompts(backbone.text, state, trains_encoder=settings.adapter.text_encoder),
        weight=settings.retention_weight,
        min_snr_gamma=settings.min_snr_gamma,
    )


def replay_earlier(lesson: Lesson) -> Term | None:
    """L_TAME's and L_ECD's terms on the remembered pictures, as one regression."""
    state, backbone, settings = lesson.state, lesson.backbone, lesson.settings
    if state is None or lesson.memory is None:
        return None
    teacher = settled_adapter(state.adapter_spec, backbone, state.adapter)
    own_prompts = None
    if settings.adapter.text_encoder:
        cache = PromptCache(backbone.text, trains_encoder=True)
        own_prompts = cache, state.vectors_on(backbone.device)
    return Replay(
        settings.replay_weight,
        settings.replay_teacher_weight,
        lambda: standing_in(teacher, lesson.adapter, backbone),
        settings.min_snr_gamma,
        own_prompts,
    )


def stack_adapter(lesson: Lesson) -> None:
    """A fresh adapter on top of the frozen ones of all lessons before."""
    if lesson.state is not None:
        lesson.adapter.rest_on(summed_changes(lesson.state, lesson.backbone))


def leave_changed_weights(lesson: Lesson) -> Term | None:
    """‖ |Σ_{i<n} A_i B_i| ⊙ A_n B_n ‖² of C-LoRA; the sum is formed once, here."""
    if lesson.state is None or not lesson.state.records:
        return None
    changes = summed_changes(lesson.state, lesson.backbone)
    magnitudes = {key: change.abs() for key, change in changes.items()}
    return Overlap(lesson.adapter, magnitudes, lesson.settings.overlap_weight)


def draw_stacked(state: LifelongState, _prompt: str, _text: TextStack) -> LifelongState:
    """The sum of all lessons' adapters, exactly, whatever the prompt."""
    return stacked_state(state)
