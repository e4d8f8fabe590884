"""The node that finds a place for every concept of a prompt, where there are no boxes or masks."""

from __future__ import annotations

from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io

from ..lifelong_core.attention.automatic import masks_of
from ..lifelong_core.attention.regions import DELAY
from ..lifelong_core.automatic_sampling import check_between, naming_only, placed_concepts
from ..lifelong_core.concepts import with_plain_nouns
from ..lifelong_core.errors import InputError
from ..lifelong_core.prompts.syntax import IDENTIFIER
from ..lifelong_core.state import LifelongState
from .early_maps import KEY, EarlyMaps
from .guidance import slots_of
from .ksampler import check_latent, sample, sampler_inputs
from .prompt_words import noun_positions
from .regional_concept import PlacedRegion
from .regional_prompts import knowing
from .types import LifelongStateType, RegionsType


class AutomaticRegions(io.ComfyNode):
    """Regions for the Context Controllable Sampler, read from the base model's own first steps."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="AutomaticRegions",
            display_name="Automatic Regions",
            category="lifelong/regions",
            description="Regions without boxes: the base model begins the picture with the "
            "concepts' plain nouns, and its attention tells where each of them will be. Link it "
            "to Context Controllable Sampler, with the same seed and settings in both.",
            search_aliases=[
                "automatic mask",
                "attention mask",
                "segment concepts",
                "FreeFuse",
                "layout",
                "regional prompt",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The Stable Diffusion MODEL that the concepts were learned on, as at "
                    "Context Controllable Sampler.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                LifelongStateType.Input("state", tooltip="The lessons on the prompt's concepts."),
                io.Conditioning.Input("negative", tooltip="What is not to be in the picture."),
                io.Latent.Input(
                    "latent_image",
                    tooltip="The same latent image as at the sampler. Every picture of a batch "
                    "gets regions of its own.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a photo of a embedding:my_dog dog and a embedding:my_cat cat on the "
                    "beach",
                    tooltip="What the whole picture shows, with at least two of the state's "
                    "concepts, each followed by its noun.",
                ),
                *sampler_inputs(),
                io.Float.Input(
                    "delay",
                    default=DELAY,
                    min=0.05,
                    max=0.95,
                    step=0.05,
                    tooltip="The share of the steps after which the regions are read. Have the "
                    "same delay in the sampler: up to there both draw the same picture.",
                ),
                io.String.Input(
                    "concepts",
                    optional=True,
                    multiline=True,
                    default="",
                    tooltip="The tokens that get a region, such as my_dog, one per line. Empty: "
                    "all that the prompt names. Leave styles out of it: they stay in every "
                    "region's prompt.",
                ),
            ],
            outputs=[
                RegionsType.Output(
                    "regions",
                    tooltip="A region for every concept, with a prompt that names it alone and "
                    "the others by their nouns.",
                ),
                io.Conditioning.Output(
                    "positive",
                    tooltip="The prompt with plain nouns, for the sampler's positive.",
                ),
                io.Mask.Output(
                    "masks",
                    tooltip="The regions' masks, in the order of the lessons; of a batch all masks "
                    "of the first concept, then all of the next.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        state: LifelongState,
        negative: Any,
        latent_image: dict[str, Any],
        prompt: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        delay: float,
        concepts: str = "",
    ) -> io.NodeOutput:
        check_latent(latent_image)
        check_between(delay, steps)
        tokens = [line.strip().removeprefix(IDENTIFIER) for line in concepts.splitlines()]
        placed = placed_concepts(state, prompt, [token for token in tokens if token] or None)
        if len(placed) < 2:
            raise InputError(
                f"The prompt {prompt!r} names {len(placed)} of the concepts that are to have a "
                "region; it takes two or more. Elastic Concept Weights draws one without regions."
            )
        rest = with_plain_nouns(prompt, [concept.token for concept in placed])
        model, reader = knowing(model, clip, state)
        pairs = [(concept.token, concept.noun) for concept in placed]
        places = noun_positions(reader, prompt, pairs, rest)
        positive = reader.encode_from_tokens_scheduled(reader.tokenize(rest))
        early = EarlyMaps(slots_of(model), delay)
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, early)
        sample(
            model, seed, steps, cfg, sampler_name, scheduler, positive, negative, latent_image,
            denoise=denoise,
        )  # fmt: skip
        if early.maps is None:
            raise InputError(
                f"No regions were read: with denoise {denoise} and {steps} steps, {sampler_name} "
                f"never came to the step behind a delay of {delay}."
            )
        found = masks_of(early.maps, early.size, places)
        masks = [torch.stack(each).cpu() for each in zip(*found, strict=True)]
        regions = tuple(
            PlacedRegion(naming_only(prompt, own, placed), mask, own.phrase)
            for own, mask in zip(placed, masks, strict=True)
        )
        return io.NodeOutput(regions, positive, torch.cat(masks))
