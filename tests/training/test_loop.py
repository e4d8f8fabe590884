"""The loop: it learns, reports, stops, goes on with the same bits, and refuses bad numbers."""

from __future__ import annotations

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from lifelong_core.errors import TrainingError
from lifelong_core.training import Progress, Session, Snapshot, train

from .toy import Fit, make_plan, start


class Cancel(BaseException):
    """What a user's cancel looks like to the loop: anything at all."""


def stopping_at(step: int, error: type[BaseException] = Cancel):  # noqa: ANN201
    def callback(progress: Progress) -> None:
        if progress.step == step:
            raise error

    return callback


def run_through(**options: object) -> tuple[torch.Tensor, Snapshot]:
    weights = start()
    result = train(make_plan(weights, **options))
    return weights.detach(), result


def test_it_learns_and_reports() -> None:
    weights, seen = start(), []
    result = train(make_plan(weights, steps=60), seen.append)
    assert [p.step for p in seen] == list(range(1, 61))
    assert {p.of for p in seen} == {60}
    assert seen[-1].losses["fit"] < 0.2 * seen[0].losses["fit"]
    assert result.losses.shape == (60, 2)
    assert result.columns == ("fit", "loss")


def test_the_loss_is_the_weighted_sum_of_its_terms() -> None:
    weights = start()
    terms = (Fit(weights), Fit(weights, name="other", weight=0.25))
    result = train(make_plan(weights, steps=1, terms=terms))
    fit, other, loss = result.losses[0].tolist()
    assert fit == other
    assert loss == pytest.approx(1.25 * fit)


def test_accumulation_equals_a_larger_batch() -> None:
    """Mean gradient of 3 batches of 16 = gradient of one batch of 48."""
    small, large = start(), start()
    train(make_plan(small, steps=4, accumulation=3))
    plan = make_plan(large, steps=4)

    def joined(index: int) -> tuple[int, torch.Tensor, torch.Tensor]:
        parts = [plan.batches(3 * index + k) for k in range(3)]
        return index, torch.cat([p[1] for p in parts]), torch.cat([p[2] for p in parts])

    train(replace(plan, batches=joined))
    torch.testing.assert_close(small, large)


@pytest.mark.parametrize("error", [Cancel, KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("options", [{}, {"accumulation": 2, "lr_schedule": "cosine", "warmup": 3}])
def test_a_cancelled_run_goes_on_with_the_same_bits(
    tmp_path: Path, error: type[BaseException], options: dict[str, object]
) -> None:
    expected, whole = run_through(**options)
    session = Session(tmp_path / "run.safetensors", "key")
    with pytest.raises(error):
        train(make_plan(start(), session=session, **options), stopping_at(5, error))
    weights, steps = start(), []
    result = train(make_plan(weights, session=session, **options), lambda p: steps.append(p.step))
    assert steps[0] == 6
    assert torch.equal(weights, expected)
    assert torch.equal(result.losses, whole.losses)


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    expected, _ = run_through()
    session = Session(tmp_path / "run.safetensors", "key")
    saved = (tmp_path / "run.safetensors").read_bytes

    def killed(progress: Progress) -> None:
        if progress.step == 8:
            killed.file = saved()  # type: ignore[attr-defined]
            raise Cancel

    with pytest.raises(Cancel):
        train(make_plan(start(), session=session, checkpoint_every=3), killed)
    # What a kill at step 8 would have left: the checkpoint of step 6.
    (tmp_path / "run.safetensors").write_bytes(killed.file)  # type: ignore[attr-defined]
    weights, steps = start(), []
    train(make_plan(weights, session=session), lambda p: steps.append(p.step))
    assert steps[0] == 7
    assert torch.equal(weights, expected)


def test_all_groups_and_moments_are_resumed(tmp_path: Path) -> None:
    def parts() -> tuple[nn.Parameter, nn.Parameter]:
        return start(), nn.Parameter(torch.ones(4))

    def plan(weights: nn.Parameter, bias: nn.Parameter, session: Session | None):  # noqa: ANN202
        terms = (Fit(weights), Fit(bias, name="bias"))
        return make_plan(weights, bias, terms=terms, session=session)

    whole = parts()
    train(plan(*whole, None))
    session = Session(tmp_path / "run.safetensors", "key")
    with pytest.raises(Cancel):
        train(plan(*parts(), session), stopping_at(7))
    resumed = parts()
    train(plan(*resumed, session))
    assert torch.equal(resumed[0], whole[0])
    assert torch.equal(resumed[1], whole[1])


@pytest.mark.parametrize("damage", ["flipped", "cut", "foreign"])
def test_a_session_that_cannot_be_used_is_no_obstacle(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    expected, _ = run_through()
    path = tmp_path / "run.safetensors"
    with pytest.raises(Cancel):
        train(make_plan(start(), session=Session(path, "key")), stopping_at(5))
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    if damage != "foreign":
        path.write_bytes(bytes(data) if damage == "flipped" else bytes(data[:-40]))
    weights, steps = start(), []
    key = "another key" if damage == "foreign" else "key"
    with caplog.at_level(logging.WARNING):
        train(make_plan(weights, session=Session(path, key)), lambda p: steps.append(p.step))
    assert steps[0] == 1
    assert "from its beginning" in caplog.text
    assert torch.equal(weights, expected)


def test_a_full_disk_does_not_hide_the_cancel(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("in the way", encoding="utf-8")
    session = Session(tmp_path / "folder" / "run.safetensors", "key")
    with pytest.raises(Cancel):
        train(make_plan(start(), session=session), stopping_at(2))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_before_the_weights_change(
    tmp_path: Path, bad: float
) -> None:
    expected, _ = run_through(steps=4)
    weights = start()
    terms = (Fit(weights, fault=lambda index: bad if index == 4 else 1.0),)
    session = Session(tmp_path / "run.safetensors", "key")
    with pytest.raises(TrainingError, match="loss was not finite in step 5.*learning rate"):
        train(make_plan(weights, terms=terms, session=session))
    assert torch.equal(weights, expected)
    assert not session.path.exists()


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change() -> None:
    weights = start()
    weights.register_hook(lambda grad: grad * math.nan)
    with pytest.raises(TrainingError, match="gradient was not finite in step 1"):
        train(make_plan(weights))
    assert torch.equal(weights, torch.zeros(4))


def test_running_out_of_memory_is_answered_with_advice() -> None:
    weights, calls = start(), []

    def greedy(index: int) -> float:
        calls.append(index)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    plan = make_plan(weights, terms=(Fit(weights, fault=greedy),), memory_advice="Use less.")
    with pytest.raises(TrainingError, match="Memory ran out in step 1. Use less."):
        train(plan)
    assert len(calls) == 1


def test_hooks_see_gradients_and_then_weights() -> None:
    weights, seen = start(), []

    class Freeze:
        """Keeps the first weight where it is, by its gradient and after the step."""

        def after_backward(self, step: int) -> None:
            seen.append(("gradient", step, bool(weights.grad.abs().sum() > 0)))
            weights.grad[0] = 0.0

        def after_step(self, step: int) -> None:
            seen.append(("weights", step, bool(weights.abs().sum() > 0)))

    train(make_plan(weights, steps=2, hooks=(Freeze(),)))
    assert float(weights[0].detach()) == 0.0
    assert seen == [(what, step, True) for step in (0, 1) for what in ("gradient", "weights")]


def test_previews_come_when_asked_and_change_nothing() -> None:
    expected, _ = run_through()
    weights, seen = start(), []
    preview = lambda: torch.rand(3, 8, 8)  # noqa: E731
    plan = make_plan(weights, preview=preview, preview_every=5)
    train(plan, lambda p: seen.append(p.preview is not None))
    assert [step for step, there in enumerate(seen, 1) if there] == [5, 10]
    assert torch.equal(weights, expected)


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run_through()
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_trains_fp32_weights(tmp_path: Path) -> None:
    """fp16 scales the loss (a loss scale is stored), leaves overflowing steps out, and resumes."""
    weights = start()
    big = (Fit(weights, weight=1e4),)
    session = Session(tmp_path / "run.safetensors", "key")
    options = {"precision": "fp16", "terms": big, "steps": 30}
    with pytest.raises(Cancel):
        train(make_plan(weights, session=session, **options), stopping_at(20))
    resumed = start()
    train(make_plan(resumed, session=session, **(options | {"terms": (Fit(resumed, weight=1e4),)})))
    whole = start()
    train(make_plan(whole, **(options | {"terms": (Fit(whole, weight=1e4),)})))
    assert weights.dtype == torch.float32
    assert torch.isfinite(whole).all()
    assert float(whole.detach().abs().sum()) > 0.5
    assert torch.equal(resumed, whole)
