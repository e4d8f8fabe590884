"""Where a noun's cross-attention points in a picture that is being made."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import isqrt
from types import TracebackType

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional as F

from ..attention import find_pairs, prompt_tokens
from ..attention.capture import attention_maps, watching
from ..backbone import Backbone
from ..prompts import tokenizer
from ..prompts.tokens import tokenize
from .judge_net import GRID

INSIDE = 0.5  # least probability of the noun for a cell to count as inside its object


def noun_positions(prompt: str, noun: str) -> list[int]:
    """Positions of the noun's tokens in a prompt of plain words. Raises InputError without it."""
    tokens = prompt_tokens(tokenize(prompt, {}, tokenizer()))
    return list(find_pairs(tokens, [(None, noun)]).pairs[0].noun)


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
        self._watching = ExitStack()

    def __enter__(self) -> Watch:
        unet = self.backbone.unet
        names = [name for name, _ in unet.named_modules() if name.endswith("attn2")]
        self._watching.enter_context(watching(unet, names, self._see))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._watching.close()

    def _see(self, name: str, layer: Attention, hidden: Tensor, context: Tensor) -> None:
        half = len(hidden) // 2  # the first half is the empty prompt
        self._add(name, attention_maps(layer, hidden[half:], context[half:]))

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


def points_inside(maps: Tensor, where: Tensor) -> Tensor:
    """Whether each map's peak lies inside its own object: bool [B, nouns].

    `maps` [B, nouns, 16, 16]; `where` [B, nouns, 16, 16]: the judge's probability that a cell
    belongs to an object of that noun. The masks of generated pictures are not known; the judge's
    cells stand in for them, and a cell belongs to one noun only.
    """
    peak = maps.flatten(2).argmax(-1, keepdim=True)
    return where.flatten(2).gather(2, peak)[..., 0] > INSIDE
