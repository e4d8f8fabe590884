"""Moving the latent down the gradient of a loss on its attention maps (L2DM, Algorithm 2).

Knows neither diffusers nor ComfyUI: the model comes in as one function, `Branch`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..errors import InputError
from .losses import attend_and_excite, read_words, total_loss
from .maps import WordMaps
from .schedule import Step, cell_factor, is_guided, refinement_target, step_size
from .settings import GuidanceSettings
from .words import PromptPlaces

log = logging.getLogger(__name__)

OnMaps = Callable[[Tensor, tuple[int, int]], bool]
"""Called with raw maps [B, P, T] and their (h, w); True: go on to the model's output."""


Branch = Callable[[Tensor, OnMaps], "Tensor | None"]
"""The conditional half of the model at one noise level, with gradients to the latents.

Runs it on latents [B, C, H, W], calls the other argument as soon as the last attention layer that
is read has given its map, and stops there, returning None, unless the answer is True: then it goes
on and returns the model's output for the conditional half.
"""


@dataclass(frozen=True)
class GuidedStep:
    """What one step of guidance did.

    latents: to go on with; the very tensor that came in when nothing moved. moved: whether any
    picture's latents changed. output: the model's conditional output for `latents` where it is
    known (the gradient pass ran and nothing moved), for classifier-free guidance to use again.
    words: the pairs' maps at the last gradient pass, detached; None when there was none. skipped:
    pictures that did not move since their gradient was not finite.
    """

    latents: Tensor
    moved: bool = False
    output: Tensor | None = None
    words: WordMaps | None = None
    skipped: int = 0


class Guide:
    """Guidance of one batch through its sampling; remembers the maps of every guided step.

    places: the words of every picture's prompt, one entry per picture.
    """

    def __init__(self, settings: GuidanceSettings, places: Sequence[PromptPlaces]) -> None:
        self.settings = settings
        self.places = tuple(places)
        self.seen: list[WordMaps] = []
        self._warned = False

    def __call__(
        self, latents: Tensor, branch: Branch, step: Step, factor: float = 1.0
    ) -> GuidedStep:
        """`guided_latent`; warns once when the gradient of a picture is not finite."""
        guided = guided_latent(latents, branch, self.places, self.settings, step, factor)
        if guided.words is not None:
            self.seen.append(guided.words)
        if guided.skipped and not self._warned:
            self._warned = True
            log.warning(
                "The guidance's gradient is not finite for %d of %d pictures at step %d of %d; "
                "their latents stay as they are. A lower strength, or a model in bf16 or fp32 "
                "in place of fp16, may help.",
                guided.skipped,
                len(latents),
                step.index + 1,
                step.count,
            )
        return guided


def guided_latent(
    latents: Tensor,
    branch: Branch,
    places: Sequence[PromptPlaces],
    settings: GuidanceSettings,
    step: Step,
    factor: float = 1.0,
) -> GuidedStep:
    """z' = z - alpha_t * factor * grad_z L for latents [B, C, H, W], all pictures at once.

    The step size is that of maps of the papers' size; others scale it, see `cell_factor`.

    z is the variance-preserving z_t that diffusers' DDIM and DPM-Solver hold, whatever the model
    predicts (noise or v): the loss sees the maps only. For k-diffusion's x give
    `k_diffusion_factor(sigma)`. Outside of the guided steps, and with all weights at 0, the model
    is not run. Attend-and-excite refines first: pictures below the target move, up to
    `settings.refinement` times. Must run outside inference mode.

    Raises InputError for an empty batch, or when `places` has not one entry per picture.
    """
    if not is_guided(step, settings):
        return GuidedStep(latents)
    if len(latents) == 0 or len(places) != len(latents):
        raise InputError(
            f"There are {len(latents)} pictures and the words of {len(places)} prompts; guidance "
            "needs at least one picture and one prompt for each."
        )
    length = factor * step_size(step, settings)
    target = refinement_target(step, settings)
    refined, moved, skipped = 0, False, 0
    while True:
        wanted = None if target is None or refined == settings.refinement else target
        found = _gradient(latents, branch, places, settings, wanted)
        skipped = max(skipped, found.skipped)
        if found.output is None:
            latents = (latents - length * found.gradient).to(latents.dtype)
            moved = True
        if not found.refining:
            return GuidedStep(latents, moved, found.output, found.words, skipped)
        refined += 1


@dataclass(frozen=True)
class _Found:
    """One gradient pass. refining: only the pictures below the target have a gradient."""

    gradient: Tensor
    words: WordMaps
    skipped: int
    refining: bool
    output: Tensor | None


def _gradient(
    latents: Tensor,
    branch: Branch,
    places: Sequence[PromptPlaces],
    settings: GuidanceSettings,
    target: float | None,
) -> _Found:
    """The gradient of every picture's loss with respect to its latents, in steps of the papers'
    size (`cell_factor`), fp32.

    With a `target`, that of the pictures only whose maps do not reach it, if there are any.
    """
    leaf = latents.detach().clone().requires_grad_(True)
    height, width = latents.shape[-2:]
    found: _Found | None = None

    def on_maps(maps: Tensor, size: tuple[int, int]) -> bool:
        nonlocal found
        words = read_words(maps, size, places)
        loss = total_loss(words, settings)
        below = _below(words, target)
        (raw,) = torch.autograd.grad(loss.sum(), leaf)
        gradient = raw.detach().float() * cell_factor((height, width), size)
        finite = gradient.flatten(1).isfinite().all(1)
        refining = bool(below.any())
        chosen = finite & below if refining else finite
        gradient = gradient.where(chosen[:, None, None, None], 0)
        found = _Found(gradient, words.detach(), int((~finite).sum()), refining, None)
        if gradient.any():
            return False
        torch.set_grad_enabled(False)  # Until the block below ends: the rest needs no graph.
        return True

    with torch.enable_grad():
        output = branch(leaf, on_maps)
    if found is None:
        raise InputError(
            "The model has no attention layer of the size that guidance reads, or another program "
            "has replaced it: no attention map came out of it."
        )
    return found if output is None else replace(found, output=output.detach(), refining=False)


def _below(words: WordMaps, target: float | None) -> Tensor:
    """bool [B]: whether a subject's highest value is less than the target."""
    if target is None:
        return torch.zeros(len(words.nouns), dtype=torch.bool, device=words.nouns.device)
    return attend_and_excite(words).detach() > 1 - target
