"""What is kept of past lessons (L2DM, B_l): features and prompts of their pictures, no picture.

In a state it is `extras["memory"]`, which holds tensors only: per concept `<token>/features` and
`<token>/prompts`, and `feature_model` for all. Texts are UTF-8 bytes (uint8), prompts as a JSON
list. So states keep their format, and software that knows nothing of memories carries them along.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..concepts import ConceptTask, mentions
from ..errors import StateError
from ..files import content_hash
from ..frozen import frozen_tensors
from .features import FeatureModel, directions

if TYPE_CHECKING:
    from ..state import LifelongState

GROUP = "memory"
MODEL, FEATURES, PROMPTS = "feature_model", "features", "prompts"
UNIT = 1e-3
"""How far a feature's length may be from one."""


@dataclass(frozen=True)
class ConceptMemory:
    """One concept: features [n, D] fp32 of length one of its real pictures, a prompt for each."""

    features: Tensor
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        features = frozen_tensors({FEATURES: self.features}, torch.float32)[FEATURES]
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "prompts", tuple(self.prompts))


@dataclass(frozen=True)
class LongTermMemory:
    """B_l of L2DM's Algorithm 1, by token, in the order of the lessons.

    base_fingerprint: of the base model that the lessons had; feature_model: fingerprint of the
    model that made the features. Never changes.

    Raises StateError for an empty memory, features that are not finite, not of length one or of
    different widths, and prompts that do not name their concept.
    """

    base_fingerprint: str
    feature_model: str
    concepts: Mapping[str, ConceptMemory]

    def __post_init__(self) -> None:
        object.__setattr__(self, "concepts", MappingProxyType(dict(self.concepts)))
        if not self.concepts:
            raise StateError("This memory bank is empty; remember at least one lesson in it.")
        widths = {_checked_width(token, known) for token, known in self.concepts.items()}
        if len(widths) > 1:
            raise StateError(
                f"The features of this memory bank have different widths ({sorted(widths)}); all "
                "must be made by one feature model."
            )

    @classmethod
    def of(cls, state: LifelongState) -> LongTermMemory | None:
        """What `state` remembers; None when no lesson was remembered. Raises StateError."""
        group = state.extras.get(GROUP)
        if group is None:
            return None
        try:
            ending = f"/{FEATURES}"
            tokens = [key.removesuffix(ending) for key in group if key.endswith(ending)]
            order = [concept.token for concept in state.concepts]
            concepts = {
                token: ConceptMemory(
                    group[f"{token}/{FEATURES}"], json.loads(_text(group[f"{token}/{PROMPTS}"]))
                )
                for token in sorted(tokens, key=order.index)
            }
            return cls(state.base_fingerprint, _text(group[MODEL]), concepts)
        except (KeyError, ValueError, TypeError) as error:
            raise StateError(
                f"The memory in this state does not fit together: {error}. Go back to an earlier "
                "state, or take its memory away with `forget`."
            ) from error

    @property
    def width(self) -> int:
        """D, the width of the features."""
        return next(iter(self.concepts.values())).features.shape[1]

    @property
    def content_hash(self) -> str:
        """Equal for equal memories, on every machine."""
        return content_hash(
            self.base_fingerprint,
            self.feature_model,
            [(token, m.features, m.prompts) for token, m in self.concepts.items()],
        )

    def require_model(self, model: FeatureModel) -> None:
        """Raise StateError unless `model` made these features."""
        if model.fingerprint != self.feature_model:
            raise StateError(
                f"This memory holds features of {self.feature_model}, but the feature model given "
                f"is {model.fingerprint}. Features of different models cannot be compared: use "
                "the one that the lessons were remembered with."
            )

    def joined(self, token: str, memory: ConceptMemory) -> LongTermMemory:
        """This memory and one concept more. Raises StateError for a token that is there already."""
        if token in self.concepts:
            raise StateError(f"The memory holds the concept {token!r} already.")
        return replace(self, concepts={**self.concepts, token: memory})


def memory_after(
    state: LifelongState | None, task: ConceptTask, model: FeatureModel, base_fingerprint: str
) -> LongTermMemory:
    """What `state` remembers, and features and captions of `task`, whether it is learned or not.

    base_fingerprint: of the base model. Raises StateError when the task is remembered already or
    the memories before are of another feature model, InputError when this one gives unusable
    features.
    """
    known = LongTermMemory.of(state) if state is not None else None
    if known is not None:
        known.require_model(model)
    fresh = ConceptMemory(directions(model, task.images), task.captions)
    if known is not None:
        return known.joined(task.token, fresh)
    return LongTermMemory(base_fingerprint, model.fingerprint, {task.token: fresh})


def remember(state: LifelongState, task: ConceptTask, model: FeatureModel) -> LifelongState:
    """`state` whose memory also holds features and captions of `task`, its newest lesson.

    Raises StateError when that is not its newest lesson, and what `memory_after` raises.
    """
    if not state.records or state.records[-1].task_hash != task.content_hash:
        raise StateError(
            f"The lesson of {task.token!r} is not the newest one of this state. Remember a lesson "
            "when it is finished, with the pictures it was learned from."
        )
    return with_memory(state, memory_after(state, task, model, state.base_fingerprint))


def with_memory(state: LifelongState, memory: LongTermMemory) -> LifelongState:
    """`state` with `memory` in place of its own, for example one from a file.

    Raises StateError when it is of another base model or of concepts that the state lacks.
    """
    if memory.base_fingerprint != state.base_fingerprint:
        raise StateError(
            f"This memory bank was filled on the base model {memory.base_fingerprint}, the state "
            f"was learned on {state.base_fingerprint}. Use the bank of this state."
        )
    unknown = sorted(set(memory.concepts) - {concept.token for concept in state.concepts})
    if unknown:
        raise StateError(
            f"This memory bank holds {', '.join(unknown)}, which the state has not learned. Use "
            "the bank of this state."
        )
    group = {MODEL: _bytes(memory.feature_model)}
    for token, known in memory.concepts.items():
        group[f"{token}/{FEATURES}"] = known.features
        group[f"{token}/{PROMPTS}"] = _bytes(json.dumps(known.prompts, ensure_ascii=False))
    return replace(state, extras={**state.extras, GROUP: group})


def forget(state: LifelongState) -> LifelongState:
    """`state` without its memory; what it can draw stays."""
    extras = {name: group for name, group in state.extras.items() if name != GROUP}
    return replace(state, extras=extras)


def _checked_width(token: str, memory: ConceptMemory) -> int:
    """The width of a concept's features, when they and the prompts can be used."""
    features, prompts = memory.features, memory.prompts
    if features.dim() != 2 or not features.numel() or len(features) != len(prompts):
        raise StateError(
            f"The memory of {token!r} has features {tuple(features.shape)} and {len(prompts)} "
            "prompts; expected one row and one prompt per picture, and at least one picture."
        )
    if not bool(torch.isfinite(features).all()):
        raise StateError(
            f"The memory of {token!r} has features that are not finite. Remember its lesson anew."
        )
    if bool(((features.norm(dim=1) - 1.0).abs() > UNIT).any()):
        raise StateError(f"The memory of {token!r} has features that are not of length one.")
    for prompt in prompts:
        if not mentions(prompt, token):
            raise StateError(
                f"The remembered prompt {prompt!r} has lost its concept: it must contain "
                f"'embedding:{token}'. Nothing could be redrawn from it."
            )
    return features.shape[1]


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


def _text(data: Tensor) -> str:
    return bytes(data.tolist()).decode()
