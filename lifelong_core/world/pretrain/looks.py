"""Where looks show: how much of every latent cell is part or pattern.

Parts are small and looks told in many words, so that in a plain mean of errors they hardly count.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..looks import Look
from ..scenes import SIZE, Scene, render
from .arrays import cached, in_processes
from .dataset import HELD_OUT, Scenes

CELL = 8  # pixels of a latent cell's side
SIDE = SIZE // CELL
VISIBLE = 0.12  # change of a channel from which on a pixel counts: colours are jittered by less
BODY = 0.5  # what a patterned body's pixel counts beside a part's
WEIGHT = 8.0  # how much more than others a cell counts that shows nothing but parts
ODDS = 4.0  # how much more often than others scenes with looks are shown


def look_shares(scenes: Scenes, workers: int = 1) -> Tensor:
    """float [scenes + HELD_OUT, 16, 16]: share of each latent cell's pixels that show a part, and
    half of those that show a patterned body; made once, kept."""
    path = scenes.folder / f"looks-{scenes.seed}-{scenes.count}.npy"
    shares = cached(path, lambda: _made(scenes, workers))
    return torch.from_numpy(np.array(shares)).float() / CELL**2


def _made(scenes: Scenes, workers: int) -> np.ndarray:
    chunks = in_processes(partial(_chunk, scenes), len(scenes) + HELD_OUT, workers)
    return np.concatenate(list(chunks))


def cell_weights(shares: Tensor) -> Tensor:
    """Weight of every cell's error, mean 1 over each picture; shares and weights [B, 16, 16]."""
    weights = 1.0 + WEIGHT * shares
    return weights / weights.mean((1, 2), keepdim=True)


def odds(shares: Tensor) -> Tensor:
    """How often each scene is shown, [N], in relation to the others."""
    return torch.where(shares.flatten(1).any(1), ODDS, 1.0)


def _chunk(scenes: Scenes, start: int, stop: int) -> np.ndarray:
    torch.set_num_threads(1)
    return np.stack([_shown(scenes.scene(index)) for index in range(start, stop)])


def _shown(scene: Scene) -> np.ndarray:
    """uint8 [16, 16]: pixels of each cell that show a look."""
    if all(thing.look.is_plain for thing in scene.things):
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
    drawn = render(scene)
    bare = tuple(replace(thing, look=_without_parts(thing.look)) for thing in scene.things)
    change = drawn.image - render(replace(scene, things=bare)).image
    seen = (change.abs().amax(0) > VISIBLE).float()
    for thing, mask in zip(scene.things, drawn.masks, strict=True):
        if thing.look.pattern != "plain":
            seen = seen.maximum(BODY * mask)
    return (F.avg_pool2d(seen[None], CELL)[0] * CELL**2).round().byte().numpy()


def _without_parts(look: Look) -> Look:
    return Look(look.colour, look.pattern, look.second)
