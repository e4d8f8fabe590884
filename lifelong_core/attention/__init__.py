"""Attention guidance: several concepts in one picture (L2DM's CAA and OAA, attend-and-excite)."""

from .capture import ConditionalBranch
from .guidance import Branch, Guide, GuidedStep, OnMaps, guided_latent
from .layers import map_blocks, map_layers, map_size
from .losses import guidance_loss, read_words
from .maps import WordMaps, sharpen, word_maps
from .request import AttentionGuidance
from .schedule import (
    Step,
    cell_factor,
    is_guided,
    k_diffusion_factor,
    refinement_target,
    step_size,
)
from .settings import GuidanceSettings
from .words import Pair, PromptPlaces, PromptToken, WordPlaces, find_pairs, prompt_tokens

__all__ = [
    "AttentionGuidance",
    "Branch",
    "ConditionalBranch",
    "GuidanceSettings",
    "Guide",
    "GuidedStep",
    "OnMaps",
    "Pair",
    "PromptPlaces",
    "PromptToken",
    "Step",
    "WordMaps",
    "WordPlaces",
    "cell_factor",
    "find_pairs",
    "guidance_loss",
    "guided_latent",
    "is_guided",
    "k_diffusion_factor",
    "map_blocks",
    "map_layers",
    "map_size",
    "prompt_tokens",
    "read_words",
    "refinement_target",
    "sharpen",
    "step_size",
    "word_maps",
]
