"""Regions on ComfyUI's samplers: their rows join every step's batch, and their noise is mixed.

Everything is part of one sampling run's own options, which ComfyUI throws away after it, so that
nothing is left behind, whatever ends the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_patcher
import torch
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ..lifelong_core.attention.regions import aggregate_noise, delayed_steps
from .multigpu import on_one_gpu
from .regional_attention import Area, Plan, RegionalAttention, RegionalPrompts, by_picture
from .sampler_steps import SAME

KEY = "lifelong_regions"

Conds = Sequence[dict[str, Any]]
"""A list of conditionings, as ComfyUI's guiders keep them under a name."""


@dataclass(frozen=True)
class Delay:
    """prompts: of the same regions before what was learned comes in, for `share` of the steps."""

    prompts: RegionalPrompts
    share: float


def add_regions(
    model: Any, prompts: RegionalPrompts, alpha: float, delay: Delay | None = None
) -> Any:
    """A clone of MODEL whose samplers draw the regions; alpha: see `aggregate_noise`."""
    regional = model.clone()
    sampling = RegionalSampling(prompts, alpha, delay)
    regional.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sampling)
    return regional


class RegionalSampling:
    """An OUTER_SAMPLE wrapper: gives the sampler's run its regions."""

    def __init__(self, prompts: RegionalPrompts, alpha: float, delay: Delay | None) -> None:
        self.prompts = prompts
        self.alpha = alpha
        self.delay = delay

    def __call__(self, executor: Any, *args: Any, **options: Any) -> Tensor:
        guider, sigmas = executor.class_obj, args[3]
        place = _place(guider.model_patcher)
        learned, before = _Stage(KEY, self.prompts.to(*place)), None
        if self.delay is not None and len(sigmas) > 1:
            first = float(sigmas[delayed_steps(self.delay.share, len(sigmas) - 1)])
            before = _Before(
                _Stage(f"{KEY}_delay", self.delay.prompts.to(*place)), first * (1 + SAME)
            )
        # Both are this run's own. The wrapper lies inside those that others add when a run begins,
        # such as guidance, whose own passes are of single prompts.
        run = _Run(learned, before, self.alpha)
        add_wrapper_with_key(
            WrappersMP.PREDICT_NOISE, KEY, run, guider.model_options, is_model_options=True
        )
        for stage in (learned, *([before.stage] if before else [])):
            guider.conds |= stage.conds(guider.conds["positive"])
        return executor(*args, **options)


@dataclass(frozen=True, eq=False)
class _Stage:
    """A part of a run with these regions; `kept` as in `RegionalAttention`."""

    key: str
    prompts: RegionalPrompts
    kept: dict[str, Tensor] = field(default_factory=dict)

    def name(self, region: int) -> str:
        """A guider's name for the conditionings of a region's own rows."""
        return f"{self.key}_{region}"

    def conds(self, positive: Conds) -> dict[str, Conds]:
        """The positive conditionings once more for every region, told of its prompt as a whole."""
        return {
            self.name(region): [
                {**cond, **({} if told is None else {"pooled_output": told})} for cond in positive
            ]
            for region, told in enumerate(self.prompts.pooled)
        }


@dataclass(frozen=True)
class _Before:
    """What a run does at noise levels above `sigma`."""

    stage: _Stage
    sigma: float


class _Run:
    """A PREDICT_NOISE wrapper: the sampler's own call for noise has the regions."""

    def __init__(self, learned: _Stage, before: _Before | None, alpha: float) -> None:
        self.learned = learned
        self.before = before
        self.alpha = alpha

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        stage = self.learned
        if self.before is not None and float(timestep.max()) > self.before.sigma:
            stage = self.before.stage
        options = comfy.model_patcher.create_model_options_clone(model_options)
        add_wrapper_with_key(
            WrappersMP.CALC_COND_BATCH,
            KEY,
            partial(self._predict, stage, executor.class_obj.conds),
            options,
            is_model_options=True,
        )
        return executor(x, timestep, options, seed)

    def _predict(
        self,
        stage: _Stage,
        known: Mapping[str, Conds],
        executor: Any,
        model: Any,
        conds: list[Conds | None],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:
        """A CALC_COND_BATCH wrapper: the positive prompt's prediction, aggregated.

        Predictions are mixed before classifier-free guidance instead of after it: what is not
        conditioned is the same for all, and the weights add up to 1, so that the result is the
        same, and every kind of guidance works.
        """
        count, positive = len(conds), _index_of(known["positive"], conds)
        if positive is None:
            return executor(model, conds, x, timestep, model_options)
        every, size = range(len(stage.prompts.masks[0])), (x.shape[-2], x.shape[-1])
        # One region alone is the whole; with alpha 1 the whole is all that counts.
        alone = every if len(every) > 1 and self.alpha < 1.0 else ()
        plan = Plan(
            regions=dict.fromkeys(range(count), tuple(every))
            | {count + region: (region,) for region in alone},
            prompted={positive, *(count + region for region in alone)},
            positive=positive,
            areas=_areas(known["positive"], size),
            latent=size,
        )
        options = on_one_gpu(model_options)
        # Hooks change weights within a run.
        kept = {} if any(cond.get("hooks") for cond in known["positive"]) else stage.kept
        attention = RegionalAttention(stage.prompts, plan, kept)
        add_wrapper_with_key(
            WrappersMP.DIFFUSION_MODEL, KEY, attention, options, is_model_options=True
        )
        own = [known[stage.name(region)] for region in alone]
        found = executor(model, [*conds, *own], x, timestep, options)
        if alone:
            covered, regional = stage.prompts.covered(size, size), torch.stack(found[count:])
            found[positive] = by_picture(
                aggregate_noise, found[positive], regional, covered, self.alpha
            )
        return found[:count]


def _place(patcher: Any) -> tuple[torch.device, torch.dtype]:
    """Where a MODEL runs, and in what number format."""
    return patcher.load_device, patcher.model.get_dtype_inference()


def _index_of(positive: Conds, conds: Sequence[Conds | None]) -> int | None:
    """Which of a batch's lists is the positive prompt; None for passes without it."""
    ours = {cond["uuid"] for cond in positive}
    for index, cond in enumerate(conds):
        if cond is not None and any(entry["uuid"] in ours for entry in cond):
            return index
    return None


def _areas(conds: Conds, size: tuple[int, int]) -> dict[Any, Area]:
    """The crops of conditionings that have one, within latents of `size`, by uuid."""
    areas: dict[Any, Area] = {}
    for cond in conds:
        if "area" in cond:
            height, width, top, left = cond["area"]
            areas[cond["uuid"]] = (
                min(size[0] - top, height),
                min(size[1] - left, width),
                top,
                left,
            )
    return areas
