"""The node that draws a prompt with as much of every learned concept as the prompt asks for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io, ui

from ..lifelong_core.concepts import mentions
from ..lifelong_core.consolidation.elastic_weights import SHARPNESS, TokenTables, elastic_weights
from ..lifelong_core.consolidation.merge import weighted_state
from ..lifelong_core.errors import ModelError
from ..lifelong_core.methods import check_separate
from ..lifelong_core.prompts import row_count, tokenizer
from ..lifelong_core.prompts.tokens import tokenize
from ..lifelong_core.state import LifelongState
from ..lifelong_core.word_routing import records_by_words
from .bridge import learned_on
from .localized_encoding import WORDS
from .patching import put_on, remove_state
from .types import LifelongStateType
from .unet_changes import unet_changes
from .word_adapters import add_word_adapters


class ElasticConceptWeights(io.ComfyNode):
    """MODEL and CLIP for one prompt, with the adapters of the concepts that it names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ElasticConceptWeights",
            display_name="Elastic Concept Weights",
            category="lifelong/state",
            description="Gives MODEL and CLIP, for one prompt, what was learned for the concepts "
            "that the prompt names, and nothing of the others: every concept is drawn as right "
            "after its lesson, however many were learned since. A prompt without a concept gets "
            "the MODEL as it was.",
            search_aliases=[
                "elastic weight aggregation",
                "EWA",
                "CIDM",
                "routing",
                "mix loras",
                "weight per concept",
            ],
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="The MODEL of the checkpoint that the concepts were learned on.",
                ),
                io.Clip.Input("clip", tooltip="The CLIP of the same checkpoint."),
                LifelongStateType.Input(
                    "state",
                    tooltip="What was learned. Its lessons' own weights are used, which every "
                    "lesson keeps.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a photo of embedding:my_dog dog",
                    tooltip="What to draw. Name concepts as embedding:<token> <noun>.",
                ),
                io.Float.Input(
                    "sharpness",
                    default=SHARPNESS,
                    min=0.1,
                    max=100.0,
                    step=0.1,
                    tooltip="How little is lent by concepts that the prompt does not name but that "
                    "are akin to one that it does. High: only named concepts are used.",
                ),
            ],
            outputs=[
                io.Model.Output("model", tooltip="For this prompt; link it to the sampler."),
                io.Clip.Output(
                    "clip", tooltip="Knows the tokens, for example for the negative prompt."
                ),
                io.Conditioning.Output(
                    "conditioning", tooltip="The prompt, encoded: the sampler's positive input."
                ),
                io.String.Output("weights", tooltip="How much of every concept is used."),
            ],
        )

    @classmethod
    def execute(
        cls, model: Any, clip: Any, state: LifelongState, prompt: str, sharpness: float
    ) -> io.NodeOutput:
        learned_on(remove_state(model), state)
        check_separate(state)
        rows = {concept.token: row_count(concept.vectors) for concept in state.concepts}
        words = tokenize(prompt, rows, tokenizer())
        weights = elastic_weights(state.concepts, words, token_tables(clip, state), sharpness)
        found = heard_by_words(model, clip, state, prompt)
        if found is not None:
            weights = [float(mentions(prompt, one.token)) for one in state.concepts]
            model, clip, conditioning = found
        else:
            model, clip = put_on(model, clip, weighted_state(state, weights))
            conditioning = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
        text = told(state, weights)
        return io.NodeOutput(model, clip, conditioning, text, ui=ui.PreviewText(text))


def heard_by_words(
    model: Any, clip: Any, state: LifelongState, prompt: str
) -> tuple[Any, Any, Any] | None:
    """Clones of MODEL and CLIP that hear each concept of the prompt in its own words alone, and the
    prompt's conditioning.

    None where the library does not either, see `records_by_words`, and for prompts that CLIP does
    not read so.
    """
    records = records_by_words(state, prompt)
    if not records:
        return None
    nothing = weighted_state(state, [0.0] * len(state.concepts))
    model, clip = put_on(model, clip, nothing)
    read = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    if not all(WORDS in options for _, options in read):
        return None
    adapters = {one.concept.token: unet_changes(state, one.adapter) for one in records}
    add_word_adapters(model, adapters)
    return model, clip, read


def token_tables(clip: Any, state: LifelongState) -> TokenTables:
    """The token tables of the CLIP's text encoders that the state's concepts have vectors for.

    Raises ModelError when one is missing.
    """
    tables = {}
    for key in dict.fromkeys(key for concept in state.concepts for key in concept.vectors):
        encoder = getattr(clip.cond_stage_model, key, None)
        if encoder is None:
            raise ModelError(
                f"This CLIP has no text encoder {key!r}, which the state's concepts need. Link the "
                "CLIP of the checkpoint that the concepts were learned on."
            )
        tables[key] = encoder.transformer.get_input_embeddings().weight
    return tables


def told(state: LifelongState, weights: Sequence[float]) -> str:
    """A line per concept that is used, most of all first."""
    used = sorted(zip(weights, state.concepts, strict=True), key=lambda one: -one[0])
    lines = [f"{weight:7.2%}  {concept.phrase}" for weight, concept in used if weight]
    if not lines:
        return "The prompt names no concept: it is drawn by the MODEL as it was."
    return "\n".join([*lines, f"Concepts that are not used: {weights.count(0.0)}"])
