"""Which calls of the model begin a step of ComfyUI's samplers: many call it more than once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..lifelong_core.attention import Step

SAME = 1e-4
"""Relative difference of two noise levels that are the same one."""

AHEAD = {
    "sample_heun": 1,
    "sample_heunpp2": 2,
    "sample_exp_heun_2_x0": 1,
    "sample_exp_heun_2_x0_sde": 1,
}
"""Samplers that try out the latents of so many later noise levels before they get there."""


TRIES_IN_EVERY_STEP = {
    "sample_dpm_2_ancestral",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_2s_ancestral_cfg_pp",
}
"""Samplers whose every second call is a trial. Its level depends on their noise: with the usual
amount it is the level of the next step, where the noise level alone does not tell them apart."""


def steps_of(sampler: Any, sigmas: Sequence[float]) -> SamplerSteps:
    """The steps of a run of one of ComfyUI's samplers."""
    name = getattr(getattr(sampler, "sampler_function", None), "__name__", "")
    return SamplerSteps(sigmas, AHEAD.get(name, 0), every_second=name in TRIES_IN_EVERY_STEP)


class SamplerSteps:
    """Tells the first call of every step from the others, by noise level alone, or, with
    `every_second`, by counting.

    A step begins where the model is called at a level of the schedule, for the first time or,
    where the sampler looks ahead, after so many trials. Calls between two levels are trials too,
    unless the sampler keeps to no schedule (dpm_fast, dpm_adaptive): then the first call between
    two levels begins the step.
    """

    def __init__(
        self, sigmas: Sequence[float], ahead: int = 0, *, every_second: bool = False
    ) -> None:
        self.sigmas = list(sigmas)
        self.ahead = ahead
        self.every_second = every_second
        self._count = 0
        self._calls: dict[int, int] = {}
        self._last = -1

    def begun(self, sigma: float) -> Step | None:
        """The step that a call of the model at this noise level begins, None if it begins none."""
        self._count += 1
        if self.every_second:
            step, trial = divmod(self._count - 1, 2)
            return None if trial else self._step(step)
        index = self._level(sigma)
        if index is None:
            return self._begun_between(sigma)
        self._calls[index] = self._calls.get(index, 0) + 1
        if self._calls[index] != min(index, self.ahead) + 1:
            return None
        return self._step(index)

    def _begun_between(self, sigma: float) -> Step | None:
        above = sum(level > sigma for level in self.sigmas) - 1
        keeps_to_schedule = any(index > 0 for index in self._calls)
        if keeps_to_schedule or above <= self._last:
            return None
        return self._step(above)

    def _step(self, index: int) -> Step:
        self._last = index
        return Step(index, len(self.sigmas) - 1)

    def _level(self, sigma: float) -> int | None:
        near = (i for i, level in enumerate(self.sigmas) if abs(sigma - level) <= SAME * level)
        return next(near, None)
