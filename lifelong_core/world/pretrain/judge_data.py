"""What the judge learns from: pictures, with everything that they show as numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from torch import Tensor
from torch.nn import functional as F

from ..backgrounds import BACKGROUNDS
from ..dice import Dice
from ..grading import FLAT_TONES
from ..judge_net import ATTRIBUTES, GLOBALS, GRID, READ
from ..looks import fancy_look, plain_look
from ..scenes import Scene, Thing, placements, render
from ..shapes import NOUNS
from .arrays import cached
from .dataset import HELD_OUT, Scenes, to_images
from .small_pictures import rebuilt_pictures, rendered, spoil

MOST = 3  # objects in a scene
ODD = 3000  # scenes with a noun twice or with no object, which captions never ask for
ODD_SHARE = 0.1
FANCY_SHARE = 0.5  # drawn from scenes with patterns and parts, which are harder to read
REBUILT_SHARE = 0.35  # shown through the VAE, as all that a demo model draws
MASK_SIZE = 32

# One row per object: noun, attributes (-1: cannot be told), x, y, size; empty rows have size 0.
_ROW = 1 + len(ATTRIBUTES) + 3
_PATTERN = 1 + list(ATTRIBUTES).index("pattern")


@dataclass(frozen=True)
class Targets:
    """`cover` long [B, 16, 16]: 0 nothing, else noun + 1; `things` [B, 3, 11]; `whole` [B, 4]."""

    cover: Tensor
    things: Tensor
    whole: Tensor

    def to(self, device: str) -> Targets:
        """The same on another device."""
        return Targets(self.cover.to(device), self.things.to(device), self.whole.to(device))

    @property
    def present(self) -> Tensor:
        """[B, 3] bool: this row holds an object."""
        return self.things[..., -1] > 0

    def flipped(self, which: Tensor) -> Targets:
        """Mirrored where `which` [B] is true."""
        cover = torch.where(which[:, None, None], self.cover.flip(-1), self.cover)
        things = self.things.clone()
        things[..., -3] = torch.where(which[:, None], 1 - things[..., -3], things[..., -3])
        return Targets(cover, things, self.whole)

    def bumps(self, spread: float) -> Tensor:
        """[B, 3, 16, 16]: 1 in the middle of each object, falling off with its size; 0 for none."""
        cells = (torch.arange(GRID, device=self.things.device) + 0.5) / GRID
        x, y, size = self.things[..., -3:].unbind(-1)
        width = (spread * size).clamp(min=0.4 / GRID)[..., None, None]
        # Half a cell of slack, so that the cell nearest to the middle has a value of one.
        dx = (cells - x[..., None]).abs().sub(0.5 / GRID).clamp(min=0)[:, :, None, :]
        dy = (cells - y[..., None]).abs().sub(0.5 / GRID).clamp(min=0)[:, :, :, None]
        bumps = torch.exp(-(dx.square() + dy.square()) / (2 * width.square()))
        return bumps * self.present[..., None, None]


class JudgeData:
    """Scenes, odd scenes and (with a VAE) the first of the scenes through it."""

    def __init__(
        self, folder: Path, scenes: Scenes, vae: AutoencoderTiny | None, reconstructed: int
    ) -> None:
        name = f"{scenes.seed}-{scenes.count}"
        self.pictures = scenes.pictures()
        self.count = len(scenes)
        self.rebuilt = self.held_out_rebuilt = self.pictures[:0]
        if vae:
            self.rebuilt = rebuilt_pictures(folder, name, self.pictures[:reconstructed], vae)
            held_out = self.pictures[self.count :]
            self.held_out_rebuilt = rebuilt_pictures(folder, f"{name}-held-out", held_out, vae)
        every = range(self.count + HELD_OUT)
        odd = [odd_scene(scenes.seed, index) for index in range(ODD)]
        self.odd = cached(folder / f"odd-{name}-{READ}.npy", lambda: rendered(odd, READ))
        self._targets = _load(
            folder / f"judge-{name}.npy", lambda: (scenes.scene(index) for index in every)
        )
        worn = self._targets.things[: self.count, :, _PATTERN:-3].amax(2)
        self._fancy = (worn > 0).nonzero()[:, 0]  # a scene once for each fancy object
        self._fancy_rebuilt = self._fancy[self._fancy < len(self.rebuilt)]
        self._odd_targets = _load(folder / f"judge-odd-{name}.npy", lambda: odd)

    def batch(self, size: int, draw: torch.Generator) -> tuple[Tensor, Targets]:
        """Pictures [size, 3, 128, 128], spoiled and mirrored at random, and their targets."""
        odd = torch.randint(len(self.odd), (int(size * ODD_SHARE),), generator=draw)
        many = int(size * REBUILT_SHARE) if len(self.rebuilt) else 0
        through = self._some(many, len(self.rebuilt), self._fancy_rebuilt, draw)
        drawn = self._some(size - many - len(odd), self.count, self._fancy, draw)
        sources = ((self.rebuilt, through), (self.pictures, drawn), (self.odd, odd))
        rows = [array[i] for array, index in sources for i in index.tolist()]
        flip = torch.rand(size, generator=draw) < 0.5
        images = to_images(np.stack(rows))
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        index = torch.cat([through, drawn])
        targets = _join(_take(self._targets, index), _take(self._odd_targets, odd))
        return spoil(images, draw), targets.flipped(flip)

    @staticmethod
    def _some(size: int, count: int, fancy: Tensor, draw: torch.Generator) -> Tensor:
        """`size` scenes of the first `count`, FANCY_SHARE of them from `fancy`."""
        index = torch.randint(max(1, count), (size,), generator=draw)
        hard = fancy[torch.randint(max(1, len(fancy)), (size,), generator=draw)]
        return torch.where(torch.rand(size, generator=draw) < FANCY_SHARE, hard, index)


def odd_scene(seed: int, index: int) -> Scene:
    """No object, or two or three of which at least two share their noun."""
    dice = Dice(seed, "odd", index)
    count = dice.pick((0, 2, 2, 2, 3, 3))
    nouns = [dice.pick(NOUNS)] * 2 + [dice.pick(NOUNS)]
    places = placements(count, dice) if count else []
    things = tuple(
        Thing(noun, plain_look(dice) if dice.chance(0.5) else fancy_look(dice), place)
        for noun, place in zip(dice.sample(nouns[: max(count, 1)], count), places, strict=True)
    )
    return Scene(dice.pick(BACKGROUNDS), things, seed=int(dice.unit() * 2**40))


def _load(path: Path, scenes: Callable[[], Iterable[Scene]]) -> Targets:
    def make() -> np.ndarray:
        return np.stack([_flat(scene) for scene in scenes()])

    flat = torch.from_numpy(np.array(cached(path, make)))
    cover, things, whole = flat.split([GRID * GRID, MOST * _ROW, len(GLOBALS)], dim=1)
    return Targets(cover.view(-1, GRID, GRID).long(), things.reshape(-1, MOST, _ROW), whole.long())


def _flat(scene: Scene) -> np.ndarray:
    """Everything about a scene in one fp32 row."""
    things = torch.zeros(MOST, _ROW)
    for row, thing in enumerate(scene.things):
        things[row] = torch.tensor(_thing_row(thing, scene.style.tone in FLAT_TONES))
    whole = [
        values.index(getattr(scene if name == "background" else scene.style, name))
        for name, values in GLOBALS.items()
    ]
    return torch.cat(
        [_cover(scene).flatten(), things.flatten(), torch.tensor(whole).float()]
    ).numpy()


def _thing_row(thing: Thing, colours: bool) -> list[float]:
    told = [
        values.index(getattr(thing.look, name)) if colours or name == "pattern" else -1
        for name, values in ATTRIBUTES.items()
    ]
    place = thing.place
    return [NOUNS.index(thing.noun), *told, place.x, place.ground - place.size / 2, place.size]


def _cover(scene: Scene) -> Tensor:
    """[16, 16]: the noun (+ 1) that covers at least half of the cell."""
    masks = render(scene, MASK_SIZE).masks.float()
    cover = torch.zeros(GRID, GRID)
    for mask, thing in zip(masks, scene.things, strict=True):
        share = F.avg_pool2d(mask[None], MASK_SIZE // GRID)[0]
        cover[share >= 0.5] = NOUNS.index(thing.noun) + 1
    return cover


def _take(targets: Targets, index: Tensor) -> Targets:
    return Targets(targets.cover[index], targets.things[index], targets.whole[index])


def _join(*parts: Targets) -> Targets:
    names: Sequence[str] = ("cover", "things", "whole")
    return Targets(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
