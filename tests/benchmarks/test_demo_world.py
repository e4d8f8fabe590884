"""What the demo model's record is put together from: similarities told by hand, parts made once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.demo_world import made
from benchmarks.world_concepts import Drawn, row, twenty
from benchmarks.world_samplers import SAMPLERS, workflow
from lifelong_core.evaluation.features import FeatureSpace
from lifelong_core.world.asked import plain
from lifelong_core.world.judge import Judge
from lifelong_core.world.judge_net import new_judge_net
from lifelong_core.world.streams import Character, character


def in_channels(images: torch.Tensor) -> torch.Tensor:
    """The mean colour as a feature: [B, 3]."""
    return images.mean((2, 3))


def coloured(count: int, *colour: float) -> torch.Tensor:
    return torch.tensor(colour).view(1, 3, 1, 1).expand(count, 3, 16, 16).contiguous()


def drawn(toy: Character, renders: torch.Tensor, learned: torch.Tensor) -> Drawn:
    base = torch.cat([coloured(10, 0.0, 0.0, 1.0), coloured(10, 0.0, 1.0, 0.0)])
    return Drawn(toy, renders, base, learned, base)


def test_gain_and_margin_are_differences_of_cosines() -> None:
    red, green = coloured(4, 1.0, 0.0, 0.0), coloured(4, 0.0, 1.0, 0.0)
    both = coloured(20, 1.0, 1.0, 0.0)
    one = drawn(character(2, 0, "dog"), red, both)
    other = drawn(character(3, 0, "dog"), green, both)
    cat = drawn(character(3, 1, "cat"), both, both)  # another noun's do not count
    spaces = {"": FeatureSpace("colour", in_channels)}
    found = row(one, [one, other, cat], spaces, Judge(new_judge_net()))
    assert found["gain"] == pytest.approx(0.5**0.5)  # base pictures are orthogonal to red
    assert found["margin"] == pytest.approx(0.0, abs=1e-6)  # as like to red as to green
    nearer = drawn(other.toy, green, coloured(20, 0.0, 1.0, 0.0))
    assert row(nearer, [one, nearer], spaces, Judge(new_judge_net()))["margin"] == pytest.approx(1)


def test_a_noun_that_did_not_move_has_no_shift() -> None:
    red = coloured(4, 1.0, 1.0, 0.5)
    one = drawn(character(2, 0, "dog"), red, coloured(20, 1.0, 0.0, 0.0))
    other = drawn(character(3, 0, "dog"), red, one.learned)
    spaces = {"": FeatureSpace("colour", in_channels)}
    assert row(one, [one, other], spaces, Judge(new_judge_net()))["noun_shift"] == 0


def test_the_twenty_are_four_of_each_noun() -> None:
    nouns = [toy.noun for toy in twenty()]
    assert len({toy.token for toy in twenty()}) == 20
    assert all(nouns.count(noun) == 4 for noun in set(nouns))


def test_a_part_is_made_once(tmp_path: Path) -> None:
    calls = []

    def make(folder: Path) -> dict[str, Any]:
        calls.append(folder)
        return {"summary": {"x": 1}, "runs": []}

    first, second = (made(tmp_path / "part", make) for _ in range(2))
    assert first == second == {"summary": {"x": 1}, "runs": []} and len(calls) == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_prompt_gets_its_own_noise_and_text(sampler: str) -> None:
    asked = plain(3, 1)
    graph = workflow(asked, sampler, steps=4, seed=7)
    samplers = [graph[f"latent{number}"]["inputs"] for number in range(3)]
    assert [one["seed"] for one in samplers] == [7, 8, 9]
    texts = [graph[one["positive"][0]]["inputs"]["text"] for one in samplers]
    assert texts == [one.prompt for one in asked]
    assert {one["sampler_name"] for one in samplers} == {sampler}
