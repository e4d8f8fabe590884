"""How the results of families that were measured one by one come together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.checkpoints import checkpoint
from benchmarks.guidance_gpu import recorded
from benchmarks.guidance_speed import write
from benchmarks.record import Recorder
from lifelong_core.files import read_json
from lifelong_core.launch.paths import DEMO_WEIGHTS


def recorder(folder: Path, prompt: str = "a dog") -> Recorder:
    return Recorder("guidance_test", "python", {"prompt": prompt}, folder)


def test_a_family_joins_what_was_measured_before_with_the_same_settings(tmp_path: Path) -> None:
    for family, ratio in (("demo", 2.0), ("sd15", 1.5), ("demo", 1.7)):
        write(recorder(tmp_path), family, {"time_ratio": ratio}, {"family": family})
    found = read_json(tmp_path / "guidance_test.json")
    assert found["summary"] == {"demo": {"time_ratio": 1.7}, "sd15": {"time_ratio": 1.5}}
    assert [run["family"] for run in found["runs"]] == ["sd15", "demo"]


def test_other_settings_begin_anew(tmp_path: Path) -> None:
    write(recorder(tmp_path), "sd15", {"time_ratio": 1.5}, {"family": "sd15"})
    write(recorder(tmp_path, "a cat"), "demo", {"time_ratio": 2.0}, {"family": "demo"})
    assert read_json(tmp_path / "guidance_test.json")["summary"] == {"demo": {"time_ratio": 2.0}}


@pytest.mark.parametrize(("prompt", "known"), [("a dog", {"sd15": {"full": 1}}), ("a cat", {})])
def test_gradients_of_families_measured_before_are_kept(
    tmp_path: Path, prompt: str, known: dict[str, object]
) -> None:
    assert recorded(recorder(tmp_path)) == {}
    recorder(tmp_path).write({"sd15": {"full": 1}, "passed": True}, [])
    assert recorded(recorder(tmp_path, prompt)) == known


def test_the_demo_model_is_the_shipped_one(tmp_path: Path) -> None:
    assert checkpoint("demo", tmp_path, torch.float16) == DEMO_WEIGHTS
    assert not list(tmp_path.iterdir())
