"""What the two nodes of attention guidance ask for alike. Workflows store widgets by position."""

from __future__ import annotations

from comfy_api.latest import io

from ..lifelong_core.attention import GuidanceSettings
from .types import LifelongStateType

DEFAULTS = GuidanceSettings()


def clip_input() -> io.Input:
    return io.Clip.Input(
        "clip", tooltip="The CLIP that encodes the positive prompt: it tells where its words are."
    )


def prompt_input() -> io.Input:
    return io.String.Input(
        "prompt",
        multiline=True,
        default="a photo of a red dog and a blue cat",
        tooltip="The positive prompt, the very text that CLIP Text Encode gets: link one text to "
        "both. Another text is refused when the sampler starts.",
    )


def pairs_input() -> io.Input:
    return io.String.Input(
        "concepts",
        multiline=True,
        default="red dog\nblue cat",
        tooltip="One thing per line, concept first, then its noun: 'embedding:my_dog dog'. Any "
        "word that tells the thing from others does as a concept: 'red dog'. Empty: the concepts "
        "of the linked state that the prompt names.",
    )


def strength_input(name: str, default: float, tooltip: str) -> io.Input:
    return io.Float.Input(name, default=default, min=0.0, max=100.0, step=0.01, tooltip=tooltip)


def threshold_input() -> io.Input:
    return io.Float.Input(
        "threshold",
        default=DEFAULTS.threshold,
        min=0.0,
        max=0.95,
        step=0.05,
        tooltip="How much of its highest value a noun's map must have at a place for the place to "
        "belong to the noun. Higher: smaller, surer regions. Counts for the orthogonal strength.",
    )


def fraction_input() -> io.Input:
    return io.Float.Input(
        "guided_fraction",
        default=DEFAULTS.guided_fraction,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="Share of the sampler's steps, from the first, in which the picture is guided. "
        "What is where is decided early; every guided step takes two to three times as long.",
    )


def state_input() -> io.Input:
    return LifelongStateType.Input(
        "state",
        optional=True,
        tooltip="Gives the concepts and their nouns by itself when 'concepts' is empty.",
    )
