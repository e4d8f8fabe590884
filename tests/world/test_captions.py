"""Captions mention only what is there, and sooner or later everything that is there."""

from __future__ import annotations

import re

from lifelong_core.world.backgrounds import PHRASES
from lifelong_core.world.captions import caption_of, full_phrase
from lifelong_core.world.clip import VOCABULARY
from lifelong_core.world.dice import Dice
from lifelong_core.world.looks import PARTS, PATTERNS, Look
from lifelong_core.world.palette import COLOURS
from lifelong_core.world.scenes import Scene, Thing, random_scene
from lifelong_core.world.shapes import NOUNS, SHAPES

WORD = re.compile(r"[a-z-]+")


def allowed(scene: Scene) -> set[str]:
    """Every word that a caption of `scene` may use."""
    words = {"a", "an", "and", "of", "photo", "drawing", "fancy", "with"}
    words |= set(PHRASES[scene.background].split()) | set(scene.style.words)
    for thing in scene.things:
        look = thing.look
        words |= {thing.noun, look.colour, look.second or "", look.pattern}
        for part in PARTS:
            if colour := getattr(look, part):
                words |= {colour, SHAPES[thing.noun].accent_word if part == "accent" else part}
    return words


def test_captions_mention_only_what_is_there() -> None:
    for index in range(400):
        scene = random_scene(7, index)
        caption = caption_of(scene, Dice(7, "caption", 0, index))
        assert set(WORD.findall(caption)) <= allowed(scene), (scene, caption)
        assert all(thing.noun in caption for thing in scene.things)


def test_colours_stand_beside_their_own_object() -> None:
    scene = next(
        scene
        for index in range(1000)
        if len((scene := random_scene(7, index)).things) == 2
        and all(thing.look.is_plain for thing in scene.things)
        and scene.things[0].look != scene.things[1].look
    )
    first, second = scene.things
    captions = {caption_of(scene, Dice(0, "c", variant)) for variant in range(40)}
    swapped = f"{second.look.colour} {first.noun}"
    assert any(f"{first.look.colour} {first.noun} and" in caption for caption in captions)
    assert not any(swapped in caption for caption in captions)


def test_variants_tell_other_parts_and_all_of_them_in_the_end() -> None:
    look = Look("red", "striped", "white", accent="green", patch="blue", scarf="pink", hat="teal")
    thing = Thing("dog", look, random_scene(0, 0).things[0].place)
    captions = {caption_of(Scene("night", (thing,)), Dice(0, "c", v)) for v in range(100)}
    told = [sum(f"{word}" in c for c in captions) for word in ("ear", "patch", "scarf", "hat")]
    assert len(captions) > 20 and all(0 < count < len(captions) for count in told)


def test_phrases_read_as_english() -> None:
    assert full_phrase("dog", Look("orange")) == "an orange dog"
    look = Look("red", "striped", "white", accent="orange", hat="blue")
    wanted = "a fancy red and white striped dog with an orange ear and a blue hat"
    assert full_phrase("dog", look) == wanted
    look = Look("red", accent="green", scarf="blue", hat="pink")
    assert full_phrase("house", look).endswith("with a green roof, a blue scarf and a pink hat")


def test_the_world_clip_knows_every_word() -> None:
    words = {
        word
        for index in range(500)
        for word in WORD.findall(caption_of(random_scene(1, index), Dice(1, "c", index)))
    }
    assert words <= set(VOCABULARY)
    assert {*NOUNS, *COLOURS, *PATTERNS} <= set(VOCABULARY)
