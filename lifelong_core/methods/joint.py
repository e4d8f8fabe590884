"""All concepts in one lesson: the upper bound of every method that keeps one adapter.

Not lifelong learning: all pictures must be there at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .. import __version__
from ..backbone import Backbone
from ..concepts import Concept, ConceptTask
from ..errors import InputError
from ..files import content_hash
from ..lesson import LessonSettings, defaults_for
from ..state import LifelongState, TaskRecord
from ..training import ParameterGroup, Pictures, ProgressCallback, Session
from ..training.lesson import (
    Lesson,
    lesson_pictures,
    loss_metrics,
    parameter_groups,
    prepare_lesson,
    train_adapter,
)
from .kept import kept_lesson
from .learning import CODE_VERSION, check_lesson
from .parts import denoise_concept, preserve_prior, start_afresh

METHOD = "joint"


def learn_joint(
    backbone: Backbone,
    tasks: Sequence[ConceptTask],
    *,
    settings: LessonSettings | None = None,
    on_progress: ProgressCallback | None = None,
    workspace: Path | None = None,
) -> LifelongState:
    """Learn all `tasks` at once, with one adapter and one token each, and return the state.

    settings: of a single lesson, by default the family's; n tasks take n times its steps, so that
        each concept is seen as often as in a lesson of its own.
    workspace: as for `learn`.

    The state has one record per task. Only the last one tells the losses, and none has an adapter
    of its own, which nobody learned.

    Raises what `learn` raises, and InputError without tasks, for two tasks with one token, and for
    pictures of different sizes.
    """
    settings = settings or defaults_for(backbone.family.name)
    _check(backbone, tasks, settings)
    settings = replace(settings, steps=len(tasks) * settings.steps)
    key = content_hash(
        METHOD, [task.content_hash for task in tasks], settings.to_json(),
        backbone.content_hash, __version__, CODE_VERSION,
    )  # fmt: skip

    def run(session: Session | None, priors: Path | None) -> LifelongState:
        return _learn(_lessons(backbone, tasks, settings), session, priors, on_progress)

    return kept_lesson(workspace, key, run)


def _check(backbone: Backbone, tasks: Sequence[ConceptTask], settings: LessonSettings) -> None:
    if not tasks:
        raise InputError("There is no task to learn; give at least one.")
    tokens = [task.token.casefold() for task in tasks]
    for task in tasks:
        check_lesson(backbone, task, None, settings)
        if tokens.count(task.token.casefold()) > 1:
            raise InputError(f"Two tasks have the token {task.token!r}; give each one of its own.")
    sizes = sorted({tuple(task.images.shape[-2:]) for task in tasks})
    if len(sizes) > 1:
        raise InputError(
            f"The tasks have pictures of different sizes, {sizes[0]} and {sizes[-1]}; make all "
            "tasks with one size."
        )


def _lessons(
    backbone: Backbone, tasks: Sequence[ConceptTask], settings: LessonSettings
) -> list[Lesson]:
    """A lesson per task, all with the adapter of the first."""
    lessons = [prepare_lesson(backbone, task, settings, None, start_afresh) for task in tasks]
    return [replace(lesson, adapter=lessons[0].adapter) for lesson in lessons]


def _learn(
    lessons: Sequence[Lesson],
    session: Session | None,
    priors: Path | None,
    on_progress: ProgressCallback | None,
) -> LifelongState:
    first = lessons[0]
    terms = [term for term in (denoise_concept(first), preserve_prior(first)) if term is not None]
    result = train_adapter(
        first,
        _pictures(lessons, priors, on_progress),
        {lesson.task.token: lesson.vectors for lesson in lessons},
        _groups(lessons),
        terms,
        localized={lesson.task.token: lesson.task.noun for lesson in lessons}
        if first.settings.localized_words
        else {},
        session=session,
        on_progress=on_progress,
    )
    told = {"method": METHOD, **first.settings.to_json()}
    records = [
        TaskRecord(
            Concept(lesson.task.token, lesson.task.noun, lesson.vectors),
            lesson.task.content_hash,
            adapter={},
            settings=told,
            metrics=loss_metrics(result) if lesson is lessons[-1] else {},
        )
        for lesson in lessons
    ]
    return LifelongState(
        first.backbone.family.name,
        first.backbone.fingerprint,
        first.settings.adapter,
        first.adapter.state(),
        tuple(records),
    )


def _pictures(
    lessons: Sequence[Lesson], priors: Path | None, on_progress: ProgressCallback | None
) -> list[Pictures]:
    """All lessons' pictures, joined by their role; those of a noun that several share once."""
    by_role: dict[str, list[Pictures]] = {}
    nouns: set[str] = set()
    for lesson in lessons:
        if lesson.task.noun in nouns:
            lesson = replace(lesson, settings=replace(lesson.settings, prior_count=0))
        nouns.add(lesson.task.noun)
        for source in lesson_pictures(lesson, priors, on_progress):
            by_role.setdefault(source.role, []).append(source)
    return [
        replace(
            parts[0],
            views=torch.cat([part.views for part in parts]),
            prompts=tuple(prompt for part in parts for prompt in part.prompts),
        )
        for parts in by_role.values()
    ]


def _groups(lessons: Sequence[Lesson]) -> list[ParameterGroup]:
    """The first lesson's groups, with the vectors of all tokens."""
    tokens = {
        f"{lesson.task.token}.{key}": value
        for lesson in lessons
        for key, value in lesson.vectors.items()
    }
    return [
        replace(group, parameters=tokens) if group.name == "token" else group
        for group in parameter_groups(lessons[0])
    ]
