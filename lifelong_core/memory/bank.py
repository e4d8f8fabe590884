"""What a lesson replays: pictures of earlier concepts, drawn and chosen for it (L2DM, B_s)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..concepts import mentions
from ..errors import InputError, StateError
from ..files import content_hash

if TYPE_CHECKING:
    from ..state import LifelongState


@dataclass(frozen=True)
class ShortTermMemory:
    """B_s of L2DM's Algorithm 1. Made for one lesson, never kept in a state.

    images: [M, 3, H, W] in [0, 1]; prompts: one per picture, each with `embedding:<token>`.
    concepts: per picture the index of its concept in `LifelongState.concepts`.
    drawn_by: `drawer_hash` of the state whose model drew them; "" when nobody noted it.

    Raises InputError when these do not fit together, without pictures, and for broken ones.
    """

    images: Tensor
    prompts: tuple[str, ...]
    concepts: tuple[int, ...]
    drawn_by: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "images", self.images.detach().to("cpu", torch.float32, copy=True))
        object.__setattr__(self, "prompts", tuple(self.prompts))
        object.__setattr__(self, "concepts", tuple(self.concepts))
        if self.images.dim() != 4 or self.images.shape[1] != 3:
            raise InputError(
                f"A memory's pictures are {tuple(self.images.shape)}; expected [M, 3, H, W]."
            )
        count = len(self.images)
        if not count:
            raise InputError("A memory without pictures cannot be replayed; draw at least one.")
        if (len(self.prompts), len(self.concepts)) != (count, count):
            raise InputError(
                f"{count} remembered pictures came with {len(self.prompts)} prompts and "
                f"{len(self.concepts)} concepts; give one of each per picture."
            )
        if not bool(torch.isfinite(self.images).all()):
            raise InputError("Remembered pictures have values that are not finite; draw them anew.")
        if float(self.images.min()) < -1e-3 or float(self.images.max()) > 1.001:
            raise InputError("Remembered pictures have values outside of 0 to 1.")

    @property
    def content_hash(self) -> str:
        """Equal for equal pictures, prompts and concepts, on every machine."""
        return content_hash(self.images, self.prompts, self.concepts, self.drawn_by)

    def require_state(self, state: LifelongState) -> None:
        """Raise StateError unless these are memories of the concepts of `state`, drawn by it.

        A lesson replays what its own beginning can draw (register H4): pictures drawn by another
        state would teach that state's mistakes, or concepts that this one lacks.
        """
        if self.drawn_by and self.drawn_by != drawer_hash(state):
            raise StateError(
                "This memory bank was drawn by another state than the one that the lesson begins "
                "with. Draw it from the state that is given to the lesson."
            )
        known = state.concepts
        for prompt, index in zip(self.prompts, self.concepts, strict=True):
            if not 0 <= index < len(known):
                raise StateError(
                    f"This memory bank holds pictures of concept {index + 1}, but the state knows "
                    f"{len(known)}. Draw it from the state that is given to the lesson."
                )
            if not mentions(prompt, known[index].token):
                raise StateError(
                    f"The prompt {prompt!r} of a remembered picture does not name its concept: it "
                    f"needs 'embedding:{known[index].token}'. Draw the memory bank anew."
                )


def drawer_hash(state: LifelongState) -> str:
    """A name for all that the state draws with: base model, adapter, the tokens' vectors."""
    return content_hash(
        state.family, state.base_fingerprint, state.adapter_spec.to_json(), state.adapter,
        state.vectors,
    )  # fmt: skip
