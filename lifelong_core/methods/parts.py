"""What the table of methods is put together from: where an adapter starts, terms of the loss, what
a method fixes in the settings, and what it draws with.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ..adapters.spec import TARGETS, AdapterSpec
from ..consolidation.merge import merged_state
from ..consolidation.routing import route
from ..lesson import LessonSettings, for_adapter
from ..objectives import Term, denoising, prior_preservation
from ..prompts import TextStack
from ..seeding import generator
from ..state import LifelongState
from ..training.lesson import Lesson


def as_given(settings: LessonSettings) -> LessonSettings:
    """The method fixes none of the settings."""
    return settings


def as_it_is(state: LifelongState, _prompt: str, _text: TextStack) -> LifelongState:
    """The state's adapter draws every prompt."""
    return state


def start_afresh(_lesson: Lesson) -> None:
    """Every lesson has an adapter of its own, which starts from nothing."""


def continue_adapter(lesson: Lesson) -> None:
    """Start from the adapter of the lesson before; a first lesson starts from nothing."""
    if lesson.state is not None:
        lesson.adapter.load(lesson.state.adapter)


def continue_with_identifier(lesson: Lesson) -> None:
    """The token gets a fixed meaningless vector of usual size, as DreamBooth's rare word has; the
    same in all layers.
    """
    continue_adapter(lesson)
    with torch.no_grad():
        for key, vectors in lesson.vectors.items():
            draw = generator(lesson.settings.seed, "identifier", lesson.task.token, key)
            noise = torch.randn(vectors.shape[-2:], generator=draw).to(vectors)
            vectors.copy_(noise * vectors.std())


def denoise_concept(lesson: Lesson) -> Term:
    """L_D on the concept's pictures."""
    return denoising(min_snr_gamma=lesson.settings.min_snr_gamma)


def draw_merged(state: LifelongState, _prompt: str, _text: TextStack) -> LifelongState:
    """The mean of all lessons' adapters, exactly, whatever the prompt."""
    return merged_state(state)[0]


def draw_routed(state: LifelongState, prompt: str, _text: TextStack) -> LifelongState:
    """The adapter of the concept that the prompt names."""
    return route(state, prompt)


def preserve_prior(lesson: Lesson) -> Term | None:
    """L_prior on the base model's pictures of the plain noun."""
    settings = lesson.settings
    if not settings.prior_count:
        return None
    return prior_preservation(settings.prior_weight, min_snr_gamma=settings.min_snr_gamma)


def dreambooth_settings(settings: LessonSettings) -> LessonSettings:
    """Rank 4 on all attention of the UNet and the text encoders; the identifier is not trained."""
    adapter = AdapterSpec(rank=4, alpha=4.0, targets=TARGETS, text_encoder=True)
    return replace(for_adapter(settings, adapter), token_learning_rate=0.0)


def custom_diffusion_settings(settings: LessonSettings) -> LessonSettings:
    """All of K and V of cross-attention."""
    return for_adapter(settings, AdapterSpec(kind="key_value"))


def svdiff_settings(settings: LessonSettings) -> LessonSettings:
    """Shifts of the singular values of all weights of the UNet, and of its norms."""
    return for_adapter(settings, AdapterSpec(kind="spectral"))


def all_priors(settings: LessonSettings) -> LessonSettings:
    """Prior preservation of the earlier concepts' nouns too, with a quarter of the pictures.

    L2DM: 200 of the new noun, 50 of every earlier one.
    """
    return replace(settings, earlier_prior_count=settings.prior_count // 4)


def l2dm_settings(settings: LessonSettings) -> LessonSettings:
    """SVDiff's shifts and all nouns' pictures."""
    return all_priors(svdiff_settings(settings))


def without_tame(settings: LessonSettings) -> LessonSettings:
    """Neither the remembered pictures as they are nor earlier nouns: only what they distil."""
    return replace(svdiff_settings(settings), replay_weight=0.0, earlier_prior_count=0)


def without_ecd(settings: LessonSettings) -> LessonSettings:
    """The remembered pictures as they are, without the model before the lesson as a teacher."""
    return replace(l2dm_settings(settings), replay_teacher_weight=0.0)


def textual_inversion_settings(settings: LessonSettings) -> LessonSettings:
    """Only the token is trained, which no picture of the plain noun can tell anything.

    It keeps its usual step size: 5e-4 to 5e-3 is what the method is made for.
    """
    return replace(settings, learning_rate=0.0, prior_count=0)
