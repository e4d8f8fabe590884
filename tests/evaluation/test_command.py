"""`python -m lifelong_core bench` from the command line to the report, on random weights."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from lifelong_core.adapters import AdapterSpec
from lifelong_core.backbone import random_backbone
from lifelong_core.cli import main
from lifelong_core.evaluation import command, drawing
from lifelong_core.evaluation.extractors import Extractor
from lifelong_core.evaluation.protocol import Protocol
from lifelong_core.files import locked, read_json
from lifelong_core.lesson import LessonSettings

SETTINGS = LessonSettings(
    steps=1, batch_size=1, prior_batch_size=1, prior_count=0, adapter=AdapterSpec(rank=2)
)


def colours(images: torch.Tensor) -> torch.Tensor:
    return images.mean((2, 3))


def words(texts: list[str]) -> torch.Tensor:
    return torch.tensor([[float(text.count(letter)) for letter in "aeo"] for text in texts])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name, shades in {"dog": ("red", "blue"), "cat": ("green", "white")}.items():
        folder = tmp_path / "pets" / name
        folder.mkdir(parents=True)
        for shade in shades:
            Image.new("RGB", (64, 64), shade).save(folder / f"{shade}.png")
    return tmp_path / "pets"


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that takes time, made small."""
    backbone = random_backbone("demo")
    backbone.family = replace(backbone.family, default_size=32)
    real = drawing.generate
    monkeypatch.setattr(drawing, "generate", lambda *a, **k: real(*a, size=(32, 32), **k))
    monkeypatch.setattr(command, "weights_path", Path)
    monkeypatch.setattr(command, "load_backbone", lambda path, device: backbone)
    monkeypatch.setattr(command, "extractor_named", lambda name: Extractor(name, colours, words))
    monkeypatch.setattr("lifelong_core.evaluation.run.defaults_for", lambda family: SETTINGS)
    monkeypatch.setattr(command, "PROTOCOL", Protocol(2, 3, 1, 1))
    prompts = ["a photo of a dog", "a cat", "a mug"]
    for place in ("run", "measures", "reference"):
        name = f"lifelong_core.evaluation.{place}.concept_free_prompts"
        monkeypatch.setattr(name, lambda: prompts)


def test_a_folder_of_photos_is_measured_and_reported(
    tiny: None,
    photos: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, work = tmp_path / "results", tmp_path / "work"
    folders = ["--stream", str(photos), "--out", str(out), "--work", str(work)]
    options = ["bench", "run", *folders, "--stream-seed", "1", "--threads", "1", "--device", "cpu"]
    with caplog.at_level(logging.INFO):
        assert main([*options, "--methods", "lora,hard_routing"]) == 0
    assert "0 runs were done before, 2 are to do" in caplog.text
    assert "lora, seed 1 took" in caplog.text and "1 runs are left, which will take" in caplog.text
    table = read_json(out / "pets.json")
    assert list(table["summary"]["methods"]) == ["lora", "hard_routing"]
    assert "--stream FOLDER" in table["command"] and str(tmp_path) not in str(table)
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert main([*options, "--methods", "hard_routing"]) == 0
    assert "1 runs were done before, 0 are to do" in caplog.text
    assert read_json(out / "pets.json")["summary"] == table["summary"]
    assert main(["bench", "report", str(out / "pets.json")]) == 0
    page = (out / "pets" / "index.html").read_text(encoding="utf-8")
    assert "hard_routing-s1.jpg" in page


def test_a_run_that_is_recorded_is_not_run_again_on_another_machine(
    tiny: None, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "results"
    options = ["bench", "run", "--stream", str(photos), "--out", str(out), "--device", "cpu"]
    options += ["--threads", "1", "--methods", "lora"]
    assert main([*options, "--work", str(tmp_path / "here")]) == 0
    table = read_json(out / "pets.json")
    with caplog.at_level(logging.INFO):
        assert main([*options, "--work", str(tmp_path / "there")]) == 0
    assert "1 runs were done before, 0 are to do" in caplog.text
    assert read_json(out / "pets.json") == table and not (tmp_path / "there").exists()
    # Other settings of the same name are another run, which takes the place of the recorded one.
    assert main([*options, "--work", str(tmp_path / "there"), "--precision", "bf16"]) == 0
    found = read_json(out / "pets.json")
    assert found["runs"][0]["key"] != table["runs"][0]["key"] and len(found["runs"]) == 1
    assert found["settings"]["protocol"]["precision"] == "bf16"
    assert found["runs"][0]["settings"]["lesson"]["precision"] == "bf16"
    assert found["command"].endswith("--precision bf16")


def test_other_settings_are_rows_of_their_own(tiny: None, photos: Path, tmp_path: Path) -> None:
    folders = ["--stream", str(photos), "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    options = ["--methods", "lora", "--threads", "1", "--device", "cpu"]
    assert main(["bench", "run", *folders, *options]) == 0
    changes = ["--set", "learning_rate=0.02", "--set", "consolidation.delta=2"]
    assert main(["bench", "run", *folders, *options, *changes]) == 0
    table = read_json(tmp_path / "pets.json")
    name = "lora+learning_rate=0.02+consolidation.delta=2"
    assert list(table["summary"]["methods"]) == ["lora", name]
    assert f"--methods lora,{name}" in table["command"]
    usual, other = (run["settings"] for run in table["runs"])
    assert usual["lesson"]["learning_rate"] != other["lesson"]["learning_rate"] == 0.02
    assert usual["consolidation"]["delta"] != other["consolidation"]["delta"] == 2.0


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--methods", "lora,magic", "'magic' is unknown"),
        ("--methods", " , ", "is empty"),
        ("--stream-seed", "two", "no numbers"),
        ("--stream", "toys7", "toys5"),
        ("--set", "ewc_wait=1", "no setting 'ewc_wait'"),
    ],
)
def test_wrong_options_are_told_before_any_work(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str,
    message: str,
) -> None:  # fmt: skip
    work = tmp_path / "work"
    assert main(["bench", "run", "--work", str(work), option, value]) == 1
    assert message in capsys.readouterr().err
    assert not work.exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such locks")
def test_a_run_that_another_process_is_at_comes_last(
    tiny: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    other = contextlib.ExitStack()
    real = command.run_stream

    def run_stream(run: command.Run) -> dict:
        order.append(run.way.name)
        if run.way.name == "hard_routing":
            other.close()
        return real(run)

    folders = ["--stream", str(photos), "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    options = ["--methods", "lora,hard_routing", "--threads", "1", "--device", "cpu"]
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    lora, _ = command._runs(parser.parse_args(["run", *folders, *options]))
    other.enter_context(locked(lora.folder / "run"))
    monkeypatch.setattr(command, "run_stream", run_stream)
    assert main(["bench", "run", *folders, *options]) == 0
    assert order == ["hard_routing", "lora"]
    table = read_json(tmp_path / "pets.json")
    assert list(table["summary"]["methods"]) == ["hard_routing", "lora"]


def test_a_failing_run_does_not_stop_the_others(
    tiny: None, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = command.run_stream

    def broken(run: command.Run) -> dict:
        if run.way.name == "lora":
            raise command.InputError("no luck")
        return real(run)

    monkeypatch.setattr(command, "run_stream", broken)
    folders = ["--stream", str(photos), "--out", str(tmp_path), "--work", str(tmp_path / "work")]
    options = ["--methods", "lora,hard_routing", "--threads", "1", "--device", "cpu"]
    assert main(["bench", "run", *folders, *options]) == 1
    assert list(read_json(tmp_path / "pets.json")["summary"]["methods"]) == ["hard_routing"]
