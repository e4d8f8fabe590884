"""Choose a command, run it, and turn errors into one plain line and an exit code."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from ..errors import LifelongError, SetupError
from ..launch.console import ended_by_signals
from .commands import COMMANDS, Command

PACKAGE = __name__.rsplit(".", 2)[0]
OLDEST_PYTHON = (3, 10)


def main(argv: Sequence[str] | None = None) -> int:
    """Run `python -m lifelong_core argv…`; returns the exit code.

    0 done, 1 failed with a message, 2 wrong usage, 130 stopped with Ctrl-C.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if sys.version_info < OLDEST_PYTHON:
        print(f"error: Python 3.10 or newer is needed, this is {sys.version.split()[0]}.")
        return 1
    try:
        parser, module = _parser(argv)
        arguments = parser.parse_args(argv)
        if module is None:
            parser.print_help()
            return 2
        with ended_by_signals():
            code = module.run(arguments)
        return int(code)
    except LifelongError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr, flush=True)
        return 130


def _parser(argv: Sequence[str]) -> tuple[argparse.ArgumentParser, ModuleType | None]:
    """A parser in which only the chosen command's own module has been imported."""
    parser = argparse.ArgumentParser(
        prog="python -m lifelong_core",
        description="Teach a text-to-image model concept after concept, without forgetting.",
    )
    commands = parser.add_subparsers(metavar="command", dest="command")
    chosen = next((word for word in argv if not word.startswith("-")), None)
    module = None
    for name, command in COMMANDS.items():
        subparser = commands.add_parser(name, help=command.help, description=command.help)
        if name == chosen:
            module = _load(command)
            module.add_arguments(subparser)
    return parser, module


def _load(command: Command) -> ModuleType:
    try:
        return import_module(command.module, PACKAGE)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] == PACKAGE.split(".")[0]:
            raise
        raise SetupError(
            f"The Python package {error.name} is not installed here. Run "
            "`python -m lifelong_core setup`, then this command with the Python in .venv."
        ) from error
