"""When the latent is moved, how far, and how long attend-and-excite refines."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import GuidanceSettings

LAST_SHARE = 0.5
"""What u falls to at the last step; the step size goes with sqrt(u)."""
NATIVE_CELL = 16
"""Latents under one position of the maps that the papers read."""
REFINEMENTS = ((0.0, 0.05), (0.2, 0.5), (0.4, 0.8))
"""Share of the steps at which attend-and-excite refines, and the least maximum of every subject's
map then: steps 0, 10 and 20 of 50."""


@dataclass(frozen=True)
class Step:
    """Step `index` (from 0) of `count` steps of sampling."""

    index: int
    count: int


def is_guided(step: Step, settings: GuidanceSettings) -> bool:
    """Whether the latent is moved at this step: steps 0 to 24 of 50 at a fraction of 0.5."""
    return settings.active and step.index < settings.guided_fraction * step.count


def step_size(step: Step, settings: GuidanceSettings) -> float:
    """alpha_t = step_size * sqrt(u), u on a line from 1 at the first step to 0.5 at the last."""
    share = step.index / max(step.count - 1, 1)
    return settings.step_size * math.sqrt(1 - (1 - LAST_SHARE) * share)


def refinement_target(step: Step, settings: GuidanceSettings) -> float | None:
    """The least maximum that attend-and-excite refines for at this step, None at most steps."""
    if not settings.attend_and_excite or not settings.refinement:
        return None
    targets = [least for at, least in REFINEMENTS if round(at * step.count) == step.index]
    return targets[-1] if targets else None


def cell_factor(latents: tuple[int, int], maps: tuple[int, int]) -> float:
    """What a step size is multiplied by for latents [H, W] and maps [h, w], given by their sides.

    A map's position answers to the mean of its n = H W / (h w) latents, each of which has 1 / n of
    its gradient. The papers have n = 16; a step moves positions as far as theirs when it grows
    with n: 1 for 16 x 16 of 64 x 64, 1 / 16 for the demo model.
    """
    return latents[0] * latents[1] / (maps[0] * maps[1]) / NATIVE_CELL


def k_diffusion_factor(sigma: float) -> float:
    """What a step size is multiplied by for k-diffusion's latents at noise level `sigma`.

    The papers move the variance-preserving z_t; k-diffusion and ComfyUI hold x = z sqrt(1 + s^2).
    By the chain rule dz = -a grad_z L is dx = -a (1 + s^2) grad_x L.
    """
    return 1.0 + sigma * sigma
