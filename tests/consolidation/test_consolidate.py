"""Running phases: what is refused, what stays as it was, what is found again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from lifelong_core.backbone import Backbone, random_backbone
from lifelong_core.concepts import ConceptTask
from lifelong_core.consolidation import (
    Consolidation,
    ConsolidationSettings,
    consolidate,
    consolidation_defaults,
)
from lifelong_core.consolidation.context import prepare
from lifelong_core.consolidation.fisher import UpdateFisher
from lifelong_core.errors import FileError, InputError, LifelongError, StateError
from lifelong_core.state import LifelongState, load_state, save_state
from lifelong_core.training import Progress, ProgressCallback

SETTINGS = ConsolidationSettings(batch_size=1, fisher_iterations=2)
PHASES = (UpdateFisher(dc=True),)
States = Callable[..., LifelongState]
Tasks = Callable[[int], ConceptTask]


class Cancel(BaseException):
    """What ComfyUI's cancel looks like."""


@dataclass(frozen=True)
class Doubled:
    """A phase that doubles the adapter."""

    name: str = "doubled"

    def __call__(
        self, work: Consolidation, state: LifelongState, on_progress: ProgressCallback | None
    ) -> LifelongState:
        if on_progress is not None:
            on_progress(Progress(1, 1, {}, phase=self.name))
        return replace(state, adapter={name: 2.0 * v for name, v in state.adapter.items()})


def test_the_same_seed_gives_the_same_bits_and_another_one_others(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state = state_after(2)
    before = state.content_hash
    weights = {key: value.clone() for key, value in backbone.unet.state_dict().items()}

    def run(seed: int) -> str:
        settings = replace(SETTINGS, seed=seed)
        return consolidate(
            backbone, task_of(2), state, phases=PHASES, settings=settings
        ).content_hash

    first = run(0)
    torch.manual_seed(5)
    assert run(0) == first
    assert run(1) != first
    assert state.content_hash == before != first
    assert all(torch.equal(v, weights[k]) for k, v in backbone.unet.state_dict().items())


def test_a_first_concept_has_a_fisher_too(
    backbone: Backbone, state_after: States, task_of: Tasks, tmp_path: Path
) -> None:
    """With DC it is told apart from its plain noun; the result can be saved."""
    after = consolidate(backbone, task_of(1), state_after(1), phases=PHASES, settings=SETTINGS)
    assert "fisher" in after.extras
    loaded = load_state(save_state(after, tmp_path / "state.safetensors"))
    assert loaded.content_hash == after.content_hash
    assert loaded.records[0].metrics["consolidation"]["fisher_dc"]["seconds"] > 0


def test_phases_run_in_their_order_and_tell_how_far_they_are(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state, seen = state_after(1), []
    after = consolidate(
        backbone,
        task_of(1),
        state,
        phases=(Doubled("first"), *PHASES, Doubled("second")),
        settings=SETTINGS,
        on_progress=lambda p: seen.append((p.phase, p.step, p.of)),
    )
    assert seen == [("first", 1, 1), ("fisher_dc", 1, 2), ("fisher_dc", 2, 2), ("second", 1, 1)]
    for name, value in state.adapter.items():
        torch.testing.assert_close(after.adapter[name], 4.0 * value)
    alone = consolidate(backbone, task_of(1), state, phases=PHASES, settings=SETTINGS)
    name = next(iter(state.adapter))
    assert not torch.equal(after.extras["fisher"][name], alone.extras["fisher"][name])


@pytest.mark.parametrize(
    ("case", "error", "says"),
    [
        ("no lesson", StateError, "no lesson to consolidate"),
        ("other task", InputError, "thing_1.*newest lesson.*thing_2"),
        ("other pictures", InputError, "not those of the newest lesson"),
        ("other base", StateError, "fingerprint"),
        ("half base", InputError, "precision"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    backbone: Backbone,
    state_after: States,
    task_of: Tasks,
    tmp_path: Path,
    case: str,
    error: type[LifelongError],
    says: str,
) -> None:
    state, task, used, seen = state_after(2), task_of(2), backbone, []
    if case == "no lesson":
        state = replace(state, records=())
    elif case == "other task":
        task = task_of(1)
    elif case == "other pictures":
        task = replace(task, images=task.images * 0.5)
    elif case == "other base":
        used = random_backbone("demo", seed=4)
    else:
        used = random_backbone("demo", dtype=torch.bfloat16)
    before = state.content_hash
    with pytest.raises(error, match=says):
        consolidate(
            used, task, state, phases=(Doubled(),), on_progress=seen.append, workspace=tmp_path
        )
    assert not seen
    assert not list(tmp_path.iterdir())
    assert state.content_hash == before


def test_cancelling_leaves_nothing_half_done_and_finished_phases_are_found_again(
    backbone: Backbone, state_after: States, task_of: Tasks, tmp_path: Path
) -> None:
    state, phases = state_after(2), (Doubled(), *PHASES)
    before = state.content_hash

    def run(on_progress: ProgressCallback | None, workspace: Path | None) -> LifelongState:
        return consolidate(
            backbone,
            task_of(2),
            state,
            phases=phases,
            settings=SETTINGS,
            on_progress=on_progress,
            workspace=workspace,
        )

    def cancel(progress: Progress) -> None:
        if progress.phase == "fisher_dc":
            raise Cancel

    with pytest.raises(Cancel):
        run(cancel, tmp_path)
    assert state.content_hash == before
    assert not any("forward" in module.__dict__ for module in backbone.unet.modules())
    assert not any(module._forward_hooks for module in backbone.unet.modules())
    assert len(list(tmp_path.glob("consolidations/*"))) == 1
    seen: list[str] = []
    finished = run(lambda p: seen.append(p.phase), tmp_path)
    assert seen == ["fisher_dc", "fisher_dc"]
    assert finished.content_hash == run(None, None).content_hash
    seen.clear()
    assert run(lambda p: seen.append(p.phase), tmp_path).content_hash == finished.content_hash
    assert not seen


def test_equal_knowledge_of_other_lessons_keeps_their_settings(
    backbone: Backbone, state_after: States, task_of: Tasks, tmp_path: Path
) -> None:
    state, found = state_after(1), []
    for method in ("ewc", "dsc_ewc"):
        record = replace(state.records[0], settings={"method": method})
        own = replace(state, records=(record,))
        assert own.content_hash == state.content_hash
        given = {"phases": (Doubled(),), "settings": SETTINGS, "workspace": tmp_path}
        found.append(consolidate(backbone, task_of(1), own, **given))  # type: ignore[arg-type]
    assert [after.records[0].settings["method"] for after in found] == ["ewc", "dsc_ewc"]


def test_an_unwritable_workspace_is_a_file_error(
    backbone: Backbone, state_after: States, task_of: Tasks, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(FileError, match="Could not write"):
        consolidate(
            backbone, task_of(1), state_after(1), phases=PHASES, workspace=tmp_path / "file"
        )


def test_draws_depend_on_seed_phase_and_number_alone(
    backbone: Backbone, state_after: States, task_of: Tasks
) -> None:
    state, settings = state_after(4), replace(SETTINGS, batch_size=4)
    work = prepare(backbone, task_of(4), settings, state)
    again = prepare(backbone, task_of(4), settings, state)
    again.batch("a", 0)
    one, two = work.batch("a", 7), again.batch("a", 7)
    assert torch.equal(one.noisy, two.noisy)
    assert torch.equal(one.target, two.target)
    assert work.subset("a", 7) == again.subset("a", 7)
    assert not torch.equal(one.noise, work.batch("b", 7).noise)
    assert not torch.equal(one.noise, work.batch("a", 8).noise)
    views = {tuple(view.flatten().tolist()) for view in work.views[:, 0]}
    assert {tuple(latent.flatten().tolist()) for latent in one.latents} == views


def test_settings() -> None:
    for family in ("demo", "sd1", "sd2", "sdxl"):
        settings = consolidation_defaults(family)
        assert ConsolidationSettings.from_json(settings.to_json()) == settings
    large = consolidation_defaults("sd1")
    assert (large.fisher_iterations, large.batch_size * large.accumulation) == (200, 8)
    with pytest.raises(InputError, match="flux"):
        consolidation_defaults("flux")
    with pytest.raises(InputError, match="subset is 1"):
        ConsolidationSettings(subset=1)
    with pytest.raises(InputError, match="space.*own, noise"):
        ConsolidationSettings(space="pixels")
    with pytest.raises(InputError, match="unknown"):
        ConsolidationSettings.from_json({"unknown": 1})
