"""Whether concepts that the demo model never saw can be learned, told apart, and forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.learn_concept import STEPS, UNSEEN, WORKSPACE, task_of
from lifelong_core.backbone import Backbone
from lifelong_core.drawing import knowing
from lifelong_core.evaluation.features import (
    FeatureSpace,
    clip_space,
    image_alignment,
    judge_space,
)
from lifelong_core.evaluation.prompts import evaluation_prompts
from lifelong_core.launch.console import say
from lifelong_core.lesson import LessonSettings, defaults_for
from lifelong_core.methods import learn
from lifelong_core.sampling import generate
from lifelong_core.state import LifelongState
from lifelong_core.world.backgrounds import BACKGROUNDS
from lifelong_core.world.clip import load_world_clip
from lifelong_core.world.evaluate import grid
from lifelong_core.world.judge import Judge, load_judge
from lifelong_core.world.streams import Character, toys5

STREAMS = (2, 3, 4, 5)
"""Five toys of each: twenty characters, four of each noun."""
IN_PHOTOS = 2 * len(BACKGROUNDS)
"""The first prompts ask for photos, whose backgrounds the judge reads; the rest for drawings."""
SHOWN, SHOWN_SIZE = 3, 96


@dataclass(frozen=True)
class Drawn:
    """One character with its unseen renders, and pictures for the same prompts and noise: by the
    base model with the plain noun, and after the lesson with the concept and the plain noun."""

    toy: Character
    renders: Tensor
    base: Tensor
    learned: Tensor
    noun: Tensor


def twenty() -> list[Character]:
    """The characters that are taught, each alone."""
    return [toy for seed in STREAMS for toy in toys5(seed)]


def measure_concepts(
    backbone: Backbone, base_pictures: Tensor
) -> tuple[dict[str, float], list[dict[str, Any]], Tensor]:
    """Teach the twenty, each alone, and five in sequence.

    base_pictures: [B, 3, H, W] by the base model, whose mean feature every similarity leaves out.
    Returns the means, one row per character, and a sheet [3, H, W]: photos, then base pictures,
    then learned ones.
    """
    judge = load_judge()
    spaces = {"": clip_space(load_world_clip()), "_judge": judge_space(judge)}
    spaces = {name: space.centred_on(base_pictures) for name, space in spaces.items()}
    base = {noun: draw(backbone, None, noun) for noun in dict.fromkeys(t.noun for t in twenty())}
    drawn = []
    for toy in twenty():
        say(f"Learning {toy.token}.")
        state = learn(backbone, task_of(toy, backbone.family.default_size), workspace=WORKSPACE)
        drawn.append(drawn_with(backbone, toy, state, base[toy.noun]))
    rows = [row(one, drawn, spaces, judge) for one in drawn]
    keys = ("gain", "gain_judge", "margin", "margin_judge", "background", "noun_right")
    summary = {key: mean(one[key] for one in rows) for key in keys}
    summary["noun_shift"] = mean(abs(one["noun_shift"]) for one in rows)
    summary["first_kept"] = first_kept(backbone, drawn[0], spaces[""])
    return summary, rows, sheet(drawn)


def draw(backbone: Backbone, state: LifelongState | None, phrase: str) -> Tensor:
    """[20, 3, H, W]: one picture for every evaluation prompt with `phrase`."""
    with knowing(backbone, state) as vectors:
        prompts = evaluation_prompts(phrase)
        return generate(backbone, prompts, seed=0, steps=STEPS, vectors=vectors)


def drawn_with(backbone: Backbone, toy: Character, state: LifelongState, base: Tensor) -> Drawn:
    """The toy's pictures by a state that knows it."""
    phrase = f"embedding:{toy.token} {toy.noun}"
    learned, noun = (draw(backbone, state, words) for words in (phrase, toy.noun))
    return Drawn(toy, toy.photos(UNSEEN, unseen=True), base, learned, noun)


def row(
    one: Drawn, everyone: Sequence[Drawn], spaces: Mapping[str, FeatureSpace], judge: Judge
) -> dict[str, Any]:
    """What is told of one character.

    gain: similarity of its pictures to its renders, less that of the base model's. margin: less
    their similarity to the nearest other character of the same noun. noun_shift: by how much the
    plain noun has come to look like it, in standard errors of the base pictures' mean.
    """
    found: dict[str, Any] = {"concept": one.toy.token, "noun": one.toy.noun}
    others = [other for other in everyone if other.toy.noun == one.toy.noun and other is not one]
    for name, space in spaces.items():
        own = similarity(space, one.learned, one)
        found[f"gain{name}"] = own - similarity(space, one.base, one)
        found[f"margin{name}"] = own - max(similarity(space, one.learned, o) for o in others)
    before, after = (
        image_alignment(spaces[""], pictures, one.renders) for pictures in (one.base, one.noun)
    )
    error = before.std() / len(before) ** 0.5
    found["noun_shift"] = float((after.mean() - before.mean()) / error)
    readings = judge.read(one.learned[:IN_PHOTOS])
    places = [BACKGROUNDS[number % len(BACKGROUNDS)] for number in range(IN_PHOTOS)]
    found["background"] = mean(
        seen.background == place for seen, place in zip(readings, places, strict=True)
    )
    found["noun_right"] = mean(seen.nouns == [one.toy.noun] for seen in readings)
    return found


def similarity(space: FeatureSpace, pictures: Tensor, to: Drawn) -> float:
    """Mean cosine of pictures to a character's unseen renders."""
    return float(image_alignment(space, pictures, to.renders).mean())


def first_kept_without_prior(backbone: Backbone, base_pictures: Tensor) -> float:
    """`first_kept` by lessons without pictures of the plain noun: fine-tuning and nothing else."""
    settings = replace(defaults_for(backbone.family.name), prior_count=0)
    space = clip_space(load_world_clip()).centred_on(base_pictures)
    toy = toys5(STREAMS[0])[0]
    task = task_of(toy, backbone.family.default_size)
    state = learn(backbone, task, settings=settings, workspace=WORKSPACE)
    first = drawn_with(backbone, toy, state, draw(backbone, None, toy.noun))
    return first_kept(backbone, first, space, settings)


def first_kept(
    backbone: Backbone, first: Drawn, space: FeatureSpace, settings: LessonSettings | None = None
) -> float:
    """The share of its gain that the first of five concepts keeps under plain fine-tuning."""
    state = None
    for toy in toys5(STREAMS[0]):
        task = task_of(toy, backbone.family.default_size)
        state = learn(backbone, task, state=state, settings=settings, workspace=WORKSPACE)
    assert state is not None
    last = drawn_with(backbone, first.toy, state, first.base)
    alone, end, base = (
        similarity(space, pictures, first) for pictures in (first.learned, last.learned, first.base)
    )
    return (end - base) / (alone - base)


def sheet(drawn: Sequence[Drawn]) -> Tensor:
    """One row per character."""
    cells = [
        picture
        for one in drawn
        for pictures in (one.toy.photos(SHOWN), one.base[:SHOWN], one.learned[:SHOWN])
        for picture in pictures
    ]
    small = F.interpolate(torch.stack(cells), size=SHOWN_SIZE, mode="area")
    return grid(small, columns=3 * SHOWN)
