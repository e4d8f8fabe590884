"""What guidance is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import InputError


@dataclass(frozen=True)
class GuidanceSettings:
    """Weights of the losses, and how the latent follows their gradient.

    caa: weight of the concept attention artist, CLUL + DAL (L2DM, Eq 8 and 9). oaa: of the
    orthogonal attention artist (Eq 11). attend_and_excite: of attend-and-excite's loss (Chefer et
    al. 2023). A weight of 0 leaves a loss out; with all three at 0 nothing is computed at all.

    guided_fraction: share of the steps, from the first, in which the latent is moved. step_size:
    alpha at the first step, for maps of 16 x 16 of 64 x 64 latents (`schedule.cell_factor`); it
    falls with the square root of a line from 1 to 0.5. threshold:
    share of its highest value above which a noun's map counts as its region (Eq 10). refinement:
    most extra moves at a step where attend-and-excite refines until a maximum is reached; the
    other losses do not refine. literal: Eq 11 as printed, which mostly raises the concept's
    attention everywhere, in place of the form that its words describe.

    Raises InputError for values out of range.
    """

    caa: float = 0.0
    oaa: float = 0.0
    attend_and_excite: float = 0.0
    guided_fraction: float = 0.5
    step_size: float = 20.0
    threshold: float = 0.4
    refinement: int = 20
    literal: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not math.isfinite(value) or value < 0:
                raise InputError(f"{field.name} must be a number from 0; it is {value}.")
        if self.guided_fraction > 1:
            raise InputError(f"guided_fraction is a share up to 1; it is {self.guided_fraction}.")
        if self.threshold >= 1:  # Nothing is above the highest value.
            raise InputError(f"threshold is a share of less than 1; it is {self.threshold}.")

    @property
    def active(self) -> bool:
        """Whether there is anything to compute."""
        return self.guided_fraction > 0 and self.step_size > 0 and any(self.weights)

    @property
    def weights(self) -> tuple[float, float, float]:
        """Weights of CAA, OAA and attend-and-excite."""
        return self.caa, self.oaa, self.attend_and_excite
