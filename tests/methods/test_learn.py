"""Learning concepts on a demo model with random weights, from input to state."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask, make_task
from lifelong_core.errors import FileError, InputError, StateError, TrainingError
from lifelong_core.lesson import LessonSettings
from lifelong_core.methods import METHODS, learn
from lifelong_core.objectives import StepBatch
from lifelong_core.state import LifelongState, load_state
from lifelong_core.training import Progress, ProgressCallback, priors

SETTINGS = LessonSettings(
    steps=3, batch_size=1, prior_batch_size=1, prior_count=1, adapter=AdapterSpec(rank=2)
)


class Cancel(BaseException):
    """What ComfyUI's cancel looks like."""


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return random_backbone("demo")


@pytest.fixture(autouse=True)
def quick_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(priors, "SAMPLER_STEPS", 1)


def task(token: str = "my_dog", noun: str = "dog") -> ConceptTask:
    draw = torch.Generator().manual_seed(len(token))
    return make_task(
        token, noun, [torch.rand(3, 64, 64, generator=draw) for _ in range(2)], size=64
    )


@pytest.fixture(scope="module")
def first(backbone: Backbone) -> LifelongState:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(priors, "SAMPLER_STEPS", 1)
        return learn(backbone, task(), settings=SETTINGS)


def test_a_lesson_changes_adapter_and_token_and_nothing_else(
    backbone: Backbone, first: LifelongState
) -> None:
    weights = {key: value.clone() for key, value in backbone.unet.state_dict().items()}
    state = learn(backbone, task(), settings=SETTINGS)
    assert all(torch.equal(v, weights[k]) for k, v in backbone.unet.state_dict().items())
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    assert not backbone.unet.training
    assert all(float(v.abs().sum()) > 0 for k, v in state.adapter.items() if k.endswith(".up"))
    noun = backbone.text.noun_vector("dog")["clip_l"]
    learned = state.concepts[0].vectors["clip_l"]
    assert learned.shape == noun.shape
    assert 0 < float((learned - noun).abs().max()) < 0.05
    assert state.base_fingerprint == backbone.fingerprint
    assert state.content_hash == first.content_hash


def test_the_record_tells_the_lesson(first: LifelongState) -> None:
    (record,) = first.records
    assert record.task_hash == task().content_hash
    assert record.settings["method"] == "lora"
    assert record.settings["steps"] == 3
    assert record.settings["size"] == task().images.shape[-1]
    terms = record.metrics["terms"]
    assert set(terms) == {"denoising", "prior"}
    for total, *parts in zip(record.metrics["loss"], *terms.values(), strict=True):
        assert total == pytest.approx(sum(parts), rel=1e-4)
    for key, value in record.adapter.items():
        torch.testing.assert_close(value.float(), first.adapter[key], rtol=1e-3, atol=1e-6)


def test_the_next_lesson_goes_on_from_the_last(backbone: Backbone, first: LifelongState) -> None:
    before = first.content_hash
    nothing = replace(SETTINGS, steps=1, learning_rate=0.0)
    second = learn(backbone, task("my_cat", "cat"), state=first, settings=nothing)
    assert [c.token for c in second.concepts] == ["my_dog", "my_cat"]
    assert all(torch.equal(second.adapter[k], v) for k, v in first.adapter.items())
    assert second.records[0] is first.records[0]
    assert first.content_hash == before
    moved = learn(
        backbone, task("my_cat", "cat"), state=first, settings=replace(nothing, learning_rate=1e-3)
    )
    assert not any(torch.equal(moved.adapter[k], v) for k, v in first.adapter.items())


def test_settings_default_to_the_states_adapter(backbone: Backbone, first: LifelongState) -> None:
    with pytest.raises(Cancel):
        learn(backbone, task("my_cat", "cat"), state=first, on_progress=cancel_at(0))


def cancel_at(step: int):  # noqa: ANN201
    def callback(progress: Progress) -> None:
        if progress.step == step:
            raise Cancel

    return callback


def test_a_cancelled_lesson_goes_on_with_the_same_bits(
    backbone: Backbone, first: LifelongState, tmp_path: Path
) -> None:
    with pytest.raises(Cancel):
        learn(backbone, task(), settings=SETTINGS, workspace=tmp_path, on_progress=cancel_at(2))
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    assert len(list(tmp_path.glob("sessions/*"))) == 1
    steps: list[int] = []
    state = learn(
        backbone,
        task(),
        settings=SETTINGS,
        workspace=tmp_path,
        on_progress=lambda p: steps.append(p.step),
    )
    assert steps == [3]
    assert state.content_hash == first.content_hash
    assert not list(tmp_path.glob("sessions/*"))


def test_a_finished_lesson_is_found_again(
    backbone: Backbone, first: LifelongState, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    learn(backbone, task(), settings=SETTINGS, workspace=tmp_path)
    steps: list[Progress] = []
    found = learn(backbone, task(), settings=SETTINGS, workspace=tmp_path, on_progress=steps.append)
    assert found.content_hash == first.content_hash
    assert not steps
    with pytest.raises(Cancel):
        other = replace(SETTINGS, seed=1)
        learn(backbone, task(), settings=other, workspace=tmp_path, on_progress=cancel_at(0))
    path = next(tmp_path.glob("lessons/*"))
    path.write_bytes(path.read_bytes()[:-7])
    with caplog.at_level(logging.WARNING):
        again = learn(backbone, task(), settings=SETTINGS, workspace=tmp_path)
    assert "cut short" in caplog.text
    assert again.content_hash == first.content_hash


def test_the_weights_of_the_last_finite_step_are_kept(
    backbone: Backbone, first: LifelongState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "bad", replace(METHODS["lora"], terms=(explodes,)))
    with pytest.raises(TrainingError, match="step 1 of 3.*broken_off"):
        learn(
            backbone,
            task("my_cat", "cat"),
            state=first,
            method="bad",
            settings=SETTINGS,
            workspace=tmp_path,
        )
    kept = load_state(next(tmp_path.glob("broken_off/*")))
    assert [c.token for c in kept.concepts] == ["my_dog", "my_cat"]
    assert all(torch.equal(kept.adapter[k], v) for k, v in first.adapter.items())
    assert not list(tmp_path.glob("lessons/*"))


def test_what_was_learned_before_the_loss_broke_is_kept(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explodes_at_last(lesson):  # noqa: ANN001, ANN202
        term = METHODS["lora"].terms[0](lesson)

        class Late:
            name, weight = term.name, term.weight

            def __call__(self, step: StepBatch) -> torch.Tensor:
                return term(step) / (step.index < 2)

        return Late()

    monkeypatch.setitem(METHODS, "late", replace(METHODS["lora"], terms=(explodes_at_last,)))
    with pytest.raises(TrainingError, match="step 3 of 3.*broken_off"):
        learn(backbone, task(), method="late", settings=SETTINGS, workspace=tmp_path)
    kept = load_state(next(tmp_path.glob("broken_off/*")))
    shorter = learn(backbone, task(), method="late", settings=replace(SETTINGS, steps=2))
    assert any(bool(value.any()) for name, value in kept.adapter.items() if name.endswith(".up"))
    assert all(torch.equal(kept.adapter[name], value) for name, value in shorter.adapter.items())


def test_a_disk_that_is_full_at_the_end_costs_no_lesson(
    backbone: Backbone,
    first: LifelongState,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_args: object) -> None:
        raise FileError("No space left on device")

    monkeypatch.setattr("lifelong_core.finished.save_state", full)
    learned = learn(backbone, task(), settings=SETTINGS, workspace=tmp_path)
    assert learned.content_hash == first.content_hash
    assert "No space left on device" in caplog.text and not list(tmp_path.glob("lessons/*"))


def test_a_disk_that_is_full_at_a_checkpoint_leaves_nothing_half_written(
    backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensors: object, path: object, _metadata: object) -> None:
        Path(str(path)).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    learn(backbone, task(), settings=replace(SETTINGS, steps=1), workspace=tmp_path)  # pictures
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("lifelong_core.files.save_file", full)
    with pytest.raises(Cancel):
        learn(backbone, task(), settings=SETTINGS, workspace=tmp_path, on_progress=cancel_at(2))
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == [
        path for path in before if path.is_file()
    ]


def explodes(lesson):  # noqa: ANN001, ANN201
    """A term that is not finite."""
    term = METHODS["lora"].terms[0](lesson)
    return replace(term, weight=float("nan"))


def test_without_prior_pictures_there_is_no_prior_term(backbone: Backbone) -> None:
    settings = replace(SETTINGS, steps=1, prior_count=0, token_count=2, flip=True)
    state = learn(backbone, task(), settings=settings)
    assert set(state.records[0].metrics["terms"]) == {"denoising"}
    assert state.concepts[0].vectors["clip_l"].shape == (2, 128)


def test_previews_are_pictures(backbone: Backbone) -> None:
    settings, seen = replace(SETTINGS, steps=2, prior_count=0), []
    learn(backbone, task(), settings=settings, on_progress=seen.append, preview_every=2)
    first, second = [progress for progress in seen if progress.step]
    assert first.preview is None
    assert second.preview.shape == (3, 64, 64)


def test_a_preview_can_be_cancelled_while_it_is_drawn(backbone: Backbone, tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=2, prior_count=0)

    def cancel(progress: Progress) -> None:
        if progress.phase == "preview picture":
            raise Cancel

    def run(on_progress: ProgressCallback) -> None:
        learn(
            backbone, task(), settings=settings, workspace=tmp_path, on_progress=on_progress,
            preview_every=1,
        )  # fmt: skip

    with pytest.raises(Cancel):
        run(cancel)
    seen: list[Progress] = []
    run(seen.append)
    assert [progress.step for progress in seen if progress.step] == [2]


def test_the_text_encoder_is_trained_on_request(backbone: Backbone) -> None:
    settings = replace(
        SETTINGS, steps=2, prior_count=0, adapter=AdapterSpec(rank=2, text_encoder=True)
    )
    state = learn(backbone, task(), settings=settings)
    text = [
        v for k, v in state.adapter.items() if k.startswith("text.clip_l.") and k.endswith("up")
    ]
    assert len(text) == 8
    assert all(float(value.abs().sum()) > 0 for value in text)


@pytest.mark.parametrize("method", ["l2dm", "custom_diffusion"])
def test_methods_that_cannot_train_the_text_encoder_say_so(backbone: Backbone, method: str) -> None:
    settings = replace(SETTINGS, adapter=AdapterSpec(rank=2, text_encoder=True))
    with pytest.raises(InputError, match=f"'{method}' trains .*, not the text encoder"):
        learn(backbone, task(), method=method, settings=settings)


def test_half_precision_weights_need_half_precision_lessons() -> None:
    half = random_backbone("demo", dtype=torch.bfloat16)
    settings = replace(SETTINGS, steps=1, prior_count=0)
    with pytest.raises(InputError, match="bfloat16.*precision bf16"):
        learn(half, task(), settings=settings)
    state = learn(half, task(), settings=replace(settings, precision="bf16"))
    assert all(torch.isfinite(v).all() for v in state.adapter.values())
    assert any(float(v.abs().sum()) > 0 for k, v in state.adapter.items() if k.endswith(".up"))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"method": "magic"}, InputError, "magic.*lora"),
        ({"task": task("sks")}, InputError, "already knows"),
        ({"task": task("My_Dog")}, InputError, "already taken"),
        (
            {"settings": replace(SETTINGS, adapter=AdapterSpec(rank=4))},
            StateError,
            "rank 2.*rank 4",
        ),
        (
            {"settings": replace(SETTINGS, learning_rate=0.0, token_learning_rate=0.0)},
            InputError,
            "Nothing would be learned",
        ),
        (
            {
                "task": replace(
                    task("my_cat"), captions=("embedding:my_cat with embedding:nobody",) * 2
                )
            },
            InputError,
            "nobody",
        ),
    ],
)
def test_bad_input_is_refused_before_any_work(
    backbone: Backbone,
    first: LifelongState,
    tmp_path: Path,
    options: dict[str, object],
    error: type[Exception],
    says: str,
) -> None:
    given = {"task": task("my_cat", "cat"), "settings": SETTINGS} | options
    called: list[Progress] = []
    with pytest.raises(error, match=says):
        learn(
            backbone,
            given.pop("task"),
            state=first,
            workspace=tmp_path,
            on_progress=called.append,
            **given,
        )
    assert not called
    assert not list(tmp_path.iterdir())


def test_another_base_model_is_refused(first: LifelongState) -> None:
    other = random_backbone("demo", seed=5)
    with pytest.raises(StateError, match=f"{first.base_fingerprint}.*{other.fingerprint}"):
        learn(other, task("my_cat", "cat"), state=first, settings=SETTINGS)


def test_an_unwritable_workspace_is_a_file_error(backbone: Backbone, tmp_path: Path) -> None:
    """Before anything is drawn or learned."""
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    called: list[Progress] = []
    with pytest.raises(FileError, match="Could not write"):
        learn(
            backbone,
            task(),
            settings=SETTINGS,
            workspace=tmp_path / "file",
            on_progress=called.append,
        )
    assert not called
