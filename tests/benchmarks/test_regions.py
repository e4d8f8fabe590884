"""The benchmark of regions: what it asks for, how it judges, and what it records."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.guidance_groups import rendered
from benchmarks.region_cells import QUESTIONS, WAYS, answer, judged
from benchmarks.region_groups import PLACES, Row, character_rows
from benchmarks.regions import layerwise_difference, share, summarised
from lifelong_core.attention.regions import check_regions
from lifelong_core.files import write_json
from lifelong_core.world.judge import Observation, load_judge
from lifelong_core.world.streams import Character, toys10
from lifelong_core.world.wearing import Wanted

TOYS = [one for one in toys10(2) if isinstance(one, Character)]
DOG, CAT = TOYS[0], TOYS[2]
PAIR = Row((DOG, CAT))


def test_rows_have_different_nouns_and_are_always_the_same() -> None:
    rows = character_rows(TOYS, 2, 10, seed=2)
    assert len({row.name for row in rows}) == 10
    assert all(len({one.noun for one in row.characters}) == 2 for row in rows)
    assert rows == character_rows(TOYS, 2, 10, seed=2) != character_rows(TOYS, 2, 10, seed=3)
    assert len(character_rows(TOYS[:3], 3, 10, seed=2)) == 1
    assert {row.kind for row in character_rows(TOYS, 3, 2, seed=2)} == {"triples"}


def test_a_region_names_its_own_character_alone() -> None:
    first, second = PAIR.regions(PLACES[0])
    check_regions([first, second], (128, 128))
    assert torch.equal(first.mask + second.mask, torch.ones(128, 128))
    assert first.prompt == (f"a photo of a embedding:{DOG.token} dog and a cat {PLACES[0]}")
    assert f"embedding:{CAT.token} cat" in second.prompt and DOG.token not in second.prompt
    assert PAIR.prompt(PLACES[0], []) == f"a photo of a dog and a cat {PLACES[0]}"
    assert all(one.token in PAIR.prompt(PLACES[0]) for one in (DOG, CAT))
    told = PAIR.told(PLACES[0])
    assert told.startswith("a photo of a fancy ") and told.endswith(PLACES[0])
    assert all(look.colour in told for look in (DOG.look, CAT.look)) and "embedding:" not in told


def _seen(images: torch.Tensor) -> list[tuple[Observation, ...]]:
    return load_judge().observe(images)


def test_scenes_in_their_order_are_placed_and_others_are_not() -> None:
    """By the judge: renders of the row, of the other order, and of one of the two alone."""
    scenes = PAIR.scenes(8)
    found = judged(load_judge(), scenes, PAIR)
    assert share(found["right"]) >= 0.75 and found["placed"] == found["right"]
    turned = [answer(seen, PAIR.wanted, PAIR.strips()) for seen in _seen(Row((CAT, DOG)).scenes(8))]
    assert sum(one["right"] for one in turned) >= 6
    assert not any(one["placed"] for one in turned)
    assert all(one["named"] for one in turned) and share(found["unswapped"]) >= 0.75
    swapped = rendered([[Wanted("dog", CAT.look), Wanted("cat", DOG.look)]] * 8, "swapped", seed=4)
    others = [answer(seen, PAIR.wanted, PAIR.strips()) for seen in _seen(swapped)]
    assert sum(one["named"] for one in others) >= 6
    assert not any(one["unswapped"] for one in others)
    alone = judged(load_judge(), DOG.photos(4), PAIR)
    assert not any(answer for answers in alone.values() for answer in answers)


def test_the_keys_are_about_the_ways_that_they_name(tmp_path: Path) -> None:
    yes, no = [True, True, True, True], [False, False, False, True]
    found = {
        (kind, name, way): {
            question: no if (way, question) == ("regions", "placed") else yes
            for question in QUESTIONS
        }
        for kind, name in (("pairs", "a+b"), ("pairs", "a+c"), ("triples", "a+b+c"))
        for way in (*WAYS, "ceiling")
    }
    summary = summarised(found, seed=2)
    assert summary["pairs_right"] == summary["triples_right"] == 0.25
    assert summary["automatic_pairs_right"] == 1.0
    assert summary["pairs_right_regions_at_once"] == 1.0
    assert summary["pairs_right_ceiling"] == summary["pairs_right_plain"] == 1.0
    assert summary["pairs"]["regions"]["placed"] == [0.25, 0.25, 0.25]
    pairs = {key: answers for key, answers in found.items() if key[0] == "pairs"}
    assert "triples_right" not in summarised(pairs, seed=2)
    assert layerwise_difference(tmp_path) == {}
    write_json(tmp_path / "layerwise.json", {"summary": {"layerwise_minus_single_ia": 0.5}})
    assert layerwise_difference(tmp_path) == {"layerwise_minus_single_ia": 0.5}
