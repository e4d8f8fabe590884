"""CIDM, its ablations and Orthogonal Adaptation, on a demo model with random weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lifelong_core.adapters import AdapterSpec, build_adapter, low_rank_factors
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import Concept, ConceptTask, make_task
from lifelong_core.consolidation.merge import merged_state
from lifelong_core.errors import InputError, StateError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS, any_prompt_state, drawing_state, learn, teach
from lifelong_core.methods.table import Records
from lifelong_core.seeding import generator
from lifelong_core.sharing import ExportInfo, export_lora, import_lora
from lifelong_core.sharing.naming import layers
from lifelong_core.state import LifelongState, TaskRecord, load_state, save_state
from lifelong_core.training import Progress
from lifelong_core.training.lesson import Lesson, prepare_lesson

SPEC = AdapterSpec(rank=2)
SETTINGS = LessonSettings(
    steps=2, batch_size=1, prior_batch_size=1, prior_count=0, learning_rate=1e-2, adapter=SPEC
)
CIDM = tuple(name for name in METHODS if name.startswith("cidm"))
TERMS = {
    "cidm": {"orthogonality", "shared_subspace"},
    "cidm_without_orthogonality": {"shared_subspace"},
    "cidm_without_shared": {"orthogonality"},
    "cidm_merged": {"orthogonality", "shared_subspace"},
    "cidm_released": {"orthogonality", "pull_to_one"},
    "orthogonal_adaptation": set(),
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


def task(number: int) -> ConceptTask:
    picture = torch.rand(3, 32, 32, generator=generator(0, "picture", number))
    return make_task(f"thing_{number}", ("dog", "cat", "mug")[number - 1], [picture], size=32)


def three_lessons(backbone: Backbone, method: str) -> LifelongState:
    state = None
    for number in (1, 2, 3):
        state = teach(backbone, task(number), state=state, method=method, settings=SETTINGS)
    assert state is not None
    return state


def after(
    backbone: Backbone, lessons: int, method: str = "cidm", spec: AdapterSpec = SPEC
) -> LifelongState:
    """A state of lessons of `method` with random adapters."""
    records = []
    for number in range(lessons):
        weights = {
            key: torch.randn(value.shape, generator=generator(number, key)) * 0.1
            for key, value in build_adapter(spec, backbone, seed=0).state().items()
        }
        concept = Concept(f"my_{number}", "cat", backbone.text.noun_vector("cat"))
        records.append(TaskRecord(concept, str(number), weights, {"method": method}, {}))
    return LifelongState("demo", backbone.fingerprint, spec, weights, tuple(records))


def lesson_of(backbone: Backbone, method: str, state: LifelongState | None) -> Lesson:
    return prepare_lesson(backbone, task(1), SETTINGS, state, METHODS[method].start)


def changes(spec: AdapterSpec, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layer -> ΔW."""
    return {
        layer: factors.scale * (factors.up @ factors.down)
        for layer, factors in low_rank_factors(spec, weights, layers("demo")).items()
    }


@pytest.mark.parametrize("method", TERMS)
def test_three_lessons_end_to_end(backbone: Backbone, method: str, tmp_path: Path) -> None:
    """The first has the denoising loss only; all keep their own adapter and can be drawn."""
    state = three_lessons(backbone, method)
    terms = [set(record.metrics["terms"]) for record in state.records]
    assert terms == [{"denoising"}, *[{"denoising"} | TERMS[method]] * 2]
    assert all(len(record.adapter) == 40 for record in state.records)
    prompt = "a photo of embedding:thing_2 cat"
    drawn = drawing_state(state, prompt, backbone.text)
    assert drawn.concepts == state.concepts
    if METHODS[method].by_prompt and method != "cidm_released":
        plain = drawing_state(state, "a photo of a cat", backbone.text)
        assert not any(float(value.abs().sum()) for value in plain.adapter.values())
    again = load_state(save_state(state, tmp_path / "known.lifelong.safetensors"))
    same = drawing_state(again, prompt, backbone.text).adapter
    assert all(torch.equal(value, same[key]) for key, value in drawn.adapter.items())
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())


@pytest.mark.parametrize(
    "method", ["cidm_without_orthogonality", "cidm_without_shared", "cidm_merged"]
)
def test_an_ablation_differs_in_what_it_leaves_out_alone(method: str) -> None:
    whole, less = METHODS["cidm"], METHODS[method]
    text = {"title": whole.title, "reference": whole.reference}
    assert less.title != whole.title
    if method == "cidm_merged":
        assert (less.draw_with, less.by_prompt) == (METHODS["lora_merge"].draw_with, False)
        same = replace(less, draw_with=whole.draw_with, by_prompt=True, **text)
    else:
        assert set(less.terms) < set(whole.terms) and len(whole.terms) - len(less.terms) == 1
        same = replace(less, terms=whole.terms, **text)
    assert same == whole


def test_the_first_lesson_is_that_of_a_lora_alone(backbone: Backbone) -> None:
    alone = learn(backbone, task(1), method="lora_merge", settings=SETTINGS)
    for method in CIDM:
        first = learn(backbone, task(1), method=method, settings=SETTINGS)
        assert all(torch.equal(value, alone.adapter[key]) for key, value in first.adapter.items())


def test_without_any_weight_later_lessons_are_those_of_a_lora_alone(backbone: Backbone) -> None:
    settings = replace(SETTINGS, orthogonality_weight=0.0, shared_weight=0.0)
    alone = learn(backbone, task(1), method="lora_merge", settings=SETTINGS)
    for method in CIDM:
        state = after(backbone, 2, method)
        later = learn(backbone, task(1), state=state, method=method, settings=settings)
        assert all(torch.equal(value, alone.adapter[key]) for key, value in later.adapter.items())


def test_settings_reach_the_terms(backbone: Backbone) -> None:
    lesson = lesson_of(backbone, "cidm", after(backbone, 3))
    settings = replace(SETTINGS, orthogonality_weight=0.5, shared_weight=7.0, shared_rank=3)
    lesson = replace(lesson, settings=settings)
    apart, shared = (make(lesson) for make in METHODS["cidm"].terms[2:])
    assert apart is not None and shared is not None
    assert (apart.weight, shared.weight) == (0.5, 7.0)
    assert {basis.shape[1] for _, basis, _ in shared.earlier} == {3}  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="shared_rank"):
        LessonSettings(shared_rank=0)


def cosines(backbone: Backbone, settings: LessonSettings) -> float:
    """Mean |cos| between the columns of a lesson's `up` factors and those of a lesson before."""
    state = after(backbone, 1)
    learned = learn(backbone, task(1), state=state, method="cidm_without_shared", settings=settings)
    first, second = (record.adapter for record in learned.records)
    found = [
        torch.nn.functional.normalize(first[key].float(), dim=0).T
        @ torch.nn.functional.normalize(second[key].float(), dim=0)
        for key in first
        if key.endswith(".up")
    ]
    return float(torch.stack(found).abs().mean())


def test_r1_turns_the_new_lora_away_from_earlier_ones(backbone: Backbone) -> None:
    settings = replace(SETTINGS, steps=12)
    without = cosines(backbone, replace(settings, orthogonality_weight=0.0))
    assert cosines(backbone, replace(settings, orthogonality_weight=10.0)) < 0.5 * without


@pytest.mark.parametrize("method", TERMS)
def test_other_kinds_of_adapters_are_refused_before_the_lesson(
    backbone: Backbone, tmp_path: Path, method: str
) -> None:
    called = list[Progress]()
    for kind in ("vera", "key_value", "spectral"):
        settings = replace(SETTINGS, adapter=AdapterSpec(kind))
        with pytest.raises(InputError, match=f"{kind} does not have.*Choose kind lora"):
            teach(
                backbone, task(1), method=method, settings=settings, workspace=tmp_path,
                on_progress=called.append,
            )  # fmt: skip
    assert not called and not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", ["cidm", "cidm_released", "orthogonal_adaptation"])
def test_adapters_of_the_text_encoder_have_subspaces_too(backbone: Backbone, method: str) -> None:
    spec = AdapterSpec(rank=2, text_encoder=True)
    settings = replace(SETTINGS, adapter=spec)
    state = after(backbone, 1, method, spec)
    learned = teach(backbone, task(1), state=state, method=method, settings=settings)
    assert set(learned.records[-1].metrics["terms"]) == {"denoising"} | TERMS[method]
    lesson = prepare_lesson(backbone, task(1), settings, state, METHODS[method].start)
    for make in METHODS[method].terms[2:]:
        term = make(lesson)
        assert term is not None
        factors = getattr(term, "ups", None) or term.downs  # type: ignore[attr-defined]
        assert {layer.split(".")[0] for layer in factors} == {"unet", "text"}
    drawn = drawing_state(learned, "embedding:thing_1 dog", backbone.text)
    assert any(key.startswith("text.") for key in drawn.adapter)


@pytest.mark.parametrize("method", CIDM)
def test_what_earlier_lessons_did_not_keep_is_missed_before_the_lesson(
    backbone: Backbone, method: str
) -> None:
    state, called = after(backbone, 2, method), list[Progress]()
    first, second = state.records
    lost = replace(state, records=(replace(first, adapter={}), second))
    with pytest.raises(StateError, match="not kept.*'my_0'"):
        teach(
            backbone, task(1), state=lost, method=method, settings=SETTINGS,
            on_progress=called.append,
        )  # fmt: skip
    assert not called


def test_earlier_adapters_of_other_shapes_are_refused_before_the_lesson(
    backbone: Backbone,
) -> None:
    state = after(backbone, 2)

    def changed(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            key: torch.zeros(2, 7) if key.endswith("down") else value
            for key, value in weights.items()
        }

    records = tuple(replace(one, adapter=changed(one.adapter)) for one in state.records)
    other = replace(state, adapter=changed(state.adapter), records=records)
    with pytest.raises(StateError, match=r"'my_0' has 2 x 7 as unet.*has 2 x 128"):
        teach(backbone, task(1), state=other, method="cidm", settings=SETTINGS)
    fewer = {key: value for key, value in state.adapter.items() if "down_blocks" in key}
    records = tuple(
        replace(one, adapter={key: one.adapter[key] for key in fewer}) for one in state.records
    )
    with pytest.raises(StateError, match="has nothing as unet"):
        teach(
            backbone, task(1), state=replace(state, adapter=fewer, records=records),
            method="cidm_without_shared", settings=SETTINGS,
        )  # fmt: skip


def test_only_the_output_factor_learns_in_orthogonal_rows(backbone: Backbone) -> None:
    assert METHODS["orthogonal_adaptation"].records is Records.ROWS
    state = three_lessons(backbone, "orthogonal_adaptation")
    for number, record in enumerate(state.records):
        started = lesson_of(
            backbone,
            "orthogonal_adaptation",
            replace(state, records=state.records[:number]) if number else None,
        )
        begun = started.adapter.named_parameters()
        trained = {key.rsplit(".", 1)[1] for key, value in begun.items() if value.requires_grad}
        assert trained == {"up"} and METHODS["orthogonal_adaptation"].frozen == ("down",)
        for key, value in record.adapter.items():
            same = torch.equal(value, begun[key].detach().half())
            assert same == key.endswith(".down")


def test_rows_of_different_lessons_are_orthogonal_in_every_layer(backbone: Backbone) -> None:
    """Up to the half precision in which states keep them."""
    state = three_lessons(backbone, "orthogonal_adaptation")
    for key in (key for key in state.adapter if key.endswith(".down")):
        rows = torch.cat([record.adapter[key].double() for record in state.records])
        assert float((rows @ rows.T - torch.eye(len(rows))).abs().max()) < 1e-3


def test_the_plain_sum_is_exact_and_shared_as_an_ordinary_lora(
    backbone: Backbone, tmp_path: Path
) -> None:
    state = three_lessons(backbone, "orthogonal_adaptation")
    drawn = any_prompt_state(state)
    assert drawn.adapter_spec == replace(SPEC, rank=6, alpha=6.0)
    each = [changes(SPEC, record.adapter) for record in state.records]
    mean = merged_state(state)[0]
    merged = changes(mean.adapter_spec, mean.adapter)
    files = export_lora(drawn, tmp_path, tmp_path / "e", "x", info=ExportInfo("v_prediction"))
    shared = import_lora(files.lora)
    read = changes(shared.spec, shared.adapter)
    for layer, change in changes(drawn.adapter_spec, drawn.adapter).items():
        total = torch.stack([own[layer] for own in each]).sum(0)
        torch.testing.assert_close(change, total, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(change, 3.0 * merged[layer], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(change, read[layer], rtol=1e-4, atol=1e-7)


def test_a_lessons_own_inputs_are_left_alone_by_all_others(backbone: Backbone) -> None:
    state = three_lessons(backbone, "orthogonal_adaptation")
    drawn = any_prompt_state(state)
    whole = changes(drawn.adapter_spec, drawn.adapter)
    for record in state.records:
        for layer, change in changes(SPEC, record.adapter).items():
            rows = record.adapter[f"{layer}.down"].float()
            own, all_of_them = change @ rows.T, whole[layer] @ rows.T
            assert float(own.abs().max()) > 0
            assert float((all_of_them - own).norm() / own.norm()) < 2e-3


def test_lessons_that_share_rows_are_told(
    backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    spec = AdapterSpec(rank=64)
    settings = replace(SETTINGS, adapter=spec)
    with caplog.at_level(logging.WARNING):
        for lessons in (0, 1, 2):
            state = after(backbone, lessons, "orthogonal_adaptation", spec) if lessons else None
            assert "share rows" not in caplog.text
            prepare_lesson(
                backbone, task(1), settings, state, METHODS["orthogonal_adaptation"].start
            )
    assert "room for 2 orthogonal lessons" in caplog.text
    with pytest.raises(InputError, match="128 at most"):
        teach(
            backbone, task(1), method="orthogonal_adaptation",
            settings=replace(SETTINGS, adapter=AdapterSpec(rank=129)),
        )  # fmt: skip
