"""The library's errors. Each message says what was wrong, what was expected and what to do."""

from __future__ import annotations


class LifelongError(Exception):
    """Base of every error that the library raises on purpose."""


class InputError(LifelongError, ValueError):
    """Pictures, captions, names or settings given by the user cannot be used."""


class ModelError(LifelongError):
    """A base model is of an unknown family, incomplete or broken."""


class StateError(LifelongError):
    """A lifelong state does not fit the base model, the adapter or the lesson."""


class FileError(LifelongError, OSError):
    """A file cannot be read or written, or its content is not what it claims to be."""


class TrainingError(LifelongError):
    """Training had to stop (loss not finite, out of memory); the last finite weights are kept."""
