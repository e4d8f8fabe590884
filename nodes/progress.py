"""ComfyUI's progress bar, live preview and cancel button for the library's progress callback."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management
import comfy.utils
from PIL import Image

from .pictures import to_pil

if TYPE_CHECKING:
    from ..lifelong_core.training import Progress

PREVIEW_SIZE = 512


class ComfyProgress:
    """Callable for `on_progress`. Raises ComfyUI's interrupt when the user has pressed cancel."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None

    def __call__(self, progress: Progress) -> None:
        # The bar checks for a cancel too, but only when it is sent, which ComfyUI does not do
        # at every step.
        comfy.model_management.throw_exception_if_processing_interrupted()
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(progress.of)
        preview = None
        if progress.preview is not None:
            picture = to_pil(progress.preview)
            picture.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS)
            preview = ("JPEG", picture, None)
        self.bar.update_absolute(progress.step, progress.of, preview)
