"""Processes of our own: one that answers every line with a line of JSON, one that answers once."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from lifelong_core.errors import SetupError
from lifelong_core.launch.paths import ROOT

LOG_TAIL = 4000


def answer_of(
    name: str, module: str, arguments: Sequence[str], env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON on the last line of `python -m module arguments`, run to its end.

    Raises SetupError that calls it `name`, with the log's end, when it fails.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SetupError(f"{name} ended with an error:\n{done.stderr[-LOG_TAIL:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


class Child(ABC):
    """Use it as a context manager; inside, the process runs, and it is gone afterwards.

    name: what it is called when it ends early. env: its environment; ours by default. Its first
    answer comes unasked, when it is ready: `ready`.
    """

    def __init__(self, name: str, env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.ready: dict[str, Any] = {}
        self._env = env
        self._process: subprocess.Popen[str] | None = None
        self._log: Path | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Child:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory())
        self._log = Path(folder) / "log.txt"
        log = self._stack.enter_context(self._log.open("wb"))
        self._process = subprocess.Popen(
            self.command(Path(folder)),
            cwd=ROOT,
            env=self._env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            encoding="utf-8",
        )
        try:
            self.ready = self.answer()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """What is run; `folder` is there for as long as it runs."""

    def ask(self, line: str = "") -> dict[str, Any]:
        """Send a line and wait for the answer. Raises SetupError with the log's end."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next answer. Raises SetupError with the log's end when there is none."""
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            assert self._log is not None
            log = self._log.read_text(encoding="utf-8", errors="replace")
            raise SetupError(f"{self.name} ended early:\n{log[-LOG_TAIL:]}")
        found: dict[str, Any] = json.loads(line)
        return found

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        self._stack.close()
