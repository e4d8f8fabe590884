"""The node that makes any sampler keep concepts on their own nouns."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..lifelong_core.attention import GuidanceSettings
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
from .prompt_words import read_prompt


class OrthogonalAttentionGuidance(io.ComfyNode):
    """A MODEL patch: orthogonal attention artist for stock samplers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OrthogonalAttentionGuidance",
            display_name="Orthogonal Attention Guidance",
            category="lifelong/guidance",
            description="For prompts with several concepts: while a sampler draws, each concept's "
            "attention is drawn to its own noun and pushed off the other nouns, so that looks do "
            "not swap. Works with every sampler and with a Concept Attention Artist Sampler.",
            search_aliases=[
                "orthogonal attention artist",
                "OAA",
                "L2DM",
                "attend and excite",
                "attribute binding",
                "several concepts",
                "multiple subjects",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="A Stable Diffusion 1, 2 or XL MODEL, with or without LoRAs and other "
                    "patches. It is not changed.",
                ),
                clip_input(),
                prompt_input(),
                pairs_input(),
                strength_input(
                    "strength",
                    1.0,
                    "How much concepts are held to their own nouns. 0 leaves the MODEL as it is.",
                ),
                threshold_input(),
                fraction_input(),
                state_input(),
            ],
            outputs=[
                io.Model.Output("model", tooltip="Any sampler guides with it."),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        prompt: str,
        concepts: str,
        strength: float,
        threshold: float,
        guided_fraction: float,
        state: LifelongState | None = None,
    ) -> io.NodeOutput:
        settings = GuidanceSettings(
            oaa=strength, threshold=threshold, guided_fraction=guided_fraction
        )
        slots = slots_of(model)
        words = read_prompt(clip, prompt, concepts, state)
        if not settings.active:
            return io.NodeOutput(model)
        return io.NodeOutput(add_guidance(model, Guidance(words, settings, slots)))
