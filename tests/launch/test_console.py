"""Commands, tries, signals and browsers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lifelong_core.errors import SetupError
from lifelong_core.launch import browser, console
from lifelong_core.launch.paths import ROOT


def test_a_command_that_fails_twice_and_then_works_is_enough(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); "
        "n = len(p.read_text()) if p.exists() else 0; p.write_text('x' * (n + 1)); "
        "sys.exit(n < 2)"
    )
    tries = tmp_path / "tries"
    console.retry([sys.executable, "-c", program, tries], "never", waits=(0, 0))
    assert tries.read_text() == "xxx"


def test_a_command_that_always_fails_is_reported() -> None:
    with pytest.raises(SetupError, match="Check the network"):
        console.retry([sys.executable, "-c", "raise SystemExit(1)"], "Check the network", waits=())


def test_only_chosen_lines_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    program = "print('keep ' + 'x' * 500); print('drop'); raise SystemExit(3)"
    code = console.call([sys.executable, "-c", program], show=lambda line: line.startswith("keep"))
    assert code == 3
    assert capsys.readouterr().out == "keep " + "x" * (console.WIDTH - 5) + "\n"


def test_a_missing_program_is_no_crash(tmp_path: Path) -> None:
    code, output = console.capture([tmp_path / "nothing"])
    assert code != 0
    assert "nothing" in output


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_a_command_asked_to_end_takes_its_children_along(tmp_path: Path) -> None:
    child = "import os, pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))"
    program = (
        "import sys; from lifelong_core.launch.console import call, ended_by_signals\n"
        f"with ended_by_signals(): call([sys.executable, '-c', {child + '; time.sleep(60)'!r}, "
        "sys.argv[1]])"
    )
    note = tmp_path / "child"
    with subprocess.Popen([sys.executable, "-c", program, str(note)], cwd=ROOT) as parent:
        while not (note.exists() and note.read_text()):
            time.sleep(0.05)
        parent.terminate()
        assert parent.wait(timeout=20) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM to send")
def test_a_request_to_end_unwinds_and_the_old_handler_returns() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as ended, console.ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert ended.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before


def test_the_named_chromium_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "chromium"
    monkeypatch.setenv("CHROMIUM_PATH", str(program))
    with pytest.raises(SetupError, match="CHROMIUM_PATH"):
        browser.find_chromium()
    program.touch()
    assert browser.find_chromium() == program


def test_without_any_chromium_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    monkeypatch.setattr(browser, "_candidates", lambda: iter(()))
    with pytest.raises(SetupError, match="apt-get install chromium"):
        browser.require_chromium()


def test_chromium_is_installed_by_apt_or_else_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CHROMIUM_PATH", raising=False)
    program = tmp_path / "chromium"
    monkeypatch.setattr(browser, "_candidates", lambda: iter([program]))
    monkeypatch.setattr(browser.shutil, "which", lambda _name: None)
    commands: list[list[str]] = []

    def call(command: list[str]) -> int:
        commands.append(command)
        program.touch()
        return 0

    monkeypatch.setattr(browser, "call", call)
    assert browser.find_or_install_chromium() == program
    assert [command[1:] for command in commands] == [["-m", "playwright", "install", "chromium"]]
    assert browser.find_or_install_chromium() == program and len(commands) == 1
