"""Plain lines for people, and commands run without a shell."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ..errors import SetupError

WIDTH = 110


def say(text: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(text, flush=True)


def call(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    show: Callable[[str], bool] | None = None,
) -> int:
    """Run a command with our own input and output and wait; returns its exit code.

    `show` chooses the lines of its standard output to let through, cut to a screen's width.
    Ctrl-C reaches the command too (same process group): it gets time to tidy up. When we are
    asked to end, so is it.
    """
    pipe = None if show is None else subprocess.PIPE
    words = [str(part) for part in command]
    with subprocess.Popen(
        words, env=env, stdout=pipe, encoding="utf-8", errors="replace"
    ) as process:
        try:
            for line in process.stdout or ():
                if show is not None and show(line):
                    say(line.rstrip()[:WIDTH])
            return process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(timeout=10)
            raise
        finally:
            if process.poll() is None:
                process.terminate()


def retry(
    command: Sequence[str | Path],
    failed: str,
    *,
    show: Callable[[str], bool] | None = None,
    waits: Sequence[float] = (5, 20),
) -> None:
    """Run a command that needs the network; try again after each wait. Raises SetupError."""
    for wait in (*waits, None):
        if call(command, show=show) == 0:
            return
        if wait is not None:
            say(f"That failed; trying again in {wait:.0f} seconds.")
            time.sleep(wait)
    raise SetupError(failed)


def capture(command: Sequence[str | Path], *, timeout: float = 120) -> tuple[int, str]:
    """Run a command quietly; returns its exit code and its two outputs as one text."""
    try:
        done = subprocess.run(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 127, str(error)
    return done.returncode, done.stdout


@contextlib.contextmanager
def ended_by_signals() -> Iterator[None]:
    """While inside, a request to end (SIGTERM, SIGHUP) unwinds like an error.

    Without this the process would vanish and leave the server that it started running.
    """

    def unwind(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {name: signal.signal(getattr(signal, name), unwind) for name in names}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
