"""Which of several known objects a picture shows, each once, and in its own look.

The judge reads a look part by part. For a look that is known, asking how likely it is tells more
than the likeliest reading does, in which a single part that was missed would make another look.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import torch

from .dice import Dice
from .judge import Judge, Observation
from .judge_net import ATTRIBUTES
from .looks import Look, fancy_look
from .palette import PLAIN_COLOURS

OTHERS = 400
"""Random looks that a concept's look is compared to."""
WORN = 0.9
"""Least share of them that must be less likely than an object's own look."""


@dataclass(frozen=True)
class Wanted:
    """An object that a picture should show."""

    noun: str
    look: Look


@dataclass(frozen=True)
class Verdict:
    """What one picture shows of the wanted objects, in their order.

    named: an object of its noun is there. unswapped: all are named, and each one's object has its
    own look sooner than that of another wanted one. present: its object has its look, not another
    wanted one's, and sooner than nine of ten looks at random. once_each: all are present, and
    nothing else is there.
    """

    named: tuple[bool, ...]
    present: tuple[bool, ...]
    once_each: bool
    unswapped: bool

    @property
    def all_present(self) -> bool:
        """Whether every wanted object is there, in its look."""
        return all(self.present)


def verdicts(judge: Judge, images: torch.Tensor, wanted: Sequence[Wanted]) -> list[Verdict]:
    """One verdict per picture [B, 3, H, W]. Several wanted objects may share a noun."""
    return [verdict(seen, wanted) for seen in judge.observe(images)]


def verdict(seen: Sequence[Observation], wanted: Sequence[Wanted]) -> Verdict:
    """Compare the objects of one picture with the wanted ones.

    An object stands for the wanted one of its noun; where two share a noun, for the one whose look
    is likelier.
    """
    own: list[list[Observation]] = [[] for _ in wanted]
    for one in seen:
        alike = [k for k, want in enumerate(wanted) if want.noun == one.noun]
        if alike:
            own[max(alike, key=lambda k: likelihood(one, wanted[k].look))].append(one)
    named = tuple(bool(objects) for objects in own)
    unmixed = [
        [one for one in objects if _sooner(one, want.look, wanted)]
        for objects, want in zip(own, wanted, strict=True)
    ]
    present = tuple(
        any(share_below(one, want.look) >= WORN for one in objects)
        for objects, want in zip(unmixed, wanted, strict=True)
    )
    alone = all(len(objects) == 1 for objects in own) and len(seen) == len(wanted)
    return Verdict(named, present, all(present) and alone, all(unmixed))


def likelihood(seen: Observation, look: Look) -> float:
    """Log-probability that the object wears `look`, its two colours in either order."""
    return max(_in_order(seen, one) for one in _orders(look))


def share_below(seen: Observation, look: Look) -> float:
    """Share of other looks that are less likely on this object than `look`, in [0, 1].

    A plain look is compared to the other plain colours, any other to random fancy looks.
    """
    own = likelihood(seen, look)
    others = _plain_looks() if look.is_plain else _fancy_looks()
    below = [likelihood(seen, other) < own for other in others if other != look]
    return sum(below) / len(below)


def _sooner(seen: Observation, look: Look, wanted: Sequence[Wanted]) -> bool:
    own = likelihood(seen, look)
    return all(likelihood(seen, other.look) < own for other in wanted if other.look != look)


def _orders(look: Look) -> tuple[Look, ...]:
    if look.second is None:
        return (look,)
    return look, replace(look, colour=look.second, second=look.colour)


def _in_order(seen: Observation, look: Look) -> float:
    return sum(
        float(seen.attributes[name][values.index(getattr(look, name))])
        for name, values in ATTRIBUTES.items()
    )


@cache
def _plain_looks() -> tuple[Look, ...]:
    return tuple(Look(colour) for colour in PLAIN_COLOURS)


@cache
def _fancy_looks() -> tuple[Look, ...]:
    return tuple(fancy_look(Dice(0, "another look", index)) for index in range(OTHERS))
