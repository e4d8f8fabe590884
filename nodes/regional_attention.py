"""Attention by regions inside ComfyUI's UNet: each region with a prompt and an adapter of its own.

A pass's batch is made of chunks, one per conditioning, of all pictures each. A pair is a chunk and
a region that is drawn in it: what regions compute for themselves is computed for all pairs at once,
[pairs, pictures, positions, width].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ..lifelong_core.adapters.stacked import Stacked
from ..lifelong_core.attention.regions import cover, mix_attention
from ..lifelong_core.errors import InputError
from .attention_capture import Slot, patch_at

Area = tuple[int, int, int, int]
"""A crop of the latents as ComfyUI has it: height, width, top, left."""
Size = tuple[int, int]
Patch = Callable[..., Tensor] | None

PROJECTIONS = ("to_q", "to_k", "to_v")


@dataclass(frozen=True, eq=False)
class RegionalPrompts:
    """What U regions are for one model.

    masks: [H, W] each, for every picture, or once where all have the same; softness: of their
    edges, see `cover`. contexts: their encoded prompts
    [L, U, tokens, width], L the number of `blocks`, or 1 where all read alike. pooled: each prompt
    as a whole, for models that are told that too. spoken: [U, tokens], 0 in the rows of prompts
    that the base model reads, 1 in those that a region's adapter does. localized: the regions whose
    adapter is heard in such rows alone. blocks: the UNet's transformer blocks, as patches
    and as modules are named, in the order in which they run. changes: the name of a linear layer of
    the UNet -> what the regions' adapters change in it. known: what `covered` has answered.
    """

    masks: tuple[tuple[Tensor, ...], ...]
    softness: float
    contexts: Tensor
    pooled: tuple[Tensor | None, ...]
    spoken: Tensor
    localized: tuple[bool, ...]
    blocks: Mapping[Slot, str]
    changes: Mapping[str, Stacked]
    known: dict[tuple[Size, Size, Area | None], Tensor] = field(default_factory=dict)

    def to(self, device: torch.device, dtype: torch.dtype) -> RegionalPrompts:
        """The same where the UNet is, in its number format."""
        changes = {name: stacked.to(device, dtype) for name, stacked in self.changes.items()}
        contexts, spoken = (x.to(device, dtype) for x in (self.contexts, self.spoken))
        return replace(self, contexts=contexts, spoken=spoken, changes=changes, known={})

    def read_at(self, slot: Slot) -> Tensor:
        """The prompts as one layer reads them: [U, tokens, width]."""
        return self.contexts[list(self.blocks).index(slot) if len(self.contexts) > 1 else 0]

    def covered(self, size: Size, latent: Size, area: Area | None = None) -> Tensor:
        """How much of each cell of a layer belongs to each region: [B, U, h, w] fp32, B 1 where all
        pictures have the same regions.

        latent: size of the whole latents. area: the crop of them that the layer sees.
        """
        at = (size, latent, area)
        if at not in self.known:
            found = [self._covered(masks, *at) for masks in self.masks]
            self.known[at] = torch.stack(found).to(self.contexts.device)
        return self.known[at]

    def _covered(
        self, masks: Sequence[Tensor], size: Size, latent: Size, area: Area | None
    ) -> Tensor:
        if area is None:
            return cover(masks, size, self.softness)
        height, width, top, left = area
        cells = cover(masks, latent, self.softness)
        return cover(list(cells[:, top : top + height, left : left + width]), size)


@dataclass(frozen=True)
class Plan:
    """What the lists of conditionings of a step are, by ComfyUI's index of them.

    regions: the regions that are drawn in each. prompted: those where regions have prompts of
    their own; in others, such as the negative one, a region is its adapter alone. positive: what
    these are for other patches, which know positive and negative only. areas: the crops of
    conditionings that have one, by their uuid. latent: size of the whole latents.
    """

    regions: Mapping[int, tuple[int, ...]]
    prompted: Collection[int]
    positive: int
    areas: Mapping[Any, Area]
    latent: Size


class RegionalAttention:
    """A DIFFUSION_MODEL wrapper: each region attends to its own prompt, through its own adapter.

    Inside a region, keys and values are those that its adapter makes of its prompt; projections
    that work cell by cell (queries, outputs, all of self-attention) have the adapter's change
    there. Patches that are in the slots already compute every attention, the regions' too.

    kept: the keys and values of the regions' prompts, by layer, filled by the first pass; for as
    long as the weights stay.
    """

    def __init__(self, prompts: RegionalPrompts, plan: Plan, kept: dict[str, Tensor]) -> None:
        self.prompts = prompts
        self.plan = plan
        self.kept = kept

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor,
        y: Tensor | None,
        control: Any,
        transformer_options: Mapping[str, Any],
        **others: Any,
    ) -> Tensor:
        run = _Pass(self, executor.class_obj, transformer_options, len(x))
        options = run.options(transformer_options)
        return executor(x, timesteps, context, y, control, options, **others)


@dataclass(frozen=True, eq=False)
class _Chunk:
    """The rows of one conditioning. index, uuid: what they are for other patches."""

    rows: slice
    regions: tuple[int, ...]
    prompted: bool
    area: Area | None
    index: int
    uuid: Any


class _Layer(NamedTuple):
    """An attention module of the UNet: its transformer block, and its own name."""

    slot: Slot
    name: str


class _Pairs:
    """Some chunks of a pass and the regions in each."""

    def __init__(self, chunks: Sequence[_Chunk]) -> None:
        self.chunks = [chunk for chunk in chunks for _ in chunk.regions]
        self.regions = [region for chunk in chunks for region in chunk.regions]
        ends = torch.tensor([0, *(len(chunk.regions) for chunk in chunks)]).cumsum(0).tolist()
        self.spans = list(zip(chunks, map(slice, ends[:-1], ends[1:]), strict=True))

    def of(self, rows: Tensor) -> Tensor:
        """[rows, …] -> [pairs, pictures, …]."""
        return torch.stack([rows[chunk.rows] for chunk in self.chunks])

    def mixed(self, whole: Tensor, inside: Tensor, covered: Callable[[_Chunk], Tensor]) -> Tensor:
        """`whole` [rows, …] with what the pairs have, [pairs, pictures, …], in their regions."""
        mixed = whole.clone()
        for chunk, span in self.spans:
            mixed[chunk.rows] = by_picture(
                mix_attention, whole[chunk.rows], inside[span], covered(chunk)
            )
        return mixed


class _Pass:
    """One pass of the UNet: its chunks, and what a layer's patches hand on to one another."""

    def __init__(
        self,
        regional: RegionalAttention,
        unet: Any,
        transformer_options: Mapping[str, Any],
        rows: int,
    ) -> None:
        self.prompts, self.plan, self.kept = regional.prompts, regional.plan, regional.kept
        self.unet = unet
        plan = regional.plan
        indices, uuids = transformer_options["cond_or_uncond"], transformer_options["uuids"]
        count = self.pictures = rows // len(indices)
        chunks = [
            _Chunk(
                slice(number * count, (number + 1) * count),
                plan.regions[index],
                index in plan.prompted,
                plan.areas.get(uuid),
                plan.positive if index in plan.prompted else index,
                uuid,
            )
            for number, (index, uuid) in enumerate(zip(indices, uuids, strict=True))
        ]
        self.indices = [chunk.index for chunk in chunks]
        prompted = [chunk for chunk in chunks if chunk.prompted]
        others = [chunk for chunk in chunks if not chunk.prompted]
        self.pairs = _Pairs([*prompted, *others])
        self.prompted, self.others = _Pairs(prompted), _Pairs(others)
        self.given = (torch.empty(0),) * 3
        self.attended = torch.empty(0)

    def options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """A copy of the pass's options with the patches of all layers."""
        patches, replaced = dict(given.get("patches", {})), dict(given.get("patches_replace", {}))
        for kind, attend in (("attn1", self._self_attention), ("attn2", self._cross_attention)):
            layers = {
                slot: _Layer(slot, f"{name}.{kind}") for slot, name in self.prompts.blocks.items()
            }
            if kind == "attn1" and not any(map(self._is_changed, layers.values())):
                continue
            before = replaced.get(kind, {})
            ours = {slot: partial(attend, layers[slot], patch_at(before, slot)) for slot in layers}
            replaced[kind] = {**before, **ours}
            patches[f"{kind}_patch"] = [*patches.get(f"{kind}_patch", ()), self._note]
            output = partial(self._output, layers)
            patches[f"{kind}_output_patch"] = [output, *patches.get(f"{kind}_output_patch", ())]
        return {
            **given,
            "cond_or_uncond": self.indices,
            "patches": patches,
            "patches_replace": replaced,
        }

    def _is_changed(self, layer: _Layer) -> bool:
        return any(name.startswith(f"{layer.name}.") for name in self.prompts.changes)

    def _note(
        self, n: Tensor, context: Tensor, value: Tensor, extra: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keep what the projections of queries, keys and values are about to get."""
        self.given = n, context, value
        return self.given

    def _self_attention(
        self, layer: _Layer, patch: Patch, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        q, k, v = (
            self._changed(layer, name, x, answer, extra)
            for name, x, answer in zip(PROJECTIONS, self.given, (q, k, v), strict=True)
        )
        self.attended = _attend(patch, q, k, v, extra)
        return self.attended

    def _cross_attention(
        self, layer: _Layer, patch: Patch, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]
    ) -> Tensor:
        q = self._changed(layer, "to_q", self.given[0], q, extra)
        self.attended = _attend(patch, q, k, v, extra)
        pairs = self.prompted
        read = [self._of_prompts(layer, name) for name in PROJECTIONS[1:]]
        changes = [self.prompts.changes.get(f"{layer.name}.{name}") for name in PROJECTIONS[1:]]
        if self.others.chunks and any(change is not None for change in changes):
            pairs = self.pairs
            read = [
                _behind(own, self._of_others(change, x, answer))
                for own, change, x, answer in zip(
                    read, changes, self.given[1:], (k, v), strict=True
                )
            ]
        if pairs.chunks:
            query, key, value = (x.flatten(0, 1) for x in (pairs.of(q), *read))
            inside = _attend(patch, query, key, value, self._extra(pairs, extra))
            inside = inside.unflatten(0, read[0].shape[:2])
            self.attended = pairs.mixed(self.attended, inside, self._covered(extra))
        return self.attended

    def _of_others(self, change: Stacked | None, x: Tensor, answer: Tensor) -> Tensor:
        """Keys or values of chunks without prompts of regions, [pairs, pictures, tokens, width]:
        with the regions' adapters, but for those that are heard in their concepts' words alone."""
        own, plain = self.others.of(x), self.others.of(answer)
        read = _plus(change, self.others, own, plain)
        silent = [self.prompts.localized[region] for region in self.others.regions]
        return torch.where(torch.tensor(silent, device=x.device)[:, None, None, None], plain, read)

    def _output(self, layers: Mapping[Slot, _Layer], n: Tensor, extra: Mapping[str, Any]) -> Tensor:
        layer = layers[(*extra["block"], extra["block_index"])]
        return self._changed(layer, "to_out.0", self.attended, n, extra)

    def _changed(
        self, layer: _Layer, name: str, x: Tensor, answer: Tensor, extra: Mapping[str, Any]
    ) -> Tensor:
        """A projection's answer to x [rows, positions, in], with each adapter's in its region."""
        change = self.prompts.changes.get(f"{layer.name}.{name}")
        if change is None:
            return answer
        height, width = extra["activations_shape"][-2:]
        if x.shape[:2] != (len(self.indices) * self.pictures, height * width):
            raise InputError(
                f"Regions whose concepts changed {layer.name}.{name} need all of its positions, "
                "but a node on this MODEL merges or tiles them (Token Merging, HyperTile). Take "
                "that node out, or use lessons whose layers are key and value of cross-attention."
            )
        inside = _plus(change, self.pairs, self.pairs.of(x), self.pairs.of(answer))
        return self.pairs.mixed(answer, inside, self._covered(extra))

    def _of_prompts(self, layer: _Layer, name: str) -> Tensor:
        """Keys or values of the regions' own prompts: [pairs, pictures, tokens, width]."""
        projection = f"{layer.name}.{name}"
        if projection not in self.kept:
            contexts = self.prompts.read_at(layer.slot)
            answers = self.unet.get_submodule(projection)(contexts)
            change = self.prompts.changes.get(projection)
            if change is not None:
                answers = answers + change.changes(contexts) * self.prompts.spoken[..., None]
            self.kept[projection] = answers
        chosen = self.kept[projection][self.prompted.regions]
        return chosen[:, None].expand(-1, self.pictures, -1, -1)

    def _covered(self, extra: Mapping[str, Any]) -> Callable[[_Chunk], Tensor]:
        """A chunk -> how much of each position of this layer is its regions', [B, U, positions]."""
        height, width = extra["activations_shape"][-2:]

        def covered(chunk: _Chunk) -> Tensor:
            cells = self.prompts.covered((height, width), self.plan.latent, chunk.area)
            return cells.flatten(2)[:, list(chunk.regions)]

        return covered

    def _extra(self, pairs: _Pairs, extra: Mapping[str, Any]) -> dict[str, Any]:
        """ComfyUI's extras as they are for a batch of one chunk per pair."""
        return {
            **extra,
            "cond_or_uncond": [chunk.index for chunk in pairs.chunks],
            "uuids": [chunk.uuid for chunk in pairs.chunks],
            "activations_shape": [
                len(pairs.chunks) * self.pictures,
                *extra["activations_shape"][1:],
            ],
        }


def by_picture(
    mix: Callable[..., Tensor], whole: Tensor, inside: Tensor, covered: Tensor, *settings: Any
) -> Tensor:
    """`mix` of whole [B, …] and inside [U, B, …], where covered [B or 1, U, …] says."""
    if len(covered) == 1:
        return mix(whole, inside, covered[0], *settings)
    mixed = [
        mix(whole[number, None], inside[:, number, None], own, *settings)
        for number, own in enumerate(covered)
    ]
    return torch.cat(mixed)


def _behind(first: Tensor, second: Tensor) -> Tensor:
    """Keys or values of some pairs, then of others: [pairs, pictures, tokens, width]; shorter ones
    several times over, which changes no attention."""
    tokens = math.lcm(first.shape[2], second.shape[2])
    return torch.cat([x.repeat(1, 1, tokens // x.shape[2], 1) for x in (first, second)])


def _plus(change: Stacked | None, pairs: _Pairs, x: Tensor, answer: Tensor) -> Tensor:
    """A projection's answer to the pairs' x [pairs, …, in] with each pair's adapter."""
    return answer if change is None else answer + change.of(pairs.regions).changes(x)


def _attend(patch: Patch, q: Tensor, k: Tensor, v: Tensor, extra: dict[str, Any]) -> Tensor:
    if patch is not None:
        return patch(q, k, v, extra)
    return optimized_attention(
        q, k, v, extra["n_heads"], attn_precision=extra["attn_precision"],
        transformer_options=extra,
    )  # fmt: skip
