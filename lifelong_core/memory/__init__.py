"""The rainbow memory bank of L2DM (Sun et al. 2024, Algorithm 1 and Eq 5).

Long-term: features and prompts of past lessons' pictures, in the state. Short-term: pictures that
the model draws of them before the next lesson, chosen to be varied and true.
"""

from .bank import ShortTermMemory, drawer_hash
from .bank_file import load_bank, save_bank
from .features import FeatureModel, features_named, world_features
from .long_term import ConceptMemory, LongTermMemory, forget, memory_after, remember, with_memory
from .recall import Recollection, recall
from .selection import RAINBOW, RANDOM, SELECTIONS
from .settings import MemorySettings

__all__ = [
    "RAINBOW",
    "RANDOM",
    "SELECTIONS",
    "ConceptMemory",
    "FeatureModel",
    "LongTermMemory",
    "MemorySettings",
    "Recollection",
    "ShortTermMemory",
    "drawer_hash",
    "features_named",
    "forget",
    "load_bank",
    "memory_after",
    "recall",
    "remember",
    "save_bank",
    "with_memory",
    "world_features",
]
