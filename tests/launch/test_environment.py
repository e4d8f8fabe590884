"""Which Python runs what: nothing is installed in these tests."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lifelong_core.errors import SetupError
from lifelong_core.launch import borrow, environment
from lifelong_core.launch.comfyui import ComfyUI


class Calls(list[list[str]]):
    """Stands in for `call` and `retry`, and remembers."""

    def __call__(self, command: Sequence[Any], *_more: Any, **_options: Any) -> int:
        self.append([str(part) for part in command])
        return 0


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment's folder that does not exist yet, and a ComfyUI without network."""
    (tmp_path / "requirements.txt").write_text("torch\n")
    monkeypatch.setattr(environment, "VENV", tmp_path / "venv")
    monkeypatch.setattr(environment, "locate_or_fetch", lambda: ComfyUI(tmp_path, own=False))
    return tmp_path / "venv"


@pytest.fixture
def pip(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(environment, "retry", calls)
    return calls


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> Calls:
    calls = Calls()
    monkeypatch.setattr(environment, "call", calls)
    return calls


def be_inside(venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv.mkdir(exist_ok=True)
    monkeypatch.setattr(sys, "prefix", str(venv))


def test_inside_it_installs_once_and_then_touches_nothing(
    venv: Path, pip: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_inside(venv, monkeypatch)
    assert environment.enter(["demo"], "demo") is None
    assert len(pip) == 1
    assert environment.enter(["demo"], "demo") is None
    assert environment.enter(["setup"], "demo") is None
    assert len(pip) == 1


def test_the_tests_environment_serves_the_demo_but_not_the_reverse(
    venv: Path, pip: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_inside(venv, monkeypatch)
    environment.enter(["demo"], "demo")
    environment.enter(["test"], "test")
    assert len(pip) == 2
    environment.enter(["demo"], "demo")
    assert len(pip) == 2


def test_changed_requirements_are_installed(
    venv: Path, pip: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_inside(venv, monkeypatch)
    environment.enter(["demo"], "demo")
    (venv.parent / "requirements.txt").write_text("torch\nnew-thing\n")
    environment.enter(["demo"], "demo")
    assert len(pip) == 2


def test_a_broken_record_only_costs_a_run_of_pip(
    venv: Path, pip: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    be_inside(venv, monkeypatch)
    environment.enter(["demo"], "demo")
    (venv / environment.RECORD).write_text("{ half")
    environment.enter(["demo"], "demo")
    assert len(pip) == 2


def test_outside_it_makes_one_and_runs_the_command_there(
    venv: Path, children: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_prepared_by_user", lambda _group: False)
    monkeypatch.setattr(environment, "find_torch_elsewhere", lambda: None)
    for _ in range(2):
        assert environment.enter(["test", "-x"], "test") == 0
    inside = str(environment._python(venv))
    assert Path(inside).is_file()
    assert children == [[inside, "-m", "lifelong_core", "test", "-x"]] * 2


def test_a_prepared_python_is_used_as_it_is(
    venv: Path, children: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_prepared_by_user", lambda _group: True)
    assert environment.enter(["demo"], "demo") is None
    assert not venv.exists()
    assert children == []


def test_a_torch_that_is_installed_is_seen_and_kept(
    venv: Path, children: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "only_there.py").touch()
    borrowed = borrow.Borrowed(Path(sys.executable), (str(folder),), {"torch": "2.9.0+cu130"})
    monkeypatch.setattr(environment, "_prepared_by_user", lambda _group: False)
    monkeypatch.setattr(environment, "find_torch_elsewhere", lambda: borrowed)
    environment.enter(["demo"], "demo")
    python = environment._python(venv)
    assert environment.capture([python, "-c", "import only_there"])[0] == 0
    record = json.loads((venv / environment.RECORD).read_text())
    assert record["borrowed"] == {"torch": "2.9.0+cu130"}


def test_a_python_without_venv_says_what_to_install(
    venv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_prepared_by_user", lambda _group: False)
    monkeypatch.setattr(environment, "find_torch_elsewhere", lambda: None)
    monkeypatch.setattr(environment, "capture", lambda *_a, **_k: (1, "No module named ensurepip"))
    with pytest.raises(SetupError, match="python3-venv"):
        environment.enter(["demo"], "demo")


def test_the_running_python_has_a_torch_to_borrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    found = borrow._inspect(Path(sys.executable))
    if found is None:
        pytest.fail("torch, torchvision and torchaudio belong to the test environment")
    assert set(found.versions) == set(borrow.TORCH_NAMES)
    assert any((Path(folder) / "torch").is_dir() for folder in found.folders)


def test_a_python_that_is_not_there_has_nothing_to_borrow(tmp_path: Path) -> None:
    assert borrow._inspect(tmp_path / "python") is None
