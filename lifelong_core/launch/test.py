"""`python -m lifelong_core test`: set up, then lint and all tests, with ComfyUI and Chromium."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from . import lint
from .browser import find_or_install_chromium
from .comfyui import locate_or_fetch
from .console import call, say
from .environment import enter
from .paths import ROOT

WORKERS = 2
"""Processes at most. Each may run a ComfyUI of its own, which takes 3 GiB; and one file, the checks
inside ComfyUI, takes half of all the time, so that more would hardly be done sooner."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments for pytest."""
    parser.add_argument(
        "pytest", nargs="*", help="which tests to run; after --, any arguments for pytest"
    )


def run(arguments: argparse.Namespace) -> int:
    """0 when lint and tests are content."""
    code = enter(["test", "--", *arguments.pytest], "test")
    if code is not None:
        return code
    comfyui = locate_or_fetch()
    say(f"ComfyUI: {comfyui.path}")
    say(f"Chromium: {find_or_install_chromium()}")
    os.chdir(ROOT)
    complaints = lint.check()
    tests = _all_tests() if not arguments.pytest else _pytest(arguments.pytest)
    if complaints:
        say("The tests ran, but lint complained; see above them.")
    return tests or complaints


def _all_tests() -> int:
    """In two processes where there are two cores, of one thread each: processes of several threads
    that share cores wait for one another most of the time.
    """
    workers = min(os.cpu_count() or 1, WORKERS)
    if workers == 1:
        return _pytest([])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    return _pytest(["-n", str(workers), "--dist", "loadfile"])


def _pytest(arguments: Sequence[str]) -> int:
    return call([sys.executable, "-m", "pytest", *arguments])
