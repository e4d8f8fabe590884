"""Scenes of the demo world: one to three objects before a background, and their rendering."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor

from .backgrounds import BACKGROUNDS, draw_background
from .dice import Dice
from .drawing import Paint, Placement, draw_object
from .looks import Look, fancy_look, plain_look
from .palette import RGB, any_rgb, jittered, rgb_of
from .shapes import NOUNS
from .styles import Style, finish, outline, pretraining_style

SIZE = 128
SUPERSAMPLING = 2

# How large an object is (share of the picture's width), by the number of objects.
SIZES = {1: (0.62, 0.80), 2: (0.42, 0.50), 3: (0.30, 0.36)}


@dataclass(frozen=True)
class Thing:
    """One object: what it is, what it wears, where it stands."""

    noun: str
    look: Look
    place: Placement


@dataclass(frozen=True)
class Scene:
    """Everything that a picture shows. `seed` moves colours and horizon a little; `wild` takes
    colours from the whole cube instead of the named ones (to train what must carry any look)."""

    background: str
    things: tuple[Thing, ...]
    style: Style = field(default_factory=Style)
    seed: int = 0
    wild: bool = False


@dataclass(frozen=True)
class Rendering:
    """`image` [3, H, W] in [0, 1]; `masks` [things, H, W] bool, what is visible of each thing."""

    image: Tensor
    masks: Tensor


def render(scene: Scene, size: int = SIZE) -> Rendering:
    """Draw `scene` at `size` x `size` pixels. Same scene, same pixels."""
    dice = Dice(scene.seed, "render")
    canvas = size * SUPERSAMPLING
    picture, _ = draw_background(scene.background, canvas, dice)
    line = outline(scene.style)
    masks: list[Image.Image] = []
    for thing in scene.things:
        covered = draw_object(
            picture, thing.noun, thing.look, thing.place, _paint(dice, scene.wild), line
        )
        masks = [ImageChops.subtract(mask, covered) for mask in masks] + [covered]
    picture = finish(picture, scene.style).resize((size, size), Image.Resampling.BOX)
    small = [mask.resize((size, size), Image.Resampling.BOX) for mask in masks]
    stacked = [torch.from_numpy(np.asarray(mask, dtype=np.uint8) > 127) for mask in small]
    return Rendering(
        image=torch.from_numpy(np.array(picture, dtype=np.uint8)).permute(2, 0, 1).float() / 255,
        masks=torch.stack(stacked) if stacked else torch.zeros(0, size, size, dtype=torch.bool),
    )


def _paint(dice: Dice, wild: bool) -> Paint:
    """Colours of one object: each name drawn once, so that equal names look equal."""
    mixed: dict[str, RGB] = {}

    def paint(name: str) -> RGB:
        if name not in mixed:
            mixed[name] = any_rgb(dice) if wild else jittered(rgb_of(name), dice)
        return mixed[name]

    return paint


def placements(count: int, dice: Dice) -> list[Placement]:
    """Places for `count` objects from left to right that overlap little."""
    low, high = SIZES[count]
    places = []
    for index in range(count):
        size = dice.between(low, high)
        middle = (index + 0.5) / count
        slack = max(0.0, (1.0 / count - size) / 2) + 0.02
        x = min(max(middle + dice.between(-slack, slack), size / 2 + 0.01), 0.99 - size / 2)
        bottom = dice.between(0.88, 0.97) if count == 1 else dice.between(0.74, 0.96)
        places.append(Placement(x, bottom, size, dice.chance(0.5), dice.between(-5, 5)))
    return places


def random_scene(
    seed: int, index: int, *, count: int | None = None, fancy: float = 0.5, styled: float = 0.2
) -> Scene:
    """Scene `index` of pretraining stream `seed`: 60 % one object, 30 % two, 10 % three."""
    dice = Dice(seed, "scene", index)
    if count is None:
        roll = dice.unit()
        count = 1 if roll < 0.6 else 2 if roll < 0.9 else 3
    is_fancy = dice.chance(fancy)
    look = fancy_look if is_fancy else plain_look
    things = tuple(
        Thing(noun, look(dice), place)
        for noun, place in zip(dice.sample(NOUNS, count), placements(count, dice), strict=True)
    )
    style = pretraining_style(dice) if dice.chance(styled) else Style()
    return Scene(dice.pick(BACKGROUNDS), things, style, seed=int(dice.unit() * 2**40))
