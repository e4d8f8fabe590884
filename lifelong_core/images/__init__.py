"""People's pictures: files, folders and ComfyUI batches become RGB tensors [3, H, W] in [0, 1]."""

from .decode import load_image
from .folder import image_files, load_captions, load_images
from .tensors import fit, from_batch

__all__ = ["fit", "from_batch", "image_files", "load_captions", "load_image", "load_images"]
