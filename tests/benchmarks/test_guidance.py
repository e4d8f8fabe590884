"""What the benchmark of guidance asks, answers and records, on random weights and few pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks import guidance
from benchmarks.guidance import METHODS, changed
from benchmarks.guidance_cells import Studio, cell_path, cell_values, judged_cell
from benchmarks.guidance_groups import Group, base_pairs, toy_pairs, toy_triples, toys_alone
from benchmarks.guidance_judging import CASES, QUESTIONS
from benchmarks.guidance_table import sheet, summarised
from lifelong_core.attention import GuidanceSettings
from lifelong_core.backbone import random_backbone
from lifelong_core.errors import InputError
from lifelong_core.evaluation.extractors import Extractor
from lifelong_core.world.judge import Judge
from lifelong_core.world.judge_net import new_judge_net
from lifelong_core.world.looks import Look
from lifelong_core.world.streams import TOYS, toys5
from lifelong_core.world.wearing import Wanted


def test_groups_are_the_papers_pairs_first() -> None:
    pairs = toy_pairs(toys5(2), 10)
    names = [group.name for group in pairs]
    assert names[:5] == ["dog+cat", "cat+duck", "cat+teddybear", "backpack+dog", "dog+teddybear"]
    assert len({frozenset(name.split("+")) for name in names}) == 10
    first = pairs[0]
    assert len(first.prompts) == len(set(first.prompts)) == 8
    assert "a embedding:v2-dog-1 dog and a embedding:v2-cat-3 cat on the beach" in first.prompts[0]
    assert first.pairs == (("v2-dog-1", "dog"), ("v2-cat-3", "cat"))
    assert [group.name for group in toy_pairs(toys5(2)[:2], 10)] == ["dog+duck"]
    assert [len(group.wanted) for group in toy_triples(toys5(2), 3)] == [3, 3, 3]
    alone = toys_alone(toys5(2))
    assert {group.name for group in alone} == set(TOYS) and {group.kind for group in alone} == {
        "alone"
    }
    assert "a photo of a embedding:v2-dog-1 dog on the beach" in alone[0].prompts


def test_plain_pairs_have_two_colours() -> None:
    for group in base_pairs(2, 10):
        (one, a), (other, b) = group.pairs
        assert one != other and a != b
        assert all(f"{colour} {noun}" in group.prompts[0] for colour, noun in group.pairs)


def test_the_cases_show_what_their_answers_say() -> None:
    wanted = [Wanted("dog", Look("red", scarf="blue")), Wanted("cat", Look("teal", hat="red"))]
    for number in range(4):
        shown = {name: list(case(wanted, number)) for name, (case, _) in CASES.items()}
        assert shown["right"] == wanted and shown["other order"] == wanted[::-1]
        assert len(shown["one missing"]) == 1 and len(shown["one doubled"]) == 3
        assert [one.look for one in shown["looks swapped"]] == [wanted[1].look, wanted[0].look]
        strange = [a == b for a, b in zip(shown["another look"], wanted, strict=True)]
        assert sorted(strange) == [False, True]


def test_a_setting_can_be_changed_and_a_wrong_one_is_told() -> None:
    ways = changed(METHODS, ["caa_oaa.step_size=40", "oaa.literal=True", "caa_oaa.threshold=0.3"])
    assert ways["caa_oaa"] == GuidanceSettings(caa=1, oaa=1, step_size=40, threshold=0.3)
    assert ways["oaa"] == GuidanceSettings(oaa=1, literal=True)
    for wrong in ("plain.step_size=1", "caa.size=1", "caa.step_size"):
        with pytest.raises(InputError, match="METHOD.NAME=VALUE"):
            changed(METHODS, [wrong])


def test_the_command_tells_what_is_not_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["guidance", "--stream-seed", "3"])
    usual = "python -m benchmarks.guidance --stream-seed 3 --precision fp32"
    assert guidance.command(guidance._options()) == usual
    given = "--adapters l2dm --methods caa_oaa --pairs 5 --record guidance_l2dm --set caa.caa=2"
    monkeypatch.setattr("sys.argv", ["guidance", "--stream-seed", "3", *given.split()])
    assert guidance.command(guidance._options()) == f"{usual} {given}"


def test_cells_are_drawn_once_and_hold_what_is_recorded(tmp_path: Path) -> None:
    backbone = random_backbone("demo", seed=0)
    judge = Judge(new_judge_net())
    extractor = Extractor("means", lambda x: x.mean((2, 3)), lambda t: torch.ones(len(t), 3))
    studio = Studio(backbone, judge, extractor, 1, 1, "fp32", 2, tmp_path)
    group = base_pairs(2, 1)[0]
    settings = METHODS["caa_oaa"]
    path = cell_path(studio, "base", None, group, settings, "caa_oaa")
    assert path != cell_path(studio, "base", None, group, METHODS["caa"], "caa_oaa")
    cell = judged_cell(studio, path, None, group, settings)
    assert Image.open(cell.strip).size == (6 * 128, 128)
    written = path.stat().st_mtime_ns
    again = judged_cell(studio, path, None, group, settings)
    assert path.stat().st_mtime_ns == written and again.questions == cell.questions
    values = cell_values(studio, group, cell)
    assert {name: len(one) for name, one in values.items()} == {
        **dict.fromkeys((*QUESTIONS, "ia", "ta"), 8),
        **dict.fromkeys(("kid", "mmd"), 1),
    }


def test_the_table_is_over_pairs_and_by_pair() -> None:
    values = {"both_present": [1.0, 0.0], "kid": [0.5]}
    better = {"both_present": [1.0, 1.0], "kid": [0.25]}
    cells = {
        ("ewc_dc", "pairs", "dog+cat", "plain"): values,
        ("ewc_dc", "pairs", "cat+duck", "plain"): better,
        ("ewc_dc", "triples", "dog+cat+duck", "plain"): {"both_present": [0.0], "kid": [9.0]},
        ("ewc_dc", "alone", "dog", "plain"): {"both_present": [1.0, 1.0], "kid": [0.0]},
        ("joint", "pairs", "dog+cat", "plain"): better,
        ("base", "base_pairs", "red dog+blue cat", "plain"): better,
    }
    table = summarised(cells, 2)
    assert table["adapter"] == "ewc_dc"
    mean, low, high = table["methods"]["plain"]["both_present"]
    assert (mean, low, high) == (0.75, 0.5, 1.0)
    assert table["methods"]["plain"]["kid"][0] == 0.375
    assert table["pairs"]["dog+cat"]["plain"]["kid"] == [0.5, None, None]
    assert table["alone"]["dog"]["plain"]["both_present"] == [1.0, 1.0, 1.0]
    assert list(table["triples"]) == ["dog+cat+duck"]
    assert list(table["base_pairs"]) == ["red dog+blue cat"]
    assert table["adapters"]["joint"]["methods"]["plain"]["both_present"] == [1.0, None, None]


def test_the_sheet_has_a_row_per_way(tmp_path: Path) -> None:
    paths = []
    for index in range(2):
        paths.append(tmp_path / f"{index}.jpg")
        Image.new("RGB", (30, 10)).save(paths[-1])
    assert sheet({("a", "b"): paths}).size == (30, 20)


def test_renders_show_the_wanted_objects() -> None:
    group: Group = toy_pairs(toys5(2), 1)[0]
    assert [len(alone) for alone in group.references] == [12, 12]
    assert group.scenes(2).shape == (2, 3, 128, 128)
