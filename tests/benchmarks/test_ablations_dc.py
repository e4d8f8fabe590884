"""The ablations vary what they say, measure it once, and keep what was recorded before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import ablation_axes, ablations_dc
from benchmarks.ablation_axes import (
    AXES,
    FULL,
    NAMES,
    Axis,
    DistillFromNewest,
    newest_teacher_way,
    ways_of,
)
from benchmarks.ablation_probes import _verdict, classification, spectra, spectrum
from benchmarks.ablations_dc import Ablations, chosen_axes, mean_scores, measured_axis, write
from benchmarks.made_state import made_state
from benchmarks.record import Recorder
from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import make_task
from lifelong_core.consolidation import ConsolidationSettings
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.distill import DistillPhase
from lifelong_core.errors import InputError
from lifelong_core.evaluation import drawing
from lifelong_core.evaluation.extractors import Extractor
from lifelong_core.evaluation.protocol import Protocol
from lifelong_core.evaluation.reference import Bench
from lifelong_core.evaluation.stream import Stream, Subject
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS

LESSON = LessonSettings(
    steps=3, batch_size=1, prior_count=0, ewc_weight=1e6, adapter=AdapterSpec(rank=2)
)
"""A lesson's first step is at its anchor, where the Fisher has no pull."""
AFTER = ConsolidationSettings(
    batch_size=1, fisher_iterations=2, distillation_iterations=1, temperature=0.01
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(scope="module")
def stream() -> Stream:
    draw = torch.Generator().manual_seed(0)
    subjects = []
    for token, noun in (("my_dog", "dog"), ("my_cat", "cat"), ("my_mug", "mug")):
        task = make_task(token, noun, torch.rand(2, 3, 32, 32, generator=draw), size=32)
        real = torch.rand(2, 3, 32, 32, generator=draw)
        prompts, plain = [f"a photo of {task.phrase}"] * 2, [f"a photo of a {noun}"] * 2
        subjects.append(Subject(task, real, tuple(prompts), tuple(plain)))
    return Stream("pets", 7, tuple(subjects))


@pytest.fixture
def small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        real = drawing.generate
        patch.setattr(drawing, "generate", lambda *a, **k: real(*a, size=(32, 32), **k))
        for place in ("run", "measures", "reference"):
            name = f"lifelong_core.evaluation.{place}.concept_free_prompts"
            patch.setattr(name, lambda: ["a dog", "a mug"])
        yield


def ablations(backbone: Backbone, stream: Stream, work: Path) -> Ablations:
    def words(texts: Any) -> torch.Tensor:
        return torch.tensor([[float(text.count(letter)) for letter in "aeo"] for text in texts])

    extractor = Extractor("colours", lambda images: images.mean((2, 3)), words)
    bench = Bench(backbone, (extractor,), Protocol(2, 2, 1, 1), work)
    return Ablations(bench, stream, LESSON, AFTER, trials=1)


def test_every_axis_varies_its_settings_around_the_default() -> None:
    lesson, after = LessonSettings(), ConsolidationSettings()
    names = {
        axis: {value: way.name for value, way in ways_of(axis, lesson, after).items()}
        for axis in NAMES
    }
    assert names["k"] == {
        "2": "ewc_dc+consolidation.subset=2",
        "3": "ewc_dc+consolidation.subset=3",
        "5": "ewc_dc",
        "7": "ewc_dc+consolidation.subset=7",
    }
    for axis in AXES:
        assert len([name for name in names[axis].values() if "+" not in name]) == 1, axis
        for value, way in ways_of(axis, lesson, after).items():
            of = {"": way.settings(lesson), "consolidation": way.consolidation(after)}
            for setting in AXES[axis].settings:
                owner, _, key = setting.rpartition(".")
                assert getattr(of[owner], key) == float(value), setting
    assert list(names["teacher"].values()) == [FULL, f"{FULL}_teacher_before"]
    assert set(names["method"].values()) <= set(METHODS)


def test_a_default_that_no_axis_names_is_measured_too() -> None:
    axis = Axis("ewc", ("ewc_weight",), (0.0, 10.0))
    ways = axis.ways(LessonSettings(ewc_weight=3.0), ConsolidationSettings())
    assert {value: way.name for value, way in ways.items()} == {
        "0": "ewc+ewc_weight=0",
        "3": "ewc",
        "10": "ewc+ewc_weight=10",
    }


def test_unknown_axes_are_refused() -> None:
    assert chosen_axes("k, tau,k") == ["k", "tau"]
    with pytest.raises(InputError, match="no axis 'kay'.*gamma"):
        chosen_axes("k,kay")


def test_the_fixed_teacher_is_the_lesson_before(backbone: Backbone, stream: Stream) -> None:
    task = stream.subjects[0].task
    settings = replace(AFTER, seed=0)  # of four lessons its first draw is the second
    moved = {}
    for lessons in (2, 4):
        state = made_state(backbone, task, lessons, AdapterSpec(rank=2))
        work = prepare(backbone, task, settings, state)
        fixed, random = DistillFromNewest()(work, state, None), DistillPhase()(work, state, None)
        moved[lessons] = max(
            float((fixed.adapter[name] - random.adapter[name]).abs().max())
            for name in state.adapter
        )
        assert "dsc_dc_lesson_before" in fixed.records[-1].metrics["consolidation"]
    assert moved[2] == 0.0 < moved[4]


def test_the_way_with_a_fixed_teacher_is_otherwise_the_full_method() -> None:
    usual, fixed = METHODS[FULL].after, newest_teacher_way()
    assert [phase.name for phase in usual] == ["dsc_dc", "fisher_dc"]
    assert fixed.settings(LESSON) == LESSON and fixed.consolidation(AFTER) == AFTER


def test_verdicts_are_of_the_concepts_own_column() -> None:
    errors = torch.tensor([[[0.1, 0.3], [0.4, 0.2]], [[0.3, 0.2], [0.2, 0.3]]])
    found = _verdict(errors, 0, temperature=1e6)
    assert found["accuracy"] == 0.5 and found["accuracy_one_trial"] == 0.5
    assert found["entropy_share"] == pytest.approx(1.0, abs=1e-4)
    assert _verdict(errors, 1, temperature=1e-6)["entropy_share"] == pytest.approx(0.0, abs=1e-4)
    assert _verdict(errors[:1, :1], 1, 1.0)["accuracy"] == 0.0


def test_a_spectrum_says_how_uneven_a_fisher_is() -> None:
    values = torch.zeros(200)
    values[7], values[100] = 3.0, 1.0
    found = spectrum(values)
    assert found["ranks"] == pytest.approx(
        {"1": 3.0, "2": 1.0, "5": 0.0, "10": 0.0, "20": 0.0, "50": 0.0, "100": 0.0, "200": 0.0}
    )
    assert found["top_share"] == 1.0 and found["mean"] == pytest.approx(0.02)
    assert found["effective_weights"] == pytest.approx(16 / 10)
    assert spectrum(torch.ones(200))["effective_weights"] == pytest.approx(200)


def test_an_axis_is_measured_once_and_recorded(
    backbone: Backbone,
    stream: Stream,
    tmp_path: Path,
    small_pictures: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(
        ablation_axes.AXES, "delta", Axis("ewc_dc", ("consolidation.delta",), (0.5, 50.0))
    )
    two = replace(stream, subjects=stream.subjects[:2])
    work = ablations(backbone, two, tmp_path)
    result, rows = measured_axis("delta", work)
    usual, other = result["values"].values()
    assert (usual["way"], other["way"]) == ("ewc_dc", "ewc_dc+consolidation.delta=50")
    assert rows[0]["measured"] != rows[1]["measured"]
    assert set(other["against_ewc_dc"]) == set(ablations_dc.COMPARED)
    assert len(other["against_ewc_dc"]["a_mmd"]) == 3 and "against_ewc_dc" not in usual
    assert 0.0 < usual["scores"]["fisher_dc"]["entropy_share"] <= 1.0
    assert [row["value"] for row in rows] == ["0.5", "50"]

    monkeypatch.setattr(ablations_dc, "METHOD", "delta")  # its probes are of finished runs
    again, probed = measured_axis("delta", work)
    assert again["values"] == result["values"]
    assert probed[0]["classification"]["chance"] == 0.5 and "fisher" in probed[0]

    recorder = Recorder("x", "python -m x", work.settings(), tmp_path / "out")
    write(recorder, "delta", result, rows)
    write(recorder, "k", {"values": {}}, [{"axis": "k"}])
    write(recorder, "delta", {"values": {"new": 1}}, [{"axis": "delta"}])
    known = json.loads((tmp_path / "out" / "x.json").read_text(encoding="utf-8"))
    assert list(known["summary"]["axes"]) == ["k", "delta"]
    assert known["summary"]["axes"]["delta"]["values"] == {"new": 1}
    assert [one["axis"] for one in known["runs"]] == ["k", "delta"]
    changed = replace(recorder, settings={**work.settings(), "concepts": 3})
    write(changed, "tau", {"values": {}}, [{"axis": "tau"}])
    known = json.loads((tmp_path / "out" / "x.json").read_text(encoding="utf-8"))
    assert list(known["summary"]["axes"]) == ["tau"]


def test_probes_look_at_states_without_changing_them(backbone: Backbone, stream: Stream) -> None:
    task = stream.subjects[-1].task
    state = made_state(backbone, task, 3, AdapterSpec(rank=2))
    before = state.content_hash
    found = classification(backbone, state, stream.subjects, temperature=0.01, trials=1)
    assert found["chance"] == pytest.approx(1 / 3)
    assert 0.0 < found["entropy_share"] < 1.0 and 0.0 <= found["accuracy"] <= 1.0
    fisher = spectra(backbone, task, state, AFTER)
    assert fisher["with_dc"]["mean"] != fisher["without_dc"]["mean"] and fisher["shared_top"] <= 1
    assert state.content_hash == before and not state.extras


def test_mean_scores_are_over_the_lessons_that_have_them() -> None:
    told = {"entropy_share": 0.5, "highest_score": 0.25, "accuracy": 1.0, "seconds": 9.0}
    lessons = [
        {"concept": "a", "fisher_dc": told},
        {"concept": "b", "fisher_dc": {**told, "accuracy": 0.0}, "dsc": {"seconds": 1.0}},
    ]
    assert mean_scores(lessons) == {
        "fisher_dc": {"entropy_share": 0.5, "highest_score": 0.25, "accuracy": 0.5}
    }
