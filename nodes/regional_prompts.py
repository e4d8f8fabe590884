"""From regions, a state and a CLIP to what each region is drawn with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ..lifelong_core.adapters.stacked import stacked_factors
from ..lifelong_core.attention.layers import context_blocks
from ..lifelong_core.backbone.context_layers import QUERY, family_context_layers
from ..lifelong_core.backbone.keys import unet_diffusers_to_ldm
from ..lifelong_core.concepts import mentions, with_plain_nouns
from ..lifelong_core.errors import InputError
from ..lifelong_core.methods import placed_state
from ..lifelong_core.prompts.syntax import IDENTIFIER
from ..lifelong_core.sharing.lora import lora_state_dict
from ..lifelong_core.sharing.naming import UNET, text_prefixes
from ..lifelong_core.state import LifelongState
from .attention_capture import Slot
from .bridge import learned_on
from .layer_contexts import KEY, add_layers
from .localized_encoding import WORDS, add_localized
from .patching import remove_state, with_concepts
from .prompt_words import looked_up
from .regional_attention import RegionalPrompts
from .regional_concept import DrawnRegion
from .unet_changes import unet_changes


def knowing(model: Any, clip: Any, state: LifelongState) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP that read the state's words and draw without its adapters.

    Raises what `learned_on` raises.
    """
    model, clip = remove_state(model).clone(), remove_state(clip).clone()
    learned_on(model, state)
    clip.tokenizer = with_concepts(clip.tokenizer, state)
    add_layers(model, clip, state)
    add_localized(clip, state)
    return model, clip


def read_regions(
    clip: Any, state: LifelongState, pictures: Sequence[Sequence[DrawnRegion]], softness: float
) -> RegionalPrompts:
    """Each region's prompt, encoded by a CLIP of `knowing`, and the adapter of its concept.

    pictures: the regions of each, which differ in their masks; one where all have the same.

    A region without a concept of the state has the base model; one with several has the mean of
    their adapters. Raises InputError for a prompt that names what neither the state nor CLIP
    knows, StateError where the adapter is not kept, or of a kind that changes more than layers
    inside a region can.
    """
    regions = pictures[0]
    for region in regions:
        _require_known(clip, state, region.prompt)
    routed = [placed_state(state, region.concepts) for region in regions]
    changes = stacked_factors(
        [unet_changes(own, own.adapter) if own is not None else {} for own in routed]
    )
    found = [
        _encoded(clip, own, region.prompt) for own, region in zip(routed, regions, strict=True)
    ]
    named = [_named(state, region.concepts) for region in regions]
    localized = tuple(_by_words(*both) for both in zip(named, found, strict=True))
    return RegionalPrompts(
        masks=tuple(tuple(region.mask for region in placed) for placed in pictures),
        softness=softness,
        contexts=_joined([_contexts(one) for one in found]),
        pooled=tuple(one.get("pooled_output") for one in found),
        spoken=_joined([_spoken(*one) for one in zip(named, found, localized, strict=True)])[
            0, ..., 0
        ],
        localized=localized,
        blocks=_blocks(state.family),
        changes=changes,
    )


def without_concepts(state: LifelongState, regions: Sequence[DrawnRegion]) -> list[DrawnRegion]:
    """The regions with the plain nouns of the concepts that draw them, and the base model."""
    return [
        replace(one, prompt=with_plain_nouns(one.prompt, _named(state, one.concepts)), concepts="")
        for one in regions
    ]


def _named(state: LifelongState, text: str) -> list[str]:
    """The tokens of the state's concepts that a text names."""
    return [concept.token for concept in state.concepts if mentions(text, concept.token)]


def _require_known(clip: Any, state: LifelongState, prompt: str) -> None:
    """Raise InputError for a name that ComfyUI would leave out with no more than a warning."""
    words = getattr(clip.tokenizer, next(iter(text_prefixes(state.family))))
    for name, vectors in looked_up(words, prompt)[1]:
        if vectors is None:
            known = ", ".join(concept.phrase for concept in state.concepts) or "no concept"
            raise InputError(
                f"The region {prompt!r} names {IDENTIFIER}{name}, for which the state has no "
                f"adapter and ComfyUI no embedding. The state knows {known}."
            )


def _encoded(clip: Any, routed: LifelongState | None, prompt: str) -> dict[str, Any]:
    """What text encoders with the region's own adapter give for its prompt."""
    if routed is not None:
        lora = lora_state_dict(routed)
        text = {key: value for key, value in lora.items() if not key.startswith(UNET)}
        if text:
            _, clip = comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)
    found: dict[str, Any] = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)
    return found


def _contexts(found: Mapping[str, Any]) -> Tensor:
    """The prompt as layers read it: [L, 1, tokens, width]; L is 1 where all layers read alike."""
    layers = found.get(KEY)
    return found["cond"][None] if layers is None else layers.layers.transpose(0, 1)


def _by_words(own: Sequence[str], found: Mapping[str, Any]) -> bool:
    """Whether the adapter of these concepts is heard in their own words of a prompt alone."""
    return WORDS in found and set(own) <= set(found[WORDS].tokens)


def _spoken(own: Sequence[str], found: Mapping[str, Any], localized: bool) -> Tensor:
    """[1, 1, tokens, 1]: 1 in rows in which the adapter of these concepts is heard, else 0."""
    heard = torch.ones(found["cond"].shape[1])
    if localized:
        words = found[WORDS]
        owners = torch.tensor([words.tokens.index(token) for token in own], dtype=torch.long)
        heard = torch.isin(words.owners, owners).to(heard)
    return heard[None, None, :, None]


def _joined(prompts: Sequence[Tensor]) -> Tensor:
    """[L, U, tokens, width]: shorter prompts several times over, which changes no attention."""
    layers = max(len(contexts) for contexts in prompts)
    tokens = math.lcm(*(contexts.shape[2] for contexts in prompts))
    each = [
        contexts.expand(layers, -1, -1, -1).repeat(1, 1, tokens // contexts.shape[2], 1)
        for contexts in prompts
    ]
    return torch.cat(each, dim=1)


def _blocks(family: str) -> dict[Slot, str]:
    """The UNet's transformer blocks: how patches name them -> how modules are named."""
    names = unet_diffusers_to_ldm(family)
    modules = (names[f"{layer}{QUERY}"] for layer in family_context_layers(family))
    return {
        block: name.removesuffix(f".attn2{QUERY}")
        for block, name in zip(context_blocks(family), modules, strict=True)
    }
