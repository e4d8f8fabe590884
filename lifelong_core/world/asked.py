"""Prompts that a demo model is tested on, each with the scene that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass

from .backgrounds import BACKGROUNDS, PHRASES
from .captions import full_phrase
from .dice import Dice
from .looks import fancy_look, plain_look
from .pretrain.dataset import Scenes
from .scenes import Scene, Thing, placements
from .shapes import NOUNS


@dataclass(frozen=True)
class Asked:
    """A prompt that tells everything about `scene` but where things stand."""

    prompt: str
    scene: Scene


class Shown:
    """What a pretraining set has shown, to ask for what it has not.

    A prompt counts as shown if some scene fits it, told in its captions or not: same background
    and objects in the same order, each wearing what the prompt tells.
    """

    def __init__(self, scenes: Scenes) -> None:
        self._scenes: dict[tuple[str, ...], list[Scene]] = {}
        for index in range(len(scenes)):
            scene = scenes.scene(index)
            if scene.style.is_natural:
                self._scenes.setdefault(_kind(scene), []).append(scene)

    def has(self, scene: Scene) -> bool:
        """Whether a pretraining scene shows all that `scene` asks for."""
        return any(_fits(scene, shown) for shown in self._scenes.get(_kind(scene), []))


def _kind(scene: Scene) -> tuple[str, ...]:
    return (scene.background, *(thing.noun for thing in scene.things))


def _fits(asked: Scene, shown: Scene) -> bool:
    return all(
        want in (None, have)
        for one, other in zip(asked.things, shown.things, strict=True)
        for want, have in zip(astuple(one.look), astuple(other.look), strict=True)
    )


def described(count: int, seed: int, shown: Shown) -> list[Asked]:
    """One object with a random look, all of it told; combinations that were never shown."""
    return _draw(count, seed, "described", lambda dice: _scene(dice, 1, plain=False), shown)


def pairs(count: int, seed: int, shown: Shown) -> list[Asked]:
    """Two plain objects in colours of their own; combinations that were never shown."""
    return _draw(count, seed, "pairs", lambda dice: _scene(dice, 2, plain=True), shown)


def plain(count: int, seed: int) -> list[Asked]:
    """One plain object. There are 384 such prompts only, and pretraining has shown nearly all."""
    return _draw(count, seed, "plain", lambda dice: _scene(dice, 1, plain=True), None)


def _draw(
    count: int, seed: int, label: str, make: Callable[[Dice], Scene], shown: Shown | None
) -> list[Asked]:
    asked: list[Asked] = []
    index = 0
    while len(asked) < count:
        scene = make(Dice(seed, "asked", label, index))
        index += 1
        if shown is None or not shown.has(scene):
            asked.append(Asked(prompt_of(scene), scene))
    return asked


def _scene(dice: Dice, count: int, *, plain: bool) -> Scene:
    look = plain_look if plain else fancy_look
    things = tuple(
        Thing(noun, look(dice), place)
        for noun, place in zip(dice.sample(NOUNS, count), placements(count, dice), strict=True)
    )
    return Scene(dice.pick(BACKGROUNDS), things, seed=int(dice.unit() * 2**40))


def prompt_of(scene: Scene) -> str:
    """The prompt that tells everything about a scene in the natural style."""
    things = " and ".join(full_phrase(thing.noun, thing.look) for thing in scene.things)
    return f"a photo of {things} {PHRASES[scene.background]}"
