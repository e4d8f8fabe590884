"""Files that other programs read: LoRA in kohya names, embeddings, metadata, previews."""

from .export import ExportedFiles, export_lora
from .importing import ImportedLora, import_lora
from .lora import embedding_state_dict, lora_state_dict
from .metadata import ExportInfo

__all__ = [
    "ExportInfo",
    "ExportedFiles",
    "ImportedLora",
    "embedding_state_dict",
    "export_lora",
    "import_lora",
    "lora_state_dict",
]
