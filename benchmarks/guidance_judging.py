"""How sure the judge is: its verdicts on rendered scenes, after the VAE, of which all is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from benchmarks.guidance_groups import Group, rendered
from lifelong_core.backbone import Backbone
from lifelong_core.world.dice import Dice
from lifelong_core.world.evaluate import reconstructed
from lifelong_core.world.judge import Judge
from lifelong_core.world.looks import concept_look, plain_look
from lifelong_core.world.wearing import Verdict, Wanted, verdicts

Case = Callable[[Sequence[Wanted], int], Sequence[Wanted]]
"""Wanted objects and a picture's number -> what it shows, from left to right."""
QUESTIONS = ("both_present", "once_each", "unswapped")


def answers(verdict: Verdict) -> dict[str, bool]:
    """What is recorded of one picture."""
    return dict(
        zip(QUESTIONS, (verdict.all_present, verdict.once_each, verdict.unswapped), strict=True)
    )


def _swapped(wanted: Sequence[Wanted], number: int) -> list[Wanted]:
    """Every object wears the next one's look."""
    turned = [*wanted[1:], wanted[0]]
    return [Wanted(a.noun, b.look) for a, b in zip(wanted, turned, strict=True)]


def _stranger(wanted: Sequence[Wanted], number: int) -> list[Wanted]:
    """One object wears a look of its kind that nobody asked for."""
    at = number % len(wanted)
    draw = plain_look if wanted[at].look.is_plain else concept_look
    dice = Dice(0, "stranger", number)
    looks = (draw(dice) for _ in count())
    look = next(one for one in looks if one.colour != wanted[at].look.colour)
    return [Wanted(want.noun, look) if k == at else want for k, want in enumerate(wanted)]


CASES: Mapping[str, tuple[Case, tuple[bool, bool, bool | None]]] = {
    "right": (lambda wanted, number: wanted, (True, True, True)),
    "other order": (lambda wanted, number: wanted[::-1], (True, True, True)),
    "one missing": (lambda wanted, number: [wanted[number % 2]], (False, False, False)),
    "one doubled": (lambda wanted, number: [wanted[number % 2], *wanted], (True, False, True)),
    "looks swapped": (_swapped, (False, False, False)),
    "another look": (_stranger, (False, False, None)),
}
"""Name -> what pictures show, and the right answers to QUESTIONS (None: not asked)."""


def judge_ceiling(
    judge: Judge, backbone: Backbone, groups: Sequence[Group], pictures: int
) -> dict[str, Any]:
    """Share of right answers over all cases, per question and case; `pictures` per group and case.

    Half of the cases show all objects, so a judge that always says yes or no stays far below 1.
    """
    right: dict[str, list[bool]] = {question: [] for question in QUESTIONS}
    by_case: dict[str, float] = {}
    for name, (case, truth) in CASES.items():
        asked: list[bool] = []
        for group in groups:
            scenes = [case(group.wanted, number) for number in range(pictures)]
            images = reconstructed(backbone, rendered(scenes, f"{name} {group.name}", seed=3))
            for verdict in verdicts(judge, images, group.wanted):
                found = answers(verdict)
                for question, true in zip(QUESTIONS, truth, strict=True):
                    if true is not None:
                        right[question].append(found[question] == true)
                        asked.append(found[question] == true)
        by_case[name] = _share(asked)
    every = [answer for answers_ in right.values() for answer in answers_]
    shares = {question: _share(given) for question, given in right.items()}
    return {"all": _share(every), **shares, "cases": by_case}


def _share(values: Sequence[bool]) -> float:
    return round(sum(values) / len(values), 4)
