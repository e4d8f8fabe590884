"""ComfyUI's progress bar, live preview and cancel button for the library's progress callback."""

from __future__ import annotations

import comfy.model_management
import comfy.utils
from PIL import Image

from ..lifelong_core.training.progress import Progress
from .pictures import to_pil

PREVIEW_SIZE = 512


class ComfyProgress:
    """Callable for `on_progress`. Raises ComfyUI's interrupt when the user has pressed cancel."""

    def __init__(self) -> None:
        self.phase = ""
        self.bar = comfy.utils.ProgressBar(1)

    def __call__(self, progress: Progress) -> None:
        # The bar would check for a cancel too, but it skips steps that follow each other quickly.
        comfy.model_management.throw_exception_if_processing_interrupted()
        if progress.step == 0:
            return
        if progress.phase != self.phase:
            self.phase, self.bar = progress.phase, comfy.utils.ProgressBar(progress.of)
        preview = None
        if progress.preview is not None:
            picture = to_pil(progress.preview)
            picture.thumbnail((PREVIEW_SIZE, PREVIEW_SIZE), Image.Resampling.LANCZOS)
            preview = ("JPEG", picture, None)
        self.bar.update_absolute(progress.step, progress.of, preview)
