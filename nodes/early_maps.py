"""Attention maps of a picture that one of ComfyUI's samplers has only begun."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ..lifelong_core.attention.regions import delayed_steps
from .attention_capture import Slot
from .guidance import branch_of, first_active
from .sampler_steps import SamplerSteps, steps_of

KEY = "lifelong_early_maps"


class _Read(BaseException):
    """Ends a sampling run whose maps are there. No `except Exception` on the way may catch it."""


class EarlyMaps:
    """A SAMPLER_SAMPLE wrapper: a run as it would be, with the sampler's whole schedule, that ends
    where the step after `share` of its steps begins.

    maps: [pictures, positions, tokens] of the positive prompt, averaged over `slots`, at the
    latents that are there then, and `size` their (h, w); None before such a run.
    """

    def __init__(self, slots: tuple[Slot, ...], share: float) -> None:
        self.slots = slots
        self.share = share
        self.maps: Tensor | None = None
        self.size = (0, 0)

    def __call__(
        self,
        executor: Any,
        guider: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        *args: Any,
        **options: Any,
    ) -> Tensor:
        begun = delayed_steps(self.share, len(sigmas) - 1)
        reading = _Reading(self, steps_of(executor.class_obj, sigmas.tolist()), begun)
        # These options are the run's own copy of the model's.
        add_wrapper_with_key(
            WrappersMP.PREDICT_NOISE, KEY, reading, guider.model_options, is_model_options=True
        )
        try:
            return executor(guider, sigmas, extra_args, callback, noise, *args, **options)
        except _Read:
            return noise  # Nobody looks at it; what comes after a run is done as ever.


class _Reading:
    """A PREDICT_NOISE wrapper: reads the maps where step `begun` begins, and ends the run."""

    def __init__(self, found: EarlyMaps, steps: SamplerSteps, begun: int) -> None:
        self.found = found
        self.steps = steps
        self.begun = begun

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        guider = executor.class_obj
        step = self.steps.begun(float(timestep.flatten()[0]))
        begins = step is not None and step.index >= self.begun
        active = first_active(guider.conds["positive"], x, timestep) if begins else None
        if active is None:
            return executor(x, timestep, model_options, seed)
        branch = branch_of(guider, active[0], timestep, model_options, self.found.slots)
        with torch.no_grad():
            branch(x, self._keep)
        raise _Read

    def _keep(self, maps: Tensor, size: tuple[int, int]) -> bool:
        self.found.maps, self.found.size = maps, size
        return False
