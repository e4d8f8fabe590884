"""What runs after a lesson, so that the concepts before it are kept.

A consolidation is a sequence of phases; the methods' table says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..adapters.spectrum import keep_spectrum
from ..backbone import Backbone
from ..concepts import ConceptTask
from ..errors import InputError, StateError
from ..files import check_writable, content_hash
from ..finished import finished_before, keep_finished
from ..memory import ShortTermMemory
from ..state import LifelongState
from ..training import ProgressCallback
from ..training.precision import check_precision
from .context import Consolidation, NoisyBatch, Phase, prepare
from .settings import ConsolidationSettings, consolidation_defaults

CODE_VERSION = 1
"""Raised when a change of code changes results: finished phases then count anew."""

__all__ = [
    "Consolidation",
    "ConsolidationSettings",
    "NoisyBatch",
    "Phase",
    "check_consolidation",
    "consolidate",
    "consolidation_defaults",
]


def consolidate(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState,
    *,
    phases: Sequence[Phase],
    settings: ConsolidationSettings | None = None,
    memory: ShortTermMemory | None = None,
    on_progress: ProgressCallback | None = None,
    workspace: Path | None = None,
) -> LifelongState:
    """The state after `phases`, run one after another on what the lesson `task` left in `state`.

    settings: by default the family's.
    memory: what the lesson replayed, for phases that look at it.
    workspace: folder that keeps finished phases, so that a cancelled consolidation goes on after
        the last one that ended.

    Raises what `check_consolidation` raises, before any work; FileError when the workspace cannot
    be written. `state` and `backbone` are unchanged in every case, also when `on_progress` cancels.
    """
    settings = settings or consolidation_defaults(backbone.family.name)
    check_consolidation(backbone, task, state, settings)
    if workspace is not None:
        check_writable(workspace)
    keep_spectrum(backbone, state.adapter_spec, workspace)
    work: Consolidation | None = None
    for phase in phases:
        finished = None
        if workspace is not None:
            key = phase_key(backbone, state, phase, settings, memory)
            finished = workspace / "consolidations" / f"{key}.lifelong.safetensors"
        known = finished_before(finished)
        if known is None:
            work = work or prepare(backbone, task, settings, state, memory)
            known = phase(work, state, on_progress)
            keep_finished(known, finished)
        state = known
    return state


def check_consolidation(
    backbone: Backbone, task: ConceptTask, state: LifelongState, settings: ConsolidationSettings
) -> None:
    """Raise StateError unless `state` has a lesson, learned on `backbone`; InputError unless
    `task` is its newest one and the precision fits the base model's weights.
    """
    if not state.records:
        raise StateError("This state has no lesson to consolidate; learn a concept first.")
    state.require_backbone(backbone)
    newest = state.records[-1]
    if newest.task_hash != task.content_hash:
        raise InputError(
            f"The pictures, captions or names given (token {task.token!r}) are not those of the "
            f"newest lesson ({newest.concept.token!r}). Give exactly what it was learned from."
        )
    check_precision(backbone, settings.precision)


def phase_key(
    backbone: Backbone,
    state: LifelongState,
    phase: Phase,
    settings: ConsolidationSettings,
    memory: ShortTermMemory | None = None,
) -> str:
    """A name for everything that a phase's result depends on; the newest lesson's pictures are
    in the state as their hash.

    The lessons' settings count beside the knowledge that they left, which may be equal: phases
    read them, and the result tells them.
    """
    replayed = () if memory is None else (memory.content_hash,)
    return content_hash(
        state.content_hash,
        [record.settings for record in state.records],
        phase.name,
        settings.to_json(),
        backbone.content_hash,
        __version__,
        CODE_VERSION,
        *replayed,
    )
