"""Looks and styles of concepts are never shown in pretraining."""

from __future__ import annotations

from lifelong_core.world.dice import Dice
from lifelong_core.world.looks import Look, concept_look, fancy_look, plain_look
from lifelong_core.world.palette import COLOURS, PLAIN_COLOURS
from lifelong_core.world.scenes import random_scene
from lifelong_core.world.streams import character, personal_style
from lifelong_core.world.styles import Style, all_styles, concept_style, pretraining_style

MANY = 10_000


def test_ten_thousand_looks_of_each_kind_do_not_overlap() -> None:
    dice = Dice(0, "looks")
    shown = {fancy_look(dice) for _ in range(MANY)} | {plain_look(dice) for _ in range(MANY)}
    kept = {concept_look(dice) for _ in range(MANY)}
    assert len(shown) > MANY / 2 and len(kept) > MANY / 2
    assert not shown & kept
    assert all(look.is_reserved for look in kept)
    assert not any(look.is_reserved for look in shown)


def test_scenes_of_pretraining_and_characters_of_streams_hold_to_it() -> None:
    looks = [thing.look for i in range(300) for thing in random_scene(7, i).things]
    assert not any(look.is_reserved for look in looks)
    assert all(character(seed, i).look.is_reserved for seed in (1, 2) for i in range(50))


def test_about_one_fancy_look_in_five_is_reserved() -> None:
    looks = {Look(a, "striped", b, hat=c) for a in COLOURS for b in COLOURS for c in COLOURS}
    share = sum(look.is_reserved for look in looks) / len(looks)
    assert 0.17 < share < 0.23


def test_the_reserved_looks_are_the_same_on_every_machine() -> None:
    reserved = [colour for colour in COLOURS if Look(colour, hat="red").is_reserved]
    assert reserved == ["teal"]
    assert not any(Look(colour).is_reserved for colour in COLOURS)


def test_looks_are_what_they_say() -> None:
    dice = Dice(1, "looks")
    for _ in range(300):
        look = fancy_look(dice)
        assert not look.is_plain
        assert (look.second is None) == (look.pattern == "plain")
        assert look.second != look.colour
        assert look.colour not in (look.accent, look.patch, look.scarf, look.hat)
    assert plain_look(dice).colour in PLAIN_COLOURS and plain_look(dice).is_plain


def test_ten_thousand_styles_of_each_kind_do_not_overlap() -> None:
    dice = Dice(0, "styles")
    shown = {pretraining_style(dice) for _ in range(MANY)}
    kept = {concept_style(dice) for _ in range(MANY)}
    assert shown and kept and not shown & kept
    assert shown | kept == set(all_styles()) and Style() not in shown | kept
    assert {style for style in all_styles() if len(style.words) == 1} <= shown
    assert len({style.tone for style in kept}) >= 2
    assert all(personal_style(2, i).style in kept for i in range(20))
    styles = {random_scene(7, i).style for i in range(300)}
    assert not any(style.is_reserved for style in styles)
