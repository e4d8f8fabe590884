"""Inside ComfyUI's own process: its nodes for attention guidance, called as a graph would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

from inside import loaded, pack, torch

# What follows can be imported once inside.py has set ComfyUI up.
# isort: split
import comfy.patcher_extension
import comfy.samplers

import nodes

PROMPT = "a photo of a red dog and a blue cat"
PAIRS = "red dog\nblue cat"
STEPS = 4
STRONG = 480.0
"""Weights that are random need more than trained ones to move visibly."""


def conditioning(clip: Any, text: str) -> Any:
    with torch.inference_mode():
        return nodes.CLIPTextEncode().encode(clip, text)[0]


def empty_latent(batch: int = 1, side: int = 16) -> dict[str, Any]:
    return {"samples": torch.zeros(batch, 4, side, side)}


def sampled(
    model: Any,
    positive: Any,
    negative: Any,
    latent: dict[str, Any] | None = None,
    *,
    steps: int = STEPS,
    cfg: float = 4.0,
    sampler: str = "euler",
) -> torch.Tensor:
    """The stock KSampler."""
    with torch.inference_mode():
        latent = latent or empty_latent()
        done = nodes.KSampler().sample(
            model, 1, steps, cfg, sampler, "normal", positive, negative, latent
        )
        return done[0]["samples"].clone()


def guided(
    model: Any,
    clip: Any,
    *,
    prompt: str = PROMPT,
    pairs: str = PAIRS,
    strength: float = STRONG,
    fraction: float = 0.5,
    state: Any = None,
) -> Any:
    """MODEL from Orthogonal Attention Guidance."""
    node = pack("nodes.orthogonal_attention_guidance").OrthogonalAttentionGuidance
    with torch.inference_mode():
        return node.execute(model, clip, prompt, pairs, strength, 0.4, fraction, state).result[0]


def artist(
    model: Any, clip: Any, positive: Any, negative: Any, latent: Any = None, **values: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and maps of the Concept Attention Artist Sampler."""
    node = pack("nodes.concept_attention_artist_sampler").ConceptAttentionArtistSampler
    usual = {
        "prompt": PROMPT, "concepts": PAIRS, "seed": 1, "steps": STEPS, "cfg": 4.0,
        "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0, "caa_strength": 0.0,
        "oaa_strength": 0.0, "threshold": 0.4, "guided_fraction": 0.5, "maps": "average",
    }  # fmt: skip
    latent = latent or empty_latent()
    with torch.inference_mode():
        done = node.execute(model, clip, positive, negative, latent, **{**usual, **values})
        return done.result[0]["samples"].clone(), done.result[1].clone()


def split(model: Any) -> Any:
    """MODEL with what ComfyUI's MultiGPU CFG Split leaves in a run's options, for one device."""

    def run(executor: Any, *args: Any, **options: Any) -> Any:
        guider = executor.class_obj
        patcher = guider.model_patcher
        guider.model_options["multigpu_clones"] = {patcher.load_device: patcher}
        return executor(*args, **options)

    clone = model.clone()
    clone.add_wrapper(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, run)
    return clone


@contextmanager
def passes() -> Iterator[list[dict[str, Any]]]:
    """What every gradient pass inside the block was called with."""
    capture = pack("nodes.attention_capture").AttentionCapture
    call, seen = capture.__call__, []

    def noting(self: Any, executor: Any, x: Any, *args: Any, **options: Any) -> Any:
        seen.append({"rows": len(x), "context": args[1].shape[1], "size": tuple(x.shape[2:])})
        return call(self, executor, x, *args, **options)

    with patch.object(capture, "__call__", noting):
        yield seen


@contextmanager
def guides() -> Iterator[list[tuple[int, float]]]:
    """Length of the prompt and factor of the step size, of every guided step inside the block."""
    guide = pack("lifelong_core.attention.guidance").Guide
    call, seen = guide.__call__, []

    def noting(self: Any, latents: Any, branch: Any, step: Any, factor: float = 1.0) -> Any:
        seen.append((self.places[0].length, factor))
        return call(self, latents, branch, step, factor)

    with patch.object(guide, "__call__", noting):
        yield seen


@contextmanager
def held_latents() -> Iterator[list[Any]]:
    """The latents that samplers tell of at every step inside the block: what they go on from."""
    kept: list[Any] = []
    sample = comfy.samplers.KSAMPLER.sample

    def watched(self: Any, *args: Any, **options: Any) -> Any:
        function = self.sampler_function

        def run(model: Any, x: Any, sigmas: Any, callback: Any = None, **others: Any) -> Any:
            def tell(state: dict[str, Any]) -> None:
                kept.append(state["x"])
                if callback is not None:
                    callback(state)

            return function(model, x, sigmas, callback=tell, **others)

        run.__name__ = function.__name__
        self.sampler_function = run
        return sample(self, *args, **options)

    with patch.object(comfy.samplers.KSAMPLER, "sample", watched):
        yield kept


def weights_of(model: Any) -> dict[str, torch.Tensor]:
    with torch.inference_mode():
        state = model.model.diffusion_model.state_dict()
        return {key: weight.clone() for key, weight in state.items()}


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).norm() / right.norm())


class Base:
    """MODEL, CLIP and two conditionings."""

    def __init__(self) -> None:
        self.model, self.clip, self.vae = loaded()
        self.positive = conditioning(self.clip, PROMPT)
        self.negative = conditioning(self.clip, "")


@cache
def loaded_base() -> Base:
    """One for all checks: none may leave anything behind."""
    return Base()
