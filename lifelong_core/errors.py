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


class SetupError(LifelongError):
    """The environment, ComfyUI or the browser is missing or does not start."""


class WorkflowError(LifelongError):
    """A running ComfyUI refused, failed or stopped a workflow.

    `kind` is "refused", "failed", "interrupted", "timeout" or "lost" (the server went away);
    `details` holds what ComfyUI said.
    """

    def __init__(self, message: str, kind: str, details: object = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.details = details
