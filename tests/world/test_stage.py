"""The stages' loop: a run killed and resumed ends with the same bits; what it records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lifelong_core.errors import ModelError, TrainingError
from lifelong_core.files import load_tensors, read_json, save_tensors
from lifelong_core.seeding import generator
from lifelong_core.world.pretrain import stage as loop
from lifelong_core.world.pretrain.muon import Muon, orthogonalise, split_parameters
from lifelong_core.world.pretrain.stage import Stage, run_stage
from lifelong_core.world.shipped import write_weights

STEPS = 24


class Killed(BaseException):
    """Stands for a process that ends between two steps."""


def tiny(folder: Path, *, die_at: int | None = None, poison: int | None = None) -> Stage:
    generated = generator(0, "weights")
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for parameter in net.parameters():
        nn.init.normal_(parameter, 0, 0.5, generator=generated)
    matrices, rest = split_parameters(net)

    def loss(step: int) -> Tensor:
        if step == die_at:
            raise Killed
        draw = generator(1, "batch", step)
        value = (
            net(torch.randn(8, 4, generator=draw)) - torch.randn(8, 2, generator=draw)
        ).square()
        return value.mean() * (torch.nan if step == poison else 1.0)

    return Stage(
        "tiny",
        folder,
        net,
        [Muon(matrices, 0.02), torch.optim.AdamW(rest, 0.01, (0.9, 0.99))],
        loss,
        measure=lambda: {"norm": float(net[0].weight.detach().norm())},
        measures=3,
        ema=0.9,
        ema_every=2,
        warmup=5,
    )


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Save after every step, record every fourth."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    monkeypatch.setattr(loop, "RECORD_EVERY", 4)
    return lambda: None


@pytest.mark.parametrize("die_at", [1, 9, 23])
def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, often: None, die_at: int) -> None:
    whole = tiny(tmp_path / "whole")
    run_stage(whole, steps=STEPS)
    with pytest.raises(Killed):
        run_stage(tiny(tmp_path / "cut", die_at=die_at), steps=STEPS)
    resumed = tiny(tmp_path / "cut")
    run_stage(resumed, steps=STEPS)
    first, again = (load_tensors(one.checkpoint) for one in (whole, resumed))
    assert first[1] == again[1] == {"step": "24", "total": "24"}
    assert first[0].keys() == again[0].keys()
    kinds = {key.split(".")[0] for key in first[0]}
    assert kinds == {"model", "average", "optimizer"}
    assert all(torch.equal(value, again[0][key]) for key, value in first[0].items())
    for one, other in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, other)
    rows = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in one.history]
        for one in (whole, resumed)
    ]
    assert [row["step"] for row in rows[1]] == [4, 8, 12, 16, 20, 24]
    assert rows[0][-1]["norm"] == rows[1][-1]["norm"]


@pytest.mark.parametrize("saves", [1, 2, 7])
def test_killed_between_record_and_checkpoint(
    tmp_path: Path, often: None, monkeypatch: pytest.MonkeyPatch, saves: int
) -> None:
    whole = tiny(tmp_path / "whole")
    run_stage(whole, steps=STEPS)
    done: list[Path] = []

    def dies(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        done.append(path)
        if len(done) == saves:
            raise Killed
        save_tensors(path, tensors, metadata)

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(loop, "save_tensors", dies)
        run_stage(tiny(tmp_path / "cut"), steps=STEPS)
    resumed = tiny(tmp_path / "cut")
    run_stage(resumed, steps=STEPS)
    for one, other in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(one, other)
    assert [row["step"] for row in resumed.history] == [4, 8, 12, 16, 20, 24]


def test_a_finished_stage_only_loads(tmp_path: Path) -> None:
    run_stage(tiny(tmp_path), steps=STEPS)
    again = tiny(tmp_path, die_at=0)
    run_stage(again, steps=STEPS)
    average = load_tensors(again.checkpoint)[0]["average.0.weight"]
    assert torch.equal(again.module[0].weight, average)  # type: ignore[index]


def test_a_stage_begins_from_earlier_weights_unless_it_has_begun(tmp_path: Path) -> None:
    first = tiny(tmp_path / "first")
    run_stage(first, steps=STEPS)
    path = write_weights("tiny", first.module.state_dict(), tmp_path)
    after = tiny(tmp_path / "second", die_at=0)
    after.begin_from = path
    with pytest.raises(Killed):
        run_stage(after, steps=STEPS)
    begun = after.module.state_dict()["0.weight"]
    assert torch.allclose(begun, first.module.state_dict()["0.weight"], atol=1e-2)
    assert torch.equal(after.average["0.weight"], begun)
    again = tiny(tmp_path / "first")
    again.begin_from = tmp_path / "nowhere.safetensors"
    run_stage(again, steps=STEPS)  # it has begun, so nothing is read


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = write_weights("tiny", {"0.weight": torch.zeros(3, 3)}, tmp_path)
    stage = tiny(tmp_path / "stage")
    stage.begin_from = path
    with pytest.raises(ModelError, match=r"tiny\.safetensors.*begin from nothing"):
        run_stage(stage, steps=STEPS)


def test_the_plan_is_kept_and_a_budget_of_time_becomes_one(tmp_path: Path, often: None) -> None:
    with pytest.raises(Killed):
        run_stage(tiny(tmp_path / "a", die_at=6), steps=STEPS)
    resumed = tiny(tmp_path / "a")
    run_stage(resumed, steps=1000)
    assert read_json(resumed.record)["total"] == STEPS
    timed = tiny(tmp_path / "b")
    run_stage(timed, seconds=1e-9)
    assert read_json(timed.record)["total"] == 10


def test_the_measure_sees_the_average_and_training_goes_on_with_the_raw_weights(
    tmp_path: Path, often: None
) -> None:
    stage = tiny(tmp_path)
    seen: list[bool] = []

    def measure() -> dict[str, float]:
        own = stage.module.state_dict()
        seen.append(all(torch.equal(own[key], value) for key, value in stage.average.items()))
        return {}

    stage.measure = measure
    run_stage(stage, steps=STEPS)
    unmeasured = tiny(tmp_path / "plain")
    unmeasured.measure = None
    run_stage(unmeasured, steps=STEPS)
    assert len(seen) >= 3 and all(seen)
    assert torch.equal(stage.average["0.weight"], unmeasured.average["0.weight"])


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(tmp_path: Path, often: None) -> None:
    stage = tiny(tmp_path, poison=7)
    with pytest.raises(TrainingError, match="step 7"):
        run_stage(stage, steps=STEPS)
    tensors, metadata = load_tensors(stage.checkpoint)
    assert metadata["step"] == "7"
    assert all(value.isfinite().all() for value in tensors.values())


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8)])
def test_orthogonalise_brings_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=generator(0, *shape)) * 7
    before = torch.linalg.svdvals(matrix)
    after = torch.linalg.svdvals(orthogonalise(matrix))
    assert before.max() / before.min() > 2
    assert after.min() > 0.6 and after.max() < 1.3
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    aligned = (left.mT @ orthogonalise(matrix) @ right.mT).diagonal()
    assert (aligned > 0.6).all()  # the singular vectors, not just any rotation


def test_muon_learns_and_steps_have_the_same_size_whatever_the_gradient(tmp_path: Path) -> None:
    weight = nn.Parameter(torch.zeros(6, 6))
    optimizer = Muon([weight], lr=0.1)
    weight.grad = torch.randn(6, 6, generator=generator(0, "g")) * 1e-4
    optimizer.step()
    assert 0.06 < torch.linalg.matrix_norm(weight.detach(), 2) < 0.13
    matrices, rest = split_parameters(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))
    assert [p.ndim for p in matrices] == [4] and [p.ndim for p in rest] == [1, 1, 1]
