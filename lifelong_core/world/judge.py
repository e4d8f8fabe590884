"""The judge: reads from a picture which objects it shows, where, and what they wear."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from .judge_net import (
    ATTRIBUTES,
    GLOBALS,
    GRID,
    READ,
    JudgeNet,
    JudgeOutput,
    new_judge_net,
    regions,
)
from .looks import Look
from .palette import COLOURS
from .shapes import NOUNS
from .shipped import read_weights
from .small import shrink
from .styles import Style

PRESENT = 0.35  # least probability of a cell to count as the middle of an object
APART = 5  # cells: of two middles within a window this wide, the weaker is dropped


@dataclass(frozen=True)
class ThingReading:
    """One object as the judge sees it. `x`, `y`: its middle, shares of width and height.

    Colours mean nothing in pictures of one tone (sepia, blueprint, mono).
    """

    noun: str
    look: Look
    x: float
    y: float
    confidence: float


@dataclass(frozen=True)
class Observation:
    """One object with all that the judge makes of it, for comparing it to a look that is known.

    nouns: log-probabilities [8] in the order of NOUNS; attributes: name -> log-probabilities of
    its values in ATTRIBUTES. The middle and the confidence are those of `ThingReading`.
    """

    nouns: Tensor
    attributes: dict[str, Tensor]
    x: float
    y: float
    confidence: float

    @property
    def noun(self) -> str:
        """The likeliest one."""
        return NOUNS[int(self.nouns.argmax())]

    def thing(self) -> ThingReading:
        """The likeliest noun and look."""
        return ThingReading(self.noun, _look(self.attributes), self.x, self.y, self.confidence)


@dataclass(frozen=True)
class Reading:
    """What a picture shows: background, drawing style, and the objects from left to right."""

    background: str
    style: Style
    things: tuple[ThingReading, ...]

    @property
    def nouns(self) -> list[str]:
        """Sorted, one entry per object: two dogs are two entries."""
        return sorted(thing.noun for thing in self.things)


class Judge:
    """Reads pictures [B, 3, H, W] in [0, 1] of any size; 128 pixels of them are looked at."""

    def __init__(self, net: JudgeNet) -> None:
        self.net = net.requires_grad_(False).eval()

    def read(self, images: Tensor, batch_size: int = 64) -> list[Reading]:
        """One `Reading` per picture."""
        readings = []
        for part in images.split(batch_size):
            output = self._look(part)
            readings += [_reading(output, row) for row in range(len(part))]
        return readings

    def observe(self, images: Tensor, batch_size: int = 64) -> list[tuple[Observation, ...]]:
        """The objects of every picture from left to right, not yet decided upon."""
        observed = []
        for part in images.split(batch_size):
            output = self._look(part)
            observed += [_observations(output, row) for row in range(len(part))]
        return observed

    def where(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """[B, 8, 16, 16] in [0, 1]: probability that a cell belongs to an object of each noun.

        This stands in for the objects' masks in generated pictures, whose true masks nobody knows.
        """
        parts = [self._look(part).nouns.softmax(1)[:, 1:] for part in images.split(batch_size)]
        return torch.cat(parts)

    def features(self, images: Tensor, batch_size: int = 64) -> Tensor:
        """[B, 96]: the network's features averaged over the cells that objects cover.

        For similarity of looks: subtract the mean over other pictures before taking cosines.
        """
        parts = []
        for part in images.split(batch_size):
            output = self._look(part)
            weight = 1 - output.nouns.softmax(1)[:, 0] + 1e-4
            total = (output.features * weight[:, None]).sum((2, 3))
            parts.append(total / weight.sum((1, 2))[:, None])
        return torch.cat(parts)

    @torch.no_grad()
    def _look(self, images: Tensor) -> JudgeOutput:
        images = shrink(images.float().clamp(0, 1), READ)
        return self.net(images.contiguous(memory_format=torch.channels_last))


def _reading(output: JudgeOutput, row: int) -> Reading:
    whole = {
        name: values[int(output.whole[name][row].argmax())] for name, values in GLOBALS.items()
    }
    return Reading(
        whole["background"],
        Style(whole["tone"], whole["line"], whole["texture"]),
        tuple(observation.thing() for observation in _observations(output, row)),
    )


def _peaks(centre: Tensor) -> list[list[int]]:
    """Cells (row, column) that are the strongest around and strong enough."""
    strongest = F.max_pool2d(centre[None, None], APART, 1, APART // 2)[0, 0]
    return ((centre == strongest) & (centre > PRESENT)).nonzero().tolist()


def _observations(output: JudgeOutput, row: int) -> tuple[Observation, ...]:
    """One object per peak of the row's `centre`, read over the cells that belong to it."""
    centre = output.centre[row].sigmoid()
    peaks = _peaks(centre)
    if not peaks:
        return ()
    y, x = ((torch.tensor(peaks).T + 0.5) / GRID).to(centre)
    covered = output.nouns[row].softmax(0)[0] < 0.5
    cells = regions(covered[None], x[None], y[None], torch.ones(1, len(peaks)).bool().to(x.device))
    read = {name: logits[0].log_softmax(-1) for name, logits in output.row(row).at(cells).items()}
    found = [
        Observation(
            nouns=read["noun"][k],
            attributes={name: read[name][k] for name in ATTRIBUTES},
            x=float(x[k]),
            y=float(y[k]),
            confidence=float(centre[tuple(peak)]),
        )
        for k, peak in enumerate(peaks)
    ]
    return tuple(sorted(found, key=lambda one: one.x))


def _look(read: dict[str, Tensor]) -> Look:
    """The likeliest look. Only patterned objects have a second colour, and it is another one."""
    best = {name: values[int(read[name].argmax())] for name, values in ATTRIBUTES.items()}
    best["second"] = None
    if best["pattern"] != "plain":
        both = read["colour"][:, None] + read["second"][None, 1:]
        both.fill_diagonal_(float("-inf"))
        first, second = divmod(int(both.argmax()), len(COLOURS))
        best |= {"colour": COLOURS[first], "second": COLOURS[second]}
    return Look(**best)  # type: ignore[arg-type]


@lru_cache(maxsize=1)
def load_judge() -> Judge:
    """The shipped judge on the CPU. Raises ModelError when its weights are missing."""
    net = new_judge_net()
    net.load_state_dict(read_weights("judge"), strict=False)
    return Judge(net)
