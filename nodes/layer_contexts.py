"""Layer-wise concepts in ComfyUI: every cross-attention layer reads a prompt with its own vectors.

What CLIP Text Encode gives stays what stock nodes expect, the encoding of the concepts' mean
vectors. The contexts of the single layers travel beside it, in the conditioning's dictionary,
which ComfyUI hands on untouched. A MODEL with the same state finds them there; any other draws
with the mean.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..lifelong_core.attention.layers import context_blocks
from ..lifelong_core.concepts import Concept
from ..lifelong_core.state import LifelongState

KEY = "lifelong_layers"
ENCODE = "encode_token_weights"
READY = "lifelong_layers_ready"
"""In the dictionary that belongs to one sampling run: the contexts on the sampler's device."""

Place = tuple[int, Any]
"""A conditioning of a pass: the number of its list, and its uuid, which two lists may share (see
`text_of`)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LayerContexts:
    """A prompt as the layers read it: `layers` [1, L, T, W], beside `context` [1, T, W] of the mean
    vectors, by which a conditioning shows that it still is this prompt.
    """

    context: Tensor
    layers: Tensor


def add_layers(model: Any, clip: Any, state: LifelongState) -> None:
    """Let a clone of MODEL and one of CLIP, changed in place, use the state's layer-wise concepts.

    Nothing happens where there are none.
    """
    concepts = [concept for concept in state.concepts if concept.layers]
    if not concepts:
        return
    encode = clip.patcher.get_model_object(ENCODE)
    clip.patcher.add_object_patch(ENCODE, LayerwiseEncoding(encode, concepts))
    own = OwnContexts(context_blocks(state.family))
    model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, own)


def remove_layers(patcher: Any) -> None:
    """Undo `add_layers` on the patcher of a clone of MODEL; on CLIP's see `remove_encodings`."""
    patcher.remove_wrappers_with_key(WrappersMP.CALC_COND_BATCH, KEY)


class LayerwiseEncoding:
    """`encode_token_weights` of ComfyUI's text encoders that reads each layer's own vectors too.

    All layers' readings go through the encoders in one batch, as further chunks of one prompt.
    """

    def __init__(self, encode: Callable[..., Any], concepts: Sequence[Concept]) -> None:
        self.encode = encode
        self.count = concepts[0].layers
        self._own: dict[bytes, Tensor] = {}
        for concept in concepts:
            for encoder, mean in concept.single().vectors.items():
                rows = concept.vectors[encoder].unbind(1)
                self._own |= {mark(one): own for one, own in zip(mean, rows, strict=True)}

    def __call__(self, tokens: Mapping[str, Sequence[Any]]) -> tuple[Any, ...]:
        """As ComfyUI's, with `LayerContexts` in the dictionary that comes third."""
        if not any(self._layers(token) is not None for token in _tokens(tokens)):
            return tuple(self.encode(tokens))
        # ComfyUI cuts several encoders to the shortest.
        length = min(len(chunks) for chunks in tokens.values())
        mean = {encoder: list(chunks[:length]) for encoder, chunks in tokens.items()}
        read = {
            encoder: chunks + [self._at(n, chunk) for n in range(self.count) for chunk in chunks]
            for encoder, chunks in mean.items()
        }
        encoded, pooled, *extra = self.encode(read)
        every = encoded.unflatten(1, (1 + self.count, -1))
        context = every[:, 0]
        found = {KEY: LayerContexts(context, every[:, 1:])}
        return context, pooled, (extra[0] if extra else {}) | found

    def _at(self, layer: int, chunk: Sequence[Any]) -> list[Any]:
        """A chunk of (token, weight, …) with the vectors of one layer."""
        found = [(entry, self._layers(entry[0])) for entry in chunk]
        return [entry if own is None else (own[layer], *entry[1:]) for entry, own in found]

    def _layers(self, token: Any) -> Tensor | None:
        """All layers' vectors [L, width] of a token that stands for their mean."""
        return self._own.get(mark(token)) if torch.is_tensor(token) else None


class OwnContexts:
    """A CALC_COND_BATCH wrapper that gives each cross-attention layer of the UNet its own context.

    blocks: ComfyUI's names of the layers in their order.
    """

    def __init__(self, blocks: Sequence[tuple[str, int, int]]) -> None:
        self.numbers = {block: number for number, block in enumerate(blocks)}

    def __call__(
        self,
        executor: Any,
        model: Any,
        conds: Sequence[Sequence[dict[str, Any]] | None],
        x: Tensor,
        timestep: Tensor,
        model_options: dict[str, Any],
    ) -> Any:
        layers = {
            place: found
            for place, cond in placed(conds)
            if (found := _ready(cond, x.device)) is not None
        }
        if layers:
            model_options = _with_patch(model_options, _Patch(self.numbers, layers))
        return executor(model, conds, x, timestep, model_options)


@dataclass(frozen=True, eq=False)
class _Patch:
    """An attn2_patch: the contexts of the rows that have their own, [1, L, T, W] each."""

    numbers: Mapping[tuple[str, int, int], int]
    layers: Mapping[Place, Tensor]

    def __call__(
        self, n: Tensor, context: Tensor, value: Tensor, extra: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        number = self.numbers.get((*extra["block"], extra["block_index"]))
        if number is None:  # Another network that ComfyUI runs with the same options.
            return n, context, value
        places = places_of(extra)
        own = torch.cat(
            [
                _like(self.layers[place][:, number], chunk) if place in self.layers else chunk
                for place, chunk in zip(places, context.chunk(len(places)), strict=True)
            ]
        )
        return n, own, own


def _with_patch(model_options: Mapping[str, Any], patch: _Patch) -> dict[str, Any]:
    """A copy of the options in which `patch` comes before other nodes' patches of the context,
    which may put tokens of their own behind the text's.
    """
    options = model_options.get("transformer_options", {})
    patches = options.get("patches", {})
    first = {"attn2_patch": [patch, *patches.get("attn2_patch", [])]}
    return {**model_options, "transformer_options": {**options, "patches": {**patches, **first}}}


def _ready(cond: dict[str, Any], device: torch.device) -> Tensor | None:
    """The contexts [1, L, T, W] of a conditioning on a device; kept in its dictionary, which
    belongs to this run of a sampler.
    """
    if KEY not in cond:
        return None
    if READY not in cond:
        found = _contexts(cond[KEY], text_of(cond))
        cond[READY] = None if found is None else found.to(device)
    ready: Tensor | None = cond[READY]
    return ready


def _contexts(own: LayerContexts, context: Tensor) -> Tensor | None:
    """The layers' contexts with what other nodes put behind the prompt; None where they made
    something else of it.
    """
    tokens = own.context.shape[1]
    if not torch.equal(context[:, :tokens], own.context.to(context)):
        _warn()
        return None
    behind = context[:, None, tokens:].expand(-1, own.layers.shape[1], -1, -1)
    return torch.cat([own.layers.to(context), behind], dim=2)


def placed(conds: Sequence[Sequence[dict[str, Any]] | None]) -> Iterator[tuple[Place, Any]]:
    """The conditionings of a pass, each with its place."""
    return (
        ((number, cond["uuid"]), cond) for number, part in enumerate(conds) for cond in part or ()
    )


def places_of(options: Mapping[str, Any]) -> list[Place]:
    """Where the conditionings of a pass's parts stand in its lists, in the order of its rows."""
    return list(zip(options["cond_or_uncond"], options["uuids"], strict=True))


def text_of(cond: Mapping[str, Any]) -> Tensor:
    """The context [1, T, W] that the UNet reads for a conditioning of a run.

    Not always its `cross_attn`: where the positive prompt has an area, ComfyUI puts a copy of its
    conditioning among the negative ones, uuid and all, and exchanges no more than what is read.
    """
    context: Tensor = cond["model_conds"]["c_crossattn"].cond
    return context


@cache
def _warn() -> None:
    """Say it once, not in every run."""
    log.warning(
        "A conditioning with layer-wise concepts was mixed or changed by another node; it is drawn "
        "with the mean of their vectors. Link CLIP Text Encode to the sampler, or change the "
        "prompt's text instead."
    )


def _like(own: Tensor, chunk: Tensor) -> Tensor:
    """[1, T, W] repeated to a chunk's rows and, where prompts of several lengths share a batch, to
    its tokens."""
    times = chunk.shape[1] // own.shape[1]
    return own.to(chunk).repeat(len(chunk) // len(own), times, 1)


def _tokens(tokens: Mapping[str, Sequence[Any]]) -> Iterator[Any]:
    return (entry[0] for chunks in tokens.values() for chunk in chunks for entry in chunk)


def mark(vector: Tensor) -> bytes:
    """What a vector is known again by, also where a node has copied it."""
    return bytes(vector.detach().to("cpu", torch.float32).contiguous().numpy().tobytes())
