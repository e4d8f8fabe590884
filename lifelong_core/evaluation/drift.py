"""What learning did to pictures that name no concept."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .alignment import own_alignment
from .mmd import kid


@dataclass(frozen=True)
class Drift:
    """ta, ta_base: mean TA of concept-free prompts after learning, and of the base model.
    kid: KID between the two models' pictures of the same prompts and noise; 0 without any drift.
    """

    ta: float
    ta_base: float
    kid: float


def base_drift(learned: Tensor, base: Tensor, texts: Tensor) -> Drift:
    """All [P, D]: features of both models' pictures, row by row from the same noise and prompt,
    and of the prompts."""
    return Drift(
        ta=float(own_alignment(learned, texts).mean()),
        ta_base=float(own_alignment(base, texts).mean()),
        kid=kid(learned, base, paired=True),
    )
