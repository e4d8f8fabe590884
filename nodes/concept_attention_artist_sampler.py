"""KSampler with attention guidance and its maps."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lifelong_core.attention import GuidanceSettings, WordMaps
from ..lifelong_core.state import LifelongState
from .guidance import Guidance, add_guidance, slots_of
from .guidance_schema import (
    clip_input,
    fraction_input,
    pairs_input,
    prompt_input,
    state_input,
    strength_input,
    threshold_input,
)
from .ksampler import check_latent, sample, sampler_inputs
from .map_pictures import AVERAGE, EVERY_STEP, drawn, map_pictures
from .prompt_words import read_prompt


class ConceptAttentionArtistSampler(io.ComfyNode):
    """All of KSampler, the concept and orthogonal attention artists, and maps to look at."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ConceptAttentionArtistSampler",
            display_name="Concept Attention Artist Sampler",
            category="lifelong/guidance",
            description="KSampler for prompts with several concepts: every concept gets a place "
            "of its own and keeps to its own noun, so that none is swallowed by another. Shows "
            "where the words pointed.",
            search_aliases=[
                "concept attention artist",
                "CAA",
                "L2DM",
                "attend and excite",
                "ksampler",
                "several concepts",
                "multiple subjects",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Stable Diffusion 1, 2 or XL MODEL, with or without LoRAs and other "
                    "patches, also from Orthogonal Attention Guidance. It is not changed.",
                ),
                clip_input(),
                io.Conditioning.Input(
                    "positive", tooltip="The prompt below, encoded by CLIP Text Encode."
                ),
                io.Conditioning.Input("negative", tooltip="What is not to be in the picture."),
                io.Latent.Input("latent_image", tooltip="The latent image to denoise."),
                prompt_input(),
                pairs_input(),
                *sampler_inputs("The algorithm. With uni_pc and sa_solver guidance is weaker."),
                strength_input(
                    "caa_strength",
                    1.0,
                    "How much every concept is given a place of its own: things keep to strips "
                    "side by side, in the order of the prompt. 0 turns it off.",
                ),
                strength_input(
                    "oaa_strength",
                    1.0,
                    "How much concepts are held to their own nouns. 0 turns it off; with both at "
                    "0 this is KSampler.",
                ),
                threshold_input(),
                fraction_input(),
                io.Combo.Input(
                    "maps",
                    options=[AVERAGE, EVERY_STEP],
                    default=AVERAGE,
                    tooltip="Attention maps: averaged over the guided steps, or one per step.",
                ),
                state_input(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the picture that lies under the maps; a rough preview of the "
                    "latent otherwise.",
                ),
            ],
            outputs=[
                io.Latent.Output("latent", tooltip="The denoised latent."),
                io.Image.Output(
                    "maps",
                    tooltip="Where every concept and noun pointed, as heat over the picture.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        positive: Any,
        negative: Any,
        latent_image: dict[str, Any],
        prompt: str,
        concepts: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        caa_strength: float,
        oaa_strength: float,
        threshold: float,
        guided_fraction: float,
        maps: str,
        state: LifelongState | None = None,
        vae: Any = None,
    ) -> io.NodeOutput:
        check_latent(latent_image)
        settings = GuidanceSettings(
            caa=caa_strength,
            oaa=oaa_strength,
            threshold=threshold,
            guided_fraction=guided_fraction,
        )
        words = read_prompt(clip, prompt, concepts, state)
        seen: list[WordMaps] = []
        guidance = Guidance(words, settings, slots_of(model), seen.append)
        latent = sample(
            add_guidance(model, guidance),
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
        pictures = drawn(latent["samples"], model, vae)
        return io.NodeOutput(latent, map_pictures(seen, words.pairs, pictures, maps))
