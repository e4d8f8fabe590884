"""The renderer: same scene, same pixels; masks lie where the colours are; nearer things cover."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lifelong_core.world.backgrounds import BACKGROUNDS
from lifelong_core.world.drawing import Placement
from lifelong_core.world.looks import Look
from lifelong_core.world.palette import rgb_of
from lifelong_core.world.scenes import Scene, Thing, random_scene, render
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.styles import Style

MIDDLE = Placement(0.5, 0.92, 0.7)


def alone(noun: str, look: Look, **scene: object) -> Scene:
    return Scene("grass", (Thing(noun, look, MIDDLE),), **scene)  # type: ignore[arg-type]


def test_same_scene_same_pixels_and_another_seed_differs() -> None:
    scene = random_scene(3, 5)
    first, again = render(scene), render(random_scene(3, 5))
    assert torch.equal(first.image, again.image) and torch.equal(first.masks, again.masks)
    assert not torch.equal(first.image, render(replace(scene, seed=scene.seed + 1)).image)
    assert random_scene(3, 6) != scene and random_scene(4, 5) != scene


def test_pictures_are_in_range_and_as_large_as_asked() -> None:
    rendering = render(random_scene(0, 0), size=96)
    count = len(random_scene(0, 0).things)
    assert rendering.image.shape == (3, 96, 96) and rendering.masks.shape == (count, 96, 96)
    assert rendering.image.min() >= 0 and rendering.image.max() <= 1
    assert rendering.masks.dtype == torch.bool


@pytest.mark.parametrize("noun", NOUNS)
def test_a_mask_lies_where_the_object_changes_the_picture(noun: str) -> None:
    scene = alone(noun, Look("purple", hat="red", scarf="yellow"))
    shown, empty = render(scene), render(replace(scene, things=()))
    changed = (shown.image - empty.image).abs().amax(0) > 0.02
    mask = shown.masks[0]
    # Half of an outline lies outside of the polygon, so a thin rim may be changed but not masked.
    assert (mask & ~changed).sum() <= 0.03 * mask.sum()
    assert (changed & ~mask).sum() <= 0.25 * mask.sum()


@pytest.mark.parametrize("noun", NOUNS)
def test_the_body_colour_is_inside_the_mask_only(noun: str) -> None:
    rendering = render(alone(noun, Look("purple")))
    near = (rendering.image - torch.tensor(rgb_of("purple")).view(3, 1, 1) / 255).abs().amax(
        0
    ) < 0.06
    assert near.sum() > 300
    assert not (near & ~rendering.masks[0]).any()


@pytest.mark.parametrize("part", ["accent", "patch", "scarf", "hat"])
@pytest.mark.parametrize("noun", NOUNS)
def test_a_part_shows_in_its_colour(noun: str, part: str) -> None:
    image = render(alone(noun, Look("blue", **{part: "red"}))).image
    near = (image - torch.tensor(rgb_of("red")).view(3, 1, 1) / 255).abs().amax(0) < 0.06
    assert near.sum() > 30


def test_what_is_drawn_later_covers_what_is_behind() -> None:
    behind = Thing("house", Look("red"), Placement(0.42, 0.9, 0.5))
    front = Thing("dog", Look("blue"), Placement(0.55, 0.95, 0.5))
    both = render(Scene("snow", (behind, front))).masks
    alone_behind = render(Scene("snow", (behind,))).masks[0]
    alone_front = render(Scene("snow", (front,))).masks[0]
    assert torch.equal(both[1], alone_front)
    # Pixels that the edge cuts in two halves may count for both.
    hidden = alone_behind & alone_front
    assert (both[0] & both[1]).sum() < 0.1 * hidden.sum()
    assert (both[0] ^ (alone_behind & ~alone_front)).sum() < 0.1 * hidden.sum()
    assert both[0].sum() < alone_behind.sum()


def test_styles_change_pixels_but_not_masks() -> None:
    plain = render(alone("cat", Look("green")))
    for style in (Style("sepia"), Style(line="bold"), Style(texture="pixel"), Style("mono")):
        styled = render(alone("cat", Look("green"), style=style))
        assert (styled.image - plain.image).abs().mean() > 0.003, style
        assert torch.equal(styled.masks, plain.masks)
    mono = render(alone("cat", Look("green"), style=Style("mono"))).image
    assert (mono.amax(0) - mono.amin(0)).max() < 0.02


def test_wild_scenes_leave_the_palette_and_an_empty_scene_has_no_mask() -> None:
    scene = alone("mug", Look("red"), seed=5)
    assert (render(replace(scene, wild=True)).image - render(scene).image).abs().mean() > 0.02
    assert render(Scene("night", ())).masks.shape == (0, 128, 128)


def test_random_scenes_have_the_planned_variety() -> None:
    scenes = [random_scene(1, index) for index in range(600)]
    counts = [len(scene.things) for scene in scenes]
    assert 0.5 < counts.count(1) / 600 < 0.7 and 0.22 < counts.count(2) / 600 < 0.38
    styled = sum(not scene.style.is_natural for scene in scenes) / 600
    assert 0.13 < styled < 0.27
    assert {scene.background for scene in scenes} == set(BACKGROUNDS)
    assert {thing.noun for scene in scenes for thing in scene.things} == set(NOUNS)
    assert all(len({t.noun for t in scene.things}) == len(scene.things) for scene in scenes)
