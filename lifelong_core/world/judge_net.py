"""The judge's network: where objects are, what they are and what they wear, from 128 pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .backgrounds import BACKGROUNDS
from .looks import PARTS, PATTERNS
from .palette import COLOURS
from .shapes import NOUNS
from .styles import LINES, TEXTURES, TONES

READ = 128  # pixels per side; of 64 the ears and handles of the smallest objects are two wide
GRID = 16  # cells per side, one per latent cell of the demo model

# What is read at an object's place, and for the whole picture: name -> its possible values.
ATTRIBUTES: dict[str, tuple[str | None, ...]] = {
    "colour": COLOURS,
    "pattern": ("plain", *PATTERNS),
    "second": (None, *COLOURS),
    **{part: (None, *COLOURS) for part in PARTS},
}
GLOBALS: dict[str, tuple[str, ...]] = {
    "background": BACKGROUNDS,
    "tone": TONES,
    "line": LINES,
    "texture": TEXTURES,
}
FEATURES = 96


@dataclass(frozen=True)
class JudgeOutput:
    """Logits. `centre` [B, 16, 16]: an object's middle is here; `nouns` [B, 9, 16, 16]: what
    covers the cell (0: nothing); `attributes`, `whole`: name -> [B, values, 16, 16], [B, values];
    `focus` [B, 8, 16, 16]: how much each cell has to say about its object's noun and attributes;
    `features` [B, 96, 16, 16]: what all heads but `whole` read."""

    centre: Tensor
    nouns: Tensor
    attributes: dict[str, Tensor]
    focus: Tensor
    whole: dict[str, Tensor]
    features: Tensor

    def row(self, row: int) -> JudgeOutput:
        """The output for one picture, as a batch of one."""
        one = slice(row, row + 1)
        return JudgeOutput(
            self.centre[one],
            self.nouns[one],
            {name: logits[one] for name, logits in self.attributes.items()},
            self.focus[one],
            {name: logits[one] for name, logits in self.whole.items()},
            self.features[one],
        )

    def at(self, regions: Tensor) -> dict[str, Tensor]:
        """Logits of "noun" and every attribute per object, name -> [B, K, values].

        `regions` bool [B, K, 16, 16]: the cells of each object; within them `focus` decides where
        to look, so that a hat is read where the hat is. An empty region reads the whole picture.
        """
        read = {"noun": self.nouns[:, 1:], **self.attributes}
        outside = ~regions & regions.any(3).any(2)[..., None, None]
        pooled = {}
        for row, (name, logits) in enumerate(read.items()):
            focus = self.focus[:, row, None].float().masked_fill(outside, -1e4)
            weight = focus.flatten(2).softmax(-1)
            pooled[name] = weight @ logits.flatten(2).mT.float()
        return pooled


def regions(covered: Tensor, x: Tensor, y: Tensor, present: Tensor) -> Tensor:
    """The cells of each object: bool [B, K, 16, 16].

    A covered cell, or one beside it, belongs to the object whose middle (`x`, `y` [B, K], shares
    of the picture) is the nearest. `covered` bool [B, 16, 16]; `present` bool [B, K].
    """
    near = F.max_pool2d(covered[:, None].float(), 3, 1, 1) > 0
    cells = (torch.arange(GRID, device=x.device) + 0.5) / GRID
    dx, dy = cells - x[..., None], cells - y[..., None]
    away = dx.square()[:, :, None, :] + dy.square()[:, :, :, None]
    away = away.masked_fill(~present[..., None, None], 9.0)
    nearest = away == away.amin(1, keepdim=True)
    middle = away < (1.5 / GRID) ** 2
    return (near | middle) & nearest & present[..., None, None]


class JudgeNet(nn.Module):
    """Residual stages at 32, 16, 8 and 4 cells; the coarse ones return to the 16 x 16 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_unit(3, 32, kernel=6, stride=4), _Residual(32))
        self.fine = nn.Sequential(_unit(32, 64, stride=2), _Residual(64))
        self.middle = nn.Sequential(_unit(64, 96, stride=2), _Residual(96), _Residual(96))
        self.coarse = nn.Sequential(_unit(96, 96, stride=2), _Residual(96))
        self.up_middle = _unit(96, 96, kernel=1)
        self.up_fine = _unit(96, FEATURES, kernel=1)
        self.skip = _unit(64, FEATURES, kernel=1)
        self.join = _Residual(FEATURES)
        sizes = [
            1,
            len(NOUNS) + 1,
            1 + len(ATTRIBUTES),
            *(len(values) for values in ATTRIBUTES.values()),
        ]
        self.places = nn.Conv2d(FEATURES, sum(sizes), 1)
        self.whole = nn.Linear(96 + FEATURES, sum(len(values) for values in GLOBALS.values()))
        self._sizes = sizes
        nn.init.constant_(self.places.bias[:1], -3.0)  # type: ignore[index]

    def forward(self, images: Tensor) -> JudgeOutput:
        """[B, 3, 128, 128] in [0, 1]."""
        fine = self.fine(self.stem((images - 0.5) * 4))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = middle + self.up_middle(_doubled(coarse))
        features = self.join(self.skip(fine) + self.up_fine(_doubled(middle)))
        centre, nouns, focus, *rest = self.places(features).split(self._sizes, dim=1)
        pooled = torch.cat([coarse.mean((2, 3)), features.mean((2, 3))], dim=1)
        whole = self.whole(pooled).split([len(values) for values in GLOBALS.values()], dim=1)
        return JudgeOutput(
            centre=centre[:, 0],
            nouns=nouns,
            attributes=dict(zip(ATTRIBUTES, rest, strict=True)),
            focus=focus,
            whole=dict(zip(GLOBALS, whole, strict=True)),
            features=features,
        )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _unit(width, width)
        self.second = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


def _unit(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def new_judge_net(seed: int = 0) -> JudgeNet:
    """A fresh network; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = JudgeNet()
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
