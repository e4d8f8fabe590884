"""Replay of real pictures (RPY of Dong et al. 2024): every lesson sees all earlier pictures again.

Breaks the rule that no pictures are kept, so it is no method of the table: a reference for how
little would be forgotten with them. Whoever calls it holds the pictures; the state never does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from ..backbone import Backbone
from ..concepts import ConceptTask
from ..errors import InputError
from ..lesson import LessonSettings
from ..memory import ShortTermMemory
from ..objectives import Denoising, Term
from ..objectives.replay import ROLE
from ..state import LifelongState
from ..training import ProgressCallback, Session
from ..training.lesson import finished_state, prepare_lesson, run_lesson
from .kept import kept_lesson
from .learning import check_lesson, lesson_key
from .parts import continue_adapter, denoise_concept, preserve_prior

METHOD = "replay_real"


def learn_with_real_replay(
    backbone: Backbone,
    tasks: Sequence[ConceptTask],
    *,
    state: LifelongState | None,
    settings: LessonSettings,
    on_progress: ProgressCallback | None = None,
    workspace: Path | None = None,
) -> LifelongState:
    """Learn the last of `tasks` after `state`, which has learned all others, with as many of their
    pictures in every batch as of the new concept's, and return the new state.

    L_D on both, mixed 1 : 1; earlier concepts are seen equally often. workspace: as for `learn`.

    Raises what `learn` raises, and InputError when `tasks` are not those of `state` and one more,
    or have pictures of different sizes.
    """
    *earlier, task = tasks
    _check_earlier(earlier, task, state)
    check_lesson(backbone, task, state, settings)
    settings = replace(settings, replay_batch_size=settings.batch_size)
    pictures = _pictures_of(earlier)
    key = lesson_key(backbone, task, state, METHOD, settings, pictures)

    def run(session: Session | None, priors: Path | None) -> LifelongState:
        lesson = prepare_lesson(backbone, task, settings, state, continue_adapter, pictures)
        terms: list[Term | None] = [denoise_concept(lesson), preserve_prior(lesson)]
        if pictures is not None:
            terms.append(Denoising(ROLE, ROLE, 1.0, settings.min_snr_gamma))
        result = run_lesson(
            lesson,
            [term for term in terms if term is not None],
            session=session,
            priors=priors,
            on_progress=on_progress,
        )
        return finished_state(lesson, METHOD, result)

    return kept_lesson(workspace, key, run)


def _check_earlier(
    earlier: Sequence[ConceptTask], task: ConceptTask, state: LifelongState | None
) -> None:
    known = [record.task_hash for record in state.records] if state is not None else []
    if [one.content_hash for one in earlier] != known:
        raise InputError(
            f"{len(earlier)} earlier tasks were given for a state of {len(known)} lessons; give "
            "exactly the tasks that it has learned, in their order, and the new one."
        )
    sizes = {tuple(one.images.shape[-2:]) for one in (*earlier, task)}
    if len(sizes) > 1:
        raise InputError("The tasks have pictures of different sizes; make all with one size.")


def _pictures_of(earlier: Sequence[ConceptTask]) -> ShortTermMemory | None:
    if not earlier:
        return None
    return ShortTermMemory(
        torch.cat([task.images for task in earlier]),
        tuple(caption for task in earlier for caption in task.captions),
        tuple(number for number, task in enumerate(earlier) for _ in task.captions),
    )
