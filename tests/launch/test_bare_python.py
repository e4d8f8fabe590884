"""Before anything is installed: the launcher with nothing but the standard library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from lifelong_core.cli import main as cli
from lifelong_core.cli.commands import COMMANDS, Command
from lifelong_core.errors import SetupError
from lifelong_core.launch.paths import ROOT


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python without site-packages."""
    return subprocess.run(
        [sys.executable, "-S", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_every_module_of_the_launcher_can_be_imported() -> None:
    names = sorted(path.stem for path in (ROOT / "lifelong_core" / "launch").glob("*.py"))
    assert len(names) > 10
    imports = "; ".join(f"import lifelong_core.launch.{name}" for name in names)
    done = bare("-c", imports)
    assert done.returncode == 0, done.stderr


def test_help_lists_every_command() -> None:
    done = bare("-m", "lifelong_core", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)


def test_a_command_that_needs_more_says_what_to_do() -> None:
    done = bare("-m", "lifelong_core", "world", "pretrain")
    assert done.returncode == 1
    assert "python -m lifelong_core setup" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_command_is_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli([]) == 2
    assert "demo" in capsys.readouterr().out


def test_expected_errors_become_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lifelong_core.launch import setup

    def fail(_arguments: object) -> int:
        raise SetupError("No room. Make some.")

    monkeypatch.setattr(setup, "run", fail)
    assert cli(["setup"]) == 1
    assert capsys.readouterr().err == "error: No room. Make some.\n"


def test_ctrl_c_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    from lifelong_core.launch import setup

    def stop(_arguments: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(setup, "run", stop)
    assert cli(["setup"]) == 130


def test_every_command_names_a_module_with_help() -> None:
    for command in COMMANDS.values():
        assert isinstance(command, Command)
        assert (ROOT / "lifelong_core" / (command.module.replace(".", "/")[1:] + ".py")).is_file()


def test_arguments_for_pytest_reach_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from lifelong_core.launch import test

    entered: list[list[str]] = []
    monkeypatch.setattr(test, "enter", lambda command, _group: entered.append(command) or 0)
    assert cli(["test", "tests/launch"]) == 0
    assert cli(["test", "--", "-k", "a b", "-x"]) == 0
    assert cli(entered[-1]) == 0
    assert entered == [
        ["test", "--", "tests/launch"],
        ["test", "--", "-k", "a b", "-x"],
        ["test", "--", "-k", "a b", "-x"],
    ]
