"""Training the world CLIP: pictures with captions, and two pictures of one character."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny
from open_clip.model import CLIP
from torch import Tensor
from torch.nn import functional as F

from ...seeding import generator
from ..backgrounds import BACKGROUNDS
from ..clip import END, PAD, START, new_clip, normalised, word_ids
from ..dice import Dice
from ..scenes import Scene, placements
from ..shapes import NOUNS
from ..shipped import WEIGHTS, write_weights
from ..styles import Style
from .dataset import HELD_OUT, Scenes, to_images
from .small_pictures import cached, rebuilt_pictures, rendered, small_pictures, spoil
from .stage import Stage, run_stage

BATCH = 192
TWINS = 64  # of these, characters that are also shown a second time; all of one noun
TWIN_WEIGHT = 0.5
RATE = 2e-3
VARIANTS = 4
DROPPED = 0.1  # share of words left out in half of the captions
HARSHEST = 100.0  # largest factor on cosines, as in CLIP


def train_clip(
    folder: Path,
    scenes: Scenes,
    vae: AutoencoderTiny | None,
    *,
    seed: int,
    seconds: float | None = None,
    steps: int | None = None,
    device: str = "cpu",
    weights: Path = WEIGHTS,
    reconstructed: int = 3000,
) -> CLIP:
    """Train (or load) on the pictures and captions of `scenes` and write the result to `weights`.

    With `vae`, the first `reconstructed` pictures are shown through it half of the time.
    """
    data = _Data(folder, scenes, vae, reconstructed)
    model = new_clip(seed).to(device).train()

    def loss(step: int) -> Tensor:
        draw = generator(seed, "clip", step)
        index = data.batch(draw)
        images = torch.cat([data.images(index, draw), data.twins(index[:TWINS], draw)])
        ids = shortened(data.ids[index, torch.randint(VARIANTS, (BATCH,), generator=draw)], draw)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            images = normalised(images).to(device, memory_format=torch.channels_last)
            seen = model.encode_image(images)
            read = model.encode_text(ids.to(device))
        seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=HARSHEST)
        told = caption_loss(scale * seen[:BATCH] @ read.T, ids)
        same = F.cross_entropy(
            scale * seen[BATCH:] @ seen[:TWINS].T, torch.arange(TWINS).to(seen.device)
        )
        return told + TWIN_WEIGHT * same

    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    stage = Stage(
        "clip",
        folder,
        model,
        [torch.optim.AdamW(groups, RATE, (0.9, 0.98))],
        loss,
        measure=data.measure(model, device),
        ema=0.99,
        warmup=50,
    )
    run_stage(stage, seconds=seconds, steps=steps)
    write_weights("clip", model.state_dict(), weights)
    return model.to("cpu").eval()


def caption_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """CLIP's symmetric cross entropy; equal captions count as one another's positives.

    `logits` [B, B] pictures by texts, `ids` int [B, CONTEXT].
    """
    same = (ids[:, None] == ids[None]).all(-1).to(logits)
    target = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def shortened(ids: Tensor, draw: torch.Generator) -> Tensor:
    """Leave words out in half of the captions, so that every wording of a prompt is understood."""
    content = (ids != PAD) & (ids != START) & (ids != END)
    chance = DROPPED * (torch.rand(len(ids), 1, generator=draw) < 0.5)
    gone = content & (torch.rand(ids.shape, generator=draw) < chance)
    kept = ids.masked_fill(gone, PAD)
    order = (kept == PAD).int().argsort(dim=1, stable=True)
    return kept.gather(1, order)


def twin_scene(scene: Scene, dice: Dice) -> Scene:
    """The first object of `scene` again: alone, elsewhere, before another background."""
    thing = replace(scene.things[0], place=placements(1, dice)[0])
    other = [name for name in BACKGROUNDS if name != scene.background]
    return Scene(dice.pick(other), (thing,), Style(), seed=int(dice.unit() * 2**40))


class _Data:
    """Everything that training reads, in arrays that are made once and kept."""

    def __init__(
        self, folder: Path, scenes: Scenes, vae: AutoencoderTiny | None, reconstructed: int
    ) -> None:
        name = f"{scenes.seed}-{scenes.count}"
        pictures = scenes.pictures()
        self.count = len(scenes)
        self.small = small_pictures(folder / f"small-{name}.npy", pictures)
        self.rebuilt = self.small[:0]
        if vae:
            self.rebuilt = rebuilt_pictures(folder, name, pictures[:reconstructed], vae)
        total = range(len(scenes) + HELD_OUT)
        ids = cached(folder / f"words-{name}-{VARIANTS}.npy", lambda: _caption_ids(scenes))
        self.ids = torch.from_numpy(np.array(ids)).long()
        doubled = [(i, s) for i in total if _is_character(s := scenes.scene(i))]
        twins = [twin_scene(scene, Dice(scenes.seed, "twin", i)) for i, scene in doubled]
        self._twins = cached(folder / f"twins-{name}.npy", lambda: rendered(twins))
        self._twin_row = {index: row for row, (index, _) in enumerate(doubled)}
        self._characters = {
            noun: torch.tensor(
                [i for i, s in doubled if s.things[0].noun == noun and i < self.count]
            )
            for noun in NOUNS
        }
        self._held_out = torch.tensor([i for i, _ in doubled if i >= self.count])

    def batch(self, draw: torch.Generator) -> Tensor:
        """Scene numbers [BATCH]: first TWINS characters of one noun, then any scenes."""
        noun = NOUNS[int(torch.randint(len(NOUNS), (1,), generator=draw))]
        characters = self._characters[noun]
        chosen = characters[torch.randint(len(characters), (TWINS,), generator=draw)]
        others = torch.randint(self.count, (BATCH - TWINS,), generator=draw)
        return torch.cat([chosen, others])

    def images(self, index: Tensor, draw: torch.Generator) -> Tensor:
        """Pictures of scenes, spoiled a little, some through the VAE."""
        through = torch.rand(len(index), generator=draw) < 0.5
        rows = [
            self.rebuilt[i] if vae and i < len(self.rebuilt) else self.small[i]
            for i, vae in zip(index.tolist(), through.tolist(), strict=True)
        ]
        return spoil(to_images(np.stack(rows)), draw)

    def twins(self, index: Tensor, draw: torch.Generator) -> Tensor:
        """The second pictures of characters `index`."""
        rows = [self._twin_row[i] for i in index.tolist()]
        return spoil(to_images(self._twins[rows]), draw)

    def measure(self, model: CLIP, device: str) -> Callable[[], dict[str, float]]:
        """Held-out scenes: how often the right one of 256 captions, and the twin, is found."""
        index = torch.arange(self.count, self.count + 256)
        ids = self.ids[index, 0]
        images = to_images(self.small[index.numpy()])
        firsts = to_images(self.small[self._held_out.numpy()])
        seconds = self._twins[[self._twin_row[i] for i in self._held_out.tolist()]]

        @torch.no_grad()
        def report() -> dict[str, float]:
            model.eval()
            seen, first, second = (
                F.normalize(model.encode_image(normalised(part).to(device)), dim=-1).cpu()
                for part in (images, firsts, to_images(seconds))
            )
            read = F.normalize(model.encode_text(ids.to(device)), dim=-1).cpu()
            model.train()
            best = (seen @ read.T).argmax(1)
            twin = (second @ first.T).argmax(1)
            return {
                "caption_found": float((ids[best] == ids).all(-1).float().mean()),
                "twin_found": float((twin == torch.arange(len(twin))).float().mean()),
                "scale": float(model.logit_scale.exp()),
            }

        return report


def _is_character(scene: Scene) -> bool:
    return len(scene.things) == 1 and not scene.things[0].look.is_plain and scene.style.is_natural


def _caption_ids(scenes: Scenes) -> np.ndarray:
    total = range(len(scenes) + HELD_OUT)
    rows = [[word_ids(scenes.caption(i, v)) for v in range(VARIANTS)] for i in total]
    return np.array(rows, dtype=np.uint8)
