"""The noise levels that one sampling passes, from noise alone or from a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .backbone import NoiseSchedule
from .picture_start import Origin

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler


class Course:
    """DPM-Solver++(2M) over the last `steps` steps of a schedule: of all it has, or with an
    `origin` of those that its strength says. Use it once: the solver remembers its last step.

    timesteps: [steps] integers, high noise first.
    """

    def __init__(
        self, schedule: NoiseSchedule, steps: int, device: torch.device, origin: Origin | None
    ) -> None:
        self._origin = origin
        self._solver = solver(schedule)
        total = origin.schedule_steps(steps) if origin else steps
        self._solver.set_timesteps(total, device=device)
        self._solver.set_begin_index(total - steps)
        self._sigmas = self._solver.sigmas[-steps - 1 :].tolist()
        self.timesteps = self._solver.timesteps[-steps:]

    def begin(self, noise: Tensor) -> Tensor:
        """The latents [B, 4, h, w] before the first step."""
        return self._origin.begin(noise, self._sigmas[0]) if self._origin else noise

    def step(self, output: Tensor, index: int, latents: Tensor, noise: Tensor) -> Tensor:
        """The latents [B, 4, h, w] after step `index`, from the model's (guided) output at
        timesteps[index]; `noise` is that of the beginning."""
        after = self._solver.step(output, self.timesteps[index], latents, return_dict=False)[0]
        if self._origin:
            return self._origin.keep(after, noise, self._sigmas[index + 1])
        return after


def solver(schedule: NoiseSchedule) -> DPMSolverMultistepScheduler:
    """DPM-Solver++(2M) with Karras' noise levels for this schedule and prediction type."""
    # Late: it takes seconds, and ComfyUI loads this file whenever it starts.
    from diffusers import DPMSolverMultistepScheduler

    alphas = schedule.alphas_cumprod.double().cpu()
    before = torch.cat([alphas.new_ones(1), alphas[:-1]])
    return DPMSolverMultistepScheduler(
        num_train_timesteps=len(alphas),
        trained_betas=(1.0 - alphas / before).float().numpy(),
        prediction_type=schedule.prediction_type,
        use_karras_sigmas=True,
    )
