"""What the world CLIP learns from, and how well it does on held-out scenes."""

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
from ..clip import normalised, read_words, word_ids
from ..dice import Dice
from ..scenes import Scene, placements
from ..shapes import NOUNS
from ..small import SMALL
from ..styles import Style
from .arrays import cached
from .clip_words import facts_of, falsified, levels
from .dataset import HELD_OUT, Scenes, to_images
from .small_pictures import rebuilt_pictures, rendered, small_pictures, spoil, vae_key

VARIANTS = 4
REBUILT_SHARE = 0.3  # of the pictures shown, through the VAE
FOUND_AMONG = 256


def twin_scene(scene: Scene, dice: Dice) -> Scene:
    """The first object of `scene` again: alone, elsewhere, before another background."""
    thing = replace(scene.things[0], place=placements(1, dice)[0])
    other = [name for name in BACKGROUNDS if name != scene.background]
    return Scene(dice.pick(other), (thing,), Style(), seed=int(dice.unit() * 2**40))


class ClipData:
    """Pictures, captions and facts, in arrays that are made once and kept.

    `ids` [scenes, VARIANTS, CONTEXT] captions; `facts` [scenes, 9], see `facts_of`.
    """

    def __init__(
        self, folder: Path, scenes: Scenes, vae: AutoencoderTiny | None, reconstructed: int
    ) -> None:
        name = f"{scenes.seed}-{scenes.count}"
        pictures = scenes.pictures()
        self.count = len(scenes)
        self._small = small_pictures(folder / f"small-{name}.npy", pictures)
        self._rebuilt = self._small[:0]
        if vae:
            path = folder / f"through-small-{name}-{reconstructed}-{vae_key(vae)}.npy"
            through = rebuilt_pictures(folder, name, pictures[:reconstructed], vae)
            self._rebuilt = small_pictures(path, through)
        every = [scenes.scene(index) for index in range(self.count + HELD_OUT)]
        self.ids = _numbers(folder / f"words-{name}-{VARIANTS}.npy", lambda: _captions(scenes))
        self.facts = _numbers(folder / f"facts-{name}.npy", lambda: [facts_of(s) for s in every])
        doubled = [(index, scene) for index, scene in enumerate(every) if _is_character(scene)]
        twins = [twin_scene(scene, Dice(scenes.seed, "twin", index)) for index, scene in doubled]
        self._twins = cached(folder / f"twins-{name}.npy", lambda: rendered(twins, SMALL))
        self._twin_row = {index: row for row, (index, _) in enumerate(doubled)}
        nouns = [
            [i for i, scene in doubled if scene.things[0].noun == noun and i < self.count]
            for noun in NOUNS
        ]
        self._characters = [torch.tensor(indices) for indices in nouns if indices]
        self._held_out = torch.tensor([i for i, _ in doubled if i >= self.count])
        self._alone = torch.tensor(
            [i for i, s in enumerate(every[self.count :], self.count) if _is_natural_single(s)]
        )
        plain = [every[i].things[0].look.is_plain for i in self._alone.tolist()]
        self._plain = torch.tensor(plain)

    def batch(self, size: int, twins: int, draw: torch.Generator) -> Tensor:
        """Scene numbers [size]: first `twins` characters of one noun, then any scenes."""
        noun = int(torch.randint(len(self._characters), (1,), generator=draw))
        characters = self._characters[noun]
        chosen = characters[torch.randint(len(characters), (twins,), generator=draw)]
        others = torch.randint(self.count, (size - twins,), generator=draw)
        if len(self._rebuilt):
            some = torch.randint(len(self._rebuilt), others.shape, generator=draw)
            others = torch.where(
                torch.rand(others.shape, generator=draw) < REBUILT_SHARE, some, others
            )
        return torch.cat([chosen, others])

    def images(self, index: Tensor, draw: torch.Generator) -> Tensor:
        """Pictures of scenes, spoiled a little; those that there are through the VAE, so."""
        rows = [
            self._rebuilt[i] if i < len(self._rebuilt) else self._small[i] for i in index.tolist()
        ]
        return spoil(to_images(np.stack(rows)), draw)

    def twins(self, index: Tensor, draw: torch.Generator) -> Tensor:
        """The second pictures of characters `index`."""
        rows = [self._twin_row[i] for i in index.tolist()]
        return spoil(to_images(self._twins[rows]), draw)

    def measure(self, model: CLIP, device: str) -> Callable[[], dict[str, float]]:
        """Measures on held-out scenes.

        `caption_found`, `twin_found`: the right one of 256 captions, of all second pictures.
        `true_over_false`: the caption fits better than a falsified one. `noun_told` (of 8),
        `colour_told` (of 12, for bodies of one colour), `background_told` (of 6): "a photo of a
        dog", "a photo of a red dog", "a photo of a dog on grass" picked for single objects in the
        natural style. `plain_over_fancy`: by how much "a photo of a dog" scores more with a plain
        dog than with any other, mean over nouns; both are dogs.
        """
        index = torch.arange(self.count, min(self.count + FOUND_AMONG, len(self.ids)))
        ids = self.ids[index, 0].long()
        false = falsified(ids, generator(0, "false"))
        short = levels()

        def pictures(which: Tensor) -> Tensor:
            images = to_images(self._small[which.numpy()])
            return F.normalize(model.encode_image(normalised(images).to(device)), dim=-1).cpu()

        def texts(which: Tensor) -> Tensor:
            return read_words(model, which.to(device)).cpu()

        def told(name: str) -> float:
            """How often the best of the captions with the right noun is the true one."""
            level = short[name]
            facts = self.facts[self._alone].long()
            right, wrong = level.truth(facts)
            own = (facts[:, level.noun] > 0) | (name == "noun")
            fits = pictures(self._alone) @ texts(level.ids).T
            best = fits.masked_fill(~(own & (right | wrong)), -2).argmax(1, keepdim=True)
            asked = (own & right).any(1)
            return float(right.gather(1, best)[asked].float().mean())

        def preference() -> float:
            """The mean cosine of a noun's caption to plain objects over that to fancy ones."""
            level = short["noun"]
            fits = pictures(self._alone) @ texts(level.ids).T
            true = level.truth(self.facts[self._alone].long())[0]
            plain = self._plain[:, None]
            gaps = _mean(fits, true & plain) - _mean(fits, true & ~plain)
            return float(gaps.nanmean())

        @torch.no_grad()
        def report() -> dict[str, float]:
            model.eval()
            seen, read, lies = pictures(index), texts(ids), texts(false)
            rows = [self._twin_row[i] for i in self._held_out.tolist()]
            second = normalised(to_images(self._twins[rows])).to(device)
            twins = F.normalize(model.encode_image(second), dim=-1).cpu()
            best = (seen @ read.T).argmax(1)
            twin = (twins @ pictures(self._held_out).T).argmax(1)
            values = {
                "caption_found": (ids[best] == ids).all(-1).float().mean(),
                "twin_found": (twin == torch.arange(len(twin))).float().mean(),
                "true_over_false": ((seen * (read - lies)).sum(1) > 0).float().mean(),
            }
            shares = {name: float(value) for name, value in values.items()}
            shares |= {f"{name}_told": told(name) for name in short}
            shares["plain_over_fancy"] = preference()
            model.train()
            return shares

        return report


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """[B, K] -> [K] over the rows chosen by `where`; nan where there is none."""
    return (values * where).sum(0) / where.sum(0)


def _is_character(scene: Scene) -> bool:
    return len(scene.things) == 1 and not scene.things[0].look.is_plain and scene.style.is_natural


def _is_natural_single(scene: Scene) -> bool:
    return len(scene.things) == 1 and scene.style.is_natural


def _captions(scenes: Scenes) -> list[list[list[int]]]:
    total = range(len(scenes) + HELD_OUT)
    return [[word_ids(scenes.caption(i, v)) for v in range(VARIANTS)] for i in total]


def _numbers(path: Path, make: Callable[[], list]) -> Tensor:
    """Small whole numbers, kept in `path` in single bytes."""
    return torch.from_numpy(np.array(cached(path, lambda: np.array(make(), dtype=np.uint8))))
