"""Where looks show: the share of every latent cell that patterns and parts change.

Looks are small and told in many words, so that in a plain mean of errors they hardly count.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...files import atomic_write
from ..looks import Look
from ..scenes import SIZE, Scene, render
from .dataset import CHUNK, HELD_OUT, Scenes

CELL = 8  # pixels of a latent cell's side
SIDE = SIZE // CELL
VISIBLE = 0.12  # change of a channel from which on a pixel counts: colours are jittered by less
WEIGHT = 8.0  # how much more than others a cell counts that shows nothing but look
ODDS = 4.0  # how much more often than others scenes with looks are shown


def look_shares(scenes: Scenes, workers: int = 1) -> Tensor:
    """float [scenes + HELD_OUT, 16, 16]: share of each latent cell's pixels that the objects'
    looks change; made once, kept."""
    path = scenes.folder / f"looks-{scenes.seed}-{scenes.count}.npy"
    if not path.exists():
        total = len(scenes) + HELD_OUT
        starts = range(0, total, CHUNK)
        with ProcessPoolExecutor(workers) as pool:
            jobs = [
                pool.submit(_chunk, scenes, start, min(start + CHUNK, total)) for start in starts
            ]
            shares = np.concatenate([job.result() for job in jobs])

        def write(temporary: Path) -> None:
            with open(temporary, "wb") as handle:
                np.save(handle, shares)

        atomic_write(path, write)
    return torch.from_numpy(np.load(path)).float() / CELL**2


def cell_weights(shares: Tensor) -> Tensor:
    """Weight of every cell's error, mean 1 over each picture; shares and weights [B, 16, 16]."""
    weights = 1.0 + WEIGHT * shares
    return weights / weights.mean((1, 2), keepdim=True)


def odds(shares: Tensor) -> Tensor:
    """How often each scene is shown, [N], in relation to the others."""
    return torch.where(shares.flatten(1).any(1), ODDS, 1.0)


def _chunk(scenes: Scenes, start: int, stop: int) -> np.ndarray:
    torch.set_num_threads(1)
    return np.stack([_changed(scenes.scene(index)) for index in range(start, stop)])


def _changed(scene: Scene) -> np.ndarray:
    """uint8 [16, 16]: pixels of each cell that look different without the look."""
    if all(thing.look.is_plain for thing in scene.things):
        return np.zeros((SIDE, SIDE), dtype=np.uint8)
    plain = tuple(replace(thing, look=Look(thing.look.colour)) for thing in scene.things)
    change = render(scene).image - render(replace(scene, things=plain)).image
    seen = (change.abs().amax(0) > VISIBLE).float()
    return (F.avg_pool2d(seen[None], CELL)[0] * CELL**2).round().byte().numpy()
