"""From regions, a state and a CLIP to what each region is drawn with."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import comfy.sd
import torch
from torch import Tensor

from ..lifelong_core.adapters.factors import Factors, low_rank_factors
from ..lifelong_core.adapters.stacked import stacked_factors
from ..lifelong_core.attention.layers import context_blocks
from ..lifelong_core.attention.regions import Region
from ..lifelong_core.backbone.context_layers import QUERY, family_context_layers
from ..lifelong_core.backbone.keys import unet_diffusers_to_ldm
from ..lifelong_core.concepts import Concept, with_plain_nouns
from ..lifelong_core.errors import InputError
from ..lifelong_core.localized_words import localized_concept, own_words
from ..lifelong_core.methods import placed_state
from ..lifelong_core.prompts.syntax import IDENTIFIER
from ..lifelong_core.sharing.lora import lora_state_dict
from ..lifelong_core.sharing.naming import UNET, layers, text_prefixes
from ..lifelong_core.state import LifelongState
from .attention_capture import Slot
from .bridge import base_model
from .layer_contexts import KEY, add_layers
from .patching import remove_state, with_concepts
from .prompt_words import positions
from .regional_attention import RegionalPrompts

NAMED = re.compile(rf"(?:^|(?<=[\s(])){re.escape(IDENTIFIER)}([A-Za-z0-9_-]+)")


def knowing(model: Any, clip: Any, state: LifelongState) -> tuple[Any, Any]:
    """Clones of MODEL and CLIP that read the state's words and draw without its adapters.

    Raises StateError, with both names, unless the state was learned on MODEL, LoRAs of other
    nodes put on later left out.
    """
    model, clip = remove_state(model).clone(), remove_state(clip).clone()
    bare = model.clone()
    bare.patches = {}
    if state.base_fingerprint != base_model(bare).fingerprint:
        state.require_backbone(base_model(model))
    clip.tokenizer = with_concepts(clip.tokenizer, state)
    add_layers(model, clip, state)
    return model, clip


def read_regions(
    clip: Any, state: LifelongState, regions: Sequence[Region], softness: float
) -> RegionalPrompts:
    """Each region's prompt, encoded by a CLIP of `knowing`, and the adapter of its concept.

    A prompt without a concept of the state has the base model; one with several has the mean of
    their adapters. Raises InputError for a prompt that names what neither the state nor CLIP
    knows, StateError where the adapter is not kept, or of a kind that changes more than layers
    inside a region can.
    """
    routed = [_routed(clip, state, region.prompt) for region in regions]
    changes = stacked_factors([_unet_changes(own) for own in routed])
    encoded = [
        _encoded(clip, own, region.prompt, localized_concept(state, region.prompt))
        for own, region in zip(routed, regions, strict=True)
    ]
    return RegionalPrompts(
        masks=tuple(region.mask for region in regions),
        softness=softness,
        contexts=_joined([contexts for contexts, _ in encoded]),
        pooled=tuple(pooled for _, pooled in encoded),
        blocks=_blocks(state.family),
        changes=changes,
    )


def without_concepts(state: LifelongState, regions: Sequence[Region]) -> list[Region]:
    """The regions with their concepts' plain nouns."""
    tokens = [concept.token for concept in state.concepts]
    return [replace(one, prompt=with_plain_nouns(one.prompt, tokens)) for one in regions]


def _routed(clip: Any, state: LifelongState, prompt: str) -> LifelongState | None:
    """The state whose adapter draws a region's prompt; None for the base model."""
    _require_known(clip, state, prompt)
    return placed_state(state, prompt)


def _require_known(clip: Any, state: LifelongState, prompt: str) -> None:
    """Raise InputError for a name that ComfyUI would leave out with no more than a warning."""
    words = getattr(clip.tokenizer, next(iter(text_prefixes(state.family))))
    for name in NAMED.findall(prompt):
        if words._try_get_embedding(name)[0] is None:
            known = ", ".join(concept.phrase for concept in state.concepts) or "no concept"
            raise InputError(
                f"The region {prompt!r} names {IDENTIFIER}{name}, for which the state has no "
                f"adapter and ComfyUI no embedding. The state knows {known}."
            )


def _encoded(
    clip: Any, routed: LifelongState | None, prompt: str, own: Concept | None
) -> tuple[Tensor, Tensor | None]:
    """The prompt as layers read it [L, 1, tokens, width], and as a whole; by text encoders with
    the region's own adapter. L is 1 where all layers read alike. With `own` only the rows of this
    concept's words tell of it.
    """
    if routed is not None:
        lora = lora_state_dict(routed)
        text = {key: value for key, value in lora.items() if not key.startswith(UNET)}
        if text:
            _, clip = comfy.sd.load_lora_for_models(None, clip, text, 0.0, 1.0)
    if own is None:
        return _read(clip, prompt)
    plain = with_plain_nouns(prompt, [own.token])
    places = own_words(positions(clip, prompt), positions(clip, plain), own)
    if places is None:
        return _read(clip, prompt)
    (contexts, _), (others, pooled) = _read(clip, prompt), _read(clip, plain)
    return places.put(contexts, others.expand_as(contexts)), pooled


def _read(clip: Any, prompt: str) -> tuple[Tensor, Tensor | None]:
    found = clip.encode_from_tokens(clip.tokenize(prompt), return_dict=True)
    layers = found.get(KEY)
    contexts = found["cond"][None] if layers is None else layers.layers.transpose(0, 1)
    return contexts, found.get("pooled_output")


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


def _unet_changes(routed: LifelongState | None) -> Mapping[str, Factors]:
    """ComfyUI's name of a linear layer of the UNet -> what an adapter changes in it."""
    if routed is None:
        return {}
    found = low_rank_factors(routed.adapter_spec, routed.adapter, layers(routed.family))
    names = unet_diffusers_to_ldm(routed.family)
    return {
        names[f"{layer.removeprefix('unet.')}.weight"].removesuffix(".weight"): factors
        for layer, factors in found.items()
        if layer.startswith("unet.")
    }
