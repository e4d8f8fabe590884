"""The node that reads a concept's pictures from a folder of people's files."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from comfy_api.latest import io

from ..lifelong_core.images import image_files, load_captions, load_images
from .folders import file_list, photo_folder, photo_folders

logger = logging.getLogger(__name__)


class LoadConceptPhotos(io.ComfyNode):
    """Photos as they come from phones, cameras and the web, ready for a lesson."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LoadConceptPhotos",
            display_name="Load Concept Photos",
            category="lifelong",
            description="Loads the pictures of a folder for Learn Concept, as they come from "
            "phones, cameras and the web: upright, with transparent parts on white, 16-bit files "
            "in their true brightness. A file that cannot be used is refused by its name.",
            search_aliases=[
                "load images from folder",
                "load training images",
                "load photos",
                "load dataset",
                "image captions",
            ],
            inputs=[
                io.Combo.Input(
                    "folder",
                    options=photo_folders(),
                    tooltip="A folder inside ComfyUI's input folder with the pictures of one "
                    "concept. Press R to see folders made since the page was opened.",
                )
            ],
            outputs=[
                io.Image.Output(
                    "images",
                    is_output_list=True,
                    tooltip="The pictures in the order of their file names, as a list: their "
                    "sizes may differ.",
                ),
                io.String.Output(
                    "captions",
                    tooltip="The text files beside the pictures (dog.txt for dog.jpg), one line "
                    "per picture, for Learn Concept. Empty unless every picture has one.",
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, folder: str | None) -> str | float:
        # A linked name is not known yet: not a number equals nothing, so the files are read again.
        return file_list(photo_folder(folder)) if folder else math.nan

    @classmethod
    def execute(cls, folder: str) -> io.NodeOutput:
        path = photo_folder(folder)
        images = [image.permute(1, 2, 0).unsqueeze(0) for image in load_images(path)]
        return io.NodeOutput(images, captions_text(path))


def captions_text(folder: Path) -> str:
    """One line per picture; "" unless every picture has a caption. Raises InputError."""
    captions = load_captions(folder)
    missing = [
        path.name
        for path, caption in zip(image_files(folder), captions, strict=True)
        if caption is None
    ]
    if missing and len(missing) < len(captions):
        logger.warning("The captions are left out: there is none for %s.", ", ".join(missing))
    return "" if missing else "\n".join(caption for caption in captions if caption)
