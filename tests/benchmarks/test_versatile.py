"""What the benchmark of starting from pictures asks, draws and records, on few pictures."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
import torch

from benchmarks.versatile_cases import EditCase, StyleCase, edit_cases, style_cases
from benchmarks.versatile_shots import (
    CONCEPT_ALONE,
    OURS,
    OUTSIDE,
    PLAIN,
    SAME_ADAPTER,
    WHOLE_PROMPT,
    Shot,
    Studio,
    edit_shots,
    style_shots,
)
from benchmarks.versatile_table import ceiling, row, sheet, summarised, told
from lifelong_core.adapters import build_adapter
from lifelong_core.adapters.spec import AdapterSpec
from lifelong_core.backbone import random_backbone
from lifelong_core.concepts import Concept
from lifelong_core.state import LifelongState, TaskRecord
from lifelong_core.world.judge import load_judge
from lifelong_core.world.scenes import Thing, render
from lifelong_core.world.shapes import NOUNS
from lifelong_core.world.streams import Character, PersonalStyle, toys10

PERSONAL = toys10(2)
STYLES = [one for one in PERSONAL if isinstance(one, PersonalStyle)]
CHARACTERS = [one for one in PERSONAL if isinstance(one, Character)]


@pytest.fixture(scope="module")
def studio() -> Studio:
    """Random weights, and an adapter that changes every layer."""
    backbone = random_backbone("demo", seed=4)
    spec = AdapterSpec()
    weights = {
        name: torch.full_like(value, 0.05)
        for name, value in build_adapter(spec, backbone, seed=0).state().items()
    }
    records = tuple(
        TaskRecord(
            Concept(one.token, one.noun, backbone.text.noun_vector("dog")),
            "not learned", weights, {}, {},
        )
        for one in (STYLES[0], CHARACTERS[0])
    )  # fmt: skip
    state = LifelongState(backbone.family.name, backbone.fingerprint, spec, weights, records)
    return Studio(backbone, load_judge(), state, pictures=2, steps=2, precision="fp32", seed=2)


def test_photos_for_styles_are_plain_and_the_same_for_all_styles() -> None:
    first, second = (style_cases(style, 10) for style in STYLES)
    assert [case.scene for case in first] == [case.scene for case in second]
    assert all(case.scene.style.is_natural for case in first)
    assert {case.scene.things[0].noun for case in first} == set(NOUNS)
    case = first[0]
    assert case.prompt == case.plain.replace("drawing", "embedding:v2-style-1 drawing")


def test_photos_for_characters_have_other_objects_and_a_mask_over_one() -> None:
    for place, case in enumerate(edit_cases(CHARACTERS[0], 2)):
        assert case.place == place
        assert "dog" not in [thing.noun for thing in case.scene.things]
        other = case.scene.things[1 - place]
        told = [f"{other.look.colour} {other.noun}", "embedding:v2-dog-1 dog"]
        assert [case.whole.count(text) for text in told] == [1, 1]
        assert [case.prompt.count(text) for text in told] == [0, 1]
        middle = case.mask.nonzero()[:, 1].float().mean() / case.mask.shape[1]
        assert (middle < 0.5) == (place == 0)
        # The neighbour's colour is a little another one: colours are drawn object by object.
        outside = (case.photo - case.perfect).abs() * (1 - case.mask)
        assert outside.max() < 0.2 and outside.mean() < 0.02


def test_the_judge_tells_perfect_pictures_from_untouched_photos(studio: Studio) -> None:
    cases: list[StyleCase | EditCase] = [
        *(case for style in STYLES for case in style_cases(style, 8)),
        *(case for toy in CHARACTERS for case in edit_cases(toy, 2)),
    ]
    for case in cases:
        assert case.photo.shape == case.perfect.shape == (3, 128, 128)
    answers = {
        kind: [case.answers(studio.judge, getattr(case, kind)[None])[0] for case in cases]
        for kind in ("perfect", "photo")
    }
    share = {
        (kind, name): [float(one[name]) for one in given if name in one]
        for kind, given in answers.items()
        for name in ("style_right", "noun_kept", "noun_inside", "edit_inside", "neighbour_kept")
    }
    mean = {key: sum(values) / len(values) for key, values in share.items()}
    assert all(mean["perfect", name] > 0.75 for _, name in mean)
    assert mean["photo", "style_right"] == mean["photo", "edit_inside"] == 0
    assert mean["photo", "noun_inside"] == 0
    assert mean["photo", "noun_kept"] > 0.9 and mean["photo", "neighbour_kept"] > 0.9


def test_a_concept_across_the_masks_edge_is_not_inside(studio: Studio) -> None:
    """Drawn as large as the picture, its middle in the mask."""
    case = edit_cases(CHARACTERS[0], 1)[0]
    place = replace(case.scene.things[0].place, size=0.95, x=0.49)
    large = Thing(case.concept.noun, case.concept.look, place)
    picture = render(replace(case.scene, things=(large,))).image[None]
    wide = replace(case, scene=replace(case.scene, things=(large, case.scene.things[1])))
    assert not case.answers(studio.judge, picture)[0]["noun_inside"]
    assert wide.answers(studio.judge, picture)[0]["noun_inside"]


def test_the_ways_differ_in_word_adapter_and_mask_only(studio: Studio) -> None:
    styled = style_shots(studio, style_cases(STYLES[0], 1)[0], strength=0.6)
    edited = edit_shots(studio, edit_cases(CHARACTERS[0], 1)[0], strength=1.0)
    assert [shot.way for shot in styled] == [OURS, SAME_ADAPTER, PLAIN]
    assert [shot.way for shot in edited] == [OURS, WHOLE_PROMPT, CONCEPT_ALONE, PLAIN]
    for shot in (*styled, *edited):
        assert shot.pictures.shape == (2, 3, 128, 128)
    for shots in (styled, edited):
        for one, other in combinations(shots, 2):
            assert (one.pictures - other.pictures).abs().max() > 1e-4, (one.way, other.way)
    assert [shot.values[OUTSIDE] for shot in edited[:3]] == [0, 0, 0]
    assert edited[3].values[OUTSIDE] > 0.1


def test_a_style_heard_by_words_is_heard_everywhere_without_its_word(studio: Studio) -> None:
    own = {"method": "cidm", "localized_words": True}
    records = [replace(one, settings={**one.settings, **own}) for one in studio.state.records]
    by_words = replace(studio, state=replace(studio.state, records=tuple(records)))
    _, unnamed, plain = style_shots(by_words, style_cases(STYLES[0], 1)[0], strength=0.6)
    assert (unnamed.pictures - plain.pictures).abs().max() > 1e-4


def test_what_is_recorded(studio: Studio) -> None:
    style, edit = style_cases(STYLES[0], 2), edit_cases(CHARACTERS[0], 2)
    picture = torch.zeros(1, 3, 128, 128)
    shots = [
        Shot(way, case, picture, {"style_right": value})
        for case, right in zip(style, (1.0, 0.5), strict=True)
        for way, value in ((OURS, right), (SAME_ADAPTER, 0.0), (PLAIN, 0.5))
    ] + [
        Shot(way, case, picture, {"edit_inside": 1.0, OUTSIDE: value})
        for case, change in zip(edit, (3.0, 4.0), strict=True)
        for way, value in ((OURS, 0.0), (PLAIN, change))
    ]
    summary = summarised(shots, seed=2)
    assert summary["style_right"] == 0.75
    assert summary["style_right_same_adapter"] == 0
    assert summary["style_right_plain"] == 0.5
    assert summary[OUTSIDE] == 0 and summary[f"{OUTSIDE}_plain"] == 4
    assert summary["differences"]["style_right_plain"] == [0.25, 0.0, 0.5]
    assert summary["differences"]["edit_inside_plain"] == [0, 0, 0]
    assert row(shots[0])["concept"] == "v2-style-1"
    assert told(shots[:3]) == "style_right ours 1.00, style_right same_adapter 0.00, " + (
        "style_right plain 0.50"
    )
    assert sheet(shots).size == (2 * 4 * 128, 2 * 128)
    assert set(ceiling(studio, shots)) == {"perfect", "untouched"}
