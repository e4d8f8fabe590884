"""The table of methods, and the calls that learn a concept with any of them.

Read this page first: a method is where the adapter starts, the terms of its loss, and the phases
that follow the lesson.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from . import __version__
from .backbone import Backbone
from .concepts import ConceptTask, check_new_token
from .consolidation import (
    ConsolidationSettings,
    Phase,
    consolidate,
    consolidation_defaults,
)
from .consolidation.constrained import ConstrainedMerge
from .consolidation.distill import DistillPhase
from .consolidation.fisher import UpdateFisher
from .consolidation.routing import route
from .elastic import hold_directions, hold_weights
from .errors import FileError, InputError, TrainingError
from .files import check_writable, content_hash
from .finished import finished_before
from .keeping import (
    continue_to_distil,
    draw_stacked,
    leave_changed_weights,
    retain_earlier,
    stack_adapter,
)
from .lesson import LessonSettings, defaults_for, for_adapter
from .objectives import Term
from .parts import (
    as_given,
    as_it_is,
    continue_adapter,
    continue_with_identifier,
    custom_diffusion_settings,
    denoise_concept,
    draw_merged,
    dreambooth_settings,
    preserve_prior,
    start_afresh,
    textual_inversion_settings,
)
from .state import LifelongState, save_state
from .training import ProgressCallback, Session
from .training.lesson import Lesson, finished_state, prepare_lesson, run_lesson, unfinished_state
from .training.precision import check_precision

CODE_VERSION = 1
"""Raised when a change of code changes what a lesson learns: finished lessons then count anew."""


@dataclass(frozen=True)
class Method:
    """A method of lifelong learning.

    start: puts the lesson's fresh adapter into its starting position.
    terms: each makes one term of the loss, or None where the settings leave it out.
    after: the phases that consolidate the lesson, in their order.
    settings: what the method fixes, whatever is asked for; a second time changes nothing more.
    draw_with: a state and a prompt -> the state whose adapter draws it, with all concepts; only
        for drawing and exporting where it is another one. See `drawing_state`.
    """

    title: str
    reference: str
    start: Callable[[Lesson], None]
    terms: tuple[Callable[[Lesson], Term | None], ...]
    after: tuple[Phase, ...] = ()
    settings: Callable[[LessonSettings], LessonSettings] = as_given
    draw_with: Callable[[LifelongState, str], LifelongState] = as_it_is


METHODS: dict[str, Method] = {
    "lora": Method(
        title="Sequential LoRA",
        reference="Hu et al. 2021; Ruiz et al. 2023 (prior preservation)",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior),
    ),
    "dreambooth_lora": Method(
        title="DreamBooth-LoRA",
        reference="Ruiz et al. 2023; Sun et al. 2024 (L2DM), section 4.2",
        start=continue_with_identifier,
        terms=(denoise_concept, preserve_prior),
        settings=dreambooth_settings,
    ),
    "custom_diffusion": Method(
        title="Custom Diffusion",
        reference="Kumari et al. 2023",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior),
        settings=custom_diffusion_settings,
    ),
    "custom_diffusion_merge": Method(
        title="Custom Diffusion, constrained merge",
        reference="Kumari et al. 2023, eq. 4 and 5",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        after=(ConstrainedMerge(),),
        settings=custom_diffusion_settings,
    ),
    "textual_inversion": Method(
        title="Textual Inversion",
        reference="Gal et al. 2023",
        start=continue_adapter,
        terms=(denoise_concept,),
        settings=textual_inversion_settings,
    ),
    "lwf": Method(
        title="Learning without Forgetting",
        reference="Li & Hoiem 2016, on the lesson's own pictures",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, retain_earlier),
    ),
    "c_lora": Method(
        title="C-LoRA",
        reference="Smith et al. 2023, eq. 3",
        start=stack_adapter,
        terms=(denoise_concept, preserve_prior, leave_changed_weights),
        draw_with=draw_stacked,
    ),
    "ewc": Method(
        title="EWC",
        reference="Kirkpatrick et al. 2017; Jha et al. 2025, Alg 4 without DSC and DC",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(),),
    ),
    "ewc_dc": Method(
        title="EWC DC",
        reference="Jha et al. 2025 (Mining your own secrets), Eq 5, Alg 4 without DSC",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(dc=True),),
    ),
    "ewc_rank1": Method(
        title="EWC, rank-one Fisher",
        reference="Rank-1 Fisher EWC, ICLR 2026, without its distillation",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_directions),
        after=(UpdateFisher(rank_one=True),),
    ),
    "dsc": Method(
        title="DSC",
        reference="Jha et al. 2025, Eq 6 without its scores, Alg 4 without EWC",
        start=continue_to_distil,
        terms=(denoise_concept, preserve_prior),
        after=(DistillPhase(dc=False),),
    ),
    "dsc_ewc": Method(
        title="DSC EWC",
        reference="Jha et al. 2025, Alg 4 without the scores of Eq 5 and Eq 6",
        start=continue_to_distil,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(DistillPhase(dc=False), UpdateFisher()),
    ),
    "dsc_ewc_dc": Method(
        title="DSC EWC DC",
        reference="Jha et al. 2025, Alg 4: Eq 5 and Eq 6",
        start=continue_to_distil,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(DistillPhase(), UpdateFisher(dc=True)),
    ),
    "custom_diffusion_ewc": Method(
        title="Custom Diffusion + EWC",
        reference="Kumari et al. 2023 with Kirkpatrick et al. 2017",
        start=continue_adapter,
        terms=(denoise_concept, preserve_prior, hold_weights),
        after=(UpdateFisher(),),
        settings=custom_diffusion_settings,
    ),
    "lora_merge": Method(
        title="LoRA merge",
        reference="Zhong et al. 2024 (equal weights)",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        draw_with=draw_merged,
    ),
    "hard_routing": Method(
        title="Hard routing by token (upper bound)",
        reference="Dong et al. 2024, eq. 3, with weights 0 and 1",
        start=start_afresh,
        terms=(denoise_concept, preserve_prior),
        draw_with=route,
    ),
}


def learn(
    backbone: Backbone,
    task: ConceptTask,
    *,
    state: LifelongState | None = None,
    method: str = "lora",
    settings: LessonSettings | None = None,
    on_progress: ProgressCallback | None = None,
    preview_every: int = 0,
    workspace: Path | None = None,
) -> LifelongState:
    """Learn one concept and return the state that knows it and everything in `state`.

    This is the method's lesson alone; `teach` also runs the phases that come after it.

    settings: by default the family's, with the adapter of `state`; what the method fixes is
        replaced in them.
    preview_every: steps between preview pictures in `on_progress`; 0 draws none.
    workspace: folder that keeps pictures of nouns, stopped lessons (they go on where they stopped,
        with the same bits) and finished lessons (the same lesson is then loaded, not learned).

    Raises InputError or StateError before any work for input that cannot be used, FileError when
    the workspace cannot be written, TrainingError when training breaks off (with a workspace, the
    weights of the last finite step are kept there as a state). `state` and `backbone` are
    unchanged in every case, also when `on_progress` cancels.
    """
    settings = lesson_settings(backbone, state, method, settings)
    check_lesson(backbone, task, state, settings, preview_every)
    key = lesson_key(backbone, task, state, method, settings)
    finished = workspace / "lessons" / f"{key}.lifelong.safetensors" if workspace else None
    known = finished_before(finished)
    if known is not None:
        return known
    if workspace is not None:
        check_writable(workspace)
    chosen = METHODS[method]
    lesson = prepare_lesson(backbone, task, settings, state, chosen.start)
    session = None
    if workspace is not None:
        session = Session(workspace / "sessions" / f"{key}.safetensors", key)
    terms = [term for term in (make(lesson) for make in chosen.terms) if term is not None]
    try:
        result = run_lesson(
            lesson,
            terms,
            session=session,
            priors=workspace / "priors" if workspace else None,
            on_progress=on_progress,
            preview_every=preview_every,
        )
    except TrainingError as error:
        if workspace is None:
            raise
        path = workspace / "broken_off" / f"{task.token}-{key[:8]}.lifelong.safetensors"
        raise TrainingError(f"{error} {_rescue(lesson, method, path)}") from error
    learned = finished_state(lesson, method, result)
    if finished is not None:
        save_state(learned, finished)
    if session is not None:
        session.remove()
    return learned


def teach(
    backbone: Backbone,
    task: ConceptTask,
    *,
    state: LifelongState | None = None,
    method: str = "lora",
    settings: LessonSettings | None = None,
    consolidation: ConsolidationSettings | None = None,
    on_progress: ProgressCallback | None = None,
    preview_every: int = 0,
    workspace: Path | None = None,
) -> LifelongState:
    """A whole task of the stream: the method's lesson (`learn`), then its phases (`consolidate`).

    consolidation: by default the family's, with the lesson's precision and seed.

    Raises what `learn` and `consolidate` raise. Without a workspace, a cancelled or failed
    consolidation loses the lesson too.
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
    learned = learn(
        backbone,
        task,
        state=state,
        method=method,
        settings=settings,
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
        on_progress=on_progress,
        workspace=workspace,
    )


def drawing_state(state: LifelongState, prompt: str) -> LifelongState:
    """The state to draw `prompt` with, as the method of the newest lesson says.

    For most methods `state` itself. Raises what the method's `draw_with` raises, for example
    StateError when hard routing needs an adapter that was not kept.
    """
    name = state.records[-1].settings.get("method") if state.records else None
    return METHODS[name].draw_with(state, prompt) if name in METHODS else state


def lesson_key(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState | None,
    method: str,
    settings: LessonSettings,
) -> str:
    """A name for everything that a lesson's result depends on."""
    return content_hash(
        task.content_hash,
        settings.to_json(),
        method,
        backbone.fingerprint,
        str(backbone.dtype),
        state.content_hash if state is not None else None,
        __version__,
        CODE_VERSION,
    )


def lesson_settings(
    backbone: Backbone,
    state: LifelongState | None,
    method: str,
    settings: LessonSettings | None = None,
) -> LessonSettings:
    """The settings that a lesson of `method` really has. InputError for an unknown method."""
    if method not in METHODS:
        raise InputError(f"Unknown method {method!r}; choose from {', '.join(METHODS)}.")
    if settings is None:
        settings = defaults_for(backbone.family.name)
        if state is not None:
            settings = for_adapter(settings, state.adapter_spec)
    return METHODS[method].settings(settings)


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
