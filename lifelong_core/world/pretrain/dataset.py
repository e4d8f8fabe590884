"""Rendered scenes on disk: pictures once, captions and contents rebuilt from the scene itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..captions import caption_of
from ..dice import Dice
from ..scenes import SIZE, Scene, random_scene, render
from .arrays import cached, in_processes

HELD_OUT = 512  # scenes at the end that no stage trains on
WILD = 0.4  # share of scenes in colours from the whole cube, for VAE only


class Scenes:
    """`count` training scenes and HELD_OUT more. `wild` scenes show colours from the whole cube."""

    def __init__(self, folder: Path, count: int, seed: int, *, wild: bool) -> None:
        self.folder, self.count, self.seed, self.wild = folder, count, seed, wild

    def __len__(self) -> int:
        return self.count

    def scene(self, index: int) -> Scene:
        """Scene `index`; indices from `count` on are held out."""
        scene = random_scene(self.seed, index)
        if self.wild and Dice(self.seed, "wild", index).chance(WILD):
            return Scene(scene.background, scene.things, scene.style, scene.seed, wild=True)
        return scene

    def caption(self, index: int, variant: int = 0) -> str:
        """Caption `variant` of scene `index`: other variants tell other parts."""
        return caption_of(self.scene(index), Dice(self.seed, "caption", variant, index))

    @property
    def _path(self) -> Path:
        kind = "wild" if self.wild else "named"
        return self.folder / f"scenes-{kind}-{self.seed}-{self.count}.npy"

    def pictures(self, workers: int = 1) -> np.ndarray:
        """uint8 [count + HELD_OUT, 128, 128, 3], rendered once and then memory-mapped."""
        return cached(self._path, lambda: self._render(workers))

    def _render(self, workers: int) -> np.ndarray:
        total, first = self.count + HELD_OUT, 0
        pixels = np.empty((total, SIZE, SIZE, 3), dtype=np.uint8)
        for chunk in in_processes(self._chunk, total, workers):
            pixels[first : first + len(chunk)] = chunk
            first += len(chunk)
        return pixels

    def _chunk(self, start: int, stop: int) -> np.ndarray:
        torch.set_num_threads(1)
        images = [render(self.scene(index)).image for index in range(start, stop)]
        return (torch.stack(images).permute(0, 2, 3, 1) * 255).round().byte().numpy()


def to_images(pixels: np.ndarray) -> Tensor:
    """uint8 [B, H, W, 3] -> float [B, 3, H, W] in [0, 1]."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float() / 255
