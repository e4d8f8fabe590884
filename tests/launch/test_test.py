"""`python -m lifelong_core test`: which tests it runs, and how."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from lifelong_core.cli import main as cli
from lifelong_core.launch import test as tester


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run, in an environment that lacks nothing."""
    run: list[list[str]] = []

    def call(command: Sequence[str]) -> int:
        run.append([str(word) for word in command[1:]])
        return 0

    monkeypatch.setattr(tester, "enter", lambda _command, _group: None)
    monkeypatch.setattr(tester, "locate_or_fetch", lambda: SimpleNamespace(path=Path("ComfyUI")))
    monkeypatch.setattr(tester, "find_or_install_chromium", lambda: "chromium")
    monkeypatch.setattr(tester.lint, "check", lambda: 0)
    monkeypatch.setattr(tester, "call", call)
    return run


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (64, 2)])
def test_all_tests_share_the_cores(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, cores: int, workers: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")  # so that it is put back in any case
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert cli(["test"]) == 0
    spread = ["-n", str(workers), "--dist", "loadfile"] if workers else []
    assert commands == [["-m", "pytest", *spread]]
    assert os.environ.get("OMP_NUM_THREADS") == ("1" if workers else None)


def test_chosen_tests_run_as_they_are_told(commands: list[list[str]]) -> None:
    assert cli(["test", "--", "tests/launch", "-x"]) == 0
    assert commands == [["-m", "pytest", "tests/launch", "-x"]]
