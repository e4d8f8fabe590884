"""KSampler with a prompt and an adapter of its own in every region."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..lifelong_core.attention.regions import (
    ALPHA,
    DELAY,
    MOST_SOFTNESS,
    check_delay,
    check_mixture,
    check_regions,
)
from ..lifelong_core.backbone.families import DOWNSCALE
from ..lifelong_core.state import LifelongState
from .ksampler import check_latent, sample, sampler_inputs
from .region_picture import region_picture
from .regional_concept import PlacedRegion, in_pictures
from .regional_prompts import knowing, read_regions, without_concepts
from .regional_sampling import Delay, add_regions
from .types import LifelongStateType, RegionsType


class ContextControllableSampler(io.ComfyNode):
    """All of KSampler, and regions that show concepts of their own."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ContextControllableSampler",
            display_name="Context Controllable Sampler",
            category="lifelong/regions",
            description="KSampler for several learned concepts in one picture: every region has a "
            "prompt of its own and is drawn with what was learned for its concept alone, so that "
            "none is forgotten and no looks mix.",
            search_aliases=[
                "regional sampler",
                "regional prompting",
                "several concepts",
                "multiple subjects",
                "context-controllable synthesis",
                "CIDM",
                "ksampler",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The Stable Diffusion MODEL that the concepts were learned on, with "
                    "or without LoRAs and other patches. A state that is applied to it counts in "
                    "its own regions only. It is not changed.",
                ),
                io.Clip.Input(
                    "clip",
                    tooltip="The CLIP of the same checkpoint: it reads the regions' prompts.",
                ),
                LifelongStateType.Input(
                    "state",
                    tooltip="The lessons whose concepts the regions name. Best are methods whose "
                    "lessons do not build on one another, such as 'lora_merge'.",
                ),
                RegionsType.Input("regions", tooltip="From Regional Concept or Automatic Regions."),
                io.Conditioning.Input(
                    "positive",
                    tooltip="What the whole picture shows, with the plain nouns of what is in the "
                    "regions: a photo of a dog and a cat on the beach. Drawn outside the regions "
                    "by the base model.",
                ),
                io.Conditioning.Input("negative", tooltip="What is not to be in the picture."),
                io.Latent.Input("latent_image", tooltip="The latent image to denoise."),
                *sampler_inputs(),
                io.Float.Input(
                    "alpha",
                    default=ALPHA,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="How much the regions look at one another. 0: each is denoised as if "
                    "it were alone in the scene. 1: all together, which is faster.",
                ),
                io.Float.Input(
                    "softness",
                    default=0.0,
                    min=0.0,
                    max=MOST_SOFTNESS,
                    step=0.01,
                    tooltip="How far the regions' edges are blurred, as a share of the picture.",
                ),
                io.Float.Input(
                    "delay",
                    default=DELAY,
                    min=0.0,
                    max=0.95,
                    step=0.05,
                    tooltip="The share of the steps before what was learned comes in: until then "
                    "the base model lays the picture out by the concepts' plain nouns. Higher "
                    "when things come as one, lower when looks are weak.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The denoised latent."),
                io.Image.Output(
                    "regions", tooltip="The regions as the sampler took them, with their prompts."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        state: LifelongState,
        regions: tuple[PlacedRegion, ...],
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        alpha: float,
        softness: float,
        delay: float,
    ) -> io.NodeOutput:
        check_latent(latent_image)
        check_mixture(alpha, softness)
        check_delay(delay)
        height, width = (DOWNSCALE * side for side in latent_image["samples"].shape[-2:])
        pictures = in_pictures(regions, len(latent_image["samples"]), (height, width))
        for placed in pictures:
            check_regions(placed, (height, width))
        model, reader = knowing(model, clip, state)
        prompts = read_regions(reader, state, pictures, softness)
        plain = [without_concepts(state, placed) for placed in pictures]
        before = None
        if delay and any(
            one.prompt != own.prompt for one, own in zip(plain[0], pictures[0], strict=True)
        ):
            before = Delay(read_regions(reader, state, plain, softness), delay)
        latent = sample(
            add_regions(model, prompts, alpha, before),
            seed,
            steps,
            cfg,
            sampler_name,
            scheduler,
            positive,
            negative,
            latent_image,
            denoise=denoise,
        )
        shown = [region_picture(placed, (height, width), softness) for placed in pictures]
        return io.NodeOutput(latent, torch.cat(shown))
