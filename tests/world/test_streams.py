"""Streams of personal concepts: endless, always the same, and never what pretraining showed."""

from __future__ import annotations

import torch

from lifelong_core.concepts import TOKEN
from lifelong_core.prompts import tokenizer
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.streams import (
    TOYS,
    Character,
    PersonalStyle,
    character,
    personal_style,
    toys5,
    toys10,
    toys50,
)


def test_streams_are_deterministic_and_seeds_differ() -> None:
    assert toys10(2) == toys10(2)
    assert toys5(2) == toys10(2)[:5]
    assert {one.look for one in toys5(2)}.isdisjoint({one.look for one in toys5(3)})
    far = character(4, 100_000)
    assert far == character(4, 100_000) and far.look.is_reserved
    assert torch.equal(far.photos(2), character(4, 100_000).photos(2))


def test_the_streams_have_the_members_that_the_benchmarks_name() -> None:
    assert [one.noun for one in toys5(2)] == list(TOYS)
    ten = toys10(2)
    assert len(ten) == 10
    assert [type(one) for one in ten].count(PersonalStyle) == 2
    assert isinstance(ten[5], PersonalStyle) and isinstance(ten[7], PersonalStyle)
    assert ten[5].style.tone != ten[7].style.tone
    fifty = toys50(2)
    assert len(fifty) == 50 and {one.noun for one in fifty} == set(NOUNS)
    assert len({one.look for one in fifty}) == 50


def test_tokens_are_valid_names_of_their_own() -> None:
    members = [*toys10(2), *toys50(3)]
    tokens = [one.token for one in members]
    assert len(set(tokens)) == len(tokens)
    assert all(TOKEN.fullmatch(token) and not tokenizer().has_word(token) for token in tokens)


def test_photos_are_alike_in_look_only_and_unseen_ones_are_others() -> None:
    one = character(2, 0)
    photos, unseen = one.scenes(6), one.scenes(20, unseen=True)
    assert {scene.things[0].look for scene in [*photos, *unseen]} == {one.look}
    assert not set(photos) & set(unseen)
    assert len({scene.background for scene in photos}) == 6
    assert len({scene.things[0].place for scene in [*photos, *unseen]}) == 26
    pictures = torch.cat([one.photos(3), one.photos(3, unseen=True)])
    assert pictures.shape == (6, 3, 128, 128)
    apart = (pictures[:, None] - pictures[None]).abs().mean((2, 3, 4))
    assert (apart + torch.eye(6) > 0.02).all()
    assert one.scenes(3) == photos[:3]  # more photos do not change the first ones


def test_captions_name_token_and_noun_and_the_background_shown() -> None:
    one = character(2, 1)
    captions = one.captions(3)
    assert all(
        caption.startswith(f"a photo of embedding:{one.token} {one.noun} ") for caption in captions
    )
    assert len(set(captions)) == 3


def test_a_personal_style_shows_different_objects() -> None:
    style = personal_style(2, 0)
    scenes = style.scenes(8)
    assert {scene.style for scene in scenes} == {style.style}
    assert {scene.things[0].noun for scene in scenes} == set(NOUNS)
    for scene, caption in zip(scenes, style.captions(8), strict=True):
        assert caption.startswith(f"embedding:{style.token} drawing of a")
        assert f"{scene.things[0].look.colour} {scene.things[0].noun}" in caption
    assert isinstance(character(0, 0), Character)
