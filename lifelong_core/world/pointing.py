"""Where a noun's cross-attention points in a picture that is being made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt
from types import TracebackType
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from ..backbone import Backbone
from ..prompts import tokenizer
from .judge_net import GRID

INSIDE = 0.5  # least probability of the noun for a cell to count as inside its object


def noun_positions(prompt: str, noun: str) -> list[int]:
    """Positions of the noun's tokens in the prompt's first chunk of 77 (0 is the start mark)."""
    ids, wanted = tokenizer().encode(prompt), tokenizer().encode(noun)
    for start in range(len(ids) - len(wanted) + 1):
        if ids[start : start + len(wanted)] == wanted:
            return [1 + start + k for k in range(len(wanted))]
    raise ValueError(f"{noun!r} is not in {prompt!r}")


@dataclass
class Watch:
    """Adds up the cross-attention maps of nouns while `generate` runs; use as a context manager.

    `words`: per picture, per noun, its token positions; every picture has equally many nouns.
    `maps`: layer name -> [pictures, nouns, 16, 16], the mean over heads, summed over steps.
    Changes nothing in what is generated. Pictures must be made in order, with guidance.
    """

    backbone: Backbone
    words: Sequence[Sequence[Sequence[int]]]
    steps: int

    def __post_init__(self) -> None:
        self.maps: dict[str, Tensor] = {}
        self._calls: dict[str, int] = {}
        self._first: dict[str, int] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Watch:
        for name, module in self.backbone.unet.named_modules():
            if name.endswith("attn2") and isinstance(module, Attention):
                hook = self._hook(name)
                self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, name: str) -> Any:
        def watch(module: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            context = kwargs["encoder_hidden_states"]
            half = len(hidden) // 2  # the first half is the empty prompt
            self._add(name, attention_maps(module, hidden[half:], context[half:]))

        return watch

    def _add(self, name: str, maps: Tensor) -> None:
        """Add `maps` [batch, cells, tokens] to the pictures that this step belongs to."""
        first = self._first.get(name, 0)
        batch, cells, _ = maps.shape
        side = isqrt(cells)
        for row in range(batch):
            chosen = [maps[row, :, list(at)].mean(-1) for at in self.words[first + row]]
            picture = torch.stack(chosen).view(len(chosen), side, side)
            grown = F.interpolate(picture[None], (GRID, GRID), mode="bilinear")[0]
            if name not in self.maps:
                self.maps[name] = torch.zeros(len(self.words), len(chosen), GRID, GRID)
            self.maps[name][first + row] += grown
        self._calls[name] = self._calls.get(name, 0) + 1
        if self._calls[name] % self.steps == 0:
            self._first[name] = first + batch


@torch.no_grad()
def attention_maps(attention: Attention, hidden: Tensor, context: Tensor) -> Tensor:
    """softmax(q k^T), mean of heads: hidden [B, cells, C], context [B, T, W] -> [B, cells, T]."""
    query, key = attention.to_q(hidden), attention.to_k(context)
    heads = attention.heads
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2).float() for x in (query, key))
    return (query @ key.mT * attention.scale).softmax(-1).mean(1)


def points_inside(maps: Tensor, where: Tensor) -> Tensor:
    """Whether each map's peak lies inside its own object: bool [B, nouns].

    `maps` [B, nouns, 16, 16]; `where` [B, nouns, 16, 16]: the judge's probability that a cell
    belongs to an object of that noun. The masks of generated pictures are not known; the judge's
    cells stand in for them, and a cell belongs to one noun only.
    """
    peak = maps.flatten(2).argmax(-1, keepdim=True)
    return where.flatten(2).gather(2, peak)[..., 0] > INSIDE
