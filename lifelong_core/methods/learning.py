"""Learning a concept by a method of the table: its lesson alone, or all of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from .. import __version__
from ..adapters.spectrum import keep_spectrum
from ..backbone import Backbone
from ..concepts import ConceptTask, check_new_token
from ..consolidation import ConsolidationSettings, consolidate, consolidation_defaults
from ..errors import FileError, InputError, TrainingError
from ..files import content_hash
from ..lesson import LessonSettings, defaults_for, for_adapter
from ..memory import FeatureModel, MemorySettings, ShortTermMemory, with_memory
from ..state import LifelongState, save_state
from ..training import ProgressCallback, Session
from ..training.lesson import Lesson, finished_state, prepare_lesson, run_lesson, unfinished_state
from ..training.precision import check_precision
from .kept import kept_lesson
from .records import check_follows
from .replaying import check_memory, draw_memory, lasting_memory
from .table import METHODS, Records

CODE_VERSION = 2
"""Raised when a change of code changes what a lesson learns: finished lessons then count anew."""


def learn(
    backbone: Backbone,
    task: ConceptTask,
    *,
    state: LifelongState | None = None,
    method: str = "lora",
    settings: LessonSettings | None = None,
    memory: ShortTermMemory | None = None,
    features: FeatureModel | None = None,
    on_progress: ProgressCallback | None = None,
    preview_every: int = 0,
    workspace: Path | None = None,
) -> LifelongState:
    """Learn one concept and return the state that knows it and everything in `state`.

    This is the method's lesson alone; `teach` also runs the phases that come after it.

    settings: by default the family's, with the adapter of `state`; what the method fixes is
        replaced in them.
    memory: pictures of earlier concepts, drawn by `state`, for methods that replay them; these
        need it from the second lesson on.
    features: the model by whose features the state remembers this lesson's pictures; by default
        the world CLIP for methods that replay, while others remember nothing.
    preview_every: steps between preview pictures in `on_progress`; 0 draws none.
    workspace: folder that keeps pictures of nouns, stopped lessons (they go on where they stopped,
        with the same bits) and finished lessons (the same lesson is then loaded, not learned).

    Raises InputError or StateError before any work for input that cannot be used, FileError when
    the workspace cannot be written, TrainingError when training breaks off (with a workspace, the
    weights of the last finite step are kept there as a state). `state` and `backbone` are
    unchanged in every case, also when `on_progress` cancels.
    """
    settings = lesson_settings(backbone, state, method, settings)
    check_follows(state, method)
    check_lesson(backbone, task, state, settings, preview_every)
    check_memory(task, state, method, memory)
    # Before the lesson, which would be lost if its pictures could not be remembered.
    remembered = lasting_memory(backbone, task, state, method, features)
    key = lesson_key(backbone, task, state, method, settings, memory)

    def run(session: Session | None, priors: Path | None) -> LifelongState:
        keep_spectrum(backbone, settings.adapter, workspace)
        chosen = METHODS[method]
        lesson = prepare_lesson(backbone, task, settings, state, chosen.start, memory)
        terms = [term for term in (make(lesson) for make in chosen.terms) if term is not None]
        try:
            result = run_lesson(
                lesson,
                terms,
                hooks=[make(lesson) for make in chosen.hooks],
                session=session,
                priors=priors,
                on_progress=on_progress,
                preview_every=preview_every,
            )
        except TrainingError as error:
            if workspace is None:
                raise
            path = workspace / "broken_off" / f"{task.token}-{key[:8]}.lifelong.safetensors"
            raise TrainingError(f"{error} {_rescue(lesson, method, path)}") from error
        learned = finished_state(lesson, method, result)
        if chosen.records is Records.WHOLE:
            return learned
        # What draws comes from the records, which round it; one adapter has one set of bits.
        return replace(learned, adapter=learned.records[-1].adapter)

    learned = kept_lesson(workspace, key, run)
    return learned if remembered is None else with_memory(learned, remembered)


def teach(
    backbone: Backbone,
    task: ConceptTask,
    *,
    state: LifelongState | None = None,
    method: str = "lora",
    settings: LessonSettings | None = None,
    consolidation: ConsolidationSettings | None = None,
    memory: MemorySettings | None = None,
    features: FeatureModel | None = None,
    on_progress: ProgressCallback | None = None,
    preview_every: int = 0,
    workspace: Path | None = None,
) -> LifelongState:
    """A whole task of the stream: what the method replays (`recall`), its lesson (`learn`), then
    its phases (`consolidate`).

    consolidation: by default the family's, with the lesson's precision and seed.
    memory: how pictures to replay are drawn, by default with the lesson's precision and seed; the
        method says how they are chosen.

    Raises what `recall`, `learn` and `consolidate` raise. Without a workspace, a cancelled or
    failed consolidation loses the lesson too.
    """
    settings = lesson_settings(backbone, state, method, settings)
    phases = METHODS[method].after
    if consolidation is None:
        consolidation = replace(
            consolidation_defaults(backbone.family.name),
            precision=settings.precision,
            seed=settings.seed,
        )
    if phases:
        check_precision(backbone, consolidation.precision)
    check_follows(state, method)
    check_lesson(backbone, task, state, settings, preview_every)
    replayed = draw_memory(
        backbone,
        task,
        state,
        method,
        memory or MemorySettings(precision=settings.precision, seed=settings.seed),
        features,
        on_progress=on_progress,
        workspace=workspace,
    )
    learned = learn(
        backbone,
        task,
        state=state,
        method=method,
        settings=settings,
        memory=replayed,
        features=features,
        on_progress=on_progress,
        preview_every=preview_every,
        workspace=workspace,
    )
    if not phases:
        return learned
    return consolidate(
        backbone,
        task,
        learned,
        phases=phases,
        settings=consolidation,
        memory=replayed,
        on_progress=on_progress,
        workspace=workspace,
    )


def lesson_key(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState | None,
    method: str,
    settings: LessonSettings,
    memory: ShortTermMemory | None = None,
) -> str:
    """A name for everything that a lesson's result depends on."""
    replayed = () if memory is None else (memory.content_hash,)
    return content_hash(
        task.content_hash,
        settings.to_json(),
        method,
        backbone.content_hash,
        state.content_hash if state is not None else None,
        __version__,
        CODE_VERSION,
        *replayed,
    )


def lesson_settings(
    backbone: Backbone,
    state: LifelongState | None,
    method: str,
    settings: LessonSettings | None = None,
) -> LessonSettings:
    """The settings that a lesson of `method` really has.

    Raises InputError for an unknown method, and for the text encoder with one that cannot train it.
    """
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}; choose from {', '.join(METHODS)}.")
    if settings is None:
        settings = defaults_for(backbone.family.name)
        if state is not None:
            settings = for_adapter(settings, state.adapter_spec)
    found = METHODS[method].settings(settings)
    if settings.adapter.text_encoder and not found.adapter.text_encoder:
        raise InputError(
            f"Method {method!r} trains {found.adapter.describe()}, not the text encoder. Leave the "
            "text encoder as it is, or choose a method that learns with a LoRA."
        )
    return found


def check_lesson(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState | None,
    settings: LessonSettings,
    preview_every: int = 0,
) -> None:
    """Everything that can be refused before any work is spent."""
    if preview_every < 0:
        raise InputError(f"preview_every must be 0 or more, not {preview_every}.")
    if not settings.learning_rate and not settings.token_learning_rate:
        raise InputError(
            "Nothing would be learned: raise learning_rate or token_learning_rate above 0."
        )
    if state is not None:
        state.require_backbone(backbone)
        state.require_adapter(settings.adapter)
    check_new_token(task.token, backbone.text, state)
    check_precision(backbone, settings.precision)
    vectors = dict(state.vectors) if state is not None else {}
    vectors[task.token] = backbone.text.noun_vector(task.noun)
    for caption in task.captions:
        backbone.text.tokenize(caption, vectors)  # names tokens that nobody knows


def _rescue(lesson: Lesson, method: str, path: Path) -> str:
    """Keep the weights of the last finite step, and say where they are."""
    try:
        save_state(unfinished_state(lesson, method), path)
    except FileError as failure:
        return f"They could not be written: {failure}"
    return f"The weights are in {path}, which can be loaded as a state."
