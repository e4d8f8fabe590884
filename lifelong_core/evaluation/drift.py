"""What learning did to pictures that name no concept."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .alignment import own_alignment
from .mmd import kid


@dataclass(frozen=True)
class Drift:
    """ta, ta_base: mean TA of concept-free prompts after learning, and of the base model, if known.
    kid: KID between the two models' pictures of the same prompts and noise; 0 without any drift.
    """

    ta: float | None
    ta_base: float | None
    kid: float


def base_drift(learned: Tensor, base: Tensor, texts: Tensor | None) -> Drift:
    """All [P, D]: features of both models' pictures, row by row from the same noise and prompt,
    and of the prompts unless the network reads none."""
    ta, ta_base = (
        None if texts is None else float(own_alignment(rows, texts).mean())
        for rows in (learned, base)
    )
    return Drift(
        ta=ta,
        ta_base=ta_base,
        kid=kid(learned, base, paired=True),
    )
