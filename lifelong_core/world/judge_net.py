"""The judge's network: where objects are, what they are and what they wear, from 64 pixels."""

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
    `features` [B, 96, 16, 16]: what all heads but `whole` read."""

    centre: Tensor
    nouns: Tensor
    attributes: dict[str, Tensor]
    whole: dict[str, Tensor]
    features: Tensor


class JudgeNet(nn.Module):
    """Residual stages at 32, 16, 8 and 4 cells; the coarse ones return to the 16 x 16 grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_unit(3, 32, stride=2), _Residual(32))
        self.fine = nn.Sequential(_unit(32, 64, stride=2), _Residual(64))
        self.middle = nn.Sequential(_unit(64, 96, stride=2), _Residual(96), _Residual(96))
        self.coarse = nn.Sequential(_unit(96, 96, stride=2), _Residual(96))
        self.up_middle = _unit(96, 96, kernel=1)
        self.up_fine = _unit(96, FEATURES, kernel=1)
        self.skip = _unit(64, FEATURES, kernel=1)
        self.join = _Residual(FEATURES)
        sizes = [1, len(NOUNS) + 1, *(len(values) for values in ATTRIBUTES.values())]
        self.places = nn.Conv2d(FEATURES, sum(sizes), 1)
        self.whole = nn.Linear(96 + FEATURES, sum(len(values) for values in GLOBALS.values()))
        self._sizes = sizes
        nn.init.constant_(self.places.bias[:1], -3.0)  # type: ignore[index]

    def forward(self, images: Tensor) -> JudgeOutput:
        """[B, 3, 64, 64] in [0, 1]."""
        fine = self.fine(self.stem((images - 0.5) * 4))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        middle = middle + self.up_middle(_doubled(coarse))
        features = self.join(self.skip(fine) + self.up_fine(_doubled(middle)))
        centre, nouns, *rest = self.places(features).split(self._sizes, dim=1)
        pooled = torch.cat([coarse.mean((2, 3)), features.mean((2, 3))], dim=1)
        whole = self.whole(pooled).split([len(values) for values in GLOBALS.values()], dim=1)
        return JudgeOutput(
            centre=centre[:, 0],
            nouns=nouns,
            attributes=dict(zip(ATTRIBUTES, rest, strict=True)),
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
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="nearest")


def new_judge_net(seed: int = 0) -> JudgeNet:
    """A fresh network; the global random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = JudgeNet()
        return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
