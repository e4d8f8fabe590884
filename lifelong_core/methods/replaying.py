"""Methods that replay: the memory that their lessons need, and what those leave in it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ..backbone import Backbone
from ..concepts import ConceptTask
from ..errors import InputError
from ..memory import (
    FeatureModel,
    LongTermMemory,
    MemorySettings,
    ShortTermMemory,
    memory_after,
    recall,
    world_features,
)
from ..state import LifelongState
from ..training import ProgressCallback
from .lesson_kinds import LESSON_METHODS
from .table import METHODS, Records

logger = logging.getLogger(__name__)


def usual_features(state: LifelongState | None, method: str) -> FeatureModel | None:
    """What a lesson after `state` is remembered by unless asked otherwise: the world CLIP, so that
    a later lesson can replay this one.

    None for methods whose lessons each leave an adapter of their own, and where the lessons before
    are remembered by another model, which a warning names. Raises ModelError when the world CLIP's
    weights are missing, StateError for a memory that does not fit together.
    """
    if METHODS[method].records is not Records.WHOLE:
        return None
    features = world_features()
    known = LongTermMemory.of(state) if state is not None else None
    if known is not None and known.feature_model != features.fingerprint:
        logger.warning(
            "The lessons before are remembered by %s, which is not given here: this one is not "
            "remembered, and no later lesson can replay it.",
            known.feature_model,
        )
        return None
    return features


def lasting_memory(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState | None,
    method: str,
    features: FeatureModel | None,
) -> LongTermMemory | None:
    """What is remembered after the lesson of `task`, by `features` if given, by the world CLIP for
    methods that replay; None for others, whose lessons are not remembered.

    Raises InputError for methods whose lessons each leave an adapter of their own: no one model
    could redraw them all. Raises what `memory_after` raises.
    """
    if features is not None and METHODS[method].records is not Records.WHOLE:
        raise InputError(
            f"Lessons of method {method!r} cannot be recalled: its adapters each hold "
            f"{METHODS[method].records.value}. Leave the feature model out, or choose a method "
            "with one adapter for all."
        )
    if features is None and METHODS[method].replays is not None:
        features = world_features()
    if features is None:
        return None
    return memory_after(state, task, features, backbone.fingerprint)


def draw_memory(
    backbone: Backbone,
    task: ConceptTask,
    state: LifelongState | None,
    method: str,
    settings: MemorySettings,
    features: FeatureModel | None,
    *,
    on_progress: ProgressCallback | None,
    workspace: Path | None,
) -> ShortTermMemory | None:
    """What the lesson of `task` replays, chosen as `method` says; None for a first lesson and for
    methods that replay nothing. Raises what `recall` raises.
    """
    selection = METHODS[method].replays
    if selection is None or state is None or not state.records:
        return None
    recollection = recall(
        backbone,
        state,
        features or world_features(),
        settings=replace(settings, selection=selection),
        size=task.images.shape[-1],
        on_progress=on_progress,
        workspace=workspace,
    )
    return recollection.memory


def check_memory(
    task: ConceptTask, state: LifelongState | None, method: str, memory: ShortTermMemory | None
) -> None:
    """Raise InputError when a method that replays has no memory of earlier concepts, or another
    one has some, or its pictures are of another size than the lesson's; StateError when the memory
    is not of `state`.
    """
    replays = METHODS[method].replays is not None
    later = state is not None and bool(state.records)
    if memory is None:
        if replays and later:
            raise InputError(
                f"Method {method!r} replays pictures of the concepts before, and none were given: "
                "draw a memory bank from the state (in ComfyUI: the node Rainbow Memory Bank). "
                "Only a first lesson needs none."
            )
        return
    if not replays:
        replaying = " or ".join(repr(name) for name in LESSON_METHODS if METHODS[name].replays)
        raise InputError(
            f"Method {method!r} replays no pictures, so a memory bank would change nothing. Leave "
            f"it out, or choose a method that replays: {replaying}."
        )
    if state is None or not later:
        raise InputError("A memory bank was given for a first lesson, which has nothing to recall.")
    memory.require_state(state)
    if memory.images.shape[-2:] != task.images.shape[-2:]:
        height, width = memory.images.shape[-2:]
        raise InputError(
            f"The memory bank's pictures have {width} x {height} pixels, the lesson's "
            f"{task.images.shape[-1]} x {task.images.shape[-2]}. Draw the bank in that size."
        )
