"""The command line. Needs nothing but the standard library until a command is chosen."""

from .main import main

__all__ = ["main"]
