"""A whole run on random weights with tiny lessons: its cells, its end after a kill, its result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import make_task
from lifelong_core.consolidation import consolidation_defaults
from lifelong_core.drawing import knowing
from lifelong_core.evaluation import drawing, phases
from lifelong_core.evaluation import run as module
from lifelong_core.evaluation.extractors import Extractor
from lifelong_core.evaluation.protocol import Protocol
from lifelong_core.evaluation.reference import Bench
from lifelong_core.evaluation.run import Run, run_stream
from lifelong_core.evaluation.stream import Stream, Subject
from lifelong_core.evaluation.values import VALUES
from lifelong_core.evaluation.ways import way_named
from lifelong_core.files import load_tensors, read_json
from lifelong_core.lesson import LessonSettings
from lifelong_core.memory import LongTermMemory
from lifelong_core.methods import CODE_VERSION, METHODS, drawing_state, learn
from lifelong_core.state import load_state
from lifelong_core.training import Progress
from lifelong_core.word_routing import prompted
from tests.consolidation.conftest import example_state

SETTINGS = LessonSettings(
    steps=2, batch_size=1, prior_batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2)
)
PROTOCOL = Protocol(prompts=2, last_prompts=3, pictures=1, steps=1)


class Killed(BaseException):
    """Nothing in the library catches this."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(autouse=True, scope="module")
def small_pictures() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        real = drawing.generate
        patch.setattr(drawing, "generate", lambda *a, **k: real(*a, size=(32, 32), **k))
        prompts = ["a photo of a dog", "a cat", "a mug"]
        for place in ("run", "measures", "reference"):
            name = f"lifelong_core.evaluation.{place}.concept_free_prompts"
            patch.setattr(name, lambda: prompts)
        yield


def colours(images: torch.Tensor) -> torch.Tensor:
    return torch.cat([images.mean((2, 3)), images.std((2, 3))], dim=1)


def words(texts: list[str] | tuple[str, ...]) -> torch.Tensor:
    return torch.tensor([[float(text.count(letter)) for letter in "aeotdr"] for text in texts])


def stream() -> Stream:
    draw = torch.Generator().manual_seed(0)
    subjects = []
    for token, noun in (("my_dog", "dog"), ("my_cat", "cat")):
        task = make_task(token, noun, torch.rand(2, 3, 32, 32, generator=draw), size=32)
        prompts = [f"a photo of a {{}} {where}" for where in ("at night", "on grass", "in snow")]
        subjects.append(
            Subject(
                task,
                torch.rand(3, 3, 32, 32, generator=draw),
                tuple(prompt.format(task.phrase) for prompt in prompts),
                tuple(prompt.format(noun) for prompt in prompts),
            )
        )
    return Stream("pets", 7, tuple(subjects))


def new_run(backbone: Backbone, work: Path, method: str = "lora") -> Run:
    bench = Bench(backbone, (Extractor("colours", colours, words),), PROTOCOL, work)
    return Run(bench, stream(), way_named(method), SETTINGS, consolidation_defaults("demo"))


@pytest.fixture(scope="module")
def done(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that nothing stopped."""
    run = new_run(backbone, tmp_path_factory.mktemp("work"))
    run_stream(run)
    return run


def numbers(result: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on the clock."""
    return {key: result[key] for key in ("measured", "trained_percent", "stored_percent")}


def test_a_run_measures_every_cell_and_leaves_pictures_and_a_result(done: Run) -> None:
    result = read_json(done.result_path)
    measured = result["measured"]["colours"]
    assert [(c["after"], c["concept"]) for c in measured["cells"]] == [(1, 1), (2, 1), (2, 2)]
    assert [one["concept"] for one in measured["final"]] == [1, 2]
    assert measured["final"][0]["f_mmd"] is not None and measured["final"][1]["f_mmd"] is None
    assert result["drawing"]["pictures"] == 2 + 3 + 3 + 3
    assert [lesson["seconds"] > 0 for lesson in result["lessons"]] == [True, True]
    assert [list(lesson["phases"]) for lesson in result["lessons"]] == [["lesson"]] * 2
    assert result["scores"] == [{}, {}]
    assert 0 < result["trained_percent"] < result["stored_percent"] < 100
    # The second lesson goes on from the first, so it is not a LoRA alone.
    assert measured["final"][1]["ia_alone"] != measured["final"][1]["ia"]
    for metric in set(VALUES) - {"kept_gain"}:
        assert VALUES[metric](result, "colours"), metric
    assert done.sheet_path.exists()
    states = [path.name for path in done.folder.glob("state_*")]
    assert states == ["state_2.lifelong.safetensors"]


def test_networks_that_read_no_texts_measure_all_but_their_alignment(
    backbone: Backbone, done: Run
) -> None:
    blind = Extractor("blind", colours, None)
    run = replace(done, bench=replace(done.bench, extractors=(*done.bench.extractors, blind)))
    result = run_stream(run)
    assert result["measured"]["blind"]["drift"]["ta"] is None
    for metric in VALUES:
        found = VALUES[metric](result, "blind")
        expected = {} if metric in ("ta", "tfr_ta") else VALUES[metric](result, "colours")
        assert found == expected, metric


def test_a_finished_run_is_not_run_again(done: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "drawn_cell", None)
    assert run_stream(done) == read_json(done.result_path)


# After the first state but before its note, likewise for the second, between two cells.
@pytest.mark.parametrize("stop_at", [2, 5, 7])
def test_a_killed_run_goes_on_to_the_same_numbers(
    backbone: Backbone, done: Run, tmp_path: Path, stop_at: int
) -> None:
    writes = 0

    def counted(patch: pytest.MonkeyPatch, name: str, owner: object) -> None:
        real = getattr(owner, name)

        def wrapper(*args: object, **kwargs: object) -> object:
            nonlocal writes
            writes += 1
            if writes == stop_at:
                raise Killed
            return real(*args, **kwargs)

        patch.setattr(owner, name, wrapper)

    run = new_run(backbone, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        counted(patch, "save_tensors", drawing)
        counted(patch, "save_state", module)
        counted(patch, "write_json", module)
        with pytest.raises(Killed):
            run_stream(run)
    cells = {path: path.stat().st_mtime_ns for path in run.folder.glob("cell_*.safetensors")}
    assert numbers(run_stream(run)) == numbers(read_json(done.result_path))
    assert all(path.stat().st_mtime_ns == time for path, time in cells.items())


def test_hard_routing_draws_bit_for_bit_what_each_lora_alone_draws(
    backbone: Backbone, done: Run
) -> None:
    routed = new_run(backbone, done.bench.work, "hard_routing")
    measured = run_stream(routed)["measured"]["colours"]
    for one in measured["final"]:
        assert one["ia"] == one["ia_alone"]
    alone = done.bench.folder(done.stream, "reference", SETTINGS.to_json(), CODE_VERSION)
    for concept in (1, 2):
        cells = (routed.folder / f"cell_2_{concept}", alone / f"alone_{concept}")
        drawn, expected = (load_tensors(cell.with_suffix(".safetensors"))[0] for cell in cells)
        assert torch.equal(drawn["colours"], expected["colours"])
        base, _ = load_tensors(alone / f"base_{concept}.safetensors")
        assert not torch.equal(drawn["colours"], base["colours"])
    assert measured["drift"]["kid"] == pytest.approx(0.0, abs=1e-12)


def test_pictures_of_the_bench_are_those_of_the_single_adapter(backbone: Backbone) -> None:
    """Pixel by pixel, however many lessons a routed state has."""
    tasks = [subject.task for subject in stream().subjects]
    both = None
    for task in tasks:
        both = learn(backbone, task, state=both, method="hard_routing", settings=SETTINGS)
    assert both is not None
    for task in tasks:
        alone = learn(backbone, task, method="hard_routing", settings=SETTINGS)
        lora = learn(backbone, task, method="lora", settings=SETTINGS)
        prompt = f"a photo of {task.phrase}"
        pictures = drawing.Pictures((prompt,), seed=1, steps=1, precision="fp32")
        routed = drawing.draw(backbone, both, pictures)
        kept = replace(lora, adapter=lora.records[0].adapter)
        for single in (alone, kept):
            assert torch.equal(drawing.draw(backbone, single, pictures), routed)


def test_concepts_of_localized_words_are_heard_in_them_alone(backbone: Backbone) -> None:
    """As `word_routing.prompted` draws, and never taken for what an adapter draws in all rows."""
    usual = example_state(backbone, 2)
    records = [
        replace(one, settings={**one.settings, "method": "cidm", "localized_words": True})
        for one in usual.records
    ]
    state = replace(usual, records=tuple(records))
    prompt = f"a photo of a {state.concepts[0].phrase}"
    pictures = drawing.Pictures((prompt,), seed=1, steps=1, precision="fp32")
    with knowing(backbone, drawing_state(state, prompt, backbone.text)) as vectors:
        everywhere = drawing.generate(
            backbone, [prompt], seed=1, steps=1, vectors=vectors, localized=state.concepts
        )
    with prompted(backbone, state, prompt) as known:
        alone = drawing.generate(
            backbone, [prompt], seed=1, steps=1, vectors=known.vectors, localized=known.localized
        )
    drawn = drawing.draw(backbone, state, pictures)
    assert torch.equal(drawn, alone) and not torch.equal(drawn, everywhere)
    records = [replace(one, settings={**one.settings, "localized_words": False}) for one in records]
    spread = replace(state, records=tuple(records))
    keys = [drawing._content(backbone, one, pictures, []) for one in (state, spread)]
    assert len(set(keys)) == 2


def test_cells_that_look_the_same_are_drawn_once(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hard routing draws every concept as the LoRA alone does, from its lesson to the end."""
    real, counts = drawing.draw, {"lora": 0, "hard_routing": 0}

    def counted(*args: Any) -> torch.Tensor:
        counts[method] += 1
        return real(*args)

    monkeypatch.setattr(drawing, "draw", counted)
    for method in counts:
        run_stream(new_run(backbone, tmp_path, method))
    # Cells 1-1, 2-1, 2-2 and concept-free; the base model's two and concept-free, both alone.
    assert counts["lora"] == 4 + 3 + 2
    # New are the first cell, of fewer pictures than at the end, and the pictures without a concept;
    # both concepts at the end are the LoRAs alone, which the other run was compared to.
    assert counts["hard_routing"] == 2


def test_pictures_of_another_precision_are_others(backbone: Backbone, done: Run) -> None:
    protocol = replace(done.bench.protocol, precision="bf16")
    half = replace(done, bench=replace(done.bench, protocol=protocol))
    assert half.key != done.key
    pictures = drawing.pictures_of(["a cat"], protocol, last=False, seed=1, concept=0)
    drawn = drawing.draw(backbone, None, pictures)
    full = drawing.draw(backbone, None, replace(pictures, precision="fp32"))
    assert drawn.dtype == torch.float32 and not torch.equal(drawn, full)
    torch.testing.assert_close(drawn, full, atol=0.1, rtol=0)


def test_joint_training_is_measured_at_the_end_only(backbone: Backbone, done: Run) -> None:
    result = run_stream(new_run(backbone, done.bench.work, "joint"))
    measured = result["measured"]["colours"]
    assert [(c["after"], c["concept"]) for c in measured["cells"]] == [(2, 1), (2, 2)]
    assert VALUES["f_mmd"](result, "colours") == VALUES["tfr_ia"](result, "colours") == {}
    [lesson] = result["lessons"]
    assert VALUES["seconds"](result, "colours") == {1: lesson["seconds"] / 2}


def test_vera_is_a_way_of_its_own(backbone: Backbone, done: Run) -> None:
    vera = new_run(backbone, done.bench.work, "lora+vera")
    assert vera.room.settings.adapter.kind == "vera"
    assert vera.room.settings.learning_rate > SETTINGS.learning_rate
    assert vera.folder != done.folder


def test_all_of_attention_is_a_way_of_its_own(backbone: Backbone, done: Run) -> None:
    way = new_run(backbone, done.bench.work, "ewc_dc+attention")
    usual = new_run(backbone, done.bench.work, "ewc_dc")
    settings, other = way.room.settings, usual.room.settings
    assert {"attn1.to_q", "attn2.to_out.0"} <= set(settings.adapter.targets)
    assert set(other.adapter.targets) == {"attn2.to_k", "attn2.to_v"}
    assert settings.learning_rate == other.learning_rate
    assert way.folder != usual.folder


def test_a_method_that_replays_draws_its_memories_between_the_lessons(
    backbone: Backbone, done: Run
) -> None:
    run = new_run(backbone, done.bench.work, "l2dm_lora+memory.candidates=2+memory.steps=1")
    result = run_stream(run)
    assert result["settings"]["memory"]["candidates"] == 2
    assert "memory" not in read_json(done.result_path)["settings"], "it replays nothing"
    assert set(result["measured"]["colours"]) == set(
        read_json(done.result_path)["measured"]["colours"]
    )
    assert list(result["lessons"][1]["phases"]) == ["memory", "lesson"]
    # Two pictures of the first concept, and as many candidates of each.
    drawn = list((run.room.workspace / "memories").glob("*.safetensors"))
    assert len(drawn) == 2
    state = load_state(run.state_path)
    assert "replay" in state.records[1].metrics["terms"]
    memory = LongTermMemory.of(state)
    assert memory is not None and list(memory.concepts) == ["my_dog", "my_cat"]


def test_the_parts_of_a_lesson_are_measured_each(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, peaks = iter((0.0, 1.0, 3.0, 6.0, 10.0)), iter((5.0, None, 9.0, 7.0))
    monkeypatch.setattr(phases, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(phases, "_peak_mib", lambda _: next(peaks))
    watch = phases.PartsWatch(backbone.device)
    for name in ("prior pictures", "lesson", "fisher_dc", "lesson"):
        watch(Progress(1, 2, {}, phase=name))
    expected = {"lesson": phases.Phase(7.0, 7.0), "fisher": phases.Phase(3.0, 9.0)}
    assert watch.parts == expected


def test_what_the_classifiers_scores_were_like_is_told(backbone: Backbone, tmp_path: Path) -> None:
    run = new_run(backbone, tmp_path, "ewc_dc+consolidation.fisher_iterations=2")
    result = run_stream(run)
    assert [list(one) for one in result["scores"]] == [["fisher_dc"]] * 2
    assert 0 < result["scores"][1]["fisher_dc"]["entropy_share"] <= 1.0 + 1e-6


def test_a_lesson_is_told_with_what_consolidated_it(backbone: Backbone, tmp_path: Path) -> None:
    quick = "consolidation.distillation_iterations=1+consolidation.fisher_iterations=2"
    run = new_run(backbone, tmp_path, f"dsc_ewc+{quick}")
    first, second = run_stream(run)["lessons"]
    assert list(first["phases"]) == ["lesson", "fisher"], "there is nothing to distil yet"
    assert list(second["phases"]) == ["lesson", "distillation", "fisher"]
    for lesson in (first, second):
        parts = lesson["phases"].values()
        assert 0 < sum(part["seconds"] for part in parts) <= lesson["seconds"]
        known = [part["peak_mib"] for part in parts if part["peak_mib"] is not None]
        assert not known or lesson["peak_mib"] >= max(known)


def test_every_method_of_the_table_has_a_way() -> None:
    assert all(way_named(name).name == name for name in (*METHODS, "joint", "replay_real"))


@pytest.mark.parametrize("method", ["cidm", "orthogonal_adaptation", "replay_real"])
def test_rows_that_keep_adapters_or_pictures_are_measured(
    backbone: Backbone, tmp_path: Path, method: str
) -> None:
    run = new_run(backbone, tmp_path, method)
    result = run_stream(run)
    ia = {(c["after"], c["concept"]): c["ia"] for c in result["measured"]["colours"]["cells"]}
    assert (ia[1, 1] == ia[2, 1]) == (method == "cidm"), "its first adapter draws as before"
    adapters = 1 if method == "replay_real" else 2
    state = load_state(run.state_path)
    stored = result["stored_percent"] / 100 * sum(p.numel() for p in backbone.unet.parameters())
    size = sum(value.numel() for value in state.adapter.values())
    assert stored == pytest.approx(adapters * size + 2 * 128)
