"""Attention guidance on ComfyUI's samplers: the latent moves once per step, before the model runs.

What a MODEL carries is one wrapper around a whole sampling run, and the wish for a full load.
Everything else (the wrapper around the model's calls, the patches that record maps) lives in
options that ComfyUI throws away after the run or that belong to one gradient pass, so nothing is
left behind, whatever ends it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from torch import Tensor

from ..lifelong_core.attention import (
    Branch,
    GuidanceSettings,
    Guide,
    OnMaps,
    PromptPlaces,
    Step,
    WordMaps,
    is_guided,
    k_diffusion_factor,
    map_blocks,
    read_words,
)
from ..lifelong_core.backbone.detect import unet_family
from ..lifelong_core.errors import InputError, ModelError
from .attention_capture import AttentionCapture, Slot
from .grad_ready import ConstantControl, make_grad_ready, with_own_weights
from .multigpu import on_one_gpu
from .prompt_words import PromptWords
from .sampler_steps import SamplerSteps, steps_of

log = logging.getLogger(__name__)

KEY = "lifelong_guidance"
WATCHED = 0.5
"""Share of the steps whose maps are shown when no step is guided."""

OnWords = Callable[[WordMaps], None]
Conditioning = Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Guidance:
    """The words of one prompt and what to do about them.

    slots: the attention layers to read. on_words: called with the pairs' maps of every guided
    step, or, where no step is guided, of the first half of the steps.
    """

    words: PromptWords
    settings: GuidanceSettings
    slots: tuple[Slot, ...]
    on_words: OnWords | None = None

    def joined(self, later: Guidance) -> Guidance | None:
        """Both as one, with one gradient pass, where they differ in weights alone; else None."""
        ours, theirs = self.settings, later.settings
        caa, oaa = ours.caa + theirs.caa, ours.oaa + theirs.oaa
        both = replace(theirs, caa=caa, oaa=oaa)
        if not self.words.same(later.words) or replace(ours, caa=caa, oaa=oaa) != both:
            return None
        return replace(later, settings=both)


def add_guidance(model: Any, guidance: Guidance) -> Any:
    """A clone of MODEL whose samplers guide; guidance that is there already stays.

    Raises ModelError for a MODEL without the cross-attention of a UNet, and what
    `with_own_weights` raises.
    """
    given = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    before = given[0].guidances if given else ()
    joined = before[-1].joined(guidance) if before else None
    guidances = (*before[:-1], joined) if joined else (*before, guidance)
    with torch.inference_mode(False):  # Weights of a new copy must not be inference tensors.
        guided = with_own_weights(model) if model.is_dynamic() else model.clone()
    for kind in (WrappersMP.OUTER_SAMPLE, WrappersMP.PREPARE_SAMPLING):
        guided.remove_wrappers_with_key(kind, KEY)
    guided.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, GuidedSampling(guidances))
    guided.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, load_in_full)
    return guided


def slots_of(model: Any) -> tuple[Slot, ...]:
    """The attention layers of a MODEL to read. Raises ModelError, by name, for one without them."""
    unet = model.model.diffusion_model
    if not isinstance(unet, UNetModel) or not _scales_as_stable_diffusion(model):
        kind = type(model.model.model_config).__name__
        raise ModelError(
            f"This MODEL is {kind}. Attention guidance reads the cross-attention of a UNet with "
            "Stable Diffusion's noise levels: use a Stable Diffusion 1, 2 or XL model, or the "
            "pack's demo model."
        )
    shapes = {key: tuple(weight.shape) for key, weight in unet.state_dict().items()}
    return map_blocks(unet_family(shapes, "The UNet of this MODEL").name)


def _scales_as_stable_diffusion(model: Any) -> bool:
    """Whether the sampler's latent is z_t sqrt(1 + sigma^2)."""
    sampling = model.get_model_object("model_sampling")
    usual = comfy.model_sampling.EPS.calculate_input
    return type(sampling).calculate_input is usual and sampling.sigma_data == 1.0


def load_in_full(executor: Any, *args: Any, **options: Any) -> Any:
    """A PREPARE_SAMPLING wrapper: weights that come and go would be overwritten in a graph."""
    return executor(*args, **{**options, "force_full_load": True})


class GuidedSampling:
    """An OUTER_SAMPLE wrapper: gives the sampler's run guidance of its own."""

    def __init__(self, guidances: Sequence[Guidance]) -> None:
        self.guidances = tuple(guidances)

    def __call__(
        self,
        executor: Any,
        noise: Tensor,
        latent_image: Tensor,
        sampler: Any,
        sigmas: Tensor,
        *args: Any,
        **options: Any,
    ) -> Tensor:
        guider = executor.class_obj
        run = _Run(
            [_Mover(guidance, _found(guider.conds, guidance)) for guidance in self.guidances],
            steps_of(sampler, sigmas.tolist()),
        )
        # These options are the run's own copy of the model's.
        add_wrapper_with_key(
            WrappersMP.PREDICT_NOISE, KEY, run, guider.model_options, is_model_options=True
        )
        return executor(noise, latent_image, sampler, sigmas, *args, **options)


class _Run:
    """A PREDICT_NOISE wrapper: moves the sampler's latent in place where a step begins."""

    def __init__(self, movers: Sequence[_Mover], steps: SamplerSteps) -> None:
        self.movers = movers
        self.steps = steps

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        seed: int | None = None,
    ) -> Tensor:
        step = self.steps.begun(float(timestep.flatten()[0]))
        if step is not None:
            for mover in self.movers:
                moved = mover(executor.class_obj, x, timestep, model_options, step)
                if moved is not None:
                    # In place: the sampler goes on from what it holds, not from what it passed.
                    x.copy_(moved)
        return executor(x, timestep, model_options, seed)


class _Mover:
    """One guidance during one run of a sampler; `found`: the conditionings that are its prompt."""

    def __init__(self, guidance: Guidance, found: Sequence[Conditioning]) -> None:
        self.guidance = guidance
        self.uuids = [cond["uuid"] for cond in found]
        self.guides: dict[int, Guide] = {}
        """By the length of the conditioning, which may change between steps."""

    def __call__(
        self,
        guider: Any,
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
        step: Step,
    ) -> Tensor | None:
        """The moved latents, None where they stay."""
        guided = is_guided(step, self.guidance.settings)
        if not guided and not self._watches(step):
            return None
        found = self._active(guider.conds, x, timestep)
        if found is None:
            return None
        cond, share = found
        with torch.inference_mode(False):
            make_grad_ready(guider.inner_model.diffusion_model)
            branch = branch_of(guider, cond, timestep, model_options, self.guidance.slots)
            if not guided:
                self._watch(x, branch, cond)
                return None
            places = self._places(x, cond)
            length = places[0].length
            if length not in self.guides:
                self.guides[length] = Guide(self.guidance.settings, places)
            # The maps are those of the conditioning's area: a step size for all would be too long.
            factor = share * k_diffusion_factor(float(timestep.flatten()[0]))
            result = self.guides[length](x, branch, step, factor)
        self._show(result.words)
        return result.latents if result.moved else None

    def _show(self, words: WordMaps | None) -> None:
        if self.guidance.on_words is not None and words is not None:
            self.guidance.on_words(words)

    def _places(self, x: Tensor, cond: Conditioning) -> list[PromptPlaces]:
        places = replace(self.guidance.words.places, length=cond["cross_attn"].shape[1])
        return [places] * len(x)

    def _watches(self, step: Step) -> bool:
        settings = self.guidance.settings
        if self.guidance.on_words is None or settings.active:
            return False
        return step.index < (settings.guided_fraction or WATCHED) * step.count

    def _watch(self, x: Tensor, branch: Branch, cond: Conditioning) -> None:
        """Show the maps and move nothing."""

        def on_maps(maps: Tensor, size: tuple[int, int]) -> bool:
            self._show(read_words(maps, size, self._places(x, cond)))
            return False

        with torch.no_grad():
            branch(x.clone(), on_maps)

    def _active(
        self, conds: Mapping[str, Sequence[Conditioning]], x: Tensor, timestep: Tensor
    ) -> tuple[Conditioning, float] | None:
        """The first of the prompt's conditionings that counts at this noise level, and the share of
        the latents that its area covers."""
        ours = [cond for cond in _positive(conds) if cond["uuid"] in self.uuids]
        return first_active(ours, x, timestep)


def first_active(
    conds: Sequence[Conditioning], x: Tensor, timestep: Tensor
) -> tuple[Conditioning, float] | None:
    """The first of some conditionings that counts at a noise level, and the share of the latents
    that its area covers."""
    for cond in conds:
        seen = comfy.samplers.get_area_and_mult(cond, x, timestep)
        if seen is not None:
            return cond, seen.input_x.shape[2:].numel() / x.shape[2:].numel()
    return None


def branch_of(
    guider: Any,
    cond: Conditioning,
    timestep: Tensor,
    model_options: dict[str, Any],
    slots: Sequence[Slot],
) -> Branch:
    """The model on one conditioning alone, for all pictures at once.

    Always ends behind the last map, also where nothing moved: ComfyUI's own pass, with all
    conditionings in one batch, is not put together from parts.
    """
    if "control" in cond:
        cond = {**cond, "control": ConstantControl(cond["control"])}

    def branch(latents: Tensor, on_maps: OnMaps) -> None:
        options = on_one_gpu(model_options)
        capture = AttentionCapture(slots, on_maps)
        add_wrapper_with_key(
            WrappersMP.DIFFUSION_MODEL, KEY, capture, options, is_model_options=True
        )
        comfy.samplers.calc_cond_batch(guider.inner_model, [[cond]], latents, timestep, options)

    return branch


def _positive(conds: Mapping[str, Sequence[Conditioning]]) -> list[Conditioning]:
    """All conditionings of a guider but the negative ones."""
    return [cond for name in conds if "negative" not in name for cond in conds[name]]


def _found(conds: Mapping[str, Sequence[Conditioning]], guidance: Guidance) -> list[Conditioning]:
    """The conditionings that are the guidance's prompt. Raises InputError when there is none."""
    found = [cond for cond in _positive(conds) if guidance.words.are_in(cond.get("cross_attn"))]
    if not found:
        raise InputError(
            "The sampler's positive conditioning is not the prompt whose words the guidance got "
            f"({guidance.words.text!r}). Link one text and one CLIP to both, the guidance's node "
            "and CLIP Text Encode."
        )
    return found
