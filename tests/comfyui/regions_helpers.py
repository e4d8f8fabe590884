"""Inside ComfyUI's own process: two toys and their regions, drawn as a graph would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any
from unittest.mock import patch

from guidance_helpers import conditioning, empty_latent, sampled
from inside import comfy, loaded, pack, torch

SCENE = "a photo of a street"
KEY_VALUE = ("attn2.to_k", "attn2.to_v")
TARGETS = tuple(
    f"{attention}.{name}"
    for attention in ("attn1", "attn2")
    for name in ("to_q", "to_k", "to_v", "to_out.0")
)
DOG, CAT = "a photo of embedding:my_dog dog", "a photo of embedding:my_cat cat on the grass"


@cache
def base() -> tuple[Any, Any, Any]:
    return loaded()


@cache
def negative() -> Any:
    return conditioning(base()[1], "blurred")


@cache
def scene() -> Any:
    return conditioning(base()[1], SCENE)


@cache
def two_toys(targets: tuple[str, ...] = KEY_VALUE, localized: tuple[str, ...] = ()) -> Any:
    """A state with two lessons whose adapters are their own, of a size to be seen; these were
    learned with localized words."""
    draw = torch.Generator().manual_seed(0)
    states, concepts = pack("lifelong_core.state"), pack("lifelong_core.concepts")
    spec = pack("lifelong_core.adapters.spec").AdapterSpec(rank=4, alpha=4.0, targets=targets)
    layers = pack("lifelong_core.sharing.naming").layers("demo")
    records = []
    for token, noun in (("my_dog", "dog"), ("my_cat", "cat")):
        adapter = {}
        for key, (out, width) in layers.items():
            if key.endswith(targets):
                adapter[f"{key}.down"] = torch.randn(4, width, generator=draw) / width**0.5
                adapter[f"{key}.up"] = torch.randn(out, 4, generator=draw) / 2
        vectors = {"clip_l": torch.randn(2, 128, generator=draw)}
        concept = concepts.Concept(token, noun, vectors)
        settings = {"method": "hard_routing", "localized_words": token in localized}
        records.append(states.TaskRecord(concept, "hash", adapter, settings, {}))
    fingerprint = pack("nodes.bridge").base_model(base()[0]).fingerprint
    return states.LifelongState("demo", fingerprint, spec, records[-1].adapter, tuple(records))


def region(prompt: str, *box: float, mask: Any = None, before: Any = ()) -> Any:
    """REGIONS from the node."""
    node = pack("nodes.regional_concept").RegionalConcept
    return node.execute(prompt, *(box or (0.0, 0.0, 1.0, 1.0)), mask, before).result[0]


@cache
def halves() -> Any:
    return region(CAT, 0.5, 0.0, 1.0, 1.0, before=region(DOG, 0.0, 0.0, 0.5, 1.0))


def drawn(regions: Any, **values: Any) -> torch.Tensor:
    """Latents of the Context Controllable Sampler."""
    return both(regions, **values)[0]


def small(batch: int = 1) -> dict[str, Any]:
    return empty_latent(batch, 8)


def both(regions: Any, **values: Any) -> tuple[torch.Tensor, torch.Tensor]:
    node = pack("nodes.context_controllable_sampler").ContextControllableSampler
    model, clip, _ = base()
    usual = {
        "model": model, "clip": clip, "state": two_toys(), "regions": regions,
        "positive": scene(), "negative": negative(), "latent_image": small(), "seed": 1,
        "steps": 3, "cfg": 4.0, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
        "alpha": 0.1, "softness": 0.0, "delay": 0.0,
    }  # fmt: skip
    with torch.inference_mode():
        latents, picture = node.execute(**{**usual, **values}).result
        return latents["samples"].clone(), picture.clone()


def plain(**options: Any) -> torch.Tensor:
    return sampled(base()[0], scene(), negative(), small(), **{"steps": 3, **options})


def applied(state: Any, prompt: str) -> tuple[Any, Any]:
    """MODEL and positive conditioning of one concept's own adapter on the whole picture."""
    routing = pack("lifelong_core.consolidation.routing")
    own = routing.route(state, prompt)
    own = replace(own, records=[replace(record, settings={}) for record in own.records])
    model, clip = pack("nodes.patching").apply_state(*base()[:2], own)
    return model, conditioning(clip, prompt)


@contextmanager
def batches() -> Iterator[list[int]]:
    """How many rows every call of ComfyUI's model inside the block had."""
    unet = base()[0].model.diffusion_model
    rows: list[int] = []
    handle = unet.out.register_forward_hook(lambda _module, given, _out: rows.append(len(given[0])))
    try:
        yield rows
    finally:
        handle.remove()


@contextmanager
def noted() -> Iterator[list[tuple[torch.Tensor, float, torch.Tensor]]]:
    """Latents, noise level and denoised latents of every call of a guider inside the block."""
    guider = comfy.samplers.CFGGuider
    call, seen = guider.outer_predict_noise, []

    def noting(self: Any, x: Any, timestep: Any, *args: Any, **options: Any) -> Any:
        denoised = call(self, x, timestep, *args, **options)
        seen.append((x.clone(), float(timestep[0]), denoised.clone()))
        return denoised

    with patch.object(guider, "outer_predict_noise", noting):
        yield seen
